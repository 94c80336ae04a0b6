//! Sockets' addresses (`struct bpf_sock_addr`) as `proxy_common::datapath::socket` wants them.
//!
//! These hooks run in processes, which may be preempted: nothing here is kept in records of a CPU.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use proxy_common::abi::{Addr4, Addr6, Peer, V4, V6};
use proxy_common::datapath::socket::{self, Opening};
use proxy_common::wire::{Be16, protocol};

use crate::maps;
use crate::tables::Maps;

/// The program's context. Fields are read and written one by one, as the verifier wants them.
#[derive(Clone, Copy)]
pub(crate) struct SocketAddress(*mut bpf_sock_addr);

/// What is asked of the socket's own state.
struct Own {
    cookie: u64,
    network: u64,
    on_node: bool,
    bound: bool,
    protocol: u8,
}

impl SocketAddress {
    #[inline(always)]
    pub(crate) const fn new(context: *mut bpf_sock_addr) -> Self {
        Self(context)
    }

    /// An IPv4 socket, or an IPv6 one with an IPv4 address, connects or sends.
    #[inline(always)]
    pub(crate) fn lead_v4(self, connects: bool) {
        let asked = Peer::new(self.address_v4(), self.port());
        if let Some(peer) = self.translate_v4(asked, connects) {
            self.set_address_v4(peer.address);
            self.set_port(peer.port);
        }
    }

    /// An IPv6 socket connects or sends.
    #[inline(always)]
    pub(crate) fn lead_v6(self, connects: bool) {
        let (address, port) = (self.address_v6(), self.port());
        if let Some(mapped) = address.mapped() {
            if let Some(peer) = self.translate_v4(Peer::new(mapped, port), connects) {
                self.set_mapped(peer.address);
                self.set_port(peer.port);
            }
            return;
        }
        let Some(own) = self.own(true) else {
            return;
        };
        let opening = Opening::<V6> {
            asked: Peer::new(address, port),
            protocol: own.protocol,
            cookie: own.cookie,
            network: own.network,
            on_node: own.on_node,
            bound: own.bound,
            connects,
        };
        if let Some(peer) = socket::translate(&opening, &Maps::socket(self.0)) {
            self.set_address_v6(peer.address);
            self.set_port(peer.port);
        }
    }

    /// A socket is asked for its peer's address, or (`received`) has received a datagram.
    #[inline(always)]
    pub(crate) fn restore_v4(self, received: bool) {
        let peer = Peer::new(self.address_v4(), self.port());
        if let Some(asked) = self.asked_v4(peer, received) {
            self.set_address_v4(asked.address);
            self.set_port(asked.port);
        }
    }

    /// The same of an IPv6 socket.
    #[inline(always)]
    pub(crate) fn restore_v6(self, received: bool) {
        let (address, port) = (self.address_v6(), self.port());
        if let Some(mapped) = address.mapped() {
            if let Some(asked) = self.asked_v4(Peer::new(mapped, port), received) {
                self.set_mapped(asked.address);
                self.set_port(asked.port);
            }
            return;
        }
        let (tables, peer) = (Maps::socket(self.0), Peer::<V6>::new(address, port));
        let asked = if received {
            socket::restore_sender(self.cookie(), &peer, &tables)
        } else {
            socket::restore(self.cookie(), &peer, &tables)
        };
        if let Some(asked) = asked {
            self.set_address_v6(asked.address);
            self.set_port(asked.port);
        }
    }

    #[inline(always)]
    fn translate_v4(self, asked: Peer<V4>, connects: bool) -> Option<Peer<V4>> {
        let own = self.own(false)?;
        let opening = Opening::<V4> {
            asked,
            protocol: own.protocol,
            cookie: own.cookie,
            network: own.network,
            on_node: own.on_node,
            bound: own.bound,
            connects,
        };
        socket::translate(&opening, &Maps::socket(self.0))
    }

    #[inline(always)]
    fn asked_v4(self, peer: Peer<V4>, received: bool) -> Option<Peer<V4>> {
        let tables = Maps::socket(self.0);
        if received {
            socket::restore_sender(self.cookie(), &peer, &tables)
        } else {
            socket::restore(self.cookie(), &peer, &tables)
        }
    }

