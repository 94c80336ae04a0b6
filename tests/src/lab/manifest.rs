//! Kubernetes objects that describe a world and the services in it.
//!
//! They are written as JSON, which is YAML; `examples/demo` is what people write.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    answer::{ECHO_PORT, HTTP_PORT},
    ask::Means,
    layout::{self, Family, Layout},
};

/// Types of services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// An address inside the cluster.
    ClusterIp,
    /// And a port of every node.
    NodePort,
    /// And an address that the outside can reach.
    LoadBalancer,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

/// A pod that serves, and its conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The pod's number.
    pub pod: u8,
    /// Condition `ready`.
    pub ready: bool,
    /// Condition `serving`.
    pub serving: bool,
    /// Condition `terminating`.
    pub terminating: bool,
}

impl Endpoint {
    /// A pod that takes connections.
    #[must_use]
    pub const fn ready(pod: u8) -> Self {
        Self {
            pod,
            ready: true,
            serving: true,
            terminating: false,
        }
    }

    /// A pod that finishes what it has.
    #[must_use]
    pub const fn terminating(pod: u8) -> Self {
        Self {
            pod,
            ready: false,
            serving: true,
            terminating: true,
        }
    }
}

/// A service of both families with the ports of the servers in the pods: HTTP at 80, the echo server
/// at 7, and on nodes the ports that [`Service::node_port`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name, in the namespace `default`.
    pub name: String,
    /// Its type.
    pub kind: Kind,
    /// Tells its addresses and node ports from those of others; at most 99.
    pub host: u8,
    /// The pods that serve.
    pub endpoints: Vec<Endpoint>,
}

impl Service {
    /// A service of type LoadBalancer with ready endpoints.
    #[must_use]
    pub fn balanced(name: &str, host: u8, pods: &[u8]) -> Self {
        Self {
            name: name.to_owned(),
            kind: Kind::LoadBalancer,
            host,
            endpoints: pods.iter().copied().map(Endpoint::ready).collect(),
        }
    }

    /// The port at the service's own addresses.
    #[must_use]
    pub const fn port(means: Means) -> u16 {
        match means {
            Means::Http => 80,
            Means::Tcp | Means::Udp => 7,
        }
    }

    /// The port of every node.
    #[must_use]
    pub fn node_port(&self, means: Means) -> u16 {
        let base = 30_000 + 10 * u16::from(self.host);
        match means {
            Means::Http => base,
            Means::Tcp | Means::Udp => base + 1,
        }
    }

    /// Where it is reached inside the cluster.
    #[must_use]
    pub fn cluster(&self, means: Means, family: Family) -> SocketAddr {
        SocketAddr::new(layout::cluster_ip(self.host, family), Self::port(means))
    }

    /// Where it is reached from everywhere.
    #[must_use]
    pub fn balancer(&self, means: Means, family: Family) -> SocketAddr {
        SocketAddr::new(layout::load_balancer(self.host, family), Self::port(means))
    }

    /// The Service and its slices.
    #[must_use]
    pub fn objects(&self, layout: Layout) -> Vec<Value> {
        let [v4, v6] = Family::BOTH.map(|family| self.slice(layout, family));
        vec![self.service(), v4, v6]
    }

    fn service(&self) -> Value {
        let addresses = Family::BOTH.map(|family| layout::cluster_ip(self.host, family));
        let ports: Vec<Value> = PORTS
            .into_iter()
            .map(|(means, name, protocol, target)| {
                let mut port = json!({
                    "name": name,
                    "protocol": protocol,
                    "port": Self::port(means),
                    "targetPort": target,
                });
                if self.kind != Kind::ClusterIp {
                    merge(&mut port, "nodePort", self.node_port(means).into());
                }
                port
            })
            .collect();
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": self.name, "namespace": "default"},
            "spec": {
                "type": self.kind.word(),
                "ipFamilyPolicy": "RequireDualStack",
                "ipFamilies": ["IPv4", "IPv6"],
                "clusterIP": addresses[0],
                "clusterIPs": addresses,
                "ports": ports,
            },
        });
        if self.kind == Kind::LoadBalancer {
            let ingress =
                Family::BOTH.map(|family| json!({"ip": layout::load_balancer(self.host, family)}));
            merge(
                &mut object,
                "status",
                json!({"loadBalancer": {"ingress": ingress}}),
            );
        }
        object
    }

    fn slice(&self, layout: Layout, family: Family) -> Value {
        let endpoint = |endpoint: &Endpoint| {
            let Endpoint {
                pod,
                ready,
                serving,
                terminating,
            } = *endpoint;
            json!({
                "addresses": [layout.pod(pod, family)],
                "nodeName": format!("node{}", layout.node_of(pod)),
                "targetRef": {"kind": "Pod", "namespace": "default", "name": format!("pod{pod}")},
                "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
            })
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{}", self.name, family.word()),
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": self.name},
            },
            "addressType": match family {
                Family::V4 => "IPv4",
                Family::V6 => "IPv6",
            },
            "ports": PORTS.map(|(_, name, protocol, target)| {
                json!({"name": name, "protocol": protocol, "port": target})
            }),
            "endpoints": self.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        })
    }
}

