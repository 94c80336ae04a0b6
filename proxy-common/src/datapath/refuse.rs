//! Answers in a service's name: TCP reset, ICMP port unreachable, echo reply.
//!
//! An answer is made from the packet it answers, in its frame, and goes back the way that came.
//! Packets with IPv4 options or IPv6 extension headers are not answered.

use crate::abi::{Address, Family};
use crate::wire::{
    Be16, Be32, Checksum, Cursor, Delta, Ethernet, Frame, Icmp, IpHeader, Tcp, protocol, tcp_flag,
};

use super::headers::{self, Headers, Layout, Transport};

const TCP_LENGTH: u16 = 20;
const TCP_CHECK_OFFSET: u32 = 16;
const ICMP_LENGTH: u32 = 8;
/// Of the refused packet, what follows its IP header (RFC 792: 64 bits).
const QUOTED_BYTES: u32 = 8;

/// Turns the packet into its refusal. False: it can't be answered (or must not be: a reset is not
/// answered by a reset), and the frame is no longer to be used.
#[inline(never)]
pub(super) fn refuse<F: Family, P: Frame>(frame: &mut P, layout: &Layout) -> bool {
    if layout.options != 0 {
        return false;
    }
    let answered = if layout.protocol == u32::from(protocol::TCP) {
        reset_connection::<F, P>(frame, layout)
    } else {
        unreachable::<F, P>(frame, layout)
    };
    answered.is_some()
}

#[inline(always)]
fn reset_connection<F: Family, P: Frame>(frame: &mut P, layout: &Layout) -> Option<()> {
    let headers = headers::find::<F, P>(frame, layout)?;
    if headers.transport.protocol().1 & tcp_flag::RST != 0 {
        return None;
    }
    let check = headers.transport_offset + TCP_CHECK_OFFSET;
    let partial = P::CHECKSUM_OFFLOAD && frame.checksum_is_partial(check);
    let length = reset::<F>(headers::find::<F, P>(frame, layout)?, partial)?;
    frame.truncate(length)
}

/// Makes a segment into the reset that answers it (RFC 9293 section 3.10.7.1): the length to cut to.
#[inline(always)]
fn reset<F: Family>(headers: Headers<'_, F>, partial: bool) -> Option<u32> {
    let Transport::Tcp(tcp) = headers.transport else {
        return None;
    };
    let header = u32::from(tcp.data_offset >> 4) * 4;
    let mut length = headers.ip.payload_length().saturating_sub(header);
    length += u32::from(tcp.flags & tcp_flag::SYN != 0);
    length += u32::from(tcp.flags & tcp_flag::FIN != 0);
    if tcp.flags & tcp_flag::ACK != 0 {
        tcp.sequence = tcp.acknowledgement;
        tcp.acknowledgement = Be32::new(0);
        tcp.flags = tcp_flag::RST;
    } else {
        tcp.acknowledgement = Be32::new(tcp.sequence.get().wrapping_add(length));
        tcp.sequence = Be32::new(0);
        tcp.flags = tcp_flag::RST | tcp_flag::ACK;
    }
    core::mem::swap(&mut tcp.source, &mut tcp.destination);
    tcp.data_offset = 5 << 4;
    tcp.window = Be16::new(0);
    tcp.urgent = Be16::new(0);
    swap_link(headers.link.ethernet);
    headers.ip.turn_around(protocol::TCP, TCP_LENGTH);
    let pseudo = pseudo_header::<F>(headers.ip, protocol::TCP, TCP_LENGTH);
    tcp.check = if partial {
        pseudo.fold()
    } else {
        segment(pseudo, tcp).finish()
    };
    Some(headers.transport_offset + u32::from(TCP_LENGTH))
}

