//! The same from a real API server, beside kube-proxy in nftables mode with its defaults.
//!
//! Both read the same objects, in turn, on the host that the API server runs on, too: what it takes to
//! answer is in the times of both.

use std::{
    fs,
    net::Ipv4Addr,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams},
};
use nix::{
    sys::signal::Signal,
    unistd::{SysconfVar, sysconf},
};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, task::JoinSet};

use super::{
    Size,
    daemon::{self, Daemon},
    manifests::key,
    milliseconds,
};
use crate::{
    bench::{
        Options,
        measure::Spread,
        namespace::Temporary,
        report::{Check, Row, Topic},
        wire::rules::{self, ENDPOINT_PORT, SERVICE_PORT, Service},
    },
    lab::{
        apiserver::{self, Servers},
        process::Process,
    },
};

/// Sizes that large clusters have. The last is left out of quick runs.
const SIZES: [Size; 2] = [
    Size {
        services: 10_000,
        endpoints: 25,
    },
    Size {
        services: 50_000,
        endpoints: 10,
    },
];

/// The size that bounds are for.
const BOUND: u32 = 10_000;

/// How often a service is changed in each round.
const CHANGES: u16 = 10;

/// Between changes, so that nobody is still busy with the one before, or holds back the next.
const PAUSE: Duration = Duration::from_secs(2);

/// Objects that are written at a time.
const WRITERS: u32 = 16;

/// How often kube-proxy is asked.
const STEP: Duration = Duration::from_millis(5);

/// How long kube-proxy may take for anything.
const PATIENCE: Duration = Duration::from_mins(20);

/// kube-proxy's metrics, and the one that counts its rounds.
const METRICS: &str = "http://127.0.0.1:10249/metrics";
const ROUNDS: &str = "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}";

/// Where all objects are.
const NAMESPACE: &str = "bench";

/// What the two took, Causeway's first.
#[derive(Debug, Default)]
struct Times {
    /// From process start until the kernel has everything, milliseconds.
    first: [Vec<f64>; 2],
    /// CPU time until then, milliseconds.
    cpu: [Vec<f64>; 2],
    /// From writing a service to the kernel's map, milliseconds.
    change: [Vec<f64>; 2],
    /// Of that, until the API server has answered.
    write: [Vec<f64>; 2],
    /// Resident memory after all that, MiB.
    memory: [Vec<f64>; 2],
}

/// Runs the suite.
pub fn run(options: &Options) -> Result<(Vec<Row>, Vec<Check>)> {
    let sizes = if options.quick { &SIZES[..1] } else { &SIZES };
    let (mut rows, mut checks) = (Vec::new(), Vec::new());
    for &size in sizes {
        let services = size.services;
        let place = Temporary::new("apiserver")?;
        let times = place
            .namespace
            .enter(|| measure(size, options.rounds(1, 3), &place))?
            .with_context(|| format!("with {services} services"))?;
        rows.extend(times.rows(services)?);
        if services == BOUND {
            checks.extend(times.bounds()?);
        }
    }
    Ok((rows, checks))
}

/// Fills an API server and lets each read it some times.
fn measure(size: Size, rounds: u32, place: &Temporary) -> Result<Times> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("making a runtime")?;
    let rights = apiserver::documented_rights()?;
    let address = Ipv4Addr::LOCALHOST.into();
    let servers = runtime.block_on(Servers::start_at(address, &rights))?;
    let client = runtime.block_on(servers.client())?;
    runtime.block_on(fill(&client, size))?;
    let mut changed = Changed::new(size)?;
    let mut times = Times::default();
    for _ in 0..rounds {
        causeway(
            size,
            place,
            &servers,
            &runtime,
            &client,
            &mut changed,
            &mut times,
        )?;
        kube_proxy(place, &servers, &runtime, &client, &mut changed, &mut times)?;
    }
    Ok(times)
}

/// The service that is changed.
struct Changed {
    service: Service,
    name: String,
    port: u16,
}

impl Changed {
    fn new(size: Size) -> Result<Self> {
        let (number, service) = rules::services(size.services)
            .enumerate()
            .last()
            .context("no services")?;
        Ok(Self {
            service,
            name: format!("s{number}"),
            port: SERVICE_PORT,
        })
    }

