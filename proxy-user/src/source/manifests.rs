//! A directory of Kubernetes manifests.
//!
//! Files that end in `.yaml`, `.yml` or `.json`, in the directory and in those below it; what begins
//! with a dot is left out, so that mounted `ConfigMap`s are read once. Each scan gives a whole
//! snapshot. An object that is broken, or may be in a file that is, stays as it last was: also
//! over a restart, if there is a directory for copies. What was never read and is in no copy is told
//! as unknown.

mod document;
mod file;
mod locate;
mod reading;
mod saved;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use self::{
    file::{Known, ManifestFile},
    saved::{Copies, Part},
};
use super::assemble::{Assembly, Policy};
use super::snapshot::{Counts, Snapshot};
use crate::model::{Notice, ObjectRef, Origin, Severity, Unknown};
pub use saved::SaveError;
pub use watch::{Watch, WatchError};

/// Copies that must be made and removed.
#[derive(Debug)]
pub struct CopyJob {
    copies: Copies,
    files: Vec<(Arc<PathBuf>, Vec<Part>)>,
    gone: BTreeSet<PathBuf>,
    /// Copies of all others go, too.
    only: Option<BTreeSet<PathBuf>>,
}

impl CopyJob {
    /// Does it. Blocks on the disk.
    pub fn run(&self) -> Result<(), SaveError> {
        let mut gone = self.gone.clone();
        if let Some(only) = &self.only {
            let others = self.copies.files().into_iter();
            gone.extend(others.filter(|path| !only.contains(path)));
        }
        self.copies.save(&self.files, &gone)
    }
}

/// A directory, and what was last read from it.
#[derive(Debug)]
pub struct Manifests {
    root: PathBuf,
    assembly: Assembly,
    files: BTreeMap<PathBuf, ManifestFile>,
    copies: Option<Copies>,
    /// Files that are no more, and whose copies are still there.
    gone: BTreeSet<PathBuf>,
    /// Whether all of the directory has been listed once.
    listed: bool,
    /// Whether copies of files that were removed before the start have been removed.
    pruned: bool,
}

impl Manifests {
    /// A directory, or a single file. Nothing is read yet.
    #[must_use]
    pub fn new(root: PathBuf, policy: Policy) -> Self {
        Self {
            root,
            assembly: Assembly::new(policy),
            files: BTreeMap::new(),
            copies: None,
            gone: BTreeSet::new(),
            listed: false,
            pruned: false,
        }
    }

    /// Keeps copies of what is good in this directory, and begins with what is there.
    #[must_use]
    pub fn with_copies(mut self, state: &Path) -> Self {
        self.copies = Some(Copies::new(state));
        self
    }

    /// Reads what has changed since the last scan. Blocks on the file system.
    pub fn scan(&mut self) -> Snapshot {
        self.scan_at(SystemTime::now())
    }

    /// After how long a scan may find something although nothing changes; none: never.
    #[must_use]
    pub fn again(&self) -> Option<Duration> {
        let next = self.files.values().filter_map(ManifestFile::again).min()?;
        Some(
            next.duration_since(SystemTime::now())
                .unwrap_or(Duration::ZERO),
        )
    }

    /// The copies that must be made or removed; none: all are as they must be.
    #[must_use]
    pub fn unsaved(&self) -> Option<CopyJob> {
        let copies = self.copies.as_ref()?;
        let job = CopyJob {
            files: self
                .files
                .values()
                .filter_map(|file| file.unsaved(copies))
                .collect(),
            gone: self.gone.clone(),
            only: (self.listed && !self.pruned).then(|| self.files.keys().cloned().collect()),
            copies: copies.clone(),
        };
        (!job.files.is_empty() || !job.gone.is_empty() || job.only.is_some()).then_some(job)
    }

    /// Takes note of a job that was done.
    pub fn saved(&mut self, job: &CopyJob) {
        for (path, parts) in &job.files {
            if let Some(file) = self.files.get_mut(&**path) {
                file.saved(parts);
            }
        }
        self.gone.retain(|path| !job.gone.contains(path));
        self.pruned |= job.only.is_some();
    }

