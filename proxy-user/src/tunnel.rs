//! The return proxy: the leg from a cluster's node to its central server that the kernel cannot
//! carry, because the server opens it, by SSH, and asks the node to listen.
//!
//! ```text
//! pod --kernel--> node:37140 [endpoint | sshd] ==SSH, opened by the server==> [client] --> :9443
//! ```
//! [`supervise`] decides when to dial and when to give up (pure), [`client`] does what it says at the
//! server, [`endpoint`] is the node's end where that is not OpenSSH. Between two ends that are ours,
//! [`streams`] share one channel; to a plain OpenSSH each connection has a channel. [`relay`] carries
//! one connection at either end.

pub mod backoff;
pub mod channel;
pub mod choose;
pub mod client;
pub mod control;
pub mod counters;
pub mod endpoint;
pub mod key;
pub mod memory;
pub mod metrics;
pub mod object;
pub mod queue;
pub mod relay;
pub mod service;
pub mod socket;
pub mod ssh;
pub mod streams;
pub mod supervise;
pub mod template;
pub mod trust;
pub mod window;
