//! Sockets of a node's processes that are led to backends before there is a packet.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use proxy_tests::lab::{
    ask::Means,
    cgroup,
    cluster::{Cluster, Hook, binary},
    dial::{Dial, Told, Way},
    layout::{self, Family, Layout},
    manifest::{self, Endpoint, Service},
};
use serde_json::{Value, json};

use crate::worlds::{self, LAB};

/// A world whose daemons lead the sockets of one cgroup.
struct Place {
    cluster: Cluster,
    cgroup: PathBuf,
}

type Case = (&'static str, fn(&Place) -> Result<()>);

const CASES: [Case; 7] = [
    ("leads-every-kind", every_kind),
    ("meets-the-backends-that-tc-does", same_backends),
    ("other-cgroups-are-left-alone", other_cgroup),
    ("restricted-services-are-left-to-tc", restricted),
    ("no-endpoint-is-refused", no_endpoint),
    ("loopback-ports-where-a-firewall-drops", loopback),
    ("switched-at-run-time", switched),
];

/// The world that cases share, one at a time.
type Shared = Arc<Mutex<Option<Result<Place, String>>>>;

pub(crate) fn trials() -> Vec<Trial> {
    let shared = Shared::default();
    let mut trials: Vec<Trial> = CASES
        .into_iter()
        .map(|(name, case)| {
            let shared = Arc::clone(&shared);
            Trial::test(format!("sockets/{name}"), move || {
                let mut place = shared.lock().unwrap_or_else(PoisonError::into_inner);
                let made = || Place::make().map_err(|error| format!("{error:#}"));
                let place = place.get_or_insert_with(made);
                let place = place.as_ref().map_err(String::clone)?;
                Ok(case(place)?)
            })
        })
        .collect();
    trials.push(Trial::test("sockets/of-pods-if-asked-for", || {
        Ok(of_pods()?)
    }));
    trials.push(Trial::test("sockets/daemon-killed-and-detached", || {
        Ok(killed_and_detached()?)
    }));
    trials
}

/// What the configuration of a node says of sockets.
fn section(cgroup: &Path, enabled: bool, udp: bool) -> String {
    let cgroup = cgroup.display();
    format!("\n[sockets]\nenabled = {enabled}\nudp = {udp}\ncgroup = \"{cgroup}\"\n")
}

/// The kinds of addresses that a process may ask for.
const KINDS: [(&str, Family, bool); 3] = [
    ("v4", Family::V4, false),
    ("v6", Family::V6, false),
    ("mapped", Family::V4, true),
];

/// An IPv4 address as an IPv6 socket has it.
fn mapped(target: SocketAddr) -> SocketAddr {
    match target.ip() {
        IpAddr::V4(address) => SocketAddr::new(address.to_ipv6_mapped().into(), target.port()),
        IpAddr::V6(_) => target,
    }
}

const fn means(way: Way) -> Means {
    match way {
        Way::Tcp => Means::Tcp,
        Way::Udp | Way::Datagram => Means::Udp,
    }
}

/// What is counted of a socket that is led.
const fn event(way: Way) -> &'static str {
    match way {
        Way::Tcp | Way::Udp => "socket-connected",
        Way::Datagram => "datagram-led",
    }
}

impl Place {
    fn make() -> Result<Self> {
        Self::make_with("")
    }

    /// With more in the section.
    fn make_with(more: &str) -> Result<Self> {
        let layout = Layout::STANDARD;
        let world = worlds::build(layout)?;
        let cgroup = cgroup::make(&world, "sockets")?;
        let directory = Cluster::manifests_of(&world)?;
        manifest::write(&directory.join("nodes.yaml"), &manifest::nodes(layout))?;
        manifest::write(&directory.join("pods.yaml"), &manifest::pods(layout, &[1]))?;
        let more = section(&cgroup, true, true) + more;
        let cluster = Cluster::start_with(world, &binary()?, Hook::Tc, &more)?;
        Ok(Self { cluster, cgroup })
    }

    fn apply(&self, service: &Service) -> Result<()> {
        let objects = service.objects(self.cluster.world().layout());
        let file = worlds::file(service);
        self.cluster.apply(&file.to_string_lossy(), &objects)
    }

