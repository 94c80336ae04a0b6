//! Namespaces, links, addresses and routes as data, and how they are brought about.

use std::{
    fs,
    io::Write as _,
    net::IpAddr,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail};
use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};

use super::namespace::Namespace;

/// A device's place: a namespace's name (without the world's prefix) and the device's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Namespace, such as `node1`.
    pub namespace: String,
    /// Device, such as `eth0`.
    pub device: String,
}

impl Place {
    /// `device` in `namespace`.
    #[must_use]
    pub fn new(namespace: &str, device: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            device: device.to_owned(),
        }
    }
}

/// One namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// Its name, without the world's prefix.
    pub name: String,
    /// Whether it forwards packets.
    pub forwards: bool,
    /// The name of a bridge to make there.
    pub bridge: Option<String>,
}

/// One end of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Where it is.
    pub place: Place,
    /// Its link-layer address; the kernel's choice if there is none.
    pub mac: Option<String>,
    /// The bridge it is a port of.
    pub bridge: Option<String>,
}

impl End {
    /// An end that is nobody's port, with an address of the kernel's choice.
    #[must_use]
    pub fn at(namespace: &str, device: &str) -> Self {
        Self {
            place: Place::new(namespace, device),
            mac: None,
            bridge: None,
        }
    }
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// In which namespace.
    pub namespace: String,
    /// Where to; none: everywhere.
    pub to: Option<IpNet>,
    /// By way of; none: it is on the device's link.
    pub via: Option<IpAddr>,
    /// Out of which device.
    pub device: String,
}

/// A permanent neighbour entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The device on whose link the neighbour is.
    pub place: Place,
    /// The neighbour's address.
    pub address: IpAddr,
    /// The neighbour's link-layer address.
    pub mac: String,
}

/// Everything a world is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// The namespaces.
    pub rooms: Vec<Room>,
    /// The veth pairs.
    pub links: Vec<(End, End)>,
    /// VLAN devices: the place of the device below, the id, and the new device's name.
    pub vlans: Vec<(Place, u16, String)>,
    /// Addresses on devices.
    pub addresses: Vec<(Place, IpNet)>,
    /// Routes, in the order they are to be added.
    pub routes: Vec<Route>,
    /// Permanent neighbours.
    pub neighbours: Vec<Neighbour>,
}

impl Topology {
    /// What `ip -batch` has to be told outside of any namespace.
    #[must_use]
    pub fn outside_batch(&self, prefix: &str) -> Vec<String> {
        let add = |room: &Room| format!("netns add {prefix}{}", room.name);
        self.rooms.iter().map(add).collect()
    }

    /// What `ip -batch` has to be told about the links, once the namespaces' settings are made.
    #[must_use]
    pub fn link_batch(&self, prefix: &str) -> Vec<String> {
        // Two queues, so that two CPUs can share a link's work.
        const QUEUES: &str = "numtxqueues 2 numrxqueues 2";
        let one = |end: &End| {
            let Place { namespace, device } = &end.place;
            let mac = end.mac.as_ref().map(|mac| format!(" address {mac}"));
            let mac = mac.unwrap_or_default();
            format!("name {device}{mac} netns {prefix}{namespace} {QUEUES}")
        };
        let add = |(a, b): &(End, End)| format!("link add {} type veth peer {}", one(a), one(b));
        self.links.iter().map(add).collect()
    }

    /// What `ip -batch` has to be told inside of one namespace.
    #[must_use]
    pub fn inside_batch(&self, room: &Room) -> Vec<String> {
        let here = |place: &Place| place.namespace == room.name;
        let mut batch = vec!["link set lo up".to_owned()];
        if let Some(bridge) = &room.bridge {
            // No spanning tree and no snooping: ports forward at once, and NDP needs no querier.
            let options = "stp_state 0 forward_delay 0 mcast_snooping 0";
            batch.push(format!("link add {bridge} type bridge {options}"));
            batch.push(format!("link set {bridge} up"));
        }
        for end in self.links.iter().flat_map(|(a, b)| [a, b]) {
            let device = &end.place.device;
            if here(&end.place) {
                if let Some(bridge) = &end.bridge {
                    batch.push(format!("link set {device} master {bridge}"));
                }
                batch.push(format!("link set {device} up"));
            }
        }
        for (below, id, name) in self.vlans.iter().filter(|(below, ..)| here(below)) {
            let below = &below.device;
            batch.push(format!(
                "link add link {below} name {name} type vlan id {id}"
            ));
            batch.push(format!("link set {name} up"));
        }
        for (place, prefix) in self.addresses.iter().filter(|(place, _)| here(place)) {
            let no_detection = if prefix.addr().is_ipv6() {
                " nodad"
            } else {
                ""
            };
            batch.push(format!(
                "address add {prefix} dev {}{no_detection}",
                place.device
            ));
        }
        for Neighbour {
            place,
            address,
            mac,
        } in &self.neighbours
        {
            if here(place) {
                let device = &place.device;
                let kind = "nud permanent";
                batch.push(format!(
                    "neighbour replace {address} lladdr {mac} {kind} dev {device}"
                ));
            }
        }
        let routes = self.routes.iter().filter(|one| one.namespace == room.name);
        batch.extend(routes.map(Route::command));
        batch
    }

