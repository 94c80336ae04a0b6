//! The daemon's engine against this machine's kernel: start, change, failure, restart.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use crate::world::{World, ip};
use proxy_common::abi::{DeviceRole, Flow, FlowKey, Service, ServiceKey, V4, flow_state};
use proxy_common::wire::{Be16, protocol};
use proxy_user::config::{Config, XdpMode};
use proxy_user::daemon::Engine;
use proxy_user::dataplane::Ticks;
use proxy_user::dataplane::attach::detach_all;
use proxy_user::source::assemble::Policy;
use proxy_user::source::manifests::Manifests;

pub(crate) const NODE: &str = r"
apiVersion: v1
kind: Node
metadata: {name: node1}
spec: {podCIDRs: [10.1.0.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
";

pub(crate) fn service(name: &str, address: &str, pods: &[&str]) -> String {
    let endpoints: Vec<_> = pods
        .iter()
        .map(|pod| format!("{{addresses: [{pod}], nodeName: node1, conditions: {{ready: true}}}}"))
        .collect();
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{clusterIP: {address}, clusterIPs: [{address}], ports: [{{port: 80, targetPort: 8080}}]}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-1\n  \
         namespace: shop\n  labels: {{kubernetes.io/service-name: {name}}}\naddressType: IPv4\n\
         ports: [{{port: 8080, protocol: TCP}}]\nendpoints: [{}]\n",
        endpoints.join(", ")
    )
}

/// A node with an uplink and a pod, a configuration and a directory of manifests.
pub(crate) struct Node {
    folder: tempfile::TempDir,
    pub(crate) config: Arc<Config>,
    pub(crate) world: World,
}

impl Node {
    pub(crate) fn new(name: &str, maps: &str) -> Self {
        let world = World::new(name);
        ip(&["link", "add", "up0", "type", "veth", "peer", "name", "far0"]);
        ip(&[
            "link", "add", "pod1", "type", "veth", "peer", "name", "far1",
        ]);
        ip(&["addr", "add", "192.0.2.1/24", "dev", "up0"]);
        for device in ["up0", "far0", "pod1", "far1"] {
            ip(&["link", "set", device, "up"]);
        }
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("manifests")).unwrap();
        let text = format!(
            "version = 1\ninstance = \"{name}\"\nnode.name = \"node1\"\n\
             devices.uplinks = [\"up*\"]\ndevices.pods = [\"pod*\"]\n\
             manifests.directory = \"manifests\"\nstate.directory = \"{}\"\n[maps]\n{maps}\n",
            folder.path().join("state").display()
        );
        let config = Config::parse(&folder.path().join("causeway.toml"), &text).unwrap();
        Self {
            folder,
            config: Arc::new(config),
            world,
        }
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.folder.path().join("manifests")
    }

    pub(crate) fn write(&self, file: &str, text: &str) {
        fs::write(self.manifests().join(file), text).unwrap();
    }

    pub(crate) fn start(&self) -> Engine {
        let mut engine = Engine::start(Arc::clone(&self.config)).unwrap();
        self.scan(&mut engine);
        engine
    }

    pub(crate) fn scan(&self, engine: &mut Engine) {
        let snapshot = self.reader().scan();
        assert_eq!(snapshot.counts.errors, 0, "{:?}", snapshot.notices);
        engine.set_snapshot(Arc::new(snapshot));
    }

    /// Without copies of earlier manifests.
    pub(crate) fn reader(&self) -> Manifests {
        let policy = Policy {
            node: "node1".to_owned(),
            external_ranges: Vec::new(),
        };
        Manifests::new(self.manifests(), policy)
    }

    /// A start that finds the manifests as they are, and its first round.
    pub(crate) fn run(&self, mut manifests: Manifests) -> (Engine, Manifests) {
        let mut engine = Engine::start(Arc::clone(&self.config)).unwrap();
        engine.set_snapshot(Arc::new(manifests.scan()));
        assert!(!engine.round().unwrap());
        if let Some(job) = manifests.unsaved() {
            job.run().unwrap();
        }
        (engine, manifests)
    }
}

pub(crate) const SMALL: &str =
    "services = 512\nfrontends = 512\nbackends = 512\nslots = 1024\naddresses = 512\nflows = 1024";

pub(crate) fn key(address: [u8; 4]) -> ServiceKey<V4> {
    ServiceKey {
        address: std::net::Ipv4Addr::from(address).into(),
        port: Be16::new(80),
        protocol: protocol::TCP,
        pad: 0,
    }
}

