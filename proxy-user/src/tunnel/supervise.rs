//! When to dial, what to do with a session, and when to give it up: a state machine that takes the
//! time and what happened, and returns what is to be done. It owns no socket, clock or task.
//!
//! A [`Leg`] is one of the parallel SSH sessions of a tunnel. At most one session of a leg carries
//! new connections, at most one is on its way to replace it (make before break), and some that were
//! replaced may still finish what they carry.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::backoff::{Backoff, Limits};

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

/// Sessions that were replaced and still carry something; an older one is closed.
const DRAINING: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Session {
    id: SessionId,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Dialing {
        until: Instant,
    },
    Listening {
        until: Instant,
    },
    Taken {
        again: Instant,
        port: u16,
    },
    Up {
        since: Instant,
        ping: Instant,
        unanswered: u32,
        exposure: Exposure,
    },
    Draining {
        until: Instant,
    },
}

/// One of the parallel sessions of a tunnel.
#[derive(Clone, Debug)]
pub struct Leg {
    policy: Policy,
    started: bool,
    sessions: Vec<Session>,
    dial: Option<Instant>,
    next: u64,
    retry: Backoff,
    penalty: Backoff,
    taken: Backoff,
    cause: Cause,
}

impl Leg {
    /// A leg that has not started. `seed` decides the jitter of its waits.
    #[must_use]
    pub const fn new(policy: Policy, seed: u64) -> Self {
        Self {
            policy,
            started: false,
            sessions: Vec::new(),
            dial: None,
            next: 0,
            retry: Backoff::new(policy.retry, seed),
            penalty: Backoff::new(policy.penalty, seed),
            taken: Backoff::new(policy.taken, seed),
            cause: Cause::Stopped,
        }
    }

    /// Begins: dials.
    pub fn start(&mut self, now: Instant) -> Vec<Action> {
        self.started = true;
        self.dial = Some(now);
        self.tick(now)
    }

