//! ADD.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::{Daemon, Progress, Step, netlink, pair, store, undo};
use crate::allocate;
use crate::error::{CniError, Code};
use crate::link;
use crate::node::{Attended, NodeFile};
use crate::protocol::{
    AttachmentKey, Dns, Interface, Ip, NetworkConfig, PodName, ResultRoute, Success, Variable,
    pod_name, sandbox as sandbox_path,
};
use crate::record::{self, Attachment, Records, Store};
use crate::sandbox::Sandbox;

/// So often it is looked whether the daemon has attached its programs.
const LOOK: Duration = Duration::from_millis(5);

/// What an ADD is to make.
struct Wanted<'w> {
    key: AttachmentKey,
    path: PathBuf,
    sandbox: Sandbox,
    pod: Option<PodName>,
    config: &'w NetworkConfig,
    ranges: Vec<IpNet>,
    mtu: u32,
}

pub(super) fn add(
    variable: &Variable<'_>,
    config: &NetworkConfig,
    progress: &mut dyn Progress,
) -> Result<Success, CniError> {
    if config.previous.is_some() {
        let remedy = "put causeway-cni first in the list of plugins: it makes the pod's device";
        let message = "prevResult: another plugin came before causeway-cni";
        return Err(CniError::new(Code::InvalidConfig, message, remedy));
    }
    let store = store(config)?;
    let wanted = wanted(variable, config, &store)?;
    // Held while records and devices change, not while the daemon is waited for.
    let lock = store.lock()?;
    let made = match existing(&store, &wanted, progress)? {
        Existing::Whole(attachment) => *attachment,
        Existing::Nothing(addresses) => {
            let made = make(&store, &wanted, addresses, progress);
            if made.is_err() {
                undo(&store, &wanted.key, progress)?;
            }
            made?
        }
    };
    drop(lock);
    if let Err(error) = attended(&store, &made, config.wait) {
        let _lock = store.lock()?;
        undo(&store, &wanted.key, progress)?;
        return Err(error);
    }
    progress.reached(Step::Attended);
    Ok(success(config, &wanted.key, &made))
}

/// Checks everything that can be checked before anything is made.
fn wanted<'w>(
    variable: &Variable<'_>,
    config: &'w NetworkConfig,
    store: &Store,
) -> Result<Wanted<'w>, CniError> {
    let key = AttachmentKey::read(variable)?;
    let path = sandbox_path(variable)
        .ok_or_else(|| CniError::new(Code::InvalidEnvironment, "CNI_NETNS is not set", ""))?;
    let daemon = Daemon::look(store.root())
        .map_err(|error| CniError::io("cannot read what the daemon wrote", &error))?;
    if let Some((message, remedy)) = daemon.problem(store.root()) {
        return Err(CniError::new(Code::TryAgainLater, message, remedy));
    }
    let node = match daemon {
        Daemon::Ready(node) => node,
        Daemon::Away | Daemon::Never => NodeFile::default(),
    };
    let ranges = if config.ranges.is_empty() {
        node.pod_ranges
    } else {
        config.ranges.clone()
    };
    if ranges.is_empty() {
        return Err(CniError::new(
            Code::TryAgainLater,
            format!(
                "the Node {} has no pod ranges (spec.podCIDRs) yet",
                node.node
            ),
            "run kube-controller-manager with --allocate-node-cidrs and --cluster-cidr, or write \
             ranges into the network configuration",
        ));
    }
    let mtu = config.mtu.or(node.mtu).ok_or_else(|| {
        let remedy = "name one that is there in devices.uplinks of causeway.toml, or write mtu into \
                      the network configuration";
        CniError::new(Code::TryAgainLater, "this node has no uplink", remedy)
    })?;
    let sandbox = Sandbox::open(&path)?.ok_or_else(|| {
        let message = format!(
            "CNI_NETNS = {}: there is no such network namespace",
            path.display()
        );
        CniError::new(Code::UnknownContainer, message, "")
    })?;
    Ok(Wanted {
        pod: pod_name(variable),
        key,
        path,
        sandbox,
        config,
        ranges,
        mtu,
    })
}

