//! Other kernels, in virtual machines: every program is loaded there, and the datapath cases run.
//!
//! A guest is one of Debian's kernels, an archive with busybox, our static executables and an
//! init that runs them. It is emulated (`-accel tcg`): that works anywhere, and is quick enough.

mod guest;
mod kernel;
mod machine;
mod report;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::tally::Tally;
use crate::verifier::Budgets;
use crate::workspace;
use guest::Executables;
use kernel::Kernel;
use report::Report;

/// A guest takes half a minute, several times that on a machine with other things to do.
const GUEST_SECONDS: u64 = 300;

/// Which kernels, and how.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Kernel series for `vm`: the oldest one supported, each Debian release's, a recent one
    #[arg(long, value_delimiter = ',', default_values = kernel::SERIES)]
    kernels: Vec<String>,
    /// Look for newer kernels than those in the cache
    #[arg(long)]
    refresh: bool,
    /// Guests that run at a time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Seconds that one guest may take
    #[arg(long, default_value_t = GUEST_SECONDS)]
    guest_seconds: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            kernels: kernel::SERIES.map(str::to_owned).to_vec(),
            refresh: false,
            jobs: 2,
            guest_seconds: GUEST_SECONDS,
        }
    }
}

/// Boots each kernel and counts the programs and tests that passed there.
pub(crate) fn run(options: &Options) -> Result<Tally> {
    println!(
        "\n== tests: kernels {} in virtual machines",
        options.kernels.join(", ")
    );
    let kernels = kernel::fetch(&options.kernels, options.refresh)?;
    let executables = Executables::build()?;
    let budgets = Budgets::read()?.elsewhere();
    let reports = boot_all(&kernels, &executables, &budgets, options);

    println!();
    report::print(&reports);
    report::record(&reports, &workspace::target().join("vm/report.json"))?;
    let mut tally = Tally::default();
    for report in &reports {
        tally += report.tally();
    }
    Ok(tally)
}

/// Takes kernels one after the other, `jobs` at a time.
fn boot_all(
    kernels: &[Kernel],
    executables: &Executables,
    budgets: &Budgets,
    options: &Options,
) -> Vec<Report> {
    let next = AtomicUsize::new(0);
    let reports = Mutex::new(Vec::new());
    let time_out = Duration::from_secs(options.guest_seconds);
    thread::scope(|scope| {
        for _ in 0..options.jobs.clamp(1, kernels.len().max(1)) {
            scope.spawn(|| {
                while let Some(kernel) = kernels.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let report = boot(kernel, executables, budgets, time_out)
                        .unwrap_or_else(|error| Report::broken(kernel, format!("{error:#}")));
                    report.announce();
                    if let Ok(mut reports) = reports.lock() {
                        reports.push(report);
                    }
                }
            });
        }
    });
    let mut reports = reports.into_inner().unwrap_or_default();
    reports.sort_by_key(|report| {
        kernels
            .iter()
            .position(|kernel| kernel.series == report.series)
    });
    reports
}

fn boot(
    kernel: &Kernel,
    executables: &Executables,
    budgets: &Budgets,
    time_out: Duration,
) -> Result<Report> {
    let folder = workspace::target().join("vm").join(&kernel.series);
    let archive = guest::pack(kernel, executables, &folder)
        .with_context(|| format!("cannot pack the guest for {}", kernel.release))?;
    let outcome = machine::run(&kernel.image, &archive, time_out)
        .with_context(|| format!("cannot run the guest with {}", kernel.release))?;
    let log = folder.join("serial.log");
    std::fs::write(&log, &outcome.serial)
        .with_context(|| format!("cannot write {}", log.display()))?;
    Ok(Report::read(kernel, &outcome, executables, budgets))
}
