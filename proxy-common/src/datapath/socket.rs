//! Sockets: a process that asks for a service is led to a backend before there is a packet.
//!
//! An optimisation. What is decided here is what TC decides for the first packet of a connection
//! that this node's processes or its pods open; where that cannot be known at a socket, the answer is
//! none, and TC sees to the packets.

use crate::abi::{
    Address, AffinityKey, Backend, Family, FilterKind, Peer, PeerKey, Service, ServiceKey,
    service_flag,
};
use crate::wire::protocol;

use super::tables::SocketTables;
use super::{Event, choice, selection};

/// What a socket is about to be told: connect, or send a datagram.
#[derive(Clone, Copy, Debug)]
pub struct Opening<F: Family> {
    /// Whom it asks for.
    pub asked: Peer<F>,
    /// TCP, or whatever else it speaks.
    pub protocol: u8,
    /// The kernel's number of the socket (`SO_COOKIE`).
    pub cookie: u64,
    /// The kernel's number of its network namespace (`SO_NETNS_COOKIE`).
    pub network: u64,
    /// That is this node's own.
    pub on_node: bool,
    /// It is bound to a loopback address, or to a device: its packets would go another way than
    /// those that TC leads.
    pub bound: bool,
    /// It is to be connected. Otherwise each of its datagrams is asked about, and all of them are to
    /// meet the same backend.
    pub connects: bool,
}

/// Where to lead a socket, if it asks for a service; noted, so that [`restore`] knows.
///
/// None for what has no endpoint (TC refuses it, in the service's name) and for a service that lets
/// only some clients in: which address the socket will have is not known yet.
#[inline(always)]
pub fn translate<F: Family, T: SocketTables<F>>(
    socket: &Opening<F>,
    tables: &T,
) -> Option<Peer<F>> {
    if !matches!(socket.protocol, protocol::TCP | protocol::UDP) || socket.bound {
        return None;
    }
    let mut key = ServiceKey {
        address: socket.asked.address,
        port: socket.asked.port,
        protocol: socket.protocol,
        pad: 0,
    };
    let mut service = find(&mut key, socket.on_node, tables)?;
    if service.flags & service_flag::RESTRICTED != 0 {
        return None;
    }
    let local = selection::narrow(&mut service, false);
    if service.slots == 0 {
        return None;
    }
    let client = AffinityKey {
        service: service.id,
        client: F::Addr::of_network(socket.network),
    };
    let (mut index, mut backend) = (0, Backend::default());
    let kept = service.affinity != 0
        && selection::take_kept(&service, &client, local, tables, &mut index, &mut backend);
    if !kept {
        let slot = choice::scale(hash(socket, &key, service.flags, tables)?, service.slots);
        if !selection::take(&service, slot, tables, &mut index, &mut backend) {
            return None;
        }
    }
    let peer = Peer::new(F::Addr::narrow(&backend.address), backend.port);
    if !tables.remember(&PeerKey::new(socket.cookie, &peer), &socket.asked) {
        return None;
    }
    if service.affinity != 0 {
        tables.keep(&client, &selection::note::<F, T>(index, &backend, tables));
    }
    let event = if socket.connects {
        Event::SocketConnected
    } else {
        Event::DatagramLed
    };
    tables.count(event as u32, 0);
    Some(peer)
}

/// Finds the service, and the key that it has.
///
/// What is served at a loopback address has that of the wildcard address, too: no packet asks for
/// that, so packets over the loopback device are spared all of this. A process that asks for the
/// wildcard address means its own machine (`ip_route_output_key_hash_rcu` in net/ipv4/route.c).
#[inline(always)]
fn find<F: Family, T: SocketTables<F>>(
    key: &mut ServiceKey<F>,
    on_node: bool,
    tables: &T,
) -> Option<Service> {
    let own = key.address.is_loopback();
    // Every network namespace is a machine of its own.
    if !on_node && (own || key.address == F::Addr::default()) {
        return None;
    }
    if tables.may_be_ours(FilterKind::Destination, &key.address)
        && let Some(service) = tables.service(key)
    {
        return Some(service);
    }
    key.address = F::Addr::default();
    if !own || !tables.may_be_ours(FilterKind::Destination, &key.address) {
        return None;
    }
    tables.service(key)
}

/// By which a backend is chosen: a connection at random, as at TC, and all datagrams of a socket alike.
#[inline(always)]
fn hash<F: Family, T: SocketTables<F>>(
    socket: &Opening<F>,
    key: &ServiceKey<F>,
    flags: u32,
    tables: &T,
) -> Option<u32> {
    let seed = if flags & service_flag::MAGLEV != 0 {
        0
    } else {
        let seed = tables.settings()?.seed;
        if socket.connects {
            seed.wrapping_add(tables.tick())
        } else {
            seed
        }
    };
    Some(choice::socket_hash(socket.cookie, key, seed))
}

/// What a socket shall believe to talk to, if [`translate`] led it to `peer`.
#[inline(always)]
pub fn restore<F: Family, T: SocketTables<F>>(
    cookie: u64,
    peer: &Peer<F>,
    tables: &T,
) -> Option<Peer<F>> {
    tables.peer(&PeerKey::new(cookie, peer))
}

/// The same for the sender of a datagram that a socket receives. The address filter spares most
/// others the lookup.
#[inline(always)]
pub fn restore_sender<F: Family, T: SocketTables<F>>(
    cookie: u64,
    sender: &Peer<F>,
    tables: &T,
) -> Option<Peer<F>> {
    if !tables.may_be_ours(FilterKind::Source, &sender.address) {
        return None;
    }
    restore(cookie, sender, tables)
}

#[cfg(test)]
mod tests;
