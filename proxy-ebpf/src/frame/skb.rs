//! Frames under TC.

use aya_ebpf::bindings::{
    __sk_buff, BPF_CSUM_LEVEL_QUERY, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, bpf_adj_room_mode,
};
use aya_ebpf::helpers::{
    bpf_csum_level, bpf_csum_update, bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_head,
    bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes,
    bpf_skb_vlan_pop, bpf_skb_vlan_push,
};
use proxy_common::wire::{Checksum, Cursor, Delta, Frame, Metadata};

use crate::maps;

/// A frame that the kernel has put into a socket buffer.
pub(crate) struct SkbFrame {
    skb: *mut __sk_buff,
}

/// What tells which family a packet is of: Ethernet and two tags.
const LINK: u32 = 14 + 8;

/// Bytes of an Ethernet header without tags.
const ETHERNET: u32 = 14;

impl SkbFrame {
    /// Makes sure that the link layer can be reached.
    #[inline(always)]
    pub(crate) fn new(skb: *mut __sk_buff) -> Self {
        let mut frame = Self { skb };
        frame.pull(LINK);
        frame
    }

    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        // SAFETY: the kernel's context outlives the program.
        unsafe { (*self.skb).ifindex }
    }

    /// Whether the packet came in by a device, and was not made on this node.
    #[inline(always)]
    pub(crate) fn is_forwarded(&self) -> bool {
        // SAFETY: as above.
        (unsafe { (*self.skb).ingress_ifindex }) != 0
    }

    /// Makes a packet of several segments nobody's clone, as forwarding by the kernel does (`skb_cow` in
    /// `ip_forward`): a TCP sender on this machine keeps the original until it is acknowledged, and
    /// its receiver cannot merge clones (`skb_try_coalesce`), which costs a stream some 5 %.
    #[inline(always)]
    pub(crate) fn unshare(&mut self) {
        // SAFETY: as above.
        if (unsafe { (*self.skb).gso_size }) != 0 {
            // SAFETY: no pointer into the frame is alive.
            unsafe { bpf_skb_change_head(self.skb, 0, 0) };
        }
    }

    // The bounds are read as volatile, for the compiler would otherwise read them in a caller and hand
    // them down as 32-bit numbers, which the verifier takes for numbers from then on.
    #[inline(always)]
    fn data(&self) -> usize {
        // SAFETY: as above.
        (unsafe { (&raw const (*self.skb).data).read_volatile() }) as usize
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        // SAFETY: as above.
        (unsafe { (&raw const (*self.skb).data_end).read_volatile() }) as usize
    }
}

/// Whether two sums are equal: zero has two forms.
#[inline(always)]
const fn same(a: u16, b: u16) -> bool {
    a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0)
}

impl SkbFrame {
    /// The word at an offset.
    #[inline(always)]
    fn word(&mut self, offset: u32) -> Option<&mut u16> {
        let mut cursor = self.cursor();
        cursor.skip(offset);
        cursor.take::<u16>()
    }

    /// Takes away the tag that is beside the frame: its kind, in network order, and its value.
    #[inline(always)]
    fn take_tag(&mut self) -> Option<(u16, u16)> {
        let tci = self.offloaded_tag()?;
        // SAFETY: the kernel's context outlives the program.
        let kind = (unsafe { (*self.skb).vlan_proto }) as u16;
        // SAFETY: no pointer into the frame is alive.
        (unsafe { bpf_skb_vlan_pop(self.skb) } == 0).then_some((kind, tci))
    }

    #[inline(always)]
    fn replace_checksum(&mut self, offset: u32, delta: Delta, flags: u64) {
        // SAFETY: the helper checks the offset; no pointer into the frame is alive.
        unsafe { bpf_l4_csum_replace(self.skb, offset, 0, u64::from(delta.raw()), flags) };
    }
}

/// A socket buffer's own fields.
#[derive(Clone, Copy)]
pub(crate) struct SkbMetadata {
    skb: *mut __sk_buff,
}

impl Metadata for SkbMetadata {
    #[inline(always)]
    fn checksum_is_plain(self) -> bool {
        // Fails unless the device has verified the checksum (CHECKSUM_UNNECESSARY): nothing but the
        // packet's own bytes holds it then.
        // SAFETY: the helper takes a plain number.
        unsafe { bpf_csum_level(self.skb, u64::from(BPF_CSUM_LEVEL_QUERY)) >= 0 }
    }

    #[inline(always)]
    fn segment_payload(self) -> u32 {
        // SAFETY: the kernel's context outlives the program.
        unsafe { (*self.skb).gso_size }
    }
}

impl Frame for SkbFrame {
    const CHECKSUM_OFFLOAD: bool = true;
    type Metadata = SkbMetadata;

    #[inline(always)]
    fn metadata(&self) -> SkbMetadata {
        SkbMetadata { skb: self.skb }
    }

    #[inline(always)]
    fn is_for_this_host(&self) -> bool {
        // PACKET_HOST (linux/if_packet.h).
        // SAFETY: the kernel's context outlives the program.
        (unsafe { (*self.skb).pkt_type }) == 0
    }

