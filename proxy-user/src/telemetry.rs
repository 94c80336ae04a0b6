//! What the daemon tells about itself: its log, and numbers for Prometheus.

pub mod histogram;
pub mod log;
#[expect(
    clippy::cast_precision_loss,
    reason = "numbers for Prometheus are 64-bit floats, exact up to 2^53"
)]
pub mod metrics;
