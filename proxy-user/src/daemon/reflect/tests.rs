use std::path::Path;

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::model::{Kind, Severity, State, Unknown};
use crate::source::apiserver::fake::Fake;

mod plan;

const NODE: &str = "node1";

/// A source that follows a fake API server, and the directory that outlives it.
struct Bed {
    fake: Fake,
    folder: TempDir,
    run: Option<Run>,
}

struct Run {
    snapshots: mpsc::Receiver<Arc<Snapshot>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Bed {
    fn new() -> Self {
        Self {
            fake: Fake::start(),
            folder: TempDir::new().unwrap(),
            run: None,
        }
    }

    fn config(&self) -> Config {
        let text = format!(
            "version = 1\nnode.name = \"{NODE}\"\ndevices.uplinks = [\"eth0\"]\n\
             source.kind = \"kubernetes\"\nstate.directory = {:?}\n",
            self.folder.path().join("state"),
        );
        Config::parse(Path::new("/etc/causeway.toml"), &text).unwrap()
    }

    fn start(&mut self) {
        let access = Access {
            kubeconfig: Some(self.fake.kubeconfig(self.folder.path())),
            server: None,
        };
        let (sender, snapshots) = mpsc::channel(1);
        let (stop, stopped) = watch::channel(false);
        let config = Arc::new(self.config());
        let task = tokio::spawn(reflect(access, config, sender, stopped));
        self.run = Some(Run {
            snapshots,
            stop,
            task,
        });
    }

    /// Ends the source as the daemon does.
    async fn end(&mut self) {
        let run = self.run.take().unwrap();
        run.stop.send(true).unwrap();
        timeout(Duration::from_secs(10), run.task)
            .await
            .unwrap()
            .unwrap();
    }

    /// The next snapshot for which this is true.
    async fn until(&mut self, what: &str, is: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let run = self.run.as_mut().unwrap();
        let end = tokio::time::Instant::now() + Duration::from_secs(20);
        let mut last = (Vec::new(), Vec::new());
        loop {
            let Ok(snapshot) = tokio::time::timeout_at(end, run.snapshots.recv()).await else {
                panic!("{what}: not in 20 s; the last was {last:?}");
            };
            let snapshot = snapshot.unwrap();
            if is(&snapshot) {
                return snapshot;
            }
            last = (served(&snapshot.state), errors(&snapshot));
        }
    }

    /// Nothing comes for a while.
    async fn nothing(&mut self) {
        let run = self.run.as_mut().unwrap();
        let next = timeout(Duration::from_millis(300), run.snapshots.recv()).await;
        assert!(next.is_err(), "{next:#?}");
    }
}

fn service(name: &str, last: u8) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, \
         spec: {{clusterIP: 10.96.0.{last}, ports: [{{port: 80}}]}}}}"
    )
}

fn slice(service: &str, last: u8) -> String {
    format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, \
         metadata: {{name: {service}-1, labels: {{kubernetes.io/service-name: {service}}}}}, \
         ports: [{{name: '', port: 8080}}], endpoints: [{{addresses: [10.0.0.{last}]}}]}}"
    )
}

/// Each service with its endpoints' last bytes.
fn served(state: &State) -> Vec<String> {
    let ports = state.services.values();
    ports
        .map(|port| {
            let endpoints = port.endpoints.iter().map(|e| e.address.to_string());
            format!("{} {}", port.name, endpoints.collect::<Vec<_>>().join(","))
        })
        .collect()
}

