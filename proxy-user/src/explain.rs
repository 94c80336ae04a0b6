//! What would happen to a packet, at which step, because of which object.
//!
//! The datapath itself decides, over the live maps and the kernel's routing table; what it would
//! write is thrown away. Each lookup it makes becomes a step.

mod live;
mod packet;
mod steps;

use std::{cell::RefCell, collections::BTreeMap, io, net::IpAddr};

use proxy_common::{
    abi::{DeviceRole, LOOPBACK},
    datapath::{TcEgress, TcIngress, run, verdict::Action},
};
use serde::{Deserialize, Serialize};

use crate::{
    dataplane::Maps,
    inspect::Look,
    kernel::{
        devices::{self, Device},
        netlink::Netlink,
        route::{self, Route},
    },
    simulation::{Frame, Layer, Lookup, Simulation},
};
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

/// What would happen to a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The packet.
    pub packet: String,
    /// The hook that sees it, and the device: `tc_ingress at eth0`.
    pub hook: String,
    /// Each step.
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
    let (hook, ifindex) = arrival(packet, &checked, &devices, look, &mut netlink)?;
    let live = Live::new(maps, look, &devices, netlink);
    let lookups: RefCell<Vec<Lookup>> = RefCell::default();
    let simulation = Simulation::new(&live, |lookup| lookups.borrow_mut().push(lookup));
    let mut frame = Frame::new(&checked.bytes(), Layer::SocketBuffer);
    let verdict = match hook {
        Hook::Ingress => run::<TcIngress, _, _>(&mut frame, &simulation, ifindex),
        Hook::Egress => run::<TcEgress, _, _>(&mut frame, &simulation, ifindex),
    };
    drop(simulation);
    live.failure()?;
    let name = |ifindex: u32| {
        devices
            .get(&ifindex)
            .map_or_else(|| format!("#{ifindex}"), |device| device.name.clone())
    };
    let words = steps::Words { look, name: &name };
    let lookups = lookups.into_inner();
    let program = match hook {
        Hook::Ingress => "tc_ingress",
        Hook::Egress => "tc_egress",
    };
    Ok(Explanation {
        packet: checked.to_string(),
        hook: format!("{program} at {}", name(ifindex)),
        service: words.service(&lookups),
        steps: words.steps(&lookups),
        verdict: verdict_text(verdict.action(), &name),
    })
}

/// Which hook sees a packet first that does more than pass it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Ingress,
    Egress,
}

/// Where a packet comes in: at the device that was named; else, if it is this node's own, where it
/// would leave; else at the device that leads back to its source.
fn arrival(
    packet: &Packet,
    checked: &packet::Checked,
    devices: &BTreeMap<u32, Device>,
    look: &Look<'_>,
    netlink: &mut Netlink,
) -> Result<(Hook, u32), ExplainError> {
    if let Some(name) = &packet.device {
        let found = devices.values().find(|device| device.name == *name);
        return found
            .map(|device| (Hook::Ingress, device.ifindex))
            .ok_or_else(|| ExplainError::Invalid {
                field: "device",
                value: name.clone(),
                remedy: "there is no device of this name here".to_owned(),
            });
    }
    let source = checked.source.ip();
    let own = devices
        .values()
        .flat_map(|device| &device.addresses)
        .any(|a| a.addr() == source);
    let towards = if own {
        checked.destination.ip()
    } else {
        source
    };
    if own
        && devices
            .values()
            .flat_map(|device| &device.addresses)
            .any(|a| a.addr() == towards)
    {
        return Ok((Hook::Egress, LOOPBACK));
    }
    let route = route::find(netlink, towards, None).map_err(kernel("a route"))?;
    let hook = if own { Hook::Egress } else { Hook::Ingress };
    if let Route::Forward { ifindex, .. } = route {
        return Ok((hook, ifindex));
    }
    let uplink = look.observed().devices.iter().find(|(key, device)| {
        key.vlan == 0 && DeviceRole::from_raw(device.role) == DeviceRole::Uplink
    });
    uplink
        .map(|(key, _)| (hook, key.ifindex))
        .ok_or_else(|| ExplainError::Invalid {
            field: "source",
            value: source.to_string(),
            remedy: "no device leads there; name the one it comes in on with --device".to_owned(),
        })
}

fn verdict_text(action: Action, name: &dyn Fn(u32) -> String) -> String {
    match action {
        Action::Pass => "passed on untouched to the kernel's own stack".to_owned(),
        Action::Drop(reason) => format!(
            "dropped, {}: {}",
            reason.word(),
            reason.explanation().trim()
        ),
        Action::Transmit(ifindex) => format!("rewritten and sent out of {}", name(ifindex)),
        Action::Pod(ifindex) => format!("rewritten and handed to the pod behind {}", name(ifindex)),
        Action::Neighbour(ifindex) => {
            format!(
                "rewritten and sent out of {}, once the neighbour is known",
                name(ifindex)
            )
        }
        Action::Local => "rewritten and handed to this node's own stack".to_owned(),
        Action::Loopback => "rewritten and handed to this node's own stack, through lo".to_owned(),
        Action::Reply => "answered on the service's behalf".to_owned(),
    }
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
