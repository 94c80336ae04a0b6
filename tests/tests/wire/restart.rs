//! The daemon ends and comes again while traffic flows.

use std::{thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use proxy_tests::lab::{
    ask::{self, Means},
    cluster::{Cluster, Hook},
    layout::{Family, Layout},
    load::{Connections, Stream},
    manifest::Service,
};

use crate::worlds;

/// Live TCP connections, half of them of each family.
const CONNECTIONS: u64 = 1_000;

/// Datagrams a second, of each family.
const RATE: u32 = 500;

pub(crate) fn trials() -> Vec<Trial> {
    let cases = [
        ("tc/killed", Hook::Tc, Signal::SIGKILL),
        ("tc/asked-to-end", Hook::Tc, Signal::SIGTERM),
        ("xdp/killed", Hook::Xdp, Signal::SIGKILL),
    ];
    cases
        .into_iter()
        .map(|(name, hook, signal)| {
            Trial::test(format!("restart/{name}"), move || {
                Ok(restart(hook, signal)?)
            })
        })
        .collect()
}

fn restart(hook: Hook, signal: Signal) -> Result<()> {
    let service = Service::balanced("both", 30, &[1, 3]);
    let mut cluster = worlds::serve(Layout::STANDARD, hook, std::slice::from_ref(&service))?;
    let client = cluster.world().client();
    let mut connections = Vec::new();
    let mut streams = Vec::new();
    for family in Family::BOTH {
        let target = service.balancer(Means::Tcp, family);
        let pause = Duration::from_millis(250);
        connections.push(Connections::open(&client, target, CONNECTIONS / 2, pause)?);
        streams.push(Stream::start(
            &client,
            service.balancer(Means::Udp, family),
            RATE,
        ));
    }
    sleep(Duration::from_secs(1));
    cluster.end(1, signal)?;
    without_daemon(&cluster, &service, &connections)?;
    cluster.restart(1)?;
    sleep(Duration::from_secs(1));
    for stream in streams {
        let report = stream.finish()?;
        ensure!(
            report.sent > 4 * u64::from(RATE) / 2,
            "only {} datagrams",
            report.sent
        );
        ensure!(
            report.errors == 0,
            "{} datagrams were refused",
            report.errors
        );
        let lost = report.lost();
        ensure!(
            lost.is_empty(),
            "{} of {} lost: {lost:?}",
            lost.len(),
            report.sent
        );
        // One socket is one flow: another pod would mean that its entry was lost.
        ensure!(
            report.runs().len() == 1,
            "the flow moved: {:?}",
            report.runs()
        );
    }
    for connections in connections {
        let report = connections.finish()?;
        ensure!(report.opened == CONNECTIONS / 2);
        ensure!(
            report.broken.is_empty(),
            "{} broke: {:?}",
            report.broken.len(),
            report.broken
        );
    }
    Ok(())
}

/// The programs and maps go on alone: for what exists and for what is new.
fn without_daemon(cluster: &Cluster, service: &Service, open: &[Connections]) -> Result<()> {
    let before: Vec<u64> = open.iter().map(Connections::exchanges).collect();
    for family in Family::BOTH {
        let target = service.balancer(Means::Http, family);
        let client = cluster.world().client();
        let attempt = ask::ask(&client, Means::Http, target, Duration::from_secs(3))?;
        attempt
            .outcome
            .pod()
            .with_context(|| format!("new connection: {}", attempt.outcome))?;
    }
    sleep(Duration::from_secs(1));
    for (connections, before) in open.iter().zip(before) {
        let exchanged = connections.exchanges() - before;
        ensure!(
            exchanged >= CONNECTIONS / 2,
            "only {exchanged} exchanges while no daemon ran"
        );
    }
    Ok(())
}
