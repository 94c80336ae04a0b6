//! The network that others are compared with: the reference CNI plugins, and kube-proxy with
//! nftables.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::identity::{Identities, Person};
use super::layout::{PODS, Place};
use super::node::{Node, PLUGIN_CONFIGURATION};
use super::programs::Programs;
use super::switch;
use crate::process;

/// Where Debian's containernetworking-plugins has them.
pub(crate) const DEBIAN_PLUGINS: &str = "/usr/lib/cni";

const PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];

/// Makes it on all nodes, whose pod ranges are known by now.
pub(crate) fn install(
    nodes: &[(Node, Vec<String>)],
    programs: &Programs,
    identities: &Identities,
) -> Result<()> {
    for (node, ranges) in nodes {
        process::quiet(node.host.command("sysctl").args([
            "-qw",
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            "net.ipv4.conf.all.rp_filter=0",
            "net.ipv4.conf.default.rp_filter=0",
            "net.ipv4.conf.eth0.rp_filter=0",
        ]))?;
        for (other, _) in nodes
            .iter()
            .filter(|(other, _)| other.number != node.number)
        {
            for range in ranges {
                switch::route(other.host.place(), range, Place::Node(node.number))?;
            }
        }
        kube_proxy(node, programs, identities)?;
        plugins(node, ranges)?;
    }
    Ok(())
}

/// The configuration comes last: with it the kubelet calls the node ready.
fn plugins(node: &Node, ranges: &[String]) -> Result<()> {
    node.install_plugins(Path::new(DEBIAN_PLUGINS), &PLUGINS)?;
    let ranges: Vec<_> = ranges
        .iter()
        .map(|range| json!([{ "subnet": range }]))
        .collect();
    let configuration = json!({
        "cniVersion": "1.0.0",
        "name": "reference",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": ranges,
                    "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    let file = node
        .host
        .write("reference.conflist", configuration.to_string())?;
    process::quiet(
        node.host
            .command("mkdir")
            .args(["-p", PLUGIN_CONFIGURATION]),
    )?;
    process::quiet(
        node.host
            .command("cp")
            .arg(file)
            .arg(format!("{PLUGIN_CONFIGURATION}/10-reference.conflist")),
    )
    .map(drop)
}

fn kube_proxy(node: &Node, programs: &Programs, identities: &Identities) -> Result<()> {
    let configuration = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": { "kubeconfig": identities.kubeconfig(Person::Proxy) },
        "clusterCIDR": PODS,
        "hostnameOverride": node.host.place().to_string(),
        // The limit is the whole machine's, and cannot be set from here.
        "conntrack": { "maxPerCore": 0 },
    });
    let file = node
        .host
        .write("kube-proxy.json", configuration.to_string())?;
    let mut proxy = programs.kubernetes("kube-proxy");
    proxy.arg("--config").arg(file);
    node.host.service("kube-proxy", &proxy)
}
