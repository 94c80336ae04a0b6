//! Routes that are ours: they carry a protocol number of our own, and no others are touched.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::netlink::Netlink;

/// Who made a route (`rtm_protocol`, rtnetlink(7)). iproute2 and routing daemons use 0 to 4, 8 to 18,
/// 42, 99, and 186 to 192.
pub const PROTOCOL: u8 = 123;

/// `rtm_priority` of our routes in the host's table: what an administrator adds without one (0, and
/// 1024 with IPv6, where the older wins) comes first.
pub const METRIC: u32 = 1_024;

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where to.
    pub to: IpNet,
    /// By way of; none: it is on the link.
    pub via: Option<IpAddr>,
    /// Out of this device; none: packets are refused (`unreachable`).
    pub device: Option<u32>,
    /// Smaller wins.
    pub metric: u32,
}

impl Route {
    /// To one address on a device's link.
    #[must_use]
    pub fn host(address: IpAddr, device: u32) -> Self {
        Self {
            to: address.into(),
            via: None,
            device: Some(device),
            metric: METRIC,
        }
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let (scope, kind) = match (self.device, self.via) {
            (None, _) => (RouteScope::Universe, RouteType::Unreachable),
            (Some(_), None) if self.to.addr().is_ipv4() => (RouteScope::Link, RouteType::Unicast),
            _ => (RouteScope::Universe, RouteType::Unicast),
        };
        message.header = RouteHeader {
            address_family: family(self.to.addr()),
            destination_prefix_length: self.to.prefix_len(),
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::from(PROTOCOL),
            scope,
            kind,
            ..RouteHeader::default()
        };
        let attributes = &mut message.attributes;
        if self.to.prefix_len() > 0 {
            attributes.push(RouteAttribute::Destination(address(self.to.network())));
        }
        attributes.extend(self.via.map(|via| RouteAttribute::Gateway(address(via))));
        attributes.extend(self.device.map(RouteAttribute::Oif));
        attributes.push(RouteAttribute::Priority(self.metric));
        message
    }

    /// Adds it; an equal one of somebody else's is an error (`EEXIST`).
    pub fn add(&self, netlink: &mut Netlink) -> io::Result<()> {
        let request = RouteNetlinkMessage::NewRoute(self.message());
        netlink.change(request, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes it, and nothing but it: the kernel compares everything that is given, also the
    /// protocol. Gone already is removed.
    pub fn remove(&self, netlink: &mut Netlink) -> io::Result<()> {
        match netlink.change(RouteNetlinkMessage::DelRoute(self.message()), 0) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            result => result,
        }
    }

    /// From what the kernel shows; none: somebody else's, or of a kind that we do not make.
    fn read(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let length = header.destination_prefix_length;
        let unspecified = match header.address_family {
            AddressFamily::Inet => IpAddr::from([0_u8; 4]),
            AddressFamily::Inet6 => IpAddr::from([0_u8; 16]),
            _ => return None,
        };
        if u8::from(header.protocol) != PROTOCOL || header.table != RouteHeader::RT_TABLE_MAIN {
            return None;
        }
        let refuses = header.kind == RouteType::Unreachable;
        let (mut to, mut via, mut device, mut metric) = (unspecified, None, None, 0);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(found) => to = plain(found)?,
                RouteAttribute::Gateway(found) => via = plain(found),
                // Of an IPv6 route that refuses, the kernel shows the loopback device.
                RouteAttribute::Oif(found) => device = (!refuses).then_some(*found),
                RouteAttribute::Priority(found) => metric = *found,
                _ => {}
            }
        }
        Some(Self {
            to: IpNet::new(to, length).ok()?,
            via,
            device,
            metric,
        })
    }
}

/// All routes that are ours.
pub fn list(netlink: &mut Netlink) -> io::Result<Vec<Route>> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        for answer in netlink.dump(&RouteNetlinkMessage::GetRoute(request))? {
            if let RouteNetlinkMessage::NewRoute(message) = answer {
                found.extend(Route::read(&message));
            }
        }
    }
    Ok(found)
}

pub(crate) const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

const fn address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

const fn plain(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}
