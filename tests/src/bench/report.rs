//! What a run found: rows, checks, the machine; as a table and as JSON.

use std::{fmt::Write as _, fs};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::measure::Spread;

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `kernel`, `wire`, `sync` or `tunnel`.
    pub suite: &'static str,
    /// What was done.
    pub case: String,
    /// By whom.
    pub subject: String,
    /// Against whom; the subject itself in the pair that checks the method.
    pub peer: String,
    /// Services that were loaded.
    pub services: u32,
    /// Flows that the packets belong to, or (new flows) that there were already.
    pub flows: u32,
    /// The subject's cost, median over rounds.
    pub value: f64,
    /// Unit of `value`.
    pub unit: &'static str,
    /// Subject's cost / peer's cost, median over rounds; none if there is nothing to compare with.
    pub ratio: Option<f64>,
    /// Interquartile range of that ratio; without a peer, of the value divided by its median.
    pub spread: f64,
}

/// What a row is about.
#[derive(Clone, Debug)]
pub struct Topic<'a> {
    /// See [`Row::case`].
    pub case: &'a str,
    /// See [`Row::subject`].
    pub subject: &'a str,
    /// See [`Row::peer`].
    pub peer: &'a str,
    /// See [`Row::services`].
    pub services: u32,
    /// See [`Row::flows`].
    pub flows: u32,
    /// See [`Row::unit`].
    pub unit: &'static str,
}

impl Topic<'_> {
    /// The row of two series that were measured in the same rounds.
    pub fn row(&self, suite: &'static str, subject: &[f64], peer: &[f64]) -> Result<Row> {
        let ratio = Spread::of_ratios(subject, peer)?;
        let value = Spread::of(subject.iter().copied())?.median;
        Ok(self.with(suite, value, Some(ratio.median), ratio.range))
    }

    /// The row of a series that nothing is compared with.
    pub fn row_alone(&self, suite: &'static str, subject: &[f64]) -> Result<Row> {
        let value = Spread::of(subject.iter().copied())?;
        Ok(self.with(suite, value.median, None, value.range / value.median))
    }

    fn with(&self, suite: &'static str, value: f64, ratio: Option<f64>, spread: f64) -> Row {
        let Self {
            case,
            subject,
            peer,
            services,
            flows,
            unit,
        } = *self;
        let [case, subject, peer] = [case, subject, peer].map(str::to_owned);
        Row {
            suite,
            case,
            subject,
            peer,
            services,
            flows,
            value,
            unit,
            ratio,
            spread,
        }
    }
}

/// A bound that a figure is held to.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What is claimed.
    pub claim: String,
    /// The figure.
    pub measured: f64,
    /// Least that it may be.
    pub least: Option<f64>,
    /// Most that it may be.
    pub most: Option<f64>,
    /// Whether a figure out of bounds makes the run worthless: true for the pair that checks the method.
    pub fatal: bool,
}

impl Check {
    /// `measured` is at most `most`.
    #[must_use]
    pub fn at_most(claim: impl Into<String>, measured: f64, most: f64) -> Self {
        Self {
            claim: claim.into(),
            measured,
            least: None,
            most: Some(most),
            fatal: false,
        }
    }

    /// `measured` is at least `least`.
    #[must_use]
    pub fn at_least(claim: impl Into<String>, measured: f64, least: f64) -> Self {
        Self {
            claim: claim.into(),
            measured,
            least: Some(least),
            most: None,
            fatal: false,
        }
    }

    /// `measured` lies between the two.
    #[must_use]
    pub fn within(claim: impl Into<String>, measured: f64, least: f64, most: f64) -> Self {
        Self {
            claim: claim.into(),
            measured,
            least: Some(least),
            most: Some(most),
            fatal: false,
        }
    }

    /// The same subject measured twice: the ratio tells how far the method can be trusted.
    #[must_use]
    pub fn same(suite: &str, what: &str, ratio: f64) -> Self {
        let claim = format!("{suite}: {what} against itself");
        Self {
            fatal: true,
            ..Self::within(claim, ratio, 0.95, 1.05)
        }
    }

    /// Whether the figure is within its bounds.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.least.is_none_or(|least| self.measured >= least)
            && self.most.is_none_or(|most| self.measured <= most)
    }
}

/// Where it was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Processor model.
    pub processor: String,
    /// CPUs online.
    pub cpus: usize,
    /// Kernel release.
    pub kernel: String,
    /// The CPU that everything ran on.
    pub pinned_to: usize,
    /// Whether the quick form was run.
    pub quick: bool,
}

impl Machine {
    /// This machine.
    pub fn here(pinned_to: usize, quick: bool) -> Result<Self> {
        let info = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
        let model = info
            .lines()
            .find_map(|line| line.strip_prefix("model name"));
        let processor = model
            .and_then(|rest| rest.split_once(':'))
            .map_or("unknown", |(_, name)| name);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("kernel release")?;
        Ok(Self {
            processor: processor.trim().to_owned(),
            cpus: std::thread::available_parallelism()
                .context("counting CPUs")?
                .get(),
            kernel: kernel.trim().to_owned(),
            pinned_to,
            quick,
        })
    }
}

