//! Finding the headers of a frame, once.

use crate::abi::{Family, FlowKey};
use crate::wire::{
    Be16, Cursor, Ethernet, ExtensionHeader, Frame, Icmp, IpHeader, Ipv4, Ipv6, Sctp, Tcp, Udp,
    Vlan, ethertype, protocol,
};

/// How many IPv6 extension headers are walked. A packet with more passes untouched.
pub const MAX_EXTENSION_HEADERS: u32 = 4;

/// How long they may be together, bytes. A packet with longer ones passes untouched.
pub const MAX_EXTENSION_BYTES: u32 = 256;

/// Bytes that headers take up where none but Ethernet and the IP header stands before TCP's. Asking for
/// more would have the kernel copy payload in front of the pages that hold the rest.
#[inline(always)]
#[must_use]
pub const fn plain_length<F: Family>() -> u32 {
    14 + F::HEADER + 20
}

/// Makes sure that a cursor can reach all headers of a packet with tags, options or extension headers.
#[inline(always)]
pub fn pull<F: Family, P: Frame>(frame: &mut P) {
    const MAX_OPTIONS: u32 = 40;
    let tags = 4 * MAX_TAGS;
    frame.pull(plain_length::<F>() + tags);
    let tag = frame.offloaded_tag();
    let mut cursor = frame.cursor();
    if Link::parse(&mut cursor, tag).is_none() {
        return;
    }
    if F::IS_V6 {
        let extended =
            |ip: Ipv6| is_extension(ip.next_header) || ip.next_header == protocol::FRAGMENT;
        if cursor.peek::<Ipv6>().is_some_and(extended) {
            frame.pull(plain_length::<F>() + tags + MAX_EXTENSION_BYTES);
        }
    } else if cursor
        .peek::<Ipv4>()
        .is_some_and(|ip| ip.version_ihl != 0x45)
    {
        frame.pull(plain_length::<F>() + tags + MAX_OPTIONS);
    }
}

/// How many VLAN tags are walked, a tag kept beside the frame included.
pub const MAX_TAGS: u32 = 2;

/// The link layer: Ethernet and its tags.
pub struct Link<'f> {
    /// The Ethernet header.
    pub ethernet: &'f mut Ethernet,
    /// What follows the tags.
    pub ethertype: Be16,
    /// Tags, in the form of [`DeviceKey::vlan`](crate::abi::DeviceKey::vlan).
    pub vlan: u32,
    /// Bytes of Ethernet header and tags in the frame.
    pub length: u32,
}

impl<'f> Link<'f> {
    const TAGGED: u32 = 1 << 31;

    /// Parses the link layer. None: too short, or more than [`MAX_TAGS`] tags.
    #[inline(always)]
    pub fn parse(cursor: &mut Cursor<'f>, offloaded_tag: Option<u16>) -> Option<Self> {
        let ethernet = cursor.take::<Ethernet>()?;
        let mut link = Self {
            ethertype: ethernet.ethertype,
            ethernet,
            vlan: 0,
            length: 14,
        };
        let mut room = MAX_TAGS;
        if let Some(tci) = offloaded_tag {
            link.vlan = Self::TAGGED | u32::from(tci & 0xfff) << 16;
            room -= 1;
        }
        for _ in 0..MAX_TAGS {
            if link.ethertype != ethertype::VLAN && link.ethertype != ethertype::QINQ {
                break;
            }
            if room == 0 {
                return None;
            }
            room -= 1;
            let tag = cursor.take::<Vlan>()?;
            link.vlan |= if link.vlan == 0 {
                Self::TAGGED | u32::from(tag.id()) << 16
            } else {
                u32::from(tag.id())
            };
            link.ethertype = tag.ethertype;
            link.length += 4;
        }
        Some(link)
    }
}

