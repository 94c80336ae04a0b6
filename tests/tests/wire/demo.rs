//! What a newcomer runs first, and that nothing of it remains.

use std::{
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
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

fn works() -> Result<()> {
    let world = name("works");
    let out = run(&world, &["demo"])?;
    ensure!(out.contains("All traffic went where it had to."), "{out}");
    for word in [
        "LoadBalancer",
        "ClusterIP",
        "NodePort",
        "hostPort",
        "causeway flow list",
    ] {
        ensure!(out.contains(word), "no {word} in:\n{out}");
    }
    nothing_remains(&world)
}

fn kept() -> Result<()> {
    let world = name("kept");
    run(&world, &["demo", "--keep"])?;
    ensure!(remains::owner(&world) == Owner::Kept);
    let answer = run(
        &world,
        &["exec", "client", "curl", "-sS", "http://203.0.113.10/"],
    )?;
    ensure!(answer.starts_with("pod"), "{answer}");
    run(&world, &["down"])?;
    nothing_remains(&world)
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
