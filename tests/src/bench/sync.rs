//! Suite `sync`: from manifests to the kernel's maps, by the daemon as it is shipped.
//!
//! This is a wait, so wall time is measured. The peer is `nft`, given the same services in the form
//! of kube-proxy's nftables mode.

pub mod cluster;
mod daemon;
mod manifests;
mod own;

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use self::{daemon::Daemon, manifests::Manifests, own::Own};
use super::{
    Options,
    measure::{Spread, nanoseconds},
    namespace::{Temporary, feed},
    report::{Check, Row, Topic},
    wire::rules,
};

/// How much there is to be known.
#[derive(Clone, Copy, Debug)]
struct Size {
    services: u32,
    /// Endpoints of each.
    endpoints: u32,
}

impl Size {
    /// The endpoints of a service.
    fn pods(self, service: usize) -> impl Iterator<Item = Ipv4Addr> {
        let first = Ipv4Addr::new(10, 128, 0, 1).to_bits();
        let first = u32::try_from(service).map_or(first, |n| first + n * self.endpoints);
        (first..first + self.endpoints).map(Ipv4Addr::from_bits)
    }
}

/// Sizes that large clusters have. The last is left out of quick runs.
const SIZES: [Size; 3] = [
    Size {
        services: 1_000,
        endpoints: 25,
    },
    Size {
        services: 10_000,
        endpoints: 25,
    },
    Size {
        services: 50_000,
        endpoints: 10,
    },
];

/// Up to this many services nft is measured, too: its time grows faster than their number.
const NFT_UP_TO: u32 = 10_000;

/// How often a service is changed in each round.
const CHANGES: u32 = 10;

/// The size that bounds are for.
const BOUND: u32 = 10_000;

/// Causeway's and nft's times with some number of services, milliseconds, and Causeway's memory, MiB.
#[derive(Default)]
struct Times {
    first: [Vec<f64>; 2],
    change: [Vec<f64>; 2],
    own: Own,
    memory: Vec<f64>,
}

/// Runs the suite.
pub fn run(options: &Options) -> Result<(Vec<Row>, Vec<Check>)> {
    let sizes = if options.quick {
        SIZES.split_last().map_or(&[][..], |(_, others)| others)
    } else {
        &SIZES[..]
    };
    let (mut rows, mut checks) = (Vec::new(), Vec::new());
    for &size in sizes {
        let services = size.services;
        let with_nft = services <= if options.quick { 1_000 } else { NFT_UP_TO };
        let mut times = Times::default();
        for _ in 0..options.rounds(2, 3) {
            round(size, with_nft, &mut times)
                .with_context(|| format!("with {services} services"))?;
        }
        rows.extend(times.rows(services)?);
        if services == 1_000 {
            let (row, check) = times.twins(services)?;
            rows.push(row);
            checks.push(check);
        }
        if services == BOUND {
            checks.extend(times.bounds()?);
        }
    }
    Ok((rows, checks))
}

/// One load from nothing and some changes, by each.
fn round(size: Size, with_nft: bool, times: &mut Times) -> Result<()> {
    let services = size.services;
    let [first, nft_first] = &mut times.first;
    let [change, nft_change] = &mut times.change;
    let place = Temporary::new("sync")?;
    let mut manifests = Manifests::write(&place.directory, size)?;
    let start = Instant::now();
    let daemon = Daemon::start(&place)?;
    daemon.wait_for(services)?;
    first.push(milliseconds(start.elapsed()));
    for _ in 0..CHANGES {
        let start = Instant::now();
        let key = manifests.change()?;
        daemon.wait_for_port(key)?;
        change.push(milliseconds(start.elapsed()));
    }
    times.memory.push(daemon.memory()?);
    drop(daemon);
    let Own { whole, engine } = own::measure(size)?;
    times.own.whole.extend(whole);
    times.own.engine.extend(engine);
    if !with_nft {
        return Ok(());
    }
    let place = Temporary::new("nft")?;
    let text = rules::nft(services)?;
    let nft = |text: &str| -> Result<f64> {
        let start = Instant::now();
        let mut command = std::process::Command::new("nft");
        let command = command.args(["-f", "-"]);
        place.namespace.enter(|| feed(command, text.as_bytes()))??;
        Ok(milliseconds(start.elapsed()))
    };
    nft_first.push(nft(&text)?);
    for _ in 0..CHANGES {
        nft_change.push(nft(&rules::nft_add(services)?)?);
        nft(&rules::nft_remove(services)?)?;
    }
    Ok(())
}