#[test]
fn what_others_change_is_put_right() {
    let node = Node::new("ks-repair", SMALL);
    node.write("node.yaml", NODE);
    node.write("web.yaml", &service("web", "10.96.0.1", &["10.1.0.1"]));
    let mut engine = node.start();
    engine.round().unwrap();
    let view = engine.view();
    let services = &view.maps().services_v4;
    let right = services.entries().unwrap();
    services.remove(&key([10, 96, 0, 1])).unwrap();
    services
        .put(&key([10, 96, 0, 9]), &Service::default())
        .unwrap();
    engine.reread().unwrap();
    assert!(!engine.round().unwrap());
    assert_eq!(services.entries().unwrap(), right);
    detach_all(view.folder()).unwrap();
}

#[test]
fn a_full_map_stops_only_what_does_not_fit() {
    let node = Node::new(
        "ks-full",
        &SMALL.replace("frontends = 512", "frontends = 256"),
    );
    node.write("node.yaml", NODE);
    for number in 1..=260 {
        let address = format!("10.96.{}.{}", number / 250, number % 250 + 1);
        node.write(
            &format!("{number}.yaml"),
            &service(&format!("s{number}"), &address, &["10.1.0.1"]),
        );
    }
    let mut engine = node.start();
    assert!(engine.round().unwrap(), "something is still to be done");
    let current = engine.view().current();
    assert_eq!(current.pending.len(), 4, "{:?}", current.pending);
    assert_eq!(
        engine.view().maps().services_v4.entries().unwrap().len(),
        256
    );
    assert!(current.attached.iter().all(|device| device.tc != "off"));
    // Room again: what was pending is done by the next round.
    for number in 1..=4 {
        fs::remove_file(node.manifests().join(format!("{number}.yaml"))).unwrap();
    }
    node.scan(&mut engine);
    let unfinished = engine.round().unwrap();
    // Deletions come after writes, so the full map empties in this round and fills in the next.
    assert!(!unfinished || !engine.round().unwrap());
    assert_eq!(
        engine.view().maps().services_v4.entries().unwrap().len(),
        256
    );
    assert!(engine.view().current().pending.is_empty());
    detach_all(engine.view().folder()).unwrap();
}

#[test]
fn devices_that_come_and_go_are_followed() {
    let node = Node::new("ks-devices", SMALL);
    node.write("node.yaml", NODE);
    let mut engine = node.start();
    engine.round().unwrap();
    let view = engine.view();
    let devices = || view.maps().devices.entries().unwrap();
    assert_eq!(devices().len(), 3);
    ip(&[
        "link", "add", "pod2", "type", "veth", "peer", "name", "far2",
    ]);
    fs::write("/proc/sys/net/ipv4/conf/pod2/rp_filter", "1").unwrap();
    engine.round().unwrap();
    let added = view
        .current()
        .attached
        .iter()
        .any(|device| device.name == "pod2" && device.tc != "off");
    assert!(added);
    let pods = devices()
        .iter()
        .filter(|(_, device)| device.role == DeviceRole::Pod as u32)
        .count();
    assert_eq!(pods, 2);
    assert_eq!(
        fs::read_to_string("/proc/sys/net/ipv4/conf/pod2/rp_filter")
            .unwrap()
            .trim(),
        "2"
    );
    ip(&["link", "del", "pod2"]);
    engine.round().unwrap();
    assert_eq!(devices().len(), 3);
    // Both directions of two devices, and what leaves by lo.
    assert_eq!(view.folder().pinned_links().unwrap().len(), 5);
    assert!(
        !view
            .current()
            .attached
            .iter()
            .any(|device| device.name == "pod2")
    );
    detach_all(view.folder()).unwrap();
}

