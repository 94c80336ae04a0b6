//! Much at once, much in one, ends, resets, and consumers that have stopped.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    os::fd::AsFd as _,
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    socket::{setsockopt, sockopt::Linger},
};
use proxy_tests::tunnel::bed::{Bed, HTTPS, LIMIT, Object};
use serde_json::Value;

/// Which ends.
#[derive(Clone, Copy, Debug)]
enum Ends {
    Ours,
    ToSshd,
    FromSsh,
}

const ALL: [Ends; 3] = [Ends::Ours, Ends::ToSshd, Ends::FromSsh];

/// A tunnel, and the programs at both ends of it.
fn tunnel(ends: Ends, more: &str) -> Result<(Vec<proxy_tests::lab::process::Process>, Bed)> {
    let bed = Bed::new()?;
    let programs = match ends {
        Ends::Ours => {
            bed.manifests(&Object::default().with(more))?;
            let node = bed.start_node()?;
            let server = bed.start_server()?;
            bed.wait_until_up()?;
            vec![node, server]
        }
        Ends::ToSshd => {
            bed.manifests(&Object::openssh().with(more))?;
            let sshd = bed.start_sshd("")?;
            let server = bed.start_server()?;
            bed.wait_until_up()?;
            vec![sshd, server]
        }
        Ends::FromSsh => {
            bed.manifests(&Object::default().with(more))?;
            let node = bed.start_node()?;
            let ssh = bed.start_ssh("cyclecloud", &[])?;
            vec![node, ssh]
        }
    };
    Ok((programs, bed))
}

#[test]
fn two_thousand_connections_at_once() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let (_programs, bed) = tunnel(Ends::Ours, "")?;
    bed.echo(9443)?;
    let (pod, address) = (bed.pod(), bed.https());
    let mut streams = Vec::new();
    for _ in 0..2_000 {
        let stream = pod.enter(|| TcpStream::connect(address))?;
        streams.push(stream.context("connecting")?);
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(&number.to_be_bytes())?;
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        let mut back = [0; 8];
        stream
            .read_exact(&mut back)
            .with_context(|| format!("of {number}"))?;
        ensure!(back == number.to_be_bytes());
    }
    ensure!(bed.counted(HTTPS, "active")? == 2_000);
    drop(streams);
    let start = Instant::now();
    while bed.counted(HTTPS, "active")? > 0 {
        ensure!(
            start.elapsed() < LIMIT,
            "{} remain",
            bed.counted(HTTPS, "active")?
        );
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A client says that it has no more, and still gets its answer.
#[test]
fn an_end_is_passed_on_as_an_end() -> Result<()> {
    for ends in ALL {
        let (_programs, bed) = tunnel(ends, "")?;
        let listener = bed.listen(9443)?;
        let server = thread::spawn(move || -> Result<Vec<u8>> {
            let mut all = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream?;
                stream.read_to_end(&mut all)?;
                // What looks whether the port is open sends nothing.
                if !all.is_empty() {
                    stream.write_all(b"I have heard it all")?;
                    break;
                }
            }
            Ok(all)
        });
        let mut stream = bed.connect(&bed.pod(), bed.https())?;
        stream.write_all(b"this is all")?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer == "I have heard it all", "{ends:?}: {answer}");
        let heard = server.join().ok().context("the server broke")??;
        ensure!(heard == b"this is all", "{ends:?}");
    }
    Ok(())
}

fn reset(stream: TcpStream) -> Result<()> {
    let now = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&stream.as_fd(), Linger, &now)?;
    drop(stream);
    Ok(())
}

