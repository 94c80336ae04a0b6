//! Causeway's kernel programs: adapters between hooks and `proxy_common::datapath`.
//!
//! Nothing is decided here. `frame` gives a hook's context the shape of a
//! [`Frame`](proxy_common::wire::Frame), `tables` gives the maps the shape of
//! [`Tables`](proxy_common::datapath::Tables), and the programs turn a
//! [`Verdict`](proxy_common::datapath::Verdict) into a return code.
#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod frame;
mod maps;
mod socket;
mod tables;

use aya_ebpf::bindings::{
    BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action::XDP_DROP, xdp_action::XDP_PASS,
    xdp_action::XDP_TX,
};
use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer};
use aya_ebpf::macros::{cgroup_sock_addr, classifier, xdp};
use aya_ebpf::programs::{SockAddrContext, TcContext, XdpContext};
use proxy_common::abi::LOOPBACK;
use proxy_common::datapath::verdict::Action;
use proxy_common::datapath::{
    Hook, Reason, Tables as _, TcEgress, TcIngress, Verdict, XdpUplink, run,
};
use proxy_common::wire::Frame as _;

use frame::{SkbFrame, XdpFrame};
use socket::SocketAddress;
use tables::Maps;

/// Uplinks, before the kernel has a socket buffer.
#[xdp]
pub fn xdp_uplink(context: XdpContext) -> u32 {
    let mut frame = XdpFrame::new(context.ctx);
    let ifindex = frame.ifindex();
    let verdict = run::<XdpUplink, _, _>(&mut frame, &Maps::xdp(context.ctx), ifindex);
    match verdict.action() {
        Action::Pass | Action::Pod(_) | Action::Neighbour(_) | Action::Local | Action::Loopback => {
            XDP_PASS
        }
        Action::Drop(_) => XDP_DROP,
        Action::Reply => XDP_TX,
        Action::Transmit(to) if to == ifindex => XDP_TX,
        Action::Transmit(to) => match maps::TX_PORTS.redirect(to, 0) {
            Ok(code) => code,
            Err(_) => {
                let bytes = frame.length();
                Maps::xdp(context.ctx).count(Reason::DeviceGone as u32, bytes);
                XDP_DROP
            }
        },
    }
}

/// Uplinks and host ends of pods' veth pairs: packets from the wire or from a pod.
#[classifier]
pub fn tc_ingress(context: TcContext) -> i32 {
    let mut frame = SkbFrame::new(context.skb.skb);
    let ifindex = frame.ifindex();
    let verdict = run::<TcIngress, _, _>(&mut frame, &Maps::skb(context.skb.skb), ifindex);
    if let Action::Transmit(_) | Action::Pod(_) | Action::Neighbour(_) = verdict.action() {
        frame.unshare();
    }
    tc_code::<TcIngress>(verdict, ifindex)
}

/// The same devices: packets that this node's own processes send.
#[classifier]
pub fn tc_egress(context: TcContext) -> i32 {
    let mut frame = SkbFrame::new(context.skb.skb);
    if frame.is_forwarded() {
        return TC_ACT_UNSPEC;
    }
    let ifindex = frame.ifindex();
    let verdict = run::<TcEgress, _, _>(&mut frame, &Maps::skb(context.skb.skb), ifindex);
    tc_code::<TcEgress>(verdict, ifindex)
}

/// Sockets' programs answer with one of two numbers; none of ours refuses a socket anything.
const ALLOW: i32 = 1;

/// A process connects an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn sock_connect4(context: SockAddrContext) -> i32 {
    SocketAddress::new(context.sock_addr).lead_v4(true);
    ALLOW
}

/// A process connects an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub fn sock_connect6(context: SockAddrContext) -> i32 {
    SocketAddress::new(context.sock_addr).lead_v6(true);
    ALLOW
}

/// A process sends by a UDP socket that is not connected, to an IPv4 address.
#[cgroup_sock_addr(sendmsg4)]
pub fn sock_sendmsg4(context: SockAddrContext) -> i32 {
    SocketAddress::new(context.sock_addr).lead_v4(false);
    ALLOW
}

/// The same to an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
pub fn sock_sendmsg6(context: SockAddrContext) -> i32 {
    SocketAddress::new(context.sock_addr).lead_v6(false);
    ALLOW
}

/// A process has received a datagram by an IPv4 socket.
#[cgroup_sock_addr(recvmsg4)]
pub fn sock_recvmsg4(context: SockAddrContext) -> i32 {
    SocketAddress::new(context.sock_addr).restore_v4(true);
    ALLOW
}

/// A process has received a datagram by an IPv6 socket.
#[cgroup_sock_addr(recvmsg6)]
pub fn sock_recvmsg6(context: SockAddrContext) -> i32 {
    SocketAddress::new(context.sock_addr).restore_v6(true);
    ALLOW
}

/// A process asks who the peer of its IPv4 socket is.
#[cgroup_sock_addr(getpeername4)]
pub fn sock_getpeername4(context: SockAddrContext) -> i32 {
    SocketAddress::new(context.sock_addr).restore_v4(false);
    ALLOW
}

/// A process asks who the peer of its IPv6 socket is.
#[cgroup_sock_addr(getpeername6)]
pub fn sock_getpeername6(context: SockAddrContext) -> i32 {
    SocketAddress::new(context.sock_addr).restore_v6(false);
    ALLOW
}

/// `TC_ACT_UNSPEC` leaves the packet to the next program, under TCX and under clsact alike.
#[inline(always)]
fn tc_code<H: Hook>(verdict: Verdict, ifindex: u32) -> i32 {
    match verdict.action() {
        Action::Pass => TC_ACT_UNSPEC,
        Action::Drop(_) => TC_ACT_SHOT,
        Action::Transmit(to) => redirect(to, 0),
        // A peer can only be redirected to on ingress (kernel commit 9aa1206e8f48).
        Action::Pod(to) if H::EGRESS => redirect(to, 0),
        // SAFETY: the helper takes plain numbers.
        Action::Pod(to) => (unsafe { bpf_redirect_peer(to, 0) }) as i32,
        Action::Neighbour(to) => neighbour(to),
        Action::Reply if H::EGRESS => redirect(ifindex, u64::from(BPF_F_INGRESS)),
        Action::Loopback => redirect(LOOPBACK, u64::from(BPF_F_INGRESS)),
        Action::Local => TC_ACT_UNSPEC,
        Action::Reply => redirect(ifindex, 0),
    }
}

#[inline(always)]
fn redirect(ifindex: u32, flags: u64) -> i32 {
    // SAFETY: the helper takes plain numbers.
    (unsafe { bpf_redirect(ifindex, flags) }) as i32
}

#[inline(always)]
fn neighbour(ifindex: u32) -> i32 {
    // SAFETY: no parameters are given, so none are read.
    (unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) }) as i32
}

/// Never reached: the verifier refuses a program that could.
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
