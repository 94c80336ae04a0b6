//! Suite `kernel`: what the programs cost per packet, in `BPF_PROG_TEST_RUN`.
//!
//! The packets come in at an uplink and go to services whose endpoints are on other nodes, so each
//! has both of its addresses and both of its ports rewritten (full NAT) and is sent on.

mod bed;

use anyhow::{Context as _, Result, ensure};

use self::bed::Bed;
use super::{
    Options,
    frame::{Protocol, Segment},
    measure::{Spread, pin, thread_time},
    programs::{Hook, Programs},
    report::{Check, Row, Topic},
};

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What kind of packet is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To and from addresses that mean nothing to us.
    Foreign,
    /// Of a flow that exists.
    Established,
    /// The first one of a flow.
    New,
}

/// A case: its name in rows, and what it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// As rows name it.
    pub name: &'static str,
    /// See [`Kind`].
    pub kind: Kind,
    /// See [`Version`].
    pub version: Version,
    /// See [`Protocol`].
    pub protocol: Protocol,
}

impl Case {
    const fn new(name: &'static str, kind: Kind, version: Version, protocol: Protocol) -> Self {
        Self {
            name,
            kind,
            version,
            protocol,
        }
    }

    /// What the frames carry.
    #[must_use]
    pub const fn segment(&self) -> Segment {
        match (self.protocol, self.kind) {
            (Protocol::Udp, _) => Segment::Udp,
            (Protocol::Tcp, Kind::New) => Segment::TcpSyn,
            (Protocol::Tcp, _) => Segment::TcpData,
        }
    }
}

/// All cases.
pub const CASES: [Case; 7] = [
    Case::new("foreign", Kind::Foreign, Version::V4, Protocol::Tcp),
    Case::new(
        "established-v4-tcp",
        Kind::Established,
        Version::V4,
        Protocol::Tcp,
    ),
    Case::new(
        "established-v6-tcp",
        Kind::Established,
        Version::V6,
        Protocol::Tcp,
    ),
    Case::new(
        "established-v4-udp",
        Kind::Established,
        Version::V4,
        Protocol::Udp,
    ),
    Case::new(
        "established-v6-udp",
        Kind::Established,
        Version::V6,
        Protocol::Udp,
    ),
    Case::new("new-v4-tcp", Kind::New, Version::V4, Protocol::Tcp),
    Case::new("new-v6-tcp", Kind::New, Version::V6, Protocol::Tcp),
];

/// Numbers of flows, by bed: a bed holds the last number of its list.
const FLOWS: [&[u32]; 2] = [&[1, 1_000], &[1_000_000]];

/// The case that is measured twice, and at how many flows.
const TWICE: (&str, u32) = ("established-v4-tcp", 1);

/// What the project promises: case, and nanoseconds at most above the empty program with one flow.
const PROMISES: [(&str, f64); 3] = [
    ("foreign", 35.0),
    ("established-v4-tcp", 70.0),
    ("established-v6-tcp", 85.0),
];

/// A case at one hook and number of flows, and what its rounds have shown so far.
struct Point {
    case: Case,
    hook: Hook,
    bed: usize,
    flows: u32,
    twin: bool,
    costs: Vec<f64>,
    empty: Vec<f64>,
}

/// Runs the suite.
pub fn run(options: &Options) -> Result<(Vec<Row>, Vec<Check>)> {
    let beds = FLOWS.map(<[u32]>::to_vec);
    let mut programs = Programs::load()?;
    let mut points = points(&beds);
    let space = bed::Space::build()?;
    let namespace = space.namespace.clone();
    namespace.enter(|| -> Result<()> {
        pin(options.cpu)?;
        let mut beds = beds
            .iter()
            .map(|flows| {
                Bed::build(
                    &space,
                    options,
                    &mut programs,
                    flows.last().copied().unwrap_or(1),
                )
            })
            .collect::<Result<Vec<_>>>()?;
        for round in 0..options.rounds(7, 31) {
            let count = points.len();
            for place in 0..count {
                // Every other round the other way round.
                let place = if round % 2 == 0 {
                    place
                } else {
                    count - 1 - place
                };
                let point = points.get_mut(place).context("no such point")?;
                let bed = beds.get_mut(point.bed).context("no such bed")?;
                measure(point, bed, &mut programs, round)?;
            }
        }
        Ok(())
    })??;
    rows(&points)
}

