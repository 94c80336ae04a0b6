//! A standing world, from its making to its removal.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::mount::{MsFlags, mount};
use serde_json::Value;

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

    /// How many packets the world has dropped for want of room, which no program of ours decides: in a
    /// device's queue (a veth's ring has 256 places), or in a UDP socket whose process has not run.
    pub fn overflowed(&self) -> Result<u64> {
        let prefix = remains::prefix(&self.name);
        let mut sum = 0;
        for room in &self.layout.topology().rooms {
            let name = format!("{prefix}{}", room.name);
            let mut ip = Command::new("ip");
            ip.args(["-n", &name, "-json", "-statistics", "link", "show"]);
            let output = ip.output().context("running `ip`")?;
            let links: Vec<Value> = serde_json::from_slice(&output.stdout)
                .with_context(|| format!("what `ip link show` printed in {name}"))?;
            for link in links {
                for way in ["/stats64/rx/dropped", "/stats64/tx/dropped"] {
                    let count = link.pointer(way).and_then(Value::as_u64);
                    sum += count.with_context(|| format!("no {way} in {link}"))?;
                }
            }
            let [v4, v6] = Namespace::named(name)
                .enter(|| ["snmp", "snmp6"].map(|file| fs::read_to_string(proc_net(file))))?;
            sum += overflowed_sockets(&v4?, &v6?).context("no count of full UDP sockets")?;
        }
        Ok(sum)
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

/// A file of the calling thread's network namespace.
fn proc_net(file: &str) -> PathBuf {
    Path::new("/proc/thread-self/net").join(file)
}

/// How many datagrams found their socket full: `RcvbufErrors` of `snmp`, `Udp6RcvbufErrors` of `snmp6`.
fn overflowed_sockets(snmp: &str, snmp6: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter(|line| line.starts_with("Udp: "));
    let (names, counts) = lines.next().zip(lines.next())?;
    let mut pairs = names.split(' ').zip(counts.split(' '));
    let (_, v4) = pairs.find(|(name, _)| *name == "RcvbufErrors")?;
    let v6 = snmp6
        .lines()
        .find_map(|line| line.strip_prefix("Udp6RcvbufErrors"))?;
    Some(v4.parse::<u64>().ok()? + v6.trim().parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::overflowed_sockets;

    #[test]
    fn datagrams_that_found_no_room_are_counted() {
        let snmp = "Tcp: InSegs\nTcp: 1\nUdp: InDatagrams InErrors RcvbufErrors\nUdp: 9 5 4\n\
                    UdpLite: RcvbufErrors\nUdpLite: 70\n";
        let snmp6 = "Udp6InErrors       \t50\nUdp6RcvbufErrors       \t3\n";
        assert_eq!(overflowed_sockets(snmp, snmp6), Some(7));
        assert_eq!(overflowed_sockets("", snmp6), None);
    }
}
