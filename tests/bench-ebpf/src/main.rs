//! The benchmarks' own kernel programs.
//!
//! `BPF_PROG_TEST_RUN` hands the same frame to a program again and again, with all edits of the run
//! before. So `restore_xdp` and `restore_tc` first write the whole frame anew, for one flow of
//! many, and then tail-call the program that is measured. `empty_xdp` and `empty_tc` in its place
//! show what that costs by itself. `generate` and `sink` are the two ends of a live path.
#![no_std]
#![no_main]

#[expect(dead_code, reason = "shared with the harness")]
mod feed;

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_CSUM_LEVEL_INC, TC_ACT_OK, xdp_action},
    helpers::{bpf_csum_level, bpf_skb_change_tail, bpf_xdp_adjust_tail},
    macros::{classifier, map, xdp},
    maps::{Array, ProgramArray},
    programs::{TcContext, XdpContext},
};

use crate::feed::{FIRST_PORT, FRAME_WORDS, Feed, IN_TURN, PLACES_V4, PLACES_V6, PORTS};

const FRAME_BYTES: usize = FRAME_WORDS * 8;

#[map]
static FEED: Array<Feed> = Array::with_max_entries(1, 0);

/// The XDP program that is measured, at index 0.
#[map]
static XDP_TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// The TC program that is measured, at index 0.
#[map]
static TC_TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Frames that the sink has seen.
#[map]
static SUNK: Array<u64> = Array::with_max_entries(1, 0);

/// Writes the next frame over `start..end`. None if there is less room than a frame takes.
#[inline(always)]
fn write_frame(start: usize, end: usize) -> Option<()> {
    if start + FRAME_BYTES > end {
        return None;
    }
    let feed = FEED.get_ptr_mut(0)?;
    let frame = start as *mut u64;
    // SAFETY: the record is used by the one thread that runs the benchmark; the frame's bounds
    // were checked above, and the kernel hands out frames at addresses divisible by 8.
    unsafe {
        let feed = &mut *feed;
        for (i, word) in feed.frame.iter().enumerate() {
            frame.add(i).write(*word);
        }
        let count = feed.counter;
        feed.counter = count.wrapping_add(1);
        let flow = if feed.order == IN_TURN {
            count
        } else {
            ((u64::from(count.wrapping_mul(2_654_435_761)) * u64::from(feed.flows)) >> 32) as u32
        };
        let port = (FIRST_PORT + (flow & (PORTS - 1))) as u16;
        let address = feed.address.wrapping_add(flow / PORTS) as u16;
        // Constant offsets on either side: the verifier would have a computed one checked again.
        if feed.v6 == 1 {
            write_flow(start, PLACES_V6, address, port);
        } else {
            write_flow(start, PLACES_V4, address, port);
        }
    }
    Some(())
}

/// Makes the frame at `start` one of the flow with this source.
///
/// # Safety
/// A whole frame lies at `start`.
#[inline(always)]
unsafe fn write_flow(start: usize, [address_at, port_at]: [usize; 2], address: u16, port: u16) {
    // SAFETY: both offsets lie within a frame.
    unsafe {
        ((start + address_at) as *mut u16).write(address.to_be());
        ((start + port_at) as *mut u16).write(port.to_be());
    }
}

/// Restores the frame and runs the program in `XDP_TARGET`.
#[xdp]
pub fn restore_xdp(ctx: XdpContext) -> u32 {
    let grown = FRAME_BYTES as i32 - (ctx.data_end() as i32 - ctx.data() as i32);
    if grown != 0 {
        // SAFETY: the context is the kernel's; packet pointers are derived after the call.
        unsafe { bpf_xdp_adjust_tail(ctx.ctx, grown) };
    }
    if write_frame(ctx.data(), ctx.data_end()).is_none() {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: nothing is held that a drop would have to release.
    unsafe { XDP_TARGET.tail_call(&ctx, 0) };
    xdp_action::XDP_ABORTED
}

/// Restores the frame and runs the program in `TC_TARGET`.
#[classifier]
pub fn restore_tc(ctx: TcContext) -> i32 {
    if ctx.len() != FRAME_BYTES as u32 {
        // SAFETY: the context is the kernel's; packet pointers are derived after the call.
        unsafe { bpf_skb_change_tail(ctx.as_ptr().cast(), FRAME_BYTES as u32, 0) };
    }
    // As a network card with receive checksums delivers a frame. What BPF_PROG_TEST_RUN makes is
    // CHECKSUM_NONE, which hardly any device leaves a frame at.
    // SAFETY: the helper takes a plain number.
    unsafe { bpf_csum_level(ctx.as_ptr().cast(), u64::from(BPF_CSUM_LEVEL_INC)) };
    if write_frame(ctx.data(), ctx.data_end()).is_none() {
        return -2;
    }
    // SAFETY: nothing is held that a drop would have to release.
    unsafe { TC_TARGET.tail_call(&ctx, 0) };
    -2
}

/// Does nothing: what a program costs that has nothing to do.
#[xdp]
pub fn empty_xdp(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Does nothing: what a program costs that has nothing to do.
#[classifier]
pub fn empty_tc(_ctx: TcContext) -> i32 {
    TC_ACT_OK
}

/// Source of a live path: sends the next frame out of the device it is run on.
#[xdp]
pub fn generate(ctx: XdpContext) -> u32 {
    match write_frame(ctx.data(), ctx.data_end()) {
        Some(()) => xdp_action::XDP_TX,
        None => xdp_action::XDP_ABORTED,
    }
}

/// Sink of a live path: counts IPv4 UDP frames and drops them, and lets everything else through.
#[xdp]
pub fn sink(ctx: XdpContext) -> u32 {
    const ETHERTYPE: usize = 12;
    const PROTOCOL: usize = 23;
    let start = ctx.data();
    if start + PROTOCOL + 1 > ctx.data_end() {
        return xdp_action::XDP_PASS;
    }
    // SAFETY: both offsets are within the bounds checked above.
    let (ethertype, protocol) = unsafe {
        (
            *((start + ETHERTYPE) as *const u16),
            *((start + PROTOCOL) as *const u8),
        )
    };
    if u16::from_be(ethertype) != 0x0800 || protocol != 17 {
        return xdp_action::XDP_PASS;
    }
    let Some(sunk) = SUNK.get_ptr_mut(0) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: one CPU runs the whole path.
    unsafe { *sunk += 1 };
    xdp_action::XDP_DROP
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
