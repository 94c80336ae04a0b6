//! `detach` takes everything out of the kernel.

use std::{
    fs,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use aya::programs::{SchedClassifier, TcAttachType, loaded_programs};
use proxy_tests::lab::{
    ask::{self, Means},
    cluster::Cluster,
    layout::Family,
    manifest::Service,
};
use proxy_user::kernel::{
    devices::{self, XdpState},
    netlink::Netlink,
};

use super::Node;

/// What is attached to the devices of a node.
#[derive(Debug, Default, PartialEq, Eq)]
struct Attached {
    /// Ids of programs at TCX.
    tcx: Vec<u32>,
    /// Devices with a clsact qdisc's filters.
    filters: Vec<String>,
    /// Devices with XDP.
    xdp: Vec<String>,
}

/// On a cluster whose first daemon is gone and whose second one runs.
pub(super) fn check(cluster: &mut Cluster) -> Result<()> {
    refuses(cluster)?;
    let node = Node::new(cluster, 1);
    let world = cluster.world();
    let before = attached(cluster, 1)?;
    ensure!(before != Attached::default(), "nothing is attached");
    let pins = world.node_directory(1).join("bpf/causeway");
    ensure!(pins.is_dir(), "no pins at {}", pins.display());
    let config = cluster.daemon(1)?.config().display().to_string();
    let said = node.text(&["detach", "--config", &config])?;
    ensure!(said.ends_with("is out of the kernel\n"), "{said}");
    let after = attached(cluster, 1)?;
    ensure!(after == Attached::default(), "left behind: {after:?}");
    ensure!(!pins.exists(), "pins are left at {}", pins.display());
    gone(&before.tcx)?;
    // Now there is nothing to read.
    node.fails(&["service", "list"], 5, "has left no maps")?;
    let target = Service::balanced("near", 10, &[1]).balancer(Means::Http, Family::V4);
    let attempt = ask::ask(
        &world.client(),
        Means::Http,
        target,
        Duration::from_millis(400),
    )?;
    ensure!(attempt.outcome.pod().is_none(), "{}", attempt.outcome);
    // Done twice is done.
    node.text(&["detach", "--config", &config])?;
    ensure!(
        attached(cluster, 2)? != Attached::default(),
        "the other node's programs are gone"
    );
    Ok(())
}

/// Not while a daemon runs, and not with a configuration that is missing or wrong.
fn refuses(cluster: &Cluster) -> Result<()> {
    let running = Node::new(cluster, 2);
    let before = attached(cluster, 2)?;
    running.fails(&["detach"], 1, " works on this instance of causeway")?;
    ensure!(attached(cluster, 2)? == before, "programs were detached");
    let node = Node::new(cluster, 1);
    let bad = cluster.world().directory().join("bad.toml");
    fs::write(&bad, "version = 1\nspeed = 9\n")?;
    let bad = bad.display().to_string();
    node.fails(&["detach", "--config", &bad], 4, "speed")?;
    node.fails(
        &["detach", "--config", &format!("{bad}.missing")],
        3,
        "cannot read",
    )
}

fn attached(cluster: &Cluster, node: u8) -> Result<Attached> {
    let namespace = cluster.world().node(node);
    let mut found = Attached::default();
    let listed = namespace.enter(|| -> Result<_> {
        let mut netlink = Netlink::connect()?;
        Ok(devices::list(&mut netlink)?)
    })??;
    ensure!(listed.len() > 2, "{listed:?}");
    for device in listed.values() {
        if device.xdp != XdpState::None {
            found.xdp.push(device.name.clone());
        }
        for (direction, attach) in [
            ("ingress", TcAttachType::Ingress),
            ("egress", TcAttachType::Egress),
        ] {
            let name = device.name.as_str();
            let queried = namespace.enter(|| SchedClassifier::query_tcx(name, attach))?;
            // Kernels before 6.6 do not have TCX.
            let programs = queried.map(|(_, programs)| programs).unwrap_or_default();
            found
                .tcx
                .extend(programs.iter().map(aya::programs::ProgramInfo::id));
            let mut tc = Command::new("tc");
            let output = namespace.output(tc.args(["filter", "show", "dev", name, direction]))?;
            if !output.stdout.is_empty() {
                found.filters.push(format!("{name} {direction}"));
            }
        }
    }
    Ok(found)
}

/// The kernel frees a program some time after its last user is gone.
fn gone(programs: &[u32]) -> Result<()> {
    let start = Instant::now();
    loop {
        let loaded: Vec<u32> = loaded_programs()
            .filter_map(Result::ok)
            .map(|program| program.id())
            .collect();
        let left: Vec<&u32> = programs.iter().filter(|id| loaded.contains(id)).collect();
        if left.is_empty() {
            return Ok(());
        }
        if start.elapsed() > Duration::from_secs(5) {
            bail!("programs {left:?} are still loaded");
        }
        sleep(Duration::from_millis(20));
    }
}
