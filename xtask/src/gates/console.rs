//! Commands in the documentation: each `cargo xtask` command in a `console` block must exist.
//!
//! `causeway` commands are held to the command line in its own tests.

use clap::Parser as _;

use crate::Arguments;

/// The commands of one page that cannot be given.
pub(super) fn offences(file: &str, text: &str) -> Vec<String> {
    let mut offences = Vec::new();
    for (line, command) in commands(text) {
        let mut words = command.split_whitespace();
        if (words.next(), words.next()) != (Some("cargo"), Some("xtask")) {
            continue;
        }
        if let Err(error) = Arguments::try_parse_from(command.split_whitespace().skip(1)) {
            // `--help` is no mistake.
            if error.use_stderr() {
                let error = error.to_string();
                let first = error.lines().next().unwrap_or_default();
                offences.push(format!("{file}:{line}: `{command}`: {first}"));
            }
        }
    }
    offences
}

/// What stands after a prompt in `console` blocks, without remarks, and in which line.
fn commands(text: &str) -> Vec<(usize, &str)> {
    let mut inside = false;
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            inside = line == "```console";
        }
        let prompt = line.strip_prefix("$ ").or_else(|| line.strip_prefix("# "));
        if let Some(command) = prompt.filter(|_| inside) {
            // Two spaces and a number sign begin a remark.
            let command = command.split("  #").next().unwrap_or_default().trim();
            found.push((number + 1, command));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{commands, offences};

    #[test]
    fn only_commands_that_exist_may_be_shown() {
        let page = "\
# cargo xtask nothing\n\
```console\n\
# cargo xtask demo --keep   # a remark\n\
$ cargo xtask test unit\n\
$ cargo xtask tset\n\
$ cargo build --release\n\
$ cargo xtask --help\n\
what it prints\n\
```\n\
$ cargo xtask nothing\n";
        assert_eq!(commands(page).len(), 5);
        assert_eq!(commands(page)[0], (3, "cargo xtask demo --keep"));
        let found = offences("README.md", page);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with("README.md:5: `cargo xtask tset`: error: "),
            "{found:?}"
        );
    }
}
