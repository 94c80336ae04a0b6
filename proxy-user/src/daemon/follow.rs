//! Follows the directory of manifests: reads, tells, sends on, and has copies made.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking};

use super::run::until;
use crate::config::Config;
use crate::model::Severity;
use crate::source::assemble::Policy;
use crate::source::manifests::{CopyJob, Manifests, SaveError, Watch};
use crate::source::snapshot::Snapshot;

/// Copies being made beside everything else: nobody waits for the disk.
#[derive(Default)]
struct Copying {
    job: Option<JoinHandle<(CopyJob, Result<(), SaveError>)>>,
    /// What went wrong last.
    problem: Option<String>,
    /// Not tried again before.
    again: Option<Instant>,
}

/// So long after a failure it is tried again.
const AGAIN: Duration = Duration::from_secs(10);

impl Copying {
    /// Has copies made of what has changed, unless some are just being made.
    fn start(&mut self, manifests: &Manifests) {
        if self.job.is_none()
            && self.again.is_none_or(|again| again <= Instant::now())
            && let Some(job) = manifests.unsaved()
        {
            self.job = Some(spawn_blocking(move || {
                let result = job.run();
                (job, result)
            }));
        }
    }

    /// Waits for the end of the job, if there is one.
    async fn done(&mut self) -> Option<CopyJob> {
        let Some(job) = &mut self.job else {
            return std::future::pending().await;
        };
        let ended = job.await;
        self.job = None;
        let (job, problem) = match ended {
            Ok((job, Ok(()))) => (Some(job), None),
            Ok((_, Err(error))) => (None, Some(error.to_string())),
            Err(error) => (None, Some(error.to_string())),
        };
        if problem != self.problem
            && let Some(error) = &problem
        {
            tracing::warn!(%error, "the manifests were not copied; will be tried again");
        }
        self.again = problem.is_some().then(|| Instant::now() + AGAIN);
        self.problem = problem;
        job
    }
}

/// Reads the manifests, now and whenever they change, until `stop`.
pub(super) async fn follow(
    directory: PathBuf,
    config: Arc<Config>,
    sender: mpsc::Sender<Arc<Snapshot>>,
    mut stop: watch::Receiver<bool>,
) {
    let policy = policy(&config);
    let mut watch = Watch::new(&directory).unwrap_or_else(|error| {
        tracing::warn!(%error, "the manifests are looked at from time to time instead");
        Watch::polling()
    });
    let mut manifests = Manifests::new(directory, policy).with_copies(&config.state);
    let mut last: Option<Arc<Snapshot>> = None;
    let mut copying = Copying::default();
    loop {
        let scan = spawn_blocking(move || {
            let snapshot = manifests.scan();
            (manifests, snapshot)
        });
        let Ok((back, snapshot)) = scan.await else {
            return;
        };
        manifests = back;
        let same = last
            .as_ref()
            .is_some_and(|last| last.state == snapshot.state && last.notices == snapshot.notices);
        if !same {
            tell(&snapshot, last.as_deref());
            let snapshot = Arc::new(snapshot);
            if sender.send(Arc::clone(&snapshot)).await.is_err() {
                return;
            }
            last = Some(snapshot);
        }
        let again = manifests.again().map(|wait| Instant::now() + wait);
        let mut changed = pin!(watch.changed());
        loop {
            copying.start(&manifests);
            tokio::select! {
                () = &mut changed => break,
                () = until(again) => break,
                done = copying.done() => if let Some(job) = done {
                    manifests.saved(&job);
                },
                _ = stop.changed() => return,
            }
        }
    }
}

/// What the configuration says about objects.
pub(super) fn policy(config: &Config) -> Policy {
    Policy {
        node: config.node.clone(),
        external_ranges: config.external_ranges.clone(),
    }
}

/// Logs what is new among the remarks.
pub(super) fn tell(snapshot: &Snapshot, last: Option<&Snapshot>) {
    let counts = snapshot.counts;
    tracing::info!(
        files = counts.files,
        objects = counts.objects,
        services = snapshot.state.services.len(),
        "objects read"
    );
    let known = |notice| last.is_some_and(|last| last.notices.contains(notice));
    for notice in snapshot.notices.iter().filter(|notice| !known(notice)) {
        match notice.severity {
            Severity::Error => tracing::error!("{notice}"),
            Severity::Warning => tracing::warn!("{notice}"),
            Severity::Info => tracing::info!("{notice}"),
        }
    }
}
