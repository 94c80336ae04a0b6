//! bpf(2), as far as aya lacks it: batches, links that are updated in place, pins, test runs.
//!
//! Each command has a record of its own that ends where its last used field ends: the kernel takes
//! what is missing as zero (`bpf_check_uarg_tail_zero` in kernel/bpf/syscall.c), so kernels from
//! 5.10 on accept the same call.
#![expect(
    unsafe_code,
    reason = "the map layer is where user space meets the kernel's memory"
)]

mod program;

use std::ffi::{CString, c_int, c_long};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub use program::TestRun;
pub(super) use program::{
    link_create, link_create_at_cgroup, link_detach, link_update, network_cookie, program_load,
    query, test_run, test_run_in,
};

/// Command numbers (`enum bpf_cmd`, include/uapi/linux/bpf.h).
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ProgramLoad = 5,
    Pin = 6,
    Get = 7,
    TestRun = 10,
    Info = 15,
    Query = 16,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    MapDeleteBatch = 27,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// The kernel's own "not supported", which C libraries do not know.
pub(super) const ENOTSUPP: i32 = 524;

/// Makes the call. `T` is the command's record.
///
/// # Safety
/// Every address in `record` refers to memory that the kernel may read or write, as the command
/// does, for the length that the command derives from the object it is about.
unsafe fn call<T>(command: Command, record: &mut T) -> io::Result<c_long> {
    let size = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: `record` is a live record of `size` bytes; the caller vouches for what it points to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as c_int,
            std::ptr::from_mut(record),
            size,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// As [`call`], for commands that return a file descriptor.
///
/// # Safety
/// As [`call`]; and the command returns a new file descriptor.
unsafe fn call_fd<T>(command: Command, record: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: passed on to the caller.
    let fd = unsafe { call(command, record) }?;
    let fd = c_int::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address_of<T>(slice: &[T]) -> u64 {
    if slice.is_empty() {
        0
    } else {
        slice.as_ptr() as u64
    }
}

fn address_of_mut<T>(slice: &mut [T]) -> u64 {
    if slice.is_empty() {
        0
    } else {
        slice.as_mut_ptr() as u64
    }
}

/// A name as the kernel keeps it: at most 15 bytes and a zero.
fn object_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    bytes
}

/// What a new map is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewMap<'a> {
    pub(super) name: &'a str,
    pub(super) kind: u32,
    pub(super) key_bytes: u32,
    pub(super) value_bytes: u32,
    pub(super) entries: u32,
    pub(super) flags: u32,
}

/// Makes a map.
pub(super) fn map_create(new: &NewMap<'_>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Record {
        kind: u32,
        key_bytes: u32,
        value_bytes: u32,
        entries: u32,
        flags: u32,
        inner_map_fd: u32,
        numa_node: u32,
        name: [u8; 16],
    }
    let mut record = Record {
        kind: new.kind,
        key_bytes: new.key_bytes,
        value_bytes: new.value_bytes,
        entries: new.entries,
        flags: new.flags,
        inner_map_fd: 0,
        numa_node: 0,
        name: object_name(new.name),
    };
    // SAFETY: the record holds no address, and the command returns a descriptor.
    unsafe { call_fd(Command::MapCreate, &mut record) }
}

#[repr(C)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A map's file descriptor and the sizes that its records are checked against, which is what makes
/// the calls below safe.
#[derive(Debug)]
pub struct MapFd {
    fd: OwnedFd,
    /// What the kernel says of the map.
    pub info: MapInfo,
    /// Bytes that a lookup writes: for per-CPU maps, one rounded value per possible CPU.
    lookup_bytes: usize,
}

/// What the kernel says of a map (`struct bpf_map_info`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct MapInfo {
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// The map's id, unique on this machine while it lives.
    pub id: u32,
    /// Bytes of a key.
    pub key_bytes: u32,
    /// Bytes of a value (of one CPU).
    pub value_bytes: u32,
    /// Most entries it can hold.
    pub entries: u32,
    /// `BPF_F_*` flags given when it was made.
    pub flags: u32,
    /// Its name, filled up with zeros.
    pub name: [u8; 16],
}

/// `BPF_MAP_TYPE_PERCPU_ARRAY`.
pub(super) const PER_CPU_ARRAY: u32 = 6;

/// How far a batch has come.
#[derive(Debug)]
pub(super) enum Batch {
    /// So many entries done; there may be more.
    More(usize),
    /// So many entries done; that was all.
    End(usize),
}

