//! Plays cases on devices: programs attached as the daemon attaches them, frames sent by packet
//! sockets, and all that comes out seen where it comes out.
//!
//! There are two nodes, which share the maps. Steps at TC are played at one that has no XDP. Steps at
//! XDP are played at one where sinks stand before TC, so that it shows what XDP does alone. Every
//! device's other end, and the stack of the node itself, is a sink: what gets there is seen, and nobody
//! answers. So what is asserted beyond what test runs show is where a frame goes, that it gets there,
//! and that nothing else goes anywhere.

mod left_out;
mod link;
mod socket;

use std::collections::BTreeMap;
use std::process;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use proxy_common::abi::Counter;
use proxy_common::datapath::verdict::Action;
use proxy_user::config::XdpMode;
use proxy_user::dataplane::attach::{Attachments, Target, TcMode};
use proxy_user::dataplane::load::embedded_object;
use proxy_user::dataplane::{Globals, PinFolder, Programs};
use proxy_user::kernel::devices::XdpState;
use proxy_user::simulation::{FlowRecord, Tuple};

pub use left_out::{count, reason};

use super::kernel::Kernel;
use super::{Executor, Outcome, Seen};
use crate::case::place::{self, device};
use crate::case::world::size;
use crate::case::{Hook, World};
use link::{Sinks, Site};

/// What a veth device's index and its far end's differ by.
const FAR: u32 = 100;

/// What a device's index and its sink's differ by.
const SINK: u32 = 200;

/// How long a frame may take that must come.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a frame comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// Nowhere.
    Nowhere,
    /// At the far end of a device.
    Far(u32),
    /// It is handed to the node's stack, as received by a device.
    Stack(u32),
}

impl Exit {
    /// Where a frame comes out for an action.
    #[must_use]
    pub fn of(hook: Hook, ifindex: u32, action: Action) -> Self {
        let out = if hook == Hook::Egress && ifindex != device::LO {
            Self::Far(ifindex)
        } else {
            // What the loopback device sends it receives.
            Self::Stack(ifindex)
        };
        match (hook, action) {
            (_, Action::Drop(_)) => Self::Nowhere,
            (_, Action::Transmit(to)) => Self::Far(to),
            (Hook::Xdp | Hook::Ingress, Action::Reply) => Self::Far(ifindex),
            (Hook::Egress, Action::Reply) => Self::Stack(ifindex),
            (Hook::Xdp, _) | (_, Action::Pass | Action::Local) => out,
            (_, Action::Pod(to) | Action::Neighbour(to)) => Self::Far(to),
            (_, Action::Loopback) => Self::Stack(device::LO),
        }
    }
}

/// A folder of pins, for as long as this is there.
struct Pins(PinFolder);

impl Drop for Pins {
    fn drop(&mut self) {
        // That pins stay behind is no reason to fail a test.
        let _ = self.0.remove();
    }
}

/// A node, and what is attached there.
struct Place {
    site: Site,
    pins: Pins,
    mode: TcMode,
    targets: Vec<Target>,
    /// By the time that programs were loaded for.
    attachments: BTreeMap<u32, Attachments>,
    attached: Option<u32>,
}

/// The wire executor: one per thread, which it moves about between namespaces of its own.
pub struct Wire {
    /// Holds the maps, and reads them.
    maps: Kernel,
    home: link::Space,
    world: World,
    tc: Place,
    xdp: Place,
    markers: u32,
}

impl Wire {
    /// Makes nodes, with programs loaded and empty maps. TC's are attached by TCX.
    pub fn start() -> Result<Self> {
        Self::start_with("wire", TcMode::Tcx)
    }

    /// The same as before Linux 6.6: TC's programs are filters of `clsact`.
    pub fn start_with_filters() -> Result<Self> {
        Self::start_with("clsact", TcMode::Clsact)
    }

    fn start_with(name: &str, tc: TcMode) -> Result<Self> {
        stay_on_one_cpu()?;
        let name = format!("{name}-{}", process::id());
        let maps = Kernel::start_as(&name, size::FLOWS)?;
        let home = link::Space::current()?;
        let place = |suffix, sinks, mode, xdp: &[u32]| -> Result<Place> {
            let pins = Pins(PinFolder::new(&format!("{name}-{suffix}")));
            pins.0.create()?;
            Ok(Place {
                site: Site::make(sinks, xdp)?,
                pins,
                mode,
                targets: targets(xdp),
                attachments: BTreeMap::new(),
                attached: None,
            })
        };
        Ok(Self {
            home,
            world: World::default(),
            tc: place("tc", Sinks::BehindTc, tc, &[])?,
            // There is no way to come before TCX.
            xdp: place(
                "xdp",
                Sinks::BeforeTc,
                TcMode::Clsact,
                &[device::UP0, device::UP1],
            )?,
            maps,
            markers: 0,
        })
    }
}

/// The executor's own times are those of one queue of frames: what was sent first comes out first.
fn stay_on_one_cpu() -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or_default());
    let mut one = CpuSet::new();
    one.set(first.context("no CPU is allowed")?)?;
    sched_setaffinity(this, &one).context("staying on one CPU")
}

