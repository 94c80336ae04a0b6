//! Free ranges of a table of slots.

use std::collections::{BTreeMap, BTreeSet};

/// `count` numbers from `first` on; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Range {
    pub(super) first: u32,
    pub(super) count: u32,
}

impl Range {
    const fn end(self) -> u32 {
        self.first.saturating_add(self.count)
    }
}

/// The free part of `0..capacity`: best fit, lowest first, neighbours joined.
#[derive(Clone, Debug, Default)]
pub(super) struct FreeRanges {
    by_first: BTreeMap<u32, u32>,
    by_count: BTreeSet<(u32, u32)>,
}

impl FreeRanges {
    /// `0..capacity` without `used`, which may overlap each other and the end.
    pub(super) fn without(capacity: u32, used: impl IntoIterator<Item = Range>) -> Self {
        let mut used: Vec<Range> = used.into_iter().collect();
        used.sort_unstable();
        let mut free = Self::default();
        let mut next = 0;
        for range in used {
            let gap_end = range.first.min(capacity);
            if gap_end > next {
                free.insert(Range {
                    first: next,
                    count: gap_end - next,
                });
            }
            next = next.max(range.end());
        }
        if capacity > next {
            free.insert(Range {
                first: next,
                count: capacity - next,
            });
        }
        free
    }

    /// Takes `count` numbers, which must not be zero, out of the smallest range that holds them.
    pub(super) fn take(&mut self, count: u32) -> Option<Range> {
        let (size, first) = self.by_count.range((count, 0)..).next().copied()?;
        self.remove(Range { first, count: size });
        if size > count {
            self.insert(Range {
                first: first + count,
                count: size - count,
            });
        }
        Some(Range { first, count })
    }

    /// Gives a range back.
    pub(super) fn give(&mut self, range: Range) {
        let mut joined = range;
        let below = self.by_first.range(..range.first).next_back();
        if let Some((&first, &count)) = below
            && first + count == range.first
        {
            self.remove(Range { first, count });
            joined = Range {
                first,
                count: count + joined.count,
            };
        }
        if let Some(&count) = self.by_first.get(&range.end()) {
            self.remove(Range {
                first: range.end(),
                count,
            });
            joined.count += count;
        }
        self.insert(joined);
    }

    fn insert(&mut self, Range { first, count }: Range) {
        self.by_first.insert(first, count);
        self.by_count.insert((count, first));
    }

    fn remove(&mut self, Range { first, count }: Range) {
        self.by_first.remove(&first);
        self.by_count.remove(&(count, first));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn joins_neighbours() {
        let mut free = FreeRanges::without(100, []);
        let a = free.take(10).unwrap();
        let b = free.take(10).unwrap();
        let c = free.take(10).unwrap();
        free.give(a);
        free.give(c);
        free.give(b);
        assert_eq!(
            free.take(100),
            Some(Range {
                first: 0,
                count: 100
            })
        );
        assert_eq!(free.take(1), None);
    }

    #[test]
    fn finds_the_gaps_between_overlapping_ranges() {
        let used = [(90, 20), (10, 5), (12, 8), (30, 1)];
        let used = used.map(|(first, count)| Range { first, count });
        let mut free = FreeRanges::without(100, used);
        assert_eq!(
            free.take(10),
            Some(Range {
                first: 0,
                count: 10
            })
        );
        assert_eq!(
            free.take(10),
            Some(Range {
                first: 20,
                count: 10
            })
        );
        assert_eq!(
            free.take(59),
            Some(Range {
                first: 31,
                count: 59
            })
        );
        assert_eq!(free.take(1), None);
    }

    proptest! {
        /// Against a bitmap: nothing is given out twice, and all comes back.
        #[test]
        fn never_gives_a_number_twice(steps in prop::collection::vec((1_u32..20, any::<bool>()), 1..200)) {
            let mut free = FreeRanges::without(200, []);
            let mut held: Vec<Range> = Vec::new();
            for (count, take) in steps {
                if take {
                    if let Some(range) = free.take(count) {
                        for other in &held {
                            prop_assert!(range.end() <= other.first || other.end() <= range.first);
                        }
                        prop_assert!(range.end() <= 200);
                        held.push(range);
                    }
                } else if let Some(range) = held.pop() {
                    free.give(range);
                }
            }
            for range in held {
                free.give(range);
            }
            prop_assert_eq!(free.take(200), Some(Range { first: 0, count: 200 }));
        }
    }
}
