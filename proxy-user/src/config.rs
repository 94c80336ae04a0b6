//! `causeway.toml`: what the operator of this node decides.
//!
//! [`Config::load`] reads, checks everything, and says of each mistake in which line it stands, what
//! was found and what to write instead.

mod file;
mod resolve;

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use proxy_cni::record::is_pod_device;
use proxy_common::abi::{DeviceRole, MAPS};
use wildmatch::WildMatch;

use crate::{
    kernel::sysctl::Sysctl,
    model::Algorithm,
    reconcile::{Capacity, Held, Options},
    source::apiserver::Access,
};

/// The version of the file's format that this build reads.
pub const VERSION: i64 = 1;

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{}: cannot read the configuration: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It isn't TOML, has a key that doesn't exist, or a value of the wrong type.
    #[error("{}:{line}: {message}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// The line, from 1 on.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// Values that can't be used.
    #[error("{}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid {
        /// All of them.
        problems: Vec<Problem>,
    },
}

/// One value that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}:{line}: {key} = {value}: {remedy}", file.display())]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1 on.
    pub line: usize,
    /// The key with its table, as `nat.ports`.
    pub key: String,
    /// The value that was found.
    pub value: String,
    /// What is wrong and what to write.
    pub remedy: String,
}

/// How XDP programs are attached to a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// Native on physical devices, off on virtual ones.
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// In the kernel's generic hook.
    Generic,
    /// Not at all: TC carries everything.
    Off,
}

/// After how much silence a connection is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowTimeouts {
    /// TCP, as long as only one side has sent.
    pub tcp_new: Duration,
    /// TCP, both sides have sent.
    pub tcp_established: Duration,
    /// TCP, one side has closed.
    pub tcp_half_closed: Duration,
    /// TCP, both sides have closed, or one has reset.
    pub tcp_closed: Duration,
    /// UDP and SCTP, as long as only one side has sent.
    pub udp_new: Duration,
    /// UDP and SCTP, both sides have sent.
    pub udp_established: Duration,
}

/// Numbers of entries of the maps whose size can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    /// Service ports: `OBJECTS`.
    pub services: u32,
    /// Addresses and ports: `SERVICES_V4` and `SERVICES_V6`, each.
    pub frontends: u32,
    /// Endpoints: `BACKENDS`.
    pub backends: u32,
    /// Choices of all services together: `SLOTS`.
    pub slots: u32,
    /// Addresses of services: `ADDRESSES_V4` and `ADDRESSES_V6`, each.
    pub addresses: u32,
    /// Directions of connections, two per connection: `FLOWS_V4` and `FLOWS_V6`, each.
    pub flows: u32,
}

impl MapSizes {
    /// Entries of the map of this name.
    #[must_use]
    pub fn entries(&self, map: &str) -> Option<u32> {
        match map {
            "OBJECTS" => Some(self.services),
            "SERVICES_V4" | "SERVICES_V6" => Some(self.frontends),
            "BACKENDS" => Some(self.backends),
            "SLOTS" => Some(self.slots),
            "ADDRESSES_V4" | "ADDRESSES_V6" => Some(self.addresses),
            "FLOWS_V4" | "FLOWS_V6" => Some(self.flows),
            _ => MAPS
                .iter()
                .find(|spec| spec.name == map)
                .map(|spec| spec.entries),
        }
    }

    /// What the allocation may give out.
    #[must_use]
    pub const fn capacity(&self) -> Capacity {
        Capacity {
            services: self.services,
            backends: self.backends,
            slots: self.slots,
        }
    }
}

/// Where Kubernetes objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// The API server of a cluster.
    Kubernetes(Access),
}

impl Default for Source {
    fn default() -> Self {
        Self::Manifests(PathBuf::new())
    }
}

