//! What the programs find when they are run: devices, routes, services, flows.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::ProgramFd;
use nix::net::if_::if_nametoindex;
use proxy_common::{
    abi::{Address as _, Family, FlowKey, V4, V6},
    wire::Be16,
};

use super::{Case, Kind, Version};
use crate::{
    bench::{
        causeway::{Datapath, Uplink},
        feed::{FIRST_PORT, Feed, IN_TURN, PORTS, SCATTERED},
        frame::{Protocol, Segment, Template},
        namespace::{feed, name, remove},
        programs::{Hook, Programs},
    },
    lab::namespace::Namespace,
};

/// Endpoints of each service: enough for a million translated flows.
const ENDPOINTS: u8 = 255;

const SERVICE_PORT: u16 = 80;
const ENDPOINT_PORT: u16 = 8080;
const SERVICE_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 10);
const CLIENTS_V4: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 0);
const CLIENTS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x200, 0, 0, 0, 0, 0);
const FOREIGN_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

/// The first flow that case `new` makes: behind all that exist.
const FIRST_NEW: u32 = 2_000_000;

/// Link-layer addresses of the two uplinks.
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2]];

const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;
const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_REDIRECT: u32 = 7;

/// A namespace with two uplinks: clients are behind `in0`, other nodes behind `out0`.
#[derive(Debug)]
pub(super) struct Space {
    pub(super) namespace: Namespace,
    devices: [u32; 2],
}

impl Space {
    pub(super) fn build() -> Result<Self> {
        let name = name("kernel");
        let namespace = Namespace::named(&name);
        feed(Command::new("ip").args(["netns", "add", &name]), b"")?;
        let [mac_in, mac_out] = MACS.map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
        let mut space = Self {
            namespace,
            devices: [0; 2],
        };
        space.namespace.enter(|| {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        })??;
        let batch = format!(
            "link add in0 address {mac_in} type veth peer name in1\n\
             link add out0 address {mac_out} type veth peer name out1\n\
             link add idle0 type veth peer name idle1\n\
             link set in0 up\nlink set in1 up\nlink set out0 up\nlink set out1 up\n\
             addr add 10.201.0.1/24 dev in0\naddr add 10.202.0.1/24 dev out0\n\
             addr add fd00:201::1/64 dev in0 nodad\naddr add fd00:202::1/64 dev out0 nodad\n\
             neigh add 10.201.0.2 lladdr 02:00:00:00:02:01 dev in0 nud permanent\n\
             neigh add 10.202.0.2 lladdr 02:00:00:00:02:02 dev out0 nud permanent\n\
             neigh add fd00:201::2 lladdr 02:00:00:00:02:01 dev in0 nud permanent\n\
             neigh add fd00:202::2 lladdr 02:00:00:00:02:02 dev out0 nud permanent\n\
             route add 10.200.0.0/16 via 10.201.0.2\nroute add 10.203.0.0/16 via 10.202.0.2\n\
             route add 2001:db8:200::/48 via fd00:201::2\nroute add fd00:203::/64 via fd00:202::2\n"
        );
        let mut ip = Command::new("ip");
        feed(ip.args(["-n", &name, "-batch", "-"]), batch.as_bytes())?;
        let index =
            |device: &str| if_nametoindex(device).with_context(|| format!("device {device}"));
        space.devices = space
            .namespace
            .enter(|| -> Result<[u32; 2]> { Ok([index("in0")?, index("out0")?]) })??;
        Ok(space)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        remove(self.namespace.name());
    }
}

/// A datapath with services, and with flows in its tables.
#[derive(Debug)]
pub(super) struct Bed {
    datapath: Datapath,
    ifindex: u32,
}

