//! What the kernel's verifier says of each program, held against a budget.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{process, workspace};

/// How far above what was measured `--update` sets a budget, in percent: two compilers are
/// supported, and they differ a little.
const HEADROOM_PERCENT: u64 = 10;

/// How much of the budget of verified instructions other kernels may use, in percent. Verifiers leave
/// out different ways as proven: 5.10 and 6.1 were seen to look at 37 % more than 6.18.
const ELSEWHERE_PERCENT: u64 = 150;

/// What the verifier says of one program; the executable `programs` prints one such record a line.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Measurement {
    /// Name in the object.
    pub(crate) name: String,
    /// `xdp`, `tc` or `socket`.
    pub(crate) kind: String,
    /// Instructions of the program.
    pub(crate) instructions: u64,
    /// Instructions that the verifier looked at, over all paths; the kernel's limit is a million.
    pub(crate) verified: u64,
    /// Bytes of stack along the deepest chain of calls; the kernel's limit is 512.
    pub(crate) stack_bytes: u64,
    /// Time that the verifier took.
    pub(crate) verification_us: u64,
    /// Time that loading took in all, with compilation to machine code.
    pub(crate) load_us: u64,
}

impl Measurement {
    /// Reads a line such as `causeway-program: {...}`; none if the line is another.
    pub(crate) fn read(line: &str) -> Option<Self> {
        let (_, record) = line.split_once("causeway-program: ")?;
        serde_json::from_str(record.trim()).ok()
    }

    /// The verifier's time in milliseconds, for tables.
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    pub(crate) fn verification_ms(&self) -> f64 {
        self.verification_us as f64 / 1000.0
    }
}

/// What a program may cost at most. Times are shown and not limited: they are the machine's.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    instructions: u64,
    verified: u64,
    stack_bytes: u64,
}

impl Budget {
    fn of(program: &Measurement) -> Self {
        let with_headroom = |value: u64| (value * (100 + HEADROOM_PERCENT)).div_ceil(100);
        Self {
            instructions: with_headroom(program.instructions),
            verified: with_headroom(program.verified),
            // Frames are counted in steps of 32 bytes.
            stack_bytes: program.stack_bytes.next_multiple_of(32),
        }
    }

    /// The same for another kernel than the one that it was measured in.
    const fn elsewhere(mut self) -> Self {
        self.verified = self.verified * ELSEWHERE_PERCENT / 100;
        self
    }

    /// What of a program is over this budget, in words.
    fn excess(self, program: &Measurement) -> Vec<String> {
        [
            ("instructions", program.instructions, self.instructions),
            ("verified instructions", program.verified, self.verified),
            ("bytes of stack", program.stack_bytes, self.stack_bytes),
        ]
        .into_iter()
        .filter(|(_, value, limit)| value > limit)
        .map(|(what, value, limit)| format!("{}: {value} {what}, {limit} at most", program.name))
        .collect()
    }
}

/// What each program may cost, by name.
#[derive(Debug)]
pub(crate) struct Budgets(BTreeMap<String, Budget>);

impl Budgets {
    fn file() -> PathBuf {
        workspace::root().join("proxy-ebpf/budget.toml")
    }

