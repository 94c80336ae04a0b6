//! `causeway tunnel`: the return proxy's two ends, and how they are.

use std::{
    fmt::Write as _,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::{
    Exit, Failure,
    arguments::Arguments,
    output::{Output, Row, table},
};
use crate::{
    api::{Client, ClientError},
    telemetry::log::{self, LogFormat},
    tunnel::{
        client::{Means, Status},
        control,
        service::{self, Board, Report, Source},
        supervise::Health,
        trust,
    },
};

/// Runs the server's end, or says how tunnels are.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Tunnel {
    #[command(subcommand)]
    command: Option<Verb>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs the node's end: an SSH server for the return proxy and nothing else.
    ///
    /// It serves as long as the manifests make this node the return proxy, and have
    /// `spec.endpoint`.
    Node(Node),
    /// Shows how each tunnel and each of its sessions is.
    Status,
    /// Shows ports, where they lead, and what they have carried.
    #[command(visible_alias = "ls")]
    List,
    /// Makes fresh sessions, and lets the old ones go once those carry.
    Reconnect {
        /// The tunnel; default: all.
        name: Option<String>,
    },
}

#[derive(Debug, Args)]
struct Serve {
    /// The manifests: nodes and return proxies.
    #[arg(short, long, value_name = "DIRECTORY")]
    manifests: Option<PathBuf>,
    /// A cluster template that says which node is the return proxy (`IsReturnProxy = true`).
    #[arg(long, requires = "known_hosts")]
    template: Option<PathBuf>,
    /// The file that knows the host key of the template's node.
    #[arg(long)]
    known_hosts: Option<PathBuf>,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t)]
    log: LogFormat,
}

#[derive(Debug, Args)]
struct Node {
    /// The manifests: nodes and return proxies.
    #[arg(short, long, value_name = "DIRECTORY")]
    manifests: PathBuf,
    /// This node's name [default: the host's].
    #[arg(long = "node", value_name = "NODE")]
    name: Option<String>,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t)]
    log: LogFormat,
}

/// The socket of the tunnel's process.
fn socket(arguments: &Arguments) -> PathBuf {
    let usual = || PathBuf::from(format!("/run/causeway/{}-tunnel.sock", arguments.instance));
    arguments.socket.clone().unwrap_or_else(usual)
}

pub(super) fn tunnel<W: Write>(
    arguments: &Arguments,
    tunnel: &Tunnel,
    output: &mut Output<W>,
) -> anyhow::Result<()> {
    let socket = socket(arguments);
    match &tunnel.command {
        None => serve(&tunnel.serve, &socket),
        Some(Verb::Node(node)) => serve_node(node, &socket),
        Some(Verb::Status) => {
            let report = ask(&socket)?;
            output.show(&report, describe)
        }
        Some(Verb::List) => {
            let rows = rows(&ask(&socket)?);
            output.list(&rows)
        }
        Some(Verb::Reconnect { name }) => {
            let of = name.as_deref().map(|name| format!("?of={name}"));
            let path = format!("/v1/tunnels/reconnect{}", of.unwrap_or_default());
            let value = runtime(1)?.block_on(Client::new(&socket).post(&path));
            let value = value.map_err(failure)?;
            output.show(&value, |value| {
                let count = value
                    .get("reconnecting")
                    .and_then(serde_json::Value::as_u64);
                format!("{} reconnecting", count.unwrap_or_default())
            })
        }
    }
}

fn failure(error: ClientError) -> anyhow::Error {
    let exit = match error {
        ClientError::NoDaemon { .. } => Exit::NoDaemon,
        ClientError::NotFound(_) => Exit::NotFound,
        _ => return error.into(),
    };
    Failure::new(exit, error.to_string()).into()
}

fn ask(socket: &Path) -> anyhow::Result<Report> {
    let value = runtime(1)?.block_on(Client::new(socket).get("/v1/tunnels"));
    serde_json::from_value(value.map_err(failure)?).context("the answer is not of this version")
}

/// Steps of tasks between two looks at sockets.
const EVENTS: u32 = 7;

fn runtime(workers: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        // While there is always something to do, sockets are looked at this often. A packet takes tens
        // of microseconds, so with the default of 61 a byte would wait for milliseconds at each end.
        .event_interval(EVENTS)
        .global_queue_interval(EVENTS)
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// As many as there are CPUs, and two at least, so that each session can use one of its own.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, |cpus| cpus.get().clamp(2, 8))
}

fn serve(serve: &Serve, socket: &Path) -> anyhow::Result<()> {
    let Some(manifests) = serve.manifests.clone() else {
        bail!("write --manifests DIRECTORY, or one of: node, status, list, reconnect");
    };
    let template = serve.template.clone().zip(serve.known_hosts.clone());
    let source = Source {
        manifests,
        template: template.map(|(file, known)| (file, trust::Policy::Known(known))),
    };
    log::init(serve.log);
    run(socket, |board, stop| async move {
        service::serve(source, board, stop).await;
        Ok(())
    })
}

fn serve_node(node: &Node, socket: &Path) -> anyhow::Result<()> {
    let name = match &node.name {
        Some(name) => name.clone(),
        None => std::fs::read_to_string("/proc/sys/kernel/hostname")
            .context("cannot read the host's name")?
            .trim()
            .to_lowercase(),
    };
    let source = Source {
        manifests: node.manifests.clone(),
        template: None,
    };
    log::init(node.log);
    run(socket, |board, stop| async move {
        service::node(source, name, board, stop).await?;
        Ok(())
    })
}