    /// None: sockets of this kind are not led.
    #[inline(always)]
    fn own(self, v6: bool) -> Option<Own> {
        // SAFETY: the kernel's context outlives the program.
        let protocol = (unsafe { (&raw const (*self.0).protocol).read_volatile() }) as u8;
        if protocol != protocol::TCP && !(protocol == protocol::UDP && maps::leads_udp()) {
            return None;
        }
        let network = self.network();
        let on_node = network == node_network();
        if !on_node && !maps::leads_pods() {
            return None;
        }
        Some(Own {
            cookie: self.cookie(),
            network,
            on_node,
            bound: self.is_bound(v6),
            protocol,
        })
    }

    /// Whether it is bound to a device or to a loopback address of the family that it is led in.
    #[inline(always)]
    fn is_bound(self, v6: bool) -> bool {
        // SAFETY: the kernel's context outlives the program, and has its socket.
        let socket = unsafe { (&raw const (*self.0).__bindgen_anon_1.sk).read_volatile() };
        if socket.is_null() {
            return false;
        }
        // SAFETY: the kernel's socket outlives the program.
        if unsafe { (&raw const (*socket).bound_dev_if).read_volatile() } != 0 {
            return true;
        }
        if v6 {
            // SAFETY: as above.
            let source = unsafe { (&raw const (*socket).src_ip6).cast::<u32>() };
            // SAFETY: as above; the four words of the address.
            let words = [0, 1, 2, 3].map(|i| unsafe { source.add(i).read_volatile() });
            return words == [0, 0, 0, 1_u32.to_be()];
        }
        // An IPv6 socket that is bound to a mapped address has it here, too; one that is bound to
        // another IPv6 address has 127.0.0.6 (`__inet6_bind`).
        // SAFETY: as above.
        let source = unsafe { (&raw const (*socket).src_ip4).read_volatile() };
        let [first, ..] = source.to_ne_bytes();
        first == 127
    }

    #[inline(always)]
    fn cookie(self) -> u64 {
        // SAFETY: the helper takes the program's context.
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }

    #[inline(always)]
    fn network(self) -> u64 {
        // SAFETY: the helper takes the program's context.
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    #[inline(always)]
    fn address_v4(self) -> Addr4 {
        // SAFETY: the kernel's context outlives the program.
        let word = unsafe { (&raw const (*self.0).user_ip4).read_volatile() };
        Addr4::from_bytes(word.to_ne_bytes())
    }

    #[inline(always)]
    fn address_v6(self) -> Addr6 {
        let ([a, b], [c, d]) = (halves(self.word(0)), halves(self.word(1)));
        let ([e, f], [g, h]) = (halves(self.word(2)), halves(self.word(3)));
        Addr6([a, b, c, d, e, f, g, h])
    }

    #[inline(always)]
    fn word(self, index: usize) -> u32 {
        // SAFETY: as above; `index` is below four.
        unsafe {
            (&raw const (*self.0).user_ip6)
                .cast::<u32>()
                .add(index)
                .read_volatile()
        }
    }

    #[inline(always)]
    fn set_word(self, index: usize, value: [u16; 2]) {
        let value = u32::from_ne_bytes(Addr4(value).bytes());
        // SAFETY: as above.
        unsafe {
            (&raw mut (*self.0).user_ip6)
                .cast::<u32>()
                .add(index)
                .write_volatile(value)
        };
    }

    #[inline(always)]
    fn port(self) -> Be16 {
        // SAFETY: as above.
        let port = unsafe { (&raw const (*self.0).user_port).read_volatile() };
        Be16::from_raw(port as u16)
    }

    #[inline(always)]
    fn set_address_v4(self, address: Addr4) {
        let word = u32::from_ne_bytes(address.bytes());
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0).user_ip4).write_volatile(word) };
    }

    /// Keeps the prefix of mapped addresses.
    #[inline(always)]
    fn set_mapped(self, Addr4(address): Addr4) {
        self.set_word(3, address);
    }

    #[inline(always)]
    fn set_address_v6(self, Addr6([a, b, c, d, e, f, g, h]): Addr6) {
        self.set_word(0, [a, b]);
        self.set_word(1, [c, d]);
        self.set_word(2, [e, f]);
        self.set_word(3, [g, h]);
    }

    #[inline(always)]
    fn set_port(self, port: Be16) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0).user_port).write_volatile(u32::from(port.raw())) };
    }
}

#[inline(always)]
fn halves(word: u32) -> [u16; 2] {
    Addr4::from_bytes(word.to_ne_bytes()).0
}

#[inline(always)]
fn node_network() -> u64 {
    match maps::node_network() {
        // SAFETY: without a context, the helper says the initial namespace's number.
        0 => unsafe { bpf_get_netns_cookie(core::ptr::null_mut()) },
        network => network,
    }
}
