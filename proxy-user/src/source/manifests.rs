//! A directory of Kubernetes manifests.
//!
//! Files that end in `.yaml`, `.yml` or `.json`, in the directory and in those below it; what begins
//! with a dot is left out, so that mounted `ConfigMap`s are read once. Each scan gives a whole
//! snapshot. An object that is broken, or may be in a file that is, stays as it last was.

mod document;
mod file;
mod locate;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use self::file::{Known, ManifestFile};
use super::assemble::{self, Policy};
use crate::model::{Notice, ObjectRef, Origin, Severity, State};
pub use watch::{Watch, WatchError};

/// How many of what a scan has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Files.
    pub files: usize,
    /// Objects in force.
    pub objects: usize,
    /// Errors.
    pub errors: usize,
    /// Warnings.
    pub warnings: usize,
}

/// What a scan yields.
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
}

/// A directory, and what was last read from it.
#[derive(Debug)]
pub struct Manifests {
    root: PathBuf,
    policy: Policy,
    files: BTreeMap<PathBuf, ManifestFile>,
}

impl Manifests {
    /// A directory, or a single file. Nothing is read yet.
    #[must_use]
    pub const fn new(root: PathBuf, policy: Policy) -> Self {
        Self {
            root,
            policy,
            files: BTreeMap::new(),
        }
    }

    /// Reads what has changed since the last scan. Blocks on the file system.
    pub fn scan(&mut self) -> Snapshot {
        let now = SystemTime::now();
        let mut notices = Vec::new();
        let mut paths = BTreeSet::new();
        let whole = list(&self.root, &mut paths, &mut notices);
        // A directory that can't be read says nothing about what is in it.
        if whole {
            self.files.retain(|path, _| paths.contains(path));
        }
        for path in paths {
            self.files
                .entry(path.clone())
                .or_insert_with(|| ManifestFile::new(path))
                .read(now);
        }
        let mut known: BTreeMap<&ObjectRef, &Known> = BTreeMap::new();
        for file in self.files.values() {
            notices.extend(file.notices());
            for (object, content) in file.objects() {
                match known.entry(object) {
                    Entry::Vacant(entry) => {
                        entry.insert(content);
                    }
                    Entry::Occupied(first) => notices.push(twice(object, first.get(), content)),
                }
            }
        }
        let objects = known
            .iter()
            .map(|(object, known)| (*object, &*known.content));
        let (state, remarks) = assemble::assemble(objects, &self.policy);
        let origins = known
            .iter()
            .map(|(object, known)| ((*object).clone(), known.origin.clone()))
            .collect();
        let mut snapshot = Snapshot {
            state: Arc::new(state),
            notices,
            origins,
            counts: Counts::default(),
        };
        for mut notice in remarks {
            snapshot.place(&mut notice);
            snapshot.notices.push(notice);
        }
        snapshot
            .notices
            .sort_by(|a, b| (&a.origin, a).cmp(&(&b.origin, b)));
        snapshot.notices.dedup();
        let of = |severity| {
            snapshot
                .notices
                .iter()
                .filter(|n| n.severity == severity)
                .count()
        };
        snapshot.counts = Counts {
            files: self.files.len(),
            objects: known.len(),
            errors: of(Severity::Error),
            warnings: of(Severity::Warning),
        };
        snapshot
    }
}

fn twice(object: &ObjectRef, first: &Known, second: &Known) -> Notice {
    Notice {
        severity: Severity::Error,
        origin: Some(second.origin.clone()),
        object: Some(object.clone()),
        field: String::new(),
        message: format!(
            "already defined at {}: this one is left out; remove one",
            first.origin
        ),
    }
}

/// Finds files. False if something could not be listed.
fn list(path: &Path, found: &mut BTreeSet<PathBuf>, notices: &mut Vec<Notice>) -> bool {
    if path.is_file() {
        found.insert(path.to_owned());
        return true;
    }
    let entries = std::fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = match entries {
        Ok(entries) => entries,
        Err(error) => {
            notices.push(Notice {
                severity: Severity::Error,
                origin: Some(Origin {
                    file: Arc::new(path.to_owned()),
                    line: 1,
                }),
                object: None,
                field: String::new(),
                message: format!("cannot be read: {error} (what was read before stays)"),
            });
            return false;
        }
    };
    let mut whole = true;
    for entry in entries {
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        if path.is_dir() {
            whole &= list(&path, found, notices);
        } else if path
            .extension()
            .is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
        {
            found.insert(path);
        }
    }
    whole
}

#[cfg(test)]
mod tests;
