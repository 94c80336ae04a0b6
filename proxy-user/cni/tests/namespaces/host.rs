//! A host with containers, all of them network namespaces, and a runtime's way to call the plugin.

use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use proxy_cni::netlink::Netlink;
use proxy_cni::node::{Attended, NodeFile, Presence};
use proxy_cni::protocol::Success;
use proxy_cni::record::{Records, Store, is_pod_device};
use proxy_cni::sandbox::Sandbox;
use serde_json::{Value, json};

static NEXT: AtomicU32 = AtomicU32::new(0);

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip(8)");
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
}

/// A network namespace with a name, which goes with this.
pub(crate) struct Room(String);

impl Room {
    fn new(name: String) -> Self {
        ip(&["netns", "add", &name]);
        Self(name)
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    /// Runs `work` inside.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let sandbox = Sandbox::open(&self.path()).unwrap().expect("a namespace");
        sandbox.enter(|| Ok(work())).unwrap()
    }

    /// The output of a program inside, which must succeed.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.enter(|| Command::new(program).args(arguments).output().unwrap());
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {output:?}"
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) fn pings(&self, address: IpAddr) {
        self.run("ping", &["-c", "1", "-W", "2", &address.to_string()]);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // Some tests remove it before.
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

/// The thread that plays the daemon; it is away when this is dropped.
pub(crate) struct Daemon {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// What a failed call said.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: u64,
    pub(crate) message: String,
}

/// A container of a runtime.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) room: Room,
}

pub(crate) struct Host {
    pub(crate) room: Room,
    name: String,
    state: tempfile::TempDir,
    made: AtomicU32,
}

impl Host {
    pub(crate) fn new() -> Self {
        let name = format!(
            "cni{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let room = Room::new(name.clone());
        room.run("sysctl", &["-qw", "net.ipv6.conf.all.forwarding=1"]);
        Self {
            room,
            name,
            state: tempfile::tempdir().unwrap(),
            made: AtomicU32::new(0),
        }
    }

    pub(crate) fn state(&self) -> &Path {
        self.state.path()
    }

    pub(crate) fn store(&self) -> Store {
        Store::new(self.state()).unwrap()
    }

    pub(crate) fn records(&self) -> Records {
        self.store().list().unwrap()
    }

    pub(crate) fn container(&self) -> Container {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-c{number}", self.name);
        Container {
            room: Room::new(id.clone()),
            id,
        }
    }

    /// Begins to play the daemon of a node with these pod ranges. One that `attends` gives every
    /// device its programs, so to say.
    pub(crate) fn daemon(&self, ranges: &[&str], attends: bool) -> Daemon {
        let stop = Arc::new(AtomicBool::new(false));
        let (ending, root) = (Arc::clone(&stop), self.state().to_owned());
        let pod_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
        let mut file = NodeFile {
            node: "node1".to_owned(),
            pod_ranges,
            mtu: Some(1400),
            devices: Vec::new(),
        };
        file.write(&root).unwrap();
        let presence = Presence::announce(&root).unwrap();
        let path = self.room.path();
        let thread = std::thread::spawn(move || {
            let _presence = presence;
            let sandbox = Sandbox::open(&path).unwrap().unwrap();
            let watching = sandbox.enter(|| {
                let mut netlink = Netlink::connect().unwrap();
                while !ending.load(Ordering::Relaxed) {
                    let devices = if attends {
                        pod_devices(&mut netlink)
                    } else {
                        Vec::new()
                    };
                    if devices != file.devices {
                        file.devices = devices;
                        file.write(&root).unwrap();
                    }
                    std::thread::sleep(Duration::from_millis(3));
                }
                Ok(())
            });
            watching.unwrap();
        });
        Daemon {
            stop,
            thread: Some(thread),
        }
    }

    /// The devices of pods on the host.
    pub(crate) fn devices(&self) -> Vec<Attended> {
        self.room
            .enter(|| pod_devices(&mut Netlink::connect().unwrap()))
    }

    /// Nothing is left of any pod.
    pub(crate) fn assert_empty(&self) {
        assert_eq!(self.devices(), []);
        assert_eq!(self.records(), Records::default());
        for family in ["-4", "-6"] {
            assert_eq!(
                self.room
                    .run("ip", &[family, "route", "show", "proto", "123"]),
                ""
            );
        }
    }

    /// A program as a runtime calls the plugin.
    pub(crate) fn call(
        &self,
        program: &Path,
        command: &str,
        container: Option<&Container>,
        config: &Value,
        die_at: Option<u32>,
    ) -> Output {
        let mut call = Command::new(program);
        call.env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_PATH", "/nowhere");
        if let Some(container) = container {
            call.env("CNI_CONTAINERID", &container.id)
                .env("CNI_IFNAME", "eth0")
                .env("CNI_NETNS", container.room.path())
                .env(
                    "CNI_ARGS",
                    format!(
                        "IgnoreUnknown=1;K8S_POD_NAMESPACE=demo;K8S_POD_NAME={}",
                        container.id
                    ),
                );
        }
        if let Some(step) = die_at {
            call.env(super::kills::DIE_AT, step.to_string());
        }
        call.stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.room.enter(|| call.spawn().unwrap());
        let mut stdin = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut stdin, config.to_string().as_bytes()).unwrap();
        drop(stdin);
        child.wait_with_output().unwrap()
    }

