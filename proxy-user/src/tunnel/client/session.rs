//! One SSH session: connects, authenticates, and does what it is told until it ends.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use russh::client::{ChannelOpenHandle, Handle, Msg, Session};
use russh::keys::ssh_key::HashAlg;
use russh::keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{Channel, ChannelMsg, ChannelOpenFailure, Names};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::super::channel::ChannelIo;
use super::super::counters::Refusal;
use super::super::socket::{Metered, Traffic};
use super::super::streams::{self, Acceptor};
use super::super::supervise::{Cause, Event, Exposure, SessionId};
use super::super::{key, ssh, trust};
use super::serve::{self, Active, Offered};
use super::{Means, Shared};

/// So often the session looks whether the peer has said anything.
const LOOK: Duration = Duration::from_millis(250);

/// Bytes that the peer must have taken since the last look to be alive, where it has nothing to say.
const TAKEN: u64 = 256 * 1024;

/// The peer has so long to begin the streams.
const STREAMS_WITHIN: Duration = Duration::from_secs(5);

/// What a session may be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Listen,
    Release,
    Probe,
    Ping,
}

/// What a session tells.
#[derive(Clone, Copy, Debug)]
pub(super) enum Report {
    /// Something for the state machine.
    Event(Event),
    /// How it carries: told with the authentication.
    Means(Means),
}

/// Where a session tells it.
#[derive(Clone)]
pub(super) struct Reports {
    pub(super) leg: usize,
    pub(super) id: SessionId,
    pub(super) to: mpsc::Sender<(usize, SessionId, Report)>,
}

impl Reports {
    async fn event(&self, event: Event) {
        self.send(Report::Event(event)).await;
    }

    async fn send(&self, report: Report) {
        // Fails when the tunnel stops.
        let _ = self.to.send((self.leg, self.id, report)).await;
    }
}

