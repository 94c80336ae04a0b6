//! A network namespace whose routing and neighbour tables answer as a case's world says.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use proxy_user::kernel::netlink::Netlink;

use super::requests::{self, PEER};
use crate::case::World;
use crate::case::place::{self, RouteKind, device};

/// The loopback device of any namespace.
const LOOPBACK: u32 = 1;

/// The namespace of the calling thread. It goes with the thread.
pub struct Namespace {
    netlink: Netlink,
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
        let mut netlink = Netlink::connect().context("connecting to rtnetlink")?;
        requests::raise(LOOPBACK).make(&mut netlink)?;
        for ifindex in device::ALL {
            requests::add_pair(ifindex).make(&mut netlink)?;
            requests::raise(ifindex).make(&mut netlink)?;
            requests::raise(ifindex + PEER).make(&mut netlink)?;
        }
        for (address, ifindex) in place::own_addresses() {
            requests::add_address(address, ifindex).make(&mut netlink)?;
        }
        Ok(Self {
            netlink,
            routes: BTreeMap::new(),
            neighbours: BTreeMap::new(),
        })
    }

    /// Makes routes and neighbours those of `world`.
    pub fn load(&mut self, world: &World) -> Result<()> {
        let mut changes = Vec::new();
        for (net, kind) in &self.routes {
            if world.routes.get(net) != Some(kind) {
                changes.push(requests::remove_route(*net, *kind));
            }
        }
        for (net, kind) in &world.routes {
            if self.routes.get(net) != Some(kind) {
                changes.push(requests::add_route(*net, *kind));
            }
        }
        for (ifindex, address) in self.neighbours.keys() {
            if !world.neighbours.contains_key(&(*ifindex, *address)) {
                changes.push(requests::remove_neighbour(*address, *ifindex));
            }
        }
        for ((ifindex, address), mac) in &world.neighbours {
            if self.neighbours.get(&(*ifindex, *address)) != Some(mac) {
                changes.push(requests::set_neighbour(*address, *ifindex, *mac));
            }
        }
        for change in changes {
            change.make(&mut self.netlink)?;
        }
        self.routes.clone_from(&world.routes);
        self.neighbours.clone_from(&world.neighbours);
        Ok(())
    }
}
