//! Maglev's lookup table (Eisenbud et al., NSDI 2016, section 3.4), with weights.
//!
//! The table depends on nothing but the backends' keys and weights, so every node computes the
//! same one. Of two tables whose backends differ in one of N, about 1/N of the entries differ,
//! as long as both have the same size.

/// Table sizes: primes, each about twice the one before, so that the size seldom changes.
const SIZES: &[u32] = &[
    251, 503, 1_009, 2_003, 4_001, 8_009, 16_001, 32_003, 65_537, 131_071,
];

/// Entries per backend at least: bounds the imbalance to about one percent.
const ENTRIES_PER_BACKEND: usize = 100;

/// A backend as the table sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What tells it from others on every node alike: see [`key`].
    pub key: u64,
    /// Share relative to the others, not zero.
    pub weight: u16,
    /// What the table's entries say.
    pub index: u32,
}

/// The smallest table size that has 100 entries for each of `backends`.
#[must_use]
pub fn table_size(backends: usize) -> u32 {
    let wanted = backends.saturating_mul(ENTRIES_PER_BACKEND);
    let fits = |size: &&u32| usize::try_from(**size).is_ok_and(|size| size >= wanted);
    SIZES
        .iter()
        .find(fits)
        .or(SIZES.last())
        .copied()
        .unwrap_or(1)
}

/// A key from the bytes that identify a backend (FNV-1a, then a finaliser that spreads the bits).
#[must_use]
pub fn key(identity: &[u8]) -> u64 {
    let hash = identity
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    mix(hash)
}

const fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ (bits >> 33)
}

struct Turn {
    offset: u64,
    skip: u64,
    tried: u64,
    credit: u32,
}

/// Fills a table for `candidates`; empty if there are none.
///
/// In each round every candidate earns its weight, and pays the largest weight for its next
/// preferred entry that is still free.
#[must_use]
pub fn table(candidates: &[Candidate]) -> Vec<u32> {
    let mut candidates: Vec<&Candidate> = candidates.iter().filter(|c| c.weight != 0).collect();
    candidates.sort_unstable_by_key(|candidate| candidate.key);
    let Some(heaviest) = candidates.iter().map(|c| u32::from(c.weight)).max() else {
        return Vec::new();
    };
    let size = u64::from(table_size(candidates.len()));
    let mut turns: Vec<Turn> = candidates
        .iter()
        .map(|candidate| Turn {
            offset: candidate.key % size,
            skip: mix(candidate.key ^ 0x9e37_79b9_7f4a_7c15) % (size - 1) + 1,
            tried: 0,
            credit: 0,
        })
        .collect();
    let mut table: Vec<Option<u32>> = (0..size).map(|_| None).collect();
    let mut left = table.len();
    while left > 0 {
        for (candidate, turn) in candidates.iter().zip(&mut turns) {
            turn.credit += u32::from(candidate.weight);
            if turn.credit < heaviest || left == 0 {
                continue;
            }
            turn.credit -= heaviest;
            if claim(&mut table, turn, candidate.index) {
                left -= 1;
            }
        }
    }
    table.into_iter().flatten().collect()
}

/// Takes the next free entry of a candidate's permutation.
fn claim(table: &mut [Option<u32>], turn: &mut Turn, index: u32) -> bool {
    let size = table.len() as u64;
    while turn.tried < size {
        let position = (turn.offset + turn.skip * turn.tried) % size;
        turn.tried += 1;
        let entry = usize::try_from(position)
            .ok()
            .and_then(|position| table.get_mut(position));
        if let Some(entry @ None) = entry {
            *entry = Some(index);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates(weights: &[u16]) -> Vec<Candidate> {
        (0_u32..)
            .zip(weights)
            .map(|(index, &weight)| Candidate {
                key: key(&index.to_be_bytes()),
                weight,
                index,
            })
            .collect()
    }

    fn shares(table: &[u32], backends: usize) -> Vec<usize> {
        let mut shares = vec![0; backends];
        for index in table {
            shares[usize::try_from(*index).unwrap()] += 1;
        }
        shares
    }

    #[test]
    fn sizes_are_primes() {
        for size in SIZES {
            assert!(
                (2..=size.isqrt()).all(|divisor| size % divisor != 0),
                "{size}"
            );
        }
    }

    #[test]
    fn no_candidate_no_table() {
        assert_eq!(table(&[]), Vec::<u32>::new());
        assert_eq!(table(&candidates(&[0, 0])), Vec::<u32>::new());
    }

    proptest! {
        #[test]
        fn shares_follow_weights(weights in prop::collection::vec(1_u16..20, 1..40)) {
            let table = table(&candidates(&weights));
            let total: usize = weights.iter().map(|w| usize::from(*w)).sum();
            prop_assert_eq!(table.len(), usize::try_from(table_size(weights.len())).unwrap());
            for (share, weight) in shares(&table, weights.len()).into_iter().zip(&weights) {
                let fair = table.len() * usize::from(*weight) / total;
                prop_assert!(share.abs_diff(fair) <= 3 + fair / 50, "{share} of {fair}");
            }
        }

        #[test]
        fn order_does_not_matter(weights in prop::collection::vec(1_u16..5, 1..20)) {
            let mut all = candidates(&weights);
            let before = table(&all);
            all.reverse();
            prop_assert_eq!(before, table(&all));
        }

        /// Without one of N backends, its own entries move, and few others.
        #[test]
        fn removal_moves_little(count in 7_usize..=10, gone in 0_u32..7) {
            let mut all = candidates(&vec![1; count]);
            let before = table(&all);
            all.retain(|candidate| candidate.index != gone);
            let after = table(&all);
            prop_assert_eq!(before.len(), after.len());
            let moved = before
                .iter()
                .zip(&after)
                .filter(|(old, new)| old != new && **old != gone)
                .count();
            prop_assert!(moved * 4 <= before.len(), "{moved} of {}", before.len());
        }
    }
}
