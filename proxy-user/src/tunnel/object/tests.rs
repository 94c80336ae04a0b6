//! Objects as people write them.

use super::*;

fn read(spec: &str) -> Result<ReturnProxy, String> {
    let text = format!("metadata: {{name: cluster}}\nspec:\n{spec}");
    let written: Written = serde_saphyr::from_str(&text).map_err(|error| error.to_string())?;
    ReturnProxy::check(written).map_err(|error| error.to_string())
}

const LEAST: &str = "  keyFile: /k\n  hostKey: {policy: known-hosts, file: /h}\n";

#[test]
fn defaults_are_those_of_cyclecloud() {
    let proxy = read(LEAST).unwrap();
    assert_eq!(proxy.user, "cyclecloud");
    assert_eq!(proxy.address, Address::Private);
    assert_eq!(
        (proxy.port, proxy.sessions, proxy.any_source),
        (22, 2, false)
    );
    let forwards: Vec<_> = proxy
        .forwards
        .iter()
        .map(|one| (one.name.as_str(), one.listen, one.target.as_str()))
        .collect();
    assert_eq!(
        forwards,
        [
            ("https", 37_140, "127.0.0.1:9443"),
            ("amqp", 37_141, "127.0.0.1:5672")
        ]
    );
    let Selection::Labels(labels) = proxy.selection else {
        panic!("labels");
    };
    assert_eq!(labels[LABEL], "true");
    assert_eq!(proxy.trust, Policy::Known("/h".into()));
}

#[test]
fn everything_can_be_said() {
    let proxy = read(
        "  server: fd00::1
  node: {name: head}
  address: public
  ssh: {port: 2222, user: hpc}
  keyFile: /k
  hostKey:
    policy: pinned
    keys: ['SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA']
  sessions: 4
  anySource: true
  limits: {memoryBytes: 33554432, queueBytes: 2097152, windowBytes: 1, rekeyBytes: 1048576}
  endpoint: {authorizedKeysFile: /a, hostKeyFile: /b}
",
    )
    .unwrap();
    assert_eq!(proxy.forwards[0].target, "[fd00::1]:9443");
    assert_eq!(proxy.selection, Selection::Names(vec!["head".to_owned()]));
    assert_eq!(proxy.address, Address::Public);
    assert_eq!((proxy.port, proxy.user.as_str()), (2222, "hpc"));
    assert_eq!((proxy.sessions, proxy.any_source), (4, true));
    assert_eq!(proxy.window, window::LEAST);
    assert_eq!(proxy.rekey, Some(1 << 20));
    assert!(proxy.endpoint.is_some());
}

/// What is written besides the least, and what the answer has to name.
#[test]
fn mistakes_name_the_field() {
    let rows = [
        ("  wrong: 1\n", "wrong"),
        ("  sessions: 0\n", "spec.sessions"),
        ("  sessions: 17\n", "spec.sessions"),
        ("  address: internet\n", "internet"),
        ("  ssh: {port: 0}\n", "spec.ssh.port"),
        ("  node: {name: a, labels: {b: c}}\n", "spec.node"),
        ("  node: {labels: {}}\n", "spec.node.labels"),
        ("  forwards: []\n", "spec.forwards"),
        (
            "  forwards: [{name: a, listen: 1, target: 'x:1'}, {name: b, listen: 1, target: 'x:1'}]\n",
            "spec.forwards[1].listen",
        ),
        (
            "  forwards: [{name: a, listen: 1, target: 'x:1'}, {name: a, listen: 2, target: 'x:1'}]\n",
            "spec.forwards[1].name",
        ),
        (
            "  forwards: [{name: a, listen: 1, target: nowhere}]\n",
            "spec.forwards[0].target",
        ),
        (
            "  forwards: [{name: a, listen: 0, target: 'x:1'}]\n",
            "spec.forwards[0].listen",
        ),
        ("  limits: {memoryBytes: 1}\n", "spec.limits.memoryBytes"),
        ("  limits: {rekeyBytes: 1}\n", "spec.limits.rekeyBytes"),
    ];
    for (more, named) in rows {
        let error = read(&format!("{LEAST}{more}")).unwrap_err();
        assert!(error.contains(named), "{more}: {error}");
    }
    let rows = [
        ("{policy: pinned}", "spec.hostKey.keys"),
        ("{policy: pinned, keys: [x]}", "spec.hostKey.keys[0]"),
        ("{policy: known-hosts}", "spec.hostKey.file"),
        (
            "{policy: known-hosts, file: /f, keys: [x]}",
            "spec.hostKey.keys",
        ),
        ("{policy: none}", "none"),
    ];
    for (key, named) in rows {
        let error = read(&format!("  keyFile: /k\n  hostKey: {key}\n")).unwrap_err();
        assert!(error.contains(named), "{key}: {error}");
    }
}
