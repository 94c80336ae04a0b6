//! Takes over what another version of the records ([`ABI_VERSION`]) has pinned.
//!
//! An upgrade must not leave two programs at a device, nor a moment without one; and connections
//! are to live on. So a new version moves the pins of the old one into its own folder before it
//! does anything else: links, whose programs are then replaced in place as at any restart, and
//! those maps whose records are the same in both. The old programs and the new ones share these
//! maps while they take turns. Each map's pin stands beside the version in which its records last
//! changed, so that an older daemon knows, too, which maps of a newer one it can read.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use proxy_common::abi::{MAPS, MapSpec};

use super::maps::{MapError, check, open_pinned};
use super::pins::{PinError, PinFolder, remove_pin, remove_tree};
use super::syscall::{self, LinkInfo};

/// Maps whose records have changed since version 1, in size or in meaning, and the last version that
/// changed them.
const CHANGED: &[(&str, u32)] = &[
    ("DEVICES", 2),
    ("FLOWS_V4", 2),
    ("FLOWS_V6", 2),
    ("SETTINGS", 3),
    ("SERVICES_V4", 4),
    ("SERVICES_V6", 4),
    ("SOURCES_V4", 4),
    ("SOURCES_V6", 4),
    ("AFFINITY_V4", 4),
    ("AFFINITY_V6", 4),
];

/// What the records of a map refer to. A map whose references are not taken over isn't either.
const REFERS: &[(&str, &[&str])] = &[
    ("BACKENDS", &["OBJECTS"]),
    ("SLOTS", &["BACKENDS", "SERVICES_V4", "SERVICES_V6"]),
    ("SOURCES_V4", &["OBJECTS"]),
    ("SOURCES_V6", &["OBJECTS"]),
    ("SERVICES_V4", &["SLOTS", "SERVICES_V6", "SOURCES_V4"]),
    ("SERVICES_V6", &["SLOTS", "SERVICES_V4", "SOURCES_V6"]),
    ("AFFINITY_V4", &["BACKENDS"]),
    ("AFFINITY_V6", &["BACKENDS"]),
    ("FLOWS_V4", &["BACKENDS"]),
    ("FLOWS_V6", &["BACKENDS"]),
];

/// Why pins could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// A pin could not be read or made.
    #[error("cannot take over {path} from another version of causeway: {source}")]
    Pin {
        /// The old pin.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Around the pins' folders.
    #[error(transparent)]
    Folder(#[from] PinError),
}

/// What was taken over from one version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Links.
    pub links: usize,
    /// Maps with all that is in them.
    pub maps: Vec<&'static str>,
    /// Maps whose records are not the same: they begin anew.
    pub left: Vec<&'static str>,
}

/// The version in which a map's records last changed.
#[must_use]
pub fn changed_in(map: &str) -> u32 {
    let mut known = CHANGED.iter().filter(|(name, _)| *name == map);
    known.next().map_or(1, |(_, version)| *version)
}

fn mark_of(folder: &PinFolder, map: &str) -> PathBuf {
    folder.layouts().join(format!("{map}-{}", changed_in(map)))
}

/// Says in `folder` which records its maps have.
pub(super) fn mark(folder: &PinFolder) -> Result<(), PinError> {
    for spec in MAPS {
        let path = mark_of(folder, spec.name);
        fs::create_dir_all(&path).map_err(PinError::file("make the folder", &path))?;
    }
    Ok(())
}

/// Moves what other versions have pinned into `folder`, and removes their folders. May be called
/// again after it was interrupted anywhere.
pub fn take_over(folder: &PinFolder) -> Result<Vec<Taken>, UpgradeError> {
    let mut all = Vec::new();
    for old in folder.other_versions()? {
        folder.create()?;
        let taken = take(&old, folder)?;
        let (from, links) = (old.path().display(), taken.links);
        tracing::info!(%from, links, maps = ?taken.maps, "took over the pins of another version");
        if taken.left.iter().any(|name| name.starts_with("FLOWS")) {
            tracing::warn!(
                %from, maps = ?taken.left,
                "records have changed between the versions: connections through services that are \
                 open now end"
            );
        }
        all.push(taken);
    }
    Ok(all)
}

fn take(old: &PinFolder, folder: &PinFolder) -> Result<Taken, UpgradeError> {
    let same = same_records(old);
    let (maps, left) = MAPS
        .iter()
        .map(|spec| spec.name)
        .partition(|name| same.contains(name));
    let mut taken = Taken {
        links: 0,
        maps,
        left,
    };
    for name in &taken.maps {
        // One that is ours already is in force, or was moved before an interruption.
        pin_again(&old.map(name), &folder.map(name))?;
    }
    for (program, ifindex, path) in old.pinned_links()? {
        let new = folder.link(&program, ifindex);
        if !pin_again(&path, &new)? {
            let error = fail(&path);
            detach_other(&path, &new).map_err(error)?;
        }
        remove_pin(&path)?;
        taken.links += 1;
    }
    remove_tree(old.path())?;
    Ok(taken)
}

