//! The daemon ends and starts again: what it finds is right, has changed, or cannot be read.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use proxy_common::abi::{Service, ServiceKey, V4};
use proxy_user::daemon::Engine;
use proxy_user::dataplane::attach::detach_all;

use crate::daemon::{NODE, Node, SMALL, key, service};
use crate::world::ip;

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

/// Everything but what is the same changes while no daemon runs.
#[test]
fn a_restart_finds_what_has_changed_meanwhile() {
    let node = Node::new("ks-meanwhile", SMALL);
    node.write("node.yaml", NODE);
    let pods = ["10.1.0.1", "10.1.0.2"];
    for (name, address) in [
        ("goes", "10.96.0.1"),
        ("changes", "10.96.0.2"),
        ("stays", "10.96.0.3"),
    ] {
        node.write(&format!("{name}.yaml"), &service(name, address, &pods));
    }
    let reader = || node.reader().with_copies(&node.config.state);
    let (engine, _) = node.run(reader());
    let maps = |engine: &Engine| {
        let view = engine.view();
        let services = view.maps().services_v4.entries().unwrap();
        let mut backends = view.maps().backends.entries().unwrap();
        backends.retain(|(_, backend)| backend.family != 0);
        (services, backends)
    };
    let (services, backends) = maps(&engine);
    let of = |services: &[(ServiceKey<V4>, Service)], address| {
        let mut found = services.iter().filter(|(held, _)| *held == key(address));
        found.next().map(|(_, service)| *service)
    };
    let [changes, stays] = [2, 3].map(|last| of(&services, [10, 96, 0, last]).unwrap());
    std::mem::forget(engine);

    fs::remove_file(node.manifests().join("goes.yaml")).unwrap();
    node.write(
        "changes.yaml",
        &service("changes", "10.96.0.2", &["10.1.0.2", "10.1.0.3"]),
    );
    node.write("comes.yaml", &service("comes", "10.96.0.4", &pods));
    ip(&["link", "del", "pod1"]);
    ip(&[
        "link", "add", "pod2", "type", "veth", "peer", "name", "far2",
    ]);
    let (mut engine, _) = node.run(reader());
    let (after, live) = maps(&engine);
    assert_eq!(after.len(), 3);
    assert_eq!(of(&after, [10, 96, 0, 1]), None);
    assert_eq!(of(&after, [10, 96, 0, 3]), Some(stays), "the same slots");
    assert_eq!(of(&after, [10, 96, 0, 2]).unwrap().id, changes.id);
    assert_eq!(of(&after, [10, 96, 0, 4]).unwrap().slots, 2);
    // The backends of what stays are what they were, so flows to them live; so is the one that
    // both endpoints of what changes have in common.
    let kept = |service: u32| {
        backends
            .iter()
            .filter(move |(_, backend)| backend.service == service)
    };
    assert_eq!(kept(stays.id).count(), 2);
    assert!(kept(stays.id).all(|entry| live.contains(entry)));
    assert_eq!(
        kept(changes.id)
            .filter(|entry| live.contains(entry))
            .count(),
        1
    );
    assert_eq!(live.len(), 6);
    let current = engine.view().current();
    let names: Vec<_> = current
        .attached
        .iter()
        .map(|device| device.name.as_str())
        .collect();
    assert_eq!(names, ["lo", "up0", "pod2"]);
    assert_eq!(engine.view().folder().pinned_links().unwrap().len(), 5);
    engine.reread().unwrap();
    assert!(!engine.round().unwrap());
    assert_eq!(
        engine.view().current().sync.unwrap().done,
        0,
        "it has converged"
    );
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
