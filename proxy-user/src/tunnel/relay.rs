//! Carries one connection between a TCP socket and a stream inside of SSH, both ways, until both
//! have ended or one has broken. An end is passed on as an end, a reset as a reset.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use h2::Reason;
use russh::ChannelWriteHalf;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::timeout;

use super::counters::{Count, Forward, Refusal};
use super::memory::Account;
use super::queue::Queue;
use super::socket::{self, Traffic};

/// Bytes that are read at once at first, from a connection that has brought more than it could be
/// given so far, and from one that has brought much.
const READS: [usize; 3] = [4 * 1024, 64 * 1024, 256 * 1024];

/// Reads that were filled to the brim before the next size is used.
const FULL: u32 = 2;

/// A consumer that takes nothing for so long has what waits for it counted against all.
const STUCK: Duration = Duration::from_millis(500);

/// Which way a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Ours is the node: what comes from the socket goes to the server.
    Node,
    /// Ours is the server: what comes from the socket goes to the cluster.
    Server,
}

/// Where bytes from the socket go.
pub enum Outgoing {
    /// A stream that shares a channel with others.
    Stream(h2::SendStream<Bytes>),
    /// A channel of its own, of a session that we dialled.
    Dialled(ChannelWriteHalf<russh::client::Msg>, Arc<Traffic>),
    /// A channel of its own, of a session that we accepted.
    Accepted(ChannelWriteHalf<russh::server::Msg>, Arc<Traffic>),
}

/// Where bytes for the socket come from.
pub enum Incoming {
    /// A stream that shares a channel with others, which the server has not accepted yet.
    Asked(h2::client::ResponseFuture),
    /// A stream that shares a channel with others.
    Stream(h2::RecvStream),
    /// A channel of its own.
    Channel(Queue),
}

impl Outgoing {
    /// Waits until something may be sent, and returns how much of `want`.
    async fn capacity(&mut self, want: usize) -> Result<usize, Refusal> {
        let stream = match self {
            Self::Stream(stream) => stream,
            Self::Dialled(_, traffic) | Self::Accepted(_, traffic) => {
                traffic.room().await;
                return Ok(want);
            }
        };
        stream.reserve_capacity(want);
        while stream.capacity() == 0 {
            match poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(broken(&error)),
                None => return Err(Refusal::Reset),
            }
        }
        Ok(stream.capacity().min(want))
    }

    async fn send(&mut self, bytes: Bytes) -> Result<(), Refusal> {
        match self {
            Self::Stream(stream) => stream
                .send_data(bytes, false)
                .map_err(|error| broken(&error)),
            Self::Dialled(channel, _) => channel.data_bytes(bytes).await.map_err(lost),
            Self::Accepted(channel, _) => channel.data_bytes(bytes).await.map_err(lost),
        }
    }

    async fn finish(&mut self) -> Result<(), Refusal> {
        match self {
            Self::Stream(stream) => stream
                .send_data(Bytes::new(), true)
                .map_err(|error| broken(&error)),
            Self::Dialled(channel, _) => channel.eof().await.map_err(lost),
            Self::Accepted(channel, _) => channel.eof().await.map_err(lost),
        }
    }

    /// Waits until the peer says that it takes no more.
    async fn refused(&mut self) -> Refusal {
        match self {
            Self::Stream(stream) => match poll_fn(|cx| stream.poll_reset(cx)).await {
                Ok(_) => Refusal::Reset,
                Err(error) => broken(&error),
            },
            // A channel's end is seen by who reads from it.
            Self::Dialled(..) | Self::Accepted(..) => std::future::pending().await,
        }
    }

    /// Ends the stream: as whole, or as broken off.
    async fn close(self, whole: bool) {
        match self {
            Self::Stream(mut stream) => {
                if !whole {
                    stream.send_reset(Reason::CANCEL);
                }
            }
            // Fails if the session has gone.
            Self::Dialled(channel, _) => drop(channel.close().await),
            Self::Accepted(channel, _) => drop(channel.close().await),
        }
    }
}

