//! TCP between client and backend: both on one CPU, both in this process, so that the process's
//! CPU time is what both ends and everything between them cost.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    rules::ENDPOINT_PORT,
    world::{CLIENT, ENDPOINTS, World},
};
use crate::bench::measure::{Spread, nanoseconds, pin, process_time};

/// How long a client waits before it gives up on a datapath.
const PATIENCE: Duration = Duration::from_secs(3);

/// First byte of a connection: what the client wants.
const ECHO: u8 = b'e';
const STREAM: u8 = b's';

/// Bytes that a stream is written and read by.
const CHUNK: usize = 128 * 1024;

/// Starts the servers behind the service's endpoints: for TCP, one connection at a time, and for UDP.
/// They serve until the process ends.
pub fn serve(world: &World, cpu: usize) -> Result<()> {
    for endpoint in ENDPOINTS {
        let socket = world
            .backend
            .enter(|| UdpSocket::bind((endpoint, ENDPOINT_PORT)))?
            .with_context(|| format!("opening a socket at {endpoint}"))?;
        thread::spawn(move || echo(&socket));
    }
    let listener = world
        .backend
        .enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, ENDPOINT_PORT)))?
        .context("listening in the backend's namespace")?;
    thread::spawn(move || -> Result<()> {
        pin(cpu)?;
        let mut chunk = vec![0; CHUNK];
        for stream in listener.incoming() {
            // A client that went away is no reason to stop.
            if let Err(error) = stream.and_then(|stream| answer(stream, &mut chunk)) {
                tracing::debug!(%error, "a benchmark connection ended");
            }
        }
        Ok(())
    });
    Ok(())
}

fn echo(socket: &UdpSocket) -> std::io::Result<()> {
    let mut datagram = [0; 64];
    loop {
        let (length, from) = socket.recv_from(&mut datagram)?;
        socket.send_to(datagram.get(..length).unwrap_or_default(), from)?;
    }
}

/// Opens `flows` flows of UDP from as many ports of the client, each by two datagrams and their
/// answers: from then on every connection tracker takes them for established.
pub fn open_udp(world: &World, to: SocketAddr, first_port: u32, flows: u32) -> Result<()> {
    world.client.enter(|| -> Result<()> {
        for port in first_port..first_port + flows {
            let socket =
                UdpSocket::bind((CLIENT, u16::try_from(port)?)).context("client's socket")?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            for _ in 0..2 {
                socket.send(b"open").context("sending")?;
                socket
                    .recv(&mut [0; 64])
                    .with_context(|| format!("no answer from {to} to UDP"))?;
            }
        }
        Ok(())
    })?
}

/// `TcpExtTCPBacklogCoalesce` of the backend's namespace (`tcp_add_backlog` in `net/ipv4/tcp_ipv4.c`).
pub fn merged(world: &World) -> Result<u64> {
    let text = world
        .backend
        .enter(|| fs::read_to_string("/proc/thread-self/net/netstat"))??;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, counts) = lines.next().zip(lines.next()).context("no line TcpExt")?;
    let mut pairs = names.split(' ').zip(counts.split(' '));
    let found = pairs.find(|(name, _)| *name == "TCPBacklogCoalesce");
    let (_, count) = found.context("no counter TCPBacklogCoalesce")?;
    Ok(count.parse()?)
}

fn answer(mut stream: TcpStream, chunk: &mut [u8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0; 1];
    if stream.read(&mut byte)? == 0 {
        return Ok(());
    }
    if byte == [ECHO] {
        while stream.read(&mut byte)? == 1 {
            stream.write_all(&byte)?;
        }
        return Ok(());
    }
    let mut length = [0; 8];
    loop {
        match stream.read_exact(&mut length) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        let mut left = u64::from_be_bytes(length);
        while left > 0 {
            let read = stream.read(chunk)?;
            if read == 0 {
                return Ok(());
            }
            left = left.saturating_sub(read as u64);
        }
        stream.write_all(&[STREAM])?;
    }
}

/// A client of one world.
#[derive(Debug)]
pub struct Client<'w> {
    world: &'w World,
    to: SocketAddr,
    cpu: usize,
}

impl<'w> Client<'w> {
    /// A client in `world` that calls `to`.
    #[must_use]
    pub fn new(world: &'w World, to: SocketAddr, cpu: usize) -> Self {
        Self { world, to, cpu }
    }

    /// Median time of a request of one byte and its answer, nanoseconds.
    pub fn round_trip(&self, requests: u32) -> Result<f64> {
        self.on_cpu(|| {
            let mut stream = self.connect(ECHO)?;
            let mut byte = [ECHO];
            let mut times = Vec::with_capacity(requests as usize);
            for request in 0..requests + requests / 8 {
                let start = Instant::now();
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte)?;
                // The first ones warm caches up.
                if request >= requests / 8 {
                    times.push(nanoseconds(start.elapsed()));
                }
            }
            Ok(Spread::of(times)?.median)
        })
    }

    /// CPU time of a connection that carries one request and one answer, nanoseconds.
    pub fn connections(&self, connections: u32) -> Result<f64> {
        self.on_cpu(|| {
            let mut byte = [ECHO];
            let before = process_time()?;
            for _ in 0..connections {
                let mut stream = self.connect(ECHO)?;
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte)?;
            }
            Ok((process_time()? - before) / f64::from(connections))
        })
    }

    /// CPU time per byte of a stream of `mebibytes` that follow `warm_up` others, nanoseconds.
    pub fn stream(&self, warm_up: u32, mebibytes: u32) -> Result<f64> {
        self.on_cpu(|| {
            let mut stream = self.connect(STREAM)?;
            let chunk = vec![0; CHUNK];
            send(&mut stream, &chunk, warm_up)?;
            let before = process_time()?;
            send(&mut stream, &chunk, mebibytes)?;
            let bytes = f64::from(mebibytes) * 1024.0 * 1024.0;
            Ok((process_time()? - before) / bytes)
        })
    }

    fn on_cpu<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.world
            .client
            .enter(|| {
                pin(self.cpu)?;
                work()
            })?
            .with_context(|| format!("TCP to {} in {}", self.to, self.world.client.name()))
    }

    fn connect(&self, want: u8) -> Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&self.to, PATIENCE).context("connecting")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(&[want]).context("sending")?;
        Ok(stream)
    }
}

fn send(stream: &mut TcpStream, chunk: &[u8], mebibytes: u32) -> Result<()> {
    let length = u64::from(mebibytes) << 20;
    stream.write_all(&length.to_be_bytes())?;
    for _ in 0..length / chunk.len() as u64 {
        stream.write_all(chunk)?;
    }
    let mut done = [0];
    stream
        .read_exact(&mut done)
        .context("waiting for the end of a stream")?;
    ensure!(done == [STREAM], "the server speaks another protocol");
    Ok(())
}