    fn dial(&self, way: Way, target: SocketAddr) -> Dial {
        Dial {
            way,
            target,
            cgroup: Some(self.cgroup.clone()),
            from: None,
            until: None,
        }
    }

    /// Asks from node 1.
    fn ask(&self, dial: &Dial) -> Result<Told> {
        dial.output(&self.cluster.world().node(1), Path::new(LAB))
    }

    /// How often something has been counted on node 1; needs no daemon.
    fn counted(&self, event: &str) -> Result<u64> {
        self.counted_on(1, event)
    }

    fn counted_on(&self, node: u8, event: &str) -> Result<u64> {
        let daemon = self.cluster.daemon(node)?;
        let rows = daemon.json(self.cluster.world(), &["drop", "list"])?;
        let rows = rows.as_array().context("not a list")?;
        let row = rows
            .iter()
            .find(|row| row.get("reason") == Some(&event.into()));
        let count = row
            .and_then(|row| row.get("packets"))
            .and_then(Value::as_u64);
        count.with_context(|| format!("{event} is not counted"))
    }

    /// Asks, and says by how much an event's counter rose and whether a flow was made for it.
    fn counting(&self, dial: &Dial, event: &str) -> Result<(Told, u64, bool)> {
        let before = [self.counted(event)?, self.counted("flow-made")?];
        let told = self.ask(dial)?;
        let after = [self.counted(event)?, self.counted("flow-made")?];
        let [led, made] =
            [0, 1].map(|i: usize| after.get(i).unwrap_or(&0) - before.get(i).unwrap_or(&0));
        Ok((told, led, made > 0))
    }

    /// A socket that is led: it meets one of these pods, believes to talk to whom it asked for, and
    /// its packets meet no service.
    fn is_led(&self, dial: &Dial, pods: &[&str]) -> Result<()> {
        let (told, led, made) = self.counting(dial, event(dial.way))?;
        let good = told.error.is_none()
            && pods.contains(&told.pod())
            && told.peer == Some(dial.target)
            && led == 1
            && !made;
        ensure!(good, "{dial:?}: {told:?}; led {led} times, a flow: {made}");
        Ok(())
    }

    /// A socket that is left to TC, and is answered all the same.
    fn is_left(&self, dial: &Dial) -> Result<()> {
        let (told, led, made) = self.counting(dial, event(dial.way))?;
        let good = told.error.is_none() && told.peer == Some(dial.target) && led == 0 && made;
        ensure!(good, "{dial:?}: {told:?}; led {led} times, a flow: {made}");
        Ok(())
    }
}

fn every_kind(place: &Place) -> Result<()> {
    let service = Service::balanced("kinds", 41, &[1, 3]);
    place.apply(&service)?;
    for (_, family, as_mapped) in KINDS {
        for way in Way::ALL {
            let node_port = service.node_port(means(way));
            let targets = [
                service.cluster(means(way), family),
                service.balancer(means(way), family),
                SocketAddr::new(layout::node(1, family), node_port),
            ];
            for target in targets {
                let target = if as_mapped { mapped(target) } else { target };
                place.is_led(&place.dial(way, target), &["pod1", "pod3"])?;
            }
        }
    }
    Ok(())
}

/// The pods that answer so many sockets.
fn answering(place: &Place, dial: &Dial, count: u32) -> Result<BTreeSet<String>> {
    let ask = |_| {
        let told = place.ask(dial)?;
        ensure!(told.error.is_none(), "{dial:?}: {told:?}");
        Ok(told.pod().to_owned())
    };
    (0..count).map(ask).collect()
}

