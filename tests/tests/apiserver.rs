//! The source `kubernetes` against a real API server and etcd, without nodes.
//!
//! `CAUSEWAY_KUBERNETES` names the program with the API server (`cargo xtask test cluster` builds it
//! and says where it is); etcd is Debian's. Without them these tests fail.

#![expect(
    clippy::print_stdout,
    reason = "figures are for the person who runs it"
)]

#[path = "apiserver/source.rs"]
mod source;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use proxy_common::{abi::DeviceRole, wire::MacAddr};
use proxy_tests::lab::apiserver::{Servers, documented_rights as rights, documents};
use proxy_user::{
    config::Config,
    model::{Kind, State},
    reconcile::{Allocation, DeviceFact, Facts, Observed, compile},
    source::{assemble::Policy, manifests::Manifests},
};
use serde_json::{Value, json};

use source::{NODE, Source, errors, served};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn service(name: &str, last: u8) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": format!("10.96.7.{last}"), "ports": [{"port": 80, "protocol": "TCP"}]},
    })
}

fn slice(service: &str, last: u8) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("{service}-1"), "namespace": "default",
            "labels": {"kubernetes.io/service-name": service},
        },
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [format!("10.244.1.{last}")]}],
    })
}

/// What the maps of the node would hold, as text.
fn plan(state: &State) -> Result<String> {
    let text = format!(
        "version = 1\nnode.name = \"{NODE}\"\ndevices.uplinks = [\"eth0\"]\nmanifests.directory = \"/m\"\n"
    );
    let config = Config::parse(Path::new("/etc/causeway.toml"), &text)?;
    let uplink = DeviceFact {
        ifindex: 2,
        name: "eth0".to_owned(),
        mac: MacAddr::default(),
        mtu: 1_500,
        addresses: vec!["192.0.2.11/24".parse()?, "2001:db8:2::11/64".parse()?],
        vlan: None,
        role: DeviceRole::Uplink,
        xdp_transmit: false,
    };
    let facts = Facts {
        devices: BTreeMap::from([(2, uplink)]),
        hz: 250,
    };
    let now = Instant::now();
    let mut allocation = Allocation::restore(&Observed::default(), config.maps.capacity(), now);
    let (plan, _) = compile(state, &facts, &config.options(), &mut allocation, now);
    Ok(format!("{plan:#?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_gives_the_same_plan_by_the_api_server() -> Result<()> {
    let servers = Servers::start(&rights()?).await?;
    let folder = tempfile::tempdir()?;
    for file in fs::read_dir(repository().join("examples/demo"))? {
        let file = file?;
        fs::copy(file.path(), folder.path().join(file.file_name()))?;
    }
    servers.apply_directory(folder.path()).await?;
    // The API server has a Service of its own.
    for (kind, name) in [("Service", "kubernetes"), ("EndpointSlice", "kubernetes")] {
        let own = servers.get(kind, "default", name).await?;
        fs::write(folder.path().join(format!("{kind}.yaml")), own.to_string())?;
    }
    let mut source = Source::start(servers.user())?;
    let by_server = source
        .until("all that is in the directory", |s| {
            s.state.services.len() >= 6
        })
        .await?;
    let policy = Policy {
        node: NODE.to_owned(),
        external_ranges: Vec::new(),
    };
    let by_file = Manifests::new(folder.path().to_owned(), policy).scan();
    ensure!(errors(&by_file).is_empty(), "{:?}", errors(&by_file));
    ensure!(errors(&by_server).is_empty(), "{:?}", errors(&by_server));
    assert_eq!(served(&by_server.state), served(&by_file.state));
    let [server, file] = [plan(&by_server.state)?, plan(&by_file.state)?];
    ensure!(server.len() > 10_000, "{server}");
    assert_eq!(server.as_bytes(), file.as_bytes());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn outages_change_nothing_and_what_they_hid_is_found() -> Result<()> {
    let mut servers = Servers::start(&rights()?).await?;
    for (name, last) in [("a", 11), ("b", 12)] {
        servers.apply(&service(name, last)).await?;
        servers.apply(&slice(name, last)).await?;
    }
    let mut source = Source::start(servers.user())?;
    let before = source
        .until("both", |s| s.state.services.len() == 3)
        .await?;
    let own = |state: &State| {
        served(state)
            .iter()
            .any(|text| text.contains("default/kubernetes") && text.contains("192.0.2.1"))
    };
    ensure!(own(&before.state), "{:?}", served(&before.state));

    servers.kill_api();
    let during = source
        .until("the outage", |s| !errors(s).is_empty())
        .await?;
    assert_eq!(during.state, before.state);
    servers.start_api().await?;
    servers.delete(&service("b", 12)).await?;
    servers.apply(&slice("a", 99)).await?;
    let began = Instant::now();
    let after = source
        .until("what has changed", |s| {
            assert!(own(&s.state), "{:?}", served(&s.state));
            errors(s).is_empty()
                && s.state.services.len() == 2
                && served(&s.state).concat().contains("10.244.1.99")
        })
        .await?;
    println!(
        "converged {:.1} s after the API server's outage",
        began.elapsed().as_secs_f64()
    );

    servers.freeze_etcd(true)?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(source.now().state, after.state);
    servers.freeze_etcd(false)?;
    servers.apply(&slice("a", 98)).await?;
    source
        .until("a change after etcd's outage", |s| {
            served(&s.state).concat().contains("10.244.1.98")
        })
        .await?;

    // Somebody takes the API server's own endpoints away; it puts them back some time.
    servers.delete(&json!({"kind": "EndpointSlice", "metadata": {"name": "kubernetes", "namespace": "default"}})).await?;
    servers.apply(&slice("a", 97)).await?;
    source
        .until("a later change", |s| {
            assert!(own(&s.state), "{:?}", served(&s.state));
            served(&s.state).concat().contains("10.244.1.97")
        })
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_that_are_told_are_needed_and_enough() -> Result<()> {
    let rights = rights()?;
    let servers = Servers::start(&rights).await?;
    servers.apply(&service("a", 11)).await?;
    let mut source = Source::start(servers.user())?;
    let all = source.until("all", |s| s.state.services.len() == 2).await?;
    ensure!(errors(&all).is_empty(), "{:?}", errors(&all));
    // The source only reads; Events are written by the daemon.
    let read = rights.iter().enumerate();
    for (number, right) in read.filter(|(_, right)| right.verb != "create") {
        let kind = match right.resource.as_str() {
            "nodes" => Kind::Node,
            "services" => Kind::Service,
            "pods" => Kind::Pod,
            _ => Kind::EndpointSlice,
        };
        let mut source = Source::start(servers.user_without(number))?;
        let what = format!("that {} {} is missing", right.verb, right.resource);
        let told = source
            .until(&what, |s| errors(s).concat().contains("403"))
            .await?;
        let told = errors(&told).concat();
        ensure!(told.contains(&format!("{kind}s: 403")), "{what}: {told}");
        let failing: BTreeSet<Kind> = source.failing();
        assert_eq!(failing, BTreeSet::from([kind]), "{what}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_come_through_and_broken_objects_stay() -> Result<()> {
    let servers = Servers::start(&rights()?).await?;
    servers.apply(&service("a", 11)).await?;
    servers.apply(&slice("a", 11)).await?;
    let mut source = Source::start(servers.user())?;
    source.until("all", |s| s.state.services.len() == 2).await?;

    let mut others = service("a", 11);
    others["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "another"});
    servers.apply(&others).await?;
    source
        .until("another proxy's", |s| s.state.services.len() == 1)
        .await?;
    servers.apply(&service("a", 11)).await?;
    let back = source
        .until("ours again", |s| s.state.services.len() == 2)
        .await?;

    let mut broken = service("a", 11);
    broken["metadata"]["annotations"] = json!({"causeway.dev/algorithm": "best"});
    servers.apply(&broken).await?;
    let told = source
        .until("the mistake", |s| !errors(s).is_empty())
        .await?;
    assert_eq!(told.state, back.state);
    assert_eq!(
        errors(&told),
        [
            "error: Service default/a: metadata.annotations[causeway.dev/algorithm]: \"best\" is not an \
          algorithm: write random or maglev (stays as it last was)"
        ]
    );
    servers.apply(&service("a", 11)).await?;
    source.until("it mended", |s| errors(s).is_empty()).await?;

    let mut took = Vec::new();
    for last in 100..150 {
        let address = format!("10.244.1.{last}");
        let began = Instant::now();
        servers.apply(&slice("a", last)).await?;
        source
            .until("a change", |s| served(&s.state).concat().contains(&address))
            .await?;
        took.push(began.elapsed());
    }
    took.sort_unstable();
    let median = took.get(took.len() / 2).context("no change")?;
    println!(
        "from the start of a write to a snapshot: median {median:?}, longest {:?}",
        took.last()
    );
    ensure!(*median < Duration::from_millis(200), "{took:?}");
    Ok(())
}

#[test]
fn documents_are_told_apart() -> Result<()> {
    let all = documents("a: 1\n---\n# nothing\n---\nb: 2\n")?;
    assert_eq!(all, [json!({"a": 1}), json!({"b": 2})]);
    Ok(())
}
