//! Suite `kernel`: what the programs cost per packet, in `BPF_PROG_TEST_RUN`.
//!
//! The packets come in at an uplink and go to services whose endpoints are on other nodes, so each
//! has both of its addresses and both of its ports rewritten (full NAT) and is sent on.

mod bed;

use anyhow::{Context as _, Result, ensure};
use aya::programs::ProgramFd;

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

/// Numbers of flows that packets belong to, and how many the tables hold then.
const FLOWS: [(u32, u32); 3] = [(1, 1_000), (1_000, 1_000), (1_000_000, 1_000_000)];

/// Packets that are measured at a time: a millisecond or so, most of which pass undisturbed even on a
/// busy machine.
const PACKETS: u32 = 20_000;

/// The same for first packets, whose flows are taken out again afterwards.
const NEW_FLOWS: u32 = 2_048;

/// Services that there are: TCP and UDP, IPv4 and IPv6.
const SERVICES: u32 = 4;

/// The case that is measured twice, and at how many flows.
const TWICE: (&str, u32) = ("established-v4-tcp", 1);

/// What the project promises: case, and nanoseconds at most above the empty program with one flow.
const PROMISES: [(&str, f64); 3] = [
    ("foreign", 35.0),
    ("established-v4-tcp", 70.0),
    ("established-v6-tcp", 85.0),
];

/// A case at one hook and number of flows, and what its rounds have cost so far.
struct Point {
    case: Case,
    hook: Hook,
    /// How many flows the tables hold.
    bed: u32,
    flows: u32,
    twin: bool,
    costs: Vec<f64>,
    empty: Vec<f64>,
    /// Of the object that is compared with.
    other: Vec<f64>,
}

/// Runs the suite.
pub fn run(options: &Options) -> Result<(Vec<Row>, Vec<Check>)> {
    let mut points = points(options);
    ensure!(
        !points.is_empty(),
        "there is no such case or number of flows"
    );
    let mut beds: Vec<u32> = points.iter().map(|point| point.bed).collect();
    beds.dedup();
    let mut programs = Programs::load()?;
    let space = bed::Space::build()?;
    space.namespace.clone().enter(|| -> Result<()> {
        pin(options.cpu)?;
        programs.settle("restore_xdp", "idle0")?;
        let mut build = |object: &[u8]| {
            beds.iter()
                .map(|flows| Bed::build(&space, object, &mut programs, *flows))
                .collect::<Result<Vec<_>>>()
        };
        let subjects = build(options.object()?)?;
        let others = options.against().map(build).transpose()?;
        for round in 0..options.rounds(41, 101) {
            // Every other round the other way round.
            let mut order: Vec<_> = points.iter_mut().collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for point in order {
                let place = beds.iter().position(|flows| *flows == point.bed);
                let place = place.context("no such bed")?;
                let bed = subjects.get(place).context("no such bed")?;
                let other = others.as_ref().and_then(|others| others.get(place));
                point.measure(bed, other, &mut programs, round)?;
            }
        }
        Ok(())
    })??;
    rows(&points)
}

fn points(options: &Options) -> Vec<Point> {
    let wanted = |case: &Case| options.wants(case.name);
    let mut points = Vec::new();
    for (flows, bed) in FLOWS {
        if !options.flows.is_empty() && !options.flows.contains(&flows) {
            continue;
        }
        for hook in [Hook::Xdp, Hook::Tc] {
            for case in CASES.into_iter().filter(wanted) {
                points.push(Point::new(case, hook, bed, flows, false));
                if (case.name, flows) == TWICE && hook == Hook::Xdp {
                    points.push(Point::new(case, hook, bed, flows, true));
                }
            }
        }
    }
    points
}

