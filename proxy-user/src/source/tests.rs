//! What each rule of Kubernetes' service objects comes to, row by row.

use std::{fs, path::PathBuf};

use tempfile::TempDir;

use super::{assemble::Policy, manifests::Manifests, snapshot::Snapshot};
use crate::model::{Endpoint, Frontend, Here, Reach, ServicePort, TrafficPolicy, select};

/// One Service with one slice, each with something added or replaced.
struct World {
    service: String,
    slices: Vec<String>,
    others: Vec<String>,
}

impl World {
    /// `spec` is added to the Service's spec, which has port 80 and address 10.96.0.1.
    fn new(spec: &str) -> Self {
        Self::whole(&format!(
            "metadata: {{name: web}}\nspec:\n  clusterIP: 10.96.0.1\n  ports: [{{port: 80}}]\n{spec}"
        ))
    }

    fn whole(service: &str) -> Self {
        Self {
            service: format!("apiVersion: v1\nkind: Service\n{service}\n"),
            slices: vec![slice("a", "- addresses: [10.0.0.1]\n")],
            others: Vec::new(),
        }
    }

    fn slices(mut self, slices: impl IntoIterator<Item = String>) -> Self {
        self.slices = slices.into_iter().collect();
        self
    }

    fn with(mut self, other: &str) -> Self {
        self.others.push(other.to_owned());
        self
    }

    /// The state's ports in words, and the notices without places.
    fn read(&self) -> (Vec<String>, Vec<String>) {
        let (snapshot, notices) = self.scan();
        let ports = snapshot.state.services.values();
        (ports.map(|port| words(port)).collect(), notices)
    }

    /// The snapshot, and its notices without places.
    fn scan(&self) -> (Snapshot, Vec<String>) {
        let folder = TempDir::new().unwrap();
        let all = [&self.service]
            .into_iter()
            .chain(&self.slices)
            .chain(&self.others);
        let text = all.map(String::as_str).collect::<Vec<_>>().join("---\n");
        fs::write(folder.path().join("all.yaml"), text).unwrap();
        let external_ranges = vec!["198.51.100.0/24".parse().unwrap()];
        let policy = Policy {
            node: "worker-1".to_owned(),
            external_ranges,
        };
        let snapshot = Manifests::new(PathBuf::from(folder.path()), policy).scan();
        let notices = snapshot.notices.iter().map(|notice| {
            let text = notice.to_string();
            text.split_once(": ").unwrap().1.to_owned()
        });
        let notices = notices.collect();
        (snapshot, notices)
    }

    fn ports(&self) -> Vec<String> {
        let (ports, notices) = self.read();
        assert_eq!(notices, Vec::<String>::new());
        ports
    }
}

