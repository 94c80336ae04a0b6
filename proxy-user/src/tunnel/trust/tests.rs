//! Files as people write them, against hosts and keys.

use std::time::Duration;

use russh::keys::PrivateKey;
use russh::keys::ssh_key::Algorithm;
use russh::keys::ssh_key::certificate::Builder;

use super::*;

fn key() -> PrivateKey {
    PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).unwrap()
}

fn line(key: &PrivateKey) -> String {
    key.public_key().to_openssh().unwrap()
}

fn host(name: &str, port: u16) -> Host {
    let name = name.to_owned();
    Host { name, port }
}

fn shown(key: &PrivateKey) -> PublicKeyOrCertificate {
    key.public_key().clone().into()
}

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder }
    }

    fn known(&self, text: &str) -> Policy {
        let path = self.folder.path().join("known_hosts");
        fs::write(&path, text).unwrap();
        Policy::Known(path)
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "called with what was just made"
)]
fn word(verdict: Result<(), Distrust>) -> &'static str {
    match verdict {
        Ok(()) => "trusted",
        Err(Distrust::NotPinned { .. }) => "not-pinned",
        Err(Distrust::Changed { .. }) => "changed",
        Err(Distrust::Unknown { .. }) => "unknown",
        Err(Distrust::Revoked { .. }) => "revoked",
        Err(Distrust::Certificate { why, .. }) => why,
        Err(Distrust::File { .. }) => "file",
        Err(Distrust::Line { .. }) => "line",
    }
}

#[test]
fn pins_are_keys_or_fingerprints() {
    let (ours, other) = (key(), key());
    let print = ours.public_key().fingerprint(HashAlg::Sha256).to_string();
    let node = host("node", 22);
    for pin in [line(&ours), print] {
        let policy = Policy::Pinned(vec![Pin::parse(&pin).unwrap()]);
        let judge = |key| word(judge(&policy, &node, &shown(key), SystemTime::now()));
        assert_eq!(judge(&ours), "trusted");
        assert_eq!(judge(&other), "not-pinned");
    }
    assert!(Pin::parse("SHA256:short").is_err());
    assert!(Pin::parse("hello").is_err());
    let nothing = Policy::Pinned(Vec::new());
    let verdict = judge(&nothing, &node, &shown(&ours), SystemTime::now());
    assert_eq!(
        word(verdict),
        "not-pinned",
        "nothing pinned, nothing trusted"
    );
}

/// Lines of a file, with `KEY` for the node's key and `OTHER` for another; the host; the verdict.
#[test]
fn lines_of_known_hosts() {
    let (ours, other) = (key(), key());
    let files = Files::new();
    let rows = [
        ("", "node", 22, "unknown"),
        ("# nothing\n\n", "node", 22, "unknown"),
        ("node KEY\n", "node", 22, "trusted"),
        ("node KEY\n", "NODE", 22, "trusted"),
        ("node OTHER\n", "node", 22, "changed"),
        ("node OTHER\nnode KEY\n", "node", 22, "trusted"),
        ("node KEY\n", "node", 2222, "unknown"),
        ("[node]:2222 KEY\n", "node", 2222, "trusted"),
        ("[node]:2222 KEY\n", "node", 22, "unknown"),
        ("a,10.0.0.4,node KEY\n", "10.0.0.4", 22, "trusted"),
        ("*.example.org KEY\n", "n1.example.org", 22, "trusted"),
        (
            "*.example.org,!n1.example.org KEY\n",
            "n1.example.org",
            22,
            "unknown",
        ),
        ("n?.example.org KEY\n", "n1.example.org", 22, "trusted"),
        ("node KEY\n@revoked * KEY\n", "node", 22, "revoked"),
        ("@revoked node OTHER\nnode KEY\n", "node", 22, "trusted"),
        ("@revoked other KEY\nnode KEY\n", "node", 22, "trusted"),
        ("@cert-authority * OTHER\n", "node", 22, "changed"),
        ("@cert-authority * KEY\n", "node", 22, "changed"),
        ("node KEY\nnonsense\n", "node", 22, "line"),
    ];
    for (text, name, port, expected) in rows {
        let text = text
            .replace("KEY", &line(&ours))
            .replace("OTHER", &line(&other));
        let policy = files.known(&text);
        let verdict = judge(&policy, &host(name, port), &shown(&ours), SystemTime::now());
        assert_eq!(word(verdict), expected, "{text} {name} {port}");
    }
}

