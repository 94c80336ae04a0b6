//! What a cluster is governed by: etcd, API server, controllers, scheduler.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::host::Host;
use super::identity::{Identities, Person};
use super::layout::{PODS, Place, SERVICES};
use super::programs::Programs;
use crate::process;

/// etcd, only on the control host.
const ETCD: &str = "http://127.0.0.1:2379";

/// The control host with everything on it.
#[derive(Debug)]
pub(crate) struct Control {
    host: Host,
    programs: Programs,
    identities: Identities,
}

impl Control {
    /// Starts all, and waits until the API server answers.
    pub(crate) fn start(programs: &Programs, identities: &Identities) -> Result<Self> {
        let control = Self {
            host: Host::start(Place::Control)?,
            programs: programs.clone(),
            identities: identities.clone(),
        };
        let mut etcd = process::command("etcd");
        etcd.arg("--data-dir")
            .arg(control.host.file("etcd"))
            // The data do not outlive the cluster.
            .arg("--unsafe-no-fsync")
            .args([
                "--listen-client-urls",
                ETCD,
                "--advertise-client-urls",
                ETCD,
            ])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
        control.host.service("etcd", &etcd)?;
        control
            .host
            .service("kube-apiserver", &control.api_server())?;
        let name = "kube-apiserver";
        control.host.wait(name, || {
            let mut ready = kubectl(programs)?;
            ready.args(["get", "--raw", "/readyz"]);
            process::quiet(&mut ready).map(|answer| answer.trim() == "ok")
        })?;
        let service = "kube-controller-manager";
        control.host.service(service, &control.controllers())?;
        let mut scheduler = control.client_of("kube-scheduler", Person::Scheduler);
        scheduler.arg("--leader-elect=false");
        control.host.service("kube-scheduler", &scheduler)?;
        Ok(control)
    }

    fn api_server(&self) -> Command {
        let mut command = self.programs.kubernetes("kube-apiserver");
        command
            .arg(format!("--etcd-servers={ETCD}"))
            .arg(format!("--advertise-address={}", Place::Control.v4()))
            .arg(format!("--service-cluster-ip-range={SERVICES}"))
            .arg("--service-account-issuer=https://kubernetes.default.svc.cluster.local")
            .arg("--authorization-mode=Node,RBAC")
            .arg("--enable-admission-plugins=NodeRestriction")
            .arg("--allow-privileged")
            .arg("--kubelet-preferred-address-types=InternalIP")
            .arg("--requestheader-allowed-names=front-proxy")
            .arg("--requestheader-username-headers=X-Remote-User")
            .arg("--requestheader-group-headers=X-Remote-Group")
            .arg("--requestheader-extra-headers-prefix=X-Remote-Extra-");
        for (flag, file) in [
            ("tls-cert-file", "api-server.crt"),
            ("tls-private-key-file", "api-server.key"),
            ("client-ca-file", "authority.crt"),
            ("token-auth-file", "tokens.csv"),
            ("service-account-key-file", "accounts.pub"),
            ("service-account-signing-key-file", "accounts.key"),
            ("requestheader-client-ca-file", "authority.crt"),
            ("proxy-client-cert-file", "front-proxy.crt"),
            ("proxy-client-key-file", "front-proxy.key"),
            ("kubelet-client-certificate", "kubelet-client.crt"),
            ("kubelet-client-key", "kubelet-client.key"),
        ] {
            command.arg(flag_of(flag, &self.identities.path(file)));
        }
        command
    }

    fn controllers(&self) -> Command {
        let mut command = self.client_of("kube-controller-manager", Person::Controllers);
        command
            .arg("--leader-elect=false")
            .arg("--use-service-account-credentials")
            .arg("--allocate-node-cidrs")
            .arg(format!("--cluster-cidr={PODS}"))
            .arg(format!("--service-cluster-ip-range={SERVICES}"));
        for (flag, file) in [
            ("root-ca-file", "authority.crt"),
            ("service-account-private-key-file", "accounts.key"),
            ("cluster-signing-cert-file", "authority.crt"),
            ("cluster-signing-key-file", "authority.key"),
        ] {
            command.arg(flag_of(flag, &self.identities.path(file)));
        }
        command
    }

    /// A part of Kubernetes that speaks to the API server, and asks it who speaks to itself.
    fn client_of(&self, part: &str, who: Person) -> Command {
        let mut command = self.programs.kubernetes(part);
        let kubeconfig = self.identities.kubeconfig(who);
        for flag in [
            "kubeconfig",
            "authentication-kubeconfig",
            "authorization-kubeconfig",
        ] {
            command.arg(flag_of(flag, &kubeconfig));
        }
        command.arg(flag_of("cert-dir", &self.host.file(part)));
        command
    }
}

fn flag_of(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

/// `kubectl` as administrator, in the control host's network; it sees this machine's files.
pub(crate) fn kubectl(programs: &Programs) -> Result<Command> {
    let mut command = process::command("nsenter");
    command
        .arg(format!("--net=/run/netns/{}", Place::Control.namespace()))
        .arg(programs.path(super::programs::KUBERNETES))
        .arg("kubectl")
        .arg(flag_of("kubeconfig", &Identities::admin()?));
    Ok(command)
}
