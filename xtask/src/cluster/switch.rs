//! The network that joins the hosts: one namespace with a bridge. The namespace that this program
//! runs in gets neither a device nor a route.

use std::net::IpAddr;

use anyhow::Result;

use super::layout::{PREFIX, Place};
use crate::process;

/// The switch's namespace.
fn namespace() -> String {
    format!("{PREFIX}switch")
}

/// Makes the switch.
pub(crate) fn start() -> Result<()> {
    let switch = namespace();
    ip(&format!("netns add {switch}"))?;
    ip(&format!("-n {switch} link add bridge type bridge"))?;
    ip(&format!("-n {switch} link set bridge up"))
}

/// Makes a host's network namespace and puts it on the switch.
pub(crate) fn join(place: Place) -> Result<()> {
    let (host, switch) = (place.namespace(), namespace());
    let (v4, v6) = (place.v4(), place.v6());
    ip(&format!("netns add {host}"))?;
    ip(&format!(
        "link add eth0 netns {host} type veth peer name {place} netns {switch}"
    ))?;
    ip(&format!("-n {switch} link set {place} master bridge up"))?;
    ip(&format!("-n {host} link set lo up"))?;
    ip(&format!("-n {host} address add {v4}/24 dev eth0"))?;
    ip(&format!("-n {host} address add {v6}/64 dev eth0 nodad"))?;
    ip(&format!("-n {host} link set eth0 up"))?;
    if matches!(place, Place::Node(_)) {
        let gateway = Place::Outside;
        ip(&format!("-n {host} route add default via {}", gateway.v4()))?;
        ip(&format!("-n {host} route add default via {}", gateway.v6()))?;
    }
    Ok(())
}

/// On `from`, sends what is for `range` to the host `to`.
pub(crate) fn route(from: Place, range: &str, to: Place) -> Result<()> {
    let address: IpAddr = range.split('/').next().unwrap_or_default().parse()?;
    ip(&format!(
        "-n {} route replace {range} via {}",
        from.namespace(),
        to.of_family(address)
    ))
}

fn ip(arguments: &str) -> Result<()> {
    process::quiet(process::command("ip").args(arguments.split(' '))).map(drop)
}