/// For each policy, the same question is asked at the socket and of TC.
fn same_backends(place: &Place) -> Result<()> {
    let cases: [(&str, u8, Value, &[&str]); 4] = [
        ("any", 42, json!({}), &["pod1", "pod3"]),
        (
            "internal",
            43,
            json!({"internalTrafficPolicy": "Local"}),
            &["pod1"],
        ),
        (
            "external",
            44,
            json!({"externalTrafficPolicy": "Local"}),
            &["pod1", "pod3"],
        ),
        ("affinity", 45, json!({"sessionAffinity": "ClientIP"}), &[]),
    ];
    for (name, host, spec, expected) in cases {
        let service = Service::balanced(name, host, &[1, 3]);
        let mut objects = service.objects(place.cluster.world().layout());
        let changed = objects
            .first_mut()
            .and_then(|object| object.get_mut("spec"))
            .and_then(Value::as_object_mut)
            .context("a Service without spec")?;
        changed.extend(spec.as_object().cloned().unwrap_or_default());
        let file = worlds::file(&service);
        place.cluster.apply(&file.to_string_lossy(), &objects)?;
        let expected: BTreeSet<String> = expected.iter().map(|pod| (*pod).to_owned()).collect();
        for way in [Way::Tcp, Way::Datagram] {
            // That all of 24 go to one of two happens once in 2^23 runs.
            let dial = place.dial(way, service.cluster(means(way), Family::V4));
            let at_socket = answering(place, &dial, 24)?;
            let by_tc = answering(
                place,
                &Dial {
                    cgroup: None,
                    ..dial
                },
                24,
            )?;
            if expected.is_empty() {
                let one = at_socket.len() == 1 && by_tc.len() == 1;
                ensure!(one, "{name} {way}: {at_socket:?}, by TC {by_tc:?}");
            } else {
                let same = at_socket == expected && by_tc == expected;
                ensure!(same, "{name} {way}: {at_socket:?}, by TC {by_tc:?}");
            }
        }
    }
    Ok(())
}

fn other_cgroup(place: &Place) -> Result<()> {
    let service = Service::balanced("outside", 46, &[1]);
    place.apply(&service)?;
    for way in Way::ALL {
        let dial = place.dial(way, service.cluster(means(way), Family::V4));
        place.is_led(&dial, &["pod1"])?;
        place.is_left(&Dial {
            cgroup: None,
            ..dial
        })?;
    }
    // Nor a pod's, whose network namespace is another.
    let dial = place.dial(Way::Tcp, service.cluster(Means::Tcp, Family::V4));
    let before = place.counted("socket-connected")?;
    let told = dial.output(&place.cluster.world().pod(2), Path::new(LAB))?;
    ensure!(told.pod() == "pod1", "{told:?}");
    ensure!(
        place.counted("socket-connected")? == before,
        "a pod's socket was led"
    );
    Ok(())
}

fn restricted(place: &Place) -> Result<()> {
    let service = Service::balanced("restricted", 47, &[1]);
    let mut objects = service.objects(place.cluster.world().layout());
    let spec = objects
        .first_mut()
        .and_then(|object| object.get_mut("spec"));
    let spec = spec.and_then(Value::as_object_mut).context("no spec")?;
    let ranges = json!(["192.0.2.0/24", "2001:db8:2::/64"]);
    spec.insert("loadBalancerSourceRanges".to_owned(), ranges);
    let file = worlds::file(&service);
    place.cluster.apply(&file.to_string_lossy(), &objects)?;
    for family in Family::BOTH {
        for way in Way::ALL {
            place.is_left(&place.dial(way, service.balancer(means(way), family)))?;
            // Inside of the cluster everybody may.
            let dial = place.dial(way, service.cluster(means(way), family));
            place.is_led(&dial, &["pod1"])?;
        }
    }
    Ok(())
}

fn no_endpoint(place: &Place) -> Result<()> {
    let service = Service::balanced("empty", 48, &[]);
    place.apply(&service)?;
    for family in Family::BOTH {
        for way in Way::ALL {
            let dial = place.dial(way, service.cluster(means(way), family));
            let start = Instant::now();
            let told = place.ask(&dial)?;
            // A socket that is not connected is not told of ICMP errors.
            let known = way == Way::Datagram || start.elapsed() < Duration::from_secs(1);
            let error = told.error.unwrap_or_default();
            let refused = way == Way::Datagram || error.contains("refused");
            ensure!(known && refused && told.times == 0, "{dial:?}: `{error}`");
        }
    }
    Ok(())
}

