//! The datapath's cases, each on the host, in the kernel and on devices, and random frames on the first
//! two.
//!
//! Names say where a case is played: `host::`, `kernel::`, `wire::`, `clsact::` (on devices with TC's
//! programs attached as before Linux 6.6), `differential::`, `concurrency::`. All but the host's need root.

use std::env;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use proxy_tests::case::place::Version;
use proxy_tests::exec::host::Host;
use proxy_tests::exec::kernel::Kernel;
use proxy_tests::exec::play;
use proxy_tests::exec::wire::{self, Wire};
use proxy_tests::{cases, concurrency, differential};

type Job<E> = Box<dyn FnOnce(&mut E) + Send>;

/// A thread, and the way to give it work.
struct Worker<E> {
    jobs: Result<Sender<Job<E>>, String>,
    thread: JoinHandle<()>,
}

impl<E: 'static> Worker<E> {
    fn start(start: fn() -> Result<E>) -> Self {
        let (ready, started) = channel();
        let (sender, jobs) = channel::<Job<E>>();
        let thread = thread::spawn(move || match start() {
            Ok(mut executor) => {
                let _ = ready.send(Ok(()));
                while let Ok(job) = jobs.recv() {
                    job(&mut executor);
                }
            }
            Err(error) => {
                let _ = ready.send(Err(format!("{error:#}")));
            }
        });
        let outcome = started
            .recv()
            .unwrap_or_else(|_| Err("the executor's thread has gone".to_owned()));
        Self {
            jobs: outcome.map(|()| sender),
            thread,
        }
    }

    /// Waits until the executor has cleaned up after itself.
    fn end(self) {
        drop(self.jobs);
        // What it panicked of, a case has said.
        let _ = self.thread.join();
    }
}

/// The one thread that has an executor's namespaces, programs and maps; all its cases take turns there.
struct Turns<E> {
    worker: Mutex<Option<Worker<E>>>,
    start: fn() -> Result<E>,
}

static KERNEL: Turns<Kernel> = Turns::new(Kernel::start);
static WIRE: Turns<Wire> = Turns::new(Wire::start);
static CLSACT: Turns<Wire> = Turns::new(Wire::start_with_filters);

impl<E: 'static> Turns<E> {
    const fn new(start: fn() -> Result<E>) -> Self {
        Self {
            worker: Mutex::new(None),
            start,
        }
    }

    fn take(&self, work: impl FnOnce(&mut E) -> Result<()> + Send + 'static) -> Result<()> {
        let (reply, answer) = channel();
        let job: Job<E> = Box::new(move |executor| {
            let _ = reply.send(work(executor));
        });
        let sender = self
            .worker
            .lock()
            .map_err(|_| anyhow!("another test panicked"))?
            .get_or_insert_with(|| Worker::start(self.start))
            .jobs
            .clone()
            .map_err(|error| anyhow!("the executor does not start: {error}"))?;
        sender
            .send(job)
            .map_err(|_| anyhow!("the executor's thread has gone"))?;
        answer.recv().context("the executor's thread panicked")?
    }

    fn end(&self) {
        if let Ok(mut worker) = self.worker.lock()
            && let Some(worker) = worker.take()
        {
            worker.end();
        }
    }
}

fn outcome(result: Result<()>) -> Result<(), Failed> {
    result.map_err(|error| Failed::from(format!("{error:#}")))
}

/// A number from the environment, or else this one.
fn setting(name: &str, otherwise: u64) -> Result<u64> {
    match env::var(name) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{name}={text} is not a number")),
        Err(_) => Ok(otherwise),
    }
}

/// `CAUSEWAY_DIFFERENTIAL_FRAMES` frames (100,000) from `CAUSEWAY_DIFFERENTIAL_SEED` (the time).
fn random_histories(kernel: &mut Kernel) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let seed = setting("CAUSEWAY_DIFFERENTIAL_SEED", now)?;
    let frames = setting("CAUSEWAY_DIFFERENTIAL_FRAMES", 100_000)?;
    let mut report = io::stderr();
    writeln!(
        report,
        "differential: CAUSEWAY_DIFFERENTIAL_SEED={seed}, {frames} frames"
    )?;
    let tally = differential::play(kernel, seed, u32::try_from(frames)?)?;
    writeln!(report, "differential: {tally:?}")?;
    // Frames that nothing happens to prove nothing.
    ensure!(
        tally.rewritten > tally.frames / 10,
        "hardly a frame was rewritten: {tally:?}"
    );
    ensure!(
        tally.connections > u64::from(tally.frames / 100),
        "hardly a connection: {tally:?}"
    );
    Ok(())
}

/// Themes that are played with filters of `clsact` too.
const WITH_FILTERS: [&str; 4] = ["service::", "node_port::", "refusal::", "vlan::"];

/// The cases on devices.
fn wire_trials() -> Vec<Trial> {
    let mut trials = vec![Trial::test("wire::what_is_left_out_is_named", || {
        outcome(wire::count(&cases::all()).and_then(|(played, left_out)| {
            writeln!(
                io::stderr(),
                "wire: {played} cases are played, {left_out} are left out"
            )?;
            Ok(())
        }))
    })];
    let played = || {
        let cases = cases::all().into_iter();
        cases.filter(|case| wire::reason(&case.name).is_none())
    };
    for case in played() {
        let name = format!("wire::{}", case.name);
        trials.push(Trial::test(name, move || {
            outcome(WIRE.take(move |wire| play(&case, wire)))
        }));
    }
    for case in played() {
        if WITH_FILTERS
            .iter()
            .any(|theme| case.name.starts_with(theme))
        {
            let name = format!("clsact::{}", case.name);
            trials.push(Trial::test(name, move || {
                outcome(CLSACT.take(move |wire| play(&case, wire)))
            }));
        }
    }
    trials
}

type Concurrency = (&'static str, fn(Version) -> Result<()>);

const CONCURRENCY: [Concurrency; 2] = [
    (
        "same_connections_are_made_once",
        concurrency::same_connections,
    ),
    ("ports_are_claimed_once", concurrency::competing_connections),
];

/// Does work that moves its thread about.
fn in_thread(work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    let thread = thread::spawn(work);
    thread.join().map_err(|_| anyhow!("the thread panicked"))?
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for case in cases::all() {
        let name = format!("host::{}", case.name);
        trials.push(Trial::test(name, move || {
            outcome(play(&case, &mut Host::default()))
        }));
    }
    for case in cases::all() {
        let name = format!("kernel::{}", case.name);
        trials.push(Trial::test(name, move || {
            outcome(KERNEL.take(move |kernel| play(&case, kernel)))
        }));
    }
    trials.extend(wire_trials());
    for (version, family) in [(Version::V4, "v4"), (Version::V6, "v6")] {
        for (what, play) in CONCURRENCY {
            trials.push(Trial::test(
                format!("concurrency::{what}::{family}"),
                move || outcome(in_thread(move || play(version))),
            ));
        }
    }
    trials.push(Trial::test("differential::random_histories", || {
        outcome(KERNEL.take(random_histories))
    }));
    let conclusion = libtest_mimic::run(&arguments, trials);
    KERNEL.end();
    WIRE.end();
    CLSACT.end();
    conclusion.exit_code()
}
