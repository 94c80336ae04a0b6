//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624, equation 3).
//!
//! All sums are over 16-bit words as they stand in memory: the result is independent of byte order
//! (RFC 1071 section 2 B), so nothing is swapped.

/// A one's complement sum, the checksum before its final complement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Checksum(u32);

impl Checksum {
    /// An empty sum.
    #[inline(always)]
    #[must_use]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds one word. At most 65,535 words may be added.
    #[inline(always)]
    #[must_use]
    pub const fn add(self, word: u16) -> Self {
        Self(self.0.wrapping_add(word as u32))
    }

    /// Adds `N` words.
    #[inline(always)]
    #[must_use]
    pub fn add_words<const N: usize>(mut self, words: &[u16; N]) -> Self {
        for word in words {
            self = self.add(*word);
        }
        self
    }

    /// The sum folded into 16 bits.
    #[inline(always)]
    #[must_use]
    pub const fn fold(self) -> u16 {
        let once = (self.0 & 0xffff) + (self.0 >> 16);
        let twice = (once & 0xffff) + (once >> 16);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "folded twice: at most 16 bits"
        )]
        {
            twice as u16
        }
    }

    /// The checksum as it is written into a header.
    #[inline(always)]
    #[must_use]
    pub const fn finish(self) -> u16 {
        !self.fold()
    }
}

/// By how much replaced words change a checksum: the one's complement sum of `!old + new`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Delta(u16);

impl Delta {
    /// No change.
    pub const ZERO: Self = Self(0);

    /// What replacing `old` by `new` adds.
    #[inline(always)]
    #[must_use]
    pub fn of<const N: usize>(old: &[u16; N], new: &[u16; N]) -> Self {
        let mut sum = Checksum::new();
        for word in old {
            sum = sum.add(!*word);
        }
        Self(sum.add_words(new).fold())
    }

    /// From the form that a flow entry stores.
    #[inline(always)]
    #[must_use]
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }

    /// In the form that a flow entry stores.
    #[inline(always)]
    #[must_use]
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// Both changes together.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(Checksum::new().add(self.0).add(other.0).fold())
    }

    /// The new checksum of a header whose checksum was `check`.
    #[inline(always)]
    #[must_use]
    pub const fn apply(self, check: u16) -> u16 {
        Checksum::new().add(!check).add(self.0).finish()
    }

    /// As [`Delta::apply`], for UDP: zero means "no checksum" and stays, and a computed zero is
    /// sent as all ones (RFC 768).
    #[inline(always)]
    #[must_use]
    pub const fn apply_udp(self, check: u16) -> u16 {
        if check == 0 {
            return 0;
        }
        match self.apply(check) {
            0 => 0xffff,
            new => new,
        }
    }
}

#[cfg(test)]
mod tests;
