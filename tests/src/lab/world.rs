//! A standing world, from its making to its removal.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::mount::{MsFlags, mount};

use super::{
    answer,
    layout::{Layout, ON_HOST},
    namespace::Namespace,
    process::Process,
    remains::{self, Owner},
};

/// A world of namespaces, removed when this is dropped.
#[derive(Debug)]
pub struct World {
    name: String,
    directory: PathBuf,
    layout: Layout,
    servers: Vec<Process>,
    kept: bool,
}

impl World {
    /// Makes the world `name`. A world of that name whose maker is gone, or that was kept, is removed
    /// before.
    pub fn build(name: &str, layout: Layout) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("network namespaces need root: run this as root");
        }
        match remains::owner(name) {
            Owner::Running => bail!("another run is using the world `{name}`"),
            Owner::Gone | Owner::Kept => remains::remove(name)?,
            Owner::Nobody => {}
        }
        let world = Self {
            name: name.to_owned(),
            directory: remains::claim(name)?,
            layout,
            servers: Vec::new(),
            kept: false,
        };
        layout.topology().build(&remains::prefix(name))?;
        for number in layout.nodes() {
            world.mount_bpffs(&format!("node{number}"))?;
        }
        Ok(world)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is made of.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// Where its files are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The namespace of a room: `client`, `router`, `switch`, `podN`; a node's is [`Self::node`].
    #[must_use]
    pub fn room(&self, room: &str) -> Namespace {
        Namespace::named(format!("{}{room}", remains::prefix(&self.name)))
    }

    /// The client's namespace.
    #[must_use]
    pub fn client(&self) -> Namespace {
        self.room("client")
    }

    /// Pod `number`'s namespace.
    #[must_use]
    pub fn pod(&self, number: u8) -> Namespace {
        if number > ON_HOST {
            return self.node(self.layout.node_of(number));
        }
        self.room(&format!("pod{number}"))
    }

    /// Node `number`'s namespace, with the node's own BPF file system.
    #[must_use]
    pub fn node(&self, number: u8) -> Namespace {
        self.room(&format!("node{number}"))
            .with_bpffs(self.node_directory(number).join("bpf"))
    }

    /// Where the files of node `number` are.
    #[must_use]
    pub fn node_directory(&self, number: u8) -> PathBuf {
        self.directory.join(format!("node{number}"))
    }

    /// How many packets the devices of the world have dropped: for want of room in a veth's ring (256
    /// packets), say, which no program of ours decides. What a program drops is not in it.
    pub fn dropped(&self) -> Result<u64> {
        let prefix = remains::prefix(&self.name);
        let mut dropped = 0;
        for room in &self.layout.topology().rooms {
            let mut ip = Command::new("ip");
            let name = format!("{prefix}{}", room.name);
            ip.args(["-n", &name, "-json", "-statistics", "link", "show"]);
            let output = ip.output().context("running `ip`")?;
            let links: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout)
                .with_context(|| format!("what `ip link show` printed in {name}"))?;
            for link in links {
                for way in ["/stats64/rx/dropped", "/stats64/tx/dropped"] {
                    let count = link.pointer(way).and_then(serde_json::Value::as_u64);
                    dropped += count.with_context(|| format!("no {way} in {link}"))?;
                }
            }
        }
        Ok(dropped)
    }

    /// Starts a program in `namespace`; what it prints goes to a file in [`Self::directory`].
    pub fn start(&self, namespace: &Namespace, command: Command, name: &str) -> Result<Process> {
        Process::start(namespace, command, name, &self.directory)
    }

    /// Starts the servers in all pods; `lab` is the program that has the command `echo`.
    pub fn serve(&mut self, lab: &Path) -> Result<()> {
        let world = &*self;
        let started: Vec<_> = thread::scope(|scope| {
            let start = |pod| scope.spawn(move || answer::serve(world, pod, lab));
            let pods = world.layout.pods().chain(world.layout.pods_on_hosts());
            let threads: Vec<_> = pods.map(start).collect();
            threads
                .into_iter()
                .map(thread::ScopedJoinHandle::join)
                .collect()
        });
        for servers in started {
            let servers = servers.map_err(|_| anyhow!("a thread that starts servers panicked"))?;
            self.servers.extend(servers?);
        }
        Ok(())
    }

    /// Leaves the world standing when this is dropped, and when this program ends.
    pub fn keep(&mut self) -> Result<()> {
        remains::keep(&self.name)?;
        self.kept = true;
        self.servers.drain(..).for_each(Process::release);
        Ok(())
    }

    /// Mounts a BPF file system for a room and returns where. It is mounted outside of the room, so
    /// that its pins outlive each process of it.
    pub fn mount_bpffs(&self, room: &str) -> Result<PathBuf> {
        let directory = self.directory.join(room);
        for name in ["bpf", "sys"] {
            fs::create_dir_all(directory.join(name))?;
        }
        let target = directory.join("bpf");
        mount(
            Some("bpf"),
            &target,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mounting a BPF file system at {}", target.display()))?;
        Ok(target)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = remains::remove(&self.name)
        {
            // Nobody is left to return it to, and whoever looks at what is left will want to know.
            #[expect(clippy::print_stderr, reason = "a destructor has no other way to tell")]
            {
                eprintln!("removing the world `{}`: {error:#}", self.name);
            }
        }
    }
}
