//! What happens to a packet: pure functions over [`Frame`] and [`Tables`], read in the packet's
//! order.
//!
//! `headers` are found, `flow` carries an established connection, `connect` makes a new one by
//! `choice` of backend and port, `forward` finds the next hop, `refuse` answers for a service that
//! has no endpoint, and a `verdict` says what became of the packet. `socket` answers for a process's
//! socket, before there is a packet; `selection` is what it has in common with `connect`.

pub mod choice;
mod connect;
mod flow;
pub mod forward;
pub mod headers;
mod refuse;
mod selection;
pub mod socket;
pub mod tables;
pub mod verdict;

pub use connect::Draft;
pub use forward::{Hop, RouteQuery};
pub use tables::{FamilyTables, Insertion, SocketTables, Tables};
pub use verdict::{Event, Reason, Verdict};

use crate::abi::{Family, FilterKind, V4, V6};
use crate::wire::{Ethernet, Frame, IpHeader, ethertype};
use flow::Arrival;
use headers::{Headers, Link};

/// Where a program is attached. What differs between hooks is decided at compile time.
pub trait Hook {
    /// Before the kernel has a socket buffer: what stays on this node is left to TC.
    const XDP: bool;
    /// On the way out, and only for packets that this node's own processes send.
    const EGRESS: bool;
}

/// XDP on an uplink.
#[derive(Clone, Copy, Debug)]
pub struct XdpUplink;
impl Hook for XdpUplink {
    const XDP: bool = true;
    const EGRESS: bool = false;
}

/// TC, packets that come from the wire or from a pod.
#[derive(Clone, Copy, Debug)]
pub struct TcIngress;
impl Hook for TcIngress {
    const XDP: bool = false;
    const EGRESS: bool = false;
}

/// TC, packets that this node's own processes send.
#[derive(Clone, Copy, Debug)]
pub struct TcEgress;
impl Hook for TcEgress {
    const XDP: bool = false;
    const EGRESS: bool = true;
}

/// Decides on one frame, rewrites it if it is ours, and says what to do with it.
///
/// `ifindex` is the device of the hook.
#[inline(always)]
pub fn run<H, P, T>(frame: &mut P, tables: &T, ifindex: u32) -> Verdict
where
    H: Hook,
    P: Frame,
    T: FamilyTables<V4> + FamilyTables<V6>,
{
    if !H::EGRESS && !frame.is_for_this_host() {
        return Verdict::PASS;
    }
    let tagged = frame.offloaded_tag().is_some();
    let Some(ethernet) = frame.cursor().peek::<Ethernet>() else {
        return Verdict::PASS;
    };
    match ethernet.ethertype {
        _ if tagged => tag::<H, P, T>(frame, tables, ifindex),
        ethertype::IPV4 => packet::<H, V4, P, T>(frame, tables, ifindex),
        ethertype::IPV6 => packet::<H, V6, P, T>(frame, tables, ifindex),
        ethertype::VLAN | ethertype::QINQ => tag::<H, P, T>(frame, tables, ifindex),
        _ => Verdict::PASS,
    }
}

/// Decides on a frame with VLAN tags.
#[inline(never)]
fn tag<H, P, T>(frame: &mut P, tables: &T, ifindex: u32) -> Verdict
where
    H: Hook,
    P: Frame,
    T: FamilyTables<V4> + FamilyTables<V6>,
{
    let tag = frame.offloaded_tag();
    let ethertype = Link::parse(&mut frame.cursor(), tag).map(|link| link.ethertype);
    match ethertype {
        Some(ethertype::IPV4) => connect::slow::<H, V4, P, T>(frame, tables, ifindex),
        Some(ethertype::IPV6) => connect::slow::<H, V6, P, T>(frame, tables, ifindex),
        _ => Verdict::PASS,
    }
}

/// Decides on one packet of family `F` without tags.
#[inline(always)]
fn packet<H, F, P, T>(frame: &mut P, tables: &T, ifindex: u32) -> Verdict
where
    H: Hook,
    F: Family,
    P: Frame,
    T: FamilyTables<F>,
{
    let arrival = Arrival::of(frame, ifindex);
    frame.pull(headers::plain_length::<F>());
    if headers::is_plain::<F, P>(frame) {
        let Some(headers) = headers::parse_plain::<F, P>(frame) else {
            return Verdict::PASS;
        };
        if !is_candidate(&headers, tables) {
            return Verdict::PASS;
        }
        if let Some(key) = headers.flow_key()
            && let Some(mut flow) = tables.flow(&key)
            && let Some(carried) = flow::carry::<H, F, _, T>(headers, &mut flow, tables, &arrival)
        {
            return flow::finish::<F, P, T>(frame, tables, &carried, &arrival);
        }
    }
    connect::slow::<H, F, P, T>(frame, tables, ifindex)
}

/// What the address filter says: false proves that the packet is none of ours.
#[inline(always)]
fn is_candidate<F: Family, T: FamilyTables<F>>(headers: &Headers<'_, F>, tables: &T) -> bool {
    tables.may_be_ours(FilterKind::Destination, &headers.ip.destination())
        || tables.may_be_ours(FilterKind::Source, &headers.ip.source())
}
