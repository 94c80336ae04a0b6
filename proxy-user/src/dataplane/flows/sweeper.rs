//! Reads the flow tables, removes what is over, and adds up what was carried.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use proxy_common::abi::{Family, Flow, FlowKey};

use super::totals::{Sum, Totals};
use super::{Clock, Connection, Examined, Pressure, Rules, examine, under_pressure};
use crate::config::FlowTimeouts;
use crate::dataplane::Maps;
use crate::dataplane::probe::Ticks;
use crate::dataplane::table::{EntryError, Table};
use crate::reconcile::FilterWords;

/// Why a sweep could not be finished. The next one begins anew.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The time in ticks could not be read.
    #[error("cannot read the kernel's clock ticks: {0}")]
    Clock(#[source] io::Error),
    /// A table could not be read.
    #[error("cannot read the map {map}: {source}")]
    Read {
        /// Which.
        map: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Entries could not be removed.
    #[error("cannot remove flows from the map {map}: {source}")]
    Remove {
        /// Which.
        map: &'static str,
        /// What the kernel said.
        source: EntryError,
    },
}

/// What a sweep found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Swept {
    /// Entries of `FLOWS_V4` that were there.
    pub entries_v4: usize,
    /// Entries of `FLOWS_V6` that were there.
    pub entries_v6: usize,
    /// Connections that go on.
    pub live: usize,
    /// Connections that were removed.
    pub removed: usize,
    /// Entries without their other half that were removed.
    pub orphans: usize,
    /// How full the tables are.
    pub pressure: Pressure,
    /// How long it took.
    pub took: Duration,
}

/// The one that sweeps.
#[derive(Debug)]
pub struct Sweeper {
    timeouts: FlowTimeouts,
    clock: Clock,
    ticks: Ticks,
    pressure: Pressure,
    totals: Totals,
}

impl Sweeper {
    /// One that has not swept yet.
    #[must_use]
    pub fn new(timeouts: FlowTimeouts, clock: Clock, ticks: Ticks) -> Self {
        Self {
            timeouts,
            clock,
            ticks,
            pressure: Pressure::Normal,
            totals: Totals::default(),
        }
    }

    /// Goes by other time-outs from now on.
    pub fn set_timeouts(&mut self, timeouts: FlowTimeouts) {
        self.timeouts = timeouts;
    }

    /// What was carried, as of the last sweep.
    #[must_use]
    pub const fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Forgets totals of services and backends that are no more.
    pub fn retain(&mut self, service: impl Fn(u32) -> bool, backend: impl Fn(u32, u32) -> bool) {
        self.totals.retain(service, backend);
    }

    /// When to sweep again.
    #[must_use]
    pub const fn interval(&self) -> Duration {
        self.pressure.interval()
    }

    /// Sweeps both tables once. Also gives what the address filter must keep for flows.
    ///
    /// `alive` says whether a backend index still has a generation.
    pub fn sweep(
        &mut self,
        maps: &Maps,
        alive: impl Fn(u32, u32) -> bool,
    ) -> Result<(Swept, FilterWords), SweepError> {
        let began = Instant::now();
        let now = self.ticks.now().map_err(SweepError::Clock)?;
        let rules = Rules {
            timeouts: under_pressure(self.timeouts, self.pressure),
            clock: self.clock,
            now,
        };
        let mut pass = Pass {
            rules,
            swept: Swept::default(),
            sum: Sum::default(),
            filter: FilterWords::default(),
        };
        let v4 = pass.table("FLOWS_V4", &maps.flows_v4, &alive, &mut self.totals)?;
        let v6 = pass.table("FLOWS_V6", &maps.flows_v6, &alive, &mut self.totals)?;
        let Pass {
            mut swept,
            sum,
            filter,
            ..
        } = pass;
        (swept.entries_v4, swept.entries_v6) = (v4, v6);
        self.totals.take(sum);
        self.pressure = Pressure::of(v4, maps.flows_v4.capacity())
            .max(Pressure::of(v6, maps.flows_v6.capacity()));
        swept.pressure = self.pressure;
        swept.took = began.elapsed();
        Ok((swept, filter))
    }
}

struct Pass {
    rules: Rules,
    swept: Swept,
    sum: Sum,
    filter: FilterWords,
}

