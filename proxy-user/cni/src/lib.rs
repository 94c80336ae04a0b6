//! The CNI plugin `causeway-cni`, and what it shares with the daemon.
//!
//! The plugin and the daemon talk through files in one directory: [`record`] is what the plugin
//! writes of each pod, and [`node`] what the daemon writes of the node. So pods come and go while the
//! daemon is away, and it finds everything when it is back.

pub mod allocate;
pub mod error;
pub mod link;
pub mod netlink;
pub mod node;
pub mod plugin;
pub mod protocol;
pub mod record;
pub mod route;
pub mod sandbox;
