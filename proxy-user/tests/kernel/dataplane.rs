//! The dataplane against this machine's kernel, in network namespaces.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use crate::world::{World, ip, output};
use aya::programs::{SchedClassifier, TcAttachType};
use proxy_common::abi::{Addr4, Flow, FlowKey, MAPS, Service, ServiceKey, V4};
use proxy_common::wire::Be16;
use proxy_user::config::XdpMode;
use proxy_user::dataplane::attach::{Attachments, Target, TcMode, detach_all};
use proxy_user::dataplane::flows::Clock;
use proxy_user::dataplane::load::{Globals, Programs, embedded_object};
use proxy_user::dataplane::maps::MapError;
use proxy_user::dataplane::{
    Features, InstanceLock, MapSizes, Maps, PinFolder, Ticks, jiffies_per_second,
};
use proxy_user::kernel::devices::{self, XdpState};
use proxy_user::kernel::netlink::Netlink;

fn small() -> MapSizes {
    MAPS.iter()
        .map(|spec| (spec.name.to_owned(), spec.entries.min(1_000)))
        .filter(|(name, _)| name != "FILTER")
        .collect()
}

pub(crate) fn load(folder: &PinFolder) -> (Maps, Programs) {
    let maps = Maps::open_or_create(folder, &small()).unwrap();
    let features = Features::probe().unwrap();
    let globals = Globals {
        l4_csum_ipv6: features.l4_csum_ipv6,
        ..Globals::default()
    };
    let object = embedded_object().expect("this build has no kernel object");
    (maps, Programs::load(object, folder, globals).unwrap())
}

pub(crate) fn target(name: &str, xdp: XdpMode) -> Target {
    let devices = devices::list(&mut Netlink::connect().unwrap()).unwrap();
    let device = devices.values().find(|device| device.name == name).unwrap();
    Target {
        ifindex: device.ifindex,
        name: name.to_owned(),
        xdp,
        hardware: device.kind.is_none(),
        xdp_state: device.xdp,
    }
}

/// Ids of our links, by pin.
pub(crate) fn link_ids(folder: &PinFolder) -> BTreeMap<String, String> {
    let mut ids = BTreeMap::new();
    for (program, ifindex, path) in folder.pinned_links().unwrap() {
        let shown = output(
            "bpftool",
            &["-j", "link", "show", "pinned", path.to_str().unwrap()],
        );
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        ids.insert(format!("{program}-{ifindex}"), shown["id"].to_string());
    }
    ids
}

#[test]
fn maps_are_made_adopted_and_refused_when_they_differ() {
    let world = World::new("ks-maps");
    let folder = world.folder();
    let maps = Maps::open_or_create(&folder, &small()).unwrap();
    let ids = |maps: &Maps| [maps.flows_v4.map().info.id, maps.counters.map().info.id];
    let first = ids(&maps);
    drop(maps);
    let again = Maps::open_or_create(&folder, &small()).unwrap();
    assert_eq!(ids(&again), first, "pinned maps are adopted");
    assert_eq!(fs::read_dir(folder.maps()).unwrap().count(), MAPS.len());

    let mut other = small();
    other.insert("FLOWS_V4".to_owned(), 2_000);
    let error = Maps::open_or_create(&folder, &other).unwrap_err();
    assert!(matches!(
        error,
        MapError::Mismatch {
            name: "FLOWS_V4",
            held: 1_000,
            wanted: 2_000,
            ..
        }
    ));
    assert!(error.to_string().contains("causeway detach"), "{error}");

    let error = Maps::open_or_create(&folder, &[("FLOWS".to_owned(), 1)].into()).unwrap_err();
    assert!(matches!(error, MapError::Unknown { .. }), "{error}");
}

