//! What happens to a packet: pure functions over [`Frame`] and [`Tables`], read in the packet's
//! order.
//!
//! [`headers`] parse, [`flow`] carry an established connection, [`connect`] make a new one,
//! [`choice`] of backend and port, [`forward`] find the next hop, [`refuse`] answer for a service
//! that has no endpoint, [`verdict`] say what became of the packet.

pub mod choice;
mod connect;
mod flow;
pub mod forward;
pub mod headers;
mod refuse;
pub mod tables;
pub mod verdict;

pub use connect::Draft;
pub use forward::{Hop, RouteQuery};
pub use tables::{FamilyTables, Insertion, Tables};
pub use verdict::{Event, Reason, Verdict};

use crate::abi::{Family, FilterKind, V4, V6};
use crate::wire::{Frame, IpHeader, ethertype};
use headers::Link;

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
    let tag = frame.offloaded_tag();
    let mut cursor = frame.cursor();
    let Some(link) = Link::parse(&mut cursor, tag) else {
        return Verdict::PASS;
    };
    if link.ethertype == ethertype::IPV4 {
        packet::<H, V4, P, T>(frame, tables, ifindex)
    } else if link.ethertype == ethertype::IPV6 {
        packet::<H, V6, P, T>(frame, tables, ifindex)
    } else {
        Verdict::PASS
    }
}

/// Decides on one packet of family `F`.
#[inline(always)]
fn packet<H, F, P, T>(frame: &mut P, tables: &T, ifindex: u32) -> Verdict
where
    H: Hook,
    F: Family,
    P: Frame,
    T: FamilyTables<F>,
{
    match established::<H, F, P, T>(frame, tables, ifindex) {
        Verdict::UNKNOWN => connect::connect::<H, F, P, T>(frame, tables, ifindex),
        verdict => verdict,
    }
}

/// Carries a packet of an established connection. [`Verdict::UNKNOWN`]: it belongs to none.
#[inline(always)]
fn established<H, F, P, T>(frame: &mut P, tables: &T, ifindex: u32) -> Verdict
where
    H: Hook,
    F: Family,
    P: Frame,
    T: FamilyTables<F>,
{
    let length = frame.length();
    let Some(headers) = headers::parse::<F, P>(frame) else {
        return Verdict::PASS;
    };
    let to_ours = tables.may_be_ours(FilterKind::Destination, &headers.ip.destination());
    if !to_ours && !tables.may_be_ours(FilterKind::Source, &headers.ip.source()) {
        return Verdict::PASS;
    }
    if let Some(key) = headers.flow_key()
        && let Some(mut flow) = tables.flow(&key)
    {
        return match flow::carry::<H, F, P, T>(headers, &mut flow, tables, ifindex, length) {
            flow::Carried::Done(verdict) => verdict::counted(verdict, tables, length),
            flow::Carried::Rewritten { checksum, verdict } => {
                flow::finish::<F, P>(frame, &checksum);
                verdict
            }
            flow::Carried::Stale => Verdict::UNKNOWN,
        };
    }
    if to_ours {
        Verdict::UNKNOWN
    } else {
        Verdict::PASS
    }
}

/// [`established`], for a packet whose connection has just been made.
#[inline(never)]
fn established_again<H, F, P, T>(frame: &mut P, tables: &T, ifindex: u32) -> Verdict
where
    H: Hook,
    F: Family,
    P: Frame,
    T: FamilyTables<F>,
{
    established::<H, F, P, T>(frame, tables, ifindex)
}