/// Runs one end and its control socket until SIGTERM or SIGINT.
fn run<F, R>(socket: &Path, work: F) -> anyhow::Result<()>
where
    F: FnOnce(Arc<Board>, watch::Receiver<bool>) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    // Each connection takes one, and there may be thousands.
    let limit = Resource::RLIMIT_NOFILE;
    if let Ok((_, most)) = getrlimit(limit)
        && let Err(error) = setrlimit(limit, most, most)
    {
        tracing::warn!(%error, "the number of connections is limited (RLIMIT_NOFILE)");
    }
    runtime(workers())?.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("signals")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("signals")?;
        let board = Arc::new(Board::default());
        let (stop, stopped) = watch::channel(false);
        let (listener, place) = control::listen(socket)
            .with_context(|| format!("cannot make the socket {}", socket.display()))?;
        let answers = control::serve(listener, Arc::clone(&board), stopped.clone());
        let answers = tokio::spawn(answers);
        let work = work(board, stopped);
        tokio::pin!(work);
        let result = tokio::select! {
            result = &mut work => result,
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        };
        let _ = stop.send(true);
        // It sees the flag, too, and ends what it carries.
        if result.is_ok() {
            let _ = tokio::time::timeout(std::time::Duration::from_secs(4), &mut work).await;
        }
        answers.abort();
        place.remove();
        result
    })
}

/// A port in the list.
#[derive(Debug, serde::Serialize)]
struct ForwardRow {
    tunnel: String,
    name: String,
    port: u16,
    target: String,
    active: u64,
    opened: u64,
    bytes_to_server: u64,
    bytes_to_cluster: u64,
    refused: u64,
}

impl Row for ForwardRow {
    const TITLES: &'static [&'static str] = &[
        "TUNNEL",
        "NAME",
        "PORT",
        "TARGET",
        "ACTIVE",
        "OPENED",
        "TO-SERVER",
        "TO-CLUSTER",
        "REFUSED",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.tunnel.clone(),
            self.name.clone(),
            self.port.to_string(),
            self.target.clone(),
            self.active.to_string(),
            self.opened.to_string(),
            self.bytes_to_server.to_string(),
            self.bytes_to_cluster.to_string(),
            self.refused.to_string(),
        ]
    }
}

fn rows(report: &Report) -> Vec<ForwardRow> {
    let mut rows = Vec::new();
    for tunnel in &report.tunnels {
        for one in &tunnel.forwards {
            rows.push(ForwardRow {
                tunnel: tunnel.name.clone(),
                name: one.name.clone(),
                port: one.listen,
                target: one.target.clone(),
                active: one.figures.active,
                opened: one.figures.opened,
                bytes_to_server: one.figures.bytes_to_server,
                bytes_to_cluster: one.figures.bytes_to_cluster,
                refused: one.figures.refused.values().sum(),
            });
        }
    }
    for (port, figures) in report.endpoint.iter().flat_map(|end| &end.forwards) {
        rows.push(ForwardRow {
            tunnel: "(node)".to_owned(),
            name: "-".to_owned(),
            port: *port,
            target: "-".to_owned(),
            active: figures.active,
            opened: figures.opened,
            bytes_to_server: figures.bytes_to_server,
            bytes_to_cluster: figures.bytes_to_cluster,
            refused: figures.refused.values().sum(),
        });
    }
    rows
}

fn describe(report: &Report) -> String {
    let mut text = String::new();
    for tunnel in &report.tunnels {
        describe_tunnel(&mut text, tunnel);
    }
    if let Some(endpoint) = &report.endpoint {
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "node's end: the SSH server of the return proxy runs here"
        );
        for (port, sessions) in &endpoint.carriers {
            let _ = writeln!(text, "  port {port}: sessions {sessions}");
        }
    }
    for problem in &report.problems {
        let _ = writeln!(text, "NO TUNNEL: {problem}");
    }
    if text.is_empty() {
        "there is no tunnel: the manifests have no ReturnProxy".clone_into(&mut text);
    }
    text
}

fn describe_tunnel(text: &mut String, tunnel: &Status) {
    let health = match tunnel.health {
        Health::Up => "up",
        Health::Degraded => "DEGRADED",
        Health::Down => "DOWN",
    };
    let _ = writeln!(
        text,
        "tunnel {}: {health}, {}@{}, {} of {} dials came to carry, {} key changes",
        tunnel.name,
        tunnel.user,
        tunnel.node,
        tunnel.figures.ready,
        tunnel.figures.dials,
        tunnel.figures.rekeys,
    );
    let cells = tunnel.sessions.iter().enumerate().map(|(number, leg)| {
        let means = leg.means.map_or("-", |means| match means {
            Means::Streams => "streams",
            Means::Channels => "channels",
        });
        let round_trip = leg.round_trip_us.map_or_else(
            || "-".to_owned(),
            |us| format!("{}.{:03} ms", us / 1_000, us % 1_000),
        );
        let told = leg.message.clone().or_else(|| leg.cause.clone());
        vec![
            number.to_string(),
            leg.state.word().to_owned(),
            means.to_owned(),
            leg.cipher.clone().unwrap_or_default(),
            round_trip,
            leg.connections.to_string(),
            told.unwrap_or_default(),
        ]
    });
    let titles = [
        "SESSION",
        "STATE",
        "BY",
        "CIPHER",
        "RTT",
        "CONNECTIONS",
        "LAST PROBLEM",
    ];
    text.push_str(&table(&titles, cells));
}
