//! What native XDP asks of veth pairs.
//!
//! - A frame that XDP sends out of a veth device is taken at the other end by a poll, which is there
//!   only if that end has an XDP program or `gro on`; else the frame vanishes.
//! - Who answers with `XDP_TX` starts that poll only if the other end has an XDP program
//!   (`veth_xdp_flush` in drivers/net/veth.c); with `gro on` alone, frames lie there until something
//!   else starts it.
//! - Checksums must be whole, since XDP knows nothing of those left to the device: `tx off`.
//!
//! A physical device asks for none of this.

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, include_bytes_aligned,
    programs::{Xdp, XdpMode, links::FdLink},
};

use super::world::World;

/// The benchmarks' programs; one of them lets every packet pass.
static OBJECT: &[u8] = include_bytes_aligned!(env!("BENCH_BPF_OBJECT"));

/// Prepares the devices of a world for native XDP on the nodes' uplinks.
pub fn prepare(world: &World) -> Result<()> {
    let layout = world.layout();
    let mut devices = vec![
        ("client".to_owned(), "eth0".to_owned()),
        ("router".to_owned(), "eth0".to_owned()),
        ("router".to_owned(), "eth1".to_owned()),
        ("switch".to_owned(), "router".to_owned()),
    ];
    for node in layout.nodes() {
        devices.push(("switch".to_owned(), format!("node{node}")));
        devices.push((format!("node{node}"), "eth0".to_owned()));
    }
    for pod in layout.pods() {
        let node = layout.node_of(pod);
        devices.push((format!("pod{pod}"), "eth0".to_owned()));
        devices.push((format!("node{node}"), format!("pod{pod}")));
    }
    for (room, device) in devices {
        let mut command = Command::new("ethtool");
        command.args(["-K", &device, "tx", "off", "gro", "on"]);
        let output = world.room(&room).output(&mut command)?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("`ethtool -K {device}` in {room}: {}", error.trim());
        }
    }
    let pins = world.mount_bpffs("switch")?;
    let ports: Vec<String> = layout.nodes().map(|node| format!("node{node}")).collect();
    world.room("switch").enter(|| -> Result<()> {
        ensure!(
            !OBJECT.is_empty(),
            "there is no toolchain for BPF; `cargo xtask setup` installs it"
        );
        let mut object = Ebpf::load(OBJECT).context("loading the program for the switch")?;
        let program = object.program_mut("empty_xdp").context("no such program")?;
        let program: &mut Xdp = program.try_into()?;
        program.load()?;
        for port in ports {
            let attach = || format!("attaching a program to the switch's port {port}");
            let id = program
                .attach(&port, XdpMode::Driver)
                .with_context(attach)?;
            let link: FdLink = program.take_link(id)?.try_into()?;
            // The pin holds it for as long as the world stands.
            link.pin(pins.join(&port)).with_context(attach)?;
        }
        Ok(())
    })?
}
