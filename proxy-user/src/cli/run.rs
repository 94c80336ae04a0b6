//! `causeway run` and `causeway detach`.

use std::io::Write;

use anyhow::Context as _;

use super::{
    Exit, Failure,
    arguments::{Arguments, Detach, Run},
    load,
    output::Output,
};
use crate::{
    api, daemon,
    dataplane::{PinFolder, attach::detach_all},
    telemetry::log,
};

/// Runs the daemon until it is told to stop.
pub(super) fn run(arguments: &Run) -> anyhow::Result<()> {
    log::init(arguments.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let ended = runtime.block_on(daemon::run(&arguments.config, api::serve));
    ended.map_err(|error| match error {
        daemon::RunError::Config(error) => Failure::from(error).into(),
        error => error.into(),
    })
}

/// Takes every program, map and pin of an instance out of the kernel.
pub(super) fn detach<W: Write>(
    arguments: &Arguments,
    detach: &Detach,
    output: &mut Output<W>,
) -> anyhow::Result<()> {
    let (instance, socket) = match &detach.config {
        Some(file) => {
            let config = load(file)?;
            (config.instance, config.socket)
        }
        None => (arguments.instance.clone(), arguments.socket()),
    };
    // A daemon would put everything back at once.
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        let message = format!("the daemon of instance {instance:?} is running: stop it first");
        return Err(Failure::new(Exit::Failed, message).into());
    }
    detach_all(&PinFolder::new(&instance)).context("cannot detach")?;
    output.text(&format!("instance {instance} is out of the kernel"))
}