    #[inline(always)]
    fn pull(&mut self, bytes: u32) {
        let linear = self.data_end() - self.data();
        let wanted = self.length().min(u64::from(bytes));
        if linear < wanted as usize {
            // SAFETY: the helper checks the length; no pointer into the frame is alive.
            unsafe { bpf_skb_pull_data(self.skb, wanted as u32) };
        }
    }

    #[inline(always)]
    fn cursor(&mut self) -> Cursor<'_> {
        // SAFETY: the bounds are the kernel's, `&mut self` makes the borrow exclusive, and the
        // kernel aligns a frame's start to at least 2.
        unsafe { Cursor::from_raw(self.data() as *mut u8, self.data_end() as *mut u8) }
    }

    #[inline(always)]
    fn offloaded_tag(&self) -> Option<u16> {
        // SAFETY: the kernel's context outlives the program.
        let present = unsafe { (*self.skb).vlan_present };
        // SAFETY: as above.
        (present != 0).then(|| (unsafe { (*self.skb).vlan_tci }) as u16)
    }

    #[inline(always)]
    fn length(&self) -> u64 {
        // SAFETY: as above.
        u64::from(unsafe { (*self.skb).len })
    }

    #[inline(always)]
    fn adjust_transport_checksum(
        &mut self,
        offset: u32,
        address: Delta,
        ports: Delta,
        udp: bool,
        v6: bool,
    ) {
        let zero_is_none = if udp {
            u64::from(BPF_F_MARK_MANGLED_0)
        } else {
            0
        };
        let family = if v6 { maps::l4_csum_ipv6() } else { 0 };
        let pseudo = u64::from(BPF_F_PSEUDO_HDR) | zero_is_none | family;
        let before = self.word(offset).copied();
        self.replace_checksum(offset, address, pseudo);
        if v6 && family == 0 {
            // A kernel without the flag takes the addresses' change out of the sum of the whole packet,
            // where the checksum has made up for it already.
            self.update_stack_checksum(address);
        }
        if ports == Delta::ZERO {
            return;
        }
        // What the helper made of the pseudo-header's change tells whether the checksum is whole: a
        // partial one is not complemented. The ports' change is no concern of a partial one, and a
        // second call is dear.
        let after = self.word(offset);
        let (Some(before), Some(after)) = (before, after) else {
            return;
        };
        let (before, after_value) = (before, *after);
        let partial = Checksum::new().add(before).add(address.raw()).fold();
        let whole = address.apply(before);
        if same(partial, whole) {
            self.replace_checksum(offset, ports, zero_is_none);
        } else if same(after_value, whole) {
            *after = if udp {
                ports.apply_udp(after_value)
            } else {
                ports.apply(after_value)
            };
        }
    }

    #[inline(always)]
    fn update_stack_checksum(&mut self, delta: Delta) {
        // SAFETY: the helper takes a plain number, and does nothing unless the device has summed up
        // the whole packet.
        unsafe { bpf_csum_update(self.skb, u32::from(delta.raw())) };
    }

    #[inline(always)]
    fn checksum_is_partial(&mut self, offset: u32) -> bool {
        // A change that is not of the pseudo-header leaves a partial checksum alone
        // (inet_proto_csum_replace_by_diff).
        let Some(checksum) = self.word(offset).copied() else {
            return false;
        };
        let mut probe = 1_u16;
        // SAFETY: the helper checks the offset, and reads two bytes of the stack.
        unsafe { bpf_skb_store_bytes(self.skb, offset, (&raw const probe).cast(), 2, 0) };
        // SAFETY: as above.
        unsafe { bpf_l4_csum_replace(self.skb, offset, 0, 1, 0) };
        // SAFETY: the helper checks the offset, and writes two bytes to the stack.
        unsafe { bpf_skb_load_bytes(self.skb.cast(), offset, (&raw mut probe).cast(), 2) };
        // SAFETY: the helper checks the offset, and reads two bytes of the stack.
        unsafe { bpf_skb_store_bytes(self.skb, offset, (&raw const checksum).cast(), 2, 0) };
        probe == 1
    }

    #[inline(always)]
    fn make_room(&mut self, link: u32, bytes: u32) -> Option<()> {
        // The kernel makes room only behind an Ethernet header that IP follows (bpf_skb_adjust_room). Of
        // two tags the first is beside the frame: without it, the second is, for so long.
        let outer = if link > ETHERNET {
            Some(self.take_tag()?)
        } else {
            None
        };
        let mode = bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
        // SAFETY: the helper checks the length; no pointer into the frame is alive.
        let made = unsafe { bpf_skb_adjust_room(self.skb, bytes as i32, mode, 0) } == 0;
        if let Some((kind, tci)) = outer {
            // SAFETY: as above.
            let put = unsafe { bpf_skb_vlan_push(self.skb, kind, tci) };
            if put != 0 {
                return None;
            }
        }
        made.then_some(())
    }

    #[inline(always)]
    fn truncate(&mut self, length: u32) -> Option<()> {
        // SAFETY: the helper checks the length; no pointer into the frame is alive.
        (unsafe { bpf_skb_change_tail(self.skb, length, 0) } == 0).then_some(())
    }
}
