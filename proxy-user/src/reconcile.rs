//! From desired state to map contents, and from what the maps hold to what must change.
//!
//! Everything here is pure: no socket, no clock, no map. One round of the daemon is
//!
//! 1. [`Allocation::release`]: numbers given up earlier and out of use may be given out again;
//! 2. [`compile`] the desired state and the [`Facts`] into a [`Plan`], asking the [`Allocation`];
//! 3. [`diff`] the plan against [`Observed`], what the maps hold: [`Op`]s in a safe order;
//! 4. apply each, and tell [`Observed::apply`] of each that succeeded. One that failed is found
//!    again by the next round's diff.

mod allocation;
mod claims;
mod compile;
mod delta;
mod devices;
mod facts;
mod filter;
mod held;
pub mod maglev;
mod observed;
mod plan;
mod ranges;

pub use allocation::{Allocation, BackendKey, Capacity, Exhausted, QUARANTINE, SlotKey, SlotSet};
pub use compile::{Options, Report, compile};
pub use delta::{Op, Round, diff};
pub use facts::{DeviceFact, Facts, VlanFact};
pub use filter::{FilterWords, clear_filter};
pub use held::{Held, carry};
pub use observed::Observed;
pub use plan::{Plan, SlotRange};

#[cfg(test)]
mod scale;
#[cfg(test)]
mod tests;
