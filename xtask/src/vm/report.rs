//! What a guest said, and what that means.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::guest::{Executables, MARKER};
use super::kernel::Kernel;
use super::machine::Outcome;
use crate::tally::Tally;
use crate::verifier::Measurement;

/// Lines of the serial log that are shown when a guest failed.
const SHOWN_LINES: usize = 60;

/// One guest.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// As asked for: `6.12`.
    pub(super) series: String,
    release: String,
    seconds: f64,
    /// What the verifier said of each program.
    programs: Vec<Measurement>,
    passed: u64,
    failed: u64,
    /// Why this guest failed, if it did.
    fault: Option<String>,
    #[serde(skip)]
    tail: String,
}

impl Report {
    /// A guest that could not be started.
    pub(super) fn broken(kernel: &Kernel, fault: String) -> Self {
        Self {
            series: kernel.series.clone(),
            release: kernel.release.clone(),
            seconds: 0.0,
            programs: Vec::new(),
            passed: 0,
            failed: 1,
            fault: Some(fault),
            tail: String::new(),
        }
    }

    /// Reads the serial line: every executable must have ended well, and the init have come to its
    /// end under the kernel that was meant.
    pub(super) fn read(kernel: &Kernel, outcome: &Outcome, executables: &Executables) -> Self {
        let mut programs = Vec::new();
        let mut tally = Tally::default();
        let mut said = Vec::new();
        for line in outcome.serial.lines().map(str::trim_end) {
            tally.read(line);
            programs.extend(Measurement::read(line));
            if let Some(at) = line.find(MARKER) {
                said.push(line.split_at(at).1.trim_start_matches(MARKER).trim());
            }
        }
        let fault = fault(&kernel.release, &said, executables, outcome.cut_off);
        let passed = tally.passed + programs.len() as u64;
        // A fault without a failed test is a failure all the same.
        let failed = tally.failed.max(u64::from(fault.is_some()));
        let tail: Vec<&str> = outcome.serial.lines().collect();
        let tail = tail
            .get(tail.len().saturating_sub(SHOWN_LINES)..)
            .unwrap_or_default()
            .join("\n");
        Self {
            series: kernel.series.clone(),
            release: kernel.release.clone(),
            seconds: outcome.took.as_secs_f64(),
            programs,
            passed,
            failed,
            fault,
            tail,
        }
    }

    /// Says how it went as soon as it has gone.
    pub(super) fn announce(&self) {
        match &self.fault {
            None => println!(
                "kernel {}: {} passed, {} failed in {:.1} s",
                self.release, self.passed, self.failed, self.seconds
            ),
            Some(fault) => println!(
                "kernel {}: {fault}; the end of what it said:\n{}",
                self.release, self.tail
            ),
        }
    }

    pub(super) fn tally(&self) -> Tally {
        Tally {
            passed: self.passed,
            failed: self.failed,
            ignored: 0,
        }
    }
}

/// The first thing that is wrong with what a guest said after [`MARKER`].
fn fault(release: &str, said: &[&str], executables: &Executables, cut_off: bool) -> Option<String> {
    if cut_off {
        return Some("did not end in time".to_owned());
    }
    if !said.contains(&format!("kernel {release}").as_str()) {
        return Some(format!("did not come up as {release}"));
    }
    for name in executables.names() {
        let beginning = format!("{name} ended with ");
        let code = said.iter().find_map(|line| line.strip_prefix(&beginning));
        match code {
            Some("0") => {}
            Some(code) => return Some(format!("`{name}` ended with {code}")),
            None => return Some(format!("`{name}` did not end")),
        }
    }
    if !said.contains(&"end") {
        return Some("its init did not come to its end".to_owned());
    }
    None
}

/// One line per kernel and program.
pub(super) fn print(reports: &[Report]) {
    println!(
        "{:<26} {:>6} {:>7} {:>7}  {:<12} {:>12} {:>9} {:>9}",
        "kernel", "s", "passed", "failed", "program", "instructions", "verified", "verify ms"
    );
    for report in reports {
        let head = format!(
            "{:<26} {:>6.1} {:>7} {:>7}",
            report.release, report.seconds, report.passed, report.failed
        );
        if report.programs.is_empty() {
            println!("{head}  -");
        }
        for (number, program) in report.programs.iter().enumerate() {
            let head = if number == 0 { head.as_str() } else { "" };
            println!(
                "{head:<49}  {:<12} {:>12} {:>9} {:>9.1}",
                program.name,
                program.instructions,
                program.verified,
                program.verification_ms()
            );
        }
    }
}

/// Writes the reports as JSON.
pub(super) fn record(reports: &[Report], file: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(reports).context("cannot write the reports as JSON")?;
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{Executables, fault};

    fn executables() -> Executables {
        Executables {
            programs: PathBuf::from("programs"),
            datapath: Some(PathBuf::from("datapath")),
        }
    }

    #[test]
    fn only_a_guest_that_says_everything_has_passed() {
        let all = [
            "kernel 6.1.0",
            "programs ended with 0",
            "datapath ended with 0",
            "end",
        ];
        let judge = |said: &[&str]| fault("6.1.0", said, &executables(), false);
        assert_eq!(judge(&all), None);
        for (number, line) in all.iter().enumerate() {
            let without: Vec<&str> = all.iter().filter(|said| *said != line).copied().collect();
            assert!(
                judge(&without).is_some(),
                "nothing is wrong without line {number}"
            );
        }
        let failed = [
            "kernel 6.1.0",
            "programs ended with 0",
            "datapath ended with 101",
            "end",
        ];
        assert_eq!(judge(&failed).as_deref(), Some("`datapath` ended with 101"));
        assert!(fault("6.1.0", &all, &executables(), true).is_some());
    }
}
