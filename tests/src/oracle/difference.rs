//! The list of what may differ from kube-proxy, and by which rule: `tests/cluster/oracle-differences.toml`.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::lab::layout::Family;

use super::{
    answer::{Aspect, Kind, Whose},
    question::{At, From, Place, Target},
    scenario::{External, LAYOUT, Protocol, Scenario, Service},
};

const LIST: &str = include_str!("../../cluster/oracle-differences.toml");

/// All that may differ.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Differences {
    /// In the order in which they are tried.
    #[serde(default, rename = "difference")]
    pub list: Vec<Difference>,
}

/// Something that may differ, and which cells of the tables that explains. What is left out may be
/// anything.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Difference {
    /// Its short name.
    pub id: String,
    /// The rule that permits it.
    pub rule: String,
    /// Where the rule stands: a file of this repository, or a page of Kubernetes' documentation.
    pub source: String,
    #[serde(default)]
    from: BTreeSet<From>,
    #[serde(default)]
    at: BTreeSet<At>,
    protocol: Option<Protocol>,
    #[serde(default)]
    facts: BTreeSet<Fact>,
    outcome: Option<Sides<Kind>>,
    source_seen: Option<Sides<Whose>>,
    backends: Option<Alone>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sides<T: Ord> {
    reference: BTreeSet<T>,
    causeway: BTreeSet<T>,
}

/// Whether somebody answers on one side alone.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Alone {
    reference: bool,
    causeway: bool,
}

/// What is so about a question, beyond what it says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fact {
    /// The external address is in no range of Causeway's configuration.
    ExternalElsewhere,
    /// The service has ranges of clients, and none of this family.
    RangesOfOtherFamily,
    /// `internalTrafficPolicy: Local`.
    InternalLocal,
    /// `externalTrafficPolicy: Local`.
    ExternalLocal,
    /// `ipMode: Proxy`.
    IpModeProxy,
    /// Another proxy's, or headless by its label.
    Foreign,
    /// Client affinity.
    Affinity,
    /// `publishNotReadyAddresses`.
    PublishNotReady,
    /// The server is on its node's network.
    OnHost,
    /// The server is the pod that asks.
    Itself,
    /// The server is on the node that asks, or on whose pod asks.
    SameNode,
    /// The node port is of the node that asks, or on whose pod asks.
    OwnNode,
}

impl Differences {
    /// Those that are checked in.
    pub fn checked_in() -> Result<Self> {
        Self::parse(LIST)
    }

    /// From TOML.
    pub fn parse(text: &str) -> Result<Self> {
        let found: Self =
            toml::from_str(text).context("reading tests/cluster/oracle-differences.toml")?;
        let mut ids = BTreeSet::new();
        for difference in &found.list {
            if !ids.insert(&difference.id) {
                bail!("two differences have the id {}", difference.id);
            }
            let aspects = [
                difference.outcome.is_some(),
                difference.source_seen.is_some(),
                difference.backends.is_some(),
            ];
            if aspects.iter().filter(|is| **is).count() != 1 {
                bail!(
                    "{}: one of outcome, source-seen, backends says what differs",
                    difference.id
                );
            }
        }
        Ok(found)
    }

    /// The first that explains it.
    #[must_use]
    pub fn explain(
        &self,
        scenario: &Scenario,
        place: Place,
        target: &Target,
        aspect: &Aspect,
    ) -> Option<&Difference> {
        let facts = facts(scenario, place, target, aspect);
        self.list
            .iter()
            .find(|one| one.covers(place, target, aspect, &facts))
    }
}

impl Difference {
    fn covers(
        &self,
        place: Place,
        target: &Target,
        aspect: &Aspect,
        facts: &BTreeSet<Fact>,
    ) -> bool {
        (self.from.is_empty() || self.from.contains(&place.kind()))
            && (self.at.is_empty() || self.at.contains(&target.at))
            && self.protocol.is_none_or(|wanted| wanted == target.protocol)
            && self.facts.is_subset(facts)
            && self.covers_aspect(aspect)
    }

    fn covers_aspect(&self, aspect: &Aspect) -> bool {
        match aspect {
            Aspect::Outcome {
                reference,
                causeway,
            } => self
                .outcome
                .as_ref()
                .is_some_and(|sides| sides.reference == *reference && sides.causeway == *causeway),
            Aspect::Source {
                reference,
                causeway,
                ..
            } => self
                .source_seen
                .as_ref()
                .is_some_and(|sides| sides.reference == *reference && sides.causeway == *causeway),
            Aspect::Backends {
                reference,
                causeway,
            } => self.backends.is_some_and(|alone| {
                alone.reference != reference.is_empty() && alone.causeway != causeway.is_empty()
            }),
            Aspect::Affinity { .. } => false,
        }
    }
}

fn facts(scenario: &Scenario, place: Place, target: &Target, aspect: &Aspect) -> BTreeSet<Fact> {
    let mut found = BTreeSet::new();
    let mut add = |is: bool, fact| {
        if is {
            found.insert(fact);
        }
    };
    let own = match place {
        Place::Outside(_) => None,
        Place::Node(number) => Some(number),
        Place::Pod(number) => Some(LAYOUT.node_of(number)),
    };
    add(own.is_some() && target.node == own, Fact::OwnNode);
    if let Aspect::Source { backend, .. } = aspect {
        let name = backend.split(':').next().unwrap_or_default();
        add(name.starts_with("node"), Fact::OnHost);
        add(place.to_string() == name, Fact::Itself);
        let number = name.trim_start_matches(|letter: char| !letter.is_ascii_digit());
        let number: Option<u8> = number.parse().ok();
        let node = if name.starts_with("node") {
            number
        } else {
            number.map(|pod| LAYOUT.node_of(pod))
        };
        add(own.is_some() && node == own, Fact::SameNode);
    }
    if let Some(service) = scenario.service(&target.service) {
        for (is, fact) in of_service(service, target.family) {
            add(is, fact);
        }
    }
    found
}

fn of_service(service: &Service, family: Family) -> [(bool, Fact); 8] {
    let of_family = |range: &String| range.contains(':') == (family == Family::V6);
    let others = !service.ranges.is_empty() && !service.ranges.iter().any(of_family);
    [
        (
            service.external == Some(External::Elsewhere),
            Fact::ExternalElsewhere,
        ),
        (others, Fact::RangesOfOtherFamily),
        (service.internal_local, Fact::InternalLocal),
        (service.external_local, Fact::ExternalLocal),
        (service.ip_mode_proxy, Fact::IpModeProxy),
        (service.foreign.is_some(), Fact::Foreign),
        (service.affinity.is_some(), Fact::Affinity),
        (service.publish_not_ready, Fact::PublishNotReady),
    ]
}

#[cfg(test)]
mod tests;
