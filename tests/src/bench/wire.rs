//! Suite `wire`: real frames from a client's namespace through a node's to a backend's.
//!
//! Each way through the node has namespaces of its own, which all exist at the same time; each
//! round goes through all of them.

mod checks;
pub mod rules;
pub mod traffic;
pub mod world;

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use nix::net::if_::if_nametoindex;

use self::{
    rules::{ENDPOINT_PORT, SERVICE_PORT},
    traffic::Client,
    world::{CLIENT, ENDPOINTS, LINKS, NODE_INSIDE, NODE_OUTSIDE, World},
};
use super::{
    Options,
    causeway::{Datapath, Uplink},
    feed::{FIRST_PORT, SCATTERED},
    frame::{Segment, Template},
    measure::{pin, thread_time},
    namespace::{Temporary, feed},
    programs::{BATCH, Programs},
    report::{Check, Row, Topic},
};

/// Flows that the packets of case `packet` belong to.
const FLOWS: u32 = 1_000;

/// Packets that are measured at a time, and those before that warm caches up.
const PACKETS: u32 = 250 * BATCH;
const WARM_UP: u32 = 50 * BATCH;

/// How much of a stream is measured at a time, and how much goes before, MiB: buffers and congestion
/// window must have grown to what they stay at, for until then the sizes of segments differ.
const MEBIBYTES: u32 = 128;
const WARM_UP_MEBIBYTES: u32 = 32;

/// Share of the packets that must arrive for a packet's cost to mean anything.
const DELIVERED: f64 = 0.99;

/// A way through the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// No balancer: the client knows an endpoint's address, the kernel forwards.
    Plain,
    /// Rules as kube-proxy writes them in nftables mode.
    Nft,
    /// Rules as kube-proxy writes them in iptables mode.
    Iptables,
    /// Causeway, TC alone.
    CausewayTc,
    /// Causeway with native XDP.
    CausewayXdp,
}

impl Way {
    /// As rows name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Nft => "nft",
            Self::Iptables => "iptables",
            Self::CausewayTc => "causeway-tc",
            Self::CausewayXdp => "causeway-xdp",
        }
    }
}

/// A way with its namespaces, ready to be measured.
#[derive(Debug)]
pub struct Entrant {
    way: Way,
    services: u32,
    world: World,
    client_ifindex: u32,
    /// Keeps the programs attached.
    _datapath: Option<Datapath>,
}

impl Entrant {
    /// Builds the namespaces of `way` with `services` services, and everything in them.
    pub fn build(way: Way, services: u32, options: &Options) -> Result<Self> {
        let world = World::build(&format!("{}-{services}", way.name()))?;
        let mut datapath = None;
        let load = |program: &mut Command, input: String| {
            world.node.enter(|| feed(program, input.as_bytes()))?
        };
        match way {
            Way::Plain => {}
            Way::Nft => load(Command::new("nft").args(["-f", "-"]), rules::nft(services)?)?,
            Way::Iptables => load(
                &mut Command::new("iptables-nft-restore"),
                rules::iptables(services)?,
            )?,
            Way::CausewayTc | Way::CausewayXdp => {
                datapath = Some(attach(&world, services, way == Way::CausewayXdp, options)?);
            }
        }
        traffic::serve(&world, options.cpu)?;
        let client_ifindex = World::ifindex(&world.client, "c0")?;
        let entrant = Self {
            way,
            services,
            world,
            client_ifindex,
            _datapath: datapath,
        };
        let xdp = way == Way::CausewayXdp;
        // XDP hands frames to devices with a NAPI context only, and whole ones.
        entrant.world.receive_offload(xdp)?;
        entrant.world.checksum_offload(!xdp)?;
        traffic::open_udp(&entrant.world, entrant.target(), FIRST_PORT, FLOWS)
            .and_then(|()| entrant.client(options.cpu).round_trip(8))
            .with_context(|| format!("{} with {services} services does not work", way.name()))?;
        Ok(entrant)
    }

    /// Makes the backend's end a sink for UDP.
    pub fn attach_sink(&self, programs: &mut Programs) -> Result<()> {
        self.world.receive_offload(true)?;
        self.world.backend.enter(|| programs.attach_sink("b0"))?
    }

    /// What the client calls.
    fn target(&self) -> SocketAddr {
        let [endpoint, ..] = ENDPOINTS;
        match self.way {
            Way::Plain => (endpoint, ENDPOINT_PORT).into(),
            _ => (rules::measured(self.services), SERVICE_PORT).into(),
        }
    }

