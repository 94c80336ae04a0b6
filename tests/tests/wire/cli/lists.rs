//! Everything that lists: content, in every format; then the daemon is killed, and the pins say the
//! same; then `detach` leaves nothing.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use proxy_tests::lab::{
    answer::{ECHO_PORT, HTTP_PORT},
    ask::{self, Means},
    cluster::{Cluster, Hook},
    layout::{self, Family, Layout},
    manifest::{self, Service},
};
use serde_json::Value;

use super::{Node, detach, field, holds, maps, number, text};
use crate::worlds;

/// Every list, with its titles.
const LISTS: [(&[&str], &[&str]); 5] = [
    (&["service", "list"], SERVICE),
    (&["backend", "list"], BACKEND),
    (&["flow", "list"], FLOW),
    (&["route", "list"], ROUTE),
    (&["drop", "list"], DROP),
];
const SERVICE: &[&str] = &[
    "SERVICE",
    "CLUSTER",
    "EXTERNAL",
    "ALGORITHM",
    "SERVING",
    "DRAINING",
    "CONNECTIONS",
    "BYTES",
];
const BACKEND: &[&str] = &[
    "SERVICE",
    "BACKEND",
    "STATE",
    "SHARE",
    "LIVE",
    "CONNECTIONS",
    "BYTES",
    "INDEX",
];
const FLOW: &[&str] = &[
    "PROTOCOL", "CLIENT", "FRONTEND", "SEEN AS", "BACKEND", "PHASE", "IDLE", "PACKETS", "BYTES",
    "SERVICE",
];
const ROUTE: &[&str] = &[
    "DESTINATION",
    "STEP",
    "DEVICE",
    "GATEWAY",
    "LINK ADDRESS",
    "SERVICES",
];
const DROP: &[&str] = &["REASON", "KIND", "PACKETS", "BYTES", "MEANING"];

/// What only a daemon knows, and what changes with time.
const PASSING: [&str; 4] = ["connections", "bytes", "live", "idle_ms"];

pub(super) fn run() -> Result<()> {
    let near = Service::balanced("near", 10, &[1]);
    let both = Service::balanced("both", 12, &[1, 3]);
    let services = [near.clone(), both.clone()];
    let mut cluster = worlds::serve(Layout::STANDARD, Hook::Tc, &services)?;
    let open = traffic(&cluster, &near)?;
    let node = Node::new(&cluster, 1);
    for (list, titles) in LISTS {
        node.list(list, titles)?;
    }
    services_and_backends(node, &near, &both)?;
    flows(node, &near, &open)?;
    routes(node)?;
    drops(node)?;
    status(node)?;
    maps::list(node)?;
    maps::check(node)?;
    let live = everything(node)?;
    cluster.end(1, Signal::SIGKILL)?;
    let node = Node::new(&cluster, 1);
    let pinned = everything(node)?;
    for ((what, live), (_, pinned)) in live.iter().zip(&pinned) {
        ensure!(
            live == pinned,
            "{what} with a daemon: {live:#}, from the pins: {pinned:#}"
        );
    }
    for (list, titles) in LISTS {
        node.list(list, titles)?;
    }
    let unknown = field(
        node.rows(&["service", "get", "near"])?
            .first()
            .context("no row")?,
        "bytes",
    )?
    .is_null();
    ensure!(unknown, "the pins cannot know how many bytes a service had");
    maps::check(node)?;
    node.fails(&["status"], 5, "services that are in the kernel go on")?;
    drop(open);
    detach::check(&mut cluster)
}

/// Makes connections, one of each family that stays, and a packet that is dropped.
fn traffic(cluster: &Cluster, near: &Service) -> Result<Vec<TcpStream>> {
    let client = cluster.world().client();
    let mut open = Vec::new();
    for family in Family::BOTH {
        for means in [Means::Http, Means::Udp] {
            let target = near.balancer(means, family);
            let attempt = ask::ask(&client, means, target, Duration::from_secs(4))?;
            ensure!(attempt.outcome.pod() == Some("pod1"), "{}", attempt.outcome);
        }
        let inner = near.cluster(Means::Http, family);
        let attempt = ask::ask(&client, Means::Http, inner, Duration::from_millis(300))?;
        ensure!(attempt.outcome.pod().is_none(), "{}", attempt.outcome);
        let target = near.balancer(Means::Tcp, family);
        open.push(client.enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(4)))??);
    }
    Ok(open)
}

