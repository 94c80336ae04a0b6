//! This node's network as the kernel shows it: devices and addresses (rtnetlink), and the settings
//! under /proc/sys that services depend on.

pub mod devices;
pub mod route;
pub mod sysctl;
pub mod watch;

pub use proxy_cni::netlink;
