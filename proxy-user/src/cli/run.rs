//! `causeway run` and `causeway detach`.

use std::io::Write;

use anyhow::Context as _;

use super::arguments::{Detach, Run};
use super::output::Output;
use crate::config::Config;
use crate::daemon;
use crate::dataplane::{PinFolder, attach};
use crate::telemetry::log;

/// Runs the daemon until it is told to stop.
pub(super) fn run(arguments: &Run) -> anyhow::Result<()> {
    log::init(arguments.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        daemon::run(&arguments.config, |_view, _config, mut stop| async move {
            // The flag's owner being gone means the same.
            let _ = stop.wait_for(|stop| *stop).await;
        })
        .await
        .context("causeway run")
    })
}

/// Takes every program, map and pin of an instance out of the kernel.
pub(super) fn detach<W: Write>(arguments: &Detach, output: &mut Output<W>) -> anyhow::Result<()> {
    let instance = match (&arguments.instance, &arguments.config) {
        (Some(instance), _) => instance.clone(),
        (None, Some(file)) => Config::load(file)?.instance,
        (None, None) => "default".to_owned(),
    };
    let folder = PinFolder::new(&instance);
    attach::detach_all(&folder)?;
    output.text(&format!("instance {instance} is out of the kernel"))
}
