//! Loads the programs: the embedded object, with the pinned maps put in place of its own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use aya::programs::{Program as AyaProgram, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader, VerifierLogLevel};
use proxy_common::abi::MAPS;

use super::pins::PinFolder;
use super::syscall;

/// The object that `build.rs` makes from `proxy-ebpf`; empty where no BPF toolchain was found.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("CAUSEWAY_BPF_OBJECT"));

/// The embedded object; an error if this build has none.
pub fn embedded_object() -> Result<&'static [u8], LoadError> {
    not_a_stub(OBJECT)
}

fn not_a_stub(object: &[u8]) -> Result<&[u8], LoadError> {
    if object.is_empty() {
        return Err(LoadError::NoObject);
    }
    Ok(object)
}

/// The programs' names, in the object and in the names of pins.
pub mod program_name {
    /// At XDP.
    pub const XDP_UPLINK: &str = "xdp_uplink";
    /// At TC ingress.
    pub const TC_INGRESS: &str = "tc_ingress";
    /// At TC egress.
    pub const TC_EGRESS: &str = "tc_egress";
}

/// Why programs could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// This build was made without a BPF toolchain.
    #[error(
        "this build of causeway has no kernel programs in it: install the BPF toolchain with `cargo xtask setup` and \
         build again"
    )]
    NoObject,
    /// The object could not be read, or its data maps could not be made.
    #[error("cannot read the object with the kernel programs")]
    Object(#[source] Box<EbpfError>),
    /// The object lacks a program, or has it with another type.
    #[error("the object has no program {name} of the right type")]
    Missing {
        /// Which.
        name: &'static str,
    },
    /// The verifier refused a program.
    #[error(
        "the kernel's verifier refused the program {name}: {summary}; the whole log is shown with RUST_LOG=debug"
    )]
    Verifier {
        /// Which.
        name: &'static str,
        /// The log's last line that says something.
        summary: String,
    },
    /// The kernel refused a program for another reason.
    #[error("cannot load the program {name}: {source}{}", permission_hint(.source))]
    Refused {
        /// Which.
        name: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something else on the way to the kernel.
    #[error("cannot load the program {name}")]
    Program {
        /// Which.
        name: &'static str,
        /// What aya said.
        #[source]
        source: Box<ProgramError>,
    },
}

fn permission_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM) => {
            " (CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed, and before Linux 5.11 a larger memlock limit)"
        }
        _ => "",
    }
}

/// Values that are fixed when the programs are loaded; the verifier removes what they rule out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Globals {
    /// The time in ticks that programs believe in; zero: the kernel's. For tests.
    pub fixed_tick: u32,
    /// `BPF_F_IPV6` where the kernel knows it ([`Features::l4_csum_ipv6`](super::Features)).
    pub l4_csum_ipv6: u64,
}

