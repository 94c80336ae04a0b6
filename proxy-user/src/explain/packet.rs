//! The packet in question.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use proxy_common::{
    abi::{Family as _, V4, V6},
    wire::MacAddr,
};
use serde::{Deserialize, Serialize};

use super::ExplainError;
use crate::{model::Protocol, source::kubernetes::parse_address};

/// The port that a client is given if none is named.
const CLIENT_PORT: u16 = 40_000;

/// A packet as a user describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// `tcp`, `udp`, `sctp` or `icmp`.
    pub protocol: String,
    /// From whom: an address, with or without port.
    pub source: String,
    /// To whom: an address and port; of `icmp`: an address.
    pub destination: String,
    /// The device that it comes in on.
    pub device: Option<String>,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// The first segment of a connection.
    Segment(Protocol),
    /// An ICMP echo request.
    Echo,
}

/// A packet that makes sense: the first one of a connection, or an echo request (ports are zero).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Checked {
    pub(super) content: Content,
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
}

impl Packet {
    /// As the query of a URL.
    pub(crate) fn query(&self, escape: impl Fn(&str) -> String) -> String {
        let device = self
            .device
            .as_deref()
            .map(|device| format!("&device={}", escape(device)));
        format!(
            "protocol={}&source={}&destination={}{}",
            escape(&self.protocol),
            escape(&self.source),
            escape(&self.destination),
            device.unwrap_or_default(),
        )
    }

    pub(super) fn check(&self) -> Result<Checked, ExplainError> {
        let invalid = |field, value: &str, remedy: &str| ExplainError::Invalid {
            field,
            value: value.to_owned(),
            remedy: remedy.to_owned(),
        };
        let (content, source, destination) = if self.protocol.eq_ignore_ascii_case("icmp") {
            let remedy =
                "an echo request has no ports: write an address as 192.0.2.1 or 2001:db8::1";
            let end = |field, text: &str| {
                let address =
                    parse_address(bare(text)).map_err(|_| invalid(field, text, remedy))?;
                Ok(SocketAddr::new(address, 0))
            };
            let source = end("source", &self.source)?;
            (
                Content::Echo,
                source,
                end("destination", &self.destination)?,
            )
        } else {
            let remedy = "write tcp, udp, sctp or icmp";
            let protocol = Protocol::from_name(&self.protocol.to_ascii_uppercase())
                .ok_or_else(|| invalid("protocol", &self.protocol, remedy))?;
            let remedy =
                "write an address, or an address and port as 192.0.2.1:80 or [2001:db8::1]:80";
            let source = socket(&self.source, Some(CLIENT_PORT))
                .ok_or_else(|| invalid("source", &self.source, remedy))?;
            let remedy = "write an address and port as 192.0.2.1:80 or [2001:db8::1]:80";
            let destination = socket(&self.destination, None)
                .ok_or_else(|| invalid("destination", &self.destination, remedy))?;
            (Content::Segment(protocol), source, destination)
        };
        if source.is_ipv4() != destination.is_ipv4() {
            let remedy = "source and destination must be of one family";
            return Err(invalid("destination", &self.destination, remedy));
        }
        Ok(Checked {
            content,
            source,
            destination,
        })
    }
}

fn socket(text: &str, port: Option<u16>) -> Option<SocketAddr> {
    match (text.parse(), parse_address(bare(text)), port) {
        (Ok(socket), ..) => Some(socket),
        (_, Ok(address), Some(port)) => Some(SocketAddr::new(address, port)),
        _ => None,
    }
}

/// An address without the brackets that it may have.
fn bare(text: &str) -> &str {
    text.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text)
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (source, destination) = (self.source, self.destination);
        match self.content {
            Content::Segment(protocol) => write!(f, "{protocol} {source} > {destination}"),
            Content::Echo => {
                let (source, destination) = (source.ip(), destination.ip());
                write!(f, "ICMP echo request {source} > {destination}")
            }
        }
    }
}

