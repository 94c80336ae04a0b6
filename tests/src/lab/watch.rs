//! Work that makes worlds is done in a process that another one watches, so that Ctrl-C and SIGTERM can
//! stop it at any point and what it has made is removed.

use std::{
    env,
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Result, bail};
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};

use super::remains;

/// The argument that tells the process that does the work.
pub const WATCHED: &str = "--watched";

/// The exit code of what Ctrl-C ended: 128 and the number of SIGINT.
const INTERRUPTED: u8 = 130;

/// Runs this program again, with the same arguments and [`WATCHED`]; removes the worlds if it is
/// interrupted.
pub fn watch(worlds: &[&str]) -> Result<ExitCode> {
    need_root()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let code = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut child = tokio::process::Command::new(env::current_exe()?)
            .args(env::args_os().skip(1))
            .arg(WATCHED)
            .process_group(0)
            .spawn()?;
        tokio::select! {
            status = child.wait() => return Ok::<_, anyhow::Error>(status?.code()),
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        child.kill().await?;
        for world in worlds {
            remains::remove(world)?;
        }
        writeln!(io::stderr(), "\ninterrupted; everything is removed")?;
        Ok(Some(INTERRUPTED.into()))
    })?;
    Ok(exit_code(code))
}

/// What the watched process does first: a watcher that is killed takes it along.
pub fn be_watched() -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    remains::sweep()?;
    Ok(())
}

/// That of a program that ended with `code`, or by a signal.
#[must_use]
pub fn exit_code(code: Option<i32>) -> ExitCode {
    let code = code.and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

/// An error for whoever may not make network namespaces.
pub fn need_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces need root: run this as root");
    }
    Ok(())
}
