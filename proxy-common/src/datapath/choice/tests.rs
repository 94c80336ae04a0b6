//! Bounds and evenness of choices.

use std::vec;

use proptest::prelude::*;

use super::{port, scale, tuple_hash};
use crate::abi::{Addr4, FlowKey, V4};
use crate::wire::Be16;

proptest! {
    #[test]
    fn scale_stays_below(hash in any::<u32>(), count in 1..=u32::MAX) {
        prop_assert!(scale(hash, count) < count);
    }

    #[test]
    fn scale_keeps_order(a in any::<u32>(), b in any::<u32>(), count in any::<u32>()) {
        prop_assert!((a <= b) <= (scale(a, count) <= scale(b, count)));
    }

    #[test]
    fn ports_stay_in_range(hash in any::<u32>(), attempt in 0..=16_u32, min in 1..60_000_u32, count in 1..5_000_u32) {
        let port = u32::from(port(hash, attempt, min, count));
        prop_assert!((min..min + count).contains(&port));
    }

    #[test]
    fn sixteen_attempts_differ_mostly(hash in any::<u32>(), min in 1..30_000_u32) {
        let mut ports: vec::Vec<u16> = (1..=16).map(|attempt| port(hash, attempt, min, 30_000)).collect();
        ports.sort_unstable();
        ports.dedup();
        prop_assert!(ports.len() > 14);
    }
}

#[test]
fn nothing_to_choose_from_is_zero() {
    assert_eq!(scale(u32::MAX, 0), 0);
}

/// Consecutive source ports, as one client uses them, over a number of slots: chi-squared.
#[test]
fn hashes_spread_evenly() {
    for slots in [2_u32, 3, 7, 100, 251] {
        for seed in [0, 1, 0xffff_ffff] {
            let draws = 1_000 * slots;
            let mut met = vec![0_u32; slots as usize];
            for draw in 0..draws {
                let [_, high, low @ ..] = draw.to_be_bytes();
                let key = FlowKey::<V4> {
                    source: Addr4::from_bytes([10, 0, high, 1]),
                    destination: Addr4::from_bytes([10, 96, 0, 10]),
                    source_port: Be16::new(u16::from_be_bytes(low)),
                    destination_port: Be16::new(80),
                    protocol: 6,
                    pad: [0; 3],
                };
                met[scale(tuple_hash(&key, seed), slots) as usize] += 1;
            }
            let chi: f64 = met
                .iter()
                .map(|n| (f64::from(*n) - 1_000.0).powi(2) / 1_000.0)
                .sum();
            let freedom = f64::from(slots - 1);
            // Six standard deviations of the distribution above its mean.
            let limit = freedom + 6.0 * (2.0 * freedom).sqrt() + 6.0;
            assert!(
                chi < limit,
                "{slots} slots, seed {seed}: {chi} is over {limit}"
            );
        }
    }
}
