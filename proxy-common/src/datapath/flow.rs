//! Carrying a packet of an established connection.

use crate::abi::{Family, Flow, FlowStep, backend_flag, flow_state};
use crate::wire::{Delta, Frame, IpHeader, protocol, tcp_flag};

use super::headers::{Headers, Transport};
use super::tables::FamilyTables;
use super::verdict::{Reason, Verdict};
use super::{Hook, forward};

/// What [`carry`] did.
pub(super) enum Carried {
    /// All there is to do.
    Done(Verdict),
    /// The headers are rewritten; [`finish`] changes the transport checksum.
    Rewritten {
        checksum: ChecksumFix,
        verdict: Verdict,
    },
    /// The flow does not speak for this packet: see [`is_stale`].
    Stale,
}

/// A change of a transport checksum that the frame's own means must make.
pub(super) struct ChecksumFix {
    offset: u32,
    address: Delta,
    ports: Delta,
    hops: Delta,
    udp: bool,
}

/// Whether a flow no longer speaks for its packets: its backend is gone, a UDP client's backend has
/// stopped serving, or a TCP client begins a new connection from the port of one that has ended.
#[inline(always)]
fn is_stale<F: Family, T: FamilyTables<F>>(
    flow: &Flow<F>,
    transport: &Transport<'_>,
    tables: &T,
) -> bool {
    let Some(backend) = tables.backend(flow.backend) else {
        return true;
    };
    if backend.generation != flow.generation {
        return true;
    }
    if flow.state & flow_state::ORIGINAL == 0 {
        return false;
    }
    match transport {
        Transport::Tcp(tcp) => {
            const ENDED: u8 = flow_state::FIN | flow_state::PEER_FIN | flow_state::RST;
            tcp.flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN && flow.state & ENDED != 0
        }
        Transport::Udp(_) => backend.flags & backend_flag::SERVING == 0,
        _ => false,
    }
}

/// Rewrites a packet as its flow says.
#[inline(always)]
pub(super) fn carry<H: Hook, F: Family, P: Frame, T: FamilyTables<F>>(
    headers: Headers<'_, F>,
    flow: &mut Flow<F>,
    tables: &T,
    ifindex: u32,
    length: u64,
) -> Carried {
    if is_stale(flow, &headers.transport, tables) {
        return Carried::Stale;
    }
    let vlan = headers.link.vlan;
    let now = tables.tick();
    if flow.last_seen != now || flow.step == FlowStep::Resolve as u8 {
        flow.last_seen = now;
        let protocol = match headers.transport {
            Transport::Tcp(_) => protocol::TCP,
            Transport::Udp(_) => protocol::UDP,
            _ => protocol::SCTP,
        };
        forward::refresh::<F, T>(tables, flow, protocol, ifindex, vlan);
    }
    let step = FlowStep::from_raw(flow.step);
    if vlan != flow.vlan || (vlan != 0 && step != FlowStep::Transmit) {
        return Carried::Done(Verdict::PASS);
    }
    if H::XDP && step != FlowStep::Transmit {
        return Carried::Done(Verdict::PASS);
    }
    let verdict = match step {
        FlowStep::Transmit | FlowStep::Enqueue => Verdict::transmit(flow.ifindex),
        FlowStep::Pod => Verdict::pod(flow.ifindex),
        FlowStep::Neighbour => Verdict::neighbour(flow.ifindex),
        FlowStep::Local => Verdict::LOCAL,
        FlowStep::Resolve => return Carried::Done(Verdict::drop(Reason::NoRoute)),
    };
    let mut hops = Delta::ZERO;
    if !H::EGRESS && step != FlowStep::Local {
        if headers.ip.hops() <= 1 {
            // The kernel answers with "time exceeded", from the packet as it came.
            return Carried::Done(Verdict::PASS);
        }
        hops = headers.ip.decrement_hops();
    }
    observe(flow, &headers.transport, tables);
    flow.packets = flow.packets.wrapping_add(1);
    flow.bytes = flow.bytes.wrapping_add(length);
    if step != FlowStep::Local {
        headers.link.ethernet.destination = flow.link_destination;
        headers.link.ethernet.source = flow.link_source;
    }
    let address = Delta::from_raw(flow.address_delta);
    headers.ip.rewrite(flow.source, flow.destination, address);
    let ports = Delta::from_raw(flow.port_delta);
    let fix = |at: u32, udp| ChecksumFix {
        offset: headers.transport_offset + at,
        address,
        ports,
        hops,
        udp,
    };
    let checksum = match headers.transport {
        Transport::Tcp(tcp) => {
            tcp.source = flow.source_port;
            tcp.destination = flow.destination_port;
            if !P::CHECKSUM_OFFLOAD {
                tcp.check = address.and(ports).apply(tcp.check);
            }
            fix(16, false)
        }
        Transport::Udp(udp) => {
            udp.source = flow.source_port;
            udp.destination = flow.destination_port;
            if !P::CHECKSUM_OFFLOAD {
                udp.check = address.and(ports).apply_udp(udp.check);
            }
            fix(6, true)
        }
        // SCTP's checksum does not cover addresses, and its ports never change.
        _ => return Carried::Done(verdict),
    };
    Carried::Rewritten { checksum, verdict }
}

/// Changes the transport checksum where the frame's own means must do it.
#[inline(always)]
pub(super) fn finish<F: Family, P: Frame>(frame: &mut P, fix: &ChecksumFix) {
    if P::CHECKSUM_OFFLOAD {
        if F::IS_V6 && fix.hops != Delta::ZERO {
            frame.update_stack_checksum(fix.hops);
        }
        frame.adjust_transport_checksum(fix.offset, fix.address, fix.ports, fix.udp, F::IS_V6);
    }
}

/// Notes what the packet says about the connection's state.
#[inline(always)]
fn observe<F: Family, T: FamilyTables<F>>(
    flow: &mut Flow<F>,
    transport: &Transport<'_>,
    tables: &T,
) {
    let mut seen = flow_state::SEEN;
    if let Transport::Tcp(tcp) = transport {
        if tcp.flags & tcp_flag::FIN != 0 {
            seen |= flow_state::FIN;
        }
        if tcp.flags & tcp_flag::RST != 0 {
            seen |= flow_state::RST;
        }
    }
    if flow.state & seen != seen {
        flow.state |= seen;
        if seen != flow_state::SEEN {
            tell_peer(flow, seen, tables);
        }
    }
}

/// Notes the end of this direction in the entry of the other one.
#[inline(never)]
fn tell_peer<F: Family, T: FamilyTables<F>>(flow: &Flow<F>, seen: u8, tables: &T) {
    if let Some(mut peer) = tables.flow(&flow.peer_key(protocol::TCP)) {
        if seen & flow_state::FIN != 0 {
            peer.state |= flow_state::PEER_FIN;
        }
        if seen & flow_state::RST != 0 {
            peer.state |= flow_state::RST;
        }
    }
}
