//! Installs what building, trying and testing need; does nothing where it is there already.

mod apt;
mod cargo_deny;
mod rust;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::process;

pub(crate) use cargo_deny::path as cargo_deny;
pub(crate) use rust::COMPONENT_REMEDY;

/// What the machine is to be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Purpose {
    /// Build everything, the kernel object too
    Build,
    /// and build static executables and an image
    Dist,
    /// and run worlds of network namespaces (demo, bench, wire tests)
    World,
    /// and run an API server of Kubernetes
    ApiServer,
    /// and run a Kubernetes cluster
    Cluster,
    /// and lint, and boot other kernels in virtual machines (but no cluster)
    All,
}

impl Purpose {
    /// True if this needs what `need` needs.
    fn covers(self, need: Self) -> bool {
        match self {
            Self::Build | Self::World => need == Self::Build || need == self,
            Self::ApiServer => matches!(need, Self::Build | Self::World | Self::ApiServer),
            Self::Dist => matches!(need, Self::Build | Self::Dist),
            Self::Cluster => need != Self::All,
            // A cluster's containerd is in the way of those who have Docker's.
            Self::All => !matches!(need, Self::Dist | Self::Cluster),
        }
    }
}

/// One thing that may be missing.
struct Step {
    name: &'static str,
    why: &'static str,
    /// What is missing, as the person is told.
    missing: fn(Purpose) -> Option<String>,
    install: fn(Purpose) -> Result<()>,
}

const STEPS: &[Step] = &[
    Step {
        name: "rustfmt and clippy",
        why: "the pinned toolchain formats and checks the code",
        missing: rust::missing_components,
        install: rust::install_components,
    },
    Step {
        name: "Debian packages",
        why: "tools of the worlds and virtual machines that the tests make",
        missing: apt::missing_packages,
        install: apt::install,
    },
    Step {
        name: "bpf-linker",
        why: "turns LLVM bitcode into the kernel object; rustc has no linker for BPF",
        missing: rust::missing_linker,
        install: rust::install_linker,
    },
    Step {
        name: "BPF compiler",
        why: "core is built from source for BPF, which the pinned stable compiler does not do",
        missing: rust::missing_compiler,
        install: rust::install_compiler,
    },
    Step {
        name: "musl target",
        why: "Rust's library for static executables",
        missing: rust::missing_target,
        install: rust::install_target,
    },
    Step {
        name: "cargo-deny",
        why: "checks licences and sources of dependencies",
        missing: cargo_deny::missing,
        install: cargo_deny::install,
    },
    Step {
        name: "bpffs",
        why: "maps and links are pinned at /sys/fs/bpf, so that a restart loses nothing",
        missing: missing_bpffs,
        install: mount_bpffs,
    },
];

/// Shows each step and why it is there, and does those that are missing.
pub(crate) fn show(purpose: Purpose) -> Result<()> {
    for step in STEPS {
        let state = match (step.missing)(purpose) {
            None => "there",
            Some(_) => "missing",
        };
        println!("{state:<8} {:<19} {}", step.name, step.why);
    }
    run(purpose)
}

/// Does each step that is missing, in order, and says why.
pub(crate) fn run(purpose: Purpose) -> Result<()> {
    let mut done = 0;
    for step in STEPS {
        let Some(what) = (step.missing)(purpose) else {
            continue;
        };
        println!("set-up: {}: {what}", step.name);
        println!("        ({})", step.why);
        if !is_root()? {
            bail!(
                "{} is missing and only root can install it: run this as root",
                step.name
            );
        }
        (step.install)(purpose).with_context(|| format!("cannot install {}", step.name))?;
        if let Some(what) = (step.missing)(purpose) {
            bail!(
                "{} is still missing after its installation: {what}",
                step.name
            );
        }
        done += 1;
    }
    if done == 0 {
        println!("set-up: nothing is missing");
    } else {
        println!("set-up: done");
    }
    Ok(())
}

fn missing_bpffs(purpose: Purpose) -> Option<String> {
    let present = purpose < Purpose::World || mounted_at("/sys/fs/bpf", "bpf");
    (!present).then(|| "not mounted at /sys/fs/bpf".to_owned())
}

fn mount_bpffs(_: Purpose) -> Result<()> {
    process::run(process::command("mount").args(["-t", "bpf", "bpf", "/sys/fs/bpf"]))
}

/// True if a file system of this kind is mounted at this folder.
pub(crate) fn mounted_at(folder: &str, kind: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some(folder) && words.next() == Some(kind)
    })
}

fn is_root() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read our status")?;
    Ok(status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|ids| ids.split_whitespace().nth(1))
        == Some("0"))
}

/// True on a machine that systemd started.
fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}
