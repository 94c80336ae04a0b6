//! One kind of objects, listed and watched for ever.

use std::{fmt::Debug, pin::pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Resource,
    runtime::watcher::{self, Event, watcher},
};
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, time::timeout};

use super::{
    Health,
    connect::explain,
    table::{Broken, Known},
};
use crate::{
    model::{Kind, ObjectRef},
    source::kubernetes::{
        FieldError, NodeObject, Object, PodObject, Remark, SERVICE_LABEL, ServiceObject,
        SliceObject,
    },
    source::snapshot::Trigger,
};

/// Other proxies' objects, and those that names lead to directly (the API server marks both).
const OURS: &str = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";

/// When the last change of endpoints was triggered, RFC 3339.
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// After the first failure it is tried again this soon.
const SOON: Duration = Duration::from_millis(250);

/// The wait doubles with each further failure, up to this.
const LATEST: Duration = Duration::from_secs(8);

/// A list of which nothing comes for so long is given up.
const SILENCE: Duration = Duration::from_mins(1);

/// What has been learned.
#[derive(Debug)]
pub enum Change {
    /// All objects of a kind follow.
    Restart(Kind),
    /// An object is there, or is broken.
    Is(ObjectRef, Result<Known, Broken>),
    /// An object is no more.
    Gone(ObjectRef),
    /// All objects of a kind have been told.
    Listed(Kind),
}

impl Change {
    pub(super) const fn kind(&self) -> Kind {
        match self {
            Self::Restart(kind) | Self::Listed(kind) => *kind,
            Self::Is(object, _) | Self::Gone(object) => object.kind,
        }
    }
}

/// A kind that is watched.
pub trait Watched:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static
{
    /// Its name.
    const KIND: Kind;

    /// Which objects of the kind matter on this node.
    fn select(config: watcher::Config, node: &str) -> watcher::Config;

    /// Checks an object.
    fn check(&self) -> Result<(Object, Vec<Remark>), FieldError>;

    /// What its last change is due to, if it says so.
    fn trigger(&self) -> Option<Trigger> {
        None
    }
}

impl Watched for Service {
    const KIND: Kind = Kind::Service;

    fn select(config: watcher::Config, _node: &str) -> watcher::Config {
        config.labels(OURS).fields("spec.clusterIP!=None")
    }

    fn check(&self) -> Result<(Object, Vec<Remark>), FieldError> {
        let mut service = ServiceObject::check(self)?;
        let remarks = std::mem::take(&mut service.remarks);
        Ok((Object::Service(service), remarks))
    }
}

impl Watched for EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;

    fn select(config: watcher::Config, _node: &str) -> watcher::Config {
        config.labels(OURS)
    }

    fn check(&self) -> Result<(Object, Vec<Remark>), FieldError> {
        let mut slice = SliceObject::check(self)?;
        let remarks = std::mem::take(&mut slice.remarks);
        Ok((Object::Slice(slice), remarks))
    }

    fn trigger(&self) -> Option<Trigger> {
        let text = self.metadata.annotations.as_ref()?.get(TRIGGER)?;
        Some(Trigger {
            at: humantime::parse_rfc3339(text).ok()?,
            v4: self.address_type == "IPv4",
        })
    }
}

impl Watched for Node {
    const KIND: Kind = Kind::Node;

    fn select(config: watcher::Config, _node: &str) -> watcher::Config {
        config
    }

    fn check(&self) -> Result<(Object, Vec<Remark>), FieldError> {
        Ok((Object::Node(NodeObject::check(self)?), Vec::new()))
    }
}

impl Watched for Pod {
    const KIND: Kind = Kind::Pod;

    fn select(config: watcher::Config, node: &str) -> watcher::Config {
        config.fields(&format!("spec.nodeName={node}"))
    }

    fn check(&self) -> Result<(Object, Vec<Remark>), FieldError> {
        Ok((Object::Pod(PodObject::check(self)?), Vec::new()))
    }
}

fn reference<K: Watched>(object: &K) -> ObjectRef {
    let meta = object.meta();
    ObjectRef {
        kind: K::KIND,
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
    }
}

fn is<K: Watched>(object: &K) -> Change {
    let checked = object.check().map_err(|error| {
        let labels = object.meta().labels.as_ref();
        let service = labels.and_then(|labels| labels.get(SERVICE_LABEL));
        let service = service.filter(|_| K::KIND == Kind::EndpointSlice);
        Broken {
            error,
            service: service.cloned(),
        }
    });
    Change::Is(
        reference(object),
        checked.map(|(content, remarks)| Known::new(content, remarks).triggered(object.trigger())),
    )
}

/// Tells what happens to the objects of a kind, until nobody listens.
pub async fn watch<K: Watched>(
    client: Client,
    node: Arc<str>,
    health: Arc<Health>,
    changes: mpsc::Sender<Change>,
) {
    let mut wait = SOON;
    loop {
        let config = K::select(watcher::Config::default(), &node);
        let events = watcher(Api::<K>::all(client.clone()), config);
        if follow(events, &mut wait, &health, &changes).await.is_none() {
            return;
        }
        // The list has fallen silent: a new connection is made for the next.
    }
}

/// None: nobody listens.
async fn follow<K: Watched>(
    events: impl Stream<Item = watcher::Result<Event<K>>>,
    wait: &mut Duration,
    health: &Health,
    changes: &mpsc::Sender<Change>,
) -> Option<()> {
    let mut events = pin!(events);
    let mut listing = true;
    loop {
        let next = if listing {
            let Ok(next) = timeout(SILENCE, events.next()).await else {
                health.failed(K::KIND, "a list has stopped halfway");
                return Some(());
            };
            next
        } else {
            events.next().await
        };
        let event = match next? {
            Ok(event) => event,
            Err(error) => {
                let expired =
                    matches!(&error, watcher::Error::WatchError(status) if status.code == 410);
                // Too far behind to be told what has changed: the list tells it.
                if !expired {
                    health.failed(K::KIND, &explain(&error));
                }
                tokio::time::sleep(*wait).await;
                *wait = wait.saturating_mul(2).min(LATEST);
                continue;
            }
        };
        listing = matches!(event, Event::Init | Event::InitApply(_));
        let change = match &event {
            Event::Init => Change::Restart(K::KIND),
            Event::InitApply(object) => is(object),
            Event::InitDone => {
                health.listed(K::KIND);
                Change::Listed(K::KIND)
            }
            Event::Apply(object) => {
                health.event(K::KIND);
                is(object)
            }
            Event::Delete(object) => {
                health.event(K::KIND);
                Change::Gone(reference(object))
            }
        };
        if matches!(change, Change::Is(..) | Change::Gone(_)) {
            health.told(K::KIND);
        }
        // Every attempt begins with an `Init`, also one that fails.
        if !matches!(event, Event::Init) {
            *wait = SOON;
        }
        changes.send(change).await.ok()?;
    }
}
