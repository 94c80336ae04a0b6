//! One [`State`] of all objects together.

mod health;
mod pods;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::kubernetes::{Object, ServiceObject, ServicePortObject, SliceObject, SlicePort};
use crate::model::{
    Endpoint, Frontend, Kind, Notice, ObjectRef, Reach, ServiceName, ServicePort, Severity, State,
};
use crate::tunnel::choose;

/// What the configuration says about objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// This node's name: only its pods' host ports are served here.
    pub node: String,
    /// Where external addresses of Services may lie. Anybody who may write a Service could take
    /// any address otherwise (CVE-2020-8554).
    pub external_ranges: Vec<ipnet::IpNet>,
}

/// Namespace and name of a Service.
type ServiceKey = (String, String);

/// A Service and its slices, and the service ports that they came to last.
#[derive(Debug, Default)]
struct Parts {
    service: Option<Arc<Object>>,
    slices: BTreeMap<ObjectRef, Arc<Object>>,
    made: Made,
}

/// What has become of an object.
#[derive(Debug, Default)]
struct Made {
    ports: Vec<ServiceName>,
    notices: Vec<Notice>,
}

/// Makes one state of objects, again and again: what is the same object as last time (the same in
/// memory) is not looked at again, and what comes of it stays the same in memory, too.
#[derive(Debug)]
pub struct Assembly {
    policy: Policy,
    objects: BTreeMap<ObjectRef, Arc<Object>>,
    services: BTreeMap<ServiceKey, Parts>,
    pods: BTreeMap<ObjectRef, Made>,
    /// Services and pods of which there is something to be told.
    told: (BTreeSet<ServiceKey>, BTreeSet<ObjectRef>),
    /// Services that have a health check.
    checked: BTreeSet<ServiceKey>,
    /// Without health checks and the way to the server behind return proxies: what is said of these
    /// depends on other objects, and they are few.
    state: State,
}

/// What differs from the last time.
#[derive(Debug, Default)]
struct Dirty {
    services: BTreeSet<ServiceKey>,
    pods: BTreeSet<ObjectRef>,
}

