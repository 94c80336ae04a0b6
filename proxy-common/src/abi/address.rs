//! Addresses and the family they belong to.

use crate::wire::{Be16, Plain, ethertype};

/// An IPv4 address, as it stands in a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Addr4(pub [u16; 2]);

/// An IPv6 address, as it stands in a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Addr6(pub [u16; 8]);

impl Addr4 {
    /// From bytes in network order.
    #[must_use]
    pub const fn from_bytes([a, b, c, d]: [u8; 4]) -> Self {
        Self([u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])])
    }

    /// Bytes in network order.
    #[must_use]
    pub const fn bytes(self) -> [u8; 4] {
        let Self([x, y]) = self;
        let ([a, b], [c, d]) = (x.to_ne_bytes(), y.to_ne_bytes());
        [a, b, c, d]
    }
}

impl Addr6 {
    /// From bytes in network order.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let mut words = [0; 8];
        for (word, pair) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u16::from_ne_bytes(*pair);
        }
        Self(words)
    }

    /// Bytes in network order.
    #[must_use]
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        for (pair, word) in bytes.as_chunks_mut().0.iter_mut().zip(self.0) {
            *pair = word.to_ne_bytes();
        }
        bytes
    }
}

impl Addr6 {
    /// The IPv4 address that an IPv6 socket means with an IPv4-mapped one (RFC 4291 2.5.5.2).
    #[inline(always)]
    #[must_use]
    pub const fn mapped(&self) -> Option<Addr4> {
        match self.0 {
            [0, 0, 0, 0, 0, 0xffff, a, b] => Some(Addr4([a, b])),
            _ => None,
        }
    }
}

impl From<core::net::Ipv4Addr> for Addr4 {
    fn from(address: core::net::Ipv4Addr) -> Self {
        Self::from_bytes(address.octets())
    }
}

impl From<core::net::Ipv6Addr> for Addr6 {
    fn from(address: core::net::Ipv6Addr) -> Self {
        Self::from_bytes(address.octets())
    }
}

/// What both address types can do.
pub trait Address: Plain + Copy + Default + Eq + Ord + core::hash::Hash + core::fmt::Debug {
    /// In the 16-byte form that low-rate tables use: an IPv4 address fills the first 4 bytes.
    fn widen(self) -> [u16; 8];

    /// From the 16-byte form.
    fn narrow(wide: &[u16; 8]) -> Self;

    /// Sixty-four bits that differ whenever two addresses likely to be met together differ.
    fn digest(&self) -> u64;

    /// By how much a checksum over `self` changes when it becomes `new`.
    fn checksum_delta(&self, new: &Self) -> crate::wire::Delta;

    /// The sum of the address's words.
    fn checksum(&self, sum: crate::wire::Checksum) -> crate::wire::Checksum;

    /// As the standard library's type.
    fn to_ip(self) -> core::net::IpAddr;

    /// Stands for a client that is known by its network namespace alone (`SO_NETNS_COOKIE`), among
    /// clients that are known by address. No packet comes from such an address.
    fn of_network(cookie: u64) -> Self;

    /// Whether it leads to the own machine alone (127.0.0.0/8, RFC 1122 3.2.1.3; `::1`).
    fn is_loopback(&self) -> bool;
}

impl Address for Addr4 {
    #[inline(always)]
    fn widen(self) -> [u16; 8] {
        let Self([a, b]) = self;
        [a, b, 0, 0, 0, 0, 0, 0]
    }

    #[inline(always)]
    fn narrow(&[a, b, ..]: &[u16; 8]) -> Self {
        Self([a, b])
    }

    #[inline(always)]
    fn digest(&self) -> u64 {
        let Self([a, b]) = *self;
        u64::from(a) << 16 | u64::from(b)
    }

    #[inline(always)]
    fn checksum_delta(&self, new: &Self) -> crate::wire::Delta {
        crate::wire::Delta::of(&self.0, &new.0)
    }

    #[inline(always)]
    fn checksum(&self, sum: crate::wire::Checksum) -> crate::wire::Checksum {
        sum.add_words(&self.0)
    }

    fn to_ip(self) -> core::net::IpAddr {
        core::net::Ipv4Addr::from(self.bytes()).into()
    }

