//! A pod's veth, addresses, neighbours and routes.
//!
//! There is no bridge: the pod sends everything to a link-local gateway, whose link-layer address is
//! a permanent neighbour, and the host has a route to each of the pod's addresses. So nobody has to
//! answer ARP or NDP, and nothing is learnt that can be wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;
use std::path::Path;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;

use crate::netlink::Netlink;
use crate::route::{self, Route, family};

/// The next hop of everything that a pod sends by IPv4. Nobody has this address.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The same for IPv6.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The gateway of an address's family.
#[must_use]
pub const fn gateway(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => IpAddr::V4(GATEWAY_V4),
        IpAddr::V6(_) => IpAddr::V6(GATEWAY_V6),
    }
}

/// A device as the kernel shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Kernel interface index.
    pub index: u32,
    /// Link-layer address.
    pub mac: Vec<u8>,
    /// MTU.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// A veth.
    pub veth: bool,
}

/// A device by its name; none: there is none.
pub fn find(netlink: &mut Netlink, name: &str) -> io::Result<Option<Link>> {
    let mut request = LinkMessage::default();
    request
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    let answers = match netlink.get(RouteNetlinkMessage::GetLink(request)) {
        Ok(answers) => answers,
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(message) => Some(read(&message)),
        _ => None,
    }))
}

fn read(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(mac) => link.mac.clone_from(mac),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => {
                link.veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
            }
            _ => {}
        }
    }
    link
}

/// What a pair of devices is made of.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'p> {
    /// The name of the host's end.
    pub device: &'p str,
    /// The name of the pod's end.
    pub interface: &'p str,
    /// Link-layer addresses of the host's end and the pod's.
    pub macs: [[u8; 6]; 2],
    /// MTU of both.
    pub mtu: u32,
    /// The pod's network namespace.
    pub sandbox: RawFd,
}

