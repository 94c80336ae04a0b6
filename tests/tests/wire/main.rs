//! Real traffic, by real programs, over real devices.
//!
//! Every case is named; `cargo test --test wire -- --list` lists them. A case that needs something
//! that is not there fails: none is ever skipped.

mod plain;
mod worlds;

use std::{process::ExitCode, sync::Arc};

use anyhow::{Result, bail};
use libtest_mimic::{Arguments, Trial};
use proxy_tests::lab::remains;

fn main() -> Result<ExitCode> {
    let arguments = Arguments::from_args();
    if !arguments.list {
        if !nix::unistd::geteuid().is_root() {
            bail!("these tests make network namespaces: run them as root");
        }
        remains::sweep()?;
    }
    let worlds = Arc::new(worlds::Worlds::default());
    let trials: Vec<Trial> = plain::trials(&worlds);
    let conclusion = libtest_mimic::run(&arguments, trials);
    // The trials are gone, so this is the last owner, and what it holds is removed here.
    drop(worlds);
    Ok(conclusion.exit_code())
}
