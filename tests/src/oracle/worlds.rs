//! Two worlds that are the same but for what serves, and the API server that both are told by.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::lab::{
    apiserver::{self, Servers},
    cluster::Cluster,
    layout::{self, Family, ON_HOST},
    namespace::Namespace,
    process::Process,
    remains,
    topology::batch,
    world::World,
};

use super::{
    answer::{Answer, End},
    ask::{self, Effort, Question},
    objects,
    question::Place,
    scenario::{LAYOUT, Protocol, SERVED, Scenario, pod, pods},
    serve,
};

/// The link between nodes and API server, which is no uplink and has no part in what is asked.
const CONTROL: &str = "control";
const API_SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// Where service addresses lie that the standard world does not know of.
const RANGES: [&str; 8] = [
    "10.96.0.0/16",
    "198.19.0.0/16",
    "203.0.113.0/24",
    "100.65.0.0/16",
    "fd00:96::/112",
    "fd00:19::/48",
    "2001:db8:113::/112",
    "fd00:114::/48",
];

/// How long both may take to do what the API server says.
const PATIENCE: Duration = Duration::from_mins(1);

/// How often the marker is asked at once; of three endpoints, each that may not answer has to be missed
/// by chance as often.
const MARKER: Effort = Effort {
    times: 12,
    limit: Duration::from_millis(500),
};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// kube-proxy's.
    Reference,
    /// Causeway's.
    Causeway,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Reference, Self::Causeway];

    /// The name of its world.
    #[must_use]
    pub fn world(self, name: &str) -> String {
        match self {
            Self::Reference => format!("{name}reference"),
            Self::Causeway => format!("{name}causeway"),
        }
    }
}

/// All of it, removed when this is dropped.
#[derive(Debug)]
pub struct Worlds {
    // Ended before the worlds are removed.
    proxies: Vec<Process>,
    servers: Servers,
    causeway: Cluster,
    reference: World,
    control: Namespace,
    runtime: Runtime,
}

impl Worlds {
    /// Makes both, starts the API server, and what serves on each node.
    pub fn start(name: &str, first: &Scenario, causeway: &Path) -> Result<Self> {
        let [reference, other] = Side::BOTH.map(|side| World::build(&side.world(name), LAYOUT));
        let (reference, other) = (reference?, other?);
        let control = join(&reference, &other)?;
        for world in [&reference, &other] {
            route(world)?;
            answer_always(world)?;
            serve_in(world)?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let rights = apiserver::documented_rights()?;
        let servers = control.enter(|| {
            runtime.block_on(async {
                let servers = Servers::start_at(API_SERVER.into(), &rights).await?;
                for node in objects::nodes(first) {
                    servers.apply(&node).await?;
                }
                anyhow::Ok(servers)
            })
        })??;
        let proxies = LAYOUT
            .nodes()
            .map(|node| kube_proxy(&reference, node, &servers))
            .collect::<Result<Vec<_>>>()?;
        let causeway = Cluster::start_on_server(other, causeway, &servers.user())?;
        Ok(Self {
            proxies,
            servers,
            causeway,
            reference,
            control,
            runtime,
        })
    }

    /// One of the worlds.
    #[must_use]
    pub const fn world(&self, side: Side) -> &World {
        match side {
            Side::Reference => &self.reference,
            Side::Causeway => self.causeway.world(),
        }
    }

    /// Writes what a scenario has, instead of what was there before.
    pub fn apply(&self, scenario: &Scenario) -> Result<()> {
        self.control.enter(|| {
            self.runtime.block_on(async {
                for kind in ["Service", "EndpointSlice"] {
                    self.servers
                        .delete_labelled(kind, "default", objects::LABEL)
                        .await?;
                }
                for node in objects::nodes(scenario) {
                    self.servers.apply(&node).await?;
                }
                let services = scenario.services.iter();
                let all = services.flat_map(|one| objects::of_service(one, scenario));
                for object in all.chain(objects::marker(scenario)) {
                    self.servers.apply(&object).await?;
                }
                Ok(())
            })
        })?
    }

    /// Waits until every node of both serves the marker of this scenario, and so all that was written
    /// before it.
    pub fn wait(&mut self, scenario: &Scenario) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        for side in Side::BOTH {
            for node in LAYOUT.nodes() {
                while let Err(error) = self.serves_marker(side, node, scenario) {
                    for proxy in &mut self.proxies {
                        if let Some(status) = proxy.ended()? {
                            let name = proxy.name().to_owned();
                            bail!("{name} ended ({status}): {}", last_lines(&proxy.printed()));
                        }
                    }
                    if Instant::now() > end {
                        return Err(error).with_context(|| {
                            format!("{side:?}, node{node}: not as written after {PATIENCE:?}")
                        });
                    }
                    thread::sleep(Duration::from_millis(50));
                }
            }
        }
        Ok(())
    }

