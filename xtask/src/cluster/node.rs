//! A node: containerd and the kubelet on a host of their own.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::host::Host;
use super::identity::{Identities, Person};
use super::images::PAUSE_IMAGE;
use super::layout::{DNS_SERVICE, Place};
use super::programs::Programs;
use crate::process;

/// Where containerd looks for network plugins, and for which to use.
pub(crate) const PLUGINS: &str = "/opt/cni/bin";
pub(crate) const PLUGIN_CONFIGURATION: &str = "/etc/cni/net.d";

const SOCKET: &str = "/run/containerd/containerd.sock";

/// A node that runs.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) host: Host,
    pub(crate) number: u8,
}

impl Node {
    /// Starts it with images from these archives; it registers by itself.
    pub(crate) fn start(
        number: u8,
        images: &[PathBuf],
        programs: &Programs,
        identities: &Identities,
    ) -> Result<Self> {
        let host = Host::start(Place::Node(number))?;
        let node = Self { host, number };
        node.containerd()?;
        node.import(images)?;
        node.kubelet(programs, identities)?;
        Ok(node)
    }

    fn import(&self, archives: &[PathBuf]) -> Result<()> {
        for archive in archives {
            let mut ctr = self.host.command("ctr");
            ctr.args(["--namespace=k8s.io", "images", "import"])
                .arg(archive);
            process::quiet(&mut ctr)
                .with_context(|| format!("cannot import {}", archive.display()))?;
        }
        Ok(())
    }

    /// Copies network plugins from `folder` to where containerd looks for them.
    pub(crate) fn install_plugins(&self, folder: &Path, names: &[&str]) -> Result<()> {
        process::quiet(self.host.command("mkdir").args(["-p", PLUGINS]))?;
        process::quiet(
            self.host
                .command("cp")
                .args(names.iter().map(|name| folder.join(name)))
                .arg(PLUGINS),
        )
        .context("cannot copy the network plugins")
        .map(drop)
    }

    fn containerd(&self) -> Result<()> {
        // Root may lack the right to lower scores here, and no controllers of cgroup2 are there.
        let text = format!(
            r#"version = 2
[grpc]
address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = true
disable_cgroup = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{PLUGINS}"
conf_dir = "{PLUGIN_CONFIGURATION}"
"#
        );
        let configuration = self.host.write("containerd.toml", text)?;
        let mut containerd = process::command("containerd");
        containerd.arg("--config").arg(configuration);
        self.host.service("containerd", &containerd)?;
        self.host.wait("containerd", || {
            process::quiet(self.host.command("ctr").arg("version")).map(|_| true)
        })
    }

    fn kubelet(&self, programs: &Programs, identities: &Identities) -> Result<()> {
        let place = self.host.place();
        let configuration = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
            "authentication": {
                "anonymous": { "enabled": false },
                "webhook": { "enabled": true },
                "x509": { "clientCAFile": identities.path("authority.crt") },
            },
            "authorization": { "mode": "Webhook" },
            "clusterDNS": [DNS_SERVICE],
            "clusterDomain": "cluster.local",
            "resolvConf": "",
            // No controllers are there, and what is to be held is the whole machine's.
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": false,
            "enforceNodeAllocatable": [],
            "failSwapOn": false,
            // `host.sh` stands in for what it would set.
            "protectKernelDefaults": true,
            "evictionHard": { "imagefs.available": "0%", "nodefs.available": "0%" },
            // Of images that cannot be fetched again, none is to go when the disk is full.
            "imageGCHighThresholdPercent": 100,
            "maxPods": 200,
            "syncFrequency": "10s",
        });
        let configuration = self.host.write("kubelet.json", configuration.to_string())?;
        let mut kubelet = programs.kubernetes("kubelet");
        kubelet
            .arg("--config")
            .arg(configuration)
            .arg("--kubeconfig")
            .arg(identities.kubeconfig(Person::Node(self.number)))
            .arg(format!("--hostname-override={place}"))
            .arg(format!("--node-ip={},{}", place.v4(), place.v6()))
            .arg(format!(
                "--node-labels=topology.kubernetes.io/zone=z{}",
                self.number
            ));
        self.host.service("kubelet", &kubelet)
    }
}
