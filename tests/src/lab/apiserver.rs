//! etcd and an API server of Kubernetes, with ports and files of their own, where the calling thread is:
//! in its network namespace. No nodes, no controllers.
//!
//! The variable [`PROGRAM`] names the program with the API server; etcd is Debian's.

use std::{
    env,
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use kube::{
    Api, Client, Config,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
    },
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;

/// The environment's variable with the path of the program whose first argument is `kube-apiserver`
/// or `kube-proxy`.
pub const PROGRAM: &str = "CAUSEWAY_KUBERNETES";

/// Something that a user may do.
#[derive(Clone, Debug)]
pub struct Right {
    /// API group.
    pub group: String,
    /// Resource, in the plural.
    pub resource: String,
    /// What may be done to it.
    pub verb: String,
}

/// The user with all rights of the source.
const USER: &str = "causeway";

/// Who kube-proxy is; every API server gives it its rights by itself.
const PROXY: &str = "system:kube-proxy";

/// What `default/kubernetes` leads to.
const ADVERTISED: &str = "192.0.2.1";

/// Both, ended when this is dropped.
#[derive(Debug)]
pub struct Servers {
    folder: TempDir,
    program: PathBuf,
    etcd: Child,
    api: Option<Child>,
    etcd_port: u16,
    address: IpAddr,
    port: u16,
    admin: OnceCell<Admin>,
}

#[derive(Clone)]
struct Admin(Client);

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admin")
    }
}

/// The rights that a daemon with the source `kubernetes` needs, as the documentation says.
pub fn documented_rights() -> Result<Vec<Right>> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/kubernetes.md");
    let page = fs::read_to_string(page).context("reading what rights are needed")?;
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let mut rights = Vec::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let plain = |cell: &str| cell.replace(['`', '"'], "");
        let [_, group, resource, verbs, ..] = cells.as_slice() else {
            continue;
        };
        for verb in plain(verbs).split(", ") {
            rights.push(Right {
                group: plain(group),
                resource: plain(resource),
                verb: verb.to_owned(),
            });
        }
    }
    ensure!(rights.len() == 9, "{rights:?}");
    Ok(rights)
}

/// The program with the API server.
pub fn program() -> Result<PathBuf> {
    let program = env::var_os(PROGRAM).with_context(|| {
        format!(
            "{PROGRAM} does not name the program with the API server: run this by \
             `cargo xtask`, which builds it"
        )
    })?;
    Ok(program.into())
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no port is free")?;
    Ok(listener.local_addr()?.port())
}

/// Objects of a text, without empty documents.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    for document in format!("\n{text}").split("\n---") {
        let value: Value = serde_saphyr::from_str(document)?;
        if !value.is_null() {
            found.push(value);
        }
    }
    Ok(found)
}

impl Servers {
    /// Starts both on the loopback address, and makes users with all of these rights, and with all but
    /// one.
    pub async fn start(rights: &[Right]) -> Result<Self> {
        let servers = Self::start_at(Ipv4Addr::LOCALHOST.into(), rights).await?;
        for number in 0..rights.len() {
            servers
                .allow(&without(number), rights, Some(number))
                .await?;
        }
        Ok(servers)
    }

