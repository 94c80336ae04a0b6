//! Lookups in words.

use std::net::IpAddr;

use proxy_common::{
    abi::{
        Affinity, Backend, DeviceRole, FilterKind, Service, address_flag, backend_flag,
        service_flag,
    },
    datapath::{Event, Reason, verdict::Action},
};

use super::Step;
use crate::{
    inspect::{Look, backend_text},
    model::Protocol,
    simulation::{Fib, Lookup},
};

/// Stage, question and answer.
type Said = (&'static str, String, String);

/// Puts lookups in words, with the names of objects and devices.
pub(super) struct Words<'w> {
    pub(super) look: &'w Look<'w>,
    pub(super) name: &'w dyn Fn(u32) -> String,
}

impl Words<'_> {
    /// The service port that decided.
    pub(super) fn service(&self, lookups: &[Lookup]) -> Option<String> {
        lookups.iter().find_map(|lookup| match lookup {
            Lookup::Service(_, _, Some(service)) => Some(self.object(service.id)),
            Lookup::Flow(_, Some(flow)) => Some(self.object(flow.service)),
            _ => None,
        })
    }

    pub(super) fn steps(&self, lookups: &[Lookup]) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::with_capacity(lookups.len());
        for lookup in lookups {
            let step = self.step(lookup);
            // The datapath may look twice, as it does in the kernel: first for an established
            // connection, then to make one.
            if !steps.contains(&step) {
                steps.push(step);
            }
        }
        steps
    }

    /// What becomes of the packet.
    pub(super) fn verdict(&self, action: Action, lookups: &[Lookup]) -> String {
        let name = self.name;
        match action {
            Action::Pass => "passed on untouched to the kernel's own stack".to_owned(),
            Action::Drop(reason) => format!("dropped, {}", told(reason)),
            Action::Transmit(ifindex) => format!("rewritten and sent out of {}", name(ifindex)),
            Action::Pod(ifindex) => {
                format!("rewritten and handed to the pod behind {}", name(ifindex))
            }
            Action::Neighbour(ifindex) => format!(
                "rewritten and sent out of {}, once the neighbour is known",
                name(ifindex)
            ),
            Action::Local => "rewritten and handed to this node's own stack".to_owned(),
            Action::Loopback => {
                "rewritten and handed to this node's own stack, through lo".to_owned()
            }
            Action::Reply => counted(lookups).map_or_else(
                || "answered in the service's name".to_owned(),
                |reason| format!("refused in the service's name, {}", told(reason)),
            ),
        }
    }

    fn object(&self, id: u32) -> String {
        self.look
            .observed()
            .objects
            .get(&id)
            .map_or_else(|| format!("#{id}"), ToString::to_string)
    }

    fn step(&self, lookup: &Lookup) -> Step {
        let (stage, question, answer) = match lookup {
            Lookup::Filter { kind, address, set } => {
                let (question, yes, no) = match kind {
                    FilterKind::Destination => (
                        format!("is {address} a service's, or a translated source?"),
                        "maybe: go on",
                        "certainly not",
                    ),
                    FilterKind::Source => (
                        format!("is {address} a backend's?"),
                        "maybe: go on",
                        "certainly not",
                    ),
                };
                ("filter", question, if *set { yes } else { no }.to_owned())
            }
            Lookup::Flow(tuple, found) => {
                let answer = found.map_or_else(
                    || "no such connection".to_owned(),
                    |flow| {
                        format!(
                            "a connection of {}, to {}",
                            self.object(flow.service),
                            flow.destination
                        )
                    },
                );
                ("flow", tuple.to_string(), answer)
            }
            Lookup::Service(at, protocol, found) => {
                let answer = found.map_or_else(
                    || "no service".to_owned(),
                    |service| self.service_text(&service),
                );
                let protocol = Protocol::from_number(*protocol);
                let protocol = protocol.map_or_else(|| "?".to_owned(), |p| p.to_string());
                ("service", format!("{at} {protocol}"), answer)
            }
            Lookup::Source(service, client, admitted) => self.source(*service, *client, *admitted),
            Lookup::Affinity(service, client, found) => self.affinity(*service, *client, *found),
            Lookup::Address(address, found) => {
                let answer = match found {
                    None => "no service's own address",
                    Some(flags) if flags.0 & address_flag::EXTERNAL != 0 => {
                        "an address of services, reached from everywhere"
                    }
                    Some(_) => "an address of services, reached from the cluster alone",
                };
                ("address", address.to_string(), answer.to_owned())
            }
            Lookup::Device(key, found) => {
                let answer = match found.map(|device| DeviceRole::from_raw(device.role)) {
                    Some(DeviceRole::Uplink) => "an uplink",
                    Some(DeviceRole::Pod) => "a pod's",
                    _ => "none of ours",
                };
                ("device", (self.name)(key.ifindex), answer.to_owned())
            }
            Lookup::Slot(index, found) => {
                let answer =
                    found.map_or_else(|| "none".to_owned(), |index| format!("backend {index}"));
                ("choice", format!("slot {index}"), answer)
            }
            Lookup::Backend(index, found) => {
                let answer =
                    found.map_or_else(|| "none".to_owned(), |backend| self.backend_text(&backend));
                ("backend", format!("backend {index}"), answer)
            }
            Lookup::Route(source, destination, ifindex, fib) => {
                let question = format!("{source} > {destination} from {}", (self.name)(*ifindex));
                ("route", question, self.route_text(fib))
            }
            Lookup::Insert(tuple, flow, done) => {
                let answer = if *done {
                    format!("becomes {} > {}", flow.source, flow.destination)
                } else {
                    "the tuple is taken: try another port".to_owned()
                };
                ("insert", tuple.to_string(), answer)
            }
            Lookup::Remove(tuple) => (
                "remove",
                tuple.to_string(),
                "no longer a connection".to_owned(),
            ),
            Lookup::Count(index, _) => {
                let reason = Reason::ALL.iter().find(|reason| **reason as u32 == *index);
                let event = Event::ALL.iter().find(|event| **event as u32 == *index);
                let word = reason.map(|r| r.word()).or_else(|| event.map(|e| e.word()));
                (
                    "count",
                    word.unwrap_or("?").to_owned(),
                    "counted".to_owned(),
                )
            }
        };
        Step::new(stage, question, answer)
    }

    fn source(&self, service: u32, client: IpAddr, admitted: bool) -> Said {
        let answer = if admitted {
            "let in"
        } else {
            "in none of the service's loadBalancerSourceRanges"
        };
        let question = format!("{client} at {}", self.object(service));
        ("source", question, answer.to_owned())
    }

    fn affinity(&self, service: u32, client: IpAddr, found: Option<Affinity>) -> Said {
        let answer = found.map_or_else(
            || "not kept with any backend".to_owned(),
            |kept| format!("was with backend {}", kept.backend),
        );
        let question = format!("{client} at {}", self.object(service));
        ("affinity", question, answer)
    }

    fn service_text(&self, service: &Service) -> String {
        let reach = if service.flags & service_flag::EXTERNAL == 0 {
            "reached from the cluster alone"
        } else {
            "reached from everywhere"
        };
        let algorithm = if service.flags & service_flag::MAGLEV == 0 {
            "at random"
        } else {
            "by Maglev"
        };
        let local = service.flags & service_flag::LOCAL != 0;
        let external = service.flags & service_flag::EXTERNAL != 0;
        let among = |slots: u32| match slots {
            0 => "no endpoint".to_owned(),
            slots => format!("{algorithm} among {slots} slots"),
        };
        let here = match service.local_slots {
            0 if service.flags & service_flag::ELSEWHERE != 0 => {
                "no endpoint on this node, which clients must keep to".to_owned()
            }
            slots => format!("{} of this node", among(slots)),
        };
        let choice = match (local, external) {
            (false, _) => among(service.slots),
            (true, false) => here,
            (true, true) => format!(
                "from outside {here}, from this node {}",
                among(service.slots)
            ),
        };
        format!("{}, {reach}, {choice}", self.object(service.id))
    }

    fn backend_text(&self, backend: &Backend) -> String {
        let Some(address) = backend_text(backend) else {
            return "given up".to_owned();
        };
        let serving = backend.flags & backend_flag::SERVING != 0;
        let state = if serving {
            "serving"
        } else {
            "keeps only the connections it has"
        };
        format!("{address} of {}, {state}", self.object(backend.service))
    }

    fn route_text(&self, fib: &Fib) -> String {
        match fib {
            Fib::Refused => "no route".to_owned(),
            Fib::Local => "this node's own stack".to_owned(),
            Fib::Stack { .. } => "a route that only the kernel's stack can follow".to_owned(),
            Fib::NoNeighbour { ifindex } => {
                format!(
                    "out of {}; the next hop's link-layer address isn't known yet",
                    (self.name)(*ifindex)
                )
            }
            Fib::Forward {
                ifindex,
                destination,
                ..
            } => {
                let [a, b, c, d, e, f] = destination;
                format!(
                    "out of {} to {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}",
                    (self.name)(*ifindex)
                )
            }
        }
    }
}

/// The reason that was counted.
fn counted(lookups: &[Lookup]) -> Option<Reason> {
    lookups.iter().find_map(|lookup| match lookup {
        Lookup::Count(index, _) => Reason::ALL
            .iter()
            .find(|reason| **reason as u32 == *index)
            .copied(),
        _ => None,
    })
}

/// A reason's word and explanation.
fn told(reason: Reason) -> String {
    format!("{}: {}", reason.word(), reason.explanation().trim())
}
