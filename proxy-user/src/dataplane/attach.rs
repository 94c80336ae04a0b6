//! Where the programs hang: XDP and TCX by links that are pinned, TC before Linux 6.6 by filters.
//!
//! A program is replaced in place, so a device is never without one: not at a restart, not at an
//! upgrade. What somebody else takes away is put back by the next round.

mod clsact;
mod link;
mod sockets;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use proxy_common::abi::{LOOPBACK, Settings};

use self::link::Link;
pub use self::sockets::{AttachedSockets, Sockets};
use super::load::{Program, Programs, program_name};
use super::maps;
use super::pins::{PinError, PinFolder, remove_pin};
use super::probe::{TCX_EGRESS, TCX_INGRESS};
use super::table::Table;
use crate::config::XdpMode;
use crate::kernel::devices::XdpState;
use crate::kernel::netlink::Netlink;
use crate::kernel::sysctl::Sysctl;

/// `BPF_XDP`.
const XDP: u32 = 37;
/// `XDP_FLAGS_SKB_MODE`.
const XDP_GENERIC: u32 = 1 << 1;
/// `XDP_FLAGS_DRV_MODE`.
const XDP_NATIVE: u32 = 1 << 2;

/// What may go wrong at one hook of one device.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel refused the program there.
    #[error("cannot attach {program} to {device} ({how}): {source}{}", hint(.how, .source))]
    Refused {
        /// The program's name.
        program: &'static str,
        /// The device's name.
        device: String,
        /// By which mechanism.
        how: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Filters could not be read or removed.
    #[error("cannot look after the traffic control filters of {device}: {source}")]
    Filters {
        /// The device's name, or its index if it has none any more.
        device: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A link's pin.
    #[error("cannot pin a link at {path}: {source}")]
    Pin {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A link that would not let go.
    #[error("cannot detach the link pinned at {path}: {source}")]
    Detach {
        /// Its pin.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The sockets of a cgroup.
    #[error("sockets.cgroup = {cgroup:?}: {problem}")]
    Cgroup {
        /// The cgroup's folder.
        cgroup: PathBuf,
        /// What is wrong, and what to write.
        problem: String,
    },
    /// Around the pins' folder.
    #[error(transparent)]
    Folder(#[from] PinError),
}

fn hint(how: &str, source: &io::Error) -> &'static str {
    match (how, source.raw_os_error()) {
        ("native XDP", Some(libc::EOPNOTSUPP)) => {
            " (the driver has no XDP: set this device's xdp mode to \"auto\", \"generic\" or \"off\")"
        }
        ("native XDP", Some(libc::EINVAL | libc::ERANGE)) => {
            " (drivers refuse XDP at a large MTU, with large receive offload, or with too few queues)"
        }
        (_, Some(libc::EBUSY | libc::EEXIST)) => {
            " (another XDP program is there: `bpftool net show` names it)"
        }
        _ => "",
    }
}

/// A hook of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// XDP.
    Xdp,
    /// TC, what comes in.
    Ingress,
    /// TC, what goes out.
    Egress,
}

impl Hook {
    const ALL: [Self; 3] = [Self::Xdp, Self::Ingress, Self::Egress];

    /// The name of the program that belongs there.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::Xdp => program_name::XDP_UPLINK,
            Self::Ingress => program_name::TC_INGRESS,
            Self::Egress => program_name::TC_EGRESS,
        }
    }

    /// The hook that a program of this name belongs to.
    fn of_program(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.program() == name)
    }
}

/// How TC programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcMode {
    /// By links (TCX).
    Tcx,
    /// By filters of the `clsact` qdisc.
    Clsact,
}

/// A device that programs belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Kernel interface index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// XDP at this device; pods' devices have it off.
    pub xdp: XdpMode,
    /// Whether the device has a driver of hardware, real or paravirtual.
    pub hardware: bool,
    /// How XDP runs there just now.
    pub xdp_state: XdpState,
}

impl Target {
    /// Where TC programs belong. What the loopback device takes in has been sent there on this node.
    const fn tc_hooks(&self) -> &'static [Hook] {
        if self.ifindex == LOOPBACK {
            &[Hook::Egress]
        } else {
            &[Hook::Ingress, Hook::Egress]
        }
    }
}

