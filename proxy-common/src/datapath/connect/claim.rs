//! Claiming a tuple and making a connection's two entries.

use crate::abi::{Address, Family, Flow, FlowKey, flow_state};
use crate::datapath::tables::{FamilyTables, Insertion};
use crate::datapath::verdict::{Event, Reason};
use crate::datapath::{choice, forward};
use crate::wire::{Be16, Delta, protocol};

use super::{Admission, Draft, client};

/// How many source ports are tried before a connection is given up.
const PORT_ATTEMPTS: u32 = 16;

/// Inserts both entries, the answering direction's first: that no-exist insert is the claim of the
/// tuple that the backend will see.
#[inline(always)]
pub(super) fn make<F: Family, T: FamilyTables<F>>(draft: &mut Draft<F>, tables: &T) -> Admission {
    draft.answer = FlowKey {
        source: draft.destination,
        destination: draft.source,
        source_port: draft.backend.port,
        destination_port: draft.key.source_port,
        protocol: draft.key.protocol,
        pad: [0; 3],
    };
    fill_answer(draft, tables.tick());
    if let Some(refusal) = claim(draft, tables) {
        return refusal;
    }
    fill_original(draft);
    match tables.insert_flow(&draft.key, &draft.flow) {
        Insertion::Done => {
            tables.count(Event::FlowMade as u32, 0);
            if draft.answer.destination_port != draft.key.source_port {
                tables.count(Event::PortClaimed as u32, 0);
            }
            if draft.service.affinity != 0 {
                client::keep(draft, tables);
            }
            Admission::MADE
        }
        // Another CPU has just made this connection: its entries stand, ours go.
        Insertion::Exists => {
            tables.remove_flow(&draft.answer);
            Admission::MADE
        }
        Insertion::Full => {
            tables.remove_flow(&draft.answer);
            Admission::drop(Reason::FlowTableFull)
        }
        Insertion::Busy => {
            tables.remove_flow(&draft.answer);
            Admission::drop(Reason::Changing)
        }
    }
}

/// Inserts the answering direction's entry under the first source port that is free.
#[inline(always)]
fn claim<F: Family, T: FamilyTables<F>>(draft: &mut Draft<F>, tables: &T) -> Option<Admission> {
    let Some(settings) = tables.settings() else {
        return Some(Admission::drop(Reason::Changing));
    };
    // Another source port would change what SCTP's checksum covers.
    let keeps_port = draft.key.protocol == protocol::SCTP;
    let hash = choice::tuple_hash(&draft.key, settings.seed);
    // The first attempt keeps the client's own port, unless the source is this node's address,
    // whose ports other than the pool's belong to its own sockets.
    let first = u32::from(draft.translated && !keeps_port);
    let last = if keeps_port || settings.port_count == 0 {
        0
    } else {
        PORT_ATTEMPTS
    };
    for attempt in 0..=PORT_ATTEMPTS {
        if attempt < first {
            continue;
        }
        if attempt > last {
            break;
        }
        if attempt > 0 {
            let port = choice::port(hash, attempt, settings.port_min, settings.port_count);
            draft.answer.destination_port = Be16::new(port);
        }
        draft.flow.port_delta = port_delta(&draft.answer, &draft.flow);
        match tables.insert_flow(&draft.answer, &draft.flow) {
            Insertion::Done => return None,
            Insertion::Exists => {}
            Insertion::Full => return Some(Admission::drop(Reason::FlowTableFull)),
            Insertion::Busy => return Some(Admission::drop(Reason::Changing)),
        }
    }
    Some(Admission::drop(if keeps_port {
        Reason::SctpPort
    } else {
        Reason::PortsExhausted
    }))
}

/// Fills in the entry of the direction from the backend to the client, but for the ports' delta.
#[inline(always)]
fn fill_answer<F: Family>(draft: &mut Draft<F>, now: u32) {
    let key = &draft.key;
    let flow = &mut draft.flow;
    *flow = Flow::default();
    flow.last_seen = now;
    flow.backend = draft.index;
    flow.generation = draft.backend.generation;
    flow.service = draft.service.id;
    flow.source = key.destination;
    flow.destination = key.source;
    flow.source_port = key.destination_port;
    flow.destination_port = key.source_port;
    if draft.loopback {
        flow.state = flow_state::LOOPBACK;
    }
    flow.address_delta = address_delta(&draft.answer, flow);
}

/// Makes it into the entry of the direction from the client to the backend.
#[inline(always)]
fn fill_original<F: Family>(draft: &mut Draft<F>) {
    let flow = &mut draft.flow;
    flow.source = draft.answer.destination;
    flow.destination = draft.answer.source;
    flow.source_port = draft.answer.destination_port;
    flow.destination_port = draft.answer.source_port;
    flow.state = flow_state::ORIGINAL;
    flow.address_delta = address_delta(&draft.key, flow);
    flow.port_delta = port_delta(&draft.key, flow);
    forward::store(flow, &draft.hop, draft.layout.vlan);
}

/// By how much the rewrite of a packet of `key` changes a checksum over its addresses.
#[inline(always)]
fn address_delta<F: Family>(key: &FlowKey<F>, flow: &Flow<F>) -> u16 {
    let source = key.source.checksum_delta(&flow.source);
    source
        .and(key.destination.checksum_delta(&flow.destination))
        .raw()
}

/// By how much the rewrite of a packet of `key` changes a checksum over its ports.
#[inline(always)]
fn port_delta<F: Family>(key: &FlowKey<F>, flow: &Flow<F>) -> u16 {
    Delta::of(
        &[key.source_port.raw(), key.destination_port.raw()],
        &[flow.source_port.raw(), flow.destination_port.raw()],
    )
    .raw()
}

#[cfg(test)]
mod tests;
