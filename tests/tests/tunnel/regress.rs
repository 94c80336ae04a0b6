//! The scenarios of OpenSSH's own tests of forwarding (Debian's `openssh-tests`: `forwarding.sh`,
//! `forward-control.sh`, `multiplex.sh`, `rekey.sh`, `try-ciphers.sh`, `channel-timeout.sh`,
//! `connection-timeout.sh`) with Causeway at one end and OpenSSH at the other.

use std::{
    fs,
    io::{ErrorKind, Read as _},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use proxy_tests::{
    lab::process::Process,
    tunnel::bed::{Bed, HTTPS, LIMIT, Object, SSH, connects, text},
};
use serde_json::{Value, json};

/// Sends so many blocks through the tunnel, and reads them back.
fn transfer(bed: &Bed, blocks: u32) -> Result<()> {
    let mut stream = bed.connect(&bed.pod(), bed.https())?;
    for number in 0..blocks {
        let block: Vec<u8> = (0..16_384_u32)
            .flat_map(|word| (word.wrapping_mul(2_654_435_761) ^ number).to_be_bytes())
            .collect();
        let sent = bed.round_trip(&mut stream, &block);
        sent.with_context(|| format!("block {number}"))?;
    }
    Ok(())
}

fn figure(bed: &Bed, name: &str) -> Result<u64> {
    let tunnel = bed.tunnel()?;
    let figure = tunnel.pointer(&format!("/figures/{name}"));
    figure.and_then(Value::as_u64).context("no such figure")
}

/// A world where an echo waits behind the tunnel to OpenSSH's `sshd`.
fn openssh() -> Result<Bed> {
    let bed = Bed::new()?;
    bed.echo(9443)?;
    bed.manifests(&Object::openssh())?;
    Ok(bed)
}

fn stop(programs: Vec<Process>) -> Result<()> {
    for mut program in programs {
        program.end(Signal::SIGTERM, LIMIT)?;
    }
    Ok(())
}

/// `try-ciphers.sh`, `kextype.sh` and `rekey.sh`: everything that we offer and `sshd` has, with new
/// keys each 256 KiB.
#[test]
fn every_algorithm_with_many_rekeys() -> Result<()> {
    let bed = openssh()?;
    for lines in [
        "Ciphers aes128-gcm@openssh.com",
        "Ciphers aes256-gcm@openssh.com",
        "Ciphers chacha20-poly1305@openssh.com",
        "Ciphers aes256-ctr\nMACs hmac-sha2-256-etm@openssh.com",
        "Ciphers aes256-ctr\nMACs hmac-sha2-512-etm@openssh.com",
        "Ciphers aes256-ctr\nMACs hmac-sha2-256",
        "Ciphers aes256-ctr\nMACs hmac-sha2-512",
        "KexAlgorithms curve25519-sha256",
        "KexAlgorithms curve25519-sha256@libssh.org",
        "KexAlgorithms ecdh-sha2-nistp256",
        "KexAlgorithms diffie-hellman-group14-sha256",
        "KexAlgorithms diffie-hellman-group16-sha512",
    ] {
        let sshd = bed.start_sshd(&format!("{lines}\nRekeyLimit 256K"))?;
        let server = bed.start_server()?;
        bed.wait_until_up().context(lines)?;
        transfer(&bed, 32).context(lines)?;
        let (rekeys, dials) = (figure(&bed, "rekeys")?, figure(&bed, "dials")?);
        ensure!(rekeys >= 4, "{lines}: {rekeys} rekeys");
        ensure!(dials == 1, "{lines}: {dials} dials");
        stop(vec![server, sshd])?;
    }
    Ok(())
}

/// `forward-control.sh`: what the administrator of the node allows, in `sshd_config` or with the key,
/// is what the tunnel has; what is not allowed, it says.
#[test]
fn what_sshd_allows() -> Result<()> {
    let bed = openssh()?;
    let keys = fs::read_to_string(bed.path("key.pub"))?;
    for (lines, options, allowed) in [
        ("AllowTcpForwarding yes", "", true),
        ("AllowTcpForwarding remote", "", true),
        ("AllowTcpForwarding local", "", false),
        ("AllowTcpForwarding no", "", false),
        ("DisableForwarding yes", "", false),
        ("PermitListen 37140 37141", "", true),
        ("PermitListen *:37140 *:37141", "", true),
        ("PermitListen 37140", "", false),
        ("PermitListen none", "", false),
        ("", "restrict", false),
        ("", "restrict,port-forwarding", true),
        ("", "no-port-forwarding", false),
        ("", "permitlisten=\"37140\",permitlisten=\"37141\"", true),
        ("", "permitlisten=\"37141\"", false),
        ("PermitListen 37140", "permitlisten=\"37141\"", false),
    ] {
        let what = format!("`{lines}`, `{options}`");
        fs::write(bed.path("authorized"), format!("{options} {keys}"))?;
        let sshd = bed.start_sshd(lines)?;
        let server = bed.start_server()?;
        if allowed {
            bed.wait_until_up().with_context(|| what.clone())?;
            transfer(&bed, 1).with_context(|| what.clone())?;
        } else {
            let blocked = |tunnel: &Value| {
                tunnel.pointer("/sessions/0/state/state") == Some(&json!("blocked"))
            };
            let (tunnel, _) = bed.wait("blocked", blocked).with_context(|| what.clone())?;
            ensure!(
                tunnel.get("health") == Some(&json!("down")),
                "{what}: {tunnel}"
            );
            ensure!(!connects(&bed.pod(), bed.https()), "{what}: it listens");
        }
        stop(vec![server, sshd])?;
    }
    Ok(())
}

/// `channel-timeout.sh`: `sshd` closes a connection that is idle; the tunnel and the next one live on.
#[test]
fn sshd_closes_idle_connections() -> Result<()> {
    let bed = openssh()?;
    let _sshd = bed.start_sshd("ChannelTimeout forwarded-tcpip=2s")?;
    let _server = bed.start_server()?;
    bed.wait_until_up()?;
    let mut idle = bed.connect(&bed.pod(), bed.https())?;
    bed.round_trip(&mut idle, b"hello")?;
    let start = Instant::now();
    let end = idle.read(&mut [0; 1]);
    let took = start.elapsed();
    ensure!(
        matches!(&end, Ok(0))
            || matches!(&end, Err(error) if error.kind() == ErrorKind::ConnectionReset),
        "{end:?}"
    );
    ensure!(took > Duration::from_millis(900), "closed after {took:?}");
    ensure!(took < Duration::from_secs(15), "closed after {took:?}");
    transfer(&bed, 4)?;
    ensure!(figure(&bed, "dials")? == 1, "the session ended");
    Ok(())
}

/// `connection-timeout.sh`: a session that has only listeners is unused for `sshd`, which ends it. The
/// tunnel is there again each time, and one that carries something stays.
#[test]
fn sshd_ends_unused_sessions() -> Result<()> {
    let bed = openssh()?;
    let _sshd = bed.start_sshd("UnusedConnectionTimeout 2s")?;
    let _server = bed.start_server()?;
    bed.wait_until_up()?;
    let start = Instant::now();
    while figure(&bed, "dials")? < 3 {
        ensure!(start.elapsed() < LIMIT, "it is not dialled again");
        sleep(Duration::from_millis(50));
    }
    bed.wait_until_up()?;
    let mut kept = bed.connect(&bed.pod(), bed.https())?;
    bed.round_trip(&mut kept, b"hello")?;
    let dials = figure(&bed, "dials")?;
    for _ in 0..8 {
        sleep(Duration::from_millis(500));
        bed.round_trip(&mut kept, b"still there")?;
    }
    ensure!(figure(&bed, "dials")? == dials, "a used session was ended");
    Ok(())
}

/// `forwarding.sh`: through a chain of a local forward of `ssh` and two remote ones of ours.
#[test]
fn a_chain_of_forwards() -> Result<()> {
    let bed = Bed::new()?;
    bed.echo(5672)?;
    bed.manifests(&Object::openssh())?;
    let _sshd = bed.start_sshd("")?;
    let _server = bed.start_server()?;
    bed.wait_until_up()?;
    // What comes back to the server goes out to the node again, and through the other forward.
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none", "-N", "-T", "-p", &SSH.to_string(), "-i"])
        .arg(bed.path("key"))
        .arg("-o")
        .arg(format!(
            "UserKnownHostsFile={}",
            text(&bed.path("known_hosts"))
        ))
        .args(["-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes"])
        .args(["-L", &format!("127.0.0.1:9443:{}", bed.amqp())])
        .arg(format!("root@{}", bed.node_address()));
    let mut ssh = bed.world().start(&bed.server(), ssh, "ssh-L")?;
    let (server, door) = (bed.server(), ([127, 0, 0, 1], 9443).into());
    ssh.wait_until(LIMIT, || connects(&server, door))?;
    transfer(&bed, 64)?;
    ensure!(bed.counted(HTTPS, "opened")? >= 1);
    Ok(())
}

/// `multiplex.sh`: `ssh` asks our end for a forward, gives it back and asks again, in one session.
#[test]
fn ssh_asks_and_gives_back() -> Result<()> {
    let bed = Bed::new()?;
    bed.echo(9443)?;
    bed.manifests(&Object::default())?;
    let _node = bed.start_node()?;
    let control = text(&bed.path("ctl"));
    let known = format!("UserKnownHostsFile={}", text(&bed.path("known_hosts")));
    let node = format!("cyclecloud@{}", bed.node_address());
    let mut master = Command::new("ssh");
    master
        .args(["-F", "none", "-N", "-T", "-M", "-S", &control])
        .args(["-p", &SSH.to_string(), "-i"])
        .arg(bed.path("key"))
        .args(["-o", &known, "-o", "BatchMode=yes", &node]);
    let mut master = bed.world().start(&bed.server(), master, "ssh-M")?;
    master.wait_until(LIMIT, || bed.path("ctl").exists())?;
    let ask = |what: &str, forward: Option<&str>| -> Result<bool> {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-S", &control, "-O", what]);
        if let Some(forward) = forward {
            ssh.args(["-R", forward]);
        }
        Ok(bed.server().output(ssh.arg(&node))?.status.success())
    };
    let ours = format!("*:{HTTPS}:127.0.0.1:9443");
    for _ in 0..3 {
        ensure!(ask("forward", Some(&ours))?, "no forward");
        transfer(&bed, 8)?;
        ensure!(ask("cancel", Some(&ours))?, "not given back");
        // `ssh` asks for that without waiting for an answer (`channel_request_rforward_cancel_host`).
        silent(&bed)?;
    }
    ensure!(
        !ask("forward", Some("*:37142:127.0.0.1:9443"))?,
        "another port"
    );
    ensure!(ask("forward", Some(&ours))?, "no forward after a refusal");
    transfer(&bed, 8)?;
    ensure!(ask("exit", None)?, "the session does not end");
    silent(&bed)
}

/// Waits until nobody listens on the node any more.
fn silent(bed: &Bed) -> Result<()> {
    let start = Instant::now();
    while connects(&bed.pod(), bed.https()) {
        ensure!(start.elapsed() < LIMIT, "it still listens");
        sleep(Duration::from_millis(50));
    }
    Ok(())
}
