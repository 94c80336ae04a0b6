//! `causeway status`.

use std::{
    fmt::Write as _,
    io::Write,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::Context;

use super::{Exit, Failure, output::Output, output::table, show};
use crate::{
    api::{ClientError, Status},
    dataplane::attach::AttachedSockets,
    model::Severity,
};

pub(super) fn status<W: Write>(socket: &Path, output: &mut Output<W>) -> anyhow::Result<()> {
    let value = show::get(socket, "/v1/status").map_err(|error| match error {
        ClientError::NoDaemon { .. } => {
            let message = format!(
                "{error}; services that are in the kernel go on (`causeway service list` shows \
                 them)"
            );
            anyhow::Error::from(Failure::new(Exit::NoDaemon, message))
        }
        error => error.into(),
    })?;
    let status: Status =
        serde_json::from_value(value).context("the daemon's answer is not of this version")?;
    output.show(&status, |status| describe(status, SystemTime::now()))
}

/// A time ago, to the second.
fn ago(now: SystemTime, seconds: u64) -> String {
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let age = now.duration_since(then).unwrap_or(Duration::ZERO).as_secs();
    format!(
        "{} ago",
        humantime::format_duration(Duration::from_secs(age))
    )
}

fn describe(status: &Status, now: SystemTime) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<11} {value}");
    };
    line(
        "causeway",
        format!(
            "{}, instance {}, node {}",
            status.version, status.instance, status.node
        ),
    );
    line("started", ago(now, status.started));
    let sync = match &status.sync {
        None => "nothing has been applied yet".to_owned(),
        Some(sync) => format!(
            "{}, round {} {}, {} operations in {}.{:03} ms",
            if status.in_sync {
                "in sync"
            } else {
                "NOT in sync"
            },
            sync.round,
            ago(now, sync.at),
            sync.done,
            sync.took_us / 1_000,
            sync.took_us % 1_000,
        ),
    };
    line("state", sync);
    let counts = status.counts;
    let (name, from) = match &status.apiserver {
        None => ("manifests", status.manifests.as_str()),
        Some(apiserver) => ("apiserver", apiserver.server.as_str()),
    };
    line(
        name,
        format!(
            "{}: objects {}{}, files {}, errors {}, warnings {}",
            from,
            counts.objects,
            match counts.stale {
                0 => String::new(),
                stale => format!(" ({stale} as they last were)"),
            },
            counts.files,
            counts.errors,
            counts.warnings,
        ),
    );
    if let Some(error) = &status.config_error {
        line("config", format!("NOT taken over: {error}"));
    }
    let flows = &status.flows;
    line(
        "connections",
        format!(
            "{} ({} of {} IPv4 entries, {} of {} IPv6 entries)",
            flows.connections, flows.entries_v4, flows.capacity, flows.entries_v6, flows.capacity,
        ),
    );
    if let Some(sockets) = &status.sockets {
        line("sockets", led(sockets));
    }
    if !status.devices.is_empty() {
        let rows = status.devices.iter().map(|device| {
            let problems = device.problems.join("; ");
            vec![
                device.name.clone(),
                device.xdp.clone(),
                device.tc.clone(),
                problems,
            ]
        });
        text.push('\n');
        text += &table(&["DEVICE", "XDP", "TC", "PROBLEMS"], rows);
    }
    let pending = status
        .pending
        .iter()
        .map(|p| format!("{}: {}", p.operation, p.error));
    section(&mut text, "still to be done:", pending);
    let findings = status
        .findings
        .iter()
        .map(|f| format!("{} (`{}`)", f.problem, f.remedy));
    section(&mut text, "settings of this node:", findings);
    let told = status
        .notices
        .iter()
        .filter(|notice| notice.severity != Severity::Info);
    section(
        &mut text,
        &format!("{name}:"),
        told.map(ToString::to_string),
    );
    text
}

/// Whose sockets are led.
fn led(sockets: &AttachedSockets) -> String {
    let AttachedSockets {
        cgroup,
        protocols,
        pods,
        programs,
        problems,
    } = sockets;
    let whose = if *pods { "node and pods" } else { "node" };
    let mut text = format!(
        "{} of {whose} in {}, {programs} programs",
        protocols.join(" and "),
        cgroup.display()
    );
    for problem in problems {
        let _ = write!(text, "; {problem}");
    }
    text
}

fn section(text: &mut String, title: &str, lines: impl Iterator<Item = String>) {
    for (i, line) in lines.enumerate() {
        if i == 0 {
            let _ = write!(text, "\n{title}\n");
        }
        let _ = writeln!(text, "  {line}");
    }
}
