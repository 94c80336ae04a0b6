//! Carrying a packet of an established connection.

use crate::abi::{Family, Flow, FlowStep, LOOPBACK, backend_flag, flow_state};
use crate::wire::{Delta, Frame, IpHeader, MacAddr, Metadata, protocol, tcp_flag};

use super::headers::{Headers, Transport};
use super::tables::{FamilyTables, Tables};
use super::verdict::{Reason, Verdict, counted};
use super::{Hook, forward};

/// What is known of a packet beside its bytes.
pub(super) struct Arrival<M> {
    /// The hook's device.
    pub(super) ifindex: u32,
    /// The whole frame, bytes.
    pub(super) length: u64,
    metadata: M,
}

impl<M: Metadata> Arrival<M> {
    #[inline(always)]
    pub(super) fn of<P: Frame<Metadata = M>>(frame: &P, ifindex: u32) -> Self {
        Self {
            ifindex,
            length: frame.length(),
            metadata: frame.metadata(),
        }
    }
}

/// What [`carry`] did, and what [`finish`] has still to do.
pub(super) struct Carried {
    verdict: Verdict,
    /// Offset of the transport checksum; 0: there is none to change.
    offset: u32,
    address: Delta,
    ports: Delta,
    hops: Delta,
    udp: bool,
}

impl Carried {
    #[inline(always)]
    const fn untouched(verdict: Verdict) -> Self {
        Self {
            verdict,
            offset: 0,
            address: Delta::ZERO,
            ports: Delta::ZERO,
            hops: Delta::ZERO,
            udp: false,
        }
    }
}

/// Whether a flow no longer speaks for its packets: its backend is gone, a UDP client's backend has
/// stopped serving, or a TCP client begins a new connection from the port of one that has ended.
#[inline(always)]
pub(super) fn is_stale<F: Family, T: Tables>(
    flow: &Flow<F>,
    protocol: u8,
    tcp_flags: u8,
    tables: &T,
) -> bool {
    const ENDED: u8 = flow_state::FIN | flow_state::PEER_FIN | flow_state::RST;
    let Some(backend) = tables.backend(flow.backend) else {
        return true;
    };
    if backend.generation != flow.generation {
        return true;
    }
    if flow.state & flow_state::ORIGINAL == 0 {
        return false;
    }
    if protocol == protocol::UDP {
        return backend.flags & backend_flag::SERVING == 0;
    }
    tcp_flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN && flow.state & ENDED != 0
}

/// Whether a packet is too large for the next hop of its flow.
#[inline(always)]
pub(super) fn exceeds_mtu<F: Family, M: Metadata>(
    headers: &Headers<'_, F>,
    flow: &Flow<F>,
    arrival: &Arrival<M>,
) -> bool {
    let mtu = u64::from(flow.mtu);
    if mtu == 0 || arrival.length <= mtu + u64::from(headers.link.length) {
        return false;
    }
    // The kernel or the card cuts it into segments that fit, or do not.
    let payload = arrival.metadata.segment_payload();
    let header = match &headers.transport {
        Transport::Tcp(tcp) => u32::from(tcp.data_offset >> 4) * 4,
        _ => 8,
    };
    let before = headers.transport_offset - headers.link.length;
    payload == 0 || u64::from(before + header + payload) > mtu
}