    /// A client that calls the service.
    fn client(&self, cpu: usize) -> Client<'_> {
        Client::new(&self.world, self.target(), cpu)
    }

    /// How often the backend's kernel has merged a packet of a stream with one that waited: it can only
    /// if nobody else holds the packet.
    pub fn merged(&self, cpu: usize) -> Result<u64> {
        let before = traffic::merged(&self.world)?;
        self.client(cpu).stream(WARM_UP_MEBIBYTES, MEBIBYTES)?;
        Ok(traffic::merged(&self.world)? - before)
    }

    /// CPU time per packet of UDP, from the source's call to the sink, nanoseconds.
    fn packet(&self, programs: &mut Programs, cpu: usize) -> Result<f64> {
        let [c0, n0, ..] = LINKS;
        let template = Template {
            link: [c0, n0],
            source: CLIENT.into(),
            destination: self.target(),
            segment: Segment::Udp,
        };
        programs.feed(&template.feed(FLOWS, SCATTERED))?;
        let before = programs.sunk()?;
        let cost = self.world.client.enter(|| -> Result<f64> {
            pin(cpu)?;
            programs.generate(self.client_ifindex, WARM_UP)?;
            let start = thread_time()?;
            programs.generate(self.client_ifindex, PACKETS)?;
            Ok((thread_time()? - start) / f64::from(PACKETS))
        })??;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 packets")]
        let delivered = (programs.sunk()? - before) as f64 / f64::from(WARM_UP + PACKETS);
        ensure!(
            delivered >= DELIVERED,
            "{} with {} services delivered {:.1} % of the packets",
            self.way.name(),
            self.services,
            delivered * 100.0
        );
        Ok(cost)
    }

    fn measure(&self, case: Case, programs: &mut Programs, cpu: usize) -> Result<f64> {
        match case {
            Case::RoundTrip => self.client(cpu).round_trip(500).map(|time| time / 1e3),
            Case::Connection => self.client(cpu).connections(125).map(|time| time / 1e3),
            Case::Stream => self.client(cpu).stream(WARM_UP_MEBIBYTES, MEBIBYTES),
            Case::Packet => self.packet(programs, cpu),
        }
    }
}

/// Causeway's programs on both of a node's devices, with `services` services.
fn attach(world: &World, services: u32, xdp: bool, options: &Options) -> Result<Datapath> {
    let mut datapath = Datapath::load(options.object()?, None)?;
    // In the node's namespace: device indices count by namespace.
    world.node.enter(|| -> Result<()> {
        let [_, n0, n1, _] = LINKS;
        for (device, mac, address) in [("n0", n0, NODE_OUTSIDE), ("n1", n1, NODE_INSIDE)] {
            datapath.add_uplink(&Uplink {
                ifindex: if_nametoindex(device)?,
                mac,
                source_v4: address,
                source_v6: Ipv6Addr::UNSPECIFIED,
                xdp,
                mtu: 1_500,
            })?;
        }
        datapath.attach(&["n0", "n1"], xdp)
    })??;
    for service in rules::services(services) {
        let endpoints = service
            .endpoints
            .map(|address| (IpAddr::from(address), ENDPOINT_PORT));
        for protocol in service.protocols() {
            datapath.add_service(service.address.into(), SERVICE_PORT, *protocol, &endpoints)?;
        }
    }
    Ok(datapath)
}

/// What is measured of a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    RoundTrip,
    Connection,
    Stream,
    Packet,
}

impl Case {
    /// The sinks that `packet` needs stay: it comes last.
    const ALL: [Self; 4] = [
        Self::RoundTrip,
        Self::Connection,
        Self::Stream,
        Self::Packet,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Packet => "packet",
            Self::RoundTrip => "rr",
            Self::Connection => "crr",
            Self::Stream => "stream",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Packet => "ns",
            Self::RoundTrip | Self::Connection => "us",
            Self::Stream => "ns/byte",
        }
    }

    fn flows(self) -> u32 {
        if self == Self::Packet { FLOWS } else { 1 }
    }
}

/// What all ways have cost in one case, round by round.
struct Series {
    case: Case,
    /// By entrant; the last one is the twin's.
    costs: Vec<Vec<f64>>,
}

/// The way that is measured twice in each round.
const TWIN: (Way, u32) = (Way::CausewayTc, 1);