/// What is attached to a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Attached {
    /// Kernel interface index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// `native`, `generic`, or `off`.
    pub xdp: &'static str,
    /// `tcx`, `clsact`, or `off`.
    pub tc: &'static str,
    /// What failed, if anything did.
    pub problems: Vec<String>,
}

/// Looks after all attachments.
#[derive(Debug)]
pub struct Attachments {
    folder: PinFolder,
    programs: Programs,
    tc: TcMode,
    links: BTreeMap<(Hook, u32), Link>,
    /// Devices with filters of ours; none: not looked for yet.
    filtered: Option<BTreeMap<u32, String>>,
    /// Devices whose driver has refused XDP: not asked again until they come anew.
    no_native: BTreeSet<(u32, String)>,
}

impl Attachments {
    /// Attaches nothing yet. Pins of an earlier run in `folder` are taken over by
    /// [`sync`](Self::sync).
    #[must_use]
    pub fn new(folder: PinFolder, programs: Programs, tc: TcMode) -> Self {
        Self {
            folder,
            programs,
            tc,
            links: BTreeMap::new(),
            filtered: None,
            no_native: BTreeSet::new(),
        }
    }

    /// The programs.
    #[must_use]
    pub const fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Makes every target have its programs, and nothing else have any of ours.
    ///
    /// What fails at one hook is in the answer and keeps no other from being attached; the next
    /// call tries again.
    pub fn sync(&mut self, targets: &[Target]) -> Result<Vec<Attached>, AttachError> {
        let mut netlink = Netlink::connect().map_err(filters_error("any device"))?;
        let wanted: BTreeMap<u32, &Target> = targets
            .iter()
            .map(|target| (target.ifindex, target))
            .collect();
        self.no_native.retain(|(ifindex, name)| {
            wanted
                .get(ifindex)
                .is_some_and(|target| target.name == *name)
        });
        if self.filtered.is_none() {
            self.filtered = Some(find_filters(&mut netlink)?);
        }
        let attached = targets
            .iter()
            .map(|target| self.attach(&mut netlink, target))
            .collect();
        self.release(&mut netlink, &wanted)?;
        Ok(attached)
    }

    fn attach(&mut self, netlink: &mut Netlink, target: &Target) -> Attached {
        let mut attached = Attached {
            ifindex: target.ifindex,
            name: target.name.clone(),
            xdp: "off",
            tc: "off",
            problems: Vec::new(),
        };
        // TC first: it does everything, so the device works from here on.
        let mut all = true;
        for &hook in target.tc_hooks() {
            if let Err(error) = self.attach_tc(netlink, target, hook) {
                attached.problems.push(problem(&error));
                all = false;
            }
        }
        if all {
            attached.tc = match self.tc {
                TcMode::Tcx => "tcx",
                TcMode::Clsact => "clsact",
            };
        }
        match self.attach_xdp(target) {
            Ok(how) => attached.xdp = how,
            Err(error) => attached.problems.push(problem(&error)),
        }
        attached
    }

    fn attach_tc(
        &mut self,
        netlink: &mut Netlink,
        target: &Target,
        hook: Hook,
    ) -> Result<(), AttachError> {
        let attach_type = if hook == Hook::Egress {
            TCX_EGRESS
        } else {
            TCX_INGRESS
        };
        if self.tc == TcMode::Tcx {
            return self.ensure_link(target, hook, attach_type, 0, "TCX");
        }
        let program = program(&self.programs, hook);
        let held =
            clsact::find(netlink, target.ifindex, hook).map_err(filters_error(&target.name))?;
        if held.is_none_or(|filter| filter.program != program.id) {
            clsact::attach(netlink, target.ifindex, hook, program)
                .map_err(|source| refused(hook, target, "TC filter", source))?;
            tracing::info!(device = %target.name, program = hook.program(), "attached by a TC filter");
        }
        self.filtered
            .get_or_insert_default()
            .insert(target.ifindex, target.name.clone());
        // The other mechanism's, if an earlier run used it: only now, so that one is always there.
        self.drop_link(hook, target.ifindex)
    }

