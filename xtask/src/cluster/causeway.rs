//! Causeway as the only network, installed as anybody would: its image, and `kubectl apply`.

use std::path::Path;

use anyhow::{Result, ensure};

use super::layout;
use super::node::Node;
use super::programs::Programs;
use super::reference::DEBIAN_PLUGINS;

const MANIFEST: &str = include_str!("../../../deploy/kubernetes/causeway.yaml");

/// What has to be written into the manifest.
const SERVER: &str = "https://192.0.2.1:6443";

/// Installs it on nodes that have its image.
pub(crate) fn install(nodes: &[(Node, Vec<String>)], programs: &Programs) -> Result<()> {
    for (node, _) in nodes {
        // containerd before 2.0 sets `lo` up with this, whatever the network is.
        node.install_plugins(Path::new(DEBIAN_PLUGINS), &["loopback"])?;
    }
    super::apply(programs, &manifest(&layout::api_server())?)
}

fn manifest(server: &str) -> Result<String> {
    ensure!(
        MANIFEST.matches(SERVER).count() == 1,
        "deploy/kubernetes/causeway.yaml does not name {SERVER} once"
    );
    Ok(MANIFEST.replace(SERVER, server))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_api_server_is_written_into_the_manifest() {
        let text = super::manifest("https://198.18.0.1:6443").unwrap();
        assert!(text.contains("server = \"https://198.18.0.1:6443\""));
    }
}
