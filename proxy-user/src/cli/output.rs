//! Tables, JSON and YAML.

use std::io::{ErrorKind, Write};

use anyhow::Context;
use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people: a table, or lines of text.
    #[default]
    Table,
    /// JSON, one document.
    Json,
    /// YAML, one document.
    Yaml,
}

/// A row of a table.
pub(super) trait Row {
    /// The columns' titles.
    const TITLES: &'static [&'static str];

    /// The columns' contents.
    fn cells(&self) -> Vec<String>;
}

/// Prints results.
pub(super) struct Output<W> {
    format: Format,
    to: W,
}

impl<W: Write> Output<W> {
    pub(super) const fn new(format: Format, to: W) -> Self {
        Self { format, to }
    }

    /// Prints a list: as a table with a row each, or as one document.
    pub(super) fn list<R: Row + Serialize>(&mut self, rows: &[R]) -> anyhow::Result<()> {
        self.show(&rows, |rows| table(R::TITLES, rows.iter().map(Row::cells)))
    }

    /// Prints one thing; `text` says it in words.
    pub(super) fn show<T: Serialize>(
        &mut self,
        thing: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        let text = match self.format {
            Format::Table => text(thing),
            Format::Json => serde_json::to_string_pretty(thing).context("writing JSON")?,
            Format::Yaml => serde_saphyr::to_string(thing).context("writing YAML")?,
        };
        self.text(&text)
    }

    /// Prints text as it is, whatever the format.
    pub(super) fn text(&mut self, text: &str) -> anyhow::Result<()> {
        let end = if text.is_empty() || text.ends_with('\n') {
            ""
        } else {
            "\n"
        };
        write!(self.to, "{text}{end}").context("printing")?;
        self.to.flush().context("printing")
    }
}

/// A table without lines, as wide as it needs to be.
pub(super) fn table(titles: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(titles);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
        .lines()
        .fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

/// Whether the reader of our output has gone, as `head` does: no failure worth telling.
pub(super) fn is_closed(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}
