//! Tells the service manager how we are (`sd_notify(3)`): one datagram, no library.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// A way to the service manager; none if it does not want to be told.
#[derive(Debug)]
pub(super) struct ServiceManager {
    socket: Option<(UnixDatagram, SocketAddr)>,
}

impl ServiceManager {
    /// The one that `NOTIFY_SOCKET` names.
    pub(super) fn from_environment() -> Self {
        let socket = std::env::var("NOTIFY_SOCKET")
            .ok()
            .and_then(|name| match open(&name) {
                Ok(socket) => Some(socket),
                Err(error) => {
                    tracing::warn!(%error, name, "the service manager cannot be told anything");
                    None
                }
            });
        Self { socket }
    }

    /// We are ready: dependants may start.
    pub(super) fn ready(&self) {
        self.tell("READY=1\nSTATUS=services are in the kernel");
    }

    /// The configuration is read anew; [`ready`](Self::ready) ends it.
    pub(super) fn reloading(&self) {
        let mut now = monotonic_microseconds();
        now.insert_str(0, "RELOADING=1\nMONOTONIC_USEC=");
        self.tell(&now);
    }

    /// We are going.
    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    fn tell(&self, message: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(error) = socket.send_to_addr(message.as_bytes(), address)
        {
            tracing::warn!(%error, "the service manager was not told");
        }
    }
}

/// Microseconds of the monotonic clock.
fn monotonic_microseconds() -> String {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map(|now| (now.tv_sec() * 1_000_000 + now.tv_nsec() / 1_000).to_string())
        .unwrap_or_default()
}

fn open(name: &str) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    Ok((UnixDatagram::unbound()?, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_arrives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let ours = ServiceManager {
            socket: Some(open(path.to_str().unwrap()).unwrap()),
        };
        ours.ready();
        ours.reloading();
        let mut buffer = [0; 200];
        let length = manager.recv(&mut buffer).unwrap();
        assert!(buffer[..length].starts_with(b"READY=1\n"));
        let length = manager.recv(&mut buffer).unwrap();
        let text = std::str::from_utf8(&buffer[..length]).unwrap();
        let (_, time) = text.split_once("\nMONOTONIC_USEC=").unwrap();
        assert!(time.parse::<u64>().unwrap() > 0);
    }
}
