//! What goes through tunnels: much, many, and little.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::tunnel::bed::{Bed, LIMIT};

const BLOCK: usize = 256 * 1024;

/// Connections at once when they are counted.
const AT_ONCE: usize = 32;

/// Before a flow is measured it has so long to find its speed.
const WARM: Duration = Duration::from_millis(1_500);

/// Which way much goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the cluster to the server.
    Up,
    /// From the server to the cluster.
    Down,
}

/// Two thousand connections have four thousand ends in this process, and as many in each of theirs.
pub(super) fn many_descriptors() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the number of descriptors")
}

/// The server behind a tunnel: the first byte of a connection says what it does.
pub(super) struct Loaded {
    received: Arc<AtomicU64>,
}

impl Loaded {
    /// Starts it.
    pub(super) fn new(bed: &Bed) -> Result<Self> {
        let received = Arc::new(AtomicU64::new(0));
        let listener = bed.listen(9443)?;
        let count = Arc::clone(&received);
        thread::spawn(move || accept(&listener, &count));
        Ok(Self { received })
    }

    /// Whether somebody answers.
    #[expect(clippy::unused_self, reason = "asked of what is there")]
    pub(super) fn answers(&self, bed: &Bed) -> bool {
        let (pod, address) = (bed.pod(), bed.https());
        let asked = pod.enter(|| -> std::io::Result<()> {
            let limit = Duration::from_secs(1);
            let mut stream = TcpStream::connect_timeout(&address, limit)?;
            stream.set_read_timeout(Some(limit))?;
            stream.write_all(b"Q")?;
            stream.read_exact(&mut [0; 1])
        });
        matches!(asked, Ok(Ok(())))
    }

    /// Gbit/s of so many streams together, after they have found their speed.
    pub(super) fn streams(
        &self,
        bed: &Bed,
        count: usize,
        direction: Direction,
        time: Duration,
    ) -> Result<f64> {
        let stop = Arc::new(AtomicBool::new(false));
        let here = Arc::new(AtomicU64::new(0));
        let mut threads = Vec::new();
        for _ in 0..count {
            let mut stream = bed.connect(&bed.pod(), bed.https())?;
            let (stop, here) = (Arc::clone(&stop), Arc::clone(&here));
            threads.push(thread::spawn(move || match direction {
                Direction::Up => up(&mut stream, &stop),
                Direction::Down => down(&mut stream, &stop, &here),
            }));
        }
        let counter = match direction {
            Direction::Up => &self.received,
            Direction::Down => &here,
        };
        thread::sleep(WARM);
        let (before, start) = (counter.load(Ordering::Relaxed), Instant::now());
        thread::sleep(time);
        let bytes = counter.load(Ordering::Relaxed) - before;
        let seconds = start.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        for one in threads {
            one.join().ok().context("a stream's thread broke")?;
        }
        ensure!(bytes > 0, "nothing went through");
        #[expect(clippy::cast_precision_loss, reason = "far less than 2^52")]
        let bits = bytes as f64 * 8.0;
        // What is under way goes before the next is measured.
        thread::sleep(Duration::from_millis(300));
        Ok(bits / seconds / 1e9)
    }

    /// Connections a second: each asks and is answered.
    #[expect(clippy::unused_self, reason = "asked of what is there")]
    pub(super) fn connections(&self, bed: &Bed, time: Duration) -> Result<f64> {
        let (pod, address) = (bed.pod(), bed.https());
        let start = Instant::now();
        let mut threads = Vec::new();
        for _ in 0..AT_ONCE {
            threads.push(pod.thread(move || {
                let mut count = 0_u32;
                while start.elapsed() < time {
                    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
                    stream.set_read_timeout(Some(LIMIT))?;
                    stream.write_all(b"Q")?;
                    stream.read_exact(&mut [0; 1])?;
                    count += 1;
                }
                Ok(count)
            }));
        }
        let mut count = 0;
        for one in threads {
            count += one.join().ok().context("a client's thread broke")??;
        }
        Ok(f64::from(count) / start.elapsed().as_secs_f64())
    }