/// What an earlier ADD has left.
enum Existing {
    /// All of it.
    Whole(Box<Attachment>),
    /// Nothing any more, but these addresses were this container's.
    Nothing(Option<Vec<IpAddr>>),
}

/// A runtime that was killed does not know how far it came, so it asks again: what is whole stays,
/// and what is not is made anew with the same addresses.
fn existing(
    store: &Store,
    wanted: &Wanted<'_>,
    progress: &mut dyn Progress,
) -> Result<Existing, CniError> {
    let records = list(store)?;
    record::sweep(&records)?;
    let Some(old) = records.attachments.get(&wanted.key) else {
        // Without a record there may still be a device, if records were lost.
        undo(store, &wanted.key, progress)?;
        refuse_taken_interface(wanted)?;
        return Ok(Existing::Nothing(None));
    };
    let same = old.network == wanted.config.name
        && old.port_mappings == wanted.config.port_mappings
        && old.mtu == wanted.mtu;
    if old.complete && same && problems(old, &wanted.sandbox)?.is_empty() {
        return Ok(Existing::Whole(Box::new(old.clone())));
    }
    undo(store, &wanted.key, progress)?;
    refuse_taken_interface(wanted)?;
    let inside = |address: &IpAddr| wanted.ranges.iter().any(|range| range.contains(address));
    let families =
        |addresses: &mut dyn Iterator<Item = bool>| addresses.collect::<BTreeSet<bool>>();
    let usable = old.addresses.iter().all(inside)
        && families(&mut old.addresses.iter().map(IpAddr::is_ipv4))
            == families(&mut wanted.ranges.iter().map(|range| range.addr().is_ipv4()));
    Ok(Existing::Nothing(usable.then(|| old.addresses.clone())))
}

fn list(store: &Store) -> Result<Records, CniError> {
    store
        .list()
        .map_err(|error| CniError::io(format!("cannot read {}", store.folder().display()), &error))
}

fn refuse_taken_interface(wanted: &Wanted<'_>) -> Result<(), CniError> {
    let interface = &wanted.key.interface;
    let found = wanted.sandbox.enter(|| {
        link::find(&mut netlink()?, interface)
            .map_err(|error| CniError::kernel(format!("cannot look for {interface}"), &error))
    })?;
    if found.is_some() {
        return Err(CniError::new(
            Code::InterfaceExists,
            format!(
                "{} has a device {interface} already, which causeway-cni did not make",
                wanted.path.display()
            ),
            "call DEL of the network that it belongs to, or give another CNI_IFNAME",
        ));
    }
    Ok(())
}

/// What differs from what an ADD makes.
pub(super) fn problems(
    attachment: &Attachment,
    sandbox: &Sandbox,
) -> Result<Vec<String>, CniError> {
    let macs = attachment.key().macs();
    let pair = pair(attachment, macs, sandbox.descriptor());
    let looking = |error: io::Error| CniError::kernel("cannot look at the pod's network", &error);
    let mut problems = link::host_problems(&pair, &attachment.addresses).map_err(looking)?;
    problems.extend(
        sandbox.enter(|| link::pod_problems(&pair, &attachment.addresses).map_err(looking))?,
    );
    Ok(problems)
}

fn make(
    store: &Store,
    wanted: &Wanted<'_>,
    addresses: Option<Vec<IpAddr>>,
    progress: &mut dyn Progress,
) -> Result<Attachment, CniError> {
    let addresses = match addresses {
        Some(addresses) => addresses,
        None => choose(store, wanted)?,
    };
    progress.reached(Step::Chosen);
    let mut attachment = Attachment {
        network: wanted.config.name.clone(),
        container: wanted.key.container.clone(),
        interface: wanted.key.interface.clone(),
        sandbox: wanted.path.clone(),
        pod: wanted.pod.clone(),
        device: wanted.key.device(),
        mtu: wanted.mtu,
        addresses,
        port_mappings: wanted.config.port_mappings.clone(),
        added: record::now(),
        boot: store.boot().to_owned(),
        complete: false,
    };
    store.write(&attachment)?;
    store.set_last(&attachment.addresses);
    progress.reached(Step::Recorded);
    connect(&attachment, wanted, progress)?;
    attachment.complete = true;
    store.write(&attachment)?;
    progress.reached(Step::Completed);
    Ok(attachment)
}

