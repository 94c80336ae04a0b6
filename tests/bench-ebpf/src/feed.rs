//! The record that the harness shares with the benchmarks' kernel programs.

/// 64-bit words of a frame of the benchmarks: every frame is 80 bytes long.
pub const FRAME_WORDS: usize = 10;

/// What the benchmarks' programs write into a frame before each run. One record, map `FEED`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Feed {
    /// The frame as it arrives, of flow 0.
    pub frame: [u64; FRAME_WORDS],
    /// How many frames were written since the record was.
    pub counter: u32,
    /// How many flows there are to choose from.
    pub flows: u32,
    /// How flows follow one another: [`SCATTERED`] or [`IN_TURN`].
    pub order: u32,
    /// 1: the frame is IPv6; 0: IPv4.
    pub v6: u32,
    /// The last 16 bits of the source address of flow 0.
    pub address: u32,
    /// Zero.
    pub pad: u32,
}

/// Next flow: the counter times the golden ratio, so that neighbours in time are none in memory.
pub const SCATTERED: u32 = 0;

/// Next flow: the one after the last, without end.
pub const IN_TURN: u32 = 1;

/// Ports that one source address uses, from [`FIRST_PORT`] on; flow numbers beyond take the next address.
pub const PORTS: u32 = 1024;

/// Source port of flow 0.
pub const FIRST_PORT: u32 = 0x4000;

/// Offsets of the last 16 bits of the source address and of the source port, bytes: IPv4.
pub const PLACES_V4: [usize; 2] = [28, 34];

/// The same for IPv6.
pub const PLACES_V6: [usize; 2] = [36, 54];