impl Incoming {
    /// The next bytes; none: the end.
    async fn next(&mut self) -> Option<Result<Bytes, Refusal>> {
        if let Self::Asked(answer) = self {
            match answer.await {
                Ok(response) if response.status().is_success() => {
                    *self = Self::Stream(response.into_body());
                }
                Ok(_) => return Some(Err(Refusal::Target)),
                Err(error) => return Some(Err(broken(&error))),
            }
        }
        match self {
            Self::Stream(stream) => {
                let data = poll_fn(|cx| stream.poll_data(cx)).await?;
                Some(data.map_err(|error| broken(&error)))
            }
            Self::Asked(_) => None,
            Self::Channel(queue) => queue.next().await,
        }
    }

    /// The local socket has taken so many bytes: the peer may send as many more.
    fn taken(&mut self, bytes: usize) {
        match self {
            // Fails if the peer has reset the stream, which the next read tells.
            Self::Stream(stream) => drop(stream.flow_control().release_capacity(bytes)),
            Self::Channel(queue) => queue.taken(bytes),
            Self::Asked(_) => {}
        }
    }

    /// Bytes that wait, of which nobody else keeps account.
    fn waiting(&mut self) -> usize {
        match self {
            Self::Stream(stream) => stream.flow_control().used_capacity(),
            Self::Channel(_) | Self::Asked(_) => 0,
        }
    }
}

/// What an error of a stream means for the connection that it carries.
fn broken(error: &h2::Error) -> Refusal {
    match error.reason() {
        Some(Reason::CONNECT_ERROR) => Refusal::Target,
        Some(Reason::ENHANCE_YOUR_CALM) => Refusal::Memory,
        Some(Reason::REFUSED_STREAM) => Refusal::NoSession,
        _ if error.is_reset() => Refusal::Reset,
        _ => Refusal::SessionLost,
    }
}

fn lost(_: russh::Error) -> Refusal {
    Refusal::SessionLost
}

/// What a connection is carried with.
pub struct Relay<'f> {
    /// Its forward's counts.
    pub forward: &'f Forward,
    /// Which end we are.
    pub side: Side,
    /// What waits for the local socket.
    pub account: Account,
    /// Sent to the local socket before everything else: a header that says who connects.
    pub preface: Option<Bytes>,
}

impl Relay<'_> {
    /// Carries. The socket is closed in the end: reset, unless both directions came to their end.
    pub async fn run(
        self,
        mut socket: TcpStream,
        mut outgoing: Outgoing,
        mut incoming: Incoming,
    ) -> Result<(), Refusal> {
        let _open = self.forward.open();
        // A session that ends takes this task with it, and the socket must not look complete then.
        let mut socket = Resetting {
            socket: &mut socket,
            whole: false,
        };
        let result = {
            let (from, to) = socket.socket.split();
            let (sent, received) = match self.side {
                Side::Node => (&self.forward.to_server, &self.forward.to_cluster),
                Side::Server => (&self.forward.to_cluster, &self.forward.to_server),
            };
            let forward = self.forward;
            let out = send(from, &mut outgoing, sent, forward);
            let back = receive(to, &mut incoming, received, self.account, self.preface);
            tokio::try_join!(out, back).map(drop)
        };
        socket.whole = result.is_ok();
        if let Err(why) = result {
            self.forward.refuse(why);
        }
        outgoing.close(result.is_ok()).await;
        result
    }
}

/// A socket that is reset when it is dropped, unless all went well.
struct Resetting<'s> {
    socket: &'s mut TcpStream,
    whole: bool,
}

impl Drop for Resetting<'_> {
    fn drop(&mut self) {
        if !self.whole {
            socket::reset(self.socket);
        }
    }
}