/// Rewrites a packet as its flow says. None: the flow is stale, see [`is_stale`], or the packet is too
/// large for its next hop and must not be cut into fragments.
#[inline(always)]
pub(super) fn carry<H: Hook, F: Family, M: Metadata, T: FamilyTables<F>>(
    headers: Headers<'_, F>,
    flow: &mut Flow<F>,
    tables: &T,
    arrival: &Arrival<M>,
) -> Option<Carried> {
    let (protocol, tcp_flags) = headers.transport.protocol();
    if is_stale(flow, protocol, tcp_flags, tables) {
        return None;
    }
    let vlan = headers.link.vlan;
    let now = tables.tick();
    // A frame with other tags than the last one's is left to the hook of its VLAN device, which sees it
    // without tags.
    let moved = vlan == 0 && flow.vlan != 0;
    if flow.last_seen != now || flow.step == FlowStep::Resolve as u8 || moved {
        flow.last_seen = now;
        forward::refresh::<F, T>(tables, flow, protocol, arrival.ifindex, vlan);
    }
    let mut step = FlowStep::from_raw(flow.step);
    if exceeds_mtu(&headers, flow, arrival) {
        if !headers.ip.may_be_fragmented() {
            return None;
        }
        step = FlowStep::Stack;
    }
    if vlan != flow.vlan || (vlan != 0 && !forward::keeps_tags(step)) {
        return Some(Carried::untouched(Verdict::PASS));
    }
    if H::XDP && !forward::xdp_sends(step, flow.ifindex, arrival.ifindex) {
        return Some(Carried::untouched(Verdict::PASS));
    }
    let verdict = match step {
        FlowStep::Transmit | FlowStep::Enqueue => Verdict::transmit(flow.ifindex),
        FlowStep::Pod => Verdict::pod(flow.ifindex),
        FlowStep::Neighbour => Verdict::neighbour(flow.ifindex),
        FlowStep::Local | FlowStep::Stack => to_stack::<H, F>(flow, step, arrival.ifindex),
        FlowStep::Resolve => {
            return Some(Carried::untouched(Verdict::drop(Reason::NoRoute)));
        }
    };
    let stays = matches!(step, FlowStep::Local | FlowStep::Stack);
    let plain = arrival.metadata.checksum_is_plain();
    let mut hops = Delta::ZERO;
    if !H::EGRESS && !stays {
        if headers.ip.hops() <= 1 {
            // The kernel answers with "time exceeded", from the packet as it came.
            return Some(Carried::untouched(Verdict::PASS));
        }
        let delta = headers.ip.decrement_hops();
        if !plain {
            hops = delta;
        }
    }
    observe(flow, tcp_flags, tables);
    flow.packets = flow.packets.wrapping_add(1);
    flow.bytes = flow.bytes.wrapping_add(arrival.length);
    if !stays {
        headers.link.ethernet.destination = flow.link_destination;
        headers.link.ethernet.source = flow.link_source;
    } else if verdict == Verdict::LOOPBACK {
        // The loopback device's own address, and that of whoever sends there.
        headers.link.ethernet.destination = MacAddr::default();
        headers.link.ethernet.source = MacAddr::default();
    }
    let address = Delta::from_raw(flow.address_delta);
    let ports = Delta::from_raw(flow.port_delta);
    headers.ip.rewrite(flow.source, flow.destination, address);
    let mut carried = Carried {
        verdict,
        offset: 0,
        address,
        ports,
        hops,
        udp: false,
    };
    match headers.transport {
        Transport::Tcp(tcp) => {
            tcp.source = flow.source_port;
            tcp.destination = flow.destination_port;
            if plain {
                tcp.check = address.and(ports).apply(tcp.check);
            } else {
                carried.offset = headers.transport_offset + 16;
            }
        }
        Transport::Udp(udp) => {
            udp.source = flow.source_port;
            udp.destination = flow.destination_port;
            if plain {
                udp.check = address.and(ports).apply_udp(udp.check);
            } else {
                carried.offset = headers.transport_offset + 6;
            }
            carried.udp = true;
        }
        // SCTP's checksum does not cover addresses, and its ports never change.
        _ => {}
    }
    Some(carried)
}

/// How a rewritten packet gets to this node's own stack.
///
/// What a process sends has left the stack, and must come in again; but not at the loopback device,
/// where it is on its way in already. There the stack takes a packet from one of its own addresses, as
/// nowhere else (`fib_validate_source`, with `accept_local`).
#[inline(always)]
fn to_stack<H: Hook, F: Family>(flow: &Flow<F>, step: FlowStep, ifindex: u32) -> Verdict {
    let comes_back = if H::EGRESS {
        ifindex != LOOPBACK || step == FlowStep::Stack
    } else {
        flow.state & flow_state::LOOPBACK != 0
    };
    if comes_back {
        Verdict::LOOPBACK
    } else {
        Verdict::LOCAL
    }
}

/// Changes the transport checksum where the frame's own means must do it, and counts a drop.
#[inline(always)]
pub(super) fn finish<F: Family, P: Frame, T: Tables>(
    frame: &mut P,
    tables: &T,
    carried: &Carried,
    arrival: &Arrival<P::Metadata>,
) -> Verdict {
    if P::CHECKSUM_OFFLOAD {
        if F::IS_V6 && carried.hops != Delta::ZERO {
            frame.update_stack_checksum(carried.hops);
        }
        if carried.offset != 0 {
            frame.adjust_transport_checksum(
                carried.offset,
                carried.address,
                carried.ports,
                carried.udp,
                F::IS_V6,
            );
        }
    }
    counted(carried.verdict, tables, arrival.length)
}

/// Notes what the packet says about the connection's state.
#[inline(always)]
fn observe<F: Family, T: FamilyTables<F>>(flow: &mut Flow<F>, tcp_flags: u8, tables: &T) {
    let mut seen = flow_state::SEEN;
    if tcp_flags & tcp_flag::FIN != 0 {
        seen |= flow_state::FIN;
    }
    if tcp_flags & tcp_flag::RST != 0 {
        seen |= flow_state::RST;
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