    /// Milliseconds within which 99 of 100 answers come, beside eight streams and a consumer that has
    /// stopped.
    #[expect(clippy::unused_self, reason = "asked of what is there")]
    pub(super) fn echo(&self, bed: &Bed, count: usize) -> Result<f64> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut stuck = bed.connect(&bed.pod(), bed.https())?;
        stuck.write_all(b"D")?;
        let mut threads = Vec::new();
        for _ in 0..8 {
            let mut stream = bed.connect(&bed.pod(), bed.https())?;
            let stop = Arc::clone(&stop);
            threads.push(thread::spawn(move || {
                down(&mut stream, &stop, &AtomicU64::new(0));
            }));
        }
        thread::sleep(WARM);
        let mut stream = bed.connect(&bed.pod(), bed.https())?;
        stream.write_all(b"E")?;
        let mut times = Vec::new();
        for _ in 0..count {
            let start = Instant::now();
            stream.write_all(b"x")?;
            stream.read_exact(&mut [0; 1])?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
            thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, Ordering::Relaxed);
        for one in threads {
            one.join().ok().context("a stream's thread broke")?;
        }
        drop(stuck);
        times.sort_by(f64::total_cmp);
        thread::sleep(Duration::from_millis(300));
        times
            .get(times.len() * 99 / 100)
            .copied()
            .context("nothing was measured")
    }

    /// So many connections that say nothing, each known to be carried.
    #[expect(clippy::unused_self, reason = "asked of what is there")]
    pub(super) fn hold(&self, bed: &Bed, count: usize) -> Result<Vec<TcpStream>> {
        let mut streams = Vec::new();
        for _ in 0..count {
            let mut stream = bed.connect(&bed.pod(), bed.https())?;
            stream.write_all(b"Ex")?;
            stream.read_exact(&mut [0; 1])?;
            streams.push(stream);
        }
        Ok(streams)
    }
}

fn up(stream: &mut TcpStream, stop: &AtomicBool) {
    let block = vec![0; BLOCK];
    if stream.write_all(b"U").is_err() {
        return;
    }
    while !stop.load(Ordering::Relaxed) && stream.write_all(&block).is_ok() {}
}

fn down(stream: &mut TcpStream, stop: &AtomicBool, count: &AtomicU64) {
    let mut block = vec![0; BLOCK];
    if stream.write_all(b"D").is_err() {
        return;
    }
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut block) {
            Ok(bytes @ 1..) => add(count, bytes),
            _ => return,
        }
    }
}

fn add(count: &AtomicU64, bytes: usize) {
    count.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
}

fn accept(listener: &TcpListener, received: &Arc<AtomicU64>) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let received = Arc::clone(received);
        // Small, since there may be thousands.
        let builder = thread::Builder::new().stack_size(64 * 1024);
        if builder.spawn(move || serve(stream, &received)).is_err() {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn serve(mut stream: TcpStream, received: &AtomicU64) {
    let mut what = [0];
    let _ = stream.set_nodelay(true);
    if stream.read_exact(&mut what).is_err() {
        return;
    }
    match what[0] {
        b'Q' => drop(stream.write_all(b"A")),
        b'D' => {
            let block = vec![0; BLOCK];
            while stream.write_all(&block).is_ok() {}
        }
        b'U' => {
            let mut block = vec![0; BLOCK];
            loop {
                match stream.read(&mut block) {
                    Ok(bytes @ 1..) => add(received, bytes),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    _ => return,
                }
            }
        }
        _ => {
            let mut small = [0; 64];
            while let Ok(bytes @ 1..) = stream.read(&mut small) {
                let part = small.get(..bytes).unwrap_or_default();
                if stream.write_all(part).is_err() {
                    return;
                }
            }
        }
    }
}
