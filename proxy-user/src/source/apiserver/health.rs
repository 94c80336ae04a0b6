//! How it stands with the API server.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::KINDS;
use crate::model::Kind;

/// How it stands with one kind of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindHealth {
    /// Lists that were read whole since the start; none: what was saved is in force.
    pub lists: u64,
    /// Changes that were watched.
    pub events: u64,
    /// Objects that were told, in lists and as changes.
    #[serde(default)]
    pub told: u64,
    /// Those of them that the kernel does not have yet.
    #[serde(default)]
    pub pending: u64,
    /// Requests that failed, and watches that broke off.
    pub errors: u64,
    /// What is wrong now.
    pub error: Option<String>,
    /// Since when, seconds since 1970.
    pub since: Option<u64>,
}

/// How many objects of each kind were told.
pub type Told = BTreeMap<Kind, u64>;

/// How it stands with all of them.
#[derive(Debug)]
pub struct Health {
    server: String,
    kinds: Mutex<BTreeMap<Kind, KindHealth>>,
    /// What the kernel has of what was told.
    in_force: Mutex<Told>,
    turned: Notify,
}

impl Health {
    /// Nothing has been asked yet.
    #[must_use]
    pub fn new(server: impl Into<String>) -> Self {
        Self {
            server: server.into(),
            kinds: Mutex::new(KINDS.map(|kind| (kind, KindHealth::default())).into()),
            in_force: Mutex::default(),
            turned: Notify::new(),
        }
    }

    /// What the configuration says of the API server.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// All kinds.
    #[must_use]
    pub fn kinds(&self) -> BTreeMap<Kind, KindHealth> {
        let mut kinds = self.lock().clone();
        let in_force = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        for (kind, health) in &mut kinds {
            let has = in_force.get(kind).copied().unwrap_or_default();
            health.pending = health.told.saturating_sub(has);
        }
        kinds
    }

    /// The kernel has all of this.
    pub fn is_in_force(&self, told: &Told) {
        let mut in_force = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        for (kind, count) in told {
            let known = in_force.entry(*kind).or_default();
            *known = (*known).max(*count);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Kind, KindHealth>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn listed(&self, kind: Kind) {
        self.lock().entry(kind).or_default().lists += 1;
    }

    pub(super) fn event(&self, kind: Kind) {
        self.lock().entry(kind).or_default().events += 1;
    }

    pub(super) fn told(&self, kind: Kind) {
        self.lock().entry(kind).or_default().told += 1;
    }

    /// A request was answered as it should be.
    pub(super) fn answered(&self, kind: Kind) {
        let mut kinds = self.lock();
        let health = kinds.entry(kind).or_default();
        if health.error.take().is_some() {
            health.since = None;
            self.turned.notify_one();
            tracing::info!(%kind, "the API server answers again");
        }
    }

    /// A request was not.
    pub(super) fn failed(&self, kind: Kind, error: &str) {
        let mut kinds = self.lock();
        let health = kinds.entry(kind).or_default();
        health.errors += 1;
        if health.error.as_deref() == Some(error) {
            return;
        }
        tracing::warn!(%kind, error, "the API server does not answer as it should; will be tried again");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        health
            .since
            .get_or_insert(now.unwrap_or_default().as_secs());
        health.error = Some(error.to_owned());
        self.turned.notify_one();
    }

    /// Waits until something has begun to fail, or to work. Cancel safe.
    pub async fn turned(&self) {
        self.turned.notified().await;
    }

    /// What is wrong; none: nothing.
    #[must_use]
    pub fn failing(&self) -> Option<String> {
        let kinds = self.lock();
        let mut errors: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (kind, health) in kinds.iter() {
            if let Some(error) = &health.error {
                errors.entry(error).or_default().push(format!("{kind}s"));
            }
        }
        let told = errors
            .iter()
            .map(|(error, kinds)| format!("{}: {error}", kinds.join(", ")));
        let told: Vec<String> = told.collect();
        (!told.is_empty()).then(|| {
            format!(
                "the API server ({}) does not answer as it should: {}",
                self.server,
                told.join("; ")
            )
        })
    }
}