#[test]
fn connections_that_are_over_leave_the_tables() {
    let node = Node::new("ks-sweep", SMALL);
    node.write("node.yaml", NODE);
    let mut engine = node.start();
    engine.round().unwrap();
    let view = engine.view();
    let now = Ticks::load().unwrap().now().unwrap();
    let hour = 3_600 * view.clock().hz / 256;
    let pair = |port: u16, last_seen: u32| {
        let source = std::net::Ipv4Addr::new(192, 0, 2, 9).into();
        let key = FlowKey::<V4> {
            source,
            source_port: Be16::new(port),
            protocol: protocol::UDP,
            ..FlowKey::default()
        };
        let state = flow_state::SEEN | flow_state::ORIGINAL;
        let flow = Flow::<V4> {
            last_seen,
            state,
            source,
            source_port: Be16::new(port),
            destination: std::net::Ipv4Addr::new(10, 1, 0, 1).into(),
            packets: 7,
            ..Flow::default()
        };
        let back = Flow::<V4> {
            state: flow_state::SEEN,
            source: key.destination,
            destination: source,
            source_port: key.destination_port,
            destination_port: key.source_port,
            ..flow
        };
        [(key, flow), (flow.peer_key(protocol::UDP), back)]
    };
    let flows = &view.maps().flows_v4;
    let old = now.wrapping_sub(hour);
    let all: Vec<_> = (0..400)
        .flat_map(|port| pair(port, if port < 300 { old } else { now }))
        .collect();
    flows.put_all(&all).unwrap();
    // A half that is young, and one that is old.
    flows
        .put_all(&[pair(500, now)[1], pair(501, old)[1]])
        .unwrap();
    // No backend 0 of generation 0 exists: these connections have lost theirs, and wait 10 s.
    engine.sweep().unwrap();
    let swept = view.current().swept.clone();
    assert_eq!(
        (swept.entries_v4, swept.removed, swept.orphans, swept.live),
        (802, 300, 1, 100)
    );
    assert_eq!(flows.entries().unwrap().len(), 201);
    assert!(flows.get(&pair(500, now)[1].0).unwrap().is_some());
    let totals = &view.current().totals;
    assert_eq!(
        totals
            .services
            .values()
            .map(|usage| usage.live)
            .sum::<u64>(),
        100
    );
    detach_all(view.folder()).unwrap();
}

#[test]
fn ports_are_reserved_until_detached() {
    const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    let node = Node::new("ks-ports", SMALL);
    fs::write(RESERVED, "8080").unwrap();
    let mut engine = node.start();
    engine.round().unwrap();
    assert_eq!(
        fs::read_to_string(RESERVED).unwrap().trim(),
        "8080,61000-65535"
    );
    detach_all(engine.view().folder()).unwrap();
    assert_eq!(fs::read_to_string(RESERVED).unwrap().trim(), "8080");
}

#[test]
fn metrics_are_rendered() {
    let node = Node::new("ks-metrics", SMALL);
    node.write("node.yaml", NODE);
    node.write("web.yaml", &service("web", "10.96.0.1", &["10.1.0.1"]));
    let mut engine = node.start();
    engine.round().unwrap();
    let text = proxy_user::telemetry::metrics::render(&engine.view()).unwrap();
    for line in [
        "causeway_info{version=\"0.1.0\",instance=\"ks-metrics\",node=\"node1\"} 1",
        "causeway_dropped_packets_total{reason=\"no-endpoint\"} 0",
        "causeway_flow_entries_limit{family=\"ipv6\"} 1024",
        "causeway_services 1",
        "causeway_backends 1",
        "causeway_sync_pending_operations 0",
        "causeway_device_attached{device=\"pod1\",xdp=\"off\",tc=\"tcx\"} 1",
    ] {
        assert!(text.lines().any(|held| held == line), "{line}\n{text}");
    }
    detach_all(engine.view().folder()).unwrap();
}

#[test]
fn xdp_is_attached_as_configured_and_odd_pod_devices_are_found() {
    let node = Node::new("ks-xdp", SMALL);
    ip(&["link", "add", "pod-bridge", "type", "bridge"]);
    node.write("node.yaml", NODE);
    let mut engine = node.start();
    engine.round().unwrap();
    for (mode, expected) in [
        (XdpMode::Auto, "off"),
        (XdpMode::Native, "native"),
        (XdpMode::Generic, "generic"),
        (XdpMode::Off, "off"),
        (XdpMode::Native, "native"),
    ] {
        let config = Config {
            xdp: mode,
            ..(*node.config).clone()
        };
        engine.set_config(Arc::new(config));
        assert!(!engine.round().unwrap(), "{mode:?}");
        let current = engine.view().current();
        let found: Vec<_> = current
            .attached
            .iter()
            .map(|device| (device.name.as_str(), device.xdp, device.tc))
            .collect();
        let expected = [
            ("lo", "off", "tcx"),
            ("up0", expected, "tcx"),
            ("pod1", "off", "tcx"),
            ("pod-bridge", "off", "tcx"),
        ];
        assert_eq!(found, expected, "{mode:?}");
        let mut findings = current.findings.iter().map(|finding| &finding.problem);
        let odd = findings
            .find(|problem| problem.contains("devices.pods"))
            .unwrap();
        assert!(
            odd.starts_with("pod-bridge ") && odd.contains("a bridge, not a veth"),
            "{odd}"
        );
    }
    ip(&["link", "del", "pod-bridge"]);
    engine.round().unwrap();
    let findings = &engine.view().current().findings;
    assert!(!findings.iter().any(|f| f.problem.contains("devices.pods")));
    detach_all(engine.view().folder()).unwrap();
}
