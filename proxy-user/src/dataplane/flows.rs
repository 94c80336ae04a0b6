//! The end of flows: which connections are over, and what all of them together have carried.
//!
//! [`examine`] is pure: it takes the tables' contents and the time, and says what to remove.
//! [`Sweeper`] reads, removes and adds up.

mod sweeper;
#[cfg(test)]
mod tests;
mod totals;

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::time::Duration;

use proxy_common::abi::{Family, Flow, FlowKey, flow_state};
use proxy_common::wire::protocol;

use crate::config::FlowTimeouts;
use crate::reconcile::FilterWords;

pub use sweeper::{SweepError, Sweeper, Swept};
pub use totals::{Carried, Totals, Usage};

/// How full the fuller one of the two tables is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pressure {
    /// Less than three quarters.
    #[default]
    Normal,
    /// Three quarters or more.
    High,
    /// Nine tenths or more.
    Critical,
}

impl Pressure {
    /// Of a table with so many entries of so many.
    #[must_use]
    pub const fn of(entries: usize, capacity: usize) -> Self {
        if entries.saturating_mul(10) >= capacity.saturating_mul(9) {
            Self::Critical
        } else if entries.saturating_mul(4) >= capacity.saturating_mul(3) {
            Self::High
        } else {
            Self::Normal
        }
    }

    /// How long until the tables are read again.
    #[must_use]
    pub const fn interval(self) -> Duration {
        match self {
            Self::Normal => Duration::from_secs(5),
            Self::High => Duration::from_secs(2),
            Self::Critical => Duration::from_secs(1),
        }
    }
}

/// Time-outs as they are under pressure. What goes first is what costs least: connections that are
/// over or were never answered wait a quarter of their time (high), then also UDP and half closed
/// TCP (critical). An open TCP connection is never shed.
#[must_use]
pub fn under_pressure(mut timeouts: FlowTimeouts, pressure: Pressure) -> FlowTimeouts {
    let quarter = |timeout: Duration| timeout / 4;
    if !matches!(pressure, Pressure::Normal) {
        timeouts.tcp_closed = quarter(timeouts.tcp_closed);
        timeouts.tcp_new = quarter(timeouts.tcp_new);
        timeouts.udp_new = quarter(timeouts.udp_new);
    }
    if matches!(pressure, Pressure::Critical) {
        timeouts.tcp_half_closed = quarter(timeouts.tcp_half_closed);
        timeouts.udp_established = quarter(timeouts.udp_established);
    }
    timeouts
}

/// Of a connection by what both its directions have seen.
const fn timeout(timeouts: &FlowTimeouts, protocol: u8, phase: Phase) -> Duration {
    match (protocol, phase) {
        (_, Phase::Closed) => timeouts.tcp_closed,
        (protocol::TCP, Phase::OneWay) => timeouts.tcp_new,
        (protocol::TCP, Phase::HalfClosed) => timeouts.tcp_half_closed,
        (protocol::TCP, Phase::Established) => timeouts.tcp_established,
        (_, Phase::OneWay) => timeouts.udp_new,
        _ => timeouts.udp_established,
    }
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Only one direction has carried packets.
    OneWay,
    /// Both have.
    Established,
    /// TCP: one side has sent FIN.
    HalfClosed,
    /// TCP: both have, or one has sent RST; or the backend is gone.
    Closed,
}

impl Phase {
    /// By the state bits of both directions.
    #[must_use]
    pub const fn of(original: u8, answering: u8) -> Self {
        let any = original | answering;
        let fins = [
            original & flow_state::FIN != 0 || answering & flow_state::PEER_FIN != 0,
            answering & flow_state::FIN != 0 || original & flow_state::PEER_FIN != 0,
        ];
        if any & flow_state::RST != 0 || matches!(fins, [true, true]) {
            Self::Closed
        } else if original & answering & flow_state::SEEN == 0 {
            Self::OneWay
        } else if matches!(fins, [false, false]) {
            Self::Established
        } else {
            Self::HalfClosed
        }
    }
}

/// The clock that flows are stamped with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Jiffies per second; a tick is 256 jiffies.
    pub hz: u32,
}

impl Clock {
    /// So many ticks as time.
    #[must_use]
    pub fn duration(self, ticks: u32) -> Duration {
        Duration::from_nanos(
            u64::from(ticks).saturating_mul(256_000_000_000) / u64::from(self.hz.max(1)),
        )
    }