/// What the kubelet's `KUBE-FIREWALL` drops.
const FIREWALL: &str = "table ip kubelike {\n chain output {\n  type filter hook output priority 0;\n\
                        \x20 ip saddr != 127.0.0.0/8 ip daddr 127.0.0.0/8 drop\n }\n chain input {\n\
                        \x20 type filter hook input priority 0;\n\
                        \x20 ip saddr != 127.0.0.0/8 ip daddr 127.0.0.0/8 drop\n }\n}\n";

fn loopback(place: &Place) -> Result<()> {
    let world = place.cluster.world();
    let rules = world.directory().join("firewall.nft");
    fs::write(&rules, FIREWALL)?;
    let output = world
        .node(1)
        .output(Command::new("nft").arg("-f").arg(&rules))?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "nft: {error}");

    // One pod has a host port everywhere, one at 127.0.0.1.
    let mut pods = manifest::pods(world.layout(), &[1]);
    let ports = pods
        .iter_mut()
        .find(|pod| pod.pointer("/metadata/name") == Some(&"pod2".into()))
        .and_then(|pod| pod.pointer_mut("/spec/containers/0/ports"))
        .and_then(Value::as_array_mut)
        .context("no ports")?;
    for port in ports {
        let port = port.as_object_mut().context("not a port")?;
        let http = port.get("name") == Some(&"http".into());
        port.insert("hostPort".to_owned(), json!(if http { 8100 } else { 7100 }));
        port.insert("hostIP".to_owned(), json!("127.0.0.1"));
    }
    // To node 2 that is no change: what it has read is told by the service below.
    let directory = Cluster::manifests_of(world)?;
    manifest::write(&directory.join("pods.yaml"), &pods)?;
    let service = Service::balanced("loopback", 49, &[3]);
    place.apply(&service)?;

    let v4 = IpAddr::from(Ipv4Addr::LOCALHOST);
    let own = layout::node(1, Family::V4);
    for way in Way::ALL {
        let host_port = manifest::host_port(means(way));
        let rows = [
            (v4, host_port, "pod1"),
            (IpAddr::from(Ipv6Addr::LOCALHOST), host_port, "pod1"),
            (v4, 7100, "pod2"),
            (v4, service.node_port(means(way)), "pod3"),
        ];
        for (address, port, pod) in rows {
            let dial = place.dial(way, SocketAddr::new(address, port));
            place.is_led(&dial, &[pod])?;
            if address.is_ipv4() {
                let from = Some(own);
                place.is_led(&Dial { from, ..dial }, &[pod])?;
            }
        }
        // From a loopback address, over TC, which gives it another one.
        let from = Some(v4);
        let dial = place.dial(way, SocketAddr::new(v4, 7100));
        place.is_left(&Dial { from, ..dial })?;
    }
    Ok(())
}

fn switched(place: &Place) -> Result<()> {
    let service = Service::balanced("switched", 50, &[1]);
    place.apply(&service)?;
    let dials = Way::ALL.map(|way| place.dial(way, service.cluster(means(way), Family::V4)));
    let [tcp, udp, datagram] = &dials;
    place.switch(false, false)?;
    for dial in &dials {
        place.is_left(dial)?;
    }
    place.switch(true, false)?;
    place.is_led(tcp, &["pod1"])?;
    place.is_left(udp)?;
    place.is_left(datagram)?;
    place.switch(true, true)?;
    for dial in &dials {
        place.is_led(dial, &["pod1"])?;
    }
    Ok(())
}

impl Place {
    /// Changes node 1's configuration, and waits until it is in force.
    fn switch(&self, enabled: bool, udp: bool) -> Result<()> {
        let (daemon, world) = (self.cluster.daemon(1)?, self.cluster.world());
        let text = fs::read_to_string(daemon.config())?;
        let (before, _) = text.split_once("\n[sockets]").context("no section")?;
        let text = format!("{before}{}", section(&self.cgroup, enabled, udp));
        fs::write(daemon.config(), text)?;
        self.cluster.signal(1, Signal::SIGHUP)?;
        let wanted = match (enabled, udp) {
            (false, _) => Value::Null,
            (true, false) => json!(4),
            (true, true) => json!(8),
        };
        let start = Instant::now();
        loop {
            let status = daemon.json(world, &["status"])?;
            let programs = status.pointer("/sockets/programs").unwrap_or(&Value::Null);
            if *programs == wanted {
                return Ok(());
            }
            let sockets = status.get("sockets");
            ensure!(
                start.elapsed() < Duration::from_secs(20),
                "{sockets:?}, not {wanted}"
            );
            sleep(Duration::from_millis(20));
        }
    }
}

