//! The node's end: an SSH server that lets one user with one of the configured keys ask for the
//! configured ports, and offers nothing else: no shell, no command, no other direction, no agent.

mod handler;
mod listeners;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::counters::{Forward, ForwardFigures, Refusal};
use super::key::{self, KeyError};
use super::memory::Budget;
use super::socket::{Metered, canonical};
use super::ssh;
use handler::Handler;
use listeners::Listeners;

/// Jobs that wait to be begun.
const JOBS: usize = 256;

/// Connections that are not authenticated yet.
const STRANGERS: usize = 32;

/// Key exchange and authentication may take so long (`LoginGraceTime` of sshd is 120 s).
const LOGIN: Duration = Duration::from_secs(10);

/// Silence of a session after which it is asked for a sign of life; three questions end it.
const KEEPALIVE: Duration = Duration::from_secs(1);

/// What the node offers.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where SSH is served.
    pub ssh: Vec<SocketAddr>,
    /// The one user.
    pub user: String,
    /// The keys that may: a file in the format of `authorized_keys`, read at each attempt.
    pub authorized: PathBuf,
    /// The host key; made if it is not there.
    pub host_key: PathBuf,
    /// Ports that may be asked for.
    pub ports: BTreeSet<u16>,
    /// At which addresses of the node.
    pub bind: Vec<IpAddr>,
    /// Who may connect to them; empty: anybody.
    pub sources: Vec<IpNet>,
    /// Bytes that may wait in this process, of all connections.
    pub memory: usize,
    /// Bytes that may wait for one consumer, where the peer cannot be told to wait.
    pub queue: usize,
    /// The largest window of a stream, bytes.
    pub window: u32,
    /// Bytes after which keys are changed; none: as many as the ciphers allow.
    pub rekey: Option<usize>,
}

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Its host key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Its socket.
    #[error("cannot serve SSH at {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Reading keys was interrupted, as at the end of the process.
    #[error("the host key was not read: {0}")]
    Join(#[from] tokio::task::JoinError),
}

/// Something to be done beside everything else.
type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What all sessions share.
struct Shared {
    jobs: mpsc::Sender<Job>,
    settings: Settings,
    listeners: Listeners,
    forwards: BTreeMap<u16, Arc<Forward>>,
    budget: Budget,
    sessions: AtomicU64,
    /// Requests for what is not offered.
    not_offered: Forward,
}

impl Shared {
    /// Has something done beside everything else, for as long as the endpoint runs.
    async fn run(&self, job: impl Future<Output = ()> + Send + 'static) {
        // Fails when the endpoint stops.
        let _ = self.jobs.send(Box::pin(job)).await;
    }
}

/// The endpoint.
pub struct Endpoint {
    jobs: mpsc::Receiver<Job>,
    shared: Arc<Shared>,
    config: Arc<russh::server::Config>,
    sockets: Vec<TcpListener>,
}

/// How an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// Sessions that carry, by port.
    pub carriers: BTreeMap<u16, usize>,
    /// Figures by port.
    pub forwards: BTreeMap<u16, ForwardFigures>,
    /// Requests for what is not offered.
    pub not_offered: u64,
    /// Bytes that wait.
    pub waiting: usize,
}

/// Answers questions about an endpoint.
#[derive(Clone)]
pub struct EndpointView(Arc<Shared>);

impl EndpointView {
    /// How it is.
    #[must_use]
    pub fn status(&self) -> EndpointStatus {
        let figures = self.0.forwards.iter();
        EndpointStatus {
            carriers: self.0.listeners.carriers(),
            forwards: figures.map(|(port, one)| (*port, one.figures())).collect(),
            not_offered: self.0.not_offered.refused(Refusal::NotOffered),
            waiting: self.0.budget.used(),
        }
    }
}

