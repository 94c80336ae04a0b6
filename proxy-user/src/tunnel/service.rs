//! The processes: at the server all tunnels that the manifests ask for, at the node the endpoint.

use std::collections::BTreeMap;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use super::choose;
use super::client::{Client, Control, Spec, Status, View};
use super::endpoint::{Endpoint, EndpointError, EndpointStatus, EndpointView, Settings};
use super::object::ReturnProxy;
use super::supervise::Health;
use super::template;
use super::trust;
use crate::model::State;
use crate::source::assemble::Policy;
use crate::source::manifests::{Manifests, Watch};

/// A tunnel that replaces another has so long to carry before the other lets go all the same.
const REPLACE_WITHIN: Duration = Duration::from_secs(30);

/// Where what is desired comes from.
#[derive(Clone, Debug)]
pub struct Source {
    /// The directory of manifests: nodes and return proxies.
    pub manifests: PathBuf,
    /// A cluster template, and how the node's host key is judged, which a template does not say.
    pub template: Option<(PathBuf, trust::Policy)>,
}

/// What is desired, and what is wrong with it.
#[derive(Clone, Debug, Default)]
struct Desired {
    state: Arc<State>,
    problems: Vec<String>,
}

/// How everything is, for the command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Tunnels at the server.
    pub tunnels: Vec<Status>,
    /// The node's end.
    pub endpoint: Option<EndpointStatus>,
    /// What keeps tunnels from being there.
    pub problems: Vec<String>,
}

/// What is there, to ask and to tell.
#[derive(Default)]
pub struct Board {
    tunnels: RwLock<BTreeMap<String, (View, mpsc::Sender<Control>)>>,
    endpoint: RwLock<Option<EndpointView>>,
    problems: RwLock<Vec<String>>,
}

impl Board {
    /// How everything is.
    #[must_use]
    pub fn report(&self) -> Report {
        let tunnels = self.tunnels.read().unwrap_or_else(PoisonError::into_inner);
        let endpoint = self.endpoint.read().unwrap_or_else(PoisonError::into_inner);
        let problems = self.problems.read().unwrap_or_else(PoisonError::into_inner);
        Report {
            tunnels: tunnels.values().map(|(view, _)| view.status()).collect(),
            endpoint: endpoint.as_ref().map(EndpointView::status),
            problems: problems.clone(),
        }
    }

    /// Makes fresh sessions of the tunnel of this name, or of all; says of how many.
    pub fn reconnect(&self, name: Option<&str>) -> usize {
        let tunnels = self.tunnels.read().unwrap_or_else(PoisonError::into_inner);
        let meant = tunnels
            .iter()
            .filter(|(own, _)| name.is_none_or(|name| name == *own));
        meant
            .filter(|(_, (_, control))| control.try_send(Control::Reconnect).is_ok())
            .count()
    }

    fn set_problems(&self, problems: Vec<String>) {
        let mut shown = self
            .problems
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        for problem in problems.iter().filter(|problem| !shown.contains(problem)) {
            tracing::error!(problem, "no tunnel");
        }
        *shown = problems;
    }
}

/// A tunnel that runs.
struct Running {
    spec: Spec,
    view: View,
    control: mpsc::Sender<Control>,
}

/// Runs all tunnels of a server until `stop` turns true.
pub async fn serve(source: Source, board: Arc<Board>, stop: watch::Receiver<bool>) {
    let (sender, mut desired) = watch::channel(Desired::default());
    let follow: JoinHandle<()> = tokio::spawn(follow(source, sender, stop.clone()));
    // Unlike the number of the process, this is another one in each namespace and on each machine.
    let instance = format!("{:032x}", rand());
    let mut tunnels: BTreeMap<String, Running> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let mut generation = 0_u64;
    let mut stopped = stop.clone();
    loop {
        tokio::select! {
            changed = desired.changed() => if changed.is_err() { break },
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            _ = stopped.wait_for(|stop| *stop) => break,
        }
        let now = desired.borrow_and_update().clone();
        let (specs, errors) = choose::all(&now.state);
        let errors = errors.iter().map(ToString::to_string);
        board.set_problems(now.problems.into_iter().chain(errors).collect());
        let mut before = std::mem::take(&mut tunnels);
        for spec in specs {
            let name = spec.name.clone();
            let old = before.remove(&name);
            if let Some(old) = old {
                if old.spec == spec {
                    tunnels.insert(name, old);
                    continue;
                }
                tracing::info!(tunnel = name, node = spec.host.known_as(), "changed");
                generation += 1;
                let running = start(spec, &instance, generation, &mut tasks, &stop);
                tasks.spawn(replace(running.view.clone(), old.control));
                tunnels.insert(name, running);
            } else {
                tracing::info!(tunnel = name, node = spec.host.known_as(), "begins");
                generation += 1;
                let running = start(spec, &instance, generation, &mut tasks, &stop);
                tunnels.insert(name, running);
            }
        }
        for (name, old) in before {
            tracing::info!(tunnel = name, "ends");
            // Full only if it does nothing any more; then the end of the process ends it.
            let _ = old.control.try_send(Control::Retire);
        }
        let shown = tunnels
            .iter()
            .map(|(name, one)| (name.clone(), (one.view.clone(), one.control.clone())));
        *board
            .tunnels
            .write()
            .unwrap_or_else(PoisonError::into_inner) = shown.collect();
    }
    drop(tunnels);
    // They see the same flag.
    let all = async { while tasks.join_next().await.is_some() {} };
    let _ = timeout(Duration::from_secs(2), all).await;
    tasks.shutdown().await;
    follow.abort();
}

