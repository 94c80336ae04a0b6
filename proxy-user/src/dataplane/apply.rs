//! Writes operations to the maps, in order, batched where one map's operations follow each other.

use std::io;
use std::sync::Arc;

use proxy_common::wire::Plain;

use super::Maps;
use super::observe::encode_name;
use super::table::Table;
use crate::reconcile::{Observed, Op, Round};

/// An operation that failed, and why. The next round's diff finds it again.
#[derive(Debug)]
pub struct Failure {
    /// What was to be done.
    pub op: Op,
    /// What the kernel said.
    pub source: io::Error,
}

/// How a round of applying went.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Operations that were done.
    pub done: usize,
    /// Operations that wait because an earlier one of the same service failed.
    pub waiting: usize,
    /// Operations that failed.
    pub failures: Vec<Failure>,
}

impl Outcome {
    /// As it is after another go, which has tried again what failed.
    #[must_use]
    pub fn then(self, next: Self) -> Self {
        Self {
            done: self.done + next.done,
            ..next
        }
    }
}

/// Applies `ops` in order, and takes note in `observed` of each that succeeded.
///
/// After a failure, later operations of the same service wait for the next round; all others go on.
pub fn apply(maps: &Maps, ops: &[Op], observed: &mut Observed) -> Outcome {
    let mut outcome = Outcome::default();
    let mut round = Round::default();
    let mut rest = ops;
    while let Some(first) = rest.first() {
        let run = rest.iter().take_while(|op| same_kind(first, op)).count();
        let (run, after) = rest.split_at(run);
        rest = after;
        apply_run(maps, run, &mut round, observed, &mut outcome);
    }
    outcome
}

fn same_kind(a: &Op, b: &Op) -> bool {
    std::mem::discriminant(a) == std::mem::discriminant(b)
}

/// Applies operations of one kind. The batch stops at the first that fails: the run goes on behind
/// it, without what must wait for it.
fn apply_run(
    maps: &Maps,
    run: &[Op],
    round: &mut Round,
    observed: &mut Observed,
    outcome: &mut Outcome,
) {
    let mut ready: Vec<&Op> = run.iter().collect();
    loop {
        let before = ready.len();
        ready.retain(|op| !round.must_wait(op));
        outcome.waiting += before - ready.len();
        if ready.is_empty() {
            return;
        }
        let (done, failure) = match write_run(maps, &ready) {
            Ok(()) => (ready.len(), None),
            Err((done, source)) => (done, Some(source)),
        };
        for op in ready.iter().take(done) {
            observed.apply(op);
        }
        outcome.done += done;
        let mut rest = ready.split_off(done.min(ready.len()));
        if let Some(source) = failure
            && !rest.is_empty()
        {
            let op = rest.remove(0).clone();
            round.fail(&op);
            outcome.failures.push(Failure { op, source });
        }
        ready = rest;
    }
}

