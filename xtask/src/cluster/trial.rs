//! Does the cluster do what a cluster is for, and does it go without a trace?

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::host::Host;
use super::layout::{PREFIX, Place};
use super::programs::{Programs, Use};
use super::remains::Remains;
use super::{Network, Options, control};
use crate::process;
use crate::tally::Tally;

const MANIFEST: &str = include_str!("../../../tests/cluster/manifests/trial.yaml");

/// Starts a cluster, tries it, and takes it down.
pub(crate) fn run(network: Network) -> Result<Tally> {
    println!("\n== tests: cluster, network {network:?}");
    // One that somebody left would be missed afterwards.
    super::down()?;
    let before = Surroundings::look()?;
    let mut tally = Tally::default();
    let start = Instant::now();
    let options = Options { network, nodes: 2 };
    check(&mut tally, "comes up", || {
        super::up(options, Use::Cluster)?;
        let programs = Programs::built()?;
        super::apply(&programs, MANIFEST)?;
        process::quiet(control::kubectl(&programs)?.args([
            "wait",
            "--for=condition=Ready",
            "pod/client",
            "pod/server",
            "--timeout=60s",
        ]))?;
        println!(
            "pods are ready after {:.1} s",
            start.elapsed().as_secs_f64()
        );
        Ok(())
    });
    if tally.failed == 0 {
        check(&mut tally, "pods on different nodes talk", pods_talk);
        check(
            &mut tally,
            "a service has a name and answers",
            service_answers,
        );
        check(&mut tally, "a node port answers outside", node_port_answers);
        check(&mut tally, "the API server reaches pods", pods_are_reached);
    }
    check(&mut tally, "goes without a trace", || {
        super::down()?;
        let found = Remains::find()?;
        ensure!(found.is_empty(), "there still are {found:?}");
        let after = Surroundings::look()?;
        ensure!(before == after, "before: {before:?}\nafter: {after:?}");
        Ok(())
    });
    Ok(tally)
}

fn check(tally: &mut Tally, name: &str, test: impl FnOnce() -> Result<()>) {
    match test() {
        Ok(()) => {
            println!("test cluster::{name} ... ok");
            tally.passed += 1;
        }
        Err(error) => {
            let why = format!("test cluster::{name} ... FAILED: {error:#}");
            println!("{why}");
            *tally += Tally::failed(why);
        }
    }
}

/// What of this machine no cluster may change.
#[derive(Debug, PartialEq, Eq)]
struct Surroundings {
    group_mounts: Vec<String>,
    our_routes: Vec<String>,
}

impl Surroundings {
    fn look() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot list mounts")?;
        let mut routes = String::new();
        for family in ["-4", "-6"] {
            routes.push_str(&process::quiet(
                process::command("ip").args([family, "route", "show", "table", "all"]),
            )?);
        }
        let ranges = [
            "198.18.",
            "10.244.",
            "10.96.",
            "fd00:18:",
            "fd00:244:",
            "fd00:96:",
        ];
        Ok(Self {
            group_mounts: lines_with(&mounts, &[" - cgroup", PREFIX]),
            our_routes: lines_with(&routes, &ranges),
        })
    }
}

fn lines_with(text: &str, words: &[&str]) -> Vec<String> {
    text.lines()
        .filter(|line| words.iter().any(|word| line.contains(word)))
        .map(str::to_owned)
        .collect()
}

/// By the pods' own addresses, of both families: the server sees who asks.
fn pods_talk() -> Result<()> {
    let clients = addresses("client")?;
    for server in addresses("server")? {
        let seen = asked_by_client(&server.to_string(), 8080, "clientip")?;
        let client: IpAddr = seen
            .parse::<SocketAddr>()
            .map(|address| address.ip())
            .with_context(|| format!("the server says `{seen}`"))?;
        ensure!(
            clients.contains(&client),
            "the server saw {client}, the client is {clients:?}"
        );
    }
    Ok(())
}

/// By name, and by each of its addresses; the answer comes from the pod behind it.
fn service_answers() -> Result<()> {
    let path = "jsonpath={.spec.clusterIPs[*]}";
    let addresses = kubectl(&["get", "service", "server", "-o", path])?;
    let mut hosts = vec!["server", "server.default.svc.cluster.local"];
    hosts.extend(addresses.split_whitespace());
    ensure!(
        hosts.len() == 4,
        "the service has the addresses `{addresses}`"
    );
    for host in hosts {
        let answer = asked_by_client(host, 80, "hostname")?;
        ensure!(answer == "server", "{host} answered `{answer}`");
    }
    Ok(())
}

/// On the node with the pod, and on the one without.
fn node_port_answers() -> Result<()> {
    for node in [Place::Node(1), Place::Node(2)] {
        let addresses: [IpAddr; 2] = [node.v4().into(), node.v6().into()];
        for address in addresses {
            let url = format!("http://{}/hostname", with_port(address, 30080));
            let answer = from_outside(&url)?;
            ensure!(answer == "server", "{url} answered `{answer}`");
        }
    }
    Ok(())
}

fn pods_are_reached() -> Result<()> {
    let log = kubectl(&["logs", "server"])?;
    ensure!(!log.is_empty(), "the server's log is empty");
    let printed = kubectl(&["exec", "server", "--", "cat", "/etc/hostname"])?;
    ensure!(
        printed.trim() == "server",
        "the server is called `{printed}`"
    );
    Ok(())
}

/// What the client, asked from outside to ask `host`, was answered.
fn asked_by_client(host: &str, port: u16, request: &str) -> Result<String> {
    #[derive(Deserialize)]
    struct Dialled {
        #[serde(default)]
        responses: Vec<String>,
    }
    let client = addresses("client")?
        .into_iter()
        .next()
        .context("the client has no address")?;
    let dial = format!("dial?host={host}&port={port}&protocol=http&request={request}&tries=1");
    let answer = from_outside(&format!("http://{}/{dial}", with_port(client, 8080)))?;
    let dialled: Dialled =
        serde_json::from_str(&answer).with_context(|| format!("the client says `{answer}`"))?;
    match dialled.responses.as_slice() {
        [response] => Ok(response.clone()),
        _ => bail!("{host} port {port}: the client says `{answer}`"),
    }
}

fn from_outside(url: &str) -> Result<String> {
    process::quiet(
        Host::running(Place::Outside)?
            .command("curl")
            .args(["--silent", "--show-error", "--globoff"])
            .args(["--max-time", "10", url]),
    )
}

fn addresses(pod: &str) -> Result<Vec<IpAddr>> {
    let path = "jsonpath={.status.podIPs[*].ip}";
    let addresses = kubectl(&["get", "pod", pod, "-o", path])?
        .split_whitespace()
        .map(|address| address.parse().context("not an address"))
        .collect::<Result<Vec<_>>>()?;
    if addresses.len() != 2 {
        bail!("pod {pod} has the addresses {addresses:?}, not one of each family");
    }
    Ok(addresses)
}

fn with_port(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

fn kubectl(arguments: &[&str]) -> Result<String> {
    process::quiet(control::kubectl(&Programs::built()?)?.args(arguments))
}
