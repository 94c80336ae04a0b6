//! The node's ports, and which session takes the next connection.
//!
//! Sessions of one process of the server belong together and share new connections by the hash of
//! who connects. The latest process has all of them: what was there before belongs to one that was
//! replaced, or is dead and has not been found out yet. So a port never closes while sessions change.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::super::counters::{Forward, Refusal};
use super::super::relay::{Incoming, Outgoing, Relay, Side};
use super::super::streams::Opener;
use super::super::{queue, socket};
use super::Shared;

/// A session has so long to take a connection before another is asked.
const TAKE: Duration = Duration::from_secs(3);

/// How a session takes connections.
#[derive(Clone)]
pub(super) enum Carrier {
    /// As streams of one channel; none yet: it is being opened.
    Streams(watch::Receiver<Option<Opener>>),
    /// As a channel each.
    Channels(russh::server::Handle, Arc<socket::Traffic>),
}

/// A session at a port.
#[derive(Clone)]
struct Member {
    session: u64,
    group: Arc<str>,
    carrier: Carrier,
    /// The address in the request, which channels repeat.
    address: String,
}

struct Port {
    members: Vec<Member>,
    doors: Vec<AbortHandle>,
}

impl Drop for Port {
    fn drop(&mut self) {
        for door in &self.doors {
            door.abort();
        }
    }
}

#[derive(Default)]
pub(super) struct Listeners {
    ports: Mutex<BTreeMap<u16, Port>>,
}

