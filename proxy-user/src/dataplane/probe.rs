//! What this kernel can do and how it counts time, asked of the kernel by programs of a few
//! instructions that are run once and attached nowhere. Version numbers are not believed:
//! distributions carry features back.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use nix::time::ClockId;

use super::syscall;

/// `BPF_PROG_TYPE_SCHED_CLS`.
const CLASSIFIER: u32 = 3;
/// `BPF_PROG_TYPE_XDP`.
const XDP: u32 = 6;
/// `BPF_TCX_INGRESS`.
pub(super) const TCX_INGRESS: u32 = 46;
/// `BPF_TCX_EGRESS`.
pub(super) const TCX_EGRESS: u32 = 47;

/// `BPF_F_IPV6` of `bpf_l4_csum_replace`: tells an IPv6 address change from one that also changes
/// an IPv4 header checksum, which matters for packets with a checksum left to the device.
/// Linux 6.16 (commit ead7f9b8de65), and stable kernels that took it.
const CSUM_IPV6: u64 = 1 << 7;

/// `BPF_F_PSEUDO_HDR`.
const CSUM_PSEUDO_HEADER: u64 = 1 << 4;

/// One instruction (`struct bpf_insn`): code, registers (source in the high half), offset, constant.
const fn instruction(code: u8, registers: u8, constant: i32) -> u64 {
    code as u64 | (registers as u64) << 8 | (constant.cast_unsigned() as u64) << 32
}

/// `r = constant`.
const fn set(register: u8, constant: i32) -> u64 {
    instruction(0xb7, register, constant)
}

const fn call(helper: i32) -> u64 {
    instruction(0x85, 0, helper)
}

const EXIT: u64 = instruction(0x95, 0, 0);

/// A frame that every test run accepts: an Ethernet header (type IPv4) and zeros.
const FRAME: [u8; 64] = {
    let mut frame = [0; 64];
    [frame[12], frame[14]] = [0x08, 0x45];
    frame
};

/// What differs from kernel to kernel and matters to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// TCX links, Linux 6.6 (commit e420bed02507). Without them TC programs hang on `clsact`.
    pub tcx: bool,
    /// `BPF_F_IPV6` of `bpf_l4_csum_replace`, as the programs' global of that name wants it.
    pub l4_csum_ipv6: u64,
}

impl Features {
    /// Asks this kernel.
    pub fn probe() -> io::Result<Self> {
        Ok(Self {
            tcx: tcx()?,
            l4_csum_ipv6: if csum_ipv6()? { CSUM_IPV6 } else { 0 },
        })
    }
}

/// Whether the kernel has TCX, told by a query at the loopback device (index 1 everywhere).
fn tcx() -> io::Result<bool> {
    match syscall::query(1, TCX_INGRESS) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether `bpf_l4_csum_replace(skb, 40, 0, 0, BPF_F_PSEUDO_HDR | BPF_F_IPV6)` is accepted.
/// Kernels refuse flags that they do not know with `EINVAL`.
fn csum_ipv6() -> io::Result<bool> {
    let flags = i32::try_from(CSUM_IPV6 | CSUM_PSEUDO_HEADER).map_err(io::Error::other)?;
    // r1 is the context already.
    let program = [
        set(2, 40),
        set(3, 0),
        set(4, 0),
        set(5, flags),
        call(11),
        EXIT,
    ];
    let program = syscall::program_load(CLASSIFIER, &program)?;
    Ok(syscall::test_run(program.as_fd(), &FRAME)? == 0)
}

/// Reads the clock that flow entries are stamped with: `jiffies >> 8`.
#[derive(Debug)]
pub struct Ticks {
    program: OwnedFd,
}

impl Ticks {
    /// Loads the program that reads it.
    pub fn load() -> io::Result<Self> {
        // The shift comes before the result is cut to 32 bits, as it does in the datapath.
        let shift = instruction(0x77, 0, 8);
        Ok(Self {
            program: syscall::program_load(XDP, &[call(118), shift, EXIT])?,
        })
    }

    /// The time, in ticks.
    pub fn now(&self) -> io::Result<u32> {
        syscall::test_run(self.program.as_fd(), &FRAME)
    }
}

/// Jiffies per second.
///
/// `CONFIG_HZ` itself is not told to user space (`sysconf(_SC_CLK_TCK)` is another number), but the
/// coarse clocks move once a jiffy, and their resolution is that: `TICK_NSEC`, which is a second
/// divided by `CONFIG_HZ` and rounded (`posix_get_coarse_res` in kernel/time/posix-timers.c).
pub fn jiffies_per_second() -> io::Result<u32> {
    let step = nix::time::clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)?;
    per_second(Duration::from(step)).ok_or_else(|| {
        io::Error::other(format!(
            "the coarse clock's resolution makes no sense: {step:?}"
        ))
    })
}

/// How many steps a second has, to the nearest; none if it has less than ten or the steps are zero.
fn per_second(step: Duration) -> Option<u32> {
    let (second, step) = (Duration::from_secs(1).as_nanos(), step.as_nanos());
    let steps = (second + step / 2).checked_div(step)?;
    u32::try_from(steps).ok().filter(|steps| *steps >= 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_found_for_every_configuration() {
        for hz in [24_u32, 32, 48, 64, 100, 128, 250, 256, 300, 1_000, 1_024] {
            // As include/linux/jiffies.h defines TICK_NSEC.
            let step = (1_000_000_000 + u64::from(hz) / 2) / u64::from(hz);
            assert_eq!(per_second(Duration::from_nanos(step)), Some(hz));
        }
        assert_eq!(per_second(Duration::ZERO), None);
        assert_eq!(per_second(Duration::from_secs(1)), None);
    }
}
