//! Clients: who is let in, and whom a client is kept with.

use super::{Address, Family};

/// A range of clients of a service that only serves some: a key of a trie, whose prefix counts the
/// service's bits too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct SourceKey<F: Family> {
    /// How many bits count: 32 of the service, then those of the address.
    pub prefix: u32,
    /// The service, a key of `OBJECTS`.
    pub service: u32,
    /// First address of the range; a client's own address in a question.
    pub address: F::Addr,
}

impl<F: Family> SourceKey<F> {
    /// The question whether a service lets a client in.
    #[inline(always)]
    #[must_use]
    pub fn question(service: u32, address: F::Addr) -> Self {
        Self {
            prefix: Self::bits(if F::IS_V6 { 128 } else { 32 }),
            service,
            address,
        }
    }

    /// What [`SourceKey::prefix`] is for a range of addresses.
    #[inline(always)]
    #[must_use]
    pub const fn bits(of_address: u32) -> u32 {
        32 + of_address
    }

    /// The range of addresses: its first one, and how many bits of it count.
    #[must_use]
    pub fn range(&self) -> (core::net::IpAddr, u32) {
        (self.address.to_ip(), self.prefix.saturating_sub(32))
    }
}

/// A client of a service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct AffinityKey<F: Family> {
    /// The service, a key of `OBJECTS`.
    pub service: u32,
    /// The client's address; of one that is led at its socket, what stands for its network namespace
    /// ([`Address::of_network`]).
    pub client: F::Addr,
}

/// The backend that a client is kept with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Affinity {
    /// When the client last opened a connection, nanoseconds of `CLOCK_MONOTONIC`.
    pub last_opened: u64,
    /// Which backend, an index into `BACKENDS`.
    pub backend: u32,
    /// The backend's generation then: another one now means that it is gone.
    pub generation: u32,
}
