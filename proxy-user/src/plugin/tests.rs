use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::Path};

use super::Folders;

const OURS: &str = "{\"name\":\"causeway\"}";

fn contents(folder: &Path) -> BTreeMap<String, String> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read_to_string(entry.path()).unwrap())
        })
        .collect()
}

fn node(root: &Path) -> Folders {
    fs::write(root.join("causeway-cni"), "code").unwrap();
    Folders {
        plugins: root.join("opt/cni/bin"),
        configurations: root.join("etc/cni/net.d"),
    }
}

#[test]
fn what_was_there_is_back_after_a_removal() {
    let root = tempfile::tempdir().unwrap();
    let folders = node(root.path());
    let plugin = root.path().join("causeway-cni");
    fs::create_dir_all(&folders.configurations).unwrap();
    for (name, text) in [
        ("05-other.conflist", "5"),
        ("99-loop.conf", "9"),
        ("notes", "n"),
    ] {
        fs::write(folders.configurations.join(name), text).unwrap();
    }
    let before = contents(&folders.configurations);

    let done = folders.install(&plugin, OURS).unwrap();
    assert_eq!(done.len(), 4, "{done:?}");
    let now = contents(&folders.configurations);
    let names: Vec<&str> = now.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "05-other.conflist.before-causeway",
            "10-causeway.conflist",
            "99-loop.conf.before-causeway",
            "notes"
        ]
    );
    assert_eq!(now["10-causeway.conflist"], OURS);
    let installed = folders.plugins.join("causeway-cni");
    assert_eq!(fs::read_to_string(&installed).unwrap(), "code");
    let mode = fs::metadata(&installed).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);

    assert!(folders.install(&plugin, OURS).unwrap().is_empty());
    fs::write(&plugin, "newer code").unwrap();
    assert_eq!(folders.install(&plugin, OURS).unwrap().len(), 1);
    assert_eq!(fs::read_to_string(&installed).unwrap(), "newer code");

    assert_eq!(folders.remove().unwrap().len(), 4);
    assert_eq!(contents(&folders.configurations), before);
    assert!(!installed.exists());
    assert!(folders.remove().unwrap().is_empty());
}

#[test]
fn a_configuration_that_was_written_anew_wins_over_the_one_that_was_set_aside() {
    let root = tempfile::tempdir().unwrap();
    let folders = node(root.path());
    let other = folders.configurations.join("05-other.conflist");
    fs::create_dir_all(&folders.configurations).unwrap();
    fs::write(&other, "old").unwrap();
    folders
        .install(&root.path().join("causeway-cni"), OURS)
        .unwrap();
    fs::write(&other, "new").unwrap();
    folders.remove().unwrap();
    let left = contents(&folders.configurations);
    assert_eq!(
        left,
        BTreeMap::from([("05-other.conflist".into(), "new".into())])
    );
}

#[test]
fn a_node_without_folders_has_nothing_to_remove() {
    let root = tempfile::tempdir().unwrap();
    assert!(node(root.path()).remove().unwrap().is_empty());
}

#[test]
fn a_plugin_that_is_not_there_is_named() {
    let root = tempfile::tempdir().unwrap();
    let folders = node(root.path());
    let error = folders.install(Path::new("/nowhere"), OURS).unwrap_err();
    assert!(error.to_string().starts_with("cannot read /nowhere: "));
    assert!(contents(&folders.configurations).is_empty());
}
