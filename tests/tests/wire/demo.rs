//! What a newcomer runs first, and that nothing of it remains.

use std::{
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Trial;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proxy_tests::lab::remains::{self, Owner};

use crate::worlds::LAB;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("demo/works-and-leaves-nothing", || Ok(works()?)),
        Trial::test("demo/kept-then-removed", || Ok(kept()?)),
        Trial::test("demo/interrupted-leaves-nothing", || Ok(interrupted()?)),
        Trial::test("demo/killed-is-swept-later", || Ok(killed()?)),
    ]
}

fn name(case: &str) -> String {
    format!("d{}{case}", std::process::id())
}

fn start(world: &str, arguments: &[&str]) -> Result<Child> {
    Ok(Command::new(LAB)
        .args(["--world", world])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?)
}

fn run(world: &str, arguments: &[&str]) -> Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = start(world, arguments)?.wait_with_output()?;
    let (out, error) = (
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr),
    );
    ensure!(
        status.success(),
        "`lab {arguments:?}` ended with {status}:\n{out}\n{error}"
    );
    Ok(out.into_owned())
}

/// No file, namespace or mount of this world.
fn nothing_remains(world: &str) -> Result<()> {
    ensure!(
        remains::owner(world) == Owner::Nobody,
        "files or namespaces remain"
    );
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    let directory = remains::directory(world);
    ensure!(
        !mounts.contains(&*directory.to_string_lossy()),
        "mounts remain:\n{mounts}"
    );
    Ok(())
}

/// Titles of tables and commands: what a reader finds their way by.
fn headings(text: &str) -> Vec<&str> {
    let is_title = |line: &str| {
        let mut words = line.split_whitespace();
        let loud = |word: &str| word.chars().all(|c| c.is_ascii_uppercase());
        words.clone().count() > 2 && words.all(loud)
    };
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| line.starts_with("$ ") || is_title(line))
        .collect()
}

/// Words of a line of the table of traffic, without the counts of answers.
const COLUMNS: [&str; 6] = ["FRONTEND", "FROM", "BY", "TO", "ANSWERED BY", "WHICH SAW"];

fn works() -> Result<()> {
    let world = name("works");
    let out = run(&world, &["demo"])?;
    ensure!(out.contains("All traffic went where it had to."), "{out}");
    let found = headings(&out);
    let commands = [
        "status",
        "service list",
        "backend list",
        "flow list",
        "explain tcp 198.51.100.10 203.0.113.10:80",
        "explain icmp 198.51.100.10 203.0.113.10",
        "drop list",
    ];
    for command in commands {
        let line = format!("$ causeway {command}");
        ensure!(found.contains(&line.as_str()), "no {line} in {found:?}");
    }
    let titles = ["SERVICE ", "PROTOCOL ", "DEVICE ", "STAGE ", "REASON "];
    for title in titles {
        ensure!(
            found.iter().any(|line| line.starts_with(title)),
            "no table that begins with {title}: {found:?}"
        );
    }
    traffic(&out)?;
    readme(&found)?;
    nothing_remains(&world)
}

/// Every line of the table names pods that have the service, and how often each has answered.
fn traffic(out: &str) -> Result<()> {
    let head = out.lines().find(|line| line.trim().starts_with("FRONTEND"));
    let head = head.context("no table of traffic")?;
    let starts: Vec<usize> = COLUMNS
        .iter()
        .map(|title| head.find(&format!("  {title}")).map(|at| at + 2))
        .collect::<Option<_>>()
        .with_context(|| format!("the table's head is {head}"))?;
    let rows: Vec<&str> = out
        .lines()
        .skip_while(|line| *line != head)
        .skip(1)
        .take_while(|line| !line.is_empty())
        .collect();
    let mut seen = std::collections::BTreeMap::new();
    for row in &rows {
        let cell = |index: usize| {
            let start = starts.get(index).copied().unwrap_or_default();
            let end = starts.get(index + 1).copied().unwrap_or(row.len());
            row.get(start..end.min(row.len()))
                .unwrap_or_default()
                .trim()
        };
        let (frontend, by, to, answered) = (cell(0), cell(2), cell(3), cell(4));
        let family = if to.starts_with('[') { "IPv6" } else { "IPv4" };
        *seen.entry((frontend, family, by)).or_insert(0) += 1;
        let may: &[&str] = match (frontend, by) {
            ("hostPort", _) => &["pod1"],
            ("no endpoint", _) => &["refused"],
            (_, "curl") => &["pod1", "pod2", "pod3", "pod4"],
            _ => &["pod1", "pod3"],
        };
        let mut times = 0;
        for part in answered.split(", ") {
            let (who, count) = part.split_once(" x").context(row.to_string())?;
            ensure!(may.contains(&who), "{who} cannot answer: {row}");
            times += count.parse::<u32>()?;
        }
        ensure!(times == 8 && row.ends_with(" ok"), "{row}");
        let saw = !cell(5).trim_end_matches("ok").trim().is_empty();
        ensure!(saw == (frontend != "no endpoint"), "{row}");
    }
    for frontend in [
        "LoadBalancer",
        "ClusterIP",
        "NodePort",
        "hostPort",
        "no endpoint",
    ] {
        for family in ["IPv4", "IPv6"] {
            for by in ["curl", "udp"] {
                let key = (frontend, family, by);
                ensure!(seen.contains_key(&key), "no line of {key:?}");
            }
        }
    }
    Ok(())
}

