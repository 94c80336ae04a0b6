//! The documentation is held to the code: lists of names are complete, tables that are made from
//! the code are up to date, commands exist, examples are valid.
//!
//! `UPDATE_DOCS=1 cargo test --package proxy-user --lib documents` writes what is made from the code
//! anew.

mod made;
mod source;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use clap::{CommandFactory as _, Parser as _};

use super::{
    Exit,
    arguments::Arguments,
    dispatch,
    output::{Format, Output},
};
use crate::config::{Config, Source};

/// A file of the repository.
fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(file(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All pages for people.
fn pages() -> Vec<(PathBuf, String)> {
    let mut folders = vec![file("docs")];
    let mut found: Vec<PathBuf> = fs::read_dir(file("."))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    found.sort();
    let text = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    };
    found.into_iter().map(text).collect()
}

/// What stands in backquotes.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The rows of all tables of a page, without the headings: what stands in their cells.
fn rows(page: &str) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        let heading = lines.peek().is_some_and(|next| next.starts_with("|--"));
        if !line.starts_with('|') || line.starts_with("|--") || heading {
            continue;
        }
        let line = line.replace("\\|", "\u{1}");
        let cells = line.trim_matches('|').split('|');
        let cell = |cell: &str| cell.trim().replace('\u{1}', "|");
        rows.push(cells.map(cell).collect());
    }
    rows
}

/// The names in the first column of a page's tables.
fn first_column(page: &str) -> Vec<String> {
    let first = |row: &Vec<String>| row.first().cloned().unwrap_or_default();
    let name = |cell: String| quoted(&cell).first().map(|name| (*name).to_owned());
    rows(page).iter().map(first).filter_map(name).collect()
}

/// Commands in `console` blocks that begin with `name`: the page and the words.
fn commands(name: &str) -> Vec<(PathBuf, Vec<String>)> {
    let mut found = Vec::new();
    for (path, text) in pages() {
        let mut inside = false;
        for line in text.lines() {
            if line.starts_with("```") {
                inside = line == "```console";
            }
            let prompt = line.strip_prefix("$ ").or_else(|| line.strip_prefix("# "));
            let Some(command) = prompt.filter(|_| inside) else {
                continue;
            };
            // Two spaces and a number sign begin a remark.
            let command = command.split("  #").next().unwrap_or_default();
            let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
            if words.first().is_some_and(|word| word == name) {
                found.push((path.clone(), words));
            }
        }
    }
    found
}

#[test]
fn commands_in_the_documentation_exist() {
    let commands = commands("causeway");
    assert!(commands.len() > 5, "{commands:?}");
    for (page, words) in commands {
        if let Err(error) = Arguments::try_parse_from(&words) {
            panic!("{}: `{}`: {error}", page.display(), words.join(" "));
        }
    }
}

#[test]
fn the_example_configuration_is_valid() {
    let config = Config::load(&file("examples/causeway.toml")).unwrap();
    assert_eq!(config.node, "node1");
    let Source::Manifests(manifests) = config.source else {
        panic!("another source");
    };
    assert!(manifests.ends_with("examples/demo"));
}

/// Runs a command that needs no daemon: what it prints, and how it ends.
fn run(arguments: &[&str]) -> (String, Result<(), Exit>) {
    let arguments = Arguments::parse_from([&["causeway"], arguments].concat());
    let mut printed = Vec::new();
    let mut output = Output::new(Format::Table, &mut printed);
    let ended = dispatch(&arguments, &mut output).map_err(|error| {
        let own = error.downcast_ref::<super::Failure>();
        own.map_or(Exit::Failed, |failure| failure.exit)
    });
    (String::from_utf8(printed).unwrap(), ended)
}

#[test]
fn the_example_manifests_are_valid() {
    let folder = file("examples/demo");
    let (told, ended) = run(&["check", "--strict", &folder.to_string_lossy()]);
    assert_eq!(ended, Ok(()), "{told}");
    assert!(told.ends_with("0 errors, 0 warnings\n"), "{told}");
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let (told, ended) = run(&["check", "--node", "node1", &path.to_string_lossy()]);
        assert_eq!(ended, Ok(()), "{}: {told}", path.display());
        files += 1;
    }
    assert!(files > 3);
}

