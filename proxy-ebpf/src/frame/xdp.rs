//! Frames under XDP.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use proxy_common::wire::{Cursor, Delta, Frame, Metadata};

/// A frame that the driver has just received.
pub(crate) struct XdpFrame {
    context: *mut xdp_md,
}

impl XdpFrame {
    #[inline(always)]
    pub(crate) const fn new(context: *mut xdp_md) -> Self {
        Self { context }
    }

    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        // SAFETY: the kernel's context outlives the program.
        unsafe { (*self.context).ingress_ifindex }
    }

    // The bounds are read as volatile, for the compiler would otherwise read them in a caller and hand
    // them down as 32-bit numbers, which the verifier takes for numbers from then on.
    #[inline(always)]
    fn data(&self) -> usize {
        // SAFETY: as above.
        (unsafe { (&raw const (*self.context).data).read_volatile() }) as usize
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        // SAFETY: as above.
        (unsafe { (&raw const (*self.context).data_end).read_volatile() }) as usize
    }
}

/// Where the link layer may end: after Ethernet, one tag, or two.
const LINK_ENDS: [usize; 3] = [14, 18, 22];

/// There is nothing but the frame's bytes.
#[derive(Clone, Copy)]
pub(crate) struct NoMetadata;

impl Metadata for NoMetadata {
    #[inline(always)]
    fn checksum_is_plain(self) -> bool {
        true
    }

    #[inline(always)]
    fn segment_payload(self) -> u32 {
        0
    }
}

impl Frame for XdpFrame {
    const CHECKSUM_OFFLOAD: bool = false;
    type Metadata = NoMetadata;

    #[inline(always)]
    fn metadata(&self) -> NoMetadata {
        NoMetadata
    }

    #[inline(always)]
    fn is_for_this_host(&self) -> bool {
        true
    }

    #[inline(always)]
    fn pull(&mut self, _bytes: u32) {}

    #[inline(always)]
    fn cursor(&mut self) -> Cursor<'_> {
        // SAFETY: the bounds are the kernel's, `&mut self` makes the borrow exclusive, and drivers
        // align a frame's start to at least 2.
        unsafe { Cursor::from_raw(self.data() as *mut u8, self.data_end() as *mut u8) }
    }

    #[inline(always)]
    fn offloaded_tag(&self) -> Option<u16> {
        None
    }

    #[inline(always)]
    fn length(&self) -> u64 {
        (self.data_end() - self.data()) as u64
    }

    #[inline(always)]
    fn adjust_transport_checksum(&mut self, _: u32, _: Delta, _: Delta, _: bool, _: bool) {}

    #[inline(always)]
    fn update_stack_checksum(&mut self, _: Delta) {}

    #[inline(always)]
    fn checksum_is_partial(&mut self, _: u32) -> bool {
        false
    }

    #[inline(always)]
    fn make_room(&mut self, link: u32, bytes: u32) -> Option<()> {
        // SAFETY: the helper checks the headroom; no pointer into the frame is alive.
        if unsafe { bpf_xdp_adjust_head(self.context, -(bytes as i32)) } != 0 {
            return None;
        }
        let start = self.data();
        let end = self.data_end();
        let bytes = (bytes & 0x3f) as usize;
        let mut offset = 0;
        for link_end in LINK_ENDS {
            // Only compared with lengths that a link layer can have. Up to 6.12 the verifier follows
            // `link < 21`, though 14, 18 and 22 are all it can be, and takes every pointer that
            // `link` is added to on that impossible way for a number.
            if (link as usize) < link_end {
                break;
            }
            while offset < link_end {
                let to = start + offset;
                let from = to + bytes;
                if from + 2 > end || to + 2 > end {
                    return None;
                }
                // SAFETY: both words lie within the frame, as just checked.
                unsafe { *(to as *mut u16) = *(from as *const u16) };
                offset += 2;
            }
        }
        Some(())
    }

    #[inline(always)]
    fn truncate(&mut self, length: u32) -> Option<()> {
        let now = self.length();
        // Read back: the verifier refuses 32-bit arithmetic on pointers, which the compiler would
        // make of a difference that only 32 bits are used of.
        // SAFETY: a local variable.
        let now = unsafe { core::ptr::read_volatile(&raw const now) };
        let by = length as i32 - now as i32;
        // SAFETY: the helper checks the bounds; no pointer into the frame is alive.
        (unsafe { bpf_xdp_adjust_tail(self.context, by) } == 0).then_some(())
    }
}
