//! The devices: a node's namespace, one with the far ends of its veth pairs, and sinks in both.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio, id};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, include_bytes_aligned};
use nix::sched::{CloneFlags, setns, unshare};

use super::SINK;
use super::socket::{Receiver, Sender};
use crate::case::place::device;
use crate::exec::namespace::Namespace;

/// The benchmarks' programs; one of them lets every frame pass.
static OBJECT: &[u8] = include_bytes_aligned!(env!("BENCH_BPF_OBJECT"));

/// MTU of the real devices, bytes: that of the records is smaller, so that frames arrive which are
/// larger than their next hop takes. A veth device with an XDP program takes no more than 3,500.
const MTU: u32 = 3_000;

/// A network namespace, for as long as this is there.
pub(super) struct Space {
    file: File,
}

impl Space {
    /// The calling thread's.
    pub(super) fn current() -> Result<Self> {
        let file = File::open("/proc/thread-self/ns/net").context("opening a network namespace")?;
        Ok(Self { file })
    }

    /// A new one, with nothing in it; the calling thread is moved there.
    fn new() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)
            .context("making a network namespace (these tests need root)")?;
        // Far ends have nothing to say.
        let path = "/proc/sys/net/ipv6/conf/default/disable_ipv6";
        std::fs::write(path, "1").with_context(|| format!("writing {path}"))?;
        Self::current()
    }

    /// Moves the calling thread there.
    pub(super) fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).context("entering a network namespace")
    }

    /// As `ip` can open it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", id(), self.file.as_raw_fd())
    }
}

/// Whether the sinks stand before the programs of TC or behind them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sinks {
    /// What XDP passes on is seen as it is.
    BeforeTc,
    /// What TC passes on is seen.
    BehindTc,
}

/// A node and all that is around it.
pub(super) struct Site {
    /// The node's.
    pub(super) node: Space,
    /// Routes and neighbours of the node.
    pub(super) namespace: Namespace,
    /// For frames of the node's own processes.
    pub(super) own: Sender,
    /// For frames that come from elsewhere.
    pub(super) far: Sender,
    /// Sees what is handed to the node's stack.
    pub(super) stack: Receiver,
    /// Sees what leaves the node.
    pub(super) outside: Receiver,
    /// The far ends' XDP programs.
    _pass: Option<Ebpf>,
    /// The sinks' other ends, which would take the sinks with them.
    _void: Space,
}

impl Site {
    /// Makes one. `xdp`: devices whose far ends take frames that XDP sends.
    pub(super) fn make(sinks: Sinks, xdp: &[u32]) -> Result<Self> {
        // Where sinks drain to: whatever arrives there, nobody answers.
        let void = Space::new()?;
        let beyond = Space::new()?;
        let namespace = Namespace::enter()?;
        let node = Space::current()?;
        // A node without a link-local address asks for no IPv6 neighbour in another's name.
        let moves = device::ALL.map(|n| {
            let path = beyond.path();
            format!(
                "link set c{n} mtu {MTU}\nlink set p{n} netns {path}\naddr add fe80::{n}/64 dev c{n} nodad"
            )
        });
        run("ip", &moves.join("\n"))?;
        let names = device::ALL.map(|n| (format!("c{n}"), n));
        let mut names = names.to_vec();
        names.push(("lo".to_owned(), device::LO));
        // Behind the priority that our own filters have, or before it.
        let priority = match sinks {
            Sinks::BeforeTc => 1,
            Sinks::BehindTc => 1_000,
        };
        add_sinks(&void, &names, priority)?;
        let (own, stack) = (Sender::open()?, Receiver::open()?);
        beyond.enter()?;
        let raises = device::ALL.map(|n| format!("link set p{n} mtu {MTU} up"));
        run("ip", &raises.join("\n"))?;
        let names = device::ALL.map(|n| (format!("p{n}"), n));
        add_sinks(&void, &names, 1)?;
        let pass = if xdp.is_empty() {
            None
        } else {
            Some(pass(xdp)?)
        };
        let (far, outside) = (Sender::open()?, Receiver::open()?);
        Ok(Self {
            node,
            namespace,
            own,
            far,
            stack,
            outside,
            _pass: pass,
            _void: void,
        })
    }
}

/// Sends what devices receive to a sink each.
///
/// A sink is a device that puts tags into frames which the kernel keeps beside them, so that a packet
/// socket sees the whole frame.
fn add_sinks(void: &Space, devices: &[(String, u32)], priority: u32) -> Result<()> {
    let (mut links, mut filters) = (Vec::new(), Vec::new());
    for (name, n) in devices {
        let (index, path) = (n + SINK, void.path());
        links.push(format!(
            "link add s{n} index {index} mtu {MTU} type veth peer name d-{name} netns {path}"
        ));
        links.push(format!("link set s{n} up"));
        filters.push(format!("qdisc add dev {name} clsact"));
        filters.push(format!(
            "filter add dev {name} ingress protocol all prio {priority} bpf bytecode \
             \"1,6 0 0 1\" flowid 1:1 action mirred egress redirect dev s{n}"
        ));
    }
    run("ip", &links.join("\n"))?;
    let here = Space::current()?;
    void.enter()?;
    let raises = devices
        .iter()
        .map(|(name, _)| format!("link set d-{name} up"));
    run("ip", &raises.collect::<Vec<_>>().join("\n"))?;
    here.enter()?;
    for (_, n) in devices {
        let arguments = format!("-K s{n} tx-vlan-hw-insert off tx-vlan-stag-hw-insert off");
        command("ethtool", &arguments.split(' ').collect::<Vec<_>>(), "")?;
    }
    run("tc", &filters.join("\n"))
}

/// Attaches a program that lets every frame pass to the far ends of these devices: a veth device takes
/// what XDP sends to it only while it has a program itself (`veth_xdp_xmit`, `veth_xdp_flush`).
fn pass(devices: &[u32]) -> Result<Ebpf> {
    ensure!(
        !OBJECT.is_empty(),
        "there is no toolchain for BPF; `cargo xtask setup` installs it"
    );
    let mut object = Ebpf::load(OBJECT).context("loading the program for the far ends")?;
    let program = object.program_mut("empty_xdp").context("no such program")?;
    let program: &mut Xdp = program.try_into()?;
    program.load()?;
    for n in devices {
        let attached = program.attach(&format!("p{n}"), XdpMode::Driver);
        attached.with_context(|| format!("attaching a program to p{n}"))?;
    }
    Ok(object)
}

/// Runs a batch of commands to `ip` or `tc` in the calling thread's namespace.
pub(super) fn run(program: &str, batch: &str) -> Result<()> {
    command(program, &["-batch", "-"], batch)
}

fn command(program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    // Who reads nothing may have ended by now.
    if let Some(mut stdin) = child.stdin.take()
        && !input.is_empty()
    {
        stdin.write_all(input.as_bytes())?;
        stdin.write_all(b"\n")?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {complaint}\n{input}", arguments.join(" "));
    }
    Ok(())
}
