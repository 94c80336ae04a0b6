//! Where desired state comes from.
//!
//! A source yields whole snapshots. [`kubernetes`] turns single objects into checked ones (pure),
//! [`assemble`] makes one [`State`](crate::model::State) of all of them (pure), [`manifests`] reads
//! a directory.

pub mod assemble;
pub mod kubernetes;
pub mod manifests;

#[cfg(test)]
mod tests;
