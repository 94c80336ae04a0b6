//! How long compiling takes. Run on a quiet machine:
//! `cargo test --release -p proxy-user scale -- --ignored --nocapture`.

#![expect(
    clippy::print_stdout,
    reason = "the figures are what these tests are run for"
)]

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

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

/// First compilation, and after one service of all has changed: compile, and diff.
fn measure(services: u32) -> [Duration; 4] {
    let now = Instant::now();
    let mut observed = Observed::default();
    let mut allocation = Allocation::restore(&observed, CAPACITY, now);
    let mut times = Vec::new();
    for moved in [0, 1] {
        let state = state(services, moved);
        let begin = Instant::now();
        let (plan, report) = compile(&state, &facts(), &options(), &mut allocation, now);
        times.push(begin.elapsed());
        assert_eq!(report, Report::default());
        let begin = Instant::now();
        let ops = diff(&observed, &plan);
        times.push(begin.elapsed());
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
#[ignore = "measures time, which a busy machine spoils"]
fn compiling_is_fast() {
    for (services, limit) in [(1_000, 10), (10_000, 100), (50_000, 1_000)] {
        let times = (0..5).map(|_| measure(services)).min().unwrap();
        let [first, first_diff, change, change_diff] = times;
        println!(
            "{services} services x 5: first {first:?} + diff {first_diff:?}, one changed \
             {change:?} + diff {change_diff:?}"
        );
        assert!(first < Duration::from_millis(limit), "{first:?}");
        assert!(change < Duration::from_millis(limit), "{change:?}");
    }
}

/// A directory of one file: first reading, and after one endpoint has changed.
#[test]
#[ignore = "measures time, which a busy machine spoils"]
fn reading_is_fast() {
    let folder = tempfile::TempDir::new().unwrap();
    let text = |changed: bool| {
        (0..10_000_u32).fold(String::new(), |text, i| {
            let endpoints = (0..5).fold(String::new(), |text, k| {
                let moved = if changed && i == 5_000 { 1_000_000 } else { 0 };
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
    for (name, changed, limit) in [("first", false, 5_000), ("change", true, 300)] {
        std::fs::write(folder.path().join("all.yaml"), text(changed)).unwrap();
        let begin = Instant::now();
        let snapshot = manifests.scan();
        let took = begin.elapsed();
        println!("10,000 services in one file, {name}: {took:?}");
        assert_eq!(snapshot.state.services.len(), 10_000);
        assert!(took < Duration::from_millis(limit), "{took:?}");
    }
}
