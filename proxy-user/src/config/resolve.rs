//! Defaults and checks: from the file as written to a [`Config`].

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use toml::Spanned;
use wildmatch::WildMatch;

use super::{
    Config, ConfigError, FlowTimeouts, MapSizes, PodNetworkConfig, Problem, SocketsConfig, Source,
    VERSION, XdpMode, file,
};
use crate::model::Algorithm;

mod source;

/// Ports that Kubernetes gives to services of type NodePort unless it is told otherwise.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// Source ports that translation claims unless it is told otherwise.
const NAT_PORTS: RangeInclusive<u16> = 61_000..=65_535;

/// Where kube-proxy serves its health (`--healthz-bind-address`): at all addresses.
const HEALTH: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 10_256);

/// Where kube-proxy serves its metrics (`--metrics-bind-address`).
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10_249);

/// Environment variable that names this node where `node.name` does not.
const NODE_NAME: &str = "CAUSEWAY_NODE_NAME";

/// Longest name of a network device (`IFNAMSIZ` less the final zero).
const DEVICE_NAME_BYTES: usize = 15;

/// Collects what is wrong, so that all of it is told at once.
struct Check<'t> {
    file: &'t Path,
    text: &'t str,
    /// `net.ipv4.ip_local_port_range`; none: not known.
    local_ports: Option<RangeInclusive<u16>>,
    problems: Vec<Problem>,
}

pub(super) fn resolve(
    path: &Path,
    text: &str,
    local_ports: Option<RangeInclusive<u16>>,
) -> Result<Config, ConfigError> {
    let parsed: file::File = toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        ConfigError::Syntax {
            file: path.to_owned(),
            line: line(text, start),
            message: syntax_message(error.message(), text, start),
        }
    })?;
    let mut check = Check {
        file: path,
        text,
        local_ports,
        problems: Vec::new(),
    };
    check.version(&parsed.version);
    let instance = check.instance(parsed.instance.as_ref());
    let config = Config {
        node: check.node(parsed.node.name.as_ref()),
        uplinks: check.uplinks(&parsed.devices.uplinks),
        pods: check.patterns("devices.pods", &parsed.devices.pods),
        source: check.source(&parsed.source, parsed.manifests.directory.as_ref()),
        state: check.state(parsed.state.directory.as_ref(), &instance),
        external_ranges: check.ranges("services.external_ranges", &parsed.services.external_ranges),
        nat_ports: check.ports(parsed.nat.ports.as_ref()),
        xdp: check.xdp("datapath.xdp", parsed.datapath.xdp.as_ref()),
        xdp_devices: check.xdp_devices(&parsed.datapath),
        algorithm: check.algorithm(parsed.services.algorithm.as_ref()),
        maps: check.maps(&parsed.maps),
        socket: check.socket(parsed.api.socket.as_ref(), &instance),
        health: check.listener("health.address", parsed.health.address.as_ref(), HEALTH),
        metrics: check.listener("metrics.address", parsed.metrics.address.as_ref(), METRICS),
        node_port_ranges: check.ranges("node.port_ranges", &parsed.node.port_ranges),
        timeouts: check.timeouts(&parsed.flows),
        pod_network: PodNetworkConfig {
            enabled: parsed.pod_network.enabled.unwrap_or(false),
            routes: parsed.pod_network.routes.unwrap_or(true),
            masquerade: parsed.pod_network.masquerade.unwrap_or(true),
            not_masqueraded: check.ranges(
                "pod_network.not_masqueraded",
                &parsed.pod_network.not_masqueraded,
            ),
        },
        sockets: SocketsConfig {
            enabled: parsed.sockets.enabled.unwrap_or(false),
            cgroup: check.cgroup(parsed.sockets.cgroup.as_ref()),
            udp: parsed.sockets.udp.unwrap_or(false),
            pods: parsed.sockets.pods.unwrap_or(false),
        },
        instance,
    };
    if check.problems.is_empty() {
        Ok(config)
    } else {
        Err(ConfigError::Invalid {
            problems: check.problems,
        })
    }
}

