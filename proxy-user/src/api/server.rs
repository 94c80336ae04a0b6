//! Answers questions on a unix socket.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path as PathParameter, Query as QueryParameters, State, rejection::QueryRejection},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;
use serde_json::json;
use tokio::{sync::watch, task::spawn_blocking, time::timeout};

use super::socket::Socket;
use super::{Query, QueryError, answer, status::status};
use crate::{
    config::Config, daemon::View, dataplane::Ticks, explain::Packet, telemetry::metrics::render,
};

/// An answer that takes longer is given up.
const LIMIT: Duration = Duration::from_secs(30);

#[derive(Clone)]
struct Server {
    view: Arc<View>,
    /// None: the clock can't be read, and connections show no idle time.
    ticks: Option<Arc<Ticks>>,
}

/// Serves until `stop` turns true. Without a socket the daemon does its work all the same.
pub async fn serve(view: Arc<View>, config: Arc<Config>, mut stop: watch::Receiver<bool>) {
    let opened = Socket::bind(&config.socket).and_then(Socket::listen);
    let (listener, socket) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let socket = config.socket.display();
            tracing::error!(%socket, %error, "no API: the socket cannot be made");
            // The daemon stops when its server ends.
            let _ = stop.wait_for(|stop| *stop).await;
            return;
        }
    };
    let ticks = Ticks::load().inspect_err(|error| {
        tracing::warn!(%error, "the datapath's clock cannot be read: idle times are not shown");
    });
    let server = Server {
        view,
        ticks: ticks.ok().map(Arc::new),
    };
    let stopped = async move {
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let ended = axum::serve(listener, router(server))
        .with_graceful_shutdown(stopped)
        .await;
    if let Err(error) = ended {
        tracing::error!(%error, "the API has ended");
    }
    socket.remove();
}

#[derive(Deserialize)]
struct Of {
    of: Option<String>,
}

#[derive(Deserialize)]
struct Key {
    key: Option<String>,
}

fn router(server: Server) -> Router {
    let of = |query: fn(Option<String>) -> Query| {
        get(
            move |State(server): State<Server>, QueryParameters(of): QueryParameters<Of>| {
                server.ask(query(of.of))
            },
        )
    };
    Router::new()
        .route(
            "/v1/status",
            get(|State(server): State<Server>| async move {
                Json(status(&server.view)).into_response()
            }),
        )
        .route(
            "/metrics",
            get(|State(server): State<Server>| metrics(server.view)),
        )
        .route("/v1/services", of(Query::Services))
        .route("/v1/backends", of(Query::Backends))
        .route("/v1/flows", of(Query::Flows))
        .route("/v1/routes", of(Query::Routes))
        .route("/v1/drops", of(Query::Drops))
        .route(
            "/v1/maps",
            get(|State(server): State<Server>| server.ask(Query::Maps)),
        )
        .route(
            "/v1/maps/{map}",
            get(
                |State(server): State<Server>,
                 PathParameter(map): PathParameter<String>,
                 QueryParameters(key): QueryParameters<Key>| {
                    server.ask(Query::Records(map, key.key))
                },
            ),
        )
        .route(
            "/v1/explain",
            get(
                |State(server): State<Server>,
                 packet: Result<QueryParameters<Packet>, QueryRejection>| async {
                    match packet {
                        Ok(QueryParameters(packet)) => server.ask(Query::Explain(packet)).await,
                        Err(error) => refuse(StatusCode::BAD_REQUEST, &error.body_text()),
                    }
                },
            ),
        )
        .fallback(|uri: Uri| async move {
            let message = format!(
                "there is no {}; docs/reference/api.md lists all",
                uri.path()
            );
            refuse(StatusCode::NOT_FOUND, &message)
        })
        .method_not_allowed_fallback(|| async {
            refuse(StatusCode::METHOD_NOT_ALLOWED, "all requests are GET")
        })
        .with_state(server)
}

/// Answers with the numbers of a daemon.
pub(crate) async fn metrics(view: Arc<View>) -> Response {
    match spawn_blocking(move || render(&view)).await {
        Ok(Ok(text)) => ([("content-type", "text/plain; version=0.0.4")], text).into_response(),
        Ok(Err(error)) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

impl Server {
    async fn ask(self, query: Query) -> Response {
        let work = spawn_blocking(move || {
            let now = self
                .ticks
                .as_ref()
                .and_then(|ticks| ticks.now().ok())
                .unwrap_or_default();
            let totals = Arc::clone(&self.view.current().totals);
            answer(&query, self.view.maps(), Some(&totals), now)
        });
        match timeout(LIMIT, work).await {
            Ok(Ok(Ok(value))) => Json(value).into_response(),
            Ok(Ok(Err(error))) => {
                let code = match error {
                    QueryError::NotFound(_) => StatusCode::NOT_FOUND,
                    QueryError::Invalid(_) => StatusCode::BAD_REQUEST,
                    _ => StatusCode::INTERNAL_SERVER_ERROR,
                };
                refuse(code, &error.to_string())
            }
            Ok(Err(error)) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            Err(_) => refuse(StatusCode::GATEWAY_TIMEOUT, "the answer took too long"),
        }
    }
}

fn refuse(code: StatusCode, message: &str) -> Response {
    (code, Json(json!({"error": message}))).into_response()
}
