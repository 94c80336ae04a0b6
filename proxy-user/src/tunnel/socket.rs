//! TCP sockets of both ends: their options, what went through them, and how they end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use socket2::{SockRef, Socket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// Data that the peer's kernel has not confirmed for so long ends a connection
/// (`TCP_USER_TIMEOUT`, tcp(7)).
pub const UNCONFIRMED: Duration = Duration::from_secs(5);

/// So much may wait in the kernel that is not yet sent (`TCP_NOTSENT_LOWAT`, tcp(7)): what waits
/// there waits in front of everything that comes later, whichever connection it belongs to.
const NOT_SENT: u32 = 128 * 1024;

/// Options of the connection that carries SSH.
pub fn carry(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(UNCONFIRMED))?;
    socket.set_tcp_notsent_lowat(NOT_SENT)
}

/// Options of a connection that is carried.
pub fn carried(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)
}

/// So much may wait in this process for the kernel to take it, before who has more has to wait.
const BACKLOG: usize = 256 * 1024;

/// The library asks for four bytes first, and then for the rest of a packet. So much is read at once in
/// place of less, since many packets are small.
const AHEAD: usize = 4 * 1024;

/// More than this cannot come together unless something is wrong.
const BACKLOG_LIMIT: usize = 128 * 1024 * 1024;

/// What went over the connection that carries SSH, and what waits to go.
#[derive(Debug, Default)]
pub struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
    backlog: Mutex<Backlog>,
    /// Something waits that was not there before.
    filled: Notify,
    /// There is room again.
    drained: Notify,
}

#[derive(Debug, Default)]
struct Backlog {
    waiting: BytesMut,
    /// Bytes that wait, or are being written.
    bytes: usize,
    closed: bool,
    /// Nobody adds any more.
    finished: bool,
}