    /// Gives it the next port.
    async fn change(&mut self, client: &Client) -> Result<()> {
        self.port += 1;
        let ports = json!([{"name": "p", "port": self.port, "targetPort": ENDPOINT_PORT}]);
        let patch = json!({"spec": {"ports": ports}});
        let api = api(client, "", "Service", "services");
        api.patch(&self.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .context("changing a service")?;
        Ok(())
    }
}

fn api(client: &Client, group: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk(group, "v1", kind);
    let resource = ApiResource::from_gvk_with_plural(&kind, plural);
    Api::namespaced_with(client.clone(), NAMESPACE, &resource)
}

/// Writes all objects.
async fn fill(client: &Client, size: Size) -> Result<()> {
    let kind = GroupVersionKind::gvk("", "v1", "Namespace");
    let resource = ApiResource::from_gvk_with_plural(&kind, "namespaces");
    let namespaces: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let namespace = json!({"metadata": {"name": NAMESPACE}});
    let namespace = serde_json::from_value(namespace)?;
    namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .context("making a namespace")?;
    let all: Arc<[Service]> = rules::services(size.services).collect();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let all = Arc::clone(&all);
        let services = api(client, "", "Service", "services");
        let slices = api(
            client,
            "discovery.k8s.io",
            "EndpointSlice",
            "endpointslices",
        );
        writers.spawn(async move {
            let mine = all.iter().enumerate().skip(writer as usize);
            for (number, service) in mine.step_by(WRITERS as usize) {
                write(&services, &service_object(number, service)).await?;
                write(&slices, &slice_object(number, size)).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(written) = writers.join_next().await {
        written.context("a writer has failed")??;
    }
    Ok(())
}

async fn write(api: &Api<DynamicObject>, object: &Value) -> Result<()> {
    let parsed = serde_json::from_value(object.clone())?;
    api.create(&PostParams::default(), &parsed)
        .await
        .with_context(|| format!("writing {}", object["metadata"]))?;
    Ok(())
}

fn service_object(number: usize, service: &Service) -> Value {
    json!({
        "metadata": {"name": format!("s{number}")},
        "spec": {
            "clusterIP": service.address,
            "ports": [{"name": "p", "port": SERVICE_PORT, "targetPort": ENDPOINT_PORT}],
        },
    })
}

fn slice_object(number: usize, size: Size) -> Value {
    let endpoint = |address: Ipv4Addr| {
        json!({
            "addresses": [address],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": "elsewhere",
        })
    };
    json!({
        "metadata": {
            "name": format!("s{number}-a"),
            "labels": {"kubernetes.io/service-name": format!("s{number}")},
        },
        "addressType": "IPv4",
        "ports": [{"name": "p", "port": ENDPOINT_PORT, "protocol": "TCP"}],
        "endpoints": size.pods(number).map(endpoint).collect::<Vec<_>>(),
    })
}

fn causeway(
    size: Size,
    place: &Temporary,
    servers: &Servers,
    runtime: &Runtime,
    client: &Client,
    changed: &mut Changed,
    times: &mut Times,
) -> Result<()> {
    // What a restart would find is no first sync.
    let state = place.directory.join("state");
    if state.exists() {
        fs::remove_dir_all(&state).context("removing saved objects")?;
    }
    let start = Instant::now();
    let daemon = Daemon::start_with(place, &daemon::config_for(place, &servers.user()))?;
    // Its own service besides.
    daemon.wait_for_all(size)?;
    times.first[0].push(milliseconds(start.elapsed()));
    times.cpu[0].push(cpu(daemon.id()?)?);
    for _ in 0..CHANGES {
        thread::sleep(PAUSE);
        let start = Instant::now();
        runtime.block_on(changed.change(client))?;
        times.write[0].push(milliseconds(start.elapsed()));
        daemon.wait_for_port(key(&changed.service, changed.port))?;
        times.change[0].push(milliseconds(start.elapsed()));
    }
    times.memory[0].push(daemon.memory()?);
    Ok(())
}

fn kube_proxy(
    place: &Temporary,
    servers: &Servers,
    runtime: &Runtime,
    client: &Client,
    changed: &mut Changed,
    times: &mut Times,
) -> Result<()> {
    let configuration = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": servers.proxy()},
        "clusterCIDR": "10.0.0.0/8",
        "hostnameOverride": "bench",
        // The limit is the whole machine's, and cannot be set from here.
        "conntrack": {"maxPerCore": 0},
    });
    let file = place.directory.join("kube-proxy.json");
    fs::write(&file, configuration.to_string()).context("writing a configuration")?;
    let mut command = Command::new(apiserver::program()?);
    command.arg("kube-proxy").arg("--config").arg(&file);
    let start = Instant::now();
    let mut process = Process::start(&place.namespace, command, "kube-proxy", &place.directory)?;
    let id = process.id().context("kube-proxy has ended")?;
    // All are written in one transaction, so that one stands for all; the last is as good as any.
    let last = changed.service.address;
    times.first[1].push(settled(&mut process, start, 0.0, last, changed.port)?);
    times.cpu[1].push(cpu(id)?);
    for _ in 0..CHANGES {
        thread::sleep(PAUSE);
        let rounds = rounds()?.context("kube-proxy does not answer")?;
        let start = Instant::now();
        runtime.block_on(changed.change(client))?;
        times.write[1].push(milliseconds(start.elapsed()));
        let took = settled(&mut process, start, rounds, last, changed.port)?;
        times.change[1].push(took);
    }
    times.memory[1].push(daemon::memory(id)?);
    process.end(Signal::SIGTERM, Duration::from_secs(20))?;
    let status = Command::new("nft")
        .args(["flush", "ruleset"])
        .status()
        .context("starting nft")?;
    ensure!(status.success(), "nft flush ruleset: {status}");
    Ok(())
}

/// Whether kube-proxy's map leads from this port somewhere.
fn is_served(address: Ipv4Addr, port: u16) -> Result<bool> {
    let element = format!("{{ {address} . tcp . {port} }}");
    let mut nft = Command::new("nft");
    nft.args([
        "get",
        "element",
        "ip",
        "kube-proxy",
        "service-ips",
        &element,
    ]);
    let output = nft.output().context("starting nft")?;
    Ok(output.status.success())
}

/// Milliseconds from `start` until kube-proxy has ended a round beyond so many, and serves the port.
///
/// It is asked for its rounds, since `nft` reads all there is for one answer.
fn settled(
    process: &mut Process,
    start: Instant,
    mut after: f64,
    address: Ipv4Addr,
    port: u16,
) -> Result<f64> {
    loop {
        let now = rounds()?.unwrap_or_default();
        let took = milliseconds(start.elapsed());
        if now > after {
            if is_served(address, port)? {
                return Ok(took);
            }
            after = now;
        }
        let ended = process.ended()?;
        ensure!(
            ended.is_none() && start.elapsed() < PATIENCE,
            "kube-proxy has not done it ({ended:?}); it printed:\n{}",
            process.printed()
        );
        thread::sleep(STEP);
    }
}

/// How many rounds kube-proxy says that it has ended, of IPv4. None: it does not answer yet.
fn rounds() -> Result<Option<f64>> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--max-time", "60", METRICS]);
    let output = curl.output().context("starting curl")?;
    let text = String::from_utf8(output.stdout).context("metrics are no text")?;
    let rounds = text.lines().find_map(|line| line.strip_prefix(ROUNDS));
    let rounds = rounds.map(|rest| rest.trim().parse()).transpose();
    rounds.context("rounds are no number")
}

/// CPU time of a process, milliseconds.
fn cpu(id: u32) -> Result<f64> {
    let text =
        fs::read_to_string(format!("/proc/{id}/stat")).context("reading a process's times")?;
    // The name may hold spaces; the fields after it don't: utime is the 12th, stime the 13th.
    let (_, rest) = text.rsplit_once(')').context("no name in stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |index: usize| -> Result<f64> {
        Ok(fields.get(index).context("stat is too short")?.parse()?)
    };
    let second = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")?;
    let second = f64::from(i32::try_from(second)?);
    Ok((ticks(11)? + ticks(12)?) * 1_000.0 / second)
}

impl Times {
    fn rows(&self, services: u32) -> Result<Vec<Row>> {
        let all = [
            ("first", &self.first, "ms"),
            ("cpu", &self.cpu, "ms"),
            ("change", &self.change, "ms"),
            ("write", &self.write, "ms"),
            ("memory", &self.memory, "MiB"),
        ];
        let mut rows = Vec::new();
        for (case, [ours, theirs], unit) in all {
            let topic = Topic {
                case,
                subject: "causeway",
                peer: "kube-proxy",
                services,
                flows: 0,
                unit,
            };
            rows.push(topic.row("sync", ours, theirs)?);
        }
        Ok(rows)
    }

    /// What is promised.
    fn bounds(&self) -> Result<Vec<Check>> {
        let median =
            |values: &[f64]| -> Result<f64> { Ok(Spread::of(values.iter().copied())?.median) };
        let ratio =
            |[ours, theirs]: &[Vec<f64>; 2]| -> Result<f64> { Ok(median(theirs)? / median(ours)?) };
        let claim = |what: &str| format!("API server: {what}, {BOUND} services");
        Ok(vec![
            Check::at_most(claim("first, ms"), median(&self.first[0])?, 3_000.0),
            Check::at_least(
                claim("kube-proxy's first / ours"),
                ratio(&self.first)?,
                15.0,
            ),
            Check::at_most(claim("change, ms"), median(&self.change[0])?, 10.0),
            Check::at_least(
                claim("kube-proxy's memory / ours"),
                ratio(&self.memory)?,
                2.0,
            ),
        ])
    }
}
