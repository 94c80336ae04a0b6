//! What must not be: other keys, other ports, other clients, two return proxies.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command, thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use proxy_tests::{
    lab::namespace::Namespace,
    tunnel::bed::{Bed, HTTPS, Object, SSH, connects},
};
use serde_json::{Value, json};

fn cause(tunnel: &Value) -> &str {
    let cause = tunnel.pointer("/sessions/0/cause").and_then(Value::as_str);
    cause.unwrap_or_default()
}

/// The tunnel stays down for this cause, with these words, and nothing listens.
fn stays_down(bed: &Bed, because: &str, words: &str) -> Result<()> {
    let (tunnel, _) = bed.wait(because, |tunnel| cause(tunnel) == because)?;
    let message = tunnel
        .pointer("/sessions/0/message")
        .and_then(Value::as_str);
    let message = message.unwrap_or_default();
    ensure!(message.contains(words), "{message}");
    ensure!(tunnel.get("health") == Some(&json!("down")), "{tunnel}");
    ensure!(!connects(&bed.pod(), bed.https()), "the node listens");
    Ok(())
}

#[test]
fn a_wrong_key_and_then_the_right_one_without_a_restart() -> Result<()> {
    let bed = Bed::new()?;
    bed.echo(9443)?;
    bed.manifests(&Object {
        key: "mine".to_owned(),
        ..Object::default()
    })?;
    fs::copy(bed.path("foreign"), bed.path("mine"))?;
    let _node = bed.start_node()?;
    let _server = bed.start_server()?;
    stays_down(&bed, "authentication", "does not accept user cyclecloud")?;
    let dials = || -> Result<u64> {
        let tunnel = bed.tunnel()?;
        Ok(tunnel
            .pointer("/figures/dials")
            .and_then(Value::as_u64)
            .unwrap_or_default())
    };
    // It does not hammer at the door.
    let before = dials()?;
    sleep(Duration::from_secs(3));
    ensure!(dials()? == before, "{} dials in 3 s", dials()? - before);
    fs::copy(bed.path("key"), bed.path("new"))?;
    fs::set_permissions(bed.path("new"), fs::Permissions::from_mode(0o600))?;
    fs::rename(bed.path("new"), bed.path("mine"))?;
    let (_, took) = bed.wait_until_up()?;
    ensure!(
        took < Duration::from_secs(5),
        "{took:?} after the key was changed"
    );
    Ok(())
}