/// A loaded program.
#[derive(Debug)]
pub struct Program {
    /// Its name in the object.
    pub name: &'static str,
    /// The kernel's id for it.
    pub id: u32,
    fd: OwnedFd,
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Program {
    pub(super) fn new(name: &'static str, fd: OwnedFd) -> io::Result<Self> {
        let id = syscall::object_info::<syscall::ProgramInfo>(fd.as_fd())?.id;
        Ok(Self { name, id, fd })
    }

    /// Runs the program once on a frame (`BPF_PROG_TEST_RUN`), in the calling thread's network
    /// namespace. What becomes of the frame is written to `out`, which must be large enough.
    ///
    /// `context`: the beginning of `struct xdp_md` or `struct __sk_buff`; an empty slice is none.
    pub fn test_run(
        &self,
        frame: &[u8],
        context: &[u32],
        out: &mut [u8],
    ) -> io::Result<syscall::TestRun> {
        syscall::test_run_in(self.fd.as_fd(), frame, context, out)
    }

    /// Attaches an XDP program to a device, natively, until the descriptor is dropped: a device's
    /// queues are only known to test runs while a program is there (`xdp_rxq_info_is_reg`).
    pub fn hold_native(&self, ifindex: u32) -> io::Result<OwnedFd> {
        const BPF_XDP: u32 = 37;
        const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
        syscall::link_create(self.fd.as_fd(), ifindex, BPF_XDP, XDP_FLAGS_DRV_MODE)
    }
}

/// All programs, loaded and attached nowhere.
#[derive(Debug)]
pub struct Programs {
    /// For uplinks where XDP is on.
    pub xdp_uplink: Program,
    /// For what comes in at uplinks and from pods.
    pub tc_ingress: Program,
    /// For what this node's own processes send.
    pub tc_egress: Program,
}

impl Programs {
    /// Loads the programs of `object`, which use the maps pinned in `folder`: those must be there
    /// already ([`Maps::open_or_create`](super::Maps::open_or_create)).
    pub fn load(object: &[u8], folder: &PinFolder, globals: Globals) -> Result<Self, LoadError> {
        let mut ebpf = open(object, folder, |loader| {
            loader.override_global("FIXED_TICK", &globals.fixed_tick, true);
            loader.override_global("L4_CSUM_IPV6", &globals.l4_csum_ipv6, true);
        })?;
        Ok(Self {
            xdp_uplink: load(&mut ebpf, program_name::XDP_UPLINK)?,
            tc_ingress: load(&mut ebpf, program_name::TC_INGRESS)?,
            tc_egress: load(&mut ebpf, program_name::TC_EGRESS)?,
        })
    }
}

/// Which sockets' programs lead sockets; fixed when they are loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketGlobals {
    /// The node's network namespace (`SO_NETNS_COOKIE`); zero: the initial one.
    pub node_network: u64,
    /// Sockets of other network namespaces, too.
    pub pods: bool,
    /// Sockets of UDP, too.
    pub udp: bool,
}

/// Loads the programs of these names for sockets, which use the maps pinned in `folder`.
pub(super) fn load_for_sockets(
    object: &[u8],
    folder: &PinFolder,
    globals: SocketGlobals,
    names: impl Iterator<Item = &'static str>,
) -> Result<Vec<Program>, LoadError> {
    let switches = [globals.pods, globals.udp].map(u32::from);
    let [pods, udp] = &switches;
    let mut ebpf = open(object, folder, |loader| {
        loader.override_global("NODE_NETWORK", &globals.node_network, true);
        loader.override_global("SOCKETS_OF_PODS", pods, true);
        loader.override_global("SOCKETS_OF_UDP", udp, true);
    })?;
    names.map(|name| load(&mut ebpf, name)).collect()
}

/// Reads the object and opens its maps.
fn open<'a>(
    object: &[u8],
    folder: &PinFolder,
    globals: impl FnOnce(&mut EbpfLoader<'a>),
) -> Result<Ebpf, LoadError> {
    let object = not_a_stub(object)?;
    let mut loader = EbpfLoader::new();
    // No type information of the kernel is used: reading it takes longer than all the rest.
    loader.btf(None);
    loader.verifier_log_level(VerifierLogLevel::default());
    for spec in MAPS {
        loader.map_pin_path(spec.name, folder.map(spec.name));
    }
    globals(&mut loader);
    loader
        .load(object)
        .map_err(|error| LoadError::Object(Box::new(error)))
}

fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<Program, LoadError> {
    let explain = |error| explain(name, error);
    let fd = match ebpf.program_mut(name) {
        Some(AyaProgram::Xdp(program)) => {
            undisturbed(|| program.load(), sleep).map_err(explain)?;
            program.fd().map_err(explain)?.as_fd().try_clone_to_owned()
        }
        Some(AyaProgram::SchedClassifier(program)) => {
            undisturbed(|| program.load(), sleep).map_err(explain)?;
            program.fd().map_err(explain)?.as_fd().try_clone_to_owned()
        }
        Some(AyaProgram::CgroupSockAddr(program)) => {
            undisturbed(|| program.load(), sleep).map_err(explain)?;
            program.fd().map_err(explain)?.as_fd().try_clone_to_owned()
        }
        _ => return Err(LoadError::Missing { name }),
    };
    fd.and_then(|fd| Program::new(name, fd))
        .map_err(|source| LoadError::Refused { name, source })
}

