//! The same objects make the same plan, whichever source gives them.

use super::*;
use crate::reconcile::{Allocation, DeviceFact, Facts, Observed, Plan, compile};
use crate::source::assemble::Policy;
use crate::source::manifests::Manifests;

/// Every feature of objects that counts, and those that are left out.
fn more() -> String {
    let mut documents = Vec::new();
    for last in 1..=40_u8 {
        let name = format!("s{last}");
        let mut service = service(&name, last);
        let mut slice = slice(&name, last);
        match last % 8 {
            1 => service = service.replace("{port: 80}", "{port: 53, protocol: UDP}"),
            2 => service = service.replace(&format!("10.96.0.{last},"), "None,"),
            3 => service = service.replace("{name:", "{annotations: {causeway.dev/algorithm: maglev}, name:"),
            4 => service = service.replace("spec: {", "spec: {type: NodePort, ").replace("{port: 80}", &format!("{{port: 80, nodePort: 300{last:02}}}")),
            5 => service = service.replace("{name:", "{labels: {service.kubernetes.io/service-proxy-name: other}, name:"),
            6 => {
                service = service.replace("spec: {", "spec: {type: LoadBalancer, ");
                service = service.replace("]}}", &format!("]}}, status: {{loadBalancer: {{ingress: [{{ip: 203.0.113.{last}}}]}}}}}}"));
            }
            7 => slice = slice.replace("{name:", "{annotations: {causeway.dev/weight: '7'}, name:"),
            _ => slice = slice.replace("}]}", "}, {addresses: [10.0.1.1], conditions: {ready: false, serving: true, terminating: true}}]}"),
        }
        if last % 8 == 1 {
            slice = slice.replace("port: 8080", "port: 5353, protocol: UDP");
        }
        documents.extend([service, slice]);
    }
    documents.join("\n---\n") + "\n"
}

/// What the maps of a node would hold.
fn plan(state: &State, config: &Config) -> Plan {
    let uplink = DeviceFact {
        ifindex: 2,
        name: "eth0".to_owned(),
        mac: proxy_common::wire::MacAddr::default(),
        mtu: 1_500,
        addresses: vec![
            "192.0.2.11/24".parse().unwrap(),
            "2001:db8:2::11/64".parse().unwrap(),
        ],
        vlan: None,
        role: proxy_common::abi::DeviceRole::Uplink,
        xdp_transmit: false,
    };
    let facts = Facts {
        devices: [(2, uplink)].into(),
        hz: 250,
    };
    let now = Instant::now();
    let capacity = config.maps.capacity();
    let mut allocation = Allocation::restore(&Observed::default(), capacity, now);
    compile(state, &facts, &config.options(), &mut allocation, now).0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_gives_the_same_plan_by_the_api_server() {
    let mut bed = Bed::new();
    let folder = bed.folder.path().join("manifests");
    std::fs::create_dir(&folder).unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/demo");
    for file in std::fs::read_dir(demo).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    std::fs::write(folder.join("more.yaml"), more()).unwrap();
    bed.fake.put_directory(&folder);
    let mut config = bed.config();
    config.node = "node1".to_owned();
    bed.start();
    let by_server = bed
        .until("complete", |s| !s.state.services.is_empty())
        .await;
    // Whoever asks for another node's Pods gets those.
    let policy = Policy {
        node: NODE.to_owned(),
        external_ranges: Vec::new(),
    };
    let by_file = Manifests::new(folder, policy).scan();
    assert_eq!(errors(&by_file), Vec::<String>::new());
    assert!(
        by_file.state.services.len() > 30,
        "{:?}",
        served(&by_file.state)
    );
    assert_eq!(by_server.state.services, by_file.state.services);
    assert_eq!(by_server.state.nodes, by_file.state.nodes);
    let plans = [&by_server, &Arc::new(by_file)].map(|s| format!("{:#?}", plan(&s.state, &config)));
    let [a, b] = &plans;
    assert!(a.len() > 10_000);
    assert_eq!(a.as_bytes(), b.as_bytes());
    // The kinds and selectors are those of the page.
    let world = bed.fake.world();
    let asked = |kind: &str, key: &str| {
        let of_kind = world.requests.iter().filter(|(of, _)| of == kind);
        let values: Vec<String> = of_kind
            .map(|(_, p)| p.get(key).cloned().unwrap_or_default())
            .collect();
        assert!(
            !values.is_empty() && values.iter().all(|value| *value == values[0]),
            "{values:?}"
        );
        values[0].clone()
    };
    let ours = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";
    assert_eq!(asked("services", "labelSelector"), ours);
    assert_eq!(asked("services", "fieldSelector"), "spec.clusterIP!=None");
    assert_eq!(asked("endpointslices", "labelSelector"), ours);
    assert_eq!(asked("pods", "fieldSelector"), "spec.nodeName=node1");
}