/// All devices, with XDP at some.
fn targets(xdp: &[u32]) -> Vec<Target> {
    let all = device::ALL.into_iter().chain([device::LO]);
    let target = |ifindex| Target {
        ifindex,
        name: if ifindex == device::LO {
            "lo".to_owned()
        } else {
            format!("c{ifindex}")
        },
        xdp: if xdp.contains(&ifindex) {
            XdpMode::Native
        } else {
            XdpMode::Off
        },
        hardware: false,
        xdp_state: XdpState::None,
    };
    all.map(target).collect()
}

impl Place {
    /// Attaches the programs that believe in this time, in place of the others.
    fn attach(&mut self, tick: u32, maps: &PinFolder) -> Result<()> {
        if self.attached == Some(tick) {
            return Ok(());
        }
        if !self.attachments.contains_key(&tick) {
            let object = embedded_object().context(
                "this build has no kernel object: `cargo xtask setup` installs what it needs",
            )?;
            let globals = Globals {
                fixed_tick: tick,
                ..Globals::default()
            };
            let programs = Programs::load(object, maps, globals)?;
            let attachments = Attachments::new(self.pins.0.clone(), programs, self.mode);
            self.attachments.insert(tick, attachments);
        }
        let attachments = self.attachments.get_mut(&tick).context("just made")?;
        for (target, attached) in self.targets.iter().zip(attachments.sync(&self.targets)?) {
            let native = target.xdp == XdpMode::Native;
            ensure!(
                attached.problems.is_empty() && (attached.xdp == "native") == native,
                "programs are not where they belong: {attached:?}"
            );
        }
        self.attached = Some(tick);
        Ok(())
    }

    /// What has come out since this was last asked, and where.
    fn seen(&self) -> Result<Vec<(Exit, Vec<u8>)>> {
        let mut seen = Vec::new();
        for (receiver, outside) in [(&self.site.stack, false), (&self.site.outside, true)] {
            while let Some((index, frame)) = receiver.next()? {
                let from = index.wrapping_sub(SINK);
                // Other devices than sinks send too, and the node tells of the groups it is in.
                if index < SINK || frame.starts_with(&[0x33, 0x33, 0, 0, 0, 0x16]) {
                    continue;
                }
                let exit = if outside {
                    Exit::Far(from)
                } else {
                    Exit::Stack(from)
                };
                seen.push((exit, frame));
            }
        }
        Ok(seen)
    }

    /// Sends a frame by a device, or lets it come in there.
    fn send(&self, hook: Hook, ifindex: u32, frame: &[u8]) -> Result<()> {
        match hook {
            Hook::Egress => self.site.own.send(ifindex, frame),
            Hook::Xdp | Hook::Ingress => self.site.far.send(ifindex + FAR, frame),
        }
    }

    /// All that comes out before a frame which goes the same way and is nobody's: so all that was sent
    /// before has come out, or will not.
    fn flush(&self, hook: Hook, ifindex: u32, number: u32) -> Result<Vec<(Exit, Vec<u8>)>> {
        let marker = marker(hook, ifindex, number);
        self.send(hook, ifindex, &marker)?;
        let end = Instant::now() + PATIENCE;
        let way = Exit::of(hook, ifindex, Action::Pass);
        let mut before = Vec::new();
        loop {
            let mut seen = self.seen()?;
            let came = seen.iter().position(|(_, frame)| *frame == marker);
            if let Some(at) = came {
                let (exit, _) = seen.remove(at);
                ensure!(exit == way, "a frame of nobody's came out at {exit:?}");
                before.extend(seen);
                return Ok(before);
            }
            before.extend(seen);
            ensure!(
                socket::wait([&self.site.stack, &self.site.outside], end)?,
                "a frame of nobody's did not come out; these did: {before:02x?}"
            );
        }
    }
}

/// A frame that is none of ours: of a type that is kept for experiments (IEEE 802, 0x88b5).
fn marker(hook: Hook, ifindex: u32, number: u32) -> Vec<u8> {
    let own = place::mac(ifindex);
    let other = [2, 0xdd, 0, 0, 0, 1];
    let (to, from) = match hook {
        Hook::Egress => (other, own),
        Hook::Xdp | Hook::Ingress => (own, other),
    };
    let mut frame = [to, from].concat();
    frame.extend([0x88, 0xb5]);
    frame.extend(number.to_be_bytes());
    frame.resize(60, 0);
    frame
}

/// Whom a frame asks for: an ARP request or a neighbour solicitation.
fn asked_for(frame: &[u8]) -> Option<String> {
    match frame.get(12..14)? {
        [8, 6] => {
            let target: [u8; 4] = frame.get(38..42)?.try_into().ok()?;
            Some(std::net::Ipv4Addr::from(target).to_string())
        }
        [0x86, 0xdd] if frame.get(20) == Some(&58) && frame.get(54) == Some(&135) => {
            let target: [u8; 16] = frame.get(62..78)?.try_into().ok()?;
            Some(std::net::Ipv6Addr::from(target).to_string())
        }
        _ => None,
    }
}

