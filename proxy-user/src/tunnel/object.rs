//! `ReturnProxy` (`causeway.dev/v1alpha1`), as it is written and as it is meant.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;

use super::client::Forward;
use super::trust::{Pin, Policy};
use super::window;

/// The port at which nodes reach the server's HTTPS.
pub const HTTPS: (u16, u16) = (37_140, 9_443);

/// The port at which nodes reach the server's broker.
pub const AMQP: (u16, u16) = (37_141, 5_672);

/// The label of the one node that is the return proxy, where the object names none.
pub const LABEL: &str = "causeway.dev/return-proxy";

/// The user on the node.
pub const USER: &str = "cyclecloud";

/// Which node is the return proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Those of these names; it has to be one.
    Names(Vec<String>),
    /// Those with all of these labels; it has to be one.
    Labels(BTreeMap<String, String>),
}

/// Which of the node's addresses is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Address {
    /// `InternalIP`.
    #[default]
    Private,
    /// `ExternalIP`.
    Public,
}

/// The node's end, where that is Causeway's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Whose keys may log in, in the format of `authorized_keys`.
    pub authorized: PathBuf,
    /// The host key; made if it is not there.
    pub host_key: PathBuf,
}

/// A return proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReturnProxy {
    /// Its name.
    pub name: String,
    /// Which node.
    pub selection: Selection,
    /// Which address of it.
    pub address: Address,
    /// Where every node's kernel serves the server's own ports; none: nowhere but at the node.
    pub service_address: Option<IpAddr>,
    /// Its port of SSH.
    pub port: u16,
    /// The user there.
    pub user: String,
    /// The private key at the server.
    pub key: PathBuf,
    /// How the node's host key is judged.
    pub trust: Policy,
    /// Ports and where they lead.
    pub forwards: Vec<Forward>,
    /// Sessions at once.
    pub sessions: u8,
    /// Whether anybody may connect, and not the cluster's nodes and pods alone.
    pub any_source: bool,
    /// Bytes that may wait, of all connections.
    pub memory: usize,
    /// Bytes that may wait for one consumer, where the peer cannot be told to wait.
    pub queue: usize,
    /// The largest window of a stream, bytes.
    pub window: u32,
    /// Bytes after which keys are changed.
    pub rekey: Option<usize>,
    /// The node's end; none: it is OpenSSH's or another.
    pub endpoint: Option<Endpoint>,
}

/// What is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct ObjectError {
    /// The field, as `spec.forwards[0].listen`.
    pub field: String,
    /// What was found, what is wrong with it, what to write.
    pub message: String,
}

fn wrong<T>(field: impl Into<String>, message: impl Into<String>) -> Result<T, ObjectError> {
    Err(ObjectError {
        field: field.into(),
        message: message.into(),
    })
}