/// The README shows the same commands and tables in the same order.
fn readme(found: &[&str]) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(path)?;
    let block = readme
        .split_once("<!-- demo output -->\n```console\n")
        .and_then(|(_, rest)| rest.split_once("\n```"));
    let (block, _) = block.context("README.md has no block of the demo's output")?;
    ensure!(
        words(&headings(block)) == words(found),
        "README.md shows {:#?}, the demo prints {found:#?}",
        headings(block)
    );
    Ok(())
}

/// Headings without the widths of their columns.
fn words<'t>(headings: &[&'t str]) -> Vec<Vec<&'t str>> {
    let split = |line: &&'t str| line.split_whitespace().collect();
    headings.iter().map(split).collect()
}

fn kept() -> Result<()> {
    let world = name("kept");
    let out = run(&world, &["demo", "--keep"])?;
    ensure!(remains::owner(&world) == Owner::Kept);
    let answer = run(
        &world,
        &["exec", "client", "curl", "-sS", "http://203.0.113.10/"],
    )?;
    ensure!(answer.starts_with("pod"), "{answer}");
    paste(&out)?;
    // The last of the pasted lines.
    nothing_remains(&world)
}

/// Gives what the demo advises to a shell, as it is.
fn paste(out: &str) -> Result<()> {
    let advised = out.split_once("Paste, as root:\n\n").context("no advice")?;
    let lines: Vec<&str> = advised
        .1
        .lines()
        .take_while(|line| line.starts_with("  "))
        .collect();
    ensure!(lines.len() == 7, "{lines:?}");
    let script = format!("set -e\n{}\n", lines.join("\n"));
    let shell = Command::new("sh")
        .args(["-c", &script])
        .env("EDITOR", "true")
        .output()?;
    let (said, error) = (
        String::from_utf8_lossy(&shell.stdout),
        String::from_utf8_lossy(&shell.stderr),
    );
    ensure!(
        shell.status.success() && error.is_empty(),
        "{script}ended with {}:\n{said}\n{error}",
        shell.status
    );
    for word in ["pod", "PROTOCOL", "verdict ", "KEY", "removed: "] {
        ensure!(said.contains(word), "no {word}: {said}");
    }
    Ok(())
}

/// Starts a demo and waits until it has made something.
fn begin(world: &str) -> Result<(Child, Pid)> {
    let child = start(world, &["demo"])?;
    let pid = Pid::from_raw(child.id().try_into()?);
    let start = Instant::now();
    while !Path::new(&remains::directory(world))
        .join("pod1-nginx.log")
        .exists()
    {
        if start.elapsed() > Duration::from_secs(20) {
            bail!("nothing is made after 20 s");
        }
        sleep(Duration::from_millis(2));
    }
    Ok((child, pid))
}

fn interrupted() -> Result<()> {
    let world = name("interrupted");
    let (mut child, pid) = begin(&world)?;
    kill(pid, Signal::SIGINT)?;
    let status = child.wait()?;
    ensure!(status.code() == Some(130), "it ended with {status}");
    nothing_remains(&world)
}

fn killed() -> Result<()> {
    let world = name("killed");
    let (mut child, pid) = begin(&world)?;
    kill(pid, Signal::SIGKILL)?;
    child.wait()?;
    let start = Instant::now();
    while remains::owner(&world) == Owner::Running && start.elapsed() < Duration::from_secs(5) {
        sleep(Duration::from_millis(2));
    }
    ensure!(
        remains::owner(&world) == Owner::Gone,
        "{:?}",
        remains::owner(&world)
    );
    remains::sweep()?;
    nothing_remains(&world)
}
