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

[state]
directory = "/srv/causeway"

[services]
algorithm = "maglev"
external_ranges = ["198.51.100.0/24"]

[nat]
ports = "20000-29999"

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

[health]
address = "192.0.2.11:10256"

[metrics]
address = "off"

[sockets]
enabled = true
cgroup = "/sys/fs/cgroup/system.slice"
udp = true
pods = true
"#;

const LEAST: &str =
    "version = 1\n[devices]\nuplinks = [\"eth0\"]\n[manifests]\ndirectory = \"/m\"\n";

fn parse(text: &str) -> Result<Config, ConfigError> {
    let usual = 32_768..=60_999;
    resolve::resolve(Path::new("/etc/causeway/causeway.toml"), text, Some(usual))
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
    let manifests = PathBuf::from("/etc/causeway/manifests");
    assert_eq!(config.source, Source::Manifests(manifests));
    assert_eq!(config.state, Path::new("/srv/causeway"));
    assert_eq!(config.nat_ports, 20_000..=29_999);
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
    assert_eq!(config.health, Some("192.0.2.11:10256".parse().unwrap()));
    assert_eq!(config.metrics, None);
    let sockets = SocketsConfig {
        enabled: true,
        cgroup: Some("/sys/fs/cgroup/system.slice".into()),
        udp: true,
        pods: true,
    };
    assert_eq!(config.sockets, sockets);
    assert!(config.options().sockets);
}

#[test]
fn a_cgroup_is_an_absolute_path() {
    let told = error(&format!("{LEAST}[sockets]\ncgroup = \"system.slice\"\n"));
    let expected =
        ":7: sockets.cgroup = \"system.slice\": write the absolute path of a cgroup's folder";
    assert!(told.contains(expected), "{told}");
    let told = error(&format!("{LEAST}[sockets]\nprotocols = [\"udp\"]\n"));
    assert!(told.contains("unknown field `protocols`"), "{told}");
}

#[test]
fn one_of_two_sources() {
    let cluster = |keys: &str| LEAST.replace("[manifests]\ndirectory = \"/m\"\n", keys);
    let access = |text: &str| parse(&cluster(text)).unwrap().source;
    assert_eq!(
        access("[source]\nkind = \"kubernetes\"\n"),
        Source::Kubernetes(Access::default())
    );
    let text = "source.kind = \"kubernetes\"\nsource.kubeconfig = \"kubeconfig\"\n\
                source.server = \"https://192.0.2.1:6443\"\n";
    let text = text.replace("source.", "");
    assert_eq!(
        access(&format!("[source]\n{text}")),
        Source::Kubernetes(Access {
            kubeconfig: Some("/etc/causeway/kubeconfig".into()),
            server: Some("https://192.0.2.1:6443".to_owned()),
        })
    );
    let rows = [
        (
            "",
            ":1: manifests.directory = (missing): write the directory of the manifests, or source.kind",
        ),
        (
            "[source]\nkind = \"kubernetes\"\n[manifests]\ndirectory = \"/m\"\n",
            ":7: manifests.directory = \"/m\": source.kind = \"kubernetes\" reads no manifests; remove it",
        ),
        (
            "[source]\nkind = \"etcd\"\n",
            ":5: source.kind = \"etcd\": write \"manifests\" or \"kubernetes\"",
        ),
        (
            "[source]\nserver = \"https://a\"\n[manifests]\ndirectory = \"/m\"\n",
            ":5: source.server = \"https://a\": only source.kind = \"kubernetes\" reads it",
        ),
        (
            "[source]\nkind = \"kubernetes\"\nserver = \"192.0.2.1:6443\"\n",
            ":6: source.server = \"192.0.2.1:6443\": write the URL of an API server",
        ),
        (
            "[source]\nkind = \"kubernetes\"\nkubeconfig = \"\"\n",
            ":6: source.kubeconfig = \"\": write the path of a kubeconfig",
        ),
        (
            "[source]\nkind = \"kubernetes\"\ntoken = \"\"\n",
            ":6: `token = \"\"`: unknown field `token`",
        ),
    ];
    for (keys, expected) in rows {
        let error = error(&cluster(keys));
        assert!(error.contains(expected), "{error}");
    }
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
    assert_eq!(config.state, Path::new("/var/lib/causeway/default"));
}

#[test]
fn every_mistake_is_told_with_line_key_value_and_remedy() {
    let text = WHOLE
        .replace("\"20000-29999\"", "\"50000-40000\"")
        .replace("\"1h\"", "\"soon\"")
        .replace("\"maglev\"", "\"best\"");
    let expected = "\
/etc/causeway/causeway.toml:23: nat.ports = \"50000-40000\": write two ports from 1024 to 65535, \
lower first, as \"61000-65535\"
/etc/causeway/causeway.toml:19: services.algorithm = \"best\": write \"random\" or \"maglev\"
/etc/causeway/causeway.toml:30: flows.tcp_established = \"soon\": write a time from \"1s\" to \
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

#[test]
fn ports_for_translation_are_nobody_elses() {
    let rows = [
        ("61000-65535", None),
        ("20000-29999", None),
        ("1024-29999", None),
        ("20000-30000", Some("these are node ports (30000-32767)")),
        ("32767-32768", Some("these are node ports (30000-32767)")),
        ("30100-30200", Some("these are node ports (30000-32767)")),
        ("60999-65535", Some("take ports from 32768-60999")),
        ("40000-50000", Some("take ports from 32768-60999")),
        ("1024-65535", Some("take ports from 32768-60999")),
    ];
    for (ports, told) in rows {
        let text = LEAST.replace("[dev", &format!("nat.ports = \"{ports}\"\n[dev"));
        match told {
            None => assert!(parse(&text).is_ok(), "{ports}"),
            Some(told) => {
                let error = error(&text);
                let place = format!("causeway.toml:2: nat.ports = \"{ports}\": ");
                assert!(error.contains(&place) && error.contains(told), "{error}");
                assert!(error.contains("write ports outside of them"), "{error}");
            }
        }
    }
    // What the kernel does is not known everywhere; node ports are.
    let text = WHOLE.replace("20000-29999", "40000-50000");
    let file = Path::new("/etc/causeway/causeway.toml");
    assert!(resolve::resolve(file, &text, None).is_ok());
}

#[test]
fn what_is_served_over_http_is_where_kube_proxy_has_it_unless_told_otherwise() {
    let config = parse(LEAST).unwrap();
    assert_eq!(config.health, Some("[::]:10256".parse().unwrap()));
    assert_eq!(config.metrics, Some("127.0.0.1:10249".parse().unwrap()));
    let off = parse(&format!("{LEAST}[health]\naddress = \"off\"\n")).unwrap();
    assert_eq!(off.health, None);
    for wrong in ["10256", "node:10256", "0.0.0.0:0", ""] {
        let text = error(&format!("{LEAST}[metrics]\naddress = \"{wrong}\"\n"));
        let start = format!("/etc/causeway/causeway.toml:7: metrics.address = \"{wrong}\": write");
        assert!(text.starts_with(&start), "{text}");
    }
}
