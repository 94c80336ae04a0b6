//! Programs at the sockets of a cgroup: links that are pinned as those of devices are.
//!
//! They are an optimisation: without them TC does all there is to do. So one that cannot be attached is
//! told of, and keeps nothing else from working.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::link::Link;
use super::{AttachError, problem, remove_link};
use crate::config::SocketsConfig;
use crate::dataplane::load::{LoadError, Program, SocketGlobals, load_for_sockets};
use crate::dataplane::pins::PinFolder;
use crate::dataplane::syscall;

/// Where cgroups of version 2 are mounted: alone, or beside those of version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// A hook of sockets.
struct Hook {
    program: &'static str,
    /// `enum bpf_attach_type`.
    attach_type: u32,
    /// Only datagrams meet it.
    udp: bool,
}

const fn hook(program: &'static str, attach_type: u32, udp: bool) -> Hook {
    Hook {
        program,
        attach_type,
        udp,
    }
}

/// In the order in which they are attached: what answers for an address is there before what changes it.
const HOOKS: [Hook; 8] = [
    hook("sock_getpeername4", 29, false),
    hook("sock_getpeername6", 30, false),
    hook("sock_recvmsg4", 19, true),
    hook("sock_recvmsg6", 20, true),
    hook("sock_connect4", 10, false),
    hook("sock_connect6", 11, false),
    hook("sock_sendmsg4", 14, true),
    hook("sock_sendmsg6", 15, true),
];

/// Whether a program of this name belongs to sockets.
pub(super) fn is_program(name: &str) -> bool {
    HOOKS.iter().any(|hook| hook.program == name)
}

/// What is attached to sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AttachedSockets {
    /// The cgroup.
    pub cgroup: PathBuf,
    /// `tcp`, and `udp` if that was asked for.
    pub protocols: Vec<String>,
    /// Whether pods' sockets are led, too.
    pub pods: bool,
    /// How many programs are attached.
    pub programs: usize,
    /// What failed, if anything did.
    pub problems: Vec<String>,
}

/// Looks after the programs at sockets.
#[derive(Debug)]
pub struct Sockets {
    folder: PinFolder,
    object: &'static [u8],
    /// Loaded when they are first wanted.
    loaded: Option<(SocketGlobals, Vec<Program>)>,
    links: BTreeMap<&'static str, Link>,
}

impl Sockets {
    /// Attaches nothing yet. Pins of an earlier run in `folder` are taken over by [`sync`](Self::sync).
    #[must_use]
    pub const fn new(folder: PinFolder, object: &'static [u8]) -> Self {
        Self {
            folder,
            object,
            loaded: None,
            links: BTreeMap::new(),
        }
    }

    /// Makes the configured cgroup have the programs, and no other any of ours. None: none are wanted.
    ///
    /// What fails is in the answer; the next call tries again.
    pub fn sync(&mut self, config: &SocketsConfig) -> Option<AttachedSockets> {
        if !config.enabled {
            self.loaded = None;
            for hook in &HOOKS {
                if let Err(error) = self.detach(hook) {
                    tracing::warn!(%error, "still attached to sockets; will be tried again");
                }
            }
            return None;
        }
        let mut attached = AttachedSockets {
            cgroup: config.cgroup.clone().unwrap_or_else(find_cgroup),
            protocols: vec!["tcp".to_owned()],
            pods: config.pods,
            programs: 0,
            problems: Vec::new(),
        };
        if config.udp {
            attached.protocols.push("udp".to_owned());
        }
        let place = open_cgroup(&attached.cgroup);
        let ready = place.and_then(|place| {
            self.load(config, &attached.cgroup)?;
            Ok(place)
        });
        let place = match ready {
            Ok(place) => place,
            Err(error) => {
                attached.problems.push(problem(&error));
                return Some(attached);
            }
        };
        for hook in &HOOKS {
            let done = if hook.udp && !config.udp {
                self.detach(hook).map(|()| 0)
            } else {
                self.attach(hook, &place, &attached.cgroup).map(|()| 1)
            };
            match done {
                Ok(programs) => attached.programs += programs,
                Err(error) => attached.problems.push(problem(&error)),
            }
        }
        Some(attached)
    }

