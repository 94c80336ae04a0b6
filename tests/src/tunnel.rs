//! The return proxy in a world of namespaces, with real programs around it.
//!
//! The server is the room `client`, which reaches the nodes through the router alone; the return proxy is
//! `node1`. [`demo`] shows it; [`bed`] has keys, manifests and Causeway's two ends, [`peer`] the programs of others.

pub mod bed;
pub mod demo;
pub mod peer;