/// What was cut off does not look as if it were complete: in both directions, also after the other
/// side's end.
#[test]
fn a_reset_is_passed_on_as_a_reset() -> Result<()> {
    let (_programs, bed) = tunnel(Ends::Ours, "")?;
    let listener = bed.listen(9443)?;
    for client_ended in [false, true] {
        let mut stream = bed.connect(&bed.pod(), bed.https())?;
        stream.write_all(b"?")?;
        if client_ended {
            stream.shutdown(Shutdown::Write)?;
        }
        let (mut far, _) = listener.accept()?;
        far.read_exact(&mut [0; 1])?;
        far.write_all(b"half of it")?;
        let mut half = [0; 10];
        stream.read_exact(&mut half)?;
        reset(far)?;
        let error = stream.read(&mut half).err().map(|error| error.kind());
        ensure!(
            error == Some(ErrorKind::ConnectionReset),
            "{client_ended}: {error:?}"
        );
    }
    let mut stream = bed.connect(&bed.pod(), bed.https())?;
    stream.write_all(b"?")?;
    let (mut far, _) = listener.accept()?;
    far.set_read_timeout(Some(LIMIT))?;
    far.read_exact(&mut [0; 1])?;
    reset(stream)?;
    let error = far.read(&mut [0; 1]).err().map(|error| error.kind());
    ensure!(error == Some(ErrorKind::ConnectionReset), "{error:?}");
    ensure!(bed.counted(HTTPS, "refused/reset")? >= 3);
    Ok(())
}

