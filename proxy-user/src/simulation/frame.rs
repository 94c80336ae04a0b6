//! A frame in ordinary memory.

use proxy_common::wire::{self, Cursor, Delta, Metadata};

/// Which of the kernel's frames this one stands for: they can be reshaped in different ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// XDP: the driver's buffer.
    Driver,
    /// TC: a socket buffer. Room is made right after the Ethernet header, and only in front of an
    /// IP header (`bpf_skb_adjust_room`).
    SocketBuffer,
}

const ETHERNET: u32 = 14;

/// A frame in ordinary memory, its checksums complete.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Words, for the start of a frame is aligned to 2.
    words: Vec<u16>,
    length: usize,
    layer: Layer,
    for_this_host: bool,
}

/// There is nothing but the frame's bytes.
#[derive(Clone, Copy, Debug)]
pub struct NoMetadata;

impl Metadata for NoMetadata {
    fn checksum_is_plain(self) -> bool {
        true
    }

    fn segment_payload(self) -> u32 {
        0
    }
}

impl Frame {
    /// From bytes, the Ethernet header first.
    #[must_use]
    pub fn new(bytes: &[u8], layer: Layer) -> Self {
        let (pairs, rest) = bytes.as_chunks();
        let mut words: Vec<u16> = pairs.iter().map(|pair| u16::from_ne_bytes(*pair)).collect();
        words.extend(rest.iter().map(|last| u16::from_ne_bytes([*last, 0])));
        Self {
            words,
            length: bytes.len(),
            layer,
            for_this_host: true,
        }
    }

    /// As the device with this link-layer address receives it: for this host, or for another one.
    /// XDP cannot tell them apart.
    #[must_use]
    pub fn received_by(mut self, device: [u8; 6]) -> Self {
        let bytes = self.bytes();
        self.for_this_host = self.layer == Layer::Driver || bytes.starts_with(&device);
        self
    }

    /// The bytes as they are now.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        bytes.truncate(self.length);
        bytes
    }
}

impl wire::Frame for Frame {
    const CHECKSUM_OFFLOAD: bool = false;
    type Metadata = NoMetadata;

    fn metadata(&self) -> NoMetadata {
        NoMetadata
    }

    fn is_for_this_host(&self) -> bool {
        self.for_this_host
    }

    fn pull(&mut self, _bytes: u32) {}

    fn cursor(&mut self) -> Cursor<'_> {
        Cursor::over(&mut self.words, self.length)
    }

    fn offloaded_tag(&self) -> Option<u16> {
        None
    }

    fn length(&self) -> u64 {
        self.length as u64
    }

    fn adjust_transport_checksum(&mut self, _: u32, _: Delta, _: Delta, _: bool, _: bool) {}

    fn update_stack_checksum(&mut self, _: Delta) {}

    fn checksum_is_partial(&mut self, _: u32) -> bool {
        false
    }

    fn make_room(&mut self, link: u32, bytes: u32) -> Option<()> {
        if self.layer == Layer::SocketBuffer && link != ETHERNET {
            return None;
        }
        let at = link as usize / 2;
        let room = std::iter::repeat_n(0, bytes as usize / 2);
        self.words.splice(at..at, room);
        self.length += bytes as usize;
        Some(())
    }

    fn truncate(&mut self, length: u32) -> Option<()> {
        let length = length as usize;
        if length > self.length {
            return None;
        }
        self.length = length;
        self.words.truncate(length.div_ceil(2));
        Some(())
    }
}
