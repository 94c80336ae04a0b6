use std::{fs, os::unix::fs::symlink, path::Path};

use tempfile::TempDir;

use super::*;
use crate::model::{Frontend, Reach, ServicePort};

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
    folder: TempDir,
    manifests: Manifests,
}

impl Folder {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let policy = Policy {
            node: "worker-1".to_owned(),
            external_ranges: Vec::new(),
        };
        let manifests = Manifests::new(folder.path().to_owned(), policy);
        Self { folder, manifests }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    /// The state's service ports and how many endpoints each has, and the notices.
    fn scan(&mut self) -> (Vec<(String, usize)>, Vec<String>) {
        let snapshot = self.manifests.scan();
        let services = snapshot.state.services.values();
        let services = services.map(|port| (port.name.to_string(), port.endpoints.len()));
        let root = format!("{}/", self.folder.path().display());
        let notices = snapshot
            .notices
            .iter()
            .map(|n| n.to_string().replace(&root, ""));
        (services.collect(), notices.collect())
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

    fs::write(folder.folder.path().join("all.yaml"), b"a: b\nc: \xff\n").unwrap();
    let (services, notices) = folder.scan();
    assert_eq!(services, web(2));
    assert_eq!(
        notices,
        ["all.yaml:2: error: not UTF-8; 2 objects stay as they last were"]
    );

    folder.write("all.yaml", "");
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
    fs::remove_file(folder.folder.path().join("slice.yaml")).unwrap();
    assert_eq!(folder.scan(), (web(0), vec![]));
}

#[test]
fn a_missing_directory_changes_nothing() {
    let mut folder = Folder::new();
    folder.write("web.yaml", WEB);
    assert_eq!(folder.scan(), (web(0), vec![]));
    let away = folder.folder.path().with_extension("away");
    fs::rename(folder.folder.path(), &away).unwrap();
    let (services, notices) = folder.scan();
    assert_eq!(services, web(0));
    assert!(notices[0].contains("cannot be read"), "{notices:?}");
    fs::rename(&away, folder.folder.path()).unwrap();
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

#[test]
fn follows_swapped_links_as_mounted_configmaps_do() {
    let mut folder = Folder::new();
    let root = folder.folder.path().to_owned();
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
        before.elapsed() < std::time::Duration::from_secs(2),
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
