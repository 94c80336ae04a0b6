//! Follows the API server: gathers changes, sends on, and has objects saved.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking};

use super::follow::{policy, tell};
use super::run::until;
use crate::config::Config;
use crate::source::apiserver::{Access, ApiServer, Change, Health, SaveError};
use crate::source::snapshot::Snapshot;

/// No more changes for so long: what belongs together has come, as a Service and its slices.
const QUIET: Duration = Duration::from_millis(2);

/// A change is sent on after so long, whatever else happens.
const LATEST: Duration = Duration::from_millis(100);

/// So long after the start what was saved counts, unless everything has been listed. Until then
/// the kernel has what it had.
const PATIENCE: Duration = Duration::from_secs(3);

/// Changes that may wait. Who tells more waits itself, up to the API server.
const WAITING: usize = 4_096;

/// Changes that are taken over at once.
const AT_ONCE: usize = 1_024;

/// Objects are saved no more often than this,
const SAVE: Duration = Duration::from_secs(5);

/// and no more than this part of the time: one in so many.
const SAVE_SHARE: u32 = 50;

/// Follows until `stop`.
pub(super) async fn reflect(
    access: Access,
    config: Arc<Config>,
    sender: mpsc::Sender<Arc<Snapshot>>,
    mut stop: watch::Receiver<bool>,
) {
    let health = Arc::new(Health::new(access.describe()));
    let (start, of) = (Arc::clone(&config), Arc::clone(&health));
    let server = spawn_blocking(move || ApiServer::new(policy(&start), of, &start.state));
    let Ok(server) = server.await else { return };
    let (told, changes) = mpsc::channel(WAITING);
    let of = Arc::clone(&health);
    let watches = async move { access.watch(&config.node, &of, &told).await };
    let follower = Follower {
        server: Some(server),
        changes,
        health,
        sender,
        last: None,
        gathering: None,
        patience: Instant::now() + PATIENCE,
        saving: Saving::default(),
    };
    tokio::select! {
        () = follower.follow(&mut stop) => {}
        () = watches => {}
    }
}

struct Follower {
    /// Away while a snapshot is made on another thread.
    server: Option<ApiServer>,
    changes: mpsc::Receiver<Change>,
    health: Arc<Health>,
    sender: mpsc::Sender<Arc<Snapshot>>,
    last: Option<Arc<Snapshot>>,
    /// When the first and the last change came that have not been sent on.
    gathering: Option<(Instant, Instant)>,
    patience: Instant,
    saving: Saving,
}

impl Follower {
    async fn follow(mut self, stop: &mut watch::Receiver<bool>) {
        let health = Arc::clone(&self.health);
        loop {
            let due = self.due();
            let impatient = self.last.is_none().then_some(self.patience);
            let save = self.saving.at();
            tokio::select! {
                _ = stop.changed() => break,
                () = until(due) => if self.send().await.is_none() { return },
                () = until(impatient) => self.gathered(),
                () = health.turned() => self.gathered(),
                change = self.changes.recv() => {
                    let Some(change) = change else { return };
                    self.take(change);
                }
                () = until(save) => self.save(),
                () = self.saving.done() => {}
            }
        }
        // What is being saved, and what has changed since.
        self.saving.done_now().await;
        if self.saving.needed {
            self.save();
            self.saving.done_now().await;
        }
    }

    /// When what has been gathered is sent on.
    fn due(&self) -> Option<Instant> {
        let (first, last) = self.gathering?;
        let server = self.server.as_ref()?;
        let ready = server.is_complete() || Instant::now() >= self.patience;
        ready.then(|| (last + QUIET).min(first + LATEST))
    }

    fn gathered(&mut self) {
        let now = Instant::now();
        let first = self.gathering.map_or(now, |(first, _)| first);
        self.gathering = Some((first, now));
    }

    fn take(&mut self, change: Change) {
        let Some(server) = &mut self.server else {
            return;
        };
        let mut differs = server.apply(change);
        for _ in 0..AT_ONCE {
            let Ok(change) = self.changes.try_recv() else {
                break;
            };
            differs |= server.apply(change);
        }
        if differs {
            self.gathered();
            self.saving.needed = true;
        }
    }

    /// Makes a snapshot and sends it on, if it differs from the last. None: nobody listens.
    async fn send(&mut self) -> Option<()> {
        self.gathering = None;
        let mut server = self.server.take()?;
        let made = spawn_blocking(move || {
            let snapshot = server.snapshot();
            (server, snapshot)
        });
        let (server, snapshot) = made.await.ok()?;
        self.server = Some(server);
        let same =
            |last: &Arc<Snapshot>| last.state == snapshot.state && last.notices == snapshot.notices;
        if self.last.as_ref().is_some_and(same) {
            self.health.is_in_force(&snapshot.told);
            return Some(());
        }
        tell(&snapshot, self.last.as_deref());
        let snapshot = Arc::new(snapshot);
        self.last = Some(Arc::clone(&snapshot));
        self.sender.send(snapshot).await.ok()
    }

    fn save(&mut self) {
        if let Some(job) = self.server.as_ref().and_then(ApiServer::unsaved) {
            self.saving.needed = false;
            self.saving.job = Some(spawn_blocking(move || {
                let began = Instant::now();
                let result = job.run();
                (began.elapsed(), result)
            }));
        } else {
            self.saving.again = Some(Instant::now() + SAVE);
        }
    }
}

/// Objects being saved beside everything else: nobody waits for the disk.
#[derive(Default)]
struct Saving {
    /// Something has changed since.
    needed: bool,
    job: Option<JoinHandle<(Duration, Result<(), SaveError>)>>,
    /// Not before.
    again: Option<Instant>,
    /// What went wrong last.
    problem: Option<String>,
}

impl Saving {
    /// When objects are to be saved; none: there is nothing to save, or they are being saved.
    fn at(&self) -> Option<Instant> {
        (self.needed && self.job.is_none()).then(|| self.again.unwrap_or_else(Instant::now))
    }

    /// Waits for the end of the job, if there is one.
    async fn done(&mut self) {
        let Some(job) = &mut self.job else {
            return std::future::pending().await;
        };
        let ended = job.await;
        self.job = None;
        let (took, problem) = match ended {
            Ok((took, Ok(()))) => (took, None),
            Ok((took, Err(error))) => (took, Some(error.to_string())),
            Err(error) => (SAVE, Some(error.to_string())),
        };
        self.needed |= problem.is_some();
        if problem != self.problem
            && let Some(error) = &problem
        {
            tracing::warn!(%error, "the objects were not saved; will be tried again");
        }
        self.again = Some(Instant::now() + SAVE.max(took * SAVE_SHARE));
        self.problem = problem;
    }

    /// The same, but does not wait where there is none.
    async fn done_now(&mut self) {
        if self.job.is_some() {
            self.done().await;
        }
    }
}

#[cfg(test)]
mod tests;
