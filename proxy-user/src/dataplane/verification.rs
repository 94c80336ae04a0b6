//! What the kernel's verifier says of each program that it accepts: how much it looked at, how
//! much stack it counted, how long it took.
//!
//! aya drops the verifier's log when a program loads, so programs are loaded here once more, by
//! hand, with the log kept. Nothing is attached or pinned.
#![expect(
    unsafe_code,
    reason = "the map layer is where user space meets the kernel's memory"
)]

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use aya::maps::Map;
use aya::{EbpfError, EbpfLoader};
use aya_obj::generated::{bpf_attach_type, bpf_insn};
use aya_obj::programs::CgroupSockAddrAttachType;
use aya_obj::relocation::EbpfRelocationError;
use aya_obj::{Object, ParseError, ProgramSection};

/// `BPF_LOG_STATS`: only the totals at the end.
const LOG_TOTALS: u32 = 4;
/// `BPF_LOG_LEVEL1`: each instruction on the way to the error.
const LOG_STEPS: u32 = 1;

/// Room for a log: totals take some hundred bytes, a refused program's steps up to megabytes.
const TOTALS_BYTES: usize = 64 * 1024;
const STEPS_BYTES: usize = 16 * 1024 * 1024;

/// The verifier's account of one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Name in the object.
    pub name: String,
    /// `xdp`, `tc` or `socket`.
    pub hook: &'static str,
    /// Instructions of the program with the functions that it calls.
    pub instructions: usize,
    /// Instructions that the verifier looked at, over all paths; the kernel's limit is a million.
    pub verified: u64,
    /// Bytes of stack along the deepest chain of calls; the kernel's limit is 512.
    pub stack_bytes: u64,
    /// Time that the verifier took.
    pub verification: Duration,
    /// Time that loading took in all, with compilation to machine code.
    pub load: Duration,
}

