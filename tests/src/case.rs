//! A case: a world, steps, and for each step everything that it is to change.
//!
//! What a step does not name must not change: verdict, frame, flow entries and counters are compared
//! whole after each step, and all other maps after the last one.

mod expect;
pub mod place;
pub mod world;

pub use expect::{Connection, Expected, Step, Way};
pub use world::World;

use crate::packet::Packet;

/// Where a frame enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `xdp_uplink`.
    Xdp,
    /// `tc_ingress`.
    Ingress,
    /// `tc_egress`.
    Egress,
}

/// A named case.
pub struct Case {
    /// `theme::what_happens::v4`.
    pub name: String,
    /// What the node holds at first.
    pub world: World,
    /// What happens.
    pub steps: Vec<Step>,
}

impl Case {
    /// A case without steps, to be named by [`crate::cases`].
    #[must_use]
    pub fn new(world: World) -> Self {
        Self {
            name: String::new(),
            world,
            steps: Vec::new(),
        }
    }

    /// Adds a step: the frame passes untouched unless more is said.
    pub fn send(&mut self, hook: Hook, ifindex: u32, packet: &Packet) -> &mut Step {
        self.send_bytes(hook, ifindex, packet.bytes())
    }

    /// Adds a step with a frame of any bytes.
    pub fn send_bytes(&mut self, hook: Hook, ifindex: u32, frame: Vec<u8>) -> &mut Step {
        self.steps.push_mut(Step::new(hook, ifindex, frame))
    }

    /// Adds a step whose packet opens a connection.
    pub fn opens(
        &mut self,
        hook: Hook,
        ifindex: u32,
        packet: &Packet,
        connection: &Connection,
    ) -> &mut Step {
        let now = self.tick();
        let step = self.send(hook, ifindex, packet);
        step.opens(packet, connection, now);
        step
    }

    /// Adds a step whose packet is carried in a connection, in the same tick and by a known hop.
    pub fn carries(&mut self, hook: Hook, ifindex: u32, packet: &Packet, way: &Way) -> &mut Step {
        let step = self.send(hook, ifindex, packet);
        step.carries(packet, way);
        step
    }

    /// As [`Case::carries`], where the hop has to be asked for.
    pub fn carries_anew(
        &mut self,
        hook: Hook,
        ifindex: u32,
        packet: &Packet,
        way: &Way,
    ) -> &mut Step {
        let now = self.tick();
        let step = self.send(hook, ifindex, packet);
        step.carries(packet, way).resolved(way, now);
        step
    }

    /// The time of the steps to come.
    fn tick(&self) -> u32 {
        let mut world = self.world.clone();
        for edit in self.steps.iter().filter_map(|step| step.edit.as_ref()) {
            edit(&mut world);
        }
        world.tick
    }
}
