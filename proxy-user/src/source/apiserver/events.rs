//! Tells people of a cluster what is wrong with their objects: Events (events.k8s.io/v1).

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::time::timeout;

use super::{Access, Health, connect::explain};
use crate::model::{Kind, Notice, ObjectRef};

/// An Event is written in this time, or not.
const LIMIT: Duration = Duration::from_secs(10);

/// The API server's limit of a note, bytes.
const NOTE_BYTES: usize = 1_024;

/// Who tells.
const CONTROLLER: &str = "causeway.dev/causeway";

/// Writes Events, each as a new one: nothing but the right to create them is needed.
#[derive(Clone)]
pub struct Events {
    client: Client,
    reporter: Reporter,
}

/// Why a thing happened, in kube-proxy's word where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The word.
    pub reason: &'static str,
    /// What was tried.
    pub action: &'static str,
}

impl Reason {
    /// A health check's port could not be had.
    pub const HEALTH_CHECK: Self = Self {
        reason: "FailedToStartServiceHealthcheck",
        action: "Listen",
    };
    /// An object, or a part of it, is not in force.
    pub const NOT_IN_FORCE: Self = Self {
        reason: "NotInForce",
        action: "Apply",
    };
}

impl Events {
    /// Connects by the source's own access.
    pub async fn connect(access: &Access, node: &str) -> Result<Self, String> {
        let health = Arc::new(Health::new(access.describe()));
        let client = access.client(&health).await;
        Ok(Self {
            client: client.map_err(|error| explain(&error))?,
            reporter: Reporter {
                controller: CONTROLLER.to_owned(),
                instance: Some(node.to_owned()),
            },
        })
    }

    /// Writes one about a notice's object.
    pub async fn publish(
        &self,
        object: &ObjectRef,
        notice: &Notice,
        why: Reason,
    ) -> Result<(), String> {
        let event = Event {
            type_: EventType::Warning,
            reason: why.reason.to_owned(),
            note: Some(note(notice)),
            action: why.action.to_owned(),
            secondary: None,
        };
        // A recorder that has told of an object before would want to change that Event.
        let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
        match timeout(LIMIT, recorder.publish(&event, &reference(object))).await {
            Ok(written) => written.map_err(|error| explain(&error)),
            Err(_) => Err("no answer in 10 s".to_owned()),
        }
    }
}

fn note(notice: &Notice) -> String {
    let mut note = match notice.field.as_str() {
        "" => notice.message.clone(),
        field => format!("{field}: {}", notice.message),
    };
    if note.len() > NOTE_BYTES {
        let end = (0..=NOTE_BYTES - '…'.len_utf8())
            .rev()
            .find(|end| note.is_char_boundary(*end));
        note.truncate(end.unwrap_or_default());
        note.push('…');
    }
    note
}

fn reference(object: &ObjectRef) -> ObjectReference {
    let version = match object.kind {
        Kind::Namespace | Kind::Node | Kind::Service | Kind::Pod => "v1",
        Kind::EndpointSlice => "discovery.k8s.io/v1",
        Kind::ReturnProxy => "causeway.dev/v1alpha1",
    };
    ObjectReference {
        api_version: Some(version.to_owned()),
        kind: Some(object.kind.to_string()),
        name: Some(object.name.clone()),
        namespace: Some(object.namespace.clone()).filter(|namespace| !namespace.is_empty()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::Severity, source::apiserver::fake::Fake};

    #[test]
    fn a_long_note_is_cut_between_letters() {
        let object = ObjectRef {
            kind: Kind::Service,
            namespace: "demo".to_owned(),
            name: "web".to_owned(),
        };
        let short = Notice::new(Severity::Error, &object, "spec", "wrong");
        assert_eq!(note(&short), "spec: wrong");
        let long = Notice::new(Severity::Error, &object, "", "ö".repeat(1_000));
        let cut = note(&long);
        assert!(
            cut.len() <= NOTE_BYTES && cut.len() > NOTE_BYTES - 4,
            "{}",
            cut.len()
        );
        assert!(cut.ends_with("ö…"), "{cut}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn each_event_is_a_new_one_about_its_object() {
        let fake = Fake::start();
        let folder = tempfile::tempdir().unwrap();
        let access = Access {
            kubeconfig: Some(fake.kubeconfig(folder.path())),
            server: None,
        };
        let events = Events::connect(&access, "node1").await.unwrap();
        let service = ObjectRef {
            kind: Kind::Service,
            namespace: "demo".to_owned(),
            name: "web".to_owned(),
        };
        let node = ObjectRef {
            kind: Kind::Node,
            namespace: String::new(),
            name: "node1".to_owned(),
        };
        let notice = Notice::new(Severity::Error, &service, "spec.type", "wrong");
        for (object, why) in [
            (&service, Reason::HEALTH_CHECK),
            (&service, Reason::HEALTH_CHECK),
            (&node, Reason::NOT_IN_FORCE),
        ] {
            events.publish(object, &notice, why).await.unwrap();
        }
        let written = fake.world().written.clone();
        let word = |(namespace, event): &(String, serde_json::Value)| {
            let text = |pointer| {
                event
                    .pointer(pointer)
                    .and_then(|v| v.as_str())
                    .unwrap_or("")
            };
            let words = [
                "/type",
                "/reason",
                "/action",
                "/regarding/kind",
                "/regarding/namespace",
                "/regarding/name",
                "/reportingInstance",
                "/note",
            ];
            format!("{namespace}: {}", words.map(text).join(" "))
        };
        let told: Vec<String> = written.iter().map(word).collect();
        let of_service = "demo: Warning FailedToStartServiceHealthcheck Listen Service demo web node1 \
                          spec.type: wrong";
        let of_node = "default: Warning NotInForce Apply Node  node1 node1 spec.type: wrong";
        assert_eq!(told, [of_service, of_service, of_node]);
        fake.world().forbidden = Some("events");
        let refused = events
            .publish(&service, &notice, Reason::NOT_IN_FORCE)
            .await;
        assert!(refused.unwrap_err().contains("the fake says Forbidden"));
    }
}
