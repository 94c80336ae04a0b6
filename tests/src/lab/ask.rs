//! Single questions to the servers of [`super::answer`], and what became of them.

use std::{
    fmt, io,
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{layout::Family, namespace::Namespace};

/// How a question is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Means {
    /// `curl` to nginx.
    Http,
    /// One line over a TCP connection to the echo server.
    Tcp,
    /// One datagram to the echo server.
    Udp,
}

impl fmt::Display for Means {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// What became of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Answered {
        /// By this pod.
        pod: String,
        /// Which saw this client.
        client: SocketAddr,
    },
    /// TCP reset or ICMP unreachable.
    Refused,
    /// Nothing came back in time.
    TimedOut,
    /// Something else; the text says what.
    Failed(String),
}

impl Outcome {
    /// The pod that answered.
    #[must_use]
    pub fn pod(&self) -> Option<&str> {
        match self {
            Self::Answered { pod, .. } => Some(pod),
            _ => None,
        }
    }

    /// The client address that the pod saw.
    #[must_use]
    pub fn client(&self) -> Option<IpAddr> {
        match self {
            Self::Answered { client, .. } => Some(client.ip()),
            _ => None,
        }
    }

    fn of(result: io::Result<String>) -> Self {
        match result {
            Ok(text) => Self::parse(&text).unwrap_or_else(|error| Self::Failed(error.to_string())),
            Err(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => Self::Refused,
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::TimedOut,
                _ => Self::Failed(error.to_string()),
            },
        }
    }

    /// From `<pod> <client address> <client port>`, whatever follows.
    fn parse(text: &str) -> Result<Self> {
        let mut words = text.split_ascii_whitespace();
        let (Some(pod), Some(address), Some(port)) = (words.next(), words.next(), words.next())
        else {
            bail!("an answer that no server of ours gives: `{text}`");
        };
        let address: IpAddr = address.parse().with_context(|| format!("in `{text}`"))?;
        Ok(Self::Answered {
            pod: pod.to_owned(),
            client: SocketAddr::new(address, port.parse()?),
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered { pod, client } => write!(out, "{pod} answered {}", client.ip()),
            Self::Refused => write!(out, "refused"),
            Self::TimedOut => write!(out, "timed out"),
            Self::Failed(text) => write!(out, "failed: {text}"),
        }
    }
}

/// A question and how long its outcome took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// What came of it.
    pub outcome: Outcome,
    /// Until then.
    pub took: Duration,
}

/// Asks the server at `target` from `namespace` and waits at most `limit`.
pub fn ask(
    namespace: &Namespace,
    means: Means,
    target: SocketAddr,
    limit: Duration,
) -> Result<Attempt> {
    let start = Instant::now();
    let outcome = match means {
        Means::Http => http(namespace, target, limit)?,
        Means::Tcp => Outcome::of(namespace.enter(|| tcp(target, limit))?),
        Means::Udp => Outcome::of(namespace.enter(|| udp(target, limit))?),
    };
    Ok(Attempt {
        outcome,
        took: start.elapsed(),
    })
}

/// Waits until `target` has a route and, where it is on the link, a neighbour: the first seconds of a
/// world's life must not count as a fault of what is tested in it.
pub fn ping(namespace: &Namespace, target: IpAddr, limit: Duration) -> Result<bool> {
    let family = match target {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    };
    let flag = if family == Family::V4 { "-4" } else { "-6" };
    let seconds = limit.as_secs_f32().to_string();
    let output = namespace.output(
        Command::new("ping")
            .args([flag, "-n", "-q", "-c", "1", "-W", &seconds])
            .arg(target.to_string()),
    )?;
    Ok(output.status.success())
}

fn http(namespace: &Namespace, target: SocketAddr, limit: Duration) -> Result<Outcome> {
    // Exit codes: curl(1).
    const CANNOT_CONNECT: i32 = 7;
    const TIMED_OUT: i32 = 28;
    let output = namespace.output(
        Command::new("curl")
            .args(["--silent", "--show-error", "--noproxy", "*", "--max-time"])
            .arg(limit.as_secs_f32().to_string())
            .arg(format!("http://{target}/")),
    )?;
    Ok(match output.status.code() {
        Some(0) => Outcome::of(Ok(String::from_utf8_lossy(&output.stdout).into_owned())),
        Some(CANNOT_CONNECT) => Outcome::Refused,
        Some(TIMED_OUT) => Outcome::TimedOut,
        _ => Outcome::Failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    })
}

fn tcp(target: SocketAddr, limit: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&target, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"hello\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}

fn udp(target: SocketAddr, limit: Duration) -> io::Result<String> {
    let any = if target.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(limit))?;
    socket.send(b"hello")?;
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer)?;
    let text = buffer.get(..length).unwrap_or_default();
    Ok(String::from_utf8_lossy(text).into_owned())
}
