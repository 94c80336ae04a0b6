//! A path that takes time, without the kernel's help: the server's connections to the node's address
//! end in a relay, which hands on what it gets so much later.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{
    lab::namespace::Namespace,
    tunnel::bed::{Bed, SSH, run_in},
};

/// Bytes that are read at once.
const PART: usize = 256 * 1024;

/// Parts that may be under way: more than the path's rate times its delay.
const UNDER_WAY: usize = 512;

/// Begins: so much each way. It goes on for as long as this process.
pub(super) fn begin(bed: &Bed, one_way: Duration) -> Result<()> {
    // The server believes that the node's address is its own.
    let address = bed.node_address();
    let mut ip = Command::new("ip");
    run_in(
        &bed.server(),
        ip.args(["address", "add", &format!("{address}/32"), "dev", "lo"]),
    )?;
    let here = SocketAddr::new(address, SSH);
    let listener = bed.server().enter(|| TcpListener::bind(here))?;
    let listener = listener.context("listening in the node's place")?;
    // The router's way to the node is the real one.
    let outside = bed.world().room("router");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Err(error) = relay(&stream, here, &outside, one_way) {
                tracing::warn!(%error, "the relay does not reach the node");
            }
        }
    });
    Ok(())
}

fn relay(near: &TcpStream, to: SocketAddr, by: &Namespace, one_way: Duration) -> Result<()> {
    let far = by.enter(|| TcpStream::connect(to))??;
    for (from, into) in [
        (near.try_clone()?, far.try_clone()?),
        (far.try_clone()?, near.try_clone()?),
    ] {
        from.set_nodelay(true)?;
        let (send, receive) = sync_channel(UNDER_WAY);
        thread::spawn(move || read(from, &send));
        thread::spawn(move || write(into, &receive, one_way));
    }
    Ok(())
}

fn read(mut from: TcpStream, send: &SyncSender<(Instant, Vec<u8>)>) {
    loop {
        let mut part = vec![0; PART];
        match from.read(&mut part) {
            Ok(count @ 1..) => {
                part.truncate(count);
                if send.send((Instant::now(), part)).is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}

fn write(mut to: TcpStream, receive: &Receiver<(Instant, Vec<u8>)>, one_way: Duration) {
    while let Ok((at, part)) = receive.recv() {
        thread::sleep((at + one_way).saturating_duration_since(Instant::now()));
        if to.write_all(&part).is_err() {
            break;
        }
    }
    // Fails if it is over already.
    let _ = to.shutdown(Shutdown::Both);
}
