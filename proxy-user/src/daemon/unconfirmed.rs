//! What the maps held at the start, and nobody has been able to say since whether it is desired.
//!
//! Without this, a file that is broken when the daemon starts, and of which there is no copy, would
//! take its services away and reset their connections.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::model::{Notice, Severity, State};
use crate::reconcile::{Held, Observed};

/// Names of such service ports.
#[derive(Debug, Default)]
pub(super) struct Unconfirmed(BTreeSet<Arc<str>>);

impl Unconfirmed {
    /// All that the maps hold, which is the case until the source has spoken.
    pub(super) fn all(observed: &Observed) -> Self {
        Self(observed.objects.values().cloned().collect())
    }

    /// Those that must stay as they are while this is desired. The others are confirmed or given
    /// up, for good: what becomes of them from now on is the source's decision.
    pub(super) fn held(&mut self, state: &State) -> Held {
        self.0.retain(|name| {
            let desired = state.services.get(&**name).map(|port| &**port);
            let mut unknown = state.unknown.iter();
            unknown.any(|unknown| unknown.may_be(name, desired))
        });
        self.0.clone()
    }
}

/// What is to be told of them.
pub(super) fn notice(held: &Held) -> Option<Notice> {
    let first = held.first()?;
    let (which, stay) = match held.len() {
        1 => (format!("{first} stays"), "it"),
        count => (format!("{first} and {} others stay", count - 1), "they"),
    };
    Some(Notice {
        severity: Severity::Error,
        origin: None,
        object: None,
        field: String::new(),
        message: format!(
            "{which} as the kernel has {}, since {stay} may be in what cannot be read and there is \
             no copy of: mend it",
            if held.len() == 1 { "it" } else { "them" }
        ),
    })
}