    /// Reads the budget file.
    pub(crate) fn read() -> Result<Self> {
        let file = Self::file();
        let text = fs::read_to_string(&file).with_context(|| {
            format!(
                "cannot read {}: `cargo xtask verifier --update` makes it",
                file.display()
            )
        })?;
        Self::parse(&text).with_context(|| format!("{} is not as it should be", file.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        Ok(Self(toml::from_str(text)?))
    }

    /// For other kernels than the one that the budgets were measured in.
    pub(crate) fn elsewhere(self) -> Self {
        let budgets = self.0.into_iter();
        Self(
            budgets
                .map(|(name, budget)| (name, budget.elsewhere()))
                .collect(),
        )
    }

    /// What is over budget, and which programs lack a budget or a measurement.
    pub(crate) fn faults(&self, programs: &[Measurement]) -> Vec<String> {
        let mut faults: Vec<String> = Vec::new();
        for program in programs {
            match self.0.get(&program.name) {
                Some(budget) => faults.extend(budget.excess(program)),
                None => faults.push(format!("{}: has no budget", program.name)),
            }
        }
        for name in self.0.keys() {
            if !programs.iter().any(|program| program.name == *name) {
                faults.push(format!("{name}: has a budget and was not loaded"));
            }
        }
        faults
    }
}

/// Loads every program into the running kernel, prints the table, and compares or writes budgets.
pub(crate) fn run(update: bool) -> Result<()> {
    let programs = measure()?;
    if update {
        write(&Budgets::file(), &programs)?;
    }
    let budgets = Budgets::read()?;
    print(&programs, &budgets.0);
    let faults = budgets.faults(&programs);
    if faults.is_empty() {
        return Ok(());
    }
    bail!(
        "over budget ({}): {}\nif that is meant: `cargo xtask verifier --update`, and say why in \
         the commit",
        Budgets::file().display(),
        faults.join("; ")
    )
}

fn measure() -> Result<Vec<Measurement>> {
    let mut programs = Vec::new();
    let well = process::follow(
        process::cargo_for_tests("run")
            .args(["--quiet", "--package", "proxy-tests"])
            .args(["--bin", "programs"]),
        |line| programs.extend(Measurement::read(line)),
        process::Shown::Nothing,
    )?;
    if !well || programs.is_empty() {
        bail!("the programs did not load into the running kernel (see above)");
    }
    Ok(programs)
}

fn write(file: &PathBuf, programs: &[Measurement]) -> Result<()> {
    let budgets: BTreeMap<&str, Budget> = programs
        .iter()
        .map(|program| (program.name.as_str(), Budget::of(program)))
        .collect();
    let text = format!(
        "# What each program may cost at most; `cargo xtask verifier` checks it, `--update` writes \
         it\n# with {HEADROOM_PERCENT} % of headroom, for the two compilers that are supported.\n\n{}",
        toml::to_string(&budgets).context("cannot write budgets as TOML")?
    );
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn print(programs: &[Measurement], budgets: &BTreeMap<String, Budget>) {
    println!(
        "{:<12} {:<4} {:>18} {:>20} {:>12} {:>10} {:>8}",
        "program", "hook", "instructions", "verified", "stack B", "verify ms", "load ms"
    );
    for program in programs {
        let against = |value: u64, limit: fn(&Budget) -> u64| {
            budgets.get(&program.name).map_or_else(
                || value.to_string(),
                |budget| format!("{value} / {}", limit(budget)),
            )
        };
        println!(
            "{:<12} {:<4} {:>18} {:>20} {:>12} {:>10.1} {:>8.1}",
            program.name,
            program.kind,
            against(program.instructions, |budget| budget.instructions),
            against(program.verified, |budget| budget.verified),
            against(program.stack_bytes, |budget| budget.stack_bytes),
            program.verification_ms(),
            std::time::Duration::from_micros(program.load_us).as_secs_f64() * 1000.0,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::{Budget, Budgets, Measurement};

    fn program() -> Measurement {
        Measurement::read(
            "causeway-program: {\"name\":\"tc_ingress\",\"kind\":\"tc\",\"instructions\":1000,\
             \"verified\":5000,\"stack_bytes\":200,\"verification_us\":3100,\"load_us\":4000}",
        )
        .unwrap()
    }

    #[test]
    fn a_budget_holds_what_was_measured_and_little_more() {
        let mut program = program();
        let budget = Budget::of(&program);
        assert!(budget.excess(&program).is_empty());
        program.verified = 5500;
        assert!(budget.excess(&program).is_empty());
        program.verified = 5501;
        program.stack_bytes = 225;
        assert_eq!(
            budget.excess(&program),
            [
                "tc_ingress: 5501 verified instructions, 5500 at most",
                "tc_ingress: 225 bytes of stack, 224 at most"
            ]
        );
    }

    #[test]
    fn other_kernels_may_verify_more_and_no_more_than_that() {
        let mut program = program();
        let budget = Budget::of(&program).elsewhere();
        program.verified = 8250;
        assert!(budget.excess(&program).is_empty());
        program.verified = 8251;
        program.instructions = 1101;
        assert_eq!(budget.excess(&program).len(), 2);
    }

    #[test]
    fn programs_and_budgets_belong_together() {
        let budgets = |name: &str| {
            let text = "instructions = 1000\nverified = 5000\nstack_bytes = 224\n";
            Budgets::parse(&format!("[{name}]\n{text}")).unwrap()
        };
        let programs = [program()];
        assert!(budgets("tc_ingress").faults(&programs).is_empty());
        assert_eq!(
            budgets("tc_egress").faults(&programs),
            [
                "tc_ingress: has no budget",
                "tc_egress: has a budget and was not loaded"
            ]
        );
    }

    #[test]
    fn other_lines_are_no_programs() {
        assert!(Measurement::read("test result: ok. 1 passed").is_none());
    }
}
