//! Rust's parts: components of the pinned toolchain, `bpf-linker`, a compiler for BPF.

use std::env;
use std::ffi::OsString;
use std::path::Path;

use anyhow::{Result, bail};

use super::{Purpose, apt};
use crate::toolchain::{Compiler, LINKER_VERSION, Linker, Missing};
use crate::{dist, process, workspace};

/// LLVM's release that Debian 12 ships newest and that `bpf-linker` is built with.
const LLVM: u32 = 22;

/// A nightly whose LLVM is that one, for machines without Debian's compiler.
const NIGHTLY: &str = "nightly-2026-05-20";

/// How to add what a rustup toolchain lacks.
pub(crate) const COMPONENT_REMEDY: &str = "rustup component add clippy rustfmt";

/// What building `bpf-linker` needs.
const LINKER_PACKAGES: [&str; 6] = [
    "llvm-22-dev",
    "libpolly-22-dev",
    "zlib1g-dev",
    "libzstd-dev",
    "libxml2-dev",
    "g++",
];

/// Debian's compiler and its library source.
const COMPILER_PACKAGES: [&str; 2] = ["rustc-web", "rust-web-src"];

/// `cargo fmt` or `cargo clippy` is not in the pinned toolchain.
pub(super) fn missing_components(purpose: Purpose) -> Option<String> {
    let present = purpose < Purpose::All
        || ["fmt", "clippy"]
            .iter()
            .all(|verb| process::answer(process::cargo().args([verb, "--version"])).is_some());
    (!present).then(|| format!("not in the pinned toolchain: {COMPONENT_REMEDY}"))
}

/// Adds them.
pub(super) fn install_components(_: Purpose) -> Result<()> {
    process::run(process::command("rustup").args(["component", "add", "clippy", "rustfmt"]))
}

/// The pinned toolchain has no library for static executables.
pub(super) fn missing_target(purpose: Purpose) -> Option<String> {
    let target = dist::target();
    let library = || {
        let mut rustc = process::command("rustc");
        rustc.current_dir(workspace::root()).args([
            "--print",
            "target-libdir",
            "--target",
            &target,
        ]);
        process::answer(&mut rustc).is_some_and(|folder| Path::new(folder.trim()).is_dir())
    };
    let present = !purpose.covers(Purpose::Dist) || library();
    (!present).then(|| format!("{target} is not in the pinned toolchain"))
}

/// Adds it.
pub(super) fn install_target(_: Purpose) -> Result<()> {
    process::run(
        process::command("rustup")
            .current_dir(workspace::root())
            .args(["target", "add", &dist::target()]),
    )
}

/// The linker is nowhere.
pub(super) fn missing_linker(_: Purpose) -> Option<String> {
    match Linker::find() {
        Some(_) => None,
        None => Some(format!(
            "built by cargo with Debian's LLVM {LLVM} (about a minute)"
        )),
    }
}

/// Installs LLVM, then builds the linker.
pub(super) fn install_linker(_: Purpose) -> Result<()> {
    apt::get(&apt::missing(&LINKER_PACKAGES))?;
    let llvm = format!("/usr/lib/llvm-{LLVM}/bin");
    if !Path::new(&llvm).join("llvm-config").exists() {
        bail!("{llvm}/llvm-config is not there though llvm-{LLVM}-dev is installed");
    }
    let mut path = OsString::from(llvm);
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    process::run(
        process::cargo()
            .env("PATH", path)
            .env_remove("RUSTFLAGS")
            .args([
                "install",
                "--locked",
                "bpf-linker",
                "--version",
                LINKER_VERSION,
            ])
            .args(["--no-default-features", "--features"])
            .arg(format!("llvm-{LLVM}")),
    )
}

/// There is no compiler that fits the linker.
pub(super) fn missing_compiler(_: Purpose) -> Option<String> {
    let Some(linker) = Linker::find() else {
        return Some("the linker comes first".to_owned());
    };
    match Compiler::find(&linker) {
        Ok(_) => None,
        Err(Missing::Compiler(rejected)) if !rejected.is_empty() => Some(format!(
            "none of the compilers here will do: {}",
            rejected.join("; ")
        )),
        Err(_) => Some("no nightly of rustup and no compiler of Debian's".to_owned()),
    }
}

/// Installs Debian's compiler, else a nightly of rustup.
pub(super) fn install_compiler(_: Purpose) -> Result<()> {
    apt::update()?;
    if COMPILER_PACKAGES.into_iter().all(apt::available) {
        return apt::get(&apt::missing(&COMPILER_PACKAGES));
    }
    process::run(
        process::command("rustup")
            .args(["toolchain", "install", NIGHTLY, "--profile", "minimal"])
            .args(["--component", "rust-src", "--component", "clippy"]),
    )
}
