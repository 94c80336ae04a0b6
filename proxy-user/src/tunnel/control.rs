//! Questions about tunnels, and what they may be told: JSON over HTTP on a unix socket.

use std::io;
use std::path::Path;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::watch;

use super::metrics;
use super::service::Board;
use crate::api::socket::{Place, Socket};

#[derive(Deserialize)]
struct Of {
    of: Option<String>,
}

/// Serves until `stop` turns true.
pub async fn serve(
    listener: UnixListener,
    board: Arc<Board>,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let router = Router::new()
        .route(
            "/v1/tunnels",
            get(|State(board): State<Arc<Board>>| async move { Json(board.report()) }),
        )
        .route(
            "/metrics",
            get(|State(board): State<Arc<Board>>| async move {
                let text = metrics::render(&board.report());
                ([("content-type", "text/plain; version=0.0.4")], text)
            }),
        )
        .route("/v1/tunnels/reconnect", post(reconnect))
        .with_state(board);
    let stopped = async move {
        let _ = stop.wait_for(|stop| *stop).await;
    };
    axum::serve(listener, router)
        .with_graceful_shutdown(stopped)
        .await
}

async fn reconnect(State(board): State<Arc<Board>>, Query(of): Query<Of>) -> Response {
    let count = board.reconnect(of.of.as_deref());
    if count == 0 {
        let message = match of.of {
            Some(name) => format!("there is no tunnel {name:?}"),
            None => "there is no tunnel".to_owned(),
        };
        return (StatusCode::NOT_FOUND, Json(json!({"error": message}))).into_response();
    }
    Json(json!({"reconnecting": count})).into_response()
}

/// Makes the socket, for root alone, in place of one that nobody answers at.
pub(crate) fn listen(path: &Path) -> io::Result<(UnixListener, Place)> {
    Socket::bind(path).and_then(Socket::listen)
}