impl Wire {
    fn place(&self, hook: Hook) -> &Place {
        match hook {
            Hook::Xdp => &self.xdp,
            Hook::Ingress | Hook::Egress => &self.tc,
        }
    }

    fn flush(&mut self, hook: Hook, ifindex: u32) -> Result<Vec<(Exit, Vec<u8>)>> {
        self.markers += 1;
        self.place(hook).flush(hook, ifindex, self.markers)
    }

    /// What comes of a frame.
    fn play(&mut self, hook: Hook, ifindex: u32, frame: &[u8]) -> Result<Vec<(Exit, Vec<u8>)>> {
        let earlier = self.place(hook).seen()?;
        ensure!(earlier.is_empty(), "these came out unasked: {earlier:02x?}");
        self.place(hook).send(hook, ifindex, frame)?;
        let mut seen = Vec::new();
        // A frame passes two devices at most, and each may have a queue of its own.
        for _ in 0..3 {
            seen.extend(self.flush(hook, ifindex)?);
        }
        // A frame may wait for its next hop's address, for which the kernel asks.
        if let [(Exit::Far(to), question)] = seen.as_slice()
            && question != frame
            && let Some(whom) = asked_for(question)
        {
            let answered = self.answer(hook, *to, &whom)?;
            return Ok(vec![(Exit::Far(*to), answered)]);
        }
        Ok(seen)
    }

    /// Tells the node a neighbour's address: the frame that waited for it, without its link-layer
    /// addresses, which must be the right ones.
    fn answer(&self, hook: Hook, to: u32, whom: &str) -> Result<Vec<u8>> {
        let place = self.place(hook);
        let mac = [2, 0xbb, 0, 0, 0, 99];
        let about = format!("{whom} dev c{to}");
        place.site.node.enter()?;
        link::run(
            "ip",
            &format!("neigh replace {about} lladdr 02:bb:00:00:00:63 nud permanent"),
        )?;
        let end = Instant::now() + PATIENCE;
        let mut seen = place.seen()?;
        while seen.is_empty() {
            ensure!(
                socket::wait([&place.site.stack, &place.site.outside], end)?,
                "the frame that waited for {whom} did not come"
            );
            seen = place.seen()?;
        }
        link::run("ip", &format!("neigh del {about}"))?;
        let [(Exit::Far(at), frame)] = seen.as_mut_slice() else {
            bail!("more than what waited for {whom}: {seen:02x?}");
        };
        let addresses = [mac, place::mac(to)].concat();
        ensure!(
            *at == to && frame.starts_with(&addresses),
            "what waited for {whom}: {frame:02x?}"
        );
        frame.splice(..12, [0; 12]);
        Ok(std::mem::take(frame))
    }
}

impl Executor for Wire {
    fn load(&mut self, world: &World) -> Result<()> {
        self.home.enter()?;
        self.maps.load(world)?;
        self.world = world.clone();
        for place in [&mut self.tc, &mut self.xdp] {
            place.site.node.enter()?;
            place.site.namespace.load(world)?;
        }
        // A port is a device of the namespace of whoever writes it: of the node with XDP, which the
        // thread is at now.
        self.maps.write_transmit_ports(world)
    }

    fn run(&mut self, hook: Hook, ifindex: u32, frame: &[u8]) -> Result<Outcome> {
        let tick = self.world.tick;
        let place = match hook {
            Hook::Xdp => &mut self.xdp,
            Hook::Ingress | Hook::Egress => &mut self.tc,
        };
        place.site.node.enter()?;
        place.attach(tick, self.maps.folder())?;
        // What was counted before is not this frame's.
        let (before, _) = self.maps.results()?;
        let seen = self.play(hook, ifindex, frame)?;
        let (mut flows, mut counters) = self.maps.results()?;
        if hook == Hook::Ingress && is_tagged(frame) {
            count_tag(&before, &mut flows, &mut counters);
        }
        let (exit, frame) = match seen.as_slice() {
            [] => (Exit::Nowhere, Vec::new()),
            [one] => one.clone(),
            more => bail!("{} frames came out of one: {more:02x?}", more.len()),
        };
        Ok(Outcome {
            verdict: Seen::Exit(exit),
            frame,
            flows,
            affinities: self.maps.affinities()?,
            counters,
        })
    }

    fn verify(&mut self) -> Result<()> {
        self.maps.verify()
    }
}

fn is_tagged(frame: &[u8]) -> bool {
    matches!(frame.get(12..14), Some([0x81, 0] | [0x88, 0xa8]))
}

/// Counts the tag that the kernel kept beside the frame, as it is counted where the tag is in it.
fn count_tag(
    before: &BTreeMap<Tuple, FlowRecord>,
    flows: &mut BTreeMap<Tuple, FlowRecord>,
    counters: &mut BTreeMap<u32, Counter>,
) {
    const TAG: u64 = 4;
    for (key, flow) in flows {
        let packets = before.get(key).map_or(0, |flow| flow.packets);
        flow.bytes += TAG * flow.packets.saturating_sub(packets);
    }
    for counter in counters.values_mut().filter(|counter| counter.bytes > 0) {
        counter.bytes += TAG * counter.packets;
    }
}