/// Made with `ssh-keygen -H` of OpenSSH 9.2 from a line for `node.example.org`.
#[test]
fn hashed_names_are_found() {
    let hashed = "|1|6dgZFOGRkSPEXOgRKrxeDhGNj2s=|uOEnHEpfMNn3RGRDqu4t0AqRJ7M= ssh-ed25519 \
                  AAAAC3NzaC1lZDI1NTE5AAAAIM3PC0vuNmDhbuTMJfG0bFw0GVOPOiQXU6hQvfbGvxXV\n";
    let files = Files::new();
    let policy = files.known(hashed);
    let node = key();
    let verdict = |name| {
        word(judge(
            &policy,
            &host(name, 22),
            &shown(&node),
            SystemTime::now(),
        ))
    };
    assert_eq!(verdict("other.example.org"), "unknown");
    let own = {
        let salt = b"0123456789abcdefghij";
        let mut mac = Hmac::<Sha1>::new_from_slice(salt).unwrap();
        mac.update(b"[node]:2222");
        let hash: [u8; 20] = mac.finalize().into_bytes().into();
        HostPatterns::HashedName {
            salt: salt.to_vec(),
            hash,
        }
    };
    assert!(matches(&own, "[node]:2222"));
    assert!(!matches(&own, "node"));
}

#[test]
fn a_new_host_is_learnt_once_where_that_is_wanted() {
    let files = Files::new();
    let path = files.folder.path().join("new");
    let policy = Policy::AcceptNew(path.clone());
    let (first, second) = (key(), key());
    let node = host("10.0.0.4", 2222);
    let judge = |key| word(judge(&policy, &node, &shown(key), SystemTime::now()));
    assert_eq!(judge(&first), "trusted");
    assert_eq!(judge(&second), "changed", "only the first time");
    assert_eq!(judge(&first), "trusted");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("[10.0.0.4]:2222"), "{text}");
}

fn certificate(
    subject: &PrivateKey,
    authority: &PrivateKey,
    kind: CertType,
    names: &[&str],
    from: SystemTime,
) -> Certificate {
    let seconds = from
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let mut builder = Builder::new_with_random_nonce(
        &mut russh::keys::key::safe_rng(),
        subject.public_key(),
        seconds,
        seconds + 3_600,
    )
    .unwrap();
    builder.cert_type(kind).unwrap();
    builder.key_id("node").unwrap();
    for name in names {
        builder.valid_principal(*name).unwrap();
    }
    builder.sign(authority).unwrap()
}

/// Who signed, which kind, for whom, from when on, and the verdict.
type Row<'k> = (
    &'k PrivateKey,
    CertType,
    &'static [&'static str],
    SystemTime,
    &'static str,
);

#[test]
fn certificates_hold_or_not() {
    let (node, authority, other) = (key(), key(), key());
    let files = Files::new();
    let policy = files.known(&format!("@cert-authority *.cluster {}\n", line(&authority)));
    let now = SystemTime::now();
    let soon = now + Duration::from_secs(100);
    let past = now - Duration::from_hours(2);
    let rows: &[Row<'_>] = &[
        (&authority, CertType::Host, &["n1.cluster"], now, "trusted"),
        (
            &authority,
            CertType::Host,
            &["x", "*.cluster"],
            now,
            "trusted",
        ),
        (
            &authority,
            CertType::User,
            &["n1.cluster"],
            now,
            "it is no host's certificate",
        ),
        (
            &authority,
            CertType::Host,
            &["n2.cluster"],
            now,
            "it is made out to another name",
        ),
        (
            &authority,
            CertType::Host,
            &["n1.cluster"],
            soon,
            "its time is over or has not come, or its signature is wrong",
        ),
        (
            &authority,
            CertType::Host,
            &["n1.cluster"],
            past,
            "its time is over or has not come, or its signature is wrong",
        ),
        (&other, CertType::Host, &["n1.cluster"], now, "changed"),
    ];
    let named = host("n1.cluster", 22);
    for (signer, kind, names, from, expected) in rows {
        let shown = certificate(&node, signer, *kind, names, *from).into();
        let verdict = judge(&policy, &named, &shown, now + Duration::from_secs(1));
        assert_eq!(word(verdict), *expected, "{kind:?} {names:?}");
    }
    assert!(wants_certificate(&policy, &named));
    assert!(!wants_certificate(&policy, &host("n1.other", 22)));
    let revoked = files.known(&format!(
        "@cert-authority * {0}\n@revoked * {0}\n",
        line(&authority)
    ));
    let shown = certificate(&node, &authority, CertType::Host, &["n1.cluster"], now).into();
    assert_eq!(word(judge(&revoked, &named, &shown, now)), "revoked");
}
