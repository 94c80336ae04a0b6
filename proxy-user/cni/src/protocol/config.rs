//! The configuration of a network, as it comes on stdin.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::{AttachmentKey, VERSIONS};
use crate::error::{CniError, Code};
use crate::record::{PortMapping, Protocol};

/// The directory that plugin and daemon share, unless the configuration says otherwise.
pub const DEFAULT_STATE: &str = "/var/lib/causeway/default/cni";

/// How long an ADD waits for the daemon's programs unless the configuration says otherwise.
const WAIT: Duration = Duration::from_secs(15);

/// Keys that libcni or a runtime adds, or that say nothing to us.
const IGNORED: [&str; 5] = ["args", "capabilities", "dns", "disableCheck", "disableGC"];

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// `cniVersion`.
    pub version: String,
    /// `name`.
    pub name: String,
    /// `stateDirectory`.
    pub state: PathBuf,
    /// `ranges`; empty: those of the Node, from the daemon.
    pub ranges: Vec<IpNet>,
    /// `mtu`; none: the uplinks', from the daemon.
    pub mtu: Option<u32>,
    /// `waitSeconds`.
    pub wait: Duration,
    /// `runtimeConfig.portMappings`.
    pub port_mappings: Vec<PortMapping>,
    /// `prevResult`.
    pub previous: Option<Value>,
    /// `cni.dev/valid-attachments`.
    pub valid: Option<Vec<AttachmentKey>>,
}

#[derive(Deserialize)]
struct Written {
    #[serde(rename = "cniVersion")]
    version: Option<String>,
    name: Option<String>,
    #[serde(rename = "type")]
    _kind: Option<String>,
    #[serde(rename = "stateDirectory")]
    state: Option<PathBuf>,
    #[serde(default)]
    ranges: Vec<IpNet>,
    mtu: Option<u32>,
    #[serde(rename = "waitSeconds")]
    wait: Option<u64>,
    #[serde(default)]
    ipam: Option<Value>,
    #[serde(rename = "runtimeConfig", default)]
    runtime: BTreeMap<String, Value>,
    #[serde(rename = "prevResult")]
    previous: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<WrittenAttachment>>,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct WrittenAttachment {
    #[serde(rename = "containerID")]
    container: String,
    ifname: String,
}

/// By the names of the conventions (containernetworking/cni, `CONVENTIONS.md`), and by those that
/// containerd writes: its `PortMapping` (go-cni, `types.go`) has no names for JSON, and plugins in Go
/// read either.
#[derive(Deserialize)]
struct WrittenMapping {
    #[serde(rename = "hostPort", alias = "HostPort")]
    host_port: u16,
    #[serde(rename = "containerPort", alias = "ContainerPort")]
    container_port: u16,
    #[serde(alias = "Protocol", default)]
    protocol: String,
    #[serde(rename = "hostIP", alias = "HostIP", default)]
    host_ip: String,
}

fn invalid(message: impl Into<String>, remedy: impl Into<String>) -> CniError {
    CniError::new(Code::InvalidConfig, message, remedy)
}

impl NetworkConfig {
    /// Reads and checks.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let written: Written = serde_json::from_str(text).map_err(|error| {
            let message = "the network configuration on stdin cannot be read";
            CniError::new(Code::Decoding, message, error.to_string())
        })?;
        // 0.1.0 is what a configuration without a version means.
        let version = written.version.unwrap_or_else(|| "0.1.0".to_owned());
        if !VERSIONS.contains(&version.as_str()) {
            let details = format!("write one of {} as cniVersion", VERSIONS.join(", "));
            return Err(CniError::new(
                Code::IncompatibleVersion,
                format!("cniVersion {version:?} is not spoken by causeway-cni"),
                details,
            ));
        }
        let ours = |key: &str| !IGNORED.contains(&key) && !key.starts_with("cni.dev/");
        if let Some(key) = written.other.keys().find(|key| ours(key)) {
            let remedy = "remove it or correct its spelling (docs/reference/cni.md has every key)";
            return Err(CniError::new(
                Code::UnsupportedField,
                format!("causeway-cni has no key {key:?}"),
                remedy,
            ));
        }
        if let Some(ipam) = &written.ipam
            && ipam.get("type").is_some()
        {
            return Err(CniError::new(
                Code::UnsupportedField,
                "ipam: causeway-cni gives addresses out itself",
                "remove ipam; addresses come from the Node's spec.podCIDRs, or from ranges",
            ));
        }
        let name = written.name.filter(|name| !name.is_empty());
        let state = written.state.unwrap_or_else(|| DEFAULT_STATE.into());
        if !state.is_absolute() {
            let remedy = "write the absolute path of <state.directory>/cni of causeway.toml";
            return Err(invalid(
                format!("stateDirectory = {}", state.display()),
                remedy,
            ));
        }
        // IPv6 needs links of at least 1280 bytes (RFC 8200 section 5).
        if let Some(mtu) = written.mtu.filter(|mtu| !(1280..=65_535).contains(mtu)) {
            return Err(invalid(format!("mtu = {mtu}"), "write 1280 to 65535"));
        }
        let wait = written.wait.map_or(WAIT, Duration::from_secs);
        let valid = written.valid.map(attachments).transpose()?;
        Ok(Self {
            name: name.ok_or_else(|| invalid("name is missing", "write the network's name"))?,
            state,
            ranges: written.ranges,
            mtu: written.mtu,
            wait,
            port_mappings: port_mappings(&written.runtime)?,
            previous: written.previous,
            valid,
            version,
        })
    }
}

