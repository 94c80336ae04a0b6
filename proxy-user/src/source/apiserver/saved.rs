//! The checked objects on disk, for a start while the API server can't be reached.
//!
//! One file of JSON lines: first of what, then one object in each. It is replaced as a whole, by
//! renaming, after it has reached the disk.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, BufWriter, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{model::ObjectRef, source::kubernetes::Object};

/// The version of the file's format.
const VERSION: u32 = 1;

/// The file could not be written.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot {action} {}: {source}; a start while the API server can't be reached would only have \
     what the kernel holds",
    path.display()
)]
pub struct SaveError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// What the objects are of. Those of another cluster, or seen by another node, are of no use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    version: u32,
    server: String,
    node: String,
    objects: usize,
}

/// The file.
#[derive(Clone, Debug)]
pub(super) struct Saved {
    path: PathBuf,
    header: Header,
}

/// Objects that must be saved.
#[derive(Debug)]
pub struct SaveJob {
    saved: Saved,
    objects: Vec<Arc<Object>>,
}

impl Saved {
    /// Reads what is there. A file that is damaged, or of something else, holds nothing.
    pub(super) fn load(state: &Path, server: &str, node: &str) -> (Self, Vec<(ObjectRef, Object)>) {
        let saved = Self {
            path: state.join("apiserver").join("objects.jsonl"),
            header: Header {
                version: VERSION,
                server: server.to_owned(),
                node: node.to_owned(),
                objects: 0,
            },
        };
        let objects = saved.read().unwrap_or_default();
        (saved, objects)
    }

    fn read(&self) -> Option<Vec<(ObjectRef, Object)>> {
        let mut lines = BufReader::new(File::open(&self.path).ok()?).lines();
        let header: Header = serde_json::from_str(&lines.next()?.ok()?).ok()?;
        let of_this = Header {
            objects: header.objects,
            ..self.header.clone()
        };
        if header != of_this {
            return None;
        }
        let objects: Option<Vec<(ObjectRef, Object)>> = lines
            .map(|line| {
                let object: Object = serde_json::from_str(&line.ok()?).ok()?;
                Some((object.reference()?.clone(), object))
            })
            .collect();
        objects.filter(|objects| objects.len() == header.objects)
    }

    pub(super) fn job(&self, objects: impl Iterator<Item = Arc<Object>>) -> SaveJob {
        let objects: Vec<_> = objects.collect();
        let mut saved = self.clone();
        saved.header.objects = objects.len();
        SaveJob { saved, objects }
    }

    pub(super) const fn path(&self) -> &PathBuf {
        &self.path
    }
}

impl SaveJob {
    /// Saves them. Blocks on the disk.
    pub fn run(&self) -> Result<(), SaveError> {
        let path = &self.saved.path;
        let fail = |action, path: &Path| {
            let path = path.to_owned();
            move |source| SaveError {
                action,
                path,
                source,
            }
        };
        let folder = path.parent().unwrap_or(Path::new("/"));
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(fail("make", folder))?;
        let draft = path.with_extension("draft");
        self.write(&draft).map_err(fail("write", &draft))?;
        fs::rename(&draft, path).map_err(fail("replace", path))?;
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(fail("write", folder))
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = BufWriter::new(options.open(path)?);
        serde_json::to_writer(&mut file, &self.saved.header)?;
        for object in &self.objects {
            file.write_all(b"\n")?;
            serde_json::to_writer(&mut file, &**object)?;
        }
        file.write_all(b"\n")?;
        file.into_inner()?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_files_and_those_of_others_hold_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let load = |server, node| Saved::load(folder.path(), server, node);
        let (saved, objects) = load("https://a", "n");
        assert!(objects.is_empty());
        let node = serde_json::json!({"Node": {
            "object": {"kind": "Node", "namespace": "", "name": "n"},
            "node": {"addresses": ["192.0.2.1"], "internal": 1, "labels": {}, "pod_ranges": []},
        }});
        let node: Object = serde_json::from_value(node).unwrap();
        let job = saved.job([Arc::new(node.clone())].into_iter());
        job.run().unwrap();
        job.run().unwrap();
        let found = load("https://a", "n").1;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1, node);
        assert!(load("https://b", "n").1.is_empty());
        assert!(load("https://a", "m").1.is_empty());
        let text = fs::read_to_string(saved.path()).unwrap();
        for damage in [
            "",
            "{}\n",
            &text[..text.len() / 2],
            &text.replace("Node", "Knot"),
        ] {
            fs::write(saved.path(), damage).unwrap();
            assert!(load("https://a", "n").1.is_empty(), "{damage}");
        }
        let names = fs::read_dir(saved.path().parent().unwrap()).unwrap();
        assert_eq!(names.count(), 1, "no draft is left");
    }
}
