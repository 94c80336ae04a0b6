//! IPv4 (RFC 791) and IPv6 (RFC 8200).

use super::{Be16, Be32, Checksum, Delta, Plain, plain};
use crate::abi::{Addr4, Addr6, Address};

/// Values of the protocol field (IANA protocol numbers).
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// The IPv4 header without options.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Ipv4 {
    /// Version (4 bits) and header length in 4-byte words (4 bits).
    pub version_ihl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Header and payload, bytes.
    pub total_length: Be16,
    /// Which fragments belong together.
    pub identification: Be16,
    /// Flags (3 bits) and fragment offset in 8-byte units (13 bits).
    pub flags_offset: Be16,
    /// Hops left.
    pub ttl: u8,
    /// What follows: see [`protocol`].
    pub protocol: u8,
    /// Checksum of this header.
    pub check: u16,
    /// From whom.
    pub source: Addr4,
    /// To whom.
    pub destination: Addr4,
}

impl Ipv4 {
    /// "More fragments" and "don't fragment" of `flags_offset`.
    pub const MORE_FRAGMENTS: u16 = 0x2000;
    /// The flag that forbids fragmentation.
    pub const DONT_FRAGMENT: u16 = 0x4000;
    /// The fragment offset.
    pub const OFFSET: u16 = 0x1fff;
}

/// The IPv6 header.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Ipv6 {
    /// Version (4 bits), traffic class (8), flow label (20).
    pub version_class_label: Be32,
    /// What follows this header, bytes.
    pub payload_length: Be16,
    /// What follows: see [`protocol`].
    pub next_header: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// From whom.
    pub source: Addr6,
    /// To whom.
    pub destination: Addr6,
}

/// The first two bytes of an IPv6 extension header.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(2))]
pub struct ExtensionHeader {
    /// What follows.
    pub next_header: u8,
    /// Length in 8-byte units, not counting the first 8 bytes.
    pub length: u8,
}

/// The IPv6 fragment header (RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FragmentHeader {
    /// What follows.
    pub next_header: u8,
    /// Zero.
    pub reserved: u8,
    /// Offset in 8-byte units (13 bits), reserved (2), "more fragments" (1).
    pub offset_more: Be16,
    /// Which fragments belong together.
    pub identification: Be32,
}

/// What the datapath does with either header.
pub trait IpHeader: Plain {
    /// The family's address.
    type Addr: Address;

    /// From whom.
    fn source(&self) -> Self::Addr;

    /// To whom.
    fn destination(&self) -> Self::Addr;

    /// What follows; for IPv6, the first extension header if there is one.
    fn protocol(&self) -> u8;

    /// Hops left.
    fn hops(&self) -> u8;

    /// Takes one hop off; the caller has seen that there is one. Returns by how much that changes the
    /// sum of the header's words, its own checksum included.
    fn decrement_hops(&mut self) -> Delta;

    /// Replaces both addresses; `delta` is what that does to a checksum.
    fn rewrite(&mut self, source: Self::Addr, destination: Self::Addr, delta: Delta);

    /// Bytes after the header without options, by the header's own word.
    fn payload_length(&self) -> u32;

    /// Whether a router may cut the packet into fragments.
    fn may_be_fragmented(&self) -> bool;

    /// Makes this the header of an answer to the packet it headed: addresses swapped, `payload`
    /// bytes of `protocol` to follow, 64 hops.
    fn turn_around(&mut self, protocol: u8, payload: u16);

    /// Makes this the header of an answer to the packet that another header stands before.
    fn answer(&mut self, original: &Self, protocol: u8, payload: u16);
}

const REPLY_HOPS: u8 = 64;

impl IpHeader for Ipv4 {
    type Addr = Addr4;

    #[inline(always)]
    fn source(&self) -> Addr4 {
        self.source
    }

    #[inline(always)]
    fn destination(&self) -> Addr4 {
        self.destination
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.protocol
    }

    #[inline(always)]
    fn hops(&self) -> u8 {
        self.ttl
    }