impl Bed {
    /// Loads the programs anew, and has them make `flows` flows of each family and protocol.
    pub(super) fn build(
        space: &Space,
        object: &[u8],
        programs: &mut Programs,
        flows: u32,
    ) -> Result<Self> {
        // Two entries a flow, TCP and UDP, and room for new ones.
        let capacity = flows.saturating_mul(4).saturating_add(200_000);
        let datapath = Datapath::load(object, Some(capacity.max(262_144)))?;
        let [inside, outside] = space.devices;
        let mut bed = Self {
            datapath,
            ifindex: inside,
        };
        for (place, (ifindex, mac)) in [inside, outside].into_iter().zip(MACS).enumerate() {
            let host = if place == 0 { 201 } else { 202 };
            bed.datapath.add_uplink(&Uplink {
                ifindex,
                mac,
                source_v4: Ipv4Addr::new(10, host, 0, 1),
                source_v6: Ipv6Addr::new(0xfd00, 0x200 + u16::from(host), 0, 0, 0, 0, 0, 1),
                xdp: true,
                mtu: 1_500,
            })?;
        }
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for version in [Version::V4, Version::V6] {
                let endpoints: Vec<(IpAddr, u16)> = (1..=ENDPOINTS)
                    .map(|host| (endpoint(version, host), ENDPOINT_PORT))
                    .collect();
                let service = service(version);
                bed.datapath
                    .add_service(service, SERVICE_PORT, protocol, &endpoints)?;
            }
        }
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for version in [Version::V4, Version::V6] {
                bed.open(programs, version, protocol, flows)?;
            }
        }
        Ok(bed)
    }

    /// Has flows `0..flows` made by their first packets.
    fn open(
        &self,
        programs: &mut Programs,
        version: Version,
        protocol: Protocol,
        flows: u32,
    ) -> Result<()> {
        let segment = if protocol == Protocol::Tcp {
            Segment::TcpSyn
        } else {
            Segment::Udp
        };
        programs.feed(&template(version, segment, service(version)).feed(flows, IN_TURN))?;
        programs.aim(Hook::Xdp, &self.datapath.program(Hook::Xdp)?)?;
        let before = self.datapath.flows_made()?;
        programs.run(Hook::Xdp, self.ifindex, flows)?;
        let made = self.datapath.flows_made()? - before;
        ensure!(
            made == u64::from(flows),
            "{made} of {flows} {version:?} {protocol:?} flows were made"
        );
        Ok(())
    }

    pub(super) fn program(&self, hook: Hook) -> Result<ProgramFd> {
        self.datapath.program(hook)
    }

    pub(super) fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// The frames of a case among `flows` flows.
    pub(super) fn feed_of(case: &Case, flows: u32) -> Feed {
        let to = if case.kind == Kind::Foreign {
            FOREIGN_V4.into()
        } else {
            service(case.version)
        };
        let template = template(case.version, case.segment(), to);
        if case.kind == Kind::New {
            Feed {
                counter: FIRST_NEW,
                ..template.feed(flows, IN_TURN)
            }
        } else {
            template.feed(flows, SCATTERED)
        }
    }

    /// Whether the return code is that of a packet that was sent on, or left alone.
    pub(super) fn expect(case: &Case, hook: Hook, code: u32) -> Result<()> {
        let right = match (hook, case.kind) {
            (Hook::Xdp, Kind::Foreign) => XDP_PASS,
            (Hook::Xdp, _) => XDP_REDIRECT,
            (Hook::Tc, Kind::Foreign) => TC_ACT_UNSPEC,
            (Hook::Tc, _) => TC_ACT_REDIRECT,
        };
        let (name, hook) = (case.name, hook.name());
        ensure!(
            code == right,
            "{name} at {hook} returned {code} instead of {right}"
        );
        Ok(())
    }

    /// Flows made so far.
    pub(super) fn flows_made(&self) -> Result<u64> {
        self.datapath.flows_made()
    }

    /// Takes the flows out again that `count` packets from flow `first` on have made, when `before`
    /// had been made before them.
    pub(super) fn forget(&self, case: &Case, first: u32, count: u32, before: u64) -> Result<()> {
        let made = self.flows_made()? - before;
        ensure!(
            made == u64::from(count),
            "{}: {made} of {count} flows were made: {}",
            case.name,
            self.datapath.counts()?
        );
        let flows = first..first + count;
        match case.version {
            Version::V4 => {
                let keys =
                    flows.map(|flow| key::<V4>(case, flow, CLIENTS_V4.into(), SERVICE_V4.into()));
                self.datapath.forget(&keys.collect::<Result<Vec<_>>>()?)
            }
            Version::V6 => {
                let keys =
                    flows.map(|flow| key::<V6>(case, flow, CLIENTS_V6.into(), SERVICE_V6.into()));
                self.datapath.forget(&keys.collect::<Result<Vec<_>>>()?)
            }
        }
    }
}

/// The key of a flow's packets, as `bench-ebpf` numbers flows.
fn key<F: Family>(
    case: &Case,
    flow: u32,
    clients: F::Addr,
    destination: F::Addr,
) -> Result<FlowKey<F>> {
    let source_port = FIRST_PORT + flow % PORTS;
    Ok(FlowKey {
        source: F::Addr::narrow(&with_host(clients.widen(), F::IS_V6, flow / PORTS)),
        destination,
        source_port: Be16::new(u16::try_from(source_port)?),
        destination_port: Be16::new(SERVICE_PORT),
        protocol: case.protocol.number(),
        pad: [0; 3],
    })
}

/// The address whose last 16 bits (zero so far) are `host`.
fn with_host(mut words: [u16; 8], v6: bool, host: u32) -> [u16; 8] {
    let last = if v6 { 7 } else { 1 };
    if let Some(word) = words.get_mut(last) {
        *word = u16::try_from(host & 0xffff).unwrap_or(0).to_be();
    }
    words
}

fn service(version: Version) -> IpAddr {
    match version {
        Version::V4 => SERVICE_V4.into(),
        Version::V6 => SERVICE_V6.into(),
    }
}

fn endpoint(version: Version, host: u8) -> IpAddr {
    match version {
        Version::V4 => Ipv4Addr::new(10, 203, 0, host).into(),
        Version::V6 => Ipv6Addr::new(0xfd00, 0x203, 0, 0, 0, 0, 0, host.into()).into(),
    }
}

fn template(version: Version, segment: Segment, to: IpAddr) -> Template {
    let [uplink, _] = MACS;
    let source = match version {
        Version::V4 => CLIENTS_V4.into(),
        Version::V6 => CLIENTS_V6.into(),
    };
    Template {
        link: [[2, 0, 0, 0, 2, 1], uplink],
        source,
        destination: SocketAddr::new(to, SERVICE_PORT),
        segment,
    }
}