    /// How long ago a stamp was, at a time `now`. Stamps wrap around; one that is a little ahead of
    /// `now`, since it was made after `now` was read, is just now.
    #[must_use]
    pub fn age(self, stamp: u32, now: u32) -> Duration {
        let ticks = now.wrapping_sub(stamp);
        if ticks > u32::MAX / 2 {
            Duration::ZERO
        } else {
            self.duration(ticks)
        }
    }
}

/// How long an entry without its other half is left alone: the datapath makes one after the other,
/// and a dump may pass between them.
const GRACE: Duration = Duration::from_secs(5);

/// What [`examine`] goes by.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How long silence may last.
    pub timeouts: FlowTimeouts,
    /// How long a tick is.
    pub clock: Clock,
    /// The time, in ticks.
    pub now: u32,
}

/// One connection: its original direction, and its answering one if it is there.
#[derive(Clone, Copy, Debug)]
pub struct Connection<F: Family> {
    /// Original direction.
    pub original: (FlowKey<F>, Flow<F>),
    /// Answering direction; none: lost or not made yet.
    pub answering: Option<(FlowKey<F>, Flow<F>)>,
}

impl<F: Family> Connection<F> {
    /// Where it stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        let answering = self.answering.map_or(0, |(_, flow)| flow.state);
        Phase::of(self.original.1.state, answering)
    }

    /// How long neither direction has carried a packet.
    #[must_use]
    pub fn idle(&self, clock: Clock, now: u32) -> Duration {
        let original = clock.age(self.original.1.last_seen, now);
        let answering = self
            .answering
            .map(|(_, flow)| clock.age(flow.last_seen, now));
        answering.map_or(original, |age| age.min(original))
    }
}

impl Rules {
    /// Whether a connection is over. `alive`: its backend still has the flow's generation.
    fn is_over<F: Family>(&self, connection: &Connection<F>, alive: bool) -> bool {
        let idle = connection.idle(self.clock, self.now);
        if connection.answering.is_none() {
            return idle >= GRACE;
        }
        let phase = if alive {
            connection.phase()
        } else {
            Phase::Closed
        };
        idle >= timeout(&self.timeouts, connection.original.0.protocol, phase)
    }
}

/// What [`examine`] found in one table.
#[derive(Debug)]
pub struct Examined<F: Family> {
    /// Connections that are over, to be removed.
    pub over: Vec<Connection<F>>,
    /// Answering entries whose original one is lost, to be removed.
    pub orphans: Vec<(FlowKey<F>, Flow<F>)>,
    /// Connections that go on.
    pub live: usize,
}

/// Pairs all entries of one table and says which are to go.
///
/// `alive` says whether a backend index still has a generation. Of the connections that stay,
/// `filter` takes what the address filter must keep, and `each` is told of all, also those to go.
pub fn examine<F: Family, S: BuildHasher>(
    entries: &HashMap<FlowKey<F>, Flow<F>, S>,
    rules: &Rules,
    alive: impl Fn(u32, u32) -> bool,
    filter: &mut FilterWords,
    mut each: impl FnMut(&Connection<F>, bool),
) -> Examined<F> {
    let mut examined = Examined {
        over: Vec::new(),
        orphans: Vec::new(),
        live: 0,
    };
    let mut keep = |key: &FlowKey<F>, flow: &Flow<F>| filter.add_flow(key, flow);
    for (key, flow) in entries {
        let peer = flow.peer_key(key.protocol);
        let other = entries.get(&peer).filter(|other| is_pair(key, flow, other));
        if flow.state & flow_state::ORIGINAL == 0 {
            // Its original direction speaks for it.
            if other.is_some() {
                continue;
            }
            if rules.clock.age(flow.last_seen, rules.now) >= GRACE {
                examined.orphans.push((*key, *flow));
            } else {
                keep(key, flow);
            }
            continue;
        }
        let connection = Connection {
            original: (*key, *flow),
            answering: other.map(|other| (peer, *other)),
        };
        let over = rules.is_over(&connection, alive(flow.backend, flow.generation));
        each(&connection, over);
        if over {
            examined.over.push(connection);
        } else {
            examined.live += 1;
            keep(key, flow);
            if let Some((key, flow)) = &connection.answering {
                keep(key, flow);
            }
        }
    }
    examined
}

/// Whether `other`, found under the peer key of `flow`, leads back to it: one is the original
/// direction, the other is not, and they are of one connection.
fn is_pair<F: Family>(key: &FlowKey<F>, flow: &Flow<F>, other: &Flow<F>) -> bool {
    (flow.state ^ other.state) & flow_state::ORIGINAL != 0 && other.peer_key(key.protocol) == *key
}