fn slice(name: &str, endpoints: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  labels: \
         {{kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints:\n\
         {endpoints}"
    )
}

fn words(port: &ServicePort) -> String {
    let frontends = port.frontends.iter().map(|frontend| match frontend {
        Frontend::Address {
            address,
            port,
            reach,
            restricted,
        } => {
            let reach = if *reach == Reach::Cluster { "" } else { "!" };
            let restricted = if *restricted { "#" } else { "" };
            format!("{address}:{port}{reach}{restricted}")
        }
        Frontend::NodePort { port, v4, v6 } => {
            format!(
                "*{}{}:{port}",
                if *v4 { "4" } else { "" },
                if *v6 { "6" } else { "" }
            )
        }
        Frontend::HostPort { address, port } => format!("host {address}:{port}"),
    });
    let all: Vec<&Endpoint> = port.endpoints.iter().collect();
    let chosen = select(&all, Here::default()).cluster;
    let endpoints = port.endpoints.iter().enumerate().map(|(place, e)| {
        let mark = if chosen.contains(&place) { "" } else { "?" };
        let weight = if e.weight == 1 {
            String::new()
        } else {
            format!("x{}", e.weight)
        };
        format!("{}:{}{weight}{mark}", e.address, e.port)
    });
    let join = |words: Vec<String>| words.join(" ");
    let policy = |policy, word: &str| match policy {
        TrafficPolicy::Cluster => String::new(),
        TrafficPolicy::Local => format!(" {word} local"),
    };
    let affinity = match port.terms.affinity {
        0 => String::new(),
        seconds => format!(" kept {seconds} s"),
    };
    let ranges = port.terms.ranges.iter().map(|range| format!(" {range}"));
    format!(
        "{} {} > {}{}{}{affinity}{}",
        port.name,
        join(frontends.collect()),
        join(endpoints.collect()),
        policy(port.terms.policies.internal, "internal"),
        policy(port.terms.policies.external, "external"),
        ranges.collect::<String>(),
    )
}

#[test]
fn terms_of_service() {
    let rows = [
        ("", ""),
        ("  internalTrafficPolicy: Cluster\n", ""),
        ("  internalTrafficPolicy: Local\n", " internal local"),
        (
            "  type: NodePort\n  externalTrafficPolicy: Local\n  ports: [{port: 80, nodePort: 30080}]\n",
            " external local",
        ),
        ("  trafficDistribution: PreferSameNode\n", ""),
        ("  sessionAffinity: ClientIP\n", " kept 10800 s"),
        (
            "  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 7}}\n",
            " kept 7 s",
        ),
        ("  sessionAffinity: None\n", ""),
        // Ranges count for load balancers alone.
        ("  loadBalancerSourceRanges: [10.0.0.0/8]\n", ""),
        (
            "  type: LoadBalancer\n  loadBalancerSourceRanges: [' 10.1.2.3/8 ', '010.0.0.0/8', \
             'fd00::/8']\nstatus: {loadBalancer: {ingress: [{ip: 203.0.113.1}]}}\n",
            " 10.0.0.0/8 fd00::/8",
        ),
    ];
    for (spec, expected) in rows {
        let ports = if spec.contains("  ports:") {
            ""
        } else {
            "  ports: [{port: 80}]\n"
        };
        let whole =
            format!("metadata: {{name: web}}\nspec:\n  clusterIP: 10.96.0.1\n{ports}{spec}");
        let found = World::whole(&whole).ports();
        let (_, terms) = found[0].split_once("> 10.0.0.1:8080").unwrap();
        assert_eq!(terms, expected, "{spec}");
    }
}

/// Whoever distributes traffic does so by the slices' hints alone.
#[test]
fn hints_are_read_from_slices() {
    let folder = TempDir::new().unwrap();
    let hinted = slice(
        "a",
        "- addresses: [10.0.0.1]\n  hints: {forZones: [{name: east}], forNodes: [{name: n1}, {name: \
         n2}]}\n- addresses: [10.0.0.2]\n  hints: {}\n",
    );
    let world = World::new("").slices([hinted]);
    let text = format!("{}---\n{}", world.service, world.slices[0]);
    fs::write(folder.path().join("all.yaml"), text).unwrap();
    let snapshot = Manifests::new(PathBuf::from(folder.path()), Policy::default()).scan();
    let port = snapshot.state.services.values().next().unwrap();
    let hints = port.endpoints[0].hints.as_deref().unwrap();
    assert_eq!(hints.zones, ["east"]);
    assert_eq!(hints.nodes, ["n1", "n2"]);
    assert_eq!(port.endpoints[1].hints, None);
}

#[test]
fn addresses_of_each_type() {
    let rows = [
        ("", "10.96.0.1:80"),
        (
            "  type: NodePort\n  ports: [{port: 80, nodePort: 30080}]\n",
            "10.96.0.1:80 *4:30080",
        ),
        (
            "  type: NodePort\n  ipFamilies: [IPv4, IPv6]\n  clusterIPs: [10.96.0.1, 'fd00::1']\n  \
             ports: [{port: 80, nodePort: 30080}]\n",
            "10.96.0.1:80 fd00::1:80 *46:30080",
        ),
        (
            "  type: LoadBalancer\n  ports: [{port: 80, nodePort: 30080}]\nstatus:\n  loadBalancer:\n    \
             ingress: [{ip: 203.0.113.1}, {ip: 203.0.113.2, ipMode: VIP}, {ip: 203.0.113.3, ipMode: \
             Proxy}, {hostname: x.example}]\n",
            "10.96.0.1:80 203.0.113.1:80! 203.0.113.2:80! *4:30080",
        ),
        (
            "  type: LoadBalancer\n  externalIPs: [198.51.100.7]\n  ports: [{port: 80, nodePort: \
             30080}]\n  loadBalancerSourceRanges: [0.0.0.0/0]\nstatus:\n  loadBalancer:\n    ingress: \
             [{ip: 203.0.113.1}]\n",
            "10.96.0.1:80 198.51.100.7:80! 203.0.113.1:80!# *4:30080",
        ),
        (
            "  externalIPs: [198.51.100.7]\n",
            "10.96.0.1:80 198.51.100.7:80!",
        ),
        ("  clusterIPs: ['010.096.000.001']\n", "10.96.0.1:80"),
    ];
    for (spec, expected) in rows {
        // Later keys of a row replace the world's own.
        let own = "  clusterIP: 10.96.0.1\n";
        let ports = "  ports: [{port: 80}]\n";
        let ports = if spec.contains("  ports:") { "" } else { ports };
        let world = World::whole(&format!(
            "metadata: {{name: web}}\nspec:\n{own}{ports}{spec}"
        ));
        let expected = format!("default/web:80/TCP {expected} > 10.0.0.1:8080");
        let found = world.ports();
        let found = found[0].trim_end_matches(" 0.0.0.0/0");
        assert_eq!(found, expected, "{spec}");
    }
}

#[test]
fn some_services_are_not_proxied() {
    let rows = [
        "metadata: {name: web}\nspec:\n  clusterIP: None\n  ports: [{port: 80}]\n",
        "metadata: {name: web}\nspec:\n  type: ExternalName\n  externalName: x.example\n",
        "metadata:\n  name: web\n  labels: {service.kubernetes.io/service-proxy-name: x}\nspec:\n  \
         clusterIP: 10.96.0.1\n  ports: [{port: 80}]\n",
        "metadata:\n  name: web\n  labels: {service.kubernetes.io/headless: ''}\nspec:\n  clusterIP: \
         10.96.0.1\n  ports: [{port: 80}]\n",
    ];
    for row in rows {
        assert_eq!(World::whole(row).ports(), Vec::<String>::new(), "{row}");
    }
}

#[test]
fn endpoints_of_all_slices_by_their_conditions() {
    let a = "- addresses: [10.0.0.1]\n";
    let rows = [
        (vec![slice("a", a)], "10.0.0.1:8080"),
        (
            vec![slice("a", a), slice("b", "- addresses: [10.0.0.2]\n")],
            "10.0.0.1:8080 10.0.0.2:8080",
        ),
        // While it moves between slices, an endpoint is in both: the better one counts.
        (
            vec![
                slice(
                    "a",
                    "- addresses: [10.0.0.1]\n  conditions: {ready: false}\n",
                ),
                slice("b", a),
            ],
            "10.0.0.1:8080",
        ),
        (
            vec![slice("a", "- addresses: [10.0.0.1, 10.0.0.9]\n")],
            "10.0.0.1:8080",
        ),
        (
            vec![slice(
                "a",
                &format!("{a}- addresses: [10.0.0.2]\n  conditions: {{ready: false}}\n"),
            )],
            "10.0.0.1:8080 10.0.0.2:8080?",
        ),
        (
            vec![slice(
                "a",
                "- addresses: [10.0.0.1]\n  conditions: {ready: false, serving: true, terminating: \
                 true}\n- addresses: [10.0.0.2]\n  conditions: {ready: false, serving: false, \
                 terminating: true}\n",
            )],
            "10.0.0.1:8080 10.0.0.2:8080?",
        ),
        (
            vec![slice("a", a).replace("web}", "web, service.kubernetes.io/headless: ''}")],
            "",
        ),
        (vec![slice("a", a).replace("{port: 8080}", "{}")], ""),
        (
            vec![slice("a", a).replace("{port: 8080}", "{port: 8080, name: other}")],
            "",
        ),
        (
            vec![slice("a", a).replace("{port: 8080}", "{port: 8080, protocol: UDP}")],
            "",
        ),
        (
            vec![slice("a", a).replace(
                "  labels",
                "  annotations: {causeway.dev/weight: '7'}\n  labels",
            )],
            "10.0.0.1:8080x7",
        ),
    ];
    for (slices, expected) in rows {
        let text = slices.join("---\n");
        let found = World::new("").slices(slices).ports();
        assert_eq!(
            found,
            [format!("default/web:80/TCP 10.96.0.1:80 > {expected}")],
            "{text}"
        );
    }
    let unready = slice(
        "a",
        "- addresses: [10.0.0.1]\n  conditions: {ready: false}\n",
    );
    let published = World::new("  publishNotReadyAddresses: true\n").slices([unready]);
    assert_eq!(
        published.ports(),
        ["default/web:80/TCP 10.96.0.1:80 > 10.0.0.1:8080"]
    );
}

#[test]
fn ports_are_matched_by_name() {
    let spec = "metadata: {name: web}\nspec:\n  clusterIP: 10.96.0.1\n  ports:\n  - {name: http, port: \
                80, targetPort: web}\n  - {name: dns, port: 53, protocol: UDP}\n";
    let ports = "[{name: http, port: 8080}, {name: dns, port: 5353, protocol: UDP}]";
    let one = slice("a", "- addresses: [10.0.0.1]\n").replace("[{port: 8080}]", ports);
    // The same name may stand for another number elsewhere.
    let other =
        slice("b", "- addresses: [10.0.0.2]\n").replace("{port: 8080}", "{name: http, port: 81}");
    let expected = [
        "default/web:dns/UDP 10.96.0.1:53 > 10.0.0.1:5353",
        "default/web:http/TCP 10.96.0.1:80 > 10.0.0.1:8080 10.0.0.2:81",
    ];
    assert_eq!(World::whole(spec).slices([one, other]).ports(), expected);
}

#[test]
fn host_ports_of_running_pods_of_this_node() {
    let pod = |node: &str, phase: &str, rest: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  nodeName: {node}\n{rest}  \
             containers:\n  - name: c\n    ports: [{{containerPort: 80, hostPort: 8080}}, \
             {{containerPort: 81, hostPort: 8080, hostIP: 192.0.2.1}}, {{containerPort: 82}}]\nstatus:\n  \
             phase: {phase}\n  podIPs: [{{ip: 10.0.0.1}}]\n"
        )
    };
    let both = [
        "pod/default/p:8080/TCP host 0.0.0.0:8080 > 10.0.0.1:80",
        "pod/default/p:8080/TCP@192.0.2.1 host 192.0.2.1:8080 > 10.0.0.1:81",
    ];
    let none: [&str; 0] = [];
    let headless = "metadata: {name: web}\nspec: {clusterIP: None}\n";
    let rows = [
        (pod("worker-1", "Running", ""), both.as_slice()),
        (pod("worker-2", "Running", ""), none.as_slice()),
        (pod("worker-1", "Succeeded", ""), none.as_slice()),
        (
            pod("worker-1", "Running", "  hostNetwork: true\n"),
            none.as_slice(),
        ),
    ];
    for (pod, expected) in rows {
        assert_eq!(World::whole(headless).with(&pod).ports(), expected, "{pod}");
    }
}

