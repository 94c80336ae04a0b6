//! What load balancers and probes ask a node over HTTP, by curl.

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Trial;
use proxy_tests::lab::{
    ask::{self, Means},
    cluster::{Cluster, Hook},
    layout::{self, Family, Layout},
    manifest::{self, Endpoint, Service},
    namespace::Namespace,
};
use serde_json::{Value, json};

use crate::worlds;

/// Where kube-proxy serves its own health.
const HEALTH: u16 = 10_256;

/// Where it serves metrics.
const METRICS: u16 = 10_249;

/// The Service's health checks.
const CHECKS: [u16; 2] = [32_100, 32_101];

/// A change is to be seen in this time, on a machine that has other work to do.
const LIMIT: Duration = Duration::from_secs(15);

pub(crate) fn trials() -> Vec<Trial> {
    [("tc", Hook::Tc), ("xdp", Hook::Xdp)]
        .into_iter()
        .map(|(name, hook)| Trial::test(format!("health/{name}"), move || Ok(run(hook)?)))
        .collect()
}

fn run(hook: Hook) -> Result<()> {
    let service = Service::balanced("local", 10, &[1]);
    let cluster = worlds::serve(Layout::STANDARD, hook, &[])?;
    of_the_daemon(&cluster).context("the daemon's own pages")?;
    leaving_node(&cluster).context("a node that leaves")?;
    of_a_service(&cluster, service.clone()).context("a Service's health check")?;
    busy(&cluster, &service).context("a port that is taken")?;
    cluster.apply(&worlds::file(&service).to_string_lossy(), &[])?;
    for port in CHECKS {
        for family in Family::BOTH {
            let place = SocketAddr::new(layout::node(1, family), port);
            eventually(|| closed(&cluster.world().client(), place)).context("deleted")?;
        }
    }
    Ok(())
}

/// An answer as curl shows it.
#[derive(Debug)]
struct Answer {
    code: u16,
    headers: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("{self:?}"))
    }

    fn says(&self, code: u16, fields: &[(&str, Value)]) -> Result<()> {
        ensure!(self.code == code, "not {code}: {self:?}");
        let body = self.json()?;
        for (pointer, expected) in fields {
            let found = body.pointer(pointer);
            ensure!(
                found == Some(expected),
                "{pointer} is not {expected}: {self:?}"
            );
        }
        Ok(())
    }
}

fn curl(from: &Namespace, place: SocketAddr, path: &str) -> Result<Answer> {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--include", "--globoff"])
        .args(["--noproxy", "*", "--max-time", "5"])
        .arg(format!("http://{place}{path}"));
    let output = from.output(&mut command)?;
    ensure!(
        output.status.success(),
        "http://{place}{path}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let text = String::from_utf8(output.stdout)?;
    let (headers, body) = text
        .split_once("\r\n\r\n")
        .with_context(|| format!("no headers in {text:?}"))?;
    let code = headers.split_ascii_whitespace().nth(1);
    Ok(Answer {
        code: code.context("no status line")?.parse()?,
        headers: headers.to_ascii_lowercase(),
        body: body.to_owned(),
    })
}

/// Nobody listens there.
fn closed(from: &Namespace, place: SocketAddr) -> Result<()> {
    let attempt = ask::ask(from, Means::Tcp, place, Duration::from_secs(3))?;
    ensure!(
        attempt.outcome == ask::Outcome::Refused,
        "{place}: {}",
        attempt.outcome
    );
    Ok(())
}

fn eventually(mut check: impl FnMut() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    loop {
        match check() {
            Err(error) if start.elapsed() > LIMIT => bail!("after {LIMIT:?}: {error:#}"),
            Err(_) => sleep(Duration::from_millis(50)),
            Ok(()) => return Ok(()),
        }
    }
}

fn of_the_daemon(cluster: &Cluster) -> Result<()> {
    let world = cluster.world();
    for from in [world.client(), world.pod(1), world.pod(3)] {
        for family in Family::BOTH {
            let place = SocketAddr::new(layout::node(1, family), HEALTH);
            let ready = curl(&from, place, "/healthz")?;
            ready.says(
                200,
                &[
                    ("/nodeEligible", true.into()),
                    ("/healthy", true.into()),
                    ("/status/IPv6/healthy", true.into()),
                ],
            )?;
            let updated = ready.json()?;
            ensure!(updated.pointer("/lastUpdated") == updated.pointer("/currentTime"));
            ensure!(
                ready.headers.contains("content-type: application/json"),
                "{ready:?}"
            );
            ensure!(
                ready.headers.contains("x-content-type-options: nosniff"),
                "{ready:?}"
            );
            let live = curl(&from, place, "/livez")?;
            live.says(200, &[("/healthy", true.into())])?;
            ensure!(live.json()?.get("nodeEligible").is_none(), "{live:?}");
            ensure!(curl(&from, place, "/metrics")?.code == 404);
        }
    }
    let node = world.node(1);
    let place = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), METRICS);
    let mode = curl(&node, place, "/proxyMode")?;
    ensure!(
        (mode.code, mode.body.as_str()) == (200, "causeway"),
        "{mode:?}"
    );
    let metrics = curl(&node, place, "/metrics")?;
    for line in [
        "kubeproxy_proxy_healthz_total{code=\"200\"} 6",
        "kubeproxy_proxy_livez_total{code=\"200\"} 6",
        "kubeproxy_proxy_livez_total{code=\"503\"} 0",
        "# TYPE kubeproxy_sync_proxy_rules_duration_seconds histogram",
        "causeway_info{",
    ] {
        ensure!(
            metrics.body.contains(line),
            "no `{line}` in\n{}",
            metrics.body
        );
    }
    for family in Family::BOTH {
        let outside = SocketAddr::new(layout::node(1, family), METRICS);
        closed(&world.client(), outside)?;
    }
    Ok(())
}

