//! Programs: loading and running them, and the links that attach them.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use super::{Command, address_of, address_of_mut, call, call_fd, raw};

/// Attaches a program to a device. `attach_type`: `enum bpf_attach_type`.
pub(in crate::dataplane) fn link_create(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Record {
        program_fd: u32,
        ifindex: u32,
        attach_type: u32,
        flags: u32,
    }
    let mut record = Record {
        program_fd: raw(program),
        ifindex,
        attach_type,
        flags,
    };
    // SAFETY: the record holds no address, and the command returns a descriptor.
    unsafe { call_fd(Command::LinkCreate, &mut record) }
}

/// Attaches a program to a cgroup. `attach_type`: `enum bpf_attach_type`.
pub(in crate::dataplane) fn link_create_at_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    // `target_fd` and `target_ifindex` of `union bpf_attr` are one field. A link takes no flags: it
    // leaves the programs of others as they are (`BPF_F_ALLOW_MULTI`).
    link_create(program, raw(cgroup), attach_type, 0)
}

/// The number of the calling thread's network namespace (`SO_NETNS_COOKIE`); none before Linux 5.14
/// (commit e8b9eab99232).
pub(in crate::dataplane) fn network_cookie() -> io::Result<Option<u64>> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`, which has them.
    let code = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if code == 0 {
        return Ok(Some(cookie));
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(None),
        error => Err(error),
    }
}

/// Replaces a link's program, with no instant without one.
pub(in crate::dataplane) fn link_update(
    link: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> io::Result<()> {
    #[repr(C)]
    struct Record {
        link_fd: u32,
        program_fd: u32,
        flags: u32,
        old_program_fd: u32,
    }
    let mut record = Record {
        link_fd: raw(link),
        program_fd: raw(program),
        flags: 0,
        old_program_fd: 0,
    };
    // SAFETY: the record holds no address.
    unsafe { call(Command::LinkUpdate, &mut record) }.map(drop)
}

/// Takes a link's program from its device at once. Closing the last descriptor does so later.
pub(in crate::dataplane) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Record {
        link_fd: u32,
    }
    let mut record = Record { link_fd: raw(link) };
    // SAFETY: the record holds no address.
    unsafe { call(Command::LinkDetach, &mut record) }.map(drop)
}

/// How many programs are attached to a device at a hook; `EINVAL` where the kernel has no such hook.
pub(in crate::dataplane) fn query(ifindex: u32, attach_type: u32) -> io::Result<u32> {
    #[repr(C)]
    struct Record {
        ifindex: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        program_ids: u64,
        count: u32,
        pad: u32,
        program_attach_flags: u64,
        link_ids: u64,
        link_attach_flags: u64,
        revision: u64,
    }
    let mut record = Record {
        ifindex,
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        program_ids: 0,
        count: 0,
        pad: 0,
        program_attach_flags: 0,
        link_ids: 0,
        link_attach_flags: 0,
        revision: 0,
    };
    // SAFETY: no array is asked for (null addresses, count zero).
    unsafe { call(Command::Query, &mut record) }?;
    Ok(record.count)
}

/// Loads a program written by hand, for a probe. `kind`: `enum bpf_prog_type`.
pub(in crate::dataplane) fn program_load(kind: u32, instructions: &[u64]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Record {
        kind: u32,
        instructions: u32,
        code: u64,
        license: u64,
    }
    let mut record = Record {
        kind,
        instructions: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        code: address_of(instructions),
        license: c"Apache-2.0".as_ptr() as u64,
    };
    // SAFETY: `code` is that many 8-byte instructions and `license` ends with a zero; the kernel
    // reads both, and the command returns a descriptor.
    unsafe { call_fd(Command::ProgramLoad, &mut record) }
}

/// Runs a program once on a frame and says what it returned; the frame stays as it is.
pub(in crate::dataplane) fn test_run(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<u32> {
    Ok(test_run_in(program, frame, &[], &mut [])?.returned)
}

/// What a program made of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestRun {
    /// What it returned.
    pub returned: u32,
    /// Length of the frame afterwards, bytes.
    pub length: usize,
}

/// Runs a program once on a frame, with a context, and writes what becomes of the frame to `out`;
/// not if that is empty.
///
/// `context`: the beginning of `struct xdp_md` or `struct __sk_buff`; an empty slice is none.
pub(in crate::dataplane) fn test_run_in(
    program: BorrowedFd<'_>,
    frame: &[u8],
    context: &[u32],
    out: &mut [u8],
) -> io::Result<TestRun> {
    #[repr(C)]
    struct Record {
        program_fd: u32,
        returned: u32,
        frame_bytes: u32,
        frame_out_bytes: u32,
        frame: u64,
        frame_out: u64,
        repeat: u32,
        duration: u32,
        context_bytes: u32,
        context_out_bytes: u32,
        context: u64,
        context_out: u64,
    }
    let size = |bytes: usize| u32::try_from(bytes).map_err(io::Error::other);
    let mut record = Record {
        program_fd: raw(program),
        returned: 0,
        frame_bytes: size(frame.len())?,
        frame_out_bytes: size(out.len())?,
        frame: address_of(frame),
        frame_out: address_of_mut(out),
        repeat: 1,
        duration: 0,
        context_bytes: size(size_of_val(context))?,
        context_out_bytes: 0,
        context: address_of(context),
        context_out: 0,
    };
    // SAFETY: the kernel reads `frame_bytes` of `frame` and `context_bytes` of `context`, and writes
    // at most `frame_out_bytes` to `out` (`bpf_test_finish`); all three are borrowed here.
    unsafe { call(Command::TestRun, &mut record) }?;
    Ok(TestRun {
        returned: record.returned,
        length: usize::try_from(record.frame_out_bytes).map_err(io::Error::other)?,
    })
}
