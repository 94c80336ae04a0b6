//! The daemon ends and comes again while traffic flows.

use std::{fs, thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use proxy_common::abi::ABI_VERSION;
use proxy_tests::lab::{
    ask::{self, Means},
    cluster::{Cluster, Hook},
    layout::{Family, Layout},
    load::{Connections, Stream},
    manifest::{self, Endpoint, Service},
};

use proxy_user::dataplane::PinFolder;

use crate::worlds;

/// Live TCP connections, half of them of each family.
const CONNECTIONS: u64 = 1_000;

/// The service under load.
const SERVICE: &str = "both";

/// Datagrams a second, of each family.
const RATE: u32 = 500;

pub(crate) fn trials() -> Vec<Trial> {
    let cases: [(&str, Hook, Signal, Meanwhile); 8] = [
        ("tc/killed", Hook::Tc, Signal::SIGKILL, |_| Ok(())),
        ("tc/asked-to-end", Hook::Tc, Signal::SIGTERM, |_| Ok(())),
        ("xdp/killed", Hook::Xdp, Signal::SIGKILL, |_| Ok(())),
        ("tc/upgraded", Hook::Tc, Signal::SIGTERM, |cluster| {
            other_version(cluster, ABI_VERSION - 1)
        }),
        ("tc/downgraded", Hook::Tc, Signal::SIGTERM, |cluster| {
            other_version(cluster, ABI_VERSION + 1)
        }),
        ("tc/broken-manifests", Hook::Tc, Signal::SIGKILL, break_file),
        (
            "tc/broken-manifests-without-copy",
            Hook::Tc,
            Signal::SIGKILL,
            |cluster| {
                fs::remove_dir_all(cluster.world().node_directory(1).join("state"))?;
                break_file(cluster)
            },
        ),
        ("xdp/upgraded", Hook::Xdp, Signal::SIGTERM, |cluster| {
            other_version(cluster, ABI_VERSION - 1)
        }),
    ];
    let mut trials: Vec<Trial> = cases
        .into_iter()
        .map(|(name, hook, signal, meanwhile)| {
            Trial::test(format!("restart/{name}"), move || {
                Ok(restart(hook, signal, meanwhile)?)
            })
        })
        .collect();
    trials.push(Trial::test("restart/tc/changed-meanwhile", || {
        Ok(changed_meanwhile()?)
    }));
    trials.push(Trial::test("restart/a-second-daemon-is-refused", || {
        Ok(second_daemon()?)
    }));
    trials
}

/// What happens while no daemon runs.
type Meanwhile = fn(&Cluster) -> Result<()>;

/// Makes the file of the service one that cannot be read.
fn break_file(cluster: &Cluster) -> Result<()> {
    let directory = Cluster::manifests_of(cluster.world())?;
    let file = directory.join(format!("service-{SERVICE}.yaml"));
    let text = fs::read_to_string(&file)?;
    let (half, _) = text.split_at(text.len() / 2);
    Ok(fs::write(file, half)?)
}

/// Makes node 1's pins those of another version of the records.
fn other_version(cluster: &Cluster, version: u32) -> Result<()> {
    let world = cluster.world();
    let bpffs = world.node_directory(1).join("bpf");
    let folder = PinFolder::under(&bpffs, &format!("{}-node1", world.name()));
    let other = folder.of_version(version);
    fs::rename(folder.path(), other.path()).context("renaming the folder of pins")
}

/// The one that is there goes on, and so does its socket.
fn second_daemon() -> Result<()> {
    let cluster = worlds::serve(Layout::STANDARD, Hook::Tc, &[])?;
    let daemon = cluster.daemon(1)?;
    let config = daemon.config().to_string_lossy().into_owned();
    for arguments in [
        ["run", "--config", &config],
        ["detach", "--config", &config],
    ] {
        let output = daemon.output(cluster.world(), &arguments)?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let [what, ..] = arguments;
        ensure!(!output.status.success(), "a second `causeway {what}` runs");
        ensure!(
            told.contains("process ") && told.contains(" works on this instance"),
            "`causeway {what}` does not say who is there: {told}"
        );
        daemon.command(cluster.world(), &["status"])?;
    }
    Ok(())
}

/// Services come, go and change while no daemon runs; connections to another live on.
fn changed_meanwhile() -> Result<()> {
    let [service, goes, comes] = [(SERVICE, 30), ("goes", 31), ("comes", 32)]
        .map(|(name, host)| Service::balanced(name, host, &[1, 3]));
    let mut changes = Service::balanced("changes", 33, &[1]);
    let services = [service.clone(), goes.clone(), changes.clone()];
    let cluster = worlds::serve(Layout::STANDARD, Hook::Tc, &services)?;
    changes.endpoints = vec![Endpoint::ready(3)];
    let edited = [comes.clone(), changes.clone()];
    let old = goes.clone();
    let cluster = under_load(cluster, &service, Signal::SIGKILL, move |cluster| {
        let world = cluster.world();
        let directory = Cluster::manifests_of(world)?;
        fs::remove_file(directory.join(worlds::file(&old)))?;
        for service in &edited {
            let objects = service.objects(world.layout());
            manifest::write(&directory.join(worlds::file(service)), &objects)?;
        }
        Ok(())
    })?;
    let client = cluster.world().client();
    for family in Family::BOTH {
        let ask = |service: &Service, limit| {
            let target = service.balancer(Means::Tcp, family);
            ask::ask(&client, Means::Tcp, target, Duration::from_millis(limit))
        };
        let new = ask(&comes, 3_000)?.outcome;
        ensure!(new.pod().is_some(), "a new service: {new}");
        let moved = ask(&changes, 3_000)?.outcome;
        ensure!(moved.pod() == Some("pod3"), "a changed one: {moved}");
        let gone = ask(&goes, 400)?.outcome;
        ensure!(gone.pod().is_none(), "one that is gone: {gone}");
    }
    Ok(())
}

fn restart(hook: Hook, signal: Signal, meanwhile: Meanwhile) -> Result<()> {
    let service = Service::balanced(SERVICE, 30, &[1, 3]);
    let cluster = worlds::serve(Layout::STANDARD, hook, std::slice::from_ref(&service))?;
    under_load(cluster, &service, signal, meanwhile)?;
    Ok(())
}

/// Ends node 1's daemon and starts it again while many connections to the service are open, none of
/// which may notice.
fn under_load(
    mut cluster: Cluster,
    service: &Service,
    signal: Signal,
    meanwhile: impl Fn(&Cluster) -> Result<()>,
) -> Result<Cluster> {
    let client = cluster.world().client();
    let overflowed = cluster.world().overflowed()?;
    let mut connections = Vec::new();
    let mut streams = Vec::new();
    for family in Family::BOTH {
        let target = service.balancer(Means::Tcp, family);
        let pause = Duration::from_millis(250);
        connections.push(Connections::open(&client, target, CONNECTIONS / 2, pause)?);
        streams.push(Stream::start(
            &client,
            service.balancer(Means::Udp, family),
            RATE,
        ));
    }
    sleep(Duration::from_secs(1));
    cluster.end(1, signal)?;
    meanwhile(&cluster)?;
    without_daemon(&cluster, service, &connections)?;
    cluster.restart(1)?;
    sleep(Duration::from_secs(1));
    let mut lost = Vec::new();
    for stream in streams {
        let report = stream.finish()?;
        ensure!(
            report.sent > 4 * u64::from(RATE) / 2,
            "only {} datagrams",
            report.sent
        );
        ensure!(
            report.errors == 0,
            "{} datagrams were refused",
            report.errors
        );
        lost.extend(report.lost());
        // One socket is one flow: another pod would mean that its entry was lost.
        ensure!(
            report.runs().len() == 1,
            "the flow moved: {:?}",
            report.runs()
        );
    }
    // A thousand connections that ask at once may fill a device's queue, and a process that has not run
    // for a while its socket.
    let overflowed = cluster.world().overflowed()? - overflowed;
    ensure!(
        u64::try_from(lost.len())? <= overflowed,
        "{} are lost, and {overflowed} found a full queue; the first ones: {:?}",
        lost.len(),
        lost.get(..lost.len().min(20))
    );
    for connections in connections {
        let report = connections.finish()?;
        ensure!(report.opened == CONNECTIONS / 2);
        ensure!(
            report.broken.is_empty(),
            "{} broke: {:?}",
            report.broken.len(),
            report.broken
        );
    }
    Ok(cluster)
}

/// The programs and maps go on alone: for what exists and for what is new.
fn without_daemon(cluster: &Cluster, service: &Service, open: &[Connections]) -> Result<()> {
    let before: Vec<u64> = open.iter().map(Connections::exchanges).collect();
    for family in Family::BOTH {
        let target = service.balancer(Means::Http, family);
        let client = cluster.world().client();
        let attempt = ask::ask(&client, Means::Http, target, Duration::from_secs(3))?;
        attempt
            .outcome
            .pod()
            .with_context(|| format!("new connection: {}", attempt.outcome))?;
    }
    sleep(Duration::from_secs(1));
    for (connections, before) in open.iter().zip(before) {
        let exchanged = connections.exchanges() - before;
        ensure!(
            exchanged >= CONNECTIONS / 2,
            "only {exchanged} exchanges while no daemon ran"
        );
    }
    Ok(())
}
