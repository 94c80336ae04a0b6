//! The project's tests: frames and cases of the datapath with their executors, worlds of
//! namespaces with real traffic in them, and benchmarks.

pub mod bench;
pub mod case;
pub mod cases;
pub mod concurrency;
pub mod differential;
pub mod exec;
pub mod lab;
pub mod oracle;
pub mod packet;
pub mod tunnel;
