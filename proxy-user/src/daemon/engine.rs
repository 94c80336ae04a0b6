//! One round after the other: facts, plan, difference, operations, attachments.
//!
//! All of it blocks, on system calls that the kernel answers at once.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use proxy_common::abi::{DeviceRole, MAPS};

use super::look::Look;
use super::unconfirmed::{self, Unconfirmed};
use super::view::{Current, Pending, Sync, View};
use crate::config::Config;
use crate::dataplane::apply::{self, Outcome};
use crate::dataplane::attach::{
    AttachError, Attached, AttachedSockets, Attachments, Sockets, TcMode,
};
use crate::dataplane::flows::{Clock, SweepError, Sweeper, Swept, Totals};
use crate::dataplane::load::{Globals, LoadError, Programs, embedded_object};
use crate::dataplane::maps::MapError;
use crate::dataplane::observe::{self, ObserveError};
use crate::dataplane::upgrade::{self, UpgradeError};
use crate::dataplane::{Features, MapSizes, Maps, PinFolder, Ticks, jiffies_per_second, limits};
use crate::kernel::devices;
use crate::kernel::netlink::Netlink;
use crate::kernel::sysctl::{Finding, Sysctl};
use crate::model::Notice;
use crate::pod_network::PodNetwork;
use crate::reconcile::{
    Allocation, Facts, Observed, Op, Options, Planner, QUARANTINE, clear_filter, diff, diff_part,
};
use crate::source::snapshot::Snapshot;

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// This process may not use bpf(2), or cannot know the time.
    #[error(
        "cannot ask the kernel what it can do: {0} (root, or CAP_BPF with CAP_NET_ADMIN, is needed)"
    )]
    Probe(#[source] io::Error),
    /// Maps.
    #[error(transparent)]
    Maps(#[from] MapError),
    /// Pins of another version.
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
    /// Programs.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// What the maps hold.
    #[error(transparent)]
    Observe(#[from] ObserveError),
}

/// Why a round could not be finished.
#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    /// Devices and addresses.
    #[error("cannot read devices and addresses: {0}")]
    Devices(#[source] io::Error),
    /// What the maps hold.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// Attachments as a whole.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// Everything that a round needs.
#[derive(Debug)]
pub struct Engine {
    config: Arc<Config>,
    maps: Arc<Maps>,
    netlink: Netlink,
    sysctl: Sysctl,
    attachments: Attachments,
    sockets: Sockets,
    allocation: Allocation,
    observed: Observed,
    planner: Planner,
    sweeper: Sweeper,
    clock: Clock,
    /// What the source gave.
    given: Arc<Snapshot>,
    /// That, with what pods' networks add.
    snapshot: Arc<Snapshot>,
    pods: PodNetwork,
    unconfirmed: Unconfirmed,
    /// What is desired has changed since it was planned.
    changed: bool,
    /// A table was full.
    exhausted: bool,
    /// When numbers that rest were last looked at.
    released: Option<Instant>,
    /// By which facts the maps hold what was planned; none: all of them must be compared.
    written: Option<Facts>,
    notices: Arc<Vec<Notice>>,
    /// Devices whose settings have been looked after.
    settled: BTreeSet<(u32, String)>,
    rounds: u64,
    view: Arc<View>,
}

impl Engine {
    /// Adopts or makes maps, loads programs, reads what the maps hold. Attaches nothing yet: that
    /// is the first round's, when the maps are right.
    pub fn start(config: Arc<Config>) -> Result<Self, StartError> {
        let object = embedded_object()?;
        limits::lift_locked_memory();
        let features = Features::probe().map_err(StartError::Probe)?;
        let clock = Clock {
            hz: jiffies_per_second().map_err(StartError::Probe)?,
        };
        let ticks = Ticks::load().map_err(StartError::Probe)?;
        let folder = PinFolder::new(&config.instance);
        let sizes: MapSizes = MAPS
            .iter()
            .filter_map(|spec| Some((spec.name.to_owned(), config.maps.entries(spec.name)?)))
            .collect();
        upgrade::take_over(&folder)?;
        let maps = Arc::new(Maps::open_or_create(&folder, &sizes)?);
        let globals = Globals {
            fixed_tick: 0,
            l4_csum_ipv6: features.l4_csum_ipv6,
        };
        let programs = Programs::load(object, &folder, globals)?;
        let tc = if features.tcx {
            TcMode::Tcx
        } else {
            TcMode::Clsact
        };
        let observed = observe::observe(&maps)?;
        let allocation = Allocation::restore(&observed, config.maps.capacity(), Instant::now());
        let unconfirmed = Unconfirmed::all(&observed);
        tracing::info!(
            instance = config.instance,
            node = config.node,
            hz = clock.hz,
            ?tc,
            services = observed.objects.len(),
            backends = observed.backends.len(),
            "maps and programs are in the kernel"
        );
        let view = Arc::new(View::new(
            first_picture(&config, features),
            Arc::clone(&maps),
            clock,
            folder.clone(),
        ));
        let mut pods = PodNetwork::default();
        pods.set_config(&config);
        Ok(Self {
            netlink: Netlink::connect().map_err(StartError::Probe)?,
            sysctl: Sysctl::default(),
            sockets: Sockets::new(folder.clone(), object),
            attachments: Attachments::new(folder, programs, tc),
            allocation,
            observed,
            planner: Planner::default(),
            sweeper: Sweeper::new(config.timeouts, clock, ticks),
            clock,
            given: Arc::default(),
            snapshot: Arc::default(),
            pods,
            unconfirmed,
            changed: true,
            exhausted: false,
            released: None,
            written: None,
            notices: Arc::default(),
            settled: BTreeSet::new(),
            rounds: 0,
            view,
            maps,
            config,
        })
    }

    /// What others may know.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view)
    }

    /// Goes by another configuration from the next round on.
    pub fn set_config(&mut self, config: Arc<Config>) {
        self.sweeper.set_timeouts(config.timeouts);
        self.settled.clear();
        self.pods.set_config(&config);
        self.config = config;
        self.merge();
    }

    /// Takes over what the source gave.
    pub fn set_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.view
            .proceed(|progress| progress.triggered(&snapshot.triggers));
        self.given = snapshot;
        self.merge();
    }

    fn merge(&mut self) {
        self.snapshot = self.pods.with_host_ports(&self.given, &self.config.node);
        self.changed = true;
    }

    /// Reads the maps anew, so that the next round finds what others have changed in them. That
    /// round also compiles everything anew and compares all of it.
    pub fn reread(&mut self) -> Result<(), RoundError> {
        self.planner.forget();
        self.written = None;
        let observed = observe::observe(&self.maps)?;
        if observed != self.observed {
            tracing::warn!("the maps were changed by somebody else; they are put right");
            self.observed = observed;
        }
        Ok(())
    }

    /// Makes the kernel's side what is desired. Says whether something is still to be done.
    pub fn round(&mut self) -> Result<bool, RoundError> {
        let began = Instant::now();
        self.view
            .proceed(|progress| progress.begin(began, SystemTime::now()));
        let mut outcome = self.write_at_once()?;
        if self.pods.read() {
            self.merge();
        }
        let mut look = self.look()?;
        outcome = outcome.then(self.write(&look.facts)?);
        let mut attached = self.attachments.sync(&look.targets)?;
        // An attachment may change what a device can do, which is a fact.
        let after = self.look()?;
        if after.facts != look.facts {
            look = after;
            outcome = outcome.then(self.write(&look.facts)?);
            attached = self.attachments.sync(&look.targets)?;
        }
        let sockets = self.sockets.sync(&self.config.sockets);
        let Look {
            facts,
            mut findings,
            ..
        } = look;
        findings.extend(self.settle(&facts));
        findings.extend(self.pods.attend(
            &self.config,
            &self.snapshot.state,
            &facts,
            &attached,
            (&mut self.netlink, &self.sysctl),
        ));
        let unfinished = !outcome.failures.is_empty()
            || outcome.waiting > 0
            || attached.iter().any(|device| !device.problems.is_empty())
            || sockets
                .as_ref()
                .is_some_and(|sockets| !sockets.problems.is_empty());
        self.picture(began, facts, (attached, sockets), findings, &outcome);
        Ok(unfinished)
    }

    fn look(&mut self) -> Result<Look, RoundError> {
        let devices = devices::list(&mut self.netlink).map_err(RoundError::Devices)?;
        Ok(Look::at(&self.config, &devices, self.clock))
    }

    /// What the source has given goes into the maps before anything else is looked at: of what has
    /// happened to devices meanwhile the kernel tells, and the round goes on with a look at them.
    pub fn write_at_once(&mut self) -> Result<Outcome, RoundError> {
        match self.written.clone() {
            Some(facts) if self.changed => self.write(&facts),
            _ => Ok(Outcome::default()),
        }
    }

    /// Plans, and writes what differs; does nothing if nothing can.
    fn write(&mut self, facts: &Facts) -> Result<Outcome, RoundError> {
        let now = Instant::now();
        let same = self.written.as_ref() == Some(facts);
        // Who looks for numbers that rest takes his time, unless somebody waits for them.
        let rested = (self.exhausted || !self.changed) && self.release(now);
        if same && !self.changed && !(rested && self.exhausted) {
            return Ok(Outcome::default());
        }
        if !same {
            // The kernel takes a device that goes out of the maps that XDP sends by.
            observe::observe_devices(&self.maps, &mut self.observed)?;
        }
        let options = Options {
            held: self.unconfirmed.held(&self.snapshot.state),
            ..self.config.options()
        };
        let numbers = &mut self.allocation;
        let state = &self.snapshot.state;
        let update = self.planner.update(state, facts, &options, numbers, now);
        self.planner.carry(&self.observed, &options.held);
        let plan = self.planner.plan();
        let ops = match self.written {
            Some(_) => diff_part(&self.observed, plan, &update.extent),
            None => diff(&self.observed, plan),
        };
        let outcome = apply::apply(&self.maps, &ops, &mut self.observed);
        for failure in outcome.failures.iter().take(10) {
            tracing::warn!(op = ?failure.op, error = %failure.source, "a map could not be written; will be tried again");
        }
        let whole = outcome.failures.is_empty() && outcome.waiting == 0;
        self.written = whole.then(|| facts.clone());
        self.changed = false;
        let mut report = update.report;
        self.exhausted = report.exhausted;
        report.notices.extend(unconfirmed::notice(&options.held));
        self.notices = Arc::new(self.all_notices(report.notices));
        Ok(outcome)
    }

    /// Gives out numbers again that have rested, if there are any. Says whether there were.
    fn release(&mut self, now: Instant) -> bool {
        let due = self.next_release().is_some_and(|at| at <= now);
        if due {
            self.allocation.release(&self.observed, now);
            self.released = Some(now);
        }
        due
    }

    /// The remarks of compiling and those of the source.
    fn all_notices(&self, mut notices: Vec<Notice>) -> Vec<Notice> {
        for notice in &mut notices {
            self.snapshot.place(notice);
        }
        notices.extend(self.snapshot.notices.iter().cloned());
        notices.sort();
        notices.dedup();
        notices
    }

    /// Looks after the settings of this node.
    fn settle(&mut self, facts: &Facts) -> Vec<Finding> {
        for device in facts.devices.values() {
            let place = (device.ifindex, device.name.clone());
            if device.role == DeviceRole::Unknown || self.settled.contains(&place) {
                continue;
            }
            let (setting, changed) = if device.role == DeviceRole::Loopback {
                (
                    "accept_local=1, route_localnet=1",
                    self.sysctl.accept_local(&device.name),
                )
            } else {
                (
                    "rp_filter=2 (loose)",
                    self.sysctl.loosen_reverse_path(&device.name),
                )
            };
            match changed {
                Ok(changed) => {
                    if changed {
                        tracing::info!(device = %device.name, setting, "set");
                    }
                    self.settled.insert(place);
                }
                Err(error) => tracing::warn!(%error, setting, "not set"),
            }
        }
        self.settled.retain(|(ifindex, name)| {
            facts
                .devices
                .get(ifindex)
                .is_some_and(|device| device.name == *name)
        });
        match self.sysctl.reserve_ports(&self.config.nat_ports) {
            Ok(true) => {
                tracing::info!(ports = ?self.config.nat_ports, "reserved ports for translation");
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "ports for translation are not reserved"),
        }
        self.sysctl.findings(
            !self.planner.plan().services_v4.is_empty(),
            !self.planner.plan().services_v6.is_empty(),
        )
    }

    fn picture(
        &mut self,
        began: Instant,
        facts: Facts,
        (attached, sockets): (Vec<Attached>, Option<AttachedSockets>),
        findings: Vec<Finding>,
        outcome: &Outcome,
    ) {
        self.rounds += 1;
        let pending = outcome.failures.iter().map(|failure| Pending {
            operation: format!("{:?}", failure.op),
            error: failure.source.to_string(),
        });
        let sync = Sync {
            round: self.rounds,
            at: SystemTime::now(),
            took: began.elapsed(),
            done: outcome.done,
            pending: outcome.failures.len() + outcome.waiting,
        };
        if outcome.done > 0 || sync.pending > 0 {
            tracing::info!(
                round = sync.round,
                operations = sync.done,
                pending = sync.pending,
                took = ?sync.took,
                "maps written"
            );
        }
        self.view.proceed(|progress| {
            progress.look_at_node(&self.snapshot.state, &self.config.node);
            progress.end(sync.took, sync.pending == 0, sync.at);
        });
        if let Some(api) = &self.snapshot.api
            && sync.pending == 0
        {
            api.is_in_force(&self.snapshot.told);
        }
        let pending: Vec<Pending> = pending.take(100).collect();
        let known = self.view.current();
        for finding in findings.iter().filter(|f| !known.findings.contains(f)) {
            tracing::warn!(problem = %finding.problem, remedy = %finding.remedy, "services may not work");
        }
        drop(known);
        let snapshot = Arc::clone(&self.snapshot);
        let services = self.planner.plan().objects.len();
        let backends = self.allocation.live_backends();
        let (config, notices) = (Arc::clone(&self.config), Arc::clone(&self.notices));
        self.view.change(move |current| {
            current.config = config;
            current.snapshot = snapshot;
            current.services = services;
            current.backends = backends;
            current.notices = notices;
            current.facts = Arc::new(facts);
            current.attached = attached;
            current.sockets = sockets;
            current.findings = findings;
            current.sync = Some(sync);
            current.pending = pending;
        });
    }

    /// When numbers that rest can be given out again; none: nothing waits for that. Not sooner after
    /// the last time than they rest: where changes follow each other some have always just rested.
    #[must_use]
    pub fn next_release(&self) -> Option<Instant> {
        let rested = self.allocation.next_release()?;
        let earliest = self.released.map(|at| at + QUARANTINE);
        earliest.max(Some(rested))
    }

    /// How long until the next sweep.
    #[must_use]
    pub const fn sweep_interval(&self) -> Duration {
        self.sweeper.interval()
    }

    /// Removes connections that are over, and clears what the address filter needs no more.
    pub fn sweep(&mut self) -> Result<(), SweepError> {
        let backends = &self.observed.backends;
        let alive = |index: u32, generation: u32| {
            backends
                .get(&index)
                .is_some_and(|backend| backend.generation == generation)
        };
        let (swept, filter) = self.sweeper.sweep(&self.maps, alive)?;
        let plan = self.planner.plan();
        let services = &plan.objects;
        self.sweeper.retain(|id| services.contains_key(&id), alive);
        let counted = self.sweeper.totals().services.keys();
        let name = |id: &u32| Some((*id, Arc::clone(services.get(id)?)));
        let names = Arc::new(counted.filter_map(name).collect());
        let ops: Vec<Op> = clear_filter(&self.observed, plan, &filter);
        // What fails is found again by the next sweep.
        apply::apply(&self.maps, &ops, &mut self.observed);
        let totals = Arc::new(self.sweeper.totals().clone());
        self.view.change(|current| {
            if swept.pressure > current.swept.pressure {
                tracing::warn!(
                    pressure = ?swept.pressure,
                    entries_v4 = swept.entries_v4,
                    entries_v6 = swept.entries_v6,
                    "the flow tables fill up; connections that are over are removed sooner"
                );
            }
            current.swept = swept;
            current.totals = totals;
            current.names = names;
        });
        Ok(())
    }
}

fn first_picture(config: &Arc<Config>, features: Features) -> Current {
    Current {
        config: Arc::clone(config),
        config_error: None,
        started: SystemTime::now(),
        features,
        snapshot: Arc::default(),
        services: 0,
        backends: 0,
        notices: Arc::default(),
        unserved: Arc::default(),
        facts: Arc::default(),
        attached: Vec::new(),
        sockets: None,
        findings: Vec::new(),
        sync: None,
        pending: Vec::new(),
        swept: Swept::default(),
        totals: Arc::new(Totals::default()),
        names: Arc::default(),
    }
}