fn attachments(written: Vec<WrittenAttachment>) -> Result<Vec<AttachmentKey>, CniError> {
    let keys = written.into_iter();
    keys.map(|one| {
        AttachmentKey::checked(one.container, one.ifname)
            .map_err(|problem| invalid(format!("cni.dev/valid-attachments: {problem}"), ""))
    })
    .collect()
}

/// Everything else that a runtime can ask for is refused: a pod that runs without what was asked
/// for is worse than one that says why it does not start.
fn port_mappings(runtime: &BTreeMap<String, Value>) -> Result<Vec<PortMapping>, CniError> {
    let mut found = Vec::new();
    for (capability, value) in runtime {
        if capability == "portMappings" {
            let written: Option<Vec<WrittenMapping>> = serde_json::from_value(value.clone())
                .map_err(|error| {
                    let message = "runtimeConfig.portMappings cannot be read";
                    CniError::new(Code::Decoding, message, error.to_string())
                })?;
            for (i, mapping) in written.unwrap_or_default().into_iter().enumerate() {
                found.extend(port_mapping(i, &mapping)?);
            }
        } else if !is_empty(value) {
            let details = if capability == "bandwidth" {
                "limits of a pod's bandwidth are not supported yet: remove the annotations \
                 kubernetes.io/ingress-bandwidth and kubernetes.io/egress-bandwidth from the pod, \
                 or the capability from the network configuration"
                    .to_owned()
            } else {
                format!("remove the capability {capability} from the network configuration")
            };
            return Err(CniError::new(
                Code::UnsupportedField,
                format!("runtimeConfig.{capability} is not supported by causeway-cni"),
                details,
            ));
        }
    }
    Ok(found)
}

/// Runtimes give every capability that is declared, also where a pod asks for nothing.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Bool(set) => !set,
    }
}

