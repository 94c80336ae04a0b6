//! The address filter: which bits must be set, and which may be cleared.

use std::collections::{BTreeMap, BTreeSet, HashMap, btree_map::Entry, hash_map};

use proxy_common::abi::{
    Addr4, Addr6, Address, Backend, Device, Family, FilterKind, Flow, FlowKey, filter_position,
    flow_state,
};

use super::{Observed, Op, Plan};

/// Words of the filter that aren't zero, by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterWords(BTreeMap<u32, u64>);

impl FilterWords {
    /// Sets the bit of an address.
    pub fn add<A: Address>(&mut self, kind: FilterKind, address: &A) {
        let (word, bit) = filter_position(kind, address);
        *self.0.entry(word).or_default() |= bit;
    }

    /// Sets the bit of a backend's address, if it has one.
    pub fn add_backend(&mut self, backend: &Backend) {
        match backend.family {
            4 => self.add(FilterKind::Source, &Addr4::narrow(&backend.address)),
            6 => self.add(FilterKind::Source, &Addr6::narrow(&backend.address)),
            _ => {}
        }
    }

    /// Sets what packets of this flow entry need to be looked up: an original direction is known
    /// by its destination (a service), an answering one by its source (a backend).
    pub fn add_flow<F: Family>(&mut self, key: &FlowKey<F>, flow: &Flow<F>) {
        if flow.state & flow_state::ORIGINAL == 0 {
            self.add(FilterKind::Source, &key.source);
        } else {
            self.add(FilterKind::Destination, &key.destination);
        }
    }

    /// The bits of a word.
    #[must_use]
    pub fn word(&self, word: u32) -> u64 {
        self.0.get(&word).copied().unwrap_or_default()
    }

    /// These words.
    pub(super) fn pick(&self, words: &BTreeSet<u32>) -> Self {
        words.iter().map(|word| (*word, self.word(*word))).collect()
    }

    /// Replaces a word as a whole.
    pub fn replace(&mut self, word: u32, bits: u64) {
        match self.0.entry(word) {
            Entry::Occupied(entry) if bits == 0 => {
                entry.remove();
            }
            Entry::Occupied(mut entry) => {
                entry.insert(bits);
            }
            Entry::Vacant(entry) if bits != 0 => {
                entry.insert(bits);
            }
            Entry::Vacant(_) => {}
        }
    }

    /// Words that aren't zero, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.0.iter().map(|(word, bits)| (*word, *bits))
    }
}

impl FromIterator<(u32, u64)> for FilterWords {
    fn from_iter<I: IntoIterator<Item = (u32, u64)>>(words: I) -> Self {
        Self(words.into_iter().filter(|(_, bits)| *bits != 0).collect())
    }
}

/// How often each bit of a filter is needed: a bit is set while that is at least once.
#[derive(Clone, Debug, Default)]
pub(super) struct FilterNeeds(HashMap<(u32, u32), u32>);

impl FilterNeeds {
    /// An address is needed once more. Returns the word with its bit.
    pub(super) fn add<A: Address>(
        &mut self,
        kind: FilterKind,
        address: &A,
        filter: &mut FilterWords,
    ) -> u32 {
        let (word, bit) = filter_position(kind, address);
        let count = self.0.entry((word, bit.trailing_zeros())).or_default();
        *count += 1;
        *filter.0.entry(word).or_default() |= bit;
        word
    }

    /// The opposite of [`add`](Self::add).
    pub(super) fn remove<A: Address>(
        &mut self,
        kind: FilterKind,
        address: &A,
        filter: &mut FilterWords,
    ) {
        let (word, bit) = filter_position(kind, address);
        if let hash_map::Entry::Occupied(mut entry) = self.0.entry((word, bit.trailing_zeros())) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
                filter.replace(word, filter.word(word) & !bit);
            }
        }
    }

    /// A backend's address is needed once more.
    pub(super) fn add_backend(
        &mut self,
        backend: &Backend,
        filter: &mut FilterWords,
    ) -> Option<u32> {
        let kind = FilterKind::Source;
        match backend.family {
            4 => Some(self.add(kind, &Addr4::narrow(&backend.address), filter)),
            6 => Some(self.add(kind, &Addr6::narrow(&backend.address), filter)),
            _ => None,
        }
    }

    /// The opposite of [`add_backend`](Self::add_backend).
    pub(super) fn remove_backend(&mut self, backend: &Backend, filter: &mut FilterWords) {
        let kind = FilterKind::Source;
        match backend.family {
            4 => self.remove(kind, &Addr4::narrow(&backend.address), filter),
            6 => self.remove(kind, &Addr6::narrow(&backend.address), filter),
            _ => {}
        }
    }

    /// The sources that translation puts into packets at a device are needed once more.
    pub(super) fn add_device(
        &mut self,
        device: &Device,
        filter: &mut FilterWords,
    ) -> impl Iterator<Item = u32> {
        let kind = FilterKind::Destination;
        let v4 = (device.source_v4 != Addr4::default())
            .then(|| self.add(kind, &device.source_v4, filter));
        let v6 = (device.source_v6 != Addr6::default())
            .then(|| self.add(kind, &device.source_v6, filter));
        v4.into_iter().chain(v6)
    }

    /// The opposite of [`add_device`](Self::add_device).
    pub(super) fn remove_device(&mut self, device: &Device, filter: &mut FilterWords) {
        let kind = FilterKind::Destination;
        if device.source_v4 != Addr4::default() {
            self.remove(kind, &device.source_v4, filter);
        }
        if device.source_v6 != Addr6::default() {
            self.remove(kind, &device.source_v6, filter);
        }
    }
}

/// Clears the bits that neither the plan nor a live flow needs (`flows`, from
/// [`FilterWords::add_flow`] over both tables). For the sweeper; the plan must be the one in force.
#[must_use]
pub fn clear_filter(observed: &Observed, plan: &Plan, flows: &FilterWords) -> Vec<Op> {
    let words: BTreeSet<u32> = observed.filter.iter().map(|(word, _)| word).collect();
    words
        .into_iter()
        .filter_map(|word| {
            let needed = plan.filter.word(word) | flows.word(word);
            let held = observed.filter.word(word);
            (held & !needed != 0).then_some(Op::WriteFilter {
                word,
                bits: held & needed,
            })
        })
        .collect()
}