#[test]
fn one_process_works_on_an_instance() {
    let world = World::new("ks-lock");
    let folder = world.folder();
    let first = InstanceLock::take(&folder).unwrap();
    let own = format!("process {} works on this instance", std::process::id());
    for second in [
        InstanceLock::take(&folder).map(Some),
        InstanceLock::of_existing(&folder),
    ] {
        let error = second.unwrap_err().to_string();
        assert!(error.contains(&own), "{error}");
    }
    // Who removes the folder has its lock, and the next makes another.
    folder.remove().unwrap();
    let second = InstanceLock::take(&folder).unwrap();
    drop(first);
    assert!(InstanceLock::take(&folder).is_err());
    drop(second);
    drop(InstanceLock::take(&folder).unwrap());
    folder.remove().unwrap();
    assert!(InstanceLock::of_existing(&folder).unwrap().is_none());
}

#[test]
fn batches_and_single_calls_do_the_same() {
    let world = World::new("ks-batch");
    let maps = Maps::open_or_create(&world.folder(), &small()).unwrap();
    let key = |port: u16| ServiceKey::<V4> {
        port: Be16::new(port),
        protocol: 6,
        ..ServiceKey::default()
    };
    let entries: Vec<_> = (0..900)
        .map(|port| {
            (
                key(port),
                Service {
                    id: port.into(),
                    ..Service::default()
                },
            )
        })
        .collect();
    for batched in [true, false] {
        let table = &maps.services_v4;
        if !batched {
            table.without_batches();
        }
        table.put_all(&entries).unwrap();
        let mut held = table.entries().unwrap();
        held.sort_by_key(|(_, service)| service.id);
        assert!(held == entries, "batched: {batched}");
        // Every third is removed twice over: keys that are not there are passed over.
        let keys: Vec<_> = entries.iter().step_by(3).map(|(key, _)| *key).collect();
        assert_eq!(table.remove_all(&keys).unwrap(), 300);
        let all: Vec<_> = entries.iter().map(|(key, _)| *key).collect();
        assert_eq!(table.remove_all(&all).unwrap(), 600);
        assert_eq!(table.entries().unwrap(), []);
    }
    // One too many: the error says which, and those before it are in.
    let many: Vec<_> = (0..1_001)
        .map(|port| (key(port), Service::default()))
        .collect();
    let error = maps.services_v4.put_all(&many).unwrap_err();
    assert_eq!(
        (error.index, error.source.raw_os_error()),
        (1_000, Some(libc::E2BIG))
    );
    assert_eq!(maps.services_v4.entries().unwrap().len(), 1_000);
}

#[test]
fn a_dump_of_a_large_table_is_whole() {
    let world = World::new("ks-dump");
    let mut sizes = small();
    sizes.insert("FLOWS_V4".to_owned(), 60_000);
    let maps = Maps::open_or_create(&world.folder(), &sizes).unwrap();
    let entries: Vec<_> = (0..50_000_u32)
        .map(|n| {
            let mut key = FlowKey::<V4> {
                protocol: 17,
                ..FlowKey::default()
            };
            key.source = Addr4::from_bytes(n.to_be_bytes());
            (
                key,
                Flow::<V4> {
                    packets: n.into(),
                    ..Flow::default()
                },
            )
        })
        .collect();
    maps.flows_v4.put_all(&entries).unwrap();
    let mut held = maps.flows_v4.entries().unwrap();
    held.sort_by_key(|(_, flow)| flow.packets);
    assert!(held == entries);
}

#[test]
fn ticks_last_as_long_as_the_clock_says() {
    let hz = jiffies_per_second().unwrap();
    let ticks = Ticks::load().unwrap();
    let next = || {
        let before = ticks.now().unwrap();
        while ticks.now().unwrap() == before {
            std::thread::sleep(Duration::from_millis(1));
        }
        Instant::now()
    };
    let (began, ended) = (next(), next());
    let measured = ended.duration_since(began).as_secs_f64();
    let expected = Clock { hz }.duration(1).as_secs_f64();
    // The next configuration, 300 for 250, is 20 % away; a busy machine may be late.
    assert!(
        (measured / expected - 1.0).abs() < 0.15,
        "{measured} s, not {expected} s"
    );
}

