//! What is counted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::supervise::Cause;

/// Why a connection was not carried, or not to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// It came from an address that is no node's and no pod's.
    Source,
    /// The server does not accept connections at the forward's target.
    Target,
    /// No session could take it.
    NoSession,
    /// The peer asked for something that is not offered: another port, a shell, another direction.
    NotOffered,
    /// Its consumer took nothing while too much waited for it, at a peer that cannot be told to wait.
    SlowConsumer,
    /// All connections together had too much waiting.
    Memory,
    /// The session that carried it has ended.
    SessionLost,
    /// One end has reset it.
    Reset,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Source,
        Self::Target,
        Self::NoSession,
        Self::NotOffered,
        Self::SlowConsumer,
        Self::Memory,
        Self::SessionLost,
        Self::Reset,
    ];

    /// The word for it in metrics, the log and on the command line.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
            Self::NoSession => "no-session",
            Self::NotOffered => "not-offered",
            Self::SlowConsumer => "slow-consumer",
            Self::Memory => "memory",
            Self::SessionLost => "session-lost",
            Self::Reset => "reset",
        }
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds.
    pub fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    /// Adds a number of bytes.
    pub fn add_bytes(&self, number: usize) {
        self.add(u64::try_from(number).unwrap_or(u64::MAX));
    }

    /// So far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is counted of one forward.
#[derive(Debug, Default)]
pub struct Forward {
    opened: Count,
    closed: Count,
    /// Bytes from the cluster to the server.
    pub to_server: Count,
    /// Bytes from the server to the cluster.
    pub to_cluster: Count,
    blocked_us: Count,
    refused: [Count; Refusal::ALL.len()],
}

impl Forward {
    /// A connection began; it is over when what is returned is dropped.
    pub fn open(&self) -> impl Drop + use<'_> {
        struct Open<'f>(&'f Forward);
        impl Drop for Open<'_> {
            fn drop(&mut self) {
                self.0.closed.add(1);
            }
        }
        self.opened.add(1);
        Open(self)
    }

    /// Connections that are carried now.
    #[must_use]
    pub fn active(&self) -> u64 {
        self.opened.get().saturating_sub(self.closed.get())
    }

    /// A connection was not carried, or not to its end.
    pub fn refuse(&self, why: Refusal) {
        if let Some(count) = self.refused.get(why as usize) {
            count.add(1);
        }
    }

    /// How often that has happened.
    #[must_use]
    pub fn refused(&self, why: Refusal) -> u64 {
        self.refused.get(why as usize).map_or(0, Count::get)
    }

    /// Time in which a connection had something to send, and its window was used up.
    pub fn blocked(&self, time: Duration) {
        self.blocked_us
            .add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// As it is now.
    #[must_use]
    pub fn figures(&self) -> ForwardFigures {
        let refused = |why: &Refusal| (why.word().to_owned(), self.refused(*why));
        ForwardFigures {
            active: self.active(),
            opened: self.opened.get(),
            bytes_to_server: self.to_server.get(),
            bytes_to_cluster: self.to_cluster.get(),
            blocked_us: self.blocked_us.get(),
            refused: Refusal::ALL.iter().map(refused).collect(),
        }
    }
}

/// Figures of one forward.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardFigures {
    /// Connections that are carried now.
    pub active: u64,
    /// Connections so far.
    pub opened: u64,
    /// Bytes from the cluster to the server.
    pub bytes_to_server: u64,
    /// Bytes from the server to the cluster.
    pub bytes_to_cluster: u64,
    /// Microseconds in which connections had something to send, and their window was used up.
    pub blocked_us: u64,
    /// Connections that were not carried, or not to their end, by reason.
    pub refused: BTreeMap<String, u64>,
}

/// What is counted of a whole tunnel.
#[derive(Debug, Default)]
pub struct Tunnel {
    /// Sessions that were tried.
    pub dials: Count,
    /// Sessions that came to carry.
    pub ready: Count,
    ended: [Count; Cause::ALL.len()],
    /// Key exchanges after a session's first.
    pub rekeys: Count,
    ready_us: Count,
}

impl Tunnel {
    /// A session came to carry so long after its dial.
    pub fn is_ready(&self, after: Duration) {
        self.ready.add(1);
        self.ready_us
            .add(u64::try_from(after.as_micros()).unwrap_or(u64::MAX));
    }

    /// A session has ended.
    pub fn end(&self, cause: Cause) {
        if let Some(count) = self.ended.get(cause as usize) {
            count.add(1);
        }
    }

    /// As it is now.
    #[must_use]
    pub fn figures(&self) -> TunnelFigures {
        let ended = |cause: &Cause| {
            let count = self.ended.get(*cause as usize).map_or(0, Count::get);
            (cause.word().to_owned(), count)
        };
        TunnelFigures {
            dials: self.dials.get(),
            ready: self.ready.get(),
            ready_us: self.ready_us.get(),
            rekeys: self.rekeys.get(),
            ended: Cause::ALL.iter().map(ended).collect(),
        }
    }
}

/// Figures of a whole tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelFigures {
    /// Sessions that were tried.
    pub dials: u64,
    /// Sessions that came to carry.
    pub ready: u64,
    /// Microseconds from dial to carrying, all of those together.
    pub ready_us: u64,
    /// Key exchanges after a session's first.
    pub rekeys: u64,
    /// Sessions that have ended, by cause.
    pub ended: BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_has_its_own_count() {
        let forward = Forward::default();
        for (times, why) in (1..).zip(Refusal::ALL) {
            for _ in 0..times {
                forward.refuse(why);
            }
        }
        for (times, why) in (1..).zip(Refusal::ALL) {
            assert_eq!(forward.refused(why), times, "{why:?}");
        }
        let tunnel = Tunnel::default();
        for cause in Cause::ALL {
            tunnel.end(cause);
        }
        let figures = tunnel.figures();
        assert_eq!(figures.ended.len(), Cause::ALL.len());
        assert!(figures.ended.values().all(|count| *count == 1));
    }

    #[test]
    fn connections_are_active_until_dropped() {
        let forward = Forward::default();
        let (first, second) = (forward.open(), forward.open());
        assert_eq!(forward.active(), 2);
        drop(first);
        assert_eq!(forward.active(), 1);
        drop(second);
        assert_eq!(forward.figures().opened, 2);
        assert_eq!(forward.active(), 0);
    }
}
