//! One YAML document: its objects, or what is wrong with it.

use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::locate::Lines;
use crate::{
    model::{Kind, ObjectRef, Severity},
    source::kubernetes::{
        FieldError, NodeObject, Object, PodObject, Remark, SERVICE_LABEL, ServiceObject,
        SliceObject,
    },
    tunnel::object::{ObjectError, ReturnProxy},
};

/// Something to tell, with its line in the document (from 0 on).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LineRemark {
    pub(super) severity: Severity,
    pub(super) object: Option<ObjectRef>,
    pub(super) line: u32,
    pub(super) field: String,
    pub(super) message: String,
}

/// An object that was found.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) object: ObjectRef,
    pub(super) line: u32,
    /// None: it is broken.
    pub(super) content: Option<Arc<Object>>,
    /// Of a broken `EndpointSlice`: the Service that it names.
    pub(super) service: Option<String>,
}

/// A document that was read.
#[derive(Clone, Debug, Default)]
pub(super) struct Document {
    pub(super) objects: Vec<Found>,
    pub(super) remarks: Vec<LineRemark>,
    /// It may hold objects that could not even be named.
    pub(super) unreadable: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    api_version: Option<String>,
    kind: Option<String>,
    #[serde(default)]
    metadata: HeaderMeta,
}

#[derive(Debug, Default, Deserialize)]
struct HeaderMeta {
    name: Option<String>,
    namespace: Option<String>,
}

/// Options of the YAML parser. `kubectl get --output yaml` of a large cluster is one document of
/// millions of nodes, so only depth and aliases stay limited.
pub(super) fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_events: 100_000_000,
            max_nodes: 50_000_000,
            max_total_scalar_bytes: 1 << 30,
        },
    }
}

impl Document {
    /// Whether all of it could be read.
    pub(super) fn is_clean(&self) -> bool {
        !self.unreadable && self.objects.iter().all(|found| found.content.is_some())
    }

    /// Reads one document.
    pub(super) fn parse(text: &str) -> Self {
        let mut document = Self::default();
        let blank = |line: &str| line.trim_start().is_empty() || line.trim_start().starts_with('#');
        if text.lines().all(|line| blank(line) || line == "---") {
            return document;
        }
        match serde_saphyr::from_str_with_options::<Value>(text, options()) {
            Ok(Value::Null) => {}
            Ok(value) => document.value(&value, text, ""),
            Err(error) => document.unreadable(&error),
        }
        document
    }

    fn unreadable(&mut self, error: &serde_saphyr::Error) {
        self.unreadable = true;
        let (line, message) = describe(error);
        self.error(
            None,
            line,
            "",
            format!("not YAML that can be read: {message}"),
        );
    }

    fn error(&mut self, object: Option<ObjectRef>, line: u32, field: &str, message: String) {
        let field = field.to_owned();
        self.remarks.push(LineRemark {
            severity: Severity::Error,
            object,
            line,
            field,
            message,
        });
    }

    /// Reads what stands at `path` (empty: the whole document).
    fn value(&mut self, value: &Value, text: &str, path: &str) {
        let line = |field: &str| Lines::of(text).line(field);
        let Ok(header) = Header::deserialize(value) else {
            self.unreadable = true;
            let message =
                "not a Kubernetes object: apiVersion, kind and metadata.name must be text";
            self.error(None, line(path), "", message.to_owned());
            return;
        };
        let version = header.api_version.as_deref().unwrap_or_default();
        let Some(kind) = header.kind.as_deref() else {
            self.unreadable = true;
            let message = "not a Kubernetes object: it has no kind".to_owned();
            self.error(None, line(path), "kind", message);
            return;
        };
        if version == "v1" && (kind == "List" || kind.ends_with("List")) {
            self.list(value, text, path);
            return;
        }
        let kind = match (version, kind) {
            ("v1", "Namespace") => Kind::Namespace,
            ("v1", "Node") => Kind::Node,
            ("v1", "Service") => Kind::Service,
            ("v1", "Pod") => Kind::Pod,
            ("causeway.dev/v1alpha1", "ReturnProxy") => Kind::ReturnProxy,
            ("discovery.k8s.io/v1", "EndpointSlice") => Kind::EndpointSlice,
            ("discovery.k8s.io/v1", "EndpointSliceList") => return self.list(value, text, path),
            _ => {
                self.remarks.push(LineRemark {
                    severity: Severity::Info,
                    object: None,
                    line: line(&join(path, "kind")),
                    field: String::new(),
                    message: format!("kind {kind} of {version:?} isn't used here: skipped"),
                });
                return;
            }
        };
        self.object(kind, header.metadata, value, text, path);
    }

    fn list(&mut self, value: &Value, text: &str, path: &str) {
        let items = value.get("items").and_then(Value::as_array);
        for (i, item) in items.into_iter().flatten().enumerate() {
            self.value(item, text, &join(path, &format!("items[{i}]")));
        }
    }

