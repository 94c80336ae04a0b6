//! The daemon's one loop: what happens, and what is done about it.

use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::{sleep_until, timeout_at};

use super::engine::{Engine, StartError};
use super::follow;
use super::notify::ServiceManager;
use super::reflect;
use super::retry::Retry;
use super::view::View;
use crate::config::{Config, ConfigError, Source};
use crate::dataplane::PinFolder;
use crate::dataplane::lock::{InstanceLock, LockError};
use crate::kernel::watch::Watch as KernelWatch;
use crate::pod_network;
use crate::source::manifests::Watch as FolderWatch;
use crate::source::snapshot::Snapshot;

/// Changes of devices that come together are taken together: no change for so long ends them.
const QUIET: Duration = Duration::from_millis(20);

/// They are not waited for longer than this.
const LATEST: Duration = Duration::from_millis(250);

/// So often everything is looked at, even if nobody has said that it changed: attachments and
/// settings that somebody has taken away.
const LOOK: Duration = Duration::from_secs(10);

/// So often the maps are read anew as well.
const REREAD: Duration = Duration::from_mins(5);

/// Why the daemon cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another daemon of this instance is running.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The first steps.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Signals or netlink.
    #[error("cannot subscribe to {what}: {source}")]
    Subscribe {
        /// To what.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A part of the daemon has ended, which is a defect.
    #[error("a part of the daemon has ended: {part}")]
    Ended {
        /// Which.
        part: &'static str,
        /// How, if it did not just return.
        #[source]
        source: Option<JoinError>,
    },
}

/// Runs until SIGTERM or SIGINT. SIGHUP reads the configuration anew.
///
/// `serve` is given the daemon's [`View`] and the configuration, and answers questions until the
/// flag that comes with them turns true.
pub async fn run<S, F>(file: &Path, serve: S) -> Result<(), RunError>
where
    S: FnOnce(Arc<View>, Arc<Config>, watch::Receiver<bool>) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let config = Arc::new(Config::load(file)?);
    let _lock = InstanceLock::take(&PinFolder::new(&config.instance))?;
    let mut signals = Signals::subscribe()?;
    // Subscribe first, then read: what changes in between is seen twice rather than never.
    let kernel = KernelWatch::subscribe().map_err(|source| RunError::Subscribe {
        what: "netlink",
        source,
    })?;
    let (stop, stopped) = watch::channel(false);
    let (sender, snapshots) = mpsc::channel(1);
    let source = match &config.source {
        Source::Manifests(directory) => {
            let directory = directory.clone();
            tokio::spawn(follow::follow(
                directory,
                Arc::clone(&config),
                sender,
                stopped.clone(),
            ))
        }
        Source::Kubernetes(access) => {
            let access = access.clone();
            tokio::spawn(reflect::reflect(
                access,
                Arc::clone(&config),
                sender,
                stopped.clone(),
            ))
        }
    };
    let start = Arc::clone(&config);
    let engine = spawn_blocking(move || Engine::start(start))
        .await
        .map_err(ended("start"))??;
    let view = engine.view();
    // The engine has made the folder.
    let pods = watch_pods(&config);
    let server = tokio::spawn(serve(Arc::clone(&view), config, stopped));
    let daemon = Daemon {
        file: file.to_owned(),
        manager: ServiceManager::from_environment(),
        view,
        engine: Some(engine),
        kernel,
        pods,
        snapshots,
        source,
        server,
        retry: Retry::default(),
        ready: false,
    };
    let mut daemon = daemon;
    let result = daemon.work(&mut signals).await;
    daemon.manager.stopping();
    let _ = stop.send(true);
    // The source may save what it knows, the server may finish what it is answering.
    daemon.snapshots.close();
    let ending = async {
        let _ = (&mut daemon.source).await;
        let _ = (&mut daemon.server).await;
    };
    let _ = tokio::time::timeout(Duration::from_secs(2), ending).await;
    tracing::info!("stopped; services go on in the kernel (`causeway detach` removes them)");
    result
}