/// The object as it is written.
#[derive(Debug, Deserialize)]
pub struct Written {
    metadata: Metadata,
    spec: Spec,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    /// Where the forwards lead, as seen from the server's process.
    server: Option<String>,
    #[serde(default)]
    node: Node,
    #[serde(default)]
    address: Address,
    service_address: Option<IpAddr>,
    #[serde(default)]
    ssh: Ssh,
    key_file: PathBuf,
    host_key: HostKey,
    forwards: Option<Vec<WrittenForward>>,
    sessions: Option<u8>,
    #[serde(default)]
    any_source: bool,
    #[serde(default)]
    limits: Limits,
    endpoint: Option<WrittenEndpoint>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    name: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ssh {
    port: Option<u16>,
    user: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostKey {
    policy: HostKeyPolicy,
    #[serde(default)]
    keys: Vec<String>,
    file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum HostKeyPolicy {
    Pinned,
    KnownHosts,
    AcceptNew,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenForward {
    name: String,
    listen: u16,
    target: String,
    #[serde(default)]
    proxy_protocol: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    #[serde(rename = "memoryBytes")]
    memory: Option<usize>,
    #[serde(rename = "queueBytes")]
    queue: Option<usize>,
    #[serde(rename = "windowBytes")]
    window: Option<u32>,
    #[serde(rename = "rekeyBytes")]
    rekey: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenEndpoint {
    authorized_keys_file: PathBuf,
    host_key_file: PathBuf,
}

impl ReturnProxy {
    /// One with nothing but what has no default: for the template.
    #[must_use]
    pub fn new(name: &str, selection: Selection, key: PathBuf, trust: Policy) -> Self {
        Self {
            name: name.to_owned(),
            selection,
            address: Address::default(),
            service_address: None,
            port: 22,
            user: USER.to_owned(),
            key,
            trust,
            forwards: usual_forwards("127.0.0.1"),
            sessions: 2,
            any_source: false,
            memory: 256 << 20,
            queue: 64 << 20,
            window: window::MOST,
            rekey: None,
            endpoint: None,
        }
    }

    /// Checks an object.
    pub fn check(written: Written) -> Result<Self, ObjectError> {
        let spec = written.spec;
        let selection = match (spec.node.name, spec.node.labels) {
            (Some(_), Some(_)) => {
                return wrong("spec.node", "has a name and labels: write one of them");
            }
            (Some(name), None) => Selection::Names(vec![name]),
            (None, Some(labels)) if labels.is_empty() => {
                return wrong("spec.node.labels", "is empty and would mean every node");
            }
            (None, Some(labels)) => Selection::Labels(labels),
            (None, None) => {
                Selection::Labels(BTreeMap::from([(LABEL.to_owned(), "true".to_owned())]))
            }
        };
        let trust = trust(spec.host_key)?;
        let mut proxy = Self::new(&written.metadata.name, selection, spec.key_file, trust);
        proxy.address = spec.address;
        proxy.service_address = spec.service_address;
        if let Some(port) = spec.ssh.port {
            if port == 0 {
                return wrong("spec.ssh.port", "0 is not a port: write 1 to 65535");
            }
            proxy.port = port;
        }
        if let Some(user) = spec.ssh.user {
            proxy.user = user;
        }
        let server = spec.server.unwrap_or_else(|| "127.0.0.1".to_owned());
        proxy.forwards = match spec.forwards {
            None => usual_forwards(&server),
            Some(written) => forwards(written)?,
        };
        if let Some(sessions) = spec.sessions {
            if !(1..=16).contains(&sessions) {
                return wrong("spec.sessions", format!("{sessions}: write 1 to 16"));
            }
            proxy.sessions = sessions;
        }
        proxy.any_source = spec.any_source;
        let limits = spec.limits;
        proxy.memory = at_least("memoryBytes", limits.memory, proxy.memory, 16 << 20)?;
        proxy.queue = at_least("queueBytes", limits.queue, proxy.queue, 1 << 20)?;
        if let Some(window) = limits.window {
            proxy.window = window.clamp(window::LEAST, window::MOST);
        }
        if let Some(bytes) = limits.rekey {
            if !(1 << 20..=32 << 30).contains(&bytes) {
                return wrong("spec.limits.rekeyBytes", "write 1 MiB to 32 GiB, in bytes");
            }
            proxy.rekey = Some(bytes);
        }
        proxy.endpoint = spec.endpoint.map(|endpoint| Endpoint {
            authorized: endpoint.authorized_keys_file,
            host_key: endpoint.host_key_file,
        });
        Ok(proxy)
    }
}

fn at_least(
    name: &str,
    written: Option<usize>,
    usual: usize,
    least: usize,
) -> Result<usize, ObjectError> {
    match written {
        None => Ok(usual),
        Some(bytes) if bytes >= least => Ok(bytes),
        Some(bytes) => wrong(
            format!("spec.limits.{name}"),
            format!("{bytes} is too little: write at least {least}"),
        ),
    }
}

/// HTTPS and AMQP.
fn usual_forwards(server: &str) -> Vec<Forward> {
    let one = |name: &str, (listen, port)| Forward {
        name: name.to_owned(),
        listen,
        target: target(server, port),
        proxy_protocol: false,
    };
    vec![one("https", HTTPS), one("amqp", AMQP)]
}

fn target(server: &str, port: u16) -> String {
    if server.contains(':') {
        format!("[{server}]:{port}")
    } else {
        format!("{server}:{port}")
    }
}

fn forwards(written: Vec<WrittenForward>) -> Result<Vec<Forward>, ObjectError> {
    if written.is_empty() {
        return wrong("spec.forwards", "is empty: leave it out for HTTPS and AMQP");
    }
    let (mut names, mut ports) = (BTreeSet::new(), BTreeSet::new());
    let mut forwards = Vec::new();
    for (i, one) in written.into_iter().enumerate() {
        let field = |name: &str| format!("spec.forwards[{i}].{name}");
        if one.listen == 0 {
            return wrong(field("listen"), "0 is not a port: write 1 to 65535");
        }
        if !ports.insert(one.listen) {
            let message = format!("port {} is there twice", one.listen);
            return wrong(field("listen"), message);
        }
        if one.name.is_empty() || !names.insert(one.name.clone()) {
            let message = format!("{:?} is empty or there twice", one.name);
            return wrong(field("name"), message);
        }
        let port = one
            .target
            .rsplit_once(':')
            .map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(1..))) {
            let message = format!(
                "{:?} is no address and port: write one as 127.0.0.1:9443",
                one.target
            );
            return wrong(field("target"), message);
        }
        forwards.push(Forward {
            name: one.name,
            listen: one.listen,
            target: one.target,
            proxy_protocol: one.proxy_protocol,
        });
    }
    Ok(forwards)
}

fn trust(written: HostKey) -> Result<Policy, ObjectError> {
    let HostKey { policy, keys, file } = written;
    if policy == HostKeyPolicy::Pinned {
        if keys.is_empty() {
            return wrong("spec.hostKey.keys", "no key is pinned: write at least one");
        }
        if file.is_some() {
            return wrong("spec.hostKey.file", "goes with known-hosts or accept-new");
        }
        let mut pins = Vec::new();
        for (i, text) in keys.iter().enumerate() {
            match Pin::parse(text) {
                Ok(pin) => pins.push(pin),
                Err(error) => {
                    return wrong(format!("spec.hostKey.keys[{i}]"), error.to_string());
                }
            }
        }
        return Ok(Policy::Pinned(pins));
    }
    if !keys.is_empty() {
        return wrong("spec.hostKey.keys", "goes with the policy pinned");
    }
    let Some(file) = file else {
        return wrong("spec.hostKey.file", "missing: write the known_hosts file");
    };
    Ok(match policy {
        HostKeyPolicy::AcceptNew => Policy::AcceptNew(file),
        HostKeyPolicy::KnownHosts | HostKeyPolicy::Pinned => Policy::Known(file),
    })
}

#[cfg(test)]
mod tests;
