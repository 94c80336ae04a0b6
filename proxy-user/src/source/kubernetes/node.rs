//! Nodes.

use k8s_openapi::api::core::v1::Node;
use serde::{Deserialize, Serialize};

use super::{FieldError, address, object_ref};
use crate::model::{Kind, ObjectRef};

/// The cluster autoscaler is about to delete the node (KEP-3836).
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// A checked Node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeObject {
    /// Its name.
    pub object: ObjectRef,
    /// What the state says of it.
    pub node: crate::model::Node,
}

impl NodeObject {
    /// Checks a Node.
    pub fn check(node: &Node) -> Result<Self, FieldError> {
        let object = object_ref(Kind::Node, &node.metadata)?;
        let listed = node
            .status
            .as_ref()
            .and_then(|status| status.addresses.as_deref());
        let mut internal = Vec::new();
        let mut external = Vec::new();
        for (i, entry) in listed.unwrap_or_default().iter().enumerate() {
            let field = format!("status.addresses[{i}].address");
            match entry.type_.as_str() {
                "InternalIP" => internal.push(address(&entry.address, &field)?),
                "ExternalIP" => external.push(address(&entry.address, &field)?),
                _ => {}
            }
        }
        let count = internal.len();
        internal.append(&mut external);
        let spec = node.spec.as_ref();
        let ranges = spec
            .and_then(|spec| spec.pod_cidrs.as_deref())
            .unwrap_or_default();
        let single = spec
            .and_then(|spec| spec.pod_cidr.as_ref())
            .filter(|_| ranges.is_empty());
        let mut pod_ranges = Vec::new();
        for (i, range) in ranges.iter().chain(single).enumerate() {
            pod_ranges.push(range.parse().map_err(|_| {
                let message = format!("{range:?} is not a range: write one as 10.0.1.0/24");
                FieldError::new(format!("spec.podCIDRs[{i}]"), message)
            })?);
        }
        let taints = spec.and_then(|spec| spec.taints.as_deref());
        let tainted = taints
            .unwrap_or_default()
            .iter()
            .any(|taint| taint.key == LEAVING_TAINT);
        Ok(Self {
            object,
            node: crate::model::Node {
                addresses: internal,
                internal: count,
                labels: node.metadata.labels.clone().unwrap_or_default(),
                pod_ranges,
                leaving: tainted || node.metadata.deletion_timestamp.is_some(),
            },
        })
    }
}
