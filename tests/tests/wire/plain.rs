//! The world itself, without Causeway: what else is found wrong is not the world's fault.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use proxy_tests::lab::{
    answer::{ECHO_PORT, HTTP_PORT},
    ask::{self, Means, Outcome},
    layout::{self, Family},
    namespace::Namespace,
    world::World,
};

use crate::worlds::Worlds;

const LIMIT: Duration = Duration::from_secs(3);

/// Who asks whom directly.
const WAYS: [(&str, u8); 5] = [
    ("client", 1),
    ("client", 4),
    ("pod2", 1),
    ("pod1", 3),
    ("node2", 1),
];

pub(crate) fn trials(worlds: &Arc<Worlds>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for family in Family::BOTH {
        for (from, to) in WAYS {
            for means in [Means::Http, Means::Tcp, Means::Udp] {
                let worlds = Arc::clone(worlds);
                let name = format!("plain/{}/{means}/{from}-to-pod{to}", family.word());
                trials.push(Trial::test(name, move || {
                    worlds.plain(|world| direct(world, family, means, from, to))?;
                    Ok(())
                }));
            }
        }
        let worlds = Arc::clone(worlds);
        let name = format!("plain/{}/ping/client-to-nodes", family.word());
        trials.push(Trial::test(name, move || {
            worlds.plain(|world| ping_nodes(world, family))?;
            Ok(())
        }));
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
    let attempt = ask::ask(&room(world, from), means, target, LIMIT)?;
    let Outcome::Answered { pod, client } = &attempt.outcome else {
        anyhow::bail!("{from} to {target}: {}", attempt.outcome);
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

fn room(world: &World, name: &str) -> Namespace {
    world.room(name)
}