impl Assembly {
    /// No objects yet.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            objects: BTreeMap::new(),
            services: BTreeMap::new(),
            pods: BTreeMap::new(),
            told: (BTreeSet::new(), BTreeSet::new()),
            checked: BTreeSet::new(),
            state: State::default(),
        }
    }

    /// Assembles. These are all objects, in order of their names.
    pub fn assemble<'o>(
        &mut self,
        objects: impl Iterator<Item = (&'o ObjectRef, &'o Arc<Object>)>,
    ) -> (State, Vec<Notice>) {
        let mut dirty = Dirty::default();
        for (object, content) in self.changes(objects) {
            if let Some(old) = self.objects.remove(&object) {
                self.replace(&object, &old, None, &mut dirty);
            }
            if let Some(content) = content {
                self.replace(&object, &content, Some(&content), &mut dirty);
                self.objects.insert(object, content);
            }
        }
        for key in dirty.services {
            self.make_service(&key);
        }
        for object in dirty.pods {
            self.make_pod(object);
        }
        let services = self.told.0.iter().filter_map(|key| self.services.get(key));
        let services = services.map(|parts| &parts.made);
        let pods = self.told.1.iter().filter_map(|pod| self.pods.get(pod));
        let told = services.chain(pods).flat_map(|made| &made.notices);
        let mut notices = told.cloned().collect();
        let mut state = self.state.clone();
        health::add_checks(&self.checked(), &mut state, &mut notices);
        return_proxies(&mut state, &mut notices);
        (state, notices)
    }

    /// The objects that are others than last time; none: it is gone.
    fn changes<'o>(
        &self,
        objects: impl Iterator<Item = (&'o ObjectRef, &'o Arc<Object>)>,
    ) -> Vec<(ObjectRef, Option<Arc<Object>>)> {
        let mut changes = Vec::new();
        let mut known = self.objects.iter().peekable();
        for (object, content) in objects {
            let same = |(_, old): &(&ObjectRef, &Arc<Object>)| Arc::ptr_eq(old, content);
            while let Some((gone, _)) = known.next_if(|old| !same(old) && old.0 < object) {
                changes.push((gone.clone(), None));
            }
            match known.next_if(|old| same(old) || old.0 == object) {
                Some(old) if same(&old) => {}
                _ => changes.push((object.clone(), Some(Arc::clone(content)))),
            }
        }
        changes.extend(known.map(|(gone, _)| (gone.clone(), None)));
        changes
    }

    /// Puts an object where it belongs, or takes the old one away.
    fn replace(
        &mut self,
        object: &ObjectRef,
        content: &Object,
        new: Option<&Arc<Object>>,
        dirty: &mut Dirty,
    ) {
        let state = &mut self.state;
        match content {
            Object::Namespace => {}
            Object::Node(node) => {
                state.nodes.remove(&object.name);
                let node = new.map(|_| (object.name.clone(), node.node.clone()));
                state.nodes.extend(node);
            }
            Object::ReturnProxy(proxy) => {
                state.return_proxies.remove(&object.name);
                let proxy = new.map(|_| (object.name.clone(), Arc::clone(proxy)));
                state.return_proxies.extend(proxy);
            }
            Object::Service(_) => {
                let key = (object.namespace.clone(), object.name.clone());
                self.services.entry(key.clone()).or_default().service = new.cloned();
                dirty.services.insert(key);
            }
            Object::Slice(slice) => {
                let Some(service) = &slice.service else {
                    return;
                };
                let key = (object.namespace.clone(), service.clone());
                let slices = &mut self.services.entry(key.clone()).or_default().slices;
                slices.remove(object);
                slices.extend(new.map(|new| (object.clone(), Arc::clone(new))));
                dirty.services.insert(key);
            }
            Object::Pod(_) => {
                dirty.pods.insert(object.clone());
            }
        }
    }

    /// Services that have a health check.
    fn checked(&self) -> Vec<&ServiceObject> {
        let parts = self.checked.iter().filter_map(|key| self.services.get(key));
        parts
            .filter_map(|parts| match parts.service.as_deref() {
                Some(Object::Service(service)) => Some(service),
                _ => None,
            })
            .collect()
    }

    fn make_service(&mut self, key: &ServiceKey) {
        let Some(parts) = self.services.get_mut(key) else {
            return;
        };
        let old = take(&mut self.state, &mut parts.made);
        self.checked.remove(key);
        let slices = parts.slices.values().filter_map(|slice| match &**slice {
            Object::Slice(slice) => Some(slice),
            _ => None,
        });
        match parts.service.as_deref() {
            Some(Object::Service(service)) => {
                if service.health_check.is_some() {
                    self.checked.insert(key.clone());
                }
                let slices: Vec<&SliceObject> = slices.collect();
                let made = service_ports(service, &slices, &self.policy, &mut parts.made.notices);
                put(&mut self.state, &mut parts.made, old, made);
            }
            _ => parts.made.notices.extend(slices.map(without_service)),
        }
        note(&mut self.told.0, key, &parts.made);
        if parts.service.is_none() && parts.slices.is_empty() {
            self.services.remove(key);
        }
    }

    fn make_pod(&mut self, object: ObjectRef) {
        let mut made = self.pods.remove(&object).unwrap_or_default();
        let old = take(&mut self.state, &mut made);
        if let Some(Object::Pod(pod)) = self.objects.get(&object).map(|content| &**content) {
            let ports = pods::ports(pod, &self.policy, &mut made.notices);
            put(&mut self.state, &mut made, old, ports);
        }
        note(&mut self.told.1, &object, &made);
        if !made.ports.is_empty() || !made.notices.is_empty() {
            self.pods.insert(object, made);
        }
    }
}

/// Takes out of the state what an object has come to.
fn take(state: &mut State, made: &mut Made) -> BTreeMap<ServiceName, Arc<ServicePort>> {
    let ports = std::mem::take(made).ports.into_iter();
    ports
        .filter_map(|name| state.services.remove_entry(&name))
        .collect()
}

/// Puts in what it comes to now. What is as it was stays the same in memory.
fn put(
    state: &mut State,
    made: &mut Made,
    mut old: BTreeMap<ServiceName, Arc<ServicePort>>,
    ports: Vec<ServicePort>,
) {
    for port in ports {
        let same = old.remove(&port.name).filter(|old| **old == port);
        let name = port.name.clone();
        let port = same.unwrap_or_else(|| Arc::new(port));
        state.services.insert(name.clone(), port);
        made.ports.push(name);
    }
}

fn note<K: Ord + Clone>(told: &mut BTreeSet<K>, key: &K, made: &Made) {
    if made.notices.is_empty() {
        told.remove(key);
    } else {
        told.insert(key.clone());
    }
}

/// The way to the server behind each return proxy, or why there is none.
fn return_proxies(state: &mut State, notices: &mut Vec<Notice>) {
    let mut found = Vec::new();
    for proxy in state.return_proxies.values() {
        match choose::services(proxy, state) {
            Ok(services) => found.extend(services),
            Err(error) => {
                let object = ObjectRef {
                    kind: Kind::ReturnProxy,
                    namespace: String::new(),
                    name: proxy.name.clone(),
                };
                let message = error.to_string();
                notices.push(Notice::new(Severity::Error, &object, "spec.node", message));
            }
        }
    }
    for service in found {
        state
            .services
            .insert(service.name.clone(), Arc::new(service));
    }
}

