//! What the running kernel can do, by asking it.

use std::fmt::Display;
use std::fs;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};

use super::{Finding, Standing};
use crate::process;

/// Type information of the running kernel.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// What it is asked.
enum Probe {
    /// Load the smallest program of a type.
    Program(ProgramType),
    /// Make the smallest map of a type.
    Map(MapType),
    /// Load a program that calls a helper.
    Helper(ProgramType, BpfHelper),
    /// Look for a function's name in the kernel's type information: it was compiled in.
    Function(&'static str),
    /// Look for a file.
    File(&'static str),
    /// A setting must have another value than 0.
    Setting(&'static str),
    /// Run a command in a network namespace that ends with it.
    Namespace(&'static str),
}

/// One feature: whether Causeway needs it, the kernel that brought it, what it is for, and what to
/// do or what happens instead.
struct Feature {
    name: &'static str,
    required: bool,
    since: &'static str,
    why: &'static str,
    remedy: &'static str,
    probe: Probe,
}

const XDP: ProgramType = ProgramType::Xdp;
const TC: ProgramType = ProgramType::SchedClassifier;
const NEWER: &str = "boot a newer kernel";

const FEATURES: &[Feature] = &[
    Feature {
        name: "TC programs",
        required: true,
        since: "4.1",
        why: "services for pods and virtual uplinks",
        remedy: "kernel built with CONFIG_NET_CLS_BPF",
        probe: Probe::Program(TC),
    },
    Feature {
        name: "XDP programs",
        required: false,
        since: "4.8",
        why: "services on physical uplinks",
        remedy: "set xdp to off; TC does everything that XDP does",
        probe: Probe::Program(XDP),
    },
    Feature {
        name: "BPF JIT",
        required: false,
        since: "3.0",
        why: "programs run as machine code",
        remedy: "sysctl net.core.bpf_jit_enable=1; interpreted programs are many times slower",
        probe: Probe::Setting("/proc/sys/net/core/bpf_jit_enable"),
    },
    Feature {
        name: "clsact",
        required: true,
        since: "4.5",
        why: "where TC programs attach without TCX",
        remedy: "modprobe sch_ingress cls_bpf",
        probe: Probe::Namespace("ip link set lo up && tc qdisc add dev lo clsact"),
    },
    Feature {
        name: "TCX",
        required: false,
        since: "6.6",
        why: "TC programs as links, which can be pinned and replaced",
        remedy: "clsact is used instead",
        probe: Probe::Function("tcx_link_attach"),
    },
    Feature {
        name: "XDP links",
        required: false,
        since: "5.9",
        why: "XDP programs stay when the daemon ends, and are replaced without a gap",
        remedy: "netlink attachment is used instead",
        probe: Probe::Function("bpf_xdp_link_attach"),
    },
    Feature {
        name: "bpf_fib_lookup",
        required: true,
        since: "4.18",
        why: "next hop of a flow",
        remedy: NEWER,
        probe: Probe::Helper(XDP, BpfHelper::BPF_FUNC_fib_lookup),
    },
    Feature {
        name: "bpf_jiffies64",
        required: true,
        since: "5.5",
        why: "time of a flow, read without a call",
        remedy: NEWER,
        probe: Probe::Helper(XDP, BpfHelper::BPF_FUNC_jiffies64),
    },
    Feature {
        name: "bpf_redirect_neigh",
        required: true,
        since: "5.10",
        why: "sends to a neighbour that the kernel resolves",
        remedy: NEWER,
        probe: Probe::Helper(TC, BpfHelper::BPF_FUNC_redirect_neigh),
    },
    Feature {
        name: "bpf_redirect_peer",
        required: true,
        since: "5.10",
        why: "enters a pod without a second queue",
        remedy: NEWER,
        probe: Probe::Helper(TC, BpfHelper::BPF_FUNC_redirect_peer),
    },
    Feature {
        name: "device maps",
        required: true,
        since: "4.14",
        why: "XDP sends to another device",
        remedy: NEWER,
        probe: Probe::Map(MapType::DevMapHash),
    },
    Feature {
        name: "ring buffer",
        required: false,
        since: "5.8",
        why: "events from programs",
        remedy: NEWER,
        probe: Probe::Map(MapType::RingBuf),
    },
    Feature {
        name: "batched map operations",
        required: false,
        since: "5.6",
        why: "the sweeper reads a million flows in a second",
        remedy: "entries are read one at a time",
        probe: Probe::Function("generic_map_update_batch"),
    },
    Feature {
        name: "BTF of the kernel",
        required: true,
        since: "5.2",
        why: "types of the object's maps and functions",
        remedy: "kernel built with CONFIG_DEBUG_INFO_BTF",
        probe: Probe::File(BTF),
    },
    Feature {
        name: "veth with native XDP",
        required: false,
        since: "4.19",
        why: "tests and demo of the XDP path",
        remedy: "modprobe veth",
        probe: Probe::Namespace("ip link add causeway0 type veth peer name causeway1"),
    },
];

/// Asks the kernel for each of them.
pub(super) fn features() -> Vec<Finding> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let types = fs::read(BTF).unwrap_or_default();
    let mut findings = vec![Finding {
        area: "kernel",
        name: "release".to_owned(),
        standing: Standing::required(at_least(&release, (5, 10))),
        since: "5.10",
        detail: release.trim().to_owned(),
        remedy: NEWER.to_owned(),
    }];
    findings.extend(FEATURES.iter().map(|feature| {
        let answer = feature.probe.ask(&types);
        let present = matches!(answer, Ok(true));
        Finding {
            area: "kernel",
            name: feature.name.to_owned(),
            standing: if feature.required {
                Standing::required(present)
            } else {
                Standing::optional(present)
            },
            since: feature.since,
            detail: match answer {
                Ok(_) => feature.why.to_owned(),
                Err(error) => format!("could not be asked: {error}"),
            },
            remedy: feature.remedy.to_owned(),
        }
    }));
    findings
}

impl Probe {
    fn ask(&self, types: &[u8]) -> Result<bool, String> {
        fn text<T, E: Display>(answer: Result<T, E>) -> Result<T, String> {
            answer.map_err(|error| error.to_string())
        }
        match *self {
            Self::Program(kind) => text(is_program_supported(kind)),
            Self::Map(kind) => text(is_map_supported(kind)),
            Self::Helper(kind, helper) => text(is_helper_supported(kind, helper)),
            Self::Function(name) => {
                if types.is_empty() {
                    return Err(format!("{BTF} cannot be read"));
                }
                Ok(contains(types, name))
            }
            Self::File(path) => Ok(fs::exists(path).unwrap_or(false)),
            Self::Setting(path) => {
                let value = text(fs::read_to_string(path))?;
                Ok(value.trim() != "0")
            }
            Self::Namespace(script) => {
                let mut command = process::command("unshare");
                command.args(["--net", "sh", "-c", script]);
                text(process::quiet(&mut command)).map(|_| true)
            }
        }
    }
}

/// True if `name` stands in a table of strings, each of which ends with a zero byte.
fn contains(strings: &[u8], name: &str) -> bool {
    let needle = [b"\0", name.as_bytes(), b"\0"].concat();
    strings.windows(needle.len()).any(|window| window == needle)
}

/// True if a release such as `6.1.0-37-cloud-amd64` is `wanted` or newer.
fn at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    let release: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    release >= wanted
}

#[cfg(test)]
mod tests {
    use super::{at_least, contains};

    #[test]
    fn releases_compare_by_number() {
        assert!(at_least("6.1.0-37-cloud-amd64", (5, 10)));
        assert!(at_least("5.10.223", (5, 10)));
        assert!(!at_least("5.4.0", (5, 10)));
        assert!(!at_least("", (5, 10)));
    }

    #[test]
    fn only_a_whole_name_counts() {
        let strings = b"\0tcx_link_attach\0tcx_link_detach_all\0";
        assert!(contains(strings, "tcx_link_attach"));
        assert!(!contains(strings, "tcx_link_detach"));
    }
}
