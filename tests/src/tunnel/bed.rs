//! A world with keys and manifests for a return proxy, and Causeway's two ends.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::lab::{
    cluster::binary,
    layout::{self, Family, Layout},
    namespace::Namespace,
    process::Process,
    world::World,
};

/// Everything may take so long on a machine that has other work to do.
pub const LIMIT: Duration = Duration::from_secs(40);

/// The port of SSH on the node.
pub const SSH: u16 = 2222;

/// The node's port of HTTPS.
pub const HTTPS: u16 = 37_140;

/// The node's port of AMQP.
pub const AMQP: u16 = 37_141;

/// A world for a return proxy. Programs that are started belong to whoever starts them, and end before
/// this is dropped.
#[derive(Debug)]
pub struct Bed {
    world: World,
    causeway: PathBuf,
}

/// What is said of the return proxy in the manifests.
#[derive(Clone, Debug)]
pub struct Object {
    /// Nodes with the label.
    pub labelled: Vec<u8>,
    /// The user on the node.
    pub user: String,
    /// The private key; relative to the world's directory.
    pub key: String,
    /// More lines of `spec`, without indentation.
    pub more: String,
    /// Whether the node's end is Causeway's.
    pub endpoint: bool,
}

impl Default for Object {
    fn default() -> Self {
        Self {
            labelled: vec![1],
            user: "cyclecloud".to_owned(),
            key: "key".to_owned(),
            more: String::new(),
            endpoint: true,
        }
    }
}

impl Object {
    /// For a node with OpenSSH, where users are those of the system.
    #[must_use]
    pub fn openssh() -> Self {
        Self {
            user: "root".to_owned(),
            endpoint: false,
            ..Self::default()
        }
    }

    /// With more lines of `spec`.
    #[must_use]
    pub fn with(mut self, more: &str) -> Self {
        self.more.push_str(more);
        self.more.push('\n');
        self
    }
}

