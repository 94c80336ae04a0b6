//! What a source yields: everything that is desired, at one moment.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use serde::{Deserialize, Serialize};

use super::apiserver::{Health, Told};
use crate::model::{Notice, ObjectRef, Origin, Severity, State};

/// How many of what a source has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Files; none where objects come from the API server.
    pub files: usize,
    /// Objects in force.
    pub objects: usize,
    /// Those of them that are as they were before they were broken.
    #[serde(default)]
    pub stale: usize,
    /// Errors.
    pub errors: usize,
    /// Warnings.
    pub warnings: usize,
}

/// What a change of endpoints is due to: something that happened to a pod or a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// When it happened, by the clock of whoever writes the slices.
    pub at: SystemTime,
    /// Whether the endpoints are IPv4 ones.
    pub v4: bool,
}

/// What a source yields.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The desired state.
    pub state: Arc<State>,
    /// What is to be told, in order of place.
    pub notices: Vec<Notice>,
    /// Where each object stands.
    pub origins: BTreeMap<ObjectRef, Origin>,
    /// How many of what.
    pub counts: Counts,
    /// How it stands with the API server; none: the source is another one.
    pub api: Option<Arc<Health>>,
    /// How many objects the API server had told by then.
    pub told: Told,
    /// What has triggered changes since the last snapshot.
    pub triggers: Vec<Trigger>,
}

impl Snapshot {
    /// Says where the object of a notice stands, if the notice doesn't.
    pub fn place(&self, notice: &mut Notice) {
        if notice.origin.is_none()
            && let Some(object) = &notice.object
        {
            notice.origin = self.origins.get(object).cloned();
        }
    }

    /// Puts the notices in order and counts them; the rest of `counts` is given.
    pub(super) fn count(&mut self, counts: Counts) {
        self.notices
            .sort_by(|a, b| (&a.origin, a).cmp(&(&b.origin, b)));
        self.notices.dedup();
        let of = |severity| {
            let all = self.notices.iter();
            all.filter(|notice| notice.severity == severity).count()
        };
        self.counts = Counts {
            errors: of(Severity::Error),
            warnings: of(Severity::Warning),
            ..counts
        };
    }
}
