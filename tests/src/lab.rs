//! Worlds made of network namespaces, the traffic in them, and Causeway running on their nodes.
//!
//! [`layout`] says what the standard world is, [`topology`] how any world is described and made,
//! [`world`] keeps one standing, [`remains`] takes it away. [`answer`] are the servers in the pods,
//! [`ask`] single questions to them, [`dial`] questions by a socket of a certain kind, [`load`] traffic that goes on and counts its losses.

pub mod answer;
pub mod apiserver;
pub mod ask;
pub mod capture;
pub mod cgroup;
pub mod cluster;
pub mod demo;
pub mod dial;
pub mod layout;
pub mod load;
pub mod manifest;
pub mod namespace;
pub mod polling;
pub mod process;
pub mod remains;
pub mod table;
pub mod topology;
pub mod watch;
pub mod world;