/// What the library calls, with what it has found out.
struct Handler {
    shared: Arc<Shared>,
    found: Arc<Found>,
    offered: mpsc::Sender<Offered>,
    /// Dropped with the session.
    _ended: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Found {
    inner: Mutex<Finding>,
}

#[derive(Clone, Debug, Default)]
struct Finding {
    software: Option<String>,
    cipher: Option<String>,
    host_key: Option<String>,
    distrust: Option<String>,
    exchanges: u32,
}

impl Found {
    fn change<T>(&self, change: impl FnOnce(&mut Finding) -> T) -> T {
        change(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl russh::client::Handler for Handler {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        let spec = &self.shared.spec;
        let print = shown.public_key().fingerprint(HashAlg::Sha256).to_string();
        // Reads a small file, once a session.
        let verdict = trust::judge(&spec.trust, &spec.host, shown, SystemTime::now());
        self.found.change(|found| {
            found.host_key = Some(print);
            found.distrust = verdict.as_ref().err().map(ToString::to_string);
        });
        Ok(verdict.is_ok())
    }

    async fn kex_done(
        &mut self,
        _: Option<&[u8]>,
        names: &Names,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let again = self.found.change(|found| {
            found.exchanges += 1;
            found.cipher = Some(names.cipher.as_ref().to_owned());
            let software = String::from_utf8_lossy(session.remote_sshid());
            found.software = Some(software.trim().to_owned());
            found.exchanges > 1
        });
        if again {
            self.shared.counts.rekeys.add(1);
        }
        Ok(())
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<Msg>,
        _: &str,
        port: u32,
        client: &str,
        client_port: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        let client = client
            .parse()
            .ok()
            .zip(u16::try_from(client_port).ok())
            .map(|(address, port)| SocketAddr::new(address, port));
        let offered = Offered {
            channel,
            reply,
            port: u16::try_from(port).unwrap_or_default(),
            client,
        };
        // Never waits here: the library would read nothing meanwhile, for no channel.
        if let Err(full) = self.offered.try_send(offered) {
            let offered = full.into_inner();
            offered
                .reply
                .reject(ChannelOpenFailure::ResourceShortage)
                .await;
        }
        Ok(())
    }

    fn should_accept_unknown_server_channel(
        &mut self,
        _: russh::ChannelId,
        _: &str,
    ) -> impl Future<Output = bool> + Send {
        self.shared.not_offered.refuse(Refusal::NotOffered);
        async { false }
    }
}

/// What an error before the end of authentication means.
fn cause(error: &russh::Error, found: &Found) -> Cause {
    if found.change(|found| found.distrust.is_some()) {
        return Cause::HostKey;
    }
    match error {
        russh::Error::UnknownKey | russh::Error::WrongServerSig => Cause::HostKey,
        russh::Error::Disconnect | russh::Error::HUP | russh::Error::IO(_) => Cause::HungUp,
        russh::Error::ConnectionTimeout | russh::Error::Elapsed(_) => Cause::TimedOut,
        _ => Cause::Protocol,
    }
}

/// Runs a session to its end, and says why it has ended.
pub(super) async fn run(
    shared: Arc<Shared>,
    reports: Reports,
    commands: mpsc::Receiver<Command>,
) -> Cause {
    let found = Arc::new(Found::default());
    let result = begin(&shared, &found).await;
    let show = found.change(|found| found.clone());
    shared.leg(reports.leg, |leg| {
        leg.host_key = show.host_key.or(leg.host_key.take());
        leg.software = show.software.or(leg.software.take());
        leg.cipher = show.cipher.or(leg.cipher.take());
        leg.message = result.as_ref().err().map(|(_, message)| message.clone());
    });
    match result {
        Ok(begun) => begun.work(shared, reports, found, commands).await,
        Err((cause, message)) => {
            let node = shared.spec.host.known_as();
            tracing::warn!(
                tunnel = shared.spec.name,
                node,
                cause = cause.word(),
                message,
                "no session"
            );
            cause
        }
    }
}

/// A session that is authenticated.
struct Begun {
    tasks: JoinSet<()>,
    handle: Handle<Handler>,
    traffic: Arc<Traffic>,
    /// Ends the connection when this is dropped, whatever the library waits for.
    _cutter: super::super::socket::Cutter,
    offered: mpsc::Receiver<Offered>,
    ended: watch::Receiver<()>,
}

async fn begin(shared: &Arc<Shared>, found: &Arc<Found>) -> Result<Begun, (Cause, String)> {
    let spec = &shared.spec;
    let path = spec.key.clone();
    let key = tokio::task::spawn_blocking(move || key::private(&path)).await;
    let key = key
        .map_err(|error| (Cause::Key, error.to_string()))?
        .map_err(|error| (Cause::Key, error.to_string()))?;
    let stream = TcpStream::connect((&*spec.host.name, spec.host.port)).await;
    let unreachable = |error: std::io::Error| {
        let node = spec.host.known_as();
        (
            Cause::Unreachable,
            format!("cannot connect to {node}: {error}"),
        )
    };
    let (stream, traffic, cutter, drain) =
        Metered::new(stream.map_err(unreachable)?).map_err(unreachable)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(drain);
    let certificates = trust::wants_certificate(&spec.trust, &spec.host);
    let config = Arc::new(ssh::client(certificates, false, spec.rekey));
    let (offer, offered) = mpsc::channel(1_024);
    let (ends, ended) = watch::channel(());
    let handler = Handler {
        shared: Arc::clone(shared),
        found: Arc::clone(found),
        offered: offer,
        _ended: ends,
    };
    let said = |error: &russh::Error| {
        let distrust = found.change(|found| found.distrust.clone());
        (
            cause(error, found),
            distrust.unwrap_or_else(|| error.to_string()),
        )
    };
    let mut handle = russh::client::connect_stream(config, stream, handler)
        .await
        .map_err(|error| said(&error))?;
    let hash = if key.algorithm().is_rsa() {
        let best = handle.best_supported_rsa_hash().await;
        best.map_err(|error| said(&error))?
            .flatten()
            .or(Some(HashAlg::Sha512))
    } else {
        None
    };
    let key = PrivateKeyWithHashAlg::new(key, hash);
    let answer = handle.authenticate_publickey(spec.user.clone(), key).await;
    if !answer.map_err(|error| said(&error))?.success() {
        let message = format!(
            "{} does not accept user {} with this key",
            spec.host.known_as(),
            spec.user
        );
        return Err((Cause::Authentication, message));
    }
    Ok(Begun {
        tasks,
        handle,
        traffic,
        _cutter: cutter,
        offered,
        ended,
    })
}

impl Begun {
    async fn work(
        mut self,
        shared: Arc<Shared>,
        reports: Reports,
        found: Arc<Found>,
        mut commands: mpsc::Receiver<Command>,
    ) -> Cause {
        let mut tasks = std::mem::take(&mut self.tasks);
        let active = Arc::new(Active::default());
        let round_trip = Arc::new(AtomicU32::new(0));
        let ours = found.change(|found| {
            let software = found.software.as_deref().unwrap_or_default();
            software.starts_with(ssh::SOFTWARE)
        });
        let means = if ours {
            Means::Streams
        } else {
            Means::Channels
        };
        let mut carrying = None;
        if ours {
            let settings = streams::Settings {
                traffic: Arc::clone(&self.traffic),
                window: shared.spec.window,
                round_trip_us: Arc::clone(&round_trip),
            };
            let opened = self.streams(&shared, settings, &mut tasks);
            let opened = timeout(STREAMS_WITHIN, opened).await;
            let Ok(Some(acceptor)) = opened else {
                return Cause::Protocol;
            };
            let worn = reports.clone();
            let worn = move || {
                let report = Report::Event(Event::Reconnect);
                let _ = worn.to.try_send((worn.leg, worn.id, report));
            };
            let streams = serve::streams(Arc::clone(&shared), Arc::clone(&active), acceptor, worn);
            let (over, is_over) = watch::channel(());
            carrying = Some(is_over);
            tasks.spawn(async move {
                streams.await;
                drop(over);
            });
        }
        reports.send(Report::Means(means)).await;
        reports.event(Event::Authenticated(reports.id)).await;
        let handle = Arc::new(self.handle);
        let stopped = async move {
            match &mut carrying {
                // An error: its sender is gone, and with it the streams.
                Some(carrying) => drop(carrying.changed().await),
                None => std::future::pending().await,
            }
        };
        tokio::pin!(stopped);
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = (0, 0);
        let mut released: Option<Instant> = None;
        loop {
            tokio::select! {
                _ = self.ended.changed() => return Cause::Closed,
                () = &mut stopped => return Cause::Silent,
                command = commands.recv() => {
                    let Some(command) = command else { return Cause::Stopped };
                    if command == Command::Release {
                        released = Some(Instant::now());
                    }
                    let (shared, reports) = (Arc::clone(&shared), reports.clone());
                    let (handle, round_trip) = (Arc::clone(&handle), Arc::clone(&round_trip));
                    tasks.spawn(async move {
                        perform(command, means, &shared, &handle, &reports, &round_trip).await;
                    });
                }
                Some(offered) = self.offered.recv() => {
                    let one = active.begin();
                    let (shared, traffic) = (Arc::clone(&shared), Arc::clone(&self.traffic));
                    tasks.spawn(async move {
                        serve::channel(shared, offered, traffic).await;
                        drop(one);
                    });
                }
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
                _ = look.tick() => {
                    let now = (self.traffic.received(), self.traffic.sent());
                    if now.0 > seen.0 || now.1 > seen.1 + TAKEN {
                        reports.event(Event::Heard(reports.id)).await;
                    }
                    seen = now;
                    shared.leg(reports.leg, |leg| {
                        leg.connections = active.count();
                        (leg.received, leg.sent) = now;
                        let measured = round_trip.load(Ordering::Relaxed);
                        leg.round_trip_us = (measured > 0).then_some(measured);
                    });
                    // What the node had under way when it was told has come by now.
                    let settled = released.is_some_and(|at| at.elapsed() > Duration::from_secs(1));
                    if settled && active.count() == 0 {
                        reports.event(Event::Drained(reports.id)).await;
                    }
                }
            }
        }
    }

    /// Opens the one channel for all streams.
    async fn streams(
        &self,
        shared: &Shared,
        settings: streams::Settings,
        tasks: &mut JoinSet<()>,
    ) -> Option<Acceptor<ChannelIo<Msg>>> {
        let failed = |error: &dyn std::error::Error| {
            tracing::warn!(tunnel = shared.spec.name, %error, "the node does not begin streams");
        };
        let mut channel = match self.handle.channel_open_session().await {
            Ok(channel) => channel,
            Err(error) => {
                failed(&error);
                return None;
            }
        };
        let name = format!("{}/{}", ssh::SUBSYSTEM, shared.instance);
        if let Err(error) = channel.request_subsystem(true, name).await {
            failed(&error);
            return None;
        }
        loop {
            match channel.wait().await? {
                ChannelMsg::Success => break,
                ChannelMsg::WindowAdjusted { .. } => {}
                _ => return None,
            }
        }
        let (io, fill) = ChannelIo::new(channel, Arc::clone(&self.traffic));
        tasks.spawn(fill);
        match Acceptor::begin(io, settings).await {
            Ok(acceptor) => Some(acceptor),
            Err(error) => {
                failed(&error);
                None
            }
        }
    }
}

async fn perform(
    command: Command,
    means: Means,
    shared: &Shared,
    handle: &Handle<Handler>,
    reports: &Reports,
    round_trip: &AtomicU32,
) {
    match command {
        Command::Listen => listen(shared, handle, reports).await,
        Command::Release => {
            for port in shared.forwards.keys() {
                release(shared, handle, *port).await;
            }
        }
        Command::Ping => {
            let began = Instant::now();
            if handle.send_ping().await.is_ok() {
                let took = u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
                if means == Means::Channels {
                    round_trip.store(took, Ordering::Relaxed);
                }
                reports.event(Event::Heard(reports.id)).await;
            }
        }
        Command::Probe => {
            // Our own node's end listens where the cluster can reach it.
            let found = match means {
                Means::Streams => Exposure::Reachable,
                Means::Channels => probe(shared, handle).await,
            };
            if found == Exposure::LoopbackOnly {
                tracing::warn!(
                    tunnel = shared.spec.name,
                    node = shared.spec.host.known_as(),
                    "the node listens on its loopback alone: set `GatewayPorts clientspecified` \
                     in its sshd_config"
                );
            }
            reports.event(Event::Exposed(reports.id, found)).await;
        }
    }
}

async fn listen(shared: &Shared, handle: &Handle<Handler>, reports: &Reports) {
    let mut have = Vec::new();
    for port in shared.forwards.keys() {
        let asked = handle.tcpip_forward(shared.spec.bind.clone(), u32::from(*port));
        if asked.await.is_err() {
            for port in have {
                release(shared, handle, port).await;
            }
            reports.event(Event::Refused(reports.id, *port)).await;
            return;
        }
        have.push(*port);
    }
    reports.event(Event::Listening(reports.id)).await;
}

async fn release(shared: &Shared, handle: &Handle<Handler>, port: u16) {
    let asked = handle.cancel_tcpip_forward(shared.spec.bind.clone(), u32::from(port));
    if let Err(error) = asked.await {
        tracing::debug!(port, %error, "the node does not stop to listen");
    }
}

/// Has the node connect to itself at the address that the cluster uses. `sshd` with `GatewayPorts
/// no` says that it listens there, and does not.
async fn probe(shared: &Shared, handle: &Handle<Handler>) -> Exposure {
    const WITHIN: Duration = Duration::from_secs(3);
    let (Some(address), Some(port)) = (shared.spec.advertised, shared.forwards.keys().next())
    else {
        return Exposure::Unknown;
    };
    shared.probe_until(Some(Instant::now() + WITHIN * 2));
    let asked =
        handle.channel_open_direct_tcpip(address.to_string(), u32::from(*port), "127.0.0.1", 0);
    let answer = timeout(WITHIN, asked).await;
    let exposure = match answer {
        Ok(Ok(channel)) => {
            // Until the node's connection to itself has come back to us and was refused.
            let (mut reader, writer) = channel.split();
            // `sshd` closes its end only after ours.
            let ended = async {
                while let Some(message) = reader.wait().await {
                    if matches!(message, ChannelMsg::Eof | ChannelMsg::Close) {
                        break;
                    }
                }
            };
            let _ = timeout(WITHIN, ended).await;
            let _ = writer.close().await;
            Exposure::Reachable
        }
        Ok(Err(russh::Error::ChannelOpenFailure(ChannelOpenFailure::ConnectFailed))) => {
            Exposure::LoopbackOnly
        }
        // It does not connect for us, or is too slow to tell.
        Ok(Err(_)) | Err(_) => Exposure::Unknown,
    };
    shared.probe_until(None);
    exposure
}
