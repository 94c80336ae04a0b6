//! Causeway in a small world, as a newcomer meets it.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    ask::{self, Means, Outcome},
    cluster::{Cluster, Hook, binary},
    layout::{self, Family, Layout},
    namespace::Namespace,
    remains, table,
    world::World,
};

/// How often each question is asked: enough to see more than one pod answer.
const TIMES: usize = 8;

/// The last part of the LoadBalancer and the cluster address of the service `web`, of `echo`, and of
/// `empty`.
const WEB: u8 = 10;
const ECHO: u8 = 20;
const EMPTY: u8 = 30;

/// What the demo is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The world's name.
    pub world: String,
    /// Leave everything running.
    pub keep: bool,
    /// The directory of manifests.
    pub manifests: PathBuf,
    /// Where packets are taken on the uplinks.
    pub hook: Hook,
    /// This program, whose command `echo` is run in the pods.
    pub lab: PathBuf,
}

/// What the command line is asked, and how many lines of each answer are shown.
const COMMANDS: [(&[&str], usize); 7] = [
    (&["status"], 20),
    (&["service", "list"], 8),
    (&["backend", "list"], 6),
    (&["flow", "list"], 6),
    (&["explain", "tcp", "198.51.100.10", "203.0.113.10:80"], 20),
    (&["explain", "icmp", "198.51.100.10", "203.0.113.10"], 20),
    (&["drop", "list"], 4),
];

/// One line of the table of traffic.
struct Question {
    frontend: &'static str,
    from: String,
    namespace: Namespace,
    means: Means,
    target: SocketAddr,
    answered: bool,
}

/// Makes the world, shows everything, and says whether all traffic went where it had to.
pub fn run(out: &mut impl Write, options: &Options) -> Result<bool> {
    let start = Instant::now();
    introduce(out)?;
    let mut world = step(out, "making the world", || {
        World::build(&options.world, Layout::STANDARD)
    })?;
    step(out, "starting nginx and an echo server in each pod", || {
        world.serve(&options.lab)
    })?;
    let manifests = Cluster::manifests_of(&world)?;
    copy(&options.manifests, &manifests)?;
    let causeway = binary()?;
    let what = "starting `causeway run` on node1 and node2";
    let cluster = step(out, what, || Cluster::start(world, &causeway, options.hook))?;
    let (rows, good) = send_traffic(out, &cluster)?;
    step(out, "waiting until the daemon has counted", || {
        wait_for_counts(&cluster)
    })?;
    show_traffic(out, &rows)?;
    let shown = show_commands(out, &cluster)?;
    writeln!(out)?;
    if options.keep {
        advise(out, &cluster, &causeway, &options.lab)?;
        cluster.keep()?;
    } else {
        step(out, "removing everything", || {
            drop(cluster);
            remains::remove(&options.world)
        })?;
    }
    let verdict = if !shown {
        "A COMMAND FAILED."
    } else if good {
        "All traffic went where it had to."
    } else {
        "SOME TRAFFIC FAILED."
    };
    let seconds = start.elapsed().as_secs_f32();
    writeln!(out, "\n{verdict} It took {seconds:.1} s.")?;
    Ok(good && shown)
}

fn introduce(out: &mut impl Write) -> Result<()> {
    let layout = Layout::STANDARD;
    let of = |number: u8| layout::node(number, Family::V4);
    let pod = |number: u8| format!("pod{number} {}", layout.pod(number, Family::V4));
    writeln!(
        out,
        "A client outside, a router, a switch, two nodes with two pods each, all of them network\n\
         namespaces, with IPv4 and IPv6. Both nodes run Causeway.\n\n  \
         client {} -- router -- switch -+- node1 {} -- {}, {}\n  {:43}`- node2 {} -- {}, {}\n",
        layout::client(Family::V4),
        of(1),
        pod(1),
        pod(2),
        "",
        of(2),
        pod(3),
        pod(4),
    )?;
    Ok(())
}

