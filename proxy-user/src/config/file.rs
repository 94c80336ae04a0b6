//! The file as it is written.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

type Text = Spanned<String>;
type Number = Spanned<i64>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) version: Number,
    pub(super) instance: Option<Text>,
    #[serde(default)]
    pub(super) node: Node,
    pub(super) devices: Devices,
    #[serde(default)]
    pub(super) source: Source,
    #[serde(default)]
    pub(super) manifests: Manifests,
    #[serde(default)]
    pub(super) state: State,
    #[serde(default)]
    pub(super) services: Services,
    #[serde(default)]
    pub(super) nat: Nat,
    #[serde(default)]
    pub(super) datapath: Datapath,
    #[serde(default)]
    pub(super) flows: Flows,
    #[serde(default)]
    pub(super) maps: Maps,
    #[serde(default)]
    pub(super) api: Api,
    #[serde(default)]
    pub(super) health: Health,
    #[serde(default)]
    pub(super) metrics: Metrics,
    #[serde(default)]
    pub(super) pod_network: PodNetwork,
    #[serde(default)]
    pub(super) sockets: Sockets,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Node {
    pub(super) name: Option<Text>,
    #[serde(default)]
    pub(super) port_ranges: Vec<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Devices {
    pub(super) uplinks: Spanned<Vec<Text>>,
    #[serde(default)]
    pub(super) pods: Vec<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Source {
    pub(super) kind: Option<Text>,
    pub(super) kubeconfig: Option<Text>,
    pub(super) server: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifests {
    pub(super) directory: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    pub(super) directory: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Services {
    pub(super) algorithm: Option<Text>,
    #[serde(default)]
    pub(super) external_ranges: Vec<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nat {
    pub(super) ports: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Datapath {
    pub(super) xdp: Option<Text>,
    #[serde(default)]
    pub(super) xdp_devices: BTreeMap<String, Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Flows {
    pub(super) tcp_new: Option<Text>,
    pub(super) tcp_established: Option<Text>,
    pub(super) tcp_half_closed: Option<Text>,
    pub(super) tcp_closed: Option<Text>,
    pub(super) udp_new: Option<Text>,
    pub(super) udp_established: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Maps {
    pub(super) services: Option<Number>,
    pub(super) frontends: Option<Number>,
    pub(super) backends: Option<Number>,
    pub(super) slots: Option<Number>,
    pub(super) addresses: Option<Number>,
    pub(super) flows: Option<Number>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Api {
    pub(super) socket: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Health {
    pub(super) address: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metrics {
    pub(super) address: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PodNetwork {
    pub(super) enabled: Option<bool>,
    pub(super) routes: Option<bool>,
    pub(super) masquerade: Option<bool>,
    #[serde(default)]
    pub(super) not_masqueraded: Vec<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sockets {
    pub(super) enabled: Option<bool>,
    pub(super) cgroup: Option<Text>,
    pub(super) udp: Option<bool>,
    pub(super) pods: Option<bool>,
}
