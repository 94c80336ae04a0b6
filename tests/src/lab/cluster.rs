//! Causeway on every node of a world.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    layout::{Family, Layout, load_balancer},
    manifest, polling,
    process::Process,
    world::World,
};

/// How long a daemon may take to load its programs and fill its maps, on a machine that has other
/// work to do.
const START: Duration = Duration::from_mins(1);

/// Entries of the map `SLOTS`: a sixteenth of the usual. Every command that shows services reads the
/// whole map, which otherwise is most of the time that it takes.
pub const SLOTS: u32 = 65_536;

/// Where packets are taken on the uplinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// What the daemon chooses for virtual devices.
    Tc,
    /// Native XDP, forced.
    Xdp,
    /// Generic XDP, forced.
    Generic,
}

/// Where daemons have their objects from.
#[derive(Clone, Copy, Debug)]
enum Source<'p> {
    /// A directory in the world.
    Manifests,
    /// An API server, by this kubeconfig.
    Server(&'p Path),
}

/// The daemon of one node.
#[derive(Debug)]
pub struct Daemon {
    node: u8,
    instance: String,
    binary: PathBuf,
    config: PathBuf,
    socket: PathBuf,
    process: Option<Process>,
}

/// A world with a daemon on each node, all reading one directory of manifests.
#[derive(Debug)]
pub struct Cluster {
    // Ended before the world is removed.
    daemons: Vec<Daemon>,
    world: World,
    markers: AtomicU32,
}

impl Cluster {
    /// Writes the configurations and starts all daemons; returns when each is ready. The manifests
    /// are those in [`Self::manifests_of`] the world, which must hold the Nodes at least.
    pub fn start(world: World, binary: &Path, hook: Hook) -> Result<Self> {
        Self::start_with(world, binary, hook, "")
    }

    /// The same, with more at the end of each configuration.
    pub fn start_with(world: World, binary: &Path, hook: Hook, more: &str) -> Result<Self> {
        Self::start_from(world, binary, (Source::Manifests, hook, more))
    }

    /// The same with an API server, which all nodes must reach, instead of manifests.
    pub fn start_on_server(world: World, binary: &Path, kubeconfig: &Path) -> Result<Self> {
        Self::start_from(world, binary, (Source::Server(kubeconfig), Hook::Tc, ""))
    }

