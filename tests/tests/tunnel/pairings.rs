//! Each end with Causeway and with others.

use std::{fs, net::SocketAddr, process::Command};

use anyhow::{Result, ensure};
use proxy_tests::{
    lab::process::Process,
    tunnel::bed::{Bed, LIMIT, Object, SSH, connects, run, text},
};
use serde_json::json;

/// A pod on another node reaches the server, with the server's own certificate.
fn https(bed: &Bed) -> Result<()> {
    let (pod, https) = (bed.pod(), bed.https());
    ensure!(bed.curl(&pod, https, "/")? == "the central server\n");
    let direct = bed.certificate(&bed.server(), "127.0.0.1:9443".parse()?)?;
    let through = bed.certificate(&pod, https)?;
    ensure!(
        direct.contains("Fingerprint") && direct == through,
        "{direct} {through}"
    );
    Ok(())
}

fn nginx() -> Result<(Bed, Process)> {
    let bed = Bed::new()?;
    let nginx = bed.start_nginx("")?;
    Ok((bed, nginx))
}

#[test]
fn both_ends_are_ours() -> Result<()> {
    let (bed, _nginx) = nginx()?;
    bed.manifests(&Object::default())?;
    let _node = bed.start_node()?;
    let _server = bed.start_server()?;
    let (tunnel, _) = bed.wait_until_up()?;
    for leg in ["/sessions/0", "/sessions/1"] {
        ensure!(tunnel.pointer(&format!("{leg}/means")) == Some(&json!("streams")));
        let cipher = tunnel.pointer(&format!("{leg}/cipher"));
        ensure!(
            cipher == Some(&json!("aes128-gcm@openssh.com")),
            "{cipher:?}"
        );
    }
    https(&bed)
}

#[test]
fn ours_dials_openssh() -> Result<()> {
    let (bed, _nginx) = nginx()?;
    bed.manifests(&Object::openssh())?;
    let _sshd = bed.start_sshd("AllowTcpForwarding yes")?;
    let _server = bed.start_server()?;
    let (tunnel, _) = bed.wait_until_up()?;
    ensure!(tunnel.pointer("/sessions/0/means") == Some(&json!("channels")));
    ensure!(
        tunnel.pointer("/sessions/1/state/state") == Some(&json!("stopped")),
        "{tunnel}"
    );
    https(&bed)
}

#[test]
fn openssh_dials_ours() -> Result<()> {
    let (bed, _nginx) = nginx()?;
    bed.manifests(&Object::default())?;
    let _node = bed.start_node()?;
    let _ssh = bed.start_ssh("cyclecloud", &[])?;
    https(&bed)
}

/// Shows that the world itself is right.
#[test]
fn both_ends_are_openssh() -> Result<()> {
    let (bed, _nginx) = nginx()?;
    let _sshd = bed.start_sshd("")?;
    let _ssh = bed.start_ssh("root", &[])?;
    https(&bed)
}

/// The key pair that `CycleCloud` makes, and an `authorized_keys` line that allows two ports and nothing
/// else.
#[test]
fn a_pem_key_and_a_restricted_account() -> Result<()> {
    let (bed, _nginx) = nginx()?;
    let object = Object {
        key: "key.pem".to_owned(),
        ..Object::openssh()
    };
    bed.manifests(&object)?;
    let key = fs::read_to_string(bed.path("key.pem.pub"))?;
    let options = "restrict,port-forwarding,permitlisten=\"*:37140\",permitlisten=\"*:37141\"";
    fs::write(bed.path("authorized"), format!("{options} {key}"))?;
    ensure!(fs::read_to_string(bed.path("key.pem"))?.contains("BEGIN RSA PRIVATE KEY"));
    let _sshd = bed.start_sshd("")?;
    let _server = bed.start_server()?;
    bed.wait_until_up()?;
    https(&bed)
}

