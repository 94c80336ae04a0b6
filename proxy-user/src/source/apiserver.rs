//! The API server of a cluster.
//!
//! Services, their slices and Nodes, and the Pods of this node, are listed once and watched from
//! then on ([`watch`]). The checked objects are kept ([`table`]), nothing else of them is. A list
//! counts when all of it is there: what is missing from it was deleted meanwhile.
//!
//! What the API server said last stays in force while it says nothing. After a start that is what
//! was saved ([`saved`]) and what the kernel's maps hold: nothing is taken away before every kind has
//! been listed once.

mod connect;
mod events;
mod health;
mod saved;
mod table;
mod watch;

use std::{
    collections::BTreeMap,
    ops::Bound,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use self::{
    saved::Saved,
    table::{Known, Table},
};
use super::{
    assemble::{Assembly, Policy},
    snapshot::{Counts, Snapshot, Trigger},
};
use crate::model::{
    Here, Kind, Notice, ObjectRef, ServiceName, ServicePort, Severity, State, Unknown, select,
};
pub use connect::{Access, AccessError};
pub use events::{Events, Reason};
pub use health::{Health, KindHealth, Told};
pub use saved::{SaveError, SaveJob};
pub use table::Broken;
pub use watch::{Change, watch};

/// The kinds that are watched.
pub const KINDS: [Kind; 4] = [Kind::Node, Kind::Service, Kind::EndpointSlice, Kind::Pod];

/// Triggers that are kept from one snapshot to the next.
const TRIGGERS: usize = 16_384;

/// The Service by which pods reach the API server itself.
const OWN_SERVICE: (&str, &str) = ("default", "kubernetes");

/// All objects of interest, as the API server gave them last.
#[derive(Debug)]
pub struct ApiServer {
    assembly: Assembly,
    tables: BTreeMap<Kind, Table>,
    health: Arc<Health>,
    /// Whether every kind has been listed once since the start.
    complete: bool,
    /// Ports of the API server's own Service that led somewhere last.
    own: BTreeMap<ServiceName, Arc<ServicePort>>,
    saved: Saved,
    /// How many objects were taken over, or wait for the rest of their list.
    told: Told,
    /// What has triggered changes since the last snapshot.
    triggers: Vec<Trigger>,
    /// What happened before has been waited for in vain by nobody.
    since: SystemTime,
}

impl ApiServer {
    /// Begins with what was saved in this directory. Blocks on the disk.
    #[must_use]
    pub fn new(policy: Policy, health: Arc<Health>, state: &Path) -> Self {
        let mut tables: BTreeMap<Kind, Table> = BTreeMap::new();
        for kind in KINDS {
            tables.insert(kind, Table::default());
        }
        let (saved, objects) = Saved::load(state, health.server(), &policy.node);
        for (object, content) in objects {
            if let Some(table) = tables.get_mut(&object.kind) {
                table.begin_with(object, Known::new(content, Vec::new()));
            }
        }
        Self {
            assembly: Assembly::new(policy),
            tables,
            health,
            complete: false,
            own: BTreeMap::new(),
            saved,
            told: Told::new(),
            triggers: Vec::new(),
            since: SystemTime::now(),
        }
    }

    /// Whether every kind has been listed once since the start.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.complete
    }

    /// Takes over a change; says whether a snapshot would differ.
    pub fn apply(&mut self, change: Change) -> bool {
        let Some(table) = self.tables.get_mut(&change.kind()) else {
            return false;
        };
        if let Change::Is(object, _) | Change::Gone(object) = &change {
            *self.told.entry(object.kind).or_default() += 1;
        }
        match change {
            Change::Restart(_) => {
                table.restart();
                false
            }
            Change::Is(object, Ok(known)) => {
                let trigger = known.trigger;
                let differs = table.put(object, known);
                let trigger = trigger.filter(|trigger| differs && trigger.at >= self.since);
                if self.triggers.len() < TRIGGERS {
                    self.triggers.extend(trigger);
                }
                differs
            }
            Change::Is(object, Err(broken)) => table.put_broken(object, broken),
            Change::Gone(object) => table.remove(&object),
            Change::Listed(_) if self.complete => table.take_over(),
            Change::Listed(_) => {
                table.listed = true;
                if !self.tables.values().all(|table| table.listed) {
                    return false;
                }
                // Services without their slices would refuse every client.
                for table in self.tables.values_mut() {
                    table.take_over();
                }
                self.complete = true;
                true
            }
        }
    }

    /// Everything that is desired now.
    pub fn snapshot(&mut self) -> Snapshot {
        let objects = self.tables.values().flat_map(Table::known);
        let objects = objects.map(|(object, known)| (object, &known.content));
        let (mut state, mut notices) = self.assembly.assemble(objects);
        if !self.complete {
            state.unknown.push(Unknown::Anything);
        }
        for table in self.tables.values() {
            table.tell(&mut notices, &mut state.unknown);
        }
        self.keep_own(&mut state, &mut notices);
        notices.extend(self.outage());
        state.unknown.sort();
        state.unknown.dedup();
        let of = |count: fn(&Table) -> usize| self.tables.values().map(count).sum();
        let counts = Counts {
            objects: of(Table::len),
            stale: of(Table::stale),
            ..Counts::default()
        };
        let mut snapshot = Snapshot {
            state: Arc::new(state),
            notices,
            api: Some(Arc::clone(&self.health)),
            told: self.told.clone(),
            triggers: std::mem::take(&mut self.triggers),
            ..Snapshot::default()
        };
        snapshot.count(counts);
        snapshot
    }

    /// The way to the API server outlives a moment without endpoints, which there is while API
    /// servers start: it may be the way on which better news would come.
    fn keep_own(&mut self, state: &mut State, notices: &mut Vec<Notice>) {
        let leads = |port: &ServicePort| {
            let endpoints: Vec<_> = port.endpoints.iter().collect();
            // Whether anybody serves is the same wherever one looks from.
            !select(&endpoints, Here::default()).serving.is_empty()
        };
        let prefix = format!("{}/{}:", OWN_SERVICE.0, OWN_SERVICE.1);
        let from = (Bound::Included(prefix.as_str()), Bound::Unbounded);
        let own = state.services.range::<str, _>(from);
        let leading: BTreeMap<_, _> = own
            .take_while(|(name, _)| name.shared().starts_with(&prefix))
            .filter(|(_, port)| leads(port))
            .map(|(name, port)| (name.clone(), Arc::clone(port)))
            .collect();
        if !leading.is_empty() {
            self.own = leading;
            return;
        }
        let object = ObjectRef {
            kind: Kind::Service,
            namespace: OWN_SERVICE.0.to_owned(),
            name: OWN_SERVICE.1.to_owned(),
        };
        if self.own.is_empty() {
            // What the maps have of it was right once.
            let slices = ObjectRef {
                kind: Kind::EndpointSlice,
                ..object
            };
            state.unknown.push(Unknown::Object {
                object: slices,
                service: Some(OWN_SERVICE.1.to_owned()),
            });
            return;
        }
        for (name, last) in &self.own {
            let port = match state.services.get(name) {
                None => Arc::clone(last),
                Some(now) => Arc::new(ServicePort {
                    endpoints: last.endpoints.clone(),
                    ..(**now).clone()
                }),
            };
            state.services.insert(name.clone(), port);
        }
        let message = "no endpoint is ready: those that were last stay, since this may be the way \
                       to the API server; look at the API servers if it lasts";
        notices.push(Notice::new(Severity::Warning, &object, "", message));
    }

    fn outage(&self) -> Option<Notice> {
        let failing = self.health.failing()?;
        Some(Notice {
            severity: Severity::Error,
            origin: None,
            object: None,
            field: String::new(),
            message: format!("{failing} (what it said last stays in force)"),
        })
    }

    /// What must be saved; none: nothing, or not yet.
    #[must_use]
    pub fn unsaved(&self) -> Option<SaveJob> {
        // Before every kind was listed there is nothing better than what was saved.
        if !self.complete {
            return None;
        }
        let objects = self.tables.values().flat_map(Table::known);
        Some(
            self.saved
                .job(objects.map(|(_, known)| Arc::clone(&known.content))),
        )
    }

    /// Where objects are saved.
    #[must_use]
    pub fn saved_in(&self) -> &PathBuf {
        self.saved.path()
    }
}

#[cfg(test)]
pub(crate) mod fake;
