//! TCP (RFC 9293), UDP (RFC 768), SCTP's common header (RFC 9260), ICMP echo (RFC 792, RFC 4443).

use super::{Be16, Be32, plain};

/// Bits of the TCP flags byte.
pub mod tcp_flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
}

/// The TCP header without options.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Tcp {
    /// Source port.
    pub source: Be16,
    /// Destination port.
    pub destination: Be16,
    /// Sequence number.
    pub sequence: Be32,
    /// Acknowledgement number.
    pub acknowledgement: Be32,
    /// Header length in 4-byte words (4 bits), reserved (4 bits).
    pub data_offset: u8,
    /// See [`tcp_flag`].
    pub flags: u8,
    /// Receive window.
    pub window: Be16,
    /// Checksum of pseudo-header, header and payload.
    pub check: u16,
    /// Urgent pointer.
    pub urgent: Be16,
}

/// The UDP header.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Udp {
    /// Source port.
    pub source: Be16,
    /// Destination port.
    pub destination: Be16,
    /// Header and payload, bytes.
    pub length: Be16,
    /// Checksum of pseudo-header, header and payload; zero: none.
    pub check: u16,
}

/// SCTP's common header.
///
/// Its CRC covers the ports but not the addresses, so a packet whose ports stay keeps its
/// checksum under NAT.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Sctp {
    /// Source port.
    pub source: Be16,
    /// Destination port.
    pub destination: Be16,
    /// Verification tag.
    pub tag: Be32,
    /// CRC of the whole packet.
    pub crc: Be32,
}

/// The first eight bytes of an ICMP or `ICMPv6` message.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum.
    pub check: u16,
    /// Identifier and sequence number of an echo; unused in "unreachable".
    pub rest: [Be16; 2],
}

plain! {
    Tcp => 20, 2;
    Udp => 8, 2;
    Sctp => 12, 2;
    Icmp => 8, 2;
}
