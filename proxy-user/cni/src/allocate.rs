//! Which address a pod gets.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// All addresses of a family's ranges are taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no address is left in {}: all {taken} are taken", ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
pub struct Exhausted {
    /// The ranges that were looked at.
    pub ranges: Vec<IpNet>,
    /// Addresses in them that are taken.
    pub taken: usize,
}

/// One address of each family that has a range: the first free one after `last`, so that an address
/// rests as long as possible before another pod gets it.
pub fn choose(
    ranges: &[IpNet],
    taken: &BTreeSet<IpAddr>,
    last: &[IpAddr],
) -> Result<Vec<IpAddr>, Exhausted> {
    let mut found = Vec::new();
    for v4 in [true, false] {
        let own: Vec<IpNet> = ranges
            .iter()
            .copied()
            .filter(|range| range.addr().is_ipv4() == v4)
            .collect();
        if own.is_empty() {
            continue;
        }
        let last = last.iter().find(|address| address.is_ipv4() == v4);
        let Some(address) = free(&own, taken, last.copied()) else {
            let held = |address: &&IpAddr| own.iter().any(|range| range.contains(*address));
            return Err(Exhausted {
                taken: taken.iter().filter(held).count(),
                ranges: own,
            });
        };
        found.push(address);
    }
    Ok(found)
}

/// Ranges are gone through in order, that of `last` from `last` on, and then from its beginning.
fn free(ranges: &[IpNet], taken: &BTreeSet<IpAddr>, last: Option<IpAddr>) -> Option<IpAddr> {
    let last = last.map(number);
    let at = ranges.iter().position(|range| {
        let (first, end) = bounds(range);
        last.is_some_and(|last| first <= last && last <= end)
    });
    let start = at.unwrap_or_default();
    let after = ranges.get(start..).unwrap_or_default();
    let before = ranges.get(..=start).unwrap_or_default();
    for (i, range) in after.iter().chain(before).enumerate() {
        let (first, end) = bounds(range);
        let from = match last {
            Some(last) if i == 0 && at.is_some() => last.saturating_add(1),
            _ => first,
        };
        let v4 = range.addr().is_ipv4();
        // As many steps as addresses are taken, at most.
        let mut next = from;
        while next <= end {
            let address = address(next, v4);
            if !taken.contains(&address) {
                return Some(address);
            }
            next = next.checked_add(1)?;
        }
    }
    None
}

/// The first and the last address that a pod may have. Of larger ranges the first is the network's
/// own (IPv4), or that of all its routers (RFC 4291 section 2.6.1), and the last is the broadcast
/// address (IPv4).
fn bounds(range: &IpNet) -> (u128, u128) {
    let (first, last) = (number(range.network()), number(range.broadcast()));
    let size = last - first;
    match range {
        IpNet::V4(_) if size > 1 => (first + 1, last - 1),
        IpNet::V6(_) if size > 0 => (first + 1, last),
        _ => (first, last),
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn address(number: u128, v4: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if v4 => IpAddr::V4(Ipv4Addr::from(number)),
        _ => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(text: &str) -> Vec<IpNet> {
        text.split_whitespace()
            .map(|one| one.parse().unwrap())
            .collect()
    }

    fn addresses(text: &str) -> Vec<IpAddr> {
        text.split_whitespace()
            .map(|one| one.parse().unwrap())
            .collect()
    }

    #[test]
    fn addresses_go_round_and_skip_what_is_taken() {
        for (ranges, taken, last, expected) in [
            ("10.0.0.0/29 fd00::/64", "", "", "10.0.0.1 fd00::1"),
            ("10.0.0.0/29", "10.0.0.1 10.0.0.2", "", "10.0.0.3"),
            ("10.0.0.0/29", "10.0.0.1", "10.0.0.2", "10.0.0.3"),
            ("10.0.0.0/29", "10.0.0.5 10.0.0.6", "10.0.0.4", "10.0.0.1"),
            (
                "10.0.0.0/30 10.0.1.0/30",
                "10.0.0.1 10.0.0.2",
                "10.0.0.1",
                "10.0.1.1",
            ),
            (
                "10.0.0.0/30 10.0.1.0/30",
                "10.0.1.1 10.0.1.2 10.0.0.1",
                "10.0.1.2",
                "10.0.0.2",
            ),
            ("10.0.0.0/29", "", "192.0.2.9", "10.0.0.1"),
            ("10.0.0.7/32", "", "", "10.0.0.7"),
            ("10.0.0.6/31", "10.0.0.6", "", "10.0.0.7"),
            (
                "255.255.255.252/30",
                "255.255.255.253",
                "255.255.255.254",
                "255.255.255.254",
            ),
            (
                "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127",
                "",
                "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
                "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            ),
        ] {
            let taken = addresses(taken).into_iter().collect();
            let chosen = choose(&nets(ranges), &taken, &addresses(last));
            assert_eq!(chosen.unwrap(), addresses(expected), "{ranges} {last}");
        }
    }

    #[test]
    fn a_full_range_is_named_even_if_the_other_family_has_room() {
        let taken = addresses("10.0.0.1 10.0.0.2 10.9.9.9")
            .into_iter()
            .collect();
        let error = choose(&nets("10.0.0.0/30 fd00::/64"), &taken, &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no address is left in 10.0.0.0/30: all 2 are taken"
        );
    }

    proptest! {
        /// Whatever is taken and given back, nobody gets what another has, and a free address is found.
        #[test]
        fn never_twice(steps in prop::collection::vec((any::<bool>(), 0_usize..14), 1..80)) {
            let ranges = nets("10.0.0.0/29 10.0.1.0/29 fd00::/124");
            let mut held: Vec<Vec<IpAddr>> = Vec::new();
            let mut last: Vec<IpAddr> = Vec::new();
            for (add, which) in steps {
                let taken: BTreeSet<IpAddr> = held.iter().flatten().copied().collect();
                if add {
                    if let Ok(new) = choose(&ranges, &taken, &last) {
                        prop_assert!(new.iter().all(|address| !taken.contains(address)));
                        prop_assert!(new.iter().all(|a| ranges.iter().any(|r| r.contains(a))));
                        last.clone_from(&new);
                        held.push(new);
                    } else {
                        prop_assert_eq!(held.len(), 12);
                    }
                } else if which < held.len() {
                    held.swap_remove(which);
                }
            }
        }
    }
}
