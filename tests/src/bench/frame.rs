//! The frames of the benchmarks: 80 bytes from the Ethernet header on, whole in every header.

use std::net::{IpAddr, SocketAddr};

use super::feed::{FIRST_PORT, FRAME_WORDS, Feed};

const FRAME_BYTES: usize = FRAME_WORDS * 8;
const ETHERNET: usize = 14;

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// IANA protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// `tcp` or `udp`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// The first segment of a connection.
    TcpSyn,
    /// A later one, with data.
    TcpData,
    /// A datagram without a checksum over IPv4, with one over IPv6.
    Udp,
}

/// A frame, before it is given to the programs.
#[derive(Clone, Copy, Debug)]
pub struct Template {
    /// Ethernet source and destination.
    pub link: [[u8; 6]; 2],
    /// Source address of flow 0. Its last 16 bits count up with the flows.
    pub source: IpAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// What it carries.
    pub segment: Segment,
}

impl Template {
    /// The record for the programs: `flows` flows in this order.
    #[must_use]
    pub fn feed(&self, flows: u32, order: u32) -> Feed {
        let bytes = self.bytes();
        let mut frame = [0; FRAME_WORDS];
        for (word, chunk) in frame.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_ne_bytes(*chunk);
        }
        let (v6, address) = match self.source {
            IpAddr::V4(source) => (0, low_half(&source.octets())),
            IpAddr::V6(source) => (1, low_half(&source.octets())),
        };
        Feed {
            frame,
            counter: 0,
            flows,
            order,
            v6,
            address,
            pad: 0,
        }
    }

    /// The frame of flow 0.
    #[must_use]
    pub fn bytes(&self) -> [u8; FRAME_BYTES] {
        let [source_mac, destination_mac] = self.link;
        let mut frame = Vec::with_capacity(FRAME_BYTES);
        frame.extend(destination_mac);
        frame.extend(source_mac);
        let protocol = if self.segment == Segment::Udp { 17 } else { 6 };
        let pseudo = match (self.source, self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([0x08, 0x00]);
                let total = u16::try_from(FRAME_BYTES - ETHERNET)
                    .unwrap_or(0)
                    .to_be_bytes();
                let start = frame.len();
                frame.extend([
                    0x45, 0, total[0], total[1], 0, 1, 0x40, 0, 64, protocol, 0, 0,
                ]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                let check = checksum(frame.get(start..).unwrap_or_default(), 0);
                set(&mut frame, start + 10, check);
                [source.octets(), destination.octets()].concat()
            }
            (source, destination) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                let payload = u16::try_from(FRAME_BYTES - ETHERNET - 40).unwrap_or(0);
                frame.extend(payload.to_be_bytes());
                frame.extend([protocol, 64]);
                let [source, destination] = [source, destination].map(wide);
                frame.extend(source);
                frame.extend(destination);
                [source, destination].concat()
            }
        };
        self.append_segment(&mut frame, &pseudo, protocol);
        let mut bytes = [0; FRAME_BYTES];
        bytes.copy_from_slice(frame.get(..FRAME_BYTES).unwrap_or(&[0; FRAME_BYTES]));
        bytes
    }

    fn append_segment(&self, frame: &mut Vec<u8>, pseudo: &[u8], protocol: u8) {
        let start = frame.len();
        let length = u16::try_from(FRAME_BYTES - start).unwrap_or(0);
        frame.extend(u16::try_from(FIRST_PORT).unwrap_or(0).to_be_bytes());
        frame.extend(self.destination.port().to_be_bytes());
        let check_at = match self.segment {
            Segment::Udp => {
                frame.extend(length.to_be_bytes());
                frame.extend([0, 0]);
                self.source.is_ipv6().then_some(start + 6)
            }
            Segment::TcpSyn | Segment::TcpData => {
                let flags = if self.segment == Segment::TcpSyn {
                    0x02
                } else {
                    0x10
                };
                frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
                Some(start + 16)
            }
        };
        frame.resize(FRAME_BYTES, 0);
        if let Some(at) = check_at {
            let pseudo = sum(pseudo, 0) + u32::from(length) + u32::from(protocol);
            let check = checksum(frame.get(start..).unwrap_or_default(), pseudo);
            set(frame, at, check);
        }
    }
}

fn wide(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn low_half(octets: &[u8]) -> u32 {
    octets
        .iter()
        .rev()
        .take(2)
        .rev()
        .fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn set(frame: &mut [u8], at: usize, value: u16) {
    for (byte, new) in frame.iter_mut().skip(at).zip(value.to_be_bytes()) {
        *byte = new;
    }
}

fn sum(bytes: &[u8], start: u32) -> u32 {
    bytes.chunks(2).fold(start, |sum, pair| {
        let word = pair
            .iter()
            .fold(0, |word, byte| word << 8 | u32::from(*byte));
        sum + if pair.len() == 1 { word << 8 } else { word }
    })
}

fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut total = sum(bytes, start);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !u16::try_from(total).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::feed::{PLACES_V4, PLACES_V6};

    fn template(source: &str, destination: &str, segment: Segment) -> Template {
        Template {
            link: [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]],
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            segment,
        }
    }

    #[test]
    fn headers_add_up() {
        let frame = template("192.0.2.1", "198.51.100.7:80", Segment::TcpData).bytes();
        assert_eq!(checksum(&frame[14..34], 0), 0);
        let pseudo = sum(&frame[26..34], 0) + 6 + 46;
        assert_eq!(checksum(&frame[34..], pseudo), 0);
        let frame = template("2001:db8::1", "[2001:db8::2]:80", Segment::Udp).bytes();
        let pseudo = sum(&frame[22..54], 0) + 17 + 26;
        assert_eq!(checksum(&frame[54..], pseudo), 0);
    }

    #[test]
    fn flows_count_up_where_the_feed_says() {
        for (source, destination) in [("10.0.1.2", "10.9.9.9:53"), ("fd00::102", "[fd00::9]:53")] {
            let feed = template(source, destination, Segment::Udp).feed(7, 0);
            assert_eq!(feed.address, 0x0102);
            let bytes: Vec<u8> = feed
                .frame
                .iter()
                .flat_map(|word| word.to_ne_bytes())
                .collect();
            let [at, port_at] = if feed.v6 == 1 { PLACES_V6 } else { PLACES_V4 };
            assert_eq!(bytes[at..at + 2], [1, 2]);
            assert_eq!(bytes[port_at..port_at + 4], [0x40, 0, 0, 53]);
        }
    }
}