    fn object(&mut self, kind: Kind, meta: HeaderMeta, value: &Value, text: &str, path: &str) {
        let namespace = match kind {
            Kind::Namespace | Kind::Node | Kind::ReturnProxy => String::new(),
            _ => meta.namespace.unwrap_or_else(|| "default".to_owned()),
        };
        let object = ObjectRef {
            kind,
            namespace,
            name: meta.name.unwrap_or_default(),
        };
        // Where things stand costs a second reading: only for lists and for what needs telling.
        let whole = if path.is_empty() { Some(text) } else { None };
        match check(kind, value, whole) {
            Ok((content, remarks)) => {
                let lines = (!path.is_empty() || !remarks.is_empty()).then(|| Lines::of(text));
                let line = |field: &str| lines.as_ref().map_or(0, |lines| lines.line(field));
                let at = if path.is_empty() {
                    first_line(text)
                } else {
                    line(path)
                };
                for Remark {
                    severity,
                    field,
                    message,
                } in remarks
                {
                    let line = line(&join(path, &field));
                    let object = Some(object.clone());
                    self.remarks.push(LineRemark {
                        severity,
                        object,
                        line,
                        field,
                        message,
                    });
                }
                self.objects.push(Found {
                    object,
                    line: at,
                    content: Some(Arc::new(content)),
                    service: None,
                });
            }
            Err(refusal) => {
                let lines = Lines::of(text);
                let at = if path.is_empty() {
                    first_line(text)
                } else {
                    lines.line(path)
                };
                let (line, field, message) = match refusal {
                    Refusal::Field(FieldError { field, message }) => {
                        (lines.line(&join(path, &field)), field, message)
                    }
                    Refusal::Shape { line, message } => {
                        (line.unwrap_or(at), String::new(), message)
                    }
                };
                self.error(Some(object.clone()), line, &field, message);
                if object.name.is_empty() {
                    self.unreadable = true;
                } else {
                    self.objects.push(Found {
                        object,
                        line: at,
                        content: None,
                        service: service(value),
                    });
                }
            }
        }
    }
}

/// The Service that an `EndpointSlice` names.
fn service(value: &Value) -> Option<String> {
    let label = value.get("metadata")?.get("labels")?.get(SERVICE_LABEL)?;
    label.as_str().map(str::to_owned)
}

impl From<ObjectError> for Refusal {
    fn from(error: ObjectError) -> Self {
        Self::Field(FieldError {
            field: error.field,
            message: error.message,
        })
    }
}

enum Refusal {
    Field(FieldError),
    Shape { line: Option<u32>, message: String },
}

impl From<FieldError> for Refusal {
    fn from(error: FieldError) -> Self {
        Self::Field(error)
    }
}

fn check(kind: Kind, value: &Value, text: Option<&str>) -> Result<(Object, Vec<Remark>), Refusal> {
    Ok(match kind {
        Kind::Namespace => (Object::Namespace, Vec::new()),
        Kind::Node => (
            Object::Node(NodeObject::check(&typed::<Node>(value, text)?)?),
            Vec::new(),
        ),
        Kind::Pod => (
            Object::Pod(PodObject::check(&typed::<Pod>(value, text)?)?),
            Vec::new(),
        ),
        Kind::ReturnProxy => {
            let proxy = ReturnProxy::check(typed(value, text)?)?;
            (Object::ReturnProxy(Arc::new(proxy)), Vec::new())
        }
        Kind::Service => {
            let mut service = ServiceObject::check(&typed::<Service>(value, text)?)?;
            let remarks = std::mem::take(&mut service.remarks);
            (Object::Service(service), remarks)
        }
        Kind::EndpointSlice => {
            let mut slice = SliceObject::check(&typed::<EndpointSlice>(value, text)?)?;
            let remarks = std::mem::take(&mut slice.remarks);
            (Object::Slice(slice), remarks)
        }
    })
}

/// The object as its type; if that fails, read again from the text, for the line of the mistake.
fn typed<T: DeserializeOwned>(value: &Value, text: Option<&str>) -> Result<T, Refusal> {
    let error = match T::deserialize(value) {
        Ok(object) => return Ok(object),
        Err(error) => error,
    };
    let Some(text) = text else {
        return Err(Refusal::Shape {
            line: None,
            message: error.to_string(),
        });
    };
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| {
        let (line, message) = describe(&error);
        Refusal::Shape {
            line: Some(line),
            message,
        }
    })
}

/// Line (from 0 on) and message of a parser's error, without the place that the message repeats.
fn describe(error: &serde_saphyr::Error) -> (u32, String) {
    let line = error.location().map_or(1, |location| location.line());
    let text = error.without_snippet().to_string();
    let message = text.lines().next().unwrap_or_default();
    let message = message.split(" at line ").next().unwrap_or(message);
    (
        u32::try_from(line.saturating_sub(1)).unwrap_or_default(),
        message.to_owned(),
    )
}

/// The first line (from 0 on) that says something.
fn first_line(text: &str) -> u32 {
    let says = |line: &str| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with('#') && line != "---"
    };
    text.lines()
        .position(says)
        .and_then(|line| u32::try_from(line).ok())
        .unwrap_or_default()
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() || field.is_empty() {
        format!("{path}{field}")
    } else {
        format!("{path}.{field}")
    }
}
