//! What a socket's peer stands for, where the socket was led to a backend before any packet.

use super::Family;
use crate::wire::Be16;

/// A socket and the backend that it was led to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct PeerKey<F: Family> {
    /// The kernel's number of the socket (`SO_COOKIE`), low half first; never given twice.
    pub socket: [u32; 2],
    /// The backend's address.
    pub address: F::Addr,
    /// The backend's port.
    pub port: Be16,
    /// Zero.
    pub pad: u16,
}

impl<F: Family> PeerKey<F> {
    /// Of a socket, by its cookie, and an address and port that it talks to.
    #[inline(always)]
    #[must_use]
    pub const fn new(cookie: u64, peer: &Peer<F>) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "each half by itself is what is meant"
        )]
        Self {
            socket: [cookie as u32, (cookie >> 32) as u32],
            address: peer.address,
            port: peer.port,
            pad: 0,
        }
    }
}

/// An address and port that a socket talks to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Peer<F: Family> {
    /// The address.
    pub address: F::Addr,
    /// The port.
    pub port: Be16,
    /// Zero.
    pub pad: u16,
}

impl<F: Family> Peer<F> {
    /// An address and a port.
    #[inline(always)]
    #[must_use]
    pub const fn new(address: F::Addr, port: Be16) -> Self {
        Self {
            address,
            port,
            pad: 0,
        }
    }
}
