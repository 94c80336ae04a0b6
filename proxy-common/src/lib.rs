//! Packet formats, map records and packet decisions of Causeway.
//!
//! One source for two targets: the same functions run in the kernel's XDP and TC hooks (through
//! `proxy-ebpf`), in unit tests and in `causeway explain`.
//!
//! - [`wire`]: bytes on the network, and the only `unsafe` of this crate;
//! - [`abi`]: bytes in the kernel's maps, the contract between the daemon and the programs;
//! - [`datapath`]: what happens to a packet, as pure functions, in the packet's order.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod datapath;
pub mod wire;
