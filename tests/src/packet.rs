//! Frames by their fields: built with correct checksums, and told apart field by field.
//!
//! Nothing here is shared with `proxy_common::wire`: a case that compares the datapath's output with a
//! frame built here compares two independent writers of the same RFCs.

mod checksum;
mod dissect;

use std::net::{IpAddr, SocketAddr};

pub use checksum::{crc32c, internet_checksum, ones_complement_sum};
pub use dissect::{difference, dissect};

/// Protocol numbers (IANA).
pub mod number {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// `ICMPv6`.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// TCP flags.
pub mod flag {
    /// FIN.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// RST.
    pub const RST: u8 = 0x04;
    /// PSH.
    pub const PSH: u8 = 0x08;
    /// ACK.
    pub const ACK: u8 = 0x10;
}

/// Link-layer addresses of a frame that a case sends, unless it says otherwise.
pub const SENT_TO: [u8; 6] = [0x02, 0xaa, 0, 0, 0, 0x01];
/// See [`SENT_TO`].
pub const SENT_FROM: [u8; 6] = [0x02, 0xaa, 0, 0, 0, 0x02];

/// What follows the IP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp {
        /// Ports: source, destination.
        ports: (u16, u16),
        /// Sequence number.
        sequence: u32,
        /// Acknowledgement number.
        acknowledgement: u32,
        /// See [`flag`].
        flags: u8,
        /// Window.
        window: u16,
        /// Options, a multiple of 4 bytes.
        options: Vec<u8>,
    },
    /// UDP.
    Udp {
        /// Ports: source, destination.
        ports: (u16, u16),
        /// False: sent as zero.
        checksum: bool,
    },
    /// SCTP: the common header, with its CRC over what follows.
    Sctp {
        /// Ports: source, destination.
        ports: (u16, u16),
        /// Verification tag.
        tag: u32,
    },
    /// ICMP or `ICMPv6`.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// The four bytes after the checksum.
        rest: [u8; 4],
    },
    /// Any other protocol; all its bytes are payload.
    Other(u8),
}

/// A frame by its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Link-layer destination and source.
    pub link: ([u8; 6], [u8; 6]),
    /// Tags, the outer one first: type and TCI.
    pub tags: Vec<(u16, u16)>,
    /// From whom.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub hops: u8,
    /// DSCP and ECN.
    pub class: u8,
    /// IPv4 identification.
    pub identification: u16,
    /// IPv4 flags and fragment offset.
    pub flags_offset: u16,
    /// IPv4 options, a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// IPv6 flow label.
    pub label: u32,
    /// IPv6 extension headers: their own number, and their bytes after the first (next header).
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// What follows.
    pub transport: Transport,
    /// What follows that.
    pub payload: Vec<u8>,
}

impl Packet {
    fn new(source: IpAddr, destination: IpAddr, transport: Transport) -> Self {
        Self {
            link: (SENT_TO, SENT_FROM),
            tags: Vec::new(),
            source,
            destination,
            hops: 64,
            class: 0,
            identification: 0x1234,
            flags_offset: 0x4000,
            options: Vec::new(),
            label: 0x5_4321,
            extensions: Vec::new(),
            transport,
            payload: b"causeway".to_vec(),
        }
    }

    /// A TCP segment with data.
    #[must_use]
    pub fn tcp(source: SocketAddr, destination: SocketAddr) -> Self {
        let transport = Transport::Tcp {
            ports: (source.port(), destination.port()),
            sequence: 1_000_000,
            acknowledgement: 2_000_000,
            flags: flag::ACK | flag::PSH,
            window: 502,
            options: Vec::new(),
        };
        Self::new(source.ip(), destination.ip(), transport)
    }

    /// The first segment of a TCP connection, with the options that Linux sends.
    #[must_use]
    pub fn syn(source: SocketAddr, destination: SocketAddr) -> Self {
        let mut packet = Self::tcp(source, destination).payload(b"");
        if let Transport::Tcp {
            acknowledgement,
            flags,
            options,
            ..
        } = &mut packet.transport
        {
            *acknowledgement = 0;
            *flags = flag::SYN;
            *options = vec![2, 4, 5, 0xb4, 4, 2, 1, 3, 3, 7, 1, 1];
        }
        packet
    }

    /// A UDP datagram.
    #[must_use]
    pub fn udp(source: SocketAddr, destination: SocketAddr) -> Self {
        let transport = Transport::Udp {
            ports: (source.port(), destination.port()),
            checksum: true,
        };
        Self::new(source.ip(), destination.ip(), transport)
    }