    /// In 0.0.0.0/8 (RFC 1122 3.2.1.3).
    #[inline(always)]
    fn of_network(cookie: u64) -> Self {
        let [.., a, b, c] = cookie.to_be_bytes();
        Self::from_bytes([0, a, b, c])
    }

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        let [first, ..] = self.bytes();
        first == 127
    }
}

impl Address for Addr6 {
    #[inline(always)]
    fn widen(self) -> [u16; 8] {
        self.0
    }

    #[inline(always)]
    fn narrow(wide: &[u16; 8]) -> Self {
        Self(*wide)
    }

    #[inline(always)]
    fn digest(&self) -> u64 {
        let Self([a, b, c, d, e, f, g, h]) = *self;
        let high = u64::from(a) << 48 | u64::from(b) << 32 | u64::from(c) << 16 | u64::from(d);
        let low = u64::from(e) << 48 | u64::from(f) << 32 | u64::from(g) << 16 | u64::from(h);
        high.wrapping_mul(0x9fb2_1c65_1e98_df25) ^ low
    }

    #[inline(always)]
    fn checksum_delta(&self, new: &Self) -> crate::wire::Delta {
        crate::wire::Delta::of(&self.0, &new.0)
    }

    #[inline(always)]
    fn checksum(&self, sum: crate::wire::Checksum) -> crate::wire::Checksum {
        sum.add_words(&self.0)
    }

    fn to_ip(self) -> core::net::IpAddr {
        core::net::Ipv6Addr::from(self.bytes()).into()
    }

    /// In `100::/64`, the discard prefix (RFC 6666).
    #[inline(always)]
    fn of_network(cookie: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = cookie.to_be_bytes();
        let word = |high, low| u16::from_ne_bytes([high, low]);
        let discard = word(1, 0);
        Self([
            discard,
            0,
            0,
            0,
            word(a, b),
            word(c, d),
            word(e, f),
            word(g, h),
        ])
    }

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        self.0 == [0, 0, 0, 0, 0, 0, 0, u16::from_ne_bytes([0, 1])]
    }
}

/// IPv4 or IPv6: what the generic datapath is generic over.
pub trait Family:
    Copy + Default + Eq + Ord + core::hash::Hash + core::fmt::Debug + 'static
{
    /// The address.
    type Addr: Address;

    /// Which of the two; for code that is compiled away.
    const IS_V6: bool;

    /// What the Ethernet header says.
    const ETHERTYPE: Be16;

    /// Length of the header without options or extension headers, bytes.
    const HEADER: u32;

    /// Protocol number of the family's ICMP.
    const ICMP: u8;

    /// The header without options or extension headers.
    type Header: crate::wire::IpHeader<Addr = Self::Addr>;
}

/// IPv4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct V6;

impl Family for V4 {
    type Addr = Addr4;
    const IS_V6: bool = false;
    const ETHERTYPE: Be16 = ethertype::IPV4;
    const HEADER: u32 = 20;
    const ICMP: u8 = crate::wire::protocol::ICMP;
    type Header = crate::wire::Ipv4;
}

impl Family for V6 {
    type Addr = Addr6;
    const IS_V6: bool = true;
    const ETHERTYPE: Be16 = ethertype::IPV6;
    const HEADER: u32 = 40;
    const ICMP: u8 = crate::wire::protocol::ICMPV6;
    type Header = crate::wire::Ipv6;
}

/// Which question the address filter answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterKind {
    /// May a packet to this address be for a service, or an answer to a translated source?
    Destination,
    /// May a packet from this address be an answer of a backend?
    Source,
}

/// Where the filter map keeps the bit of an address: index of a 64-bit word, and the bit in it.
///
/// The filter is a Bloom filter with one hash: a clear bit proves that a packet is none of ours, for
/// the price of an array lookup instead of a hash lookup.
#[inline(always)]
#[must_use]
pub fn filter_position<A: Address>(kind: FilterKind, address: &A) -> (u32, u64) {
    let salt = match kind {
        FilterKind::Destination => 0x2545_f491_4f6c_dd1d,
        FilterKind::Source => 0x5851_f42d_4c95_7f2d,
    };
    let hash = (address.digest() ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let position = hash >> (64 - super::registry::FILTER_BITS_LOG2);
    ((position >> 6) as u32, 1 << (position & 63))
}

#[cfg(test)]
mod tests;
