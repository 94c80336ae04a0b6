//! Rules of this repository that no compiler knows.

mod console;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::{process, workspace};

/// Lines that a source file may have.
const LONGEST_FILE: usize = 600;

/// Which crates of the workspace a crate may depend on.
const DIRECTION: [(&str, &[&str]); 7] = [
    ("bench-ebpf", &["proxy-common"]),
    ("proxy-cni", &[]),
    ("proxy-common", &[]),
    ("proxy-ebpf", &["proxy-common"]),
    ("proxy-user", &["proxy-cni", "proxy-common"]),
    ("proxy-tests", &["proxy-cni", "proxy-common", "proxy-user"]),
    ("xtask", &[]),
];

/// Beginnings of paths that exist on one machine only.
const MACHINE_PATHS: [&str; 4] = ["/home/", "/root/", "/Users/", "/work/"];

/// Checks all of them and names every offence.
pub(crate) fn run() -> Result<()> {
    let mut offences = dependency_direction()?;
    let files = process::quiet(
        process::command("git")
            .current_dir(workspace::root())
            .args(["ls-files", "--cached", "--others", "--exclude-standard"]),
    )?;
    for file in files.lines() {
        // Binary files and files that were just removed have no text.
        let Ok(text) = fs::read_to_string(workspace::root().join(file)) else {
            continue;
        };
        offences.extend(file_offences(file, &text));
    }
    if offences.is_empty() {
        return Ok(());
    }
    bail!("{} offences:\n  {}", offences.len(), offences.join("\n  "))
}

fn file_offences(file: &str, text: &str) -> Vec<String> {
    let mut offences = Vec::new();
    let lines = text.lines().count();
    if has_extension(file, &["rs", "sh", "go", "py"]) && lines > LONGEST_FILE {
        offences.push(format!(
            "{file}: {lines} lines, {LONGEST_FILE} at most: split it"
        ));
    }
    if has_extension(file, &["md"]) {
        offences.extend(console::offences(file, text));
    }
    // This file has to name what it looks for.
    if file == "xtask/src/gates.rs" {
        return offences;
    }
    for (number, line) in text.lines().enumerate() {
        if let Some(path) = MACHINE_PATHS.iter().find(|path| names_path(line, path)) {
            offences.push(format!(
                "{file}:{}: a path of one machine, {path}",
                number + 1
            ));
        }
    }
    offences
}

/// True if a path begins there, and not `$HOME/work/` or `../root/`.
fn names_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line.split_at(at).0.chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "._-}$~/*>:".contains(c))
    })
}

fn has_extension(file: &str, extensions: &[&str]) -> bool {
    file.rsplit_once('.')
        .is_some_and(|(_, extension)| extensions.contains(&extension))
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    path: Option<String>,
}

fn dependency_direction() -> Result<Vec<String>> {
    let metadata = process::quiet(process::cargo().args([
        "metadata",
        "--format-version=1",
        "--no-deps",
        "--locked",
    ]))?;
    let metadata: Metadata =
        serde_json::from_str(&metadata).context("cannot read what cargo metadata says")?;
    Ok(direction_offences(&metadata))
}

fn direction_offences(metadata: &Metadata) -> Vec<String> {
    let allowed: BTreeMap<&str, BTreeSet<&str>> = DIRECTION
        .into_iter()
        .map(|(name, uses)| (name, uses.iter().copied().collect()))
        .collect();
    let mut offences = Vec::new();
    for package in &metadata.packages {
        let Some(uses) = allowed.get(package.name.as_str()) else {
            offences.push(format!(
                "crate {} has no place in the direction of dependencies (xtask/src/gates.rs)",
                package.name
            ));
            continue;
        };
        for dependency in &package.dependencies {
            if dependency.path.is_some() && !uses.contains(dependency.name.as_str()) {
                offences.push(format!(
                    "crate {} must not depend on {}",
                    package.name, dependency.name
                ));
            }
        }
    }
    offences
}

#[cfg(test)]
mod tests {
    use super::{Dependency, Metadata, Package, direction_offences, file_offences};

    #[test]
    fn a_long_file_and_a_path_of_one_machine_are_offences() {
        let text = "x\n".repeat(601);
        assert_eq!(file_offences("a/b.rs", &text).len(), 1);
        assert!(file_offences("a/b.yaml", &text).is_empty());
        let found = file_offences("README.md", "see\n`/home/jo/notes`\n");
        assert_eq!(found, ["README.md:2: a path of one machine, /home/"]);
        assert!(file_offences("a.rs", "let home = \"$HOME/work/x\";").is_empty());
    }

    #[test]
    fn a_dependency_against_the_direction_is_an_offence() {
        let metadata = Metadata {
            packages: vec![Package {
                name: "proxy-common".to_owned(),
                dependencies: vec![Dependency {
                    name: "proxy-user".to_owned(),
                    path: Some("../proxy-user".to_owned()),
                }],
            }],
        };
        assert_eq!(
            direction_offences(&metadata),
            ["crate proxy-common must not depend on proxy-user"]
        );
    }
}
