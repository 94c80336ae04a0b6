//! Connections that the node has taken: to where their forward leads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use ppp::v2::{Addresses, Builder, Command, IPv4, IPv6, Protocol, Version};
use russh::client::{ChannelOpenHandle, Msg};
use russh::{Channel, ChannelOpenFailure};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::super::channel::ChannelIo;
use super::super::counters::Refusal;
use super::super::relay::{Incoming, Outgoing, Relay, Side};
use super::super::socket::Traffic;
use super::super::streams::{Acceptor, Asked, LAST_STREAM};
use super::super::{counters, queue, socket};
use super::{Forward, Shared};

/// The target has so long to accept.
const CONNECT: Duration = Duration::from_secs(5);

/// Connections of a session, to know when it has none left.
#[derive(Debug, Default)]
pub(super) struct Active(AtomicUsize);

impl Active {
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn begin(self: &Arc<Self>) -> impl Drop + Send + use<> {
        struct One(Arc<Active>);
        impl Drop for One {
            fn drop(&mut self) {
                self.0.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.0.fetch_add(1, Ordering::Relaxed);
        One(Arc::clone(self))
    }
}

/// Why a connection is not made.
enum Not {
    Offered,
    Allowed,
    Reached,
}

/// The forward of a port, if this client may use it, and a connection to its target.
async fn connect(
    shared: &Shared,
    port: u16,
    client: Option<SocketAddr>,
) -> Result<(&Forward, &counters::Forward, TcpStream), Not> {
    let Some((forward, counts)) = shared.forwards.get(&port) else {
        shared.not_offered.refuse(Refusal::NotOffered);
        return Err(Not::Offered);
    };
    if !shared.may_connect(client) {
        counts.refuse(Refusal::Source);
        tracing::debug!(?client, port, "not a node and not a pod: refused");
        return Err(Not::Allowed);
    }
    let reached = timeout(CONNECT, TcpStream::connect(&*forward.target)).await;
    match reached.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
        Ok(stream) if socket::carried(&stream).is_ok() => Ok((forward, counts, stream)),
        result => {
            counts.refuse(Refusal::Target);
            let error = result.err();
            tracing::debug!(
                target = forward.target,
                ?error,
                "the target does not accept"
            );
            Err(Not::Reached)
        }
    }
}

/// The header that says who connects, for a target that wants it.
fn preface(forward: &Forward, client: Option<SocketAddr>, stream: &TcpStream) -> Option<Bytes> {
    if !forward.proxy_protocol {
        return None;
    }
    let client = client?;
    let to = SocketAddr::new(stream.peer_addr().ok()?.ip(), forward.listen);
    header(client, to)
}

/// A header of PROXY protocol version 2 (haproxy's proxy-protocol.txt, section 2.2).
fn header(from: SocketAddr, to: SocketAddr) -> Option<Bytes> {
    let v6 = |address: SocketAddr| match address {
        SocketAddr::V4(address) => address.ip().to_ipv6_mapped(),
        SocketAddr::V6(address) => *address.ip(),
    };
    let addresses: Addresses = match (from, to) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => {
            IPv4::new(*from.ip(), *to.ip(), from.port(), to.port()).into()
        }
        (from, to) => IPv6::new(v6(from), v6(to), from.port(), to.port()).into(),
    };
    Builder::with_addresses(Version::Two | Command::Proxy, Protocol::Stream, addresses)
        .build()
        .ok()
        .map(Bytes::from)
}

/// Serves the streams of a session until it ends. `worn` is called when it should be replaced.
pub(super) async fn streams(
    shared: Arc<Shared>,
    active: Arc<Active>,
    mut acceptor: Acceptor<ChannelIo<Msg>>,
    worn: impl Fn() + Send,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            asked = acceptor.next() => match asked {
                Some(Ok(asked)) => {
                    let one = active.begin();
                    let shared = Arc::clone(&shared);
                    connections.spawn(async move {
                        stream(&shared, asked).await;
                        drop(one);
                    });
                    if acceptor.accepted() == LAST_STREAM {
                        worn();
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "streams have ended");
                    return;
                }
                None => return,
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn stream(shared: &Shared, asked: Asked) {
    let client = asked.client;
    match connect(shared, asked.port, client).await {
        Err(Not::Reached) => asked.refuse(Reason::CONNECT_ERROR),
        Err(Not::Offered | Not::Allowed) => asked.refuse(Reason::REFUSED_STREAM),
        Ok((forward, counts, target)) => {
            let Ok((to, from)) = asked.accept() else {
                return;
            };
            let relay = Relay {
                forward: counts,
                side: Side::Server,
                account: shared.budget.account(),
                preface: preface(forward, client, &target),
            };
            // Counted by reason.
            let _ = relay
                .run(target, Outgoing::Stream(to), Incoming::Stream(from))
                .await;
        }
    }
}

/// A channel that the node has opened.
pub(super) struct Offered {
    pub(super) channel: Channel<Msg>,
    pub(super) reply: ChannelOpenHandle,
    pub(super) port: u16,
    pub(super) client: Option<SocketAddr>,
}

/// Serves one channel.
pub(super) async fn channel(shared: Arc<Shared>, offered: Offered, traffic: Arc<Traffic>) {
    let Offered {
        channel,
        reply,
        port,
        client,
    } = offered;
    if shared.probing() && client.map(|client| client.ip()) == shared.spec.advertised {
        // The node, asked by us, to see whether it can be reached at that address.
        reply
            .reject(ChannelOpenFailure::AdministrativelyProhibited)
            .await;
        return;
    }
    let (forward, counts, target) = match connect(&shared, port, client).await {
        Ok(connected) => connected,
        Err(not) => {
            let why = match not {
                Not::Reached => ChannelOpenFailure::ConnectFailed,
                Not::Offered | Not::Allowed => ChannelOpenFailure::AdministrativelyProhibited,
            };
            reply.reject(why).await;
            return;
        }
    };
    reply.accept().await;
    let (reader, writer) = channel.split();
    let (queue, fill) = queue::of(reader, &shared.budget, shared.spec.queue);
    let relay = Relay {
        forward: counts,
        side: Side::Server,
        account: shared.budget.account(),
        preface: preface(forward, client, &target),
    };
    let carried = relay.run(
        target,
        Outgoing::Dialled(writer, traffic),
        Incoming::Channel(queue),
    );
    // The queue is filled until the channel's end, also while its consumer does nothing.
    // Counted by reason.
    let (_, ()) = tokio::join!(carried, fill);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_says_who_connects() {
        let text = |from: &str, to: &str| {
            let header = header(from.parse().unwrap(), to.parse().unwrap()).unwrap();
            let parsed = ppp::v2::Header::try_from(&*header).unwrap();
            assert_eq!(&header[..12], b"\r\n\r\n\0\r\nQUIT\n");
            format!("{:?}", parsed.addresses)
        };
        let v4 = text("192.0.2.7:4711", "10.0.0.1:37140");
        assert!(v4.contains("192.0.2.7") && v4.contains("4711"), "{v4}");
        assert!(v4.contains("10.0.0.1") && v4.contains("37140"), "{v4}");
        let v6 = text("[2001:db8::7]:4711", "10.0.0.1:37140");
        assert!(
            v6.contains("2001:db8::7") && v6.contains("::ffff:10.0.0.1"),
            "{v6}"
        );
    }
}
