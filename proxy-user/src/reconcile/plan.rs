//! What the maps shall hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proxy_common::abi::{
    Addr4, Addr6, AddressFlags, Backend, Device, DeviceKey, Service, ServiceKey, Settings,
    SourceKey, V4, V6,
};

use super::FilterWords;

/// The slots of one service in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotRange {
    /// The service, a key of `OBJECTS`.
    pub service: u32,
    /// The backend that each slot chooses.
    pub backends: Arc<[u32]>,
}

/// Contents of all maps that the daemon writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// `SETTINGS`.
    pub settings: Settings,
    /// `OBJECTS`: `namespace/name:port/PROTOCOL` of each service port.
    pub objects: BTreeMap<u32, Arc<str>>,
    /// `BACKENDS`: every index that was ever used, so also those given up (family 0).
    pub backends: BTreeMap<u32, Backend>,
    /// `SLOTS`, by first slot.
    pub slots: BTreeMap<u32, SlotRange>,
    /// `FILTER`: bits that must be set.
    pub filter: FilterWords,
    /// `TX_PORTS`.
    pub tx_ports: BTreeSet<u32>,
    /// `DEVICES`.
    pub devices: BTreeMap<DeviceKey, Device>,
    /// `ADDRESSES_V4`.
    pub addresses_v4: BTreeMap<Addr4, AddressFlags>,
    /// `ADDRESSES_V6`.
    pub addresses_v6: BTreeMap<Addr6, AddressFlags>,
    /// `SOURCES_V4`.
    pub sources_v4: BTreeSet<SourceKey<V4>>,
    /// `SOURCES_V6`.
    pub sources_v6: BTreeSet<SourceKey<V6>>,
    /// `SERVICES_V4`.
    pub services_v4: BTreeMap<ServiceKey<V4>, Service>,
    /// `SERVICES_V6`.
    pub services_v6: BTreeMap<ServiceKey<V6>, Service>,
}