fn services_and_backends(node: Node<'_>, near: &Service, both: &Service) -> Result<()> {
    // Three ports each, and the host ports of pod 1.
    let rows = node.rows(&["service", "list"])?;
    let names: Vec<&str> = rows
        .iter()
        .map(|row| text(row, "name"))
        .collect::<Result<_>>()?;
    for name in ["default/near:http/TCP", "default/both:echo-udp/UDP"] {
        ensure!(names.contains(&name), "no {name} in {names:?}");
    }
    for (wanted, count) in [
        ("near", 3),
        ("default/near", 3),
        ("default/near:http/TCP", 1),
    ] {
        let rows = node.list(&["service", "get", wanted], SERVICE)?;
        ensure!(rows.len() == count, "{wanted}: {rows:?}");
    }
    let rows = node.rows(&["service", "get", "default/near:http/TCP"])?;
    let row = rows.first().context("no row")?;
    for family in Family::BOTH {
        let cluster = near.cluster(Means::Http, family).to_string();
        ensure!(
            holds(field(row, "cluster")?, &cluster),
            "no {cluster}: {row}"
        );
        let port = SocketAddr::new(layout::node(1, family), near.node_port(Means::Http));
        for external in [near.balancer(Means::Http, family), port] {
            let external = external.to_string();
            ensure!(
                holds(field(row, "external")?, &external),
                "no {external}: {row}"
            );
        }
    }
    ensure!(
        text(row, "protocol")? == "TCP" && text(row, "algorithm")? == "random",
        "{row}"
    );
    ensure!(
        number(row, "serving")? == 2 && number(row, "draining")? == 0,
        "{row}"
    );
    let (_, table) = node.table(&["service", "get", "default/both:http/TCP"])?;
    let cell = |title: &str| table.first().and_then(|row| row.get(title)).cloned();
    ensure!(cell("SERVING").as_deref() == Some("4"), "{table:?}");
    let balancers = Family::BOTH.map(|family| both.balancer(Means::Http, family).to_string());
    let external = cell("EXTERNAL").unwrap_or_default();
    ensure!(
        balancers
            .iter()
            .all(|balancer| external.split(',').any(|one| one == balancer)),
        "{external}"
    );
    let pod = SocketAddr::new(Layout::STANDARD.pod(3, Family::V4), HTTP_PORT);
    for (wanted, count) in [("default/both:http/TCP", 4), (&*pod.to_string(), 1)] {
        let rows = node.list(&["backend", "get", wanted], BACKEND)?;
        ensure!(rows.len() == count, "{wanted}: {rows:?}");
    }
    let rows = node.rows(&["backend", "get", &pod.ip().to_string()])?;
    ensure!(rows.len() == 3, "{rows:?}");
    for row in &rows {
        ensure!(
            field(row, "serving")? == true && number(row, "share")? == 500,
            "{row}"
        );
    }
    let (_, table) = node.table(&["backend", "get", &pod.to_string()])?;
    let row = table.first().context("no row")?;
    let cell = |title: &str| row.get(title).map(String::as_str);
    ensure!(
        cell("SERVICE") == Some("default/both:http/TCP")
            && cell("BACKEND") == Some(&pod.to_string())
            && cell("STATE") == Some("serving")
            && cell("SHARE") == Some("50.0%"),
        "{row:?}"
    );
    Ok(())
}

fn flows(node: Node<'_>, near: &Service, open: &[TcpStream]) -> Result<()> {
    for (family, stream) in Family::BOTH.into_iter().zip(open) {
        let client = stream.local_addr()?.to_string();
        let rows = node.list(&["flow", "get", &client], FLOW)?;
        let [row] = rows.as_slice() else {
            anyhow::bail!("not one connection of {client}: {rows:?}");
        };
        let backend = SocketAddr::new(Layout::STANDARD.pod(1, family), ECHO_PORT).to_string();
        let expected = [
            ("protocol", "TCP"),
            ("client", &client),
            ("frontend", &near.balancer(Means::Tcp, family).to_string()),
            ("backend", &backend),
            ("seen_as", &client),
            ("service", "default/near:echo/TCP"),
            ("phase", "established"),
            ("step", "pod"),
        ];
        for (name, value) in expected {
            ensure!(text(row, name)? == value, "{name} is not {value}: {row}");
        }
        // SYN and ACK; SYN with ACK.
        ensure!(number(row, "packets_in")? >= 2, "{row}");
        ensure!(number(row, "packets_out")? >= 1, "{row}");
        let (_, table) = node.table(&["flow", "get", &client])?;
        let row = table.first().context("no row")?;
        ensure!(
            row.get("SEEN AS").map(String::as_str) == Some("="),
            "{row:?}"
        );
    }
    // One that stays and one over UDP, of each family; those of curl have ended and go.
    let rows = node.rows(&["flow", "get", "near"])?;
    let lasts = |row: &&Value| text(row, "phase").is_ok_and(|phase| phase == "established");
    let lasting = rows.iter().filter(lasts).count();
    ensure!(lasting == 4, "{lasting} of 4 connections: {rows:?}");
    Ok(())
}

