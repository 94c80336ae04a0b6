//! `causeway run`: puts everything together and keeps the kernel's side right.
//!
//! One task holds the [`Engine`] and is told when manifests, devices, time or the configuration ask
//! for a round. Whoever wants to know something reads the [`View`], and waits for nothing.
//!
//! When the daemon ends, by whatever means, everything that it put into the kernel stays and works
//! on; the next start takes it over. Only `causeway detach` removes it.

mod announce;
mod engine;
mod follow;
mod look;
mod notify;
mod progress;
mod reflect;
mod retry;
mod run;
mod unconfirmed;
mod view;

pub use announce::announce;
pub use engine::{Engine, RoundError, StartError};
pub use progress::Progress;
pub use run::{RunError, run};
pub use view::{Current, Pending, Sync, View};
