//! The datapath's cases, each on the host and in the kernel, and random frames on both.
//!
//! Names say where a case is played: `host::`, `kernel::`, `differential::`. The kernel's need root.

use std::env;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use proxy_tests::exec::host::Host;
use proxy_tests::exec::kernel::Kernel;
use proxy_tests::exec::play;
use proxy_tests::{cases, differential};

type Job = Box<dyn FnOnce(&mut Kernel) + Send>;

/// A thread, and the way to give it work.
struct Worker {
    jobs: Result<Sender<Job>, String>,
    thread: JoinHandle<()>,
}

/// The one thread that has a namespace, programs and maps; all kernel cases take turns there.
static WORKER: Mutex<Option<Worker>> = Mutex::new(None);

impl Worker {
    fn start() -> Self {
        let (ready, started) = channel();
        let (sender, jobs) = channel::<Job>();
        let thread = thread::spawn(move || match Kernel::start() {
            Ok(mut kernel) => {
                let _ = ready.send(Ok(()));
                while let Ok(job) = jobs.recv() {
                    job(&mut kernel);
                }
            }
            Err(error) => {
                let _ = ready.send(Err(format!("{error:#}")));
            }
        });
        let outcome = started
            .recv()
            .unwrap_or_else(|_| Err("the kernel executor's thread has gone".to_owned()));
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

fn in_kernel(work: impl FnOnce(&mut Kernel) -> Result<()> + Send + 'static) -> Result<()> {
    let (reply, answer) = channel();
    let job: Job = Box::new(move |kernel| {
        let _ = reply.send(work(kernel));
    });
    let sender = WORKER
        .lock()
        .map_err(|_| anyhow!("another test panicked"))?
        .get_or_insert_with(Worker::start)
        .jobs
        .clone()
        .map_err(|error| anyhow!("the kernel executor does not start: {error}"))?;
    sender
        .send(job)
        .map_err(|_| anyhow!("the kernel executor's thread has gone"))?;
    answer
        .recv()
        .context("the kernel executor's thread panicked")?
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
            outcome(in_kernel(move |kernel| play(&case, kernel)))
        }));
    }
    trials.push(Trial::test("differential::random_histories", || {
        outcome(in_kernel(random_histories))
    }));
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Ok(mut worker) = WORKER.lock()
        && let Some(worker) = worker.take()
    {
        worker.end();
    }
    conclusion.exit_code()
}
