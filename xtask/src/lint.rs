//! Formatting, clippy for both targets, dependencies, gates.

use std::env;
use std::ffi::OsString;

use anyhow::{Context as _, Result, bail};

use crate::setup::{self, Purpose};
use crate::toolchain::{Origin, Toolchain};
use crate::{gates, process, workspace};

/// One check with the name that is shown.
pub(crate) type Check = (&'static str, fn() -> Result<()>);

/// Every check that is no test.
pub(crate) const CHECKS: [Check; 5] = [
    ("format", format),
    ("gates", gates::run),
    ("dependencies", dependencies),
    ("clippy for the host", clippy_host),
    ("clippy for BPF", clippy_bpf),
];

/// Before a commit: everything that is quick, and unit tests.
pub(crate) fn check() -> Result<()> {
    setup::run(Purpose::Build)?;
    format()?;
    gates::run()?;
    clippy_host()?;
    clippy_bpf()?;
    process::run(process::cargo().args(["test", "--quiet", "--lib"]))
}

/// All of [`CHECKS`], each of them even if others fail.
pub(crate) fn lint() -> Result<()> {
    setup::run(Purpose::All)?;
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        println!("lint: {name}");
        if let Err(error) = check() {
            println!("error: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("lint: {}", failed.join(", "));
    }
    println!("lint: nothing to complain about");
    Ok(())
}

fn format() -> Result<()> {
    process::run(process::cargo().args(["fmt", "--all", "--check"]))
}

fn dependencies() -> Result<()> {
    let deny = setup::cargo_deny().context("cargo-deny is missing: `cargo xtask setup`")?;
    // Advisories come from a repository that an isolated machine cannot reach; deny.toml has them
    // for those who can: `cargo deny check advisories`.
    process::run(
        process::command(deny)
            .current_dir(workspace::root())
            .args(["--locked", "check", "--hide-inclusion-graph"])
            .args(["bans", "licenses", "sources"]),
    )
}

/// The default members: all but what is made for BPF.
fn clippy_host() -> Result<()> {
    process::run(
        process::cargo()
            .args(["clippy", "--all-targets", "--quiet"])
            .args(["--", "--deny", "warnings"]),
    )
}

/// The daemon without its optional features: Clippy, and the tests of its library.
pub(crate) fn without_features() -> Result<()> {
    let cargo = |verb: &str, targets: &str| {
        let mut cargo = process::cargo();
        let package = ["--package", "proxy-user", "--no-default-features"];
        cargo.args([verb, "--quiet", targets]).args(package);
        cargo
    };
    process::run(cargo("clippy", "--all-targets").args(["--", "--deny", "warnings"]))?;
    process::run(&mut cargo("test", "--lib"))
}

/// Clippy of the BPF compiler's own toolchain. Debian's compiler has none: there the pinned
/// stable clippy looks at the same code, compiled for the host.
fn clippy_bpf() -> Result<()> {
    let toolchain = Toolchain::find()?;
    let folder = workspace::target().join("clippy-bpf");
    let mut cargo = match &toolchain.compiler {
        compiler if compiler.origin == Origin::Rustup => {
            let bin = compiler.rustc.parent().context("a compiler in no folder")?;
            let mut path = OsString::from(bin);
            path.push(":");
            path.push(env::var_os("PATH").unwrap_or_default());
            let mut cargo = toolchain.cargo(workspace::root(), env::consts::ARCH);
            cargo.env("PATH", path).args([
                "clippy",
                "-Zbuild-std=core",
                "--target",
                "bpfel-unknown-none",
            ]);
            cargo
        }
        _ => {
            let mut cargo = process::cargo();
            cargo.args(["clippy", "--config", "profile.dev.panic='abort'"]);
            cargo
        }
    };
    process::run(
        cargo
            .args(["--package", "proxy-ebpf", "--package", "bench-ebpf"])
            .args(["--quiet", "--target-dir"])
            .arg(folder)
            .args(["--", "--deny", "warnings"]),
    )
}
