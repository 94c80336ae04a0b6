//! Real traffic, by real programs, over real devices.
//!
//! Every case is named; `cargo test --test wire -- --list` lists them. A case that needs something
//! that is not there fails. The one exception is a kernel without VLAN devices: no package can add
//! them, so there are no cases of the world with VLANs then. What happens to tagged frames is played
//! by the datapath's cases on any kernel.

#[path = "wire/bench.rs"]
mod bench;
#[path = "wire/cli.rs"]
mod cli;
#[path = "wire/demo.rs"]
mod demo;
#[path = "wire/endpoints.rs"]
mod endpoints;
#[path = "wire/foreign.rs"]
mod foreign;
#[path = "wire/health.rs"]
mod health;
#[path = "wire/manifests.rs"]
mod manifests;
#[path = "wire/plain.rs"]
mod plain;
#[path = "wire/restart.rs"]
mod restart;
#[path = "wire/services.rs"]
mod services;
#[path = "wire/sockets.rs"]
mod sockets;
#[path = "wire/worlds.rs"]
mod worlds;

use std::{
    io::{self, Write as _},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Result, bail};
use libtest_mimic::{Arguments, Trial};
use proxy_tests::lab::{remains, topology};

fn main() -> Result<ExitCode> {
    let arguments = Arguments::from_args();
    let mut has_vlans = true;
    if !arguments.list {
        if !nix::unistd::geteuid().is_root() {
            bail!("these tests make network namespaces: run them as root");
        }
        remains::sweep()?;
        has_vlans = topology::has_vlan_devices()?;
        if !has_vlans {
            writeln!(
                io::stderr(),
                "wire: this kernel has no VLAN devices, so the cases of vlan/ are not there"
            )?;
        }
    }
    let worlds = Arc::new(worlds::Worlds::new());
    let trials: Vec<Trial> = [
        plain::trials(&worlds),
        services::trials(&worlds, has_vlans),
        foreign::trials(&worlds, has_vlans),
        endpoints::trials(&worlds),
        health::trials(),
        manifests::trials(),
        restart::trials(),
        cli::trials(&worlds, has_vlans),
        sockets::trials(),
        demo::trials(),
        bench::trials(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    // The trials are gone, so this is the last owner, and what it holds is removed here.
    drop(worlds);
    Ok(conclusion.exit_code())
}
