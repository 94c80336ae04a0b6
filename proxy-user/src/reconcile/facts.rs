//! What is true of this node whatever anybody desires.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use proxy_common::{abi::DeviceRole, wire::MacAddr};

/// A VLAN device's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanFact {
    /// The device it stands on.
    pub parent: u32,
    /// VLAN id, 1 to 4,094.
    pub id: u16,
}

/// A network device as netlink shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFact {
    /// Kernel interface index.
    pub ifindex: u32,
    /// Name at this moment.
    pub name: String,
    /// Link-layer address; zero: none.
    pub mac: MacAddr,
    /// Maximum transmission unit, bytes.
    pub mtu: u32,
    /// Addresses in the kernel's order, primary first, with their prefix length.
    pub addresses: Vec<IpNet>,
    /// Set for 802.1Q devices.
    pub vlan: Option<VlanFact>,
    /// By the configuration's name patterns; unknown for what none matches.
    pub role: DeviceRole,
    /// Whether XDP programs may send to it (`ndo_xdp_xmit`, ready to be used).
    pub xdp_transmit: bool,
}

/// This node as the kernel shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Every device of the network namespace by index, those without a role too.
    pub devices: BTreeMap<u32, DeviceFact>,
    /// Jiffies per second (`CONFIG_HZ`).
    pub hz: u32,
}

impl Facts {
    /// Every address that this node's own stack answers for.
    #[must_use]
    pub fn local_addresses(&self) -> BTreeSet<IpAddr> {
        self.devices
            .values()
            .flat_map(|device| &device.addresses)
            .map(IpNet::addr)
            .collect()
    }

    /// The addresses of uplinks, and of VLAN devices on them, by device and in the kernel's order.
    /// Link-local and loopback ones are left out: nobody outside can use them.
    pub fn uplink_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.devices
            .values()
            .filter(|device| self.is_uplink(device))
            .flat_map(|device| &device.addresses)
            .map(IpNet::addr)
            .filter(|address| is_usable(*address))
    }

    /// Whether a device leads outside: an uplink, or a VLAN device on one.
    #[must_use]
    pub fn is_uplink(&self, device: &DeviceFact) -> bool {
        device.role == DeviceRole::Uplink
            || self
                .base(device)
                .is_some_and(|(base, _)| base.role == DeviceRole::Uplink)
    }

    /// The device under a stack of VLAN devices, and the tags of its frames, outer first.
    /// None if it isn't a VLAN device, or has more than two tags.
    #[must_use]
    pub fn base(&self, device: &DeviceFact) -> Option<(&DeviceFact, [u16; 2])> {
        let upper = device.vlan?;
        let parent = self.devices.get(&upper.parent)?;
        let Some(lower) = parent.vlan else {
            return Some((parent, [upper.id, 0]));
        };
        let base = self.devices.get(&lower.parent)?;
        base.vlan.is_none().then_some((base, [lower.id, upper.id]))
    }
}

/// Whether an address can be used beyond one link.
pub(super) fn is_usable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
    }
}
