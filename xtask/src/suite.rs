//! Running tests and counting them.

use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::cluster::{self, Network};
use crate::setup::{self, Purpose};
use crate::tally::Tally;
use crate::{process, vm, workspace};

/// Test target of the tests crate that runs the cases on the host and in the running kernel.
pub(crate) const DATAPATH: &str = "datapath";

/// Test target of the tests crate that runs the source against a real API server.
const APISERVER: &str = "apiserver";

/// Which tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Suite {
    /// Beside the code: no root, no BPF
    Unit,
    /// Datapath cases on the host and in the running kernel; the daemon's maps and attachments
    Kernel,
    /// Network namespaces with real servers and clients, restarts, the command line
    Wire,
    /// Programs and datapath cases in other kernels, in virtual machines
    Vm,
    /// All of these
    All,
    /// A real Kubernetes cluster comes up, works and goes; not part of `all`
    Cluster,
}

/// Sets up, runs, and ends with one line of totals.
pub(crate) fn run(suite: Suite, matrix: &vm::Options) -> Result<ExitCode> {
    setup::run(match suite {
        Suite::Unit => Purpose::Build,
        Suite::Kernel | Suite::Wire => Purpose::World,
        Suite::Vm | Suite::All => Purpose::All,
        Suite::Cluster => Purpose::Cluster,
    })?;
    let tally = count(suite, matrix)?;
    Ok(close(&tally))
}

/// Prints what failed once more and the closing line; failure if anything failed, or nothing ran.
pub(crate) fn close(tally: &Tally) -> ExitCode {
    if !tally.failures.is_empty() {
        println!("\n== what failed\n{}", tally.failures.join("\n"));
    }
    println!("\n{tally}");
    ExitCode::from(u8::from(tally.failed > 0 || tally.passed == 0))
}

/// Runs the tests of a suite; a part that breaks off counts as failed and does not stop the rest.
pub(crate) fn count(suite: Suite, matrix: &vm::Options) -> Result<Tally> {
    let mut tally = Tally::default();
    let is = |part| suite == part || suite == Suite::All;
    if is(Suite::Unit) {
        tally += cargo_test("unit", |cargo| {
            cargo.args(["--lib", "--bins"]);
        })?;
        tally += cargo_test("examples in the documentation", |cargo| {
            cargo.args([
                "--package",
                "proxy-common",
                "--package",
                "proxy-user",
                "--doc",
            ]);
        })?;
    }
    let targets = test_targets()?;
    let (datapath, others): (Vec<_>, Vec<_>) =
        targets.into_iter().partition(|name| name == DATAPATH);
    let wire: Vec<_> = others
        .into_iter()
        .filter(|name| name != APISERVER)
        .collect();
    if is(Suite::Kernel) {
        tally += cargo_test("the daemon against the kernel", |cargo| {
            cargo.args(["--package", "proxy-user", "--test", "*"]);
        })?;
        tally += cargo_test("the CNI plugin against the kernel", |cargo| {
            cargo.args(["--package", "proxy-cni", "--test", "*"]);
        })?;
    }
    if is(Suite::Kernel) && !datapath.is_empty() {
        tally += cargo_test("the datapath against the kernel", |cargo| {
            cargo.args(["--package", "proxy-tests", "--test", DATAPATH]);
        })?;
    }
    if is(Suite::Wire) && !wire.is_empty() {
        // The daemon and the plugin that the tests start.
        process::run(process::cargo_for_tests("build").args([
            "--package",
            "proxy-user",
            "--package",
            "proxy-cni",
            "--bin",
            "causeway",
            "--bin",
            "causeway-cni",
        ]))?;
        tally += cargo_test("wire", |cargo| {
            cargo.args(["--package", "proxy-tests"]);
            for target in &wire {
                cargo.args(["--test", target]);
            }
        })?;
    }
    if is(Suite::Vm) {
        tally += vm::run(matrix)?;
    }
    if suite == Suite::Cluster {
        let kubernetes = cluster::kubernetes()?;
        tally += cargo_test("the source against an API server", |cargo| {
            cargo.env("CAUSEWAY_KUBERNETES", &kubernetes).args([
                "--package",
                "proxy-tests",
                "--test",
                APISERVER,
            ]);
        })?;
        for network in [Network::Reference, Network::Causeway] {
            tally += cluster::trial(network)?;
        }
    }
    Ok(tally)
}

/// Names of the test targets of the tests crate.
fn test_targets() -> Result<Vec<String>> {
    let folder = workspace::root().join("tests/tests");
    let Ok(entries) = fs::read_dir(&folder) else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.context("cannot list the test targets")?.path();
        let is_target = path.extension().is_some_and(|extension| extension == "rs")
            || path.join("main.rs").is_file();
        if is_target && let Some(name) = path.file_stem() {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn cargo_test(name: &str, select: impl FnOnce(&mut Command)) -> Result<Tally> {
    println!("\n== tests: {name}");
    let mut cargo = process::cargo_for_tests("test");
    cargo.arg("--no-fail-fast");
    select(&mut cargo);
    let mut tally = Tally::default();
    let count = |line: &str| {
        tally.read(line);
    };
    let well = process::follow(&mut cargo, count, process::Shown::Everything)?;
    // It did not build, or a test ended the whole process.
    if !well && tally.failed == 0 {
        tally += Tally::failed(format!("tests: {name}: see above"));
    }
    Ok(tally)
}
