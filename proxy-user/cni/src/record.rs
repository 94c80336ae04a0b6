//! What is known of each pod's device, one file each: written before anything is made, removed when
//! nothing is left.
//!
//! A record is the allocation of its addresses and the publication of its host ports in one, so
//! there is no half of either. Whoever is killed leaves a record, by which DEL, GC or the next ADD
//! find everything else. Network namespaces do not outlive a boot of the machine, so records of
//! another boot are void.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};

use crate::error::{CniError, Code};
use crate::protocol::{AttachmentKey, PodName};

/// Names of the host's ends of our pods' devices begin so, and 12 hexadecimal digits follow.
pub const DEVICE_PREFIX: &str = "cwp";

/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Transport protocols of host ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port of the node that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// At this address of the node; none: at all; an unspecified one: at all of its family.
    pub host_ip: Option<IpAddr>,
    /// The node's port.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// One pod's device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// The network's name.
    pub network: String,
    /// The container.
    pub container: String,
    /// The device in it.
    pub interface: String,
    /// The path of its network namespace.
    pub sandbox: PathBuf,
    /// The pod, if the runtime told.
    pub pod: Option<PodName>,
    /// The host's end.
    pub device: String,
    /// MTU of both ends.
    pub mtu: u32,
    /// One address of each family.
    pub addresses: Vec<IpAddr>,
    /// Host ports.
    pub port_mappings: Vec<PortMapping>,
    /// When it was added, milliseconds since 1970.
    pub added: u64,
    /// During which boot.
    pub boot: String,
    /// Everything was made.
    pub complete: bool,
}

impl AttachmentKey {
    fn file(&self) -> String {
        // No container's identifier has an @.
        format!("{}@{}.json", self.container, self.interface)
    }

    fn digest(&self) -> [u8; 20] {
        let mut hash = Sha1::new();
        hash.update(self.container.as_bytes());
        hash.update([0]);
        hash.update(self.interface.as_bytes());
        hash.finalize().into()
    }

    /// The name of the host's end: always the same, so that it is found without a record too.
    #[must_use]
    pub fn device(&self) -> String {
        let [a, b, c, d, e, f, ..] = self.digest();
        format!("{DEVICE_PREFIX}{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}{f:02x}")
    }

    /// Link-layer addresses of the host's end and the pod's: locally administered (IEEE 802).
    #[must_use]
    pub fn macs(&self) -> [[u8; 6]; 2] {
        let [a, b, c, d, e, ..] = self.digest();
        [[0x0e, a, b, c, d, e], [0x0a, a, b, c, d, e]]
    }
}

/// Whether a device has a name that [`AttachmentKey::device`] gives.
#[must_use]
pub fn is_pod_device(name: &str) -> bool {
    name.strip_prefix(DEVICE_PREFIX).is_some_and(|digits| {
        digits.len() == 12 && digits.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
    })
}

impl Attachment {
    /// Which it is.
    #[must_use]
    pub fn key(&self) -> AttachmentKey {
        AttachmentKey {
            container: self.container.clone(),
            interface: self.interface.clone(),
        }
    }
}

/// The directory of records.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    boot: String,
}

/// For as long as it lives, nobody else changes records or devices.
#[derive(Debug)]
pub struct StoreLock {
    _file: Flock<File>,
}

/// What a directory of records holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// Those of this boot.
    pub attachments: BTreeMap<AttachmentKey, Attachment>,
    /// Files of another boot, and those that cannot be read.
    pub void: Vec<PathBuf>,
}

impl Store {
    /// The store in a directory, which need not be there.
    pub fn new(root: &Path) -> io::Result<Self> {
        let boot = fs::read_to_string(BOOT_ID)?;
        Ok(Self {
            root: root.to_owned(),
            boot: boot.trim().to_owned(),
        })
    }