    #[inline(always)]
    fn decrement_hops(&mut self) -> Delta {
        const ONE_LESS: Delta = Delta::from_raw(!u16::from_ne_bytes([1, 0]));
        self.ttl = self.ttl.wrapping_sub(1);
        self.check = ONE_LESS.apply(self.check);
        Delta::ZERO
    }

    #[inline(always)]
    fn rewrite(&mut self, source: Addr4, destination: Addr4, delta: Delta) {
        self.source = source;
        self.destination = destination;
        self.check = delta.apply(self.check);
    }

    #[inline(always)]
    fn payload_length(&self) -> u32 {
        u32::from(self.total_length.get()).saturating_sub(u32::from(self.version_ihl & 0xf) * 4)
    }

    #[inline(always)]
    fn may_be_fragmented(&self) -> bool {
        self.flags_offset.get() & Self::DONT_FRAGMENT == 0
    }

    #[inline(always)]
    fn turn_around(&mut self, protocol: u8, payload: u16) {
        core::mem::swap(&mut self.source, &mut self.destination);
        self.begin(protocol, payload);
    }

    #[inline(always)]
    fn answer(&mut self, original: &Self, protocol: u8, payload: u16) {
        self.source = original.destination;
        self.destination = original.source;
        self.begin(protocol, payload);
    }
}

impl Ipv4 {
    /// All but the addresses of a packet of ours.
    #[inline(always)]
    fn begin(&mut self, protocol: u8, payload: u16) {
        self.version_ihl = 0x45;
        self.tos = 0;
        self.total_length = Be16::new(payload.wrapping_add(20));
        self.identification = Be16::default();
        self.flags_offset = Be16::new(Self::DONT_FRAGMENT);
        self.ttl = REPLY_HOPS;
        self.protocol = protocol;
        self.check = Checksum::new()
            .add(u16::from_ne_bytes([self.version_ihl, self.tos]))
            .add(self.total_length.raw())
            .add(self.flags_offset.raw())
            .add(u16::from_ne_bytes([self.ttl, self.protocol]))
            .add_words(&self.source.0)
            .add_words(&self.destination.0)
            .finish();
    }
}

impl IpHeader for Ipv6 {
    type Addr = Addr6;

    #[inline(always)]
    fn source(&self) -> Addr6 {
        self.source
    }

    #[inline(always)]
    fn destination(&self) -> Addr6 {
        self.destination
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.next_header
    }

    #[inline(always)]
    fn hops(&self) -> u8 {
        self.hop_limit
    }

    #[inline(always)]
    fn decrement_hops(&mut self) -> Delta {
        const ONE_LESS: Delta = Delta::from_raw(!u16::from_ne_bytes([0, 1]));
        self.hop_limit = self.hop_limit.wrapping_sub(1);
        ONE_LESS
    }

    #[inline(always)]
    fn rewrite(&mut self, source: Addr6, destination: Addr6, _delta: Delta) {
        self.source = source;
        self.destination = destination;
    }

    #[inline(always)]
    fn payload_length(&self) -> u32 {
        u32::from(self.payload_length.get())
    }

    #[inline(always)]
    fn may_be_fragmented(&self) -> bool {
        false
    }

    #[inline(always)]
    fn turn_around(&mut self, protocol: u8, payload: u16) {
        core::mem::swap(&mut self.source, &mut self.destination);
        self.begin(protocol, payload);
    }

    #[inline(always)]
    fn answer(&mut self, original: &Self, protocol: u8, payload: u16) {
        self.source = original.destination;
        self.destination = original.source;
        self.begin(protocol, payload);
    }
}

impl Ipv6 {
    /// All but the addresses of a packet of ours.
    #[inline(always)]
    const fn begin(&mut self, protocol: u8, payload: u16) {
        self.version_class_label = Be32::new(6 << 28);
        self.payload_length = Be16::new(payload);
        self.next_header = protocol;
        self.hop_limit = REPLY_HOPS;
    }
}

plain! {
    Ipv4 => 20, 2;
    Ipv6 => 40, 2;
    ExtensionHeader => 2, 2;
    FragmentHeader => 8, 2;
}
