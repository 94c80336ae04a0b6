//! Executors: where a case is played.

mod arrival;
pub mod host;
pub mod kernel;
pub mod namespace;
mod requests;
pub mod wire;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use proxy_common::abi::Counter;
use proxy_common::datapath::verdict::Action;
use proxy_user::simulation::{FlowRecord, Tuple};

use crate::case::world::Kept;
use crate::case::{Case, Hook, Step, World};
use crate::packet::difference;
use wire::Exit;

/// What came of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The verdict.
    pub verdict: Seen,
    /// The frame as it is now.
    pub frame: Vec<u8>,
    /// The flow tables as they are now.
    pub flows: BTreeMap<Tuple, FlowRecord>,
    /// Whom clients are kept with now.
    pub affinities: BTreeMap<(IpAddr, u32), Kept>,
    /// By how much counters were raised.
    pub counters: BTreeMap<u32, Counter>,
}

/// A verdict, as far as an executor can see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// All of it.
    Action(Action),
    /// What the program returned.
    Code(u32),
    /// Where the frame came out.
    Exit(Exit),
}

/// Plays frames in a world.
pub trait Executor {
    /// Makes this the world, flows included.
    fn load(&mut self, world: &World) -> Result<()>;

    /// Runs one frame.
    fn run(&mut self, hook: Hook, ifindex: u32, frame: &[u8]) -> Result<Outcome>;

    /// Fails if anything but flows, affinities and counters is not as it was loaded.
    fn verify(&mut self) -> Result<()>;
}

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

/// What a program returns for an action (`proxy-ebpf`, `main`).
#[must_use]
pub fn return_code(hook: Hook, ifindex: u32, action: Action) -> u32 {
    const UNSPEC: u32 = u32::MAX;
    const SHOT: u32 = 2;
    const REDIRECT: u32 = 7;
    match (hook, action) {
        (Hook::Xdp, Action::Drop(_)) => XDP_DROP,
        (Hook::Xdp, Action::Reply) => XDP_TX,
        (Hook::Xdp, Action::Transmit(to)) if to == ifindex => XDP_TX,
        (Hook::Xdp, Action::Transmit(_)) => XDP_REDIRECT,
        (Hook::Xdp, _) => XDP_PASS,
        (_, Action::Drop(_)) => SHOT,
        (_, Action::Pass | Action::Local) => UNSPEC,
        _ => REDIRECT,
    }
}

/// Plays a case; fails with all that is not as expected.
pub fn play(case: &Case, executor: &mut impl Executor) -> Result<()> {
    let mut world = case.world.clone();
    for (index, step) in case.steps.iter().enumerate() {
        if let Some(edit) = &step.edit {
            edit(&mut world);
        }
        let at = || format!("step {} of {}", index + 1, case.steps.len());
        executor.load(&world).with_context(at)?;
        let outcome = executor
            .run(step.hook, step.ifindex, &step.frame)
            .with_context(at)?;
        let complaints = compare(&world, step, &outcome);
        if !complaints.is_empty() {
            bail!(
                "{}, {:?} at {}:\n{complaints}",
                at(),
                step.hook,
                step.ifindex
            );
        }
        world.flows = outcome.flows;
        world.affinities = outcome.affinities;
    }
    executor.verify()
}

fn compare(world: &World, step: &Step, outcome: &Outcome) -> String {
    let mut text = String::new();
    let expected = match (outcome.verdict, &step.on_devices) {
        (Seen::Exit(_), Some(expected)) => expected,
        _ => &step.expected,
    };
    let right = match outcome.verdict {
        Seen::Action(action) => action == expected.action,
        Seen::Code(code) => code == return_code(step.hook, step.ifindex, expected.action),
        Seen::Exit(exit) => exit == Exit::of(step.hook, step.ifindex, expected.action),
    };
    if !right {
        let _ = writeln!(
            text,
            "  verdict: expected {:?}, found {:?}",
            expected.action, outcome.verdict
        );
    }
    // Nobody sees a frame that has come out nowhere.
    if outcome.verdict != Seen::Exit(Exit::Nowhere)
        && let Some(difference) = difference(&expected.frame, &outcome.frame)
    {
        let _ = writeln!(text, "  frame:\n{difference}");
    }
    let mut flows = world.flows.clone();
    for edit in &expected.flows {
        edit(&mut flows);
    }
    text += &compare_maps("flow", &flows, &outcome.flows);
    let mut affinities = world.affinities.clone();
    for edit in &expected.affinities {
        edit(&mut affinities);
    }
    text += &compare_maps("affinity", &affinities, &outcome.affinities);
    text + &compare_maps("counter", &expected.counters, &outcome.counters)
}

/// Says entry by entry how a map differs.
pub(crate) fn compare_maps<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    what: &str,
    expected: &BTreeMap<K, V>,
    found: &BTreeMap<K, V>,
) -> String {
    let mut text = String::new();
    for (key, value) in expected {
        if found.get(key) != Some(value) {
            let seen = found.get(key);
            let _ = writeln!(
                text,
                "  {what} {key:?}:\n    expected {value:?}\n    found    {seen:?}"
            );
        }
    }
    for (key, value) in found.iter().filter(|(key, _)| !expected.contains_key(key)) {
        let _ = writeln!(text, "  {what} {key:?}: unexpected {value:?}");
    }
    text
}
