//! A host of the cluster: namespaces in which processes run as on a machine of their own.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::layout::Place;
use crate::{process, workspace};

const FIRST_PROCESS: &str = include_str!("host.sh");

/// How long anything of the cluster may take to start.
const PATIENCE: Duration = Duration::from_mins(1);

/// Lines of a log that are shown when something went wrong.
const SHOWN_LINES: usize = 12;

/// A host that runs.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    place: Place,
    folder: PathBuf,
    /// Of its first process, outside.
    id: u32,
}

impl Host {
    /// Starts its first process; its network namespace is there already.
    pub(crate) fn start(place: Place) -> Result<Self> {
        let folder = place.folder()?;
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let script = folder.join("host.sh");
        fs::write(&script, FIRST_PROCESS).context("cannot write the host's first script")?;
        let mut unshare = process::command("nsenter");
        unshare
            .arg(format!("--net=/run/netns/{}", place.namespace()))
            .args(["unshare", "--mount", "--uts", "--pid", "--fork", "sh"])
            .arg(&script)
            .arg(place.to_string())
            .arg(&folder);
        spawn(&mut unshare, &folder.join("host.log"))?;
        let ready = folder.join("id");
        wait_for(
            &format!("host {place}"),
            &folder.join("host.log"),
            PATIENCE,
            || Ok(ready.is_file()),
        )?;
        Self::running(place)
    }

    /// The host, if it runs.
    pub(crate) fn running(place: Place) -> Result<Self> {
        let folder = place.folder()?;
        let id = fs::read_to_string(folder.join("id"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .with_context(|| format!("host {place} is not up: `cargo xtask cluster up`"))?;
        // The id may be another process's by now; its namespace tells.
        let of = |path: String| fs::metadata(path).map(|file| (file.dev(), file.ino()));
        let its_own = of(format!("/proc/{id}/ns/net")).ok();
        let named = of(format!("/run/netns/{}", place.namespace())).ok();
        if its_own.is_none() || its_own != named {
            bail!("host {place} has ended: `cargo xtask cluster down`, then `up`");
        }
        Ok(Self { place, folder, id })
    }

    /// Where it is.
    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// A file of this host, seen from outside.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes a file of this host.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.file(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// A command that runs on this host, in its control group.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = process::command("nsenter");
        command
            .arg(format!("--target={}", self.id))
            .args(["--net", "--mount", "--uts", "--pid", "--cgroup", "sh", "-c"])
            .arg("echo 0 >/sys/fs/cgroup/cgroup.procs && exec \"$@\"")
            .arg("sh")
            .arg(program);
        command
    }

    /// Starts a program that goes on; what it prints goes to `<name>.log`.
    pub(crate) fn service(&self, name: &str, command: &Command) -> Result<()> {
        let mut here = self.command(command.get_program());
        here.args(command.get_args());
        spawn(&mut here, &self.log(name))
    }

    /// Waits until `ready` says so; an error shows what the service printed last.
    pub(crate) fn wait(&self, service: &str, ready: impl FnMut() -> Result<bool>) -> Result<()> {
        let name = format!("{service} on {}", self.place);
        wait_for(&name, &self.log(service), PATIENCE, ready)
    }

    fn log(&self, service: &str) -> PathBuf {
        self.file(&format!("{service}.log"))
    }
}

/// Starts a program that outlives this one. Its errors are in its log.
fn spawn(command: &mut Command, log: &Path) -> Result<()> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot open {}", log.display()))?;
    command
        .current_dir(workspace::root())
        // Ctrl-C is not for it.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .map(drop)
        .with_context(|| format!("cannot start what writes {}", log.display()))
}

/// Waits until `ready` says so; an error shows the end of the log.
pub(crate) fn wait_for(
    what: &str,
    log: &Path,
    patience: Duration,
    mut ready: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let start = Instant::now();
    let mut last = Ok(false);
    while start.elapsed() < patience {
        last = ready();
        if matches!(last, Ok(true)) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    let printed = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = printed.lines().collect();
    let shown = lines.split_at(lines.len().saturating_sub(SHOWN_LINES)).1;
    let why = last.err().map(|error| format!(" ({error:#})"));
    bail!(
        "{what} is not ready after {patience:?}{}; the end of {}:\n  {}",
        why.unwrap_or_default(),
        log.display(),
        shown.join("\n  ")
    )
}