impl Pass {
    /// Sweeps one table. Says how many entries it had.
    fn table<F: Family>(
        &mut self,
        map: &'static str,
        table: &Table<FlowKey<F>, Flow<F>>,
        alive: impl Fn(u32, u32) -> bool,
        totals: &mut Totals,
    ) -> Result<usize, SweepError>
    where
        FlowKey<F>: proxy_common::wire::Plain,
        Flow<F>: proxy_common::wire::Plain,
    {
        let mut entries = HashMap::new();
        table
            .for_each(|key, flow| {
                entries.insert(*key, *flow);
            })
            .map_err(|source| SweepError::Read { map, source })?;
        let sum = &mut self.sum;
        let examined = examine(
            &entries,
            &self.rules,
            &alive,
            &mut self.filter,
            |connection, over| {
                if !over {
                    sum.add(connection);
                }
            },
        );
        self.swept.live += examined.live;
        let removed = remove(map, table, &self.rules, &alive, &examined)?;
        for connection in &removed.connections {
            totals.end(connection);
        }
        for connection in &removed.revived {
            self.sum.add(connection);
            self.swept.live += 1;
            let (key, flow) = &connection.original;
            self.filter.add_flow(key, flow);
            if let Some((key, flow)) = &connection.answering {
                self.filter.add_flow(key, flow);
            }
        }
        self.swept.removed += removed.connections.len();
        self.swept.orphans += removed.orphans;
        Ok(entries.len())
    }
}

struct Removed<F: Family> {
    connections: Vec<Connection<F>>,
    /// Connections that have carried a packet since the table was read.
    revived: Vec<Connection<F>>,
    orphans: usize,
}

/// Removes what is over and, looked at again, still is.
///
/// Original directions go first: a client that comes back just then makes its connection anew,
/// whereas an original direction without its answers would be of no use to it.
fn remove<F: Family>(
    map: &'static str,
    table: &Table<FlowKey<F>, Flow<F>>,
    rules: &Rules,
    alive: impl Fn(u32, u32) -> bool,
    examined: &Examined<F>,
) -> Result<Removed<F>, SweepError>
where
    FlowKey<F>: proxy_common::wire::Plain,
    Flow<F>: proxy_common::wire::Plain,
{
    let read = |key: &FlowKey<F>| -> Result<Option<Flow<F>>, SweepError> {
        table
            .get(key)
            .map_err(|source| SweepError::Read { map, source })
    };
    let mut removed = Removed {
        connections: Vec::new(),
        revived: Vec::new(),
        orphans: 0,
    };
    for chunk in examined.over.chunks(256) {
        let mut certain = Vec::with_capacity(chunk.len());
        for connection in chunk {
            let (key, was) = &connection.original;
            let Some(flow) = read(key)? else { continue };
            let peer = flow.peer_key(key.protocol);
            let answering = read(&peer)?.filter(|other| super::is_pair(key, &flow, other));
            let now = Connection {
                original: (*key, flow),
                answering: answering.map(|flow| (peer, flow)),
            };
            let same = flow.generation == was.generation && flow.backend == was.backend;
            if same && rules.is_over(&now, alive(flow.backend, flow.generation)) {
                certain.push(now);
            } else {
                removed.revived.push(now);
            }
        }
        let originals: Vec<_> = certain
            .iter()
            .map(|connection| connection.original.0)
            .collect();
        let answering: Vec<_> = certain
            .iter()
            .filter_map(|connection| Some(connection.answering?.0))
            .collect();
        for keys in [originals, answering] {
            table
                .remove_all(&keys)
                .map_err(|source| SweepError::Remove { map, source })?;
        }
        removed.connections.append(&mut certain);
    }
    let mut orphans = Vec::new();
    for (key, was) in &examined.orphans {
        let same = read(key)?.is_some_and(|flow| flow.last_seen == was.last_seen);
        let peer = read(&was.peer_key(key.protocol))?;
        if same && !peer.is_some_and(|peer| super::is_pair(key, was, &peer)) {
            orphans.push(*key);
        }
    }
    removed.orphans = table
        .remove_all(&orphans)
        .map_err(|source| SweepError::Remove { map, source })?;
    Ok(removed)
}