fn routes(node: Node<'_>) -> Result<()> {
    for family in Family::BOTH {
        let layout = Layout::STANDARD;
        let expected = [
            (1, "pod", "pod1", None),
            (
                3,
                "forward",
                "eth0",
                Some(layout::node(2, family).to_string()),
            ),
        ];
        for (pod, step, device, gateway) in expected {
            let address = layout.pod(pod, family).to_string();
            let rows = node.list(&["route", "get", &address], ROUTE)?;
            let row = rows.first().context("no row")?;
            ensure!(
                rows.len() == 1
                    && text(row, "destination")? == address
                    && text(row, "step")? == step
                    && text(row, "device")? == device
                    && field(row, "gateway")?.as_str() == gateway.as_deref(),
                "{address} must be {step} by {device}: {rows:?}"
            );
            ensure!(
                holds(field(row, "services")?, "default/both:http/TCP"),
                "{row}"
            );
        }
    }
    Ok(())
}

fn drops(node: Node<'_>) -> Result<()> {
    use proxy_common::datapath::{Event, Reason};
    let rows = node.rows(&["drop", "list"])?;
    let told: Vec<(&str, bool)> = rows
        .iter()
        .map(|row| Ok((text(row, "reason")?, field(row, "drop")? == true)))
        .collect::<Result<_>>()?;
    let reasons = Reason::ALL.iter().map(|reason| (reason.word(), true));
    let events = Event::ALL.iter().map(|event| (event.word(), false));
    let known: Vec<(&str, bool)> = reasons.chain(events).collect();
    ensure!(told == known, "{told:?}");
    let count = || -> Result<u64> {
        let rows = node.list(&["drop", "get", "outside-cluster-address"], DROP)?;
        number(rows.first().context("no row")?, "packets")
    };
    let before = count()?;
    ensure!(before >= 2, "{before} packets from outside");
    // To explain is not to do.
    let client = layout::client(Family::V4).to_string();
    let inner = SocketAddr::new(layout::cluster_ip(10, Family::V4), 80).to_string();
    let told = node.json(&["explain", "tcp", &client, &inner])?;
    ensure!(text(&told, "verdict")?.starts_with("dropped, outside-cluster-address"));
    let after = count()?;
    ensure!(after == before, "explaining has raised {before} to {after}");
    Ok(())
}

fn status(node: Node<'_>) -> Result<()> {
    let told = node.json(&["status"])?;
    ensure!(
        super::shape(&node.yaml(&["status"])?) == super::shape(&told),
        "{told:#}"
    );
    ensure!(
        field(&told, "in_sync")? == true && text(&told, "node")? == "node1",
        "{told:#}"
    );
    let manifests = Cluster::manifests_of(node.cluster.world())?;
    let counts = field(&told, "counts")?;
    ensure!(
        number(counts, "objects")? == u64::try_from(manifest::count(&manifests)?)?
            && number(counts, "errors")? == 0,
        "{told:#}"
    );
    let devices = field(&told, "devices")?.as_array().context("devices")?;
    let names: Vec<&str> = devices
        .iter()
        .map(|row| text(row, "name"))
        .collect::<Result<_>>()?;
    ensure!(names == ["lo", "eth0", "pod1", "pod2"], "{names:?}");
    let printed = node.text(&["status"])?;
    for word in [
        "causeway    ",
        "state       in sync",
        "manifests   ",
        "DEVICE  XDP  TC",
    ] {
        ensure!(printed.contains(word), "no {word:?} in\n{printed}");
    }
    Ok(())
}

/// What can be asked with and without a daemon, without what passes.
fn everything(node: Node<'_>) -> Result<Vec<(String, Value)>> {
    let client = layout::client(Family::V4).to_string();
    let target = SocketAddr::new(layout::load_balancer(12, Family::V4), 80).to_string();
    let pod = Layout::STANDARD.pod(3, Family::V6).to_string();
    let mut asked: Vec<Vec<&str>> = LISTS.iter().map(|(list, _)| list.to_vec()).collect();
    asked.extend([
        vec!["service", "get", "both"],
        vec!["backend", "get", &pod],
        vec!["flow", "get", &client],
        vec!["route", "get", &pod],
        vec!["drop", "get", "no-endpoint"],
        vec!["map", "list"],
    ]);
    let mut told = Vec::new();
    for arguments in asked {
        let mut value = node.json(&arguments)?;
        // Connections that have ended are forgotten by a daemon, and by nobody else.
        if let Some(rows) = value.as_array_mut() {
            rows.retain(|row| row.get("phase").is_none_or(|phase| phase != "closed"));
        }
        for row in value.as_array_mut().into_iter().flatten() {
            if let Some(fields) = row.as_object_mut() {
                fields.retain(|name, _| !PASSING.contains(&name.as_str()));
            }
        }
        told.push((arguments.join(" "), value));
    }
    // The choice of a backend changes with time.
    let explained = node.json(&["explain", "tcp", &client, &target])?;
    let service = field(&explained, "service")?.clone();
    told.push(("explain".to_owned(), service));
    Ok(told)
}
