//! Three namespaces in a row: client, node, backend.
//!
//! ```text
//! client c0 198.51.100.2 -- 198.51.100.1 n0 node n1 10.1.0.1 -- 10.1.0.2.. b0 backend
//! ```
//!
//! All neighbours are known from the start, and IPv6 is off, so that nothing but the measured
//! packets is on the way.

use std::{fs, net::Ipv4Addr, process::Command};

use anyhow::{Context as _, Result, ensure};
use nix::net::if_::if_nametoindex;

use crate::{
    bench::namespace::{self, feed},
    lab::namespace::Namespace,
};

/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The node's address towards the client.
pub const NODE_OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The node's address towards the backend.
pub const NODE_INSIDE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// Where the endpoints of the measured service are.
pub const ENDPOINTS: [Ipv4Addr; 3] = [
    Ipv4Addr::new(10, 1, 0, 2),
    Ipv4Addr::new(10, 1, 0, 3),
    Ipv4Addr::new(10, 1, 0, 4),
];

/// Link-layer addresses of c0, n0, n1 and b0.
pub const LINKS: [[u8; 6]; 4] = [
    [2, 0, 0, 0, 0, 1],
    [2, 0, 0, 0, 0, 2],
    [2, 0, 0, 0, 0, 3],
    [2, 0, 0, 0, 0, 4],
];

/// Client, node and backend.
#[derive(Debug)]
pub struct World {
    /// Where requests come from: device `c0`.
    pub client: Namespace,
    /// What is measured: devices `n0` and `n1`.
    pub node: Namespace,
    /// Where requests go to: device `b0`.
    pub backend: Namespace,
}

impl World {
    /// Builds the world called `name`.
    pub fn build(name: &str) -> Result<Self> {
        let [c, n, b] = ["c", "n", "b"].map(|role| namespace::name(&format!("{name}-{role}")));
        let [client, node, backend] = [&c, &n, &b].map(Namespace::named);
        let world = Self {
            client,
            node,
            backend,
        };
        let [client_mac, outside_mac, inside_mac, backend_mac] = LINKS.map(mac);
        ip(&format!(
            "netns add {c}\nnetns add {n}\nnetns add {b}\n\
             link add c0 netns {c} address {client_mac} type veth peer name n0 netns {n} address {outside_mac}\n\
             link add b0 netns {b} address {backend_mac} type veth peer name n1 netns {n} address {inside_mac}\n"
        ))?;
        for namespace in [&world.client, &world.node, &world.backend] {
            namespace.enter(|| {
                fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")?;
                fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")?;
                fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
                fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "0")?;
                fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")?;
                fs::write("/proc/sys/net/ipv4/ip_local_port_range", "10000 60000")
            })??;
        }
        let [first, second, third] = ENDPOINTS;
        ip_in(
            &world.client,
            &format!(
                "addr add {CLIENT}/24 dev c0\nlink set c0 up\nlink set lo up\n\
                 route add default via {NODE_OUTSIDE}\n\
                 neigh add {NODE_OUTSIDE} lladdr {outside_mac} dev c0 nud permanent\n"
            ),
        )?;
        ip_in(
            &world.backend,
            &format!(
                "addr add {first}/24 dev b0\naddr add {second}/24 dev b0\n\
                 addr add {third}/24 dev b0\nlink set b0 up\nlink set lo up\n\
                 route add default via {NODE_INSIDE}\n\
                 neigh add {NODE_INSIDE} lladdr {inside_mac} dev b0 nud permanent\n",
            ),
        )?;
        ip_in(
            &world.node,
            &format!(
                "addr add {NODE_OUTSIDE}/24 dev n0\naddr add {NODE_INSIDE}/24 dev n1\n\
                 link set n0 up\nlink set n1 up\nlink set lo up\n\
                 neigh add {CLIENT} lladdr {client_mac} dev n0 nud permanent\n\
                 neigh add {first} lladdr {backend_mac} dev n1 nud permanent\n\
                 neigh add {second} lladdr {backend_mac} dev n1 nud permanent\n\
                 neigh add {third} lladdr {backend_mac} dev n1 nud permanent\n"
            ),
        )?;
        Ok(world)
    }

    /// All four devices, each with its namespace.
    fn devices(&self) -> [(&Namespace, &'static str); 4] {
        [
            (&self.client, "c0"),
            (&self.node, "n0"),
            (&self.node, "n1"),
            (&self.backend, "b0"),
        ]
    }

    /// Receive offload on all devices. With it veth has a NAPI context, and takes frames from XDP.
    pub fn receive_offload(&self, on: bool) -> Result<()> {
        for (namespace, device) in self.devices() {
            offload(namespace, device, "gro", on)?;
        }
        Ok(())
    }

    /// Transmit checksum offload of the two ends. Without it TCP through native XDP on veth works:
    /// frames then carry whole checksums.
    pub fn checksum_offload(&self, on: bool) -> Result<()> {
        offload(&self.client, "c0", "tx", on)?;
        offload(&self.backend, "b0", "tx", on)
    }

    /// Index of a device.
    pub fn ifindex(namespace: &Namespace, device: &str) -> Result<u32> {
        let index = namespace.enter(|| if_nametoindex(device))?;
        index.with_context(|| format!("device {device} in {}", namespace.name()))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for namespace in [&self.client, &self.node, &self.backend] {
            namespace::remove(namespace.name());
        }
    }
}

fn offload(namespace: &Namespace, device: &str, what: &str, on: bool) -> Result<()> {
    let state = if on { "on" } else { "off" };
    let output = namespace.output(Command::new("ethtool").args(["-K", device, what, state]))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "ethtool -K {device} {what} {state}: {complaint}"
    );
    Ok(())
}

fn mac(octets: [u8; 6]) -> String {
    octets.map(|octet| format!("{octet:02x}")).join(":")
}

/// Runs `ip` over a list of commands.
fn ip(batch: &str) -> Result<()> {
    feed(Command::new("ip").args(["-batch", "-"]), batch.as_bytes())
}

/// The same for the devices of a namespace.
fn ip_in(namespace: &Namespace, batch: &str) -> Result<()> {
    let mut command = Command::new("ip");
    feed(
        command.args(["-n", namespace.name(), "-batch", "-"]),
        batch.as_bytes(),
    )
}