fn milliseconds(time: Duration) -> f64 {
    nanoseconds(time) / 1e6
}

impl Times {
    fn rows(&self, services: u32) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (case, [ours, nft]) in [("first", &self.first), ("change", &self.change)] {
            let topic = topic(
                case,
                if nft.is_empty() { "none" } else { "nft" },
                services,
                "ms",
            );
            rows.push(if nft.is_empty() {
                topic.row_alone("sync", ours)?
            } else {
                topic.row("sync", ours, nft)?
            });
        }
        let alone = [
            ("own", &self.own.whole, "ms"),
            ("own-engine", &self.own.engine, "ms"),
            ("memory", &self.memory, "MiB"),
        ];
        for (case, values, unit) in alone {
            rows.push(topic(case, "none", services, unit).row_alone("sync", values)?);
        }
        Ok(rows)
    }

    /// What is promised.
    fn bounds(&self) -> Result<Vec<Check>> {
        let median =
            |values: &[f64]| -> Result<f64> { Ok(Spread::of(values.iter().copied())?.median) };
        let [first, _] = &self.first;
        let claim = |what: &str| format!("sync {what}, {BOUND} services");
        Ok(vec![
            Check::at_most(claim("first, ms"), median(first)?, 3_000.0),
            Check::at_most(claim("own, ms"), median(&self.own.whole)?, 1.0),
        ])
    }

    /// Each change against the one after it.
    fn twins(&self, services: u32) -> Result<(Row, Check)> {
        let [ours, _] = &self.change;
        let pairs = ours.as_chunks::<2>().0;
        let (first, second): (Vec<f64>, Vec<f64>) = pairs.iter().map(|[a, b]| (*a, *b)).unzip();
        let row = topic("change", "causeway", services, "ms").row("sync", &first, &second)?;
        let ratio = row.ratio.context("two series have a ratio")?;
        Ok((row, Check::same("sync", "change", ratio)))
    }
}

fn topic<'a>(case: &'a str, peer: &'a str, services: u32, unit: &'static str) -> Topic<'a> {
    Topic {
        case,
        subject: "causeway",
        peer,
        services,
        flows: 0,
        unit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What readers of the JSON look rows up by.
    #[test]
    fn rows_have_the_names_that_are_promised() {
        let mut times = Times {
            first: [vec![300.0, 310.0], vec![600.0, 620.0]],
            change: [vec![50.0, 51.0], vec![100.0, 102.0]],
            own: Own {
                whole: vec![0.5],
                engine: vec![0.2],
            },
            memory: vec![80.0],
        };
        let names = |times: &Times| -> Vec<_> {
            let rows = times.rows(1_000).unwrap();
            let name = |row: Row| {
                assert_eq!((row.suite, &*row.subject), ("sync", "causeway"));
                assert_eq!(row.unit, if row.case == "memory" { "MiB" } else { "ms" });
                (row.case, row.peer, row.services, row.ratio.is_some())
            };
            rows.into_iter().map(name).collect()
        };
        let with = |peer: &str, compared| -> Vec<_> {
            let row = |case: &str, peer: &str, compared| {
                (case.to_owned(), peer.to_owned(), 1_000, compared)
            };
            let both = ["first", "change"].map(|case| row(case, peer, compared));
            let alone = ["own", "own-engine", "memory"].map(|case| row(case, "none", false));
            both.into_iter().chain(alone).collect()
        };
        assert_eq!(names(&times), with("nft", true));
        let (twin, check) = times.twins(1_000).unwrap();
        assert_eq!((&*twin.case, &*twin.peer), ("change", "causeway"));
        assert!(check.fatal);
        // Where nft would take too long.
        times.first[1].clear();
        times.change[1].clear();
        assert_eq!(names(&times), with("none", false));
    }
}