    /// An SCTP packet.
    #[must_use]
    pub fn sctp(source: SocketAddr, destination: SocketAddr) -> Self {
        let transport = Transport::Sctp {
            ports: (source.port(), destination.port()),
            tag: 0xdead_beef,
        };
        Self::new(source.ip(), destination.ip(), transport)
    }

    /// An ICMP echo request.
    #[must_use]
    pub fn echo(source: IpAddr, destination: IpAddr) -> Self {
        let kind = if source.is_ipv4() { 8 } else { 128 };
        let transport = Transport::Icmp {
            kind,
            code: 0,
            rest: [0, 7, 0, 1],
        };
        Self::new(source, destination, transport)
    }

    /// Any other protocol.
    #[must_use]
    pub fn other(source: IpAddr, destination: IpAddr, protocol: u8) -> Self {
        Self::new(source, destination, Transport::Other(protocol))
    }

    /// With these TCP flags.
    #[must_use]
    pub fn flags(mut self, new: u8) -> Self {
        if let Transport::Tcp { flags, .. } = &mut self.transport {
            *flags = new;
        }
        self
    }

    /// With these bytes at the end.
    #[must_use]
    pub fn payload(mut self, bytes: &[u8]) -> Self {
        self.payload = bytes.to_vec();
        self
    }

    /// With this TTL or hop limit.
    #[must_use]
    pub fn hops(mut self, hops: u8) -> Self {
        self.hops = hops;
        self
    }

    /// With these link-layer addresses.
    #[must_use]
    pub fn link(mut self, destination: [u8; 6], source: [u8; 6]) -> Self {
        self.link = (destination, source);
        self
    }

    /// With one more tag inside those it has.
    #[must_use]
    pub fn vlan(mut self, id: u16) -> Self {
        self.tags.push((0x8100, id));
        self
    }

    /// With one more service tag (802.1ad) inside those it has.
    #[must_use]
    pub fn service_vlan(mut self, id: u16) -> Self {
        self.tags.push((0x88a8, id));
        self
    }

    /// With IPv4 options, a multiple of 4 bytes.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// With one more IPv6 extension header: its number, and its bytes after the first.
    #[must_use]
    pub fn extension(mut self, number: u8, rest: &[u8]) -> Self {
        self.extensions.push((number, rest.to_vec()));
        self
    }

    /// With one more IPv6 extension header of padding, `units` times 8 bytes long.
    #[must_use]
    pub fn padding(self, number: u8, units: u8) -> Self {
        let rest = usize::from(units) * 8 - 1;
        let mut bytes = vec![units - 1];
        // One PadN option (RFC 8200 section 4.2), or a routing header of unknown type 0.
        bytes.extend([1, u8::try_from(rest - 3).unwrap_or(u8::MAX)]);
        bytes.resize(rest, 0);
        self.extension(number, &bytes)
    }

