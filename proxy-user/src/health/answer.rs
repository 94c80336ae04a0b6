//! What the pages say, field by field as kube-proxy (pkg/proxy/healthcheck).

use std::{collections::BTreeMap, time::SystemTime};

use serde::Serialize;

use crate::{daemon::Progress, model::ObjectRef};

/// Go's zero time, by which kube-proxy says "never".
const NEVER: &str = "0001-01-01T00:00:00Z";

/// `ProxyHealth`.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProxyHealth {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<&'static str, ProxierHealth>,
}

/// `ProxierHealth`: both families are served by the same rounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ProxierHealth {
    last_updated: String,
    healthy: bool,
}

impl ProxyHealth {
    /// What is said of this progress; `node_eligible` is what `/healthz` asks for besides. And whether
    /// the answer is good.
    pub(super) fn new(
        progress: &Progress,
        healthy: bool,
        node_eligible: Option<bool>,
        now: SystemTime,
    ) -> (Self, bool) {
        let good = healthy && node_eligible != Some(false);
        let updated = progress.last_updated().map(time);
        let status = updated.iter().flat_map(|updated| {
            let family = ProxierHealth {
                last_updated: updated.clone(),
                healthy,
            };
            [("IPv4", family.clone()), ("IPv6", family)]
        });
        let health = Self {
            status: status.collect(),
            // Of a proxy that is well, kube-proxy says "just now".
            last_updated: if good {
                time(now)
            } else {
                updated.unwrap_or_else(|| NEVER.to_owned())
            },
            current_time: time(now),
            node_eligible,
            healthy,
        };
        (health, good)
    }
}

fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(time).to_string()
}

/// What is said of a Service.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceHealth<'o> {
    service: ServiceName<'o>,
    pub(super) local_endpoints: usize,
    pub(super) service_proxy_healthy: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct ServiceName<'o> {
    namespace: &'o str,
    name: &'o str,
}

impl<'o> ServiceHealth<'o> {
    pub(super) fn new(service: &'o ObjectRef, endpoints: usize, healthy: bool) -> Self {
        Self {
            service: ServiceName {
                namespace: &service.namespace,
                name: &service.name,
            },
            local_endpoints: endpoints,
            service_proxy_healthy: healthy,
        }
    }

    pub(super) const fn is_good(&self) -> bool {
        self.local_endpoints != 0 && self.service_proxy_healthy
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::model::Kind;

    #[test]
    fn a_healthy_proxy_was_updated_just_now() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_hours(24);
        let progress = Progress::default();
        let (health, good) = ProxyHealth::new(&progress, true, Some(true), now);
        assert!(good);
        let at = "1970-01-02T00:00:00.000000000Z";
        assert_eq!(
            serde_json::to_value(&health).unwrap(),
            json!({
                "lastUpdated": at, "currentTime": at, "nodeEligible": true, "healthy": true,
            })
        );
        let (health, good) = ProxyHealth::new(&progress, false, None, now);
        assert!(!good);
        assert_eq!(
            serde_json::to_value(&health).unwrap(),
            json!({"lastUpdated": NEVER, "currentTime": at, "healthy": false})
        );
    }

    #[test]
    fn a_node_that_leaves_is_told_apart_from_a_proxy_that_is_ill() {
        let (health, good) =
            ProxyHealth::new(&Progress::default(), true, Some(false), SystemTime::now());
        assert!(!good);
        assert!(health.healthy);
        assert_eq!(health.last_updated, NEVER);
    }

    #[test]
    fn a_service_is_well_with_an_endpoint_here_and_a_proxy_that_is_well() {
        let object = ObjectRef {
            kind: Kind::Service,
            namespace: "demo".to_owned(),
            name: "web".to_owned(),
        };
        assert_eq!(
            serde_json::to_value(ServiceHealth::new(&object, 2, true)).unwrap(),
            json!({
                "service": {"namespace": "demo", "name": "web"},
                "localEndpoints": 2,
                "serviceProxyHealthy": true,
            })
        );
        for (endpoints, healthy, good) in [(1, true, true), (0, true, false), (1, false, false)] {
            let health = ServiceHealth::new(&object, endpoints, healthy);
            assert_eq!(health.is_good(), good, "{health:?}");
        }
    }
}