    /// When [`Leg::tick`] has something to do next; none: nothing before an event.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let of = |session: &Session| match session.step {
            Step::Dialing { until } | Step::Listening { until } | Step::Draining { until } => until,
            Step::Taken { again, .. } => again,
            Step::Up { ping, .. } => ping,
        };
        let dial = self.dial.filter(|_| self.coming().is_none());
        self.sessions.iter().map(of).chain(dial).min()
    }

    /// How it is.
    #[must_use]
    pub fn state(&self) -> State {
        if !self.started {
            return State::Stopped;
        }
        if let Some(Step::Up { exposure, .. }) = self.up().map(|session| session.step) {
            return match exposure {
                Exposure::LoopbackOnly => State::Degraded { exposure },
                Exposure::Unknown | Exposure::Reachable => State::Up,
            };
        }
        match self.coming().map(|session| session.step) {
            Some(Step::Dialing { .. }) => State::Connecting,
            Some(Step::Taken { port, .. }) => State::Blocked { port },
            Some(_) => State::Listening,
            None => State::Waiting { cause: self.cause },
        }
    }

    /// The session that carries new connections.
    #[must_use]
    pub fn carrier(&self) -> Option<SessionId> {
        self.up().map(|session| session.id)
    }

    /// Since when new connections are carried.
    #[must_use]
    pub fn up_since(&self) -> Option<Instant> {
        self.up().and_then(|session| match session.step {
            Step::Up { since, .. } => Some(since),
            _ => None,
        })
    }

    /// Whether it has no session, and will have none.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        !self.started && self.sessions.is_empty()
    }

    /// When the next dial is due; none: none is planned.
    #[must_use]
    pub const fn next_dial(&self) -> Option<Instant> {
        self.dial
    }

    /// Why the last session ended or could not begin.
    #[must_use]
    pub const fn last_cause(&self) -> Cause {
        self.cause
    }

    fn up(&self) -> Option<&Session> {
        let up = |session: &&Session| matches!(session.step, Step::Up { .. });
        self.sessions.iter().find(up)
    }

    /// The session that is on its way to carry.
    fn coming(&self) -> Option<&Session> {
        let coming =
            |session: &&Session| !matches!(session.step, Step::Up { .. } | Step::Draining { .. });
        self.sessions.iter().find(coming)
    }

    fn session(&mut self, id: SessionId) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|session| session.id == id)
    }

    /// Takes in what happened.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Authenticated(id) => self.authenticated(id, now, &mut actions),
            Event::Listening(id) => self.listening(id, now, &mut actions),
            Event::Refused(id, port) => self.refused(id, port, now, &mut actions),
            Event::Heard(id) => {
                if let Some(Step::Up { unanswered, .. }) = self.session(id).map(|s| &mut s.step) {
                    *unanswered = 0;
                }
            }
            Event::Exposed(id, found) => {
                if let Some(Step::Up { exposure, .. }) = self.session(id).map(|s| &mut s.step) {
                    *exposure = found;
                }
            }
            Event::Drained(id) => {
                let draining = |s: &Session| s.id == id && matches!(s.step, Step::Draining { .. });
                if self.sessions.iter().any(draining) {
                    self.close(id, Cause::Replaced, &mut actions);
                }
            }
            Event::Ended(id, cause) => self.ended(id, cause, now),
            Event::Reconnect if self.started => {
                if self.coming().is_none() {
                    self.dial = Some(now);
                }
            }
            Event::Credentials if self.started => {
                self.penalty.reset();
                self.retry.reset();
                // What is up stays up with the key it has; what waits need wait no more.
                if self.up().is_none() && self.coming().is_none() {
                    self.dial = Some(now);
                }
            }
            Event::Retire => {
                self.started = false;
                self.dial = None;
                self.cause = Cause::Stopped;
                if let Some(id) = self.coming().map(|session| session.id) {
                    self.close(id, Cause::Stopped, &mut actions);
                }
                self.release(now, &mut actions);
            }
            Event::Stop => {
                self.started = false;
                self.dial = None;
                self.cause = Cause::Stopped;
                for session in std::mem::take(&mut self.sessions) {
                    actions.push(Action::Close(session.id, Cause::Stopped));
                }
            }
            Event::Reconnect | Event::Credentials => {}
        }
        actions.extend(self.tick(now));
        actions
    }

    fn authenticated(&mut self, id: SessionId, now: Instant, actions: &mut Vec<Action>) {
        let until = now + self.policy.listen_within;
        if let Some(session) = self.session(id)
            && matches!(session.step, Step::Dialing { .. })
        {
            session.step = Step::Listening { until };
            self.penalty.reset();
            actions.push(Action::Listen(id));
        }
    }

    fn listening(&mut self, id: SessionId, now: Instant, actions: &mut Vec<Action>) {
        let asked = |s: &Session| s.id == id && matches!(s.step, Step::Listening { .. });
        if !self.sessions.iter().any(asked) {
            return;
        }
        self.release(now, actions);
        let step = Step::Up {
            since: now,
            ping: now + self.policy.keepalive,
            unanswered: 0,
            exposure: Exposure::Unknown,
        };
        if let Some(session) = self.session(id) {
            session.step = step;
        }
        self.retry.reset();
        self.taken.reset();
        actions.push(Action::Probe(id));
    }

    fn refused(&mut self, id: SessionId, port: u16, now: Instant, actions: &mut Vec<Action>) {
        let asked = |s: &Session| s.id == id && matches!(s.step, Step::Listening { .. });
        if !self.sessions.iter().any(asked) {
            return;
        }
        // Our own session has the port: it lets go now, and not sooner.
        if self.up().is_some() {
            self.release(now, actions);
            actions.push(Action::Listen(id));
            return;
        }
        let again = now + self.taken.fail();
        if let Some(session) = self.session(id) {
            session.step = Step::Taken { again, port };
        }
    }

    /// The session that carries, if there is one, carries no new connections from now on.
    fn release(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let until = now + self.policy.drain_within;
        let Some(id) = self.carrier() else { return };
        if let Some(session) = self.session(id) {
            session.step = Step::Draining { until };
        }
        actions.push(Action::Release(id));
        let draining = |s: &&Session| matches!(s.step, Step::Draining { .. });
        if self.sessions.iter().filter(draining).count() > DRAINING
            && let Some(oldest) = self.sessions.iter().find(draining).map(|s| s.id)
        {
            self.close(oldest, Cause::Replaced, actions);
        }
    }

    fn close(&mut self, id: SessionId, cause: Cause, actions: &mut Vec<Action>) {
        self.sessions.retain(|session| session.id != id);
        actions.push(Action::Close(id, cause));
    }

    fn ended(&mut self, id: SessionId, cause: Cause, now: Instant) {
        let Some(at) = self.sessions.iter().position(|session| session.id == id) else {
            return;
        };
        let session = self.sessions.remove(at);
        match session.step {
            Step::Draining { .. } => {}
            Step::Up { .. } => {
                self.cause = cause;
                if !self.started {
                    return;
                }
                // At once: it worked a moment ago. If not any more, the waits grow from here.
                self.dial.get_or_insert(now);
            }
            _ => {
                self.cause = cause;
                let wait = match cause {
                    Cause::Authentication | Cause::HostKey => self.penalty.fail(),
                    Cause::HungUp => self.retry.fail().max(self.policy.hung_up),
                    _ => self.retry.fail(),
                };
                self.dial = Some(now + wait);
            }
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        for at in (0..self.sessions.len()).rev() {
            let Some(session) = self.sessions.get(at).copied() else {
                continue;
            };
            self.due(session, now, &mut actions);
        }
        if self.started && self.coming().is_none() && self.dial.is_some_and(|dial| dial <= now) {
            let id = SessionId(self.next);
            self.next += 1;
            self.dial = None;
            let until = now + self.policy.connect_within;
            self.sessions.push(Session {
                id,
                step: Step::Dialing { until },
            });
            actions.push(Action::Dial(id));
        }
        actions
    }

    fn due(&mut self, session: Session, now: Instant, actions: &mut Vec<Action>) {
        let Session { id, step } = session;
        match step {
            Step::Dialing { until } | Step::Listening { until } if until <= now => {
                actions.push(Action::Close(id, Cause::TimedOut));
                self.ended(id, Cause::TimedOut, now);
            }
            Step::Draining { until } if until <= now => self.close(id, Cause::Replaced, actions),
            Step::Taken { again, .. } if again <= now => {
                let until = now + self.policy.listen_within;
                if let Some(session) = self.session(id) {
                    session.step = Step::Listening { until };
                }
                actions.push(Action::Listen(id));
            }
            Step::Up {
                ping, unanswered, ..
            } if ping <= now => {
                if unanswered >= self.policy.misses {
                    actions.push(Action::Close(id, Cause::Silent));
                    self.ended(id, Cause::Silent, now);
                } else {
                    self.ping(id, now);
                    actions.push(Action::Ping(id));
                }
            }
            _ => {}
        }
    }

    fn ping(&mut self, id: SessionId, now: Instant) {
        let next = now + self.policy.keepalive;
        if let Some(Step::Up {
            ping, unanswered, ..
        }) = self.session(id).map(|s| &mut s.step)
        {
            *ping = next;
            *unanswered += 1;
        }
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

#[cfg(test)]
mod tests;
