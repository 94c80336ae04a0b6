//! Compares Causeway with kube-proxy: the same random Services, the same questions, the same answers.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};

use anyhow::Result;
use clap::Parser;
use proxy_tests::{
    lab::{cluster, watch},
    oracle::{
        difference::Differences,
        report::Report,
        run,
        scenario::Scenario,
        worlds::{Side, Worlds},
    },
};

/// Compares Causeway with kube-proxy.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// How many seeds, one after the other
    #[arg(long, default_value_t = 10)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Leave the worlds standing after the last seed, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Where all that was found is written
    #[arg(long, value_name = "FILE")]
    report: PathBuf,
    /// Begins the names of the worlds: letters and digits
    #[arg(long, value_name = "NAME", default_value = "oracle")]
    world: String,
    /// Do the work, in a process that another one watches
    #[arg(long, hide = true)]
    watched: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if !arguments.watched {
        let worlds = Side::BOTH.map(|side| side.world(&arguments.world));
        return watch::watch(&worlds.each_ref().map(String::as_str));
    }
    watch::be_watched()?;
    let differences = Differences::checked_in()?;
    let mut out = io::stdout().lock();
    let start = Instant::now();
    let first = Scenario::draw(arguments.seed);
    let mut worlds = Worlds::start(&arguments.world, &first, &cluster::binary()?)?;
    writeln!(
        out,
        "two worlds stand, kube-proxy and Causeway run: {:.1} s",
        start.elapsed().as_secs_f64()
    )?;
    let mut report = Report::default();
    for seed in arguments.seed..arguments.seed + arguments.seeds {
        let outcome = run::seed(&mut worlds, Scenario::draw(seed), &differences)?;
        report.add(&outcome, &mut out)?;
        report.write(&arguments.report)?;
    }
    report.close(&differences, start.elapsed(), &mut out)?;
    writeln!(out, "report: {}", arguments.report.display())?;
    if arguments.keep {
        keep(&worlds, &mut out)?;
    }
    drop(worlds);
    Ok(ExitCode::from(u8::from(!report.is_good())))
}

fn keep(worlds: &Worlds, out: &mut impl io::Write) -> Result<()> {
    writeln!(out, "\nkept until Ctrl-C; look with, for example:")?;
    for side in Side::BOTH {
        let room = worlds.world(side).room("node1");
        writeln!(out, "  ip netns exec {} nft list ruleset", room.name())?;
    }
    loop {
        std::thread::park();
    }
}