/// All ports of a Service that is proxied.
fn service_ports(
    service: &ServiceObject,
    slices: &[&SliceObject],
    policy: &Policy,
    notices: &mut Vec<Notice>,
) -> Vec<ServicePort> {
    if service.unproxied.is_some() {
        return Vec::new();
    }
    let external = allowed_external(service, policy, notices);
    let ports = service.ports.iter().enumerate();
    ports
        .filter_map(|(i, port)| {
            let frontends = frontends(service, port, &external);
            let endpoints = endpoints(service, port, slices);
            service_port(service, (i, port), frontends, endpoints, notices)
        })
        .collect()
}

fn service_port(
    service: &ServiceObject,
    (i, port): (usize, &ServicePortObject),
    frontends: Vec<Frontend>,
    endpoints: Vec<Endpoint>,
    notices: &mut Vec<Notice>,
) -> Option<ServicePort> {
    let ObjectRef {
        namespace, name, ..
    } = &service.object;
    let own = if port.name.is_empty() {
        port.port.to_string()
    } else {
        port.name.clone()
    };
    let field = format!("spec.ports[{i}]");
    match ServiceName::new(format!("{namespace}/{name}:{own}/{}", port.protocol)) {
        Ok(name) => Some(ServicePort {
            name,
            object: service.object.clone(),
            field,
            created: service.created,
            protocol: port.protocol,
            algorithm: service.algorithm,
            frontends,
            terms: service.terms.clone(),
            endpoints,
        }),
        Err(error) => {
            let message = format!("{error}: use a shorter name");
            notices.push(Notice::new(
                Severity::Error,
                &service.object,
                field,
                message,
            ));
            None
        }
    }
}

fn frontends(
    service: &ServiceObject,
    port: &ServicePortObject,
    external: &[IpAddr],
) -> Vec<Frontend> {
    let address = |reach, restricted| {
        move |address: &IpAddr| Frontend::Address {
            address: *address,
            port: port.port,
            reach,
            restricted,
        }
    };
    let cluster = service.cluster.iter().map(address(Reach::Cluster, false));
    // As for kube-proxy, ranges don't count at node ports, nor at external addresses.
    let restricted = !service.terms.ranges.is_empty();
    let balanced = service.load_balancer.iter();
    let balanced = balanced.map(address(Reach::Everywhere, restricted));
    let outside = balanced.chain(external.iter().map(address(Reach::Everywhere, false)));
    let [v4, v6] = service.node_port_families;
    let node_port = port
        .node_port
        .map(|port| Frontend::NodePort { port, v4, v6 });
    let mut frontends: Vec<Frontend> = cluster.chain(outside).chain(node_port).collect();
    frontends.sort_unstable();
    frontends.dedup();
    frontends
}

/// Endpoints of all slices of the service whose port has the same name and protocol. The same
/// endpoint may be in several slices while it moves between them: one that takes traffic counts.
fn endpoints(
    service: &ServiceObject,
    port: &ServicePortObject,
    slices: &[&SliceObject],
) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for slice in slices {
        let same = |p: &&SlicePort| p.name == port.name && p.protocol == port.protocol;
        for slice_port in slice.ports.iter().filter(same) {
            found.extend(slice.endpoints.iter().map(|endpoint| Endpoint {
                address: endpoint.address,
                port: slice_port.port,
                weight: slice.weight,
                ready: endpoint.ready || service.publish_not_ready,
                serving: endpoint.serving,
                terminating: endpoint.terminating,
                node: endpoint.node.clone(),
                hints: endpoint.hints.clone(),
            }));
        }
    }
    found.sort_unstable_by(|a, b| {
        let best = |e: &Endpoint| (!e.ready, !e.serving, e.terminating);
        (a.address, a.port).cmp(&(b.address, b.port)).then_with(|| {
            best(a)
                .cmp(&best(b))
                .then_with(|| b.weight.cmp(&a.weight))
                .then_with(|| a.cmp(b))
        })
    });
    found.dedup_by(|later, first| (later.address, later.port) == (first.address, first.port));
    found
}

fn allowed_external(
    service: &ServiceObject,
    policy: &Policy,
    notices: &mut Vec<Notice>,
) -> Vec<IpAddr> {
    let allowed = |address: &IpAddr| policy.external_ranges.iter().any(|r| r.contains(address));
    for (field, address) in service
        .external
        .iter()
        .filter(|(_, address)| !allowed(address))
    {
        let message = format!(
            "{address} isn't served: it lies in none of services.external_ranges of the \
             configuration; add a range there, or remove it"
        );
        notices.push(Notice::new(
            Severity::Error,
            &service.object,
            field,
            message,
        ));
    }
    service
        .external
        .iter()
        .map(|(_, address)| *address)
        .filter(allowed)
        .collect()
}

/// A slice that names a Service which isn't there is often a misspelt label.
fn without_service(slice: &SliceObject) -> Notice {
    let namespace = &slice.object.namespace;
    let name = slice.service.as_deref().unwrap_or_default();
    let message = format!("there is no Service {namespace}/{name}: nothing is served");
    Notice::new(Severity::Info, &slice.object, "metadata.labels", message)
}

#[cfg(test)]
mod tests;
