//! Tools, rights and mounts.

use std::fs;

use anyhow::{Context as _, Result};

use super::{Finding, Standing};
use crate::setup::{COMPONENT_REMEDY, cargo_deny, mounted_at};
use crate::toolchain::{Compiler, LINKER_VERSION, Linker, Origin};
use crate::{process, workspace};

const SETUP: &str = "cargo xtask setup";

/// Compilers and linkers.
pub(super) fn toolchain() -> Vec<Finding> {
    let finding = |name: &str, standing, detail: String, remedy: &str| Finding {
        area: "toolchain",
        name: name.to_owned(),
        standing,
        since: "",
        detail,
        remedy: remedy.to_owned(),
    };
    let mut findings = Vec::new();

    let version = process::answer(process::cargo().args(["version"])).unwrap_or_default();
    findings.push(finding(
        "cargo (stable, pinned)",
        Standing::required(!version.is_empty()),
        version.trim().to_owned(),
        "install rustup; rust-toolchain.toml names the release",
    ));
    for verb in ["fmt", "clippy"] {
        let answer = process::answer(process::cargo().args([verb, "--version"]));
        findings.push(finding(
            &format!("cargo {verb}"),
            Standing::optional(answer.is_some()),
            answer.unwrap_or_default().trim().to_owned(),
            COMPONENT_REMEDY,
        ));
    }

    let linker = Linker::find();
    findings.push(finding(
        "bpf-linker",
        Standing::required(linker.is_some()),
        linker.as_ref().map_or_else(
            || format!("wanted: {LINKER_VERSION}"),
            |linker| {
                let llvm = linker
                    .llvm
                    .map_or_else(|| "LLVM built in".to_owned(), |llvm| format!("LLVM {llvm}"));
                format!("{} ({llvm})", linker.path.display())
            },
        ),
        SETUP,
    ));
    let compiler = linker.as_ref().map(Compiler::find);
    findings.push(match compiler {
        Some(Ok(compiler)) => {
            let origin = match compiler.origin {
                Origin::Rustup => "rustup nightly",
                Origin::Debian => "Debian rustc-web",
            };
            finding(
                "compiler for BPF",
                Standing::Present,
                format!("{origin} {} (LLVM {})", compiler.release, compiler.llvm),
                "",
            )
        }
        Some(Err(missing)) => finding(
            "compiler for BPF",
            Standing::Missing,
            missing.to_string(),
            SETUP,
        ),
        None => finding(
            "compiler for BPF",
            Standing::Missing,
            "cannot be chosen before the linker is there".to_owned(),
            SETUP,
        ),
    });

    let deny = cargo_deny();
    findings.push(finding(
        "cargo-deny",
        Standing::optional(deny.is_some()),
        deny.map(|path| path.display().to_string())
            .unwrap_or_default(),
        SETUP,
    ));
    let qemu = process::find("qemu-system-x86_64");
    findings.push(finding(
        "qemu-system-x86_64",
        Standing::optional(qemu.is_some()),
        qemu.map_or_else(
            || "only for `cargo xtask test vm`".to_owned(),
            |path| path.display().to_string(),
        ),
        SETUP,
    ));
    findings
}

/// Capabilities that the daemon uses; the numbers are those of `linux/capability.h`.
pub(super) fn rights() -> Result<Vec<Finding>> {
    const CAPABILITIES: [(&str, u32, &str, &str); 4] = [
        (
            "CAP_NET_ADMIN",
            12,
            "2.2",
            "attaches programs, reads and writes routes",
        ),
        (
            "CAP_SYS_ADMIN",
            21,
            "2.2",
            "enters namespaces, mounts bpffs (tests and demo)",
        ),
        (
            "CAP_PERFMON",
            38,
            "5.8",
            "lets the verifier allow pointer arithmetic",
        ),
        ("CAP_BPF", 39, "5.8", "loads programs and makes maps"),
    ];
    let status = fs::read_to_string("/proc/self/status").context("cannot read our status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .context("no CapEff in /proc/self/status")?;
    Ok(CAPABILITIES
        .into_iter()
        .map(|(name, bit, since, why)| Finding {
            area: "rights",
            name: name.to_owned(),
            standing: Standing::required(effective >> bit & 1 == 1),
            since,
            detail: why.to_owned(),
            remedy: format!("run as root, or with ambient {name}"),
        })
        .collect())
}

/// Mounts and limits.
pub(super) fn system() -> Result<Vec<Finding>> {
    let finding = |name: &str, standing, since, detail: String, remedy: &str| Finding {
        area: "system",
        name: name.to_owned(),
        standing,
        since,
        detail,
        remedy: remedy.to_owned(),
    };
    let bpffs = mounted_at("/sys/fs/bpf", "bpf");
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    let cgroup2 = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|words| words.get(2) == Some(&"cgroup2"))
        .and_then(|words| words.get(1).map(|&folder| folder.to_owned()));
    let cache = workspace::cache()?;
    let kernels = fs::read_dir(cache.join("kernels")).map_or(0, Iterator::count);
    Ok(vec![
        finding(
            "bpffs",
            Standing::required(bpffs),
            "4.4",
            "/sys/fs/bpf, for pins".to_owned(),
            "mount -t bpf bpf /sys/fs/bpf",
        ),
        finding(
            "cgroup2",
            Standing::optional(cgroup2.is_some()),
            "4.5",
            cgroup2.unwrap_or_else(|| "not used yet".to_owned()),
            "mount -t cgroup2 none /sys/fs/cgroup",
        ),
        finding(
            "kernels for virtual machines",
            Standing::optional(kernels > 0),
            "",
            format!("{kernels} downloaded"),
            "cargo xtask test vm",
        ),
    ])
}
