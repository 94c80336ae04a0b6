//! Pins of another version of the records: an upgrade, and a downgrade.

use std::fs;

use aya::programs::TcAttachType;
use proxy_common::abi::{ABI_VERSION, Flow, FlowKey, MAPS, V4};
use proxy_user::config::XdpMode;
use proxy_user::dataplane::attach::{Attachments, TcMode, detach_all};
use proxy_user::dataplane::upgrade::{self, Taken};
use proxy_user::kernel::devices::XdpState;

use crate::dataplane::{at_hook, link_ids, load, target};
use crate::world::{World, ip};

fn flow() -> (FlowKey<V4>, Flow<V4>) {
    let flow = Flow {
        packets: 7,
        ..Flow::default()
    };
    (FlowKey::default(), flow)
}

/// Version 0 stands for an older one, whose pins a newer daemon finds.
fn is_taken_over(version: u32, label: &'static str) {
    let world = World::new(label);
    let folder = world.folder();
    let other = folder.of_version(version);
    ip(&["link", "add", "up0", "type", "veth", "peer", "name", "up1"]);
    ip(&[
        "link", "add", "pod0", "type", "veth", "peer", "name", "pod1",
    ]);
    for name in ["up0", "up1", "pod0", "pod1"] {
        ip(&["link", "set", name, "up"]);
    }
    let targets = || [target("up0", XdpMode::Native), target("pod0", XdpMode::Off)];
    let check = |programs: [u32; 2]| {
        for device in ["up0", "pod0"] {
            for (program, hook) in programs
                .iter()
                .zip([TcAttachType::Ingress, TcAttachType::Egress])
            {
                assert_eq!(at_hook(TcMode::Tcx, device, hook), [*program], "{device}");
            }
        }
    };
    let (maps, programs) = load(&other);
    let before = [programs.tc_ingress.id, programs.tc_egress.id];
    maps.flows_v4.put_all(&[flow()]).unwrap();
    let flows = maps.flows_v4.map().info.id;
    let mut attachments = Attachments::new(other.clone(), programs, TcMode::Tcx);
    attachments.sync(&targets()).unwrap();
    let links = link_ids(&other);
    assert_eq!(links.len(), 5);
    drop((attachments, maps));

    let taken = upgrade::take_over(&folder).unwrap();
    let all: Vec<&str> = MAPS.iter().map(|spec| spec.name).collect();
    let expected = Taken {
        links: 5,
        maps: all,
        left: Vec::new(),
    };
    assert_eq!(taken, [expected]);
    assert!(!other.path().exists());
    check(before);
    assert_eq!(link_ids(&folder), links, "the same links, elsewhere");
    let (maps, programs) = load(&folder);
    assert_eq!(maps.flows_v4.map().info.id, flows);
    assert_eq!(maps.flows_v4.get(&flow().0).unwrap(), Some(flow().1));
    let after = [programs.tc_ingress.id, programs.tc_egress.id];
    let mut attachments = Attachments::new(folder.clone(), programs, TcMode::Tcx);
    let attached = attachments.sync(&targets()).unwrap();
    assert!(
        attached.iter().all(|device| device.problems.is_empty()),
        "{attached:?}"
    );
    assert_eq!(attached[0].xdp, "native");
    assert_eq!(link_ids(&folder), links, "links are updated in place");
    check(after);
    assert_eq!(upgrade::take_over(&folder).unwrap(), []);
    drop(attachments);
    detach_all(&folder).unwrap();
    assert_eq!(target("up0", XdpMode::Off).xdp_state, XdpState::None);
}

#[test]
fn an_upgrade_takes_over() {
    is_taken_over(ABI_VERSION - 1, "ks-upgrade");
}

#[test]
fn a_downgrade_takes_over() {
    is_taken_over(ABI_VERSION + 1, "ks-downgrade");
}

/// What the records of a map refer to must be taken over with it.
#[test]
fn changed_records_begin_anew_with_all_that_refers_to_them() {
    let rows: [(&str, &[&str]); 3] = [
        ("FLOWS_V4", &["FLOWS_V4"]),
        ("SERVICES_V6", &["SLOTS", "SERVICES_V4", "SERVICES_V6"]),
        (
            "BACKENDS",
            &[
                "BACKENDS",
                "SLOTS",
                "SERVICES_V4",
                "SERVICES_V6",
                "FLOWS_V4",
                "FLOWS_V6",
                "AFFINITY_V4",
                "AFFINITY_V6",
            ],
        ),
    ];
    let world = World::new("ks-records");
    let folder = world.folder();
    for (changed, left) in rows {
        let other = folder.of_version(7);
        let (maps, programs) = load(&other);
        maps.flows_v4.put_all(&[flow()]).unwrap();
        drop((maps, programs));
        let mark = other
            .layouts()
            .join(format!("{changed}-{}", upgrade::changed_in(changed)));
        fs::remove_dir(mark).unwrap();
        fs::create_dir(other.layouts().join(format!("{changed}-7"))).unwrap();
        let taken = upgrade::take_over(&folder).unwrap();
        assert_eq!(taken[0].left, left);
        let (maps, _programs) = load(&folder);
        let held = maps.flows_v4.get(&flow().0).unwrap();
        assert_eq!(held.is_some(), !left.contains(&"FLOWS_V4"), "{changed}");
        folder.remove().unwrap();
    }
}

/// Versions 1 and 2 had no folder that says which records their maps have.
#[test]
fn versions_that_did_not_say_are_known() {
    let rows: [(u32, &[&str]); 2] = [
        (
            1,
            &[
                "SETTINGS",
                "SLOTS",
                "SOURCES_V4",
                "SOURCES_V6",
                "SERVICES_V4",
                "SERVICES_V6",
                "DEVICES",
                "FLOWS_V4",
                "FLOWS_V6",
                "AFFINITY_V4",
                "AFFINITY_V6",
            ],
        ),
        (
            2,
            &[
                "SETTINGS",
                "SLOTS",
                "SOURCES_V4",
                "SOURCES_V6",
                "SERVICES_V4",
                "SERVICES_V6",
                "AFFINITY_V4",
                "AFFINITY_V6",
            ],
        ),
    ];
    let world = World::new("ks-unsaid");
    let folder = world.folder();
    for (version, left) in rows {
        let other = folder.of_version(version);
        drop(load(&other));
        for mark in fs::read_dir(other.layouts()).unwrap() {
            fs::remove_dir(mark.unwrap().path()).unwrap();
        }
        fs::remove_dir(other.layouts()).unwrap();
        let taken = upgrade::take_over(&folder).unwrap();
        assert_eq!(taken[0].left, left);
        drop(load(&folder));
        folder.remove().unwrap();
    }
}
