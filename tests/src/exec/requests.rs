//! Changes to a network namespace, as rtnetlink wants to be asked for them.
//!
//! Not by `ip`: in a guest there is no other program, and starting one for each case takes longer
//! than the case.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use proxy_user::kernel::netlink::Netlink;

use crate::case::place::{self, MTU, RouteKind};

/// `NLM_F_CREATE | NLM_F_EXCL`.
const CREATE_NEW: u16 = 0x400 | 0x200;
/// `NLM_F_CREATE | NLM_F_REPLACE`.
const CREATE_OR_REPLACE: u16 = 0x400 | 0x100;

/// By how much the index of a pair's far end is larger.
pub(super) const PEER: u32 = 100;

/// One change, and words for it.
pub(super) struct Request {
    what: String,
    message: RouteNetlinkMessage,
    flags: u16,
}

impl Request {
    /// Makes the change in the namespace of `netlink`.
    pub(super) fn make(self, netlink: &mut Netlink) -> Result<()> {
        let Self {
            what,
            message,
            flags,
        } = self;
        netlink.change(message, flags).context(what)
    }
}

fn link(ifindex: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = ifindex;
    link
}

/// Raises a device.
pub(super) fn raise(ifindex: u32) -> Request {
    let mut link = link(ifindex);
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    Request {
        what: format!("raising device {ifindex}"),
        message: RouteNetlinkMessage::SetLink(link),
        flags: 0,
    }
}

/// Adds the veth pair `c<ifindex>` and `p<ifindex>`.
pub(super) fn add_pair(ifindex: u32) -> Request {
    let mut far = link(ifindex + PEER);
    far.attributes
        .push(LinkAttribute::IfName(format!("p{ifindex}")));
    let mut near = link(ifindex);
    near.attributes = vec![
        LinkAttribute::IfName(format!("c{ifindex}")),
        LinkAttribute::Address(place::mac(ifindex).to_vec()),
        LinkAttribute::Mtu(u32::from(MTU)),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
        ]),
    ];
    Request {
        what: format!("adding the veth pair {ifindex}"),
        message: RouteNetlinkMessage::NewLink(near),
        flags: CREATE_NEW,
    }
}

const fn family(address: &IpAddr) -> (AddressFamily, u8) {
    match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    }
}

/// Gives a device an address.
pub(super) fn add_address(address: IpAddr, ifindex: u32) -> Request {
    let mut message = AddressMessage::default();
    (message.header.family, message.header.prefix_len) = family(&address);
    message.header.index = ifindex;
    if address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    Request {
        what: format!("adding the address {address} to device {ifindex}"),
        message: RouteNetlinkMessage::NewAddress(message),
        flags: CREATE_NEW,
    }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

fn route(net: IpNet, kind: RouteKind) -> RouteMessage {
    let mut route = RouteMessage::default();
    let (family, _) = family(&net.addr());
    route.header = RouteHeader {
        address_family: family,
        destination_prefix_length: net.prefix_len(),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Boot,
        scope: RouteScope::Universe,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    let destination = RouteAttribute::Destination(route_address(net.addr()));
    route.attributes.push(destination);
    match kind {
        RouteKind::Via(router, ifindex) => {
            route.header.flags = RouteFlags::Onlink;
            route.attributes.extend([
                RouteAttribute::Gateway(route_address(router)),
                RouteAttribute::Oif(ifindex),
            ]);
        }
        RouteKind::Direct(ifindex) => {
            route.header.scope = RouteScope::Link;
            route.attributes.push(RouteAttribute::Oif(ifindex));
        }
        RouteKind::Refused => route.header.kind = RouteType::Unreachable,
    }
    route
}

/// Adds a route.
pub(super) fn add_route(net: IpNet, kind: RouteKind) -> Request {
    Request {
        what: format!("adding the route to {net}: {kind:?}"),
        message: RouteNetlinkMessage::NewRoute(route(net, kind)),
        flags: CREATE_NEW,
    }
}

/// Removes a route.
pub(super) fn remove_route(net: IpNet, kind: RouteKind) -> Request {
    Request {
        what: format!("removing the route to {net}: {kind:?}"),
        message: RouteNetlinkMessage::DelRoute(route(net, kind)),
        flags: 0,
    }
}

fn neighbour(address: IpAddr, ifindex: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    (message.header.family, _) = family(&address);
    message.header.ifindex = ifindex;
    let destination = match address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    };
    message
        .attributes
        .push(NeighbourAttribute::Destination(destination));
    message
}

/// Gives a neighbour a link-layer address, for good.
pub(super) fn set_neighbour(address: IpAddr, ifindex: u32, mac: [u8; 6]) -> Request {
    let mut message = neighbour(address, ifindex);
    message.header.state = NeighbourState::Permanent;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    Request {
        what: format!("setting the neighbour {address} of device {ifindex}"),
        message: RouteNetlinkMessage::NewNeighbour(message),
        flags: CREATE_OR_REPLACE,
    }
}

/// Forgets a neighbour.
pub(super) fn remove_neighbour(address: IpAddr, ifindex: u32) -> Request {
    Request {
        what: format!("removing the neighbour {address} of device {ifindex}"),
        message: RouteNetlinkMessage::DelNeighbour(neighbour(address, ifindex)),
        flags: 0,
    }
}
