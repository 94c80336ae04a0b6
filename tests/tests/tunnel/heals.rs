//! What breaks, and how soon it is whole again.

use std::{
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use proxy_tests::tunnel::bed::{Bed, LIMIT, Object, run_in};
use serde_json::Value;

/// How long until a connection through the tunnel works.
fn until_it_carries(bed: &Bed) -> Result<Duration> {
    let start = Instant::now();
    while start.elapsed() < LIMIT {
        if tries(bed) {
            return Ok(start.elapsed());
        }
        sleep(Duration::from_millis(20));
    }
    anyhow::bail!("nothing is carried after {LIMIT:?}")
}

fn tries(bed: &Bed) -> bool {
    let (pod, address): (_, SocketAddr) = (bed.pod(), bed.https());
    let asked = pod.enter(|| {
        let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        std::io::Write::write_all(&mut stream, b"?")?;
        std::io::Read::read_exact(&mut stream, &mut [0; 1])
    });
    matches!(asked, Ok(Ok(())))
}

fn link(bed: &Bed, up: bool) -> Result<()> {
    let mut ip = Command::new("ip");
    ip.args(["link", "set", "eth0", if up { "up" } else { "down" }]);
    run_in(&bed.server(), &mut ip)?;
    if up {
        // Routes go with the device.
        let mut route = Command::new("ip");
        route.args([
            "route",
            "replace",
            "default",
            "via",
            "198.51.100.1",
            "dev",
            "eth0",
            "onlink",
        ]);
        run_in(&bed.server(), &mut route)?;
    }
    Ok(())
}

#[test]
fn a_killed_server_is_back_at_once() -> Result<()> {
    let bed = Bed::new()?;
    bed.echo(9443)?;
    bed.manifests(&Object::default())?;
    let _node = bed.start_node()?;
    let mut server = bed.start_server()?;
    bed.wait_until_up()?;
    server.end(Signal::SIGKILL, LIMIT)?;
    let _server = bed.start_server()?;
    let took = until_it_carries(&bed)?;
    ensure!(took < Duration::from_secs(5), "{took:?}");
    Ok(())
}

/// A new process takes the node's port while the node still believes in the old one.
#[test]
fn a_server_that_vanished_does_not_keep_its_port() -> Result<()> {
    let bed = Bed::new()?;
    bed.echo(9443)?;
    bed.manifests(&Object::default())?;
    let _node = bed.start_node()?;
    let mut old = bed.start_server()?;
    bed.wait_until_up()?;
    // Alive for the kernel, dead for everybody else.
    old.signal(Signal::SIGSTOP)?;
    std::fs::remove_file(bed.path("server.sock"))?;
    let _new = bed.start_server()?;
    bed.wait_until_up()?;
    let took = until_it_carries(&bed)?;
    ensure!(took < Duration::from_secs(2), "{took:?}");
    old.signal(Signal::SIGCONT)?;
    old.end(Signal::SIGKILL, LIMIT)?;
    Ok(())
}

#[test]
fn a_rebooted_node_is_found_again() -> Result<()> {
    let bed = Bed::new()?;
    bed.echo(9443)?;
    bed.manifests(&Object::default())?;
    let mut node = bed.start_node()?;
    let _server = bed.start_server()?;
    bed.wait_until_up()?;
    node.end(Signal::SIGKILL, LIMIT)?;
    bed.wait("down", |tunnel| {
        tunnel.get("health") == Some(&"down".into())
    })?;
    let _node = bed.start_node()?;
    let took = until_it_carries(&bed)?;
    ensure!(took < Duration::from_secs(12), "{took:?}");
    Ok(())
}

/// A link that is cut without a word: found out within 5 s, and whole within 2 s of its return.
#[test]
fn a_silent_cut_is_found_out_and_healed() -> Result<()> {
    let bed = Bed::new()?;
    bed.echo(9443)?;
    bed.manifests(&Object::default())?;
    let _node = bed.start_node()?;
    let _server = bed.start_server()?;
    bed.wait_until_up()?;
    link(&bed, false)?;
    let (_, found) = bed.wait("down", |tunnel| {
        tunnel.get("health") == Some(&"down".into())
    })?;
    link(&bed, true)?;
    let healed = until_it_carries(&bed)?;
    ensure!(found < Duration::from_secs(5), "found out after {found:?}");
    ensure!(healed < Duration::from_secs(2), "healed after {healed:?}");
    Ok(())
}

#[test]
fn a_restarted_sshd_is_found_again() -> Result<()> {
    let bed = Bed::new()?;
    bed.echo(9443)?;
    bed.manifests(&Object::openssh())?;
    let mut sshd = bed.start_sshd("")?;
    let _server = bed.start_server()?;
    bed.wait_until_up()?;
    sshd.end(Signal::SIGTERM, LIMIT)?;
    // Its children go on without it, as after a restart of the service: the port stays taken.
    let _sshd = bed.start_sshd("")?;
    bed.ask("server", &["reconnect"])?;
    let more = |tunnel: &Value| {
        let ready = tunnel.pointer("/figures/ready").and_then(Value::as_u64);
        ready >= Some(2) && tunnel.get("health") == Some(&"up".into())
    };
    bed.wait("up again", more)?;
    until_it_carries(&bed)?;
    Ok(())
}

/// Reconnects on purpose, while connections come and go and one stays: none fails.
#[test]
fn no_connection_fails_over_a_planned_reconnect() -> Result<()> {
    let bed = Bed::new()?;
    bed.echo(9443)?;
    bed.manifests(&Object::default())?;
    let _node = bed.start_node()?;
    let _server = bed.start_server()?;
    bed.wait_until_up()?;
    let mut long = bed.connect(&bed.pod(), bed.https())?;
    bed.round_trip(&mut long, b"before")?;
    let stop = Arc::new(AtomicBool::new(false));
    let (pod, address) = (bed.pod(), bed.https());
    let seen = Arc::clone(&stop);
    let load = pod.thread(move || {
        let (mut good, mut bad) = (0_u32, Vec::new());
        while !seen.load(Ordering::Relaxed) {
            let one = || -> std::io::Result<()> {
                let mut stream = std::net::TcpStream::connect_timeout(&address, LIMIT)?;
                stream.set_read_timeout(Some(LIMIT))?;
                std::io::Write::write_all(&mut stream, b"?")?;
                std::io::Read::read_exact(&mut stream, &mut [0; 1])
            };
            match one() {
                Ok(()) => good += 1,
                Err(error) => bad.push(error.to_string()),
            }
        }
        Ok((good, bad))
    });
    for round in 1..=3_u64 {
        bed.ask("server", &["reconnect"])?;
        bed.wait("fresh", |tunnel| {
            let ready = tunnel.pointer("/figures/ready").and_then(Value::as_u64);
            ready >= Some(2 + 2 * round)
        })?;
        sleep(Duration::from_millis(300));
        bed.round_trip(&mut long, b"still there")?;
    }
    stop.store(true, Ordering::Relaxed);
    let (good, bad) = load.join().ok().context("the load broke")??;
    ensure!(
        bad.is_empty(),
        "{} of {} failed: {:?}",
        bad.len(),
        good,
        bad.first()
    );
    ensure!(good > 50, "only {good} connections");
    Ok(())
}

/// The return proxy moves to another node when the manifests say so, and no connection is cut.
#[test]
fn another_node_takes_over() -> Result<()> {
    let bed = Bed::new()?;
    bed.echo(9443)?;
    let object = Object::default().with("hostKey: {policy: accept-new, file: /dev/null}");
    let object = Object {
        more: object
            .more
            .replace("/dev/null", &bed.path("learnt").display().to_string()),
        ..object
    };
    bed.manifests(&object)?;
    let _node = bed.start_node()?;
    let mut command = Command::new(proxy_tests::lab::cluster::binary()?);
    command.arg("--socket").arg(bed.path("node2.sock"));
    command.args(["tunnel", "node", "--node", "node2", "--manifests"]);
    command.arg(bed.path("manifests"));
    let _second = bed
        .world()
        .start(&bed.world().room("node2"), command, "tunnel-node2")?;
    let _server = bed.start_server()?;
    bed.wait_until_up()?;
    let mut long = bed.connect(&bed.pod(), bed.https())?;
    bed.round_trip(&mut long, b"before")?;
    let moved = Object {
        labelled: vec![2],
        ..object
    };
    bed.manifests(&moved)?;
    let second = proxy_tests::lab::layout::node(2, proxy_tests::lab::layout::Family::V4);
    let to = SocketAddr::new(second, proxy_tests::tunnel::bed::HTTPS);
    let start = Instant::now();
    loop {
        let pod = bed.pod();
        if proxy_tests::tunnel::bed::connects(&pod, to) {
            break;
        }
        ensure!(start.elapsed() < LIMIT, "node2 does not listen");
        sleep(Duration::from_millis(50));
    }
    let mut fresh = bed.connect(&bed.pod(), to)?;
    bed.round_trip(&mut fresh, b"by node2")?;
    bed.round_trip(&mut long, b"still by node1")?;
    Ok(())
}
