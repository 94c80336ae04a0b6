//! Namespaces of the benchmarks: their names and their end.

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::lab::namespace::{NAMED, Namespace};

/// Names of all namespaces of this harness begin so.
const PREFIX: &str = "cwbench";

/// The full name of a namespace of this run.
#[must_use]
pub fn name(role: &str) -> String {
    format!("{PREFIX}-{}-{role}", std::process::id())
}

/// A namespace with a device `in0`, another, `idle0`, that is down, and a folder. All go when this is
/// dropped.
#[derive(Debug)]
pub struct Temporary {
    /// The namespace.
    pub namespace: Namespace,
    /// The folder.
    pub directory: PathBuf,
}

impl Temporary {
    /// Makes them.
    pub fn new(role: &str) -> Result<Self> {
        let name = name(role);
        let directory = std::env::temp_dir().join(&name);
        fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        let namespace = Namespace::named(&name);
        let place = Self {
            namespace,
            directory,
        };
        let batch = format!(
            "netns add {name}\nlink add in0 netns {name} type veth peer name in1 netns {name}\n\
             link add idle0 netns {name} type veth peer name idle1 netns {name}\n"
        );
        feed(Command::new("ip").args(["-batch", "-"]), batch.as_bytes())?;
        let batch =
            "addr add 192.0.2.1/24 dev in0\nlink set lo up\nlink set in0 up\nlink set in1 up\n";
        let mut ip = Command::new("ip");
        feed(ip.args(["-n", &name, "-batch", "-"]), batch.as_bytes())?;
        Ok(place)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        remove(self.namespace.name());
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tracing::warn!(%error, "a folder was left behind");
        }
    }
}

/// Removes a namespace and the devices in it.
pub fn remove(name: &str) {
    if let Err(error) = feed(Command::new("ip").args(["netns", "del", name]), b"") {
        tracing::warn!(%error, name, "a namespace was left behind");
    }
}

/// Removes what earlier runs, whose process is gone, have left.
pub fn remove_remains() -> Result<()> {
    let Ok(entries) = fs::read_dir(NAMED) else {
        return Ok(());
    };
    for entry in entries {
        let name = entry.context("reading the namespaces' folder")?.file_name();
        let Some(name) = name.to_str() else { continue };
        let mut parts = name.split('-');
        if parts.next() != Some(PREFIX) {
            continue;
        }
        let owner = parts.next().unwrap_or_default();
        if !fs::exists(format!("/proc/{owner}")).unwrap_or(true) {
            remove(name);
        }
    }
    Ok(())
}

/// Runs a program with this input, to a good end.
pub fn feed(command: &mut Command, input: &[u8]) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let mut stdin = child.stdin.take().context("no pipe to the child")?;
    let written = stdin.write_all(input);
    drop(stdin);
    let output = child.wait_with_output().context("waiting for the child")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {complaint}");
    written.with_context(|| format!("writing to {command:?}"))
}
