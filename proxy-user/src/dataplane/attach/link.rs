//! A link: a program's attachment that lives as long as a descriptor or a pin refers to it.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::dataplane::load::Program;
use crate::dataplane::syscall::{self, LinkInfo};

/// A link of ours.
#[derive(Debug)]
pub(super) struct Link {
    fd: OwnedFd,
}

impl Link {
    pub(super) fn create(
        program: &Program,
        ifindex: u32,
        attach_type: u32,
        flags: u32,
    ) -> io::Result<Self> {
        Ok(Self {
            fd: syscall::link_create(program.as_fd(), ifindex, attach_type, flags)?,
        })
    }

    pub(super) fn at_cgroup(
        program: &Program,
        cgroup: BorrowedFd<'_>,
        attach_type: u32,
    ) -> io::Result<Self> {
        Ok(Self {
            fd: syscall::link_create_at_cgroup(program.as_fd(), cgroup, attach_type)?,
        })
    }

    /// Opens a pinned link.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let link = Self {
            fd: syscall::get(path)?,
        };
        // Something else than a link may be pinned there.
        link.info()?;
        Ok(link)
    }

    pub(super) fn info(&self) -> io::Result<LinkInfo> {
        syscall::object_info(self.fd.as_fd())
    }

    /// Whether it still has the device: not so when that has gone, even if a new one has the same
    /// index, nor when somebody has detached it.
    pub(super) fn is_attached_to(&self, ifindex: u32) -> bool {
        self.info().is_ok_and(|info| info.ifindex == ifindex)
    }

    /// Whether it still has the cgroup of this number, which is never given twice.
    pub(super) fn is_attached_to_cgroup(&self, number: u64) -> bool {
        self.info().is_ok_and(|info| info.cgroup() == number)
    }

    /// Makes `program` the one that runs. Says whether it was another one.
    pub(super) fn update(&self, program: &Program) -> io::Result<bool> {
        if self.info()?.program == program.id {
            return Ok(false);
        }
        syscall::link_update(self.fd.as_fd(), program.as_fd())?;
        Ok(true)
    }

    /// Takes the program from the device, now. That the device has gone already is no error.
    pub(super) fn detach(&self) -> io::Result<()> {
        match syscall::link_detach(self.fd.as_fd()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
            other => other,
        }
    }

    /// Pins it at `path`, unless it is there already.
    pub(super) fn pin(&self, path: &Path) -> io::Result<()> {
        match syscall::pin(self.fd.as_fd(), path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Ours, or left by a device that had this index before.
                if Self::open(path)?.info()?.id == self.info()?.id {
                    return Ok(());
                }
                fs::remove_file(path)?;
                syscall::pin(self.fd.as_fd(), path)
            }
            other => other,
        }
    }
}
