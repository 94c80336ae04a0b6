//! Services: what the outside of a service is, and the backends behind it.

use super::Family;
use crate::wire::Be16;

/// An address, port and protocol that a service is reached at. Exact: never a prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct ServiceKey<F: Family> {
    /// The address that clients use: cluster address, load-balancer address, node address.
    pub address: F::Addr,
    /// The port that clients use.
    pub port: Be16,
    /// TCP, UDP or SCTP.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// Bits of [`Service::flags`].
pub mod service_flag {
    /// Reachable from outside the cluster (load-balancer address, node port, host port).
    pub const EXTERNAL: u32 = 1 << 0;
    /// Choose by Maglev's table: the same client port meets the same backend on every node, and
    /// few connections move when a backend comes or goes. Otherwise at random.
    pub const MAGLEV: u32 = 1 << 1;
    /// Clients outside the cluster are led to endpoints on this node alone
    /// (`externalTrafficPolicy: Local`); without [`EXTERNAL`], all clients are
    /// (`internalTrafficPolicy: Local`).
    pub const LOCAL: u32 = 1 << 2;
    /// Some node has an endpoint that takes traffic: who must keep to this node and finds none here
    /// is dropped, not refused.
    pub const ELSEWHERE: u32 = 1 << 3;
    /// Clients must lie in the service's ranges (`SOURCES_*`).
    pub const RESTRICTED: u32 = 1 << 4;
}

/// What a service key leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// A key of `OBJECTS`; each backend in the service's slots names it too.
    pub id: u32,
    /// First slot, an index into `SLOTS`.
    pub first_slot: u32,
    /// Number of slots; none: no endpoint, and clients are refused.
    pub slots: u32,
    /// See [`service_flag`].
    pub flags: u32,
    /// First slot of the endpoints on this node, an index into `SLOTS`.
    pub first_local: u32,
    /// Number of slots of the endpoints on this node, for clients that must keep to it.
    pub local_slots: u32,
    /// How long a client keeps its backend after its last new connection, seconds; zero: not at all.
    pub affinity: u32,
}

impl Service {
    /// First slot and number of slots, of all endpoints and of those on this node.
    #[must_use]
    pub const fn ranges(&self) -> [(u32, u32); 2] {
        [
            (self.first_slot, self.slots),
            (self.first_local, self.local_slots),
        ]
    }
}

/// Bits of [`AddressFlags`].
pub mod address_flag {
    /// Reachable from outside the cluster.
    pub const EXTERNAL: u32 = 1 << 0;
}

/// Says of an address that it belongs to services alone (never a node's or a pod's own): echo
/// requests to it are answered, and ports of it that no service has are refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct AddressFlags(pub u32);

/// Bits of [`Backend::flags`].
pub mod backend_flag {
    /// Takes traffic. Otherwise only the TCP connections it has.
    pub const SERVING: u8 = 1 << 0;
    /// Among those that clients choose from who need not keep to this node.
    pub const CLUSTER: u8 = 1 << 1;
    /// Among those that clients choose from who must keep to this node.
    pub const LOCAL: u8 = 1 << 2;
}

/// One endpoint of one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Backend {
    /// Raised whenever this index is given up or given away: flows made before know that their
    /// backend is gone. Zero: never used.
    pub generation: u32,
    /// The service, a key of `OBJECTS`.
    pub service: u32,
    /// The pod's address; IPv4 in the first 4 bytes.
    pub address: [u16; 8],
    /// The pod's port.
    pub port: Be16,
    /// See [`backend_flag`].
    pub flags: u8,
    /// TCP, UDP or SCTP.
    pub protocol: u8,
    /// 4 or 6; 0: the index is free.
    pub family: u8,
    /// Zero.
    pub pad: [u8; 3],
}