#[test]
fn what_is_not_served_is_told() {
    let rows = [
        (
            "  trafficDistribution: PreferFar\n",
            "warning: Service default/web: spec.trafficDistribution: ",
        ),
        (
            "  healthCheckNodePort: 32000\n",
            "warning: Service default/web: spec.healthCheckNodePort: not served: ",
        ),
        (
            "  externalIPs: [192.0.2.9]\n",
            "error: Service default/web: spec.externalIPs[0]: 192.0.2.9 ",
        ),
    ];
    for (spec, expected) in rows {
        let (ports, notices) = World::new(spec).read();
        assert_eq!(ports.len(), 1, "{spec}");
        assert_eq!(notices.len(), 1, "{spec}: {notices:?}");
        assert!(notices[0].starts_with(expected), "{notices:?}");
    }
}

#[test]
fn what_breaks_a_rule_is_refused() {
    let rows = [
        (
            "  clusterIP: 10.96.0\n",
            "spec.clusterIP: \"10.96.0\" is not an IP address",
        ),
        (
            "  clusterIP: 127.0.0.1\n",
            "spec.clusterIP: \"127.0.0.1\" cannot be a service's address",
        ),
        (
            "  type: Balancer\n",
            "spec.type: \"Balancer\" is not a type",
        ),
        ("  ports: []\n", "spec.ports: missing"),
        (
            "  ports: [{port: 0}]\n",
            "spec.ports[0].port: 0 is not a port",
        ),
        (
            "  ports: [{port: 80, protocol: ICMP}]\n",
            "spec.ports[0].protocol: \"ICMP\" is not a protocol",
        ),
        (
            "  ports: [{port: 80}, {port: 81}]\n",
            "spec.ports[0].name: missing",
        ),
        (
            "  ports: [{port: 80, name: a}, {port: 80, name: b}]\n",
            "spec.ports[1].port: 80/TCP is there twice",
        ),
        (
            "  ports: [{port: 80, name: a}, {port: 81, name: a}]\n",
            "spec.ports[1].name: \"a\" is not",
        ),
        (
            "  ipFamilies: [IPv5]\n",
            "spec.ipFamilies[0]: \"IPv5\" is not a family",
        ),
        (
            "  internalTrafficPolicy: Zone\n",
            "spec.internalTrafficPolicy: \"Zone\" is not a policy",
        ),
        (
            "  sessionAffinity: Cookie\n",
            "spec.sessionAffinity: \"Cookie\" is not an affinity",
        ),
        (
            "  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}\n",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is not a time-out",
        ),
        (
            "  type: LoadBalancer\n  loadBalancerSourceRanges: [10.0.0.0/8, 10.0.0.0/33]\n",
            "spec.loadBalancerSourceRanges[1]: \"10.0.0.0/33\" is not a range",
        ),
    ];
    for (spec, expected) in rows {
        let ports = if spec.contains("  ports:") {
            ""
        } else {
            "  ports: [{port: 80}]\n"
        };
        let whole = format!("metadata: {{name: web}}\nspec:\n{ports}{spec}");
        let (ports, notices) = World::whole(&whole).slices([]).read();
        assert_eq!(ports, Vec::<String>::new(), "{spec}");
        assert_eq!(notices.len(), 1, "{spec}: {notices:?}");
        let expected = format!("error: Service default/web: {expected}");
        assert!(notices[0].starts_with(&expected), "{notices:?}");
        assert!(notices[0].ends_with("(not in force)"), "{notices:?}");
    }
}

