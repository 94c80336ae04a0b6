//! Records in the kernel's maps: the contract between the daemon and the programs.
//!
//! Any change of a layout or of a meaning raises [`ABI_VERSION`]; pins live in a folder of that
//! name, so that two versions never read each other's records.

mod address;
mod client;
mod device;
mod flow;
mod frontend;
mod peer;
mod registry;
mod settings;

pub use address::{Addr4, Addr6, Address, Family, FilterKind, V4, V6, filter_position};
pub use client::{Affinity, AffinityKey, SourceKey};
pub use device::{Device, DeviceKey, DeviceRole, LOOPBACK, device_flag};
pub use flow::{Flow, FlowKey, FlowStep, flow_state};
pub use frontend::{
    AddressFlags, Backend, Service, ServiceKey, address_flag, backend_flag, service_flag,
};
pub use peer::{Peer, PeerKey};
pub use registry::{FILTER_BITS, FILTER_WORDS, MAPS, MapKind, MapSpec, OBJECT_NAME_BYTES};
pub use settings::Settings;

/// Version of all records below. Pins are kept in a folder `v<ABI_VERSION>`.
pub const ABI_VERSION: u32 = 4;

/// Counts packets and bytes: one per reason and per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the Ethernet header on.
    pub bytes: u64,
}

crate::wire::plain! {
    Addr4 => 4, 2;
    Addr6 => 16, 2;
    FlowKey<V4> => 16, 2;
    FlowKey<V6> => 40, 2;
    Flow<V4> => 72, 8;
    Flow<V6> => 96, 8;
    ServiceKey<V4> => 8, 2;
    ServiceKey<V6> => 20, 2;
    Service => 28, 4;
    SourceKey<V4> => 12, 4;
    SourceKey<V6> => 24, 4;
    AffinityKey<V4> => 8, 4;
    AffinityKey<V6> => 20, 4;
    Affinity => 16, 8;
    PeerKey<V4> => 16, 4;
    PeerKey<V6> => 28, 4;
    Peer<V4> => 8, 2;
    Peer<V6> => 20, 2;
    AddressFlags => 4, 4;
    Backend => 32, 4;
    DeviceKey => 8, 4;
    Device => 40, 4;
    Settings => 16, 4;
    Counter => 16, 8;
}
