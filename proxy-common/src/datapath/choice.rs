//! Choosing a backend and a source port, by hash.

use crate::abi::{Address, Family, FlowKey, ServiceKey};

/// A hash of a packet's addresses and ports: equal inputs meet equal backends.
#[inline(always)]
#[must_use]
pub fn tuple_hash<F: Family>(key: &FlowKey<F>, seed: u32) -> u32 {
    let ports = u64::from(key.source_port.raw()) << 24
        | u64::from(key.destination_port.raw()) << 40
        | u64::from(key.protocol);
    let addresses =
        mix(key.source.digest() ^ u64::from(seed) << 32).wrapping_add(key.destination.digest());
    (mix(mix(addresses) ^ ports) >> 32) as u32
}

/// A hash of a socket, by its cookie, and what it asks for: equal inputs meet equal backends.
#[inline(always)]
#[must_use]
pub fn socket_hash<F: Family>(cookie: u64, key: &ServiceKey<F>, seed: u32) -> u32 {
    let service = u64::from(key.port.raw()) << 40 | u64::from(key.protocol);
    let socket = mix(cookie ^ u64::from(seed) << 32).wrapping_add(key.address.digest());
    (mix(mix(socket) ^ service) >> 32) as u32
}

/// `hash` mapped onto `0..count`, without a division; 0 if `count` is 0.
#[inline(always)]
#[must_use]
pub const fn scale(hash: u32, count: u32) -> u32 {
    ((hash as u64 * count as u64) >> 32) as u32
}

/// The `attempt`-th source port to try, out of `count` from `min` on.
#[inline(always)]
#[must_use]
pub const fn port(hash: u32, attempt: u32, min: u32, count: u32) -> u16 {
    let step = attempt.wrapping_mul(0x9e37_79b9);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the daemon keeps min + count <= 65,536"
    )]
    {
        min.wrapping_add(scale(hash.wrapping_add(step), count)) as u16
    }
}

/// The finaliser of `MurmurHash3` (public domain): each input bit changes each output bit.
#[inline(always)]
const fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}

#[cfg(test)]
mod tests;
