//! IPv4 (RFC 791) and IPv6 (RFC 8200).

use super::{Be16, Be32, plain};
use crate::abi::{Addr4, Addr6};

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

plain! {
    Ipv4 => 20, 2;
    Ipv6 => 40, 2;
    ExtensionHeader => 2, 2;
    FragmentHeader => 8, 2;
}
