//! The worlds that cases share.

use std::{
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Result, anyhow};
use proxy_tests::lab::{layout::Layout, world::World};

/// The program with the servers.
const LAB: &str = env!("CARGO_BIN_EXE_lab");

/// Makes a world with servers in its pods.
pub(crate) fn build(layout: Layout) -> Result<World> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut world = World::build(&format!("t{}x{number}", std::process::id()), layout)?;
    world.serve(Path::new(LAB))?;
    Ok(world)
}

/// Worlds that are made when first asked for.
#[derive(Debug, Default)]
pub(crate) struct Worlds {
    plain: Mutex<Option<Result<World, String>>>,
}

impl Worlds {
    /// Looks at the world without Causeway.
    pub(crate) fn plain<T>(&self, look: impl FnOnce(&World) -> Result<T>) -> Result<T> {
        let mut slot = self.plain.lock().unwrap_or_else(PoisonError::into_inner);
        let made = slot
            .get_or_insert_with(|| build(Layout::default()).map_err(|error| format!("{error:#}")));
        match made {
            Ok(world) => look(world),
            Err(error) => Err(anyhow!("the world could not be made: {error}")),
        }
    }
}
