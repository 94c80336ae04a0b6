//! Objects of one kind, as they are and as they last were.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    model::{Notice, ObjectRef, Severity, Unknown},
    source::{
        kubernetes::{FieldError, Object, Remark},
        snapshot::Trigger,
    },
};

/// An object in force.
#[derive(Clone, Debug)]
pub struct Known {
    pub(super) content: Arc<Object>,
    remarks: Vec<Remark>,
    /// What its last change is due to, which is no part of it.
    pub(super) trigger: Option<Trigger>,
}

impl PartialEq for Known {
    fn eq(&self, other: &Self) -> bool {
        self.content == other.content && self.remarks == other.remarks
    }
}

impl Eq for Known {}

impl Known {
    pub(super) fn new(content: Object, remarks: Vec<Remark>) -> Self {
        Self {
            content: Arc::new(content),
            remarks,
            trigger: None,
        }
    }

    /// The same, with what the change is due to.
    pub(super) fn triggered(self, trigger: Option<Trigger>) -> Self {
        Self { trigger, ..self }
    }
}

/// An object that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which, and what to do.
    pub error: FieldError,
    /// Of an `EndpointSlice`: the Service that it names.
    pub service: Option<String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Objects {
    known: BTreeMap<ObjectRef, Known>,
    broken: BTreeMap<ObjectRef, Broken>,
}

/// Objects of one kind.
#[derive(Debug, Default)]
pub(super) struct Table {
    current: Objects,
    /// A list that is being read, or waits for those of other kinds.
    next: Option<Objects>,
    /// Whether it has been listed since the start.
    pub(super) listed: bool,
}

impl Table {
    /// What was in force before the start.
    pub(super) fn begin_with(&mut self, object: ObjectRef, known: Known) {
        self.current.known.insert(object, known);
    }

    /// A list begins.
    pub(super) fn restart(&mut self) {
        self.next = Some(Objects::default());
    }

    /// The list counts from now on. Says whether it differs.
    pub(super) fn take_over(&mut self) -> bool {
        let Some(next) = self.next.take() else {
            return false;
        };
        let differs = next != self.current;
        self.current = next;
        differs
    }

    pub(super) fn put(&mut self, object: ObjectRef, known: Known) -> bool {
        let at_once = self.next.is_none();
        let objects = self.next.as_mut().unwrap_or(&mut self.current);
        let mended = objects.broken.remove(&object).is_some();
        // What is not looked at of an object changes often: a Node's heartbeat does every few seconds.
        if objects.known.get(&object) == Some(&known) {
            return mended && at_once;
        }
        objects.known.insert(object, known);
        at_once
    }

    /// It stays as it last was, if it was.
    pub(super) fn put_broken(&mut self, object: ObjectRef, broken: Broken) -> bool {
        let Some(next) = &mut self.next else {
            return self.current.broken.insert(object, broken.clone()) != Some(broken);
        };
        if !next.known.contains_key(&object)
            && let Some(last) = self.current.known.get(&object)
        {
            next.known.insert(object.clone(), last.clone());
        }
        next.broken.insert(object, broken);
        false
    }

    pub(super) fn remove(&mut self, object: &ObjectRef) -> bool {
        let at_once = self.next.is_none();
        let objects = self.next.as_mut().unwrap_or(&mut self.current);
        let known = objects.known.remove(object).is_some();
        let broken = objects.broken.remove(object).is_some();
        (known || broken) && at_once
    }

    pub(super) fn known(&self) -> impl Iterator<Item = (&ObjectRef, &Known)> {
        self.current.known.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.current.known.len()
    }

    /// How many are as they last were.
    pub(super) fn stale(&self) -> usize {
        let broken = self.current.broken.keys();
        broken
            .filter(|object| self.current.known.contains_key(object))
            .count()
    }

    /// What is wrong with objects, what is to be told of others, and what cannot be known.
    pub(super) fn tell(&self, notices: &mut Vec<Notice>, unknown: &mut Vec<Unknown>) {
        let Objects { known, broken } = &self.current;
        for (object, Broken { error, service }) in broken {
            let stays = if known.contains_key(object) {
                "stays as it last was"
            } else {
                unknown.push(Unknown::Object {
                    object: object.clone(),
                    service: service.clone(),
                });
                "not in force"
            };
            let message = format!("{} ({stays})", error.message);
            notices.push(Notice::new(Severity::Error, object, &error.field, message));
        }
        for (object, known) in known
            .iter()
            .filter(|(object, _)| !broken.contains_key(object))
        {
            for remark in &known.remarks {
                notices.push(Notice::new(
                    remark.severity,
                    object,
                    &remark.field,
                    &remark.message,
                ));
            }
        }
    }
}
