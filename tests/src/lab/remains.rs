//! What a world leaves in the system, and how all of it is taken away.
//!
//! Everything can be found by the world's name alone: namespaces are called `cw-<world>-<room>`, every
//! other file is in `/run/causeway-lab/<world>`, and every process of the world is in one of its
//! namespaces. So a world whose maker was killed can be removed like any other.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{cgroup, namespace::NAMED, topology::batch};

/// Where worlds keep their files.
pub const ROOT: &str = "/run/causeway-lab";

/// What `owner` says of a world that outlives its maker on purpose.
const KEPT: &str = "kept";

/// What the names of a world's namespaces begin with.
#[must_use]
pub fn prefix(world: &str) -> String {
    format!("cw-{world}-")
}

/// The folder of a world's files.
#[must_use]
pub fn directory(world: &str) -> PathBuf {
    Path::new(ROOT).join(world)
}

/// Takes a name for this process. An error if it is taken.
pub fn claim(world: &str) -> Result<PathBuf> {
    if world.is_empty() || !world.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        bail!("a world's name is letters and digits, not `{world}`");
    }
    fs::create_dir_all(ROOT).with_context(|| format!("creating {ROOT}"))?;
    let own = nix::unistd::getpid().as_raw();
    // Written elsewhere and then renamed, so that no sweep ever meets a world without an owner.
    let draft = Path::new(ROOT).join(format!(".{world}-{own}"));
    fs::create_dir_all(&draft)?;
    fs::write(draft.join("owner"), identity(own).unwrap_or_default())?;
    let directory = directory(world);
    if let Err(error) = fs::rename(&draft, &directory) {
        fs::remove_dir_all(&draft)?;
        return Err(error).with_context(|| format!("the world `{world}` exists; remove it first"));
    }
    Ok(directory)
}

/// Marks a world as one that stays.
pub fn keep(world: &str) -> Result<()> {
    fs::write(directory(world).join("owner"), KEPT).context("marking the world as kept")
}

/// Who has a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// There is no such world.
    Nobody,
    /// It was left running on purpose.
    Kept,
    /// The process that made it is running.
    Running,
    /// The process that made it is gone.
    Gone,
}

/// Who has the world of this name.
#[must_use]
pub fn owner(world: &str) -> Owner {
    let directory = directory(world);
    match fs::read_to_string(directory.join("owner")) {
        Ok(text) if text == KEPT => Owner::Kept,
        Ok(text) => {
            let pid = text.split(' ').next().and_then(|pid| pid.parse().ok());
            match pid.and_then(identity) {
                Some(identity) if identity == text => Owner::Running,
                _ => Owner::Gone,
            }
        }
        Err(_) if directory.exists() || !namespaces(world).is_empty() => Owner::Gone,
        Err(_) => Owner::Nobody,
    }
}

/// Removes every world whose maker is gone, and returns their names.
pub fn sweep() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for entry in list(Path::new(ROOT))? {
        if !entry.starts_with('.') && owner(&entry) == Owner::Gone {
            remove(&entry)?;
            removed.push(entry);
        }
    }
    Ok(removed)
}

/// Removes a world: its processes, namespaces, mounts and files. Nothing to remove is no error.
///
/// One at a time on a machine: a run that is interrupted removes its own world while another one may
/// be sweeping it.
pub fn remove(world: &str) -> Result<()> {
    fs::create_dir_all(ROOT).with_context(|| format!("making {ROOT}"))?;
    let lock = Path::new(ROOT).join(".removing");
    let lock = File::create(&lock).with_context(|| format!("opening {}", lock.display()))?;
    lock.lock().context("waiting for another removal")?;
    let names = namespaces(world);
    end_processes(&names)?;
    let delete = |name: &String| format!("netns delete {name}");
    let commands: Vec<String> = names.iter().map(delete).collect();
    if !commands.is_empty() {
        batch(None, &commands)?;
    }
    cgroup::remove_all(&prefix(world))?;
    let directory = directory(world);
    for room in list(&directory)? {
        let bpffs = directory.join(room).join("bpf");
        match umount2(&bpffs, MntFlags::MNT_DETACH) {
            // Not a mount, or not there.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("unmounting {}", bpffs.display()));
            }
        }
    }
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// The names of a world's namespaces.
#[must_use]
pub fn namespaces(world: &str) -> Vec<String> {
    let prefix = prefix(world);
    let mut names = list(Path::new(NAMED)).unwrap_or_default();
    names.retain(|name| name.starts_with(&prefix));
    names
}

/// Kills what runs in the named namespaces, and waits until it is gone.
fn end_processes(names: &[String]) -> Result<()> {
    let inodes: BTreeSet<u64> = names
        .iter()
        .filter_map(|name| fs::metadata(Path::new(NAMED).join(name)).ok())
        .map(|metadata| metadata.ino())
        .collect();
    let start = Instant::now();
    while !inodes.is_empty() {
        let found = processes_in(&inodes)?;
        if found.is_empty() {
            break;
        }
        if start.elapsed() > Duration::from_secs(10) {
            bail!("processes {found:?} do not end");
        }
        for pid in found {
            // It may have ended since.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Ids of the processes, other than this one, whose network namespace is one of these.
fn processes_in(inodes: &BTreeSet<u64>) -> Result<Vec<i32>> {
    let own = nix::unistd::getpid().as_raw();
    let mut found = Vec::new();
    for name in list(Path::new("/proc"))? {
        let Ok(pid) = name.parse::<i32>() else {
            continue;
        };
        // A process that has ended and is not yet collected has no namespace any more.
        let Ok(namespace) = fs::metadata(format!("/proc/{pid}/ns/net")) else {
            continue;
        };
        if pid != own && inodes.contains(&namespace.ino()) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// A running process's id and start time, which together are never used twice.
fn identity(pid: i32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field may hold anything, so count from the parenthesis that ends it: proc(5).
    let (_, after) = text.rsplit_once(") ")?;
    let mut fields = after.split(' ');
    let state = fields.next()?;
    let start = fields.nth(18)?;
    // It has ended, and nobody has asked how.
    let ended = matches!(state, "Z" | "X");
    (!ended).then(|| format!("{pid} {start}"))
}

/// The names in a folder; none if there is no such folder.
fn list(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => {
            return Err(error).with_context(|| format!("listing {}", directory.display()));
        }
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_id_and_start() {
        let own = nix::unistd::getpid().as_raw();
        let text = identity(own).unwrap();
        let (pid, start) = text.split_once(' ').unwrap();
        assert_eq!(pid, own.to_string());
        assert!(start.parse::<u64>().unwrap() > 0);
        assert_eq!(identity(own).as_ref(), Some(&text));
    }
}
