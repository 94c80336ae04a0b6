//! A world whose pods get everything from the plugin.

use std::{
    io::Write as _,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use proxy_cni::protocol::Success;
use proxy_tests::lab::{
    answer,
    ask::{self, Attempt, Means, Outcome},
    cluster::{Cluster, Hook, binary},
    layout::{Family, Layout, pod_range},
    manifest,
    namespace::Namespace,
    process::Process,
    world::World,
};
use serde_json::{Value, json};

/// Two nodes without pods.
const LAYOUT: Layout = Layout {
    nodes: 2,
    pods_per_node: 0,
    uplink: proxy_tests::lab::layout::Uplink::Plain,
};

/// The longest that an answer may take.
const LIMIT: Duration = Duration::from_secs(2);

/// A world with daemons, and a runtime's side of it.
pub(crate) struct Runtime {
    // Before the world is removed.
    servers: Vec<Process>,
    pub(crate) cluster: Cluster,
    pods: AtomicU32,
}

/// A pod that was added.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) node: u8,
    pub(crate) number: u8,
    pub(crate) room: Namespace,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) result: Success,
}

impl Pod {
    pub(crate) fn address(&self, family: Family) -> Result<IpAddr> {
        let found = self
            .addresses
            .iter()
            .find(|a| a.is_ipv4() == (family == Family::V4));
        found.copied().context("no address of this family")
    }
}

fn run(namespace: &Namespace, program: &str, arguments: &[&str]) -> Result<String> {
    let output = namespace.output(Command::new(program).args(arguments))?;
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    Ok(String::from_utf8(output.stdout)?)
}

impl Runtime {
    /// Nodes that know each other by their Node objects alone.
    pub(crate) fn start(more: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let world = World::build(&format!("c{}x{number}", std::process::id()), LAYOUT)?;
        for node in LAYOUT.nodes() {
            for family in Family::BOTH {
                let range = pod_range(3 - node, family).to_string();
                run(&world.node(node), "ip", &["route", "del", &range])?;
            }
        }
        let directory = Cluster::manifests_of(&world)?;
        manifest::write(&directory.join("nodes.yaml"), &manifest::nodes(LAYOUT))?;
        let more = format!("\n[pod_network]\nenabled = true\n{more}");
        let cluster = Cluster::start_with(world, &binary()?, Hook::Tc, &more)?;
        let runtime = Self {
            servers: Vec::new(),
            cluster,
            pods: AtomicU32::new(0),
        };
        for node in LAYOUT.nodes() {
            runtime.wait_for_status(node)?;
        }
        Ok(runtime)
    }

    pub(crate) fn world(&self) -> &World {
        self.cluster.world()
    }

    pub(crate) fn state(&self, node: u8) -> PathBuf {
        self.world().node_directory(node).join("state/cni")
    }

    pub(crate) fn on_node(&self, node: u8, program: &str, arguments: &[&str]) -> Result<String> {
        run(&self.world().node(node), program, arguments)
    }

    fn wait_for_status(&self, node: u8) -> Result<()> {
        let start = std::time::Instant::now();
        while let Err(error) = self.call(node, "STATUS", None, &json!({})) {
            ensure!(
                start.elapsed() < Duration::from_secs(20),
                "node{node}: {error:#}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Calls the plugin on a node; an error that it answers begins with its number.
    pub(crate) fn call(
        &self,
        node: u8,
        command: &str,
        pod: Option<u8>,
        extra: &Value,
    ) -> Result<Value> {
        let plugin = binary()?.with_file_name("causeway-cni");
        ensure!(
            plugin.is_file(),
            "no {}: `cargo build -p proxy-cni`",
            plugin.display()
        );
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "causeway", "type": "causeway-cni",
            "capabilities": {"portMappings": true}, "stateDirectory": self.state(node),
        });
        if let (Some(config), Some(extra)) = (config.as_object_mut(), extra.as_object()) {
            config.extend(extra.clone());
        }
        let mut call = Command::new(&plugin);
        call.env("CNI_COMMAND", command).env("CNI_PATH", "/");
        if let Some(number) = pod {
            let name = format!("pod{number}");
            let room = self.world().room(&name);
            call.env("CNI_CONTAINERID", &name)
                .env("CNI_IFNAME", "eth0")
                .env("CNI_NETNS", Path::new("/run/netns").join(room.name()))
                .env(
                    "CNI_ARGS",
                    format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}"),
                );
        }
        let output = self.spoken(node, call, &config)?;
        let text = String::from_utf8(output.stdout)?;
        if output.status.success() {
            return Ok(serde_json::from_str(&text).unwrap_or_default());
        }
        let error: Value = serde_json::from_str(&text).with_context(|| format!("{text:?}"))?;
        let part = |key| error.get(key).map(Value::to_string).unwrap_or_default();
        bail!("{} {}: {}", part("code"), part("msg"), part("details"))
    }

    fn spoken(&self, node: u8, mut call: Command, config: &Value) -> Result<Output> {
        call.stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut child = self.world().node(node).enter(|| call.spawn())??;
        let mut stdin = child.stdin.take().context("no stdin")?;
        stdin.write_all(config.to_string().as_bytes())?;
        drop(stdin);
        Ok(child.wait_with_output()?)
    }

    /// A pod on a node, with a web server.
    pub(crate) fn add(&mut self, node: u8, extra: &Value) -> Result<Pod> {
        let number = u8::try_from(self.pods.fetch_add(1, Ordering::Relaxed) + 1)?;
        let room = self.world().room(&format!("pod{number}"));
        let made = Command::new("ip")
            .args(["netns", "add", room.name()])
            .status()?;
        ensure!(made.success(), "ip netns add {}", room.name());
        let result = self.call(node, "ADD", Some(number), extra)?;
        let result: Success = serde_json::from_value(result)?;
        let lab = Path::new(env!("CARGO_BIN_EXE_lab"));
        let servers = answer::serve(self.world(), number, lab)?;
        self.servers.extend(servers);
        Ok(Pod {
            node,
            number,
            room,
            addresses: result.ips.iter().map(|ip| ip.address.addr()).collect(),
            result,
        })
    }

    /// A web server at the client outside.
    pub(crate) fn serve_client(&mut self) -> Result<()> {
        let lab = Path::new(env!("CARGO_BIN_EXE_lab"));
        let servers = answer::serve_in(self.world(), "client", &self.world().client(), lab)?;
        self.servers.extend(servers);
        Ok(())
    }

    pub(crate) fn del(&self, pod: &Pod) -> Result<()> {
        self.call(pod.node, "DEL", Some(pod.number), &json!({}))
            .map(drop)
    }

    pub(crate) fn kill_daemon(&mut self, node: u8) -> Result<()> {
        self.cluster.end(node, Signal::SIGKILL)
    }

    pub(crate) fn restart_daemon(&mut self, node: u8) -> Result<()> {
        self.cluster.restart(node)?;
        self.wait_for_status(node)
    }
}

/// Asks a web server with curl: its pod's name, and the client that it saw.
pub(crate) fn curl(from: &Namespace, address: IpAddr, port: u16) -> Result<(String, IpAddr)> {
    let Attempt { outcome, .. } = ask::ask(from, Means::Http, (address, port).into(), LIMIT)?;
    match outcome {
        Outcome::Answered { pod, client } => Ok((pod, client.ip())),
        other => bail!("{address} port {port}: {other}"),
    }
}

pub(crate) fn is_pinged(from: &Namespace, address: IpAddr) -> Result<bool> {
    ask::ping(from, address, LIMIT)
}
