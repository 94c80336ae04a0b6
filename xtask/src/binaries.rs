//! The workspace's own executables, built and started by cargo.

use std::path::PathBuf;

use anyhow::Result;

use crate::process;

/// Builds the daemon and the CNI plugin.
pub(crate) fn build(release: bool) -> Result<()> {
    let mut cargo = process::cargo();
    cargo.args(["build", "--package", "proxy-user", "--bin", "causeway"]);
    if release {
        cargo.arg("--release");
    }
    process::run(&mut cargo)?;
    // The plugin runs on the host, whatever C library that has: it brings its own. With `rustc` only
    // the executable itself is linked so, not build scripts and macros.
    let mut cargo = process::cargo();
    cargo.args(["rustc", "--package", "proxy-cni", "--bin", "causeway-cni"]);
    if release {
        cargo.arg("--release");
    }
    cargo.args(["--", "-Ctarget-feature=+crt-static"]);
    process::run(&mut cargo)
}

/// Builds the daemon and an executable of the tests crate, optimised, and runs the latter.
pub(crate) fn run(name: &str, verb: Option<&str>, arguments: &[String]) -> Result<()> {
    run_with(name, verb, arguments, &[])
}

/// The same, with these environment variables.
pub(crate) fn run_with(
    name: &str,
    verb: Option<&str>,
    arguments: &[String],
    variables: &[(&str, PathBuf)],
) -> Result<()> {
    println!("building the daemon and `{name}` (a minute or two the first time)");
    process::run(process::cargo().args([
        "build",
        "--release",
        "--package",
        "proxy-user",
        "--package",
        "proxy-tests",
        "--bin",
        "causeway",
        "--bin",
        name,
    ]))?;
    let mut cargo = process::cargo();
    cargo
        .args(["run", "--quiet", "--release", "--package", "proxy-tests"])
        .args(["--bin", name, "--"])
        .args(verb)
        .args(arguments)
        .envs(variables.iter().map(|(name, value)| (name, value)));
    process::run(&mut cargo)
}
