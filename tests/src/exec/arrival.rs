//! XDP where a test run cannot be told the device that its frame comes in by (before Linux 5.14,
//! commit `ec94670fcb3b`): frames really arrive there, from the far end of a veth pair.
//!
//! What became of a frame is told by where it is seen next: at the device itself (passed), at the
//! far end of the same pair (sent back), at that of another (redirected), or nowhere (dropped).

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send,
    socket,
};

use super::requests::PEER;
use super::{XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX};

/// A frame is mostly seen at once; one that is not seen for so long was dropped.
const PATIENCE: Duration = Duration::from_millis(200);

/// Longest frame, bytes.
const ROOM: usize = 4_096;

/// Where the VLAN tag stands in a frame.
const TAG: std::ops::Range<usize> = 12..16;

/// All frames that a device receives.
#[derive(Debug)]
struct Tap {
    ifindex: u32,
    socket: OwnedFd,
}

impl Tap {
    fn open(ifindex: u32) -> Result<Self> {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )
        .context("opening a packet socket")?;
        let address = getifaddrs()?
            .filter_map(|interface| interface.address?.as_link_addr().copied())
            .find(|address| u32::try_from(address.ifindex()) == Ok(ifindex))
            .with_context(|| format!("there is no device {ifindex}"))?;
        bind(socket.as_raw_fd(), &address)
            .with_context(|| format!("binding a packet socket to device {ifindex}"))?;
        Ok(Self { ifindex, socket })
    }

    /// The next frame to a single station that the device has received, if there is one. Nodes
    /// look for their neighbours with frames to many.
    fn next(&self) -> Result<Option<Vec<u8>>> {
        const OUTGOING: u8 = 4;
        let mut frame = vec![0; ROOM];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut frame) {
                Ok((length, from)) => {
                    let to_many = frame.first().is_some_and(|byte| byte & 1 != 0);
                    let sent_here = from.is_some_and(|from| from.pkttype() == OUTGOING);
                    if !to_many && !sent_here {
                        frame.truncate(length);
                        return Ok(Some(frame));
                    }
                }
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("receiving at device {}", self.ifindex));
                }
            }
        }
    }

    fn drain(&self) -> Result<()> {
        while self.next()?.is_some() {}
        Ok(())
    }
}

/// Devices that frames can be made to arrive at.
#[derive(Debug)]
pub(super) struct Arrivals {
    near: Vec<Tap>,
    far: Vec<Tap>,
}

impl Arrivals {
    /// Opens the two ends of each pair. A far end only receives what XDP sends to it while an XDP
    /// program is there too (`veth_xdp_xmit`).
    pub(super) fn open(devices: &[u32]) -> Result<Self> {
        let taps = |beyond: u32| -> Result<Vec<Tap>> {
            let ends = devices.iter().map(|ifindex| ifindex + beyond);
            ends.map(Tap::open).collect()
        };
        Ok(Self {
            near: taps(0)?,
            far: taps(PEER)?,
        })
    }

    /// Lets a frame arrive at a device: what its program returned, and the frame.
    pub(super) fn arrive(&self, ifindex: u32, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
        let mut pairs = self.near.iter().zip(&self.far);
        let (near, far) = pairs
            .find(|(near, _)| near.ifindex == ifindex)
            .with_context(|| format!("no frame can be made to arrive at device {ifindex}"))?;
        for tap in self.near.iter().chain(&self.far) {
            tap.drain()?;
        }
        let length = send(far.socket.as_raw_fd(), frame, MsgFlags::empty())
            .map_err(io::Error::from)
            .with_context(|| format!("sending {} bytes to device {ifindex}", frame.len()))?;
        ensure!(length == frame.len(), "a frame was sent in part");
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some((code, seen)) = self.seen(near, far)? {
                return Ok((code, with_tag_of(frame, seen)));
            }
            if Instant::now() >= end {
                return Ok((XDP_DROP, frame.to_vec()));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn seen(&self, near: &Tap, far: &Tap) -> Result<Option<(u32, Vec<u8>)>> {
        if let Some(frame) = near.next()? {
            return Ok(Some((XDP_PASS, frame)));
        }
        for tap in &self.far {
            if let Some(frame) = tap.next()? {
                // What the stack makes of a frame that was passed to it comes after that frame.
                if let Some(passed) = near.next()? {
                    return Ok(Some((XDP_PASS, passed)));
                }
                let back = tap.ifindex == far.ifindex;
                return Ok(Some((if back { XDP_TX } else { XDP_REDIRECT }, frame)));
            }
        }
        Ok(None)
    }
}

/// Whether a frame begins with a VLAN tag and something in it. Less than four bytes, and the kernel
/// drops the frame when it takes out the tag (`skb_vlan_untag`): nothing is seen of it then.
pub(super) fn is_tagged(frame: &[u8]) -> bool {
    frame.len() >= TAG.end + 4 && matches!(frame.get(12..14), Some([0x81, 0] | [0x88, 0xa8]))
}

/// The kernel takes the first tag out of a frame before any socket sees it
/// (`__netif_receive_skb_core`). XDP does not change it: it is that of the frame that was sent.
fn with_tag_of(sent: &[u8], mut seen: Vec<u8>) -> Vec<u8> {
    if is_tagged(sent)
        && seen.len() >= TAG.start
        && let Some(tag) = sent.get(TAG)
    {
        seen.splice(TAG.start..TAG.start, tag.iter().copied());
    }
    seen
}