/// Ports of health checks with their Services and families, and the notices.
fn checks(world: &World) -> (Vec<String>, Vec<String>) {
    let (snapshot, notices) = world.scan();
    let checks = snapshot.state.health_checks.iter().map(|(port, check)| {
        let [v4, v6] = check.families.map(u8::from);
        format!("{port} {} {v4}{v6}", check.object.name)
    });
    (checks.collect(), notices)
}

#[test]
fn a_health_check_belongs_to_a_balanced_service_whose_clients_stay_here() {
    let balanced = |more: &str| {
        World::whole(&format!(
            "metadata: {{name: web}}\nspec:\n  type: LoadBalancer\n  clusterIP: 10.96.0.1\n  ports: \
             [{{port: 80}}]\n{more}status: {{loadBalancer: {{ingress: [{{ip: 203.0.113.1}}]}}}}\n"
        ))
    };
    let local = "  externalTrafficPolicy: Local\n";
    let (found, notices) = checks(&balanced(&format!("{local}  healthCheckNodePort: 32000\n")));
    assert_eq!((found, notices), (vec!["32000 web 10".to_owned()], vec![]));
    assert_eq!(checks(&balanced(local)), (vec![], vec![]));
    let (found, notices) = checks(&balanced("  healthCheckNodePort: 32000\n"));
    assert_eq!(found, [""; 0]);
    assert!(
        notices[0].contains("spec.healthCheckNodePort: not served"),
        "{notices:?}"
    );
    let (found, notices) = checks(&balanced(&format!("{local}  healthCheckNodePort: 70000\n")));
    assert_eq!(found, [""; 0]);
    assert!(notices[0].starts_with("error: Service default/web: spec.healthCheckNodePort: 70000"));
}