fn errors(snapshot: &Snapshot) -> Vec<String> {
    let notices = snapshot.notices.iter();
    let errors = notices.filter(|notice| notice.severity == Severity::Error);
    errors.map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_and_deletions_come_through() {
    let mut bed = Bed::new();
    bed.start();
    bed.until("empty", |s| s.state.unknown.len() == 1).await;
    bed.fake.put(&service("web", 1));
    bed.fake.put(&slice("web", 1));
    bed.until("both", |s| {
        served(&s.state) == ["default/web:80/TCP 10.0.0.1"]
    })
    .await;
    // What is not looked at changes nothing.
    bed.fake
        .put(&slice("web", 1).replace("{name: web-1", "{annotations: {a: b}, name: web-1"));
    bed.nothing().await;
    bed.fake.put(&slice("web", 2));
    bed.until("another", |s| {
        served(&s.state) == ["default/web:80/TCP 10.0.0.2"]
    })
    .await;
    // Another proxy takes it, and gives it back.
    bed.fake.put(&service("web", 1).replace(
        "{name: web",
        "{labels: {service.kubernetes.io/service-proxy-name: x}, name: web",
    ));
    bed.until("given up", |s| s.state.services.is_empty()).await;
    bed.fake.put(&service("web", 1));
    bed.until("back", |s| {
        served(&s.state) == ["default/web:80/TCP 10.0.0.2"]
    })
    .await;
    bed.fake.delete("Service", "default", "web");
    let last = bed.until("gone", |s| s.state.services.is_empty()).await;
    let kinds = last.api.as_ref().unwrap().kinds();
    assert_eq!(kinds[&Kind::Service].events, 4);
    assert_eq!(kinds[&Kind::Service].lists, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_changes_nothing_and_what_it_hid_is_found() {
    let mut bed = Bed::new();
    for (name, last) in [("a", 1), ("b", 2)] {
        bed.fake.put(&service(name, last));
        bed.fake.put(&slice(name, last));
    }
    bed.start();
    let before = bed.until("complete", |s| s.state.services.len() == 2).await;
    assert_eq!(errors(&before), Vec::<String>::new());
    bed.fake.stop();
    let during = bed.until("told", |s| !errors(s).is_empty()).await;
    assert_eq!(during.state, before.state);
    let text = errors(&during).concat();
    assert!(
        text.contains("(what it said last stays in force)"),
        "{text}"
    );
    let health = during.api.as_ref().unwrap();
    assert!(
        health
            .kinds()
            .values()
            .any(|kind| kind.errors > 0 && kind.since.is_some())
    );
    // Nobody could tell of this deletion: the log of changes is gone.
    bed.fake.delete("Service", "default", "b");
    bed.fake.put(&slice("a", 9));
    bed.fake.forget();
    bed.fake.restart();
    let after = bed
        .until("found", |s| {
            served(&s.state) == ["default/a:80/TCP 10.0.0.9"]
        })
        .await;
    let after = if errors(&after).is_empty() {
        after
    } else {
        bed.until("well", |s| errors(s).is_empty()).await
    };
    assert!(after.api.as_ref().unwrap().kinds()[&Kind::Service].lists >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn recovery_is_told_although_nothing_changes() {
    let mut bed = Bed::new();
    bed.fake.put(&service("a", 1));
    bed.start();
    let before = bed.until("complete", |s| s.state.services.len() == 1).await;
    bed.fake.stop();
    bed.until("told", |s| errors(s).concat().contains("refused"))
        .await;
    bed.fake.restart();
    let after = bed.until("well", |s| errors(s).is_empty()).await;
    assert_eq!(after.state, before.state);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_during_an_outage_goes_on_from_what_was_saved() {
    let mut bed = Bed::new();
    bed.fake.put(&service("a", 1));
    bed.fake.put(&slice("a", 1));
    bed.start();
    let before = bed
        .until("complete", |s| {
            served(&s.state) == ["default/a:80/TCP 10.0.0.1"]
        })
        .await;
    bed.end().await;
    bed.fake.stop();
    bed.start();
    let saved = bed.until("saved", |_| true).await;
    assert_eq!(saved.state.services, before.state.services);
    assert!(
        saved.state.unknown.contains(&Unknown::Anything),
        "nothing is deleted"
    );
    assert!(!errors(&saved).is_empty());
    // An API server that is not yet whole is not believed.
    bed.fake.delete("Service", "default", "a");
    bed.fake
        .world()
        .slow
        .insert("nodes", Duration::from_secs(1));
    bed.fake.restart();
    let after = bed
        .until("complete", |s| {
            !s.state.unknown.contains(&Unknown::Anything)
        })
        .await;
    assert_eq!(after.state.services.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_during_an_outage_holds_what_the_kernel_has() {
    let mut bed = Bed::new();
    bed.fake.stop();
    bed.start();
    let first = bed.until("first", |_| true).await;
    assert!(first.state.services.is_empty());
    assert!(first.state.unknown.contains(&Unknown::Anything));
    let text = errors(&first).concat();
    assert!(text.contains("refused"), "{text}");
    bed.fake.put(&service("a", 1));
    bed.fake.restart();
    bed.until("complete", |s| {
        s.state.services.len() == 1 && errors(s).is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_list_is_waited_for_and_pages_are_put_together() {
    let mut bed = Bed::new();
    for last in 1..=7 {
        let name = format!("s{last}");
        bed.fake.put(&service(&name, last));
        bed.fake.put(&slice(&name, last));
    }
    bed.fake.world().page = Some(3);
    bed.fake
        .world()
        .slow
        .insert("endpointslices", Duration::from_millis(300));
    bed.start();
    let first = bed.until("first", |_| true).await;
    assert_eq!(first.state.services.len(), 7);
    assert!(
        first
            .state
            .services
            .values()
            .all(|port| port.endpoints.len() == 1)
    );
    assert!(!first.state.unknown.contains(&Unknown::Anything));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_breaks_off_deletes_nothing() {
    let mut bed = Bed::new();
    for last in 1..=7 {
        bed.fake.put(&service(&format!("s{last}"), last));
    }
    bed.fake.world().page = Some(3);
    bed.start();
    bed.until("complete", |s| s.state.services.len() == 7).await;
    bed.fake.world().broken_pages = Some("services");
    bed.fake.put(&service("s8", 8));
    // A later change, which the watch of Services is not told of, so that it is behind.
    bed.fake
        .put("{apiVersion: v1, kind: Node, metadata: {name: other}}");
    bed.fake.forget();
    bed.fake.cut();
    let told = bed.until("told", |s| !errors(s).is_empty()).await;
    assert!(told.state.services.len() >= 7);
    let text = errors(&told).concat();
    assert!(
        text.contains("Services: 500 the fake says InternalError"),
        "{text}"
    );
    bed.fake.world().broken_pages = None;
    bed.until("whole", |s| {
        s.state.services.len() == 8 && errors(s).is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_that_are_forgotten_lead_to_a_list() {
    let mut bed = Bed::new();
    bed.fake.put(&service("a", 1));
    bed.fake.put(&service("b", 2));
    bed.start();
    bed.until("complete", |s| s.state.services.len() == 2).await;
    bed.fake.cut();
    bed.fake.delete("Service", "default", "b");
    bed.fake.forget();
    bed.fake.cut();
    let after = bed.until("relisted", |s| s.state.services.len() == 1).await;
    // This is no failure.
    assert_eq!(errors(&after), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_from_the_last_bookmark() {
    let mut bed = Bed::new();
    bed.fake.put(&service("a", 1));
    bed.start();
    bed.until("complete", |s| s.state.services.len() == 1).await;
    let version = bed.fake.bookmark();
    // The watches have been told when a later change has come through.
    bed.fake.put(&service("b", 2));
    bed.until("later", |s| s.state.services.len() == 2).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    bed.fake.world().requests.clear();
    bed.fake.cut();
    bed.fake.put(&service("c", 3));
    bed.until("on", |s| s.state.services.len() == 3).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let world = bed.fake.world();
    let pods = world
        .requests
        .iter()
        .find(|(kind, _)| kind == "pods")
        .unwrap();
    assert_eq!(pods.1["resourceVersion"], version.to_string());
    assert_eq!(pods.1["allowWatchBookmarks"], "true");
    assert!(
        world.requests.iter().all(|(_, p)| p.contains_key("watch")),
        "no list: {:?}",
        world.requests
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_object_stays_as_it_last_was() {
    let mut bed = Bed::new();
    bed.fake.put(&service("a", 1));
    bed.fake.put(&slice("a", 1));
    bed.start();
    let before = bed.until("complete", |s| s.state.services.len() == 1).await;
    let broken = service("a", 1).replace("10.96.0.1", "127.0.0.1");
    bed.fake.put(&broken);
    let during = bed.until("told", |s| !errors(s).is_empty()).await;
    assert_eq!(during.state, before.state);
    let told = "error: Service default/a: spec.clusterIP: \"127.0.0.1\" cannot be a service's \
                address: it is reserved (stays as it last was)";
    assert_eq!(errors(&during), [told]);
    assert_eq!((during.counts.objects, during.counts.stale), (2, 1));
    // Neither a new list nor a restart changes that.
    bed.fake.forget();
    bed.fake.cut();
    bed.fake.put(&slice("a", 2));
    let relisted = bed
        .until("relisted", |s| {
            served(&s.state) == ["default/a:80/TCP 10.0.0.2"]
        })
        .await;
    assert_eq!(errors(&relisted), [told]);
    bed.end().await;
    bed.start();
    let again = bed.until("again", |_| true).await;
    assert_eq!(again.state, relisted.state);
    assert_eq!(errors(&again), [told]);
    // One that was never good is not known.
    bed.fake
        .put(&slice("new", 3).replace("10.0.0.3", "localhost"));
    let unknown = bed.until("unknown", |s| s.state.unknown.len() == 2).await;
    let told = errors(&unknown).concat();
    assert!(told.contains("EndpointSlice default/new-1: endpoints[0].addresses[0]: \"localhost\" is not an IP address"), "{told}");
    assert!(told.contains("(not in force)"), "{told}");
    bed.fake.put(&slice("new", 3));
    bed.fake.put(&service("a", 1));
    bed.until("mended", |s| errors(s).is_empty() && s.counts.stale == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_to_the_api_server_itself_is_kept() {
    let mut bed = Bed::new();
    bed.fake.put(&service("kubernetes", 1));
    bed.fake.put(&slice("kubernetes", 1));
    bed.fake.put(&service("other", 2));
    bed.fake.put(&slice("other", 2));
    bed.start();
    let first = bed.until("complete", |s| s.state.services.len() == 2).await;
    assert_eq!(first.state.unknown, []);
    let kept = "default/kubernetes:80/TCP 10.0.0.1";
    bed.fake.delete("EndpointSlice", "default", "other-1");
    bed.fake.delete("EndpointSlice", "default", "kubernetes-1");
    let without = bed.until("told", |s| s.counts.warnings == 1).await;
    assert_eq!(served(&without.state), [kept, "default/other:80/TCP "]);
    bed.fake.delete("Service", "default", "other");
    bed.fake.delete("Service", "default", "kubernetes");
    let gone = bed.until("gone", |s| s.state.services.len() == 1).await;
    assert_eq!(served(&gone.state), [kept]);
    // New ones count at once.
    bed.fake.put(&service("kubernetes", 1));
    bed.fake.put(&slice("kubernetes", 7));
    bed.until("new", |s| {
        served(&s.state) == ["default/kubernetes:80/TCP 10.0.0.7"]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forbidden_is_told_with_a_remedy() {
    let mut bed = Bed::new();
    bed.fake.put(&service("a", 1));
    bed.fake.world().forbidden = Some("pods");
    bed.start();
    let first = bed.until("told", |s| !errors(s).is_empty()).await;
    let told = errors(&first).concat();
    assert!(
        told.contains(
            "Pods: 403 the fake says Forbidden (docs/reference/kubernetes.md lists the rights"
        ),
        "{told}"
    );
    assert!(first.state.unknown.contains(&Unknown::Anything));
    bed.fake.world().forbidden = None;
    bed.until("allowed", |s| {
        errors(s).is_empty() && s.state.services.len() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_access_that_cannot_be_used_is_told_and_tried_again() {
    let mut bed = Bed::new();
    bed.fake.put(&service("a", 1));
    let path = bed.folder.path().join("kubeconfig");
    bed.start();
    std::fs::write(&path, "clusters: 7").unwrap();
    let first = bed.until("first", |_| true).await;
    let told = errors(&first).concat();
    if told.is_empty() {
        // It was read before it was spoilt.
        assert_eq!(first.state.services.len(), 1);
        return;
    }
    assert!(told.contains("source.kubeconfig = "), "{told}");
    assert!(told.contains("write the path of a kubeconfig"), "{told}");
    bed.fake.kubeconfig(bed.folder.path());
    bed.until("mended", |s| {
        s.state.services.len() == 1 && errors(s).is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_says_what_triggered_it_and_waits_to_be_in_force() {
    let mut bed = Bed::new();
    bed.fake.put(&service("web", 1));
    bed.fake.put(&slice("web", 1));
    bed.start();
    let first = bed.until("the list", |s| served(&s.state).len() == 1).await;
    assert_eq!(first.triggers, [], "a list tells of what was long ago");
    let at = std::time::SystemTime::now();
    let text = humantime::format_rfc3339_nanos(at);
    let annotation = format!("{{endpoints.kubernetes.io/last-change-trigger-time: \"{text}\"}}");
    let changed = slice("web", 2).replace(
        "metadata: {",
        &format!("metadata: {{annotations: {annotation}, "),
    );
    bed.fake.put(&changed);
    let second = bed
        .until("the change", |s| {
            served(&s.state) == ["default/web:80/TCP 10.0.0.2"]
        })
        .await;
    assert_eq!(
        second.triggers,
        [crate::source::snapshot::Trigger { at, v4: true }]
    );
    let api = second.api.as_ref().unwrap();
    let slices = |api: &Health| {
        let health = api.kinds().remove(&Kind::EndpointSlice).unwrap();
        (health.told, health.pending)
    };
    assert_eq!(slices(api), (2, 2));
    api.is_in_force(&first.told);
    assert_eq!(slices(api), (2, 1));
    api.is_in_force(&second.told);
    assert_eq!(slices(api), (2, 0));
    bed.end().await;
}