fn choose(store: &Store, wanted: &Wanted<'_>) -> Result<Vec<IpAddr>, CniError> {
    let records = list(store)?;
    let reading = |error| CniError::kernel("cannot read the node's routes", &error);
    let mut taken = link::routed_addresses(&mut netlink()?).map_err(reading)?;
    let held = records.attachments.values();
    taken.extend(held.flat_map(|attachment| attachment.addresses.iter().copied()));
    allocate::choose(&wanted.ranges, &taken, &store.last()).map_err(|error| {
        CniError::new(
            Code::NoAddress,
            error.to_string(),
            "remove pods from this node, or give it a larger range (spec.podCIDRs of its Node, \
             --node-cidr-mask-size of kube-controller-manager)",
        )
    })
}

fn connect(
    attachment: &Attachment,
    wanted: &Wanted<'_>,
    progress: &mut dyn Progress,
) -> Result<(), CniError> {
    let pair = pair(attachment, wanted.key.macs(), wanted.sandbox.descriptor());
    let failed = |what: &str| {
        let message = format!("cannot {what} for {}", wanted.path.display());
        move |error: io::Error| CniError::kernel(message, &error)
    };
    link::create(&mut netlink()?, &pair).map_err(failed("make a veth"))?;
    progress.reached(Step::Linked);
    let addresses = &attachment.addresses;
    wanted
        .sandbox
        .enter(|| link::pod(&pair, addresses).map_err(failed("set up the pod's device")))?;
    progress.reached(Step::PodReady);
    link::host(&pair, addresses).map_err(failed("set up the host's device"))?;
    progress.reached(Step::HostReady);
    Ok(())
}

/// Waits until the daemon has attached its programs, and knows the pod's host ports: before that, a
/// pod would send to services past the datapath.
fn attended(store: &Store, attachment: &Attachment, wait: Duration) -> Result<(), CniError> {
    let device = &attachment.device;
    let looking = |error| CniError::kernel(format!("cannot look for {device}"), &error);
    let link = link::find(&mut netlink()?, device)
        .map_err(looking)?
        .ok_or_else(|| CniError::new(Code::TryAgainLater, format!("{device} was removed"), ""))?;
    let wanted = Attended {
        ifindex: link.index,
        name: device.clone(),
    };
    let end = Instant::now() + wait;
    loop {
        let daemon = Daemon::look(store.root());
        if matches!(&daemon, Ok(Daemon::Ready(node)) if node.attends(&wanted)) {
            return Ok(());
        }
        if Instant::now() >= end {
            let message = format!(
                "the daemon of Causeway has not attached its programs to {device} within {wait:?}"
            );
            let remedy = "see `causeway status`: devices and problems";
            return Err(CniError::new(Code::TryAgainLater, message, remedy));
        }
        sleep(LOOK);
    }
}

fn success(config: &NetworkConfig, key: &AttachmentKey, attachment: &Attachment) -> Success {
    let [host, pod] = key.macs();
    let mac = |bytes: [u8; 6]| bytes.map(|byte| format!("{byte:02x}")).join(":");
    let mtu = (config.version == "1.1.0").then_some(attachment.mtu);
    let old = ["0.3.1", "0.4.0"].contains(&config.version.as_str());
    let interface = |name: &str, bytes, sandbox: String| Interface {
        name: name.to_owned(),
        mac: mac(bytes),
        mtu,
        sandbox,
    };
    let addresses = &attachment.addresses;
    let everywhere = |address: &IpAddr| match address {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    };
    Success {
        version: config.version.clone(),
        interfaces: vec![
            interface(&attachment.device, host, String::new()),
            interface(
                &key.interface,
                pod,
                attachment.sandbox.display().to_string(),
            ),
        ],
        ips: addresses
            .iter()
            .map(|address| Ip {
                version: old.then(|| if address.is_ipv4() { "4" } else { "6" }.to_owned()),
                interface: Some(1),
                address: (*address).into(),
                gateway: Some(link::gateway(*address)),
            })
            .collect(),
        routes: addresses
            .iter()
            .map(|address| ResultRoute {
                dst: everywhere(address),
                gw: Some(link::gateway(*address)),
            })
            .collect(),
        dns: Dns::default(),
    }
}
