use std::{fs, os::unix::fs::symlink, path::Path};

use tempfile::TempDir;

use super::*;
use crate::model::{Frontend, Kind, Reach, ServicePort};

const WEB: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.1
  ports:
  - port: 80
";

const SLICE: &str = "\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-a
  labels: {kubernetes.io/service-name: web}
addressType: IPv4
ports:
- port: 8080
endpoints:
- addresses: [10.0.0.1]
- addresses: [10.0.0.2]
";

struct Folder {
    root: TempDir,
    state: TempDir,
    manifests: Manifests,
    /// Time that has passed beside the clock's.
    later: Duration,
}

impl Folder {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let manifests = Manifests::new(folder.path().to_owned(), policy());
        Self {
            root: folder,
            state: TempDir::new().unwrap(),
            manifests,
            later: Duration::ZERO,
        }
    }

    /// As the daemon does it: with copies.
    fn copied() -> Self {
        let mut folder = Self::new();
        folder.start();
        folder
    }

    /// A start of the daemon.
    fn start(&mut self) {
        let manifests = Manifests::new(self.root.path().to_owned(), policy());
        self.manifests = manifests.with_copies(self.state.path());
    }

    fn save(&mut self) {
        if let Some(job) = self.manifests.unsaved() {
            job.run().unwrap();
            self.manifests.saved(&job);
        }
        assert!(self.manifests.unsaved().is_none());
    }

    fn copies(&self) -> usize {
        fs::read_dir(self.state.path().join("manifests"))
            .unwrap()
            .count()
    }

    /// As editors and `kubectl` do it: a whole file in place of another.
    fn replace(&self, name: &str, text: &str) {
        self.write("draft", text);
        let path = self.root.path();
        fs::rename(path.join("draft"), path.join(name)).unwrap();
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.root.path().join(name), text).unwrap();
    }

    fn snapshot(&mut self) -> Snapshot {
        self.manifests.scan_at(SystemTime::now() + self.later)
    }

    /// The state's service ports and how many endpoints each has, and the notices.
    fn scan(&mut self) -> (Vec<(String, usize)>, Vec<String>) {
        let snapshot = self.snapshot();
        let services = snapshot.state.services.values();
        let services = services.map(|port| (port.name.to_string(), port.endpoints.len()));
        let root = format!("{}/", self.root.path().display());
        let notices = snapshot
            .notices
            .iter()
            .map(|n| n.to_string().replace(&root, ""));
        (services.collect(), notices.collect())
    }
}

fn policy() -> Policy {
    Policy {
        node: "worker-1".to_owned(),
        external_ranges: Vec::new(),
    }
}

fn port(snapshot: &Snapshot, name: &str) -> ServicePort {
    (**snapshot.state.services.get(name).expect(name)).clone()
}

const WEB_NAME: &str = "default/web:80/TCP";

fn web(endpoints: usize) -> Vec<(String, usize)> {
    vec![(WEB_NAME.to_owned(), endpoints)]
}

#[test]
fn reads_many_documents_lists_and_json() {
    let mut folder = Folder::new();
    let json = serde_saphyr::from_str::<serde_json::Value>(WEB).unwrap();
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [json]});
    folder.write("list.json", &serde_json::to_string_pretty(&list).unwrap());
    folder.write(
        "slices.yml",
        &format!("# nothing\n---\n{SLICE}---\n\n--- # empty\n"),
    );
    folder.write("notes.txt", "not: [read");
    folder.write(".hidden.yaml", "not: [read");
    assert_eq!(folder.scan(), (web(2), vec![]));
}

