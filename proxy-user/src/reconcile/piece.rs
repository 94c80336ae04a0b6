//! What one service port puts into the maps.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Instant,
};

use proxy_common::{
    abi::{
        Addr4, Addr6, Address, Backend, Service, ServiceKey, SourceKey, V4, V6, backend_flag,
        service_flag,
    },
    wire::Be16,
};

use super::{
    Allocation, BackendKey, Exhausted, SlotKey, SlotRange, SlotSet,
    claims::{Access, Claim},
    ground::Ground,
    maglev,
};
use crate::model::{
    Algorithm, Endpoint, Notice, Protocol, Reach, ServicePort, Severity, TrafficPolicy, select,
};

/// Slots of one service at most, where the choice is at random; weights are scaled down to it.
const RANDOM_SLOTS: u32 = 4_096;

/// Entries of all maps that are one service port's own.
#[derive(Clone, Debug, Default)]
pub(super) struct Piece {
    /// Key of `OBJECTS`; none: no number was left.
    pub(super) id: Option<u32>,
    pub(super) backends: Vec<(u32, Backend)>,
    pub(super) slots: Vec<(u32, SlotRange)>,
    pub(super) sources_v4: Vec<SourceKey<V4>>,
    pub(super) sources_v6: Vec<SourceKey<V6>>,
    pub(super) services_v4: Vec<(ServiceKey<V4>, Service)>,
    pub(super) services_v6: Vec<(ServiceKey<V6>, Service)>,
    pub(super) notices: Vec<Notice>,
    /// A table was full.
    pub(super) exhausted: bool,
}

/// Compiles a service port that has these frontends. Nothing but what is given here decides.
pub(super) fn compile(
    port: &ServicePort,
    held: &[(Claim, Access)],
    ground: &Ground,
    allocation: &mut Allocation,
    now: Instant,
) -> Piece {
    let mut compiler = Compiler {
        piece: Piece::default(),
        allocation,
        ground,
        now,
    };
    compiler.service_port(port, held);
    compiler.piece
}

struct Compiler<'a> {
    piece: Piece,
    allocation: &'a mut Allocation,
    ground: &'a Ground,
    now: Instant,
}

/// Where a service's slots of one family are: first, and how many.
#[derive(Clone, Copy, Default)]
struct Slots {
    cluster: (u32, u32),
    local: (u32, u32),
    /// See [`service_flag::ELSEWHERE`].
    anywhere: bool,
}

/// Which sets of slots frontends of one family choose from.
#[derive(Clone, Copy, Default)]
struct Uses {
    cluster: bool,
    local: bool,
}

/// Whether who comes from outside, or for an internal address everybody, must stay on this node.
const fn keeps_local(port: &ServicePort, reach: Reach) -> bool {
    let policy = match reach {
        Reach::Cluster => port.terms.policies.internal,
        Reach::Everywhere => port.terms.policies.external,
    };
    matches!(policy, TrafficPolicy::Local)
}

fn uses(port: &ServicePort, served: &[&(Claim, Access)], v4: bool) -> Uses {
    let mut uses = Uses::default();
    for (claim, access) in served {
        if claim.address.is_ipv4() == v4 {
            let local = keeps_local(port, access.reach);
            uses.local |= local;
            // Pods and processes of this node are led to any node from an external address.
            uses.cluster |= !local || access.reach == Reach::Everywhere;
        }
    }
    uses
}

