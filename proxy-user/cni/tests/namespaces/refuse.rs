//! What is refused, by the specification's numbers.

use serde_json::json;

use super::host::{Container, Host};

pub(crate) fn what_cannot_be_done_is_refused_by_number() {
    let host = Host::new();
    let _daemon = host.daemon(&["10.1.0.0/24"], true);
    let one = host.container();
    let refused = |command, container: Option<&Container>, extra, code, named: &str| {
        let refusal = host.ask(command, container, &extra).expect_err(named);
        assert_eq!(refusal.code, code, "{refusal:?}");
        assert!(refusal.message.contains(named), "{refusal:?}");
    };
    let bandwidth = json!({ "runtimeConfig": { "bandwidth": { "ingressRate": 1_000_000 } } });
    refused("ADD", Some(&one), bandwidth, 2, "bandwidth");
    refused(
        "ADD",
        Some(&one),
        json!({ "prevResult": {} }),
        7,
        "prevResult",
    );
    refused(
        "ADD",
        Some(&one),
        json!({ "cniVersion": "2.0.0" }),
        1,
        "2.0.0",
    );
    refused("ADD", None, json!({}), 4, "CNI_CONTAINERID");
    refused("HOP", Some(&one), json!({}), 4, "HOP");
    refused("GC", None, json!({}), 7, "cni.dev/valid-attachments");
    refused("CHECK", Some(&one), json!({}), 7, "prevResult");
    one.room
        .run("ip", &["link", "add", "eth0", "type", "bridge"]);
    refused(
        "ADD",
        Some(&one),
        json!({}),
        102,
        "has a device eth0 already",
    );
    // It is not ours, so it stays.
    host.del(&one);
    one.room.run("ip", &["link", "show", "eth0"]);
    host.room.run("ip", &["netns", "del", &one.id]);
    refused("ADD", Some(&one), json!({}), 3, "no such network namespace");
    host.assert_empty();
}

pub(crate) fn without_the_daemon_nothing_is_added() {
    let host = Host::new();
    let one = host.container();
    let code = |command, container: Option<&Container>| {
        host.ask(command, container, &json!({ "waitSeconds": 1 }))
            .unwrap_err()
            .code
    };
    assert_eq!((code("STATUS", None), code("ADD", Some(&one))), (50, 11));
    drop(host.daemon(&["10.1.0.0/24"], true));
    assert_eq!((code("STATUS", None), code("ADD", Some(&one))), (50, 11));
    drop(host.daemon(&[], true));
    let without_ranges = host.daemon(&[], true);
    assert_eq!((code("STATUS", None), code("ADD", Some(&one))), (50, 11));
    drop(without_ranges);
    // One that attaches nothing: a pod that would run past the datapath is taken back.
    let idle = host.daemon(&["10.1.0.0/24"], false);
    host.ask("STATUS", None, &json!({})).unwrap();
    assert_eq!(code("ADD", Some(&one)), 11);
    host.assert_empty();
    drop(idle);
    // Pods that are there, and whose programs are gone.
    let daemon = host.daemon(&["10.1.0.0/24"], true);
    host.add(&one);
    drop(daemon);
    let store = host.store();
    let mut records = host.records().attachments.into_values();
    let mut old = records.next().unwrap();
    old.added -= 60_000;
    store.write(&old).unwrap();
    let idle = host.daemon(&["10.1.0.0/24"], false);
    assert_eq!(code("STATUS", None), 51);
    drop(idle);
    host.del(&one);
    host.assert_empty();
}