/// Why there is no account.
#[derive(Debug, thiserror::Error)]
pub enum VerificationError {
    /// The object's maps could not be made.
    #[error("cannot make the maps of the object")]
    Maps(#[source] Box<EbpfError>),
    /// The object is not what `bpf-linker` writes.
    #[error("cannot read the object")]
    Object(#[from] ParseError),
    /// References from programs to maps or functions lead nowhere.
    #[error("cannot put the maps' addresses into the programs")]
    Relocation(#[from] EbpfRelocationError),
    /// A program of a type that Causeway does not have.
    #[error("program {name} is neither for XDP, nor for TC, nor for sockets")]
    Hook {
        /// Its name.
        name: String,
    },
    /// The kernel refused a program.
    #[error("the kernel refused program {name}: {source}; the end of the verifier's log:\n{log}")]
    Refused {
        /// Its name.
        name: String,
        /// What bpf(2) said.
        source: io::Error,
        /// The last lines of the log.
        log: String,
    },
    /// A program was accepted and its log says no totals.
    #[error("the verifier accepted program {name} and left no totals: {log:?}")]
    NoTotals {
        /// Its name.
        name: String,
        /// The whole log.
        log: String,
    },
}

/// Loads every program of an object, in order of name, with new maps of its own.
pub fn verify(object: &[u8]) -> Result<Vec<Account>, VerificationError> {
    // aya makes the maps, fills in the constants and freezes them, so that the verifier sees what
    // it sees when the daemon loads.
    let ebpf = EbpfLoader::new()
        .btf(None)
        .load(object)
        .map_err(|error| VerificationError::Maps(Box::new(error)))?;
    let descriptors: HashMap<&str, RawFd> = ebpf
        .maps()
        .filter_map(|(name, map)| Some((name, descriptor(map)?)))
        .collect();

    let mut object = Object::parse(object)?;
    let text: HashSet<usize> = object
        .functions
        .keys()
        .map(|(section, _)| *section)
        .collect();
    let maps = object.maps.clone();
    let located = maps.iter().filter_map(|(name, map)| {
        let descriptor = *descriptors.get(name.as_str())?;
        Some((name.as_str(), descriptor, map))
    });
    object.relocate_maps(located, &text)?;
    object.relocate_calls(&text)?;

    let mut programs: Vec<_> = object.programs.iter().collect();
    programs.sort_by_key(|(name, _)| name.as_str());
    programs
        .into_iter()
        .filter_map(|(name, program)| {
            let function = object.functions.get(&program.function_key())?;
            Some(account(name, program, &function.instructions))
        })
        .collect()
}

fn account(
    name: &str,
    program: &aya_obj::Program,
    instructions: &[bpf_insn],
) -> Result<Account, VerificationError> {
    let name = name.to_owned();
    let hook = match program.section {
        ProgramSection::Xdp { .. } => Hook::XDP,
        ProgramSection::SchedClassifier => Hook::TC,
        ProgramSection::CgroupSockAddr { attach_type } => Hook::socket(attach_type),
        _ => return Err(VerificationError::Hook { name }),
    };
    let license = program.license.as_bytes_with_nul();
    let start = Instant::now();
    let loaded = load(&hook, instructions, license, LOG_TOTALS, TOTALS_BYTES);
    let took = start.elapsed();
    let (program, log) = loaded.map_err(|(source, _)| {
        // Once more, for the reason.
        let log = match load(&hook, instructions, license, LOG_STEPS, STEPS_BYTES) {
            Ok((_, log)) | Err((_, log)) => log,
        };
        VerificationError::Refused {
            name: name.clone(),
            source,
            log: last_lines(&log),
        }
    })?;
    drop(program);
    let Some(totals) = Totals::read(&log) else {
        return Err(VerificationError::NoTotals { name, log });
    };
    Ok(Account {
        name,
        hook: hook.name,
        instructions: instructions.len(),
        verified: totals.verified,
        stack_bytes: match totals.stack {
            Stack::Deepest(bytes) => bytes,
            Stack::Frames(frames) => deepest_stack(instructions, &frames),
        },
        verification: Duration::from_micros(totals.verification_us),
        load: took,
    })
}

/// A kind of program, as bpf(2) names it.
struct Hook {
    name: &'static str,
    program_type: u32,
    attach_type: u32,
}

impl Hook {
    /// `BPF_PROG_TYPE_XDP`, `BPF_XDP`.
    const XDP: Self = Self {
        name: "xdp",
        program_type: 6,
        attach_type: 37,
    };
    /// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
    fn socket(attach_type: CgroupSockAddrAttachType) -> Self {
        Self {
            name: "socket",
            program_type: 18,
            attach_type: bpf_attach_type::from(attach_type) as u32,
        }
    }

    /// `BPF_PROG_TYPE_SCHED_CLS`, no attach type.
    const TC: Self = Self {
        name: "tc",
        program_type: 3,
        attach_type: 0,
    };
}

/// What `BPF_PROG_LOAD` reads, up to the last field that is set.
#[repr(C)]
struct LoadRecord {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach_type: u32,
}

/// Loads a program; the log comes with the program and with the error.
fn load(
    hook: &Hook,
    instructions: &[bpf_insn],
    license: &[u8],
    log_level: u32,
    log_bytes: usize,
) -> Result<(OwnedFd, String), (io::Error, String)> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    let count = |length: usize| {
        u32::try_from(length).map_err(|error| (io::Error::other(error), String::new()))
    };
    let mut log = vec![0_u8; log_bytes];
    let mut record = LoadRecord {
        program_type: hook.program_type,
        instruction_count: count(instructions.len())?,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level,
        log_bytes: count(log.len())?,
        log: log.as_mut_ptr() as u64,
        kernel_version: 0,
        flags: 0,
        name: [0; 16],
        ifindex: 0,
        attach_type: hook.attach_type,
    };
    // SAFETY: the record's addresses are those of live buffers of the lengths beside them, the
    // license ends with a zero, and the kernel writes into `log` alone.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            std::ptr::from_mut(&mut record),
            size_of::<LoadRecord>(),
        )
    };
    let error = io::Error::last_os_error();
    log.truncate(log.iter().position(|byte| *byte == 0).unwrap_or(log.len()));
    let log = String::from_utf8_lossy(&log).into_owned();
    match RawFd::try_from(result) {
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
        Ok(fd) if fd >= 0 => Ok((unsafe { OwnedFd::from_raw_fd(fd) }, log)),
        _ => Err((error, log)),
    }
}

/// The totals at the end of a verifier log.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Totals {
    verification_us: u64,
    stack: Stack,
    verified: u64,
}

/// How the verifier tells bytes of stack.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stack {
    /// Of each function, in the order of the code.
    Frames(Vec<u64>),
    /// Of the deepest chain of calls, from 7.x on.
    Deepest(u64),
}

impl Stack {
    /// Reads `152+8+0` or `max 448`.
    fn read(text: &str) -> Option<Self> {
        if let Some(deepest) = text.strip_prefix("max ") {
            return deepest.trim().parse().ok().map(Self::Deepest);
        }
        let frames: Result<_, _> = text.trim().split('+').map(str::parse).collect();
        frames.ok().map(Self::Frames)
    }
}