fn ended(part: &'static str) -> impl FnOnce(JoinError) -> RunError {
    move |source| RunError::Ended {
        part,
        source: Some(source),
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn subscribe() -> Result<Self, RunError> {
        let to = |kind| {
            signal(kind).map_err(|source| RunError::Subscribe {
                what: "signals",
                source,
            })
        };
        Ok(Self {
            terminate: to(SignalKind::terminate())?,
            interrupt: to(SignalKind::interrupt())?,
            hangup: to(SignalKind::hangup())?,
        })
    }
}

/// What asks for something to be done.
enum Event {
    Snapshot(Arc<Snapshot>),
    Devices,
    Pods,
    Sweep,
    Look,
    Reload,
    Stop,
}

struct Daemon {
    file: PathBuf,
    manager: ServiceManager,
    view: Arc<View>,
    /// Away while a round runs on another thread.
    engine: Option<Engine>,
    kernel: KernelWatch,
    /// The records of pods' networks; none: there are none.
    pods: Option<FolderWatch>,
    snapshots: mpsc::Receiver<Arc<Snapshot>>,
    source: JoinHandle<()>,
    server: JoinHandle<()>,
    retry: Retry,
    ready: bool,
}

/// When the next of the regular duties is due.
struct Due {
    sweep: Instant,
    look: Instant,
    reread: Instant,
}

impl Daemon {
    async fn work(&mut self, signals: &mut Signals) -> Result<(), RunError> {
        let now = Instant::now();
        let mut due = Due {
            sweep: now,
            look: now + LOOK,
            reread: now + REREAD,
        };
        loop {
            match self.next(signals, &due).await? {
                Event::Stop => return Ok(()),
                Event::Sweep => {
                    let interval = self.with_engine(|engine| {
                        if let Err(error) = engine.sweep() {
                            tracing::warn!(%error, "flows were not swept; will be tried again");
                        }
                        engine.sweep_interval()
                    });
                    due.sweep = Instant::now() + interval.await?;
                }
                Event::Snapshot(snapshot) => {
                    self.round(move |engine| engine.set_snapshot(snapshot))
                        .await?;
                    if !self.ready {
                        self.ready = true;
                        self.manager.ready();
                        tracing::info!("ready");
                    }
                }
                Event::Devices => {
                    self.settle_devices().await?;
                    self.round(|_| ()).await?;
                }
                Event::Pods => self.round(|_| ()).await?,
                Event::Reload => self.reload().await?,
                Event::Look => {
                    let reread = Instant::now() >= due.reread;
                    self.round(move |engine| {
                        if reread && let Err(error) = engine.reread() {
                            tracing::warn!(%error, "the maps were not read anew");
                        }
                    })
                    .await?;
                    due.look = Instant::now() + LOOK;
                    if reread {
                        due.reread = due.look + REREAD;
                    }
                }
            }
        }
    }

    async fn next(&mut self, signals: &mut Signals, due: &Due) -> Result<Event, RunError> {
        let release = self.engine.as_ref().and_then(Engine::next_release);
        // Nothing is looked at before the first snapshot: a round without one would take
        // everything away.
        let again = [self.retry.at(), release, Some(due.look)]
            .into_iter()
            .flatten()
            .min();
        let again = again.filter(|_| self.ready);
        tokio::select! {
            biased;
            _ = signals.terminate.recv() => Ok(Event::Stop),
            _ = signals.interrupt.recv() => Ok(Event::Stop),
            _ = signals.hangup.recv() => Ok(Event::Reload),
            snapshot = self.snapshots.recv() => match snapshot {
                Some(snapshot) => Ok(Event::Snapshot(snapshot)),
                None => Err(RunError::Ended { part: "source", source: (&mut self.source).await.err() }),
            },
            changed = self.kernel.changed(), if self.ready => match changed {
                Ok(()) => Ok(Event::Devices),
                Err(source) => Err(RunError::Subscribe { what: "netlink", source }),
            },
            () = changed(&mut self.pods), if self.ready => Ok(Event::Pods),
            ended = &mut self.server => Err(RunError::Ended { part: "api", source: ended.err() }),
            () = until(again) => Ok(Event::Look),
            () = until(Some(due.sweep)), if self.ready => Ok(Event::Sweep),
        }
    }

    /// Takes changes of devices that come in quick succession as one.
    async fn settle_devices(&mut self) -> Result<(), RunError> {
        let latest = Instant::now() + LATEST;
        loop {
            let quiet = (Instant::now() + QUIET).min(latest);
            match timeout_at(quiet.into(), self.kernel.changed()).await {
                Ok(Ok(())) if Instant::now() < latest => {}
                Ok(Err(source)) => {
                    return Err(RunError::Subscribe {
                        what: "netlink",
                        source,
                    });
                }
                _ => return Ok(()),
            }
        }
    }

    async fn round(
        &mut self,
        prepare: impl FnOnce(&mut Engine) + Send + 'static,
    ) -> Result<(), RunError> {
        let failed = self
            .with_engine(|engine| {
                prepare(engine);
                engine.round().unwrap_or_else(|error| {
                    tracing::error!(%error, "a round failed; will be tried again");
                    true
                })
            })
            .await?;
        self.retry.outcome(failed, Instant::now());
        Ok(())
    }

    /// Runs `work` on a thread that may block.
    async fn with_engine<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> Result<T, RunError> {
        let Some(mut engine) = self.engine.take() else {
            return Err(RunError::Ended {
                part: "engine",
                source: None,
            });
        };
        self.view
            .proceed(|progress| progress.work(Some(Instant::now())));
        let (engine, result) = spawn_blocking(move || {
            let result = work(&mut engine);
            (engine, result)
        })
        .await
        .map_err(ended("engine"))?;
        self.view.proceed(|progress| progress.work(None));
        self.engine = Some(engine);
        Ok(result)
    }

    /// Reads the configuration anew. One that is wrong, or differs where that needs a restart,
    /// leaves the old one in force.
    async fn reload(&mut self) -> Result<(), RunError> {
        self.manager.reloading();
        let old = Arc::clone(&self.view.current().config);
        let problem = match Config::load(&self.file) {
            Err(error) => Some(error.to_string()),
            Ok(config) => {
                if let Some(key) = restart_needed(&old, &config) {
                    Some(format!(
                        "{key} can only be changed by a restart of the daemon; the old \
                         configuration stays in force"
                    ))
                } else {
                    tracing::info!(file = %self.file.display(), "the configuration was read anew");
                    self.round(move |engine| engine.set_config(Arc::new(config)))
                        .await?;
                    None
                }
            }
        };
        if let Some(error) = &problem {
            tracing::error!(%error, "the configuration was not taken over");
        }
        self.view.change(|current| current.config_error = problem);
        self.manager.ready();
        Ok(())
    }
}

/// The first key whose change needs a restart.
fn restart_needed(old: &Config, new: &Config) -> Option<&'static str> {
    [
        ("instance", old.instance != new.instance),
        ("node.name", old.node != new.node),
        ("maps", old.maps != new.maps),
        ("source, or manifests.directory,", old.source != new.source),
        ("state.directory", old.state != new.state),
        (
            "services.external_ranges",
            old.external_ranges != new.external_ranges,
        ),
        ("api.socket", old.socket != new.socket),
        (
            "pod_network.enabled",
            old.pod_network.enabled != new.pod_network.enabled,
        ),
    ]
    .into_iter()
    .find_map(|(key, changed)| changed.then_some(key))
}

/// Waits until records of pods' networks may have changed.
async fn changed(pods: &mut Option<FolderWatch>) {
    match pods {
        // One event of a change that is not waited for to its end is enough: each round reads all.
        Some(watch) => watch.changed().await,
        None => pending().await,
    }
}

fn watch_pods(config: &Config) -> Option<FolderWatch> {
    if !config.pod_network.enabled {
        return None;
    }
    let folder = pod_network::records(config);
    Some(FolderWatch::new(&folder).unwrap_or_else(|error| {
        tracing::warn!(%error, "pods' networks are looked at from time to time instead");
        FolderWatch::polling()
    }))
}

pub(super) async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => pending().await,
    }
}
