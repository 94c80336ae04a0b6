//! One daemon per instance: whoever changes an instance's maps and links holds the lock of its
//! folder of pins.
//!
//! The folder itself is locked (`flock(2)`), so the lock is where the pins are, whatever files two
//! containers share besides, nothing is left behind, and a process that is killed lets go of it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{major, minor};

use super::pins::{PinError, PinFolder};

/// Why the lock was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error(
        "{holder} works on this instance of causeway ({}): stop it first, or give this one another \
         name (`instance` in the configuration)",
        path.display()
    )]
    Held {
        /// Who.
        holder: Holder,
        /// The folder of the instance's pins.
        path: PathBuf,
    },
    /// The folder could not be opened or locked.
    #[error("cannot lock {path}: {source}")]
    File {
        /// The folder of the instance's pins.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Around the pins' folder.
    #[error(transparent)]
    Folder(#[from] PinError),
}

/// The process that holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number; none: it is in a PID namespace that is not seen from here.
    pub pid: Option<u32>,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("a process of another PID namespace"),
        }
    }
}

/// The lock of an instance, for as long as it lives.
#[derive(Debug)]
pub struct InstanceLock {
    _folder: Flock<File>,
}

impl InstanceLock {
    /// Takes the lock; makes the instance's folder if it is not there.
    pub fn take(folder: &PinFolder) -> Result<Self, LockError> {
        let path = folder.instance();
        loop {
            folder.create_instance()?;
            // A `causeway detach` may remove the folder between any two steps: then once more.
            if let Some(lock) = Self::of_existing(folder)? {
                return Ok(lock);
            }
            tracing::debug!(path = %path.display(), "the folder has gone; made anew");
        }
    }

    /// Takes the lock if the instance's folder is there; none: there is nothing to lock.
    pub fn of_existing(folder: &PinFolder) -> Result<Option<Self>, LockError> {
        let path = folder.instance();
        let error = |source| LockError::File {
            path: path.to_owned(),
            source,
        };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(other) => return Err(error(other)),
        };
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                let held = lock.metadata().map_err(error)?;
                let same = fs::metadata(path).is_ok_and(|now| place(&now) == place(&held));
                Ok(same.then_some(Self { _folder: lock }))
            }
            Err((file, Errno::EWOULDBLOCK)) => Err(LockError::Held {
                holder: holder(&file),
                path: path.to_owned(),
            }),
            Err((_, errno)) => Err(error(errno.into())),
        }
    }
}

fn place(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Who holds the lock of a file, by `/proc/locks` (proc(5)).
fn holder(file: &File) -> Holder {
    let locks = fs::read_to_string(Path::new("/proc/locks")).unwrap_or_default();
    let wanted = file.metadata().map(|held| {
        let (device, inode) = place(&held);
        format!("{:02x}:{:02x}:{inode}", major(device), minor(device))
    });
    let pid = wanted
        .ok()
        .and_then(|wanted| locks.lines().find_map(|line| held_by(line, &wanted)));
    Holder { pid }
}

/// `1: FLOCK ADVISORY WRITE <pid> <major>:<minor>:<inode> 0 EOF`; the pid is 0 or below where it is
/// not seen.
fn held_by(line: &str, wanted: &str) -> Option<u32> {
    let mut words = line.split_whitespace();
    let flock = words.nth(1)? == "FLOCK";
    let pid = words.nth(2)?.parse().ok().filter(|pid| *pid != 0)?;
    (flock && words.next()? == wanted).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_among_all_locks() {
        let rows = [
            ("1: FLOCK  ADVISORY  WRITE 4242 00:1f:77 0 EOF", Some(4_242)),
            ("1: POSIX  ADVISORY  WRITE 4242 00:1f:77 0 EOF", None),
            ("1: FLOCK  ADVISORY  WRITE 4242 00:1f:78 0 EOF", None),
            ("1: FLOCK  ADVISORY  WRITE 0 00:1f:77 0 EOF", None),
            ("1: FLOCK  ADVISORY  WRITE -1 00:1f:77 0 EOF", None),
            ("1:", None),
        ];
        for (text, pid) in rows {
            assert_eq!(held_by(text, "00:1f:77"), pid, "{text}");
        }
    }

    /// `flock(2)` tells open file descriptions apart, so one process can stand for two.
    #[test]
    fn the_second_is_told_who_the_first_is() {
        let place = tempfile::tempdir().unwrap();
        let folder = PinFolder::under(place.path(), "test");
        assert!(InstanceLock::of_existing(&folder).unwrap().is_none());
        fs::create_dir_all(folder.instance()).unwrap();
        let first = InstanceLock::of_existing(&folder).unwrap().unwrap();
        let error = InstanceLock::of_existing(&folder).unwrap_err();
        let own = std::process::id();
        assert!(
            matches!(error, LockError::Held { holder, .. } if holder.pid == Some(own)),
            "{error}"
        );
        assert!(error.to_string().contains(&own.to_string()), "{error}");
        drop(first);
        assert!(InstanceLock::of_existing(&folder).unwrap().is_some());
    }
}