/// As the cluster autoscaler marks it (KEP-3836).
fn leaving_node(cluster: &Cluster) -> Result<()> {
    let world = cluster.world();
    let mut nodes = manifest::nodes(world.layout());
    let taints = nodes
        .first_mut()
        .and_then(|node| node.pointer_mut("/spec"))
        .and_then(Value::as_object_mut)
        .context("a Node without spec")?;
    let taint = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    taints.insert("taints".to_owned(), taint);
    cluster.apply("nodes.yaml", &nodes)?;
    let place = |number| SocketAddr::new(layout::node(number, Family::V4), HEALTH);
    let client = world.client();
    eventually(|| {
        let fields = [("/nodeEligible", false.into()), ("/healthy", true.into())];
        curl(&client, place(1), "/healthz")?.says(503, &fields)
    })?;
    curl(&client, place(1), "/livez")?.says(200, &[])?;
    curl(&client, place(2), "/healthz")?.says(200, &[])?;
    cluster.apply("nodes.yaml", &manifest::nodes(world.layout()))?;
    eventually(|| curl(&client, place(1), "/healthz")?.says(200, &[]))
}

/// The Service with a health check at this port.
fn apply(cluster: &Cluster, service: &Service, port: u16) -> Result<()> {
    let mut objects = service.objects(cluster.world().layout());
    let spec = objects
        .iter_mut()
        .find(|object| object.get("kind").is_some_and(|kind| kind == "Service"))
        .and_then(|object| object.pointer_mut("/spec"))
        .and_then(Value::as_object_mut)
        .context("a Service without spec")?;
    spec.insert("externalTrafficPolicy".to_owned(), "Local".into());
    spec.insert("healthCheckNodePort".to_owned(), port.into());
    cluster.apply(&worlds::file(service).to_string_lossy(), &objects)
}

/// What both nodes say at a port, over both families: how many endpoints they have.
fn counts(cluster: &Cluster, port: u16, expected: [u64; 2]) -> Result<()> {
    let world = cluster.world();
    for (number, count) in [1, 2].into_iter().zip(expected) {
        for family in Family::BOTH {
            let place = SocketAddr::new(layout::node(number, family), port);
            let code = if count == 0 { 503 } else { 200 };
            let fields = [
                ("/service/namespace", "default".into()),
                ("/service/name", "local".into()),
                ("/localEndpoints", count.into()),
                ("/serviceProxyHealthy", true.into()),
            ];
            eventually(|| {
                let answer = curl(&world.client(), place, "/")?;
                answer.says(code, &fields)?;
                let weight = format!("x-load-balancing-endpoint-weight: {count}");
                ensure!(answer.headers.contains(&weight), "{answer:?}");
                Ok(())
            })
            .with_context(|| format!("node{number} at {place}"))?;
        }
    }
    Ok(())
}

fn of_a_service(cluster: &Cluster, mut service: Service) -> Result<()> {
    let port = CHECKS[0];
    apply(cluster, &service, port)?;
    counts(cluster, port, [1, 0])?;
    // A pod that terminates still serves who comes, and nobody is to be sent there.
    service.endpoints = vec![Endpoint::terminating(1)];
    apply(cluster, &service, port)?;
    counts(cluster, port, [0, 0])?;
    let target = service.balancer(Means::Tcp, Family::V4);
    let client = cluster.world().client();
    let attempt = ask::ask(&client, Means::Tcp, target, Duration::from_secs(3))?;
    ensure!(attempt.outcome.pod() == Some("pod1"), "{}", attempt.outcome);
    service.endpoints.clear();
    apply(cluster, &service, port)?;
    counts(cluster, port, [0, 0])?;
    service.endpoints = [1, 2, 3].map(Endpoint::ready).to_vec();
    apply(cluster, &service, port)?;
    counts(cluster, port, [2, 1])?;
    // A pod asks like everybody.
    let place = SocketAddr::new(layout::node(1, Family::V4), port);
    curl(&cluster.world().pod(4), place, "/any/path")?.says(200, &[])
}

/// Somebody has the new port on node 1, over IPv4.
fn busy(cluster: &Cluster, service: &Service) -> Result<()> {
    let world = cluster.world();
    let [old, new] = CHECKS;
    let at = |family, port| SocketAddr::new(layout::node(1, family), port);
    let bound = world
        .node(1)
        .enter(move || TcpListener::bind(("0.0.0.0", new)))?;
    let foreign = bound.context("taking the port")?;
    apply(cluster, service, new)?;
    let told = |expected: bool| {
        let status = cluster.daemon(1)?.command(world, &["status"])?;
        let said = status.contains("spec.healthCheckNodePort: cannot listen at 0.0.0.0:32101");
        ensure!(said == expected, "`causeway status` says:\n{status}");
        Ok(())
    };
    eventually(|| told(true))?;
    // Everything else goes on: the other family, the other node, and the Service itself.
    let client = world.client();
    eventually(|| curl(&client, at(Family::V6, new), "/")?.says(200, &[]))?;
    let other = SocketAddr::new(layout::node(2, Family::V4), new);
    eventually(|| curl(&client, other, "/")?.says(503, &[]))?;
    for family in Family::BOTH {
        eventually(|| closed(&client, at(family, old)))?;
        let target = service.balancer(Means::Tcp, family);
        let attempt = ask::ask(&client, Means::Tcp, target, Duration::from_secs(3))?;
        ensure!(attempt.outcome.pod() == Some("pod1"), "{}", attempt.outcome);
    }
    drop(foreign);
    eventually(|| curl(&client, at(Family::V4, new), "/")?.says(200, &[]))?;
    eventually(|| told(false))
}