#[test]
fn a_target_that_does_not_accept_is_told_by_a_reset() -> Result<()> {
    let (_programs, bed) = tunnel(Ends::Ours, "")?;
    // The reset may come before this process has seen that the connection was made.
    let told = match bed.connect(&bed.pod(), bed.https()) {
        Ok(mut stream) => stream.read(&mut [0; 1]).err(),
        Err(error) => Some(error.downcast::<std::io::Error>()?),
    };
    let kind = told.map(|error| error.kind());
    ensure!(kind == Some(ErrorKind::ConnectionReset), "{kind:?}");
    let start = Instant::now();
    while bed.counted(HTTPS, "refused/target")? != 1 {
        ensure!(start.elapsed() < LIMIT, "it is not counted");
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Bytes that are different everywhere, so that what is lost, doubled or out of order shows.
fn pattern(at: u64, buffer: &mut [u8]) {
    for (i, chunk) in (0_u64..).zip(buffer.chunks_mut(8)) {
        let word = (at / 8 + i)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .to_le_bytes();
        chunk.copy_from_slice(word.get(..chunk.len()).unwrap_or_default());
    }
}

fn send(stream: &mut TcpStream, bytes: u64) -> std::io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut at = 0;
    while at < bytes {
        pattern(at, &mut buffer);
        stream.write_all(&buffer)?;
        at += 256 * 1024;
    }
    stream.shutdown(Shutdown::Write)
}

fn check(stream: &mut TcpStream, bytes: u64) -> Result<()> {
    let (mut buffer, mut wanted) = (vec![0; 256 * 1024], vec![0; 256 * 1024]);
    let mut at = 0;
    while at < bytes {
        stream
            .read_exact(&mut buffer)
            .with_context(|| format!("at {at}"))?;
        pattern(at, &mut wanted);
        ensure!(buffer == wanted, "other bytes at {at}");
        at += 256 * 1024;
    }
    ensure!(stream.read(&mut buffer)? == 0, "more than was sent");
    Ok(())
}

/// Much, both ways at once, while keys change all the time: every byte arrives, in order.
fn rekeys(ends: Ends, bytes: u64, rekey: u64) -> Result<()> {
    let (_programs, bed) = tunnel(ends, &format!("limits: {{rekeyBytes: {rekey}}}"))?;
    let listener = bed.listen(9443)?;
    let server = thread::spawn(move || -> Result<()> {
        let mut threads = Vec::new();
        for _ in 0..4 {
            let (mut from, _) = listener.accept()?;
            let mut to = from.try_clone()?;
            threads.push(thread::spawn(move || {
                send(&mut to, bytes).map_err(Into::into)
            }));
            threads.push(thread::spawn(move || check(&mut from, bytes)));
        }
        threads
            .into_iter()
            .try_for_each(|one| one.join().ok().context("broke")?)
    });
    let mut threads = Vec::new();
    for _ in 0..4 {
        let mut from = bed.connect(&bed.pod(), bed.https())?;
        let mut to = from.try_clone()?;
        threads.push(thread::spawn(move || {
            send(&mut to, bytes).map_err(Into::into)
        }));
        threads.push(thread::spawn(move || check(&mut from, bytes)));
    }
    let near: Vec<Result<()>> = threads
        .into_iter()
        .map(|one| one.join().ok().context("a thread broke")?)
        .collect();
    // Whoever fails makes the other side wait: both are told.
    let far = server.join().ok().context("the server broke")?;
    ensure!(
        near.iter().all(Result::is_ok) && far.is_ok(),
        "{ends:?}: at the client {near:?}, at the server {far:?}"
    );
    if !matches!(ends, Ends::FromSsh) {
        let tunnel = bed.tunnel()?;
        let figure = |name: &str| {
            let path = format!("/figures/{name}");
            tunnel
                .pointer(&path)
                .and_then(Value::as_u64)
                .unwrap_or_default()
        };
        ensure!(figure("rekeys") >= 4, "{} rekeys", figure("rekeys"));
        let sessions: u64 = if matches!(ends, Ends::Ours) { 2 } else { 1 };
        ensure!(
            figure("dials") == sessions,
            "{} dials: a session broke",
            figure("dials")
        );
    }
    Ok(())
}

#[test]
fn keys_change_under_load_between_our_ends() -> Result<()> {
    rekeys(Ends::Ours, 256 << 20, 32 << 20)
}

/// The same with 10 GiB each way and the smallest limit that is in use (`ChaCha20`): a minute or two.
#[test]
fn ten_gibibytes_through_rekeys() -> Result<()> {
    rekeys(Ends::Ours, (10 << 30) / 4, 1 << 30)
}

#[test]
fn keys_change_under_load_to_openssh() -> Result<()> {
    rekeys(Ends::ToSshd, 32 << 20, 16 << 20)
}

/// Connections whose consumers have stopped delay no other.
#[test]
fn stuck_consumers_delay_nobody() -> Result<()> {
    for ends in ALL {
        let (_programs, bed) = tunnel(ends, "limits: {queueBytes: 4194304}")?;
        let listener = bed.listen(9443)?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || serve(stream));
            }
        });
        // They ask for as much as there is, and read none of it.
        let mut stuck = Vec::new();
        for _ in 0..5 {
            let mut stream = bed.connect(&bed.pod(), bed.https())?;
            stream.write_all(b"F")?;
            stuck.push(stream);
        }
        sleep(Duration::from_secs(1));
        let mut times = Vec::new();
        for _ in 0..20 {
            let mut fresh = bed.connect(&bed.pod(), bed.https())?;
            for _ in 0..10 {
                times.push(bed.round_trip(&mut fresh, b"e")?);
            }
        }
        times.sort();
        let slow = times
            .get(times.len() * 95 / 100)
            .copied()
            .unwrap_or_default();
        // The bounds are for a machine that has other work to do; what is stuck would stop all for
        // ever. OpenSSH's own end has five floods to carry meanwhile.
        let bound = match ends {
            Ends::Ours => Duration::from_millis(200),
            Ends::ToSshd | Ends::FromSsh => Duration::from_secs(2),
        };
        ensure!(slow < bound, "{ends:?}: {slow:?}");
        drop(stuck);
    }
    Ok(())
}

/// Floods who asks with `F`, and sends everything else back.
fn serve(mut stream: TcpStream) {
    let mut buffer = vec![0; 65_536];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        let part = buffer.get(..count).unwrap_or_default();
        if part.first() == Some(&b'F') {
            let flood = vec![0; 65_536];
            while stream.write_all(&flood).is_ok() {}
            return;
        }
        if stream.write_all(part).is_err() {
            return;
        }
    }
}
