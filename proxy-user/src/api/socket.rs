//! The socket's file: for root alone from its first moment, and nobody else's is removed.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            fs::MetadataExt as _,
            net::{UnixListener as StdListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use nix::sys::{
    socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
    stat::{Mode, fchmod},
};
use tokio::net::UnixListener;

/// How many may wait to be taken.
const BACKLOG: i32 = 128;

/// A socket that has a path and takes nobody yet.
#[derive(Debug)]
pub(crate) struct Socket {
    file: OwnedFd,
    place: Place,
}

/// A socket's path, and which file stood there when it was made.
#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
    identity: Identity,
}

/// Device, inode and time of change: a number of an inode is given out again.
type Identity = (u64, u64, i64, i64);

impl Socket {
    /// Makes the socket in place of one that nobody answers at.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        if UnixStream::connect(path).is_ok() {
            let message = "another process answers there: give one of both another path \
                           (`api.socket` in the configuration)";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let file = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        // The file gets the mode that the socket has (`unix_bind_bsd` in net/unix/af_unix.c), so
        // that there is no moment at which others can reach it.
        fchmod(&file, Mode::S_IRUSR | Mode::S_IWUSR)?;
        bind(file.as_raw_fd(), &UnixAddr::new(path)?)?;
        let place = Place {
            path: path.to_owned(),
            identity: identity(path)?,
        };
        Ok(Self { file, place })
    }

    /// From here on it can be connected to.
    pub(crate) fn listen(self) -> io::Result<(UnixListener, Place)> {
        listen(&self.file, Backlog::new(BACKLOG)?)?;
        let listener = UnixListener::from_std(StdListener::from(self.file))?;
        Ok((listener, self.place))
    }
}

impl Place {
    /// Removes the file, unless it is another's by now.
    pub(crate) fn remove(&self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<Identity> {
    let meta = fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn nobody_else_can_reach_it_before_it_listens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("below/causeway.sock");
        let socket = Socket::bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (_listener, place) = socket.listen().unwrap();
        UnixStream::connect(&path).unwrap();
        place.remove();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn one_in_use_is_left_alone_and_one_left_behind_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("causeway.sock");
        let (first, place) = Socket::bind(&path).unwrap().listen().unwrap();
        let error = Socket::bind(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{error}");
        assert!(error.to_string().contains("api.socket"), "{error}");
        // As after kill -9: the file stays.
        drop(first);
        let (_second, _) = Socket::bind(&path).unwrap().listen().unwrap();
        place.remove();
        UnixStream::connect(&path).expect("the second's file stays");
    }
}
