//! Where maps and links are kept while no process holds them: the BPF file system.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use proxy_common::abi::ABI_VERSION;

/// Where the BPF file system belongs.
pub const BPFFS: &str = "/sys/fs/bpf";

/// What may go wrong around pins.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The BPF file system is not there and could not be mounted.
    #[error(
        "cannot mount the BPF file system at {path}: {source}; mount it with `mount -t bpf bpf {path}`, and run with \
         CAP_SYS_ADMIN or let the host mount it"
    )]
    Mount {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: nix::Error,
    },
    /// A folder or a pin could not be made, read or removed.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl PinError {
    pub(super) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// The folder of one instance: `/sys/fs/bpf/causeway/<instance>/v<ABI_VERSION>`.
///
/// Instances tell apart several daemons on one machine, each in its own network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinFolder {
    instance: PathBuf,
    version: PathBuf,
}

impl PinFolder {
    /// The folder of `instance` under the usual mount point. Touches nothing.
    #[must_use]
    pub fn new(instance: &str) -> Self {
        Self::under(Path::new(BPFFS), instance)
    }

    /// The folder of `instance` under another BPF file system. Touches nothing.
    #[must_use]
    pub fn under(bpffs: &Path, instance: &str) -> Self {
        let instance = bpffs.join("causeway").join(instance);
        let version = instance.join(format!("v{ABI_VERSION}"));
        Self { instance, version }
    }

    /// The folder of the instance, above those of all versions.
    #[must_use]
    pub fn instance(&self) -> &Path {
        &self.instance
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.version
    }

    /// The folder of the same instance for another version of the records.
    #[must_use]
    pub fn of_version(&self, version: u32) -> Self {
        Self {
            instance: self.instance.clone(),
            version: self.instance.join(format!("v{version}")),
        }
    }

    /// The version of the records that are pinned here.
    pub(super) fn number(&self) -> u32 {
        number(&self.version).unwrap_or_default()
    }

    /// Where the map of this name is pinned.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.version.join("maps").join(name)
    }

    /// The folder of all maps.
    #[must_use]
    pub fn maps(&self) -> PathBuf {
        self.version.join("maps")
    }

    /// The folder of all links.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.version.join("links")
    }

    /// Where the link of a program at a device is pinned.
    #[must_use]
    pub fn link(&self, program: &str, ifindex: u32) -> PathBuf {
        self.links().join(format!("{program}-{ifindex}"))
    }

    /// Makes the folders; mounts the BPF file system if nothing is mounted there.
    pub fn create(&self) -> Result<(), PinError> {
        self.create_instance()?;
        for folder in [self.maps(), self.links()] {
            fs::create_dir_all(&folder).map_err(PinError::file("make the folder", &folder))?;
        }
        Ok(())
    }

    /// Makes the folder of the instance alone; mounts the BPF file system if nothing is mounted
    /// there.
    pub fn create_instance(&self) -> Result<(), PinError> {
        // /sys/fs/bpf/causeway/<instance>: two levels below the mount point.
        let root = self.instance.ancestors().nth(2).unwrap_or(Path::new(BPFFS));
        if !is_bpffs(root) {
            mount(
                Some("bpf"),
                root,
                Some("bpf"),
                MsFlags::empty(),
                Some("mode=0700"),
            )
            .map_err(|source| PinError::Mount {
                path: root.to_owned(),
                source,
            })?;
            tracing::info!(path = %root.display(), "mounted the BPF file system");
        }
        fs::create_dir_all(&self.instance)
            .map_err(PinError::file("make the folder", &self.instance))
    }

    /// Links that are pinned: program, device, path.
    pub fn pinned_links(&self) -> Result<Vec<(String, u32, PathBuf)>, PinError> {
        let folder = self.links();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(PinError::file("read", &folder)(error)),
        };
        let mut links = Vec::new();
        for entry in entries {
            let entry = entry.map_err(PinError::file("read", &folder))?;
            let name = entry.file_name();
            if let Some((program, ifindex)) = name.to_str().and_then(|name| name.rsplit_once('-'))
                && let Ok(ifindex) = ifindex.parse()
            {
                links.push((program.to_owned(), ifindex, entry.path()));
            }
        }
        links.sort();
        Ok(links)
    }

    /// Removes every pin of this instance, of every version, and its folder. What only pins kept
    /// alive ends: links detach, maps are freed.
    pub fn remove(&self) -> Result<(), PinError> {
        remove_tree(&self.instance)?;
        // The folder of all instances, if this was the last one.
        if let Some(all) = self.instance.parent() {
            match fs::remove_dir(all) {
                Err(error)
                    if !matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                    ) =>
                {
                    return Err(PinError::file("remove", all)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The folder that says in which version the records of each map last changed.
    #[must_use]
    pub fn layouts(&self) -> PathBuf {
        self.version.join("layouts")
    }

    /// Folders of other versions that have pins here: an upgrade or a downgrade takes them over.
    pub fn other_versions(&self) -> Result<Vec<Self>, PinError> {
        let entries = match fs::read_dir(&self.instance) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(PinError::file("read", &self.instance)(error)),
        };
        let mut versions = Vec::new();
        for entry in entries {
            let path = entry
                .map_err(PinError::file("read", &self.instance))?
                .path();
            if number(&path).is_some() && path != self.version {
                versions.push(Self {
                    instance: self.instance.clone(),
                    version: path,
                });
            }
        }
        Ok(versions)
    }
}

/// The number in the name of a version's folder.
fn number(version: &Path) -> Option<u32> {
    let name = version.file_name()?.to_str()?;
    name.strip_prefix('v')?.parse().ok()
}

/// Removes one pin. That it is gone already is no error.
pub(super) fn remove_pin(path: &Path) -> Result<(), PinError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(PinError::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Removes a folder of pins with all in it. Links go before maps, so that no program runs on with
/// what nobody looks after.
pub(super) fn remove_tree(folder: &Path) -> Result<(), PinError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(PinError::file("read", folder)(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(PinError::file("read", folder))?.path());
    }
    paths.sort();
    for path in paths {
        if path.is_dir() {
            remove_tree(&path)?;
        } else {
            remove_pin(&path)?;
        }
    }
    fs::remove_dir(folder).map_err(PinError::file("remove", folder))
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}
