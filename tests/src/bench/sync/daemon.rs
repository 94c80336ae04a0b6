//! A running daemon and the maps that it fills.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use proxy_common::abi::{ServiceKey, V4};
use proxy_user::dataplane::{Maps, PinFolder};

use super::{Size, manifests::key};
use crate::{
    bench::{
        namespace::Temporary,
        wire::rules::{self, SERVICE_PORT},
    },
    lab::process::Process,
};

/// How long a load may take.
const PATIENCE: Duration = Duration::from_mins(5);

/// How often the maps are looked at.
const INTERVAL: Duration = Duration::from_micros(500);

/// Services that are looked at before all are counted.
const SAMPLES: usize = 16;

/// `causeway run` in a namespace, ended and taken out of the kernel when this is dropped.
#[derive(Debug)]
pub(super) struct Daemon {
    process: Process,
    folder: PinFolder,
}

impl Daemon {
    /// Starts it with the manifests in `place`.
    pub(super) fn start(place: &Temporary) -> Result<Self> {
        Self::start_with(place, &config(place))
    }

    /// Starts it with this configuration.
    pub(super) fn start_with(place: &Temporary, config: &str) -> Result<Self> {
        let file = place.directory.join("causeway.toml");
        fs::write(&file, config).context("writing the configuration")?;
        let mut command = Command::new(program()?);
        command.arg("run").arg("--config").arg(&file);
        let process = Process::start(&place.namespace, command, "causeway", &place.directory)?;
        Ok(Self {
            process,
            folder: PinFolder::new(place.namespace.name()),
        })
    }

    /// Waits until the kernel knows `count` services.
    pub(super) fn wait_for(&self, count: u32) -> Result<()> {
        let step = (count as usize / SAMPLES).max(1);
        let samples: Vec<ServiceKey<V4>> = rules::services(count)
            .step_by(step)
            .map(|service| key(&service, SERVICE_PORT))
            .collect();
        self.wait(|maps| {
            for sample in &samples {
                if maps.services_v4.get(sample)?.is_none() {
                    return Ok(false);
                }
            }
            let mut found = 0;
            maps.services_v4.for_each(|_, _| found += 1)?;
            // The measured service of suite `wire` has a UDP port, which is left out here.
            Ok(found >= count)
        })
    }

    /// Waits until the kernel knows all services and endpoints, and leads every service somewhere.
    pub(super) fn wait_for_all(&self, size: Size) -> Result<()> {
        self.wait_for(size.services)?;
        self.wait(|maps| {
            let mut empty = 0;
            maps.services_v4.for_each(|_, service| {
                empty += u32::from(service.slots < size.endpoints && service.slots != 1);
            })?;
            let mut backends = 0;
            maps.backends
                .for_each(|_, backend| backends += u32::from(backend.family != 0))?;
            Ok(empty == 0 && backends >= size.services * size.endpoints)
        })
    }

    /// Waits until the kernel knows this port of a service.
    pub(super) fn wait_for_port(&self, key: ServiceKey<V4>) -> Result<()> {
        self.wait(|maps| Ok(maps.services_v4.get(&key)?.is_some()))
    }

    /// Its id.
    pub(super) fn id(&self) -> Result<u32> {
        self.process.id().context("the daemon has ended")
    }

    /// MiB of memory that the daemon has just now, without its maps, which are the kernel's.
    pub(super) fn memory(&self) -> Result<f64> {
        memory(self.id()?)
    }

    fn wait(&self, done: impl Fn(&Maps) -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        let mut maps = None;
        loop {
            if maps.is_none() {
                maps = Maps::open(&self.folder).ok();
            }
            if let Some(maps) = &maps
                && done(maps)?
            {
                return Ok(());
            }
            ensure!(
                start.elapsed() < PATIENCE,
                "nothing has happened for {PATIENCE:?}; the daemon printed: {}",
                self.process.printed()
            );
            thread::sleep(INTERVAL);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.process.end(Signal::SIGTERM, Duration::from_secs(10)) {
            tracing::warn!(%error, "the daemon did not end");
        }
        if let Err(error) = self.folder.remove() {
            tracing::warn!(%error, "pins were left behind");
        }
    }
}

/// MiB of resident memory of a process.
pub(super) fn memory(id: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{id}/status")).context("reading its status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    let kib: f64 = number.context("no VmRSS")?.parse().context("VmRSS")?;
    Ok(kib / 1024.0)
}

/// A configuration for the most services and endpoints, from manifests.
pub(super) fn config(place: &Temporary) -> String {
    config_with(place, "[manifests]\ndirectory = \"manifests\"")
}

/// The same from an API server.
pub(super) fn config_for(place: &Temporary, kubeconfig: &Path) -> String {
    let source = format!(
        "[source]\nkind = \"kubernetes\"\nkubeconfig = \"{}\"",
        kubeconfig.display()
    );
    config_with(place, &source)
}

fn config_with(place: &Temporary, source: &str) -> String {
    format!(
        "version = 1\ninstance = \"{}\"\n[node]\nname = \"bench\"\n[devices]\nuplinks = [\"in0\"]\n\
         {source}\n[maps]\nbackends = 1048576\n\
         [state]\ndirectory = \"{}\"\n[api]\nsocket = \"{}\"\n",
        place.namespace.name(),
        place.directory.join("state").display(),
        place.directory.join("causeway.sock").display()
    )
}

/// The daemon's program, which cargo builds into the same folder as this one.
fn program() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    let path = own.with_file_name("causeway");
    if !path.exists() {
        bail!(
            "{} is not there; build it with `cargo build -p proxy-user`",
            path.display()
        );
    }
    Ok(path)
}