impl Listeners {
    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<u16, Port>) -> T) -> T {
        change(&mut self.ports.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A session takes connections from now on; the first at a port makes the node listen.
    pub(super) fn join(
        shared: &Arc<Shared>,
        port: u16,
        session: u64,
        group: Arc<str>,
        carrier: Carrier,
        address: &str,
    ) -> io::Result<()> {
        let member = Member {
            session,
            group,
            carrier,
            address: address.to_owned(),
        };
        shared.listeners.change(|ports| {
            if let Some(port) = ports.get_mut(&port) {
                port.members.retain(|member| member.session != session);
                port.members.push(member);
                return Ok(());
            }
            let sockets = bind(&shared.settings.bind, port)?;
            let door =
                |socket| tokio::spawn(serve(Arc::clone(shared), port, socket)).abort_handle();
            let doors = sockets.into_iter().map(door).collect();
            let members = vec![member];
            ports.insert(port, Port { members, doors });
            Ok(())
        })
    }

    /// A session takes no more connections at a port; the last makes the node stop to listen.
    pub(super) fn leave(&self, port: u16, session: u64) -> bool {
        self.change(|ports| {
            let Some(entry) = ports.get_mut(&port) else {
                return false;
            };
            let before = entry.members.len();
            entry.members.retain(|member| member.session != session);
            let was = entry.members.len() < before;
            if entry.members.is_empty() {
                ports.remove(&port);
            }
            was
        })
    }

    /// A session takes no more connections at all.
    pub(super) fn leave_all(&self, session: u64) {
        self.change(|ports| {
            ports.retain(|_, port| {
                port.members.retain(|member| member.session != session);
                !port.members.is_empty()
            });
        });
    }

    /// Stops to listen.
    pub(super) fn close(&self) {
        self.change(BTreeMap::clear);
    }

    /// Sessions at each port.
    pub(super) fn carriers(&self) -> BTreeMap<u16, usize> {
        self.change(|ports| {
            let one = |(port, entry): (&u16, &Port)| (*port, entry.members.len());
            ports.iter().map(one).collect()
        })
    }

    /// Sessions for a connection of `client`, the best first.
    fn choose(&self, port: u16, client: SocketAddr) -> Vec<Member> {
        self.change(|ports| {
            let Some(entry) = ports.get(&port) else {
                return Vec::new();
            };
            let latest = entry.members.last().map(|member| Arc::clone(&member.group));
            let (mut ours, older): (Vec<_>, Vec<_>) = entry
                .members
                .iter()
                .cloned()
                .partition(|member| Some(&member.group) == latest.as_ref());
            let mut hasher = DefaultHasher::new();
            client.hash(&mut hasher);
            let count = u64::try_from(ours.len()).unwrap_or(1).max(1);
            let first = usize::try_from(hasher.finish() % count).unwrap_or_default();
            ours.rotate_left(first);
            ours.extend(older.into_iter().rev());
            ours
        })
    }
}

/// Sockets at these addresses; one at `::` also has IPv4.
fn bind(addresses: &[IpAddr], port: u16) -> io::Result<Vec<TcpListener>> {
    let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let addresses = if addresses.is_empty() {
        vec![any]
    } else {
        addresses.to_vec()
    };
    addresses
        .into_iter()
        .map(|address| {
            let bound = super::listen(SocketAddr::new(address, port));
            // A node without IPv6.
            match bound {
                Err(error)
                    if address == any && error.raw_os_error() == Some(libc::EAFNOSUPPORT) =>
                {
                    super::listen(SocketAddr::from(([0, 0, 0, 0], port)))
                }
                bound => bound,
            }
        })
        .collect()
}

async fn serve(shared: Arc<Shared>, port: u16, socket: TcpListener) {
    let Some(forward) = shared.forwards.get(&port).map(Arc::clone) else {
        return;
    };
    loop {
        let (stream, client) = super::accept(&socket).await;
        let sources = &shared.settings.sources;
        if !sources.is_empty() && !sources.iter().any(|net| net.contains(&client.ip())) {
            forward.refuse(Refusal::Source);
            socket::reset(&stream);
            tracing::debug!(%client, port, "not a node and not a pod: refused");
            continue;
        }
        let (all, forward) = (Arc::clone(&shared), Arc::clone(&forward));
        // What is carried goes on when the node stops to listen.
        let job = async move { carry(&all, &forward, port, stream, client).await };
        shared.run(job).await;
    }
}

/// Gives a connection to a session, or to the next if that does not take it.
async fn carry(
    shared: &Shared,
    forward: &Forward,
    port: u16,
    stream: TcpStream,
    client: SocketAddr,
) {
    if socket::carried(&stream).is_err() {
        return;
    }
    for member in shared.listeners.choose(port, client) {
        let taken = timeout(TAKE, take(shared, &member, port, client)).await;
        let Ok(Some((outgoing, incoming))) = taken else {
            continue;
        };
        let relay = Relay {
            forward,
            side: Side::Node,
            account: shared.budget.account(),
            preface: None,
        };
        // Counted by reason.
        let _ = relay.run(stream, outgoing, incoming).await;
        return;
    }
    forward.refuse(Refusal::NoSession);
    socket::reset(&stream);
}

async fn take(
    shared: &Shared,
    member: &Member,
    port: u16,
    client: SocketAddr,
) -> Option<(Outgoing, Incoming)> {
    match &member.carrier {
        Carrier::Streams(opener) => {
            let mut opener = opener.clone();
            let opener = opener.wait_for(Option::is_some).await.ok()?.clone()?;
            let stream = opener.open(port, client).await.ok()?;
            Some((Outgoing::Stream(stream.to), Incoming::Asked(stream.answer)))
        }
        Carrier::Channels(handle, traffic) => {
            let channel = handle
                .channel_open_forwarded_tcpip(
                    member.address.clone(),
                    u32::from(port),
                    client.ip().to_string(),
                    u32::from(client.port()),
                )
                .await
                .ok()?;
            let (reader, writer) = channel.split();
            let (queue, fill) = queue::of(reader, &shared.budget, shared.settings.queue);
            shared.run(fill).await;
            Some((
                Outgoing::Accepted(writer, Arc::clone(traffic)),
                Incoming::Channel(queue),
            ))
        }
    }
}