impl Compiler<'_> {
    fn service_port(&mut self, port: &ServicePort, held: &[(Claim, Access)]) {
        let id = match self.allocation.service(port.name.shared()) {
            Ok(id) => id,
            Err(full) => {
                self.exhausted(
                    port,
                    full,
                    "not served; raise maps.services in the configuration",
                );
                return;
            }
        };
        self.piece.id = Some(id);
        self.piece.backends.reserve_exact(port.endpoints.len());
        let (v4, v6): (Vec<&Endpoint>, Vec<&Endpoint>) = port
            .endpoints
            .iter()
            .partition(|endpoint| endpoint.address.is_ipv4());
        let mut served: Vec<&(Claim, Access)> = Vec::with_capacity(held.len());
        for entry in held {
            let endpoints = if entry.0.address.is_ipv4() { &v4 } else { &v6 };
            if self.can_translate(port, &entry.0, endpoints) {
                served.push(entry);
            }
        }
        let slots_v4 = self.family(port, id, 4, &v4, uses(port, &served, true));
        let slots_v6 = self.family(port, id, 6, &v6, uses(port, &served, false));
        if served.iter().any(|(_, access)| access.restricted) {
            self.sources(id, &port.terms.ranges);
        }
        for (claim, access) in served {
            let slots = if claim.address.is_ipv4() {
                slots_v4
            } else {
                slots_v6
            };
            let (first_slot, count) = slots.cluster;
            let (first_local, local_slots) = slots.local;
            self.frontend(
                claim,
                Service {
                    id,
                    first_slot,
                    slots: count,
                    flags: self.flags(port, *access, slots),
                    first_local,
                    local_slots,
                    affinity: port.terms.affinity,
                },
            );
        }
    }

    /// Ranges of clients. Where all are of one family, clients of the other are let in nowhere.
    fn sources(&mut self, service: u32, ranges: &[ipnet::IpNet]) {
        for range in ranges {
            let length = u32::from(range.prefix_len());
            match range.network() {
                IpAddr::V4(v4) => self.piece.sources_v4.push(SourceKey {
                    prefix: SourceKey::<V4>::bits(length),
                    service,
                    address: v4.into(),
                }),
                IpAddr::V6(v6) => self.piece.sources_v6.push(SourceKey {
                    prefix: SourceKey::<V6>::bits(length),
                    service,
                    address: v6.into(),
                }),
            }
        }
    }

    fn flags(&self, port: &ServicePort, access: Access, slots: Slots) -> u32 {
        let mut flags = match port.algorithm.unwrap_or(self.ground.algorithm) {
            Algorithm::Random => 0,
            Algorithm::Maglev => service_flag::MAGLEV,
        };
        if access.reach == Reach::Everywhere {
            flags |= service_flag::EXTERNAL;
        }
        if access.restricted {
            flags |= service_flag::RESTRICTED;
        }
        if keeps_local(port, access.reach) {
            flags |= service_flag::LOCAL;
            if slots.anywhere {
                flags |= service_flag::ELSEWHERE;
            }
        }
        flags
    }

    fn frontend(&mut self, claim: &Claim, service: Service) {
        let Claim {
            address,
            port,
            protocol,
        } = *claim;
        let port = Be16::new(port);
        match address {
            IpAddr::V4(v4) => {
                let key = ServiceKey {
                    address: v4.into(),
                    port,
                    protocol,
                    pad: 0,
                };
                self.piece.services_v4.push((key, service));
            }
            IpAddr::V6(v6) => {
                let key = ServiceKey {
                    address: v6.into(),
                    port,
                    protocol,
                    pad: 0,
                };
                self.piece.services_v6.push((key, service));
            }
        }
    }

    /// SCTP's ports stay as they are.
    fn can_translate(&mut self, port: &ServicePort, claim: &Claim, to: &[&Endpoint]) -> bool {
        if port.protocol != Protocol::Sctp || to.iter().all(|e| e.port == claim.port) {
            return true;
        }
        let message = format!(
            "SCTP is served only where no port is translated, but port {} of {} leads to another \
             port of the endpoints: not served here; use the same number for both",
            claim.port, claim.address,
        );
        let field = port.field.as_str();
        self.piece
            .notices
            .push(Notice::new(Severity::Error, &port.object, field, message));
        false
    }

    /// Adds the backends of one family, and the slots that choose among them as far as frontends
    /// use them.
    fn family(
        &mut self,
        port: &ServicePort,
        id: u32,
        family: u8,
        all: &[&Endpoint],
        uses: Uses,
    ) -> Slots {
        let selection = select(all, self.ground.here());
        let bit = |places: &[usize], place: usize, bit: u8| {
            // Places are in order.
            places.binary_search(&place).map_or(0, |_| bit)
        };
        let mut cluster = Vec::with_capacity(selection.cluster.len());
        let mut local = Vec::with_capacity(selection.local.len());
        for (place, endpoint) in all.iter().enumerate() {
            let flags = bit(&selection.serving, place, backend_flag::SERVING)
                | bit(&selection.cluster, place, backend_flag::CLUSTER)
                | bit(&selection.local, place, backend_flag::LOCAL);
            let Some(index) = self.backend(port, id, family, endpoint, flags) else {
                continue;
            };
            let candidate = maglev::Candidate {
                key: identity(endpoint),
                weight: endpoint.weight,
                index,
            };
            if flags & backend_flag::CLUSTER != 0 && uses.cluster {
                cluster.push(candidate);
            }
            if flags & backend_flag::LOCAL != 0 && uses.local {
                local.push(candidate);
            }
        }
        let key = |set| SlotKey {
            service: id,
            family,
            set,
        };
        Slots {
            cluster: self.slots(port, key(SlotSet::Cluster), &cluster),
            local: self.slots(port, key(SlotSet::Local), &local),
            anywhere: !selection.serving.is_empty(),
        }
    }

    /// The slots that choose among candidates: first, and how many.
    fn slots(
        &mut self,
        port: &ServicePort,
        key: SlotKey,
        candidates: &[maglev::Candidate],
    ) -> (u32, u32) {
        if candidates.is_empty() {
            return (0, 0);
        }
        let maglev = port.algorithm.unwrap_or(self.ground.algorithm) == Algorithm::Maglev;
        let wanted = if maglev {
            maglev::table(candidates)
        } else {
            by_weight(candidates)
        };
        let mut found = self.allocation.slots(key, wanted, self.now);
        if let (true, Err(full)) = (maglev, &found) {
            let advice = "chosen at random instead of by Maglev; raise maps.slots";
            self.exhausted(port, *full, advice);
            found = self.allocation.slots(key, by_weight(candidates), self.now);
        }
        if let Err(full) = found {
            self.exhausted(port, full, "keeps the choices it had; raise maps.slots");
        }
        let Some((first, range)) = found.ok().or_else(|| self.allocation.held(key)) else {
            return (0, 0);
        };
        let count = u32::try_from(range.backends.len()).unwrap_or(u32::MAX);
        self.piece.slots.push((first, range));
        (first, count)
    }

    fn backend(
        &mut self,
        port: &ServicePort,
        service: u32,
        family: u8,
        endpoint: &Endpoint,
        flags: u8,
    ) -> Option<u32> {
        let address = match endpoint.address {
            IpAddr::V4(v4) => Addr4::from(v4).widen(),
            IpAddr::V6(v6) => Addr6::from(v6).widen(),
        };
        let protocol = port.protocol.number();
        let number = Be16::new(endpoint.port);
        let key = BackendKey {
            service,
            family,
            protocol,
            port: number,
            address,
        };
        let (index, generation) = match self.allocation.backend(key) {
            Ok(found) => found,
            Err(full) => {
                let advice = format!(
                    "endpoint {} left out; raise maps.backends",
                    endpoint.address
                );
                self.exhausted(port, full, &advice);
                return None;
            }
        };
        let backend = Backend {
            generation,
            service,
            address,
            port: number,
            flags,
            protocol,
            family,
            pad: [0; 3],
        };
        self.piece.backends.push((index, backend));
        Some(index)
    }

    fn exhausted(&mut self, port: &ServicePort, full: Exhausted, advice: &str) {
        self.piece.exhausted = true;
        let message = format!("{full}: {advice}");
        let field = port.field.as_str();
        self.piece
            .notices
            .push(Notice::new(Severity::Error, &port.object, field, message));
    }
}