impl MapFd {
    /// Takes a map's descriptor and asks the kernel for its sizes.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        use std::os::fd::AsFd as _;
        let info: MapInfo = object_info(fd.as_fd())?;
        let value_bytes = info.value_bytes as usize;
        let lookup_bytes = if info.kind == PER_CPU_ARRAY {
            let cpus = aya::util::nr_cpus().map_err(|(path, error)| {
                io::Error::new(error.kind(), format!("{path}: {error}"))
            })?;
            value_bytes.next_multiple_of(8) * cpus
        } else {
            value_bytes
        };
        Ok(Self {
            fd,
            info,
            lookup_bytes,
        })
    }

    /// The descriptor.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd as _;
        self.fd.as_fd()
    }

    /// Bytes that a lookup writes.
    pub(super) fn lookup_bytes(&self) -> usize {
        self.lookup_bytes
    }

    fn key_bytes(&self) -> usize {
        self.info.key_bytes as usize
    }

    fn check(&self, keys: usize, values: usize, count: usize) -> io::Result<()> {
        let keys_right = keys == self.key_bytes().saturating_mul(count);
        if keys_right && values == self.lookup_bytes.saturating_mul(count) {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a record's size is not the map's",
        ))
    }

    fn element(&self, key: u64, value: u64, flags: u64) -> Element {
        Element {
            map_fd: raw(self.fd()),
            pad: 0,
            key,
            value,
            flags,
        }
    }

    /// Reads the value of `key` into `value`; `ENOENT` if there is none.
    pub(super) fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<()> {
        self.check(key.len(), value.len(), 1)?;
        let mut record = self.element(address_of(key), address_of_mut(value), 0);
        // SAFETY: both slices have the lengths that the kernel uses for this map (`check`).
        unsafe { call(Command::MapLookup, &mut record) }.map(drop)
    }

    /// Sets the value of `key`. `flags`: `BPF_ANY`, `BPF_NOEXIST` or `BPF_EXIST`.
    pub(super) fn update(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        self.check(key.len(), value.len(), 1)?;
        let mut record = self.element(address_of(key), address_of(value), flags);
        // SAFETY: both slices have the lengths that the kernel uses for this map (`check`), and it
        // only reads them.
        unsafe { call(Command::MapUpdate, &mut record) }.map(drop)
    }

    /// Removes `key`; `ENOENT` if it is not there.
    pub(super) fn delete(&self, key: &[u8]) -> io::Result<()> {
        self.check(key.len(), self.lookup_bytes, 1)?;
        let mut record = self.element(address_of(key), 0, 0);
        // SAFETY: the key has the map's length, and the kernel only reads it.
        unsafe { call(Command::MapDelete, &mut record) }.map(drop)
    }

    /// The key after `key` (the first one after none) into `next`; `ENOENT` after the last.
    pub(super) fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<()> {
        self.check(next.len(), self.lookup_bytes, 1)?;
        if let Some(key) = key {
            self.check(key.len(), self.lookup_bytes, 1)?;
        }
        let mut record = self.element(key.map_or(0, address_of), address_of_mut(next), 0);
        // SAFETY: both slices have the map's key length.
        unsafe { call(Command::MapNextKey, &mut record) }.map(drop)
    }

    /// Reads up to `count` entries. `position` is where the last batch ended (none: the start) and
    /// is moved on.
    pub(super) fn lookup_batch(
        &self,
        position: &mut Option<Vec<u8>>,
        keys: &mut [u8],
        values: &mut [u8],
        count: usize,
    ) -> io::Result<Batch> {
        self.check(keys.len(), values.len(), count)?;
        // A hash keeps a 32-bit bucket number there, an array a key.
        let mut after = vec![0; self.key_bytes().max(4)];
        let before = position.as_deref().map_or(0, address_of);
        let addresses = [before, address_of_mut(&mut after)];
        // SAFETY: `keys` and `values` hold `count` records (`check`), the positions are as long as
        // a key and at least 4 bytes, and all of them outlive the call.
        let batch = unsafe {
            self.batch(
                Command::MapLookupBatch,
                addresses,
                address_of_mut(keys),
                address_of_mut(values),
                count,
            )
        }?;
        *position = Some(after);
        Ok(batch)
    }

    /// Sets `count` entries. Of an error, `.1` says how many were set before it.
    pub(super) fn update_batch(
        &self,
        keys: &[u8],
        values: &[u8],
        count: usize,
    ) -> Result<(), (io::Error, usize)> {
        self.check(keys.len(), values.len(), count)
            .map_err(|error| (error, 0))?;
        let (keys, values) = (address_of(keys), address_of(values));
        // SAFETY: both hold `count` records (`check`), and the kernel only reads them.
        unsafe { self.write_batch(Command::MapUpdateBatch, keys, values, count) }
    }

    /// Removes `count` entries. Of an error, `.1` says how many were removed before it.
    pub(super) fn delete_batch(&self, keys: &[u8], count: usize) -> Result<(), (io::Error, usize)> {
        self.check(keys.len(), self.lookup_bytes.saturating_mul(count), count)
            .map_err(|error| (error, 0))?;
        // SAFETY: `keys` holds `count` keys (`check`), and the kernel only reads them.
        unsafe { self.write_batch(Command::MapDeleteBatch, address_of(keys), 0, count) }
    }

    /// # Safety
    /// As [`call`]: the addresses are of `count` records each.
    unsafe fn batch(
        &self,
        command: Command,
        [before, after]: [u64; 2],
        keys: u64,
        values: u64,
        count: usize,
    ) -> io::Result<Batch> {
        let mut record = BatchRecord::new(self.fd(), keys, values, count)?;
        (record.before, record.after) = (before, after);
        // SAFETY: passed on to the caller.
        match unsafe { call(command, &mut record) } {
            Ok(_) => Ok(Batch::More(record.count as usize)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                Ok(Batch::End(record.count as usize))
            }
            Err(error) => Err(error),
        }
    }

    /// # Safety
    /// As [`call`]: the addresses are of `count` records each.
    unsafe fn write_batch(
        &self,
        command: Command,
        keys: u64,
        values: u64,
        count: usize,
    ) -> Result<(), (io::Error, usize)> {
        let mut record =
            BatchRecord::new(self.fd(), keys, values, count).map_err(|error| (error, 0))?;
        // A call that is refused as a whole leaves `count` as it was; once begun, the kernel sets
        // it to the number done, which on an error is less.
        // SAFETY: passed on to the caller.
        match unsafe { call(command, &mut record) } {
            Ok(_) => Ok(()),
            Err(error) => {
                let done = record.count as usize;
                Err((error, if done >= count { 0 } else { done }))
            }
        }
    }
}

