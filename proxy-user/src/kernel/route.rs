//! The kernel's routing and neighbour tables, asked for one packet.

use std::{io, net::IpAddr};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};

use super::netlink::Netlink;

/// What a packet to an address meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// This node itself.
    Local,
    /// No route, or one that refuses.
    Refused,
    /// Out of a device.
    Forward {
        /// Kernel interface index.
        ifindex: u32,
        /// The next hop; none: the destination itself is on the link.
        gateway: Option<IpAddr>,
    },
}

/// Asks for the route of a packet. `from`: its source and the device that it comes in on; none:
/// this node sends it.
pub fn find(
    netlink: &mut Netlink,
    destination: IpAddr,
    from: Option<(IpAddr, u32)>,
) -> io::Result<Route> {
    let mut request = RouteMessage::default();
    let (family, length) = match destination {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    request.header.address_family = family;
    request.header.destination_prefix_length = length;
    request
        .attributes
        .push(RouteAttribute::Destination(route_address(destination)));
    if let Some((source, ifindex)) = from {
        request.header.source_prefix_length = length;
        request
            .attributes
            .push(RouteAttribute::Source(route_address(source)));
        request.attributes.push(RouteAttribute::Iif(ifindex));
    }
    let answers = match netlink.get(RouteNetlinkMessage::GetRoute(request)) {
        Ok(answers) => answers,
        Err(error) => {
            return match error.raw_os_error() {
                // What the kernel says of unreachable, prohibit and blackhole routes, and of a
                // source that it takes for forged.
                Some(
                    libc::ENETUNREACH
                    | libc::EHOSTUNREACH
                    | libc::EACCES
                    | libc::EINVAL
                    | libc::EXDEV,
                ) => Ok(Route::Refused),
                _ => Err(error),
            };
        }
    };
    let route = answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) => Some(route),
        _ => None,
    });
    Ok(route.map_or(Route::Refused, |route| read(&route)))
}

fn read(route: &RouteMessage) -> Route {
    match route.header.kind {
        RouteType::Unicast => {}
        RouteType::Local | RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast => {
            return Route::Local;
        }
        _ => return Route::Refused,
    }
    let (mut device, mut gateway) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => device = Some(*ifindex),
            RouteAttribute::Gateway(address) => gateway = ip_address(address),
            _ => {}
        }
    }
    device.map_or(Route::Refused, |ifindex| Route::Forward {
        ifindex,
        gateway,
    })
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

fn ip_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

/// The link-layer address of a neighbour, if the kernel has one that it would use.
pub fn neighbour(
    netlink: &mut Netlink,
    ifindex: u32,
    address: IpAddr,
) -> io::Result<Option<[u8; 6]>> {
    let mut request = NeighbourMessage::default();
    request.header.family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let answers = netlink.dump(&RouteNetlinkMessage::GetNeighbour(request))?;
    let found = answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewNeighbour(entry) if entry.header.ifindex == ifindex => {
            known(&entry, address)
        }
        _ => None,
    });
    Ok(found)
}

fn known(entry: &NeighbourMessage, address: IpAddr) -> Option<[u8; 6]> {
    // `bpf_fib_lookup` takes what is in NUD_VALID.
    let valid = matches!(
        entry.header.state,
        NeighbourState::Permanent
            | NeighbourState::Noarp
            | NeighbourState::Reachable
            | NeighbourState::Probe
            | NeighbourState::Stale
            | NeighbourState::Delay
    );
    let is = |attribute: &NeighbourAttribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => IpAddr::V4(*v4) == address,
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => IpAddr::V6(*v6) == address,
        _ => false,
    };
    if !valid || !entry.attributes.iter().any(is) {
        return None;
    }
    entry
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
            _ => None,
        })
}
