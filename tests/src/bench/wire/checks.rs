//! What the suite's figures say of the project's promises.

use anyhow::{Context as _, Result};

use super::{Case, Entrant, Series, Way};
use crate::bench::{
    measure::Spread,
    report::{Check, Row},
};

/// A promise: the subject's cost is at most this share of the peer's, however many services there are.
struct Promise {
    case: Case,
    subject: Way,
    peer: Way,
    most: f64,
}

const PROMISES: [Promise; 5] = [
    Promise {
        case: Case::Packet,
        subject: Way::CausewayXdp,
        peer: Way::Nft,
        most: 1.0 / 4.5,
    },
    Promise {
        case: Case::Packet,
        subject: Way::CausewayTc,
        peer: Way::Nft,
        most: 1.0 / 1.5,
    },
    Promise {
        case: Case::Connection,
        subject: Way::CausewayTc,
        peer: Way::Nft,
        most: 0.9,
    },
    Promise {
        case: Case::RoundTrip,
        subject: Way::CausewayTc,
        peer: Way::Nft,
        most: 0.92,
    },
    Promise {
        case: Case::Stream,
        subject: Way::CausewayTc,
        peer: Way::Plain,
        most: 1.0 / 0.97,
    },
];

/// All of the suite's checks.
pub(super) fn all(rows: &[Row], all: &[Series], entrants: &[Entrant]) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    for row in rows {
        let ratio = row.ratio.context("a row of this suite has no ratio")?;
        if row.subject == row.peer {
            let what = format!("{} of {}", row.case, row.subject);
            checks.push(Check::same("wire", &what, ratio));
        }
        for promise in &PROMISES {
            let (case, subject, peer) = (
                promise.case.name(),
                promise.subject.name(),
                promise.peer.name(),
            );
            if (row.case.as_str(), row.subject.as_str(), row.peer.as_str()) == (case, subject, peer)
            {
                let claim = format!(
                    "wire: {case}, {subject} / {peer}, {} services",
                    row.services
                );
                checks.push(Check::at_most(claim, ratio, promise.most));
            }
        }
    }
    checks.extend(flatness(all, entrants)?);
    Ok(checks)
}

/// A packet's cost with many services / with one.
fn flatness(all: &[Series], entrants: &[Entrant]) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    let Some(series) = all.iter().find(|series| series.case == Case::Packet) else {
        return Ok(checks);
    };
    for way in [Way::CausewayXdp, Way::CausewayTc] {
        let one = series
            .of(entrants, way, 1)
            .context("one service was not measured")?;
        for entrant in entrants
            .iter()
            .filter(|entrant| entrant.way == way && entrant.services > 1)
        {
            let many = series
                .of(entrants, way, entrant.services)
                .context("not measured")?;
            let ratio = Spread::of_ratios(many, one)?.median;
            let claim = format!(
                "wire: packet, {}, {} services / 1",
                way.name(),
                entrant.services
            );
            checks.push(Check::within(claim, ratio, 0.9, 1.1));
        }
    }
    Ok(checks)
}