impl Endpoint {
    /// Reads the host key and binds.
    pub async fn start(settings: Settings) -> Result<Self, EndpointError> {
        let path = settings.host_key.clone();
        let host = tokio::task::spawn_blocking(move || key::host(&path)).await??;
        let config = ssh::server(vec![(*host).clone()], settings.rekey, KEEPALIVE);
        let sockets = settings
            .ssh
            .iter()
            .map(|address| {
                listen(*address).map_err(|source| EndpointError::Listen {
                    address: *address,
                    source,
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let one = |port: &u16| (*port, Arc::new(Forward::default()));
        let forwards = settings.ports.iter().map(one).collect();
        let (sender, jobs) = mpsc::channel(JOBS);
        let shared = Shared {
            jobs: sender,
            listeners: Listeners::default(),
            forwards,
            budget: Budget::new(settings.memory),
            sessions: AtomicU64::new(0),
            not_offered: Forward::default(),
            settings,
        };
        Ok(Self {
            jobs,
            shared: Arc::new(shared),
            config: Arc::new(config),
            sockets,
        })
    }

    /// Access to how it is.
    #[must_use]
    pub fn view(&self) -> EndpointView {
        EndpointView(Arc::clone(&self.shared))
    }

    /// Serves until `stop` turns true.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let strangers = Arc::new(Semaphore::new(STRANGERS));
        let mut sessions = JoinSet::new();
        let mut doors = JoinSet::new();
        let mut connections = JoinSet::new();
        let (sender, mut guests) = mpsc::channel(STRANGERS);
        for socket in self.sockets {
            let sender = sender.clone();
            doors.spawn(async move {
                loop {
                    let guest = accept(&socket).await;
                    if sender.send(guest).await.is_err() {
                        return;
                    }
                }
            });
        }
        loop {
            tokio::select! {
                Some((stream, peer)) = guests.recv() => {
                    let (shared, config) = (Arc::clone(&self.shared), Arc::clone(&self.config));
                    let strangers = Arc::clone(&strangers);
                    sessions.spawn(async move {
                        // One more stranger than there may be is not served at all.
                        let Ok(stranger) = strangers.try_acquire_owned() else {
                            tracing::warn!(%peer, "too many are not authenticated yet: hung up");
                            return;
                        };
                        session(shared, config, stream, peer, stranger).await;
                    });
                }
                Some(job) = self.jobs.recv() => drop(connections.spawn(job)),
                Some(_) = sessions.join_next(), if !sessions.is_empty() => {}
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        doors.shutdown().await;
        sessions.shutdown().await;
        connections.shutdown().await;
        self.shared.listeners.close();
    }
}

async fn session(
    shared: Arc<Shared>,
    config: Arc<russh::server::Config>,
    stream: TcpStream,
    peer: SocketAddr,
    stranger: tokio::sync::OwnedSemaphorePermit,
) {
    let (stream, traffic, cutter, drain) = match Metered::new(stream) {
        Ok(parts) => parts,
        Err(error) => {
            tracing::debug!(%peer, %error, "a connection was gone before it began");
            return;
        }
    };
    shared.run(drain).await;
    let number = shared.sessions.fetch_add(1, Ordering::Relaxed);
    let (known, mut is_known) = watch::channel(false);
    let (ended, mut has_ended) = watch::channel(());
    let handler = Handler::new(shared, number, peer, traffic, known, ended);
    let begun = tokio::time::timeout(LOGIN, russh::server::run_stream(config, stream, handler));
    let session = match begun.await {
        Ok(Ok(session)) => session,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "no session");
            return;
        }
        Err(_) => return,
    };
    tokio::select! {
        _ = is_known.wait_for(|known| *known) => {}
        () = sleep(LOGIN) => {
            tracing::info!(%peer, "not authenticated in time: hung up");
            cutter.cut();
            return;
        }
        _ = has_ended.changed() => return,
    }
    drop(stranger);
    match session.await {
        Ok(()) => tracing::info!(%peer, session = number, "session ended"),
        Err(error) => tracing::info!(%peer, session = number, %error, "session ended"),
    }
}

/// The next connection; what fails for one (it is gone already, no descriptors) does not end all.
async fn accept(socket: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match socket.accept().await {
            Ok((stream, peer)) => return (stream, canonical(peer)),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Listens at an address; at `::` for IPv4 too.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.bind(&SockAddr::from(address))?;
    socket.listen(4_096)?;
    TcpListener::from_std(socket.into())
}