/// Makes both ends at once, each in its place: there is no moment with half of it.
pub fn create(netlink: &mut Netlink, pair: &Pair<'_>) -> io::Result<()> {
    let [host, pod] = pair.macs;
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(pair.interface.to_owned()),
        LinkAttribute::Mtu(pair.mtu),
        LinkAttribute::Address(pod.to_vec()),
        LinkAttribute::NetNsFd(pair.sandbox),
    ];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(pair.device.to_owned()),
        LinkAttribute::Mtu(pair.mtu),
        LinkAttribute::Address(host.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    netlink.change(
        RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// Removes a pair by the name of one end; says whether it was there. Routes and neighbours go with it.
pub fn remove(netlink: &mut Netlink, device: &str) -> io::Result<bool> {
    let Some(link) = find(netlink, device)? else {
        return Ok(false);
    };
    if !link.veth {
        let problem = format!("{device} is no veth, so it is not ours to remove");
        return Err(io::Error::other(problem));
    }
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    match netlink.change(RouteNetlinkMessage::DelLink(message), 0) {
        // It went by itself, with its namespace.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error),
        Ok(()) => Ok(true),
    }
}

fn bring_up(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    netlink.change(RouteNetlinkMessage::SetLink(message), 0)
}

fn add_address(netlink: &mut Netlink, index: u32, address: IpAddr) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = IpNet::from(address).prefix_len();
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    if address.is_ipv6() {
        // There is nobody on the link who could have it, and it must be usable at once.
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    netlink.change(
        RouteNetlinkMessage::NewAddress(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

fn add_neighbour(
    netlink: &mut Netlink,
    index: u32,
    address: IpAddr,
    mac: [u8; 6],
) -> io::Result<()> {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    let destination = match address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    };
    message.attributes = vec![
        NeighbourAttribute::Destination(destination),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    netlink.change(
        RouteNetlinkMessage::NewNeighbour(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// Sets up the host's end of a pair.
pub fn host(pair: &Pair<'_>, addresses: &[IpAddr]) -> io::Result<()> {
    let mut netlink = Netlink::connect()?;
    let link = find(&mut netlink, pair.device)?.ok_or(io::ErrorKind::NotFound)?;
    let [_, pod] = pair.macs;
    for address in addresses {
        forward(pair.device, *address)?;
    }
    bring_up(&mut netlink, link.index)?;
    for address in addresses {
        add_neighbour(&mut netlink, link.index, *address, pod)?;
        Route::host(*address, link.index).add(&mut netlink)?;
    }
    Ok(())
}

/// Lets the host forward what comes from the device.
fn forward(device: &str, address: IpAddr) -> io::Result<()> {
    if address.is_ipv4() {
        return setting("ipv4", device, "forwarding", "1");
    }
    setting("ipv6", device, "disable_ipv6", "0")?;
    // A pod is no router of ours.
    setting("ipv6", device, "accept_ra", "0")?;
    setting("ipv6", device, "forwarding", "1")
}

/// Of the calling thread's network namespace.
fn setting(family: &str, device: &str, name: &str, value: &str) -> io::Result<()> {
    let path = Path::new("/proc/sys/net")
        .join(family)
        .join("conf")
        .join(device)
        .join(name);
    fs::write(&path, value)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// Sets up the pod's end of a pair: called in the pod's network namespace.
pub fn pod(pair: &Pair<'_>, addresses: &[IpAddr]) -> io::Result<()> {
    let mut netlink = Netlink::connect()?;
    if let Some(lo) = find(&mut netlink, "lo")? {
        bring_up(&mut netlink, lo.index)?;
    }
    let link = find(&mut netlink, pair.interface)?.ok_or(io::ErrorKind::NotFound)?;
    if addresses.iter().any(IpAddr::is_ipv6) {
        // Some runtimes switch IPv6 off in what they make.
        setting("ipv6", "lo", "disable_ipv6", "0")?;
        setting("ipv6", pair.interface, "disable_ipv6", "0")?;
        setting("ipv6", pair.interface, "accept_ra", "0")?;
    }
    bring_up(&mut netlink, link.index)?;
    let [host, _] = pair.macs;
    for address in addresses {
        let gateway = gateway(*address);
        add_address(&mut netlink, link.index, *address)?;
        add_neighbour(&mut netlink, link.index, gateway, host)?;
        for route in pod_routes(*address, link.index) {
            route.add(&mut netlink)?;
        }
    }
    Ok(())
}

/// To the gateway, and by it to everything.
fn pod_routes(address: IpAddr, index: u32) -> Vec<Route> {
    let via = gateway(address);
    let everywhere = match address {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    };
    let mut routes = Vec::new();
    if address.is_ipv4() {
        routes.push(Route::host(via, index));
    }
    routes.push(Route {
        to: everywhere,
        via: Some(via),
        device: Some(index),
        metric: route::METRIC,
    });
    routes
}

/// What is not as [`host`] made it; empty: all is well.
pub fn host_problems(pair: &Pair<'_>, addresses: &[IpAddr]) -> io::Result<Vec<String>> {
    let mut netlink = Netlink::connect()?;
    let Some(link) = find(&mut netlink, pair.device)? else {
        return Ok(vec![format!("the node has no device {}", pair.device)]);
    };
    let mut problems = Vec::new();
    if !link.up {
        problems.push(format!("{} is down", pair.device));
    }
    let routes: BTreeSet<Route> = route::list(&mut netlink)?.into_iter().collect();
    let neighbours = neighbours(&mut netlink, link.index)?;
    let [_, pod] = pair.macs;
    for address in addresses {
        if !routes.contains(&Route::host(*address, link.index)) {
            problems.push(format!(
                "the node has no route to {address} by {}",
                pair.device
            ));
        }
        if neighbours.get(address).is_none_or(|mac| *mac != pod) {
            problems.push(format!("{address} is no neighbour at {}", pair.device));
        }
    }
    Ok(problems)
}

/// What is not as [`pod`] made it; empty: all is well. Called in the pod's network namespace.
pub fn pod_problems(pair: &Pair<'_>, addresses: &[IpAddr]) -> io::Result<Vec<String>> {
    let interface = pair.interface;
    let mut netlink = Netlink::connect()?;
    let Some(link) = find(&mut netlink, interface)? else {
        return Ok(vec![format!("the container has no device {interface}")]);
    };
    let mut problems = Vec::new();
    let [host, pod] = pair.macs;
    if link.mac != pod {
        problems.push(format!("{interface} of the container is another device"));
    }
    if !link.up {
        problems.push(format!("{interface} of the container is down"));
    }
    let held = held_addresses(&mut netlink, link.index)?;
    let routes: BTreeSet<Route> = route::list(&mut netlink)?.into_iter().collect();
    let neighbours = neighbours(&mut netlink, link.index)?;
    for address in addresses {
        if !held.contains(address) {
            problems.push(format!(
                "{interface} of the container has no address {address}"
            ));
        }
        for route in pod_routes(*address, link.index) {
            if !routes.contains(&route) {
                problems.push(format!("the container has no route to {}", route.to));
            }
        }
        let gateway = gateway(*address);
        if neighbours.get(&gateway).is_none_or(|mac| *mac != host) {
            problems.push(format!("the container's gateway {gateway} is no neighbour"));
        }
    }
    Ok(problems)
}

fn held_addresses(netlink: &mut Netlink, index: u32) -> io::Result<BTreeSet<IpAddr>> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let mut found = BTreeSet::new();
    for answer in netlink.dump(&request)? {
        if let RouteNetlinkMessage::NewAddress(message) = answer
            && message.header.index == index
        {
            found.extend(
                message
                    .attributes
                    .iter()
                    .filter_map(|attribute| match attribute {
                        AddressAttribute::Address(address) => Some(*address),
                        _ => None,
                    }),
            );
        }
    }
    Ok(found)
}

/// Permanent neighbours of a device.
fn neighbours(netlink: &mut Netlink, index: u32) -> io::Result<BTreeMap<IpAddr, Vec<u8>>> {
    let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let mut found = BTreeMap::new();
    for answer in netlink.dump(&request)? {
        let RouteNetlinkMessage::NewNeighbour(message) = answer else {
            continue;
        };
        if message.header.ifindex != index || message.header.state != NeighbourState::Permanent {
            continue;
        }
        let (mut address, mut mac) = (None, Vec::new());
        for attribute in message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                    address = Some(IpAddr::V4(v4));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                    address = Some(IpAddr::V6(v6));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes,
                _ => {}
            }
        }
        if let Some(address) = address {
            found.insert(address, mac);
        }
    }
    Ok(found)
}

/// The addresses that our routes lead to pods by, whatever the records say.
pub fn routed_addresses(netlink: &mut Netlink) -> io::Result<BTreeSet<IpAddr>> {
    let routes = route::list(netlink)?;
    let to_pods = routes.into_iter().filter(|route| {
        route.device.is_some()
            && route.via.is_none()
            && route.to.prefix_len() == route.to.max_prefix_len()
    });
    Ok(to_pods.map(|route| route.to.addr()).collect())
}
