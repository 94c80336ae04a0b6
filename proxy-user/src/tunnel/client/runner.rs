//! Runs the legs of a tunnel.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use super::super::key::Stamp;
use super::super::supervise::{Action, Cause, Event, Leg, SessionId, State};
use super::super::trust::Policy as Trust;
use super::session::{self, Command, Report, Reports};
use super::{LegStatus, Means, Shared, Spec, View};

/// So often it is looked whether the key or what is trusted has changed.
const LOOK: Duration = Duration::from_secs(1);

/// What a tunnel may be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Make fresh sessions, and let go of the old ones once they carry.
    Reconnect,
    /// Carry no new connections, finish those that there are, and end.
    Retire,
}

/// A tunnel at the server's end.
pub struct Client {
    shared: Arc<Shared>,
    control: mpsc::Receiver<Control>,
}

/// A session that runs.
struct Running {
    commands: mpsc::Sender<Command>,
    task: AbortHandle,
    began: Instant,
}

struct Runner {
    shared: Arc<Shared>,
    legs: Vec<Leg>,
    running: BTreeMap<(usize, SessionId), Running>,
    sessions: JoinSet<(usize, SessionId, Cause)>,
    reports: mpsc::Sender<(usize, SessionId, Report)>,
    shown: Vec<State>,
}

impl Client {
    /// A tunnel, how it is, and how to tell it something. `instance` names this process to the node.
    #[must_use]
    pub fn new(spec: Spec, instance: &str) -> (Self, View, mpsc::Sender<Control>) {
        let (sender, control) = mpsc::channel(16);
        let shared = Arc::new(Shared::new(spec, instance.to_owned()));
        let view = View(Arc::clone(&shared));
        (Self { shared, control }, view, sender)
    }

    /// Runs it until `stop` turns true.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let spec = &self.shared.spec;
        let count = usize::from(spec.sessions.max(1));
        let seed = seed();
        let legs: Vec<Leg> = (0_u64..)
            .take(count)
            .map(|number| Leg::new(spec.policy, seed.wrapping_add(number << 32)))
            .collect();
        self.shared
            .legs(|shown| *shown = vec![LegStatus::default(); count]);
        let (reports, mut told) = mpsc::channel(256);
        let mut runner = Runner {
            shown: vec![State::Stopped; count],
            legs,
            running: BTreeMap::new(),
            sessions: JoinSet::new(),
            reports,
            shared: Arc::clone(&self.shared),
        };
        // The others follow when it is known whether the node's end has room for them.
        runner.on(0, Leg::start);
        let mut stamp = runner.stamp();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut retired = false;
        while !(retired && runner.legs.iter().all(Leg::is_over)) {
            let deadline = runner.legs.iter().filter_map(Leg::deadline).min();
            let far = Instant::now() + Duration::from_hours(1);
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                Some((leg, id, report)) = told.recv() => runner.report(leg, id, report),
                Some(ended) = runner.sessions.join_next() => runner.ended(ended),
                Some(control) = self.control.recv() => match control {
                    Control::Reconnect => runner.all(Event::Reconnect),
                    Control::Retire => {
                        retired = true;
                        runner.all(Event::Retire);
                    }
                },
                () = sleep_until(deadline.unwrap_or(far).into()) => {
                    for leg in 0..runner.legs.len() {
                        runner.on(leg, Leg::tick);
                    }
                }
                _ = look.tick() => {
                    let now = runner.stamp();
                    if now != stamp {
                        stamp = now;
                        tracing::info!(
                            tunnel = runner.shared.spec.name,
                            "the key or what is trusted has changed: fresh sessions use it"
                        );
                        runner.all(Event::Credentials);
                        runner.all(Event::Reconnect);
                    }
                }
            }
        }
        runner.all(Event::Stop);
        runner.sessions.shutdown().await;
    }
}

/// What makes the jitter of this process another than that of the next: the time, and who we are.
fn seed() -> u64 {
    let time = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::from(time.subsec_nanos()) << 20 ^ u64::from(std::process::id())
}

impl Runner {
    /// Of everything that decides whether a session can be.
    fn stamp(&self) -> Stamp {
        let spec = &self.shared.spec;
        let known: Option<&Path> = match &spec.trust {
            Trust::Known(file) => Some(file),
            // It is we who change what is learnt.
            Trust::Pinned(_) | Trust::AcceptNew(_) => None,
        };
        let files: Vec<&Path> = [spec.key.as_path()].into_iter().chain(known).collect();
        Stamp::of(&files)
    }

    fn all(&mut self, event: Event) {
        for leg in 0..self.legs.len() {
            self.on(leg, |leg, now| leg.handle(event, now));
        }
    }

