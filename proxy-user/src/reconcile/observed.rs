//! What the maps hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proxy_common::abi::{
    Addr4, Addr6, AddressFlags, Backend, Device, DeviceKey, Service, ServiceKey, Settings,
    SourceKey, V4, V6,
};

use super::{FilterWords, Op};

/// Contents of all maps that the daemon writes, as read from the kernel once and kept up with what
/// was written since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// `SETTINGS`.
    pub settings: Settings,
    /// `OBJECTS`.
    pub objects: BTreeMap<u32, Arc<str>>,
    /// `BACKENDS`: records that were ever written (`generation` not zero).
    pub backends: BTreeMap<u32, Backend>,
    /// `SLOTS`: the array from its start; it may end where nothing but zeros follow.
    pub slots: Vec<u32>,
    /// `FILTER`: words that aren't zero.
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

impl Observed {
    /// The contents of `count` slots from `first` on; none if the array was never written there.
    #[must_use]
    pub fn slots(&self, first: u32, count: u32) -> Option<&[u32]> {
        let first = usize::try_from(first).ok()?;
        let count = usize::try_from(count).ok()?;
        self.slots.get(first..first.checked_add(count)?)
    }

    /// Takes note of an operation that succeeded.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::WriteBackend { index, backend } => {
                self.backends.insert(*index, *backend);
            }
            Op::WriteSlots {
                first, backends, ..
            } => self.write_slots(*first, backends),
            Op::WriteObject { id, name } => {
                self.objects.insert(*id, Arc::clone(name));
            }
            Op::WriteFilter { word, bits } => self.filter.replace(*word, *bits),
            Op::WriteTxPort { ifindex } => {
                self.tx_ports.insert(*ifindex);
            }
            Op::WriteDevice { key, device } => {
                self.devices.insert(*key, *device);
            }
            Op::WriteAddressV4 { address, flags } => {
                self.addresses_v4.insert(*address, *flags);
            }
            Op::WriteAddressV6 { address, flags } => {
                self.addresses_v6.insert(*address, *flags);
            }
            Op::WriteSourceV4 { key } => {
                self.sources_v4.insert(*key);
            }
            Op::WriteSourceV6 { key } => {
                self.sources_v6.insert(*key);
            }
            Op::WriteServiceV4 { key, service } => {
                self.services_v4.insert(*key, *service);
            }
            Op::WriteServiceV6 { key, service } => {
                self.services_v6.insert(*key, *service);
            }
            Op::WriteSettings { settings } => self.settings = *settings,
            Op::DeleteServiceV4 { key, .. } => {
                self.services_v4.remove(key);
            }
            Op::DeleteServiceV6 { key, .. } => {
                self.services_v6.remove(key);
            }
            Op::DeleteSourceV4 { key } => {
                self.sources_v4.remove(key);
            }
            Op::DeleteSourceV6 { key } => {
                self.sources_v6.remove(key);
            }
            Op::DeleteAddressV4 { address } => {
                self.addresses_v4.remove(address);
            }
            Op::DeleteAddressV6 { address } => {
                self.addresses_v6.remove(address);
            }
            Op::DeleteDevice { key } => {
                self.devices.remove(key);
            }
            Op::DeleteTxPort { ifindex } => {
                self.tx_ports.remove(ifindex);
            }
            Op::DeleteObject { id } => {
                self.objects.remove(id);
            }
        }
    }

    fn write_slots(&mut self, first: u32, backends: &[u32]) {
        let Ok(first) = usize::try_from(first) else {
            return;
        };
        let end = first.saturating_add(backends.len());
        if self.slots.len() < end {
            self.slots.resize(end, 0);
        }
        if let Some(target) = self.slots.get_mut(first..end) {
            target.copy_from_slice(backends);
        }
    }
}