#[test]
fn a_broken_object_keeps_its_last_good_state() {
    let mut folder = Folder::new();
    folder.write("all.yaml", &format!("{WEB}---\n{SLICE}"));
    assert_eq!(folder.scan(), (web(2), vec![]));

    let broken = SLICE.replace("10.0.0.2", "10.0.0.256");
    folder.write("all.yaml", &format!("{WEB}---\n{broken}"));
    let told = "all.yaml:19: error: EndpointSlice default/web-a: endpoints[1].addresses[0]: \
                \"10.0.0.256\" is not an IP address: write one as 192.0.2.1 or 2001:db8::1 \
                (stays as it last was)";
    assert_eq!(folder.scan(), (web(2), vec![told.to_owned()]));

    let mended = SLICE.replace("- addresses: [10.0.0.2]\n", "");
    folder.write("all.yaml", &format!("{WEB}---\n{mended}"));
    assert_eq!(folder.scan(), (web(1), vec![]));
}

#[test]
fn what_cannot_be_read_keeps_what_may_be_in_it() {
    let mut folder = Folder::new();
    folder.write("all.yaml", &format!("{WEB}---\n{SLICE}"));
    assert_eq!(folder.scan(), (web(2), vec![]));

    folder.write("all.yaml", &format!("{WEB}---\nkind: [\n"));
    let (services, notices) = folder.scan();
    assert_eq!(services, web(2));
    assert_eq!(notices.len(), 1, "{notices:?}");
    let told = notices[0].as_str();
    assert!(
        told.starts_with("all.yaml:9: error: not YAML that can be read: "),
        "{told}"
    );
    assert!(told.ends_with("(1 object stays as it last was)"), "{told}");

    fs::write(folder.root.path().join("all.yaml"), b"a: b\nc: \xff\n").unwrap();
    let (services, notices) = folder.scan();
    assert_eq!(services, web(2));
    assert_eq!(
        notices,
        ["all.yaml:2: error: not UTF-8; 2 objects stay as they last were"]
    );

    folder.replace("all.yaml", "");
    assert_eq!(folder.scan(), (vec![], vec![]));
}

#[test]
fn broken_from_the_start_is_not_in_force() {
    let mut folder = Folder::new();
    folder.write("web.yaml", &WEB.replace("port: 80", "port: eighty"));
    let (services, notices) = folder.scan();
    assert_eq!(services, []);
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(
        notices[0].starts_with("web.yaml:7: error: Service default/web: "),
        "{notices:?}"
    );
    assert!(notices[0].ends_with("(not in force)"), "{notices:?}");
}

#[test]
fn a_deleted_file_takes_its_objects_along() {
    let mut folder = Folder::new();
    folder.write("web.yaml", WEB);
    folder.write("slice.yaml", SLICE);
    assert_eq!(folder.scan(), (web(2), vec![]));
    fs::remove_file(folder.root.path().join("slice.yaml")).unwrap();
    assert_eq!(folder.scan(), (web(0), vec![]));
}

#[test]
fn a_missing_directory_changes_nothing() {
    let mut folder = Folder::new();
    folder.write("web.yaml", WEB);
    assert_eq!(folder.scan(), (web(0), vec![]));
    let away = folder.root.path().with_extension("away");
    fs::rename(folder.root.path(), &away).unwrap();
    let (services, notices) = folder.scan();
    assert_eq!(services, web(0));
    assert!(notices[0].contains("cannot be read"), "{notices:?}");
    fs::rename(&away, folder.root.path()).unwrap();
    assert_eq!(folder.scan(), (web(0), vec![]));
}

#[test]
fn the_second_of_two_is_left_out() {
    let mut folder = Folder::new();
    folder.write("a.yaml", WEB);
    folder.write("b.yaml", &WEB.replace("port: 80", "port: 81"));
    let told = |rest: &str| format!("b.yaml:1: error: Service default/web: {rest}");
    let (services, notices) = folder.scan();
    assert_eq!(services, web(0));
    assert_eq!(notices.len(), 1);
    let told = told("already defined at ");
    assert!(notices[0].starts_with(&told), "{notices:?}");
}

const GONE: &str = "no longer has";