/// Does one step and says what it is and how long it took.
fn step<T>(out: &mut impl Write, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    write!(out, "{what:<50} ")?;
    out.flush()?;
    let start = Instant::now();
    let result = work();
    let end = if result.is_ok() { "" } else { " failed" };
    writeln!(out, "{:5.1} s{end}", start.elapsed().as_secs_f32())?;
    result
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let entries = fs::read_dir(from)
        .with_context(|| format!("listing the manifests in {}", from.display()))?;
    for entry in entries {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

fn questions(world: &World) -> Vec<Question> {
    let client = ("client", world.client());
    let pod = ("pod2", world.pod(2));
    let node = ("node1", world.node(1));
    let mut questions = Vec::new();
    for family in Family::BOTH {
        for (means, host, port, node_port, host_port) in [
            (Means::Http, WEB, 80, 30_080, 8_081),
            (Means::Udp, ECHO, 7, 30_007, 7_081),
        ] {
            let balancer = |host| SocketAddr::new(layout::load_balancer(host, family), port);
            let cluster = SocketAddr::new(layout::cluster_ip(host, family), port);
            let at_node = |number, port| SocketAddr::new(layout::node(number, family), port);
            let rows = [
                ("LoadBalancer", &client, balancer(host), true),
                ("ClusterIP", &pod, cluster, true),
                ("ClusterIP", &node, cluster, true),
                ("NodePort", &client, at_node(2, node_port), true),
                ("hostPort", &client, at_node(1, host_port), true),
                ("no endpoint", &client, balancer(EMPTY), false),
            ];
            questions.extend(rows.map(|(frontend, (from, namespace), target, answered)| {
                Question {
                    frontend,
                    from: (*from).to_owned(),
                    namespace: namespace.clone(),
                    means,
                    target,
                    answered,
                }
            }));
        }
    }
    questions
}

/// Asks all questions: the rows of the table, and whether everything was as it should be.
fn send_traffic(out: &mut impl Write, cluster: &Cluster) -> Result<(Vec<[String; 7]>, bool)> {
    let questions = questions(cluster.world());
    let mut rows = Vec::new();
    let mut good = true;
    let what = format!("asking {} frontends {TIMES} times each", questions.len());
    step(out, &what, || {
        for question in &questions {
            let (row, right) = ask_repeatedly(question)?;
            good &= right;
            rows.push(row);
        }
        Ok(())
    })?;
    Ok((rows, good))
}

/// The daemon looks through the connections every few seconds.
fn wait_for_counts(cluster: &Cluster) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(15) {
        let status = cluster.daemon(1)?.json(cluster.world(), &["status"])?;
        let count = status.pointer("/flows/connections");
        if count.and_then(Value::as_u64) > Some(0) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    bail!("after 15 s the daemon has not seen a connection")
}

fn show_traffic(out: &mut impl Write, rows: &[[String; 7]]) -> Result<()> {
    writeln!(
        out,
        "\nWho answered, and whose address it saw (a node's, where the answer has to come back):\n"
    )?;
    let headings = [
        "FRONTEND",
        "FROM",
        "BY",
        "TO",
        "ANSWERED BY",
        "WHICH SAW",
        "",
    ];
    table::print(out, headings, rows)?;
    Ok(())
}

/// One line of the table, and whether it is as it should be.
fn ask_repeatedly(question: &Question) -> Result<([String; 7], bool)> {
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut right = true;
    for _ in 0..TIMES {
        let Question {
            namespace,
            means,
            target,
            ..
        } = question;
        let attempt = ask::ask(namespace, *means, *target, Duration::from_secs(2))?;
        let answer = match &attempt.outcome {
            Outcome::Answered { pod, client } => {
                right &= question.answered;
                *seen.entry(client.ip().to_string()).or_default() += 1;
                pod.clone()
            }
            other => {
                right &= !question.answered && *other == Outcome::Refused;
                other.to_string()
            }
        };
        *answers.entry(answer).or_default() += 1;
    }
    let counted: Vec<String> = answers
        .iter()
        .map(|(answer, count)| format!("{answer} x{count}"))
        .collect();
    let row = [
        question.frontend.to_owned(),
        question.from.clone(),
        if question.means == Means::Http {
            "curl"
        } else {
            "udp"
        }
        .to_owned(),
        question.target.to_string(),
        counted.join(", "),
        seen.into_keys().collect::<Vec<_>>().join(", "),
        if right { "ok" } else { "WRONG" }.to_owned(),
    ];
    Ok((row, right))
}

/// Shows what the command line says, and whether every command worked.
fn show_commands(out: &mut impl Write, cluster: &Cluster) -> Result<bool> {
    let mut good = true;
    let daemon = cluster.daemon(1)?;
    writeln!(out, "\nWhat node1's command line says:")?;
    for (arguments, lines) in COMMANDS {
        writeln!(out, "\n$ causeway {}", arguments.join(" "))?;
        let output = daemon.output(cluster.world(), arguments)?;
        good &= output.status.success();
        shorten(out, &String::from_utf8_lossy(&output.stdout), lines)?;
        out.write_all(&output.stderr)?;
    }
    Ok(good)
}

/// Long lists are cut: this is a demonstration.
fn shorten(out: &mut impl Write, text: &str, lines: usize) -> Result<()> {
    for line in text.lines().take(lines) {
        writeln!(out, "{line}")?;
    }
    let more = text.lines().count().saturating_sub(lines);
    if more > 0 {
        writeln!(out, "... and {more} more lines")?;
    }
    Ok(())
}

/// Commands that can be pasted into a shell.
fn advise(out: &mut impl Write, cluster: &Cluster, causeway: &Path, lab: &Path) -> Result<()> {
    let world = cluster.world();
    let prefix = remains::prefix(world.name());
    let daemon = cluster.daemon(1)?;
    let lab = format!("{} --world {}", lab.display(), world.name());
    let (v4, v6) = (
        layout::load_balancer(WEB, Family::V4),
        layout::load_balancer(WEB, Family::V6),
    );
    writeln!(
        out,
        "The world stays. Paste, as root:\n\n  \
         causeway() {{ {lab} exec node1 {causeway} --instance {instance} --socket {socket} \"$@\"; }}\n  \
         ip netns exec {prefix}client curl -sS http://{v4}/ http://[{v6}]/\n  \
         causeway flow list\n  \
         causeway explain tcp {client} {v4}:80\n  \
         causeway map dump services_v4\n  \
         ${{EDITOR:-vi}} {web}  # then `causeway service list`\n  \
         {lab} down  # removes everything",
        causeway = causeway.display(),
        instance = daemon.instance(),
        socket = daemon.socket().display(),
        client = SocketAddr::new(layout::client(Family::V4), 40_000),
        web = Cluster::manifests_of(world)?.join("10-web.yaml").display(),
    )?;
    Ok(())
}
