//! One listening socket and the connections that it has taken.

use std::{io, net::SocketAddr, pin::pin, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

use super::Place;

/// Connections that may be open at one place. Who comes then waits in the kernel's queue.
const CONNECTIONS: usize = 128;

/// A client that has not sent a request for so long is disconnected.
const SILENCE: Duration = Duration::from_secs(30);

/// A connection that has served for so long gets its last answer,
const LONG: Duration = Duration::from_mins(5);

/// for which there is so much time.
const LAST: Duration = Duration::from_secs(10);

/// How many may wait to be taken.
const BACKLOG: i32 = 128;

/// Listens until it is dropped, which ends its connections too.
#[derive(Debug)]
pub(super) struct Listener {
    task: JoinHandle<()>,
}

impl Listener {
    /// Listens at a place. IPv6 sockets of a kernel without IPv6 become IPv4 ones where both families
    /// are meant.
    pub(super) fn open(place: Place, pages: Router) -> io::Result<Self> {
        let socket = match bind(place.address, place.both_families) {
            Err(error) if place.both_families && no_such_family(&error) => {
                let address = SocketAddr::new([0, 0, 0, 0].into(), place.address.port());
                bind(address, false)?
            }
            socket => socket?,
        };
        let listener = TcpListener::from_std(socket.into())?;
        Ok(Self {
            task: tokio::spawn(accept(listener, pages)),
        })
    }

    /// Whether it has ended by itself, which is a defect.
    pub(super) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Closes it; then the place can be had again.
    pub(super) async fn close(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether the kernel has no such addresses at all.
pub(super) fn no_such_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

fn bind(address: SocketAddr, both_families: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(!both_families)?;
    }
    // Connections of a daemon before this one may still be closing.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

async fn accept(listener: TcpListener, pages: Router) {
    let mut connections = JoinSet::new();
    loop {
        let has_room = connections.len() < CONNECTIONS;
        tokio::select! {
            accepted = listener.accept(), if has_room => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(converse(stream, pages.clone()));
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection was not taken");
                    sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn converse(stream: TcpStream, pages: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(SILENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(pages));
    let mut connection = pin!(connection);
    // How a client goes away is its own affair.
    if timeout(LONG, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(LAST, connection).await;
    }
}
