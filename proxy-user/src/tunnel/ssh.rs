//! What both ends want of SSH: algorithms, limits, windows.

use std::borrow::Cow;
use std::time::Duration;

use russh::keys::ssh_key::{Algorithm, EcdsaCurve, HashAlg};
use russh::{Limits, Preferred, SshId, cipher, compression, kex, mac};

/// The beginning of our identification (RFC 4253 section 4.2): who shows it has the subsystem
/// [`SUBSYSTEM`].
pub const SOFTWARE: &str = "SSH-2.0-Causeway_";

/// The subsystem (RFC 4254 section 6.5, names of our own as of RFC 4251 section 6) in which many
/// connections share one channel. What follows the slash names the process that asks, so that the
/// node can tell sessions that belong together from those of a process that is no more.
pub const SUBSYSTEM: &str = "streams-1@causeway.dev";

/// Bytes that a peer may have under way in one channel: at 20 ms and 10 Gbit/s 25 MB are.
const WINDOW: u32 = 32 * 1024 * 1024;

/// The same for channels that carry one connection each. It is what waits for a consumer that has
/// stopped, and what the library allows under way in all channels of a session while keys change.
const PLAIN_WINDOW: u32 = 16 * 1024 * 1024;

/// The largest packet: the library's limit.
const PACKET: u32 = 65_535;

/// Messages of a channel that the library keeps for whoever reads it.
const CHANNEL_MESSAGES: usize = 32;

/// Our identification.
#[must_use]
pub fn identification() -> SshId {
    SshId::Standard(Cow::Borrowed(concat!(
        "SSH-2.0-Causeway_",
        env!("CARGO_PKG_VERSION")
    )))
}

/// Whether the processor has instructions for AES and for what GCM multiplies.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = std::arch::is_x86_feature_detected!("aes")
        && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    let has = std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has = false;
    has
}

/// Algorithms, the best first. No SHA-1, no CBC, no compression. Where the processor has AES,
/// AES-GCM is more than twice as fast as the `ChaCha20` that OpenSSH prefers.
#[must_use]
pub fn preferred(certificates: bool) -> Preferred {
    const AES: &[cipher::Name] = &[
        cipher::AES_128_GCM,
        cipher::AES_256_GCM,
        cipher::CHACHA20_POLY1305,
        cipher::AES_256_CTR,
    ];
    const NO_AES: &[cipher::Name] = &[
        cipher::CHACHA20_POLY1305,
        cipher::AES_128_GCM,
        cipher::AES_256_GCM,
        cipher::AES_256_CTR,
    ];
    let key = keys();
    Preferred {
        kex: Cow::Borrowed(&[
            kex::MLKEM768X25519_SHA256,
            kex::CURVE25519,
            kex::CURVE25519_PRE_RFC_8731,
            kex::ECDH_SHA2_NISTP256,
            kex::DH_G16_SHA512,
            kex::DH_G14_SHA256,
            kex::EXTENSION_SUPPORT_AS_CLIENT,
            kex::EXTENSION_SUPPORT_AS_SERVER,
            kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
            kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
        ]),
        host_key_certificates: if certificates {
            Cow::Owned(key.clone())
        } else {
            Cow::Borrowed(&[])
        },
        key: Cow::Owned(key),
        cipher: Cow::Borrowed(if has_aes() { AES } else { NO_AES }),
        mac: Cow::Borrowed(&[
            mac::HMAC_SHA256_ETM,
            mac::HMAC_SHA512_ETM,
            mac::HMAC_SHA256,
            mac::HMAC_SHA512,
        ]),
        compression: Cow::Borrowed(&[compression::NONE]),
    }
}

/// Algorithms of keys.
fn keys() -> Vec<Algorithm> {
    let mut keys = vec![Algorithm::Ed25519];
    for curve in [
        EcdsaCurve::NistP256,
        EcdsaCurve::NistP384,
        EcdsaCurve::NistP521,
    ] {
        keys.push(Algorithm::Ecdsa { curve });
    }
    if cfg!(feature = "rsa") {
        for hash in [HashAlg::Sha512, HashAlg::Sha256] {
            keys.push(Algorithm::Rsa { hash: Some(hash) });
        }
    }
    keys
}

/// When keys are changed. Where all packets are AES, OpenSSH changes them after 64 GiB at the
/// latest (2^32 blocks, RFC 4344 section 3.2); for `ChaCha20` after 1 GiB.
#[must_use]
pub fn limits(bytes: Option<usize>) -> Limits {
    let bytes = bytes.unwrap_or(if has_aes() { 32 << 30 } else { 1 << 30 });
    Limits {
        rekey_write_limit: bytes,
        rekey_read_limit: bytes,
        rekey_time_limit: Duration::from_hours(1),
    }
}

/// The configuration of an end that dials.
#[must_use]
pub fn client(certificates: bool, plain: bool, rekey: Option<usize>) -> russh::client::Config {
    russh::client::Config {
        client_id: identification(),
        limits: limits(rekey),
        window_size: if plain { PLAIN_WINDOW } else { WINDOW },
        maximum_packet_size: PACKET,
        channel_buffer_size: CHANNEL_MESSAGES,
        preferred: preferred(certificates),
        // The state machine asks for signs of life itself.
        keepalive_interval: None,
        inactivity_timeout: None,
        nodelay: true,
        ..Default::default()
    }
}

/// The configuration of the node's end.
#[must_use]
pub fn server(
    keys: Vec<russh::keys::PrivateKey>,
    rekey: Option<usize>,
    keepalive: Duration,
) -> russh::server::Config {
    russh::server::Config {
        server_id: identification(),
        methods: [russh::MethodKind::PublicKey].as_slice().into(),
        auth_rejection_time: Duration::from_secs(1),
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys,
        limits: limits(rekey),
        window_size: WINDOW,
        maximum_packet_size: PACKET,
        channel_buffer_size: CHANNEL_MESSAGES,
        event_buffer_size: 16,
        preferred: preferred(false),
        max_auth_attempts: 3,
        inactivity_timeout: None,
        keepalive_interval: Some(keepalive),
        keepalive_max: 3,
        nodelay: true,
        ..Default::default()
    }
}