/// What tells an endpoint from others on every node alike.
fn identity(endpoint: &Endpoint) -> u64 {
    let mut bytes = [0; 18];
    let wide = match endpoint.address {
        IpAddr::V4(v4) => Ipv4Addr::to_ipv6_mapped(&v4),
        IpAddr::V6(v6) => v6,
    };
    let (address, port) = bytes.split_at_mut(16);
    address.copy_from_slice(&Ipv6Addr::octets(&wide));
    port.copy_from_slice(&endpoint.port.to_be_bytes());
    maglev::key(&bytes)
}

/// Each candidate as often as its weight says, in lowest terms.
fn by_weight(candidates: &[maglev::Candidate]) -> Vec<u32> {
    let divisor = candidates
        .iter()
        .fold(0, |divisor, c| gcd(divisor, u32::from(c.weight)))
        .max(1);
    let total: u32 = candidates
        .iter()
        .map(|c| u32::from(c.weight) / divisor)
        .sum();
    let times = |weight: u16| {
        let share = u32::from(weight) / divisor;
        let scaled = u64::from(share) * u64::from(RANDOM_SLOTS) / u64::from(total.max(1));
        let share = if total > RANDOM_SLOTS {
            scaled.max(1)
        } else {
            share.into()
        };
        usize::try_from(share).unwrap_or(1)
    };
    candidates
        .iter()
        .flat_map(|c| std::iter::repeat_n(c.index, times(c.weight)))
        .collect()
}

const fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