    fn attach_xdp(&mut self, target: &Target) -> Result<&'static str, AttachError> {
        let place = (target.ifindex, target.name.clone());
        let refused = self.no_native.contains(&place);
        match xdp_at(target.xdp, target.hardware, refused) {
            XdpMode::Native => match self.ensure_xdp(target, XdpState::Native) {
                Err(AttachError::Refused { source, .. })
                    if source.raw_os_error() == Some(libc::EOPNOTSUPP) =>
                {
                    tracing::info!(device = %target.name, "the driver has no XDP");
                    self.no_native.insert(place);
                    self.attach_xdp(target)
                }
                other => other.map(|()| "native"),
            },
            XdpMode::Generic => self
                .ensure_xdp(target, XdpState::Generic)
                .map(|()| "generic"),
            XdpMode::Auto | XdpMode::Off => {
                self.drop_link(Hook::Xdp, target.ifindex).map(|()| "off")
            }
        }
    }

    fn ensure_xdp(&mut self, target: &Target, state: XdpState) -> Result<(), AttachError> {
        let (flags, how) = match state {
            XdpState::Generic => (XDP_GENERIC, "generic XDP"),
            _ => (XDP_NATIVE, "native XDP"),
        };
        // A link cannot change between the driver and the stack: make it anew.
        if target.xdp_state != XdpState::None && target.xdp_state != state {
            self.drop_link(Hook::Xdp, target.ifindex)?;
        }
        self.ensure_link(target, Hook::Xdp, XDP, flags, how)
    }

    /// A link of ours with our program, adopted or made.
    fn ensure_link(
        &mut self,
        target: &Target,
        hook: Hook,
        attach_type: u32,
        flags: u32,
        how: &'static str,
    ) -> Result<(), AttachError> {
        let program = program(&self.programs, hook);
        let path = self.folder.link(hook.program(), target.ifindex);
        let refused = |source| refused(hook, target, how, source);
        let held = self.links.remove(&(hook, target.ifindex));
        let held = held.or_else(|| Link::open(&path).ok());
        let held = held.filter(|link| link.is_attached_to(target.ifindex));
        let link = if let Some(link) = held {
            if link.update(program).map_err(refused)? {
                tracing::info!(device = %target.name, program = program.name, how, "updated");
            }
            link
        } else {
            remove_pin(&path)?;
            let link =
                Link::create(program, target.ifindex, attach_type, flags).map_err(refused)?;
            tracing::info!(device = %target.name, program = program.name, how, "attached");
            link
        };
        link.pin(&path)
            .map_err(|source| AttachError::Pin { path, source })?;
        self.links.insert((hook, target.ifindex), link);
        Ok(())
    }

    fn drop_link(&mut self, hook: Hook, ifindex: u32) -> Result<(), AttachError> {
        self.links.remove(&(hook, ifindex));
        remove_link(&self.folder.link(hook.program(), ifindex))
    }

    /// Takes our programs from everything that is no target.
    fn release(
        &mut self,
        netlink: &mut Netlink,
        wanted: &BTreeMap<u32, &Target>,
    ) -> Result<(), AttachError> {
        self.links
            .retain(|(_, ifindex), _| wanted.contains_key(ifindex));
        for (program, ifindex, path) in self.folder.pinned_links()? {
            // A program that only another version has would work beside ours.
            if sockets::is_program(&program) {
                continue;
            }
            if !wanted.contains_key(&ifindex) || Hook::of_program(&program).is_none() {
                remove_link(&path)?;
                tracing::info!(ifindex, program, "detached");
            }
        }
        // Filters of an earlier run that used no links go too, once the links are there.
        let tc = self.tc;
        let filtered = self.filtered.get_or_insert_default();
        let gone = filtered.extract_if(.., |ifindex, _| {
            tc == TcMode::Tcx || !wanted.contains_key(ifindex)
        });
        for (ifindex, device) in gone {
            detach_filters(netlink, ifindex).map_err(filters_error(&device))?;
        }
        Ok(())
    }
}

/// How XDP runs at a device, by what is configured, by whether it has a driver of hardware, and by
/// whether its driver has refused. Never [`XdpMode::Auto`].
///
/// On virtual devices native XDP costs more than it gives: a veth loses its offloads with it.
const fn xdp_at(configured: XdpMode, hardware: bool, refused: bool) -> XdpMode {
    match (configured, hardware, refused) {
        (XdpMode::Auto, true, false) | (XdpMode::Native, _, false) => XdpMode::Native,
        (XdpMode::Native, _, true) | (XdpMode::Generic, ..) => XdpMode::Generic,
        (XdpMode::Auto | XdpMode::Off, ..) => XdpMode::Off,
    }
}