#[test]
fn the_command_line_page_names_every_command_and_flag() {
    let page = read("docs/reference/cli.md");
    let command = Arguments::command();
    let mut named = BTreeSet::new();
    for cell in rows(&page).iter().filter_map(|row| row.first()) {
        for span in quoted(cell) {
            let mut words = span.split_whitespace();
            let word = words.next().unwrap_or_default();
            let Some(mut of) = command.find_subcommand(word) else {
                panic!("the page names `{span}`, which does not exist");
            };
            named.insert(word.to_owned());
            for word in words {
                let word = word.trim_matches(['[', ']']);
                if let Some(below) = of.find_subcommand(word) {
                    of = below;
                }
                let flag = word.trim_start_matches('-');
                let known = |argument: &clap::Arg| {
                    let short = argument.get_short().map(String::from);
                    short.as_deref() == Some(flag) || argument.get_long() == Some(flag)
                };
                assert!(
                    !word.starts_with('-') || of.get_arguments().any(known),
                    "the page names {word} of `{span}`, which does not exist"
                );
            }
        }
    }
    let all: BTreeSet<String> = command
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect();
    assert_eq!(named, all);
}

#[test]
fn exit_codes_are_told_alike() {
    let page = read("docs/reference/cli.md");
    let told: Vec<String> = rows(&page)
        .into_iter()
        .filter(|row| row.len() == 2 && row.iter().any(|cell| cell.parse::<u8>().is_ok()))
        .map(|row| row.join("  "))
        .collect();
    let help = Arguments::command()
        .get_after_long_help()
        .unwrap()
        .to_string();
    let known: Vec<&str> = help.lines().skip(1).map(str::trim).collect();
    assert_eq!(told, known);
    let last = Exit::NoDaemon as usize;
    assert_eq!(known.len(), last + 1);
}

#[test]
fn the_configuration_page_names_every_key() {
    let text = source::File::read("proxy-user/src/config/file.rs");
    let mut keys = BTreeSet::new();
    for field in text.fields("File") {
        let section = field
            .kind
            .chars()
            .all(char::is_alphanumeric)
            .then(|| text.find_fields(&field.kind))
            .flatten();
        match section {
            None => {
                keys.insert(field.name);
            }
            Some(section) => {
                let name = |below: source::Field| format!("{}.{}", field.name, below.name);
                keys.extend(section.into_iter().map(name));
            }
        }
    }
    let page = read("docs/reference/configuration.md");
    let told: BTreeSet<String> = first_column(&page).into_iter().collect();
    assert_eq!(told, keys);
}

#[test]
fn the_configuration_page_tells_the_defaults() {
    const NEEDED: &str = "version = 1\ndevices.uplinks = [\"eth*\"]\nmanifests.directory = \"m\"\n";
    let load = |text: &str| Config::parse(Path::new("/etc/causeway.toml"), text).unwrap();
    let mut written = NEEDED.to_owned();
    let mut count = 0;
    for row in rows(&read("docs/reference/configuration.md")) {
        let (Some(key), Some(value)) = (quoted(&row[0]).pop(), quoted(&row[1]).pop()) else {
            continue;
        };
        let socket = format!("\"{}\"", value.replace("<instance>", "default"));
        let text = ["api.socket", "state.directory"].contains(&key);
        let value = if text { &socket } else { value };
        writeln!(written, "{key} = {value}").unwrap();
        count += 1;
    }
    assert!(count > 15, "{written}");
    assert_eq!(
        format!("{:?}", load(&written)),
        format!("{:?}", load(NEEDED)),
        "{written}"
    );
}

#[test]
fn the_api_page_names_every_field() {
    let structs: [(&str, &str, &[&str]); 9] = [
        ("/v1/status", "api/status.rs", &["Status"]),
        ("/v1/services", "inspect/service.rs", &["ServiceRow"]),
        ("/v1/backends", "inspect/backend.rs", &["BackendRow"]),
        ("/v1/flows", "inspect/flow.rs", &["FlowRow"]),
        ("/v1/routes", "explain.rs", &["RouteRow"]),
        ("/v1/drops", "inspect/drops.rs", &["DropRow"]),
        ("/v1/maps", "inspect/record.rs", &["MapRow"]),
        ("/v1/maps/NAME", "inspect/record.rs", &["RecordRow"]),
        ("/v1/explain", "explain.rs", &["Explanation", "Step"]),
    ];
    let rows = rows(&read("docs/reference/api.md"));
    for (path, file, names) in structs {
        let text = source::File::read(&format!("proxy-user/src/{file}"));
        let fields = |name: &&str| text.fields(name).into_iter().map(|field| field.name);
        let known: BTreeSet<String> = names.iter().flat_map(fields).collect();
        let row = rows.iter().find(|row| quoted(&row[0]) == [path]);
        let row = row.unwrap_or_else(|| panic!("{path} is not in the page"));
        let told: BTreeSet<String> = quoted(&row[2]).into_iter().map(str::to_owned).collect();
        assert_eq!(told, known, "{path}");
    }
}
