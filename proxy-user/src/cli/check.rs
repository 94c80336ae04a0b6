//! `causeway check`: what would be wrong, told without touching anything.

use std::{
    collections::BTreeMap,
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Instant,
};

use proxy_common::{abi::DeviceRole, wire::MacAddr};
use serde::Serialize;

use super::{Exit, Failure, arguments::Check, load, output::Output};
use crate::{
    config::Config,
    model::{Algorithm, Notice, Severity, State},
    reconcile::{Allocation, Capacity, DeviceFact, Facts, Held, Observed, Options, compile},
    source::{assemble::Policy, manifests::Manifests, snapshot::Counts},
};

#[derive(Serialize)]
struct Checked {
    notices: Vec<Notice>,
    counts: Counts,
}

pub(super) fn check<W: Write>(arguments: &Check, output: &mut Output<W>) -> anyhow::Result<()> {
    if arguments
        .path
        .extension()
        .is_some_and(|extension| extension == "toml")
    {
        load(&arguments.path)?;
        return output.text(&format!("{}: no mistakes", arguments.path.display()));
    }
    let config = arguments.config.as_deref().map(load).transpose()?;
    if let Err(error) = std::fs::metadata(&arguments.path) {
        let message = format!("{}: {error}", arguments.path.display());
        return Err(Failure::new(Exit::NotFound, message).into());
    }
    let mut policy = Policy::default();
    if let Some(config) = &config {
        policy.node.clone_from(&config.node);
        policy.external_ranges.clone_from(&config.external_ranges);
    }
    if let Some(node) = &arguments.node {
        policy.node.clone_from(node);
    }
    let mut snapshot = Manifests::new(arguments.path.clone(), policy.clone()).scan();
    if policy.node.is_empty()
        && let Some(first) = snapshot.state.nodes.keys().next()
    {
        policy.node.clone_from(first);
        snapshot = Manifests::new(arguments.path.clone(), policy.clone()).scan();
    }
    let mut notices = conflicts(&snapshot.state, config.as_ref(), &policy.node);
    for notice in &mut notices {
        snapshot.place(notice);
    }
    notices.append(&mut snapshot.notices);
    notices.sort_by(|a, b| (&a.origin, a).cmp(&(&b.origin, b)));
    notices.dedup();
    let of = |severity| notices.iter().filter(|n| n.severity == severity).count();
    let (errors, warnings) = (of(Severity::Error), of(Severity::Warning));
    let counts = Counts {
        errors,
        warnings,
        ..snapshot.counts
    };
    output.show(&Checked { notices, counts }, describe)?;
    if errors > 0 || arguments.strict && warnings > 0 {
        return Err(Failure::new(Exit::Invalid, "").into());
    }
    Ok(())
}

/// What only shows when everything is put together: frontends that two services claim, ports that
/// cannot be translated. The node is a made-up one with the addresses of its Node object.
fn conflicts(state: &State, config: Option<&Config>, node: &str) -> Vec<Notice> {
    let named = state
        .nodes
        .get(node)
        .map(|node| node.addresses.clone())
        .unwrap_or_default();
    let documentation: [IpAddr; 2] = [
        Ipv4Addr::new(192, 0, 2, 1).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    ];
    let addresses = if named.is_empty() {
        documentation.to_vec()
    } else {
        named
    };
    let uplink = DeviceFact {
        ifindex: 1,
        name: "uplink".to_owned(),
        mac: MacAddr::default(),
        mtu: 1_500,
        addresses: addresses.into_iter().map(ipnet::IpNet::from).collect(),
        vlan: None,
        role: DeviceRole::Uplink,
        xdp_transmit: false,
    };
    let facts = Facts {
        devices: BTreeMap::from([(1, uplink)]),
        hz: 250,
    };
    let options = config.map_or_else(
        || Options {
            node: node.to_owned(),
            nat_ports: 61_000..=65_535,
            algorithm: Algorithm::Random,
            node_port_ranges: Vec::new(),
            sockets: false,
            held: Held::new(),
        },
        |config| Options {
            node: node.to_owned(),
            node_port_ranges: Vec::new(),
            ..config.options()
        },
    );
    let unlimited = Capacity {
        services: u32::MAX,
        backends: u32::MAX,
        slots: u32::MAX,
    };
    let capacity = config.map_or(unlimited, |config| config.maps.capacity());
    let now = Instant::now();
    let mut allocation = Allocation::restore(&Observed::default(), capacity, now);
    compile(state, &facts, &options, &mut allocation, now)
        .1
        .notices
}

fn describe(checked: &Checked) -> String {
    let mut text = String::new();
    for notice in &checked.notices {
        text += &notice.to_string();
        text.push('\n');
    }
    let Counts {
        files,
        objects,
        errors,
        warnings,
        ..
    } = checked.counts;
    let count = |number: usize, noun: &str| {
        format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
    };
    let errors = count(errors, "error");
    let warnings = count(warnings, "warning");
    let (objects, files) = (count(objects, "object"), count(files, "file"));
    text + &format!("{objects} in {files}: {errors}, {warnings}\n")
}