/// What this node does for its pods' networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodNetworkConfig {
    /// Pods get their network from `causeway-cni`.
    pub enabled: bool,
    /// This node has routes to the pods of others.
    pub routes: bool,
    /// What its pods send out of the cluster carries this node's address.
    pub masquerade: bool,
    /// But for what goes there.
    pub not_masqueraded: Vec<ipnet::IpNet>,
}

/// Which processes' sockets are led to backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketsConfig {
    /// Any at all.
    pub enabled: bool,
    /// Those of processes in this cgroup; none: in any.
    pub cgroup: Option<PathBuf>,
    /// Sockets of UDP, too.
    pub udp: bool,
    /// Sockets in other network namespaces than this node's, too.
    pub pods: bool,
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names this Causeway among several on one machine: pins and socket carry it.
    pub instance: String,
    /// This node's name in the cluster.
    pub node: String,
    /// Names of devices that lead outside.
    pub uplinks: Vec<WildMatch>,
    /// Names of the host's ends of pods' devices.
    pub pods: Vec<WildMatch>,
    /// Where Kubernetes objects come from.
    pub source: Source,
    /// The directory for what must outlive the daemon: the last good state of objects.
    pub state: PathBuf,
    /// Where external addresses of Services may lie; empty: they aren't served.
    pub external_ranges: Vec<ipnet::IpNet>,
    /// Source ports that translation may claim.
    pub nat_ports: RangeInclusive<u16>,
    /// How XDP is attached unless `xdp_devices` says otherwise.
    pub xdp: XdpMode,
    /// The same for single devices; the first that matches counts.
    pub xdp_devices: Vec<(WildMatch, XdpMode)>,
    /// For services that don't say.
    pub algorithm: Algorithm,
    /// Sizes of maps.
    pub maps: MapSizes,
    /// The socket of the API.
    pub socket: PathBuf,
    /// Where `/healthz` and `/livez` are served; none: nowhere.
    pub health: Option<SocketAddr>,
    /// Where `/metrics` and `/proxyMode` are served; none: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Where node ports and host ports are served; empty: at all addresses of uplinks.
    pub node_port_ranges: Vec<ipnet::IpNet>,
    /// When flows are forgotten.
    pub timeouts: FlowTimeouts,
    /// Pods' networks.
    pub pod_network: PodNetworkConfig,
    /// Sockets.
    pub sockets: SocketsConfig,
}

impl Config {
    /// Reads and checks a file.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Read {
            file: file.to_owned(),
            source,
        })?;
        Self::parse(file, &text)
    }

    /// Checks the text of a file.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        resolve::resolve(file, text, Sysctl::default().local_ports())
    }

    /// What a device of this name is to us. Uplinks come first.
    #[must_use]
    pub fn role(&self, device: &str) -> DeviceRole {
        let matches = |patterns: &[WildMatch]| patterns.iter().any(|p| p.matches(device));
        if matches(&self.uplinks) {
            DeviceRole::Uplink
        } else if matches(&self.pods) || (self.pod_network.enabled && is_pod_device(device)) {
            DeviceRole::Pod
        } else {
            DeviceRole::Unknown
        }
    }

    /// How XDP is attached to a device of this name.
    #[must_use]
    pub fn xdp_mode(&self, device: &str) -> XdpMode {
        let own = self
            .xdp_devices
            .iter()
            .find(|(pattern, _)| pattern.matches(device));
        own.map_or(self.xdp, |(_, mode)| *mode)
    }

    /// Whether an external address of a Service may be served.
    #[must_use]
    pub fn allows_external(&self, address: IpAddr) -> bool {
        self.external_ranges
            .iter()
            .any(|range| range.contains(&address))
    }

    /// What compiling needs to know.
    #[must_use]
    pub fn options(&self) -> Options {
        Options {
            node: self.node.clone(),
            nat_ports: self.nat_ports.clone(),
            algorithm: self.algorithm,
            node_port_ranges: self.node_port_ranges.clone(),
            sockets: self.sockets.enabled,
            held: Held::new(),
        }
    }
}

#[cfg(test)]
mod tests;
