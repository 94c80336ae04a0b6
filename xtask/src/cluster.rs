//! A real Kubernetes cluster on this machine: `cargo xtask cluster up`.
//!
//! API server, controllers, scheduler and kubelets are upstream's, built from source; etcd,
//! containerd and runc are Debian's. Each host is a set of namespaces; the one that this program
//! runs in stays as it is.

mod causeway;
mod control;
mod host;
mod identity;
mod images;
mod layout;
mod node;
mod programs;
mod reference;
mod remains;
mod specs;
mod switch;
mod trial;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Deserialize;

use crate::setup::{self, Purpose};
use crate::{dist, process};
use control::Control;
use host::Host;
use identity::Identities;
use layout::{MOST_NODES, Place};
use node::Node;
use programs::{Programs, Use};
use remains::Remains;

pub(crate) use specs::{Choice, End, Report as SpecReport, run as specs};
pub(crate) use trial::run as trial;

/// How long nodes may take to register, and to become ready.
const PATIENCE: Duration = Duration::from_secs(90);

const COREDNS: &str = include_str!("../../tests/cluster/manifests/coredns.yaml");

/// What to do with the cluster.
#[derive(clap::Subcommand)]
pub(crate) enum Verb {
    /// Start a cluster; one that is there is taken down first
    Up(Options),
    /// End everything of the cluster and remove what it made
    Down,
    /// Show what of a cluster is there
    Status,
    /// Run kubectl as administrator
    Kubectl {
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run a command on a host: `control`, `outside`, `n1`, `n2`, ...
    Exec {
        /// The host
        host: String,
        /// The command and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
}

/// Which cluster.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Options {
    /// What joins pods, and answers for services
    #[arg(long, value_enum, default_value_t = Network::Reference)]
    pub(crate) network: Network,
    /// Nodes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_NODES)))]
    pub(crate) nodes: u8,
}

/// What joins pods, and answers for services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Network {
    /// The reference CNI plugins, and kube-proxy with nftables
    Reference,
    /// Causeway alone: neither another CNI plugin nor kube-proxy
    Causeway,
    /// Nothing: nodes stay unready until a network is installed
    None,
}

/// Does it.
pub(crate) fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Up(options) => up(options, Use::Cluster)?,
        Verb::Down => down()?,
        Verb::Status => status()?,
        Verb::Kubectl { arguments } => {
            return hand_over(control::kubectl(&Programs::built()?)?.args(arguments));
        }
        Verb::Exec { host, command } => return exec(&host, &command),
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts a cluster and waits until it works.
fn up(options: Options, wanted: Use) -> Result<()> {
    setup::run(Purpose::Cluster)?;
    let _held = programs::lock()?;
    let programs = Programs::build(wanted)?;
    let mut images = images::pack(&programs, wanted)?;
    if options.network == Network::Causeway {
        images.push(match wanted {
            Use::ApiServer | Use::Cluster => dist::run()?,
            Use::Specs => dist::for_tests()?,
        });
    }
    if !Remains::find()?.is_empty() {
        println!("taking down the cluster that is there");
        remains::remove()?;
    }
    let start = Instant::now();
    let step = |what: &str| println!("{:>6.1} s  {what}", start.elapsed().as_secs_f64());

    switch::start()?;
    let places = [Place::Control, Place::Outside]
        .into_iter()
        .chain((1..=options.nodes).map(Place::Node));
    for place in places {
        switch::join(place)?;
    }
    let identities = Identities::make()?;
    step("network and identities");
    Host::start(Place::Outside)?;
    Control::start(&programs, &identities)?;
    step("API server answers");
    let nodes = start_nodes(options.nodes, &images, &programs, &identities)?;
    step("containerd and kubelets run");
    let nodes = with_ranges(nodes, &programs)?;
    for (node, ranges) in &nodes {
        for range in ranges {
            for from in [Place::Control, Place::Outside] {
                switch::route(from, range, node.host.place())?;
            }
        }
    }
    step("nodes have registered");
    apply(&programs, COREDNS)?;
    match options.network {
        Network::None => return Ok(()),
        Network::Causeway => causeway::install(&nodes, &programs)?,
        Network::Reference => reference::install(&nodes, &programs, &identities)?,
    }
    process::quiet(control::kubectl(&programs)?.args([
        "wait",
        "--for=condition=Ready",
        "node",
        "--all",
        "--timeout=90s",
    ]))?;
    step("nodes are ready");
    process::quiet(control::kubectl(&programs)?.args([
        "--namespace=kube-system",
        "rollout",
        "status",
        "deployment/coredns",
        "--timeout=90s",
    ]))?;
    step("name server is ready");
    Ok(())
}

