//! Headers as they stand in a frame.
//!
//! Every header type has alignment 1 or 2, no padding, and no invalid bit pattern, so that a
//! reference to it can be taken anywhere at an even offset of a frame. (Packed headers cost the
//! BPF target a fifth more instructions: it splits every field into bytes.)

mod checksum;
mod ethernet;
mod frame;
mod ip;
mod transport;

pub use checksum::{Checksum, Delta};
pub use ethernet::{Ethernet, MacAddr, Vlan, ethertype};
pub use frame::{Cursor, Frame, Lookahead, Metadata};
pub use ip::{ExtensionHeader, FragmentHeader, IpHeader, Ipv4, Ipv6, protocol};
pub use transport::{Icmp, Sctp, Tcp, Udp, tcp_flag};

/// A type that may be read from and written to raw bytes.
///
/// # Safety
/// The type has no padding and no invalid bit pattern, and holds no reference or pointer.
#[expect(
    unsafe_code,
    reason = "the contract that makes reading raw bytes sound"
)]
pub unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($t:ty => $size:literal, $align:literal;)*) => {$(
        const _: () = assert!(size_of::<$t>() == $size && align_of::<$t>() == $align);
        // SAFETY: the size asserted above is the sum of the fields' sizes, so there is no padding,
        // and every field is an integer or an array of integers.
        #[expect(unsafe_code, reason = "see the SAFETY line")]
        unsafe impl $crate::wire::Plain for $t {}
    )*};
}
pub(crate) use plain;

/// A 16-bit number in network byte order.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Be16(u16);

impl Be16 {
    /// From a number in host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn new(value: u16) -> Self {
        Self(value.to_be())
    }

    /// As a number in host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// From the two bytes as they stand in memory, read as a native integer.
    #[inline(always)]
    #[must_use]
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }

    /// The two bytes as they stand in memory, read as a native integer: what checksums add up.
    #[inline(always)]
    #[must_use]
    pub const fn raw(self) -> u16 {
        self.0
    }
}

impl core::fmt::Debug for Be16 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.get())
    }
}

/// A 32-bit number in network byte order, aligned to 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Be32([Be16; 2]);

impl Be32 {
    /// From a number in host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn new(value: u32) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the low half is what is meant"
        )]
        Self([Be16::new((value >> 16) as u16), Be16::new(value as u16)])
    }

    /// As a number in host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> u32 {
        let Self([high, low]) = self;
        (high.get() as u32) << 16 | low.get() as u32
    }
}

plain! {
    Be16 => 2, 2;
    Be32 => 4, 2;
    u16 => 2, 2;
    [u16; 4] => 8, 2;
    [u16; 10] => 20, 2;
    [u16; 20] => 40, 2;
    u32 => 4, 4;
    u64 => 8, 8;
    [u32; 2] => 8, 4;
    [u8; 200] => 200, 1;
}
