//! Programs of others: sshd, ssh, dropbear, nginx, `RabbitMQ`, curl.

use std::{fmt::Write as _, fs, net::SocketAddr, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result};

use super::bed::{AMQP, Bed, HTTPS, LIMIT, SSH, connects, run, run_in, text};
use crate::lab::{namespace::Namespace, process::Process};

impl Bed {
    /// Starts OpenSSH's `sshd` on the node, with more lines of configuration, and waits for it.
    pub fn start_sshd(&self, more: &str) -> Result<Process> {
        // Where it locks itself up before a login; Debian's start script makes it.
        fs::create_dir_all("/run/sshd")?;
        let config = self.path("sshd_config");
        let mut lines = format!(
            "Port {SSH}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PidFile none\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n\
             MaxStartups 100\nLogLevel VERBOSE\n",
            text(&self.path("host")),
            text(&self.path("authorized")),
        );
        if !more.contains("GatewayPorts") {
            lines += "GatewayPorts clientspecified\n";
        }
        writeln!(lines, "{more}")?;
        fs::write(&config, lines)?;
        let mut sshd = Command::new("/usr/sbin/sshd");
        sshd.args(["-D", "-e", "-f"]).arg(&config);
        let mut sshd = self.world().start(&self.node(), sshd, "sshd")?;
        let address = SocketAddr::new(self.node_address(), SSH);
        let inside = self.node();
        sshd.wait_until(LIMIT, || connects(&inside, address))?;
        Ok(sshd)
    }

    /// `ssh -R` for both ports, at the server.
    #[must_use]
    pub fn ssh(&self, user: &str, options: &[&str]) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-N", "-T", "-p", &SSH.to_string()])
            .args(["-i", &text(&self.path("key"))])
            .args([
                "-o",
                &format!("UserKnownHostsFile={}", text(&self.path("known_hosts"))),
            ])
            .args(["-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes"])
            .args(["-o", "IdentitiesOnly=yes", "-o", "ExitOnForwardFailure=yes"])
            .args(["-o", "ServerAliveInterval=1", "-o", "Compression=no"])
            .args(["-c", "aes128-gcm@openssh.com"])
            .args(["-R", &format!("*:{HTTPS}:127.0.0.1:9443")])
            .args(["-R", &format!("*:{AMQP}:127.0.0.1:5672")])
            .args(options)
            .arg(format!("{user}@{}", self.node_address()));
        ssh
    }

    /// Starts it, and waits until the node listens.
    pub fn start_ssh(&self, user: &str, options: &[&str]) -> Result<Process> {
        let command = self.ssh(user, options);
        let mut ssh = self.world().start(&self.server(), command, "ssh")?;
        let (pod, https) = (self.pod(), self.https());
        ssh.wait_until(LIMIT, || connects(&pod, https))?;
        Ok(ssh)
    }

    /// Starts nginx with TLS at the server's port 9443, with a certificate for `central.example`;
    /// `listen` is what follows the port there.
    pub fn start_nginx(&self, listen: &str) -> Result<Process> {
        let (key, certificate) = (self.path("tls.key"), self.path("tls.crt"));
        let mut openssl = Command::new("openssl");
        openssl
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
            ])
            .args(["-nodes", "-days", "2", "-subj", "/CN=central.example"])
            .args(["-addext", "subjectAltName=DNS:central.example", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate);
        run(&mut openssl)?;
        let root = self.path("www");
        fs::create_dir_all(&root)?;
        fs::write(root.join("index.html"), "the central server\n")?;
        let config = format!(
            "daemon off; pid {0}/nginx.pid; error_log stderr warn;\n\
             events {{ worker_connections 8192; }}\n\
             http {{ access_log off; root {1}; client_body_temp_path {0}/body; proxy_temp_path {0}/proxy;\n\
             fastcgi_temp_path {0}/fcgi; uwsgi_temp_path {0}/uwsgi; scgi_temp_path {0}/scgi;\n\
             server {{ listen 127.0.0.1:9443 ssl {listen}; ssl_certificate {2};\n\
             ssl_certificate_key {3};\n\
             location /who {{ return 200 \"$remote_addr $proxy_protocol_addr\\n\"; }} }} }}\n",
            text(self.world().directory()),
            text(&root),
            text(&certificate),
            text(&key),
        );
        fs::write(self.path("nginx.conf"), config)?;
        let mut nginx = Command::new("nginx");
        nginx
            .args(["-e", "stderr", "-c"])
            .arg(self.path("nginx.conf"));
        let mut nginx = self.world().start(&self.server(), nginx, "nginx")?;
        let (server, address) = (self.server(), "127.0.0.1:9443".parse()?);
        nginx.wait_until(LIMIT, || connects(&server, address))?;
        Ok(nginx)
    }

    /// What curl prints for a path of the server, asked for at `address`; TLS is checked.
    pub fn curl(&self, from: &Namespace, address: SocketAddr, path: &str) -> Result<String> {
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--fail",
            "--max-time",
            "30",
            "--cacert",
        ])
        .arg(self.path("tls.crt"))
        .args(["--connect-to", &format!("central.example:9443:{address}")])
        .arg(format!("https://central.example:9443{path}"));
        run_in(from, &mut curl)
    }

    /// The fingerprint of the certificate that is shown at `address`.
    pub fn certificate(&self, from: &Namespace, address: SocketAddr) -> Result<String> {
        let script = format!(
            "openssl s_client -connect {address} -servername central.example </dev/null 2>/dev/null \
             | openssl x509 -noout -fingerprint -sha256"
        );
        run_in(from, Command::new("sh").args(["-c", &script]))
    }

    /// Starts `RabbitMQ` at the server's port 5672, and waits until it takes a queue called `jobs`.
    pub fn start_rabbitmq(&self) -> Result<Process> {
        let home = self.path("rabbitmq");
        fs::create_dir_all(&home)?;
        fs::write(
            home.join("rabbitmq.conf"),
            "heartbeat = 2\nloopback_users = none\n",
        )?;
        fs::write(home.join("plugins"), "[].\n")?;
        let sbin = rabbitmq_server()?;
        let mut server = Command::new(sbin);
        let here = text(&home);
        server
            .env("HOME", &here)
            .env("LC_ALL", "C.UTF-8")
            .env("RABBITMQ_NODENAME", "cw@localhost")
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", "5672")
            .env("RABBITMQ_CONFIG_FILE", home.join("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", home.join("plugins"))
            .env("RABBITMQ_MNESIA_BASE", &here)
            .env("RABBITMQ_LOG_BASE", &here)
            .env("RABBITMQ_PID_FILE", home.join("pid"))
            .env("RABBITMQ_GENERATED_CONFIG_DIR", &here)
            .env("ERL_EPMD_ADDRESS", "127.0.0.1");
        let mut server = self.world().start(&self.server(), server, "rabbitmq")?;
        let inside = self.server();
        let declare = || {
            let mut declare = Command::new("amqp-declare-queue");
            declare.args(["-u", "amqp://guest:guest@127.0.0.1:5672", "-q", "jobs"]);
            run_in(&inside, &mut declare).is_ok()
        };
        // Three Erlang programs begin before the first port is open.
        server.wait_until(Duration::from_mins(3), declare)?;
        Ok(server)
    }
}

/// The start script itself: the one on the path changes to a user of its own.
fn rabbitmq_server() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/rabbitmq/lib").context("RabbitMQ is not installed")?;
    versions
        .flatten()
        .map(|entry| entry.path().join("sbin/rabbitmq-server"))
        .find(|path| path.exists())
        .context("RabbitMQ has no start script")
}
