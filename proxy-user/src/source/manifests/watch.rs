//! Says when a directory may have changed.

use std::{path::Path, time::Duration};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout, timeout_at},
};

/// No more events for so long: the change is complete.
const QUIET: Duration = Duration::from_millis(20);

/// A change is reported after so long, whatever else happens.
const LATEST: Duration = Duration::from_millis(250);

/// Without events the directory is looked at so often: watches miss what happens behind symbolic
/// links, on network file systems, and to a directory that is made anew.
const POLL: Duration = Duration::from_secs(5);

/// The directory can't be watched.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch {directory}: {source}")]
pub struct WatchError {
    directory: String,
    source: notify::Error,
}

/// A watch of a directory and of all below it.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::Receiver<()>,
    watcher: Option<RecommendedWatcher>,
}

impl Watch {
    /// Begins to watch.
    pub fn new(directory: &Path) -> Result<Self, WatchError> {
        let (sender, events) = mpsc::channel(1);
        let fail = |source| WatchError {
            directory: directory.display().to_string(),
            source,
        };
        let root = directory.to_owned();
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                let concerns = event.map_or(true, |event| {
                    let read = match event.kind {
                        EventKind::Access(AccessKind::Close(mode)) => mode != AccessMode::Write,
                        kind => kind.is_access(),
                    };
                    !read && event.paths.iter().any(|path| path.starts_with(&root))
                });
                if concerns {
                    // A full channel already says that something has changed.
                    let _ = sender.try_send(());
                }
            })
            .map_err(fail)?;
        watcher
            .watch(directory, RecursiveMode::Recursive)
            .map_err(fail)?;
        // For a directory that is a symbolic link, or is replaced as a whole.
        if let Some(parent) = directory.parent().filter(|parent| *parent != Path::new("")) {
            drop(watcher.watch(parent, RecursiveMode::NonRecursive));
        }
        Ok(Self {
            events,
            watcher: Some(watcher),
        })
    }

    /// A watch that only looks from time to time, where none can be had.
    #[must_use]
    pub fn polling() -> Self {
        let (_, events) = mpsc::channel(1);
        Self {
            events,
            watcher: None,
        }
    }

    /// Waits until something may have changed, and until it has settled. Cancel safe: an event
    /// that is lost with it is found by the next look.
    pub async fn changed(&mut self) {
        if self.watcher.is_none() {
            sleep_until(Instant::now() + POLL).await;
            return;
        }
        if timeout(POLL, self.events.recv()).await.is_err() {
            return;
        }
        let latest = Instant::now() + LATEST;
        while let Ok(Some(())) =
            timeout_at(latest.min(Instant::now() + QUIET), self.events.recv()).await
        {
            if Instant::now() >= latest {
                return;
            }
        }
    }
}
