//! Devices that programs are attached to.

use super::{Addr4, Addr6};
use crate::wire::MacAddr;

/// A device as a hook sees it: its index and the VLAN tags of the frame at hand.
///
/// A frame with tags at an uplink belongs to the VLAN device above it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct DeviceKey {
    /// Kernel interface index.
    pub ifindex: u32,
    /// Outer VLAN id in the high half, inner in the low half; a single tag is the outer one.
    /// Bit 31 is set if there is any tag.
    pub vlan: u32,
}

/// What a device is to us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceRole {
    /// None of ours.
    #[default]
    Unknown = 0,
    /// Leads to other nodes and to the outside.
    Uplink = 1,
    /// The host's end of a pod's veth pair.
    Pod = 2,
    /// The loopback device: what this node's processes send to addresses of their own node.
    Loopback = 3,
}

impl DeviceRole {
    /// From the number in a record.
    #[inline(always)]
    #[must_use]
    pub const fn from_raw(raw: u32) -> Self {
        match raw {
            1 => Self::Uplink,
            2 => Self::Pod,
            3 => Self::Loopback,
            _ => Self::Unknown,
        }
    }
}

/// Index of the loopback device, in every network namespace (`LOOPBACK_IFINDEX`, `net/flow.h`).
pub const LOOPBACK: u32 = 1;

/// Bits of [`Device::flags`].
pub mod device_flag {
    /// Frames may be sent out here from XDP (the device is in `TX_PORTS`).
    pub const XDP_TARGET: u16 = 1 << 0;
}

/// What the daemon says of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Device {
    /// See [`DeviceRole`].
    pub role: u32,
    /// The index to route by: the VLAN device's if the key has tags, else the key's own.
    pub ifindex: u32,
    /// This node's IPv4 address towards this device, the source of packets that are translated on
    /// their way out here; zero: none. At a pod's device: what a pod that meets itself sees.
    pub source_v4: Addr4,
    /// The same for IPv6.
    pub source_v6: Addr6,
    /// The device's own link-layer address.
    pub mac: MacAddr,
    /// See [`device_flag`].
    pub flags: u16,
    /// Largest packet that may leave by it, bytes from the IP header on; zero: not known.
    pub mtu: u32,
}
