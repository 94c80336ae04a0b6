//! Which host keys are the node's: pinned ones, or those of a `known_hosts` file (sshd(8), "SSH
//! `known_hosts` file format") with its `@cert-authority` and `@revoked` marks.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use hmac::{Hmac, KeyInit as _, Mac as _};
use russh::keys::PublicKeyOrCertificate;
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::ssh_key::known_hosts::{Entry, HostPatterns, Marker};
use russh::keys::ssh_key::public::KeyData;
use russh::keys::ssh_key::{Certificate, Fingerprint, HashAlg, KnownHosts, PublicKey};
use sha1::Sha1;
use wildmatch::WildMatch;

/// How the node's host key is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It is one of these.
    Pinned(Vec<Pin>),
    /// A file knows it, as `StrictHostKeyChecking yes` does.
    Known(PathBuf),
    /// As `Known`; a host that the file does not know is added to it the first time
    /// (`StrictHostKeyChecking accept-new`).
    AcceptNew(PathBuf),
}

/// A host key that is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pin {
    /// The key itself.
    Key(Box<KeyData>),
    /// Its hash, as `ssh-keygen -l` prints it: `SHA256:…`.
    Fingerprint(Fingerprint),
}

/// What is wrong with a pin.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is neither a public key (`ssh-ed25519 AAAA…`) nor a fingerprint (`SHA256:…`)")]
pub struct PinError {
    /// What was found.
    pub text: String,
}

impl Pin {
    /// From a line of a public key file, or a fingerprint.
    pub fn parse(text: &str) -> Result<Self, PinError> {
        let text = text.trim();
        if let Ok(fingerprint) = text.parse::<Fingerprint>() {
            return Ok(Self::Fingerprint(fingerprint));
        }
        PublicKey::from_openssh(text)
            .map(|key| Self::Key(Box::new(key.key_data().clone())))
            .map_err(|_| PinError {
                text: text.to_owned(),
            })
    }

    fn is(&self, key: &KeyData) -> bool {
        match self {
            Self::Key(pinned) => **pinned == *key,
            Self::Fingerprint(pinned) => key.fingerprint(pinned.algorithm()) == *pinned,
        }
    }
}

/// Why a host key is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum Distrust {
    /// It is none of the pinned ones.
    #[error("the host key {found} is none of those pinned for {host}")]
    NotPinned {
        /// The host.
        host: String,
        /// The key's fingerprint.
        found: Fingerprint,
    },
    /// The file has another one for this host.
    #[error(
        "the host key of {host} is {found}, and {} has another: either the node was set up anew, \
         or somebody is in between", file.display()
    )]
    Changed {
        /// The host.
        host: String,
        /// The key's fingerprint.
        found: Fingerprint,
        /// The file.
        file: PathBuf,
    },
    /// The file does not know the host.
    #[error("{} does not know {host}, whose key is {found}", file.display())]
    Unknown {
        /// The host.
        host: String,
        /// The key's fingerprint.
        found: Fingerprint,
        /// The file.
        file: PathBuf,
    },
    /// The file says that the key must not be used any more.
    #[error("the host key {found} of {host} is revoked in {}", file.display())]
    Revoked {
        /// The host.
        host: String,
        /// The key's fingerprint.
        found: Fingerprint,
        /// The file.
        file: PathBuf,
    },
    /// A certificate that does not hold.
    #[error("the host certificate {id:?} does not hold for {host}: {why}")]
    Certificate {
        /// The host.
        host: String,
        /// The certificate's id.
        id: String,
        /// Why not.
        why: &'static str,
    },
    /// The file cannot be read or written.
    #[error("cannot use {}: {source}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line of the file makes no sense: whom it would have revoked is not known.
    #[error("{}:{line}: not a line of a known_hosts file", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// The line, from 1 on.
        line: usize,
    },
}

/// The node as it is named in a `known_hosts` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Name or address.
    pub name: String,
    /// Port of SSH.
    pub port: u16,
}

impl Host {
    /// As `ssh` writes it: `name`, or `[name]:port` where the port is not 22.
    #[must_use]
    pub fn known_as(&self) -> String {
        if self.port == 22 {
            self.name.to_lowercase()
        } else {
            format!("[{}]:{}", self.name.to_lowercase(), self.port)
        }
    }
}

/// Judges what the node has shown, whose possession of the private key is proved already.
pub fn judge(
    policy: &Policy,
    host: &Host,
    shown: &PublicKeyOrCertificate,
    now: SystemTime,
) -> Result<(), Distrust> {
    let key = shown.public_key();
    let found = key.fingerprint(HashAlg::Sha256);
    match policy {
        Policy::Pinned(pins) => {
            if pins.iter().any(|pin| pin.is(key.key_data())) {
                return Ok(());
            }
            Err(Distrust::NotPinned {
                host: host.known_as(),
                found,
            })
        }
        Policy::Known(file) | Policy::AcceptNew(file) => {
            let text = match fs::read_to_string(file) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
                Err(source) => {
                    let file = file.clone();
                    return Err(Distrust::File { file, source });
                }
            };
            let book = Book {
                file,
                entries: entries(file, &text)?,
            };
            let verdict = book.judge(host, &key, shown.certificate(), now);
            match verdict {
                Err(Distrust::Unknown { .. }) if matches!(policy, Policy::AcceptNew(_)) => {
                    learn(file, host, &key)
                }
                verdict => verdict,
            }
        }
    }
}

