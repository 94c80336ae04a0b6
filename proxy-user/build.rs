//! Builds the kernel object from `proxy-ebpf` and tells the crate where it is.
//!
//! Output: `$OUT_DIR/causeway.bpf.o`, whose path the crate reads with
//! `env!("CAUSEWAY_BPF_OBJECT")`. Where this machine cannot build for BPF, a debug build gets an
//! empty file and a warning, and a release build fails.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::toolchain::{Missing, Toolchain};

#[expect(
    dead_code,
    reason = "xtask reads the fields that a build does not need"
)]
#[path = "build/toolchain.rs"]
mod toolchain;

/// The package, its executable, and the profile (root `Cargo.toml`) it is built in.
const PACKAGE: &str = "proxy-ebpf";
const EXECUTABLE: &str = "causeway";
const PROFILE: &str = "release";

fn main() -> ExitCode {
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error:#}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<()> {
    let out = PathBuf::from(variable("OUT_DIR")?);
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = manifest
        .parent()
        .context("proxy-user lies outside of a workspace")?;
    for input in ["proxy-ebpf", "proxy-common", "Cargo.toml", "Cargo.lock"] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(input).display()
        );
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");

    let object = out.join("causeway.bpf.o");
    let bytes = match Toolchain::find() {
        Ok(toolchain) => {
            for tool in [&toolchain.linker.path, &toolchain.compiler.rustc] {
                println!("cargo::rerun-if-changed={}", tool.display());
            }
            compile(&toolchain, workspace, &out)?
        }
        Err(missing) => {
            stub(&missing)?;
            Vec::new()
        }
    };
    // An unchanged object keeps its time stamp, so that nothing above is compiled again.
    if fs::read(&object).ok().as_ref() != Some(&bytes) {
        fs::write(&object, &bytes).with_context(|| format!("cannot write {}", object.display()))?;
    }
    println!("cargo::rustc-env=CAUSEWAY_BPF_OBJECT={}", object.display());
    Ok(())
}

/// Runs cargo for the BPF target and returns the linked object.
fn compile(toolchain: &Toolchain, workspace: &Path, out: &Path) -> Result<Vec<u8>> {
    let target = match variable("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "big" => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    // A folder of its own: cargo holds a lock on the outer one for as long as we run.
    let target_dir = out.join("bpf");
    let status = toolchain
        .cargo(workspace, &variable("CARGO_CFG_TARGET_ARCH")?)
        .args([
            "build",
            "--locked",
            "-Zbuild-std=core",
            "--package",
            PACKAGE,
        ])
        .args([
            "--bin",
            EXECUTABLE,
            "--profile",
            PROFILE,
            "--target",
            target,
        ])
        .arg("--target-dir")
        .arg(&target_dir)
        .status()
        .context("cannot start cargo for the BPF target")?;
    if !status.success() {
        bail!(
            "{PACKAGE} does not build for {target} with {}: see the compiler's messages above",
            toolchain.compiler.rustc.display()
        );
    }
    let built = target_dir.join(target).join(PROFILE).join(EXECUTABLE);
    fs::read(&built).with_context(|| format!("cannot read {}", built.display()))
}

/// Says what to install; only a debug build may go on without an object.
fn stub(missing: &Missing) -> Result<()> {
    let told = missing.left_out(&variable("PROFILE")?);
    for warning in told.map_err(anyhow::Error::msg)? {
        println!("cargo::warning={warning}");
    }
    // A path that does not exist makes cargo run this script again next time.
    println!("cargo::rerun-if-changed=build/no-bpf-toolchain-yet");
    Ok(())
}

fn variable(name: &str) -> Result<String> {
    env::var(name).with_context(|| format!("cargo has not set {name}"))
}
