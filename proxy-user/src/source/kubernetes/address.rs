//! Addresses as Kubernetes objects hold them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an IP address: write one as 192.0.2.1 or 2001:db8::1")]
pub struct AddressError {
    /// What was found.
    pub text: String,
}

/// Reads an address the way the API server does: leading zeros are decimal, not octal
/// (CVE-2021-29923 left old objects with them), and an IPv4-mapped IPv6 address is an IPv4 one.
pub fn parse_address(text: &str) -> Result<IpAddr, AddressError> {
    if let Ok(v6) = text.parse::<Ipv6Addr>() {
        return Ok(v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4));
    }
    parse_v4(text).map(IpAddr::V4).ok_or_else(|| AddressError {
        text: text.to_owned(),
    })
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0_u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *octet = match part.trim_start_matches('0') {
            "" => 0,
            digits => digits.parse().ok()?,
        };
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_api_server_reads() {
        let rows = [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.000.000.001", Some("10.0.0.1")),
            ("10.0.0.010", Some("10.0.0.10")),
            ("0.0.0.0", Some("0.0.0.0")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("2001:DB8::1", Some("2001:db8::1")),
            ("10.0.0.256", None),
            ("10.0.0", None),
            ("10.0.0.1.", None),
            ("10.0.0.1.2", None),
            ("10.0.0.+1", None),
            ("10.0.0.1/24", None),
            ("fe80::1%eth0", None),
            ("", None),
        ];
        for (text, expected) in rows {
            let expected = expected.map(|text| text.parse::<IpAddr>().unwrap());
            assert_eq!(parse_address(text).ok(), expected, "{text:?}");
        }
    }
}
