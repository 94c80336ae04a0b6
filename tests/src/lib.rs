//! The project's test worlds, the traffic in them, and benchmarks.

pub mod bench;
pub mod lab;