/// Name, texts that are written into the file in place, and how long they must stay.
#[test]
fn what_is_gone_from_a_file_written_in_place_is_believed_later() {
    let whole = format!("{WEB}---\n{SLICE}");
    let half = whole.split_at(whole.len() / 2 - 20).0.to_owned();
    let rows = [
        ("emptied", "", file::RESTED_EMPTY),
        ("blank", "\n\n", file::RESTED_EMPTY),
        ("the second is not yet there", WEB, file::RESTED),
    ];
    for (name, text, rests) in rows {
        let mut folder = Folder::new();
        folder.write("all.yaml", &whole);
        assert_eq!(folder.scan(), (web(2), vec![]));
        folder.write("all.yaml", text);
        for _ in 0..2 {
            let (services, notices) = folder.scan();
            assert_eq!(services, web(2), "{name}");
            assert!(notices[0].contains(GONE), "{name}: {notices:?}");
            folder.later = rests.checked_sub(Duration::from_secs(1)).unwrap();
        }
        assert!(folder.manifests.again().unwrap() <= rests, "{name}");
        assert_eq!(folder.snapshot().counts.stale, 2, "{name}");
        // The writer goes on: nothing was lost.
        folder.write("all.yaml", &whole);
        assert_eq!(folder.scan(), (web(2), vec![]), "{name}");
        assert_eq!(folder.manifests.again(), None);
        // Or does not: so it is meant.
        folder.write("all.yaml", text);
        folder.scan();
        folder.later += rests;
        let services = if text == WEB { web(0) } else { vec![] };
        assert_eq!(folder.scan(), (services, vec![]), "{name}");
        assert_eq!(folder.snapshot().counts.stale, 0, "{name}");
    }
    // A document that ends too soon is broken, and keeps what it had.
    let mut folder = Folder::new();
    folder.write("all.yaml", &whole);
    folder.scan();
    folder.write("all.yaml", &half);
    assert_eq!(folder.scan().0, web(2));
}

#[test]
fn what_was_replaced_as_a_whole_is_believed_at_once() {
    let mut folder = Folder::new();
    folder.write("all.yaml", &format!("{WEB}---\n{SLICE}"));
    assert_eq!(folder.scan(), (web(2), vec![]));
    folder.replace("all.yaml", WEB);
    assert_eq!(folder.scan(), (web(0), vec![]));
    folder.replace("all.yaml", "");
    assert_eq!(folder.scan(), (vec![], vec![]));
}

#[test]
fn a_start_with_broken_files_goes_on_from_the_copies() {
    let mut folder = Folder::copied();
    folder.write("web.yaml", WEB);
    folder.write("slice.yaml", SLICE);
    assert_eq!(folder.scan(), (web(2), vec![]));
    folder.save();
    assert_eq!(folder.copies(), 2);

    folder.write("web.yaml", "kind: [\n");
    folder.write("slice.yaml", &SLICE.replace("10.0.0.2", "10.0.0.256"));
    for _ in 0..2 {
        folder.start();
        let snapshot = folder.snapshot();
        assert_eq!(port(&snapshot, WEB_NAME).endpoints.len(), 2);
        assert_eq!((snapshot.counts.objects, snapshot.counts.stale), (2, 2));
        assert_eq!(snapshot.state.unknown, []);
        let (_, notices) = folder.scan();
        let copied = notices.iter().filter(|n| n.contains("from a copy"));
        assert_eq!(copied.count(), 2, "{notices:?}");
        // What is kept of a copy stays in the copy.
        folder.save();
    }

    // Left empty by a power failure.
    folder.write("slice.yaml", "");
    folder.start();
    let (services, notices) = folder.scan();
    assert_eq!(services, web(2));
    assert!(notices.iter().any(|n| n.contains(GONE)), "{notices:?}");

    folder.write("web.yaml", WEB);
    folder.write(
        "slice.yaml",
        &SLICE.replace("- addresses: [10.0.0.2]\n", ""),
    );
    assert_eq!(folder.scan(), (web(1), vec![]));
    assert_eq!(folder.snapshot().counts.stale, 0);
}

