//! Connections that two CPUs make at once: each is made whole and once, and no port is claimed twice.

use std::collections::BTreeMap;
use std::hint;
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use proxy_common::abi::{Counter, flow_state};
use proxy_common::datapath::{Event, Reason};
use proxy_user::dataplane::load::Program;
use proxy_user::simulation::{FlowRecord, Tuple};

use crate::case::World;
use crate::case::place::{self, Host, Version, device};
use crate::case::world::{CLAIMED, Reach, TICK};
use crate::exec::Executor as _;
use crate::exec::kernel::Kernel;
use crate::packet::{Packet, number};

/// Connections that each CPU opens.
const CONNECTIONS: u16 = 3_000;

/// Room for all of them, and for half as many again.
const FLOWS: u32 = 24_576;

/// `TC_ACT_REDIRECT`, `TC_ACT_SHOT`.
const REDIRECT: u32 = 7;
const SHOT: u32 = 2;

/// How many races there have been: each has maps of its own.
static RACES: AtomicUsize = AtomicUsize::new(0);

/// How often programs returned what.
type Codes = BTreeMap<u32, u64>;

/// Two CPUs open the same connections at the same time.
pub fn same_connections(version: Version) -> Result<()> {
    let world = world(version, (Host::Cluster, 80), Reach::Cluster, 4_096);
    let frames = syns(version, Host::PodA, (Host::Cluster, 80), device::POD_A);
    let end = race(&world, device::POD_A, [&frames, &frames])?;
    let made = end.check()?;
    ensure!(
        made == u64::from(CONNECTIONS),
        "{made} connections were made of {CONNECTIONS}"
    );
    // A packet is only ever dropped where the other CPU has just taken away what this one saw.
    let dropped = end.counter(Reason::Changing as u32);
    ensure!(
        end.codes.get(&SHOT).copied().unwrap_or_default() == dropped,
        "not all drops were for changes: {:?}, {:?}",
        end.codes,
        end.counters
    );
    Ok(())
}

/// Two CPUs open connections of two clients that need ports of a pool which is too small for all.
pub fn competing_connections(version: Version) -> Result<()> {
    let pool = u32::from(CONNECTIONS);
    let world = world(version, (Host::Balancer, 80), Reach::Balancer, pool);
    let [one, two] = [Host::Client, Host::OtherClient]
        .map(|client| syns(version, client, (Host::Balancer, 80), device::UP0));
    let end = race(&world, device::UP0, [&one, &two])?;
    let made = end.check()?;
    let exhausted = end.counter(Reason::PortsExhausted as u32);
    ensure!(
        made + exhausted == 2 * u64::from(CONNECTIONS),
        "{made} connections were made, {exhausted} found no port"
    );
    ensure!(
        end.counter(Event::PortClaimed as u32) == made && made <= u64::from(pool),
        "{made} connections have {:?}",
        end.counters
    );
    // Each client is tried with sixteen ports, so nearly all are taken in the end.
    ensure!(made > u64::from(pool) * 9 / 10, "only {made} of {pool}");
    Ok(())
}

fn world(version: Version, (host, port): (Host, u16), reach: Reach, ports: u32) -> World {
    let mut world = World::default();
    let backend = Host::RemoteA.port(version, 8080);
    world.serve(number::TCP, host.port(version, port), reach, &[backend]);
    world.settings.port_min = u32::from(CLAIMED) - 32_768;
    world.settings.port_count = ports;
    world
}

/// First segments of a client, as they arrive by a device.
fn syns(version: Version, client: Host, (host, port): (Host, u16), ifindex: u32) -> Vec<Vec<u8>> {
    let service = host.port(version, port);
    let ports = 10_000..10_000 + CONNECTIONS;
    ports
        .map(|port| {
            let packet = Packet::syn(client.port(version, port), service);
            packet.link(place::mac(ifindex), [2, 0xbb, 0, 0, 0, 1])
        })
        .map(|packet| packet.bytes())
        .collect()
}

/// What there is in the end.
struct End {
    flows: BTreeMap<Tuple, FlowRecord>,
    counters: BTreeMap<u32, Counter>,
    codes: Codes,
}

impl End {
    fn counter(&self, index: u32) -> u64 {
        self.counters
            .get(&index)
            .map_or(0, |counter| counter.packets)
    }

