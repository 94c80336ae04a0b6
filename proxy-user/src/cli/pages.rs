//! Completion scripts and manual pages, made from the arguments' own description.

use std::{io::Write, path::Path};

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use super::{arguments::Arguments, output::Output};

pub(super) fn completions<W: Write>(shell: Shell, output: &mut Output<W>) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "causeway", &mut script);
    output.text(&String::from_utf8(script).context("the completion script isn't text")?)
}

pub(super) fn man<W: Write>(
    directory: Option<&Path>,
    output: &mut Output<W>,
) -> anyhow::Result<()> {
    if let Some(directory) = directory {
        return clap_mangen::generate_to(Arguments::command(), directory)
            .with_context(|| format!("writing manual pages to {}", directory.display()));
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(Arguments::command())
        .render(&mut page)
        .context("making the page")?;
    output.text(&String::from_utf8(page).context("the manual page isn't text")?)
}