    /// As a fragment: offset in 8-byte units, and whether more follow.
    #[must_use]
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        if self.source.is_ipv4() {
            self.flags_offset = offset | if more { 0x2000 } else { 0 };
            self
        } else {
            let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
            self.extension(number::FRAGMENT, &[0, high, low, 0, 0, 0, 9])
        }
    }

    /// Without a UDP checksum.
    #[must_use]
    pub fn without_checksum(mut self) -> Self {
        if let Transport::Udp { checksum, .. } = &mut self.transport {
            *checksum = false;
        }
        self
    }

    /// With these addresses and ports.
    #[must_use]
    pub fn between(mut self, source: SocketAddr, destination: SocketAddr) -> Self {
        self.source = source.ip();
        self.destination = destination.ip();
        if let Transport::Tcp { ports, .. }
        | Transport::Udp { ports, .. }
        | Transport::Sctp { ports, .. } = &mut self.transport
        {
            *ports = (source.port(), destination.port());
        }
        self
    }

    /// Source and destination with ports (0 where there are none).
    #[must_use]
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        let (from, to) = match self.transport {
            Transport::Tcp { ports, .. }
            | Transport::Udp { ports, .. }
            | Transport::Sctp { ports, .. } => ports,
            _ => (0, 0),
        };
        (
            SocketAddr::new(self.source, from),
            SocketAddr::new(self.destination, to),
        )
    }

    /// The transport's protocol number.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => number::TCP,
            Transport::Udp { .. } => number::UDP,
            Transport::Sctp { .. } => number::SCTP,
            Transport::Icmp { .. } if self.source.is_ipv4() => number::ICMP,
            Transport::Icmp { .. } => number::ICMPV6,
            Transport::Other(protocol) => protocol,
        }
    }

    /// Length of the link layer, bytes.
    #[must_use]
    pub fn link_length(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// The whole frame.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        frame.extend(self.link.0);
        frame.extend(self.link.1);
        for (kind, tci) in &self.tags {
            frame.extend(kind.to_be_bytes());
            frame.extend(tci.to_be_bytes());
        }
        let segment = self.segment();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([0x08, 0x00]);
                let header = 20 + self.options.len();
                let length = sixteen(header + segment.len());
                let mut ip = vec![0x40 | u8::try_from(header / 4).unwrap_or(0xf), self.class];
                ip.extend(length);
                ip.extend(self.identification.to_be_bytes());
                ip.extend(self.flags_offset.to_be_bytes());
                ip.extend([self.hops, self.protocol(), 0, 0]);
                ip.extend(source.octets());
                ip.extend(destination.octets());
                ip.extend(&self.options);
                let check = internet_checksum(&ip);
                put(&mut ip, 10, check);
                frame.extend(ip);
            }
            (source, destination) => {
                frame.extend([0x86, 0xdd]);
                let mut numbers: Vec<u8> = self.extensions.iter().map(|(n, _)| *n).collect();
                numbers.push(self.protocol());
                let extensions: usize =
                    self.extensions.iter().map(|(_, rest)| rest.len() + 1).sum();
                let first = 6 << 28 | u32::from(self.class) << 20 | self.label;
                frame.extend(first.to_be_bytes());
                frame.extend(sixteen(extensions + segment.len()));
                frame.extend([numbers.first().copied().unwrap_or_default(), self.hops]);
                frame.extend(octets(source));
                frame.extend(octets(destination));
                for ((_, rest), next) in self.extensions.iter().zip(numbers.iter().skip(1)) {
                    frame.push(*next);
                    frame.extend(rest);
                }
            }
        }
        frame.extend(segment);
        frame
    }

    /// Transport header and payload, with their checksum.
    fn segment(&self) -> Vec<u8> {
        let mut segment = Vec::new();
        let check = match &self.transport {
            Transport::Tcp {
                ports,
                sequence,
                acknowledgement,
                flags,
                window,
                options,
            } => {
                segment.extend(ports.0.to_be_bytes());
                segment.extend(ports.1.to_be_bytes());
                segment.extend(sequence.to_be_bytes());
                segment.extend(acknowledgement.to_be_bytes());
                let words = u8::try_from(5 + options.len() / 4).unwrap_or(0xf);
                segment.extend([words << 4, *flags]);
                segment.extend(window.to_be_bytes());
                segment.extend([0; 4]);
                segment.extend(options);
                Some(16)
            }
            Transport::Udp { ports, checksum } => {
                segment.extend(ports.0.to_be_bytes());
                segment.extend(ports.1.to_be_bytes());
                segment.extend(sixteen(8 + self.payload.len()));
                segment.extend([0; 2]);
                checksum.then_some(6)
            }
            Transport::Sctp { ports, tag } => {
                segment.extend(ports.0.to_be_bytes());
                segment.extend(ports.1.to_be_bytes());
                segment.extend(tag.to_be_bytes());
                segment.extend([0; 4]);
                segment.extend(&self.payload);
                let crc = crc32c(&segment);
                segment.splice(8..12, crc.to_le_bytes());
                return segment;
            }
            Transport::Icmp { kind, code, rest } => {
                segment.extend([*kind, *code, 0, 0]);
                segment.extend(rest);
                Some(2)
            }
            Transport::Other(_) => None,
        };
        segment.extend(&self.payload);
        if let Some(at) = check {
            let sum = if self.protocol() == number::ICMP {
                internet_checksum(&segment)
            } else {
                self.transport_checksum(&segment)
            };
            put(&mut segment, at, sum);
        }
        segment
    }

    /// Over the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1) and the segment.
    fn transport_checksum(&self, segment: &[u8]) -> u16 {
        let mut all = octets(self.source);
        all.extend(octets(self.destination));
        all.extend([0, self.protocol()]);
        all.extend(sixteen(segment.len()));
        all.extend(segment);
        match internet_checksum(&all) {
            0 if self.protocol() == number::UDP => 0xffff,
            sum => sum,
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn sixteen(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

fn put(bytes: &mut Vec<u8>, at: usize, value: u16) {
    bytes.splice(at..at + 2, value.to_be_bytes());
}
