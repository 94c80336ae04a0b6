//! One file: its documents, and the last good state of its objects.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    hash::{BuildHasher, RandomState},
    io::{self, Read as _},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    document::Document,
    reading::{Reading, split},
    saved::{Copies, Part},
};
use crate::{
    model::{Notice, ObjectRef, Origin, Severity, Unknown},
    source::kubernetes::Object,
};

/// A file whose time of change is younger than this may change again within the same time stamp.
const FRESH: Duration = Duration::from_secs(2);

/// Objects that are no longer in a file that was written in place are believed to be gone when it
/// has stayed so for this long: its writer may not have finished.
pub(super) const RESTED: Duration = Duration::from_secs(2);

/// The same for a file that has become empty: `command > file` empties it first, and a file system
/// may leave it empty after a power failure.
pub(super) const RESTED_EMPTY: Duration = Duration::from_secs(10);

/// An object in force.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) content: Arc<Object>,
    pub(super) origin: Origin,
    /// It is not what the file says now, but what it said last.
    pub(super) stale: bool,
}

/// Tells whether a file is still the one that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

/// 128 bits of a text.
pub(super) type TextKey = [u64; 2];

/// A text without objects that were there before, and since when it is seen.
#[derive(Clone, Copy, Debug)]
struct Loss {
    text: TextKey,
    since: SystemTime,
    rests: Duration,
}

/// A file that was read, maybe several times.
#[derive(Debug)]
pub(super) struct ManifestFile {
    path: Arc<PathBuf>,
    stamp: Option<Stamp>,
    /// Two keys: a text is known by 128 bits of it.
    hashers: [RandomState; 2],
    /// The text that was last taken over; none: it could not be read since.
    text: Option<TextKey>,
    /// Device and inode that it stood in.
    inode: Option<(u64, u64)>,
    /// Documents by their text, so that what didn't change isn't read again.
    documents: HashMap<TextKey, Arc<Document>>,
    good: BTreeMap<ObjectRef, Known>,
    notices: Vec<Notice>,
    loss: Option<Loss>,
    /// Whether `good` is all that was ever in it: it was read without a mistake, or there was a
    /// copy.
    complete: bool,
    /// Whether a part of `good` comes from the copy.
    recalled: bool,
    unknown: Vec<Unknown>,
    /// A text that there is no copy of yet.
    unsaved: Option<String>,
}

