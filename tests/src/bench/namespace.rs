//! Namespaces of the benchmarks: their names and their end.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::lab::namespace::NAMED;

/// Names of all namespaces of this harness begin so.
const PREFIX: &str = "cwbench";

/// The full name of a namespace of this run.
#[must_use]
pub fn name(role: &str) -> String {
    format!("{PREFIX}-{}-{role}", std::process::id())
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