    /// A network configuration with further keys.
    pub(crate) fn config(&self, version: &str, extra: &Value) -> Value {
        let mut config = json!({
            "cniVersion": version, "name": "pods", "type": "causeway-cni",
            "stateDirectory": self.state(), "waitSeconds": 5,
        });
        for (key, value) in extra.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    }

    /// Calls the plugin; what it answers, or how it refuses.
    pub(crate) fn ask(
        &self,
        command: &str,
        container: Option<&Container>,
        extra: &Value,
    ) -> Result<Value, Refusal> {
        let plugin = Path::new(env!("CARGO_BIN_EXE_causeway-cni"));
        let output = self.call(
            plugin,
            command,
            container,
            &self.config("1.1.0", extra),
            None,
        );
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.signal(), None);
        let value: Value = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).unwrap()
        };
        if output.status.success() {
            return Ok(value);
        }
        assert_eq!(value["cniVersion"], "1.1.0");
        Err(Refusal {
            code: value["code"].as_u64().unwrap(),
            message: format!("{}: {}", value["msg"], value["details"]),
        })
    }

    pub(crate) fn add(&self, container: &Container) -> Success {
        let result = self.ask("ADD", Some(container), &json!({}));
        serde_json::from_value(result.unwrap()).unwrap()
    }

    pub(crate) fn del(&self, container: &Container) {
        assert_eq!(
            self.ask("DEL", Some(container), &json!({})).unwrap(),
            Value::Null
        );
    }

    pub(crate) fn check(&self, container: &Container, result: &Success) -> Result<Value, Refusal> {
        let previous = serde_json::to_value(result).unwrap();
        self.ask("CHECK", Some(container), &json!({ "prevResult": previous }))
    }
}

pub(crate) fn addresses(result: &Success) -> Vec<IpAddr> {
    result.ips.iter().map(|ip| ip.address.addr()).collect()
}

fn pod_devices(netlink: &mut Netlink) -> Vec<Attended> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let mut found = Vec::new();
    for answer in netlink.dump(&request).unwrap() {
        let RouteNetlinkMessage::NewLink(link) = answer else {
            continue;
        };
        found.extend(
            link.attributes
                .iter()
                .find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) if is_pod_device(name) => Some(Attended {
                        ifindex: link.header.index,
                        name: name.clone(),
                    }),
                    _ => None,
                }),
        );
    }
    found
}