#[test]
fn a_port_has_one_health_check() {
    let service = |name: &str, created: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, creationTimestamp: \
             \"{created}\"}}\nspec:\n  type: LoadBalancer\n  externalTrafficPolicy: Local\n  \
             clusterIP: 10.96.0.{}\n  healthCheckNodePort: 32000\n  ports: [{{port: 80{more}}}]\nstatus: \
             {{loadBalancer: {{ingress: [{{ip: 203.0.113.{}}}]}}}}\n",
            name.len(),
            name.len()
        )
    };
    let world = World::new("")
        .with(&service("younger", "2026-01-02T00:00:00Z", ""))
        .with(&service("old", "2026-01-01T00:00:00Z", ""));
    let (found, notices) = checks(&world);
    assert_eq!(found, ["32000 old 10"]);
    assert_eq!(notices.len(), 1, "{notices:?}");
    let start = "error: Service default/younger: spec.healthCheckNodePort: 32000 is already the \
                 health check of Service default/old, ";
    assert!(notices[0].starts_with(start), "{notices:?}");
    let world = World::new("").with(&service("old", "2026-01-01T00:00:00Z", ", nodePort: 32000"));
    let (_, notices) = checks(&world);
    assert!(
        notices[0].contains("32000 is also a node port of default/old:80/TCP"),
        "{notices:?}"
    );
}
