//! One file: its documents, and the last good state of its objects.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::document::Document;
use crate::{
    model::{Notice, ObjectRef, Origin, Severity},
    source::kubernetes::Object,
};

/// A file whose time of change is younger than this may change again within the same time stamp.
const FRESH: Duration = Duration::from_secs(2);

/// An object in force.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) content: Arc<Object>,
    pub(super) origin: Origin,
}

/// Tells whether a file is still the one that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

/// A file that was read, maybe several times.
#[derive(Debug)]
pub(super) struct ManifestFile {
    path: Arc<PathBuf>,
    stamp: Option<Stamp>,
    /// Two keys: a document is known by 128 bits of its text.
    hashers: [RandomState; 2],
    /// Documents by their text, so that what didn't change isn't read again.
    documents: HashMap<[u64; 2], Arc<Document>>,
    good: BTreeMap<ObjectRef, Known>,
    notices: Vec<Notice>,
}

impl ManifestFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path: Arc::new(path),
            stamp: None,
            hashers: [RandomState::new(), RandomState::new()],
            documents: HashMap::new(),
            good: BTreeMap::new(),
            notices: Vec::new(),
        }
    }

    /// What is in force of it.
    pub(super) fn objects(&self) -> impl Iterator<Item = (&ObjectRef, &Known)> {
        self.good.iter()
    }

    /// What is to be told of it.
    pub(super) fn notices(&self) -> impl Iterator<Item = Notice> + '_ {
        self.notices.iter().cloned()
    }

    /// Reads it, if it may have changed since it was last read.
    pub(super) fn read(&mut self, now: SystemTime) {
        let stamp = self.look(now);
        if stamp.is_some() && stamp == self.stamp {
            return;
        }
        match std::fs::read(&*self.path) {
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => self.take(&text),
                Err(error) => {
                    let line = error
                        .as_bytes()
                        .iter()
                        .take(error.utf8_error().valid_up_to());
                    let line = line.filter(|byte| **byte == b'\n').count();
                    self.unreadable(line, "not UTF-8");
                }
            },
            Err(error) => self.unreadable(0, &format!("cannot be read: {error}")),
        }
        self.stamp = stamp;
    }

    /// None if the file can't be told from what it may be a moment later.
    fn look(&self, now: SystemTime) -> Option<Stamp> {
        let meta = std::fs::metadata(&*self.path).ok()?;
        let fresh = now
            .duration_since(meta.modified().ok()?)
            .is_ok_and(|age| age < FRESH);
        (!fresh).then(|| Stamp {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }

    fn unreadable(&mut self, line: usize, message: &str) {
        let kept = self.good.len();
        self.notices = vec![Notice {
            severity: Severity::Error,
            origin: Some(self.origin(line)),
            object: None,
            field: String::new(),
            message: format!("{message}; {}", kept_objects(kept)),
        }];
    }

    fn origin(&self, line: usize) -> Origin {
        let line = u32::try_from(line).unwrap_or(u32::MAX).saturating_add(1);
        Origin {
            file: Arc::clone(&self.path),
            line,
        }
    }

    /// Takes over new text.
    pub(super) fn take(&mut self, text: &str) {
        let before = std::mem::take(&mut self.good);
        let mut known = std::mem::take(&mut self.documents);
        self.notices.clear();
        let mut unreadable = false;
        let mut broken: Vec<ObjectRef> = Vec::new();
        let mut remarks = Vec::new();
        for (start, text) in split(text) {
            let key = [self.hash(0, text), self.hash(1, text)];
            let document = match known
                .remove(&key)
                .or_else(|| self.documents.get(&key).cloned())
            {
                Some(document) => document,
                None => Arc::new(Document::parse(text)),
            };
            unreadable |= document.unreadable;
            for found in &document.objects {
                let line = usize::try_from(found.line).unwrap_or_default();
                let origin = self.origin(start + line);
                match &found.content {
                    None => broken.push(found.object.clone()),
                    Some(_) if self.good.contains_key(&found.object) => {
                        self.notices.push(self.twice(&found.object, origin));
                    }
                    Some(content) => {
                        let content = Arc::clone(content);
                        self.good
                            .insert(found.object.clone(), Known { content, origin });
                    }
                }
            }
            remarks.push((start, Arc::clone(&document)));
            self.documents.insert(key, document);
        }
        // What could not be read may be what is missing now.
        let mut kept = 0;
        for (object, last) in before {
            let may_stand_here = unreadable || broken.contains(&object);
            if may_stand_here && !self.good.contains_key(&object) {
                self.good.insert(object, last);
                kept += 1;
            }
        }
        for (start, document) in remarks {
            self.tell(start, &document, kept);
        }
    }

    fn twice(&self, object: &ObjectRef, origin: Origin) -> Notice {
        let line = self.good.get(object).map_or(0, |first| first.origin.line);
        Notice {
            severity: Severity::Error,
            origin: Some(origin),
            object: Some(object.clone()),
            field: String::new(),
            message: format!("already defined in line {line}: this one is left out; remove one"),
        }
    }

    fn tell(&mut self, start: usize, document: &Document, kept: usize) {
        for remark in &document.remarks {
            let mut message = remark.message.clone();
            if remark.severity == Severity::Error {
                let stays = match &remark.object {
                    Some(object) if self.good.contains_key(object) => "stays as it last was".into(),
                    Some(_) => "not in force".to_owned(),
                    None => kept_objects(kept),
                };
                message = format!("{message} ({stays})");
            }
            let line = usize::try_from(remark.line).unwrap_or_default();
            self.notices.push(Notice {
                severity: remark.severity,
                origin: Some(self.origin(start + line)),
                object: remark.object.clone(),
                field: remark.field.clone(),
                message,
            });
        }
    }

    fn hash(&self, which: usize, text: &str) -> u64 {
        self.hashers
            .get(which)
            .map_or(0, |hasher| hasher.hash_one(text))
    }
}

fn kept_objects(kept: usize) -> String {
    match kept {
        0 => "nothing of it is in force".to_owned(),
        1 => "1 object stays as it last was".to_owned(),
        _ => format!("{kept} objects stay as they last were"),
    }
}

/// Documents with the number of lines before each. `---` at the start of a line ends a document,
/// wherever it stands (YAML 1.2.2, section 9.1.2).
fn split(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let ends = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if ends && offset > start {
            documents.push((start_line, text.get(start..offset).unwrap_or_default()));
            (start, start_line) = (offset, number);
        }
        offset += line.len();
    }
    documents.push((start_line, text.get(start..).unwrap_or_default()));
    documents.into_iter()
}