    /// The directory of the records themselves.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.root.join("attachments")
    }

    /// The directory that plugin and daemon share.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Which boot this is.
    #[must_use]
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// Makes the directories.
    pub fn create(&self) -> io::Result<()> {
        fs::create_dir_all(self.folder())
    }

    /// Waits until nobody else works here. Who is killed lets go.
    pub fn lock(&self) -> Result<StoreLock, CniError> {
        let path = self.root.join("lock");
        let locked = self.create().and_then(|()| {
            let mut options = OpenOptions::new();
            let file = options.create(true).append(true).open(&path)?;
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
        });
        match locked {
            Ok(file) => Ok(StoreLock { _file: file }),
            Err(error) => Err(CniError::io(
                format!("cannot lock {}", path.display()),
                &error,
            )),
        }
    }

    /// Everything that is there.
    pub fn list(&self) -> io::Result<Records> {
        let mut records = Records::default();
        let entries = match fs::read_dir(self.folder()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(records),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let path = entry?.path();
            // Files that were never renamed are of a plugin that was killed.
            if path.extension().is_none_or(|extension| extension != "json") {
                records.void.push(path);
                continue;
            }
            let text = match fs::read(&path) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            match serde_json::from_slice::<Attachment>(&text) {
                Ok(attachment) if attachment.boot == self.boot => {
                    records.attachments.insert(attachment.key(), attachment);
                }
                _ => records.void.push(path),
            }
        }
        records.void.sort();
        Ok(records)
    }

    /// Writes a record, so that it is there whole or not at all, whatever happens.
    pub fn write(&self, attachment: &Attachment) -> Result<(), CniError> {
        let name = attachment.key().file();
        let text = serde_json::to_vec_pretty(attachment).map_err(io::Error::other);
        text.and_then(|text| write_whole(&self.folder(), &name, &text, true))
            .map_err(|error| {
                let message = format!("cannot write {}", self.folder().join(&name).display());
                CniError::io(message, &error)
            })
    }

    /// Removes a record, if it is there.
    pub fn remove(&self, key: &AttachmentKey) -> Result<(), CniError> {
        let path = self.folder().join(key.file());
        let removed = match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => Err(error),
            Ok(()) => File::open(self.folder()).and_then(|folder| folder.sync_all()),
        };
        removed.map_err(|error| CniError::io(format!("cannot remove {}", path.display()), &error))
    }

    /// The addresses that were given out last.
    #[must_use]
    pub fn last(&self) -> Vec<IpAddr> {
        let text = fs::read(self.root.join("last.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Remembers the addresses that were given out last. Only the order of choice depends on it, so
    /// it need not outlive a crash of the machine.
    pub fn set_last(&self, addresses: &[IpAddr]) {
        if let Ok(text) = serde_json::to_vec(addresses) {
            let _ = write_whole(&self.root, "last.json", &text, false);
        }
    }
}

/// Milliseconds since 1970.
#[must_use]
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since
        .ok()
        .and_then(|since| u64::try_from(since.as_millis()).ok())
        .unwrap_or_default()
}

/// Writes a file under a name of its own, and then gives it the right one. `sync`: and waits until
/// both are on the disk.
pub(crate) fn write_whole(folder: &Path, name: &str, text: &[u8], sync: bool) -> io::Result<()> {
    let fresh = folder.join(format!("{name}.{}", std::process::id()));
    let mut file = File::create(&fresh)?;
    file.write_all(text)?;
    if sync {
        file.sync_all()?;
    }
    fs::rename(&fresh, folder.join(name))?;
    if sync {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Removes files of another boot, and what a killed plugin left half written.
pub(crate) fn sweep(records: &Records) -> Result<(), CniError> {
    for path in &records.void {
        if let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            let message = format!("cannot remove {}", path.display());
            return Err(CniError::new(Code::Incomplete, message, error.to_string()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(store: &Store, container: &str) -> Attachment {
        let key = AttachmentKey::checked(container.to_owned(), "eth0".to_owned()).unwrap();
        Attachment {
            network: "pods".to_owned(),
            device: key.device(),
            container: key.container,
            interface: key.interface,
            sandbox: "/run/netns/x".into(),
            pod: None,
            mtu: 1500,
            addresses: vec!["10.0.0.1".parse().unwrap()],
            port_mappings: Vec::new(),
            added: 1,
            boot: store.boot().to_owned(),
            complete: false,
        }
    }

    #[test]
    fn records_of_another_boot_and_halves_are_void() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path()).unwrap();
        assert_eq!(store.list().unwrap(), Records::default());
        store.create().unwrap();
        let one = attachment(&store, "one");
        store.write(&one).unwrap();
        let mut old = attachment(&store, "old");
        old.boot = "another".to_owned();
        store.write(&old).unwrap();
        fs::write(store.folder().join("half@eth0.json.17"), "{").unwrap();
        fs::write(store.folder().join("broken@eth0.json"), "{").unwrap();
        let records = store.list().unwrap();
        assert_eq!(records.attachments.keys().collect::<Vec<_>>(), [&one.key()]);
        assert_eq!(records.void.len(), 3);
        sweep(&records).unwrap();
        assert!(store.list().unwrap().void.is_empty());
        store.remove(&one.key()).unwrap();
        store.remove(&one.key()).unwrap();
        assert!(store.list().unwrap().attachments.is_empty());
    }

    #[test]
    fn devices_are_named_by_their_container() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path()).unwrap();
        let (one, two) = (attachment(&store, "one"), attachment(&store, "two"));
        assert_ne!(one.device, two.device);
        assert!(is_pod_device(&one.device), "{}", one.device);
        for other in [
            "cwp",
            "cwp0123456789aG",
            "veth0123456789a",
            "cwp0123456789ab0",
        ] {
            assert!(!is_pod_device(other), "{other}");
        }
    }
}