fn port_mapping(i: usize, written: &WrittenMapping) -> Result<Option<PortMapping>, CniError> {
    let field = format!("runtimeConfig.portMappings[{i}]");
    // As the reference plugin does: runtimes list all ports of a container, also those that have no
    // port of the host.
    if written.host_port == 0 {
        return Ok(None);
    }
    if written.container_port == 0 {
        return Err(invalid(
            format!("{field}.containerPort = 0"),
            "write 1 to 65535",
        ));
    }
    let protocol = match written.protocol.to_ascii_lowercase().as_str() {
        "" | "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => {
            let message = format!("{field}.protocol = {:?}", written.protocol);
            return Err(invalid(message, "write tcp, udp or sctp"));
        }
    };
    let host_ip: Option<IpAddr> = match written.host_ip.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            let message = format!("{field}.hostIP = {text:?} is not an address");
            invalid(
                message,
                "write an address of this node, or nothing for all of them",
            )
        })?),
    };
    Ok(Some(PortMapping {
        host_ip,
        host_port: written.host_port,
        container_port: written.container_port,
        protocol,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(extra: &str) -> Result<NetworkConfig, CniError> {
        NetworkConfig::parse(&format!(
            r#"{{"cniVersion": "1.1.0", "name": "pods", "type": "causeway-cni"{extra}}}"#
        ))
    }

    #[test]
    fn defaults_and_everything_that_is_understood() {
        let config = parse("").unwrap();
        assert_eq!(config.state, PathBuf::from(DEFAULT_STATE));
        assert_eq!(config.wait, WAIT);
        let config = parse(
            r#", "ranges": ["10.1.0.0/24", "fd00::/64"], "mtu": 1400, "waitSeconds": 3,
               "capabilities": {"portMappings": true}, "cni.dev/attachments": [],
               "stateDirectory": "/run/x", "ipam": {},
               "runtimeConfig": {"bandwidth": {"ingressRate": 0}, "portMappings": [
                 {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                 {"hostPort": 0, "containerPort": 81},
                 {"hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "fd00::9"}]},
               "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}]"#,
        )
        .unwrap();
        assert_eq!(config.ranges.len(), 2);
        assert_eq!(config.mtu, Some(1400));
        let mapping = |host_ip: Option<&str>, host_port, container_port, protocol| PortMapping {
            host_ip: host_ip.map(|text| text.parse().unwrap()),
            host_port,
            container_port,
            protocol,
        };
        assert_eq!(
            config.port_mappings,
            [
                mapping(None, 8080, 80, Protocol::Tcp),
                mapping(Some("fd00::9"), 53, 5353, Protocol::Udp)
            ]
        );
        assert_eq!(config.valid.unwrap().len(), 1);
    }

    #[test]
    fn port_mappings_are_read_as_containerd_writes_them() {
        let config = parse(
            r#", "runtimeConfig": {"portMappings": [
                 {"HostPort": 8080, "ContainerPort": 80, "Protocol": "udp", "HostIP": "127.0.0.1"}]}"#,
        );
        let expected = PortMapping {
            host_ip: Some(IpAddr::from([127, 0, 0, 1])),
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Udp,
        };
        assert_eq!(config.unwrap().port_mappings, [expected]);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (extra, code, named) in [
            (r#", "rangs": []"#, 2, "rangs"),
            (r#", "ipam": {"type": "host-local"}"#, 2, "ipam"),
            (r#", "mtu": 68"#, 7, "mtu = 68"),
            (r#", "stateDirectory": "x""#, 7, "stateDirectory"),
            (r#", "ranges": ["10.0.0.0/33"]"#, 6, "configuration"),
            (
                r#", "runtimeConfig": {"bandwidth": {"ingressRate": 1000, "ingressBurst": 1}}"#,
                2,
                "runtimeConfig.bandwidth",
            ),
            (
                r#", "runtimeConfig": {"ips": ["10.0.0.1"]}"#,
                2,
                "runtimeConfig.ips",
            ),
            (
                r#", "runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "x"}]}"#,
                7,
                "portMappings[0].protocol",
            ),
            (
                r#", "runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "hostIP": "x"}]}"#,
                7,
                "portMappings[0].hostIP",
            ),
            (
                r#", "cni.dev/valid-attachments": [{"containerID": "/", "ifname": "eth0"}]"#,
                7,
                "valid-attachments",
            ),
        ] {
            let error = parse(extra).unwrap_err();
            assert_eq!(error.code.number(), code, "{error}");
            assert!(error.message.contains(named), "{error}");
        }
        let old = NetworkConfig::parse(r#"{"cniVersion": "0.2.0", "name": "a"}"#).unwrap_err();
        assert_eq!(old.code.number(), 1);
        let none = NetworkConfig::parse(r#"{"cniVersion": "1.0.0"}"#).unwrap_err();
        assert!(none.message.contains("name"));
    }
}