/// Each object as it last was, whichever text that was in; and what was deleted stays so.
#[test]
fn a_copy_is_put_together_from_what_is_good() {
    let second = WEB.replace("web", "second").replace("0.1", "0.2");
    let third = WEB.replace("web", "third").replace("0.1", "0.3");
    let all = |documents: &[&str]| documents.join("---\n");
    let broken = |text: &str| text.replace("port: ", "port: x");
    let mut folder = Folder::copied();
    let steps = [
        all(&[WEB, &second, &third]),
        // The third is deleted, the second is broken, the first changed.
        all(&[&WEB.replace("80", "81"), &broken(&second)]),
        all(&[&broken(WEB), &broken(&second)]),
        "{ unreadable".to_owned(),
    ];
    for text in &steps {
        folder.replace("all.yaml", text);
        folder.scan();
        folder.save();
    }
    folder.start();
    let names = |names: [&str; 2]| names.map(|name| (name.to_owned(), 0)).to_vec();
    let expected = names(["default/second:80/TCP", "default/web:81/TCP"]);
    assert_eq!(folder.scan().0, expected);
    assert_eq!(folder.snapshot().counts.stale, 2);
}

#[test]
fn a_start_without_the_directory_goes_on_from_the_copies() {
    let mut folder = Folder::copied();
    folder.write("web.yaml", WEB);
    folder.write("slice.yaml", SLICE);
    folder.scan();
    folder.save();
    let away = folder.root.path().with_extension("away");
    fs::rename(folder.root.path(), &away).unwrap();
    folder.start();
    let snapshot = folder.snapshot();
    assert_eq!(port(&snapshot, WEB_NAME).endpoints.len(), 2);
    assert_eq!(snapshot.counts.stale, 2);
    assert_eq!(snapshot.state.unknown, []);
    folder.save();
    assert_eq!(folder.copies(), 2, "copies of what is not seen stay");
    fs::rename(&away, folder.root.path()).unwrap();
    assert_eq!(folder.scan(), (web(2), vec![]));
    assert_eq!(folder.snapshot().counts.stale, 0);
}

#[test]
fn copies_of_deleted_files_go() {
    let mut folder = Folder::copied();
    for name in ["a.yaml", "b.yaml", "c.yaml"] {
        folder.write(name, &WEB.replace("web", name));
    }
    folder.scan();
    folder.save();
    fs::remove_file(folder.root.path().join("a.yaml")).unwrap();
    folder.scan();
    folder.save();
    assert_eq!(folder.copies(), 2);
    // While no daemon runs.
    fs::remove_file(folder.root.path().join("b.yaml")).unwrap();
    folder.start();
    folder.scan();
    folder.save();
    assert_eq!(folder.copies(), 1);
}

#[test]
fn what_was_never_read_is_unknown_until_it_is() {
    let mut folder = Folder::copied();
    folder.write("web.yaml", &WEB.replace("port: 80", "port: x"));
    folder.write("slice.yaml", &SLICE.replace("10.0.0.2", "10.0.0.256"));
    let object = |kind, name: &str, service: Option<&str>| Unknown::Object {
        object: ObjectRef {
            kind,
            namespace: "default".to_owned(),
            name: name.to_owned(),
        },
        service: service.map(str::to_owned),
    };
    let expected = [
        object(Kind::Service, "web", None),
        object(Kind::EndpointSlice, "web-a", Some("web")),
    ];
    assert_eq!(folder.snapshot().state.unknown, expected);
    assert!(folder.manifests.unsaved().is_none_or(|job| {
        job.run().unwrap();
        folder.copies() == 0
    }));
    folder.write("slice.yaml", "[");
    assert_eq!(
        folder.snapshot().state.unknown,
        [Unknown::Anything, object(Kind::Service, "web", None)]
    );
    folder.write("web.yaml", WEB);
    folder.write("slice.yaml", SLICE);
    assert_eq!(folder.snapshot().state.unknown, []);
    // From here on it is known what stood there.
    folder.write("slice.yaml", "[");
    assert_eq!(folder.snapshot().state.unknown, []);

    let away = folder.root.path().with_extension("away");
    fs::rename(folder.root.path(), &away).unwrap();
    folder.start();
    assert_eq!(folder.snapshot().state.unknown, [Unknown::Anything]);
    fs::rename(&away, folder.root.path()).unwrap();
}

