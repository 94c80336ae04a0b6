//! Measures Causeway: `cargo xtask bench kernel|wire|sync|tunnel|apiserver` runs this program.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use proxy_tests::bench::{
    Options, kernel, namespace,
    report::{Machine, Report},
    sync, tunnel, wire,
};

/// Measures what a packet, a connection and a change of configuration cost.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to measure; all if none is named.
    suites: Vec<Suite>,
    /// A first answer: fewer rounds and fewer services.
    #[arg(long)]
    quick: bool,
    /// Write rows, checks and the machine to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Run everything on this CPU; the last one if none is named.
    #[arg(long)]
    cpu: Option<usize>,
    /// Measure the programs of this object instead of the built ones.
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
    /// Suite kernel: compare with the programs of this object instead of with the empty program.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Suites kernel, wire and tunnel: only this case. May be given more than once.
    #[arg(long = "case", value_name = "CASE")]
    cases: Vec<String>,
    /// Suite kernel: only with this many flows (1, 1000, 1000000). May be given more than once.
    #[arg(long, value_name = "NUMBER")]
    flows: Vec<u32>,
    /// End with an error, too, if a bound is missed.
    #[arg(long)]
    strict: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Nanoseconds per packet of each program, in `BPF_PROG_TEST_RUN`.
    Kernel,
    /// Real frames through namespaces, against kube-proxy's rules.
    Wire,
    /// From manifests to the kernel's maps, against `nft`.
    Sync,
    /// The return proxy, against `ssh -R`.
    Tunnel,
    /// From an API server to the kernel's maps, against kube-proxy. Only where it is named: it builds
    /// Kubernetes, with Go.
    Apiserver,
}

impl Suite {
    const ALL: [Self; 4] = [Self::Kernel, Self::Wire, Self::Sync, Self::Tunnel];
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "this is a command")]
            {
                eprintln!("error: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "benchmarks load kernel programs: run as root"
    );
    let cpus = std::thread::available_parallelism()
        .context("counting CPUs")?
        .get();
    let cpu = arguments.cpu.unwrap_or(cpus - 1);
    let mut options = Options::new(cpu, arguments.quick);
    options.cases = arguments.cases;
    options.flows = arguments.flows;
    if let Some(file) = &arguments.object {
        options.measure(file)?;
    }
    if let Some(file) = &arguments.against {
        options.compare(file)?;
    }
    namespace::remove_remains()?;
    let suites = if arguments.suites.is_empty() {
        Suite::ALL.to_vec()
    } else {
        arguments.suites
    };
    let machine = Machine::here(cpu, arguments.quick)?;
    let mut report = Report {
        machine,
        rows: Vec::new(),
        checks: Vec::new(),
    };
    for suite in suites {
        let (rows, checks) = match suite {
            Suite::Kernel => kernel::run(&options).context("suite kernel")?,
            Suite::Wire => wire::run(&options).context("suite wire")?,
            Suite::Sync => sync::run(&options).context("suite sync")?,
            Suite::Tunnel => tunnel::run(&options).context("suite tunnel")?,
            Suite::Apiserver => sync::cluster::run(&options).context("suite apiserver")?,
        };
        report.rows.extend(rows);
        report.checks.extend(checks);
    }
    if let Some(file) = &arguments.json {
        let text = serde_json::to_string_pretty(&report).context("writing JSON")?;
        fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))?;
    }
    #[expect(clippy::print_stdout, reason = "this is a command")]
    {
        print!("{}", report.table());
    }
    if let Some(pair) = report.broken().next() {
        bail!(
            "{} came to {:.3}, outside of 0.95-1.05: the machine is too busy to be measured on",
            pair.claim,
            pair.measured
        );
    }
    let missed = report.checks.iter().filter(|check| !check.holds()).count();
    ensure!(
        !arguments.strict || missed == 0,
        "{missed} bounds are missed"
    );
    Ok(())
}
