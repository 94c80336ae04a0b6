//! What would happen to a packet, at which step, because of which object.
//!
//! The datapath itself decides, over the live maps and the kernel's routing table; what it would
//! write is thrown away. Each lookup it makes becomes a step.

mod arrival;
mod live;
mod packet;
mod steps;

use std::{cell::RefCell, collections::BTreeMap, io, net::IpAddr};

use proxy_common::{
    abi::DeviceRole,
    datapath::{TcEgress, TcIngress, XdpUplink, run, verdict::Action},
};
use serde::{Deserialize, Serialize};

use crate::{
    dataplane::Maps,
    inspect::Look,
    kernel::{
        devices,
        netlink::Netlink,
        route::{self, Route},
    },
    simulation::{Frame, Layer, Lookup, Simulation},
};
use arrival::{Hook, Place};
use live::Live;
pub use packet::Packet;

/// Why nothing can be explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The packet makes no sense.
    #[error("{field} {value:?}: {remedy}")]
    Invalid {
        /// Which part of it.
        field: &'static str,
        /// What was found.
        value: String,
        /// What to write.
        remedy: String,
    },
    /// The kernel's tables can't be read.
    #[error("cannot ask the kernel for {what}: {source}")]
    Kernel {
        /// What was asked for.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

/// One step of the datapath.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which part of the datapath: `filter`, `flow`, `service`, `backend`, `route`, `insert`, …
    pub stage: String,
    /// What was asked for.
    pub question: String,
    /// What was found, and what it means.
    pub answer: String,
}

impl Step {
    fn new(stage: &str, question: impl Into<String>, answer: impl Into<String>) -> Self {
        Self {
            stage: stage.to_owned(),
            question: question.into(),
            answer: answer.into(),
        }
    }
}

/// What would happen to a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The packet.
    pub packet: String,
    /// The hook that sees it first, and the device: `xdp_uplink at eth0`.
    pub first: String,
    /// The hook that decides: the first one, or `tc_ingress` if XDP leaves the packet to it.
    pub hook: String,
    /// Each step of the hook that decides.
    pub steps: Vec<Step>,
    /// The service port that it is for.
    pub service: Option<String>,
    /// What becomes of it.
    pub verdict: String,
}

/// The next hop of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRow {
    /// The backend's address.
    pub destination: IpAddr,
    /// `pod`, `forward`, `local`, `refused`.
    pub step: String,
    /// The device that packets leave by.
    pub device: Option<String>,
    /// The next hop; none: the backend itself.
    pub gateway: Option<IpAddr>,
    /// Its link-layer address; none: not known yet.
    pub link: Option<String>,
    /// The services that have a backend there.
    pub services: Vec<String>,
}

fn kernel(what: &'static str) -> impl Fn(io::Error) -> ExplainError {
    move |source| ExplainError::Kernel { what, source }
}

/// Explains.
pub fn explain(packet: &Packet, maps: &Maps, look: &Look<'_>) -> Result<Explanation, ExplainError> {
    let checked = packet.check()?;
    let mut netlink = Netlink::connect().map_err(kernel("devices"))?;
    let devices = devices::list(&mut netlink).map_err(kernel("devices"))?;
    let places = arrival::places(packet, &checked, &devices, look, &mut netlink)?;
    let name = |ifindex: u32| {
        devices
            .get(&ifindex)
            .map_or_else(|| format!("#{ifindex}"), |device| device.name.clone())
    };
    let at = |place: &Place| format!("{} at {}", place.hook.program(), name(place.ifindex));
    let live = Live::new(maps, look, &devices, netlink);
    let (mut action, mut lookups) = run_at(&places.first, &checked, &live);
    let mut decides = places.first;
    let mut steps = Vec::new();
    if let Some(next) = places.then
        && leaves_to_tc(action)
    {
        let (first, tc) = (at(&decides), next.hook.program());
        steps.push(Step::new(
            "hook",
            first,
            format!("leaves it to {tc} as it is"),
        ));
        (action, lookups) = run_at(&next, &checked, &live);
        decides = next;
    }
    live.failure()?;
    let words = steps::Words { look, name: &name };
    steps.extend(words.steps(&lookups));
    Ok(Explanation {
        packet: checked.to_string(),
        first: at(&places.first),
        hook: at(&decides),
        service: words.service(&lookups),
        steps,
        verdict: words.verdict(action, &lookups),
    })
}

/// What the program at a place makes of a packet, and what it asks on the way.
fn run_at(place: &Place, checked: &packet::Checked, live: &Live<'_>) -> (Action, Vec<Lookup>) {
    let lookups: RefCell<Vec<Lookup>> = RefCell::default();
    let simulation = Simulation::new(live, |lookup| lookups.borrow_mut().push(lookup));
    let layer = match place.hook {
        Hook::Xdp => Layer::Driver,
        Hook::Ingress | Hook::Egress => Layer::SocketBuffer,
    };
    let mut frame = Frame::new(&checked.bytes(place.mac, place.tag), layer);
    let verdict = match place.hook {
        Hook::Xdp => run::<XdpUplink, _, _>(&mut frame, &simulation, place.ifindex),
        Hook::Ingress => run::<TcIngress, _, _>(&mut frame, &simulation, place.ifindex),
        Hook::Egress => run::<TcEgress, _, _>(&mut frame, &simulation, place.ifindex),
    };
    drop(simulation);
    (verdict.action(), lookups.into_inner())
}

/// Whether XDP passes on what it has found: the same actions as in `proxy-ebpf`.
const fn leaves_to_tc(action: Action) -> bool {
    matches!(
        action,
        Action::Pass | Action::Pod(_) | Action::Neighbour(_) | Action::Local | Action::Loopback
    )
}

/// The next hops of all backends.
pub fn routes(look: &Look<'_>) -> Result<Vec<RouteRow>, ExplainError> {
    let mut netlink = Netlink::connect().map_err(kernel("devices"))?;
    let devices = devices::list(&mut netlink).map_err(kernel("devices"))?;
    let mut rows: BTreeMap<IpAddr, RouteRow> = BTreeMap::new();
    for backend in look.backends() {
        let destination = backend.address.ip();
        if let Some(row) = rows.get_mut(&destination) {
            row.services.push(backend.service);
            continue;
        }
        let route = route::find(&mut netlink, destination, None).map_err(kernel("a route"))?;
        let mut row = RouteRow {
            destination,
            step: String::new(),
            device: None,
            gateway: None,
            link: None,
            services: vec![backend.service],
        };
        match route {
            Route::Local => "local".clone_into(&mut row.step),
            Route::Refused => "refused".clone_into(&mut row.step),
            Route::Forward { ifindex, gateway } => {
                let key = proxy_common::abi::DeviceKey { ifindex, vlan: 0 };
                let role = look
                    .observed()
                    .devices
                    .get(&key)
                    .map_or(0, |device| device.role);
                let pod = DeviceRole::from_raw(role) == DeviceRole::Pod;
                if pod { "pod" } else { "forward" }.clone_into(&mut row.step);
                row.device = devices.get(&ifindex).map(|device| device.name.clone());
                row.gateway = gateway;
                let next = gateway.unwrap_or(destination);
                let link = route::neighbour(&mut netlink, ifindex, next);
                row.link = link.map_err(kernel("a neighbour"))?.map(|mac| {
                    let [a, b, c, d, e, f] = mac;
                    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
                });
            }
        }
        rows.insert(destination, row);
    }
    for row in rows.values_mut() {
        row.services.sort();
        row.services.dedup();
    }
    Ok(rows.into_values().collect())
}
