//! Programs that a world has running.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::namespace::Namespace;

/// A running program, ended when this is dropped. What it prints goes to a file.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    /// Absent once the process is let go or ended.
    child: Option<Child>,
}

impl Process {
    /// Starts `command` in `namespace`; its output is appended to `<directory>/<name>.log`.
    pub fn start(
        namespace: &Namespace,
        mut command: Command,
        name: &str,
        directory: &Path,
    ) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("opening {}", log.display()))?;
        command
            // Ctrl-C is for this program, which then ends everything in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = namespace
            .enter(|| command.spawn())?
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        Ok(Self {
            name: name.to_owned(),
            log,
            child: Some(child),
        })
    }

    /// What it is called in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its id, while it is ours.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// What it has printed.
    #[must_use]
    pub fn printed(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `ready` says so. An error if the process ends before, or after `limit`.
    pub fn wait_until(&mut self, limit: Duration, ready: impl Fn() -> bool) -> Result<()> {
        let start = Instant::now();
        while !ready() {
            if let Some(status) = self.ended()? {
                bail!(
                    "{} ended ({status}); it printed:\n{}",
                    self.name,
                    self.printed()
                );
            }
            if start.elapsed() > limit {
                bail!(
                    "{} was not ready after {limit:?}; it printed:\n{}",
                    self.name,
                    self.printed()
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?),
            None => bail!("{} is no longer ours", self.name),
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.id().context("no such process")?;
        kill(Pid::from_raw(id.try_into()?), signal)
            .with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// Sends it a signal and waits for its end, at most `limit`.
    pub fn end(&mut self, signal: Signal, limit: Duration) -> Result<ExitStatus> {
        self.signal(signal)?;
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                self.child = None;
                return Ok(status);
            }
            if start.elapsed() > limit {
                bail!("{} did not end within {limit:?} of {signal}", self.name);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Lets it run on after this program's end.
    pub fn release(mut self) {
        self.child = None;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only if it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