#[test]
fn a_wrong_user() -> Result<()> {
    let bed = Bed::new()?;
    bed.manifests(&Object::default())?;
    let _node = bed.start_node()?;
    let mut ssh = bed.ssh("somebody", &[]);
    let output = bed.server().output(&mut ssh)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && error.contains("Permission denied"),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_wrong_host_key() -> Result<()> {
    let bed = Bed::new()?;
    let foreign = fs::read_to_string(bed.path("foreign.pub"))?;
    let line = format!("[{}]:{SSH} {foreign}", bed.node_address());
    fs::write(bed.path("known_hosts"), line)?;
    bed.manifests(&Object::default())?;
    let _node = bed.start_node()?;
    let _server = bed.start_server()?;
    stays_down(&bed, "host-key", "has another")
}

#[test]
fn a_revoked_host_key() -> Result<()> {
    let bed = Bed::new()?;
    let known = fs::read_to_string(bed.path("known_hosts"))?;
    let key = fs::read_to_string(bed.path("host.pub"))?;
    fs::write(bed.path("known_hosts"), format!("{known}@revoked * {key}"))?;
    bed.manifests(&Object::default())?;
    let _node = bed.start_node()?;
    let _server = bed.start_server()?;
    stays_down(&bed, "host-key", "is revoked")
}

/// A host certificate of OpenSSH's, and an authority in `known_hosts`.
#[test]
fn a_host_certificate_is_enough_if_its_authority_is_trusted() -> Result<()> {
    let bed = Bed::new()?;
    bed.echo(9443)?;
    let mut sign = Command::new("ssh-keygen");
    sign.arg("-s").arg(bed.path("other"));
    sign.args(["-h", "-I", "node1", "-n", &bed.node_address().to_string()]);
    proxy_tests::tunnel::bed::run(sign.arg(bed.path("host.pub")))?;
    let authority = fs::read_to_string(bed.path("other.pub"))?;
    fs::write(
        bed.path("known_hosts"),
        format!("@cert-authority * {authority}"),
    )?;
    bed.manifests(&Object::openssh())?;
    let certificate = format!("HostCertificate {}", bed.path("host-cert.pub").display());
    let _sshd = bed.start_sshd(&certificate)?;
    let _server = bed.start_server()?;
    bed.wait_until_up()?;
    Ok(())
}

#[test]
fn a_key_that_others_may_read() -> Result<()> {
    let bed = Bed::new()?;
    bed.manifests(&Object::default())?;
    fs::set_permissions(bed.path("key"), fs::Permissions::from_mode(0o644))?;
    let _node = bed.start_node()?;
    let _server = bed.start_server()?;
    stays_down(&bed, "key", "has mode 0644")
}

/// None, two, and then one: what is wrong is told with the nodes' names, and nothing is dialled.
#[test]
fn exactly_one_node_is_the_return_proxy() -> Result<()> {
    let bed = Bed::new()?;
    bed.echo(9443)?;
    let with = |labelled: &[u8]| Object {
        labelled: labelled.to_vec(),
        ..Object::default()
    };
    bed.manifests(&with(&[1]))?;
    let _node = bed.start_node()?;
    bed.manifests(&with(&[]))?;
    let _server = bed.start_server()?;
    let problem = |words: &str| -> Result<()> {
        for _ in 0..500 {
            let report = bed.ask("server", &["status"]).unwrap_or_default();
            if report
                .get("problems")
                .is_some_and(|all| all.to_string().contains(words))
            {
                let tunnels = report.get("tunnels").and_then(Value::as_array);
                ensure!(tunnels.is_some_and(Vec::is_empty), "{report}");
                return Ok(());
            }
            sleep(Duration::from_millis(20));
        }
        anyhow::bail!(
            "nobody says {words:?}: {:?}",
            bed.ask("server", &["status"])
        )
    };
    problem("no node is labelled")?;
    bed.manifests(&with(&[1, 2]))?;
    problem("nodes node1, node2 are labelled")?;
    ensure!(!connects(&bed.pod(), bed.https()));
    bed.manifests(&with(&[1]))?;
    bed.wait_until_up()?;
    ensure!(connects(&bed.pod(), bed.https()));
    // And back: what ran is ended.
    bed.manifests(&with(&[1, 2]))?;
    problem("nodes node1, node2 are labelled")
}

/// The node's end offers ports and nothing else.
#[test]
fn no_shell_no_command_no_other_port_no_other_direction() -> Result<()> {
    let bed = Bed::new()?;
    bed.echo(9443)?;
    bed.manifests(&Object::default())?;
    let _node = bed.start_node()?;
    let server = bed.server();
    let fails = |options: &[&str], words: &str| -> Result<()> {
        let mut ssh = Command::new("timeout");
        ssh.args(["20", "ssh", "-F", "none", "-p", &SSH.to_string(), "-i"])
            .arg(bed.path("key"))
            .args([
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
            ])
            .args(["-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"])
            .args(["-o", "ExitOnForwardFailure=yes"])
            .args(options);
        let output = server.output(&mut ssh)?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{options:?} went well");
        ensure!(error.contains(words), "{options:?}: {error}");
        Ok(())
    };
    let node = format!("cyclecloud@{}", bed.node_address());
    fails(&[&node, "id"], "exec request failed")?;
    fails(&["-T", &node], "shell request failed")?;
    fails(&["-s", &node, "sftp"], "subsystem request failed")?;
    fails(
        &["-N", "-R", "*:37142:127.0.0.1:9443", &node],
        "remote port forwarding failed",
    )?;
    fails(
        &["-N", "-R", "0:127.0.0.1:9443", &node],
        "remote port forwarding failed",
    )?;
    fails(
        &["-N", "-R", "/tmp/no.sock:127.0.0.1:9443", &node],
        "forwarding failed",
    )?;
    fails(
        &["-W", "127.0.0.1:22", &node],
        "administratively prohibited",
    )?;
    let report = bed.ask("node", &["status"])?;
    let refused = report
        .pointer("/endpoint/not_offered")
        .and_then(Value::as_u64);
    ensure!(refused >= Some(7), "{report}");
    Ok(())
}

/// Only the cluster's nodes and pods may use it.
#[test]
fn a_client_from_outside_is_refused_and_counted() -> Result<()> {
    let bed = Bed::new()?;
    bed.echo(9443)?;
    bed.manifests(&Object::default())?;
    let _node = bed.start_node()?;
    let _server = bed.start_server()?;
    bed.wait_until_up()?;
    let ask = |from: &Namespace| -> Result<()> {
        let mut stream = bed.connect(from, bed.https())?;
        bed.round_trip(&mut stream, b"hello").map(drop)
    };
    ask(&bed.pod())?;
    ask(&bed.world().room("node2"))?;
    // The server's own address is none of the cluster's.
    ensure!(ask(&bed.server()).is_err(), "an outsider was served");
    let report = bed.ask("node", &["status"])?;
    let refused = report.pointer(&format!("/endpoint/forwards/{HTTPS}/refused/source"));
    ensure!(refused == Some(&json!(1)), "{report}");
    Ok(())
}

/// `sshd` says that it listens, and does so on its loopback alone.
#[test]
fn a_listener_on_the_loopback_is_found_out() -> Result<()> {
    let bed = Bed::new()?;
    bed.echo(9443)?;
    bed.manifests(&Object::openssh())?;
    let _sshd = bed.start_sshd("GatewayPorts no\nAllowTcpForwarding yes")?;
    let _server = bed.start_server()?;
    let state = |tunnel: &Value| {
        let state = tunnel.pointer("/sessions/0/state/state");
        state == Some(&json!("degraded"))
    };
    let (tunnel, _) = bed.wait("degraded", state)?;
    ensure!(tunnel.get("health") == Some(&json!("degraded")), "{tunnel}");
    ensure!(!connects(&bed.pod(), bed.https()));
    ensure!(
        bed.counted(HTTPS, "opened")? == 0,
        "the probe reached the server"
    );
    Ok(())
}

#[test]
fn a_template_says_which_node() -> Result<()> {
    let bed = Bed::new()?;
    bed.echo(9443)?;
    bed.manifests(&Object::default())?;
    let text = fs::read_to_string(bed.path("manifests/all.yaml"))?;
    let nodes = text
        .split("apiVersion: causeway.dev")
        .next()
        .unwrap_or_default();
    let node = bed.start_node()?;
    fs::create_dir_all(bed.path("nodes"))?;
    fs::write(bed.path("nodes/nodes.yaml"), nodes)?;
    let template = |more: &str| {
        let key = bed.path("key").display().to_string();
        let text = format!(
            "[cluster lab]\n[[node node1]]\nIsReturnProxy = true\nKeyPairLocation = {key}\n{more}"
        );
        fs::write(bed.path("lab.txt"), text)
    };
    template("[[node node2]]\nIsReturnProxy = true\n")?;
    let mut command = Command::new(proxy_tests::lab::cluster::binary()?);
    command.arg("--socket").arg(bed.path("server.sock"));
    command
        .arg("tunnel")
        .arg("--manifests")
        .arg(bed.path("nodes"));
    command.arg("--template").arg(bed.path("lab.txt"));
    command.arg("--known-hosts").arg(bed.path("known_hosts"));
    let _server = bed.world().start(&bed.server(), command, "tunnel-server")?;
    for _ in 0..500 {
        let report = bed.ask("server", &["status"]).unwrap_or_default();
        if report
            .to_string()
            .contains("nodes node1, node2 have IsReturnProxy")
        {
            break;
        }
        sleep(Duration::from_millis(20));
    }
    template("")?;
    // A template has SSH at port 22, where nobody is: it is dialled, which is what is asked here.
    let (tunnel, _) = bed.wait("dialled", |tunnel| cause(tunnel) == "unreachable")?;
    ensure!(tunnel.get("name") == Some(&json!("lab")), "{tunnel}");
    ensure!(
        tunnel.get("node") == Some(&json!(bed.node_address().to_string())),
        "{tunnel}"
    );
    drop(node);
    Ok(())
}
