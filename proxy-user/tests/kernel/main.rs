//! The dataplane and the daemon's engine against this machine's kernel, each test in a network
//! namespace of its own. Needs root, and fails without it.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may fail"
)]

mod daemon;
mod dataplane;
mod restart;
mod upgrade;
mod world;
