//! The command line against real daemons: what it prints, in every format, with a daemon and from the
//! pins of one that was killed; how it ends; and that what it explains is what packets meet.

#[path = "cli/api.rs"]
mod api;
#[path = "cli/detach.rs"]
mod detach;
#[path = "cli/ends.rs"]
mod ends;
#[path = "cli/explain.rs"]
mod explain;
#[path = "cli/lists.rs"]
mod lists;
#[path = "cli/maps.rs"]
mod maps;

use std::{collections::BTreeMap, process::Output, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use proxy_tests::lab::cluster::Cluster;
use serde_json::Value;

use crate::worlds::Worlds;

pub(crate) fn trials(worlds: &Arc<Worlds>, has_vlans: bool) -> Vec<Trial> {
    let mut trials = explain::trials(worlds, has_vlans);
    trials.extend(ends::trials(worlds));
    trials.extend(api::trials(worlds));
    trials.push(Trial::test("cli/lists-live-and-from-pins", || {
        Ok(lists::run()?)
    }));
    trials
}

/// What a command printed, and how it ended.
#[derive(Clone, Debug)]
struct Shown {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Shown {
    /// Nothing that is written to a pipe may have colour or move the cursor.
    fn of(output: Output) -> Result<Self> {
        let shown = Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout)?,
            stderr: String::from_utf8(output.stderr)?,
        };
        let printed = [&shown.stdout, &shown.stderr];
        ensure!(
            !printed.iter().any(|text| text.contains('\u{1b}')),
            "escape sequences in a pipe: {shown:?}"
        );
        Ok(shown)
    }
}

/// A table: its titles, and each row's cells by title.
type Table = (Vec<String>, Vec<BTreeMap<String, String>>);

/// The command line on one node.
#[derive(Clone, Copy)]
struct Node<'c> {
    cluster: &'c Cluster,
    number: u8,
}

impl<'c> Node<'c> {
    const fn new(cluster: &'c Cluster, number: u8) -> Self {
        Self { cluster, number }
    }

    fn run(self, arguments: &[&str]) -> Result<Shown> {
        let daemon = self.cluster.daemon(self.number)?;
        Shown::of(daemon.output(self.cluster.world(), arguments)?)
    }

    /// A command that must succeed and have nothing to complain about.
    fn text(self, arguments: &[&str]) -> Result<String> {
        let shown = self.run(arguments)?;
        ensure!(
            shown.code == Some(0) && shown.stderr.is_empty(),
            "`causeway {}`: {shown:?}",
            arguments.join(" ")
        );
        Ok(shown.stdout)
    }

    /// A command that must end with this code, print nothing, and say what is wrong.
    fn fails(self, arguments: &[&str], code: i32, word: &str) -> Result<()> {
        let shown = self.run(arguments)?;
        ensure!(
            shown.code == Some(code) && shown.stdout.is_empty() && shown.stderr.contains(word),
            "`causeway {}` must end with {code} and say {word:?}: {shown:?}",
            arguments.join(" ")
        );
        Ok(())
    }

    fn json(self, arguments: &[&str]) -> Result<Value> {
        let text = self.text(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("{arguments:?} printed {text}"))
    }

    fn yaml(self, arguments: &[&str]) -> Result<Value> {
        let text = self.text(&[arguments, &["-o", "yaml"]].concat())?;
        serde_saphyr::from_str(&text).with_context(|| format!("{arguments:?} printed {text}"))
    }

    /// A list as JSON.
    fn rows(self, arguments: &[&str]) -> Result<Vec<Value>> {
        let value = self.json(arguments)?;
        let rows = value.as_array().cloned();
        rows.with_context(|| format!("{arguments:?} is no list: {value}"))
    }

    /// A list as a table: the titles, and rows by title. What a column holds begins under its title.
    fn table(self, arguments: &[&str]) -> Result<Table> {
        let text = self.text(arguments)?;
        let mut lines = text.lines();
        let head = lines.next().context("no titles")?;
        let mut titles: Vec<(usize, String)> = Vec::new();
        for part in head.split("  ").filter(|part| !part.trim().is_empty()) {
            let title = part.trim();
            // A title may be part of an earlier one.
            let from = titles.last().map_or(0, |(at, title)| at + title.len());
            let at = head.get(from..).and_then(|rest| rest.find(title));
            titles.push((from + at.context("a title")?, title.to_owned()));
        }
        let ends: Vec<usize> = titles.iter().skip(1).map(|(at, _)| *at).collect();
        let mut rows = Vec::new();
        for line in lines {
            let letters: Vec<char> = line.chars().collect();
            let mut row = BTreeMap::new();
            for (index, (at, title)) in titles.iter().enumerate() {
                let end = ends.get(index).copied().unwrap_or(letters.len());
                let cell = letters.get(*at..end.min(letters.len())).unwrap_or_default();
                row.insert(
                    title.clone(),
                    cell.iter().collect::<String>().trim().to_owned(),
                );
            }
            rows.push(row);
        }
        Ok((titles.into_iter().map(|(_, title)| title).collect(), rows))
    }

    /// Holds all three formats of a list to each other: as many rows in each, and the same fields.
    /// Returns the rows.
    fn list(self, arguments: &[&str], titles: &[&str]) -> Result<Vec<Value>> {
        let rows = self.rows(arguments)?;
        let yaml = self.yaml(arguments)?;
        ensure!(
            shape(&yaml) == shape(&Value::Array(rows.clone())),
            "{arguments:?}: YAML {yaml} is not JSON {rows:?}"
        );
        let (told, table) = self.table(arguments)?;
        ensure!(told == titles, "{arguments:?} has the titles {told:?}");
        ensure!(
            table.len() == rows.len(),
            "{arguments:?}: {} rows in the table, {} in JSON",
            table.len(),
            rows.len()
        );
        Ok(rows)
    }
}

/// A value without what changes from one moment to the next: numbers, and how many there are of each
/// name in a map of names.
fn shape(value: &Value) -> Value {
    match value {
        Value::Number(_) => Value::Number(0.into()),
        Value::Array(items) => items.iter().map(shape).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), shape(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

/// A field of a row.
fn field<'v>(row: &'v Value, name: &str) -> Result<&'v Value> {
    row.get(name)
        .with_context(|| format!("no field {name} in {row}"))
}

/// A field that holds text.
fn text<'v>(row: &'v Value, name: &str) -> Result<&'v str> {
    let value = field(row, name)?;
    value
        .as_str()
        .with_context(|| format!("{name} in {row} is no text"))
}

/// A field that holds a number.
fn number(row: &Value, name: &str) -> Result<u64> {
    let value = field(row, name)?;
    value
        .as_u64()
        .with_context(|| format!("{name} in {row} is no number"))
}

/// Whether a list holds this text.
fn holds(list: &Value, wanted: &str) -> bool {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().any(|item| item.as_str() == Some(wanted))
}