    fn serves_marker(&self, side: Side, node: u8, scenario: &Scenario) -> Result<()> {
        let wanted: Vec<String> = objects::marker_pods(scenario, node.into())
            .into_iter()
            .map(|pod| format!("pod{pod}:{}", SERVED[0]))
            .collect();
        let questions = Family::BOTH.map(|family| {
            vec![Question {
                number: 0,
                from: unspecified(family),
                to: SocketAddr::new(
                    objects::marker_address(scenario, family),
                    objects::MARKER_PORT,
                ),
                protocol: Protocol::Tcp,
            }]
        });
        let room = self.world(side).room(&format!("node{node}"));
        for (_, answer) in ask::ask(&room, questions.into(), MARKER)? {
            let good = |end: &End| matches!(end, End::Answered { backend, .. } if wanted.contains(backend));
            if !answer.0.iter().all(good) {
                bail!("the marker: {answer}; may answer: {}", wanted.join(", "));
            }
        }
        if side == Side::Causeway {
            let status = self
                .causeway
                .daemon(node)?
                .json(self.causeway.world(), &["status"])?;
            if status.pointer("/in_sync") != Some(&json!(true)) {
                bail!("not in sync: {status:#}");
            }
        }
        Ok(())
    }

    /// Asks the same from all places of both worlds at once; the answers are in the order of the
    /// questions of each place.
    pub fn ask(
        &self,
        groups: &BTreeMap<Place, Vec<Vec<Question>>>,
        effort: Effort,
    ) -> Result<[BTreeMap<usize, Answer>; 2]> {
        let [reference, causeway] = thread::scope(|scope| {
            Side::BOTH
                .map(|side| {
                    let threads: Vec<_> = groups
                        .iter()
                        .map(|(place, questions)| {
                            let room = self.world(side).room(&place.room());
                            scope.spawn(move || ask::ask(&room, questions.clone(), effort))
                        })
                        .collect();
                    threads
                })
                .map(|threads| {
                    let mut found = BTreeMap::new();
                    for thread in threads {
                        let answers = thread.join();
                        let answers =
                            answers.map_err(|_| anyhow!("a thread that asks panicked"))?;
                        found.extend(answers?);
                    }
                    anyhow::Ok(found)
                })
        });
        Ok([reference?, causeway?])
    }
}

/// Lets the kernel choose where from.
#[must_use]
pub fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Makes the namespace of the API server, and its links to all nodes.
fn join(reference: &World, causeway: &World) -> Result<Namespace> {
    let name = format!("{}{CONTROL}", remains::prefix(reference.name()));
    let mut outside = vec![format!("netns add {name}")];
    let mut inside = vec![
        "link set lo up".to_owned(),
        "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0".to_owned(),
        "link set br0 up".to_owned(),
        format!("address add {API_SERVER}/24 dev br0"),
    ];
    let mut last = 10;
    for world in [reference, causeway] {
        for node in LAYOUT.nodes() {
            last += 1;
            let room = world.room(&format!("node{node}"));
            outside.push(format!(
                "link add name n{last} netns {name} type veth peer name {CONTROL} netns {}",
                room.name()
            ));
            inside.push(format!("link set n{last} master br0 up"));
        }
    }
    batch(None, &outside)?;
    batch(Some(&name), &inside)?;
    let mut last = 10;
    for world in [reference, causeway] {
        for node in LAYOUT.nodes() {
            last += 1;
            let room = world.room(&format!("node{node}"));
            let commands = [
                format!("address add 198.18.0.{last}/24 dev {CONTROL}"),
                format!("link set {CONTROL} up"),
            ];
            batch(Some(room.name()), &commands)?;
        }
    }
    Ok(Namespace::named(name))
}

