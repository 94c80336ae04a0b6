//! As much of an API server as the source asks of one: lists in pages, watches, bookmarks, versions
//! that are forgotten; and what a real one cannot be told to do.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path as PathParameter, Query, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, runtime::Runtime, sync::watch, time::sleep};

type Parameters = HashMap<String, String>;

/// What happened to an object.
#[derive(Clone)]
struct Event {
    version: u64,
    plural: &'static str,
    action: &'static str,
    object: Value,
}

#[derive(Default)]
pub(crate) struct World {
    version: u64,
    objects: BTreeMap<(&'static str, String, String), Value>,
    events: Vec<Event>,
    /// Versions up to this are forgotten.
    forgotten: u64,
    /// Watches that began before so many cuts end.
    cuts: u64,
    /// Lists of a kind take so long.
    pub(crate) slow: BTreeMap<&'static str, Duration>,
    /// Pages after the first of a kind fail.
    pub(crate) broken_pages: Option<&'static str>,
    /// Requests for a kind are forbidden.
    pub(crate) forbidden: Option<&'static str>,
    /// Objects in a page, if fewer than asked for.
    pub(crate) page: Option<usize>,
    /// Every request: the kind and its parameters.
    pub(crate) requests: Vec<(String, BTreeMap<String, String>)>,
    /// Events that were written, with the namespace of each.
    pub(crate) written: Vec<(String, Value)>,
}

struct Shared {
    world: Mutex<World>,
    changed: watch::Sender<u64>,
}

/// A server with a world that outlives it.
pub(crate) struct Fake {
    shared: Arc<Shared>,
    address: SocketAddr,
    runtime: Option<Runtime>,
}

fn plural(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "Node" => "nodes",
        "Service" => "services",
        "EndpointSlice" => "endpointslices",
        "Pod" => "pods",
        _ => return None,
    })
}

impl Fake {
    pub(crate) fn start() -> Self {
        let shared = Arc::new(Shared {
            world: Mutex::new(World::default()),
            changed: watch::channel(0).0,
        });
        let mut fake = Self {
            shared,
            address: ([127, 0, 0, 1], 0).into(),
            runtime: None,
        };
        fake.restart();
        fake
    }

    /// Connections are cut, and new ones refused.
    pub(crate) fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub(crate) fn restart(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind(self.address).unwrap();
        listener.set_nonblocking(true).unwrap();
        self.address = listener.local_addr().unwrap();
        let shared = Arc::clone(&self.shared);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let router = Router::new()
                .route("/api/v1/{plural}", get(answer))
                .route("/apis/discovery.k8s.io/v1/{plural}", get(answer))
                .route(
                    "/apis/events.k8s.io/v1/namespaces/{namespace}/events",
                    post(write),
                )
                .with_state(shared);
            axum::serve(listener, router).await.unwrap();
        });
        self.runtime = Some(runtime);
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world.lock().unwrap()
    }

    fn tell(&self) {
        self.shared.changed.send_modify(|count| *count += 1);
    }

    /// Writes an object as YAML or JSON; one of another kind is left out.
    pub(crate) fn put(&self, text: &str) {
        let mut object: Value = serde_saphyr::from_str(text).unwrap();
        let Some(plural) = object["kind"].as_str().and_then(plural) else {
            return;
        };
        let mut world = self.world();
        world.version += 1;
        let version = world.version;
        let meta = object["metadata"].as_object_mut().unwrap();
        if plural != "nodes" {
            meta.entry("namespace").or_insert("default".into());
        }
        meta.insert("resourceVersion".into(), version.to_string().into());
        let text = |key: &str| {
            meta.get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let key = (plural, text("namespace"), text("name"));
        let known = world.objects.insert(key, object.clone()).is_some();
        let action = if known { "MODIFIED" } else { "ADDED" };
        world.events.push(Event {
            version,
            plural,
            action,
            object,
        });
        drop(world);
        self.tell();
    }

    pub(crate) fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let plural = plural(kind).unwrap();
        let mut world = self.world();
        world.version += 1;
        let version = world.version;
        let key = (plural, namespace.to_owned(), name.to_owned());
        let mut object = world.objects.remove(&key).unwrap();
        object["metadata"]["resourceVersion"] = version.to_string().into();
        world.events.push(Event {
            version,
            plural,
            action: "DELETED",
            object,
        });
        drop(world);
        self.tell();
    }

    /// Every document of every file of a directory.
    pub(crate) fn put_directory(&self, folder: &Path) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            for document in format!("\n{text}").split("\n---") {
                if document.contains("kind:") {
                    self.put(document);
                }
            }
        }
    }

    /// Nobody can be told any more what happened until now.
    pub(crate) fn forget(&self) {
        let mut world = self.world();
        world.forgotten = world.version;
    }

    /// All watches end.
    pub(crate) fn cut(&self) {
        self.world().cuts += 1;
        self.tell();
    }

    /// Watches are told how far they are.
    pub(crate) fn bookmark(&self) -> u64 {
        let mut world = self.world();
        world.version += 1;
        let version = world.version;
        for (plural, kind) in [
            ("nodes", "Node"),
            ("services", "Service"),
            ("endpointslices", "EndpointSlice"),
            ("pods", "Pod"),
        ] {
            let api = if kind == "EndpointSlice" {
                "discovery.k8s.io/v1"
            } else {
                "v1"
            };
            let object = json!({
                "kind": kind, "apiVersion": api,
                "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null},
            });
            world.events.push(Event {
                version,
                plural,
                action: "BOOKMARK",
                object,
            });
        }
        drop(world);
        self.tell();
        version
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes a kubeconfig for it.
    pub(crate) fn kubeconfig(&self, folder: &Path) -> PathBuf {
        let path = folder.join("kubeconfig");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": self.url()}}],
            "users": [{"name": "fake", "user": {"token": "t"}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
        });
        std::fs::write(&path, text.to_string()).unwrap();
        path
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop();
    }
}

