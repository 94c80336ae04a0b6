//! The daemon's engine against this machine's kernel: start, change, failure, restart.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::world::{World, ip};
use proxy_common::abi::{DeviceRole, Flow, FlowKey, Service, ServiceKey, V4, flow_state};
use proxy_common::wire::{Be16, protocol};
use proxy_user::config::Config;
use proxy_user::daemon::Engine;
use proxy_user::dataplane::Ticks;
use proxy_user::dataplane::attach::detach_all;
use proxy_user::source::assemble::Policy;
use proxy_user::source::manifests::Manifests;

const NODE: &str = r"
apiVersion: v1
kind: Node
metadata: {name: node1}
spec: {podCIDRs: [10.1.0.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
";

fn service(name: &str, address: &str, pods: &[&str]) -> String {
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
struct Node {
    folder: tempfile::TempDir,
    config: Arc<Config>,
    world: World,
}

impl Node {
    fn new(name: &str, maps: &str) -> Self {
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
             manifests.directory = \"manifests\"\nstate.directory = {:?}\n[maps]\n{maps}\n",
            folder.path().join("state")
        );
        let config = Config::parse(&folder.path().join("causeway.toml"), &text).unwrap();
        Self {
            folder,
            config: Arc::new(config),
            world,
        }
    }

    fn manifests(&self) -> PathBuf {
        self.folder.path().join("manifests")
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.manifests().join(file), text).unwrap();
    }

    fn start(&self) -> Engine {
        let mut engine = Engine::start(Arc::clone(&self.config)).unwrap();
        self.scan(&mut engine);
        engine
    }

    fn scan(&self, engine: &mut Engine) {
        let snapshot = self.reader().scan();
        assert_eq!(snapshot.counts.errors, 0, "{:?}", snapshot.notices);
        engine.set_snapshot(Arc::new(snapshot));
    }

    /// Without copies of earlier manifests.
    fn reader(&self) -> Manifests {
        let policy = Policy {
            node: "node1".to_owned(),
            external_ranges: Vec::new(),
        };
        Manifests::new(self.manifests(), policy)
    }

    /// A start that finds the manifests as they are, and its first round.
    fn run(&self, mut manifests: Manifests) -> (Engine, Manifests) {
        let mut engine = Engine::start(Arc::clone(&self.config)).unwrap();
        engine.set_snapshot(Arc::new(manifests.scan()));
        assert!(!engine.round().unwrap());
        if let Some(job) = manifests.unsaved() {
            job.run().unwrap();
        }
        (engine, manifests)
    }
}

const SMALL: &str =
    "services = 512\nfrontends = 512\nbackends = 512\nslots = 1024\naddresses = 512\nflows = 1024";

fn key(address: [u8; 4]) -> ServiceKey<V4> {
    ServiceKey {
        address: std::net::Ipv4Addr::from(address).into(),
        port: Be16::new(80),
        protocol: protocol::TCP,
        pad: 0,
    }
}

#[test]
fn a_restart_changes_nothing_and_a_change_only_what_it_must() {
    let node = Node::new("ks-restart", SMALL);
    node.write("node.yaml", NODE);
    // A single backend has index 0, so that the slots end with zeros.
    node.write("web.yaml", &service("web", "10.96.0.1", &["10.1.0.1"]));
    let mut engine = node.start();
    assert!(!engine.round().unwrap());
    let view = engine.view();
    let current = view.current();
    assert!(current.sync.unwrap().done > 0);
    assert!(
        current
            .attached
            .iter()
            .all(|device| device.problems.is_empty() && device.tc != "off")
    );
    let names: Vec<_> = current
        .attached
        .iter()
        .map(|device| device.name.as_str())
        .collect();
    assert_eq!(names, ["lo", "up0", "pod1"]);
    assert_eq!(
        view.maps()
            .services_v4
            .get(&key([10, 96, 0, 1]))
            .unwrap()
            .unwrap()
            .slots,
        1
    );
    let links = |folder: &proxy_user::dataplane::PinFolder| folder.pinned_links().unwrap();
    let before = links(view.folder());

    // As after kill -9: nothing was done at the end.
    std::mem::forget(engine);
    let mut engine = node.start();
    assert!(!engine.round().unwrap());
    let view = engine.view();
    assert_eq!(
        view.current().sync.unwrap().done,
        0,
        "a restart writes nothing"
    );
    assert_eq!(links(view.folder()), before);

    // One more backend: one backend, one range of slots, one service; and filter bits.
    node.write(
        "web.yaml",
        &service("web", "10.96.0.1", &["10.1.0.1", "10.1.0.2"]),
    );
    node.scan(&mut engine);
    assert!(!engine.round().unwrap());
    let done = engine.view().current().sync.unwrap().done;
    assert!((3..=5).contains(&done), "{done}");
    assert_eq!(
        view.maps()
            .services_v4
            .get(&key([10, 96, 0, 1]))
            .unwrap()
            .unwrap()
            .slots,
        2
    );

    // A service that goes takes its records with it; the filter is left to the sweeper.
    fs::remove_file(node.manifests().join("web.yaml")).unwrap();
    node.scan(&mut engine);
    engine.round().unwrap();
    assert_eq!(view.maps().services_v4.entries().unwrap(), []);
    assert_eq!(view.maps().objects.entries().unwrap(), []);
    let bits = |view: &proxy_user::daemon::View| -> u32 {
        view.maps()
            .filter
            .entries()
            .unwrap()
            .iter()
            .map(|(_, bits)| bits.count_ones())
            .sum()
    };
    let before = bits(&view);
    engine.sweep().unwrap();
    assert!(bits(&view) < before);
    detach_all(view.folder()).unwrap();
    assert!(!Path::new("/sys/fs/bpf/causeway").exists());
    drop(node.world);
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

fn slots(engine: &Engine, address: [u8; 4]) -> Option<u32> {
    let view = engine.view();
    let service = view.maps().services_v4.get(&key(address)).unwrap();
    service.map(|service| service.slots)
}

#[test]
fn a_start_with_broken_manifests_changes_nothing_if_there_is_a_copy() {
    let node = Node::new("ks-copies", SMALL);
    node.write("node.yaml", NODE);
    let pods = ["10.1.0.1", "10.1.0.2"];
    node.write("web.yaml", &service("web", "10.96.0.1", &pods));
    node.write("db.yaml", &service("db", "10.96.0.2", &pods));
    let reader = || node.reader().with_copies(&node.config.state);
    let (engine, _) = node.run(reader());
    std::mem::forget(engine);
    node.write("web.yaml", "kind: [");
    let broken = service("db", "10.96.0.2", &["10.1.0.300"]);
    node.write("db.yaml", &broken);
    let (engine, _) = node.run(reader());
    let current = engine.view().current();
    assert_eq!(current.sync.unwrap().done, 0, "nothing is written");
    assert_eq!(current.snapshot.counts.stale, 3, "{:?}", current.notices);
    detach_all(engine.view().folder()).unwrap();
}

/// Nothing is taken away whose file or object was never read since the start; all else goes on.
#[test]
fn a_start_with_broken_manifests_takes_nothing_away_without_a_copy() {
    let node = Node::new("ks-held", SMALL);
    node.write("node.yaml", NODE);
    let pods = ["10.1.0.1", "10.1.0.2"];
    let good = service("web", "10.96.0.1", &pods);
    node.write("web.yaml", &good);
    node.write("db.yaml", &service("db", "10.96.0.2", &pods));
    node.write("old.yaml", &service("old", "10.96.0.3", &pods));
    let (engine, _) = node.run(node.reader());
    std::mem::forget(engine);

    // The slice of one is broken, another is deleted, a third is new.
    let broken = good.replace("10.1.0.2", "10.1.0.300");
    node.write("web.yaml", &broken);
    fs::remove_file(node.manifests().join("old.yaml")).unwrap();
    node.write("new.yaml", &service("new", "10.96.0.4", &pods[..1]));
    let (mut engine, _) = node.run(node.reader());
    let told = |engine: &Engine| {
        let notices = &engine.view().current().notices;
        let mut messages = notices.iter().map(|notice| notice.message.clone());
        messages.any(|message| message.starts_with("shop/web:80/TCP stays as the kernel has it"))
    };
    assert!(told(&engine), "{:?}", engine.view().current().notices);
    assert_eq!(slots(&engine, [10, 96, 0, 1]), Some(2));
    assert_eq!(slots(&engine, [10, 96, 0, 3]), None, "the source said so");
    assert_eq!(slots(&engine, [10, 96, 0, 4]), Some(1));
    engine.sweep().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    assert!(!engine.round().unwrap());
    let backends = engine.view().maps().backends.entries().unwrap();
    let live = backends.iter().filter(|(_, backend)| backend.family == 4);
    assert_eq!(live.count(), 5);

    // Nothing can be read at all: what is there stays, and a change of it is still made.
    std::mem::forget(engine);
    node.write("web.yaml", "kind: [");
    node.write("db.yaml", &service("db", "10.96.0.2", &pods[..1]));
    let mut manifests;
    (engine, manifests) = node.run(node.reader());
    assert_eq!(slots(&engine, [10, 96, 0, 1]), Some(2));
    assert_eq!(slots(&engine, [10, 96, 0, 2]), Some(1));
    assert!(told(&engine), "{:?}", engine.view().current().notices);

    // It can be read again, and what it says is what counts.
    node.write("web.yaml", &service("web", "10.96.0.1", &pods[1..]));
    engine.set_snapshot(Arc::new(manifests.scan()));
    assert!(!engine.round().unwrap());
    assert_eq!(slots(&engine, [10, 96, 0, 1]), Some(1));
    assert!(!told(&engine));
    fs::remove_file(node.manifests().join("web.yaml")).unwrap();
    engine.set_snapshot(Arc::new(manifests.scan()));
    assert!(!engine.round().unwrap());
    assert_eq!(slots(&engine, [10, 96, 0, 1]), None);
    detach_all(engine.view().folder()).unwrap();
}
