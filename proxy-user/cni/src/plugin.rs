//! The verbs.

mod add;
mod other;

use std::io;
use std::path::Path;

use crate::error::{CniError, Code};
use crate::link::{self, Pair};
use crate::netlink::Netlink;
use crate::node::{NodeFile, Presence};
use crate::protocol::{AttachmentKey, NetworkConfig, VERSIONS, Variable, required};
use crate::record::{Attachment, Store};

/// After each of these a plugin that is killed leaves something else behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// ADD has chosen addresses.
    Chosen,
    /// ADD has written the record.
    Recorded,
    /// ADD has made both devices.
    Linked,
    /// ADD has set up the pod's end.
    PodReady,
    /// ADD has set up the host's end.
    HostReady,
    /// ADD has completed the record.
    Completed,
    /// The daemon has attached its programs.
    Attended,
    /// DEL or GC has removed the devices.
    Unlinked,
    /// DEL or GC has removed the record.
    Forgotten,
}

/// Is told of each step. Tests end the process there.
pub trait Progress {
    /// A step was taken.
    fn reached(&mut self, step: Step);
}

/// Nobody looks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl Progress for Unwatched {
    fn reached(&mut self, _: Step) {}
}

/// Does what the environment and the configuration ask for. What it returns goes to stdout.
pub fn answer(
    variable: &Variable<'_>,
    input: &str,
    progress: &mut dyn Progress,
) -> Result<String, CniError> {
    let command = required(variable, "CNI_COMMAND")?;
    if command == "VERSION" {
        return version(input);
    }
    let config = NetworkConfig::parse(input)?;
    match command.as_str() {
        "ADD" => {
            let success = add::add(variable, &config, progress)?;
            to_text(&success)
        }
        "DEL" => other::del(variable, &config, progress).map(|()| String::new()),
        "CHECK" => other::check(variable, &config).map(|()| String::new()),
        "GC" => other::gc(&config, progress).map(|()| String::new()),
        "STATUS" => other::status(&config).map(|()| String::new()),
        _ => Err(CniError::new(
            Code::InvalidEnvironment,
            format!("CNI_COMMAND = {command:?}"),
            "ADD, DEL, CHECK, GC, STATUS and VERSION are known",
        )),
    }
}

fn to_text(value: &impl serde::Serialize) -> Result<String, CniError> {
    serde_json::to_string_pretty(value)
        .map_err(|error| CniError::new(Code::Io, "cannot write the result", error.to_string()))
}

fn version(input: &str) -> Result<String, CniError> {
    let asked = crate::protocol::version_of(input).ok_or_else(|| {
        CniError::new(
            Code::Decoding,
            "no cniVersion on stdin",
            "VERSION reads an object with the key cniVersion",
        )
    })?;
    to_text(&serde_json::json!({ "cniVersion": asked, "supportedVersions": VERSIONS }))
}

/// The store, with an error that says which.
fn store(config: &NetworkConfig) -> Result<Store, CniError> {
    Store::new(&config.state)
        .map_err(|error| CniError::io("cannot tell which boot this is", &error))
}

fn netlink() -> Result<Netlink, CniError> {
    Netlink::connect().map_err(|error| CniError::kernel("cannot open a netlink socket", &error))
}

/// What devices a record stands for.
fn pair(attachment: &Attachment, macs: [[u8; 6]; 2], sandbox: i32) -> Pair<'_> {
    Pair {
        device: &attachment.device,
        interface: &attachment.interface,
        macs,
        mtu: attachment.mtu,
        sandbox,
    }
}

/// Takes away all that an ADD makes, in the opposite order; what is not there is no error.
fn undo(store: &Store, key: &AttachmentKey, progress: &mut dyn Progress) -> Result<(), CniError> {
    let device = key.device();
    link::remove(&mut netlink()?, &device)
        .map_err(|error| CniError::kernel(format!("cannot remove {device}"), &error))?;
    progress.reached(Step::Unlinked);
    store.remove(key)?;
    progress.reached(Step::Forgotten);
    Ok(())
}

/// The daemon's word about the node.
#[derive(Debug)]
enum Daemon {
    /// It is ready.
    Ready(NodeFile),
    /// It was there once.
    Away,
    /// Nobody has ever written here.
    Never,
}

impl Daemon {
    fn look(root: &Path) -> io::Result<Self> {
        Ok(match NodeFile::read(root)? {
            Some(file) if Presence::is_there(root)? => Self::Ready(file),
            Some(_) => Self::Away,
            None => Self::Never,
        })
    }

    /// Why nothing can be done without it.
    fn problem(&self, root: &Path) -> Option<(String, &'static str)> {
        match self {
            Self::Ready(_) => None,
            Self::Away => Some((
                "the daemon of Causeway is not running on this node, or not ready yet".to_owned(),
                "see `causeway status`, and the log of the pod or unit that runs it",
            )),
            Self::Never => Some((
                format!(
                    "no daemon of Causeway has written {}",
                    root.join("node.json").display()
                ),
                "run it with pod_network.enabled = true, and with state.directory such that \
                 stateDirectory of this network configuration is its folder cni",
            )),
        }
    }
}