    /// Fails unless all entries are in whole pairs, and what was counted is what happened. Says how many
    /// connections there are.
    fn check(&self) -> Result<u64> {
        for (key, entry) in &self.flows {
            let peer_key = Tuple {
                protocol: key.protocol,
                source: entry.destination,
                destination: entry.source,
            };
            let peer = self.flows.get(&peer_key);
            let peer = peer.with_context(|| format!("{key:?} has no peer: {entry:?}"))?;
            let original = |entry: &FlowRecord| entry.state & flow_state::ORIGINAL != 0;
            ensure!(
                (peer.source, peer.destination) == (key.destination, key.source)
                    && original(peer) != original(entry)
                    && (peer.backend, peer.generation, peer.service)
                        == (entry.backend, entry.generation, entry.service),
                "{key:?} does not fit its peer:\n  {entry:?}\n  {peer:?}"
            );
        }
        let made = self.flows.len() as u64 / 2;
        let counted = self.counter(Event::FlowMade as u32);
        ensure!(counted == made, "{made} connections, {counted} counted");
        let reasons = Reason::ALL.iter().map(|reason| *reason as u32);
        let dropped: u64 = reasons.map(|index| self.counter(index)).sum();
        let shot = self.codes.get(&SHOT).copied().unwrap_or_default();
        let sent = self.codes.get(&REDIRECT).copied().unwrap_or_default();
        ensure!(
            shot == dropped && shot + sent == 2 * u64::from(CONNECTIONS),
            "{:?} is not what was counted: {:?}",
            self.codes,
            self.counters
        );
        Ok(made)
    }
}

/// Plays both lists of frames at once, frame by frame, each on a CPU of its own.
fn race(world: &World, ifindex: u32, frames: [&[Vec<u8>]; 2]) -> Result<End> {
    let cpus = two_cpus()?;
    let number = RACES.fetch_add(1, Ordering::Relaxed);
    let mut kernel = Kernel::start_as(&format!("race-{}-{number}", process::id()), FLOWS)?;
    kernel.load(world)?;
    kernel.results()?;
    let program = &kernel.programs(TICK)?.tc_ingress;
    let turns = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let results = thread::scope(|scope| {
        let [a, b] = [0, 1].map(|me| {
            let (turns, cpu) = (&turns, cpus.get(me).copied());
            let frames = frames.get(me).copied().unwrap_or_default();
            scope.spawn(move || run(program, ifindex, frames, (turns, me), cpu))
        });
        [a.join(), b.join()]
    });
    let mut codes = Codes::new();
    for result in results {
        let some = result.map_err(|_| anyhow!("a thread panicked"))??;
        for (code, count) in some {
            *codes.entry(code).or_default() += count;
        }
    }
    let (flows, counters) = kernel.results()?;
    Ok(End {
        flows,
        counters,
        codes,
    })
}

/// Plays frames, none before the other thread is at the same.
fn run(
    program: &Program,
    ifindex: u32,
    frames: &[Vec<u8>],
    (turns, me): (&[AtomicUsize; 2], usize),
    cpu: Option<usize>,
) -> Result<Codes> {
    let mut one = CpuSet::new();
    one.set(cpu.context("two CPUs are needed")?)?;
    sched_setaffinity(Pid::from_raw(0), &one)?;
    // struct __sk_buff up to ifindex.
    let mut context = [0; 11];
    context[10] = ifindex;
    let mut out = [0; 2_048];
    let mut codes = Codes::new();
    let [first, second] = turns;
    let (mine, other, steps) = if me == 0 {
        (first, second, 7)
    } else {
        (second, first, 13)
    };
    for (turn, frame) in (1..).zip(frames) {
        mine.store(turn, Ordering::Release);
        let mut waited = 0;
        while other.load(Ordering::Acquire) < turn {
            waited += 1;
            if waited % 1_000 == 0 {
                thread::yield_now();
            }
            hint::spin_loop();
        }
        // By turns one is ahead of the other by a little, as the way to the program is never the same.
        for _ in 0..turn * steps % 61 {
            hint::spin_loop();
        }
        match program.test_run(frame, &context, &mut out) {
            Ok(run) => *codes.entry(run.returned).or_default() += 1,
            Err(error) => {
                // The other one would wait forever.
                mine.store(usize::MAX, Ordering::Release);
                return Err(error).context("a test run");
            }
        }
    }
    Ok(codes)
}

fn two_cpus() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or_default());
    let cpus: Vec<usize> = cpus.take(2).collect();
    ensure!(cpus.len() == 2, "this test needs two CPUs");
    Ok(cpus)
}
