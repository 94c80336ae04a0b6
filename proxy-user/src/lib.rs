//! The Causeway daemon and its command line, as a library.
//!
//! `source -> model::State -> reconcile::plan (pure) -> reconcile::delta -> dataplane -> report`.

pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod dataplane;
pub mod explain;
pub mod health;
pub mod inspect;
pub mod kernel;
pub mod model;
pub mod plugin;
pub mod pod_network;
pub mod reconcile;
pub mod simulation;
pub mod source;
pub mod telemetry;
pub mod tunnel;
