//! Asks a daemon.

use std::{io, path::Path, time::Duration};

use http_body_util::{BodyExt, Empty};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::UnixStream, time::timeout};

/// A daemon that takes longer is taken to hang.
const LIMIT: Duration = Duration::from_secs(35);

/// Why a daemon has not answered.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no daemon answers at {socket}: {source}")]
    NoDaemon {
        /// The socket.
        socket: String,
        /// Why.
        source: io::Error,
    },
    /// It has not answered in time.
    #[error("the daemon has not answered within {} s", LIMIT.as_secs())]
    TimedOut,
    /// The connection broke.
    #[error("the connection to the daemon broke: {0}")]
    Broken(#[from] hyper::Error),
    /// The answer isn't one of this API.
    #[error("the daemon's answer cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// The request can't be made.
    #[error("the question cannot be asked: {0}")]
    Request(#[from] hyper::http::Error),
    /// It isn't there.
    #[error("{0}")]
    NotFound(String),
    /// The question makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// It refused.
    #[error("{0}")]
    Refused(String),
}

/// A daemon's socket.
#[derive(Clone, Debug)]
pub struct Client<'p> {
    socket: &'p Path,
}

impl<'p> Client<'p> {
    /// The daemon that listens there.
    #[must_use]
    pub const fn new(socket: &'p Path) -> Self {
        Self { socket }
    }

    /// Asks for a path of the API.
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        timeout(LIMIT, self.exchange(Method::GET, path))
            .await
            .map_err(|_| ClientError::TimedOut)?
    }

    /// Asks for something to be done.
    pub async fn post(&self, path: &str) -> Result<Value, ClientError> {
        timeout(LIMIT, self.exchange(Method::POST, path))
            .await
            .map_err(|_| ClientError::TimedOut)?
    }

    async fn exchange(&self, method: Method, path: &str) -> Result<Value, ClientError> {
        let no_daemon = |source| ClientError::NoDaemon {
            socket: self.socket.display().to_string(),
            source,
        };
        let stream = UnixStream::connect(self.socket).await.map_err(no_daemon)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "causeway")
            .body(Empty::<Bytes>::new())?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let code = response.status();
            Ok::<_, hyper::Error>((code, response.into_body().collect().await?.to_bytes()))
        };
        let (code, body) = tokio::select! {
            done = exchange => done?,
            ended = connection => {
                ended?;
                return Err(ClientError::Refused("the daemon has hung up".to_owned()));
            }
        };
        let value: Value = serde_json::from_slice(&body)?;
        if code.is_success() {
            return Ok(value);
        }
        let message = value
            .get("error")
            .and_then(Value::as_str)
            .unwrap_or("no reason given");
        Err(match code {
            StatusCode::NOT_FOUND => ClientError::NotFound(message.to_owned()),
            StatusCode::BAD_REQUEST => ClientError::Invalid(message.to_owned()),
            _ => ClientError::Refused(message.to_owned()),
        })
    }
}
