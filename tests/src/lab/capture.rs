//! Packets as they pass a device, by tcpdump.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{namespace::Namespace, process::Process, world::World};

/// Which way packets went, seen from the device's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// They came in.
    In,
    /// They went out.
    Out,
}

/// A running tcpdump for each way.
#[derive(Debug)]
pub struct Capture {
    running: [(Process, PathBuf); 2],
}

/// What was captured.
#[derive(Clone, Debug, Default)]
pub struct Captured {
    inward: Vec<Vec<u8>>,
    outward: Vec<Vec<u8>>,
}

impl Capture {
    /// Starts to capture what `filter` (pcap-filter(7)) lets through on `device`.
    pub fn start(
        world: &World,
        namespace: &Namespace,
        device: &str,
        filter: &str,
        name: &str,
    ) -> Result<Self> {
        let start = |way: &str| -> Result<(Process, PathBuf)> {
            let file = world.directory().join(format!("{name}-{way}.pcap"));
            let mut command = Command::new("tcpdump");
            command
                .args([
                    "-n",
                    "-U",
                    "--immediate-mode",
                    "-i",
                    device,
                    "-Q",
                    way,
                    "-w",
                ])
                .arg(&file)
                .arg(filter);
            let log = format!("tcpdump-{name}-{way}");
            let mut process = world.start(namespace, command, &log)?;
            let text = world.directory().join(format!("{log}.log"));
            let listens =
                || fs::read_to_string(&text).is_ok_and(|text| text.contains("listening on"));
            process.wait_until(Duration::from_secs(10), listens)?;
            Ok((process, file))
        };
        Ok(Self {
            running: [start("in")?, start("out")?],
        })
    }

    /// Ends it.
    pub fn finish(self) -> Result<Captured> {
        let [inward, outward] = self.running.map(|(mut process, file)| {
            process.end(Signal::SIGINT, Duration::from_secs(5))?;
            let bytes = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
            packets(&bytes).with_context(|| format!("in {}", file.display()))
        });
        Ok(Captured {
            inward: inward?,
            outward: outward?,
        })
    }
}

impl Captured {
    /// What UDP datagrams without extension headers carried that came in.
    #[must_use]
    pub fn datagrams(&self) -> Vec<Vec<u8>> {
        const UDP: usize = 8;
        self.inward
            .iter()
            .filter_map(|frame| {
                let packet = frame.get(ETHERNET..)?;
                let header = match packet.first()? >> 4 {
                    4 => usize::from(packet.first()? & 15) * 4,
                    _ => 40,
                };
                Some(packet.get(header + UDP..)?.to_vec())
            })
            .collect()
    }

    /// The IP packets that went this way, sorted, without what every router changes: the hop limit
    /// and with it IPv4's header checksum. (They may overtake each other, so their order says nothing.)
    #[must_use]
    pub fn packets(&self, side: Side) -> Vec<Vec<u8>> {
        let frames = match side {
            Side::In => &self.inward,
            Side::Out => &self.outward,
        };
        let mut packets: Vec<_> = frames.iter().map(|frame| without_hops(frame)).collect();
        packets.sort_unstable();
        packets
    }
}

/// Bytes of the link-layer header.
const ETHERNET: usize = 14;

fn without_hops(frame: &[u8]) -> Vec<u8> {
    let mut packet = frame.get(ETHERNET..).unwrap_or_default().to_vec();
    let changing: &[usize] = match packet.first().map(|first| first >> 4) {
        Some(4) => &[8, 10, 11],
        _ => &[7],
    };
    for at in changing {
        if let Some(byte) = packet.get_mut(*at) {
            *byte = 0;
        }
    }
    packet
}

/// The frames of a file in the format of pcap-savefile(5), as this machine writes it.
fn packets(file: &[u8]) -> Result<Vec<Vec<u8>>> {
    const MAGIC: u32 = 0xa1b2_c3d4;
    const FILE_HEADER: usize = 24;
    const RECORD_HEADER: usize = 16;
    let number = |bytes: &[u8], at: usize| -> Option<u32> {
        let field = bytes.get(at..at + 4)?;
        Some(u32::from_ne_bytes(field.try_into().ok()?))
    };
    ensure!(
        number(file, 0) == Some(MAGIC),
        "no pcap file of this byte order"
    );
    let mut rest = file
        .get(FILE_HEADER..)
        .context("the file ends in its header")?;
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let captured = number(rest, 8).context("the file ends in a record's header")?;
        let original = number(rest, 12).context("the file ends in a record's header")?;
        ensure!(captured == original, "a packet was cut off");
        let end = RECORD_HEADER + usize::try_from(captured)?;
        let frame = rest
            .get(RECORD_HEADER..end)
            .context("the file ends in a packet")?;
        frames.push(frame.to_vec());
        rest = rest.get(end..).unwrap_or_default();
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_apart() {
        let mut file = vec![0; 24];
        file[..4].copy_from_slice(&0xa1b2_c3d4_u32.to_ne_bytes());
        for frame in [&b"first"[..], b"second one"] {
            let length = u32::try_from(frame.len()).unwrap().to_ne_bytes();
            file.extend([0; 8]);
            file.extend(length);
            file.extend(length);
            file.extend(frame);
        }
        assert_eq!(
            packets(&file).unwrap(),
            [b"first".to_vec(), b"second one".to_vec()]
        );
        assert!(packets(&file[..file.len() - 1]).is_err());
    }

    #[test]
    fn only_what_routers_change_is_hidden() {
        let mut frame = vec![0xff; 14 + 20];
        frame[14] = 0x45;
        let hidden: Vec<_> = (0..20)
            .filter(|at| without_hops(&frame)[*at] == 0)
            .collect();
        assert_eq!(hidden, [8, 10, 11]);
        frame[14] = 0x60;
        let hidden: Vec<_> = (0..20)
            .filter(|at| without_hops(&frame)[*at] == 0)
            .collect();
        assert_eq!(hidden, [7]);
    }
    #[test]
    fn datagrams_are_taken_out() {
        let mut v4 = [&[0; ETHERNET][..], &[0x46], &[0; 23 + 8], b"41"].concat();
        let v6 = [&[0; ETHERNET][..], &[0x60], &[0; 39 + 8], b"7"].concat();
        let captured = Captured {
            inward: vec![v4.clone(), v6],
            outward: Vec::new(),
        };
        assert_eq!(captured.datagrams(), [b"41".to_vec(), b"7".to_vec()]);
        v4.truncate(30);
        let inward = vec![v4];
        let outward = Vec::new();
        assert!(Captured { inward, outward }.datagrams().is_empty());
    }
}
