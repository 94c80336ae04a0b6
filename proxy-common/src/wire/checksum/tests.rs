//! Incremental updates against sums from scratch, which are computed here in another way.

use std::vec::Vec;

use proptest::prelude::*;

use super::{Checksum, Delta};
use crate::abi::{Addr4, Addr6, Address};

/// The checksum over big-endian words, added up in 64 bits and reduced by division.
fn recomputed(words: &[u16]) -> u16 {
    let sum: u64 = words
        .iter()
        .map(|word| u64::from(u16::from_be(*word)))
        .sum();
    let reduced = match sum % 0xffff {
        0 if sum > 0 => 0xffff,
        rest => u16::try_from(rest).unwrap(),
    };
    (!reduced).to_be()
}

fn same(a: u16, b: u16) -> bool {
    // Zero has two forms in one's complement; which one is written is checked elsewhere.
    a == b || (a == 0 || a == 0xffff) && (b == 0 || b == 0xffff)
}

proptest! {
    #[test]
    fn sum_is_the_recomputed_one(words in any::<[u16; 20]>()) {
        prop_assert_eq!(Checksum::new().add_words(&words).finish(), recomputed(&words));
    }

    #[test]
    fn delta_is_recomputation(
        before in prop::collection::vec(any::<u16>(), 0..12),
        old in any::<[u16; 4]>(),
        new in any::<[u16; 4]>(),
        after in prop::collection::vec(any::<u16>(), 0..12),
    ) {
        let with = |middle: &[u16]| -> Vec<u16> { [&before, middle, &after].concat() };
        let updated = Delta::of(&old, &new).apply(recomputed(&with(&old)));
        let fresh = recomputed(&with(&new));
        prop_assert!(same(updated, fresh), "{updated:#x} is not {fresh:#x}");
        // The exact bits too, unless all words are zero.
        if with(&new).iter().any(|word| *word != 0) && with(&old).iter().any(|word| *word != 0) {
            prop_assert_eq!(updated, fresh);
        }
    }

    #[test]
    fn deltas_add_up(old in any::<[u16; 4]>(), new in any::<[u16; 4]>(), rest in any::<[u16; 9]>()) {
        let [a, b, c, d] = old;
        let [w, x, y, z] = new;
        let check = recomputed(&[&rest[..], &old].concat());
        let parts = Delta::of(&[a, b], &[w, x]).and(Delta::of(&[c, d], &[y, z]));
        prop_assert!(same(parts.apply(check), Delta::of(&old, &new).apply(check)));
    }

    #[test]
    fn there_and_back_is_as_before(old in any::<[u16; 4]>(), new in any::<[u16; 4]>(), check in 1..0xffff_u16) {
        let there = Delta::of(&old, &new).apply(check);
        prop_assert!(same(Delta::of(&new, &old).apply(there), check));
    }

    #[test]
    fn address_delta_is_that_of_its_words(old in any::<[u8; 4]>(), new in any::<[u8; 4]>(), rest in any::<[u16; 6]>()) {
        let (old, new) = (Addr4::from_bytes(old), Addr4::from_bytes(new));
        let check = recomputed(&[&rest[..], &old.0].concat());
        let fresh = recomputed(&[&rest[..], &new.0].concat());
        prop_assert!(same(old.checksum_delta(&new).apply(check), fresh));
    }

    #[test]
    fn address_delta_is_that_of_its_words_v6(old in any::<[u8; 16]>(), new in any::<[u8; 16]>(), rest in any::<[u16; 6]>()) {
        let (old, new) = (Addr6::from_bytes(old), Addr6::from_bytes(new));
        let check = recomputed(&[&rest[..], &old.0].concat());
        let fresh = recomputed(&[&rest[..], &new.0].concat());
        prop_assert!(same(old.checksum_delta(&new).apply(check), fresh));
    }

    #[test]
    fn udp_never_becomes_zero(old in any::<[u16; 4]>(), new in any::<[u16; 4]>(), check in 1..=0xffff_u16) {
        prop_assert_ne!(Delta::of(&old, &new).apply_udp(check), 0);
    }

    #[test]
    fn udp_without_checksum_stays_so(old in any::<[u16; 4]>(), new in any::<[u16; 4]>()) {
        prop_assert_eq!(Delta::of(&old, &new).apply_udp(0), 0);
    }
}

#[test]
fn the_example_of_rfc_1624() {
    // Section 4: 0x5555 becomes 0x3285, checksum 0xdd2f becomes 0x0000.
    let delta = Delta::of(&[0x5555_u16.to_be()], &[0x3285_u16.to_be()]);
    assert_eq!(delta.apply(0xdd2f_u16.to_be()), 0);
}