/// Means, the port's name, its protocol, and where the servers in the pods listen.
const PORTS: [(Means, &str, &str, u16); 3] = [
    (Means::Http, "http", "TCP", HTTP_PORT),
    (Means::Tcp, "echo", "TCP", ECHO_PORT),
    (Means::Udp, "echo-udp", "UDP", ECHO_PORT),
];

/// The node port of a pod's host ports.
#[must_use]
pub const fn host_port(means: Means) -> u16 {
    match means {
        Means::Http => 8000,
        Means::Tcp | Means::Udp => 7000,
    }
}

/// The Nodes of a world.
#[must_use]
pub fn nodes(layout: Layout) -> Vec<Value> {
    let node = |number: u8| {
        let ranges = Family::BOTH.map(|family| layout::pod_range(number, family).to_string());
        let addresses = Family::BOTH
            .map(|family| json!({"type": "InternalIP", "address": layout::node(number, family)}));
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": format!("node{number}")},
            "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
            "status": {"addresses": addresses},
        })
    };
    layout.nodes().map(node).collect()
}

/// The Pods of a world; those in `with_host_ports` have the ports of [`host_port`].
#[must_use]
pub fn pods(layout: Layout, with_host_ports: &[u8]) -> Vec<Value> {
    let pod = |number: u8| {
        let addresses: [IpAddr; 2] = Family::BOTH.map(|family| layout.pod(number, family));
        let node = layout.node_of(number);
        let ports = PORTS.map(|(means, name, protocol, target)| {
            let mut port = json!({"name": name, "protocol": protocol, "containerPort": target});
            if with_host_ports.contains(&number) {
                merge(&mut port, "hostPort", host_port(means).into());
            }
            port
        });
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": format!("pod{number}"), "namespace": "default"},
            "spec": {
                "nodeName": format!("node{node}"),
                "containers": [{"name": "server", "image": "nginx", "ports": ports}],
            },
            "status": {
                "phase": "Running",
                "hostIP": layout::node(node, Family::V4),
                "podIP": addresses[0],
                "podIPs": addresses.map(|address| json!({"ip": address})),
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        })
    };
    layout.pods().map(pod).collect()
}

/// A Namespace that is like every other but for its number.
#[must_use]
pub fn namespace(number: u32) -> Value {
    let name = format!("marker-{number}");
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// The number of objects that [`write`] has put into the files of a directory.
pub fn count(directory: &Path) -> Result<usize> {
    let mut objects = 0;
    for entry in fs::read_dir(directory)? {
        let text = fs::read_to_string(entry?.path())?;
        objects += text.lines().filter(|line| *line == "---").count();
    }
    Ok(objects)
}

/// Writes objects as the documents of one file, which is replaced in one step.
pub fn write(path: &Path, objects: &[Value]) -> Result<()> {
    let documents: Vec<String> = objects
        .iter()
        .map(|object| format!("---\n{object:#}\n"))
        .collect();
    replace(path, &documents.concat())
}

/// Replaces a file in one step. What is written on the way is no manifest by its name.
pub fn replace(path: &Path, text: &str) -> Result<()> {
    let draft = path.with_extension("draft");
    fs::write(&draft, text).with_context(|| format!("writing {}", draft.display()))?;
    fs::rename(&draft, path).with_context(|| format!("replacing {}", path.display()))
}

fn merge(object: &mut Value, key: &str, value: Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(key.to_owned(), value);
    }
}
