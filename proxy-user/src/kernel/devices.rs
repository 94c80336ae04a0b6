//! Devices and their addresses.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
    LinkXdp, XdpAttached,
};
use proxy_common::wire::MacAddr;

use super::netlink::Netlink;
use crate::reconcile::VlanFact;

/// How XDP programs are run at a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpState {
    /// There is none.
    #[default]
    None,
    /// By the driver.
    Native,
    /// By the kernel's stack, after the driver.
    Generic,
    /// By the device itself, or several at once: nothing that we do.
    Other,
}

/// A device of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Kernel interface index.
    pub ifindex: u32,
    /// Its name at this moment.
    pub name: String,
    /// Link-layer address; zero: none.
    pub mac: MacAddr,
    /// Maximum transmission unit, bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Frames have an Ethernet header.
    pub ethernet: bool,
    /// The kernel's word for a virtual device's kind (`veth`, `bridge`, `vlan`); none: a driver of
    /// real or paravirtual hardware.
    pub kind: Option<String>,
    /// Set for 802.1Q devices.
    pub vlan: Option<VlanFact>,
    /// How XDP programs are run there just now, whoever attached them.
    pub xdp: XdpState,
    /// Addresses in the kernel's order (primary first) with their prefix length.
    pub addresses: Vec<IpNet>,
}

/// All devices by index.
pub fn list(netlink: &mut Netlink) -> io::Result<BTreeMap<u32, Device>> {
    let links = netlink.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let mut devices: BTreeMap<u32, Device> = links
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(device(&link)),
            _ => None,
        })
        .map(|device| (device.ifindex, device))
        .collect();
    let addresses = netlink.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    for answer in addresses {
        if let RouteNetlinkMessage::NewAddress(message) = answer
            && let Some(device) = devices.get_mut(&message.header.index)
            && let Some(address) = address(&message)
        {
            device.addresses.push(address);
        }
    }
    Ok(devices)
}

fn device(link: &LinkMessage) -> Device {
    let mut device = Device {
        ifindex: link.header.index,
        name: String::new(),
        mac: MacAddr::default(),
        mtu: 0,
        up: link.header.flags.contains(LinkFlags::Up),
        ethernet: link.header.link_layer_type == LinkLayerType::Ether,
        kind: None,
        vlan: None,
        xdp: XdpState::None,
        addresses: Vec::new(),
    };
    let (mut parent, mut vlan_id) = (None, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::Link(index) => parent = Some(*index),
            LinkAttribute::Address(bytes) => {
                if let Ok(bytes) = <[u8; 6]>::try_from(bytes.as_slice()) {
                    device.mac = MacAddr::from_bytes(bytes);
                }
            }
            LinkAttribute::LinkInfo(infos) => {
                device.kind = kind(infos);
                vlan_id = vlan(infos);
            }
            LinkAttribute::Xdp(xdp) => device.xdp = xdp_state(xdp),
            _ => {}
        }
    }
    if let (Some(parent), Some(id)) = (parent, vlan_id) {
        device.vlan = Some(VlanFact { parent, id });
    }
    device
}

fn kind(infos: &[LinkInfo]) -> Option<String> {
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    })
}

fn vlan(infos: &[LinkInfo]) -> Option<u16> {
    let is_vlan = infos
        .iter()
        .any(|info| matches!(info, LinkInfo::Kind(InfoKind::Vlan)));
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vlan(data)) => Some(data),
        _ => None,
    })?;
    data.iter().filter(|_| is_vlan).find_map(|item| match item {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
    })
}

fn xdp_state(attributes: &[LinkXdp]) -> XdpState {
    let attached = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::Attached(attached) => Some(*attached),
        _ => None,
    });
    match attached {
        None | Some(XdpAttached::None) => XdpState::None,
        Some(XdpAttached::Driver) => XdpState::Native,
        Some(XdpAttached::SocketBuffer) => XdpState::Generic,
        Some(_) => XdpState::Other,
    }
}

/// The address itself: `IFA_LOCAL` where there is a peer, else `IFA_ADDRESS`. None while duplicate
/// address detection has not found it free, or has found it taken.
fn address(message: &AddressMessage) -> Option<IpNet> {
    use netlink_packet_route::address::AddressFlags;
    let (mut local, mut any): (Option<IpAddr>, Option<IpAddr>) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => any = Some(*address),
            AddressAttribute::Flags(flags) => {
                let optimistic = flags.contains(AddressFlags::Optimistic);
                let tentative = flags.contains(AddressFlags::Tentative) && !optimistic;
                if tentative || flags.contains(AddressFlags::Dadfailed) {
                    return None;
                }
            }
            _ => {}
        }
    }
    IpNet::new(local.or(any)?, message.header.prefix_len).ok()
}