/// The ids of programs at a TC hook of a device, as the kernel tells them.
pub(crate) fn at_hook(tc: TcMode, device: &str, attach: TcAttachType) -> Vec<u32> {
    match tc {
        TcMode::Tcx => {
            let (_, programs) = SchedClassifier::query_tcx(device, attach).unwrap();
            programs
                .iter()
                .map(aya::programs::ProgramInfo::id)
                .collect()
        }
        TcMode::Clsact => {
            let hook = if attach == TcAttachType::Egress {
                "egress"
            } else {
                "ingress"
            };
            let shown = output("tc", &["-j", "filter", "show", "dev", device, hook]);
            let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
            let ids = shown.as_array().unwrap().iter();
            ids.filter_map(|filter| filter["options"]["prog"]["id"].as_u64())
                .map(|id| u32::try_from(id).unwrap())
                .collect()
        }
    }
}

fn attaches(tc: TcMode, label: &'static str) {
    let world = World::new(label);
    let folder = world.folder();
    ip(&["link", "add", "up0", "type", "veth", "peer", "name", "up1"]);
    ip(&[
        "link", "add", "pod0", "type", "veth", "peer", "name", "pod1",
    ]);
    for name in ["up0", "up1", "pod0", "pod1"] {
        ip(&["link", "set", name, "up"]);
    }
    let check = |programs: [u32; 2], devices: &[&str]| {
        for device in devices {
            assert_eq!(
                at_hook(tc, device, TcAttachType::Ingress),
                [programs[0]],
                "{device}"
            );
            assert_eq!(
                at_hook(tc, device, TcAttachType::Egress),
                [programs[1]],
                "{device}"
            );
        }
    };
    let (maps, programs) = load(&folder);
    let first = [programs.tc_ingress.id, programs.tc_egress.id];
    let mut attachments = Attachments::new(folder.clone(), programs, tc);
    let targets = || [target("up0", XdpMode::Native), target("pod0", XdpMode::Off)];
    let attached = attachments.sync(&targets()).unwrap();
    assert!(
        attached.iter().all(|device| device.problems.is_empty()),
        "{attached:?}"
    );
    assert_eq!((attached[0].xdp, attached[1].xdp), ("native", "off"));
    assert_eq!(target("up0", XdpMode::Off).xdp_state, XdpState::Native);
    let ids = link_ids(&folder);
    assert_eq!(ids.len(), if tc == TcMode::Tcx { 5 } else { 1 }, "{ids:?}");
    check(first, &["up0", "pod0"]);
    // Another round changes nothing.
    attachments.sync(&targets()).unwrap();
    assert_eq!(link_ids(&folder), ids);

    // The daemon ends: nothing changes. A new one puts its own programs into the same links.
    drop((attachments, maps));
    check(first, &["up0", "pod0"]);
    let (_maps, programs) = load(&folder);
    let second = [programs.tc_ingress.id, programs.tc_egress.id];
    assert_ne!(first, second);
    let mut attachments = Attachments::new(folder.clone(), programs, tc);
    attachments.sync(&targets()).unwrap();
    assert_eq!(link_ids(&folder), ids, "links are updated in place");
    check(second, &["up0", "pod0"]);

    // What somebody takes away is put back.
    remove_at(tc, &folder, &target("pod0", XdpMode::Off));
    assert_eq!(
        at_hook(tc, "pod0", TcAttachType::Ingress),
        Vec::<u32>::new()
    );
    attachments.sync(&targets()).unwrap();
    check(second, &["up0", "pod0"]);

    // A device goes: its pins do too. One that is no target any more is left clean.
    ip(&["link", "del", "pod0"]);
    attachments.sync(&[target("up0", XdpMode::Off)]).unwrap();
    check(second, &["up0"]);
    assert_eq!(target("up0", XdpMode::Off).xdp_state, XdpState::None);
    attachments.sync(&[]).unwrap();
    assert_eq!(link_ids(&folder), BTreeMap::new());
    assert_eq!(at_hook(tc, "up0", TcAttachType::Ingress), Vec::<u32>::new());

    // After all is attached once more: detach leaves nothing.
    attachments.sync(&[target("up0", XdpMode::Native)]).unwrap();
    attachments
        .sync(&[target("up0", XdpMode::Generic)])
        .unwrap();
    assert_eq!(target("up0", XdpMode::Off).xdp_state, XdpState::Generic);
    check(second, &["up0"]);
    drop(attachments);
    detach_all(&folder).unwrap();
    assert!(!folder.path().exists());
    assert_eq!(at_hook(tc, "up0", TcAttachType::Ingress), Vec::<u32>::new());
    assert_eq!(at_hook(tc, "up0", TcAttachType::Egress), Vec::<u32>::new());
    assert_eq!(target("up0", XdpMode::Off).xdp_state, XdpState::None);
    assert!(!output("tc", &["qdisc", "show"]).contains("clsact"));
}

