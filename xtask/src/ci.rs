//! What CI runs, and what a person runs to see the same.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use crate::setup::{self, Purpose};
use crate::suite::{self, Suite};
use crate::tally::Tally;
use crate::{lint, verifier, vm};

/// Runs every check and every test, goes on after a failure, and ends with one line of totals in
/// which a check counts like a test.
pub(crate) fn run() -> ExitCode {
    let start = Instant::now();
    let mut report = Report::default();
    report.check("set-up", || setup::run(Purpose::All));
    for (name, check) in lint::CHECKS {
        report.check(name, check);
    }
    report.check("without features", lint::without_features);
    report.tests("tests", || {
        suite::count(Suite::Unit, &vm::Options::default())
    });
    report.tests("kernel tests", || {
        suite::count(Suite::Kernel, &vm::Options::default())
    });
    report.check("verifier budget", || verifier::run(false));
    report.tests("wire tests", || {
        suite::count(Suite::Wire, &vm::Options::default())
    });
    report.tests("virtual machines", || {
        suite::count(Suite::Vm, &vm::Options::default())
    });

    println!("\n{:<22} {:>7}  result", "step", "s");
    for (name, seconds, result) in &report.lines {
        println!("{name:<22} {seconds:>7.1}  {result}");
    }
    println!("{:<22} {:>7.1}", "all", start.elapsed().as_secs_f64());
    suite::close(&report.total)
}

#[derive(Default)]
struct Report {
    total: Tally,
    lines: Vec<(&'static str, f64, String)>,
}

impl Report {
    fn check(&mut self, name: &'static str, check: impl FnOnce() -> Result<()>) {
        self.tests(name, || {
            println!("\n== {name}");
            check().map(|()| Tally::passed(1))
        });
    }

    fn tests(&mut self, name: &'static str, tests: impl FnOnce() -> Result<Tally>) {
        let start = Instant::now();
        let (text, tally) = match tests() {
            Ok(tally) => (tally.to_string(), tally),
            Err(error) => {
                let why = format!("error: {name}: {error:#}");
                println!("{why}");
                ("broke off".to_owned(), Tally::failed(why))
            }
        };
        self.total += tally;
        self.lines.push((name, start.elapsed().as_secs_f64(), text));
    }
}
