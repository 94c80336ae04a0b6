//! A frame's fields by name, for telling two frames apart.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::number;

/// Reads a frame front to back, naming what it reads.
struct Reader<'b> {
    rest: &'b [u8],
    fields: Vec<(String, String)>,
}

impl<'b> Reader<'b> {
    fn take(&mut self, count: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn note(&mut self, name: &str, value: &impl ToString) {
        self.fields.push((name.to_owned(), value.to_string()));
    }

    fn hex(&mut self, name: &str, count: usize) -> Option<()> {
        let bytes = self.take(count)?;
        self.note(name, &hex(bytes));
        Some(())
    }

    fn number(&mut self, name: &str, count: usize) -> Option<u64> {
        let value = self
            .take(count)?
            .iter()
            .fold(0, |value, byte| value << 8 | u64::from(*byte));
        self.note(name, &value);
        Some(value)
    }

    fn frame(&mut self) -> Option<()> {
        self.hex("link destination", 6)?;
        self.hex("link source", 6)?;
        loop {
            let kind = self.number("ethertype", 2)?;
            match kind {
                0x8100 | 0x88a8 => self.number("vlan tci", 2)?,
                0x0800 => return self.v4(),
                0x86dd => return self.v6(),
                _ => return None,
            };
        }
    }

    fn v4(&mut self) -> Option<()> {
        let version = self.number("ip version/ihl", 1)?;
        self.number("ip tos", 1)?;
        self.number("ip total length", 2)?;
        self.number("ip identification", 2)?;
        self.hex("ip flags/offset", 2)?;
        self.number("ip ttl", 1)?;
        let protocol = self.number("ip protocol", 1)?;
        self.hex("ip checksum", 2)?;
        for name in ["ip source", "ip destination"] {
            let octets: [u8; 4] = self.take(4)?.try_into().ok()?;
            self.note(name, &Ipv4Addr::from(octets));
        }
        let options = usize::try_from(version & 0xf).ok()?.saturating_sub(5) * 4;
        if options > 0 {
            self.hex("ip options", options)?;
        }
        self.transport(u8::try_from(protocol).ok()?)
    }

    fn v6(&mut self) -> Option<()> {
        self.hex("ip version/class/label", 4)?;
        self.number("ip payload length", 2)?;
        let mut next = u8::try_from(self.number("ip next header", 1)?).ok()?;
        self.number("ip hop limit", 1)?;
        for name in ["ip source", "ip destination"] {
            let octets: [u8; 16] = self.take(16)?.try_into().ok()?;
            self.note(name, &Ipv6Addr::from(octets));
        }
        while matches!(
            next,
            number::HOP_BY_HOP | number::ROUTING | number::DESTINATION_OPTIONS | number::FRAGMENT
        ) {
            let units = if next == number::FRAGMENT {
                0
            } else {
                usize::from(*self.rest.get(1)?)
            };
            let following = *self.rest.first()?;
            self.hex(&format!("extension header {next}"), (units + 1) * 8)?;
            next = following;
        }
        self.transport(next)
    }

    fn transport(&mut self, protocol: u8) -> Option<()> {
        match protocol {
            number::TCP => {
                self.number("tcp source port", 2)?;
                self.number("tcp destination port", 2)?;
                self.number("tcp sequence", 4)?;
                self.number("tcp acknowledgement", 4)?;
                self.hex("tcp offset/flags", 2)?;
                self.number("tcp window", 2)?;
                self.hex("tcp checksum", 2)?;
                self.number("tcp urgent", 2)?;
            }
            number::UDP => {
                self.number("udp source port", 2)?;
                self.number("udp destination port", 2)?;
                self.number("udp length", 2)?;
                self.hex("udp checksum", 2)?;
            }
            number::SCTP => {
                self.number("sctp source port", 2)?;
                self.number("sctp destination port", 2)?;
                self.hex("sctp tag", 4)?;
                self.hex("sctp crc", 4)?;
            }
            number::ICMP | number::ICMPV6 => {
                self.number("icmp type", 1)?;
                self.number("icmp code", 1)?;
                self.hex("icmp checksum", 2)?;
                self.hex("icmp rest", 4)?;
            }
            _ => {}
        }
        Some(())
    }
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The fields of a frame, as far as they can be made out, and the bytes after them.
#[must_use]
pub fn dissect(frame: &[u8]) -> Vec<(String, String)> {
    let mut reader = Reader {
        rest: frame,
        fields: vec![("frame length".to_owned(), frame.len().to_string())],
    };
    // Whatever could not be read is among the remaining bytes.
    let _ = reader.frame();
    let rest = hex(reader.rest);
    reader.note("remaining bytes", &rest);
    reader.fields
}

/// Says field by field how `found` differs from `expected`; none if the bytes are the same.
#[must_use]
pub fn difference(expected: &[u8], found: &[u8]) -> Option<String> {
    if expected == found {
        return None;
    }
    let (left, right) = (dissect(expected), dissect(found));
    let mut text = String::new();
    for index in 0..left.len().max(right.len()) {
        let (wanted, seen) = (left.get(index), right.get(index));
        if wanted != seen {
            let show = |field: Option<&(String, String)>| {
                field.map_or_else(|| "-".to_owned(), |(name, value)| format!("{name} {value}"))
            };
            let _ = writeln!(text, "    expected {}, found {}", show(wanted), show(seen));
        }
    }
    let _ = write!(
        text,
        "    expected {}\n    found    {}",
        hex(expected),
        hex(found)
    );
    Some(text)
}
