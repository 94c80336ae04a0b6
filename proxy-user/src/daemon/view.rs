//! What others may know of the daemon: a picture that is replaced as a whole after each round.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::watch;

use super::progress::Progress;

use crate::config::Config;
use crate::dataplane::attach::{Attached, AttachedSockets};
use crate::dataplane::flows::{Clock, Swept, Totals};
use crate::dataplane::{Features, Maps, PinFolder};
use crate::health::Probes;
use crate::kernel::sysctl::Finding;
use crate::model::Notice;
use crate::reconcile::Facts;
use crate::source::snapshot::Snapshot;

/// An operation that is still to be done.
#[derive(Clone, Debug, Serialize)]
pub struct Pending {
    /// What.
    pub operation: String,
    /// Why it failed last.
    pub error: String,
}

/// How the last round went.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sync {
    /// Counts rounds since the start.
    pub round: u64,
    /// When it ended.
    pub at: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// Map operations that were done.
    pub done: usize,
    /// Map operations that failed, or wait for one that did.
    pub pending: usize,
}

/// How things are.
#[derive(Clone, Debug)]
pub struct Current {
    /// The configuration in force.
    pub config: Arc<Config>,
    /// What is wrong with the file, if it was changed and could not be taken over.
    pub config_error: Option<String>,
    /// When the daemon began.
    pub started: SystemTime,
    /// What the kernel can do.
    pub features: Features,
    /// What the source gave last.
    pub snapshot: Arc<Snapshot>,
    /// How many service ports the maps shall hold.
    pub services: usize,
    /// How many of their backends.
    pub backends: usize,
    /// What is to be told: the source's remarks and those of compiling.
    pub notices: Arc<Vec<Notice>>,
    /// What cannot be served over HTTP: health checks of Services, and the daemon's own pages.
    pub unserved: Arc<Vec<Notice>>,
    /// This node's devices.
    pub facts: Arc<Facts>,
    /// What is attached where.
    pub attached: Vec<Attached>,
    /// What is attached to sockets; none: sockets are not led.
    pub sockets: Option<AttachedSockets>,
    /// Settings of this node that keep services from working.
    pub findings: Vec<Finding>,
    /// The last round; none: there has been none.
    pub sync: Option<Sync>,
    /// What is still to be done.
    pub pending: Vec<Pending>,
    /// The last sweep.
    pub swept: Swept,
    /// What services and backends have carried.
    pub totals: Arc<Totals>,
    /// Names of the services that have carried something, by id.
    pub names: Arc<BTreeMap<u32, Arc<str>>>,
}

impl Current {
    /// All that is to be told.
    pub fn all_notices(&self) -> impl Iterator<Item = &Notice> {
        self.notices.iter().chain(self.unserved.iter())
    }
}

/// Access to the daemon's picture and to the maps, for the API.
#[derive(Debug)]
pub struct View {
    current: RwLock<Arc<Current>>,
    /// Counts the pictures.
    pictures: watch::Sender<u64>,
    progress: Mutex<Progress>,
    probes: Probes,
    maps: Arc<Maps>,
    clock: Clock,
    folder: PinFolder,
}

impl View {
    pub(super) fn new(current: Current, maps: Arc<Maps>, clock: Clock, folder: PinFolder) -> Self {
        Self {
            current: RwLock::new(Arc::new(current)),
            pictures: watch::Sender::new(0),
            progress: Mutex::default(),
            probes: Probes::default(),
            maps,
            clock,
            folder,
        }
    }

    /// How things were after the last round.
    #[must_use]
    pub fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The maps themselves.
    #[must_use]
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The clock that flows are stamped with.
    #[must_use]
    pub const fn clock(&self) -> Clock {
        self.clock
    }

    /// Where maps and links are pinned.
    #[must_use]
    pub const fn folder(&self) -> &PinFolder {
        &self.folder
    }

    /// Tells when there is another picture.
    #[must_use]
    pub fn pictures(&self) -> watch::Receiver<u64> {
        self.pictures.subscribe()
    }

    /// How far the daemon has come.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.lock().clone()
    }

    /// What probes were answered.
    #[must_use]
    pub const fn probes(&self) -> &Probes {
        &self.probes
    }

    /// Says what cannot be served over HTTP.
    pub(crate) fn set_unserved(&self, notices: Vec<Notice>) {
        if *self.current().unserved != notices {
            self.change(|current| current.unserved = Arc::new(notices));
        }
    }

    pub(super) fn proceed(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock());
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Current)) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut current));
        drop(current);
        self.pictures.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
