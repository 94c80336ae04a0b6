use super::*;

const WHOLE: &str = r#"version = 1
instance = "edge"

[node]
name = "worker-1"
port_ranges = ["192.0.2.0/24", "2001:db8::1"]

[devices]
uplinks = ["eth*", "ens?"]
pods = ["veth*"]

[manifests]
directory = "manifests"

[services]
algorithm = "maglev"
external_ranges = ["198.51.100.0/24"]

[nat]
ports = "40000-50000"

[datapath]
xdp = "generic"
xdp_devices = { "eth1*" = "off" }

[flows]
tcp_established = "1h"
udp_new = "10s"

[maps]
flows = 1024

[api]
socket = "/run/causeway/edge.sock"
"#;

const LEAST: &str =
    "version = 1\n[devices]\nuplinks = [\"eth0\"]\n[manifests]\ndirectory = \"/m\"\n";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("/etc/causeway/causeway.toml"), text)
}

fn error(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn reads_every_key() {
    let config = parse(WHOLE).unwrap();
    assert_eq!(config.instance, "edge");
    assert_eq!(config.node, "worker-1");
    assert_eq!(config.role("eth7"), DeviceRole::Uplink);
    assert_eq!(config.role("ens3"), DeviceRole::Uplink);
    assert_eq!(config.role("ens33"), DeviceRole::Unknown);
    assert_eq!(config.role("veth12"), DeviceRole::Pod);
    assert_eq!(config.xdp_mode("eth0"), XdpMode::Generic);
    assert_eq!(config.xdp_mode("eth10"), XdpMode::Off);
    assert_eq!(config.manifests, Path::new("/etc/causeway/manifests"));
    assert_eq!(config.nat_ports, 40_000..=50_000);
    assert_eq!(config.algorithm, Algorithm::Maglev);
    assert_eq!(config.maps.entries("FLOWS_V6"), Some(1_024));
    assert_eq!(config.maps.entries("BACKENDS"), Some(131_072));
    assert_eq!(config.maps.entries("COUNTERS"), Some(64));
    assert_eq!(config.timeouts.tcp_established, Duration::from_hours(1));
    assert_eq!(config.timeouts.udp_new, Duration::from_secs(10));
    assert_eq!(config.timeouts.udp_established, Duration::from_mins(3));
    assert!(config.allows_external("198.51.100.7".parse().unwrap()));
    assert!(!config.allows_external("198.51.101.7".parse().unwrap()));
    assert_eq!(config.node_port_ranges.len(), 2);
}

#[test]
fn defaults_are_those_of_the_map_registry() {
    let config = parse(LEAST).unwrap();
    for spec in MAPS {
        assert_eq!(
            config.maps.entries(spec.name),
            Some(spec.entries),
            "{}",
            spec.name
        );
    }
    assert_eq!(config.socket, Path::new("/run/causeway/default.sock"));
    assert_eq!(config.nat_ports, 61_000..=65_535);
}

#[test]
fn every_mistake_is_told_with_line_key_value_and_remedy() {
    let text = WHOLE
        .replace("\"40000-50000\"", "\"50000-40000\"")
        .replace("\"1h\"", "\"soon\"")
        .replace("\"maglev\"", "\"best\"");
    let expected = "\
/etc/causeway/causeway.toml:20: nat.ports = \"50000-40000\": write two ports from 1024 to 65535, \
lower first, as \"61000-65535\", outside net.ipv4.ip_local_port_range
/etc/causeway/causeway.toml:16: services.algorithm = \"best\": write \"random\" or \"maglev\"
/etc/causeway/causeway.toml:27: flows.tcp_established = \"soon\": write a time from \"1s\" to \
\"7days\", as \"30s\" or \"2h\"";
    assert_eq!(error(&text), expected);
}

#[test]
fn mistakes_of_form_are_told_with_the_line() {
    let rows = [
        (
            LEAST.replace("uplinks", "uplink"),
            ":3: `uplink = [\"eth0\"]`: unknown field `uplink`",
        ),
        (
            LEAST.replace("= 1", "= \"1\""),
            ":1: `version = \"1\"`: invalid type: string",
        ),
        (LEAST.replace("\"/m\"", "\"/m"), ":5: "),
        (
            LEAST.replace("version = 1\n", ""),
            "missing field `version`",
        ),
    ];
    for (text, expected) in rows {
        let error = error(&text);
        assert!(error.contains(expected), "{error}");
    }
    let newer = LEAST.replace("version = 1", "version = 2");
    assert!(error(&newer).contains(":1: version = 2: this build reads version 1"));
}
