//! The server's end: dials the node, asks it to listen, and carries what comes to where the forwards
//! lead. [`Leg`](super::supervise::Leg) decides; what is here does it and tells it what happened.

mod runner;
mod serve;
mod session;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::counters::{self, ForwardFigures, Refusal, TunnelFigures};
use super::memory::Budget;
use super::supervise::{Health, Policy, State};
use super::trust;

pub use runner::{Client, Control};

/// One port of the node and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Its name in metrics and on the command line.
    pub name: String,
    /// The node's port.
    pub listen: u16,
    /// The server's address and port, or a name and port.
    pub target: String,
    /// Whether the target is told who connects (PROXY protocol, version 2).
    pub proxy_protocol: bool,
}

/// What a tunnel is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The object's name.
    pub name: String,
    /// The node's SSH.
    pub host: trust::Host,
    /// The user there.
    pub user: String,
    /// The private key.
    pub key: PathBuf,
    /// How the node's host key is judged.
    pub trust: trust::Policy,
    /// The address that the cluster's nodes use; none: not known, and not looked at.
    pub advertised: Option<IpAddr>,
    /// Which address of the node is asked for; empty: all (RFC 4254 section 7.1).
    pub bind: String,
    /// Ports and where they lead.
    pub forwards: Vec<Forward>,
    /// Who may connect; empty: anybody.
    pub sources: Vec<IpNet>,
    /// Sessions at once, where the node's end is ours.
    pub sessions: u8,
    /// Bytes that may wait in this process, of all connections.
    pub memory: usize,
    /// Bytes that may wait for one consumer, where the peer cannot be told to wait.
    pub queue: usize,
    /// The largest window of a stream, bytes.
    pub window: u32,
    /// Bytes after which keys are changed; none: as many as the ciphers allow.
    pub rekey: Option<usize>,
    /// Times.
    pub policy: Policy,
}

/// What all sessions of a tunnel share.
struct Shared {
    spec: Spec,
    /// Names this process to the node.
    instance: String,
    forwards: BTreeMap<u16, (Forward, counters::Forward)>,
    counts: counters::Tunnel,
    budget: Budget,
    legs: Mutex<Vec<LegStatus>>,
    /// Requests for what is not offered.
    not_offered: counters::Forward,
    /// While the node is asked to connect to itself: such connections are not for the server.
    probing: Mutex<Option<Instant>>,
}

impl Shared {
    fn new(spec: Spec, instance: String) -> Self {
        let one = |forward: &Forward| {
            let counts = counters::Forward::default();
            (forward.listen, (forward.clone(), counts))
        };
        Self {
            forwards: spec.forwards.iter().map(one).collect(),
            budget: Budget::new(spec.memory),
            counts: counters::Tunnel::default(),
            legs: Mutex::default(),
            not_offered: counters::Forward::default(),
            probing: Mutex::default(),
            instance,
            spec,
        }
    }

    fn legs<T>(&self, change: impl FnOnce(&mut Vec<LegStatus>) -> T) -> T {
        change(&mut self.legs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes what is shown of a leg.
    fn leg(&self, number: usize, change: impl FnOnce(&mut LegStatus)) {
        self.legs(|legs| legs.get_mut(number).map(change));
    }

    fn probing(&self) -> bool {
        let until = *self.probing.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    fn probe_until(&self, until: Option<Instant>) {
        *self.probing.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// Whether a connection may be carried that comes from there.
    fn may_connect(&self, client: Option<SocketAddr>) -> bool {
        let sources = &self.spec.sources;
        sources.is_empty()
            || client.is_some_and(|client| {
                let address = client.ip().to_canonical();
                sources.iter().any(|net| net.contains(&address))
            })
    }
}

/// How connections are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Means {
    /// As streams of one channel: the node's end is ours.
    Streams,
    /// As a channel each: the node's end is OpenSSH, or another.
    Channels,
}

/// One of the parallel sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegStatus {
    /// How it is.
    pub state: State,
    /// Why its last session ended or could not begin; none: none has.
    pub cause: Option<String>,
    /// What was said about it.
    pub message: Option<String>,
    /// How it carries; none: no session yet.
    pub means: Option<Means>,
    /// What the node's software calls itself.
    pub software: Option<String>,
    /// The cipher.
    pub cipher: Option<String>,
    /// The node's host key.
    pub host_key: Option<String>,
    /// The last round trip, microseconds.
    pub round_trip_us: Option<u32>,
    /// Since when it carries, seconds since 1970; none: it does not.
    pub since: Option<u64>,
    /// Connections that are carried now.
    pub connections: usize,
    /// Bytes of SSH from the node.
    pub received: u64,
    /// Bytes of SSH to the node.
    pub sent: u64,
}

impl Default for LegStatus {
    fn default() -> Self {
        Self {
            state: State::Stopped,
            cause: None,
            message: None,
            means: None,
            software: None,
            cipher: None,
            host_key: None,
            round_trip_us: None,
            since: None,
            connections: 0,
            received: 0,
            sent: 0,
        }
    }
}

/// One forward.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardStatus {
    /// Its name.
    pub name: String,
    /// The node's port.
    pub listen: u16,
    /// Where it leads.
    pub target: String,
    /// What was counted.
    #[serde(flatten)]
    pub figures: ForwardFigures,
}

/// A tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The object's name.
    pub name: String,
    /// The node's SSH.
    pub node: String,
    /// The user there.
    pub user: String,
    /// The address that the cluster's nodes use.
    pub advertised: Option<IpAddr>,
    /// How it is as a whole.
    pub health: Health,
    /// Its sessions.
    pub sessions: Vec<LegStatus>,
    /// Its forwards.
    pub forwards: Vec<ForwardStatus>,
    /// What was counted.
    pub figures: TunnelFigures,
    /// Requests for what is not offered.
    pub not_offered: u64,
    /// Bytes that wait for consumers.
    pub waiting: usize,
}

/// Answers questions about a tunnel.
#[derive(Clone)]
pub struct View(Arc<Shared>);

impl View {
    /// How it is.
    #[must_use]
    pub fn status(&self) -> Status {
        let shared = &self.0;
        let sessions = shared.legs(|legs| legs.clone());
        let states: Vec<State> = sessions
            .iter()
            .map(|leg| leg.state)
            .filter(|state| *state != State::Stopped)
            .collect();
        let forward = |(forward, counts): &(Forward, counters::Forward)| ForwardStatus {
            name: forward.name.clone(),
            listen: forward.listen,
            target: forward.target.clone(),
            figures: counts.figures(),
        };
        Status {
            name: shared.spec.name.clone(),
            node: shared.spec.host.known_as(),
            user: shared.spec.user.clone(),
            advertised: shared.spec.advertised,
            health: Health::of(&states),
            sessions,
            forwards: shared.forwards.values().map(forward).collect(),
            figures: shared.counts.figures(),
            not_offered: shared.not_offered.refused(Refusal::NotOffered),
            waiting: shared.budget.used(),
        }
    }
}