fn points(beds: &[Vec<u32>]) -> Vec<Point> {
    let mut points = Vec::new();
    for (bed, flows) in beds.iter().enumerate() {
        for &flows in flows {
            for hook in [Hook::Xdp, Hook::Tc] {
                for case in CASES {
                    let point = |twin| {
                        let (costs, empty) = (Vec::new(), Vec::new());
                        Point {
                            case,
                            hook,
                            bed,
                            flows,
                            twin,
                            costs,
                            empty,
                        }
                    };
                    points.push(point(false));
                    if (case.name, flows) == TWICE && hook == Hook::Xdp {
                        points.push(point(true));
                    }
                }
            }
        }
    }
    points
}

/// One round of one point: the program, then the empty one in its place.
fn measure(point: &mut Point, bed: &mut Bed, programs: &mut Programs, round: u32) -> Result<()> {
    let repeat = if point.case.kind == Kind::New {
        16_384
    } else {
        100_000
    };
    let mut feed = Bed::feed_of(&point.case, point.flows);
    feed.counter = feed.counter.wrapping_add(round.wrapping_mul(repeat));
    let target = bed.program(point.hook)?;
    let empty = programs.empty(point.hook)?;
    for (target, costs) in [(&target, &mut point.costs), (&empty, &mut point.empty)] {
        programs.aim(point.hook, target)?;
        if point.case.kind != Kind::New {
            programs.feed(&feed)?;
            programs.run(point.hook, bed.ifindex(), repeat / 16)?;
        }
        programs.feed(&feed)?;
        let start = thread_time()?;
        let code = programs.run(point.hook, bed.ifindex(), repeat)?;
        costs.push((thread_time()? - start) / f64::from(repeat));
        if std::ptr::eq(target, &raw const empty) {
            continue;
        }
        Bed::expect(&point.case, point.hook, code)?;
        if point.case.kind == Kind::New {
            bed.forget(&point.case, feed.counter, repeat)?;
        }
    }
    Ok(())
}

fn rows(points: &[Point]) -> Result<(Vec<Row>, Vec<Check>)> {
    let (mut rows, mut checks) = (Vec::new(), Vec::new());
    for point in points {
        let topic = Topic {
            case: point.case.name,
            subject: point.hook.name(),
            peer: if point.twin {
                point.hook.name()
            } else {
                "empty"
            },
            services: 4,
            flows: point.flows,
            unit: "ns",
        };
        let mut row = topic.row("kernel", &point.costs, &point.empty)?;
        let net = point
            .costs
            .iter()
            .zip(&point.empty)
            .map(|(cost, empty)| cost - empty);
        row.value = Spread::of(net)?.median;
        if point.twin {
            let first = points
                .iter()
                .find(|other| !other.twin && same(other, point))
                .context("the twin's first half was not measured")?;
            let ratio = Spread::of_ratios(&point.costs, &first.costs)?;
            (row.ratio, row.spread) = (Some(ratio.median), ratio.range);
            checks.push(Check::same("kernel", point.case.name, ratio.median));
        }
        rows.push(row);
    }
    for (case, most) in PROMISES {
        for subject in ["xdp", "tc"] {
            let row = rows.iter().find(|row| {
                (row.case.as_str(), row.subject.as_str(), row.flows) == (case, subject, 1)
            });
            let claim = format!("kernel: {case}, {subject}, ns above the empty program");
            checks.extend(row.map(|row| Check::at_most(claim, row.value, most)));
        }
    }
    ensure!(!rows.is_empty(), "nothing was measured");
    Ok((rows, checks))
}

fn same(a: &Point, b: &Point) -> bool {
    (a.case, a.hook, a.flows) == (b.case, b.hook, b.flows)
}