    /// Loads the programs unless they are loaded as they are wanted.
    fn load(&mut self, config: &SocketsConfig, cgroup: &Path) -> Result<(), AttachError> {
        let cookie = syscall::network_cookie().map_err(|source| AttachError::Cgroup {
            cgroup: cgroup.to_owned(),
            problem: format!("cannot ask which network namespace is this node's: {source}"),
        })?;
        let globals = SocketGlobals {
            node_network: cookie.unwrap_or_default(),
            pods: config.pods,
            udp: config.udp,
        };
        if self
            .loaded
            .as_ref()
            .is_none_or(|(held, _)| *held != globals)
        {
            let names = HOOKS.iter().map(|hook| hook.program);
            let programs = load_for_sockets(self.object, &self.folder, globals, names);
            let programs = programs.map_err(|error: LoadError| AttachError::Cgroup {
                cgroup: cgroup.to_owned(),
                problem: format!(
                    "{error}; Linux 5.8 or newer can lead sockets: write enabled = false for an \
                     older one"
                ),
            })?;
            self.loaded = Some((globals, programs));
        }
        Ok(())
    }

    /// A link of ours with our program, adopted or made.
    fn attach(&mut self, hook: &Hook, place: &Place, cgroup: &Path) -> Result<(), AttachError> {
        let refused = |source| AttachError::Refused {
            program: hook.program,
            device: cgroup.display().to_string(),
            how: "cgroup",
            source,
        };
        let programs = self.loaded.iter().flat_map(|(_, programs)| programs);
        let Some(program) = { programs }.find(|program| program.name == hook.program) else {
            return Ok(());
        };
        let path = self.folder.link(hook.program, 0);
        let held = self.links.remove(hook.program);
        let held = held.or_else(|| Link::open(&path).ok());
        let held = held.filter(|link| link.is_attached_to_cgroup(place.number));
        let link = if let Some(link) = held {
            if link.update(program).map_err(refused)? {
                tracing::info!(cgroup = %cgroup.display(), program = program.name, "updated");
            }
            link
        } else {
            // Another cgroup's.
            remove_link(&path)?;
            let link = Link::at_cgroup(program, place.file.as_fd(), hook.attach_type);
            tracing::info!(cgroup = %cgroup.display(), program = program.name, "attached");
            link.map_err(refused)?
        };
        link.pin(&path)
            .map_err(|source| AttachError::Pin { path, source })?;
        self.links.insert(hook.program, link);
        Ok(())
    }

    fn detach(&mut self, hook: &Hook) -> Result<(), AttachError> {
        self.links.remove(hook.program);
        let path = self.folder.link(hook.program, 0);
        if !path.exists() {
            return Ok(());
        }
        remove_link(&path)?;
        tracing::info!(program = hook.program, "detached from sockets");
        Ok(())
    }
}

/// A cgroup's folder.
struct Place {
    file: File,
    /// The cgroup's number, which is the folder's inode (`kernfs_id` in the kernel).
    number: u64,
}

/// The root of the cgroups.
fn find_cgroup() -> PathBuf {
    let found = MOUNTS.iter().map(Path::new).find(|path| is_cgroup(path));
    found.unwrap_or_else(|| Path::new(MOUNTS[0])).to_owned()
}

fn is_cgroup(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

fn open_cgroup(path: &Path) -> Result<Place, AttachError> {
    const REMEDY: &str = "write a folder of the cgroup2 file system, as \"/sys/fs/cgroup\" \
                          (`mount -t cgroup2` shows where that is), or enabled = false";
    let error = |problem: String| AttachError::Cgroup {
        cgroup: path.to_owned(),
        problem,
    };
    let opened = File::open(path).and_then(|file| {
        let number = file.metadata()?.ino();
        Ok(Place { file, number })
    });
    let place = opened.map_err(|source| error(format!("{source}; {REMEDY}")))?;
    if !is_cgroup(path) {
        return Err(error(format!("not a cgroup of version 2; {REMEDY}")));
    }
    Ok(place)
}