fn of_pods() -> Result<()> {
    let place = Place::make_with("pods = true\n")?;
    let world = place.cluster.world();
    // Both nodes' programs are in the one cgroup here, and either may be the first.
    let both = |event: &str| anyhow::Ok(place.counted_on(1, event)? + place.counted_on(2, event)?);
    // What a pod asks of itself goes the same way.
    for (name, host, asking) in [("another", 52, 2), ("itself", 53, 1)] {
        let service = Service::balanced(name, host, &[1]);
        place.apply(&service)?;
        for (_, family, as_mapped) in KINDS {
            for way in Way::ALL {
                let target = service.cluster(means(way), family);
                let target = if as_mapped { mapped(target) } else { target };
                let dial = place.dial(way, target);
                let before = [both(event(way))?, both("flow-made")?];
                let told = dial.output(&world.pod(asking), Path::new(LAB))?;
                let after = [both(event(way))?, both("flow-made")?];
                let led = after == [before[0] + 1, before[1]];
                let good = told.error.is_none() && told.pod() == "pod1" && led;
                ensure!(
                    good && told.peer == Some(target),
                    "{dial:?}: {told:?}, {led}"
                );
            }
        }
    }
    // A loopback address is the pod's own.
    let v4 = IpAddr::from(Ipv4Addr::LOCALHOST);
    let own = place.dial(
        Way::Tcp,
        SocketAddr::new(v4, manifest::host_port(Means::Tcp)),
    );
    place.is_led(&own, &["pod1"])?;
    let told = own.output(&world.pod(2), Path::new(LAB))?;
    ensure!(
        told.error.is_some(),
        "a pod's loopback address led to {told:?}"
    );
    Ok(())
}

fn killed_and_detached() -> Result<()> {
    let mut place = Place::make()?;
    let mut service = Service::balanced("stays", 51, &[1, 3]);
    place.apply(&service)?;
    let world = place.cluster.world();
    let until = world.directory().join("until");
    let target = service.cluster(Means::Tcp, Family::V4);
    let held = Dial {
        until: Some(until.clone()),
        ..place.dial(Way::Tcp, target)
    };
    let mut process = world.start(&world.node(1), held.command(Path::new(LAB)), "held")?;
    sleep(Duration::from_millis(300));
    place.cluster.end(1, Signal::SIGKILL)?;
    for dial in Way::ALL.map(|way| place.dial(way, service.cluster(means(way), Family::V6))) {
        place.is_led(&dial, &["pod1", "pod3"])?;
    }
    place.cluster.restart(1)?;
    for dial in Way::ALL.map(|way| place.dial(way, service.cluster(means(way), Family::V6))) {
        place.is_led(&dial, &["pod1", "pod3"])?;
    }
    // A change is in force at once.
    service.endpoints = vec![Endpoint::ready(3)];
    place.apply(&service)?;
    place.is_led(&place.dial(Way::Tcp, target), &["pod3"])?;
    fs::write(&until, "")?;
    let start = Instant::now();
    while process.ended()?.is_none() && start.elapsed() < Duration::from_secs(5) {
        sleep(Duration::from_millis(10));
    }
    let told: Told = serde_json::from_str(&process.printed()).context("what it printed")?;
    let good = told.error.is_none() && told.times > 20 && told.peer == Some(target);
    ensure!(good, "the connection did not live on: {told:?}");

    place.cluster.end(1, Signal::SIGTERM)?;
    let daemon = place.cluster.daemon(1)?;
    let config = daemon.config().to_string_lossy().into_owned();
    daemon.command(place.cluster.world(), &["detach", "--config", &config])?;
    let told = place.ask(&place.dial(Way::Tcp, target))?;
    ensure!(
        told.error.is_some(),
        "still led after `causeway detach`: {told:?}"
    );
    Ok(())
}
