//! Random frames on the host and in the kernel: same verdict, same bytes, same changes of maps.
//!
//! A history is a world and some dozens of frames in it: packets of all kinds to all services, answers
//! and later packets of the connections that come of them, frames that came out sent in again, and all
//! of these mutated or cut short. Verdict and bytes are compared after each frame, maps after each
//! history; one that differs is played again and compared whole after each frame.

mod frames;
mod random;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;

use anyhow::{Result, bail};
use proxy_common::abi::{Counter, backend_flag};
use proxy_common::datapath::Event;

use crate::case::place::Version;
use crate::case::world::{CLAIMED, Reach};
use crate::case::{Hook, World};
use crate::exec::host::Host;
use crate::exec::kernel::Kernel;
use crate::exec::{Executor, Seen, compare_maps, return_code};
use crate::packet::{difference, dissect, number};

use frames::{Frames, Input};
pub use random::Random;

/// Frames of one history.
const FRAMES: u32 = 40;

/// What was played.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames on which both agreed.
    pub frames: u32,
    /// Frames that this kernel's test runs do not take (too short for the header that they claim).
    pub refused: u32,
    /// Frames that were changed.
    pub rewritten: u32,
    /// Connections that were made.
    pub connections: u64,
}

/// Plays histories until at least `frames` frames were compared.
pub fn play(kernel: &mut Kernel, seed: u64, frames: u32) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut index = 0;
    while tally.frames < frames {
        if let Err(error) = history(kernel, seed, index, &mut tally, false) {
            // Once more, to find the first frame after which anything differs.
            history(kernel, seed, index, &mut Tally::default(), true)?;
            return Err(error);
        }
        index += 1;
    }
    Ok(tally)
}

/// The world of a history: every kind of service in both families, some of it in change.
fn world(random: &mut Random) -> World {
    use crate::case::place::Host as At;
    let mut world = World::default();
    world.settings.port_count = 1 + random.below(40);
    for version in [Version::V4, Version::V6] {
        let at = |host: At, port| host.port(version, port);
        let pods = [
            at(At::RemoteA, 8080),
            at(At::PodA, 8080),
            at(At::PodB, 8080),
            at(At::SidePod, 8080),
            at(At::Node, 8080),
            at(At::Lost, 8080),
            at(At::Refused, 8080),
            at(At::VlanPod, 8080),
            at(At::InnerVlanPod, 8080),
            at(At::Nowhere, 8080),
        ];
        for protocol in [number::TCP, number::UDP, number::SCTP] {
            let mut some: Vec<_> = pods.into_iter().filter(|_| random.chance(1, 3)).collect();
            some.truncate(5);
            let cluster = at(At::Cluster, 80);
            world.serve(protocol, cluster, Reach::Cluster, &some);
            world.alias(protocol, at(At::Balancer, 80), Reach::Balancer, cluster);
            world.alias(protocol, at(At::OtherCluster, 80), Reach::Cluster, cluster);
            world.alias(protocol, at(At::Node, 30_080), Reach::Node, cluster);
            terms(&mut world, random, protocol, version);
        }
        world.serve(number::TCP, at(At::Balancer, 81), Reach::Balancer, &[]);
        world.serve(number::UDP, at(At::Balancer, 81), Reach::Balancer, &[]);
    }
    world
}

/// Some services keep clients with a backend, to this node, or to ranges.
fn terms(world: &mut World, random: &mut Random, protocol: u8, version: Version) {
    use crate::case::place::Host as At;
    for (host, port) in [(At::Cluster, 80), (At::Balancer, 80), (At::Node, 30_080)] {
        let at = host.port(version, port);
        if random.chance(1, 3) {
            world.keep_clients(protocol, at, random.below(3));
        }
        if random.chance(1, 4) {
            let mine: Vec<u32> = world
                .services
                .get(&(at, protocol))
                .map(|service| service.id)
                .into_iter()
                .flat_map(|id| world.backends.iter().filter(move |(_, b)| b.service == id))
                .map(|(index, _)| *index)
                .take(2)
                .collect();
            world.keep_local(protocol, at, &mine);
        }
        if random.chance(1, 4) {
            let client = At::Client.ip(version);
            world.restrict(protocol, at, &[client.into()]);
        }
    }
}

/// Something happens to the world between two frames.
fn disturb(world: &mut World, random: &mut Random) {
    let indexes: Vec<u32> = world.backends.keys().copied().collect();
    let index = indexes.get(random.below(64) as usize % indexes.len().max(1));
    match random.below(4) {
        0 => world.tick = crate::case::world::TICK + u32::from(random.chance(1, 2)),
        1 => {
            if let Some(backend) = index.and_then(|index| world.backends.get_mut(index)) {
                backend.flags ^= match random.below(3) {
                    0 => backend_flag::SERVING,
                    1 => backend_flag::CLUSTER,
                    _ => backend_flag::LOCAL,
                };
            }
        }
        2 => {
            if let Some(backend) = index.and_then(|index| world.backends.get_mut(index)) {
                backend.generation += 1;
            }
        }
        _ => world.settings.port_min = u32::from(CLAIMED) + random.below(3),
    }
}