/// The client gets a second address, whose packets the router sends to service addresses by way of the
/// second node. What nodes send to a service address that they do not know is lost at the router.
fn route(world: &World) -> Result<()> {
    let second = Place::Outside(2);
    let addresses = [(Family::V4, 24), (Family::V6, 64)].map(|(family, length)| {
        let flag = if family == Family::V6 { " nodad" } else { "" };
        format!(
            "address add {}/{length} dev eth0{flag}",
            second.address(family)
        )
    });
    batch(Some(world.client().name()), &addresses)?;
    let mut commands = Vec::new();
    for range in RANGES {
        let family = if range.contains(':') {
            Family::V6
        } else {
            Family::V4
        };
        let [first, other] = [1, 2].map(|node| layout::node(node, family));
        commands.push(format!("route replace {range} via {first} dev eth1"));
        commands.push(format!("route add {range} via {other} dev eth1 table 102"));
        commands.push(format!("route add blackhole {range} table 103"));
    }
    batch(Some(world.room("router").name()), &commands)?;
    for family in Family::BOTH {
        let flag = if family == Family::V6 { "-6" } else { "-4" };
        let from = second.address(family);
        for rule in [
            "iif eth1 lookup 103 pref 100".to_owned(),
            format!("from {from} lookup 102 pref 110"),
        ] {
            let mut ip = Command::new("ip");
            ip.args([flag, "rule", "add"]).args(rule.split(' '));
            let output = world.room("router").output(&mut ip)?;
            if !output.status.success() {
                bail!(
                    "`ip rule add {rule}`: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
        }
    }
    Ok(())
}

/// Nodes refuse by ICMP, of which the kernel sends one a second to each host, and so many in all.
fn answer_always(world: &World) -> Result<()> {
    for node in LAYOUT.nodes() {
        world.room(&format!("node{node}")).enter(|| {
            for (key, value) in [
                ("ipv4/icmp_ratelimit", "0"),
                ("ipv4/icmp_msgs_per_sec", "1000000"),
                ("ipv4/icmp_msgs_burst", "1000000"),
                ("ipv6/icmp/ratelimit", "0"),
            ] {
                let path = format!("/proc/sys/net/{key}");
                fs::write(&path, value).with_context(|| format!("writing {path}"))?;
            }
            anyhow::Ok(())
        })??;
    }
    Ok(())
}

/// Starts the servers of all pods.
fn serve_in(world: &World) -> Result<()> {
    for number in pods() {
        let name = if number > ON_HOST {
            format!("node{}", number - ON_HOST)
        } else {
            format!("pod{number}")
        };
        let addresses = Family::BOTH
            .into_iter()
            .flat_map(|family| SERVED.map(|port| SocketAddr::new(pod(number, family), port)))
            .collect();
        serve::serve(&world.room(&name), &name, addresses)?;
    }
    Ok(())
}

fn kube_proxy(world: &World, node: u8, servers: &Servers) -> Result<Process> {
    let configuration = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": servers.proxy()},
        // So that "a pod of this node" means just that, not any pod of the cluster.
        "detectLocalMode": "NodeCIDR",
        "hostnameOverride": format!("node{node}"),
        // The limit is the whole machine's, and cannot be set from here.
        "conntrack": {"maxPerCore": 0},
        "nftables": {"minSyncPeriod": "20ms"},
    });
    let file = world.node_directory(node).join("kube-proxy.json");
    fs::write(&file, configuration.to_string())
        .with_context(|| format!("writing {}", file.display()))?;
    let mut proxy = Command::new(apiserver::program()?);
    proxy.arg("kube-proxy").arg("--config").arg(file);
    world.start(&world.node(node), proxy, &format!("kube-proxy-node{node}"))
}

fn last_lines(text: &str) -> String {
    let lines = text.lines().count();
    let last: Vec<&str> = text.lines().skip(lines.saturating_sub(20)).collect();
    last.join("\n")
}
