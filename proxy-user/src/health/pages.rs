//! What is answered where.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use axum::{
    Json, Router,
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};

use super::{
    Page,
    answer::{ProxyHealth, ServiceHealth},
};
use crate::{api, daemon::View, model::ObjectRef};

/// What `/proxyMode` says: `iptables`, `ipvs` and `nftables` are kube-proxy's.
const PROXY_MODE: &str = "causeway";

/// By what a load balancer shares clients among nodes.
const WEIGHT: &str = "X-Load-Balancing-Endpoint-Weight";

/// kube-proxy says so with every answer.
const AS_IT_IS: (&str, &str) = ("X-Content-Type-Options", "nosniff");

/// The pages of one place.
pub(super) fn router(view: &Arc<View>, page: &Page) -> Router {
    let view = || Arc::clone(view);
    match page.clone() {
        Page::Health => {
            let (ready, live) = (view(), view());
            Router::new()
                .route("/healthz", get(move || async move { healthz(&ready) }))
                .route("/livez", get(move || async move { livez(&live) }))
        }
        Page::Metrics => {
            let view = view();
            let mode = ([AS_IT_IS], PROXY_MODE);
            Router::new()
                .route("/proxyMode", get(move || async move { mode }))
                .route("/metrics", get(move || api::metrics(view)))
        }
        // Whatever the path, as for kube-proxy: load balancers are configured in many ways.
        Page::Service { object, v4 } => {
            let view = view();
            Router::new().fallback(get(move || async move { service(&view, &object, v4) }))
        }
    }
}

const fn code(good: bool) -> StatusCode {
    if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

fn healthz(view: &View) -> Response {
    let progress = view.progress();
    let (healthy, eligible) = (
        progress.is_healthy(Instant::now()),
        progress.is_node_eligible(),
    );
    let (health, good) = ProxyHealth::new(&progress, healthy, Some(eligible), SystemTime::now());
    view.probes().healthz.count(good);
    (code(good), [AS_IT_IS], Json(health)).into_response()
}

fn livez(view: &View) -> Response {
    let progress = view.progress();
    let healthy = progress.is_healthy(Instant::now());
    let (health, good) = ProxyHealth::new(&progress, healthy, None, SystemTime::now());
    view.probes().livez.count(good);
    (code(good), [AS_IT_IS], Json(health)).into_response()
}

fn service(view: &View, object: &ObjectRef, v4: bool) -> Response {
    let current = view.current();
    let state = &current.snapshot.state;
    let endpoints = state.local_endpoints(object, &current.config.node, v4);
    let healthy = view.progress().is_healthy(Instant::now());
    let health = ServiceHealth::new(object, endpoints, healthy);
    let weight = [(WEIGHT, health.local_endpoints.to_string())];
    (code(health.is_good()), [AS_IT_IS], weight, Json(health)).into_response()
}
