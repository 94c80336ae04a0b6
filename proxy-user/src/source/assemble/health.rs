//! Health checks of Services: one for each port.

use std::collections::btree_map::Entry;

use crate::{
    model::{Frontend, HealthCheck, Notice, Protocol, Severity, State},
    source::kubernetes::ServiceObject,
};

/// The field that all remarks are about.
const FIELD: &str = "spec.healthCheckNodePort";

/// Gives each port to the oldest Service that asks for it, then by name.
pub(super) fn add_checks(
    services: &[&ServiceObject],
    state: &mut State,
    notices: &mut Vec<Notice>,
) {
    let mut asking: Vec<(&ServiceObject, u16)> = services
        .iter()
        .filter(|service| service.unproxied.is_none())
        .filter_map(|service| Some((*service, service.health_check?)))
        .collect();
    asking.sort_by_key(|(service, _)| (service.created.unwrap_or(i64::MAX), &service.object));
    for (service, port) in asking {
        match state.health_checks.entry(port) {
            Entry::Vacant(entry) => {
                entry.insert(HealthCheck {
                    object: service.object.clone(),
                    families: service.node_port_families,
                });
            }
            Entry::Occupied(entry) => {
                let message = format!(
                    "{port} is already the health check of {}, which is older or comes first: not \
                     served here; give one of the two another port",
                    entry.get().object
                );
                notices.push(Notice::new(
                    Severity::Error,
                    &service.object,
                    FIELD,
                    message,
                ));
            }
        }
    }
    hidden(state, notices);
}

/// What comes to a node port never comes to the node's own stack.
fn hidden(state: &State, notices: &mut Vec<Notice>) {
    if state.health_checks.is_empty() {
        return;
    }
    for port in state.services.values() {
        for frontend in &port.frontends {
            let Frontend::NodePort { port: number, .. } = frontend else {
                continue;
            };
            if port.protocol == Protocol::Tcp
                && let Some(check) = state.health_checks.get(number)
            {
                let message = format!(
                    "{number} is also a node port of {} ({}), which gets what comes to it: give \
                     one of the two another port",
                    port.name, port.object
                );
                notices.push(Notice::new(Severity::Error, &check.object, FIELD, message));
            }
        }
    }
}
