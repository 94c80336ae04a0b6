//! Numbers that the slow path needs and the daemon may change at run time.

/// The one record of `SETTINGS`.
///
/// Time in flows is counted in ticks of 256 jiffies: the kernel's coarse counter costs a packet
/// nothing to read, and the daemon alone needs to know how long a tick is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// First source port that translation may claim.
    pub port_min: u32,
    /// How many ports from there on; zero: none.
    pub port_count: u32,
    /// Mixed into random choices; differs from node to node.
    pub seed: u32,
    /// Jiffies per second, for readers of this record.
    pub hz: u32,
}
