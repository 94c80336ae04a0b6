//! A network namespace whose routing and neighbour tables answer as a case's world says.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};

use crate::case::World;
use crate::case::place::{self, MTU, RouteKind, device};

/// The namespace of the calling thread. It goes with the thread.
pub struct Namespace {
    routes: BTreeMap<IpNet, RouteKind>,
    neighbours: BTreeMap<(u32, IpAddr), [u8; 6]>,
}

impl Namespace {
    /// Moves the calling thread into a new namespace, for good, and makes the devices there.
    ///
    /// Plain veth pairs stand for VLAN devices too: the datapath only ever sees their index.
    pub fn enter() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)
            .context("making a network namespace (these tests need root)")?;
        for (name, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/default/forwarding", "1"),
            ("ipv6/conf/all/accept_dad", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/default/addr_gen_mode", "1"),
        ] {
            let path = format!("/proc/sys/net/{name}");
            fs::write(&path, value).with_context(|| format!("writing {path}"))?;
        }
        let mut batch = "link set lo up\n".to_owned();
        for ifindex in device::ALL {
            let (mac, peer) = (show(place::mac(ifindex)), ifindex + 100);
            writeln!(
                batch,
                "link add c{ifindex} index {ifindex} address {mac} mtu {MTU} type veth \
                 peer name p{ifindex} index {peer}"
            )?;
            writeln!(batch, "link set c{ifindex} up")?;
            writeln!(batch, "link set p{ifindex} up")?;
        }
        for (address, ifindex) in place::own_addresses() {
            let nodad = if address.is_ipv6() { " nodad" } else { "" };
            writeln!(
                batch,
                "addr add {} dev c{ifindex}{nodad}",
                IpNet::from(address)
            )?;
        }
        ip(&batch)?;
        Ok(Self {
            routes: BTreeMap::new(),
            neighbours: BTreeMap::new(),
        })
    }

    /// Makes routes and neighbours those of `world`.
    pub fn load(&mut self, world: &World) -> Result<()> {
        let mut batch = String::new();
        for (net, kind) in &self.routes {
            if world.routes.get(net) != Some(kind) {
                writeln!(batch, "route del {}", route(*net, *kind))?;
            }
        }
        for (net, kind) in &world.routes {
            if self.routes.get(net) != Some(kind) {
                writeln!(batch, "route add {}", route(*net, *kind))?;
            }
        }
        for (ifindex, address) in self.neighbours.keys() {
            if !world.neighbours.contains_key(&(*ifindex, *address)) {
                writeln!(batch, "neigh del {address} dev c{ifindex}")?;
            }
        }
        for ((ifindex, address), mac) in &world.neighbours {
            if self.neighbours.get(&(*ifindex, *address)) != Some(mac) {
                let mac = show(*mac);
                writeln!(
                    batch,
                    "neigh replace {address} lladdr {mac} nud permanent dev c{ifindex}"
                )?;
            }
        }
        if !batch.is_empty() {
            ip(&batch)?;
            self.routes.clone_from(&world.routes);
            self.neighbours.clone_from(&world.neighbours);
        }
        Ok(())
    }
}

fn route(net: IpNet, kind: RouteKind) -> String {
    match kind {
        RouteKind::Via(router, ifindex) => format!("{net} via {router} dev c{ifindex} onlink"),
        RouteKind::Direct(ifindex) => format!("{net} dev c{ifindex}"),
        RouteKind::Refused => format!("unreachable {net}"),
    }
}

fn show(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Runs a batch of `ip` commands in the calling thread's namespace.
fn ip(batch: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting ip (package iproute2)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(batch.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "ip -batch: {}\n{batch}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