    /// Makes all of it. What exists when it fails stays: whoever called removes the world.
    pub fn build(&self, prefix: &str) -> Result<()> {
        batch(None, &self.outside_batch(prefix))?;
        for room in &self.rooms {
            let namespace = Namespace::named(format!("{prefix}{}", room.name));
            namespace.enter(|| set_sysctls(room.forwards))??;
        }
        batch(None, &self.link_batch(prefix))?;
        thread::scope(|scope| {
            let each: Vec<_> = self
                .rooms
                .iter()
                .map(|room| {
                    let name = format!("{prefix}{}", room.name);
                    scope.spawn(move || batch(Some(&name), &self.inside_batch(room)))
                })
                .collect();
            each.into_iter().try_for_each(|one| match one.join() {
                Ok(result) => result,
                Err(_) => bail!("a thread that configures a namespace panicked"),
            })
        })
    }
}

impl Route {
    /// As a command to `ip`.
    #[must_use]
    pub fn command(&self) -> String {
        let to = match self.to {
            Some(to) => to.to_string(),
            // `default` alone would always be IPv4's.
            None if self.via.is_some_and(|via| via.is_ipv6()) => "::/0".to_owned(),
            None => "0.0.0.0/0".to_owned(),
        };
        let device = &self.device;
        match self.via {
            Some(via) => format!("route replace {to} via {via} dev {device} onlink"),
            None => format!("route replace {to} dev {device}"),
        }
    }
}

/// Runs `ip -batch` with `commands`, in the named namespace if there is one.
pub fn batch(namespace: Option<&str>, commands: &[String]) -> Result<()> {
    let mut commands = commands.join("\n");
    commands.push('\n');
    let mut ip = Command::new("ip");
    if let Some(name) = namespace {
        ip.args(["-n", name]);
    }
    let mut child = ip
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("running `ip`; install the package iproute2")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(commands.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "`ip -batch` in {} failed: {}\nit was told:\n{commands}",
            namespace.unwrap_or("the root namespace"),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Whether this kernel has VLAN devices (`CONFIG_VLAN_8021Q`). Some that are made for virtual machines
/// have none.
pub fn has_vlan_devices() -> Result<bool> {
    let tried = thread::spawn(|| -> Result<bool> {
        unshare(CloneFlags::CLONE_NEWNET).context("making a namespace")?;
        let mut ip = Command::new("ip");
        ip.args("link add link lo name probe type vlan id 1".split(' '));
        let output = ip
            .output()
            .context("running `ip`; install the package iproute2")?;
        Ok(output.status.success())
    });
    tried
        .join()
        .map_err(|_| anyhow!("the thread that looks for VLAN devices panicked"))?
}

/// Writes the calling thread's namespace's settings. They go first: a new device takes the defaults
/// of the moment it appears.
fn set_sysctls(forwards: bool) -> Result<()> {
    // Addresses are usable at once, and nothing but what the topology says makes a route.
    const ALWAYS: [(&str, &str); 8] = [
        ("ipv6/conf/*/accept_dad", "0"),
        ("ipv6/conf/*/accept_ra", "0"),
        ("ipv6/conf/*/router_solicitations", "0"),
        ("ipv6/conf/*/disable_ipv6", "0"),
        ("ipv4/conf/*/rp_filter", "0"),
        ("ipv4/conf/*/send_redirects", "0"),
        ("ipv4/conf/*/accept_redirects", "0"),
        ("ipv4/ping_group_range", "0 2147483647"),
    ];
    let forwarding = if forwards { "1" } else { "0" };
    let switched = [
        ("ipv4/ip_forward", forwarding),
        ("ipv6/conf/*/forwarding", forwarding),
    ];
    for (key, value) in ALWAYS.into_iter().chain(switched) {
        let scopes: &[&str] = if key.contains('*') {
            &["all", "default"]
        } else {
            &[""]
        };
        for scope in scopes {
            let path = format!("/proc/sys/net/{}", key.replace('*', scope));
            fs::write(&path, value).with_context(|| format!("writing {value} to {path}"))?;
        }
    }
    Ok(())
}