/// What follows the IP header and its options.
pub enum Transport<'f> {
    /// TCP.
    Tcp(&'f mut Tcp),
    /// UDP.
    Udp(&'f mut Udp),
    /// SCTP.
    Sctp(&'f mut Sctp),
    /// An ICMP echo request or reply.
    Echo(&'f mut Icmp),
    /// A fragment: the transport header is not here, or does not speak for the rest.
    Fragment,
}

impl Transport<'_> {
    /// The protocol, and TCP's flags (of others: 0). For echo and fragments, protocol 0.
    #[inline(always)]
    #[must_use]
    pub const fn protocol(&self) -> (u8, u8) {
        match self {
            Self::Tcp(tcp) => (protocol::TCP, tcp.flags),
            Self::Udp(_) => (protocol::UDP, 0),
            Self::Sctp(_) => (protocol::SCTP, 0),
            Self::Echo(_) | Self::Fragment => (0, 0),
        }
    }
}

/// The headers of a packet of family `F`, each found once.
pub struct Headers<'f, F: Family> {
    /// Ethernet and tags.
    pub link: Link<'f>,
    /// IPv4 or IPv6.
    pub ip: &'f mut F::Header,
    /// Offset of the transport header from the start of the frame, bytes.
    pub transport_offset: u32,
    /// What follows.
    pub transport: Transport<'f>,
}

impl<F: Family> Headers<'_, F> {
    /// The packet's place in the flow tables; none for echo and fragments.
    #[inline(always)]
    #[must_use]
    pub fn flow_key(&self) -> Option<FlowKey<F>> {
        let (source_port, destination_port, protocol) = match &self.transport {
            Transport::Tcp(tcp) => (tcp.source, tcp.destination, protocol::TCP),
            Transport::Udp(udp) => (udp.source, udp.destination, protocol::UDP),
            Transport::Sctp(sctp) => (sctp.source, sctp.destination, protocol::SCTP),
            Transport::Echo(_) | Transport::Fragment => return None,
        };
        Some(FlowKey {
            source: self.ip.source(),
            destination: self.ip.destination(),
            source_port,
            destination_port,
            protocol,
            pad: [0; 3],
        })
    }
}

/// Whether nothing but Ethernet and the IP header without options stands before the transport
/// header, and the packet is whole: nearly every packet. All offsets are constants then.
#[inline(always)]
pub fn is_plain<F: Family, P: Frame>(frame: &mut P) -> bool {
    if frame.offloaded_tag().is_some() {
        return false;
    }
    let mut cursor = frame.cursor();
    let Some(ethernet) = cursor.take::<Ethernet>() else {
        return false;
    };
    if ethernet.ethertype != F::ETHERTYPE {
        return false;
    }
    if F::IS_V6 {
        cursor.peek::<Ipv6>().is_some_and(|ip| {
            ip.version_class_label.get() >> 28 == 6
                && !is_extension(ip.next_header)
                && ip.next_header != protocol::FRAGMENT
        })
    } else {
        const FRAGMENT: Be16 = Be16::new(Ipv4::MORE_FRAGMENTS | Ipv4::OFFSET);
        cursor
            .peek::<Ipv4>()
            .is_some_and(|ip| ip.version_ihl == 0x45 && ip.flags_offset.raw() & FRAGMENT.raw() == 0)
    }
}

/// Finds the headers of a packet that [`is_plain`]. None: the protocol is none that we handle.
#[inline(always)]
pub fn parse_plain<F: Family, P: Frame>(frame: &mut P) -> Option<Headers<'_, F>> {
    let mut cursor = frame.cursor();
    let ethernet = cursor.take::<Ethernet>()?;
    let link = Link {
        ethertype: ethernet.ethertype,
        ethernet,
        vlan: 0,
        length: 14,
    };
    let ip = cursor.take::<F::Header>()?;
    let transport = transport::<F>(&mut cursor, ip.protocol())?;
    Some(Headers {
        link,
        ip,
        transport_offset: 14 + F::HEADER,
        transport,
    })
}

/// Where the headers of a packet were found.
///
/// Kept in a map, not on the stack: what is read back from there is a plain number to the BPF verifier,
/// so what follows is checked once and not for every way in which the headers can be found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Layout {
    /// Tags, in the form of [`DeviceKey::vlan`](crate::abi::DeviceKey::vlan).
    pub vlan: u32,
    /// Bytes of tags in the frame.
    pub tags: u32,
    /// Bytes of IPv4 options or IPv6 extension headers.
    pub options: u32,
    /// Transport protocol; [`Layout::FRAGMENT`] for a fragment.
    pub protocol: u32,
}

impl Layout {
    /// Stands for the protocol of a fragment.
    pub const FRAGMENT: u32 = 256;

    /// Of headers just found.
    #[inline(always)]
    #[must_use]
    pub const fn of<F: Family>(headers: &Headers<'_, F>) -> Self {
        Self {
            vlan: headers.link.vlan,
            tags: headers.link.length - 14,
            options: headers.transport_offset - headers.link.length - F::HEADER,
            protocol: match &headers.transport {
                Transport::Tcp(_) => protocol::TCP as u32,
                Transport::Udp(_) => protocol::UDP as u32,
                Transport::Sctp(_) => protocol::SCTP as u32,
                Transport::Echo(_) => F::ICMP as u32,
                Transport::Fragment => Self::FRAGMENT,
            },
        }
    }
}