impl Point {
    fn new(case: Case, hook: Hook, bed: u32, flows: u32, twin: bool) -> Self {
        let (costs, empty, other) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            case,
            hook,
            bed,
            flows,
            twin,
            costs,
            empty,
            other,
        }
    }

    /// One round: the program, then the empty one in its place.
    fn measure(
        &mut self,
        bed: &Bed,
        other: Option<&Bed>,
        programs: &mut Programs,
        round: u32,
    ) -> Result<()> {
        let cost = self.cost(bed, None, programs, round)?;
        self.costs.push(cost);
        if let Some(other) = other {
            let cost = self.cost(other, None, programs, round)?;
            self.other.push(cost);
        }
        let empty = programs.empty(self.hook)?;
        let cost = self.cost(bed, Some(&empty), programs, round)?;
        self.empty.push(cost);
        Ok(())
    }

    /// CPU time of a packet, nanoseconds, through the bed's program or through another.
    fn cost(
        &self,
        bed: &Bed,
        instead: Option<&ProgramFd>,
        programs: &mut Programs,
        round: u32,
    ) -> Result<f64> {
        let new = self.case.kind == Kind::New;
        let repeat = if new { NEW_FLOWS } else { PACKETS };
        let mut feed = Bed::feed_of(&self.case, self.flows);
        feed.counter = feed.counter.wrapping_add(round.wrapping_mul(repeat));
        match instead {
            Some(program) => programs.aim(self.hook, program)?,
            None => programs.aim(self.hook, &bed.program(self.hook)?)?,
        }
        if !new {
            programs.feed(&feed)?;
            programs.run(self.hook, bed.ifindex(), repeat / 16)?;
        }
        programs.feed(&feed)?;
        let made = bed.flows_made()?;
        let start = thread_time()?;
        let code = programs.run(self.hook, bed.ifindex(), repeat)?;
        let cost = (thread_time()? - start) / f64::from(repeat);
        if instead.is_none() {
            Bed::expect(&self.case, self.hook, code)?;
            if new {
                bed.forget(&self.case, feed.counter, repeat, made)?;
            }
        }
        Ok(cost)
    }

    /// The row without its peer's ratio: the value is net of the empty program.
    fn row(&self) -> Result<Row> {
        let (peer, costs) = match (self.twin, self.other.is_empty()) {
            (true, _) => (self.hook.name(), &self.costs),
            (false, true) => ("empty", &self.empty),
            (false, false) => ("other object", &self.other),
        };
        let topic = Topic {
            case: self.case.name,
            subject: self.hook.name(),
            peer,
            services: SERVICES,
            flows: self.flows,
            unit: "ns",
        };
        let net = self.costs.iter().zip(&self.empty);
        let value = Spread::of(net.map(|(cost, empty)| cost - empty))?.median;
        Ok(Row {
            value,
            ..topic.row("kernel", &self.costs, costs)?
        })
    }

    /// Whether this is the same thing, measured once more.
    fn is_twin_of(&self, other: &Self) -> bool {
        let topic = |point: &Self| (point.case, point.hook, point.flows);
        self.twin && !other.twin && topic(self) == topic(other)
    }
}

fn rows(points: &[Point]) -> Result<(Vec<Row>, Vec<Check>)> {
    let (mut rows, mut checks) = (Vec::new(), Vec::new());
    for point in points {
        let mut row = point.row()?;
        if point.twin {
            let first = points.iter().find(|other| point.is_twin_of(other));
            let first = first.context("the twin's first half was not measured")?;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What readers of the JSON look rows up by.
    #[test]
    fn rows_have_the_names_that_are_promised() {
        let mut points = points(&Options::new(0, true));
        for point in &mut points {
            (point.costs, point.empty) = (vec![100.0; 3], vec![30.0; 3]);
        }
        let (rows, checks) = rows(&points).unwrap();
        let cases = [
            "foreign",
            "established-v4-tcp",
            "established-v6-tcp",
            "established-v4-udp",
            "established-v6-udp",
            "new-v4-tcp",
            "new-v6-tcp",
        ];
        let mut expected = BTreeSet::new();
        for flows in [1, 1_000, 1_000_000] {
            for case in cases {
                expected.extend([("xdp", "empty"), ("tc", "empty")].map(|(subject, peer)| {
                    (case.to_owned(), subject.to_owned(), peer.to_owned(), flows)
                }));
            }
        }
        // The pair that checks the method.
        expected.insert(("established-v4-tcp".into(), "xdp".into(), "xdp".into(), 1));
        let name = |row: &Row| {
            let [case, subject, peer] = [&row.case, &row.subject, &row.peer].map(String::clone);
            (case, subject, peer, row.flows)
        };
        assert_eq!(rows.iter().map(name).collect::<BTreeSet<_>>(), expected);
        for row in &rows {
            assert_eq!(
                (row.suite, row.unit, row.services),
                ("kernel", "ns", SERVICES)
            );
            assert!(
                (row.value - 70.0).abs() < 1e-9,
                "not net of the empty program"
            );
        }
        assert!(checks.iter().any(|check| check.fatal));
    }
}
