//! Running code and programs inside a named network namespace.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

/// Where `ip netns` keeps the names.
pub const NAMED: &str = "/run/netns";

/// A named network namespace, and for a node also the mounts that its processes see.
///
/// Every use gets a thread of its own: a thread that has changed its namespace must never be used
/// for anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    name: String,
    bpffs: Option<PathBuf>,
}

impl Namespace {
    /// The namespace that `ip netns` knows as `name`.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            bpffs: None,
        }
    }

    /// Gives what runs here a mount namespace of its own, with the BPF file system that is mounted
    /// at `bpffs` in its usual place, and a `/sys` that shows this namespace's devices.
    #[must_use]
    pub fn with_bpffs(self, bpffs: impl Into<PathBuf>) -> Self {
        Self {
            bpffs: Some(bpffs.into()),
            ..self
        }
    }

    /// As `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` inside and waits for it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| self.move_here().map(|()| work()))
                .join()
                .map_err(|_| anyhow!("the thread in namespace {} panicked", self.name))?
        })
    }

    /// Runs `work` inside, on a thread that goes on after this call.
    pub fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> thread::JoinHandle<Result<T>> {
        let inside = self.clone();
        thread::spawn(move || inside.move_here().and_then(|()| work()))
    }

    /// Runs a program inside, to its end.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        self.enter(|| command.output())?
            .with_context(|| format!("running {command:?} in {}", self.name))
    }

    /// Moves the calling thread, for good.
    fn move_here(&self) -> Result<()> {
        let path = Path::new(NAMED).join(&self.name);
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        setns(&file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("entering namespace {}", self.name))?;
        match &self.bpffs {
            Some(bpffs) => private_mounts(bpffs)
                .with_context(|| format!("preparing the mounts of {}", self.name)),
            None => Ok(()),
        }
    }
}

/// Gives the calling thread mounts of its own. `/sys` must be mounted anew, since the existing one
/// shows the devices of the namespace it was mounted in.
fn private_mounts(bpffs: &Path) -> Result<()> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).context("unsharing mounts")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(NONE, "/", NONE, private, NONE).context("making mounts private")?;
    let fresh = bpffs.with_file_name("sys");
    mount(Some("sysfs"), &fresh, Some("sysfs"), MsFlags::empty(), NONE)
        .with_context(|| format!("mounting sysfs at {}", fresh.display()))?;
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(
        Some("/sys/fs/cgroup"),
        &fresh.join("fs/cgroup"),
        NONE,
        bind,
        NONE,
    )
    .context("binding the cgroup file systems")?;
    mount(Some(bpffs), &fresh.join("fs/bpf"), NONE, bind, NONE).context("binding bpffs")?;
    mount(Some(&fresh), "/sys", NONE, bind, NONE).context("binding /sys")
}