impl Checked {
    /// The frame, to the device with this link-layer address. The sender's and checksums are left
    /// zero, since nothing decides by them.
    pub(super) fn bytes(&self, to: MacAddr, tag: Option<u16>) -> Vec<u8> {
        let is_v6 = self.source.is_ipv6();
        let protocol = match (self.content, is_v6) {
            (Content::Segment(protocol), _) => protocol.number(),
            (Content::Echo, false) => V4::ICMP,
            (Content::Echo, true) => V6::ICMP,
        };
        let segment = self.segment(is_v6);
        let length = u16::try_from(segment.len()).unwrap_or_default();
        let mut frame = to.bytes().to_vec();
        frame.extend([0; 6]);
        if let Some(id) = tag {
            frame.extend([0x81, 0x00]);
            frame.extend(id.to_be_bytes());
        }
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([0x08, 0x00, 0x45, 0]);
                frame.extend((length + 20).to_be_bytes());
                frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(length.to_be_bytes());
                frame.extend([protocol, 64]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            // `check` lets no mixture through.
            _ => {}
        }
        frame.extend(segment);
        frame
    }

    /// What follows the IP header: the first segment of a connection, without data, or an echo
    /// request.
    fn segment(&self, is_v6: bool) -> Vec<u8> {
        let mut segment = Vec::with_capacity(20);
        let Content::Segment(protocol) = self.content else {
            // Type, code, checksum, identifier, sequence number.
            segment.extend([if is_v6 { 128 } else { 8 }, 0, 0, 0, 0, 1, 0, 1]);
            return segment;
        };
        segment.extend(self.source.port().to_be_bytes());
        segment.extend(self.destination.port().to_be_bytes());
        match protocol {
            // Sequence numbers, header length 5 words, SYN, window, checksum, urgent pointer.
            Protocol::Tcp => {
                segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
            }
            // Length, no checksum.
            Protocol::Udp => segment.extend([0, 8, 0, 0]),
            // Verification tag, CRC.
            Protocol::Sctp => segment.extend([0; 8]),
        }
        segment
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(protocol: &str, source: &str, destination: &str) -> Packet {
        Packet {
            protocol: protocol.to_owned(),
            source: source.to_owned(),
            destination: destination.to_owned(),
            device: None,
        }
    }

    #[test]
    fn reads_what_users_write() {
        let rows = [
            (
                "tcp",
                "192.0.2.1",
                "10.96.0.10:80",
                Some("TCP 192.0.2.1:40000 > 10.96.0.10:80"),
            ),
            (
                "UDP",
                "192.0.2.1:53",
                "10.96.0.10:53",
                Some("UDP 192.0.2.1:53 > 10.96.0.10:53"),
            ),
            (
                "sctp",
                "[fd00::1]",
                "[fd00::2]:9",
                Some("SCTP [fd00::1]:40000 > [fd00::2]:9"),
            ),
            (
                "tcp",
                "fd00::1",
                "[fd00::2]:9",
                Some("TCP [fd00::1]:40000 > [fd00::2]:9"),
            ),
            ("tcp", "192.0.2.1", "10.96.0.10", None),
            ("tcp", "192.0.2.1", "[fd00::2]:9", None),
            ("icmp", "192.0.2.1", "10.96.0.10:80", None),
            ("icmp", "192.0.2.1", "fd00::2", None),
            (
                "icmp",
                "192.0.2.1",
                "10.96.0.10",
                Some("ICMP echo request 192.0.2.1 > 10.96.0.10"),
            ),
            (
                "ICMP",
                "fd00::1",
                "[fd00::2]",
                Some("ICMP echo request fd00::1 > fd00::2"),
            ),
            ("gre", "192.0.2.1", "10.96.0.10", None),
        ];
        for (protocol, source, destination, expected) in rows {
            let checked = packet(protocol, source, destination).check();
            let text = checked.map(|checked| checked.to_string());
            assert_eq!(text.ok().as_deref(), expected, "{source} {destination}");
        }
    }

    #[test]
    fn frames_have_the_length_they_say() {
        let v4 = packet("udp", "192.0.2.1", "10.96.0.10:53")
            .check()
            .unwrap()
            .bytes(MacAddr::default(), None);
        assert_eq!((v4.len(), v4[17]), (42, 28));
        let v6 = packet("tcp", "fd00::1", "[fd00::2]:9")
            .check()
            .unwrap()
            .bytes(MacAddr::default(), None);
        assert_eq!((v6.len(), v6[19]), (74, 20));
        let echo = packet("icmp", "fd00::1", "fd00::2").check().unwrap();
        let echo = echo.bytes(MacAddr::from_bytes([2, 0, 0, 0, 0, 7]), Some(100));
        assert_eq!((echo.len(), echo[23]), (66, 8));
        assert_eq!(echo[..6], [2, 0, 0, 0, 0, 7]);
        assert_eq!(echo[12..18], [0x81, 0, 0, 100, 0x86, 0xdd]);
        assert_eq!((echo[24], echo[58]), (58, 128));
    }
}