/// Writes operations of one kind. Of an error: how many were done before the one that failed.
fn write_run(maps: &Maps, run: &[&Op]) -> Result<(), (usize, io::Error)> {
    macro_rules! puts {
        ($table:expr, $pattern:pat => $entry:expr) => {
            put($table, run, |op| match op {
                $pattern => Some($entry),
                _ => None,
            })
        };
    }
    macro_rules! removes {
        ($table:expr, $pattern:pat => $key:expr) => {
            remove($table, run, |op| match op {
                $pattern => Some($key),
                _ => None,
            })
        };
    }
    match run.first() {
        None => Ok(()),
        Some(Op::WriteBackend { .. }) => {
            puts!(&maps.backends, Op::WriteBackend { index, backend } => (*index, *backend))
        }
        Some(Op::WriteSlots { .. }) => write_slots(&maps.slots, run),
        Some(Op::WriteObject { .. }) => {
            puts!(&maps.objects, Op::WriteObject { id, name } => (*id, encode_name(name)))
        }
        Some(Op::WriteFilter { .. }) => {
            puts!(&maps.filter, Op::WriteFilter { word, bits } => (*word, *bits))
        }
        Some(Op::WriteTxPort { .. }) => {
            puts!(&maps.tx_ports, Op::WriteTxPort { ifindex } => (*ifindex, [*ifindex, 0]))
        }
        Some(Op::WriteDevice { .. }) => {
            puts!(&maps.devices, Op::WriteDevice { key, device } => (*key, *device))
        }
        Some(Op::WriteAddressV4 { .. }) => {
            puts!(&maps.addresses_v4, Op::WriteAddressV4 { address, flags } => (*address, *flags))
        }
        Some(Op::WriteAddressV6 { .. }) => {
            puts!(&maps.addresses_v6, Op::WriteAddressV6 { address, flags } => (*address, *flags))
        }
        Some(Op::WriteSourceV4 { .. }) => {
            puts!(&maps.sources_v4, Op::WriteSourceV4 { key } => (*key, 1))
        }
        Some(Op::WriteSourceV6 { .. }) => {
            puts!(&maps.sources_v6, Op::WriteSourceV6 { key } => (*key, 1))
        }
        Some(Op::WriteServiceV4 { .. }) => {
            puts!(&maps.services_v4, Op::WriteServiceV4 { key, service } => (*key, *service))
        }
        Some(Op::WriteServiceV6 { .. }) => {
            puts!(&maps.services_v6, Op::WriteServiceV6 { key, service } => (*key, *service))
        }
        Some(Op::WriteSettings { .. }) => {
            puts!(&maps.settings, Op::WriteSettings { settings } => (0, *settings))
        }
        Some(Op::DeleteServiceV4 { .. }) => {
            removes!(&maps.services_v4, Op::DeleteServiceV4 { key, .. } => *key)
        }
        Some(Op::DeleteServiceV6 { .. }) => {
            removes!(&maps.services_v6, Op::DeleteServiceV6 { key, .. } => *key)
        }
        Some(Op::DeleteSourceV4 { .. }) => {
            removes!(&maps.sources_v4, Op::DeleteSourceV4 { key } => *key)
        }
        Some(Op::DeleteSourceV6 { .. }) => {
            removes!(&maps.sources_v6, Op::DeleteSourceV6 { key } => *key)
        }
        Some(Op::DeleteAddressV4 { .. }) => {
            removes!(&maps.addresses_v4, Op::DeleteAddressV4 { address } => *address)
        }
        Some(Op::DeleteAddressV6 { .. }) => {
            removes!(&maps.addresses_v6, Op::DeleteAddressV6 { address } => *address)
        }
        Some(Op::DeleteDevice { .. }) => {
            removes!(&maps.devices, Op::DeleteDevice { key } => *key)
        }
        Some(Op::DeleteTxPort { .. }) => {
            removes!(&maps.tx_ports, Op::DeleteTxPort { ifindex } => *ifindex)
        }
        Some(Op::DeleteObject { .. }) => {
            removes!(&maps.objects, Op::DeleteObject { id } => *id)
        }
    }
}

fn put<K: Plain, V: Plain>(
    table: &Table<K, V>,
    run: &[&Op],
    entry: impl Fn(&Op) -> Option<(K, V)>,
) -> Result<(), (usize, io::Error)> {
    let entries: Vec<(K, V)> = run.iter().filter_map(|op| entry(op)).collect();
    table
        .put_all(&entries)
        .map_err(|error| (error.index, error.source))
}

/// That an entry is gone already is no failure.
fn remove<K: Plain, V: Plain>(
    table: &Table<K, V>,
    run: &[&Op],
    key: impl Fn(&Op) -> Option<K>,
) -> Result<(), (usize, io::Error)> {
    let keys: Vec<K> = run.iter().filter_map(|op| key(op)).collect();
    table
        .remove_all(&keys)
        .map(drop)
        .map_err(|error| (error.index, error.source))
}

/// All ranges in one go. Of an error: how many whole ranges were written before it.
fn write_slots(table: &Table<u32, u32>, run: &[&Op]) -> Result<(), (usize, io::Error)> {
    let ranges: Vec<(u32, &Arc<[u32]>)> = run
        .iter()
        .filter_map(|op| match op {
            Op::WriteSlots {
                first, backends, ..
            } => Some((*first, backends)),
            _ => None,
        })
        .collect();
    let entries: Vec<(u32, u32)> = ranges
        .iter()
        .flat_map(|(first, backends)| (*first..).zip(backends.iter().copied()))
        .collect();
    table.put_all(&entries).map_err(|error| {
        let mut written = error.index;
        let whole = ranges.iter().take_while(|(_, backends)| {
            let fits = written >= backends.len();
            written = written.saturating_sub(backends.len());
            fits
        });
        (whole.count(), error.source)
    })
}
