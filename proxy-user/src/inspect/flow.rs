//! Connections.

use std::{collections::HashMap, net::SocketAddr};

use proxy_common::abi::{Family, Flow, FlowKey, FlowStep, flow_state};
use serde::{Deserialize, Serialize};

use super::{InspectError, Look, socket};
use crate::{
    dataplane::{
        Maps,
        flows::{Clock, Connection, Phase},
        table::Table,
    },
    model::Protocol,
    reconcile::Observed,
};

/// One connection: both its entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRow {
    /// Protocol.
    pub protocol: Option<Protocol>,
    /// Who opened it.
    pub client: SocketAddr,
    /// What it was opened to.
    pub frontend: SocketAddr,
    /// Who answers it.
    pub backend: SocketAddr,
    /// As whom the backend sees the client.
    pub seen_as: SocketAddr,
    /// The service port.
    pub service: String,
    /// Where it stands: `one-way`, `established`, `half-closed`, `closed`.
    pub phase: String,
    /// Milliseconds without a packet.
    pub idle_ms: u64,
    /// What happens to packets towards the backend: `transmit`, `pod`, `local`, …
    pub step: String,
    /// The device they leave by; zero: not known.
    pub ifindex: u32,
    /// Packets from the client.
    pub packets_in: u64,
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Packets to the client.
    pub packets_out: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
}

pub(super) fn flows(
    maps: &Maps,
    observed: &Observed,
    clock: Clock,
    now: u32,
) -> Result<Vec<FlowRow>, InspectError> {
    let mut rows = Vec::new();
    let reader = Reader {
        observed,
        clock,
        now,
    };
    reader.table("FLOWS_V4", &maps.flows_v4, &mut rows)?;
    reader.table("FLOWS_V6", &maps.flows_v6, &mut rows)?;
    rows.sort_by_key(|row| std::cmp::Reverse((row.bytes_in + row.bytes_out, row.packets_in)));
    Ok(rows)
}

struct Reader<'o> {
    observed: &'o Observed,
    clock: Clock,
    now: u32,
}

impl Reader<'_> {
    fn table<F: Family>(
        &self,
        map: &'static str,
        table: &Table<FlowKey<F>, Flow<F>>,
        rows: &mut Vec<FlowRow>,
    ) -> Result<(), InspectError>
    where
        FlowKey<F>: proxy_common::wire::Plain,
        Flow<F>: proxy_common::wire::Plain,
    {
        let mut entries: HashMap<FlowKey<F>, Flow<F>> = HashMap::new();
        table
            .for_each(|key, flow| {
                entries.insert(*key, *flow);
            })
            .map_err(|source| InspectError::Read { map, source })?;
        for (key, flow) in entries
            .iter()
            .filter(|(_, f)| f.state & flow_state::ORIGINAL != 0)
        {
            let peer = flow.peer_key(key.protocol);
            let answering = entries.get(&peer).map(|answer| (peer, *answer));
            rows.push(self.row(&Connection {
                original: (*key, *flow),
                answering,
            }));
        }
        Ok(())
    }

    fn row<F: Family>(&self, connection: &Connection<F>) -> FlowRow {
        let (key, flow) = &connection.original;
        let answer = connection
            .answering
            .map(|(_, flow)| flow)
            .unwrap_or_default();
        let phase = match connection.phase() {
            Phase::OneWay => "one-way",
            Phase::Established => "established",
            Phase::HalfClosed => "half-closed",
            Phase::Closed => "closed",
        };
        let idle = connection.idle(self.clock, self.now);
        FlowRow {
            protocol: Protocol::from_number(key.protocol),
            client: socket(key.source, key.source_port),
            frontend: socket(key.destination, key.destination_port),
            backend: socket(flow.destination, flow.destination_port),
            seen_as: socket(flow.source, flow.source_port),
            service: Look::service_name(self.observed, flow.service),
            phase: phase.to_owned(),
            idle_ms: u64::try_from(idle.as_millis()).unwrap_or(u64::MAX),
            step: step_word(FlowStep::from_raw(flow.step)).to_owned(),
            ifindex: flow.ifindex,
            packets_in: flow.packets,
            bytes_in: flow.bytes,
            packets_out: answer.packets,
            bytes_out: answer.bytes,
        }
    }
}

/// The word for a step.
pub(super) const fn step_word(step: FlowStep) -> &'static str {
    match step {
        FlowStep::Resolve => "resolve",
        FlowStep::Transmit => "transmit",
        FlowStep::Pod => "pod",
        FlowStep::Local => "local",
        FlowStep::Neighbour => "neighbour",
        FlowStep::Enqueue => "enqueue",
        FlowStep::Stack => "stack",
    }
}

impl Look<'_> {
    /// The connections in which an address (with or without port) or a service takes part.
    pub fn flows_of(&self, wanted: &str) -> Result<Vec<FlowRow>, InspectError> {
        let mut rows = self.flows()?;
        rows.retain(|row| {
            let ends = [row.client, row.frontend, row.backend, row.seen_as];
            super::service::is_named(&row.service, wanted)
                || ends
                    .iter()
                    .any(|at| at.to_string() == wanted || at.ip().to_string() == wanted)
        });
        Ok(rows)
    }
}
