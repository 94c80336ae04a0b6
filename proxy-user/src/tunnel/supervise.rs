//! When to dial, what to do with a session, and when to give it up: a state machine that takes the
//! time and what happened, and returns what is to be done. It owns no socket, clock or task.
//!
//! A [`Leg`] is one of the parallel SSH sessions of a tunnel. At most one session of a leg carries
//! new connections, at most one is on its way to replace it (make before break), and some that were
//! replaced may still finish what they carry.

mod terms;

use std::time::Instant;

use super::backoff::Backoff;

pub use terms::{Action, Cause, Event, Exposure, Health, Policy, SessionId, State};

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

#[cfg(test)]
mod tests;
