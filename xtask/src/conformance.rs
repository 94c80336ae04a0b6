//! Upstream's specs of SIG Network with Causeway and with the reference network, side by side:
//! `docs/conformance.json`, and a page made from it.

mod page;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::cluster::{self, Choice, End, Network, SpecReport};
use crate::suite;
use crate::tally::Tally;
use crate::workspace;

/// What is not asked, and why.
const LEFT_OUT: &str = include_str!("../../tests/cluster/left-out.toml");

/// Which specs, on what.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// What joins pods, and answers for services
    #[arg(long, value_enum, default_value_t = Network::Causeway)]
    network: Network,
    /// Regular expression for names of specs; without it, those marked `[Conformance]`
    #[arg(long)]
    focus: Option<String>,
    /// Of those, only the ones marked `[Conformance]`
    #[arg(long)]
    conformance_only: bool,
    /// Specs that run at once
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    procs: u8,
    /// Leave the cluster up
    #[arg(long)]
    keep: bool,
}

/// How a spec ended on a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Ended {
    Passed,
    Failed,
    LeftOut,
}

/// A spec and what became of it; `null` where it was not tried yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    spec: String,
    reference: Option<Ended>,
    causeway: Option<Ended>,
    /// Why it failed or is left out.
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Exceptions {
    #[serde(default)]
    left_out: Vec<Exception>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    reason: String,
    specs: Vec<String>,
}

/// Runs them, and writes down how they ended.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.network == Network::None {
        bail!("without a network no spec can pass: `--network reference` or `causeway`");
    }
    let exceptions = exceptions()?;
    let choice = Choice {
        focus: options
            .focus
            .clone()
            .unwrap_or_else(|| r"\[sig-network\]".to_owned()),
        conformance_only: options.conformance_only || options.focus.is_none(),
        left_out: exceptions.keys().cloned().collect(),
        procs: options.procs,
        keep: options.keep,
    };
    let start = Instant::now();
    let report = cluster::specs(options.network, &choice)?;
    let names: BTreeSet<&String> = report.names.iter().collect();
    if let Some(unknown) = exceptions.keys().find(|name| !names.contains(name)) {
        bail!("tests/cluster/left-out.toml names `{unknown}`, and the suite has no such spec");
    }
    let mut rows = read()?;
    merge(&mut rows, options.network, &report, &exceptions);
    write(&rows)?;
    let tally = show(&report);
    println!("\n{:.0} s", start.elapsed().as_secs_f64());
    Ok(suite::close(&tally))
}

/// Names of specs that are left out, and why.
fn exceptions() -> Result<BTreeMap<String, String>> {
    let exceptions: Exceptions =
        toml::from_str(LEFT_OUT).context("cannot read tests/cluster/left-out.toml")?;
    Ok(exceptions
        .left_out
        .into_iter()
        .flat_map(|exception| {
            let reason = exception.reason;
            exception
                .specs
                .into_iter()
                .map(move |spec| (spec, reason.clone()))
        })
        .collect())
}

fn show(report: &SpecReport) -> Tally {
    let mut tally = Tally::default();
    for (name, end) in &report.ended {
        match end {
            End::Passed => tally.passed += 1,
            End::Skipped(why) => {
                tally.ignored += 1;
                println!("\nskipped: {name}\n  {}", first_line(why));
            }
            End::Failed(why) => {
                tally.failed += 1;
                println!("\nFAILED: {name}\n  {}", why.replace('\n', "\n  "));
            }
        }
    }
    tally
}

/// Takes over what was found out; what was not tried now stays as it was.
fn merge(
    rows: &mut Vec<Row>,
    network: Network,
    report: &SpecReport,
    exceptions: &BTreeMap<String, String>,
) {
    let mut table: BTreeMap<String, Row> = std::mem::take(rows)
        .into_iter()
        .map(|row| (row.spec.clone(), row))
        .collect();
    for (name, end) in &report.ended {
        let row = table.entry(name.clone()).or_insert_with(|| Row {
            spec: name.clone(),
            reference: None,
            causeway: None,
            reason: String::new(),
        });
        let (ended, reason) = match end {
            End::Passed => (Ended::Passed, String::new()),
            End::Failed(why) => (Ended::Failed, first_line(why)),
            End::Skipped(why) => (Ended::LeftOut, first_line(why)),
        };
        let (this, other) = match network {
            Network::Reference => (&mut row.reference, row.causeway),
            _ => (&mut row.causeway, row.reference),
        };
        *this = Some(ended);
        // Of two that failed, the first reason stays.
        let other_well = matches!(other, None | Some(Ended::Passed));
        if other_well || row.reason.is_empty() {
            row.reason = reason;
        }
    }
    for (name, reason) in exceptions {
        let row = Row {
            spec: name.clone(),
            reference: Some(Ended::LeftOut),
            causeway: Some(Ended::LeftOut),
            reason: reason.clone(),
        };
        table.insert(name.clone(), row);
    }
    // The suite of another release has other specs.
    table.retain(|name, _| report.names.binary_search(name).is_ok());
    rows.extend(table.into_values());
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_owned()
}

fn file(name: &str) -> PathBuf {
    workspace::root().join("docs").join(name)
}

fn read() -> Result<Vec<Row>> {
    let path = file("conformance.json");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("cannot read {}", path.display()))
}

fn write(rows: &[Row]) -> Result<()> {
    let mut json = serde_json::to_string_pretty(rows).context("cannot write the table")?;
    json.push('\n');
    for (name, text) in [
        ("conformance.json", json),
        ("conformance.md", page::of(rows)),
    ] {
        let path = file(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
