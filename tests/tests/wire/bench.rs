//! That the benchmark runs and writes what it promises. Its figures are not looked at: a machine that
//! runs tests is no machine to measure on.

use std::{
    collections::BTreeSet,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use proxy_tests::bench::{
    Options,
    wire::{Entrant, Way},
};
use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_bench");

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("bench/kernel-writes-its-rows", || Ok(kernel()?)),
        Trial::test("bench/packets-of-a-stream-are-merged", || Ok(merged()?)),
    ]
}

/// What travels between two sockets of one machine is a clone of what the sender keeps, and clones are
/// never merged. Forwarding by the kernel gives each packet a head of its own, and so does TC.
fn merged() -> Result<()> {
    let options = Options::new(0, true);
    for way in [Way::Plain, Way::CausewayTc] {
        let merged = Entrant::build(way, 1, &options)?.merged(options.cpu)?;
        ensure!(merged > 0, "{}: no packet was merged", way.name());
    }
    Ok(())
}

fn kernel() -> Result<()> {
    let file = std::env::temp_dir().join(format!("causeway-bench-{}.json", std::process::id()));
    let output = Command::new(BENCH)
        .args(["kernel", "--quick", "--flows", "1", "--case", "foreign"])
        .args(["--case", "established-v4-tcp", "--json"])
        .arg(&file)
        .output()?;
    let written = std::fs::read_to_string(&file);
    let _ = std::fs::remove_file(&file);
    let report: Value = serde_json::from_str(&written.with_context(|| said(&output))?)?;
    // A busy machine ends the run with an error, once everything is written.
    ensure!(
        output.status.success() || said(&output).contains("too busy to be measured on"),
        "{}",
        said(&output)
    );
    for key in ["processor", "cpus", "kernel", "pinned_to", "quick"] {
        let machine = report.get("machine").and_then(|machine| machine.get(key));
        ensure!(machine.is_some(), "no {key} of the machine: {report:#}");
    }
    let rows = report.get("rows").and_then(Value::as_array);
    let rows = rows.with_context(|| format!("no rows: {report:#}"))?;
    let mut found = BTreeSet::new();
    for row in rows {
        let word = |key: &str| row.get(key).and_then(Value::as_str).unwrap_or_default();
        let number = |key: &str| row.get(key).and_then(Value::as_f64);
        ensure!(word("suite") == "kernel" && word("unit") == "ns", "{row}");
        ensure!(number("flows") == Some(1.0), "{row}");
        let positive = ["services", "ratio"]
            .iter()
            .all(|key| number(key) > Some(0.0));
        let told = ["value", "spread"].iter().all(|key| number(key).is_some());
        ensure!(positive && told, "{row}");
        found.insert((word("case"), word("subject"), word("peer")));
    }
    let expected = [
        ("foreign", "xdp", "empty"),
        ("foreign", "tc", "empty"),
        ("established-v4-tcp", "xdp", "empty"),
        ("established-v4-tcp", "tc", "empty"),
        ("established-v4-tcp", "xdp", "xdp"),
    ];
    ensure!(found == expected.into(), "{found:?}");
    let printed = String::from_utf8_lossy(&output.stdout);
    let head = printed.lines().next().unwrap_or_default();
    let titles: Vec<&str> = head.split_whitespace().collect();
    ensure!(
        titles
            == [
                "suite", "case", "subject", "peer", "services", "flows", "value", "ratio", "spread"
            ],
        "{printed}"
    );
    Ok(())
}

fn said(output: &Output) -> String {
    format!(
        "{}:\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
