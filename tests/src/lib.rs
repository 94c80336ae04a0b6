//! The project's test worlds and the traffic in them.

pub mod lab;
