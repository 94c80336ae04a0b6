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

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::{super::output::Format, *};

    fn printed(print: impl FnOnce(&mut Output<&mut Vec<u8>>) -> anyhow::Result<()>) -> String {
        let mut bytes = Vec::new();
        print(&mut Output::new(Format::Table, &mut bytes)).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// All commands, those below others too, as one writes them.
    fn commands() -> Vec<String> {
        let mut found = Vec::new();
        for command in Arguments::command().get_subcommands() {
            found.push(command.get_name().to_owned());
            let name =
                |below: &clap::Command| format!("{}-{}", command.get_name(), below.get_name());
            found.extend(command.get_subcommands().map(name));
        }
        found
    }

    #[test]
    fn every_shell_has_a_script_that_knows_every_command() {
        for shell in Shell::value_variants() {
            let script = printed(|output| completions(*shell, output));
            for command in commands() {
                let last = command.rsplit('-').next().unwrap_or_default();
                assert!(script.contains(last), "{shell}: no {command}");
            }
        }
    }

    #[test]
    fn the_page_names_every_command_and_exit_code() {
        let page = printed(|output| man(None, output));
        assert!(page.contains(".TH causeway 1"), "{page}");
        for command in commands().iter().filter(|command| !command.contains('-')) {
            assert!(
                page.contains(&format!("causeway\\-{command}(1)")),
                "no {command}"
            );
        }
        assert!(page.contains("the daemon isn\\*(Aqt running"), "{page}");
    }

    #[test]
    fn every_command_has_a_page_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        printed(|output| man(Some(folder.path()), output));
        for command in commands() {
            let file = folder.path().join(format!("causeway-{command}.1"));
            let page = std::fs::read_to_string(file).unwrap();
            assert!(page.contains(".SH SYNOPSIS"), "{command}: {page}");
        }
    }
}