    fn start_from(
        world: World,
        binary: &Path,
        (source, hook, more): (Source<'_>, Hook, &str),
    ) -> Result<Self> {
        if hook == Hook::Xdp {
            polling::prepare(&world)?;
        }
        let mut cluster = Self {
            daemons: Vec::new(),
            world,
            markers: AtomicU32::new(0),
        };
        for node in cluster.world.layout().nodes() {
            let daemon = Daemon::configure(&cluster.world, node, binary, (source, hook, more))?;
            cluster.daemons.push(daemon);
        }
        for daemon in &mut cluster.daemons {
            daemon.start(&cluster.world)?;
        }
        for daemon in &mut cluster.daemons {
            daemon.wait_until_ready(&cluster.world)?;
        }
        Ok(cluster)
    }

    /// The directory of manifests of a world; it exists after this call.
    pub fn manifests_of(world: &World) -> Result<PathBuf> {
        let directory = world.directory().join("manifests");
        fs::create_dir_all(&directory)?;
        Ok(directory)
    }

    /// The world.
    #[must_use]
    pub const fn world(&self) -> &World {
        &self.world
    }

    /// The daemon of node `number`, from 1.
    pub fn daemon(&self, number: u8) -> Result<&Daemon> {
        let found = self.daemons.iter().find(|daemon| daemon.node == number);
        found.with_context(|| format!("there is no node{number}"))
    }

    /// Replaces a file of manifests and waits until every daemon has applied it.
    ///
    /// Each call adds one object that nobody cares about, so that a daemon's count of objects tells
    /// whether it has read this state or an earlier one.
    pub fn apply(&self, file: &str, objects: &[Value]) -> Result<()> {
        let directory = Self::manifests_of(&self.world)?;
        manifest::write(&directory.join(file), objects)?;
        let count = self.markers.fetch_add(1, Ordering::Relaxed) + 1;
        let markers: Vec<Value> = (0..count).map(manifest::namespace).collect();
        manifest::write(&directory.join("markers.yaml"), &markers)?;
        let expected = manifest::count(&directory)?;
        let start = Instant::now();
        for daemon in &self.daemons {
            while !daemon.is_in_sync(&self.world, Some(expected))? {
                if start.elapsed() > Duration::from_secs(10) {
                    let status = daemon.json(&self.world, &["status"])?;
                    bail!(
                        "node{} did not apply {file}, {expected} objects in all, within 10 s: {status:#}",
                        daemon.node
                    );
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    /// Ends the daemon of node `number` with this signal.
    pub fn end(&mut self, number: u8, signal: Signal) -> Result<()> {
        let found = self.daemons.iter_mut().find(|daemon| daemon.node == number);
        found
            .with_context(|| format!("there is no node{number}"))?
            .end(signal)
    }

    /// Sends the daemon of node `number` a signal.
    pub fn signal(&self, number: u8, signal: Signal) -> Result<()> {
        let process = self.daemon(number)?.process.as_ref();
        process.context("the daemon is not running")?.signal(signal)
    }

    /// Starts the daemon of node `number` again, and waits until it is ready.
    pub fn restart(&mut self, number: u8) -> Result<()> {
        let found = self.daemons.iter_mut().find(|daemon| daemon.node == number);
        let daemon = found.with_context(|| format!("there is no node{number}"))?;
        daemon.start(&self.world)?;
        daemon.wait_until_ready(&self.world)
    }

    /// Leaves everything running when this program ends.
    pub fn keep(mut self) -> Result<()> {
        self.world.keep()?;
        for daemon in &mut self.daemons {
            if let Some(process) = daemon.process.take() {
                process.release();
            }
        }
        Ok(())
    }
}

impl Daemon {
    /// Its instance, which its pins carry.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Its API socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Runs the command line against this daemon.
    pub fn output(&self, world: &World, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.binary);
        command
            .args(["--instance", &self.instance])
            .arg("--socket")
            .arg(&self.socket)
            .args(arguments);
        world.node(self.node).output(&mut command)
    }

    /// What a command prints, which must succeed.
    pub fn command(&self, world: &World, arguments: &[&str]) -> Result<String> {
        let output = self.output(world, arguments)?;
        if !output.status.success() {
            bail!(
                "`causeway {}` on node{} ended with {}: {}",
                arguments.join(" "),
                self.node,
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What a command prints as JSON.
    pub fn json(&self, world: &World, arguments: &[&str]) -> Result<Value> {
        let arguments = [arguments, &["-o", "json"]].concat();
        let text = self.command(world, &arguments)?;
        serde_json::from_str(&text).with_context(|| format!("`{arguments:?}` printed `{text}`"))
    }

    fn configure(
        world: &World,
        node: u8,
        binary: &Path,
        (source, hook, more): (Source<'_>, Hook, &str),
    ) -> Result<Self> {
        let directory = world.node_directory(node);
        let daemon = Self {
            node,
            instance: format!("{}-node{node}", world.name()),
            binary: binary.to_owned(),
            config: directory.join("causeway.toml"),
            socket: directory.join("causeway.sock"),
            process: None,
        };
        fs::write(&daemon.config, daemon.toml(world, source, hook)? + more)?;
        Ok(daemon)
    }

    fn toml(&self, world: &World, source: Source<'_>, hook: Hook) -> Result<String> {
        let Layout { uplink, .. } = world.layout();
        let external = Family::BOTH.map(|family| {
            let length = if family == Family::V4 { 24 } else { 112 };
            format!("{}/{length}", load_balancer(0, family))
        });
        let source = match source {
            Source::Manifests => {
                let directory = Cluster::manifests_of(world)?;
                format!("[manifests]\ndirectory = \"{}\"", directory.display())
            }
            Source::Server(kubeconfig) => format!(
                "[source]\nkind = \"kubernetes\"\nkubeconfig = \"{}\"",
                kubeconfig.display()
            ),
        };
        let xdp = match hook {
            Hook::Tc => "auto",
            Hook::Xdp => "native",
            Hook::Generic => "generic",
        };
        Ok(format!(
            "version = 1\ninstance = \"{}\"\n\n[node]\nname = \"node{node}\"\n\n\
             [devices]\nuplinks = [{:?}]\npods = [\"pod*\"]\n\n{source}\n\n\
             [state]\ndirectory = \"{}\"\n\n[services]\nexternal_ranges = {external:?}\n\n\
             [datapath]\nxdp = \"{xdp}\"\n\n[maps]\nslots = {SLOTS}\n\n[api]\nsocket = \"{}\"\n",
            self.instance,
            uplink.device("eth0"),
            world.node_directory(self.node).join("state").display(),
            self.socket.display(),
            node = self.node,
        ))
    }

    fn start(&mut self, world: &World) -> Result<()> {
        let mut command = Command::new(&self.binary);
        command.arg("run").arg("--config").arg(&self.config);
        let name = format!("causeway-node{}", self.node);
        self.process = Some(world.start(&world.node(self.node), command, &name)?);
        Ok(())
    }

    fn wait_until_ready(&mut self, world: &World) -> Result<()> {
        let mut process = self.process.take().context("the daemon is not running")?;
        let result = process.wait_until(START, || self.is_in_sync(world, None).unwrap_or(false));
        self.process = Some(process);
        result
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        let mut process = self.process.take().context("the daemon is not running")?;
        process.end(signal, Duration::from_secs(5))?;
        Ok(())
    }

    /// Whether the maps hold what the manifests say, which are this many objects.
    fn is_in_sync(&self, world: &World, objects: Option<usize>) -> Result<bool> {
        let status = self.json(world, &["status"])?;
        let number = |pointer| status.pointer(pointer).and_then(Value::as_u64);
        let read = number("/counts/objects").and_then(|count| usize::try_from(count).ok());
        let in_sync = status.pointer("/in_sync").and_then(Value::as_bool);
        let rounds = number("/sync/round");
        Ok(in_sync == Some(true) && rounds > Some(0) && objects.is_none_or(|o| read == Some(o)))
    }
}

/// Finds the `causeway` that belongs to the running program: `CAUSEWAY_BIN`, else beside it or in the
/// folder above.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("CAUSEWAY_BIN") {
        return Ok(path.into());
    }
    let own = env::current_exe()?;
    let beside = own.ancestors().skip(1).take(2);
    let found = beside
        .map(|folder| folder.join("causeway"))
        .find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "no `causeway` near {}: run `cargo build -p proxy-user`, or set CAUSEWAY_BIN",
            own.display()
        )
    })
}
