//! What of a cluster is on this machine, and taking it away.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::layout::{self, PREFIX};
use crate::process;

/// How long the kernel may take to end what was killed.
const PATIENCE: Duration = Duration::from_secs(20);

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Remains {
    /// Network namespaces with our prefix.
    pub(crate) namespaces: Vec<String>,
    /// Processes in our control groups: their ids and names.
    pub(crate) processes: Vec<(u32, String)>,
    /// Mounts outside of the hosts that are below the cluster's folder.
    pub(crate) mounts: Vec<String>,
    /// Control groups with our prefix.
    pub(crate) groups: Vec<String>,
    /// The cluster's folder is there.
    pub(crate) folder: bool,
}

impl Remains {
    /// Looks.
    pub(crate) fn find() -> Result<Self> {
        let folder = layout::folder()?;
        let text = folder.to_string_lossy();
        let mounts = fs::read_to_string("/proc/self/mounts").context("cannot list the mounts")?;
        Ok(Self {
            namespaces: namespaces(),
            processes: processes(),
            mounts: mounts
                .lines()
                .filter_map(|line| line.split(' ').nth(1))
                .filter(|point| point.starts_with(text.as_ref()))
                .map(str::to_owned)
                .collect(),
            groups: groups()?,
            folder: folder.exists(),
        })
    }

    /// Nothing is.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Ends and removes everything; there may be nothing, or only a part.
pub(crate) fn remove() -> Result<()> {
    kill()?;
    remove_groups()?;
    for namespace in namespaces() {
        process::quiet(process::command("ip").args(["netns", "delete", &namespace]))?;
    }
    let found = Remains::find()?;
    if !found.mounts.is_empty() {
        bail!(
            "{} is still mounted, so the cluster's folder stays",
            found.mounts.join(", ")
        );
    }
    if found.folder {
        let folder = layout::folder()?;
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

/// Kills what is in our control groups, and what is in our network namespaces before it is in a
/// group. With the first process of a host the kernel ends all others there.
fn kill() -> Result<()> {
    let start = Instant::now();
    loop {
        let mut ids: Vec<u32> = processes().into_iter().map(|(id, _)| id).collect();
        for namespace in namespaces() {
            let listed =
                process::quiet(process::command("ip").args(["netns", "pids", &namespace]))?;
            ids.extend(
                listed
                    .lines()
                    .filter_map(|line| line.trim().parse::<u32>().ok()),
            );
        }
        if ids.is_empty() {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            bail!("processes {ids:?} of the cluster do not end");
        }
        // Those that have ended meanwhile are no error.
        let _some_have_ended = process::answer(
            process::command("kill")
                .arg("-KILL")
                .args(ids.iter().map(u32::to_string)),
        );
        thread::sleep(Duration::from_millis(50));
    }
}

fn namespaces() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/run/netns") else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(PREFIX))
        .collect();
    names.sort();
    names
}

fn processes() -> Vec<(u32, String)> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            let groups = fs::read_to_string(entry.path().join("cgroup")).ok()?;
            let ours = format!("0::/{PREFIX}");
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            groups
                .lines()
                .any(|line| line.starts_with(&ours))
                .then(|| (id, name.trim().to_owned()))
        })
        .collect()
}

fn groups() -> Result<Vec<String>> {
    let listed = in_groups(&format!("ls -d {PREFIX}* 2>/dev/null || :"))?;
    Ok(listed.lines().map(str::to_owned).collect())
}

/// Groups are empty a moment after the last process in them was reaped.
fn remove_groups() -> Result<()> {
    let start = Instant::now();
    loop {
        in_groups(&format!(
            "find . -depth -type d -path './{PREFIX}*' -exec rmdir {{}} + 2>/dev/null || :"
        ))?;
        let left = groups()?;
        if left.is_empty() {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            bail!("control groups {left:?} are not empty");
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Runs a shell's command where the root of cgroup2 is mounted, for it alone: the mounts of this
/// machine stay as they are.
fn in_groups(command: &str) -> Result<String> {
    let script = format!("mount -t cgroup2 cgroup2 /mnt && cd /mnt && {command}");
    if !Path::new("/mnt").is_dir() {
        bail!("there is no /mnt, on which a file system could be mounted");
    }
    process::quiet(process::command("unshare").args(["--mount", "sh", "-c", &script]))
}
