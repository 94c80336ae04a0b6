//! The address filter, and the forms of addresses.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::{Addr4, Addr6, Address, FilterKind, filter_position};
use crate::abi::FILTER_WORDS;

const KINDS: [FilterKind; 2] = [FilterKind::Destination, FilterKind::Source];

proptest! {
    #[test]
    fn the_filter_has_no_false_negative(
        v4 in prop::collection::vec(any::<u32>(), 1..50),
        v6 in prop::collection::vec(any::<u128>(), 1..50),
    ) {
        let v4: std::vec::Vec<_> = v4.into_iter().map(|a| Addr4::from(Ipv4Addr::from(a))).collect();
        let v6: std::vec::Vec<_> = v6.into_iter().map(|a| Addr6::from(Ipv6Addr::from(a))).collect();
        let mut filter: BTreeMap<u32, u64> = BTreeMap::new();
        for kind in KINDS {
            let positions = v4.iter().map(|a| filter_position(kind, a));
            for (word, bit) in positions.chain(v6.iter().map(|a| filter_position(kind, a))) {
                prop_assert!(word < FILTER_WORDS);
                prop_assert_eq!(bit.count_ones(), 1);
                *filter.entry(word).or_default() |= bit;
            }
        }
        for kind in KINDS {
            for (word, bit) in v4.iter().map(|a| filter_position(kind, a)) {
                prop_assert!(filter[&word] & bit != 0);
            }
            for (word, bit) in v6.iter().map(|a| filter_position(kind, a)) {
                prop_assert!(filter[&word] & bit != 0);
            }
        }
    }

    #[test]
    fn forms_of_an_address_are_the_same_address(v4 in any::<u32>(), v6 in any::<u128>()) {
        let (v4, v6) = (Ipv4Addr::from(v4), Ipv6Addr::from(v6));
        let (a, b) = (Addr4::from(v4), Addr6::from(v6));
        prop_assert_eq!(a.to_ip(), IpAddr::V4(v4));
        prop_assert_eq!(b.to_ip(), IpAddr::V6(v6));
        prop_assert_eq!(Addr4::narrow(&a.widen()), a);
        prop_assert_eq!(Addr6::narrow(&b.widen()), b);
    }
}

/// Neighbouring addresses, as pods and services have them, rarely share a bit: fewer than twice as many
/// as of random positions.
#[test]
fn neighbouring_addresses_have_bits_of_their_own() {
    let mut positions: std::vec::Vec<_> = (0..20_000_u32)
        .map(|host| Addr4::from(Ipv4Addr::from(0x0a60_0000 + host)))
        .map(|address| filter_position(FilterKind::Destination, &address))
        .collect();
    positions.sort_unstable();
    positions.dedup();
    // Of 20,000 in 2^20 positions, 190 are expected to meet another one.
    assert!(positions.len() > 20_000 - 380, "{} bits", positions.len());
}
