//! Steps and what they are expected to do.

use std::collections::BTreeMap;
use std::mem;
use std::net::IpAddr;

use proxy_common::abi::{Counter, FlowStep, flow_state};
use proxy_common::datapath::verdict::Action;
use proxy_common::datapath::{Event, Reason};
use proxy_user::simulation::{FlowRecord, Tuple};

use super::Hook;
use super::place::{self, Next};
use super::world::{Kept, World};
use crate::packet::{Packet, SENT_TO, ones_complement_sum};

/// One direction of a connection: what a packet is, and what it becomes.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// As the packet arrives.
    pub tuple: Tuple,
    /// As it leaves.
    pub rewritten: Tuple,
    /// Where it goes.
    pub next: Next,
    /// Tags of the packets.
    pub vlan: u32,
    /// What ends on this node comes in by the loopback device.
    pub loopback: bool,
}

/// A connection that a case expects.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// From the client.
    pub forward: Way,
    /// From the backend.
    pub answer: Way,
    /// Index of the backend.
    pub backend: u32,
    /// The backend's generation.
    pub generation: u32,
    /// Id of the service.
    pub service: u32,
}

impl Connection {
    /// `tuple`: as the client sends; `rewritten`: as the backend sees it.
    #[must_use]
    pub fn new(world: &World, tuple: Tuple, rewritten: Tuple, backend: u32, next: Next) -> Self {
        let record = world.backends.get(&backend).copied().unwrap_or_default();
        Self {
            forward: Way {
                tuple,
                rewritten,
                next,
                vlan: 0,
                loopback: false,
            },
            answer: Way {
                tuple: rewritten.reversed(),
                rewritten: tuple.reversed(),
                next: Next::UNKNOWN,
                vlan: 0,
                loopback: false,
            },
            backend,
            generation: record.generation,
            service: record.service,
        }
    }

    /// A connection of one of this node's processes to an address of this node.
    #[must_use]
    pub const fn through_loopback(mut self) -> Self {
        self.answer.loopback = true;
        self
    }

    /// The answering direction, and where it goes.
    #[must_use]
    pub fn answer_by(&self, next: Next) -> Way {
        Way {
            next,
            ..self.answer
        }
    }

    /// The entry of a direction that has carried nothing yet.
    fn entry(&self, way: &Way, state: u8, now: u32) -> FlowRecord {
        let (old, new) = (way.tuple, way.rewritten);
        FlowRecord {
            packets: 0,
            bytes: 0,
            last_seen: now,
            backend: self.backend,
            generation: self.generation,
            service: self.service,
            step: FlowStep::Resolve,
            ifindex: 0,
            vlan: 0,
            link_destination: [0; 6],
            link_source: [0; 6],
            source: new.source,
            destination: new.destination,
            address_delta: delta(&addresses(&old), &addresses(&new)),
            port_delta: delta(&ports(&old), &ports(&new)),
            state,
            mtu: 0,
        }
    }

    /// Both entries as they are before the first packet is carried.
    #[must_use]
    pub fn entries(&self, now: u32) -> [(Tuple, FlowRecord); 2] {
        let mut original = self.entry(&self.forward, flow_state::ORIGINAL, now);
        resolve(&mut original, &self.forward);
        let state = if self.answer.loopback {
            flow_state::LOOPBACK
        } else {
            0
        };
        let answer = self.entry(&self.answer, state, now);
        [(self.forward.tuple, original), (self.answer.tuple, answer)]
    }
}

fn addresses(tuple: &Tuple) -> Vec<u8> {
    let mut bytes = Vec::new();
    for address in [tuple.source.ip(), tuple.destination.ip()] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes
}

fn ports(tuple: &Tuple) -> Vec<u8> {
    let mut bytes = tuple.source.port().to_be_bytes().to_vec();
    bytes.extend(tuple.destination.port().to_be_bytes());
    bytes
}

/// By how much a checksum's sum changes (RFC 1624: `~m + m'`), in the form of a flow entry: the two
/// bytes in network order.
fn delta(old: &[u8], new: &[u8]) -> u16 {
    let mut bytes: Vec<u8> = old.iter().map(|byte| !byte).collect();
    bytes.extend(new);
    u16::from_ne_bytes(ones_complement_sum(&bytes).to_be_bytes())
}