fn line(text: &str, offset: usize) -> usize {
    text.bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
        + 1
}

/// The parser's message with the line it is about, which shows key and value.
fn syntax_message(message: &str, text: &str, offset: usize) -> String {
    let quoted = text
        .lines()
        .nth(line(text, offset) - 1)
        .unwrap_or_default()
        .trim();
    let missing = message.starts_with("missing field");
    let remedy = if message.starts_with("unknown field") {
        "; remove it or correct its spelling"
    } else if missing {
        "; add it (docs/reference/configuration.md has every key)"
    } else {
        ""
    };
    if quoted.is_empty() || missing {
        format!("{message}{remedy}")
    } else {
        format!("`{quoted}`: {message}{remedy}")
    }
}

fn overlap(a: &RangeInclusive<u16>, b: &RangeInclusive<u16>) -> bool {
    a.start() <= b.end() && b.start() <= a.end()
}

impl Check<'_> {
    fn problem<T>(&mut self, key: &str, at: &Spanned<T>, value: &str, remedy: impl Into<String>) {
        self.problems.push(Problem {
            file: self.file.to_owned(),
            line: line(self.text, at.span().start),
            key: key.to_owned(),
            value: value.to_owned(),
            remedy: remedy.into(),
        });
    }

    fn bad(&mut self, key: &str, text: &Spanned<String>, remedy: impl Into<String>) {
        self.problem(key, text, &format!("{:?}", text.get_ref()), remedy);
    }

    fn version(&mut self, version: &Spanned<i64>) {
        if *version.get_ref() != VERSION {
            let remedy = format!("this build reads version {VERSION} of the format; write that");
            self.problem("version", version, &version.get_ref().to_string(), remedy);
        }
    }

    fn instance(&mut self, instance: Option<&Spanned<String>>) -> String {
        let Some(text) = instance else {
            return "default".to_owned();
        };
        let name = text.get_ref();
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 63 || !name.chars().all(allowed) {
            self.bad(
                "instance",
                text,
                "write 1 to 63 lower-case letters, digits or dashes",
            );
        }
        name.clone()
    }

    fn node(&mut self, name: Option<&Spanned<String>>) -> String {
        if let Some(text) = name {
            if text.get_ref().is_empty() {
                self.bad(
                    "node.name",
                    text,
                    "write the Node's metadata.name, or leave it out to use the host's name",
                );
            }
            return text.get_ref().clone();
        }
        // In a pod, the API server knows better than the host (deploy/kubernetes/causeway.yaml).
        if let Some(name) = std::env::var(NODE_NAME)
            .ok()
            .filter(|name| !name.is_empty())
        {
            return name;
        }
        // As the kubelet does: the kernel's host name in lower case.
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        name.trim().to_ascii_lowercase()
    }

    fn uplinks(&mut self, uplinks: &Spanned<Vec<Spanned<String>>>) -> Vec<WildMatch> {
        if uplinks.get_ref().is_empty() {
            let remedy = "name at least one device that leads outside, as [\"eth*\"]";
            self.problem("devices.uplinks", uplinks, "[]", remedy);
        }
        self.patterns("devices.uplinks", uplinks.get_ref())
    }

    fn patterns(&mut self, key: &str, patterns: &[Spanned<String>]) -> Vec<WildMatch> {
        patterns
            .iter()
            .map(|text| {
                let pattern = text.get_ref();
                let letters = pattern.chars().filter(|c| *c != '*').count();
                if pattern.is_empty() || letters > DEVICE_NAME_BYTES || pattern.contains(['/', ' '])
                {
                    let remedy = "write a device's name (at most 15 letters); * stands for any \
                                  letters, ? for one";
                    self.bad(key, text, remedy);
                }
                WildMatch::new(pattern)
            })
            .collect()
    }

    fn ranges(&mut self, key: &str, ranges: &[Spanned<String>]) -> Vec<ipnet::IpNet> {
        let mut found = Vec::new();
        for text in ranges {
            let range = text.get_ref();
            let single = || range.parse::<IpAddr>().map(ipnet::IpNet::from);
            match range.parse().or_else(|_| single()) {
                Ok(range) => found.push(range),
                Err(_) => {
                    self.bad(
                        key,
                        text,
                        "write a range as \"192.0.2.0/24\" or \"2001:db8::/64\"",
                    );
                }
            }
        }
        found
    }

    fn ports(&mut self, ports: Option<&Spanned<String>>) -> RangeInclusive<u16> {
        let Some(text) = ports else { return NAT_PORTS };
        let parsed = text.get_ref().split_once('-').and_then(|(first, last)| {
            Some(first.trim().parse::<u16>().ok()?..=last.trim().parse::<u16>().ok()?)
        });
        let Some(range) =
            parsed.filter(|range| *range.start() >= 1_024 && range.end() > range.start())
        else {
            let remedy = "write two ports from 1024 to 65535, lower first, as \"61000-65535\"";
            self.bad("nat.ports", text, remedy);
            return NAT_PORTS;
        };
        if overlap(&range, &NODE_PORTS) {
            let remedy = "these are node ports (30000-32767), whose connections translation would \
                          take for its own; write ports outside of them, as \"61000-65535\"";
            self.bad("nat.ports", text, remedy);
        }
        if let Some(local) = self.local_ports.clone().filter(|l| overlap(&range, l)) {
            let remedy = format!(
                "this node's own sockets take ports from {}-{} \
                 (net.ipv4.ip_local_port_range), and both would use the same; write ports outside \
                 of them, or set that range to others",
                local.start(),
                local.end()
            );
            self.bad("nat.ports", text, remedy);
        }
        range
    }

    fn state(&mut self, directory: Option<&Spanned<String>>, instance: &str) -> PathBuf {
        let Some(text) = directory else {
            return Path::new("/var/lib/causeway").join(instance);
        };
        let path = PathBuf::from(text.get_ref());
        if !path.is_absolute() {
            let remedy = "write the absolute path of a directory that outlives a restart of this \
                          node, and that no other instance uses";
            self.bad("state.directory", text, remedy);
        }
        path
    }

    fn cgroup(&mut self, cgroup: Option<&Spanned<String>>) -> Option<PathBuf> {
        let text = cgroup?;
        let path = PathBuf::from(text.get_ref());
        if !path.is_absolute() {
            let remedy = "write the absolute path of a cgroup's folder, as \"/sys/fs/cgroup\", or \
                          leave it out for all cgroups";
            self.bad("sockets.cgroup", text, remedy);
        }
        Some(path)
    }

    fn xdp(&mut self, key: &str, mode: Option<&Spanned<String>>) -> XdpMode {
        let Some(text) = mode else {
            return XdpMode::Auto;
        };
        match text.get_ref().as_str() {
            "auto" => XdpMode::Auto,
            "native" => XdpMode::Native,
            "generic" => XdpMode::Generic,
            "off" => XdpMode::Off,
            _ => {
                self.bad(
                    key,
                    text,
                    "write \"auto\", \"native\", \"generic\" or \"off\"",
                );
                XdpMode::Auto
            }
        }
    }

    fn xdp_devices(&mut self, datapath: &file::Datapath) -> Vec<(WildMatch, XdpMode)> {
        let rows = datapath.xdp_devices.iter();
        rows.map(|(pattern, mode)| {
            let key = format!("datapath.xdp_devices.{pattern}");
            (WildMatch::new(pattern), self.xdp(&key, Some(mode)))
        })
        .collect()
    }

    fn algorithm(&mut self, algorithm: Option<&Spanned<String>>) -> Algorithm {
        let Some(text) = algorithm else {
            return Algorithm::Random;
        };
        match text.get_ref().as_str() {
            "random" => Algorithm::Random,
            "maglev" => Algorithm::Maglev,
            _ => {
                self.bad("services.algorithm", text, "write \"random\" or \"maglev\"");
                Algorithm::Random
            }
        }
    }

    fn maps(&mut self, maps: &file::Maps) -> MapSizes {
        let flows = self.size("maps.flows", maps.flows.as_ref(), 262_144);
        MapSizes {
            services: self.size("maps.services", maps.services.as_ref(), 131_072),
            frontends: self.size("maps.frontends", maps.frontends.as_ref(), 131_072),
            backends: self.size("maps.backends", maps.backends.as_ref(), 131_072),
            slots: self.size("maps.slots", maps.slots.as_ref(), 1_048_576),
            addresses: self.size("maps.addresses", maps.addresses.as_ref(), 65_536),
            flows,
        }
    }

    fn size(&mut self, key: &str, size: Option<&Spanned<i64>>, default: u32) -> u32 {
        let Some(number) = size else { return default };
        let value = *number.get_ref();
        if let Ok(size @ 256..=16_777_216) = u32::try_from(value) {
            return size;
        }
        self.problem(
            key,
            number,
            &value.to_string(),
            "write a number from 256 to 16777216",
        );
        default
    }

    fn socket(&mut self, socket: Option<&Spanned<String>>, instance: &str) -> PathBuf {
        let Some(text) = socket else {
            return PathBuf::from(format!("/run/causeway/{instance}.sock"));
        };
        let path = PathBuf::from(text.get_ref());
        // sun_path of unix(7) has 108 bytes with the final zero.
        if !path.is_absolute() || text.get_ref().len() > 107 {
            self.bad(
                "api.socket",
                text,
                "write an absolute path of at most 107 bytes",
            );
        }
        path
    }

    /// An address and port to listen at; none: `off`.
    fn listener(
        &mut self,
        key: &str,
        text: Option<&Spanned<String>>,
        default: SocketAddr,
    ) -> Option<SocketAddr> {
        let Some(text) = text else {
            return Some(default);
        };
        if text.get_ref() == "off" {
            return None;
        }
        match text.get_ref().parse() {
            Ok(address) if SocketAddr::port(&address) != 0 => Some(address),
            _ => {
                let remedy = format!(
                    "write an address with a port, as \"{default}\" (which is the default), or \
                     \"off\""
                );
                self.bad(key, text, remedy);
                None
            }
        }
    }

    fn timeouts(&mut self, flows: &file::Flows) -> FlowTimeouts {
        FlowTimeouts {
            tcp_new: self.duration("flows.tcp_new", flows.tcp_new.as_ref(), 20),
            tcp_established: self.duration(
                "flows.tcp_established",
                flows.tcp_established.as_ref(),
                7_200,
            ),
            tcp_half_closed: self.duration(
                "flows.tcp_half_closed",
                flows.tcp_half_closed.as_ref(),
                30,
            ),
            tcp_closed: self.duration("flows.tcp_closed", flows.tcp_closed.as_ref(), 10),
            udp_new: self.duration("flows.udp_new", flows.udp_new.as_ref(), 30),
            udp_established: self.duration(
                "flows.udp_established",
                flows.udp_established.as_ref(),
                180,
            ),
        }
    }

    fn duration(&mut self, key: &str, text: Option<&Spanned<String>>, default: u64) -> Duration {
        let default = Duration::from_secs(default);
        let Some(text) = text else { return default };
        let week = Duration::from_hours(168);
        match humantime::parse_duration(text.get_ref()) {
            Ok(duration) if duration >= Duration::from_secs(1) && duration <= week => duration,
            _ => {
                self.bad(
                    key,
                    text,
                    "write a time from \"1s\" to \"7days\", as \"30s\" or \"2h\"",
                );
                default
            }
        }
    }
}
