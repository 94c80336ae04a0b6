//! What is assembled again is what would be assembled from nothing.

use proptest::prelude::*;

use super::*;
use crate::model::{Node, Protocol, Terms};
use crate::source::kubernetes::{HostPort, NodeObject, PodObject, SliceEndpoint};

fn named(kind: Kind, name: &str) -> ObjectRef {
    let namespace = if kind == Kind::Node { "" } else { "shop" };
    ObjectRef {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

fn any_service() -> impl Strategy<Value = (ObjectRef, Object)> {
    let ports = prop::collection::vec((80_u16..83, any::<bool>()), 0..3);
    (0_u8..4, ports, 0_u8..8, any::<bool>()).prop_map(|(name, ports, unproxied, outside)| {
        let object = named(Kind::Service, &format!("s{name}"));
        // The API has names be given to more ports than one.
        let ports = ports.into_iter().collect::<BTreeMap<u16, bool>>();
        let port = |(port, named): (u16, bool)| ServicePortObject {
            name: if named {
                format!("p{port}")
            } else {
                String::new()
            },
            protocol: Protocol::Tcp,
            port,
            node_port: None,
        };
        let external = ["192.0.2.1", "203.0.113.1"][usize::from(outside)];
        let service = ServiceObject {
            object: object.clone(),
            created: None,
            unproxied: (unproxied == 0).then_some(crate::source::kubernetes::Unproxied::Headless),
            algorithm: None,
            ports: ports.into_iter().map(port).collect(),
            cluster: vec![format!("10.96.0.{name}").parse().unwrap()],
            load_balancer: Vec::new(),
            external: vec![("spec.externalIPs[0]".to_owned(), external.parse().unwrap())],
            node_port_families: [true, false],
            terms: Terms::default(),
            publish_not_ready: false,
            health_check: outside.then_some(30_000 + u16::from(name) / 2),
            remarks: Vec::new(),
        };
        (object, Object::Service(service))
    })
}

fn any_slice() -> impl Strategy<Value = (ObjectRef, Object)> {
    let service = prop::option::weighted(0.9, 0_u8..5);
    let endpoints = prop::collection::vec((1_u8..9, any::<bool>()), 0..4);
    (0_u8..6, service, 80_u16..83, endpoints).prop_map(|(name, service, port, endpoints)| {
        let object = named(Kind::EndpointSlice, &format!("e{name}"));
        let endpoint = |(last, ready): (u8, bool)| SliceEndpoint {
            address: format!("10.1.0.{last}").parse().unwrap(),
            ready,
            serving: ready,
            terminating: false,
            node: None,
            hints: None,
        };
        let slice = SliceObject {
            object: object.clone(),
            service: service.map(|service| format!("s{service}")),
            ports: vec![SlicePort {
                name: format!("p{port}"),
                protocol: Protocol::Tcp,
                port: 8080,
            }],
            endpoints: endpoints.into_iter().map(endpoint).collect(),
            weight: 1,
            remarks: Vec::new(),
        };
        (object, Object::Slice(slice))
    })
}

fn any_pod() -> impl Strategy<Value = (ObjectRef, Object)> {
    (0_u8..3, any::<bool>(), any::<bool>(), 0_usize..2).prop_map(|(name, running, here, long)| {
        let object = named(Kind::Pod, &format!("p{name}{}", "x".repeat(long * 250)));
        let pod = PodObject {
            object: object.clone(),
            created: None,
            running,
            node: Some(if here { "here" } else { "there" }.to_owned()),
            addresses: vec!["10.1.0.1".parse().unwrap()],
            host_ports: vec![HostPort {
                field: "spec.containers[0].ports[0]".to_owned(),
                host_port: 8080,
                container_port: 80,
                protocol: Protocol::Tcp,
                addresses: vec!["0.0.0.0".parse().unwrap()],
                one_address: false,
            }],
        };
        (object, Object::Pod(pod))
    })
}

fn any_node() -> impl Strategy<Value = (ObjectRef, Object)> {
    (0_u8..3, 1_u8..4).prop_map(|(name, last)| {
        let object = named(Kind::Node, &format!("n{name}"));
        let node = NodeObject {
            object: object.clone(),
            node: Node {
                addresses: vec![format!("192.0.2.{last}").parse().unwrap()],
                internal: 1,
                ..Node::default()
            },
        };
        (object, Object::Node(node))
    })
}

proptest! {
    #[test]
    fn assembling_again_is_assembling_from_nothing(
        rounds in prop::collection::vec(
            (
                prop::collection::vec(
                    prop_oneof![3 => any_service(), 4 => any_slice(), 1 => any_pod(), 1 => any_node()],
                    0..6,
                ),
                prop::collection::vec(any::<prop::sample::Index>(), 0..3),
            ),
            1..10,
        )
    ) {
        let policy = Policy {
            node: "here".to_owned(),
            external_ranges: vec!["203.0.113.0/24".parse().unwrap()],
        };
        let mut kept = Assembly::new(policy.clone());
        let mut objects: BTreeMap<ObjectRef, Arc<Object>> = BTreeMap::new();
        let mut last = State::default();
        for (put, gone) in rounds {
            for index in gone.iter().filter(|_| !put.is_empty()) {
                let name = objects.keys().nth(index.index(objects.len().max(1))).cloned();
                name.and_then(|name| objects.remove(&name));
            }
            objects.extend(put.into_iter().map(|(name, object)| (name, Arc::new(object))));
            let (state, mut notices) = kept.assemble(objects.iter());
            let (expected, mut told) = Assembly::new(policy.clone()).assemble(objects.iter());
            notices.sort();
            told.sort();
            prop_assert_eq!(&state, &expected);
            prop_assert_eq!(notices, told);
            // What is as it was is the same in memory: the planner does not look at it again.
            for (name, port) in &state.services {
                let same = last.services.get(name).filter(|last| *last == port);
                prop_assert!(same.is_none_or(|last| Arc::ptr_eq(last, port)));
            }
            last = state;
        }
    }
}
