//! Everything a person or CI runs in this repository: `cargo xtask <verb>`.
#![expect(
    clippy::print_stdout,
    reason = "what these commands find is for the person at the terminal"
)]

#[cfg_attr(
    not(test),
    expect(dead_code, reason = "builds say what they leave out")
)]
#[path = "../../proxy-user/build/toolchain.rs"]
mod toolchain;

mod binaries;
mod ci;
mod cluster;
mod conformance;
mod dist;
mod doctor;
mod gates;
mod image;
mod lint;
mod oracle;
mod process;
mod setup;
mod suite;
mod tally;
mod verifier;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::setup::Purpose;
use crate::suite::Suite;

/// Builds, checks, tests and shows Causeway.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what is missing: BPF toolchain, packages, bpffs (as root; says each step and why)
    Setup {
        /// Stop at what this needs
        #[arg(long = "for", value_enum, default_value_t = Purpose::All)]
        purpose: Purpose,
    },
    /// Show what this machine and its kernel can do, with the remedy for what is missing
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Format, clippy, gates and unit tests: what to run before a commit
    Check,
    /// Format, clippy for the host and for BPF, licences and sources of dependencies, gates
    Lint,
    /// Build the daemon
    Build {
        /// With optimisation
        #[arg(long)]
        release: bool,
    },
    /// Set up what is missing and run tests
    Test {
        /// Which tests
        #[arg(value_enum, default_value_t = Suite::All)]
        suite: Suite,
        #[command(flatten)]
        matrix: vm::Options,
    },
    /// Show what the kernel's verifier says of each program; fail over proxy-ebpf/budget.toml
    Verifier {
        /// Write the budget file anew from what was measured
        #[arg(long)]
        update: bool,
    },
    /// Show Causeway at work in a small world of network namespaces (`demo return-proxy`: the tunnel)
    Demo {
        /// Arguments for the demo (see `cargo xtask demo -- --help`)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure Causeway against nftables, iptables and plain forwarding
    Bench {
        /// Arguments for the benchmark (see `cargo xtask bench -- --help`)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Build what users get: static executables, an image without a shell, manifests (target/dist)
    Dist,
    /// A real Kubernetes cluster on this machine, in namespaces
    Cluster {
        #[command(subcommand)]
        verb: cluster::Verb,
    },
    /// Run upstream's specs of SIG Network on such a cluster, and write docs/conformance.json
    Conformance(conformance::Options),
    /// Ask kube-proxy and Causeway the same about random Services, and compare the answers
    Oracle(oracle::Options),
    /// What CI runs: set-up, lint, all tests, verifier budget, kernels in virtual machines
    Ci,
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            println!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Setup { purpose } => setup::show(purpose)?,
        Verb::Doctor { json } => return doctor::run(json),
        Verb::Check => lint::check()?,
        Verb::Lint => lint::lint()?,
        Verb::Build { release } => {
            setup::run(Purpose::Build)?;
            binaries::build(release)?;
        }
        Verb::Test { suite, matrix } => return suite::run(suite, &matrix),
        Verb::Verifier { update } => {
            setup::run(Purpose::Build)?;
            verifier::run(update)?;
        }
        Verb::Demo { arguments } => {
            setup::run(Purpose::World)?;
            binaries::run("lab", Some("demo"), &arguments)?;
        }
        Verb::Bench { arguments } => {
            setup::run(Purpose::World)?;
            let mut variables = Vec::new();
            if arguments.iter().any(|argument| argument == "apiserver") {
                variables.push(("CAUSEWAY_KUBERNETES", cluster::kubernetes()?));
            }
            binaries::run_with("bench", None, &arguments, &variables)?;
        }
        Verb::Dist => {
            setup::run(Purpose::Dist)?;
            dist::run()?;
        }
        Verb::Cluster { verb } => return cluster::run(verb),
        Verb::Conformance(options) => return conformance::run(&options),
        Verb::Oracle(options) => return oracle::run(options),
        Verb::Ci => return Ok(ci::run()),
    }
    Ok(ExitCode::SUCCESS)
}
