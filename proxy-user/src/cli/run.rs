//! `causeway run` and `causeway detach`.

use std::{io::Write, sync::Arc};

use anyhow::Context as _;
use tokio::sync::watch;

use super::{
    Failure,
    arguments::{Arguments, Detach, Run},
    load,
    output::Output,
};
use crate::{
    api,
    daemon::{self, View},
    dataplane::{InstanceLock, PinFolder, attach::detach_all},
    health, pod_network,
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
    let serve = |view: Arc<View>, config, stop: watch::Receiver<bool>| async move {
        let api = api::serve(Arc::clone(&view), config, stop.clone());
        let told = daemon::announce(Arc::clone(&view), stop.clone());
        tokio::join!(api, health::serve(view, stop), told);
    };
    let ended = runtime.block_on(daemon::run(&arguments.config, serve));
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
    let instance = match &detach.config {
        Some(file) => load(file)?.instance,
        None => arguments.instance.clone(),
    };
    let folder = PinFolder::new(&instance);
    // A daemon would put everything back at once.
    let _lock = InstanceLock::of_existing(&folder).context("cannot detach")?;
    detach_all(&folder).context("cannot detach")?;
    if let Err(error) = pod_network::remove_masquerade(&instance) {
        // A kernel without nftables has no tables of ours either.
        tracing::debug!(%error, "no tables of nftables were removed");
    }
    output.text(&format!("instance {instance} is out of the kernel"))
}
