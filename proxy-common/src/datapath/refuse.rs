//! Answers in a service's name: TCP reset, ICMP port unreachable, echo reply.
//!
//! An answer is made from the packet it answers, in its frame, and goes back the way that came.
//! Packets with IPv4 options or IPv6 extension headers are not answered.

use crate::abi::{Address, Family};
use crate::wire::{
    Be16, Be32, Checksum, Delta, Ethernet, Frame, Icmp, IpHeader, Tcp, protocol, tcp_flag,
};

use super::headers::{self, Headers, Layout, Transport};

const TCP_LENGTH: u16 = 20;
const TCP_CHECK_OFFSET: u32 = 16;
const UDP_CHECK_OFFSET: u32 = 6;
const ICMP_LENGTH: u32 = 8;

/// Turns the packet into its refusal or, if it is larger than an `mtu` that is not zero, into the error
/// that says so. False: it can't be answered (or must not be: a reset is not answered by a reset), and
/// the frame is no longer to be used.
#[inline(never)]
pub(super) fn refuse<F: Family, P: Frame>(frame: &mut P, layout: &Layout, mtu: u16) -> bool {
    if layout.options != 0 {
        return false;
    }
    if mtu != 0 {
        report::<F, P>(frame, layout, too_large::<F>(), mtu)
    } else if layout.protocol == u32::from(protocol::TCP) {
        reset_connection::<F, P>(frame, layout).is_some()
    } else {
        report::<F, P>(frame, layout, port_unreachable::<F>(), 0)
    }
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

/// Type and code of the ICMP error "port unreachable": RFC 792, RFC 4443 section 3.1.
#[inline(always)]
const fn port_unreachable<F: Family>() -> u32 {
    if F::IS_V6 { 0x0104 } else { 0x0303 }
}

/// "Fragmentation needed" (RFC 1191 section 4), "packet too big" (RFC 4443 section 3.2).
#[inline(always)]
const fn too_large<F: Family>() -> u32 {
    if F::IS_V6 { 0x0200 } else { 0x0304 }
}

/// Puts an ICMP error in front of the packet, and cuts the packet to what it quotes.
#[inline(never)]
fn report<F: Family, P: Frame>(frame: &mut P, layout: &Layout, error: u32, mtu: u16) -> bool {
    let link = 14 + (layout.tags & 0xc);
    // The kernel cuts no frame before a checksum that it is still to complete.
    let is_tcp = layout.protocol == u32::from(protocol::TCP);
    let (transport, check) = if is_tcp {
        (20, TCP_CHECK_OFFSET)
    } else {
        (8, UDP_CHECK_OFFSET)
    };
    let partial = P::CHECKSUM_OFFLOAD && frame.checksum_is_partial(link + F::HEADER + check);
    let quoted = F::HEADER + transport;
    if frame.truncate(link + quoted).is_none()
        || frame.make_room(link, F::HEADER + ICMP_LENGTH).is_none()
    {
        return false;
    }
    head::<F, P>(frame, layout, ICMP_LENGTH + quoted, error, mtu).is_some()
        && seal::<F, P>(frame, layout, partial).is_some()
}

/// Writes the error's own headers.
#[inline(never)]
fn head<F: Family, P: Frame>(
    frame: &mut P,
    layout: &Layout,
    length: u32,
    error: u32,
    mtu: u16,
) -> Option<()> {
    let mut cursor = frame.cursor();
    swap_link(cursor.take::<Ethernet>()?);
    cursor.skip(layout.tags & 0xc);
    let ip = cursor.take::<F::Header>()?;
    let icmp = cursor.take::<Icmp>()?;
    let original = cursor.take::<F::Header>()?;
    #[expect(clippy::cast_possible_truncation, reason = "at most 68")]
    ip.answer(original, F::ICMP, length as u16);
    let [.., kind, code] = error.to_be_bytes();
    let rest = [Be16::new(0), Be16::new(mtu)];
    let mut sum = Checksum::new()
        .add(u16::from_ne_bytes([kind, code]))
        .add(rest[1].raw());
    if F::IS_V6 {
        #[expect(clippy::cast_possible_truncation, reason = "at most 68")]
        let pseudo = pseudo_header::<F>(ip, F::ICMP, length as u16);
        sum = sum.add(pseudo.fold());
    }
    // Of what is quoted, the checksum has yet to be made.
    *icmp = Icmp {
        kind,
        code,
        check: sum.fold(),
        rest,
    };
    Some(())
}

/// Makes the error's checksum, of what its header's is so far and of what it quotes.
#[inline(never)]
fn seal<F: Family, P: Frame>(frame: &mut P, layout: &Layout, partial: bool) -> Option<()> {
    let mut cursor = frame.cursor();
    cursor.skip(14 + (layout.tags & 0xc) + F::HEADER);
    let icmp = cursor.take::<Icmp>()?;
    let mut sum = Checksum::new().add(icmp.check);
    sum = if F::IS_V6 {
        sum.add_words(cursor.take::<[u16; 20]>()?)
    } else {
        sum.add_words(cursor.take::<[u16; 10]>()?)
    };
    icmp.check = if layout.protocol == u32::from(protocol::TCP) {
        quote(sum, cursor.take::<[u16; 10]>()?, TCP_CHECK_OFFSET, partial)
    } else {
        quote(sum, cursor.take::<[u16; 4]>()?, UDP_CHECK_OFFSET, partial)
    };
    Some(())
}

/// The checksum of an error that quotes these words, of which one is a checksum itself.
///
/// A partial one is completed on the packet's way out, over what is left of the packet by then, or
/// never, if nobody looks at checksums: the error's own must be right in the first case.
#[inline(always)]
fn quote<const N: usize>(sum: Checksum, words: &[u16; N], check: u32, partial: bool) -> u16 {
    let quoted = Checksum::new().add_words(words);
    let sum = sum.add(quoted.fold());
    if !partial {
        return sum.finish();
    }
    let before = words.get(check as usize / 2).copied().unwrap_or_default();
    let change = Delta::of(&[before], &[quoted.finish()]);
    sum.add(change.raw()).finish()
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