#[repr(C)]
struct BatchRecord {
    before: u64,
    after: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

impl BatchRecord {
    fn new(map: BorrowedFd<'_>, keys: u64, values: u64, count: usize) -> io::Result<Self> {
        let count = u32::try_from(count).map_err(io::Error::other)?;
        let map_fd = raw(map);
        Ok(Self {
            before: 0,
            after: 0,
            keys,
            values,
            count,
            map_fd,
            element_flags: 0,
            flags: 0,
        })
    }
}

/// Types that the kernel fills in for `BPF_OBJ_GET_INFO_BY_FD`.
///
/// # Safety
/// All fields are integers: any bits make a value, and there is no padding.
pub(super) unsafe trait Info: Copy + Default {}

// SAFETY: integers and a byte array; 24 + 16 bytes without padding.
unsafe impl Info for MapInfo {}
// SAFETY: six 32-bit integers.
unsafe impl Info for LinkInfo {}
// SAFETY: two 32-bit integers and eight bytes.
unsafe impl Info for ProgramInfo {}

/// What the kernel says of a link, for the types that end with a device (`struct bpf_link_info`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct LinkInfo {
    /// `enum bpf_link_type`.
    pub(super) kind: u32,
    /// The link's id.
    pub(super) id: u32,
    /// The program's id.
    pub(super) program: u32,
    pad: u32,
    /// The device; zero once it is gone.
    pub(super) ifindex: u32,
    /// TCX: `enum bpf_attach_type`.
    pub(super) attach_type: u32,
}

impl LinkInfo {
    /// Links of cgroups have this in place of the last two fields: the cgroup's number, zero once it is
    /// gone.
    pub(super) const fn cgroup(&self) -> u64 {
        let ([a, b, c, d], [e, f, g, h]) =
            (self.ifindex.to_ne_bytes(), self.attach_type.to_ne_bytes());
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    }
}

/// What the kernel says of a program, its beginning (`struct bpf_prog_info`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct ProgramInfo {
    kind: u32,
    /// The program's id.
    pub(super) id: u32,
    /// A digest of its instructions.
    pub(super) tag: [u8; 8],
}

/// What the kernel says of the object behind `fd`.
pub(super) fn object_info<T: Info>(fd: BorrowedFd<'_>) -> io::Result<T> {
    #[repr(C)]
    struct Record {
        fd: u32,
        info_bytes: u32,
        info: u64,
    }
    let mut info = T::default();
    let mut record = Record {
        fd: raw(fd),
        info_bytes: u32::try_from(size_of::<T>()).map_err(io::Error::other)?,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: the kernel writes at most `info_bytes` bytes to `info`, and any bits make a `T`.
    unsafe { call(Command::Info, &mut record) }?;
    Ok(info)
}

#[repr(C)]
struct PathRecord {
    path: u64,
    fd: u32,
    flags: u32,
}

fn path_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Pins the object behind `fd` at `path`, which must not exist.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_string(path)?;
    let mut record = PathRecord {
        path: path.as_ptr() as u64,
        fd: raw(fd),
        flags: 0,
    };
    // SAFETY: `path` is a string that ends with a zero and outlives the call.
    unsafe { call(Command::Pin, &mut record) }.map(drop)
}

/// Opens what is pinned at `path`.
pub(super) fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = path_string(path)?;
    let mut record = PathRecord {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: as in `pin`; the command returns a descriptor.
    unsafe { call_fd(Command::Get, &mut record) }
}