/// Plays one history. `each`: compare maps after each frame.
fn history(
    kernel: &mut Kernel,
    seed: u64,
    index: u64,
    tally: &mut Tally,
    each: bool,
) -> Result<()> {
    let mut random = Random::new(seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut world = world(&mut random);
    let mut host = Host::default();
    let mut frames = Frames::default();
    let mut counted: BTreeMap<u32, Counter> = BTreeMap::new();
    host.load(&world)?;
    // What an earlier history has left, seen by nobody yet.
    kernel.results()?;
    kernel.affinities()?;
    kernel.load(&world)?;
    for step in 0..FRAMES {
        if random.chance(1, 12) {
            world.flows.clone_from(host.flows());
            world.affinities.clone_from(host.affinities());
            disturb(&mut world, &mut random);
            host.load(&world)?;
            let (flows, counters) = kernel.results()?;
            world.affinities.clone_from(host.affinities());
            let complaints = compare_maps("flow (host, kernel)", &world.flows, &flows)
                + &compare_maps("affinity", &world.affinities, &kernel.affinities()?)
                + &compare_maps("counter (host, kernel)", &counted, &counters);
            if !complaints.is_empty() {
                bail!("seed {seed}, history {index}, before frame {step}:\n{complaints}");
            }
            tally.connections += made(&counted);
            counted.clear();
            kernel.load(&world)?;
        }
        let input = frames.next(&mut random, host.flows());
        let place = || {
            format!(
                "seed {seed}, history {index}, frame {step}:\n{}",
                skeleton(&input)
            )
        };
        let (code, bytes) = match kernel.run_only(input.hook, input.ifindex, &input.frame) {
            Ok(result) => result,
            Err(error) if refused(&error, &input) => {
                tally.refused += 1;
                continue;
            }
            Err(error) => return Err(error.context(place())),
        };
        let before = host.flows().clone();
        let outcome = host.run(input.hook, input.ifindex, &input.frame)?;
        let Seen::Action(action) = outcome.verdict else {
            bail!("the host executor does not know its verdict");
        };
        let mut complaints = String::new();
        let expected = return_code(input.hook, input.ifindex, action);
        if expected != code {
            writeln!(
                complaints,
                "  host: {action:?} ({expected}), kernel: {code}"
            )?;
        }
        if let Some(difference) = difference(&outcome.frame, &bytes) {
            writeln!(
                complaints,
                "  frame (expected: host, found: kernel):\n{difference}"
            )?;
        }
        for (number, counter) in outcome.counters {
            let sum = counted.entry(number).or_default();
            sum.packets += counter.packets;
            sum.bytes += counter.bytes;
        }
        if each || step + 1 == FRAMES {
            let (flows, counters) = kernel.results()?;
            complaints += &compare_maps("flow (host, kernel)", host.flows(), &flows);
            complaints += &compare_maps("counter (host, kernel)", &counted, &counters);
            complaints += &compare_maps("affinity", host.affinities(), &kernel.affinities()?);
            tally.connections += made(&counted);
            counted.clear();
        }
        if !complaints.is_empty() {
            let flows = if each {
                format!("flows before: {before:#?}\n")
            } else {
                String::new()
            };
            bail!("{}{flows}{complaints}", place());
        }
        tally.frames += 1;
        tally.rewritten += u32::from(bytes != input.frame);
        frames.remember(input, bytes);
    }
    Ok(())
}

/// How many connections were made.
fn made(counted: &BTreeMap<u32, Counter>) -> u64 {
    let made = counted.get(&(Event::FlowMade as u32));
    made.map_or(0, |counter| counter.packets)
}

/// Whether the kernel has only refused to make a socket buffer of a frame that ends before the
/// network header that its type promises.
fn refused(error: &anyhow::Error, input: &Input) -> bool {
    let invalid = error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::InvalidInput);
    invalid && input.hook != Hook::Xdp && input.frame.len() < 14 + 40
}

/// The failing frame as a step of a case, and its fields.
fn skeleton(input: &Input) -> String {
    let mut text = format!(
        "    case.send_bytes(Hook::{:?}, {}, vec!{:?})\n",
        input.hook, input.ifindex, input.frame
    );
    for (name, value) in dissect(&input.frame) {
        let _ = writeln!(text, "    // {name}: {value}");
    }
    text
}
