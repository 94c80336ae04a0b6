//! Causeway and kube-proxy side by side: `cargo xtask oracle`. What there is to see is in the tests'
//! crate (`tests/src/oracle.rs`).

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::setup::{self, Purpose};
use crate::{cluster, process, workspace};

/// Which seeds, and what to leave.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Options {
    /// How many seeds, one after the other
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Leave both worlds standing after the last seed, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

/// Builds what is needed, and asks.
pub(crate) fn run(options: Options) -> Result<ExitCode> {
    setup::run(Purpose::ApiServer)?;
    let kubernetes = cluster::kubernetes()?;
    process::run(process::cargo_for_tests("build").args([
        "--package",
        "proxy-user",
        "--package",
        "proxy-tests",
        "--bin",
        "causeway",
        "--bin",
        "oracle",
    ]))?;
    let report = workspace::target().join("oracle/report.json");
    let mut oracle = process::cargo_for_tests("run");
    oracle
        .env("CAUSEWAY_KUBERNETES", kubernetes)
        .args([
            "--quiet",
            "--package",
            "proxy-tests",
            "--bin",
            "oracle",
            "--",
        ])
        .arg(format!("--seeds={}", options.seeds))
        .arg(format!("--seed={}", options.seed))
        .arg("--report")
        .arg(report);
    if options.keep {
        oracle.arg("--keep");
    }
    // It says itself what is wrong.
    let status = oracle.status().context("cannot start cargo")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
