//! What the state machine is told, what it says, and how it is.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::backoff::Limits;

/// Times of a leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// TCP connect, key exchange and authentication together may take so long.
    pub connect_within: Duration,
    /// The answer to a request to listen may take so long.
    pub listen_within: Duration,
    /// So often the peer is asked for a sign of life.
    pub keepalive: Duration,
    /// After so many questions without any sign of life the session is given up.
    pub misses: u32,
    /// Waits after failures that say nothing about who we are.
    pub retry: Limits,
    /// Waits after the peer has refused our key, or we the peer's. OpenSSH counts 5 s against an
    /// address for each failed authentication and shuts it out once more than 15 s are due
    /// (`PerSourcePenalties`, `sshd_config(5)`), so the first wait is longer than what is added.
    pub penalty: Limits,
    /// The least wait after a peer has hung up before authentication (1 s in `PerSourcePenalties`).
    pub hung_up: Duration,
    /// How long to wait before asking again for a port that is taken: by a dead session that the
    /// peer has not noticed yet.
    pub taken: Limits,
    /// What a replaced session carries may take so long to finish.
    pub drain_within: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        let limits = |first, longest| Limits {
            first: Duration::from_millis(first),
            longest: Duration::from_millis(longest),
        };
        Self {
            connect_within: Duration::from_secs(10),
            listen_within: Duration::from_secs(5),
            keepalive: Duration::from_secs(1),
            misses: 3,
            retry: limits(100, 10_000),
            penalty: limits(6_000, 300_000),
            hung_up: Duration::from_secs(1),
            taken: limits(250, 2_000),
            drain_within: Duration::from_mins(5),
        }
    }
}

/// A session of a leg; numbers are not used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub u64);

/// Why a session has ended or could not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// No connection to the node.
    Unreachable,
    /// The peer hung up before it had authenticated us.
    HungUp,
    /// No common algorithm, or a packet that makes no sense.
    Protocol,
    /// It took too long.
    TimedOut,
    /// The node's host key is not one that we trust.
    HostKey,
    /// The node does not accept our user and key.
    Authentication,
    /// Our own key cannot be read.
    Key,
    /// The peer closed the session, or the connection broke.
    Closed,
    /// No sign of life.
    Silent,
    /// A newer session took its place.
    Replaced,
    /// We were told to stop.
    Stopped,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Unreachable,
        Self::HungUp,
        Self::Protocol,
        Self::TimedOut,
        Self::HostKey,
        Self::Authentication,
        Self::Key,
        Self::Closed,
        Self::Silent,
        Self::Replaced,
        Self::Stopped,
    ];

    /// The word for it in metrics, the log and on the command line.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::HungUp => "hung-up",
            Self::Protocol => "protocol",
            Self::TimedOut => "timed-out",
            Self::HostKey => "host-key",
            Self::Authentication => "authentication",
            Self::Key => "key",
            Self::Closed => "closed",
            Self::Silent => "silent",
            Self::Replaced => "replaced",
            Self::Stopped => "stopped",
        }
    }
}

/// Who can reach the node's listeners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exposure {
    /// Nobody has looked, or could.
    #[default]
    Unknown,
    /// The node's address.
    Reachable,
    /// The node's own processes alone: sshd has `GatewayPorts no` and says nothing about it.
    LoopbackOnly,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A session is authenticated.
    Authenticated(SessionId),
    /// The node listens for a session, at all ports.
    Listening(SessionId),
    /// The node does not listen at this port: it is taken, or not permitted.
    Refused(SessionId, u16),
    /// The peer gave a sign of life.
    Heard(SessionId),
    /// Who can reach the listeners.
    Exposed(SessionId, Exposure),
    /// A replaced session has nothing left to carry.
    Drained(SessionId),
    /// A session has ended.
    Ended(SessionId, Cause),
    /// Somebody wants a fresh session.
    Reconnect,
    /// The key or what is trusted has changed: earlier refusals say nothing any more.
    Credentials,
    /// No new connections any more; what is carried may finish.
    Retire,
    /// No more.
    Stop,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connect and authenticate.
    Dial(SessionId),
    /// Ask the node to listen, at all ports.
    Listen(SessionId),
    /// Ask the node not to listen for this session any more; what it carries goes on.
    Release(SessionId),
    /// Find out who can reach the listeners.
    Probe(SessionId),
    /// Ask for a sign of life.
    Ping(SessionId),
    /// Give the session up.
    Close(SessionId, Cause),
}

/// How a leg is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum State {
    /// It was told to stop, or never told to start.
    Stopped,
    /// It waits before it tries again.
    Waiting {
        /// Why.
        cause: Cause,
    },
    /// It connects.
    Connecting,
    /// It is authenticated and asks the node to listen.
    Listening,
    /// The node does not listen at a port.
    Blocked {
        /// The first such port.
        port: u16,
    },
    /// It carries connections.
    Up,
    /// It carries connections, but only those of the node itself.
    Degraded {
        /// What is wrong.
        exposure: Exposure,
    },
}

impl State {
    /// The word for it in metrics, the log and on the command line.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Waiting { .. } => "waiting",
            Self::Connecting => "connecting",
            Self::Listening => "listening",
            Self::Blocked { .. } => "blocked",
            Self::Up => "up",
            Self::Degraded { .. } => "loopback-only",
        }
    }

    /// Whether new connections are carried.
    #[must_use]
    pub const fn carries(self) -> bool {
        matches!(self, Self::Up | Self::Degraded { .. })
    }
}

/// How a whole tunnel is, of the states of its legs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// All legs carry.
    Up,
    /// Some legs carry, or only the node's own connections are carried.
    Degraded,
    /// Nothing is carried.
    Down,
}

impl Health {
    /// Of the states of the legs.
    #[must_use]
    pub fn of(legs: &[State]) -> Self {
        let carry = legs.iter().filter(|state| state.carries()).count();
        let whole = legs.iter().all(|state| matches!(state, State::Up));
        match carry {
            0 => Self::Down,
            _ if whole => Self::Up,
            _ => Self::Degraded,
        }
    }
}
