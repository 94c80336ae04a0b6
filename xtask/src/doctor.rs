//! What this machine and its kernel can do, and what to do about the rest. Changes nothing.

mod kernel;
mod machine;

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

/// How a finding counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Standing {
    /// It is there.
    Present,
    /// It is not there, and Causeway does something else instead.
    Absent,
    /// It is not there, and Causeway (or its build) needs it.
    Missing,
}

impl Standing {
    /// For what cannot be done without.
    pub(crate) fn required(present: bool) -> Self {
        if present {
            Self::Present
        } else {
            Self::Missing
        }
    }

    /// For what has a substitute.
    pub(crate) fn optional(present: bool) -> Self {
        if present { Self::Present } else { Self::Absent }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Present => "yes",
            Self::Absent => "no",
            Self::Missing => "MISSING",
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    /// `toolchain`, `kernel`, `rights` or `system`.
    pub(crate) area: &'static str,
    /// What was looked for.
    pub(crate) name: String,
    /// Whether it was found.
    pub(crate) standing: Standing,
    /// Kernel release that brought it; empty for what is not the kernel's.
    pub(crate) since: &'static str,
    /// What was seen.
    pub(crate) detail: String,
    /// What to do where it is not present; empty where it is.
    pub(crate) remedy: String,
}

/// Prints the table; the exit code is 1 if something needed is missing.
pub(crate) fn run(json: bool) -> Result<ExitCode> {
    let mut findings = machine::toolchain();
    findings.extend(kernel::features());
    findings.extend(machine::rights()?);
    findings.extend(machine::system()?);
    for finding in &mut findings {
        if finding.standing == Standing::Present {
            finding.remedy.clear();
        }
    }
    if json {
        print(&serde_json::to_string_pretty(&findings)?)?;
    } else {
        print(&table(&findings))?;
    }
    let missing = findings
        .iter()
        .any(|finding| finding.standing == Standing::Missing);
    Ok(ExitCode::from(u8::from(missing)))
}

/// Prints, and is content with a reader that has seen enough (`| head`).
fn print(text: &str) -> Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn table(findings: &[Finding]) -> String {
    let width = |field: fn(&Finding) -> usize| findings.iter().map(field).max().unwrap_or(0);
    let name = width(|finding| finding.name.len());
    let detail = width(|finding| finding.detail.len());
    let mut lines = vec![format!(
        "{:<9}  {:<name$}  {:<7}  {:<5}  found",
        "area", "what", "there", "since"
    )];
    for finding in findings {
        let line = format!(
            "{:<9}  {:<name$}  {:<7}  {:<5}  {:<detail$}",
            finding.area,
            finding.name,
            finding.standing.word(),
            finding.since,
            finding.detail,
        );
        lines.push(line.trim_end().to_owned());
        if !finding.remedy.is_empty() {
            lines.push(format!("{:<9}    -> {}", "", finding.remedy));
        }
    }
    let count = |standing| {
        findings
            .iter()
            .filter(|finding| finding.standing == standing)
            .count()
    };
    lines.push(format!(
        "\n{} there, {} done without, {} missing",
        count(Standing::Present),
        count(Standing::Absent),
        count(Standing::Missing)
    ));
    lines.join("\n")
}
