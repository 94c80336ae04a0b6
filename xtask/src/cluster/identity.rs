//! Who is who in the cluster: certificates (made by `openssl`), tokens, and the kubeconfigs that
//! carry them. The roles behind the names are those that every API server makes by itself.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::layout::{self, API_SERVICE, MOST_NODES, Place};
use crate::process;

/// Someone who speaks to the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Person {
    /// May do everything.
    Admin,
    /// kube-controller-manager.
    Controllers,
    /// kube-scheduler.
    Scheduler,
    /// kube-proxy.
    Proxy,
    /// The kubelet of a node.
    Node(u8),
}

impl Person {
    fn all() -> impl Iterator<Item = Self> {
        [Self::Admin, Self::Controllers, Self::Scheduler, Self::Proxy]
            .into_iter()
            .chain((1..=MOST_NODES).map(Self::Node))
    }

    fn user(self) -> String {
        match self {
            Self::Admin => "admin".to_owned(),
            Self::Controllers => "system:kube-controller-manager".to_owned(),
            Self::Scheduler => "system:kube-scheduler".to_owned(),
            Self::Proxy => "system:kube-proxy".to_owned(),
            Self::Node(number) => format!("system:node:{}", Place::Node(number)),
        }
    }

    fn group(self) -> &'static str {
        match self {
            Self::Admin => "system:masters",
            Self::Node(_) => "system:nodes",
            _ => "",
        }
    }
}

/// The folder with all of it.
#[derive(Clone, Debug)]
pub(crate) struct Identities(PathBuf);

impl Identities {
    /// Makes everything.
    pub(crate) fn make() -> Result<Self> {
        let folder = Self::folder()?;
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let made = Self(folder);
        made.authority()?;
        let server = ["127.0.0.1", &Place::Control.v4().to_string()]
            .into_iter()
            .chain(API_SERVICE)
            .map(|address| format!("IP:{address}"))
            .chain(
                ["", ".default", ".default.svc", ".default.svc.cluster.local"]
                    .map(|end| format!("DNS:kubernetes{end}")),
            )
            .collect::<Vec<_>>()
            .join(",");
        made.certificate(
            "api-server",
            "/CN=kube-apiserver",
            &format!("subjectAltName={server}"),
        )?;
        let client = "extendedKeyUsage=clientAuth";
        made.certificate("front-proxy", "/CN=front-proxy", client)?;
        made.certificate(
            "kubelet-client",
            "/O=system:masters/CN=kube-apiserver-kubelet-client",
            client,
        )?;
        made.openssl(
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 -out accounts.key",
        )?;
        made.openssl("pkey -in accounts.key -pubout -out accounts.pub")?;
        made.tokens()?;
        Ok(made)
    }

    fn folder() -> Result<PathBuf> {
        Ok(layout::folder()?.join("identities"))
    }

    /// The administrator's kubeconfig of the cluster that is up.
    pub(crate) fn admin() -> Result<PathBuf> {
        let path = Self(Self::folder()?).kubeconfig(Person::Admin);
        if !path.is_file() {
            anyhow::bail!("no cluster is up: `cargo xtask cluster up`");
        }
        Ok(path)
    }

    /// A file: `authority.crt`, `api-server.{crt,key}`, `front-proxy.{crt,key}`,
    /// `kubelet-client.{crt,key}`, `accounts.{key,pub}`, `tokens.csv`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// With what this one speaks to the API server.
    pub(crate) fn kubeconfig(&self, who: Person) -> PathBuf {
        self.0
            .join(format!("{}.kubeconfig", who.user().replace(':', "-")))
    }

    fn authority(&self) -> Result<()> {
        self.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 \
             -subj /CN=causeway-cluster -keyout authority.key -out authority.crt",
        )
    }

    fn certificate(&self, name: &str, subject: &str, extension: &str) -> Result<()> {
        fs::write(self.path(&format!("{name}.ext")), extension)
            .context("cannot write a certificate's extensions")?;
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj {subject} \
             -keyout {name}.key -out {name}.csr"
        ))?;
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA authority.crt -CAkey authority.key -CAcreateserial \
             -days 30 -extfile {name}.ext -out {name}.crt"
        ))
    }

    fn tokens(&self) -> Result<()> {
        let mut rows = String::new();
        for who in Person::all() {
            let token = process::quiet(process::command("openssl").args(["rand", "-hex", "16"]))?;
            let (user, group) = (who.user(), who.group());
            let _infallible = writeln!(rows, "{},{user},{user},\"{group}\"", token.trim());
            write_kubeconfig(
                &self.kubeconfig(who),
                &self.path("authority.crt"),
                token.trim(),
            )?;
        }
        fs::write(self.path("tokens.csv"), rows).context("cannot write the tokens")
    }

    fn openssl(&self, arguments: &str) -> Result<()> {
        process::quiet(
            process::command("openssl")
                .current_dir(&self.0)
                .args(arguments.split_whitespace()),
        )
        .map(drop)
    }
}

/// JSON is YAML.
fn write_kubeconfig(path: &Path, authority: &Path, token: &str) -> Result<()> {
    let name = "causeway-cluster";
    let text = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [{ "name": name, "cluster": {
            "server": layout::api_server(),
            "certificate-authority": authority,
        } }],
        "users": [{ "name": name, "user": { "token": token } }],
        "contexts": [{ "name": name, "context": { "cluster": name, "user": name } }],
    });
    fs::write(path, text.to_string()).with_context(|| format!("cannot write {}", path.display()))
}
