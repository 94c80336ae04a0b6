//! Endpoints that come, go and end their work under traffic.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, thread::sleep, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Trial;
use proxy_tests::lab::{
    ask::{self, Means, Outcome},
    capture::Capture,
    cluster::Cluster,
    layout::Family,
    load::{Connections, Stream},
    manifest::{Endpoint, Service},
};
use serde_json::{Value, json};

use crate::worlds::{self, Worlds};

/// What happens to a service that pod1 and pod3 serve.
type Case = (&'static str, fn(&Cluster, Family, Service) -> Result<()>);

const CASES: [Case; 8] = [
    ("added-takes-connections", added),
    ("removed-udp-moves-at-once", removed_udp),
    ("terminating-keeps-tcp", terminating_keeps_tcp),
    ("removed-resets-tcp", removed_resets_tcp),
    ("all-terminating-still-serve", all_terminating),
    ("deleted-service-is-not-ours", deleted),
    (
        "weights-share-random-choices",
        |cluster, family, service| weighted(cluster, family, &service, "random"),
    ),
    (
        "weights-share-maglev-choices",
        |cluster, family, service| weighted(cluster, family, &service, "maglev"),
    ),
];

pub(crate) fn trials(worlds: &Arc<Worlds>) -> Vec<Trial> {
    let mut trials = Vec::new();
    // Each has a service of its own.
    let mut hosts = 20..;
    for hook in ["tc", "xdp"] {
        for family in Family::BOTH {
            for ((name, case), host) in CASES.into_iter().zip(&mut hosts) {
                let worlds = Arc::clone(worlds);
                let service = Service::balanced(&format!("s{host}"), host, &[1, 3]);
                let name = format!("endpoints/{hook}/{}/{name}", family.word());
                trials.push(Trial::test(name, move || {
                    Ok(worlds.changing(hook, |cluster| case(cluster, family, service))?)
                }));
            }
        }
    }
    trials
}

fn apply(cluster: &Cluster, service: &Service) -> Result<()> {
    let objects = service.objects(cluster.world().layout());
    cluster.apply(&worlds::file(service).to_string_lossy(), &objects)
}

/// The pods that answer `count` new connections of the client.
fn answering(cluster: &Cluster, target: SocketAddr, count: u32) -> Result<BTreeSet<String>> {
    let client = cluster.world().client();
    let mut pods = BTreeSet::new();
    for _ in 0..count {
        let attempt = ask::ask(&client, Means::Tcp, target, Duration::from_secs(3))?;
        let pod = attempt.outcome.pod();
        pods.insert(
            pod.with_context(|| format!("{target}: {}", attempt.outcome))?
                .to_owned(),
        );
    }
    Ok(pods)
}

fn set(pods: &[&str]) -> BTreeSet<String> {
    pods.iter().map(|pod| (*pod).to_owned()).collect()
}

fn added(cluster: &Cluster, family: Family, mut service: Service) -> Result<()> {
    let target = service.balancer(Means::Tcp, family);
    service.endpoints = vec![Endpoint::ready(1)];
    apply(cluster, &service)?;
    ensure!(
        answering(cluster, target, 8)? == set(&["pod1"]),
        "others than pod1 answered"
    );
    let pause = Duration::from_millis(20);
    let connections = Connections::open(&cluster.world().client(), target, 20, pause)?;
    service.endpoints.push(Endpoint::ready(3));
    apply(cluster, &service)?;
    // That 40 connections all go to one of two happens once in 2^39 runs.
    let pods = answering(cluster, target, 40)?;
    ensure!(pods == set(&["pod1", "pod3"]), "only {pods:?} answered");
    // Those that were there before go on where they are.
    let before = connections.exchanges();
    sleep(Duration::from_millis(500));
    ensure!(
        connections.exchanges() > before + 20,
        "connections do not go on"
    );
    let report = connections.finish()?;
    ensure!(
        report.broken.is_empty(),
        "{} broke: {:?}",
        report.broken.len(),
        report.broken
    );
    Ok(())
}

/// Of four connections, pod3 has three.
fn weighted(cluster: &Cluster, family: Family, service: &Service, algorithm: &str) -> Result<()> {
    const CONNECTIONS: u32 = 100;
    let layout = cluster.world().layout();
    let mut objects = Vec::new();
    for (pod, weight) in [(1, "1"), (3, "3")] {
        let endpoints = vec![Endpoint::ready(pod)];
        let part = Service {
            endpoints,
            ..service.clone()
        };
        for mut object in part.objects(layout) {
            let is_slice = object
                .get("kind")
                .is_some_and(|kind| kind == "EndpointSlice");
            let metadata = object
                .get_mut("metadata")
                .and_then(Value::as_object_mut)
                .context("an object without metadata")?;
            let note = if is_slice {
                let name = metadata.get("name").and_then(Value::as_str);
                let name = format!("{}-{pod}", name.unwrap_or_default());
                metadata.insert("name".to_owned(), name.into());
                json!({"causeway.dev/weight": weight})
            } else {
                json!({"causeway.dev/algorithm": algorithm})
            };
            metadata.insert("annotations".to_owned(), note);
            // Both parts have the same Service.
            if objects.contains(&object) {
                continue;
            }
            objects.push(object);
        }
    }
    cluster.apply(&worlds::file(service).to_string_lossy(), &objects)?;
    let (client, target) = (
        cluster.world().client(),
        service.balancer(Means::Tcp, family),
    );
    let mut far = 0;
    for _ in 0..CONNECTIONS {
        let attempt = ask::ask(&client, Means::Tcp, target, Duration::from_secs(3))?;
        match attempt.outcome.pod() {
            Some("pod3") => far += 1,
            Some("pod1") => {}
            _ => bail!("{target}: {}", attempt.outcome),
        }
    }
    // 75 are expected; so far from that, it is once in 40,000 runs.
    ensure!(
        (57..=92).contains(&far),
        "pod3 has {far} of {CONNECTIONS} connections"
    );
    Ok(())
}

fn removed_udp(cluster: &Cluster, family: Family, mut service: Service) -> Result<()> {
    apply(cluster, &service)?;
    let target = service.balancer(Means::Udp, family);
    let world = cluster.world();
    let captures = [1_u8, 3].map(|pod| {
        let name = format!("removed-{}-pod{pod}", service.name);
        let capture = Capture::start(world, &world.pod(pod), "eth0", "udp", &name)?;
        anyhow::Ok((pod, capture))
    });
    let stream = Stream::start(&world.client(), target, 500);
    sleep(Duration::from_millis(400));
    let first = stream.last_pod().context("nobody answers")?;
    let number: u8 = first.trim_start_matches("pod").parse()?;
    service.endpoints.retain(|endpoint| endpoint.pod != number);
    apply(cluster, &service)?;
    sleep(Duration::from_millis(400));
    let report = stream.finish()?;
    let mut asked = BTreeSet::new();
    for capture in captures {
        let (pod, capture) = capture?;
        let seen = capture.finish()?;
        if pod == number {
            asked.extend(seen.datagrams());
        }
    }
    let runs = report.runs();
    let pods: Vec<&str> = runs.iter().map(|(pod, _)| *pod).collect();
    ensure!(
        pods.len() == 2 && pods.first() == Some(&&*first),
        "answers came from {runs:?}"
    );
    ensure!(report.errors == 0, "{} were refused", report.errors);
    // An answer that the pod still owed when it was removed is no longer let through. What did not
    // come to it must not be lost.
    let moved = report.answers.iter().find(|(_, pod)| **pod != first);
    let (moved, _) = moved.context("the flow did not move")?;
    let lost = report.lost();
    let count = u64::try_from(lost.len())?;
    let are_last = lost.iter().copied().eq(moved.saturating_sub(count)..*moved);
    let owed = |number: &u64| asked.contains(number.to_string().as_bytes());
    ensure!(
        are_last && lost.iter().all(owed),
        "lost {lost:?}; moved at {moved}; {first} was asked {} times",
        asked.len()
    );
    Ok(())
}

fn terminating_keeps_tcp(cluster: &Cluster, family: Family, mut service: Service) -> Result<()> {
    apply(cluster, &service)?;
    let target = service.balancer(Means::Tcp, family);
    let pause = Duration::from_millis(50);
    let connections = Connections::open(&cluster.world().client(), target, 40, pause)?;
    service.endpoints = vec![Endpoint::terminating(1), Endpoint::ready(3)];
    apply(cluster, &service)?;
    ensure!(
        answering(cluster, target, 20)? == set(&["pod3"]),
        "pod1 got new connections"
    );
    let before = connections.exchanges();
    sleep(Duration::from_millis(500));
    ensure!(
        connections.exchanges() > before + 40,
        "connections do not go on"
    );
    let report = connections.finish()?;
    ensure!(
        report.broken.is_empty(),
        "{} broke: {:?}",
        report.broken.len(),
        report.broken
    );
    Ok(())
}

fn removed_resets_tcp(cluster: &Cluster, family: Family, mut service: Service) -> Result<()> {
    apply(cluster, &service)?;
    let target = service.balancer(Means::Tcp, family);
    let pause = Duration::from_millis(50);
    let connections = Connections::open(&cluster.world().client(), target, 40, pause)?;
    service.endpoints = vec![Endpoint::ready(3)];
    apply(cluster, &service)?;
    sleep(Duration::from_millis(500));
    let report = connections.finish()?;
    let broken = &report.broken;
    ensure!(
        !broken.is_empty() && broken.len() < 40,
        "{} of 40 broke",
        broken.len()
    );
    let reset = |why: &String| why.contains("reset");
    ensure!(broken.iter().all(reset), "not reset: {broken:?}");
    Ok(())
}

fn all_terminating(cluster: &Cluster, family: Family, mut service: Service) -> Result<()> {
    service.endpoints = vec![Endpoint::terminating(1), Endpoint::terminating(3)];
    apply(cluster, &service)?;
    answering(cluster, service.balancer(Means::Tcp, family), 5)?;
    Ok(())
}

fn deleted(cluster: &Cluster, family: Family, mut service: Service) -> Result<()> {
    service.endpoints.pop();
    apply(cluster, &service)?;
    let target = service.balancer(Means::Tcp, family);
    answering(cluster, target, 2)?;
    cluster.apply(&worlds::file(&service).to_string_lossy(), &[])?;
    let client = cluster.world().client();
    let attempt = ask::ask(&client, Means::Tcp, target, Duration::from_millis(400))?;
    let answered = matches!(attempt.outcome, Outcome::Answered { .. });
    ensure!(!answered, "it is still served: {}", attempt.outcome);
    Ok(())
}
