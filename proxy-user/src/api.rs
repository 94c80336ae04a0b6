//! The daemon's API: JSON over HTTP on a unix socket (docs/reference/api.md).
//!
//! A [`Query`] is one question about the maps. The server answers it with what the daemon knows
//! besides; the command line answers it alone, from the pins, where no daemon runs.

mod client;
mod query;
mod server;
pub(crate) mod socket;
mod status;

pub use client::{Client, ClientError};
pub use query::{Query, QueryError, answer};
pub(crate) use server::metrics;
pub use server::serve;
pub use status::{
    DeviceStatus, FindingStatus, FlowStatus, PendingStatus, Status, SyncStatus, status,
};