/// The entries of a file. A line that makes no sense is no reason to look past it: it may be the one
/// that revokes the key.
fn entries(file: &Path, text: &str) -> Result<Vec<Entry>, Distrust> {
    let mut entries = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let entry = KnownHosts::new(line).next();
        match entry {
            None => {}
            Some(Ok(entry)) => entries.push(entry),
            Some(Err(_)) => {
                return Err(Distrust::Line {
                    file: file.to_owned(),
                    line: number + 1,
                });
            }
        }
    }
    Ok(entries)
}

struct Book<'f> {
    file: &'f PathBuf,
    entries: Vec<Entry>,
}

impl Book<'_> {
    fn judge(
        &self,
        host: &Host,
        key: &PublicKey,
        certificate: Option<&Certificate>,
        now: SystemTime,
    ) -> Result<(), Distrust> {
        let name = host.known_as();
        let found = key.fingerprint(HashAlg::Sha256);
        let file = self.file.clone();
        let named = |entry: &&Entry| matches(entry.host_patterns(), &name);
        let of = |mark: Option<Marker>| {
            let marked = move |entry: &&Entry| entry.marker().copied() == mark;
            self.entries.iter().filter(named).filter(marked)
        };
        let is = |entry: &Entry, data: &KeyData| entry.public_key().key_data() == data;
        let signer = certificate.map(Certificate::signature_key);
        let revoked = |entry: &Entry| {
            is(entry, key.key_data()) || signer.is_some_and(|signer| is(entry, signer))
        };
        if of(Some(Marker::Revoked)).any(revoked) {
            let host = name;
            return Err(Distrust::Revoked { host, found, file });
        }
        if let Some(certificate) = certificate
            && of(Some(Marker::CertAuthority)).any(|entry| is(entry, certificate.signature_key()))
        {
            return holds(certificate, host, now);
        }
        if of(None).any(|entry| is(entry, key.key_data())) {
            return Ok(());
        }
        let known = of(None).next().is_some() || of(Some(Marker::CertAuthority)).next().is_some();
        let host = name;
        Err(if known {
            Distrust::Changed { host, found, file }
        } else {
            Distrust::Unknown { host, found, file }
        })
    }

    /// Whether a certificate could be judged at all: somebody is trusted to sign one.
    fn has_authority(&self, host: &Host) -> bool {
        let name = host.known_as();
        self.entries.iter().any(|entry| {
            entry.marker() == Some(&Marker::CertAuthority) && matches(entry.host_patterns(), &name)
        })
    }
}

/// Whether the node should be asked for a certificate: only where the file trusts an authority for
/// it, since one that is asked shows a certificate and no plain key.
#[must_use]
pub fn wants_certificate(policy: &Policy, host: &Host) -> bool {
    let (Policy::Known(file) | Policy::AcceptNew(file)) = policy else {
        return false;
    };
    let Ok(text) = fs::read_to_string(file) else {
        return false;
    };
    entries(file, &text).is_ok_and(|entries| Book { file, entries }.has_authority(host))
}

/// The checks of PROTOCOL.certkeys: kind, names, time, signature; no critical option is known for
/// hosts, so any is a refusal.
fn holds(certificate: &Certificate, host: &Host, now: SystemTime) -> Result<(), Distrust> {
    let no = |why| {
        Err(Distrust::Certificate {
            host: host.name.clone(),
            id: certificate.key_id().to_owned(),
            why,
        })
    };
    if certificate.cert_type() != CertType::Host {
        return no("it is no host's certificate");
    }
    if certificate.critical_options().iter().next().is_some() {
        return no("it has a critical option");
    }
    let names = certificate.valid_principals();
    let is_named = |name: &String| WildMatch::new(&name.to_lowercase()).matches(&host.name);
    // One without names is good for every host (PROTOCOL.certkeys), which ssh refuses for hosts.
    if !names.iter().any(is_named) {
        return no("it is made out to another name");
    }
    let Ok(time) = now.duration_since(SystemTime::UNIX_EPOCH) else {
        return no("the time is not known");
    };
    let signer = certificate.signature_key().fingerprint(HashAlg::Sha256);
    if certificate.validate_at(time.as_secs(), &[signer]).is_err() {
        return no("its time is over or has not come, or its signature is wrong");
    }
    Ok(())
}

/// Whether a host is meant: one pattern matches and none that is negated.
fn matches(patterns: &HostPatterns, host: &str) -> bool {
    match patterns {
        HostPatterns::Patterns(patterns) => {
            let meets = |pattern: &str| WildMatch::new(&pattern.to_lowercase()).matches(host);
            let negated = patterns
                .iter()
                .filter_map(|pattern| pattern.strip_prefix('!'));
            let plain = patterns.iter().filter(|pattern| !pattern.starts_with('!'));
            negated.into_iter().all(|pattern| !meets(pattern))
                && plain.into_iter().any(|pattern| meets(pattern))
        }
        HostPatterns::HashedName { salt, hash } => Hmac::<Sha1>::new_from_slice(salt)
            .is_ok_and(|mac| mac.chain_update(host).verify_slice(hash).is_ok()),
    }
}

fn learn(file: &PathBuf, host: &Host, key: &PublicKey) -> Result<(), Distrust> {
    let known_as = host.name.parse::<IpAddr>().map_or_else(
        |_| host.clone(),
        |address| Host {
            name: address.to_string(),
            ..host.clone()
        },
    );
    russh::keys::known_hosts::learn_known_hosts_path(&known_as.name, host.port, key, file)
        .map_err(|error| Distrust::File {
            file: file.clone(),
            source: io::Error::other(error),
        })?;
    let found = key.fingerprint(HashAlg::Sha256);
    tracing::info!(host = %host.known_as(), key = %found, file = %file.display(), "host key learnt");
    Ok(())
}

#[cfg(test)]
mod tests;
