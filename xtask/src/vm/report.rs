//! What a guest said, and what that means.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::guest::{Executables, MARKER};
use super::kernel::Kernel;
use super::machine::Outcome;
use crate::tally::Tally;
use crate::verifier::{Budgets, Measurement};

/// Lines of the serial log that are shown when a guest failed.
const SHOWN_LINES: usize = 60;

/// How long one program may take to load. Emulated, all kernels need one or two seconds, on a busy
/// machine up to eleven; a verifier that has become quadratic in something needs minutes.
const LOAD_LIMIT: Duration = Duration::from_mins(1);

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
    /// Which programs cost more there than they may; each is a failure.
    over_budget: Vec<String>,
    /// Why this guest failed, if it did.
    fault: Option<String>,
    /// What failed, for the end of the whole run.
    #[serde(skip)]
    failures: Vec<String>,
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
            over_budget: Vec::new(),
            failures: vec![format!("kernel {}: {fault}", kernel.release)],
            fault: Some(fault),
            tail: String::new(),
        }
    }

    /// Reads the serial line: every executable must have ended well, and the init have come to its
    /// end under the kernel that was meant.
    pub(super) fn read(
        kernel: &Kernel,
        outcome: &Outcome,
        executables: &Executables,
        budgets: &Budgets,
    ) -> Self {
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
        let over_budget = over_budget(&programs, budgets);
        // A fault without a failed test is a failure all the same, and so is a test left out.
        let failed = (tally.failed + tally.ignored).max(u64::from(fault.is_some()))
            + over_budget.len() as u64;
        let tail = tail(&outcome.serial);
        let mut failures = tally.failures;
        let others = over_budget
            .iter()
            .map(|excess| format!("over budget: {excess}"));
        for why in fault.iter().cloned().chain(others) {
            failures.push(format!("kernel {}: {why}", kernel.release));
        }
        Self {
            series: kernel.series.clone(),
            release: kernel.release.clone(),
            seconds: outcome.took.as_secs_f64(),
            programs,
            passed,
            failed,
            over_budget,
            failures,
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
        for excess in &self.over_budget {
            println!("kernel {}: over budget: {excess}", self.release);
        }
    }

    pub(super) fn tally(&self) -> Tally {
        let mut tally = Tally::passed(self.passed);
        tally.failed = self.failed;
        tally.failures.clone_from(&self.failures);
        tally
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

/// The last lines before the first executable ended badly, or before the guest itself ended: what
/// comes after an executable's failure often comes of it.
fn tail(serial: &str) -> String {
    let ended_badly = |line: &str| {
        line.split_once(MARKER)
            .and_then(|(_, said)| said.split_once(" ended with "))
            .is_some_and(|(_, code)| code.trim() != "0")
    };
    let lines: Vec<&str> = serial.lines().collect();
    let end = lines.iter().position(|line| ended_badly(line));
    let end = end.map_or(lines.len(), |position| position + 1);
    lines
        .get(end.saturating_sub(SHOWN_LINES)..end)
        .unwrap_or_default()
        .join("\n")
}

/// What costs more than its budget, or takes too long to load.
fn over_budget(programs: &[Measurement], budgets: &Budgets) -> Vec<String> {
    let mut excess = budgets.faults(programs);
    let limit = LOAD_LIMIT.as_secs();
    for program in programs {
        let load = Duration::from_micros(program.load_us);
        if load > LOAD_LIMIT {
            let seconds = load.as_secs_f64();
            excess.push(format!(
                "{}: loads in {seconds:.1} s, {limit} at most",
                program.name
            ));
        }
    }
    excess
}

/// The titles of the table that [`print`] prints.
fn head() -> String {
    format!(
        "{:<26} {:>6} {:>7} {:>7}  {:<12} {:>12} {:>9} {:>9}",
        "kernel", "s", "passed", "failed", "program", "instructions", "verified", "verify ms"
    )
}

/// One line per kernel and program.
pub(super) fn print(reports: &[Report]) {
    println!("{}", head());
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
    use std::fs;
    use std::path::PathBuf;

    use super::{Executables, fault, head, tail};
    use crate::{tally::Tally, workspace};

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

    #[test]
    fn the_first_failure_is_shown() {
        let serial = "boot\ncauseway-guest: kernel 6.1.0\nrefused\ncauseway-guest: programs ended \
                      with 1\nlater\ncauseway-guest: datapath ended with 101\n";
        assert!(tail(serial).ends_with("refused\ncauseway-guest: programs ended with 1"));
        let serial = "causeway-guest: programs ended with 0\npanic";
        assert!(tail(serial).ends_with("panic"));
    }

    #[test]
    fn the_readme_shows_this_table_and_the_closing_line() {
        let readme = fs::read_to_string(workspace::root().join("README.md")).unwrap();
        let block = readme
            .split_once("<!-- test output -->\n```console\n")
            .and_then(|(_, rest)| rest.split_once("\n```"));
        let block = block.expect("a block").0;
        assert_eq!(block.lines().next(), Some(&*head()));
        let kernels = block
            .lines()
            .filter(|line| line.contains("-amd64 "))
            .count();
        assert_eq!(kernels, 4, "{block}");
        let mut tally = Tally::default();
        let close = block.lines().last().unwrap();
        let shape = close.replace('N', "7");
        assert!(tally.read(&format!("test result: ok. {}", shape.replace(',', ";"))));
        assert_eq!(tally.to_string(), shape);
    }
}