/// Runs the suite.
pub fn run(options: &Options) -> Result<(Vec<Row>, Vec<Check>)> {
    let numbers: &[u32] = if options.quick {
        &[1, 1_000]
    } else {
        &[1, 1_000, 5_000]
    };
    let mut entrants = vec![Entrant::build(Way::Plain, 1, options)?];
    for &services in numbers {
        for way in [Way::Nft, Way::Iptables, Way::CausewayTc, Way::CausewayXdp] {
            entrants.push(Entrant::build(way, services, options)?);
        }
    }
    let mut programs = Programs::load()?;
    let idle = Temporary::new("idle")?;
    idle.namespace
        .enter(|| programs.settle("generate", "idle0"))??;
    let mut all = Vec::new();
    let cases = Case::ALL
        .into_iter()
        .filter(|case| options.wants(case.name()));
    for case in cases {
        if case == Case::Packet {
            for entrant in &entrants {
                entrant.attach_sink(&mut programs)?;
            }
        }
        all.push(rounds(case, &entrants, &mut programs, options)?);
    }
    let mut rows = Vec::new();
    for series in &all {
        rows.extend(series.rows(&entrants)?);
    }
    let last = all.last().context("suite wire has no case of that name")?;
    rows.push(last.twins(&entrants)?);
    let checks = checks::all(&rows, &all, &entrants)?;
    Ok((rows, checks))
}

fn rounds(
    case: Case,
    entrants: &[Entrant],
    programs: &mut Programs,
    options: &Options,
) -> Result<Series> {
    let twin = entrants
        .iter()
        .find(|entrant| (entrant.way, entrant.services) == TWIN);
    let runners: Vec<&Entrant> = entrants.iter().chain(twin).collect();
    let mut costs = vec![Vec::new(); runners.len()];
    for round in 0..options.rounds(15, 45) {
        let mut order: Vec<_> = runners.iter().zip(&mut costs).collect();
        // Nobody always follows the same neighbour.
        let start = (round as usize * 5) % order.len();
        order.rotate_left(start);
        if round % 2 == 1 {
            order.reverse();
        }
        for (runner, costs) in order {
            costs.push(runner.measure(case, programs, options.cpu)?);
        }
    }
    Ok(Series { case, costs })
}

impl Series {
    fn of(&self, entrants: &[Entrant], way: Way, services: u32) -> Option<&[f64]> {
        let place = entrants
            .iter()
            .position(|e| (e.way, e.services) == (way, services))?;
        self.costs.get(place).map(Vec::as_slice)
    }

    fn topic<'a>(&self, subject: &'a Entrant, peer: &'a str) -> Topic<'a> {
        Topic {
            case: self.case.name(),
            subject: subject.way.name(),
            peer,
            services: subject.services,
            flows: self.case.flows(),
            unit: self.case.unit(),
        }
    }

    fn rows(&self, entrants: &[Entrant]) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (subject, costs) in entrants.iter().zip(&self.costs) {
            if !matches!(subject.way, Way::CausewayTc | Way::CausewayXdp) {
                continue;
            }
            for peer in [Way::Plain, Way::Nft, Way::Iptables] {
                let services = if peer == Way::Plain {
                    1
                } else {
                    subject.services
                };
                let peer_costs = self
                    .of(entrants, peer, services)
                    .context("a peer was not measured")?;
                rows.push(
                    self.topic(subject, peer.name())
                        .row("wire", costs, peer_costs)?,
                );
            }
        }
        Ok(rows)
    }

    /// The row of the way that was measured twice.
    fn twins(&self, entrants: &[Entrant]) -> Result<Row> {
        let (way, services) = TWIN;
        let twice = entrants
            .iter()
            .find(|entrant| (entrant.way, entrant.services) == TWIN)
            .context("nothing was measured twice")?;
        let once = self.of(entrants, way, services).context("not measured")?;
        let again = self.costs.last().context("not measured again")?;
        self.topic(twice, way.name()).row("wire", again, once)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What readers of the JSON look rows up by.
    #[test]
    fn rows_have_the_names_that_are_promised() {
        let cases = Case::ALL.map(|case| (case.name(), case.unit()));
        let expected = [
            ("rr", "us"),
            ("crr", "us"),
            ("stream", "ns/byte"),
            ("packet", "ns"),
        ];
        assert_eq!(cases, expected);
        let ways = [
            (Way::Plain, "plain"),
            (Way::Nft, "nft"),
            (Way::Iptables, "iptables"),
            (Way::CausewayTc, "causeway-tc"),
            (Way::CausewayXdp, "causeway-xdp"),
        ];
        for (way, name) in ways {
            assert_eq!(way.name(), name);
        }
    }
}
