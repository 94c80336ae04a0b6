//! Which service port has which frontend: kept up as service ports come, change and go.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::model::{Frontend, Notice, Reach, ServiceName, ServicePort, Severity};

/// An address, port and IANA protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Claim {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) protocol: u8,
}

/// Who may use a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) reach: Reach,
    /// Only clients in the service's ranges.
    pub(super) restricted: bool,
}

impl Access {
    const EVERYBODY: Self = Self {
        reach: Reach::Everywhere,
        restricted: false,
    };
}

/// A service port that claims a frontend. The lowest order has it: a host port of one address before
/// one of all, then the older object, then the name.
#[derive(Clone, Debug)]
struct Claimant {
    port: Arc<ServicePort>,
    class: u8,
}

impl Claimant {
    fn order(&self) -> (u8, i64, &str) {
        (
            self.class,
            self.port.created.unwrap_or(i64::MAX),
            self.port.name.shared(),
        )
    }
}

/// Who has a frontend, and who else claims it, in order. Few are claimed twice.
#[derive(Clone, Debug)]
struct Contest {
    holder: Claimant,
    others: Vec<Claimant>,
}

/// Addresses of services, with how many frontends they have for the cluster and for everybody.
#[derive(Clone, Debug, Default)]
pub(super) struct ServiceAddresses(HashMap<IpAddr, [u32; 2]>);

impl ServiceAddresses {
    pub(super) fn add(&mut self, port: &ServicePort) {
        for (address, reach) in addresses(port) {
            let counts = self.0.entry(address).or_default();
            let [cluster, everywhere] = counts;
            *match reach {
                Reach::Cluster => cluster,
                Reach::Everywhere => everywhere,
            } += 1;
        }
    }

    pub(super) fn remove(&mut self, port: &ServicePort) {
        for (address, reach) in addresses(port) {
            let Entry::Occupied(mut entry) = self.0.entry(address) else {
                continue;
            };
            let [cluster, everywhere] = entry.get_mut();
            let count = match reach {
                Reach::Cluster => cluster,
                Reach::Everywhere => everywhere,
            };
            *count = count.saturating_sub(1);
            if *entry.get() == [0, 0] {
                entry.remove();
            }
        }
    }

    pub(super) fn contains(&self, address: &IpAddr) -> bool {
        self.0.contains_key(address)
    }

    /// From where an address can be reached; none: no service has it.
    pub(super) fn reach(&self, address: &IpAddr) -> Option<Reach> {
        let [_, everywhere] = self.0.get(address)?;
        Some(if *everywhere == 0 {
            Reach::Cluster
        } else {
            Reach::Everywhere
        })
    }
}

/// The addresses of a service port's own, once per frontend.
pub(super) fn addresses(port: &ServicePort) -> impl Iterator<Item = (IpAddr, Reach)> + '_ {
    port.frontends.iter().filter_map(|frontend| match frontend {
        Frontend::Address { address, reach, .. } => Some((*address, *reach)),
        Frontend::NodePort { .. } | Frontend::HostPort { .. } => None,
    })
}

/// All frontends that service ports claim on this node.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    contests: HashMap<Claim, Contest>,
    /// Those with more than one claimant.
    contested: BTreeSet<Claim>,
    /// Where node ports are served.
    node_ports: Vec<IpAddr>,
}

impl Claims {
    /// No claims yet. Node ports are served at these addresses.
    pub(super) fn new(node_ports: Vec<IpAddr>) -> Self {
        Self {
            node_ports,
            ..Self::default()
        }
    }

    /// A service port claims its frontends. Tells who loses one by that.
    pub(super) fn add(&mut self, port: &Arc<ServicePort>, affected: &mut BTreeSet<ServiceName>) {
        for (claim, class, _) in self.of(port) {
            let new = Claimant {
                port: Arc::clone(port),
                class,
            };
            let contest = match self.contests.entry(claim) {
                Entry::Vacant(entry) => {
                    entry.insert(Contest {
                        holder: new,
                        others: Vec::new(),
                    });
                    continue;
                }
                Entry::Occupied(entry) => entry.into_mut(),
            };
            self.contested.insert(claim);
            if new.order() < contest.holder.order() {
                affected.insert(contest.holder.port.name.clone());
                let loser = std::mem::replace(&mut contest.holder, new);
                contest.others.insert(0, loser);
            } else {
                let place = contest.others.partition_point(|o| o.order() < new.order());
                contest.others.insert(place, new);
            }
        }
    }

