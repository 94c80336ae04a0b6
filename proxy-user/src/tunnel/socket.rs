//! TCP sockets of both ends: their options, what went through them, and how they end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, Socket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

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

/// What went over the connection that carries SSH.
#[derive(Debug, Default)]
pub struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
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
}

/// A connection that counts what goes over it.
#[derive(Debug)]
pub struct Metered {
    stream: TcpStream,
    traffic: Arc<Traffic>,
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
    /// Prepares a connection to carry SSH.
    pub fn new(stream: TcpStream) -> io::Result<(Self, Arc<Traffic>, Cutter)> {
        carry(&stream)?;
        let cutter = Cutter(SockRef::from(&stream).try_clone()?);
        let traffic = Arc::new(Traffic::default());
        let metered = Self {
            stream,
            traffic: Arc::clone(&traffic),
        };
        Ok((metered, traffic, cutter))
    }
}

fn bytes(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let read = bytes(buffer.filled().len() - before);
        self.traffic.received.fetch_add(read, Ordering::Relaxed);
        result
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buffer);
        if let Poll::Ready(Ok(written)) = &result {
            self.traffic
                .sent
                .fetch_add(bytes(*written), Ordering::Relaxed);
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
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
