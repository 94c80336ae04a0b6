//! What the daemon tells about itself: its log, and numbers for Prometheus.

pub mod log;
