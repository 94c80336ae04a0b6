//! What went no further, and why.

use proxy_common::datapath::{Event, Reason};
use serde::{Deserialize, Serialize};

use super::InspectError;
use crate::dataplane::Maps;

/// Packets with one fate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropRow {
    /// The reason's word, or the event's.
    pub reason: String,
    /// Whether packets are dropped by it; otherwise it is only counted.
    pub drop: bool,
    /// Packets.
    pub packets: u64,
    /// Bytes, from the Ethernet header on.
    pub bytes: u64,
    /// What it means.
    pub explanation: String,
}

/// All reasons and events, with their counters since the maps were made.
pub fn drops(maps: &Maps) -> Result<Vec<DropRow>, InspectError> {
    let reasons = Reason::ALL
        .iter()
        .map(|reason| (*reason as u32, true, reason.word(), reason.explanation()));
    let events = Event::ALL
        .iter()
        .map(|event| (*event as u32, false, event.word(), event.explanation()));
    let mut rows = Vec::new();
    for (index, drop, reason, explanation) in reasons.chain(events) {
        let read = |source| InspectError::Read {
            map: "COUNTERS",
            source,
        };
        let per_cpu = maps.counters.get(index).map_err(read)?;
        rows.push(DropRow {
            reason: reason.to_owned(),
            drop,
            packets: per_cpu.iter().map(|counter| counter.packets).sum(),
            bytes: per_cpu.iter().map(|counter| counter.bytes).sum(),
            explanation: explanation.trim().to_owned(),
        });
    }
    Ok(rows)
}
