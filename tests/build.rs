//! Builds the benchmarks' kernel programs (`bench-ebpf`) and tells the crate where they are.
//!
//! Output: `$OUT_DIR/bench.bpf.o`, whose path the crate reads with `env!("BENCH_BPF_OBJECT")`. Where
//! this machine cannot build for BPF, the file is empty.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::toolchain::Toolchain;

#[expect(
    dead_code,
    reason = "xtask reads the fields that a build does not need"
)]
#[path = "../proxy-user/build/toolchain.rs"]
mod toolchain;

const PACKAGE: &str = "bench-ebpf";
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
        .context("the tests lie outside of a workspace")?;
    for input in ["tests/bench-ebpf", "proxy-user/build", "Cargo.toml"] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(input).display()
        );
    }
    println!("cargo::rerun-if-changed=build.rs");
    let object = out.join("bench.bpf.o");
    let bytes = match Toolchain::find() {
        Ok(toolchain) => compile(&toolchain, workspace, &out)?,
        Err(missing) => {
            println!(
                "cargo::warning=no benchmarks in this build: {missing}; see `cargo xtask setup`"
            );
            // A path that does not exist makes cargo run this script again next time.
            println!("cargo::rerun-if-changed=no-bpf-toolchain-yet");
            Vec::new()
        }
    };
    if fs::read(&object).ok().as_ref() != Some(&bytes) {
        fs::write(&object, &bytes).with_context(|| format!("cannot write {}", object.display()))?;
    }
    println!("cargo::rustc-env=BENCH_BPF_OBJECT={}", object.display());
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
            "--bin",
            PACKAGE,
        ])
        .args(["--profile", PROFILE, "--target", target])
        .arg("--target-dir")
        .arg(&target_dir)
        .status()
        .context("cannot start cargo for the BPF target")?;
    if !status.success() {
        bail!("{PACKAGE} does not build for {target}: see the compiler's messages above");
    }
    let built = target_dir.join(target).join(PROFILE).join(PACKAGE);
    fs::read(&built).with_context(|| format!("cannot read {}", built.display()))
}

fn variable(name: &str) -> Result<String> {
    env::var(name).with_context(|| format!("cargo has not set {name}"))
}
