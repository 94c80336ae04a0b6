//! What `explain` says is what a real packet meets: one of each kind of verdict, both families, with TC
//! and with XDP.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Trial;
use proxy_tests::lab::{
    answer::HTTP_PORT,
    ask::{self, Means, Outcome},
    cluster::Cluster,
    layout::{self, Family},
    manifest::Service,
};
use serde_json::Value;

use super::{Node, field, text};
use crate::{services, worlds::Worlds};

/// Who sends.
#[derive(Clone, Copy, Debug)]
enum Sender {
    Client,
    Pod(u8),
    Node,
}
use Sender::{Client, Pod};

/// To whom. Services are named.
#[derive(Clone, Copy, Debug)]
enum To {
    Balancer(&'static str),
    BalancerOther(&'static str),
    Cluster(&'static str),
    NodePort(&'static str),
    Pod(u8),
}
use To::{Balancer, BalancerOther, Cluster as ClusterIp, NodePort};

/// What happens to a real packet.
#[derive(Clone, Copy, Debug)]
enum Real {
    /// This pod answers, and sees whom the second field says.
    Answer(u8, Seen),
    Refused,
    Lost,
}
use Real::{Answer, Lost, Refused};

/// Whose address the pod sees.
#[derive(Clone, Copy, Debug)]
enum Seen {
    Sender,
    Node1,
}

/// One kind of verdict.
struct Case {
    name: &'static str,
    from: Sender,
    to: To,
    /// How the verdict begins; `UPLINK` stands for the uplink's name.
    verdict: &'static str,
    /// The hook that decides where the uplink has TC alone, and with XDP.
    hooks: [&'static str; 2],
    /// The service that decides, if one does.
    service: Option<&'static str>,
    real: Real,
}

const UPLINK: [&str; 2] = ["tc_ingress at UPLINK", "xdp_uplink at UPLINK"];
const UPLINK_TC: [&str; 2] = ["tc_ingress at UPLINK"; 2];

/// All of them, seen from node 1.
#[rustfmt::skip]
const CASES: &[Case] = &[
    Case { name: "to-local-pod", from: Client, to: Balancer("near"), hooks: UPLINK_TC,
        verdict: "rewritten and handed to the pod behind pod1", service: Some("near"),
        real: Answer(1, Seen::Sender) },
    Case { name: "to-remote-pod", from: Client, to: Balancer("far"), hooks: UPLINK,
        verdict: "rewritten and sent out of UPLINK", service: Some("far"),
        real: Answer(3, Seen::Node1) },
    Case { name: "hairpin", from: Pod(1), to: ClusterIp("near"), hooks: ["tc_ingress at pod1"; 2],
        verdict: "rewritten and handed to the pod behind pod1", service: Some("near"),
        real: Answer(1, Seen::Node1) },
    Case { name: "pod-to-remote-pod", from: Pod(2), to: ClusterIp("far"), hooks: ["tc_ingress at pod2"; 2],
        verdict: "rewritten and sent out of UPLINK", service: Some("far"),
        real: Answer(3, Seen::Sender) },
    Case { name: "refused-without-endpoint", from: Client, to: Balancer("empty"), hooks: UPLINK,
        verdict: "refused in the service's name, no-endpoint: ", service: Some("empty"),
        real: Refused },
    Case { name: "refused-unknown-port", from: Client, to: BalancerOther("near"), hooks: UPLINK,
        verdict: "refused in the service's name, unknown-port: ", service: None,
        real: Refused },
    Case { name: "dropped-from-outside", from: Client, to: ClusterIp("near"), hooks: UPLINK,
        verdict: "dropped, outside-cluster-address: ", service: Some("near"),
        real: Lost },
    Case { name: "passed-untouched", from: Client, to: To::Pod(2), hooks: UPLINK_TC,
        verdict: "passed on untouched", service: None,
        real: Answer(2, Seen::Sender) },
    Case { name: "from-this-node", from: Sender::Node, to: ClusterIp("far"), hooks: ["tc_egress at UPLINK"; 2],
        verdict: "rewritten and sent out of UPLINK", service: Some("far"),
        real: Answer(3, Seen::Sender) },
    Case { name: "from-this-node-to-its-own-port", from: Sender::Node, to: NodePort("near"),
        hooks: ["tc_egress at lo"; 2],
        verdict: "rewritten and handed to the pod behind pod1", service: Some("near"),
        real: Answer(1, Seen::Sender) },
    Case { name: "to-a-process-of-this-node", from: Client, to: Balancer("hosted"), hooks: UPLINK_TC,
        verdict: "rewritten and handed to this node's own stack", service: Some("hosted"),
        real: Answer(101, Seen::Sender) },
];

pub(super) fn trials(worlds: &Arc<Worlds>, has_vlans: bool) -> Vec<Trial> {
    let mut trials = Vec::new();
    // What a program decides is the same, native or generic.
    let worlds_of_each = services::possible(has_vlans).filter(|world| *world != "generic");
    for world in worlds_of_each {
        for family in Family::BOTH {
            for case in CASES {
                let worlds = Arc::clone(worlds);
                let name = format!("cli/explain/{world}/{}/{}", family.word(), case.name);
                trials.push(Trial::test(name, move || {
                    Ok(compare(worlds.serving(world)?, world, case, family)?)
                }));
            }
            for (name, check) in [
                ("established", established as Check),
                ("answer-of-a-backend", answer),
                ("echo-request", echo),
            ] {
                let worlds = Arc::clone(worlds);
                let name = format!("cli/explain/{world}/{}/{name}", family.word());
                trials.push(Trial::test(name, move || {
                    Ok(check(worlds.serving(world)?, family)?)
                }));
            }
        }
    }
    trials
}

type Check = fn(&Cluster, Family) -> Result<()>;

fn service(name: &str) -> Result<Service> {
    let mut known = services::services().into_iter();
    known
        .find(|service| service.name == name)
        .with_context(|| format!("no service {name}"))
}

fn sender(cluster: &Cluster, from: Sender, family: Family) -> IpAddr {
    match from {
        Client => layout::client(family),
        Pod(number) => cluster.world().layout().pod(number, family),
        Sender::Node => layout::node(1, family),
    }
}

fn target(cluster: &Cluster, to: To, family: Family) -> Result<SocketAddr> {
    Ok(match to {
        Balancer(name) => service(name)?.balancer(Means::Http, family),
        BalancerOther(name) => {
            SocketAddr::new(service(name)?.balancer(Means::Http, family).ip(), 81)
        }
        ClusterIp(name) => service(name)?.cluster(Means::Http, family),
        NodePort(name) => SocketAddr::new(
            layout::node(1, family),
            service(name)?.node_port(Means::Http),
        ),
        To::Pod(number) => SocketAddr::new(cluster.world().layout().pod(number, family), HTTP_PORT),
    })
}

fn compare(cluster: &Cluster, world: &str, case: &Case, family: Family) -> Result<()> {
    let uplink = cluster.world().layout().uplink.device("eth0");
    let (from, to) = (
        sender(cluster, case.from, family),
        target(cluster, case.to, family)?,
    );
    // First, so that neighbours are known when the explanation asks for them.
    let outcome = ask_really(cluster, case, to)?;
    // A port that no socket of this world is given, so that there is no such connection.
    let from = SocketAddr::new(from, 20_000);
    let explain = ["explain", "tcp", &from.to_string(), &to.to_string()];
    let node = Node::new(cluster, 1);
    let mut told = node.json(&explain)?;
    let mut yaml = node.yaml(&explain)?;
    if yaml != told {
        // The world is shared: what others do may have come in between.
        told = node.json(&explain)?;
        yaml = node.yaml(&explain)?;
    }
    ensure!(yaml == told, "YAML and JSON differ: {told:#}\n{yaml:#}");
    let verdict = text(&told, "verdict")?;
    let expected = case.verdict.replace("UPLINK", &uplink);
    ensure!(verdict.starts_with(&expected), "{expected}: {told:#}");
    let xdp = world == "xdp";
    let [tc_hook, xdp_hook] = case.hooks.map(|hook| hook.replace("UPLINK", &uplink));
    let hook = if xdp { &xdp_hook } else { &tc_hook };
    ensure!(text(&told, "hook")? == hook, "not {hook}: {told:#}");
    // XDP sees first what comes in by an uplink that has it, whoever decides.
    let first = if xdp && matches!(case.from, Client) {
        "xdp_uplink at eth0"
    } else {
        hook
    };
    ensure!(text(&told, "first")? == first, "not {first}: {told:#}");
    let service = case.service.map(|name| format!("default/{name}:http/TCP"));
    ensure!(
        field(&told, "service")?.as_str() == service.as_deref(),
        "not {service:?}: {told:#}"
    );
    described(&node.text(&explain)?, &told)?;
    happens(cluster, case, family, &outcome, &told)
}

/// The text for people says what JSON says.
fn described(printed: &str, told: &Value) -> Result<()> {
    for (name, word) in [("packet", "packet"), ("verdict", "verdict")] {
        let line = format!("{word:<9}{}", text(told, name)?);
        ensure!(
            printed.lines().any(|one| one == line),
            "no {line}: {printed}"
        );
    }
    let (first, hook) = (text(told, "first")?, text(told, "hook")?);
    let hook = if first == hook {
        format!("hook     {hook}")
    } else {
        format!("hook     {first}, then {hook}")
    };
    ensure!(
        printed.lines().any(|one| one == hook),
        "no {hook}: {printed}"
    );
    ensure!(
        printed.lines().any(|line| line.starts_with("STAGE ")),
        "no steps: {printed}"
    );
    Ok(())
}

/// Sends real packets.
fn ask_really(cluster: &Cluster, case: &Case, to: SocketAddr) -> Result<Outcome> {
    let world = cluster.world();
    let namespace = match case.from {
        Client => world.client(),
        Pod(number) => world.pod(number),
        Sender::Node => world.node(1),
    };
    let limit = match case.real {
        Lost => Duration::from_millis(400),
        _ => Duration::from_secs(4),
    };
    Ok(ask::ask(&namespace, Means::Http, to, limit)?.outcome)
}

/// Real packets have met what was told.
fn happens(
    cluster: &Cluster,
    case: &Case,
    family: Family,
    outcome: &Outcome,
    told: &Value,
) -> Result<()> {
    let world = cluster.world();
    match (case.real, outcome) {
        (Answer(pod, seen), Outcome::Answered { pod: name, client }) => {
            ensure!(*name == format!("pod{pod}"), "{outcome}");
            let right = match seen {
                Seen::Sender => sender(cluster, case.from, family),
                Seen::Node1 => layout::node(1, family),
            };
            ensure!(client.ip() == right, "{outcome}, not {right}");
            if case.service.is_some() {
                // What was told of the source and of the backend is what the pod saw.
                let backend = SocketAddr::new(world.layout().pod(pod, family), HTTP_PORT);
                let made = becomes(told)?;
                ensure!(
                    made.0.ip() == right && made.1 == backend,
                    "{outcome}, but {told:#}"
                );
            }
        }
        (Refused, Outcome::Refused) | (Lost, Outcome::TimedOut) => {}
        _ => bail!("{outcome}, but {told:#}"),
    }
    Ok(())
}

/// Source and destination that the packet is said to get.
fn becomes(told: &Value) -> Result<(SocketAddr, SocketAddr)> {
    let steps = field(told, "steps")?.as_array().context("steps")?;
    // The answering direction is inserted first.
    let inserts = steps
        .iter()
        .rfind(|step| step.get("stage").and_then(Value::as_str) == Some("insert"));
    let answer = text(inserts.context("nothing is inserted")?, "answer")?;
    let pair = answer
        .strip_prefix("becomes ")
        .and_then(|rest| rest.split_once(" > "));
    let (source, destination) = pair.with_context(|| format!("`{answer}`"))?;
    Ok((source.parse()?, destination.parse()?))
}

/// A connection that is there keeps its backend, whatever the choice would be now.
fn established(cluster: &Cluster, family: Family) -> Result<()> {
    let to = service("both")?.balancer(Means::Http, family);
    let client = cluster.world().client();
    let (stream, pod) = converse(&client, to)?;
    let told = Node::new(cluster, 1).json(&[
        "explain",
        "tcp",
        &stream.local_addr()?.to_string(),
        &to.to_string(),
    ])?;
    let steps = field(&told, "steps")?.as_array().context("steps")?;
    let flow = steps
        .iter()
        .find(|step| step.get("stage").and_then(Value::as_str) == Some("flow"));
    let backend = SocketAddr::new(cluster.world().layout().pod(pod, family), HTTP_PORT);
    let expected = format!("a connection of default/both:http/TCP, to {backend}");
    let answer = text(flow.context("no flow")?, "answer")?;
    ensure!(answer == expected, "not {expected}: {told:#}");
    ensure!(
        !steps
            .iter()
            .any(|step| step.get("stage").and_then(Value::as_str) == Some("insert")),
        "a second connection: {told:#}"
    );
    ensure!(
        text(&told, "service")? == "default/both:http/TCP",
        "{told:#}"
    );
    ensure!(
        text(&told, "verdict")?.starts_with("rewritten and "),
        "{told:#}"
    );
    Ok(())
}

/// What a backend on this node sends back is made to come from the service.
fn answer(cluster: &Cluster, family: Family) -> Result<()> {
    let to = service("near")?.balancer(Means::Http, family);
    let (stream, _) = converse(&cluster.world().client(), to)?;
    let backend = SocketAddr::new(cluster.world().layout().pod(1, family), HTTP_PORT);
    let client = stream.local_addr()?;
    let told = Node::new(cluster, 1).json(&[
        "explain",
        "tcp",
        &backend.to_string(),
        &client.to_string(),
    ])?;
    ensure!(text(&told, "hook")? == "tc_ingress at pod1", "{told:#}");
    ensure!(
        text(&told, "service")? == "default/near:http/TCP",
        "{told:#}"
    );
    let uplink = cluster.world().layout().uplink.device("eth0");
    let verdict = format!("rewritten and sent out of {uplink}");
    ensure!(text(&told, "verdict")? == verdict, "{told:#}");
    Ok(())
}

/// Opens a connection and asks once: the connection, and the number of the pod that answered.
fn converse(
    client: &proxy_tests::lab::namespace::Namespace,
    to: SocketAddr,
) -> Result<(TcpStream, u8)> {
    use std::io::{Read as _, Write as _};
    let mut stream = client.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(4)))??;
    stream.set_read_timeout(Some(Duration::from_secs(4)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: service\r\n\r\n")?;
    let mut buffer = [0; 1024];
    let length = stream.read(&mut buffer)?;
    let said = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
    let pod = said.lines().find_map(|line| line.strip_prefix("pod"));
    let number = pod
        .and_then(|rest| rest.split(' ').next())
        .context(said.clone())?;
    Ok((stream, number.parse()?))
}

/// Echo requests are answered for an address that the outside may reach, and dropped for a cluster
/// address.
fn echo(cluster: &Cluster, family: Family) -> Result<()> {
    let service = service("near")?;
    let node = Node::new(cluster, 1);
    let client = cluster.world().client();
    let from = layout::client(family).to_string();
    let balancer = service.balancer(Means::Http, family).ip();
    let told = node.json(&["explain", "icmp", &from, &balancer.to_string()])?;
    let packet = format!("ICMP echo request {from} > {balancer}");
    ensure!(text(&told, "packet")? == packet, "{told:#}");
    ensure!(
        text(&told, "verdict")? == "answered in the service's name",
        "{told:#}"
    );
    ensure!(
        ask::ping(&client, balancer, Duration::from_secs(2))?,
        "{balancer} does not answer"
    );
    let inner = service.cluster(Means::Http, family).ip();
    let told = node.json(&["explain", "icmp", &from, &inner.to_string()])?;
    let verdict = "dropped, outside-cluster-address: ";
    ensure!(text(&told, "verdict")?.starts_with(verdict), "{told:#}");
    ensure!(
        !ask::ping(&client, inner, Duration::from_millis(500))?,
        "{inner} answers"
    );
    Ok(())
}
