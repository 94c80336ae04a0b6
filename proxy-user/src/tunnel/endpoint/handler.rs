//! What a session may do.

use std::net::SocketAddr;
use std::sync::Arc;

use russh::keys::ssh_key::PublicKey;
use russh::server::{Auth, ChannelOpenHandle, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, Pty, Sig};
use tokio::sync::watch;

use super::super::channel::ChannelIo;
use super::super::counters::Refusal;
use super::super::socket::Traffic;
use super::super::streams::{self, Opener};
use super::super::{key, ssh};
use super::Shared;
use super::listeners::{Carrier, Listeners};

/// One session.
pub(super) struct Handler {
    shared: Arc<Shared>,
    number: u64,
    peer: SocketAddr,
    traffic: Arc<Traffic>,
    known: watch::Sender<bool>,
    /// Dropped with the session.
    _ended: watch::Sender<()>,
    /// The session channel that may become the one of all streams.
    channel: Option<Channel<Msg>>,
    /// The process that asks, if it shares a channel.
    group: Option<Arc<str>>,
    opener: watch::Sender<Option<Opener>>,
}

impl Handler {
    pub(super) fn new(
        shared: Arc<Shared>,
        number: u64,
        peer: SocketAddr,
        traffic: Arc<Traffic>,
        known: watch::Sender<bool>,
        ended: watch::Sender<()>,
    ) -> Self {
        Self {
            shared,
            number,
            peer,
            traffic,
            known,
            _ended: ended,
            channel: None,
            group: None,
            opener: watch::channel(None).0,
        }
    }

    /// Whether this user may with this key. The file is read each time: a changed key needs no restart.
    async fn may(&self, user: &str, key: &PublicKey) -> bool {
        if user != self.shared.settings.user {
            tracing::info!(peer = %self.peer, user, "not the user of the return proxy: refused");
            return false;
        }
        let path = self.shared.settings.authorized.clone();
        let keys = match tokio::task::spawn_blocking(move || key::public(&path)).await {
            Ok(Ok(keys)) => keys,
            Ok(Err(error)) => {
                tracing::error!(%error, "nobody can log in");
                return false;
            }
            Err(_) => return false,
        };
        keys.iter().any(|one| one.key_data() == key.key_data())
    }

    fn refuse(&self, what: &str) {
        self.shared.not_offered.refuse(Refusal::NotOffered);
        tracing::warn!(peer = %self.peer, what, "asked for what is not offered: refused");
    }

    async fn refuse_open(&self, what: &str, reply: ChannelOpenHandle) {
        self.refuse(what);
        reply
            .reject(ChannelOpenFailure::AdministrativelyProhibited)
            .await;
    }

    fn refuse_request(
        &self,
        what: &str,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.refuse(what);
        session.channel_failure(channel)?;
        session.close(channel)
    }

    /// All streams go through this channel.
    async fn share(&mut self, channel: Channel<Msg>, group: &str) {
        self.group = Some(group.into());
        let settings = streams::Settings {
            traffic: Arc::clone(&self.traffic),
            window: self.shared.settings.window,
            round_trip_us: Arc::default(),
        };
        let opener = self.opener.clone();
        let peer = self.peer;
        let (io, fill) = ChannelIo::new(channel, Arc::clone(&self.traffic));
        self.shared.run(fill).await;
        // Ends with the session, which ends the channel.
        let job = async move {
            let (first, drive) = match streams::begin(io, settings).await {
                Ok(begun) => begun,
                Err(error) => {
                    tracing::warn!(%peer, %error, "no streams");
                    return;
                }
            };
            opener.send_replace(Some(first));
            if let Err(error) = drive.await {
                tracing::debug!(%peer, %error, "streams have ended");
            }
            opener.send_replace(None);
        };
        self.shared.run(job).await;
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.shared.listeners.leave_all(self.number);
    }
}

impl russh::server::Handler for Handler {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(if self.may(user, offer.public_key).await {
            Auth::Accept
        } else {
            Auth::reject()
        })
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(if self.may(user, key.public_key).await {
            Auth::Accept
        } else {
            Auth::reject()
        })
    }

    async fn auth_succeeded(&mut self, _: &mut Session) -> Result<(), Self::Error> {
        tracing::info!(peer = %self.peer, session = self.number, "the server has logged in");
        self.known.send_replace(true);
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if self.channel.is_some() || self.group.is_some() {
            self.refuse_open("a second channel", reply).await;
            return Ok(());
        }
        self.channel = Some(channel);
        reply.accept().await;
        Ok(())
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let group = name
            .strip_prefix(ssh::SUBSYSTEM)
            .and_then(|rest| rest.strip_prefix('/'));
        match (group, self.channel.take()) {
            (Some(group), Some(open)) if open.id() == channel => {
                session.channel_success(channel)?;
                self.share(open, group).await;
                Ok(())
            }
            _ => self.refuse_request("a subsystem", channel, session),
        }
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let wanted = u16::try_from(*port).unwrap_or_default();
        if !self.shared.settings.ports.contains(&wanted) {
            self.refuse("another port");
            return Ok(false);
        }
        let (group, carrier) = match &self.group {
            Some(group) => (Arc::clone(group), Carrier::Streams(self.opener.subscribe())),
            None => (
                format!("session {}", self.number).into(),
                Carrier::Channels(session.handle(), Arc::clone(&self.traffic)),
            ),
        };
        let joined = Listeners::join(&self.shared, wanted, self.number, group, carrier, address);
        if let Err(error) = &joined {
            tracing::error!(port = wanted, %error, "the node cannot listen");
        }
        Ok(joined.is_ok())
    }

    async fn cancel_tcpip_forward(
        &mut self,
        _: &str,
        port: u32,
        _: &mut Session,
    ) -> Result<bool, Self::Error> {
        let port = u16::try_from(port).unwrap_or_default();
        Ok(self.shared.listeners.leave(port, self.number))
    }

    async fn streamlocal_forward(&mut self, _: &str, _: &mut Session) -> Result<bool, Self::Error> {
        self.refuse("a socket file");
        Ok(false)
    }

    async fn channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.refuse_open("X11", reply).await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.refuse_open("a connection from the node", reply).await;
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.refuse_open("a connection to a socket file", reply)
            .await;
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        _: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.refuse_request("a shell", channel, session)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.refuse_request("a command", channel, session)
    }

    async fn agent_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        self.refuse("an agent");
        session.channel_failure(channel)?;
        Ok(false)
    }

    async fn signal(&mut self, _: ChannelId, _: Sig, _: &mut Session) -> Result<(), Self::Error> {
        Ok(())
    }
}
