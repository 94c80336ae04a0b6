//! A process that asks the servers of [`super::answer`] by a socket of a certain kind, in a certain
//! cgroup, and tells what its socket says.

use std::{
    fmt,
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::{
    socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
        sockopt,
    },
    time::{TimeVal, TimeValLike as _},
};
use serde::{Deserialize, Serialize};

use super::{cgroup, namespace::Namespace};

/// How the socket is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// A TCP connection.
    Tcp,
    /// A UDP socket that is connected.
    Udp,
    /// A UDP socket that is told whom to send to with each datagram.
    Datagram,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Datagram];

    /// Its name on the command line.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Datagram => "datagram",
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.word())
    }
}

/// A question.
#[derive(Clone, Debug, clap::Args)]
pub struct Dial {
    /// How the socket is used
    #[arg(value_enum)]
    pub way: Way,
    /// Whom to ask, as `192.0.2.1:7` or `[::ffff:192.0.2.1]:7`
    pub target: SocketAddr,
    /// The cgroup to be in
    #[arg(long)]
    pub cgroup: Option<PathBuf>,
    /// The address to bind to
    #[arg(long)]
    pub from: Option<IpAddr>,
    /// Ask again and again, by the same socket, until there is such a file
    #[arg(long)]
    pub until: Option<PathBuf>,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The last answer.
    pub answer: String,
    /// Whom the socket is connected to (`getpeername`), or who the answer came from (`recvfrom`).
    pub peer: Option<SocketAddr>,
    /// How often it was asked.
    pub times: u32,
    /// What went wrong.
    pub error: Option<String>,
}

impl Told {
    /// The pod that answered.
    #[must_use]
    pub fn pod(&self) -> &str {
        self.answer.split(' ').next().unwrap_or_default()
    }
}

impl Dial {
    /// The same from a process of its own.
    pub fn output(&self, namespace: &Namespace, lab: &Path) -> Result<Told> {
        let output = namespace.output(&mut self.command(lab))?;
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text).with_context(|| {
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            format!("{self:?} printed `{text}` and `{error}`")
        })
    }

    /// The command of a process that asks so; `lab` is the program that has it.
    #[must_use]
    pub fn command(&self, lab: &Path) -> Command {
        let mut command = Command::new(lab);
        command.args(["dial", self.way.word(), &self.target.to_string()]);
        if let Some(cgroup) = &self.cgroup {
            command.arg("--cgroup").arg(cgroup);
        }
        if let Some(from) = self.from {
            command.args(["--from", &from.to_string()]);
        }
        if let Some(file) = &self.until {
            command.arg("--until").arg(file);
        }
        command
    }

    /// Asks in this process.
    pub fn run(&self) -> Result<Told> {
        if let Some(cgroup) = &self.cgroup {
            cgroup::enter(cgroup)?;
        }
        let mut told = Told::default();
        if let Err(error) = self.ask(&mut told) {
            told.error = Some(format!("{error:#}"));
        }
        Ok(told)
    }

    fn ask(&self, told: &mut Told) -> Result<()> {
        let socket = self.socket()?;
        match self.way {
            Way::Tcp => {
                connect(socket.as_raw_fd(), &SockaddrStorage::from(self.target))?;
                let mut stream = TcpStream::from(socket);
                let mut lines = BufReader::new(stream.try_clone()?);
                self.repeat(told, |told| {
                    stream.write_all(b"hello\n")?;
                    told.answer.clear();
                    lines.read_line(&mut told.answer)?;
                    told.peer = Some(stream.peer_addr()?);
                    Ok(())
                })
            }
            Way::Udp => {
                connect(socket.as_raw_fd(), &SockaddrStorage::from(self.target))?;
                let socket = UdpSocket::from(socket);
                self.repeat(told, |told| {
                    socket.send(b"hello")?;
                    let (answer, from) = receive(&socket)?;
                    told.answer = answer;
                    told.peer = Some(socket.peer_addr()?);
                    anyhow::ensure!(Some(from) == told.peer, "the answer came from {from}");
                    Ok(())
                })
            }
            Way::Datagram => {
                let socket = UdpSocket::from(socket);
                self.repeat(told, |told| {
                    socket.send_to(b"hello", self.target)?;
                    let (answer, from) = receive(&socket)?;
                    (told.answer, told.peer) = (answer, Some(from));
                    Ok(())
                })
            }
        }
    }

    fn repeat(&self, told: &mut Told, mut once: impl FnMut(&mut Told) -> Result<()>) -> Result<()> {
        loop {
            once(told)?;
            told.times += 1;
            match &self.until {
                Some(file) if !file.exists() => thread::sleep(Duration::from_millis(20)),
                _ => return Ok(()),
            }
        }
    }

    fn socket(&self) -> Result<OwnedFd> {
        let v4 = self.target.is_ipv4();
        let family = if v4 {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let kind = match self.way {
            Way::Tcp => SockType::Stream,
            Way::Udp | Way::Datagram => SockType::Datagram,
        };
        let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
        let limit = TimeVal::seconds(2);
        setsockopt(&fd, sockopt::ReceiveTimeout, &limit)?;
        setsockopt(&fd, sockopt::SendTimeout, &limit)?;
        let any: IpAddr = if v4 {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        if self.from.is_some() || self.way != Way::Tcp {
            let from = SocketAddr::new(self.from.unwrap_or(any), 0);
            bind(fd.as_raw_fd(), &SockaddrStorage::from(from))?;
        }
        Ok(fd)
    }
}

fn receive(socket: &UdpSocket) -> Result<(String, SocketAddr)> {
    let mut buffer = [0; 256];
    let (length, from) = socket.recv_from(&mut buffer)?;
    let text = buffer.get(..length).unwrap_or_default();
    Ok((String::from_utf8_lossy(text).into_owned(), from))
}
