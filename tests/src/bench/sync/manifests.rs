//! The manifests of many services: a Service and an EndpointSlice each, a hundred to a file.

use std::{
    fmt::{self, Write as _},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use proxy_common::{
    abi::{ServiceKey, V4},
    wire::Be16,
};

use super::Size;
use crate::bench::{
    frame::Protocol,
    wire::rules::{self, ENDPOINT_PORT, SERVICE_PORT, Service},
};

/// Services in one file.
const PER_FILE: usize = 100;

/// A folder of manifests.
#[derive(Debug)]
pub(super) struct Manifests {
    /// The file of the one service that is changed, and its temporary neighbour.
    changed: PathBuf,
    service: Service,
    size: Size,
    number: usize,
    /// The port that it has now.
    port: u16,
}

impl Manifests {
    /// Writes the services into `<directory>/manifests`.
    pub(super) fn write(directory: &Path, size: Size) -> Result<Self> {
        let directory = directory.join("manifests");
        fs::create_dir(&directory).context("making the manifests' folder")?;
        let node = "apiVersion: v1\nkind: Node\nmetadata:\n  name: bench\n---\n\
                    apiVersion: v1\nkind: Namespace\nmetadata:\n  name: bench\n";
        fs::write(directory.join("cluster.yaml"), node).context("writing a manifest")?;
        let mut all: Vec<(usize, Service)> = rules::services(size.services).enumerate().collect();
        let (number, service) = all.pop().context("no services")?;
        for (file, chunk) in all.chunks(PER_FILE).enumerate() {
            let mut text = String::new();
            for (number, service) in chunk {
                document(&mut text, size, *number, service, SERVICE_PORT)?;
            }
            let path = directory.join(format!("services-{file:04}.yaml"));
            fs::write(path, text).context("writing a manifest")?;
        }
        let changed = directory.join("changed.yaml");
        let mut manifests = Self {
            changed,
            service,
            size,
            number,
            port: SERVICE_PORT,
        };
        manifests.replace(SERVICE_PORT)?;
        Ok(manifests)
    }

    /// Gives one service another port. Returns the key that the kernel's map will have then.
    pub(super) fn change(&mut self) -> Result<ServiceKey<V4>> {
        self.replace(self.port + 1)?;
        Ok(key(&self.service, self.port))
    }

    /// Writes the changed file in one step, as `kubectl` and editors do.
    fn replace(&mut self, port: u16) -> Result<()> {
        let mut text = String::new();
        document(&mut text, self.size, self.number, &self.service, port)?;
        let temporary = self.changed.with_extension("new");
        fs::write(&temporary, text).context("writing a manifest")?;
        fs::rename(&temporary, &self.changed).context("replacing a manifest")?;
        self.port = port;
        Ok(())
    }
}

/// The key of a service's TCP port.
pub(super) fn key(service: &Service, port: u16) -> ServiceKey<V4> {
    ServiceKey {
        address: service.address.into(),
        port: Be16::new(port),
        protocol: Protocol::Tcp.number(),
        pad: 0,
    }
}

fn document(
    text: &mut String,
    size: Size,
    number: usize,
    service: &Service,
    port: u16,
) -> fmt::Result {
    let address = service.address;
    writeln!(
        text,
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: bench}}\nspec:\n  \
         type: ClusterIP\n  clusterIP: {address}\n  clusterIPs: [{address}]\n  ipFamilies: [IPv4]\n  \
         ports:\n  - {{name: p, port: {port}, targetPort: {ENDPOINT_PORT}, protocol: TCP}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: s{number}-a\n  \
         namespace: bench\n  labels: {{kubernetes.io/service-name: s{number}}}\naddressType: IPv4\n\
         ports:\n- {{name: p, port: {ENDPOINT_PORT}, protocol: TCP}}\nendpoints:"
    )?;
    for endpoint in size.pods(number) {
        writeln!(
            text,
            "- {{addresses: [{endpoint}], conditions: {{ready: true}}}}"
        )?;
    }
    Ok(())
}
