//! `causeway-cni` and the daemon together: pods of two nodes, called as a runtime calls it.

#[path = "cni/pods.rs"]
mod pods;
#[path = "cni/runtime.rs"]
mod runtime;
