//! Traffic that goes on while something happens to the network, and counts what it loses.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpStream, UdpSocket},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::namespace::Namespace;

/// How long an answer over TCP may take before the connection counts as broken. TCP itself repeats a
/// lost packet, so this is only reached by a connection that is dead.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long there must be silence before what has not been answered over UDP counts as lost: a server
/// on a busy machine may not run for a while.
const LAST: Duration = Duration::from_secs(2);

/// Runs `work` in `namespace` on a thread of its own.
fn in_background<T, F>(namespace: &Namespace, work: F) -> JoinHandle<Result<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    namespace.thread(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(work)
    })
}

fn finish<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread
        .join()
        .map_err(|_| anyhow!("the thread that makes traffic panicked"))?
}

/// Many TCP connections to an echo server, each asking again and again.
#[derive(Debug)]
pub struct Connections {
    shared: Arc<Progress>,
    thread: JoinHandle<Result<Vec<String>>>,
}

/// What became of [`Connections`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionReport {
    /// How many were opened.
    pub opened: u64,
    /// Questions that were answered, over all of them.
    pub exchanges: u64,
    /// Why some broke.
    pub broken: Vec<String>,
}

#[derive(Debug, Default)]
struct Progress {
    stop: AtomicBool,
    opened: AtomicU64,
    exchanges: AtomicU64,
}

impl Connections {
    /// Opens `count` connections to `target`, each asking every `pause`. Returns when all are open.
    pub fn open(
        namespace: &Namespace,
        target: SocketAddr,
        count: u64,
        pause: Duration,
    ) -> Result<Self> {
        let shared = Arc::new(Progress::default());
        let inside = Arc::clone(&shared);
        let thread = in_background(namespace, async move {
            let mut tasks = JoinSet::new();
            for _ in 0..count {
                tasks.spawn(converse(target, pause, Arc::clone(&inside)));
            }
            let ends = tasks.join_all().await;
            Ok(ends
                .into_iter()
                .filter_map(Result::err)
                .map(|error| format!("{error:#}"))
                .collect())
        });
        let start = Instant::now();
        while shared.opened.load(Ordering::Relaxed) < count {
            if thread.is_finished() || start.elapsed() > PATIENCE {
                let opened = shared.opened.load(Ordering::Relaxed);
                shared.stop.store(true, Ordering::Relaxed);
                let errors = finish(thread)?;
                bail!("only {opened} of {count} connections to {target} opened: {errors:?}");
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { shared, thread })
    }

    /// Questions answered so far.
    #[must_use]
    pub fn exchanges(&self) -> u64 {
        self.shared.exchanges.load(Ordering::Relaxed)
    }

    /// Lets each connection finish its exchange, closes them, and reports.
    pub fn finish(self) -> Result<ConnectionReport> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let broken = finish(self.thread)?;
        Ok(ConnectionReport {
            opened: self.shared.opened.load(Ordering::Relaxed),
            exchanges: self.shared.exchanges.load(Ordering::Relaxed),
            broken,
        })
    }
}

/// One connection's life.
async fn converse(target: SocketAddr, pause: Duration, progress: Arc<Progress>) -> Result<()> {
    let stream = timeout(PATIENCE, TcpStream::connect(target))
        .await
        .context("connecting took too long")?
        .context("connecting")?;
    stream.set_nodelay(true)?;
    progress.opened.fetch_add(1, Ordering::Relaxed);
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let mut number = 0_u64;
    while !progress.stop.load(Ordering::Relaxed) {
        number += 1;
        write
            .write_all(format!("{number}\n").as_bytes())
            .await
            .with_context(|| format!("sending question {number}"))?;
        let line = timeout(PATIENCE, lines.next_line())
            .await
            .with_context(|| format!("no answer to question {number}"))?
            .with_context(|| format!("waiting for answer {number}"))?
            .with_context(|| format!("closed instead of answer {number}"))?;
        if line.rsplit(' ').next() != Some(number.to_string().as_str()) {
            bail!("question {number} was answered `{line}`");
        }
        progress.exchanges.fetch_add(1, Ordering::Relaxed);
        sleep(pause).await;
    }
    Ok(())
}

/// A UDP flow of constant rate to an echo server: one socket, so one flow.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<BTreeMap<u64, String>>>,
    thread: JoinHandle<Result<(u64, u64)>>,
}

/// What became of a [`Stream`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamReport {
    /// Datagrams sent, numbered from 0.
    pub sent: u64,
    /// How often the socket reported an ICMP error.
    pub errors: u64,
    /// The pod that answered each.
    pub answers: BTreeMap<u64, String>,
}

impl StreamReport {
    /// The numbers of the datagrams that nobody answered.
    #[must_use]
    pub fn lost(&self) -> Vec<u64> {
        (0..self.sent)
            .filter(|number| !self.answers.contains_key(number))
            .collect()
    }

    /// The pods that answered, in order of appearance, with how many in a row.
    #[must_use]
    pub fn runs(&self) -> Vec<(&str, u64)> {
        let mut runs: Vec<(&str, u64)> = Vec::new();
        for pod in self.answers.values() {
            match runs.last_mut() {
                Some((last, count)) if *last == pod => *count += 1,
                _ => runs.push((pod, 1)),
            }
        }
        runs
    }
}

impl Stream {
    /// Starts to send `rate` datagrams a second to `target`.
    #[must_use]
    pub fn start(namespace: &Namespace, target: SocketAddr, rate: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(Mutex::new(BTreeMap::new()));
        let thread = in_background(
            namespace,
            flow(target, rate, Arc::clone(&stop), Arc::clone(&answers)),
        );
        Self {
            stop,
            answers,
            thread,
        }
    }

    /// The pod that answered last, if any did.
    #[must_use]
    pub fn last_pod(&self) -> Option<String> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.last_key_value().map(|(_, pod)| pod.clone())
    }

    /// Number of answers so far.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Stops sending, waits for the last answers, and reports.
    pub fn finish(self) -> Result<StreamReport> {
        self.stop.store(true, Ordering::Relaxed);
        let (sent, errors) = finish(self.thread)?;
        let answers = self
            .answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Ok(StreamReport {
            sent,
            errors,
            answers,
        })
    }
}

/// Sends until told to stop; returns how many it sent and how many errors it met.
async fn flow(
    target: SocketAddr,
    rate: u32,
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<BTreeMap<u64, String>>>,
) -> Result<(u64, u64)> {
    let any = if target.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(target).await?;
    let mut tick = interval(Duration::from_secs(1) / rate.max(1));
    // A late tick is sent late, all ticks are sent: the count of datagrams says how long it took.
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut sent, mut errors) = (0, 0);
    let mut buffer = [0; 256];
    let take = |result: io::Result<usize>, buffer: &[u8]| -> u64 {
        let Ok(length) = result else {
            return 1;
        };
        let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
        let mut words = text.split(' ');
        if let (Some(pod), Some(Ok(number))) = (words.next(), words.nth(2).map(str::parse)) {
            let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.insert(number, pod.to_owned());
        }
        0
    };
    while !stop.load(Ordering::Relaxed) {
        tokio::select! {
            _ = tick.tick() => match socket.send(sent.to_string().as_bytes()).await {
                Ok(_) => sent += 1,
                Err(_) => errors += 1,
            },
            result = socket.recv(&mut buffer) => errors += take(result, &buffer),
        }
    }
    let missing = || {
        let answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
        (answers.len() as u64) < sent
    };
    while missing() {
        match timeout(LAST, socket.recv(&mut buffer)).await {
            Ok(result) => errors += take(result, &buffer),
            Err(_) => break,
        }
    }
    Ok((sent, errors))
}
