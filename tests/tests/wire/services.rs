//! Every type of service, asked by everybody who may and everybody who may not.
//!
//! One row is one behaviour. It is tried over both families, TCP and UDP, in each of the worlds.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Trial;
use proxy_tests::lab::{
    answer::ECHO_PORT,
    ask::{self, Means, Outcome},
    cluster::{Cluster, Hook},
    layout::{self, Family, Layout, Uplink},
    manifest::{self, Kind, Service},
};
use serde_json::Value;

use crate::worlds::Worlds;

/// Who asks.
#[derive(Clone, Copy, Debug)]
enum Asker {
    Client,
    Pod(u8),
    Node(u8),
}
use Asker::{Client, Node, Pod};

/// What is asked. Services are named.
#[derive(Clone, Copy, Debug)]
enum Target {
    Balancer(&'static str),
    Cluster(&'static str),
    NodePort(u8, &'static str),
    HostPort(u8),
    /// A port of a LoadBalancer address that no service has.
    BalancerOther(&'static str),
}
use Target::{Balancer, BalancerOther, Cluster as ClusterIp, HostPort, NodePort};

/// What must come of it.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// One of these pods answers, and sees whom the second field says.
    Answer(&'static [u8], Seen),
    /// TCP reset or ICMP unreachable, at once.
    Refusal,
    /// No answer, of whatever kind.
    NoAnswer,
}
use Expected::{Answer, NoAnswer, Refusal};

/// Whose address the pod sees.
#[derive(Clone, Copy, Debug)]
enum Seen {
    /// The asker's own.
    Asker,
    /// This node's.
    NodeOf(u8),
    /// The asker's if the pod is on node 1, else node 1's.
    Either,
}
use Seen::{Either, NodeOf};

/// `near` is served by pod1 on node1, `far` by pod3 on node2, `both` by either, `empty` by nobody;
/// `hosted` by a pod on the network of node1; `inner` is only a cluster address, `ported` has no LoadBalancer address. LoadBalancer addresses
/// are routed to node1.
#[rustfmt::skip]
const ROWS: &[(&str, Asker, Target, Expected)] = &[
    ("balancer-near", Client, Balancer("near"), Answer(&[1], Seen::Asker)),
    ("balancer-far", Client, Balancer("far"), Answer(&[3], NodeOf(1))),
    ("balancer-both", Client, Balancer("both"), Answer(&[1, 3], Either)),
    ("balancer-empty", Client, Balancer("empty"), Refusal),
    ("balancer-other-port", Client, BalancerOther("near"), Refusal),
    ("balancer-near-from-pod", Pod(2), Balancer("near"), Answer(&[1], Seen::Asker)),
    ("balancer-far-from-pod", Pod(2), Balancer("far"), Answer(&[3], Seen::Asker)),
    ("balancer-from-pod-of-other-node", Pod(4), Balancer("near"), Answer(&[1], Seen::Asker)),
    ("balancer-hairpin", Pod(1), Balancer("near"), Answer(&[1], NodeOf(1))),
    ("balancer-near-from-node", Node(1), Balancer("near"), Answer(&[1], Seen::Asker)),
    ("balancer-far-from-node", Node(1), Balancer("far"), Answer(&[3], Seen::Asker)),
    ("balancer-from-other-node", Node(2), Balancer("near"), Answer(&[1], Seen::Asker)),
    ("balancer-empty-from-pod", Pod(2), Balancer("empty"), Refusal),
    ("cluster-near", Pod(2), ClusterIp("near"), Answer(&[1], Seen::Asker)),
    ("cluster-far", Pod(2), ClusterIp("far"), Answer(&[3], Seen::Asker)),
    ("cluster-both", Pod(2), ClusterIp("both"), Answer(&[1, 3], Seen::Asker)),
    ("cluster-only", Pod(4), ClusterIp("inner"), Answer(&[1], Seen::Asker)),
    ("cluster-hairpin", Pod(1), ClusterIp("near"), Answer(&[1], NodeOf(1))),
    ("cluster-near-from-node", Node(1), ClusterIp("near"), Answer(&[1], Seen::Asker)),
    ("cluster-far-from-node", Node(1), ClusterIp("far"), Answer(&[3], Seen::Asker)),
    ("cluster-empty-from-pod", Pod(2), ClusterIp("empty"), Refusal),
    ("cluster-empty-from-node", Node(1), ClusterIp("empty"), Refusal),
    ("cluster-from-outside", Client, ClusterIp("near"), NoAnswer),
    ("node-port-near", Client, NodePort(1, "near"), Answer(&[1], Seen::Asker)),
    ("node-port-far", Client, NodePort(1, "far"), Answer(&[3], NodeOf(1))),
    ("node-port-of-other-node-near", Client, NodePort(2, "far"), Answer(&[3], Seen::Asker)),
    ("node-port-of-other-node-far", Client, NodePort(2, "near"), Answer(&[1], NodeOf(2))),
    ("node-port-only", Client, NodePort(1, "ported"), Answer(&[1], Seen::Asker)),
    ("node-port-empty", Client, NodePort(1, "empty"), Refusal),
    ("node-port-from-pod", Pod(2), NodePort(1, "near"), Answer(&[1], Seen::Asker)),
    ("node-port-far-from-pod", Pod(2), NodePort(1, "far"), Answer(&[3], Seen::Asker)),
    ("node-port-hairpin", Pod(1), NodePort(1, "near"), Answer(&[1], NodeOf(1))),
    ("node-port-from-other-node", Node(2), NodePort(1, "near"), Answer(&[1], Seen::Asker)),
    ("node-port-near-from-own-node", Node(1), NodePort(1, "near"), Answer(&[1], Seen::Asker)),
    ("node-port-far-from-own-node", Node(1), NodePort(1, "far"), Answer(&[3], Seen::Asker)),
    ("node-port-empty-from-own-node", Node(1), NodePort(1, "empty"), Refusal),
    ("hosted-balancer", Client, Balancer("hosted"), Answer(&[101], Seen::Asker)),
    ("hosted-cluster-from-pod", Pod(2), ClusterIp("hosted"), Answer(&[101], Seen::Asker)),
    ("hosted-cluster-from-pod-of-other-node", Pod(4), ClusterIp("hosted"), Answer(&[101], Seen::Asker)),
    ("hosted-cluster-from-own-node", Node(1), ClusterIp("hosted"), Answer(&[101], Seen::Asker)),
    ("hosted-cluster-from-other-node", Node(2), ClusterIp("hosted"), Answer(&[101], Seen::Asker)),
    ("hosted-node-port", Client, NodePort(1, "hosted"), Answer(&[101], Seen::Asker)),
    ("hosted-node-port-from-own-node", Node(1), NodePort(1, "hosted"), Answer(&[101], Seen::Asker)),
    ("hosted-node-port-of-other-node-from-it", Node(2), NodePort(2, "hosted"), Answer(&[101], Seen::Asker)),
    ("host-port", Client, HostPort(1), Answer(&[1], Seen::Asker)),
    ("host-port-of-other-node", Client, HostPort(2), Answer(&[3], Seen::Asker)),
    ("host-port-from-pod", Pod(2), HostPort(1), Answer(&[1], Seen::Asker)),
    ("host-port-from-pod-of-other-node", Pod(4), HostPort(1), Answer(&[1], Seen::Asker)),
    ("host-port-from-own-node", Node(1), HostPort(1), Answer(&[1], Seen::Asker)),
    ("host-port-from-other-node", Node(2), HostPort(1), Answer(&[1], Seen::Asker)),
    ("host-port-hairpin", Pod(1), HostPort(1), Answer(&[1], NodeOf(1))),
];

/// Name, world and hook.
pub(crate) const WORLDS: [(&str, Layout, Hook); 4] = [
    ("tc", Layout::STANDARD, Hook::Tc),
    ("xdp", Layout::STANDARD, Hook::Xdp),
    ("generic", Layout::STANDARD, Hook::Generic),
    (
        "vlan",
        Layout {
            uplink: Uplink::Vlan(100),
            ..Layout::STANDARD
        },
        Hook::Tc,
    ),
];

/// The services of the rows.
pub(crate) fn services() -> Vec<Service> {
    let of_kind = |kind, name: &str, host| Service {
        kind,
        ..Service::balanced(name, host, &[1])
    };
    vec![
        Service::balanced("near", 10, &[1]),
        Service::balanced("far", 11, &[3]),
        Service::balanced("both", 12, &[1, 3]),
        Service::balanced("empty", 13, &[]),
        of_kind(Kind::ClusterIp, "inner", 14),
        of_kind(Kind::NodePort, "ported", 15),
        Service::balanced("hosted", 16, &[101]),
    ]
}

/// The names of those worlds that this kernel can have.
pub(crate) fn possible(has_vlans: bool) -> impl Iterator<Item = &'static str> {
    let worlds = WORLDS.into_iter();
    worlds
        .filter(move |(_, layout, _)| has_vlans || layout.uplink == Uplink::Plain)
        .map(|(name, ..)| name)
}

/// What is tried once in each family.
type Check = fn(&Cluster, Family) -> Result<()>;

pub(crate) fn trials(worlds: &Arc<Worlds>, has_vlans: bool) -> Vec<Trial> {
    let mut trials = Vec::new();
    for world in possible(has_vlans) {
        let attachments = Arc::clone(worlds);
        trials.push(Trial::test(format!("{world}/attached"), move || {
            let of_world = WORLDS.into_iter().find(|(name, ..)| *name == world);
            let (_, _, hook) = of_world.context("the world is one of these")?;
            Ok(attached(attachments.serving(world)?, hook)?)
        }));
        for family in Family::BOTH {
            for row in ROWS {
                for means in [Means::Http, Means::Udp] {
                    let worlds = Arc::clone(worlds);
                    let name = format!("{world}/{}/{means}/{}", family.word(), row.0);
                    trials.push(Trial::test(name, move || {
                        Ok(try_row(worlds.serving(world)?, row, family, means)?)
                    }));
                }
            }
            for (name, check) in [
                ("icmp/balancer-answers-ping", ping_balancer as Check),
                ("udp/fragments-are-not-carried", fragments),
            ] {
                let worlds = Arc::clone(worlds);
                let name = format!("{world}/{}/{name}", family.word());
                trials.push(Trial::test(name, move || {
                    Ok(check(worlds.serving(world)?, family)?)
                }));
            }
        }
    }
    trials
}

/// Whether programs are where the hook says, so that the other rows try what they say.
fn attached(cluster: &Cluster, hook: Hook) -> Result<()> {
    let wanted = match hook {
        Hook::Tc => "off",
        Hook::Xdp => "native",
        Hook::Generic => "generic",
    };
    let status = cluster.daemon(1)?.json(cluster.world(), &["status"])?;
    let devices = status.pointer("/devices").and_then(Value::as_array);
    let uplink = devices
        .into_iter()
        .flatten()
        .find(|device| device["name"] == "eth0")
        .with_context(|| format!("eth0 has no programs: {status}"))?;
    ensure!(uplink["xdp"] == wanted && uplink["tc"] != "off", "{uplink}");
    Ok(())
}

fn try_row(
    cluster: &Cluster,
    (_, asker, target, expected): &(&str, Asker, Target, Expected),
    family: Family,
    means: Means,
) -> Result<()> {
    // A refusal must not be something that the asker had to wait for.
    let limit = match expected {
        Answer(..) => Duration::from_secs(4),
        Refusal => Duration::from_millis(900),
        NoAnswer => Duration::from_millis(400),
    };
    let world = cluster.world();
    let (namespace, own) = match asker {
        Client => (world.client(), layout::client(family)),
        Pod(number) => (world.pod(*number), world.layout().pod(*number, family)),
        Node(number) => (world.node(*number), layout::node(*number, family)),
    };
    let target = address(*target, family, means)?;
    let attempt = ask::ask(&namespace, means, target, limit)?;
    let outcome = &attempt.outcome;
    match (expected, outcome) {
        (Answer(pods, seen), Outcome::Answered { pod, client }) => {
            let number: u8 = pod.trim_start_matches("pod").parse()?;
            ensure!(pods.contains(&number), "{pod} answered, none of {pods:?}");
            let node = match seen {
                Seen::Asker => None,
                NodeOf(node) => Some(*node),
                Either => (world.layout().node_of(number) != 1).then_some(1),
            };
            let right: IpAddr = node.map_or(own, |node| layout::node(node, family));
            ensure!(
                client.ip() == right,
                "{pod} saw {}, not {right}",
                client.ip()
            );
        }
        (Refusal, Outcome::Refused) | (NoAnswer, Outcome::Refused | Outcome::TimedOut) => {}
        _ => bail!("asking {target}: {outcome} after {:?}", attempt.took),
    }
    Ok(())
}

fn address(target: Target, family: Family, means: Means) -> Result<SocketAddr> {
    let service = |name: &str| {
        let found = services().into_iter().find(|service| service.name == name);
        found.with_context(|| format!("a row names the service {name}, which does not exist"))
    };
    Ok(match target {
        Balancer(name) => service(name)?.balancer(means, family),
        ClusterIp(name) => service(name)?.cluster(means, family),
        NodePort(node, name) => {
            SocketAddr::new(layout::node(node, family), service(name)?.node_port(means))
        }
        HostPort(node) => SocketAddr::new(layout::node(node, family), manifest::host_port(means)),
        BalancerOther(name) => SocketAddr::new(service(name)?.balancer(means, family).ip(), 81),
    })
}

/// Of a datagram that is larger than the MTU, a service sees nothing (reason `fragment`); a pod's own
/// address is none of ours, and its way is whole.
fn fragments(cluster: &Cluster, family: Family) -> Result<()> {
    let world = cluster.world();
    let service = address(Balancer("near"), family, Means::Udp)?;
    let pod = SocketAddr::new(world.layout().pod(1, family), ECHO_PORT);
    let answered = |target: SocketAddr, length: usize, limit: Duration| -> Result<bool> {
        let asked = world.client().enter(|| -> io::Result<usize> {
            let any = match family {
                Family::V4 => "0.0.0.0:0",
                Family::V6 => "[::]:0",
            };
            let socket = UdpSocket::bind(any)?;
            socket.connect(target)?;
            socket.set_read_timeout(Some(limit))?;
            socket.send(&vec![b'x'; length])?;
            socket.recv(&mut [0; 4_096])
        })?;
        match asked {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error).with_context(|| format!("asking {target}")),
        }
    };
    let (soon, late) = (Duration::from_millis(400), Duration::from_secs(4));
    ensure!(answered(service, 1_200, late)?, "{service} does not answer");
    ensure!(answered(pod, 3_000, late)?, "{pod} does not answer");
    ensure!(
        !answered(service, 3_000, soon)?,
        "{service} answers fragments"
    );
    Ok(())
}

fn ping_balancer(cluster: &Cluster, family: Family) -> Result<()> {
    let target = layout::load_balancer(10, family);
    let answered = ask::ping(&cluster.world().client(), target, Duration::from_secs(2))?;
    ensure!(answered, "{target} does not answer");
    Ok(())
}
