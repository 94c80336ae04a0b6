//! The source, as the daemon runs it, without the daemon.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use proxy_user::{
    model::{Kind, Severity, State},
    source::{
        apiserver::{Access, ApiServer, Change, Health},
        assemble::Policy,
        snapshot::Snapshot,
    },
};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

/// The node that it is on.
pub(crate) const NODE: &str = "node1";

pub(crate) struct Source {
    server: ApiServer,
    health: Arc<Health>,
    changes: mpsc::Receiver<Change>,
    task: JoinHandle<()>,
    _state: TempDir,
}

impl Source {
    pub(crate) fn start(kubeconfig: PathBuf) -> Result<Self> {
        let access = Access {
            kubeconfig: Some(kubeconfig),
            server: None,
        };
        let policy = Policy {
            node: NODE.to_owned(),
            external_ranges: Vec::new(),
        };
        let state = TempDir::new()?;
        let health = Arc::new(Health::new(access.describe()));
        let server = ApiServer::new(policy, Arc::clone(&health), state.path());
        let (told, changes) = mpsc::channel(1_024);
        let of = Arc::clone(&health);
        let task = tokio::spawn(async move { access.watch(NODE, &of, &told).await });
        Ok(Self {
            server,
            health,
            changes,
            task,
            _state: state,
        })
    }

    pub(crate) fn now(&mut self) -> Snapshot {
        while let Ok(change) = self.changes.try_recv() {
            self.server.apply(change);
        }
        self.server.snapshot()
    }

    /// The next snapshot for which this is true.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        is: impl Fn(&Snapshot) -> bool,
    ) -> Result<Snapshot> {
        let end = Instant::now() + Duration::from_mins(1);
        loop {
            let snapshot = self.now();
            if is(&snapshot) {
                return Ok(snapshot);
            }
            if Instant::now() >= end {
                let state = served(&snapshot.state);
                bail!("{what}: not in 60 s; {state:?}, {:?}", errors(&snapshot));
            }
            // What is wrong turns up without a change.
            if let Ok(Some(change)) = timeout(Duration::from_millis(50), self.changes.recv()).await
            {
                self.server.apply(change);
            }
        }
    }

    pub(crate) fn failing(&self) -> BTreeSet<Kind> {
        let kinds = self.health.kinds().into_iter();
        let failing = kinds.filter(|(_, health)| health.error.is_some());
        failing.map(|(kind, _)| kind).collect()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Each service port with its endpoints.
pub(crate) fn served(state: &State) -> Vec<String> {
    let ports = state.services.values();
    ports
        .map(|port| {
            let endpoints = port.endpoints.iter().map(|e| e.address.to_string());
            format!("{} {}", port.name, endpoints.collect::<Vec<_>>().join(","))
        })
        .collect()
}

pub(crate) fn errors(snapshot: &Snapshot) -> Vec<String> {
    let notices = snapshot.notices.iter();
    let errors = notices.filter(|notice| notice.severity == Severity::Error);
    errors.map(ToString::to_string).collect()
}
