//! Asking many questions at once, from one place.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpSocket, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use crate::lab::namespace::Namespace;

use super::{
    answer::{Answer, End},
    scenario::Protocol,
};

/// Questions under way at once.
const AT_ONCE: usize = 96;

/// After as many of one kind (twice as many, if there was another), no other is expected.
const SAME_SILENCE: usize = 2;
const SAME_REFUSAL: usize = 3;

/// How hard to ask.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// How often.
    pub times: u32,
    /// How long to wait for an answer.
    pub limit: Duration,
}

/// A question of one place.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// The number of the answer.
    pub number: usize,
    /// From this address; an unspecified one leaves it to the kernel.
    pub from: IpAddr,
    /// To this one.
    pub to: SocketAddr,
    /// By this protocol.
    pub protocol: Protocol,
}

/// Asks, in this namespace: those of a group one after the other, groups at once.
pub fn ask(
    namespace: &Namespace,
    groups: Vec<Vec<Question>>,
    effort: Effort,
) -> Result<Vec<(usize, Answer)>> {
    namespace.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let room = Arc::new(Semaphore::new(AT_ONCE));
            let mut tasks = JoinSet::new();
            for group in groups {
                let room = Arc::clone(&room);
                tasks.spawn(async move {
                    let _held = room.acquire().await?;
                    let mut answers = Vec::new();
                    for question in group {
                        answers.push((question.number, one(question, effort).await));
                    }
                    anyhow::Ok(answers)
                });
            }
            let mut found = Vec::new();
            while let Some(answers) = tasks.join_next().await {
                found.extend(answers.context("a task that asks panicked")??);
            }
            Ok(found)
        })
    })?
}

async fn one(question: Question, effort: Effort) -> Answer {
    let mut answer = Answer::default();
    let mut ends: Vec<End> = Vec::new();
    for _ in 0..effort.times {
        let end = match question.protocol {
            Protocol::Tcp => end_of(timeout(effort.limit, tcp(question)).await),
            Protocol::Udp => end_of(timeout(effort.limit, udp(question)).await),
        };
        ends.push(end.clone());
        answer.0.insert(end);
        let count = |kind: &End| ends.iter().filter(|end| *end == kind).count();
        let alone = if answer.0.len() == 1 { 1 } else { 2 };
        if count(&End::TimedOut) >= alone * SAME_SILENCE
            || count(&End::Refused) >= alone * SAME_REFUSAL
        {
            break;
        }
    }
    answer
}

fn end_of(result: Result<io::Result<String>, tokio::time::error::Elapsed>) -> End {
    match result {
        Err(_) => End::TimedOut,
        Ok(Ok(text)) => answered(&text).unwrap_or(End::Failed(text)),
        Ok(Err(error)) => match error.kind() {
            // A reset may come while connecting, or just after.
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => End::Refused,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => End::Unreachable,
            io::ErrorKind::TimedOut => End::TimedOut,
            _ => End::Failed(error.to_string()),
        },
    }
}

/// From `<backend> <client address>`.
fn answered(text: &str) -> Option<End> {
    let mut words = text.split_ascii_whitespace();
    Some(End::Answered {
        backend: words.next()?.to_owned(),
        source: words.next()?.parse().ok()?,
    })
}

async fn tcp(question: Question) -> io::Result<String> {
    let socket = match question.to {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.bind(SocketAddr::new(question.from, 0))?;
    let mut stream = socket.connect(question.to).await?;
    stream.write_all(b"who?\n").await?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).await?;
    Ok(line)
}

async fn udp(question: Question) -> io::Result<String> {
    let socket = UdpSocket::bind(SocketAddr::new(question.from, 0)).await?;
    socket.connect(question.to).await?;
    match socket.send(b"who?").await {
        // A filter of this host's own did not let it out; whether it was refused comes as an error.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        sent => drop(sent?),
    }
    let mut buffer = [0; 128];
    let length = socket.recv(&mut buffer).await?;
    let text = buffer.get(..length).unwrap_or_default();
    Ok(String::from_utf8_lossy(text).into_owned())
}
