//! Reads what the maps hold.

use std::io;
use std::sync::Arc;

use proxy_common::abi::OBJECT_NAME_BYTES;
use proxy_common::wire::Plain;

use super::Maps;
use super::table::Table;
use crate::reconcile::Observed;

/// A map that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the map {name}: {source}")]
pub struct ObserveError {
    name: &'static str,
    source: io::Error,
}

/// Reads every map that the daemon writes.
pub fn observe(maps: &Maps) -> Result<Observed, ObserveError> {
    let mut observed = Observed::default();
    each("SETTINGS", &maps.settings, |_, settings| {
        observed.settings = *settings;
    })?;
    each("OBJECTS", &maps.objects, |id, name| {
        observed.objects.insert(*id, decode_name(name));
    })?;
    each("BACKENDS", &maps.backends, |index, backend| {
        if backend.generation != 0 {
            observed.backends.insert(*index, *backend);
        }
    })?;
    let mut words = Vec::new();
    each("FILTER", &maps.filter, |word, bits| {
        words.push((*word, *bits));
    })?;
    observed.filter = words.into_iter().collect();
    each("SOURCES_V4", &maps.sources_v4, |key, _| {
        observed.sources_v4.insert(*key);
    })?;
    each("SOURCES_V6", &maps.sources_v6, |key, _| {
        observed.sources_v6.insert(*key);
    })?;
    each("SERVICES_V4", &maps.services_v4, |key, service| {
        observed.services_v4.insert(*key, *service);
    })?;
    each("SERVICES_V6", &maps.services_v6, |key, service| {
        observed.services_v6.insert(*key, *service);
    })?;
    each("ADDRESSES_V4", &maps.addresses_v4, |address, flags| {
        observed.addresses_v4.insert(*address, *flags);
    })?;
    each("ADDRESSES_V6", &maps.addresses_v6, |address, flags| {
        observed.addresses_v6.insert(*address, *flags);
    })?;
    let services = observed
        .services_v4
        .values()
        .chain(observed.services_v6.values());
    let ends = services
        .flat_map(proxy_common::abi::Service::ranges)
        .map(|(first, count)| first.saturating_add(count));
    let named = usize::try_from(ends.max().unwrap_or_default()).unwrap_or(usize::MAX);
    observed.slots = slots(maps, named)?;
    observe_devices(maps, &mut observed)?;
    Ok(observed)
}

/// Reads the maps about devices anew: the kernel itself removes a device that goes from `TX_PORTS`.
pub fn observe_devices(maps: &Maps, observed: &mut Observed) -> Result<(), ObserveError> {
    observed.devices.clear();
    each("DEVICES", &maps.devices, |key, device| {
        observed.devices.insert(*key, *device);
    })?;
    observed.tx_ports.clear();
    each("TX_PORTS", &maps.tx_ports, |ifindex, _| {
        observed.tx_ports.insert(*ifindex);
    })
}

/// The array up to its last value that is not zero, and at least its first `named` values: those
/// may end with zeros, since zero is also a backend's index.
fn slots(maps: &Maps, named: usize) -> Result<Vec<u32>, ObserveError> {
    let mut slots = vec![0; maps.slots.capacity()];
    each("SLOTS", &maps.slots, |index, backend| {
        if let Some(slot) = usize::try_from(*index)
            .ok()
            .and_then(|index| slots.get_mut(index))
        {
            *slot = *backend;
        }
    })?;
    let used = slots
        .iter()
        .rposition(|slot| *slot != 0)
        .map_or(0, |last| last + 1);
    slots.truncate(used.max(named));
    slots.shrink_to_fit();
    Ok(slots)
}

fn each<K: Plain, V: Plain>(
    name: &'static str,
    table: &Table<K, V>,
    mut each: impl FnMut(&K, &V),
) -> Result<(), ObserveError> {
    table
        .for_each(&mut each)
        .map_err(|source| ObserveError { name, source })
}

/// A name as the map keeps it.
#[must_use]
pub fn decode_name(bytes: &[u8; OBJECT_NAME_BYTES]) -> Arc<str> {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into()
}

/// A name as the map keeps it, cut to what fits at a character's end.
#[must_use]
pub fn encode_name(name: &str) -> [u8; OBJECT_NAME_BYTES] {
    let mut bytes = [0; OBJECT_NAME_BYTES];
    let end = name.floor_char_boundary(OBJECT_NAME_BYTES);
    for (to, from) in bytes.iter_mut().zip(name.bytes().take(end)) {
        *to = from;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_and_long_ones_are_cut_between_characters() {
        assert_eq!(
            &*decode_name(&encode_name("shop/web:80/TCP")),
            "shop/web:80/TCP"
        );
        let long = "ä".repeat(150);
        assert_eq!(&*decode_name(&encode_name(&long)), "ä".repeat(100));
        let full = "a".repeat(OBJECT_NAME_BYTES);
        assert_eq!(&*decode_name(&encode_name(&full)), full);
    }
}
