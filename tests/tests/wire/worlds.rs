//! The worlds that cases share, and those they have to themselves.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result, anyhow};
use proxy_tests::lab::{
    cluster::{Cluster, Hook, binary},
    layout::Layout,
    manifest::{self, Service},
    world::World,
};

use crate::services;

/// The program with the servers.
pub(crate) const LAB: &str = env!("CARGO_BIN_EXE_lab");

/// Makes a world with servers in its pods.
pub(crate) fn build(layout: Layout) -> Result<World> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut world = World::build(&format!("t{}x{number}", std::process::id()), layout)?;
    world.serve(Path::new(LAB))?;
    Ok(world)
}

/// Makes a world with Causeway on its nodes, which serves `services`; each has a file of its own.
pub(crate) fn serve(layout: Layout, hook: Hook, services: &[Service]) -> Result<Cluster> {
    let world = build(layout)?;
    let directory = Cluster::manifests_of(&world)?;
    manifest::write(&directory.join("nodes.yaml"), &manifest::nodes(layout))?;
    manifest::write(
        &directory.join("pods.yaml"),
        &manifest::pods(layout, &[1, 3]),
    )?;
    for service in services {
        manifest::write(&directory.join(file(service)), &service.objects(layout))?;
    }
    Cluster::start(world, &binary()?, hook)
}

/// The file of a service among the manifests.
pub(crate) fn file(service: &Service) -> PathBuf {
    PathBuf::from(format!("service-{}.yaml", service.name))
}

/// A world that is made when first asked for, or why it could not be made.
type Slot = Option<Result<Cluster, String>>;

/// Worlds that are made when first asked for.
#[derive(Debug, Default)]
pub(crate) struct Worlds {
    changing: [Mutex<Slot>; 2],
    plain: OnceLock<Result<World, String>>,
    serving: BTreeMap<&'static str, OnceLock<Result<Cluster, String>>>,
}

impl Worlds {
    pub(crate) fn new() -> Self {
        let slots = services::WORLDS.map(|(name, ..)| (name, OnceLock::new()));
        Self {
            changing: Default::default(),
            plain: OnceLock::new(),
            serving: slots.into(),
        }
    }

    /// The world without Causeway.
    pub(crate) fn plain(&self) -> Result<&World> {
        let made = self
            .plain
            .get_or_init(|| build(Layout::STANDARD).map_err(|error| format!("{error:#}")));
        made.as_ref()
            .map_err(|error| anyhow!("the world could not be made: {error}"))
    }

    /// A world whose manifests one case at a time may change, with the hook of this name.
    pub(crate) fn changing<T>(
        &self,
        name: &str,
        work: impl FnOnce(&Cluster) -> Result<T>,
    ) -> Result<T> {
        let [tc, xdp] = &self.changing;
        let (slot, hook) = match name {
            "xdp" => (xdp, Hook::Xdp),
            _ => (tc, Hook::Tc),
        };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let made = slot.get_or_insert_with(|| {
            serve(Layout::STANDARD, hook, &[]).map_err(|error| format!("{error:#}"))
        });
        match made {
            Ok(cluster) => work(cluster),
            Err(error) => Err(anyhow!("the world could not be made: {error}")),
        }
    }

    /// One of the worlds of [`services::WORLDS`]. Nothing in it may be changed.
    pub(crate) fn serving(&self, name: &str) -> Result<&Cluster> {
        let mut known = services::WORLDS.into_iter();
        let (name, layout, hook) = known
            .find(|(known, ..)| *known == name)
            .with_context(|| format!("no world is called {name}"))?;
        let slot = self
            .serving
            .get(name)
            .context("every known world has a slot")?;
        let made = slot.get_or_init(|| {
            serve(layout, hook, &services::services()).map_err(|error| format!("{error:#}"))
        });
        made.as_ref()
            .map_err(|error| anyhow!("the world {name} could not be made: {error}"))
    }
}