fn status(code: u16, reason: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": code, "reason": reason, "message": format!("the fake says {reason}"),
    })
}

fn refuse(code: u16, reason: &str) -> Response {
    (
        StatusCode::from_u16(code).unwrap(),
        Json(status(code, reason)),
    )
        .into_response()
}

/// The selectors that the source uses.
fn chosen(object: &Value, parameters: &Parameters) -> bool {
    let label = |rule: &str| {
        let label = rule.strip_prefix('!').unwrap();
        object["metadata"]["labels"].get(label).is_none()
    };
    let field = |rule: &str| {
        let unequal = rule
            .split_once("!=")
            .map(|(path, value)| (path, value, false));
        let equal = || {
            rule.split_once('=')
                .map(|(path, value)| (path, value, true))
        };
        let (path, value, equal) = unequal.or_else(equal).unwrap();
        let found = object.pointer(&format!("/{}", path.replace('.', "/")));
        (found.and_then(Value::as_str).unwrap_or_default() == value) == equal
    };
    let rules = |key: &str| {
        let text = parameters.get(key).map(String::as_str).unwrap_or_default();
        text.split(',')
            .filter(|rule| !rule.is_empty())
            .collect::<Vec<_>>()
    };
    rules("labelSelector").into_iter().all(label) && rules("fieldSelector").into_iter().all(field)
}

/// Nothing but new Events can be written.
async fn write(
    State(shared): State<Arc<Shared>>,
    PathParameter(namespace): PathParameter<String>,
    Json(event): Json<Value>,
) -> Response {
    let mut world = shared.world.lock().unwrap();
    if world.forbidden == Some("events") {
        return refuse(403, "Forbidden");
    }
    world.written.push((namespace, event.clone()));
    (StatusCode::CREATED, Json(event)).into_response()
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    PathParameter(plural): PathParameter<String>,
    Query(parameters): Query<Parameters>,
) -> Response {
    let (slow, forbidden) = {
        let mut world = shared.world.lock().unwrap();
        let request = (plural.clone(), parameters.clone().into_iter().collect());
        world.requests.push(request);
        let slow = world.slow.get(plural.as_str()).copied();
        (slow, world.forbidden == Some(plural.as_str()))
    };
    if forbidden {
        return refuse(403, "Forbidden");
    }
    if parameters.get("watch").is_some_and(|watch| watch == "true") {
        return events(shared, plural, parameters);
    }
    if let Some(slow) = slow {
        sleep(slow).await;
    }
    list(&shared, &plural, &parameters)
}

fn list(shared: &Shared, plural: &str, parameters: &Parameters) -> Response {
    let world = shared.world.lock().unwrap();
    let start: usize = parameters
        .get("continue")
        .map_or(0, |text| text.parse().unwrap());
    if start > 0 && world.broken_pages == Some(plural) {
        return refuse(500, "InternalError");
    }
    let limit = parameters
        .get("limit")
        .map_or(usize::MAX, |text| text.parse().unwrap());
    let limit = world.page.unwrap_or(usize::MAX).min(limit);
    let all = world
        .objects
        .iter()
        .filter(|((of, ..), object)| *of == plural && chosen(object, parameters));
    let all: Vec<&Value> = all.map(|(_, object)| object).collect();
    let page: Vec<&&Value> = all.iter().skip(start).take(limit).collect();
    let next = start + page.len();
    let next = if next < all.len() {
        next.to_string()
    } else {
        String::new()
    };
    let kind = match plural {
        "nodes" => "Node",
        "services" => "Service",
        "endpointslices" => "EndpointSlice",
        _ => "Pod",
    };
    Json(json!({
        "kind": format!("{kind}List"), "apiVersion": "v1", "items": page,
        "metadata": {"resourceVersion": world.version.to_string(), "continue": next},
    }))
    .into_response()
}

fn events(shared: Arc<Shared>, plural: String, parameters: Parameters) -> Response {
    let from: u64 = parameters["resourceVersion"].parse().unwrap();
    let (cuts, changed) = {
        let world = shared.world.lock().unwrap();
        if from < world.forgotten {
            drop(world);
            let line = json!({"type": "ERROR", "object": status(410, "Expired")});
            return format!("{line}\n").into_response();
        }
        (world.cuts, shared.changed.subscribe())
    };
    let stream = futures_util::stream::unfold((from, changed), move |(from, mut changed)| {
        let (shared, plural, parameters) =
            (Arc::clone(&shared), plural.clone(), parameters.clone());
        async move {
            loop {
                {
                    let world = shared.world.lock().unwrap();
                    if world.cuts != cuts {
                        return None;
                    }
                    let new = world.events.iter().filter(|event| event.version > from);
                    let mut lines = String::new();
                    let mut last = from;
                    for event in new.filter(|event| event.plural == plural) {
                        last = event.version;
                        let mut action = event.action;
                        if action != "BOOKMARK" && !chosen(&event.object, &parameters) {
                            action = "DELETED";
                        }
                        lines += &json!({"type": action, "object": event.object}).to_string();
                        lines.push('\n');
                    }
                    if !lines.is_empty() {
                        return Some((Ok::<_, Infallible>(lines), (last, changed)));
                    }
                }
                changed.changed().await.ok()?;
            }
        }
    });
    Body::from_stream(stream).into_response()
}