impl ManifestFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path: Arc::new(path),
            stamp: None,
            hashers: [RandomState::new(), RandomState::new()],
            text: None,
            inode: None,
            documents: HashMap::new(),
            good: BTreeMap::new(),
            notices: Vec::new(),
            loss: None,
            complete: false,
            recalled: false,
            unknown: Vec::new(),
            unsaved: None,
        }
    }

    /// A file that cannot be looked at now, as its copy says.
    pub(super) fn from_copy(path: PathBuf, copies: &Copies) -> Self {
        let mut file = Self::new(path);
        file.recall(Some(copies));
        file.tell_recalled();
        file
    }

    /// What is in force of it.
    pub(super) fn objects(&self) -> impl Iterator<Item = (&ObjectRef, &Known)> {
        self.good.iter()
    }

    /// What is to be told of it.
    pub(super) fn notices(&self) -> impl Iterator<Item = Notice> + '_ {
        self.notices.iter().cloned()
    }

    /// What may be in it and was never read.
    pub(super) fn unknown(&self) -> &[Unknown] {
        &self.unknown
    }

    /// When it must be looked at again although nobody changes it.
    pub(super) fn again(&self) -> Option<SystemTime> {
        self.loss.map(|loss| loss.since + loss.rests)
    }

    /// Reads it, if it may have changed since it was last read.
    pub(super) fn read(&mut self, now: SystemTime, copies: Option<&Copies>) {
        let stamp = self.look(now);
        if stamp.is_some() && stamp == self.stamp {
            return;
        }
        match read(&self.path) {
            Ok((inode, bytes)) => match String::from_utf8(bytes) {
                Ok(text) => self.offer(text, inode, now, copies),
                Err(error) => {
                    let line = error
                        .as_bytes()
                        .iter()
                        .take(error.utf8_error().valid_up_to());
                    let line = line.filter(|byte| **byte == b'\n').count();
                    self.unreadable(line, "not UTF-8", copies);
                }
            },
            Err(error) => self.unreadable(0, &format!("cannot be read: {error}"), copies),
        }
        self.stamp = stamp.filter(|_| self.loss.is_none());
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

    fn unreadable(&mut self, line: usize, message: &str, copies: Option<&Copies>) {
        self.recall(copies);
        self.text = None;
        self.loss = None;
        self.good.values_mut().for_each(|known| known.stale = true);
        self.unknown = if self.complete {
            Vec::new()
        } else {
            vec![Unknown::Anything]
        };
        let message = format!("{message}; {}", kept_objects(self.good.len()));
        self.notices = vec![self.notice(Severity::Error, line, message)];
        self.tell_recalled();
    }

    fn notice(&self, severity: Severity, line: usize, message: String) -> Notice {
        Notice {
            severity,
            origin: Some(self.origin(line)),
            object: None,
            field: String::new(),
            message,
        }
    }

    pub(super) fn origin(&self, line: usize) -> Origin {
        let line = u32::try_from(line).unwrap_or(u32::MAX).saturating_add(1);
        Origin {
            file: Arc::clone(&self.path),
            line,
        }
    }

    /// What the copy holds is in force until something better is read.
    fn recall(&mut self, copies: Option<&Copies>) {
        if self.complete {
            return;
        }
        let Some(parts) = copies.and_then(|copies| copies.load(&self.path)) else {
            return;
        };
        for part in &parts {
            for (start, text) in split(&part.text) {
                for found in &Document::parse(text).objects {
                    let counts = |objects: &BTreeSet<_>| objects.contains(&found.object);
                    if let Some(content) = &found.content
                        && part.objects.as_ref().is_none_or(counts)
                        && !self.good.contains_key(&found.object)
                    {
                        let line = usize::try_from(found.line).unwrap_or_default();
                        let known = Known {
                            content: Arc::clone(content),
                            origin: self.origin(part.line + start + line),
                            stale: true,
                        };
                        self.good.insert(found.object.clone(), known);
                    }
                }
            }
        }
        self.complete = true;
        self.recalled = true;
    }

    /// Takes over a text, unless its writer may not have finished.
    fn offer(&mut self, text: String, inode: (u64, u64), now: SystemTime, copies: Option<&Copies>) {
        let key = self.key(&text);
        if self.text == Some(key) && self.loss.is_none() {
            self.inode = Some(inode);
            return;
        }
        let empty = text.trim().is_empty();
        let reading = Reading::of(self, &text);
        if empty || !reading.is_clean() {
            self.recall(copies);
        }
        // Another file in its place was whole when it got there.
        let in_place = self.inode.map_or(empty, |held| held == inode);
        let lost = self.good.keys().filter(|held| !reading.explains(held));
        let lost = lost.count();
        if lost > 0 && in_place && !self.rested(key, empty, now) {
            let message = format!(
                "no longer has {lost} of its objects; they stay until it has been left so for {} \
                 seconds, since whoever writes it may not have finished",
                self.loss.map_or(0, |loss| loss.rests.as_secs())
            );
            self.notices = vec![self.notice(Severity::Warning, 0, message)];
            self.good.values_mut().for_each(|known| known.stale = true);
            self.text = None;
            return;
        }
        self.loss = None;
        self.text = Some(key);
        self.inode = Some(inode);
        self.take(reading);
        self.unsaved = copies.is_some().then_some(text);
    }

    /// Whether this text has been seen for long enough.
    fn rested(&mut self, text: TextKey, empty: bool, now: SystemTime) -> bool {
        let rests = if empty { RESTED_EMPTY } else { RESTED };
        let held = self.loss.filter(|loss| loss.text == text);
        let since = held.map_or(now, |loss| loss.since);
        self.loss = Some(Loss { text, since, rests });
        now.duration_since(since).is_ok_and(|age| age >= rests)
    }

    fn take(&mut self, reading: Reading) {
        self.complete |= reading.is_clean();
        let before = std::mem::take(&mut self.good);
        // What could not be read may be what is missing now.
        let may_stand = |object: &ObjectRef| reading.may_hold(object);
        let kept = before.into_iter().filter(|(object, _)| may_stand(object));
        let kept = kept.map(|(object, known)| {
            let known = Known {
                stale: true,
                ..known
            };
            (object, known)
        });
        self.good = kept.collect();
        let kept = self.good.len();
        self.unknown = if self.complete {
            Vec::new()
        } else {
            reading.unknown(&self.good)
        };
        let (good, documents, remarks) = reading.finish(&mut self.notices);
        self.good.extend(good);
        self.documents = documents;
        for (start, document) in remarks {
            self.tell(start, &document, kept);
        }
        self.recalled &= kept > 0;
        self.tell_recalled();
    }

    fn tell_recalled(&mut self) {
        let stale = self.good.values().filter(|known| known.stale).count();
        if self.recalled && stale > 0 {
            let message = format!(
                "{stale} of its objects are in force as they were before the daemon started, from a \
                 copy: mend the file"
            );
            let notice = self.notice(Severity::Warning, 0, message);
            self.notices.push(notice);
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

    /// The document of this text, from the last reading if it was there.
    pub(super) fn document(&self, text: &str) -> (TextKey, Arc<Document>) {
        let key = self.key(text);
        let known = self.documents.get(&key).cloned();
        (
            key,
            known.unwrap_or_else(|| Arc::new(Document::parse(text))),
        )
    }

    fn key(&self, text: &str) -> TextKey {
        self.hashers.each_ref().map(|hasher| hasher.hash_one(text))
    }

    /// What its copy must hold; none: it holds that already, or nobody knows.
    pub(super) fn unsaved(&self, copies: &Copies) -> Option<(Arc<PathBuf>, Vec<Part>)> {
        let text = self.unsaved.clone().filter(|_| self.complete)?;
        let (mut stale, fresh): (BTreeSet<ObjectRef>, BTreeSet<ObjectRef>) = self
            .good
            .iter()
            .map(|(object, known)| (object.clone(), known.stale))
            .fold(
                Default::default(),
                |(mut stale, mut fresh), (object, is)| {
                    if is { &mut stale } else { &mut fresh }.insert(object);
                    (stale, fresh)
                },
            );
        let whole = stale.is_empty() && self.documents.values().all(|d| d.is_clean());
        let mut parts = vec![Part {
            line: 0,
            objects: (!whole).then_some(fresh),
            text,
        }];
        // What stays as it was is in the copy of then.
        let before = (!stale.is_empty()).then(|| copies.load(&self.path));
        for old in before.flatten().unwrap_or_default() {
            for (line, text) in split(&old.text) {
                let objects: BTreeSet<ObjectRef> = Document::parse(text)
                    .objects
                    .into_iter()
                    .filter(|found| found.content.is_some())
                    .map(|found| found.object)
                    .filter(|object| old.objects.as_ref().is_none_or(|o| o.contains(object)))
                    .filter(|object| stale.remove(object))
                    .collect();
                if !objects.is_empty() {
                    parts.push(Part {
                        line: old.line + line,
                        objects: Some(objects),
                        text: text.to_owned(),
                    });
                }
            }
        }
        Some((Arc::clone(&self.path), parts))
    }

    /// Its copy holds these.
    pub(super) fn saved(&mut self, parts: &[Part]) {
        let text = parts.first().map(|part| &part.text);
        if self.unsaved.as_ref() == text {
            self.unsaved = None;
        }
    }
}

/// Device, inode and content.
fn read(path: &Path) -> io::Result<((u64, u64), Vec<u8>)> {
    let mut file = File::open(path)?;
    let meta = file.metadata()?;
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or_default());
    file.read_to_end(&mut bytes)?;
    Ok(((meta.dev(), meta.ino()), bytes))
}

fn kept_objects(kept: usize) -> String {
    match kept {
        0 => "nothing of it is in force".to_owned(),
        1 => "1 object stays as it last was".to_owned(),
        _ => format!("{kept} objects stay as they last were"),
    }
}
