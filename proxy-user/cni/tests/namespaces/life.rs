//! One pod after the other.

use std::path::Path;

use serde_json::{Value, json};

use super::host::{Container, Host, addresses};

pub(crate) fn a_pod_comes_and_goes() {
    let host = Host::new();
    let daemon = host.daemon(&["10.1.0.0/24", "fd00:1::/64"], true);
    assert_eq!(host.ask("STATUS", None, &json!({})).unwrap(), Value::Null);
    let (one, two) = (host.container(), host.container());
    let (first, second) = (host.add(&one), host.add(&two));
    let texts = |result| {
        addresses(result)
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(texts(&first), ["10.1.0.1", "fd00:1::1"]);
    assert_eq!(texts(&second), ["10.1.0.2", "fd00:1::2"]);
    let names: Vec<&str> = first
        .interfaces
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    assert_eq!(names[1], "eth0");
    assert_eq!(first.interfaces[1].mtu, Some(1400));
    assert!(
        host.room
            .run("ip", &["link", "show", names[0]])
            .contains("mtu 1400")
    );
    for address in addresses(&second) {
        one.room.pings(address);
        host.room.run("ip", &["route", "get", &address.to_string()]);
    }
    for address in addresses(&first) {
        two.room.pings(address);
        // The pod itself, by its loopback device.
        one.room.pings(address);
    }
    host.check(&one, &first).unwrap();
    // The same again is the same, and disturbs nothing.
    let before = host.devices();
    assert_eq!(host.add(&one), first);
    assert_eq!(host.devices(), before);
    host.del(&one);
    host.del(&one);
    assert!(host.check(&one, &first).is_err());
    // An address rests before it is given out again.
    let three = host.container();
    assert_eq!(texts(&host.add(&three)), ["10.1.0.3", "fd00:1::3"]);
    // The runtime has removed the namespace, and the devices have gone with it.
    let gone = Container {
        id: three.id.clone(),
        room: three.room,
    };
    host.room.run("ip", &["netns", "del", &gone.id]);
    host.del(&gone);
    drop(daemon);
    // DEL needs no daemon.
    host.del(&two);
    host.assert_empty();
}

pub(crate) fn what_is_broken_is_found_and_made_anew() {
    let host = Host::new();
    let _daemon = host.daemon(&["10.1.0.0/24", "fd00:1::/64"], true);
    let one = host.container();
    let result = host.add(&one);
    let device = result.interfaces[0].name.clone();
    for (room, arguments) in [
        (&host.room, vec!["link", "set", &device, "down"]),
        (&host.room, vec!["route", "del", "10.1.0.1"]),
        (&host.room, vec!["-6", "route", "del", "fd00:1::1"]),
        (
            &host.room,
            vec!["neigh", "flush", "dev", &device, "nud", "permanent"],
        ),
        (&host.room, vec!["link", "del", &device]),
        (&one.room, vec!["addr", "del", "10.1.0.1/32", "dev", "eth0"]),
        (
            &one.room,
            vec!["addr", "del", "fd00:1::1/128", "dev", "eth0"],
        ),
        (&one.room, vec!["route", "del", "default"]),
        (&one.room, vec!["-6", "route", "del", "default"]),
        (
            &one.room,
            vec!["neigh", "del", "169.254.1.1", "dev", "eth0"],
        ),
        (&one.room, vec!["link", "set", "eth0", "down"]),
    ] {
        host.check(&one, &result).unwrap();
        room.run("ip", &arguments);
        let refusal = host.check(&one, &result).expect_err(&arguments.join(" "));
        assert_eq!(refusal.code, 103, "{refusal:?}");
        // A new device, and the same addresses.
        assert_eq!(host.add(&one), result, "{arguments:?}");
        assert_eq!(host.devices().len(), 1);
    }
    // Records that are lost keep nobody's address from being respected.
    let record = host.store().folder();
    std::fs::remove_dir_all(record).unwrap();
    std::fs::remove_file(host.state().join("last.json")).unwrap();
    let two = host.container();
    assert_ne!(addresses(&host.add(&two)), addresses(&result));
    host.del(&one);
    host.del(&two);
    host.assert_empty();
}

pub(crate) fn every_version_is_answered_in_its_own_form() {
    let host = Host::new();
    let _daemon = host.daemon(&["10.1.0.0/24"], true);
    let plugin = Path::new(env!("CARGO_BIN_EXE_causeway-cni"));
    let answer = |command, container: Option<&Container>, version: &str| -> Value {
        let config = host.config(version, &json!({}));
        let output = host.call(plugin, command, container, &config, None);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    for (version, old, mtu) in [
        ("0.3.1", json!("4"), Value::Null),
        ("0.4.0", json!("4"), Value::Null),
        ("1.0.0", Value::Null, Value::Null),
        ("1.1.0", Value::Null, json!(1400)),
    ] {
        let container = host.container();
        let result = answer("ADD", Some(&container), version);
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ips"][0]["version"], old, "{version}");
        assert_eq!(result["interfaces"][1]["mtu"], mtu, "{version}");
        assert_eq!(result["ips"][0]["gateway"], "169.254.1.1");
        assert_eq!(result["ips"][0]["interface"], 1);
        assert_eq!(
            result["routes"][0],
            json!({ "dst": "0.0.0.0/0", "gw": "169.254.1.1" })
        );
        host.del(&container);
    }
    let versions = answer("VERSION", None, "1.1.0");
    assert_eq!(
        versions["supportedVersions"],
        json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
    );
    host.assert_empty();
}