/// All at once: most of their time goes into images.
fn start_nodes(
    count: u8,
    images: &[PathBuf],
    programs: &Programs,
    identities: &Identities,
) -> Result<Vec<Node>> {
    thread::scope(|scope| {
        let starting: Vec<_> = (1..=count)
            .map(|number| scope.spawn(move || Node::start(number, images, programs, identities)))
            .collect();
        starting
            .into_iter()
            .map(|node| {
                node.join()
                    .map_err(|_| anyhow!("a node's thread panicked"))?
            })
            .collect()
    })
}

#[derive(Deserialize)]
struct Registered {
    items: Vec<RegisteredNode>,
}

#[derive(Deserialize)]
struct RegisteredNode {
    metadata: Metadata,
    spec: Specification,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Deserialize)]
struct Specification {
    #[serde(rename = "podCIDRs", default)]
    ranges: Vec<String>,
}

/// Waits until all have registered and have been given ranges for their pods.
fn with_ranges(nodes: Vec<Node>, programs: &Programs) -> Result<Vec<(Node, Vec<String>)>> {
    let mut ranges = Vec::new();
    let Some(first) = nodes.first() else {
        bail!("there are no nodes");
    };
    let log = first.host.file("kubelet.log");
    host::wait_for("registration of the nodes", &log, PATIENCE, || {
        let answer =
            process::quiet(control::kubectl(programs)?.args(["get", "nodes", "--output=json"]))?;
        let registered: Registered =
            serde_json::from_str(&answer).context("cannot read the list of nodes")?;
        ranges = nodes
            .iter()
            .filter_map(|node| {
                let name = node.host.place().to_string();
                let found = registered
                    .items
                    .iter()
                    .find(|item| item.metadata.name == name)?;
                (!found.spec.ranges.is_empty()).then(|| found.spec.ranges.clone())
            })
            .collect();
        Ok(ranges.len() == nodes.len())
    })?;
    Ok(nodes.into_iter().zip(ranges).collect())
}

/// `kubectl apply` of a manifest.
fn apply(programs: &Programs, manifest: &str) -> Result<()> {
    let file = layout::folder()?.join("manifest.yaml");
    std::fs::write(&file, manifest).context("cannot write the manifest")?;
    process::quiet(
        control::kubectl(programs)?
            .args(["apply", "--filename"])
            .arg(&file),
    )
    .map(drop)
}

/// The program with every part of Kubernetes; it is built if it is not there.
pub(crate) fn kubernetes() -> Result<PathBuf> {
    let _held = programs::lock()?;
    Ok(Programs::build(Use::ApiServer)?.path(programs::KUBERNETES))
}

/// Ends everything and removes what it made.
pub(crate) fn down() -> Result<()> {
    let _held = programs::lock()?;
    remains::remove()
}

fn status() -> Result<()> {
    let found = Remains::find()?;
    if found.is_empty() {
        println!("no cluster is up");
        return Ok(());
    }
    println!("namespaces  {}", found.namespaces.join(", "));
    println!("processes   {}", found.processes.len());
    println!("folder      {}", layout::folder()?.display());
    let programs = Programs::built()?;
    println!(
        "kubectl     {}",
        programs.path(programs::KUBERNETES).display()
    );
    println!("kubeconfig  {}", Identities::admin()?.display());
    println!();
    process::run(control::kubectl(&programs)?.args(["get", "nodes,pods", "-A", "-o", "wide"]))
}

fn exec(host: &str, command: &[String]) -> Result<ExitCode> {
    let Some(place) = Place::named(host) else {
        bail!("no host is called `{host}`: `control`, `outside`, `n1` to `n{MOST_NODES}`");
    };
    let (Some(program), arguments) = (command.first(), command.iter().skip(1)) else {
        bail!("which command?");
    };
    hand_over(Host::running(place)?.command(program).args(arguments))
}

/// Runs a command as if it had been called itself.
fn hand_over(command: &mut Command) -> Result<ExitCode> {
    let status = command
        .stdin(std::process::Stdio::inherit())
        .status()
        .context("cannot start nsenter")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}
