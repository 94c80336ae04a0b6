//! Many pods at once.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use super::host::{Container, Host, addresses};

pub(crate) fn fifty_at_once_get_fifty_addresses() {
    let host = Host::new();
    let _daemon = host.daemon(&["10.1.0.0/24", "fd00:1::/64"], true);
    let containers: Vec<Container> = (0..50).map(|_| host.container()).collect();
    let began = Instant::now();
    let results = thread::scope(|scope| {
        let threads: Vec<_> = containers
            .iter()
            .map(|container| scope.spawn(|| host.add(container)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect::<Vec<_>>()
    });
    println!("50 pods at once: {:?}", began.elapsed());
    let given: BTreeSet<IpAddr> = results.iter().flat_map(addresses).collect();
    assert_eq!(given.len(), 100);
    for (container, result) in containers.iter().zip(&results) {
        host.check(container, result).unwrap();
    }
    containers[0].room.pings(addresses(&results[49])[0]);
    containers[49].room.pings(addresses(&results[0])[1]);
    // A network of another name is none of this GC's business.
    let foreign = host.container();
    host.ask("ADD", Some(&foreign), &json!({ "name": "other" }))
        .unwrap();
    let valid: Vec<Value> = containers[..25]
        .iter()
        .map(|container| json!({ "containerID": container.id, "ifname": "eth0" }))
        .collect();
    host.ask("GC", None, &json!({ "cni.dev/valid-attachments": valid }))
        .unwrap();
    assert_eq!(host.devices().len(), 26);
    for (container, result) in containers[..25].iter().zip(&results) {
        host.check(container, result).unwrap();
    }
    host.ask("GC", None, &json!({ "cni.dev/valid-attachments": [] }))
        .unwrap();
    host.del(&foreign);
    host.assert_empty();
}

pub(crate) fn a_full_range_is_said_and_nothing_is_left() {
    let host = Host::new();
    let _daemon = host.daemon(&["10.1.0.0/30", "fd00:1::/64"], true);
    let [one, two, three] = [host.container(), host.container(), host.container()];
    let (first, _) = (host.add(&one), host.add(&two));
    let refusal = host.ask("ADD", Some(&three), &json!({})).unwrap_err();
    assert_eq!(refusal.code, 100);
    assert!(
        refusal.message.contains("10.1.0.0/30: all 2 are taken"),
        "{refusal:?}"
    );
    assert_eq!(
        (host.devices().len(), host.records().attachments.len()),
        (2, 2)
    );
    host.del(&one);
    // The only address that is left, although it did not rest.
    assert_eq!(addresses(&host.add(&three))[0], addresses(&first)[0]);
    host.del(&two);
    host.del(&three);
    host.assert_empty();
}
