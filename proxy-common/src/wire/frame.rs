//! Access to a frame: a cursor that only moves forward, and the operations that reshape it.

use core::marker::PhantomData;

use super::Plain;

/// Hands out references to headers at growing offsets of a frame.
///
/// Each call takes the bytes it returns out of the cursor's reach, so the references are disjoint
/// and may all be mutable. The BPF verifier wants each pointer checked against the frame's end once,
/// and used from then on without being derived anew: that is what this type does.
pub struct Cursor<'f> {
    next: *mut u8,
    end: *mut u8,
    frame: PhantomData<&'f mut [u8]>,
}

impl<'f> Cursor<'f> {
    /// A cursor over `next..end`.
    ///
    /// # Safety
    /// The range is one readable and writable object that nothing else refers to during `'f`, and
    /// `next` has an even address.
    #[inline(always)]
    #[expect(unsafe_code, reason = "raw bounds come from the kernel's context")]
    #[must_use]
    pub const unsafe fn from_raw(next: *mut u8, end: *mut u8) -> Self {
        Self {
            next,
            end,
            frame: PhantomData,
        }
    }

    /// A cursor over the first `length` bytes of `words`, or all of them if there are fewer.
    #[inline(always)]
    #[must_use]
    pub const fn over(words: &'f mut [u16], length: usize) -> Self {
        let bytes = size_of_val(words);
        let length = if length < bytes { length } else { bytes };
        let next = words.as_mut_ptr().cast::<u8>();
        // SAFETY: the slice is borrowed for `'f`, its start is aligned to 2, and `length` is within.
        #[expect(unsafe_code, reason = "see the SAFETY line")]
        unsafe {
            Self::from_raw(next, next.wrapping_add(length))
        }
    }

    /// The next `size_of::<T>()` bytes as a `T`; none if the frame ends before.
    #[inline(always)]
    pub fn take<T: Plain>(&mut self) -> Option<&'f mut T> {
        const { assert!(align_of::<T>() <= 2) };
        let start = self.next;
        let after = start.wrapping_add(size_of::<T>());
        if after > self.end {
            return None;
        }
        self.next = after;
        // SAFETY: `start..after` lies within the frame, at an even offset (sizes and skips are
        // even), was never handed out before, and any bits make a `T` (`Plain`).
        #[expect(unsafe_code, reason = "see the SAFETY line")]
        Some(unsafe { &mut *start.cast::<T>() })
    }

    /// The next `size_of::<T>()` bytes as a `T`, without moving on.
    #[inline(always)]
    #[must_use]
    pub fn peek<T: Plain>(&self) -> Option<T> {
        let start = self.next;
        if start.wrapping_add(size_of::<T>()) > self.end {
            return None;
        }
        // SAFETY: as in `take`, and the value is copied.
        #[expect(unsafe_code, reason = "see the SAFETY line")]
        Some(unsafe { *start.cast::<T>() })
    }

    /// A second cursor at the same place that can only look.
    #[inline(always)]
    #[must_use]
    pub fn fork(&self) -> Lookahead<'_, 'f> {
        Lookahead {
            cursor: Cursor {
                next: self.next,
                end: self.end,
                frame: PhantomData,
            },
            of: self,
        }
    }

    /// Moves on by `bytes`, which must be even and is at most 4,094.
    ///
    /// May move past the end: the next [`Cursor::take`] then finds nothing.
    #[inline(always)]
    pub fn skip(&mut self, bytes: u32) {
        self.next = self.next.wrapping_add((bytes & 0xffe) as usize);
    }
}

/// Looks ahead of a [`Cursor`] without handing out references.
pub struct Lookahead<'c, 'f> {
    cursor: Cursor<'f>,
    #[expect(dead_code, reason = "keeps the cursor borrowed")]
    of: &'c Cursor<'f>,
}

impl Lookahead<'_, '_> {
    /// See [`Cursor::peek`].
    #[inline(always)]
    #[must_use]
    pub fn peek<T: Plain>(&self) -> Option<T> {
        self.cursor.peek()
    }

    /// See [`Cursor::skip`].
    #[inline(always)]
    pub fn skip(&mut self, bytes: u32) {
        self.cursor.skip(bytes);
    }
}

/// What the kernel keeps of a frame beside its bytes: a handle that borrows nothing of the frame, so
/// that it may be asked while headers are in use.
pub trait Metadata: Copy {
    /// Whether the transport checksum may be changed in place: it is whole, and no sum over it is kept
    /// beside the frame. Where it may not, [`Frame::adjust_transport_checksum`] does it.
    fn checksum_is_plain(self) -> bool;

    /// Of a frame that stands for many segments, the payload of each, bytes; else zero.
    fn segment_payload(self) -> u32;
}

/// A frame under a hook: its bytes and the ways to reshape it.
///
/// Whatever may move the bytes takes `&mut self`, so that no reference from an earlier cursor can
/// be used after it: what the BPF verifier calls an invalidated packet pointer is a compile error.
pub trait Frame {
    /// Whether the kernel may keep sums over the frame beside it, or leave the transport checksum for
    /// a device to finish.
    const CHECKSUM_OFFLOAD: bool;

    /// See [`Metadata`].
    type Metadata: Metadata;

    /// What is kept beside the bytes.
    fn metadata(&self) -> Self::Metadata;

    /// False: its link-layer destination is another host, or a group. XDP cannot tell and says true.
    fn is_for_this_host(&self) -> bool;

    /// Makes sure that the first `bytes` bytes can be reached by a cursor, if there are so many.
    fn pull(&mut self, bytes: u32);

    /// The frame's bytes from the Ethernet header on.
    fn cursor(&mut self) -> Cursor<'_>;

    /// The VLAN tag that is kept beside the frame instead of in it.
    fn offloaded_tag(&self) -> Option<u16>;

    /// The whole frame's length in bytes, beyond what the cursor reaches too.
    fn length(&self) -> u64;

    /// Applies changes to the transport checksum that stands at `offset`: `address` is a change of
    /// the pseudo-header, `ports` one of the segment itself. `udp`: zero means none.
    /// Only for frames with [`Frame::CHECKSUM_OFFLOAD`].
    fn adjust_transport_checksum(
        &mut self,
        offset: u32,
        address: super::Delta,
        ports: super::Delta,
        udp: bool,
        v6: bool,
    );

    /// Applies a change of header bytes that no checksum in the packet makes up for to the sum that
    /// the receiving device may have taken of the whole packet (`CHECKSUM_COMPLETE`).
    /// Only for frames with [`Frame::CHECKSUM_OFFLOAD`].
    fn update_stack_checksum(&mut self, delta: super::Delta);

    /// Whether the transport checksum at `offset` is partial: only the pseudo-header's sum.
    fn checksum_is_partial(&mut self, offset: u32) -> bool;

    /// Makes room for `bytes` bytes after the first `link` bytes (Ethernet and its tags), which
    /// stay in front. None if the kernel refuses; the frame is then as it was.
    fn make_room(&mut self, link: u32, bytes: u32) -> Option<()>;

    /// Cuts the frame to `length` bytes. None if the kernel refuses.
    fn truncate(&mut self, length: u32) -> Option<()>;
}