/// Takes the ingress program from a device behind the daemon's back.
fn remove_at(tc: TcMode, folder: &PinFolder, target: &Target) {
    match tc {
        TcMode::Tcx => {
            let pin = folder.link("tc_ingress", target.ifindex);
            output(
                "bpftool",
                &["link", "detach", "pinned", pin.to_str().unwrap()],
            );
        }
        TcMode::Clsact => {
            output("tc", &["filter", "del", "dev", &target.name, "ingress"]);
        }
    }
}

#[test]
fn attaches_by_tcx() {
    assert!(Features::probe().unwrap().tcx, "this kernel has no TCX");
    attaches(TcMode::Tcx, "ks-tcx");
}

#[test]
fn attaches_by_clsact() {
    attaches(TcMode::Clsact, "ks-clsact");
}

#[test]
fn filters_of_others_stay() {
    let world = World::new("ks-foreign");
    let folder = world.folder();
    ip(&["link", "add", "up0", "type", "veth", "peer", "name", "up1"]);
    output("tc", &["qdisc", "add", "dev", "up0", "clsact"]);
    let foreign = [
        "filter",
        "add",
        "dev",
        "up0",
        "ingress",
        "prio",
        "7",
        "bpf",
        "bytecode",
        "1,6 0 0 4294967295,",
    ];
    output("tc", &foreign);
    let (_maps, programs) = load(&folder);
    let mut attachments = Attachments::new(folder.clone(), programs, TcMode::Clsact);
    attachments.sync(&[target("up0", XdpMode::Auto)]).unwrap();
    let shown = output("tc", &["filter", "show", "dev", "up0", "ingress"]);
    assert!(
        shown.contains("pref 7 ") && shown.contains("tc_ingress"),
        "{shown}"
    );
    drop(attachments);
    detach_all(&folder).unwrap();
    let shown = output("tc", &["filter", "show", "dev", "up0", "ingress"]);
    assert!(
        shown.contains("pref 7 ") && !shown.contains("tc_ingress"),
        "{shown}"
    );
}

#[test]
fn a_later_run_with_links_takes_over_from_filters() {
    let world = World::new("ks-takeover");
    let folder = world.folder();
    ip(&["link", "add", "up0", "type", "veth", "peer", "name", "up1"]);
    for tc in [TcMode::Clsact, TcMode::Tcx, TcMode::Clsact] {
        let (_maps, programs) = load(&folder);
        let program = programs.tc_ingress.id;
        let mut attachments = Attachments::new(folder.clone(), programs, tc);
        attachments.sync(&[target("up0", XdpMode::Auto)]).unwrap();
        for mode in [TcMode::Clsact, TcMode::Tcx] {
            let expected = if mode == tc {
                vec![program]
            } else {
                Vec::new()
            };
            assert_eq!(
                at_hook(mode, "up0", TcAttachType::Ingress),
                expected,
                "{tc:?} {mode:?}"
            );
        }
    }
    detach_all(&folder).unwrap();
}
