//! From desired state to map contents, and from what the maps hold to what must change.
//!
//! Everything here is pure: no socket, no clock, no map. One round of the daemon is
//!
//! 1. [`Allocation::release`]: numbers given up earlier and out of use may be given out again;
//! 2. [`Planner::update`]: the desired state and the [`Facts`] become a [`Plan`], by way of the
//!    [`Allocation`]. Only what has changed is compiled; [`compile`] does the same from nothing;
//! 3. [`diff`] the plan against [`Observed`], what the maps hold: [`Op`]s in a safe order. After an
//!    update of a part, [`diff_part`] compares no more than that;
//! 4. apply each, and tell [`Observed::apply`] of each that succeeded. One that failed is found
//!    again by the next round's diff.

mod allocation;
mod claims;
mod compile;
mod delta;
mod devices;
mod extent;
mod facts;
mod filter;
mod ground;
mod held;
pub mod maglev;
mod observed;
mod piece;
mod plan;
mod planner;
mod ranges;

pub use allocation::{Allocation, BackendKey, Capacity, Exhausted, QUARANTINE, SlotKey, SlotSet};
pub use compile::{Options, Report, compile};
pub use delta::{Op, Round, diff, diff_part};
pub use extent::{Extent, Keys};
pub use facts::{DeviceFact, Facts, VlanFact};
pub use filter::{FilterWords, clear_filter};
pub use held::{Held, carry};
pub use observed::Observed;
pub use plan::{Plan, SlotRange};
pub use planner::{Planner, Update};

#[cfg(test)]
mod scale;
#[cfg(test)]
mod tests;
