//! What a text says, before it is known whether it is believed.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    sync::Arc,
};

use super::{
    document::Document,
    file::{Known, ManifestFile, TextKey},
};
use crate::model::{Notice, ObjectRef, Severity, Unknown};

/// The objects of a text, those that are broken, and what is to be told.
#[derive(Debug, Default)]
pub(super) struct Reading {
    good: BTreeMap<ObjectRef, Known>,
    /// With the Service of an `EndpointSlice`, if that much can be read.
    broken: BTreeMap<ObjectRef, Option<String>>,
    unreadable: bool,
    documents: HashMap<TextKey, Arc<Document>>,
    /// In order, with the number of lines before each.
    order: Vec<(usize, Arc<Document>)>,
    twice: Vec<Notice>,
}

impl Reading {
    pub(super) fn of(file: &ManifestFile, text: &str) -> Self {
        let mut reading = Self::default();
        for (start, text) in split(text) {
            let (key, document) = file.document(text);
            reading.unreadable |= document.unreadable;
            for found in &document.objects {
                let line = usize::try_from(found.line).unwrap_or_default();
                let origin = file.origin(start + line);
                let Some(content) = &found.content else {
                    let service = found.service.clone();
                    reading.broken.insert(found.object.clone(), service);
                    continue;
                };
                match reading.good.entry(found.object.clone()) {
                    Entry::Occupied(first) => reading.twice.push(Notice {
                        severity: Severity::Error,
                        origin: Some(origin),
                        object: Some(found.object.clone()),
                        field: String::new(),
                        message: format!(
                            "already defined in line {}: this one is left out; remove one",
                            first.get().origin.line
                        ),
                    }),
                    Entry::Vacant(entry) => {
                        entry.insert(Known {
                            content: Arc::clone(content),
                            origin,
                            stale: false,
                        });
                    }
                }
            }
            reading.order.push((start, Arc::clone(&document)));
            reading.documents.insert(key, document);
        }
        reading
    }

    /// Whether all of it could be read.
    pub(super) fn is_clean(&self) -> bool {
        !self.unreadable && self.broken.is_empty()
    }

    /// Whether an object that it does not have may be in what could not be read.
    pub(super) fn may_hold(&self, object: &ObjectRef) -> bool {
        !self.good.contains_key(object) && (self.unreadable || self.broken.contains_key(object))
    }

    /// Whether it says something of the object.
    pub(super) fn explains(&self, object: &ObjectRef) -> bool {
        self.good.contains_key(object) || self.may_hold(object)
    }

    /// What it may hold besides what it has, and what is `kept`.
    pub(super) fn unknown(&self, kept: &BTreeMap<ObjectRef, Known>) -> Vec<Unknown> {
        if self.unreadable {
            return vec![Unknown::Anything];
        }
        let known =
            |object: &ObjectRef| self.good.contains_key(object) || kept.contains_key(object);
        let broken = self.broken.iter().filter(|(object, _)| !known(object));
        let unknown = broken.map(|(object, service)| Unknown::Object {
            object: object.clone(),
            service: service.clone(),
        });
        unknown.collect()
    }

    /// Its objects, its documents, and those in order; what is there twice is told.
    #[expect(
        clippy::type_complexity,
        reason = "three parts that go to three places"
    )]
    pub(super) fn finish(
        self,
        notices: &mut Vec<Notice>,
    ) -> (
        BTreeMap<ObjectRef, Known>,
        HashMap<TextKey, Arc<Document>>,
        Vec<(usize, Arc<Document>)>,
    ) {
        *notices = self.twice;
        (self.good, self.documents, self.order)
    }
}

/// Documents with the number of lines before each. `---` at the start of a line ends a document,
/// wherever it stands (YAML 1.2.2, section 9.1.2).
pub(super) fn split(text: &str) -> impl Iterator<Item = (usize, &str)> {
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
