//! How the time that compiling and reading take grows: ten times the services, little more than ten
//! times the time. Only ratios are asserted, of the thread's own CPU time, so that other work on the
//! machine changes nothing.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};

use super::{
    tests::{at, facts, options, service},
    *,
};
use crate::{
    model::{Endpoint, Protocol, Reach, State},
    source::{assemble::Policy, manifests::Manifests},
};

const CAPACITY: Capacity = Capacity {
    services: 1 << 17,
    backends: 1 << 20,
    slots: 1 << 21,
};

fn address(base: u32, i: u32) -> IpAddr {
    Ipv4Addr::from_bits(base + i).into()
}

fn state(services: u32, moved: u32) -> State {
    let ports = (0..services).map(|i| {
        let cluster = address(0x0a60_0000, i).to_string();
        let first = i * 5 + if i < moved { 1_000_000 } else { 0 };
        let endpoints = (0..5).map(|k| Endpoint {
            address: address(0x0b00_0000, first + k),
            port: 8080,
            weight: 1,
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            hints: None,
        });
        let frontends = vec![at(&cluster, 80, Reach::Cluster)];
        let port = service(
            &format!("s{i}"),
            Protocol::Tcp,
            frontends,
            endpoints.collect(),
        );
        (port.name.clone(), Arc::new(port))
    });
    State {
        services: ports.collect(),
        ..State::default()
    }
}

/// Ten times as much to do may take so many times as long. What sorts, or fills a cache, grows faster
/// than what it works on; what compares everything with everything takes a hundred times as long.
const TENFOLD: f64 = 20.0;

/// What `work` says, and the CPU time that the calling thread took for it.
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let now = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
    let begin = now();
    let result = work();
    (result, now().saturating_sub(begin))
}

/// By what factor each figure grows from one size to ten times that: the least of some runs each.
fn growth<const N: usize>(size: u32, measure: impl Fn(u32) -> [Duration; N]) -> [f64; N] {
    let best = |size| {
        let mut runs = (0..3).map(|_| measure(size));
        let first = runs.next().unwrap();
        runs.fold(first, |best, run| {
            std::array::from_fn(|i| best[i].min(run[i]))
        })
    };
    let (small, large) = (best(size), best(size * 10));
    std::array::from_fn(|i| large[i].as_secs_f64() / small[i].as_secs_f64())
}

/// First compilation, and after one service of all has changed: compile, and diff.
fn measure(services: u32) -> [Duration; 4] {
    let now = Instant::now();
    let mut observed = Observed::default();
    let mut allocation = Allocation::restore(&observed, CAPACITY, now);
    let mut times = Vec::new();
    for moved in [0, 1] {
        let state = state(services, moved);
        let ((plan, report), took) =
            timed(|| compile(&state, &facts(), &options(), &mut allocation, now));
        times.push(took);
        assert_eq!(report, Report::default());
        let (ops, took) = timed(|| diff(&observed, &plan));
        times.push(took);
        if moved == 1 {
            assert!(ops.len() < 20, "{} operations for one service", ops.len());
        }
        for op in &ops {
            observed.apply(op);
        }
    }
    times.try_into().unwrap()
}

#[test]
fn time_to_compile_grows_with_the_services() {
    let growth = growth(200, measure);
    assert!(growth.iter().all(|factor| *factor < TENFOLD), "{growth:?}");
}

/// A directory of one file: first reading, and after one endpoint has changed.
fn read(services: u32) -> [Duration; 2] {
    let folder = tempfile::TempDir::new().unwrap();
    let text = |changed: bool| {
        (0..services).fold(String::new(), |text, i| {
            let endpoints = (0..5).fold(String::new(), |text, k| {
                let moved = if changed && i == services / 2 {
                    1_000_000
                } else {
                    0
                };
                text + &format!(
                    "- addresses: [{}]\n",
                    address(0x0b00_0000, moved + i * 5 + k)
                )
            });
            text + &format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{i}}}\nspec:\n  \
                 clusterIP: {}\n  ports: [{{port: 80}}]\n---\napiVersion: discovery.k8s.io/v1\n\
                 kind: EndpointSlice\nmetadata:\n  name: s{i}\n  labels: \
                 {{kubernetes.io/service-name: s{i}}}\naddressType: IPv4\nports: \
                 [{{port: 8080}}]\nendpoints:\n{endpoints}",
                address(0x0a60_0000, i),
            )
        })
    };
    let mut manifests = Manifests::new(folder.path().to_owned(), Policy::default());
    [false, true].map(|changed| {
        std::fs::write(folder.path().join("all.yaml"), text(changed)).unwrap();
        let (snapshot, took) = timed(|| manifests.scan());
        assert_eq!(snapshot.state.services.len(), services as usize);
        took
    })
}

#[test]
fn time_to_read_grows_with_the_services() {
    let growth = growth(100, read);
    assert!(growth.iter().all(|factor| *factor < TENFOLD), "{growth:?}");
}
