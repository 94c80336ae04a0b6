//! What this kernel can do and how it counts time, asked of the kernel by programs of a few
//! instructions that are run once and attached nowhere. Version numbers are not believed:
//! distributions carry features back.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

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

/// Reads the kernel's jiffies, which flow entries are stamped with the upper part of.
#[derive(Debug)]
pub struct Jiffies {
    program: OwnedFd,
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

/// Values of `CONFIG_HZ` that kernel/Kconfig.hz offers, which is for all architectures but MIPS and
/// Alpha.
const RATES: [u32; 4] = [100, 250, 300, 1_000];

/// How long two readings are apart when the rate is measured.
const SPAN: Duration = Duration::from_millis(60);

impl Jiffies {
    /// Loads the program that reads them (`bpf_jiffies64`, Linux 5.5).
    pub fn load() -> io::Result<Self> {
        Ok(Self {
            program: syscall::program_load(XDP, &[call(118), EXIT])?,
        })
    }

    /// The low 32 bits of jiffies, now.
    pub fn now(&self) -> io::Result<u32> {
        syscall::test_run(self.program.as_fd(), &FRAME)
    }

    /// Jiffies per second.
    ///
    /// Measured from one change of the count to another: `CONFIG_HZ` is not told to user space
    /// (`sysconf(_SC_CLK_TCK)` is another number). Two measurements of 60 ms in a row must agree: a
    /// machine that is held up at the wrong moment would be believed otherwise.
    pub fn per_second(&self) -> io::Result<u32> {
        let mut last = None;
        for attempt in 0..10 {
            let measured = nearest_rate(self.measure(SPAN * (1 + attempt / 3))?);
            if measured.is_some() && measured == last {
                return measured.ok_or_else(unmeasured);
            }
            last = measured;
        }
        Err(unmeasured())
    }

    fn measure(&self, span: Duration) -> io::Result<f64> {
        let (first, began) = self.next_change()?;
        std::thread::sleep(span);
        let (last, ended) = self.next_change()?;
        let seconds = ended.duration_since(began).as_secs_f64();
        Ok(f64::from(last.wrapping_sub(first)) / seconds)
    }

    /// Waits until the count changes: the new count, and when. For a jiffy at most, so it may spin.
    fn next_change(&self) -> io::Result<(u32, Instant)> {
        let before = self.now()?;
        loop {
            let (count, time) = (self.now()?, Instant::now());
            if count != before {
                return Ok((count, time));
            }
        }
    }
}

fn unmeasured() -> io::Error {
    io::Error::other("the rate of the kernel's clock ticks (CONFIG_HZ) cannot be measured")
}

/// The rate that kernels are built with within 5 % of a measured one, if there is one.
fn nearest_rate(measured: f64) -> Option<u32> {
    let distance = |rate: u32| (measured / f64::from(rate) - 1.0).abs();
    RATES.into_iter().find(|rate| distance(*rate) < 0.05)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_told_apart() {
        assert_eq!(nearest_rate(250.4), Some(250));
        assert_eq!(nearest_rate(254.0), Some(250));
        assert_eq!(nearest_rate(297.0), Some(300));
        assert_eq!(nearest_rate(1_023.0), Some(1_000));
        assert_eq!(nearest_rate(275.0), None);
        assert_eq!(nearest_rate(0.0), None);
    }
}
