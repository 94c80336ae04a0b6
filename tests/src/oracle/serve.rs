//! The servers in pods: each answers with its pod and port, and the client that it saw.

use std::{
    net::{IpAddr, SocketAddr},
    sync::mpsc,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};

use crate::lab::namespace::Namespace;

/// Serves in a namespace, for as long as this process runs; returns once all servers listen.
pub fn serve(namespace: &Namespace, pod: &str, addresses: Vec<SocketAddr>) -> Result<()> {
    let (ready, listening) = mpsc::channel();
    let pod = pod.to_owned();
    let thread = namespace.thread(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let mut servers = JoinSet::new();
            for at in addresses {
                let stream = TcpListener::bind(at).await;
                let stream = stream.with_context(|| format!("listening at {at}"))?;
                let datagram = UdpSocket::bind(at).await?;
                let name = format!("{pod}:{}", at.port());
                servers.spawn(streams(stream, name.clone()));
                servers.spawn(datagrams(datagram, name));
            }
            ready.send(())?;
            while servers.join_next().await.is_some() {}
            Ok(())
        })
    });
    if listening.recv().is_err() {
        let ended = thread.join().ok().context("a server's thread panicked")?;
        ended.context("a server does not listen")?;
    }
    Ok(())
}

fn answer(name: &str, client: IpAddr) -> Vec<u8> {
    format!("{name} {client}\n").into_bytes()
}

async fn streams(listener: TcpListener, name: String) {
    loop {
        if let Ok((mut stream, from)) = listener.accept().await {
            let answer = answer(&name, from.ip());
            tokio::spawn(async move {
                // Who has gone away needs no answer.
                if stream.write_all(&answer).await.is_ok() {
                    let mut rest = Vec::new();
                    let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await;
                }
            });
        }
    }
}

async fn datagrams(socket: UdpSocket, name: String) {
    let mut buffer = [0; 128];
    loop {
        // An ICMP error for an earlier answer is no reason to end.
        if let Ok((_, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&answer(&name, from.ip()), from).await;
        }
    }
}
