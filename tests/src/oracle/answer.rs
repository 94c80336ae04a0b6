//! What came of questions, and whether two worlds say the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use crate::lab::layout::{self, Family};

use super::{question::Place, scenario::LAYOUT};

/// What came of one question.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// It was answered.
    Answered {
        /// By this pod's server at this port.
        backend: String,
        /// Which saw this client.
        source: IpAddr,
    },
    /// TCP reset or ICMP port unreachable.
    Refused,
    /// Nothing came back in time.
    TimedOut,
    /// Another ICMP error.
    Unreachable,
    /// Something else; the text says what.
    Failed(String),
}

/// An end without particulars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// By one of the servers.
    Answered,
    /// TCP reset or ICMP port unreachable.
    Refused,
    /// Nothing came back in time.
    TimedOut,
    /// Another ICMP error.
    Unreachable,
    /// Something else.
    Failed,
}

impl End {
    /// Without particulars.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Answered { .. } => Kind::Answered,
            Self::Refused => Kind::Refused,
            Self::TimedOut => Kind::TimedOut,
            Self::Unreachable => Kind::Unreachable,
            Self::Failed(_) => Kind::Failed,
        }
    }
}

/// Everything that came of asking the same question some times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer(pub BTreeSet<End>);

impl Answer {
    /// The kinds of ends.
    #[must_use]
    pub fn kinds(&self) -> BTreeSet<Kind> {
        self.0.iter().map(End::kind).collect()
    }

    /// Who answered, and which clients each saw.
    #[must_use]
    pub fn backends(&self) -> BTreeMap<&str, BTreeSet<IpAddr>> {
        let mut found: BTreeMap<&str, BTreeSet<IpAddr>> = BTreeMap::new();
        for end in &self.0 {
            if let End::Answered { backend, source } = end {
                found.entry(backend).or_default().insert(*source);
            }
        }
        found
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, end) in self.0.iter().enumerate() {
            if place > 0 {
                f.write_str(", ")?;
            }
            match end {
                End::Answered { backend, source } => write!(f, "{backend} saw {source}")?,
                End::Refused => f.write_str("refused")?,
                End::TimedOut => f.write_str("timed out")?,
                End::Unreachable => f.write_str("unreachable")?,
                End::Failed(text) => write!(f, "failed: {text}")?,
            }
        }
        Ok(())
    }
}

/// Whose address a server saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Whose {
    /// Who asked.
    Client,
    /// A node's, and not who asked.
    Node,
    /// Anybody else's.
    Other,
}

impl Whose {
    /// That of an address, in the eyes of who asked.
    #[must_use]
    pub fn of(address: IpAddr, asked: Place) -> Self {
        let family = if address.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        };
        if address == asked.address(family) {
            Self::Client
        } else if LAYOUT
            .nodes()
            .any(|node| layout::node(node, family) == address)
        {
            Self::Node
        } else {
            Self::Other
        }
    }
}

/// In what two worlds differ.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Aspect {
    /// In what came of it at all.
    Outcome {
        /// With kube-proxy.
        reference: BTreeSet<Kind>,
        /// With Causeway.
        causeway: BTreeSet<Kind>,
    },
    /// In who answered.
    Backends {
        /// With kube-proxy alone.
        reference: BTreeSet<String>,
        /// With Causeway alone.
        causeway: BTreeSet<String>,
    },
    /// In what a server saw.
    Source {
        /// The server.
        backend: String,
        /// With kube-proxy.
        reference: BTreeSet<Whose>,
        /// With Causeway.
        causeway: BTreeSet<Whose>,
    },
    /// In whether a client stays with its server.
    Affinity {
        /// With kube-proxy, how many answered.
        reference: usize,
        /// With Causeway.
        causeway: usize,
    },
}

/// One question's answers in both worlds.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// With kube-proxy.
    pub reference: &'a Answer,
    /// With Causeway.
    pub causeway: &'a Answer,
}

/// Compares them. With affinity, `twin` is the same question about the same service without it: it says
/// who may answer at all, since which of them a client meets first is chance.
#[must_use]
pub fn compare(asked: Place, pair: Pair<'_>, twin: Option<Pair<'_>>) -> Vec<Aspect> {
    let kinds = [pair.reference.kinds(), pair.causeway.kinds()];
    if kinds[0] != kinds[1] {
        let [reference, causeway] = kinds;
        return vec![Aspect::Outcome {
            reference,
            causeway,
        }];
    }
    let mut found = Vec::new();
    let mut reference = pair.reference.backends();
    let causeway = pair.causeway.backends();
    if let Some(twin) = twin {
        if reference.len() != causeway.len() {
            found.push(Aspect::Affinity {
                reference: reference.len(),
                causeway: causeway.len(),
            });
        }
        for (backend, sources) in twin.reference.backends() {
            reference.entry(backend).or_default().extend(sources);
        }
    }
    let only = |here: &BTreeMap<&str, _>, there: &BTreeMap<&str, _>| -> BTreeSet<String> {
        let keys = here.keys().filter(|key| !there.contains_key(*key));
        keys.map(|key| (*key).to_owned()).collect()
    };
    let in_causeway = only(&causeway, &reference);
    let in_reference = if twin.is_some() {
        BTreeSet::new()
    } else {
        only(&reference, &causeway)
    };
    if !in_causeway.is_empty() || !in_reference.is_empty() {
        found.push(Aspect::Backends {
            reference: in_reference,
            causeway: in_causeway,
        });
    }
    for (backend, sources) in &causeway {
        if let Some(expected) = reference.get(backend)
            && expected != sources
        {
            let whose = |sources: &BTreeSet<IpAddr>| {
                sources
                    .iter()
                    .map(|source| Whose::of(*source, asked))
                    .collect()
            };
            found.push(Aspect::Source {
                backend: (*backend).to_owned(),
                reference: whose(expected),
                causeway: whose(sources),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests;