    /// Starts both, the API server at an address of this host, and makes the user with these rights.
    pub async fn start_at(address: IpAddr, rights: &[Right]) -> Result<Self> {
        let program = program()?;
        let folder = tempfile::tempdir()?;
        let (etcd_port, peer_port, port) = (free_port()?, free_port()?, free_port()?);
        let url = |port| format!("http://127.0.0.1:{port}");
        let mut etcd = Command::new("etcd");
        etcd.arg("--data-dir").arg(folder.path().join("etcd"));
        etcd.arg("--unsafe-no-fsync");
        for (flag, port) in [
            ("listen-client-urls", etcd_port),
            ("advertise-client-urls", etcd_port),
            ("listen-peer-urls", peer_port),
        ] {
            etcd.arg(format!("--{flag}={}", url(port)));
        }
        let etcd = spawn(&mut etcd, &folder.path().join("etcd.log"))
            .context("etcd cannot be started: install etcd-server")?;
        let mut servers = Self {
            folder,
            program,
            etcd,
            api: None,
            etcd_port,
            address,
            port,
            admin: OnceCell::new(),
        };
        servers.identities(rights.len())?;
        servers.start_api().await?;
        servers.allow(USER, rights, None).await?;
        Ok(servers)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Tokens, kubeconfigs with them, and the key of service accounts.
    fn identities(&self, rights: usize) -> Result<()> {
        let mut users = vec![("admin".to_owned(), "system:masters")];
        users.extend([USER, PROXY].map(|user| (user.to_owned(), "")));
        users.extend((0..rights).map(|number| (without(number), "")));
        let row =
            |(user, group): &(String, &str)| format!("token-{user},{user},{user},\"{group}\"\n");
        fs::write(
            self.path("tokens.csv"),
            users.iter().map(row).collect::<String>(),
        )?;
        for (user, _) in &users {
            let config = json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "test",
                "clusters": [{"name": "test", "cluster": {
                    "server": format!("https://{}:{}", self.address, self.port),
                    "certificate-authority": self.path("certificates/apiserver.crt"),
                }}],
                "users": [{"name": user, "user": {"token": format!("token-{user}")}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            });
            fs::write(self.kubeconfig(user), config.to_string())?;
        }
        let status = Command::new("openssl")
            .args(["genpkey", "-algorithm", "RSA", "-out"])
            .arg(self.path("accounts.key"))
            .stderr(Stdio::null())
            .status()
            .context("openssl cannot be started")?;
        ensure!(status.success(), "openssl makes no key");
        Ok(())
    }

    /// Starts the API server, and waits until it answers and has made its own objects.
    pub async fn start_api(&mut self) -> Result<()> {
        let mut api = Command::new(&self.program);
        api.arg("kube-apiserver");
        for (flag, value) in [
            (
                "etcd-servers",
                format!("http://127.0.0.1:{}", self.etcd_port),
            ),
            ("secure-port", self.port.to_string()),
            ("bind-address", self.address.to_string()),
            ("advertise-address", ADVERTISED.to_owned()),
            (
                "service-cluster-ip-range",
                "10.96.0.0/16,fd00:96::/112".to_owned(),
            ),
            ("authorization-mode", "RBAC".to_owned()),
            ("disable-admission-plugins", "ServiceAccount".to_owned()),
            (
                "service-account-issuer",
                "https://kubernetes.default.svc".to_owned(),
            ),
        ] {
            api.arg(format!("--{flag}={value}"));
        }
        for (flag, file) in [
            ("cert-dir", "certificates"),
            ("token-auth-file", "tokens.csv"),
            ("service-account-key-file", "accounts.key"),
            ("service-account-signing-key-file", "accounts.key"),
        ] {
            api.arg(format!("--{flag}={}", self.path(file).display()));
        }
        let log = self.path("apiserver.log");
        self.api = Some(spawn(&mut api, &log).context("the API server cannot be started")?);
        let end = Instant::now() + Duration::from_secs(90);
        loop {
            let error = match self.ready().await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if Instant::now() > end {
                let log = fs::read_to_string(&log).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(20).collect();
                bail!("the API server is not ready: {error:#}; {last:#?}");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn ready(&self) -> Result<()> {
        let client = self.admin().await?;
        client.apiserver_version().await?;
        // Its own roles come after it answers, and everything else before.
        let roles = self.api("ClusterRole", "").await?;
        roles.get("system:node-proxier").await?;
        // It makes its own Service some time after.
        self.get("EndpointSlice", "default", "kubernetes").await?;
        Ok(())
    }

    /// As it ends when its machine does.
    pub fn kill_api(&mut self) {
        if let Some(mut api) = self.api.take() {
            end(&mut api);
        }
    }

    /// Stops etcd where it is, or lets it go on.
    pub fn freeze_etcd(&self, freeze: bool) -> Result<()> {
        let signal = if freeze {
            Signal::SIGSTOP
        } else {
            Signal::SIGCONT
        };
        kill(Pid::from_raw(i32::try_from(self.etcd.id())?), signal)?;
        Ok(())
    }

    fn kubeconfig(&self, user: &str) -> PathBuf {
        self.path(&format!("{user}.kubeconfig"))
    }

    /// kube-proxy.
    #[must_use]
    pub fn proxy(&self) -> PathBuf {
        self.kubeconfig(PROXY)
    }

    /// The user with all rights.
    #[must_use]
    pub fn user(&self) -> PathBuf {
        self.kubeconfig(USER)
    }

    /// One who lacks one of them.
    #[must_use]
    pub fn user_without(&self, number: usize) -> PathBuf {
        self.kubeconfig(&without(number))
    }

    /// A client that may do everything.
    pub async fn client(&self) -> Result<Client> {
        self.admin().await
    }

    async fn admin(&self) -> Result<Client> {
        let client = self.admin.get_or_try_init(|| async {
            let kubeconfig = Kubeconfig::read_from(self.kubeconfig("admin"))?;
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
            anyhow::Ok(Admin(Client::try_from(config)?))
        });
        Ok(client.await?.0.clone())
    }

    async fn api(&self, kind: &str, namespace: &str) -> Result<Api<DynamicObject>> {
        let (group, plural) = match kind {
            "EndpointSlice" => ("discovery.k8s.io", "endpointslices"),
            "ClusterRole" => ("rbac.authorization.k8s.io", "clusterroles"),
            "ClusterRoleBinding" => ("rbac.authorization.k8s.io", "clusterrolebindings"),
            "Service" => ("", "services"),
            "Node" => ("", "nodes"),
            "Namespace" => ("", "namespaces"),
            "Pod" => ("", "pods"),
            _ => bail!("no test has used {kind} yet"),
        };
        let resource =
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural);
        let client = self.admin().await?;
        Ok(match kind {
            "Service" | "Pod" | "EndpointSlice" => {
                Api::namespaced_with(client, namespace, &resource)
            }
            _ => Api::all_with(client, &resource),
        })
    }

    async fn of(&self, object: &Value) -> Result<(Api<DynamicObject>, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let meta = &object["metadata"];
        let api = self
            .api(&text(&object["kind"]), &text(&meta["namespace"]))
            .await?;
        Ok((api, text(&meta["name"])))
    }

    /// Writes an object, with its status if it has one.
    pub async fn apply(&self, object: &Value) -> Result<()> {
        let (api, name) = self.of(object).await?;
        let mut main = object.clone();
        let fields = main.as_object_mut().context("an object has fields")?;
        let status = fields.remove("status");
        let own = PatchParams::apply("test").force();
        let written = api.patch(&name, &own, &Patch::Apply(&main)).await;
        written.with_context(|| format!("{object}"))?;
        if let Some(status) = status {
            let status = json!({"status": status});
            let params = PatchParams::default();
            api.patch_status(&name, &params, &Patch::Merge(&status))
                .await?;
        }
        Ok(())
    }

    /// Writes all objects of a directory of manifests.
    pub async fn apply_directory(&self, folder: &Path) -> Result<()> {
        let files = fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
        let mut files = files.collect::<Result<Vec<_>>>()?;
        files.sort();
        for file in files {
            for object in documents(&fs::read_to_string(file)?)? {
                self.apply(&object).await?;
            }
        }
        Ok(())
    }

    /// Reads an object.
    pub async fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Value> {
        let object = self.api(kind, namespace).await?.get(name).await?;
        Ok(serde_json::to_value(object)?)
    }

    /// Deletes an object.
    pub async fn delete(&self, object: &Value) -> Result<()> {
        let (api, name) = self.of(object).await?;
        let _ = api.delete(&name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Deletes all objects of a kind in a namespace that have a label.
    pub async fn delete_labelled(&self, kind: &str, namespace: &str, label: &str) -> Result<()> {
        let api = self.api(kind, namespace).await?;
        let which = ListParams::default().labels(label);
        let how = DeleteParams::default();
        let _ = api.delete_collection(&how, &which).await?;
        Ok(())
    }

    async fn allow(&self, user: &str, rights: &[Right], missing: Option<usize>) -> Result<()> {
        let rights = rights
            .iter()
            .enumerate()
            .filter(|(number, _)| missing != Some(*number));
        let rules: Vec<Value> = rights
            .map(
                |(
                    _,
                    Right {
                        group,
                        resource,
                        verb,
                    },
                )| {
                    json!({"apiGroups": [group], "resources": [resource], "verbs": [verb]})
                },
            )
            .collect();
        let version = "rbac.authorization.k8s.io/v1";
        self.apply(&json!({
            "apiVersion": version, "kind": "ClusterRole", "metadata": {"name": user}, "rules": rules,
        }))
        .await?;
        self.apply(&json!({
            "apiVersion": version, "kind": "ClusterRoleBinding", "metadata": {"name": user},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        }))
        .await
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.kill_api();
        end(&mut self.etcd);
    }
}

fn without(number: usize) -> String {
    format!("without-{number}")
}

fn spawn(command: &mut Command, log: &Path) -> Result<Child> {
    let log = File::options().append(true).create(true).open(log)?;
    let child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    Ok(child)
}

fn end(child: &mut Child) {
    // It may have ended by itself.
    drop(child.kill());
    drop(child.wait());
}