impl Totals {
    /// Reads `verification time 310 usec`, `stack depth 152+8` and `processed 4711 insns (...`
    /// (`print_verification_stats` in kernel/bpf/verifier.c).
    fn read(log: &str) -> Option<Self> {
        let rest = |start: &str| log.lines().find_map(|line| line.trim().strip_prefix(start));
        let number = |text: &str| -> Option<u64> { text.split_whitespace().next()?.parse().ok() };
        Some(Self {
            verification_us: number(rest("verification time ")?)?,
            stack: Stack::read(rest("stack depth ")?)?,
            verified: number(rest("processed ")?)?,
        })
    }
}

/// The stack of the deepest chain of calls, each frame rounded up to 32 bytes as the kernel does
/// (`check_max_stack_depth` in kernel/bpf/verifier.c). The verifier has ruled out recursion.
fn deepest_stack(instructions: &[bpf_insn], frames: &[u64]) -> u64 {
    const CALL: u8 = 0x85;
    const PSEUDO_CALL: u8 = 1;
    let calls: Vec<(i64, i64)> = (0..)
        .zip(instructions)
        .filter(|(_, instruction)| instruction.code == CALL && instruction.src_reg() == PSEUDO_CALL)
        .map(|(at, instruction)| (at, at + i64::from(instruction.imm) + 1))
        .collect();
    // Functions begin at 0 and wherever a call leads.
    let mut starts: Vec<i64> = calls.iter().map(|(_, to)| *to).chain([0]).collect();
    starts.sort_unstable();
    starts.dedup();
    let function = |at: i64| {
        starts
            .partition_point(|start| *start <= at)
            .saturating_sub(1)
    };
    let mut depth: Vec<u64> = frames
        .iter()
        .map(|bytes| bytes.max(&1).next_multiple_of(32))
        .collect();
    let own = depth.clone();
    // A chain is at most as long as there are functions; each round makes chains longer by one.
    for _ in &own {
        for (from, to) in &calls {
            let (from, to) = (function(*from), function(*to));
            let through = own.get(from).copied().unwrap_or(0) + depth.get(to).copied().unwrap_or(0);
            if let Some(deepest) = depth.get_mut(from) {
                *deepest = through.max(*deepest);
            }
        }
    }
    depth.first().copied().unwrap_or(0)
}

fn last_lines(log: &str) -> String {
    const SHOWN: usize = 25;
    let lines: Vec<&str> = log.lines().collect();
    lines
        .get(lines.len().saturating_sub(SHOWN)..)
        .unwrap_or_default()
        .join("\n")
}

/// The descriptor of a map of any of the kinds that Causeway has.
fn descriptor(map: &Map) -> Option<RawFd> {
    match map {
        Map::Array(data)
        | Map::DevMapHash(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::ProgramArray(data)
        | Map::RingBuf(data) => Some(data.fd().as_fd().as_raw_fd()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use aya_obj::generated::bpf_insn;

    use super::{Stack, Totals, deepest_stack};

    fn instruction(code: u8, source: u8, constant: i32) -> bpf_insn {
        let mut instruction = bpf_insn {
            code,
            _bitfield_align_1: [],
            _bitfield_1: bpf_insn::new_bitfield_1(0, source),
            off: 0,
            imm: constant,
        };
        instruction.set_src_reg(source);
        instruction
    }

    #[test]
    fn the_deepest_chain_counts_and_not_the_sum_of_all_functions() {
        let exit = instruction(0x95, 0, 0);
        // The program calls 3 and 5; the function at 3 calls 5 too.
        let code = [
            instruction(0x85, 1, 2),
            instruction(0x85, 1, 3),
            exit,
            instruction(0x85, 1, 1),
            exit,
            exit,
        ];
        assert_eq!(deepest_stack(&code, &[100, 40, 33]), 128 + 64 + 64);
        assert_eq!(deepest_stack(&code, &[100, 0, 200]), 128 + 32 + 224);
        // A helper's call is none of a function.
        assert_eq!(deepest_stack(&[instruction(0x85, 0, 1), exit], &[8]), 32);
    }

    #[test]
    fn totals_are_read_from_the_log_of_an_accepted_program() {
        let log = "verification time 310 usec\nstack depth 152+8+0\nprocessed 4711 insns (limit \
                   1000000) max_states_per_insn 4 total_states 60 peak_states 60 mark_read 12\n";
        assert_eq!(
            Totals::read(log),
            Some(Totals {
                verification_us: 310,
                stack: Stack::Frames(vec![152, 8, 0]),
                verified: 4711,
            })
        );
        let newer = "verification time 8205 usec\nstack depth max 448\nsubprog 0 (f) main insns_self \
                     48 insns_total 322 stack 176\nprocessed 322925 insns (limit 1000000)\n";
        assert_eq!(
            Totals::read(newer).map(|totals| (totals.stack, totals.verified)),
            Some((Stack::Deepest(448), 322_925))
        );
        assert_eq!(Totals::read("processed 12 insns\n"), None);
    }
}
