//! From desired state and facts to what the maps shall hold.

use std::{ops::RangeInclusive, sync::Arc, time::Instant};

use super::{Allocation, Facts, Held, Plan, Planner};
use crate::model::{Algorithm, Notice, State};

/// What the configuration says about compiling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// This node's name in the desired state.
    pub node: String,
    /// Source ports that translation may claim.
    pub nat_ports: RangeInclusive<u16>,
    /// For services that don't say.
    pub algorithm: Algorithm,
    /// Where node ports and host ports are served; empty: at all addresses of uplinks.
    pub node_port_ranges: Vec<ipnet::IpNet>,
    /// Sockets are led to backends: they find node ports and host ports at loopback addresses, too.
    pub sockets: bool,
    /// Service ports that stay as they are, whatever is desired: left out here, and
    /// [`Planner::carry`] adds what the maps hold of them.
    pub held: Held,
}

/// What is to be told about a compilation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Remarks about objects, in order.
    pub notices: Vec<Notice>,
    /// A table was full. Numbers that rest may help: compile again at
    /// [`Allocation::next_release`].
    pub exhausted: bool,
}

/// Compiles everything at once. The same input gives the same plan, whatever came before, up to the
/// numbers that the allocation keeps.
pub fn compile(
    state: &State,
    facts: &Facts,
    options: &Options,
    allocation: &mut Allocation,
    now: Instant,
) -> (Plan, Report) {
    let mut planner = Planner::default();
    let state = Arc::new(state.clone());
    let update = planner.update(&state, facts, options, allocation, now);
    (planner.into_plan(), update.report)
}
