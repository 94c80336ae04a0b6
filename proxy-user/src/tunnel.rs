//! The return proxy: the leg from a cluster's node to its central server that the kernel cannot
//! carry, because the server opens it, by SSH, and asks the node to listen.
//!
//! [`supervise`] decides (pure); everything else does what it says.

pub mod backoff;
pub mod supervise;
