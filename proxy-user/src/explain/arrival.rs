//! Where a packet meets the first program, and which one comes after.

use std::{collections::BTreeMap, net::IpAddr};

use proxy_common::{
    abi::{DeviceKey, DeviceRole, LOOPBACK},
    wire::MacAddr,
};

use super::{
    ExplainError, kernel,
    packet::{Checked, Packet},
};
use crate::{
    inspect::Look,
    kernel::{
        devices::{Device, XdpState},
        netlink::Netlink,
        route::{self, Route},
    },
};

/// A program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    Xdp,
    Ingress,
    Egress,
}

impl Hook {
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Xdp => "xdp_uplink",
            Self::Ingress => "tc_ingress",
            Self::Egress => "tc_egress",
        }
    }
}

/// A program at a device, and what packets to this node have there: a VLAN tag, a link-layer
/// destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) hook: Hook,
    pub(super) ifindex: u32,
    pub(super) tag: Option<u16>,
    pub(super) mac: MacAddr,
}

/// Where a packet is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) first: Place,
    /// Where it is seen if the first program passes it on.
    pub(super) then: Option<Place>,
}

/// Where a packet is seen: at the device that was named; else, if it is this node's own, where it
/// would leave; else at the device that leads back to its source. XDP comes before TC.
pub(super) fn places(
    packet: &Packet,
    checked: &Checked,
    devices: &BTreeMap<u32, Device>,
    look: &Look<'_>,
    netlink: &mut Netlink,
) -> Result<Places, ExplainError> {
    let (hook, ifindex) = arrival(packet, checked, devices, look, netlink)?;
    let tc = Place {
        hook,
        ifindex,
        tag: None,
        mac: devices
            .get(&ifindex)
            .map(|device| device.mac)
            .unwrap_or_default(),
    };
    let xdp = (hook == Hook::Ingress).then(|| xdp(ifindex, devices, look));
    Ok(match xdp.flatten() {
        Some(first) => Places {
            first,
            then: Some(tc),
        },
        None => Places {
            first: tc,
            then: None,
        },
    })
}

fn arrival(
    packet: &Packet,
    checked: &Checked,
    devices: &BTreeMap<u32, Device>,
    look: &Look<'_>,
    netlink: &mut Netlink,
) -> Result<(Hook, u32), ExplainError> {
    if let Some(name) = &packet.device {
        let found = devices.values().find(|device| device.name == *name);
        return found
            .map(|device| (Hook::Ingress, device.ifindex))
            .ok_or_else(|| ExplainError::Invalid {
                field: "device",
                value: name.clone(),
                remedy: "there is no device of this name here".to_owned(),
            });
    }
    let source = checked.source.ip();
    let own = |address: IpAddr| {
        let mut addresses = devices.values().flat_map(|device| &device.addresses);
        addresses.any(|own| own.addr() == address)
    };
    let (hook, towards) = if own(source) {
        (Hook::Egress, checked.destination.ip())
    } else {
        (Hook::Ingress, source)
    };
    if hook == Hook::Egress && own(towards) {
        return Ok((hook, LOOPBACK));
    }
    let route = route::find(netlink, towards, None).map_err(kernel("a route"))?;
    if let Route::Forward { ifindex, .. } = route {
        return Ok((hook, ifindex));
    }
    let uplink = look
        .observed()
        .devices
        .keys()
        .find(|key| key.vlan == 0 && is_uplink(look, **key));
    uplink
        .map(|key| (hook, key.ifindex))
        .ok_or_else(|| ExplainError::Invalid {
            field: "source",
            value: source.to_string(),
            remedy: "no device leads there; name the one it comes in on with --device".to_owned(),
        })
}

/// The XDP program that sees what comes in by a device: at the device itself, or, of a VLAN device,
/// at the one below, where its packets have a tag.
fn xdp(ifindex: u32, devices: &BTreeMap<u32, Device>, look: &Look<'_>) -> Option<Place> {
    let mac = devices.get(&ifindex)?.mac;
    let below = devices.get(&ifindex)?.vlan.map(|vlan| {
        let key = DeviceKey {
            ifindex: vlan.parent,
            vlan: 1 << 31 | u32::from(vlan.id) << 16,
        };
        (key, Some(vlan.id))
    });
    let itself = (DeviceKey { ifindex, vlan: 0 }, None);
    let mut seen = below.into_iter().chain([itself]);
    seen.find_map(|(key, tag)| {
        let device = devices.get(&key.ifindex)?;
        (device.xdp != XdpState::None && is_uplink(look, key)).then_some(Place {
            hook: Hook::Xdp,
            ifindex: key.ifindex,
            tag,
            mac,
        })
    })
}

fn is_uplink(look: &Look<'_>, key: DeviceKey) -> bool {
    let device = look.observed().devices.get(&key);
    device.is_some_and(|device| DeviceRole::from_raw(device.role) == DeviceRole::Uplink)
}
