//! Copies of files as they last were when they could be read, for a start that finds them broken.
//!
//! One copy per file. It is replaced as a whole, by renaming, after it has reached the disk: a crash
//! leaves the old copy or the new one. Its first line says of which file and which objects; what
//! follows is the text, as it was written.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{model::ObjectRef, reconcile::maglev};

/// The version of the copies' format.
const VERSION: u32 = 1;

/// From so many copies on, the whole file system is written out rather than each of them.
const MANY: usize = 8;

/// A directory of copies that could not be written or read.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot {action} {}: {source}; manifests that are broken when the daemon starts would not be \
     served as they last were",
    path.display()
)]
pub struct SaveError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// A part of what is in force of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Lines before it in the file that it was in.
    pub(super) line: usize,
    /// Which of its objects count; none: all.
    pub(super) objects: Option<BTreeSet<ObjectRef>>,
    /// YAML documents.
    pub(super) text: String,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    file: PathBuf,
    parts: Vec<PartHeader>,
}

#[derive(Serialize, Deserialize)]
struct PartHeader {
    line: usize,
    bytes: usize,
    objects: Option<BTreeSet<ObjectRef>>,
}

/// The copies.
#[derive(Clone, Debug)]
pub(super) struct Copies {
    directory: PathBuf,
}

impl Copies {
    pub(super) fn new(state: &Path) -> Self {
        Self {
            directory: state.join("manifests"),
        }
    }

    fn path(&self, file: &Path) -> PathBuf {
        let key = maglev::key(file.as_os_str().as_bytes());
        let name = file.file_name().unwrap_or(OsStr::new("")).to_string_lossy();
        // Names have 255 bytes at most.
        let start = name.floor_char_boundary(200);
        let name = name.get(..start).unwrap_or_default();
        self.directory.join(format!("{key:016x}-{name}"))
    }

    /// What was in force of a file; none: there is no copy that can be read.
    pub(super) fn load(&self, file: &Path) -> Option<Vec<Part>> {
        let (header, parts) = read(&self.path(file))?;
        (header.file == file).then_some(parts)
    }

    /// The files that there are copies of.
    pub(super) fn files(&self) -> BTreeSet<PathBuf> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten();
        entries
            .filter_map(|entry| Some(read(&entry.ok()?.path())?.0.file))
            .collect()
    }

    /// Replaces the copies of these files, and removes those of `gone`.
    pub(super) fn save(
        &self,
        files: &[(Arc<PathBuf>, Vec<Part>)],
        gone: &BTreeSet<PathBuf>,
    ) -> Result<(), SaveError> {
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(self.error("make", &self.directory))?;
        let mut drafts = Vec::new();
        for (file, parts) in files {
            let path = self.path(file);
            let text = encode(file, parts).map_err(self.error("write", &path))?;
            if fs::read(&path).is_ok_and(|held| held == text) {
                continue;
            }
            let draft = path.with_extension("draft");
            let written = write(&draft, &text).map_err(self.error("write", &draft))?;
            if drafts.len() < MANY {
                written.sync_all().map_err(self.error("write", &draft))?;
            }
            drafts.push((draft, path));
        }
        let folder = File::open(&self.directory).map_err(self.error("open", &self.directory))?;
        if drafts.len() > MANY {
            nix::unistd::syncfs(&folder)
                .map_err(|errno| self.error("write", &self.directory)(errno.into()))?;
        }
        for (draft, path) in &drafts {
            fs::rename(draft, path).map_err(self.error("replace", path))?;
        }
        for file in gone {
            let path = self.path(file);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.error("remove", &path)(error));
                }
                _ => {}
            }
        }
        folder
            .sync_all()
            .map_err(self.error("write", &self.directory))
    }

    #[expect(clippy::unused_self, reason = "reads as what it is about")]
    fn error(&self, action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SaveError {
        let path = path.to_owned();
        move |source| SaveError {
            action,
            path,
            source,
        }
    }
}

fn write(path: &Path, text: &[u8]) -> io::Result<File> {
    let mut options = fs::OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path)?;
    file.write_all(text)?;
    Ok(file)
}

fn encode(file: &Path, parts: &[Part]) -> io::Result<Vec<u8>> {
    let header = Header {
        version: VERSION,
        file: file.to_owned(),
        parts: parts
            .iter()
            .map(|part| PartHeader {
                line: part.line,
                bytes: part.text.len(),
                objects: part.objects.clone(),
            })
            .collect(),
    };
    let mut text = serde_json::to_vec(&header)?;
    text.push(b'\n');
    for part in parts {
        text.extend_from_slice(part.text.as_bytes());
    }
    Ok(text)
}

/// None if it is damaged or of another format: then there is no copy.
fn read(path: &Path) -> Option<(Header, Vec<Part>)> {
    let text = fs::read_to_string(path).ok()?;
    let (first, mut rest) = text.split_once('\n')?;
    let header: Header = serde_json::from_str(first).ok()?;
    if header.version != VERSION {
        return None;
    }
    let mut parts = Vec::new();
    for part in &header.parts {
        let text;
        (text, rest) = rest.split_at_checked(part.bytes)?;
        parts.push(Part {
            line: part.line,
            objects: part.objects.clone(),
            text: text.to_owned(),
        });
    }
    rest.is_empty().then_some((header, parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(text: &str) -> Part {
        Part {
            line: 3,
            objects: None,
            text: text.to_owned(),
        }
    }

    #[test]
    fn copies_are_replaced_and_damaged_ones_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let copies = Copies::new(folder.path());
        let [a, b] = ["/m/a.yaml", "/m/b.yaml"].map(Path::new);
        assert_eq!(copies.load(a), None);
        let of = |file: &Path, parts| (Arc::new(file.to_owned()), parts);
        let all = [of(a, vec![part("x: 1\n"), part("y: 2\n")]), of(b, vec![])];
        copies.save(&all, &BTreeSet::new()).unwrap();
        assert_eq!(copies.load(a), Some(vec![part("x: 1\n"), part("y: 2\n")]));
        assert_eq!(copies.files().len(), 2);
        copies
            .save(&[of(a, vec![part("z: 3\n")])], &[b.to_owned()].into())
            .unwrap();
        assert_eq!(copies.load(a), Some(vec![part("z: 3\n")]));
        assert_eq!(copies.load(b), None);
        let names = fs::read_dir(folder.path().join("manifests")).unwrap();
        assert_eq!(names.count(), 1, "no draft is left");
        for damage in [
            "",
            "{}\n",
            "{\"version\":1,\"file\":\"/m/a.yaml\",\"parts\":[{\"line\":0,\"bytes\":9}]}\nx",
        ] {
            fs::write(copies.path(a), damage).unwrap();
            assert_eq!(copies.load(a), None, "{damage}");
        }
    }

    #[test]
    fn many_are_saved_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let copies = Copies::new(folder.path());
        let file = |i| Arc::new(PathBuf::from(format!("/m/{i}.yaml")));
        let all: Vec<_> = (0..100).map(|i| (file(i), vec![part("a")])).collect();
        copies.save(&all, &BTreeSet::new()).unwrap();
        assert_eq!(copies.files().len(), 100);
    }
}
