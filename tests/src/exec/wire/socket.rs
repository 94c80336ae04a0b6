//! Packet sockets: frames are sent by a device, and seen where they leave a sink.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvfrom, sendto, socket,
};

/// Longest frame, bytes.
const ROOM: usize = 4_096;

/// `PACKET_OUTGOING` (packet(7)).
const OUTGOING: u8 = 4;

/// Sends frames by devices of the namespace that it was opened in.
pub(super) struct Sender {
    socket: OwnedFd,
    devices: BTreeMap<u32, LinkAddr>,
}

impl Sender {
    /// For the devices that the calling thread's namespace has now.
    pub(super) fn open() -> Result<Self> {
        let devices = getifaddrs()?
            .filter_map(|interface| interface.address?.as_link_addr().copied())
            .filter_map(|address| Some((u32::try_from(address.ifindex()).ok()?, address)))
            .collect();
        Ok(Self {
            socket: packet_socket(None)?,
            devices,
        })
    }

    pub(super) fn send(&self, ifindex: u32, frame: &[u8]) -> Result<()> {
        let device = self.devices.get(&ifindex).context("no such device")?;
        let sent = sendto(self.socket.as_raw_fd(), frame, device, MsgFlags::empty());
        // What a program drops at egress the kernel tells the sender (`net_xmit_errno`).
        if sent == Err(Errno::ENOBUFS) {
            return Ok(());
        }
        let sent =
            sent.with_context(|| format!("sending {} bytes by device {ifindex}", frame.len()))?;
        ensure!(sent == frame.len(), "a frame was sent in part");
        Ok(())
    }
}

/// Sees all frames that devices of the namespace send in which it was opened.
pub(super) struct Receiver {
    socket: OwnedFd,
}

impl Receiver {
    pub(super) fn open() -> Result<Self> {
        Ok(Self {
            socket: packet_socket(Some(SockProtocol::EthAll))?,
        })
    }

    /// The next frame that was sent by a device, and the device; none if there is none yet.
    ///
    /// What devices receive is not wanted: sockets see that before TC does, and without its VLAN tag.
    pub(super) fn next(&self) -> Result<Option<(u32, Vec<u8>)>> {
        let mut frame = vec![0; ROOM];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut frame) {
                Ok((length, Some(from))) if from.pkttype() == OUTGOING => {
                    frame.truncate(length);
                    return Ok(Some((u32::try_from(from.ifindex())?, frame)));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(error).context("receiving from a packet socket"),
            }
        }
    }
}

/// Waits until one of `receivers` has something; false if that takes too long.
pub(super) fn wait(receivers: [&Receiver; 2], until: Instant) -> Result<bool> {
    let left = until.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    let mut sets = receivers.map(|one| PollFd::new(one.socket.as_fd(), PollFlags::POLLIN));
    match poll(&mut sets, timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(true),
        Err(error) => Err(error).context("waiting for frames"),
    }
}

/// Without a protocol nothing is received.
fn packet_socket(protocol: Option<SockProtocol>) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    socket(AddressFamily::Packet, SockType::Raw, flags, protocol).context("opening a packet socket")
}
