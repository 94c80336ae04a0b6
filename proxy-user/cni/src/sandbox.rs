//! The network namespace of a container.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use crate::error::{CniError, Code};

/// An open namespace, which lives for as long as this does.
#[derive(Debug)]
pub struct Sandbox {
    file: File,
    path: PathBuf,
}

impl Sandbox {
    /// Opens what `CNI_NETNS` names; none: it is gone.
    pub fn open(path: &Path) -> Result<Option<Self>, CniError> {
        let refuse = |problem: &str| {
            let message = format!("CNI_NETNS = {}: {problem}", path.display());
            CniError::new(Code::InvalidEnvironment, message, "")
        };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(refuse(&error.to_string())),
        };
        // Of a namespace that has been removed, the mount point stays for a moment.
        let status = fstatfs(&file).map_err(|errno| refuse(&errno.to_string()))?;
        if status.filesystem_type() != NSFS_MAGIC {
            return Ok(None);
        }
        let place = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let own = fs::metadata("/proc/thread-self/ns/net").map(place);
        if let (Ok(own), Ok(theirs)) = (own, file.metadata().map(place))
            && own == theirs
        {
            return Err(refuse("is the host's own network namespace"));
        }
        Ok(Some(Self {
            file,
            path: path.to_owned(),
        }))
    }

    /// Its number in this process.
    #[must_use]
    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Runs `work` inside, on a thread of its own.
    pub fn enter<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, CniError> + Send,
    ) -> Result<T, CniError> {
        let entered = thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| {
                    let message = format!("cannot enter {}", self.path.display());
                    CniError::kernel(message, &errno.into())
                })?;
                work()
            });
            thread.join()
        });
        entered.unwrap_or_else(|_| {
            let message = format!("the thread in {} ended unexpectedly", self.path.display());
            Err(CniError::new(Code::Kernel, message, ""))
        })
    }
}