    /// Reads every file that is there and may have changed. Returns what may be in directories that
    /// can't be read.
    fn read_files(&mut self, now: SystemTime, notices: &mut Vec<Notice>) -> Vec<Unknown> {
        let mut listing = Listing::default();
        listing.add(&self.root);
        notices.append(&mut listing.notices);
        let there = |path: &Path| {
            // A directory that can't be read says nothing about what is in it.
            listing.files.contains(path) || listing.hides(path)
        };
        let gone = self.files.extract_if(.., |path, _| !there(path));
        self.gone.extend(gone.map(|(path, _)| path));
        let mut unknown = Vec::new();
        let whole = listing.unread.is_empty();
        if !whole && !self.listed {
            let copies = self.copies.iter();
            let saved =
                copies.flat_map(|copies| copies.files().into_iter().map(move |f| (f, copies)));
            for (path, copies) in saved.filter(|(path, _)| listing.hides(path)) {
                self.files
                    .entry(path.clone())
                    .or_insert_with(|| ManifestFile::from_copy(path, copies));
            }
            let held = |folder: &PathBuf| self.files.keys().any(|path| path.starts_with(folder));
            if !listing.unread.iter().all(held) {
                unknown.push(Unknown::Anything);
            }
        }
        self.listed |= whole;
        for path in listing.files {
            self.gone.remove(&path);
            self.files
                .entry(path.clone())
                .or_insert_with(|| ManifestFile::new(path))
                .read(now, self.copies.as_ref());
        }
        unknown
    }

    fn scan_at(&mut self, now: SystemTime) -> Snapshot {
        let mut notices = Vec::new();
        let mut unknown = self.read_files(now, &mut notices);
        let mut known: BTreeMap<&ObjectRef, &Known> = BTreeMap::new();
        for file in self.files.values() {
            notices.extend(file.notices());
            unknown.extend_from_slice(file.unknown());
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
            .map(|(object, known)| (*object, &known.content));
        let (mut state, remarks) = self.assembly.assemble(objects);
        unknown.sort();
        unknown.dedup();
        state.unknown = unknown;
        let origins = known
            .iter()
            .map(|(object, known)| ((*object).clone(), known.origin.clone()))
            .collect();
        let mut snapshot = Snapshot {
            state: Arc::new(state),
            notices,
            origins,
            ..Snapshot::default()
        };
        for mut notice in remarks {
            snapshot.place(&mut notice);
            snapshot.notices.push(notice);
        }
        snapshot.count(Counts {
            files: self.files.len(),
            objects: known.len(),
            stale: known.values().filter(|known| known.stale).count(),
            ..Counts::default()
        });
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

/// What is in a directory.
#[derive(Debug, Default)]
struct Listing {
    files: BTreeSet<PathBuf>,
    /// Directories that could not be read.
    unread: Vec<PathBuf>,
    notices: Vec<Notice>,
}

impl Listing {
    /// Whether a file may be there and not be seen.
    fn hides(&self, file: &Path) -> bool {
        self.unread.iter().any(|folder| file.starts_with(folder))
    }

    fn add(&mut self, path: &Path) {
        if path.is_file() {
            self.files.insert(path.to_owned());
            return;
        }
        let entries = std::fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => {
                self.notices.push(Notice {
                    severity: Severity::Error,
                    origin: Some(Origin {
                        file: Arc::new(path.to_owned()),
                        line: 1,
                    }),
                    object: None,
                    field: String::new(),
                    message: format!("cannot be read: {error} (what was read before stays)"),
                });
                self.unread.push(path.to_owned());
                return;
            }
        };
        for entry in entries {
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            if path.is_dir() {
                self.add(&path);
            } else if path
                .extension()
                .is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
            {
                self.files.insert(path);
            }
        }
    }
}

#[cfg(test)]
mod tests;
