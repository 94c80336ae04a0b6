use std::path::Path;

use super::*;
use crate::{
    model::{HealthCheck, Kind},
    reconcile::DeviceFact,
};
use proxy_common::{abi::DeviceRole, wire::MacAddr};

const CONFIG: &str =
    "version = 1\n[devices]\nuplinks = [\"eth0\"]\n[manifests]\ndirectory = \"/m\"\n";

fn config(more: &str) -> Config {
    Config::parse(Path::new("causeway.toml"), &format!("{CONFIG}{more}")).unwrap()
}

fn facts() -> Facts {
    let device = DeviceFact {
        ifindex: 2,
        name: "eth0".to_owned(),
        mac: MacAddr::default(),
        mtu: 1_500,
        addresses: ["192.0.2.11/24", "198.51.100.11/24", "2001:db8::11/64"]
            .map(|address| address.parse().unwrap())
            .to_vec(),
        vlan: None,
        role: DeviceRole::Uplink,
        xdp_transmit: false,
    };
    Facts {
        devices: [(2, device)].into(),
        ..Facts::default()
    }
}

fn state(families: [bool; 2]) -> State {
    let object = ObjectRef {
        kind: Kind::Service,
        namespace: "demo".to_owned(),
        name: "web".to_owned(),
    };
    State {
        health_checks: [(32_000, HealthCheck { object, families })].into(),
        ..State::default()
    }
}

/// Places in words.
fn told(config: &Config, state: &State) -> Vec<String> {
    let places = places(config, &facts(), state);
    let word = |(place, page): (&Place, &Page)| {
        let both = if place.both_families { " both" } else { "" };
        let page = match page {
            Page::Health => "health".to_owned(),
            Page::Metrics => "metrics".to_owned(),
            Page::Service { object, v4 } => {
                format!("{} {}", object.name, if *v4 { "v4" } else { "v6" })
            }
        };
        format!("{}{both}: {page}", place.address)
    };
    places.iter().map(word).collect()
}

#[test]
fn the_daemons_own_pages_are_where_kube_proxy_has_them() {
    let none = State::default();
    let usual = ["127.0.0.1:10249: metrics", "[::]:10256 both: health"];
    assert_eq!(told(&config(""), &none), usual);
    let off = "[health]\naddress = \"off\"\n[metrics]\naddress = \"off\"\n";
    assert_eq!(told(&config(off), &none), [""; 0]);
    let other = "[health]\naddress = \"192.0.2.11:80\"\n[metrics]\naddress = \"[::1]:81\"\n";
    assert_eq!(
        told(&config(other), &none),
        ["192.0.2.11:80: health", "[::1]:81 both: metrics"]
    );
}

#[test]
fn health_checks_are_at_all_addresses_or_where_node_ports_are() {
    let off = "[health]\naddress = \"off\"\n[metrics]\naddress = \"off\"\n";
    let all = config(off);
    let both = ["0.0.0.0:32000: web v4", "[::]:32000: web v6"];
    assert_eq!(told(&all, &state([true, true])), both);
    assert_eq!(told(&all, &state([false, true])), both[1..]);
    let ranges = "[node]\nport_ranges = [\"192.0.2.0/24\", \"2001:db8::/64\"]\n";
    let some = config(&format!("{off}{ranges}"));
    assert_eq!(
        told(&some, &state([true, true])),
        ["192.0.2.11:32000: web v4", "[2001:db8::11]:32000: web v6"]
    );
    assert_eq!(
        told(&some, &state([true, false])),
        ["192.0.2.11:32000: web v4"]
    );
}

#[test]
fn a_health_check_at_the_daemons_own_place_gives_way() {
    let config = config("[health]\naddress = \"0.0.0.0:32000\"\n");
    let mut found = told(&config, &state([true, false]));
    found.retain(|place| place.contains("32000"));
    assert_eq!(found, ["0.0.0.0:32000: health"]);
}