fn resolve(entry: &mut FlowRecord, way: &Way) {
    entry.step = way.next.step;
    entry.ifindex = way.next.ifindex;
    entry.link_destination = way.next.destination;
    entry.link_source = way.next.source;
    entry.vlan = way.vlan;
    entry.mtu = way.next.mtu;
}

type Edit = Box<dyn Fn(&mut World) + Send + Sync>;
type AffinityEdit = Box<dyn Fn(&mut BTreeMap<(IpAddr, u32), Kept>) + Send + Sync>;
type FlowEdit = Box<dyn Fn(&mut BTreeMap<Tuple, FlowRecord>) + Send + Sync>;

/// What a step is expected to do.
pub struct Expected {
    /// The verdict.
    pub action: Action,
    /// The frame as it is afterwards.
    pub frame: Vec<u8>,
    /// What it does to the flow tables, in order.
    pub flows: Vec<FlowEdit>,
    /// What it does to the tables of whom clients are kept with.
    pub affinities: Vec<AffinityEdit>,
    /// By how much it raises counters.
    pub counters: BTreeMap<u32, Counter>,
}

impl Expected {
    /// That the frame passes untouched.
    fn nothing(frame: &[u8]) -> Self {
        Self {
            action: Action::Pass,
            frame: frame.to_vec(),
            flows: Vec::new(),
            affinities: Vec::new(),
            counters: BTreeMap::new(),
        }
    }
}

/// One frame.
pub struct Step {
    /// Changes of the world before it.
    pub edit: Option<Edit>,
    /// Where it enters.
    pub hook: Hook,
    /// By which device.
    pub ifindex: u32,
    /// The frame.
    pub frame: Vec<u8>,
    /// What is to come of it.
    pub expected: Expected,
    /// What is to come of it on devices, where that is something else: there the kernel keeps the
    /// first VLAN tag beside the frame before TC sees it, in a test run it stays in the frame.
    pub on_devices: Option<Expected>,
}

impl Step {
    pub(super) fn new(hook: Hook, ifindex: u32, mut frame: Vec<u8>) -> Self {
        if let Some(destination) = frame.first_chunk_mut() {
            *destination = own(hook, ifindex, *destination);
        }
        Self {
            edit: None,
            hook,
            ifindex,
            expected: Expected::nothing(&frame),
            on_devices: None,
            frame,
        }
    }

    /// Expects something else on devices, all of which `expect` says.
    pub fn on_devices(&mut self, expect: impl FnOnce(&mut Self)) -> &mut Self {
        let elsewhere = mem::replace(&mut self.expected, Expected::nothing(&self.frame));
        expect(self);
        self.on_devices = Some(mem::replace(&mut self.expected, elsewhere));
        self
    }

    /// Changes the world before this step.
    pub fn after(&mut self, edit: impl Fn(&mut World) + Send + Sync + 'static) -> &mut Self {
        self.edit = Some(Box::new(edit));
        self
    }

    /// Expects this verdict.
    pub fn verdict(&mut self, action: Action) -> &mut Self {
        self.expected.action = action;
        self
    }

    /// Expects this frame to come out.
    pub fn out(&mut self, packet: &Packet) -> &mut Self {
        let (destination, source) = packet.link;
        let own = |address| own(self.hook, self.ifindex, address);
        let (destination, source) = (own(destination), own(source));
        self.expected.frame = packet.clone().link(destination, source).bytes();
        self
    }

    /// Expects the frame to have been cut to so many bytes.
    pub fn cut_to(&mut self, bytes: usize) -> &mut Self {
        self.expected.frame.truncate(bytes);
        self
    }

    /// Expects a counter to be raised once, by `bytes` bytes.
    pub fn count(&mut self, index: u32, bytes: usize) -> &mut Self {
        let counter = self.expected.counters.entry(index).or_default();
        counter.packets += 1;
        counter.bytes += bytes as u64;
        self
    }

    /// Expects an event.
    pub fn event(&mut self, event: Event, bytes: usize) -> &mut Self {
        self.count(event as u32, bytes)
    }

    /// Expects a change of the flow tables.
    pub fn flows(
        &mut self,
        edit: impl Fn(&mut BTreeMap<Tuple, FlowRecord>) + Send + Sync + 'static,
    ) -> &mut Self {
        self.expected.flows.push(Box::new(edit));
        self
    }