/// Detaches the link that is pinned at `path`, and removes the pin.
fn remove_link(path: &Path) -> Result<(), AttachError> {
    if let Ok(link) = Link::open(path) {
        link.detach().map_err(|source| AttachError::Detach {
            path: path.to_owned(),
            source,
        })?;
    }
    Ok(remove_pin(path)?)
}

fn program(programs: &Programs, hook: Hook) -> &Program {
    match hook {
        Hook::Xdp => &programs.xdp_uplink,
        Hook::Ingress => &programs.tc_ingress,
        Hook::Egress => &programs.tc_egress,
    }
}

fn refused(hook: Hook, target: &Target, how: &'static str, source: io::Error) -> AttachError {
    AttachError::Refused {
        program: hook.program(),
        device: target.name.clone(),
        how,
        source,
    }
}

fn problem(error: &AttachError) -> String {
    tracing::warn!(%error, "not attached; will be tried again");
    error.to_string()
}

fn filters_error(device: &str) -> impl FnOnce(io::Error) -> AttachError {
    let device = device.to_owned();
    |source| AttachError::Filters { device, source }
}

fn detach_filters(netlink: &mut Netlink, ifindex: u32) -> io::Result<()> {
    for hook in [Hook::Ingress, Hook::Egress] {
        match clsact::detach(netlink, ifindex, hook) {
            // The device has gone meanwhile, and its filters with it.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Devices with filters of ours.
fn find_filters(netlink: &mut Netlink) -> Result<BTreeMap<u32, String>, AttachError> {
    let devices = crate::kernel::devices::list(netlink).map_err(filters_error("any device"))?;
    let mut found = BTreeMap::new();
    for device in devices.values() {
        for hook in [Hook::Ingress, Hook::Egress] {
            let filter =
                clsact::find(netlink, device.ifindex, hook).map_err(filters_error(&device.name))?;
            if filter.is_some() {
                found.insert(device.ifindex, device.name.clone());
            }
        }
    }
    Ok(found)
}

/// Takes every program of the instance from every device, and gives up its maps: all pins, and all
/// filters of ours in this network namespace. Needs no daemon, and works after any crash.
pub fn detach_all(folder: &PinFolder) -> Result<(), AttachError> {
    let mut netlink = Netlink::connect().map_err(filters_error("any device"))?;
    for (ifindex, device) in find_filters(&mut netlink)? {
        detach_filters(&mut netlink, ifindex).map_err(filters_error(&device))?;
    }
    for (_, _, path) in folder.pinned_links()? {
        remove_link(&path)?;
    }
    if let Some(ports) = reserved_ports(folder)
        && let Err(error) = Sysctl::default().free_ports(&ports)
    {
        tracing::warn!(%error, "the ports for translation stay reserved");
    }
    folder.remove()?;
    Ok(())
}

/// The ports that the daemon reserved, as the settings in the kernel say.
fn reserved_ports(folder: &PinFolder) -> Option<RangeInclusive<u16>> {
    let map = maps::open_pinned(&folder.map("SETTINGS")).ok()?;
    let settings = Table::<u32, Settings>::new(map).ok()?.get(&0).ok()??;
    let last = (settings.port_min + settings.port_count).checked_sub(1)?;
    let (first, last) = (settings.port_min.try_into().ok()?, last.try_into().ok()?);
    (settings.port_count > 0).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xdp_runs_where_it_pays_or_is_asked_for() {
        use XdpMode::{Auto, Generic, Native, Off};
        // Configured; at hardware, there refused, at a virtual device, there refused.
        let rows = [
            (Auto, [Native, Off, Off, Off]),
            (Native, [Native, Generic, Native, Generic]),
            (Generic, [Generic; 4]),
            (Off, [Off; 4]),
        ];
        let places = [(true, false), (true, true), (false, false), (false, true)];
        for (configured, expected) in rows {
            let found = places.map(|(hardware, refused)| xdp_at(configured, hardware, refused));
            assert_eq!(found, expected, "{configured:?}");
        }
    }
}