#[inline(always)]
fn segment(sum: Checksum, tcp: &Tcp) -> Checksum {
    let words = |value: Be32| {
        let high = (value.get() >> 16) as u16;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the low half is what is meant"
        )]
        let low = value.get() as u16;
        [Be16::new(high).raw(), Be16::new(low).raw()]
    };
    sum.add(tcp.source.raw())
        .add(tcp.destination.raw())
        .add_words(&words(tcp.sequence))
        .add_words(&words(tcp.acknowledgement))
        .add(u16::from_ne_bytes([tcp.data_offset, tcp.flags]))
}

/// The sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1).
#[inline(always)]
fn pseudo_header<F: Family>(ip: &F::Header, protocol: u8, length: u16) -> Checksum {
    let sum = ip
        .destination()
        .checksum(ip.source().checksum(Checksum::new()));
    sum.add(Be16::new(u16::from(protocol)).raw())
        .add(Be16::new(length).raw())
}

#[inline(always)]
fn swap_link(ethernet: &mut Ethernet) {
    core::mem::swap(&mut ethernet.source, &mut ethernet.destination);
}

/// Puts an ICMP port unreachable in front of the packet, and cuts the packet to what it quotes.
#[inline(always)]
fn unreachable<F: Family, P: Frame>(frame: &mut P, layout: &Layout) -> Option<()> {
    let quoted = F::HEADER + QUOTED_BYTES;
    let tags = layout.tags & 0xc;
    let link = 14 + tags;
    frame.make_room(link, F::HEADER + ICMP_LENGTH)?;
    frame.truncate(link + F::HEADER + ICMP_LENGTH + quoted)?;
    let mut cursor = frame.cursor();
    swap_link(cursor.take::<Ethernet>()?);
    cursor.skip(tags);
    let ip = cursor.take::<F::Header>()?;
    let icmp = cursor.take::<Icmp>()?;
    let original = cursor.peek::<F::Header>()?;
    *ip = original;
    #[expect(clippy::cast_possible_truncation, reason = "at most 56")]
    let length = (ICMP_LENGTH + quoted) as u16;
    ip.turn_around(F::ICMP, length);
    // RFC 792 destination unreachable, RFC 4443 section 3.1: code "port unreachable".
    let (kind, code) = if F::IS_V6 { (1, 4) } else { (3, 3) };
    *icmp = Icmp {
        kind,
        code,
        check: 0,
        rest: [Be16::default(); 2],
    };
    let mut sum = Checksum::new().add(u16::from_ne_bytes([kind, code]));
    if F::IS_V6 {
        let pseudo = pseudo_header::<F>(ip, F::ICMP, length);
        sum = sum.add(pseudo.fold());
    }
    icmp.check = quote::<F>(sum, &mut cursor)?.finish();
    Some(())
}

/// Adds what is quoted of the refused packet.
#[inline(always)]
fn quote<F: Family>(sum: Checksum, cursor: &mut Cursor<'_>) -> Option<Checksum> {
    let sum = if F::IS_V6 {
        sum.add_words(cursor.take::<[u16; 20]>()?)
    } else {
        sum.add_words(cursor.take::<[u16; 10]>()?)
    };
    Some(sum.add_words(cursor.take::<[u16; 4]>()?))
}

/// ICMP type of an echo request.
#[inline(always)]
pub(super) const fn echo_request<F: Family>() -> u8 {
    if F::IS_V6 { 128 } else { 8 }
}

/// Makes an echo request into its reply. The address is one that no host has: nobody else answers.
#[inline(always)]
pub(super) fn answer_echo<F: Family>(ethernet: &mut Ethernet, ip: &mut F::Header, icmp: &mut Icmp) {
    let reply = if F::IS_V6 { 129 } else { 0 };
    let before = u16::from_ne_bytes([icmp.kind, icmp.code]);
    icmp.kind = reply;
    icmp.check = Delta::of(&[before], &[u16::from_ne_bytes([reply, icmp.code])]).apply(icmp.check);
    swap_link(ethernet);
    #[expect(clippy::cast_possible_truncation, reason = "it was a 16-bit number")]
    let length = ip.payload_length() as u16;
    ip.turn_around(F::ICMP, length);
}