/// Finds the headers again where they were found before, in a frame that was not reshaped since.
#[inline(always)]
pub fn find<'f, F: Family, P: Frame>(frame: &'f mut P, layout: &Layout) -> Option<Headers<'f, F>> {
    let (tags, options) = (layout.tags & 0xc, layout.options & 0xffe);
    let mut cursor = frame.cursor();
    let ethernet = cursor.take::<Ethernet>()?;
    let link = Link {
        ethertype: F::ETHERTYPE,
        ethernet,
        vlan: layout.vlan,
        length: 14 + tags,
    };
    cursor.skip(tags);
    let ip = cursor.take::<F::Header>()?;
    cursor.skip(options);
    let transport = if layout.protocol == Layout::FRAGMENT {
        Transport::Fragment
    } else {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a protocol number is a byte"
        )]
        transport::<F>(&mut cursor, layout.protocol as u8)?
    };
    Some(Headers {
        transport_offset: link.length + F::HEADER + options,
        link,
        ip,
        transport,
    })
}

/// Finds the headers of a packet of family `F`. None: it is none that we handle.
#[inline(always)]
pub fn parse<F: Family, P: Frame>(frame: &mut P) -> Option<Headers<'_, F>> {
    let tag = frame.offloaded_tag();
    let mut cursor = frame.cursor();
    let link = Link::parse(&mut cursor, tag)?;
    if link.ethertype != F::ETHERTYPE {
        return None;
    }
    let (next, options, fragment) = if F::IS_V6 {
        v6_chain(&cursor)?
    } else {
        v4_options(&cursor)?
    };
    let ip = cursor.take::<F::Header>()?;
    cursor.skip(options);
    let transport_offset = link.length + F::HEADER + options;
    let transport = if fragment {
        Transport::Fragment
    } else {
        transport::<F>(&mut cursor, next)?
    };
    Some(Headers {
        link,
        ip,
        transport_offset,
        transport,
    })
}

#[inline(always)]
fn transport<'f, F: Family>(cursor: &mut Cursor<'f>, next: u8) -> Option<Transport<'f>> {
    Some(match next {
        protocol::TCP => Transport::Tcp(cursor.take::<Tcp>()?),
        protocol::UDP => Transport::Udp(cursor.take::<Udp>()?),
        protocol::SCTP => Transport::Sctp(cursor.take::<Sctp>()?),
        next if next == F::ICMP => echo::<F>(cursor)?,
        _ => return None,
    })
}

#[inline(always)]
fn echo<'f, F: Family>(cursor: &mut Cursor<'f>) -> Option<Transport<'f>> {
    let icmp = cursor.take::<Icmp>()?;
    (icmp.kind == super::refuse::echo_request::<F>()).then_some(Transport::Echo(icmp))
}

/// Protocol, bytes of options, whether it is a fragment.
#[inline(always)]
fn v4_options(cursor: &Cursor<'_>) -> Option<(u8, u32, bool)> {
    let ip = cursor.peek::<Ipv4>()?;
    let words = u32::from(ip.version_ihl & 0xf);
    if ip.version_ihl >> 4 != 4 || words < 5 {
        return None;
    }
    let fragment = ip.flags_offset.get() & (Ipv4::MORE_FRAGMENTS | Ipv4::OFFSET) != 0;
    Some((ip.protocol, (words - 5) * 4, fragment))
}

/// Protocol, bytes of extension headers, whether it is a fragment.
#[inline(always)]
fn v6_chain(cursor: &Cursor<'_>) -> Option<(u8, u32, bool)> {
    let mut walk = cursor.fork();
    let ip = walk.peek::<Ipv6>()?;
    if ip.version_class_label.get() >> 28 != 6 {
        return None;
    }
    walk.skip(40);
    let mut next = ip.next_header;
    let mut bytes = 0;
    for _ in 0..MAX_EXTENSION_HEADERS {
        // One way through the loop's body, not one per kind: the verifier follows them all.
        if !is_extension(next) {
            break;
        }
        let header = walk.peek::<ExtensionHeader>()?;
        let length = (u32::from(header.length) + 1) * 8;
        walk.skip(length);
        bytes += length;
        next = header.next_header;
    }
    if bytes > MAX_EXTENSION_BYTES {
        return None;
    }
    Some((next, bytes, next == protocol::FRAGMENT))
}

#[inline(always)]
const fn is_extension(next: u8) -> bool {
    next < 64 && 1 << next & EXTENSIONS != 0
}

/// The extension headers that are walked, as bits by protocol number. A fragment header is where
/// the walk ends, that of an atomic fragment too.
const EXTENSIONS: u64 =
    1 << protocol::HOP_BY_HOP | 1 << protocol::ROUTING | 1 << protocol::DESTINATION_OPTIONS;
