//! Where desired state comes from.
//!
//! A source yields whole snapshots. [`kubernetes`] turns single objects into checked ones (pure),
//! [`assemble`] makes one [`State`](crate::model::State) of all of them (pure), [`manifests`] reads
//! a directory, [`apiserver`] follows a cluster.

pub mod apiserver;
pub mod assemble;
pub mod kubernetes;
pub mod manifests;
pub mod snapshot;

#[cfg(test)]
mod tests;
