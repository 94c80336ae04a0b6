//! What the daemon tells the plugin of the node, and whether it is there.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use nix::fcntl::{FcntlArg, fcntl};
use serde::{Deserialize, Serialize};

use crate::record::write_whole;

/// The file that the daemon writes.
const NODE: &str = "node.json";

/// The file that the daemon locks while it is ready.
const DAEMON: &str = "daemon";

/// A device that has the daemon's programs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attended {
    /// Kernel interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
}

/// The node, as the daemon sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeFile {
    /// `metadata.name` of the Node.
    pub node: String,
    /// `spec.podCIDRs` of the Node.
    pub pod_ranges: Vec<IpNet>,
    /// MTU of pods' devices: the smallest of the uplinks; none: there is no uplink.
    pub mtu: Option<u32>,
    /// Pods' devices that have their programs.
    pub devices: Vec<Attended>,
}

impl NodeFile {
    /// Reads it; none: no daemon has ever written one.
    pub fn read(root: &Path) -> io::Result<Option<Self>> {
        match fs::read(root.join(NODE)) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes it whole.
    pub fn write(&self, root: &Path) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        write_whole(root, NODE, &text, false)
    }

    /// Whether a device has its programs.
    #[must_use]
    pub fn attends(&self, device: &Attended) -> bool {
        self.devices.contains(device)
    }
}

/// The daemon's sign of life: a lock that ends with it, however it ends.
#[derive(Debug)]
pub struct Presence {
    _file: File,
}

/// A lock of the whole file. It belongs to the open file, so it also works within one process, and
/// can be looked at without being taken (`fcntl(2)`, "Open file description locks").
fn whole(kind: i32) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: 0,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn open(root: &Path) -> io::Result<File> {
    let path: PathBuf = root.join(DAEMON);
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).open(path)
}

impl Presence {
    /// Says that the daemon is ready.
    pub fn announce(root: &Path) -> io::Result<Self> {
        let file = open(root)?;
        fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&whole(libc::F_WRLCK)))?;
        Ok(Self { _file: file })
    }

    /// Whether some daemon is ready.
    pub fn is_there(root: &Path) -> io::Result<bool> {
        if !root.join(DAEMON).exists() {
            return Ok(false);
        }
        let file = open(root)?;
        let mut lock = whole(libc::F_WRLCK);
        fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut lock))?;
        Ok(i32::from(lock.l_type) != libc::F_UNLCK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_there_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!Presence::is_there(folder.path()).unwrap());
        let presence = Presence::announce(folder.path()).unwrap();
        assert!(Presence::is_there(folder.path()).unwrap());
        assert!(Presence::announce(folder.path()).is_err());
        drop(presence);
        assert!(!Presence::is_there(folder.path()).unwrap());
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(NodeFile::read(folder.path()).unwrap(), None);
        let device = |ifindex| Attended {
            ifindex,
            name: "cwp0".to_owned(),
        };
        let file = NodeFile {
            node: "node1".to_owned(),
            pod_ranges: vec!["10.0.0.0/24".parse().unwrap()],
            mtu: Some(1500),
            devices: vec![device(7)],
        };
        file.write(folder.path()).unwrap();
        assert_eq!(NodeFile::read(folder.path()).unwrap().unwrap(), file);
        // A name may come back with another device.
        assert!(file.attends(&device(7)) && !file.attends(&device(8)));
        fs::write(folder.path().join(NODE), "{").unwrap();
        assert!(NodeFile::read(folder.path()).is_err());
    }
}