impl Traffic {
    /// Bytes from the peer.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes that the kernel has taken for the peer.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn backlog<T>(&self, change: impl FnOnce(&mut Backlog) -> T) -> T {
        change(&mut self.backlog.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until the peer has taken so much that more may be sent.
    pub async fn room(&self) {
        loop {
            let drained = self.drained.notified();
            tokio::pin!(drained);
            // From here on nothing is missed.
            drained.as_mut().enable();
            if self.backlog(|backlog| backlog.bytes < BACKLOG || backlog.closed) {
                return;
            }
            drained.await;
        }
    }

    /// Writes what waits, until the connection ends.
    async fn drain(&self, stream: &TcpStream) {
        loop {
            let filled = self.filled.notified();
            let (mut part, finished) =
                self.backlog(|backlog| (backlog.waiting.split(), backlog.finished));
            if part.is_empty() {
                if finished {
                    // Fails if the peer has ended it already.
                    let _ = SockRef::from(stream).shutdown(std::net::Shutdown::Write);
                    return;
                }
                filled.await;
                continue;
            }
            while !part.is_empty() {
                match stream.try_write(&part) {
                    Ok(written) => {
                        part.advance(written);
                        self.sent.fetch_add(bytes(written), Ordering::Relaxed);
                        self.backlog(|backlog| backlog.bytes -= written);
                        self.drained.notify_waiters();
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if stream.writable().await.is_err() {
                            return self.close();
                        }
                    }
                    Err(_) => return self.close(),
                }
            }
        }
    }

    fn close(&self) {
        self.backlog(|backlog| backlog.closed = true);
        self.drained.notify_waiters();
    }

    /// Takes all of `buffer`: to the kernel if that has room and nothing waits before it.
    fn send(&self, stream: &TcpStream, buffer: &[u8]) -> io::Result<()> {
        let left = self.backlog(|backlog| {
            if backlog.closed || backlog.bytes > BACKLOG_LIMIT {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let mut rest = buffer;
            if backlog.bytes == 0 {
                match stream.try_write(rest) {
                    Ok(written) => {
                        self.sent.fetch_add(bytes(written), Ordering::Relaxed);
                        rest = rest.get(written..).unwrap_or_default();
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            backlog.waiting.extend_from_slice(rest);
            backlog.bytes += rest.len();
            Ok(!rest.is_empty())
        })?;
        if left {
            self.filled.notify_one();
        }
        Ok(())
    }
}

/// A connection that counts what goes over it, and always takes what is written.
///
/// The SSH library waits for its writes and reads nothing meanwhile. Two ends that both have much to
/// send would wait for each other for ever; so what the kernel does not take waits here, and who has
/// data (not the library) is held back by [`Traffic::room`].
#[derive(Debug)]
pub struct Metered {
    stream: Arc<TcpStream>,
    traffic: Arc<Traffic>,
    ahead: BytesMut,
}

/// Ends a connection that somebody else reads and writes.
#[derive(Debug)]
pub struct Cutter(Socket);

impl Cutter {
    /// Ends it: whoever reads sees its end.
    pub fn cut(&self) {
        // Fails if the peer has ended it already.
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.cut();
    }
}

impl Metered {
    /// Prepares a connection to carry SSH. What is returned last is to be run as a task: it writes
    /// what waits, and ends with the connection.
    pub fn new(
        stream: TcpStream,
    ) -> io::Result<(
        Self,
        Arc<Traffic>,
        Cutter,
        impl Future<Output = ()> + Send + use<>,
    )> {
        carry(&stream)?;
        let cutter = Cutter(SockRef::from(&stream).try_clone()?);
        let (stream, traffic) = (Arc::new(stream), Arc::new(Traffic::default()));
        let metered = Self {
            stream: Arc::clone(&stream),
            traffic: Arc::clone(&traffic),
            ahead: BytesMut::new(),
        };
        let drain = {
            let traffic = Arc::clone(&traffic);
            async move { traffic.drain(&stream).await }
        };
        Ok((metered, traffic, cutter, drain))
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        self.traffic.backlog(|backlog| backlog.finished = true);
        self.traffic.filled.notify_one();
    }
}

fn bytes(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

impl Metered {
    /// Reads once the kernel has something; pending until then.
    fn poll_take(
        &self,
        cx: &mut Context<'_>,
        mut read: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match read(&self.stream) {
                Ok(count) => {
                    let received = &self.traffic.received;
                    received.fetch_add(bytes(count), Ordering::Relaxed);
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            if buffer.remaining() >= AHEAD {
                let read =
                    self.poll_take(cx, |stream| stream.try_read(buffer.initialize_unfilled()));
                buffer.advance(ready!(read)?);
                return Poll::Ready(Ok(()));
            }
            let mut ahead = std::mem::take(&mut self.ahead);
            ahead.reserve(AHEAD);
            let read = self.poll_take(cx, |stream| stream.try_read_buf(&mut ahead));
            self.ahead = ahead;
            ready!(read)?;
        }
        let count = self.ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.ahead.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(
            self.traffic
                .send(&self.stream, buffer)
                .map(|()| buffer.len()),
        )
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.traffic.backlog(|backlog| backlog.finished = true);
        self.traffic.filled.notify_one();
        Poll::Ready(Ok(()))
    }
}

/// Makes the close of a connection a reset (RST), as far as the kernel lets us. Whoever is at the
/// other end must not take what was cut off for what is complete.
pub fn reset(stream: &TcpStream) {
    // Fails only if the socket is gone.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// An address as IPv4 if it is one in an IPv6 socket's clothes.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    /// The peer reads nothing: writes go on all the same, data is held back, and all of it arrives in
    /// order once it reads.
    #[tokio::test]
    async fn writes_never_wait_and_data_does() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(near, listener.accept());
        let (mut metered, traffic, _cutter, drain) = Metered::new(near.unwrap()).unwrap();
        tokio::spawn(drain);
        let mut far = far.unwrap().0;
        let mut sent = Vec::new();
        for number in 0..400_u32 {
            let part: Vec<u8> = (0..16_384_u32)
                .flat_map(|i| (i ^ number).to_be_bytes())
                .collect();
            let write = timeout(Duration::from_secs(5), metered.write_all(&part));
            write.await.unwrap().unwrap();
            sent.extend(part);
        }
        let room = timeout(Duration::from_millis(50), traffic.room()).await;
        assert!(room.is_err(), "somebody has taken {} bytes", traffic.sent());
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            all
        });
        timeout(Duration::from_secs(20), traffic.room())
            .await
            .unwrap();
        drop(metered);
        let all = timeout(Duration::from_secs(20), reader)
            .await
            .unwrap()
            .unwrap();
        assert!(all == sent, "{} of {} bytes", all.len(), sent.len());
    }
}