/// All that a run found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// What was measured.
    pub rows: Vec<Row>,
    /// What that says of the bounds that the project sets itself.
    pub checks: Vec<Check>,
}

impl Report {
    /// As tables for people.
    #[must_use]
    pub fn table(&self) -> String {
        let header = [
            "suite", "case", "subject", "peer", "services", "flows", "value", "", "ratio", "spread",
        ];
        let mut lines = vec![header.map(str::to_owned).to_vec()];
        for row in &self.rows {
            lines.push(vec![
                row.suite.to_owned(),
                row.case.clone(),
                row.subject.clone(),
                row.peer.clone(),
                thousands(row.services),
                thousands(row.flows),
                figure(row.value),
                row.unit.to_owned(),
                row.ratio
                    .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}")),
                format!("{:.3}", row.spread),
            ]);
        }
        let mut text = aligned(&lines, &[4, 5, 6, 8, 9]);
        if !self.checks.is_empty() {
            let mut lines = vec![
                ["claim", "measured", "bounds", ""]
                    .map(str::to_owned)
                    .to_vec(),
            ];
            for check in &self.checks {
                let bounds = match (check.least, check.most) {
                    (Some(least), Some(most)) => format!("{least}..{most}"),
                    (Some(least), None) => format!(">= {least}"),
                    (None, Some(most)) => format!("<= {most}"),
                    (None, None) => String::new(),
                };
                let verdict = if check.holds() { "holds" } else { "MISSED" };
                lines.push(vec![
                    check.claim.clone(),
                    figure(check.measured),
                    bounds,
                    verdict.to_owned(),
                ]);
            }
            text.push('\n');
            text.push_str(&aligned(&lines, &[1]));
        }
        text
    }

    /// The pairs that show that the method itself failed.
    pub fn broken(&self) -> impl Iterator<Item = &Check> {
        self.checks
            .iter()
            .filter(|check| check.fatal && !check.holds())
    }

    /// The row of this topic.
    #[must_use]
    pub fn find(
        &self,
        case: &str,
        subject: &str,
        peer: &str,
        services: u32,
        flows: u32,
    ) -> Option<&Row> {
        self.rows.iter().find(|row| {
            (row.case.as_str(), row.subject.as_str(), row.peer.as_str()) == (case, subject, peer)
                && (row.services, row.flows) == (services, flows)
        })
    }
}

fn figure(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 1000.0 => 0,
        size if size >= 10.0 => 1,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

fn thousands(number: u32) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Columns as wide as their widest cell; those in `right` are set to the right.
fn aligned(lines: &[Vec<String>], right: &[usize]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines
            .iter()
            .filter_map(|line| line.get(column))
            .map(String::len)
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            let written = if right.contains(&column) {
                write!(row, "{gap}{cell:>width$}")
            } else {
                write!(row, "{gap}{cell:<width$}")
            };
            debug_assert!(written.is_ok(), "writing to a string cannot fail");
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive_and_one_sided() {
        assert!(Check::at_most("", 70.0, 70.0).holds());
        assert!(!Check::at_most("", 70.1, 70.0).holds());
        assert!(!Check::at_least("", 4.4, 4.5).holds());
        assert!(!Check::same("wire", "x", 1.06).holds());
        assert!(!Check::at_most("", f64::NAN, 70.0).holds());
    }

    #[test]
    fn the_json_has_the_keys_that_are_promised() {
        let topic = Topic {
            case: "packet",
            subject: "causeway-tc",
            peer: "nft",
            services: 1,
            flows: 1_000,
            unit: "ns",
        };
        let mut report = Report {
            machine: Machine::here(0, true).unwrap(),
            rows: vec![
                topic
                    .row("wire", &[1.0, 2.0, 3.0], &[2.0, 4.0, 6.0])
                    .unwrap(),
            ],
            checks: vec![Check::at_most("cheap", 1.0, 2.0)],
        };
        let json = serde_json::to_value(&report).unwrap();
        let keys = |value: &serde_json::Value| -> Vec<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        let sorted = |names: &[&str]| {
            let mut names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(keys(&json), sorted(&["machine", "rows", "checks"]));
        let row = [
            "suite", "case", "subject", "peer", "services", "flows", "value", "unit", "ratio",
            "spread",
        ];
        assert_eq!(keys(&json["rows"][0]), sorted(&row));
        let machine = ["processor", "cpus", "kernel", "pinned_to", "quick"];
        assert_eq!(keys(&json["machine"]), sorted(&machine));
        assert_eq!(json["rows"][0]["value"], 2.0);
        // Below 1: cheaper than the peer.
        assert_eq!(json["rows"][0]["ratio"], 0.5);
        assert_eq!(json["rows"][0]["spread"], 0.0);
        report.rows = vec![topic.row_alone("wire", &[1.0, 2.0]).unwrap()];
        let json = serde_json::to_value(&report).unwrap();
        assert!(json["rows"][0]["ratio"].is_null());
    }

    #[test]
    fn numbers_are_grouped_and_columns_aligned() {
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_000_000), "1,000,000");
        let lines = [
            vec!["a".to_owned(), "1".to_owned()],
            vec!["bb".to_owned(), "22".to_owned()],
        ];
        assert_eq!(aligned(&lines, &[1]), "a    1\nbb  22\n");
    }
}