impl Bed {
    /// Makes a world with the keys `key`, `other` and `host` in its directory, an RSA key `key.pem`
    /// in the format of `.pem` files, `authorized` with both of ours, and `known_hosts`.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("p{}x{number}", std::process::id());
        Self::named(&name)
    }

    /// The same with a name.
    pub fn named(name: &str) -> Result<Self> {
        Self::with_layout(name, Layout::STANDARD)
    }

    /// The same with another number of nodes.
    pub fn with_layout(name: &str, layout: Layout) -> Result<Self> {
        let world = World::build(name, layout)?;
        let bed = Self {
            world,
            causeway: binary()?,
        };
        for (name, kind) in [
            ("key", "ed25519"),
            ("other", "ed25519"),
            ("host", "ed25519"),
            ("foreign", "ed25519"),
            ("key.pem", "rsa"),
        ] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", kind, "-m", "PEM", "-N", "", "-C", name, "-f"]);
            run(keygen.arg(bed.path(name)))?;
        }
        let public = |name: &str| fs::read_to_string(bed.path(&format!("{name}.pub")));
        fs::write(bed.path("authorized"), public("key")? + &public("key.pem")?)?;
        fs::set_permissions(bed.path("authorized"), fs::Permissions::from_mode(0o600))?;
        fs::write(
            bed.path("known_hosts"),
            format!("[{}]:{SSH} {}", bed.node_address(), public("host")?),
        )?;
        fs::create_dir_all(bed.path("manifests"))?;
        Ok(bed)
    }

    /// The world.
    #[must_use]
    pub const fn world(&self) -> &World {
        &self.world
    }

    /// A file of the world.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.world.directory().join(name)
    }

    /// The server's namespace.
    #[must_use]
    pub fn server(&self) -> Namespace {
        self.world.client()
    }

    /// The return proxy's namespace.
    #[must_use]
    pub fn node(&self) -> Namespace {
        self.world.room("node1")
    }

    /// A namespace of a pod on the other node.
    #[must_use]
    pub fn pod(&self) -> Namespace {
        self.world.pod(3)
    }

    /// The return proxy's address.
    #[must_use]
    pub fn node_address(&self) -> IpAddr {
        layout::node(1, Family::V4)
    }

    /// Where the cluster reaches the server's HTTPS.
    #[must_use]
    pub fn https(&self) -> SocketAddr {
        SocketAddr::new(self.node_address(), HTTPS)
    }

    /// Where the cluster reaches the server's broker.
    #[must_use]
    pub fn amqp(&self) -> SocketAddr {
        SocketAddr::new(self.node_address(), AMQP)
    }

    /// Writes the manifests: nodes, and the return proxy.
    pub fn manifests(&self, object: &Object) -> Result<()> {
        let mut text = String::new();
        for number in self.world.layout().nodes() {
            let label = if object.labelled.contains(&number) {
                ", labels: {causeway.dev/return-proxy: 'true'}"
            } else {
                ""
            };
            writeln!(
                text,
                "apiVersion: v1\nkind: Node\nmetadata: {{name: node{number}{label}}}\n\
                 spec: {{podCIDR: {}}}\nstatus: {{addresses: [{{type: InternalIP, address: {}}}]}}\n\
                 ---",
                layout::pod_range(number, Family::V4),
                layout::node(number, Family::V4),
            )?;
        }
        let file = |name: &str| self.path(name).display().to_string();
        writeln!(
            text,
            "apiVersion: causeway.dev/v1alpha1\nkind: ReturnProxy\nmetadata: {{name: cluster}}\n\
             spec:\n  keyFile: {}\n  ssh: {{port: {SSH}, user: {}}}",
            file(&object.key),
            object.user
        )?;
        if !object.more.contains("hostKey:") {
            let known = file("known_hosts");
            writeln!(text, "  hostKey: {{policy: known-hosts, file: {known}}}")?;
        }
        if object.endpoint {
            writeln!(
                text,
                "  endpoint: {{authorizedKeysFile: {}, hostKeyFile: {}}}",
                file("authorized"),
                file("host")
            )?;
        }
        for line in object.more.lines() {
            writeln!(text, "  {line}")?;
        }
        // As a whole, so that nobody reads half of it.
        let draft = self.path("draft");
        fs::write(&draft, text)?;
        fs::rename(draft, self.path("manifests/all.yaml")).context("putting manifests in place")
    }

    /// Starts Causeway's end at the server; returns at once.
    pub fn start_server(&self) -> Result<Process> {
        let command = self.causeway("server", &["tunnel", "--manifests"], true);
        self.world.start(&self.server(), command, "tunnel-server")
    }

    /// Starts Causeway's end at the node, and waits for its SSH.
    pub fn start_node(&self) -> Result<Process> {
        let arguments = ["tunnel", "node", "--node", "node1", "--manifests"];
        let command = self.causeway("node", &arguments, true);
        let mut node = self.world.start(&self.node(), command, "tunnel-node")?;
        let address = SocketAddr::new(self.node_address(), SSH);
        let inside = self.node();
        node.wait_until(LIMIT, || connects(&inside, address))?;
        Ok(node)
    }

    /// Starts the daemon of a node, which serves what the manifests say in the kernel.
    pub fn start_daemon(&self, number: u8) -> Result<Process> {
        let directory = self.world.node_directory(number);
        let socket = directory.join("causeway.sock");
        let config = directory.join("causeway.toml");
        let text = format!(
            "version = 1\ninstance = \"{}-node{number}\"\n[node]\nname = \"node{number}\"\n\
             [devices]\nuplinks = [\"eth0\"]\npods = [\"pod*\"]\n[manifests]\ndirectory = \"{}\"\n\
             [api]\nsocket = \"{}\"\n",
            self.world.name(),
            self.path("manifests").display(),
            socket.display(),
        );
        fs::write(&config, text)?;
        let mut command = Command::new(&self.causeway);
        command.arg("run").arg("--config").arg(&config);
        let node = self.world.node(number);
        let name = format!("causeway-node{number}");
        let mut daemon = self.world.start(&node, command, &name)?;
        let in_sync = || {
            let mut status = Command::new(&self.causeway);
            status
                .arg("--socket")
                .arg(&socket)
                .args(["-o", "json", "status"]);
            let printed = node.output(&mut status).map(|output| output.stdout);
            let value: Value =
                serde_json::from_slice(&printed.unwrap_or_default()).unwrap_or_default();
            value.pointer("/in_sync") == Some(&true.into())
        };
        daemon.wait_until(LIMIT, in_sync)?;
        Ok(daemon)
    }

    fn causeway(&self, end: &str, arguments: &[&str], manifests: bool) -> Command {
        let mut command = Command::new(&self.causeway);
        command
            .arg("--socket")
            .arg(self.path(&format!("{end}.sock")));
        command.args(arguments);
        if manifests {
            command.arg(self.path("manifests"));
        }
        command
    }

    /// What a verb of `causeway tunnel` prints as JSON, at the end `server` or `node`.
    pub fn ask(&self, end: &str, verb: &[&str]) -> Result<Value> {
        let mut command = self.causeway(end, &["--output", "json", "tunnel"], false);
        let output = command.args(verb).output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {error}");
        serde_json::from_slice(&output.stdout).context("no JSON")
    }

    /// What a verb of `causeway tunnel` prints for people.
    pub fn show(&self, end: &str, verb: &str) -> Result<String> {
        run(self
            .causeway(end, &["tunnel", verb], false)
            .stdin(Stdio::null()))
    }

    /// The tunnel as the server's end sees it.
    pub fn tunnel(&self) -> Result<Value> {
        let report = self.ask("server", &["status"])?;
        let tunnel = report.pointer("/tunnels/0").cloned();
        tunnel.with_context(|| format!("there is no tunnel: {report}"))
    }

    /// Waits until `is` says so of the tunnel, and returns it and how long it took.
    pub fn wait(&self, what: &str, is: impl Fn(&Value) -> bool) -> Result<(Value, Duration)> {
        let start = Instant::now();
        let mut last = None;
        while start.elapsed() < LIMIT {
            if let Ok(tunnel) = self.tunnel() {
                if is(&tunnel) {
                    return Ok((tunnel, start.elapsed()));
                }
                last = Some(tunnel);
            }
            thread::sleep(Duration::from_millis(20));
        }
        let log = fs::read_to_string(self.path("tunnel-server.log")).unwrap_or_default();
        bail!("not {what} within {LIMIT:?}; the last was {last:?}; the log:\n{log}")
    }

    /// Waits until all sessions carry.
    pub fn wait_until_up(&self) -> Result<(Value, Duration)> {
        self.wait("up", |tunnel| tunnel.get("health") == Some(&"up".into()))
    }

    /// Something that is counted of a forward at an end: `opened`, `refused/target`.
    pub fn counted(&self, port: u16, what: &str) -> Result<u64> {
        let tunnel = self.tunnel()?;
        let forwards = tunnel.get("forwards").and_then(Value::as_array);
        let of = |one: &&Value| one.get("listen") == Some(&port.into());
        forwards
            .into_iter()
            .flatten()
            .find(of)
            .and_then(|one| one.pointer(&format!("/{what}")))
            .and_then(Value::as_u64)
            .with_context(|| format!("nothing is called {what}: {tunnel}"))
    }

    /// Starts a server on the server's side that sends back what it gets, each connection on a thread,
    /// until both ends have closed.
    pub fn echo(&self, port: u16) -> Result<()> {
        let listener = self.listen(port)?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || echo(stream));
            }
        });
        Ok(())
    }

    /// Listens on the server's side.
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        self.server()
            .enter(|| TcpListener::bind(address))?
            .with_context(|| format!("listening at {address}"))
    }

    /// Connects from a namespace.
    pub fn connect(&self, from: &Namespace, to: SocketAddr) -> Result<TcpStream> {
        let stream = from
            .enter(|| TcpStream::connect_timeout(&to, LIMIT))?
            .with_context(|| format!("connecting to {to}"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Sends one message through the tunnel and reads it back.
    pub fn round_trip(&self, stream: &mut TcpStream, message: &[u8]) -> Result<Duration> {
        let start = Instant::now();
        stream.write_all(message)?;
        let mut back = vec![0; message.len()];
        stream.read_exact(&mut back)?;
        ensure!(back == message, "something else came back");
        Ok(start.elapsed())
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 65_536];
    while let Ok(count) = stream.read(&mut buffer) {
        let done = count == 0;
        if done
            || buffer
                .get(..count)
                .is_none_or(|part| stream.write_all(part).is_err())
        {
            return;
        }
    }
}

/// Whether somebody accepts there.
#[must_use]
pub fn connects(from: &Namespace, to: SocketAddr) -> bool {
    let tried = from.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)));
    matches!(tried, Ok(Ok(_)))
}

/// Runs a program to a good end, and returns what it prints.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {command:?}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {}: {error}",
        output.status
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The same in a namespace.
pub fn run_in(namespace: &Namespace, command: &mut Command) -> Result<String> {
    namespace.enter(|| run(command))?
}

/// A path as an argument.
#[must_use]
pub fn text(path: &Path) -> String {
    path.display().to_string()
}
