//! The world itself, without Causeway: what else is found wrong is not the world's fault.

use std::{net::SocketAddr, process::Command, sync::Arc, thread::sleep, time::Duration};

use anyhow::{Result, bail, ensure};
use libtest_mimic::Trial;
use proxy_tests::lab::{
    answer::{ECHO_PORT, HTTP_PORT},
    ask::{self, Means, Outcome},
    layout::{self, Family},
    load::{Connections, Stream},
    world::World,
};

use crate::{foreign, worlds::Worlds};

const LIMIT: Duration = Duration::from_secs(3);

/// Who asks whom directly.
const WAYS: [(&str, u8); 5] = [
    ("client", 1),
    ("client", 4),
    ("pod2", 1),
    ("pod1", 3),
    ("node2", 1),
];

type Case = (&'static str, fn(&World, Family) -> Result<()>);

/// The instruments of other tests, where the truth is known.
const CASES: [Case; 4] = [
    ("client-pings-nodes", ping_nodes),
    ("load-loses-nothing", load),
    ("load-notices-a-cut", cut),
    ("captures-are-the-same", foreign::untouched),
];

pub(crate) fn trials(worlds: &Arc<Worlds>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for family in Family::BOTH {
        for (from, to) in WAYS {
            for means in [Means::Http, Means::Tcp, Means::Udp] {
                let worlds = Arc::clone(worlds);
                let name = format!("plain/{}/{means}/{from}-to-pod{to}", family.word());
                trials.push(Trial::test(name, move || {
                    Ok(direct(worlds.plain()?, family, means, from, to)?)
                }));
            }
        }
        for (name, case) in CASES {
            let worlds = Arc::clone(worlds);
            let name = format!("plain/{}/{name}", family.word());
            trials.push(Trial::test(name, move || {
                Ok(case(worlds.plain()?, family)?)
            }));
        }
    }
    trials
}

fn direct(world: &World, family: Family, means: Means, from: &str, to: u8) -> Result<()> {
    let port = if means == Means::Http {
        HTTP_PORT
    } else {
        ECHO_PORT
    };
    let target = SocketAddr::new(world.layout().pod(to, family), port);
    let source = match from {
        "client" => layout::client(family),
        "node2" => layout::node(2, family),
        pod => world
            .layout()
            .pod(pod.trim_start_matches("pod").parse()?, family),
    };
    let attempt = ask::ask(&world.room(from), means, target, LIMIT)?;
    let Outcome::Answered { pod, client } = &attempt.outcome else {
        bail!("{from} to {target}: {}", attempt.outcome);
    };
    ensure!(*pod == format!("pod{to}"), "{pod} answered");
    ensure!(client.ip() == source, "pod{to} saw {client}, not {source}");
    Ok(())
}

fn ping_nodes(world: &World, family: Family) -> Result<()> {
    for number in world.layout().nodes() {
        let target = layout::node(number, family);
        ensure!(
            ask::ping(&world.client(), target, LIMIT)?,
            "{target} does not answer"
        );
    }
    Ok(())
}

fn load(world: &World, family: Family) -> Result<()> {
    let target = SocketAddr::new(world.layout().pod(3, family), ECHO_PORT);
    let pause = Duration::from_millis(250);
    let connections = Connections::open(&world.client(), target, 1_000, pause)?;
    let stream = Stream::start(&world.client(), target, 500);
    sleep(Duration::from_secs(1));
    let report = stream.finish()?;
    ensure!(report.sent > 250, "only {} datagrams", report.sent);
    ensure!(report.lost().is_empty(), "lost {:?}", report.lost());
    ensure!(report.runs().first().map(|(pod, _)| *pod) == Some("pod3"));
    let report = connections.finish()?;
    ensure!(report.broken.is_empty(), "{:?}", report.broken);
    ensure!(
        report.exchanges > 1_000,
        "only {} exchanges",
        report.exchanges
    );
    Ok(())
}

/// Losses that are made must be found.
fn cut(world: &World, family: Family) -> Result<()> {
    let target = SocketAddr::new(world.layout().pod(2, family), ECHO_PORT);
    let stream = Stream::start(&world.client(), target, 500);
    sleep(Duration::from_millis(200));
    rule(world, family, "add")?;
    sleep(Duration::from_millis(200));
    rule(world, family, "delete")?;
    sleep(Duration::from_millis(200));
    let report = stream.finish()?;
    let lost = report.lost().len();
    ensure!((20..300).contains(&lost), "{lost} of {} lost", report.sent);
    Ok(())
}

/// Makes or removes a black hole for packets to pod2 on node1.
fn rule(world: &World, family: Family, verb: &str) -> Result<()> {
    let to = world.layout().pod(2, family).to_string();
    let flag = if family == Family::V4 { "-4" } else { "-6" };
    let mut ip = Command::new("ip");
    ip.args([flag, "rule", verb, "blackhole", "to", &to, "priority", "10"]);
    let output = world.node(1).output(&mut ip)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{ip:?}: {error}");
    Ok(())
}