#[test]
fn follows_swapped_links_as_mounted_configmaps_do() {
    let mut folder = Folder::new();
    let root = folder.root.path().to_owned();
    for (name, text) in [
        ("..1", WEB.to_owned()),
        ("..2", WEB.replace("port: 80", "port: 81")),
    ] {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join("web.yaml"), text).unwrap();
    }
    symlink("..1", root.join("..data")).unwrap();
    symlink("..data/web.yaml", root.join("web.yaml")).unwrap();
    assert_eq!(folder.scan(), (web(0), vec![]));
    symlink("..2", root.join("..swap")).unwrap();
    fs::rename(root.join("..swap"), root.join("..data")).unwrap();
    assert_eq!(
        folder.scan(),
        (vec![("default/web:81/TCP".to_owned(), 0)], vec![])
    );
}

#[test]
fn unknown_kinds_are_told_and_skipped() {
    let mut folder = Folder::new();
    folder.write(
        "all.yaml",
        &format!("{WEB}---\napiVersion: apps/v1\nkind: Deployment\n"),
    );
    let told = "all.yaml:10: info: kind Deployment of \"apps/v1\" isn't used here: skipped";
    assert_eq!(folder.scan(), (web(0), vec![told.to_owned()]));
}

#[tokio::test]
async fn a_change_is_noticed() {
    let folder = TempDir::new().unwrap();
    let mut watch = Watch::new(folder.path()).unwrap();
    let before = std::time::Instant::now();
    fs::write(folder.path().join("a.yaml"), WEB).unwrap();
    watch.changed().await;
    assert!(
        before.elapsed() < Duration::from_secs(2),
        "{:?}",
        before.elapsed()
    );
}

#[test]
fn reads_the_demo_as_it_is_meant() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/demo");
    let policy = Policy {
        node: "node1".to_owned(),
        external_ranges: Vec::new(),
    };
    let snapshot = Manifests::new(demo, policy).scan();
    let notices: Vec<String> = snapshot.notices.iter().map(ToString::to_string).collect();
    assert_eq!(notices, Vec::<String>::new());
    let names: Vec<String> = snapshot
        .state
        .services
        .keys()
        .map(ToString::to_string)
        .collect();
    let expected = [
        "demo/echo:echo/UDP",
        "demo/empty:80/TCP",
        "demo/web:http/TCP",
        "pod/demo/pod1:7081/UDP",
        "pod/demo/pod1:8081/TCP",
    ];
    assert_eq!(names, expected);
    let web = port(&snapshot, "demo/web:http/TCP");
    let at = |address: &str, reach| Frontend::Address {
        address: address.parse().unwrap(),
        port: 80,
        reach,
        restricted: false,
    };
    let expected = [
        at("10.96.0.10", Reach::Cluster),
        at("203.0.113.10", Reach::Everywhere),
        at("2001:db8:113::10", Reach::Everywhere),
        at("fd00:96::10", Reach::Cluster),
        Frontend::NodePort {
            port: 30_080,
            v4: true,
            v6: true,
        },
    ];
    assert_eq!(web.frontends, expected);
    assert_eq!(web.endpoints.len(), 8);
    let echo = port(&snapshot, "demo/echo:echo/UDP");
    let weights: Vec<u16> = echo
        .endpoints
        .iter()
        .map(|endpoint| endpoint.weight)
        .collect();
    assert_eq!(weights, [1, 3, 1, 1]);
}