    /// Lets a leg decide, and does what it says.
    fn on(&mut self, number: usize, decide: impl FnOnce(&mut Leg, Instant) -> Vec<Action>) {
        let Some(leg) = self.legs.get_mut(number) else {
            return;
        };
        for action in decide(leg, Instant::now()) {
            self.act(number, action);
        }
        self.show(number);
    }

    fn act(&mut self, leg: usize, action: Action) {
        let command = match action {
            Action::Dial(id) => return self.dial(leg, id),
            Action::Close(id, cause) => {
                if let Some(running) = self.running.remove(&(leg, id)) {
                    running.task.abort();
                    self.shared.counts.end(cause);
                    if !matches!(cause, Cause::Stopped | Cause::Replaced) {
                        tracing::warn!(
                            tunnel = self.shared.spec.name,
                            leg,
                            cause = cause.word(),
                            "session given up"
                        );
                    }
                }
                return;
            }
            Action::Listen(id) => (id, Command::Listen),
            Action::Release(id) => (id, Command::Release),
            Action::Probe(id) => (id, Command::Probe),
            Action::Ping(id) => (id, Command::Ping),
        };
        let (id, command) = command;
        if let Some(running) = self.running.get(&(leg, id)) {
            if command == Command::Probe {
                self.shared.counts.is_ready(running.began.elapsed());
            }
            // Full only if the session does nothing any more, and then its silence ends it.
            let _ = running.commands.try_send(command);
        }
    }

    fn dial(&mut self, leg: usize, id: SessionId) {
        self.shared.counts.dials.add(1);
        let (commands, receiver) = mpsc::channel(16);
        let reports = Reports {
            leg,
            id,
            to: self.reports.clone(),
        };
        let shared = Arc::clone(&self.shared);
        let task = self
            .sessions
            .spawn(async move { (leg, id, session::run(shared, reports, receiver).await) });
        let began = Instant::now();
        let running = Running {
            commands,
            task,
            began,
        };
        self.running.insert((leg, id), running);
    }

    fn report(&mut self, leg: usize, id: SessionId, report: Report) {
        // One that was closed may still have had something to say.
        if !self.running.contains_key(&(leg, id)) {
            return;
        }
        match report {
            Report::Event(event) => self.on(leg, |leg, now| leg.handle(event, now)),
            Report::Means(means) => {
                self.shared.leg(leg, |leg| leg.means = Some(means));
                self.others(leg, means);
            }
        }
    }

    /// A node's end that is ours has room for all sessions; another gives a port to one alone.
    fn others(&mut self, known: usize, means: Means) {
        for leg in 0..self.legs.len() {
            let stopped = self.legs.get(leg).map(Leg::state) == Some(State::Stopped);
            if leg == known {
                continue;
            }
            match means {
                Means::Streams if stopped => self.on(leg, Leg::start),
                Means::Channels if !stopped && leg > 0 => {
                    self.on(leg, |leg, now| leg.handle(Event::Stop, now));
                }
                _ => {}
            }
        }
    }

    fn ended(&mut self, ended: Result<(usize, SessionId, Cause), tokio::task::JoinError>) {
        match ended {
            Ok((leg, id, cause)) => {
                if self.running.remove(&(leg, id)).is_some() {
                    self.shared.counts.end(cause);
                    self.on(leg, |leg, now| leg.handle(Event::Ended(id, cause), now));
                }
            }
            Err(error) if error.is_cancelled() => {}
            // A defect: whichever it was, its silence ends it, or its dial takes too long.
            Err(error) => tracing::error!(%error, "a session's task broke"),
        }
    }

    fn show(&mut self, number: usize) {
        let Some(leg) = self.legs.get(number) else {
            return;
        };
        let (state, cause) = (leg.state(), leg.last_cause());
        let now = SystemTime::now();
        let since = leg.up_since().map(|since| {
            let then = now.checked_sub(since.elapsed()).unwrap_or(now);
            then.duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs()
        });
        self.shared.leg(number, |shown| {
            shown.state = state;
            shown.cause = (cause != Cause::Stopped).then(|| cause.word().to_owned());
            shown.since = since;
            if state.carries() {
                shown.message = None;
            }
        });
        let Some(before) = self.shown.get_mut(number) else {
            return;
        };
        if *before != state {
            *before = state;
            let tunnel = &self.shared.spec.name;
            match state {
                State::Waiting { cause } => {
                    tracing::info!(tunnel, leg = number, cause = cause.word(), "waits");
                }
                state => tracing::info!(tunnel, leg = number, state = state.word(), "session"),
            }
        }
    }
}
