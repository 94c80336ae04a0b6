//! Servers in the pods. Every one answers with its pod's name and the client it saw.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
};

use super::{namespace::Namespace, process::Process, world::World};

/// The port of nginx in every pod.
pub const HTTP_PORT: u16 = 8080;

/// The port, UDP and TCP, of the echo server in every pod.
pub const ECHO_PORT: u16 = 7007;

/// How many connections may wait to be accepted: more than a test ever opens at once.
const BACKLOG: i32 = 4096;

/// Starts nginx and the echo server in pod `number`, and waits until both listen. `lab` is the
/// program that has the command `echo`.
pub fn serve(world: &World, number: u8, lab: &Path) -> Result<Vec<Process>> {
    serve_in(world, &format!("pod{number}"), &world.pod(number), lab)
}

/// The same anywhere; they answer as `pod`.
pub fn serve_in(
    world: &World,
    pod: &str,
    namespace: &Namespace,
    lab: &Path,
) -> Result<Vec<Process>> {
    let directory = world.directory().join(pod);
    let mut nginx = Command::new("nginx");
    nginx
        .arg("-p")
        .arg(&directory)
        .arg("-c")
        .arg(nginx_config(pod, &directory)?)
        .args(["-e", "error.log"]);
    let mut echo = Command::new(lab);
    echo.args(["echo", "--name", pod, "--port", &ECHO_PORT.to_string()]);
    let mut started = Vec::new();
    for (command, name, port) in [(nginx, "nginx", HTTP_PORT), (echo, "echo", ECHO_PORT)] {
        let mut process = world.start(namespace, command, &format!("{pod}-{name}"))?;
        let listens = || {
            let connected = || std::net::TcpStream::connect((Ipv6Addr::LOCALHOST, port)).is_ok();
            namespace.enter(connected).unwrap_or(false)
        };
        process.wait_until(Duration::from_secs(10), listens)?;
        started.push(process);
    }
    Ok(started)
}

/// Writes the configuration of pod `name`'s nginx, and returns where it is.
fn nginx_config(name: &str, directory: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(directory)?;
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {kind};\n"))
        .concat();
    let config = format!(
        "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log error.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n{temporary}  default_type text/plain;\n  server {{\n\
         \x20   listen {HTTP_PORT} backlog={BACKLOG};\n    listen [::]:{HTTP_PORT} backlog={BACKLOG};\n\
         \x20   location / {{ return 200 \"{name} $remote_addr $remote_port\\n\"; }}\n  }}\n}}\n"
    );
    let path = directory.join("nginx.conf");
    std::fs::write(&path, config).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// Runs the echo server, for ever: UDP datagrams and TCP lines, IPv4 and IPv6, each answered with
/// `<name> <client address> <client port> <what came>`.
pub fn run_echo(name: &str, port: u16) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut servers = JoinSet::new();
        let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        for address in any {
            let at = SocketAddr::new(address, port);
            let stream = std::net::TcpListener::from(bound(at, SockType::Stream)?);
            let datagram = std::net::UdpSocket::from(bound(at, SockType::Datagram)?);
            servers.spawn(echo_streams(
                TcpListener::from_std(stream)?,
                name.to_owned(),
            ));
            servers.spawn(echo_datagrams(
                UdpSocket::from_std(datagram)?,
                name.to_owned(),
            ));
        }
        match servers.join_next().await {
            Some(ended) => ended?,
            None => Ok(()),
        }
    })
}

/// A non-blocking socket at one family's wildcard address alone.
fn bound(at: SocketAddr, kind: SockType) -> Result<std::os::fd::OwnedFd> {
    let family = if at.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(family, kind, flags, None)?;
    if at.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    // A burst must not be lost here and then be put down to the network.
    setsockopt(&fd, sockopt::RcvBufForce, &(4 << 20))?;
    bind(
        std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd()),
        &SockaddrStorage::from(at),
    )
    .with_context(|| format!("binding to {at}"))?;
    if kind == SockType::Stream {
        listen(&fd, Backlog::new(BACKLOG)?)?;
    }
    Ok(fd)
}

async fn echo_datagrams(socket: UdpSocket, name: String) -> Result<()> {
    let mut buffer = vec![0; 65_536];
    loop {
        // An ICMP error for an earlier answer is no reason to end.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let payload = buffer.get(..length).unwrap_or_default();
        let mut answer = format!("{name} {} {} ", from.ip(), from.port()).into_bytes();
        answer.extend_from_slice(payload);
        let _ = socket.send_to(&answer, from).await;
    }
}

async fn echo_streams(listener: TcpListener, name: String) -> Result<()> {
    loop {
        let (stream, from) = listener.accept().await?;
        tokio::spawn(echo_lines(
            stream,
            format!("{name} {} {} ", from.ip(), from.port()),
        ));
    }
}

/// Ends with the connection, however that ends.
async fn echo_lines(mut stream: TcpStream, greeting: String) {
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let answer = format!("{greeting}{line}\n");
        if write.write_all(answer.as_bytes()).await.is_err() {
            break;
        }
    }
}
