//! Our own part of a change: from an object that differs to the kernel's maps, in this process and
//! without the waits that gather changes. What a watch costs besides is reading that one object.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use proxy_user::{
    config::Config,
    daemon::Engine,
    dataplane::PinFolder,
    model::{Kind, ObjectRef, Protocol, Terms},
    source::{
        assemble::{Assembly, Policy},
        kubernetes::{
            Object, ServiceObject, ServicePortObject, SliceEndpoint, SliceObject, SlicePort,
        },
        snapshot::Snapshot,
    },
};

use super::{Size, milliseconds};
use crate::bench::{
    namespace::Temporary,
    wire::rules::{self, ENDPOINT_PORT, SERVICE_PORT},
};

/// How often one endpoint of one service is replaced.
const CHANGES: u32 = 50;

/// Milliseconds that each change took.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// From the object to the maps.
    pub(super) whole: Vec<f64>,
    /// Of that, from the snapshot to the maps.
    pub(super) engine: Vec<f64>,
}

/// Objects as the API server's are kept once they were checked.
struct Objects {
    all: BTreeMap<ObjectRef, Arc<Object>>,
    assembly: Assembly,
}

impl Objects {
    fn new(size: Size) -> Self {
        let mut all = BTreeMap::new();
        for (number, service) in rules::services(size.services).enumerate() {
            let object = named(Kind::Service, number);
            let content = Object::Service(service_object(&object, service.address));
            all.insert(object, Arc::new(content));
            let (object, slice) = slice(number, size.pods(number).map(IpAddr::V4).collect());
            all.insert(object, Arc::new(slice));
        }
        let assembly = Assembly::new(Policy::default());
        Self { all, assembly }
    }

    fn snapshot(&mut self) -> Arc<Snapshot> {
        let (state, notices) = self.assembly.assemble(self.all.iter());
        Arc::new(Snapshot {
            state: Arc::new(state),
            notices,
            ..Snapshot::default()
        })
    }
}

fn named(kind: Kind, number: usize) -> ObjectRef {
    ObjectRef {
        kind,
        namespace: "bench".to_owned(),
        name: format!("s{number}"),
    }
}

fn service_object(object: &ObjectRef, address: Ipv4Addr) -> ServiceObject {
    ServiceObject {
        object: object.clone(),
        created: None,
        unproxied: None,
        cluster: vec![address.into()],
        load_balancer: Vec::new(),
        external: Vec::new(),
        node_port_families: [true, false],
        ports: vec![ServicePortObject {
            name: "p".to_owned(),
            protocol: Protocol::Tcp,
            port: SERVICE_PORT,
            node_port: None,
        }],
        algorithm: None,
        publish_not_ready: false,
        terms: Terms::default(),
        health_check: None,
        remarks: Vec::new(),
    }
}

fn slice(number: usize, pods: Vec<IpAddr>) -> (ObjectRef, Object) {
    let object = named(Kind::EndpointSlice, number);
    let endpoint = |address| SliceEndpoint {
        address,
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        hints: None,
    };
    let slice = SliceObject {
        object: object.clone(),
        service: Some(format!("s{number}")),
        ports: vec![SlicePort {
            name: "p".to_owned(),
            protocol: Protocol::Tcp,
            port: ENDPOINT_PORT,
        }],
        endpoints: pods.into_iter().map(endpoint).collect(),
        weight: 1,
        remarks: Vec::new(),
    };
    (object, Object::Slice(slice))
}

/// Measures some changes of one endpoint each.
pub(super) fn measure(size: Size) -> Result<Own> {
    let place = Temporary::new("own")?;
    let folder = PinFolder::new(place.namespace.name());
    let measured = place.namespace.enter(|| changes(size, &place))?;
    folder.remove().context("removing pins")?;
    measured
}

fn changes(size: Size, place: &Temporary) -> Result<Own> {
    let text = super::daemon::config(place);
    let config = Config::parse(&place.directory.join("causeway.toml"), &text)?;
    let mut engine = Engine::start(Arc::new(config))?;
    let mut objects = Objects::new(size);
    engine.set_snapshot(objects.snapshot());
    ensure!(!engine.round()?, "the first round was not finished");
    let mut own = Own::default();
    for change in 0..CHANGES {
        let number = (size.services / (change + 2)) as usize;
        let mut pods: Vec<IpAddr> = size.pods(number).map(IpAddr::V4).collect();
        let new = Ipv4Addr::from_bits(Ipv4Addr::new(10, 64, 0, 1).to_bits() + change);
        *pods.first_mut().context("no pods")? = new.into();
        let (object, slice) = slice(number, pods);
        let slice = Arc::new(slice);
        let start = Instant::now();
        objects.all.insert(object, slice);
        let snapshot = objects.snapshot();
        let assembled = Instant::now();
        engine.set_snapshot(snapshot);
        let outcome = engine.write_at_once()?;
        own.engine.push(milliseconds(assembled.elapsed()));
        own.whole.push(milliseconds(start.elapsed()));
        // The new backend, slots, the service, the old backend; and the filter, unless by chance.
        ensure!(
            (4..=5).contains(&outcome.done) && outcome.failures.is_empty(),
            "{outcome:?} for one endpoint"
        );
        engine.round()?;
    }
    Ok(own)
}