fn start(
    spec: Spec,
    instance: &str,
    generation: u64,
    tasks: &mut JoinSet<()>,
    stop: &watch::Receiver<bool>,
) -> Running {
    // What changes is another group at the node: it takes all new connections from its first moment.
    let instance = format!("{instance}.{generation}");
    let (client, view, control) = Client::new(spec.clone(), &instance);
    tasks.spawn(client.run(stop.clone()));
    Running {
        spec,
        view,
        control,
    }
}

/// Lets the old tunnel go once the new one carries, or waits for a port that the old one has.
async fn replace(new: View, old: mpsc::Sender<Control>) {
    let carries = async {
        loop {
            let status = new.status();
            let blocked = status
                .sessions
                .iter()
                .any(|leg| leg.state.word() == "blocked");
            if blocked || status.health != Health::Down {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let _ = timeout(REPLACE_WITHIN, carries).await;
    let _ = old.send(Control::Retire).await;
    // Its channel stays open until it has ended.
    old.closed().await;
}

/// A number that no other process has.
fn rand() -> u128 {
    use std::hash::{BuildHasher as _, RandomState};
    let half = |salt: u64| u128::from(RandomState::new().hash_one(salt));
    half(1) << 64 | half(2)
}

/// Reads what is desired, now and whenever it changes, until `stop`.
async fn follow(source: Source, sender: watch::Sender<Desired>, mut stop: watch::Receiver<bool>) {
    let mut watch = Watch::new(&source.manifests).unwrap_or_else(|error| {
        tracing::warn!(%error, "the manifests are looked at from time to time instead");
        Watch::polling()
    });
    let mut manifests = Manifests::new(source.manifests.clone(), Policy::default());
    let template = source.template;
    let mut last = None;
    loop {
        let file = template.clone();
        let scan = spawn_blocking(move || {
            let snapshot = manifests.scan();
            let template = file.map(|(file, trust)| read_template(&file, trust));
            (manifests, snapshot, template)
        });
        let Ok((back, snapshot, from_template)) = scan.await else {
            return;
        };
        manifests = back;
        let mut desired = Desired {
            state: Arc::clone(&snapshot.state),
            problems: Vec::new(),
        };
        for notice in &snapshot.notices {
            let ours = notice.object.as_ref().is_none_or(|object| {
                matches!(
                    object.kind,
                    crate::model::Kind::ReturnProxy | crate::model::Kind::Node
                )
            });
            // What concerns the choice of the node is found again, and told, by whoever chooses.
            let ours = ours && notice.field != "spec.node";
            if ours && notice.severity == crate::model::Severity::Error {
                desired.problems.push(notice.to_string());
            }
        }
        match from_template {
            None | Some(Ok(None)) => {}
            Some(Ok(Some(proxy))) => {
                let state = Arc::make_mut(&mut desired.state);
                let name = proxy.name.clone();
                state.return_proxies.insert(name, Arc::new(proxy));
            }
            Some(Err(problem)) => desired.problems.push(problem),
        }
        let now = (
            desired.state.nodes.clone(),
            desired.state.return_proxies.clone(),
            desired.problems.clone(),
        );
        if last.as_ref() != Some(&now) {
            last = Some(now);
            if sender.send(desired).is_err() {
                return;
            }
        }
        let template_changes = async {
            match template {
                // A file of its own, which the watch does not see.
                Some(_) => sleep(Duration::from_secs(1)).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = watch.changed() => {}
            () = template_changes => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

fn read_template(file: &Path, trust: trust::Policy) -> Result<Option<ReturnProxy>, String> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("{}: cannot be read: {error}", file.display()))?;
    template::read(&text, trust).map_err(|error| format!("{}: {error}", file.display()))
}

/// An endpoint that runs.
struct Serving {
    proxy: ReturnProxy,
    sources: Vec<ipnet::IpNet>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Serving {
    async fn end(mut self) {
        self.stop.send_replace(true);
        let _ = timeout(Duration::from_secs(2), &mut self.task).await;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Ends an endpoint once it has nothing left to carry.
async fn leave(serving: Serving, board: Arc<Board>) {
    let carries = || {
        let report = board.report();
        report.endpoint.is_some_and(|end| {
            let active: u64 = end.forwards.values().map(|one| one.active).sum();
            active > 0 || !end.carriers.is_empty()
        })
    };
    let limit = super::supervise::Policy::default().drain_within;
    let finish = async {
        while carries() {
            sleep(Duration::from_millis(200)).await;
        }
    };
    let _ = timeout(limit, finish).await;
    serving.end().await;
    *board
        .endpoint
        .write()
        .unwrap_or_else(PoisonError::into_inner) = None;
}

/// Runs the node's end, if the manifests make this node the return proxy and say with which keys,
/// until `stop` turns true. Follows changes.
pub async fn node(
    source: Source,
    name: String,
    board: Arc<Board>,
    stop: watch::Receiver<bool>,
) -> Result<(), EndpointError> {
    let (sender, mut desired) = watch::channel(Desired::default());
    let follow: JoinHandle<()> = tokio::spawn(follow(source, sender, stop.clone()));
    let mut running: Option<Serving> = None;
    let mut leaving: Option<JoinHandle<()>> = None;
    let mut stopped = stop;
    loop {
        tokio::select! {
            changed = desired.changed() => if changed.is_err() { break },
            _ = stopped.wait_for(|stop| *stop) => break,
        }
        let now = desired.borrow_and_update().clone();
        let mut problems = now.problems;
        let mut wanted = None;
        for proxy in now.state.return_proxies.values() {
            match choose::node(proxy, &now.state) {
                Ok((node, _)) if node == name && proxy.endpoint.is_some() => {
                    wanted = Some((**proxy).clone());
                }
                Ok(_) => {}
                Err(error) => problems.push(error.to_string()),
            }
        }
        board.set_problems(problems);
        let sources = wanted
            .as_ref()
            .map(|proxy| choose::sources(proxy, &now.state));
        let same = match (&running, &wanted, &sources) {
            (Some(serving), Some(wanted), Some(sources)) => {
                serving.proxy == *wanted && serving.sources == *sources
            }
            (None, None, _) => true,
            _ => false,
        };
        if same {
            continue;
        }
        if let Some(serving) = running.take() {
            if wanted.is_none() {
                // Another node's turn: what is carried here may finish.
                leaving = Some(tokio::spawn(leave(serving, Arc::clone(&board))));
                continue;
            }
            serving.end().await;
        }
        if let Some(before) = leaving.take() {
            before.abort();
            let _ = before.await;
        }
        let (Some(proxy), Some(sources)) = (wanted, sources) else {
            continue;
        };
        let Some(settings) = settings(&proxy, sources.clone()) else {
            continue;
        };
        let endpoint = Endpoint::start(settings).await?;
        *board
            .endpoint
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Some(endpoint.view());
        tracing::info!(
            proxy = proxy.name,
            port = proxy.port,
            "this node is the return proxy"
        );
        let (stop, flag) = watch::channel(false);
        let task = tokio::spawn(endpoint.run(flag));
        running = Some(Serving {
            proxy,
            sources,
            stop,
            task,
        });
    }
    if let Some(before) = leaving.take() {
        before.abort();
    }
    if let Some(serving) = running.take() {
        serving.end().await;
    }
    follow.abort();
    Ok(())
}

fn settings(proxy: &ReturnProxy, sources: Vec<ipnet::IpNet>) -> Option<Settings> {
    let endpoint = proxy.endpoint.as_ref()?;
    Some(Settings {
        ssh: vec![([0_u16; 8], proxy.port).into()],
        user: proxy.user.clone(),
        authorized: endpoint.authorized.clone(),
        host_key: endpoint.host_key.clone(),
        ports: proxy.forwards.iter().map(|one| one.listen).collect(),
        bind: Vec::new(),
        sources,
        memory: proxy.memory,
        queue: proxy.queue,
        window: proxy.window,
        rekey: proxy.rekey,
    })
}