#[test]
fn ours_dials_dropbear() -> Result<()> {
    let (bed, _nginx) = nginx()?;
    let host = bed.path("dropbear.key");
    run(Command::new("dropbearkey")
        .args(["-t", "ed25519", "-f"])
        .arg(&host))?;
    let printed = run(Command::new("dropbearkey").arg("-y").arg("-f").arg(&host))?;
    let key = printed
        .lines()
        .find(|line| line.starts_with("ssh-"))
        .unwrap_or_default();
    let pin = format!("hostKey: {{policy: pinned, keys: ['{key}']}}");
    bed.manifests(&Object::openssh().with(&pin))?;
    // Its users' keys are in their homes, so it gets a home of its own for root.
    let home = bed.path("home");
    fs::create_dir_all(home.join(".ssh"))?;
    fs::copy(bed.path("authorized"), home.join(".ssh/authorized_keys"))?;
    let passwd = bed.path("passwd");
    fs::write(
        &passwd,
        format!("root:x:0:0:root:{}:/bin/sh\n", text(&home)),
    )?;
    let script = format!(
        "mount --bind {} /etc/passwd && exec dropbear -F -E -s -a -p {SSH} -r {}",
        text(&passwd),
        text(&host)
    );
    let mut dropbear = Command::new("unshare");
    dropbear.args(["--mount", "sh", "-c", &script]);
    let mut dropbear = bed.world().start(&bed.node(), dropbear, "dropbear")?;
    let (inside, address) = (bed.node(), SocketAddr::new(bed.node_address(), SSH));
    dropbear.wait_until(LIMIT, || connects(&inside, address))?;
    let _server = bed.start_server()?;
    bed.wait_until_up()?;
    https(&bed)
}

#[test]
fn paramiko_dials_ours() -> Result<()> {
    let (bed, _nginx) = nginx()?;
    bed.manifests(&Object::default())?;
    let _node = bed.start_node()?;
    let script = r#"
import sys, socket, threading, paramiko
host, port, key = sys.argv[1:]
t = paramiko.Transport((host, int(port)))
t.connect(username="cyclecloud", pkey=paramiko.Ed25519Key.from_private_key_file(key))
def pump(a, b):
    while True:
        data = a.recv(32768)
        if not data: break
        b.sendall(data)
    try: b.shutdown(1) if isinstance(b, socket.socket) else b.shutdown_write()
    except Exception: pass
def handler(chan, origin, server):
    s = socket.create_connection(("127.0.0.1", 9443))
    for a, b in ((chan, s), (s, chan)):
        threading.Thread(target=pump, args=(a, b), daemon=True).start()
t.request_port_forward("", 37140, handler)
threading.Event().wait()
"#;
    fs::write(bed.path("dial.py"), script)?;
    // Paramiko reads Ed25519 keys in OpenSSH's own format alone, which is ssh-keygen's for them.
    let mut python = Command::new("/usr/bin/python3");
    python
        .arg(bed.path("dial.py"))
        .args([bed.node_address().to_string(), SSH.to_string()])
        .arg(bed.path("key"));
    let mut python = bed.world().start(&bed.server(), python, "paramiko")?;
    let (pod, address) = (bed.pod(), bed.https());
    python.wait_until(LIMIT, || connects(&pod, address))?;
    https(&bed)
}

#[test]
fn the_server_is_told_who_connects() -> Result<()> {
    let bed = Bed::new()?;
    let _nginx = bed.start_nginx("proxy_protocol")?;
    let forwards = "forwards: [{name: https, listen: 37140, target: '127.0.0.1:9443', \
                    proxyProtocol: true}]";
    bed.manifests(&Object::default().with(forwards))?;
    let _node = bed.start_node()?;
    let _server = bed.start_server()?;
    bed.wait_until_up()?;
    let who = bed.curl(&bed.pod(), bed.https(), "/who")?;
    ensure!(who.trim().ends_with(" 10.244.2.13"), "{who}");
    Ok(())
}