/// The waits between attempts to load: libbpf's five at once, then ever longer ones, 2.5 s in all.
/// Ten attempts within milliseconds were once seen to be disturbed, every one of them.
#[expect(
    clippy::indexing_slicing,
    reason = "a constant whose making goes out of bounds does not compile"
)]
const PAUSES: [Duration; 12] = {
    let mut pauses = [Duration::ZERO; 12];
    let mut at = 4;
    while at < pauses.len() {
        pauses[at] = Duration::from_millis(10 << (at - 4));
        at += 1;
    }
    pauses
};

/// Loads anew when a signal to this thread was pending, which makes the verifier give up
/// (`do_check` in kernel/bpf/verifier.c).
fn undisturbed(
    mut load: impl FnMut() -> Result<(), ProgramError>,
    pause: impl Fn(Duration),
) -> Result<(), ProgramError> {
    let disturbed = |error: &ProgramError| {
        matches!(error, ProgramError::LoadError { io_error, .. }
            if io_error.raw_os_error() == Some(libc::EAGAIN))
    };
    for wait in PAUSES {
        match load() {
            Err(error) if disturbed(&error) => pause(wait),
            result => return result,
        }
    }
    load()
}

fn explain(name: &'static str, error: ProgramError) -> LoadError {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            match summary(&log) {
                Some(summary) => {
                    tracing::debug!(program = name, %log, "verifier log");
                    LoadError::Verifier {
                        name,
                        summary: format!("{summary} ({io_error})"),
                    }
                }
                None => LoadError::Refused {
                    name,
                    source: io_error,
                },
            }
        }
        error => LoadError::Program {
            name,
            source: Box::new(error),
        },
    }
}

/// The last line of a verifier log that says why: the statistics that follow it are left out.
fn summary(log: &str) -> Option<&str> {
    let statistics = |line: &&str| {
        [
            "processed ",
            "verification time",
            "stack depth",
            "max_states",
        ]
        .iter()
        .any(|start| line.starts_with(start))
    };
    log.lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty() && !statistics(line))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use aya_obj::VerifierLog;

    use super::*;

    fn refusal(number: i32) -> ProgramError {
        ProgramError::LoadError {
            io_error: io::Error::from_raw_os_error(number),
            verifier_log: VerifierLog::new(String::new()),
        }
    }

    #[test]
    fn a_signal_is_no_refusal() {
        let attempts = |mut results: Vec<i32>| {
            let mut count = 0;
            let waited = Cell::new(Duration::ZERO);
            let load = || {
                count += 1;
                results.pop().map_or(Ok(()), |number| Err(refusal(number)))
            };
            let result = undisturbed(load, |wait| waited.set(waited.get() + wait));
            (count, result.is_ok(), waited.get().as_millis())
        };
        assert_eq!(attempts(vec![]), (1, true, 0));
        assert_eq!(attempts(vec![libc::EAGAIN; 4]), (5, true, 0));
        assert_eq!(attempts(vec![libc::EAGAIN; 6]), (7, true, 30));
        assert_eq!(attempts(vec![libc::EAGAIN; 99]), (13, false, 2_550));
        assert_eq!(attempts(vec![libc::EACCES]), (1, false, 0));
    }

    /// What `build.rs` embeds where it finds no toolchain.
    #[test]
    fn a_stub_is_refused_with_what_to_install() {
        let folder = PinFolder::under(std::path::Path::new("/nowhere"), "stub");
        let error = Programs::load(&[], &folder, Globals::default()).unwrap_err();
        assert!(matches!(error, LoadError::NoObject), "{error}");
        assert!(error.to_string().contains("`cargo xtask setup`"), "{error}");
        assert!(not_a_stub(b"\x7fELF").is_ok());
    }

    #[test]
    fn the_reason_is_found_before_the_statistics() {
        let log = "0: (b7) r0 = 0\n1: (61) r1 = *(u32 *)(r0 +0)\nR0 invalid mem access 'scalar'\n\
                   processed 2 insns (limit 1000000) max_states_per_insn 0\n\n";
        assert_eq!(summary(log), Some("R0 invalid mem access 'scalar'"));
        assert_eq!(summary("\n"), None);
    }
}
