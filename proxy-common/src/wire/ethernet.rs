//! Ethernet II and 802.1Q.

use super::{Be16, plain};

/// Values of the type field (IEEE 802 numbers).
pub mod ethertype {
    use crate::wire::Be16;

    /// IPv4.
    pub const IPV4: Be16 = Be16::new(0x0800);
    /// IPv6.
    pub const IPV6: Be16 = Be16::new(0x86dd);
    /// A customer VLAN tag follows.
    pub const VLAN: Be16 = Be16::new(0x8100);
    /// A service VLAN tag follows (802.1ad).
    pub const QINQ: Be16 = Be16::new(0x88a8);
}

/// A link-layer address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct MacAddr(pub [u16; 3]);

impl MacAddr {
    /// From bytes in the order in which they are written.
    #[inline(always)]
    #[must_use]
    pub const fn from_bytes([a, b, c, d, e, f]: [u8; 6]) -> Self {
        Self([
            u16::from_ne_bytes([a, b]),
            u16::from_ne_bytes([c, d]),
            u16::from_ne_bytes([e, f]),
        ])
    }

    /// The bytes in the order in which they are written.
    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        let Self([x, y, z]) = self;
        let ([a, b], [c, d], [e, f]) = (x.to_ne_bytes(), y.to_ne_bytes(), z.to_ne_bytes());
        [a, b, c, d, e, f]
    }
}

/// The Ethernet header.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Ethernet {
    /// To whom.
    pub destination: MacAddr,
    /// From whom.
    pub source: MacAddr,
    /// What follows: see [`ethertype`].
    pub ethertype: Be16,
}

/// An 802.1Q or 802.1ad tag, which stands where the type field would.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Vlan {
    /// Priority (3 bits), drop eligible (1), VLAN id (12).
    pub tci: Be16,
    /// What follows.
    pub ethertype: Be16,
}

impl Vlan {
    /// The VLAN id.
    #[inline(always)]
    #[must_use]
    pub const fn id(&self) -> u16 {
        self.tci.get() & 0xfff
    }
}

plain! {
    MacAddr => 6, 2;
    Ethernet => 14, 2;
    Vlan => 4, 2;
}