    /// Expects the client of a connection to be kept with its backend from now on.
    pub fn keeps(&mut self, connection: &Connection, now: u32) -> &mut Self {
        let key = (connection.forward.tuple.source.ip(), connection.service);
        let kept = (connection.backend, connection.generation, now);
        self.expected.affinities.push(Box::new(move |affinities| {
            affinities.insert(key, kept);
        }));
        self
    }

    /// Expects a change of one entry, which must be there.
    pub fn entry(
        &mut self,
        tuple: Tuple,
        edit: impl Fn(&mut FlowRecord) + Send + Sync + 'static,
    ) -> &mut Self {
        self.flows(move |flows| {
            if let Some(entry) = flows.get_mut(&tuple) {
                edit(entry);
            }
        })
    }

    /// Expects both entries of a connection to go.
    pub fn forgets(&mut self, connection: &Connection) -> &mut Self {
        let keys = [connection.forward.tuple, connection.answer.tuple];
        self.flows(move |flows| flows.retain(|key, _| !keys.contains(key)))
    }

    /// Expects a drop, counted with the frame's length.
    pub fn drops(&mut self, reason: Reason) -> &mut Self {
        let bytes = self.frame.len();
        self.verdict(Action::Drop(reason))
            .count(reason as u32, bytes)
    }

    /// Expects the packet to be turned into `answer`.
    pub fn refuses(&mut self, reason: Reason, answer: &Packet) -> &mut Self {
        let bytes = self.frame.len();
        self.verdict(Action::Reply)
            .count(reason as u32, bytes)
            .event(Event::Refused, bytes)
            .out(answer)
    }

    /// Expects the packet to be carried: rewritten, sent, counted in the direction's entry.
    pub fn carries(&mut self, packet: &Packet, way: &Way) -> &mut Self {
        let (next, rewritten, bytes) = (way.next, way.rewritten, self.frame.len() as u64);
        let mut out = packet
            .clone()
            .between(rewritten.source, rewritten.destination);
        let stays = matches!(next.step, FlowStep::Local | FlowStep::Stack);
        let mut action = action(&next);
        if !stays {
            out = out.link(next.destination, next.source);
            if self.hook != Hook::Egress {
                out.hops -= 1;
            }
        } else if self.comes_back(way) {
            out = out.link([0; 6], [0; 6]);
            action = Action::Loopback;
        }
        self.verdict(action).out(&out);
        self.entry(way.tuple, move |entry| {
            entry.packets += 1;
            entry.bytes += bytes;
            entry.state |= flow_state::SEEN;
        })
    }

    /// Whether a packet that ends on this node is handed in by the loopback device.
    fn comes_back(&self, way: &Way) -> bool {
        match self.hook {
            Hook::Egress => self.ifindex != place::device::LO || way.next.step == FlowStep::Stack,
            Hook::Xdp | Hook::Ingress => way.loopback,
        }
    }

    /// Expects the direction's next hop to be asked for, at this time.
    pub fn resolved(&mut self, way: &Way, now: u32) -> &mut Self {
        let way = *way;
        self.entry(way.tuple, move |entry| {
            resolve(entry, &way);
            entry.last_seen = now;
        })
    }

    /// Expects a new connection.
    pub fn makes(&mut self, connection: &Connection, now: u32) -> &mut Self {
        let entries = connection.entries(now);
        self.flows(move |flows| flows.extend(entries));
        self.event(Event::FlowMade, 0);
        let forward = &connection.forward;
        if forward.tuple.source.port() != forward.rewritten.source.port() {
            self.event(Event::PortClaimed, 0);
        }
        self
    }

    /// Expects a new connection that carries this packet.
    pub fn opens(&mut self, packet: &Packet, connection: &Connection, now: u32) -> &mut Self {
        self.makes(connection, now);
        self.carries(packet, &connection.forward)
    }
}

/// [`SENT_TO`] stands for the address of the device that a frame comes in by.
fn own(hook: Hook, ifindex: u32, address: [u8; 6]) -> [u8; 6] {
    if address == SENT_TO && hook != Hook::Egress {
        place::mac(ifindex)
    } else {
        address
    }
}

fn action(next: &Next) -> Action {
    match next.step {
        FlowStep::Transmit | FlowStep::Enqueue => Action::Transmit(next.ifindex),
        FlowStep::Pod => Action::Pod(next.ifindex),
        FlowStep::Neighbour => Action::Neighbour(next.ifindex),
        FlowStep::Local | FlowStep::Stack => Action::Local,
        FlowStep::Resolve => Action::Drop(Reason::NoRoute),
    }
}