/// From the socket to the stream.
async fn send(
    mut from: ReadHalf<'_>,
    to: &mut Outgoing,
    count: &Count,
    forward: &Forward,
) -> Result<(), Refusal> {
    let mut size = Size::default();
    let mut buffer = BytesMut::new();
    loop {
        // Nothing is held for a connection that has nothing to say.
        tokio::select! {
            ready = from.readable() => ready.map_err(|error| local(&error))?,
            why = to.refused() => return Err(why),
        }
        let began = Instant::now();
        let room = to.capacity(size.bytes()).await?;
        let waited = began.elapsed();
        if waited > Duration::from_millis(1) {
            forward.blocked(waited);
        }
        // The same memory as before, if that has been sent.
        buffer.reserve(room);
        match read(&mut from, &mut buffer, room) {
            Ok(0) => break,
            Ok(bytes) => {
                size.learn(bytes, room);
                count.add_bytes(bytes);
                to.send(buffer.split().freeze()).await?;
                if size.is_least() || bytes < room / 2 {
                    // A connection that says little holds nothing.
                    buffer = BytesMut::new();
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(local(&error)),
        }
    }
    to.finish().await
}

/// Reads at most `room` bytes.
fn read(from: &mut ReadHalf<'_>, buffer: &mut BytesMut, room: usize) -> io::Result<usize> {
    from.try_read_buf(&mut bytes::BufMut::limit(buffer, room))
}

fn local(error: &io::Error) -> Refusal {
    tracing::debug!(%error, "a carried connection broke");
    Refusal::Reset
}

/// From the stream to the socket.
async fn receive(
    mut to: WriteHalf<'_>,
    from: &mut Incoming,
    count: &Count,
    mut account: Account,
    preface: Option<Bytes>,
) -> Result<(), Refusal> {
    if let Some(mut preface) = preface {
        let written = to.write_all_buf(&mut preface).await;
        written.map_err(|error| local(&error))?;
    }
    while let Some(bytes) = from.next().await {
        let mut bytes = bytes?;
        let length = bytes.len();
        while bytes.has_remaining() {
            match to.try_write(&bytes) {
                Ok(written) => bytes.advance(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    writable(&to, from, &mut account, bytes.len()).await?;
                }
                Err(error) => return Err(local(&error)),
            }
        }
        count.add_bytes(length);
        from.taken(length);
    }
    to.shutdown().await.map_err(|error| local(&error))
}

/// Waits for a consumer. What waits for one that has stopped counts against all connections; the
/// one for which there is no room any more is given up.
async fn writable(
    to: &WriteHalf<'_>,
    from: &mut Incoming,
    account: &mut Account,
    pending: usize,
) -> Result<(), Refusal> {
    loop {
        match timeout(STUCK, to.writable()).await {
            Ok(ready) => {
                account.set(0);
                return ready.map_err(|error| local(&error));
            }
            Err(_) if account.set(from.waiting().max(pending)) => {}
            Err(_) => return Err(Refusal::Memory),
        }
    }
}

/// How much to read at once.
#[derive(Debug, Default)]
struct Size {
    step: usize,
    full: u32,
}

impl Size {
    fn bytes(&self) -> usize {
        READS.get(self.step).copied().unwrap_or(READS[0])
    }

    const fn is_least(&self) -> bool {
        self.step == 0
    }

    fn learn(&mut self, read: usize, room: usize) {
        if read == room {
            self.full += 1;
            if self.full >= FULL && self.step + 1 < READS.len() {
                self.step += 1;
                self.full = 0;
            }
        } else if read < room / 8 {
            self.full = 0;
            self.step = self.step.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_grow_with_what_comes_and_shrink_with_what_does_not() {
        let mut size = Size::default();
        let mut seen = vec![size.bytes()];
        for _ in 0..6 {
            size.learn(size.bytes(), size.bytes());
            seen.push(size.bytes());
        }
        let [small, middle, large] = READS;
        assert_eq!(seen, [small, small, middle, middle, large, large, large]);
        size.learn(large / 2, large);
        assert_eq!(size.bytes(), large);
        size.learn(100, large);
        assert_eq!(size.bytes(), middle);
        size.learn(100, middle);
        size.learn(100, small);
        assert_eq!(size.bytes(), small);
    }
}
