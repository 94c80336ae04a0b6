//! The connection to the API server.

use std::{error::Error, path::PathBuf, sync::Arc, time::Duration};

use axum::http::{Request, Response, Uri};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt as _},
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
    runtime::watcher,
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::{BoxError, ServiceBuilder, service_fn};

use super::{Change, Health, KINDS, watch};
use crate::model::Kind;

/// A request that is not answered for so long has failed.
const ANSWER: Duration = Duration::from_secs(30);

/// A connection is made in this time.
const CONNECT: Duration = Duration::from_secs(10);

/// A peer that does not even acknowledge for so long is gone.
const DEAD: Duration = Duration::from_secs(30);

/// So often it is tried to connect with an access that can't be used.
const AGAIN: Duration = Duration::from_secs(5);

/// The name that the certificate of every API server has; an address of one may be missing there.
const SERVER_NAME: &str = "kubernetes.default.svc";

/// How the API server is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// None: as a pod of the cluster.
    pub kubeconfig: Option<PathBuf>,
    /// Another address than the one that the kubeconfig, or the environment of a pod, says.
    pub server: Option<String>,
}

/// Why the API server can't even be asked.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The kubeconfig.
    #[error(
        "source.kubeconfig = {:?}: {}; write the path of a kubeconfig whose current context this \
         daemon may use, or leave it out in a pod of the cluster",
        path.display().to_string(), explain(source)
    )]
    Kubeconfig {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        source: KubeconfigError,
    },
    /// The pod.
    #[error(
        "source.kubeconfig is not given, and this is no pod with a service account: {}; write \
         source.kubeconfig, or run it as a pod that mounts its token",
        explain(source)
    )]
    InCluster {
        /// What is missing.
        source: InClusterError,
    },
    /// TLS or authentication.
    #[error("the access to the API server can't be used: {}", explain(source))]
    Client {
        /// What is wrong.
        source: kube::Error,
    },
    /// The address.
    #[error("source.server = {server:?}: it is no URL; write one as \"https://192.0.2.1:6443\"")]
    Server {
        /// The address.
        server: String,
    },
}

impl Access {
    /// For status and messages.
    #[must_use]
    pub fn describe(&self) -> String {
        match (&self.server, &self.kubeconfig) {
            (Some(server), _) => server.clone(),
            (None, Some(path)) => format!("kubeconfig {}", path.display()),
            (None, None) => "of this pod's cluster".to_owned(),
        }
    }

    async fn config(&self) -> Result<Config, AccessError> {
        let mut config = if let Some(path) = &self.kubeconfig {
            let fail = |source| AccessError::Kubeconfig {
                path: path.clone(),
                source,
            };
            let kubeconfig = Kubeconfig::read_from(path).map_err(fail)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .map_err(fail)?
        } else {
            // With an address given, the environment's is not needed.
            let config = if self.server.is_some() {
                Config::incluster_dns()
            } else {
                Config::incluster_env()
            };
            let mut config = config.map_err(|source| AccessError::InCluster { source })?;
            config.tls_server_name = Some(SERVER_NAME.to_owned());
            config
        };
        if let Some(server) = &self.server {
            config.cluster_url = server.parse().map_err(|_| AccessError::Server {
                server: server.clone(),
            })?;
        }
        Ok(config)
    }

    pub(super) async fn client(&self, health: &Arc<Health>) -> Result<Client, AccessError> {
        client(&self.config().await?, Arc::clone(health))
            .map_err(|source| AccessError::Client { source })
    }

    /// Watches all kinds until nobody listens. An access that can't be used now may be later.
    pub async fn watch(&self, node: &str, health: &Arc<Health>, changes: &mpsc::Sender<Change>) {
        let client = loop {
            match self.client(health).await {
                Ok(client) => break client,
                Err(error) => {
                    for kind in KINDS {
                        health.failed(kind, &error.to_string());
                    }
                }
            }
            tokio::select! {
                () = sleep(AGAIN) => {}
                () = changes.closed() => return,
            }
        };
        let node: Arc<str> = node.into();
        let mut kinds = JoinSet::new();
        // One thread each: reading a long list takes time.
        kinds.spawn(watch::<Node>(
            client.clone(),
            Arc::clone(&node),
            Arc::clone(health),
            changes.clone(),
        ));
        kinds.spawn(watch::<Service>(
            client.clone(),
            Arc::clone(&node),
            Arc::clone(health),
            changes.clone(),
        ));
        kinds.spawn(watch::<EndpointSlice>(
            client.clone(),
            Arc::clone(&node),
            Arc::clone(health),
            changes.clone(),
        ));
        kinds.spawn(watch::<Pod>(
            client,
            node,
            Arc::clone(health),
            changes.clone(),
        ));
        kinds.join_all().await;
    }
}

/// A client that notices peers that are gone, and tells the health of each request.
fn client(config: &Config, health: Arc<Health>) -> Result<Client, kube::Error> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_keepalive(Some(DEAD / 3));
    connector.set_keepalive_interval(Some(DEAD / 6));
    connector.set_keepalive_retries(Some(4));
    connector.set_tcp_user_timeout(Some(DEAD));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let http: legacy::Client<_, Body> =
        legacy::Client::builder(TokioExecutor::new()).build(connector);
    let answer = move |request: Request<Body>| {
        let (http, health) = (http.clone(), Arc::clone(&health));
        async move {
            let kind = kind(request.uri());
            let Ok(response) = timeout(ANSWER, http.request(request)).await else {
                return Err(BoxError::from("no answer in 30 s"));
            };
            let response: Response<_> = response?;
            if let Some(kind) = kind.filter(|_| response.status().is_success()) {
                health.answered(kind);
            }
            Ok(response)
        }
    };
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .service(service_fn(answer));
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// What is asked for.
fn kind(uri: &Uri) -> Option<Kind> {
    match uri.path().rsplit('/').next()? {
        "nodes" => Some(Kind::Node),
        "services" => Some(Kind::Service),
        "endpointslices" => Some(Kind::EndpointSlice),
        "pods" => Some(Kind::Pod),
        _ => None,
    }
}

/// An error with its causes, each once, and what to do about those that can be told.
pub(super) fn explain(error: &(dyn Error + 'static)) -> String {
    if let Some(status) = status(error) {
        let remedy = match status.code {
            401 => " (the token or certificate is not accepted: write another one)",
            403 => " (docs/reference/kubernetes.md lists the rights that are needed)",
            _ => "",
        };
        return format!("{} {}{remedy}", status.code, status.message);
    }
    let mut text = String::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let own = error.to_string();
        // Some errors repeat their cause, others don't.
        if text.is_empty() {
            text = own;
        } else if !text.contains(&own) {
            text = format!("{text}: {own}");
        }
        cause = error.source();
    }
    text
}

/// What the API server itself said.
fn status<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e kube::core::Status> {
    match error.downcast_ref::<watcher::Error>() {
        Some(
            watcher::Error::InitialListFailed(kube::Error::Api(status))
            | watcher::Error::WatchStartFailed(kube::Error::Api(status))
            | watcher::Error::WatchFailed(kube::Error::Api(status))
            | watcher::Error::WatchError(status),
        ) => Some(status),
        _ => None,
    }
}
