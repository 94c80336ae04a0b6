//! Key files: which are read, and which are refused.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use russh::keys::ssh_key::{Algorithm, AuthorizedKeys, LineEnding, PublicKey};
use russh::keys::{PrivateKey, decode_secret_key};

/// Longest key file that is read, bytes: an RSA key of 16,384 bits has 13 kB.
const LONGEST: u64 = 64 * 1024;

/// What is wrong with a key file.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It cannot be read.
    #[error("cannot read the key {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may read or write it.
    #[error(
        "the private key {} has mode {mode:04o}, so that others may use it: `chmod 600 {}`",
        file.display(), file.display()
    )]
    Mode {
        /// The file.
        file: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error(
        "the private key {} belongs to user {owner}, who may change it: `chown {us} {}`",
        file.display(), file.display()
    )]
    Owner {
        /// The file.
        file: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who we are.
        us: u32,
    },
    /// It is too large, or no file.
    #[error("{} is no key: it has {bytes} bytes", file.display())]
    Size {
        /// The file.
        file: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// It is no private key that we understand, or has a passphrase.
    #[error(
        "{} holds no private key that can be used (a key with a passphrase cannot): {source}",
        file.display()
    )]
    Private {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: Box<russh::keys::Error>,
    },
    /// It holds no public key that we understand.
    #[error("{}: no public key that can be used: {source}", file.display())]
    Public {
        /// The file.
        file: PathBuf,
        /// Why.
        source: russh::keys::ssh_key::Error,
    },
    /// An RSA key in a build without them.
    #[error(
        "{} is an RSA key, and this build has none (cargo feature `rsa`): make an Ed25519 key",
        file.display()
    )]
    Rsa {
        /// The file.
        file: PathBuf,
    },
}

/// Reads a private key. As `ssh` does, it refuses one that anybody but its owner may use; and one
/// whose owner is neither root nor we.
pub fn private(path: &Path) -> Result<Arc<PrivateKey>, KeyError> {
    let read = |source| KeyError::Read {
        file: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(read)?;
    // Of the open file, so that nobody can put another in its place between check and use.
    let facts = file.metadata().map_err(read)?;
    let (owner, us) = (facts.uid(), nix::unistd::geteuid().as_raw());
    if owner != us && owner != 0 {
        return Err(KeyError::Owner {
            file: path.to_owned(),
            owner,
            us,
        });
    }
    let mode = facts.mode() & 0o7777;
    if mode & 0o177 != 0 {
        return Err(KeyError::Mode {
            file: path.to_owned(),
            mode,
        });
    }
    if !facts.is_file() || facts.len() > LONGEST {
        return Err(KeyError::Size {
            file: path.to_owned(),
            bytes: facts.len(),
        });
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(read)?;
    let key = decode_secret_key(&text, None).map_err(|source| {
        if cfg!(not(feature = "rsa")) && text.contains("BEGIN RSA PRIVATE KEY") {
            return KeyError::Rsa {
                file: path.to_owned(),
            };
        }
        KeyError::Private {
            file: path.to_owned(),
            source: Box::new(source),
        }
    })?;
    Ok(Arc::new(key))
}

/// Reads the public keys of a file in the format of `authorized_keys` (sshd(8)). Options in it are
/// not looked at: what a key may do is ours to say.
pub fn public(path: &Path) -> Result<Vec<PublicKey>, KeyError> {
    let text = fs::read_to_string(path).map_err(|source| KeyError::Read {
        file: path.to_owned(),
        source,
    })?;
    AuthorizedKeys::new(&text)
        .map(|entry| entry.map(|entry| entry.public_key().clone()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| KeyError::Public {
            file: path.to_owned(),
            source,
        })
}

/// Makes an Ed25519 host key at `path` if there is none, and reads it.
pub fn host(path: &Path) -> Result<Arc<PrivateKey>, KeyError> {
    if !path.exists() {
        let write = |source| KeyError::Read {
            file: path.to_owned(),
            source,
        };
        let make = || -> Result<String, russh::keys::ssh_key::Error> {
            let mut random = russh::keys::key::safe_rng();
            let key = PrivateKey::random(&mut random, Algorithm::Ed25519)?;
            Ok(key.to_openssh(LineEnding::LF)?.to_string())
        };
        let text = make().map_err(|source| KeyError::Public {
            file: path.to_owned(),
            source,
        })?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(write)?;
        }
        write_private(path, &text).map_err(write)?;
    }
    private(path)
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// What tells one state of a set of files from another, so that a changed key is noticed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamp(Vec<Option<(u64, SystemTime, u64)>>);

impl Stamp {
    /// Of these files, as they are now.
    #[must_use]
    pub fn of(files: &[&Path]) -> Self {
        let one = |file: &&Path| {
            let facts = fs::metadata(file).ok()?;
            Some((facts.ino(), facts.modified().ok()?, facts.len()))
        };
        Self(files.iter().map(one).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_host_key_is_made_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/host.key");
        let made = host(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(made.public_key(), host(&path).unwrap().public_key());
    }

    #[test]
    fn a_key_that_others_may_use_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        host(&path).unwrap();
        for mode in [0o644, 0o640, 0o604, 0o620, 0o700, 0o610] {
            set(&path, mode);
            let error = private(&path).unwrap_err();
            assert!(matches!(error, KeyError::Mode { .. }), "{mode:o}: {error}");
            assert!(error.to_string().contains("chmod 600"));
        }
        for mode in [0o600, 0o400] {
            set(&path, mode);
            private(&path).unwrap();
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let error = private(&path).unwrap_err();
        assert!(matches!(error, KeyError::Read { .. }), "{error}");
        for text in ["", "hello", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"] {
            fs::write(&path, text).unwrap();
            set(&path, 0o600);
            let error = private(&path).unwrap_err();
            assert!(matches!(error, KeyError::Private { .. }), "{error}");
        }
        fs::write(&path, "x".repeat(100_000)).unwrap();
        let error = private(&path).unwrap_err();
        assert!(matches!(error, KeyError::Size { .. }), "{error}");
        let error = private(folder.path()).unwrap_err();
        assert!(
            matches!(error, KeyError::Mode { .. } | KeyError::Size { .. }),
            "{error}"
        );
    }

    #[test]
    fn authorized_keys_may_have_options_and_comments() {
        let folder = tempfile::tempdir().unwrap();
        let key = host(&folder.path().join("key")).unwrap();
        let line = key.public_key().to_openssh().unwrap();
        let file = folder.path().join("authorized_keys");
        let text = format!("# who\n\nrestrict,port-forwarding,permitlisten=\"37140\" {line} x\n");
        fs::write(&file, text).unwrap();
        let keys = public(&file).unwrap();
        assert_eq!(keys.len(), 1);
        assert_eq!(keys[0].key_data(), key.public_key().key_data());
        fs::write(&file, "ssh-ed25519 nonsense").unwrap();
        assert!(matches!(public(&file), Err(KeyError::Public { .. })));
    }

    #[test]
    fn a_stamp_changes_with_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let missing = Stamp::of(&[path.as_path()]);
        fs::write(&path, "a").unwrap();
        let first = Stamp::of(&[path.as_path()]);
        assert_ne!(missing, first);
        assert_eq!(first, Stamp::of(&[path.as_path()]));
        fs::write(&path, "ab").unwrap();
        assert_ne!(first, Stamp::of(&[path.as_path()]));
    }
}