/// The maps of another version that hold what we would write, and whose references do, too.
fn same_records(old: &PinFolder) -> BTreeSet<&'static str> {
    // Versions 1 and 2 did not say.
    let unsaid = !old.layouts().is_dir();
    let same = |spec: &&'static MapSpec| {
        let said = if unsaid {
            changed_in(spec.name) <= old.number()
        } else {
            mark_of(old, spec.name).is_dir()
        };
        said && open_pinned(&old.map(spec.name))
            .and_then(|map| check(spec, &map, map.info.entries))
            .inspect_err(|error: &MapError| tracing::debug!(%error, "not taken over"))
            .is_ok()
    };
    let mut names: BTreeSet<&'static str> =
        MAPS.iter().filter(same).map(|spec| spec.name).collect();
    loop {
        let before = names.clone();
        let whole = |name: &str| {
            let mut refers = REFERS.iter().filter(|(of, _)| *of == name);
            refers.all(|(_, to)| to.iter().all(|to| before.contains(to)))
        };
        names.retain(|name| whole(name));
        if names == before {
            return names;
        }
    }
}

/// Pins what is pinned at `old` at `new`, too. False if something is pinned there.
fn pin_again(old: &Path, new: &Path) -> Result<bool, UpgradeError> {
    let object = syscall::get(old).map_err(fail(old))?;
    match syscall::pin(std::os::fd::AsFd::as_fd(&object), new) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(fail(old)(error)),
    }
}

/// Detaches the link at `old` unless it is the one at `new`.
fn detach_other(old: &Path, new: &Path) -> io::Result<()> {
    use std::os::fd::AsFd as _;
    let (old, new) = (syscall::get(old)?, syscall::get(new)?);
    let id = |info: io::Result<LinkInfo>| info.map(|info| info.id);
    if id(syscall::object_info(old.as_fd()))? == id(syscall::object_info(new.as_fd()))? {
        return Ok(());
    }
    match syscall::link_detach(old.as_fd()) {
        Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => Err(error),
        _ => Ok(()),
    }
}

fn fail(path: &Path) -> impl FnOnce(io::Error) -> UpgradeError {
    let path = path.to_owned();
    move |source| UpgradeError::Pin { path, source }
}

#[cfg(test)]
mod tests {
    use proxy_common::abi::ABI_VERSION;

    use super::*;

    /// Every map's records. Whoever changes one here raises `ABI_VERSION` and writes the map and the
    /// new version into [`CHANGED`]; so does whoever changes what a field means.
    const RECORDS: &[(&str, u32, usize, usize)] = &[
        ("SETTINGS", 3, 4, 16),
        ("OBJECTS", 1, 4, 200),
        ("BACKENDS", 1, 4, 32),
        ("SLOTS", 1, 4, 4),
        ("FILTER", 1, 4, 8),
        ("SOURCES_V4", 4, 12, 4),
        ("SOURCES_V6", 4, 24, 4),
        ("SERVICES_V4", 4, 8, 28),
        ("SERVICES_V6", 4, 20, 28),
        ("ADDRESSES_V4", 1, 4, 4),
        ("ADDRESSES_V6", 1, 16, 4),
        ("DEVICES", 2, 8, 40),
        ("TX_PORTS", 1, 4, 8),
        ("FLOWS_V4", 2, 16, 72),
        ("FLOWS_V6", 2, 40, 96),
        ("AFFINITY_V4", 4, 8, 16),
        ("AFFINITY_V6", 4, 20, 16),
        ("PEERS_V4", 1, 16, 8),
        ("PEERS_V6", 1, 28, 20),
        ("COUNTERS", 1, 4, 16),
    ];

    #[test]
    fn a_change_of_records_is_declared() {
        let records: Vec<_> = MAPS
            .iter()
            .map(|spec| {
                let version = changed_in(spec.name);
                (spec.name, version, spec.key_bytes, spec.value_bytes)
            })
            .collect();
        assert_eq!(records, RECORDS);
        let newest = CHANGED.iter().map(|(_, version)| *version).max();
        assert_eq!(newest, Some(ABI_VERSION), "each version changes something");
        let known = |name: &str| MAPS.iter().any(|spec| spec.name == name);
        let named = CHANGED.iter().map(|(name, _)| *name);
        let refers = REFERS.iter().flat_map(|(of, to)| to.iter().chain([of]));
        for name in named.chain(refers.copied()) {
            assert!(known(name), "{name}");
        }
    }
}
