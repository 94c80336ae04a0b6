//! The kernel's side of services: maps, programs, where they are attached, and what they leave
//! behind.
//!
//! Nothing else of this crate calls bpf(2), and nothing here decides what a map shall hold: that is
//! [`reconcile`](crate::reconcile).

pub mod apply;
pub mod attach;
pub mod flows;
pub mod limits;
pub mod load;
pub mod lock;
pub mod maps;
pub mod observe;
pub mod pins;
mod probe;
mod syscall;
pub mod table;
pub mod upgrade;
pub mod verification;

pub use load::{Globals, Programs, SocketGlobals};
pub use lock::InstanceLock;
pub use maps::{MapSizes, Maps};
pub use pins::PinFolder;
pub use probe::{Features, Ticks, jiffies_per_second};
pub use syscall::{MapFd, MapInfo, TestRun};