    /// A service port, as it was added, claims nothing any more. Tells who gets one by that.
    pub(super) fn remove(&mut self, port: &ServicePort, affected: &mut BTreeSet<ServiceName>) {
        for (claim, ..) in self.of(port) {
            let Entry::Occupied(mut entry) = self.contests.entry(claim) else {
                continue;
            };
            let contest = entry.get_mut();
            if contest.holder.port.name != port.name {
                contest.others.retain(|other| other.port.name != port.name);
            } else if contest.others.is_empty() {
                entry.remove();
                continue;
            } else {
                contest.holder = contest.others.remove(0);
                affected.insert(contest.holder.port.name.clone());
            }
            if contest.others.is_empty() {
                self.contested.remove(&claim);
            }
        }
    }

    /// What a service port has of what it claims.
    pub(super) fn held(&self, port: &ServicePort) -> Vec<(Claim, Access)> {
        let has = |claim: &Claim| {
            let contest = self.contests.get(claim);
            contest.is_some_and(|contest| contest.holder.port.name == port.name)
        };
        let all = self.of(port).into_iter();
        all.filter(|(claim, ..)| has(claim))
            .map(|(claim, _, access)| (claim, access))
            .collect()
    }

    /// What is to be told of those who claim what another has.
    pub(super) fn notices(&self) -> Vec<Notice> {
        let mut notices = Vec::new();
        for claim in &self.contested {
            let Some(Contest { holder, others }) = self.contests.get(claim) else {
                continue;
            };
            let address = SocketAddr::new(claim.address, claim.port);
            for Claimant { port, .. } in others {
                let message = format!(
                    "{address} {} already belongs to {} ({}), which is older or comes first: not \
                     served here; give one of the two another address or port",
                    port.protocol, holder.port.name, holder.port.object,
                );
                let field = port.field.as_str();
                notices.push(Notice::new(Severity::Error, &port.object, field, message));
            }
        }
        notices
    }

    /// What a service port claims, each once, with the class of the claim.
    fn of(&self, port: &ServicePort) -> Vec<(Claim, u8, Access)> {
        let mut found = Vec::with_capacity(port.frontends.len());
        let protocol = port.protocol.number();
        let mut add = |address, port, class, access| {
            let claim = Claim {
                address,
                port,
                protocol,
            };
            found.push((claim, class, access));
        };
        let own = |v4: bool| self.node_ports.iter().filter(move |a| a.is_ipv4() == v4);
        for frontend in &port.frontends {
            match *frontend {
                Frontend::Address {
                    address,
                    port,
                    reach,
                    restricted,
                } => add(address, port, 0, Access { reach, restricted }),
                Frontend::NodePort { port, v4, v6 } => {
                    let (v4, v6) = (v4.then(|| own(true)), v6.then(|| own(false)));
                    for address in v4.into_iter().flatten().chain(v6.into_iter().flatten()) {
                        add(*address, port, 1, Access::EVERYBODY);
                    }
                }
                Frontend::HostPort { address, port } if address.is_unspecified() => {
                    for own in own(address.is_ipv4()) {
                        add(*own, port, 3, Access::EVERYBODY);
                    }
                }
                Frontend::HostPort { address, port } => add(address, port, 2, Access::EVERYBODY),
            }
        }
        found.sort_by_key(|(claim, class, _)| (*claim, *class));
        found.dedup_by(|(claim, _, access), (first, _, whole)| {
            let same = claim == first;
            if same {
                whole.reach = whole.reach.max(access.reach);
                whole.restricted |= access.restricted;
            }
            same
        });
        found
    }
}
