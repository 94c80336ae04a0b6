//! Maps as tables of records: [`Table`] for one value a key, [`PerCpuTable`] for one a CPU.
#![expect(unsafe_code, reason = "records are read from and written to raw bytes")]

use std::io;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};

use proxy_common::wire::Plain;

use super::syscall::{Batch, ENOTSUPP, MapFd, MapInfo};

/// Entries of one batch call. More make a call longer (the kernel copies them under a bucket's
/// lock, and holds up to 4 MiB for it), fewer make more calls.
const BATCH: usize = 4_096;

/// Whether the kernel has batch calls; all maps of one kernel agree closely enough that each map
/// remembers for itself.
#[derive(Debug)]
struct Batches(AtomicBool);

impl Batches {
    fn usable(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether `error` says that this map has no batch calls; remembered.
    fn refused(&self, error: &io::Error) -> bool {
        let refused = matches!(
            error.raw_os_error(),
            Some(ENOTSUPP | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS)
        );
        if refused {
            self.0.store(false, Ordering::Relaxed);
        }
        refused
    }
}

/// The bytes of records, as the kernel reads them.
#[must_use]
pub fn bytes_of<T: Plain>(records: &[T]) -> &[u8] {
    // SAFETY: `T: Plain` has no padding, so every byte is initialised; the length is the slice's.
    unsafe { std::slice::from_raw_parts(records.as_ptr().cast(), size_of_val(records)) }
}

/// The bytes of records, for the kernel to write.
fn bytes_of_mut<T: Plain>(records: &mut [T]) -> &mut [u8] {
    // SAFETY: as in `bytes_of`, and any bytes make a `T` (`Plain`).
    unsafe { std::slice::from_raw_parts_mut(records.as_mut_ptr().cast(), size_of_val(records)) }
}

/// A record of zeros.
#[must_use]
pub fn zeroed<T: Plain>() -> T {
    // SAFETY: any bit pattern, zeros too, makes a `T` (`Plain`).
    unsafe { std::mem::zeroed() }
}

/// One entry that could not be written, and why. The entries before it were.
#[derive(Debug, thiserror::Error)]
#[error("entry {index}: {source}")]
pub struct EntryError {
    /// Its place in what was to be written.
    pub index: usize,
    /// What the kernel said.
    pub source: io::Error,
}

/// A map whose keys are `K` and whose values are `V`.
#[derive(Debug)]
pub struct Table<K, V> {
    map: MapFd,
    batches: Batches,
    records: PhantomData<fn() -> (K, V)>,
}

fn size_error(info: &MapInfo, key: usize, value: usize) -> io::Error {
    io::Error::other(format!(
        "the map holds keys of {} and values of {} bytes, not {key} and {value}",
        info.key_bytes, info.value_bytes,
    ))
}

impl<K: Plain, V: Plain> Table<K, V> {
    /// Reads `map` as a table of these records.
    pub(super) fn new(map: MapFd) -> io::Result<Self> {
        let (key, value) = (size_of::<K>(), size_of::<V>());
        let right = map.info.key_bytes as usize == key && map.lookup_bytes() == value;
        if !right {
            return Err(size_error(&map.info, key, value));
        }
        Ok(Self {
            map,
            batches: Batches(AtomicBool::new(true)),
            records: PhantomData,
        })
    }

    /// The map's file descriptor and sizes.
    #[must_use]
    pub fn map(&self) -> &MapFd {
        &self.map
    }

    /// Most entries that fit.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.map.info.entries as usize
    }

    /// Never uses batch calls from now on: what a kernel without them does.
    pub fn without_batches(&self) {
        self.batches.0.store(false, Ordering::Relaxed);
    }

    /// The value of `key`.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = zeroed::<V>();
        let read = self.map.lookup(
            bytes_of(std::slice::from_ref(key)),
            bytes_of_mut(std::slice::from_mut(&mut value)),
        );
        match read {
            Ok(()) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets the value of `key`, in one step for readers in the kernel.
    pub fn put(&self, key: &K, value: &V) -> io::Result<()> {
        self.map.update(
            bytes_of(std::slice::from_ref(key)),
            bytes_of(std::slice::from_ref(value)),
            0,
        )
    }

    /// Removes `key`. Says whether it was there.
    pub fn remove(&self, key: &K) -> io::Result<bool> {
        match self.map.delete(bytes_of(std::slice::from_ref(key))) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Calls `each` for all entries.
    ///
    /// A hash that changes meanwhile may show an entry that was removed, and miss one that was
    /// added; entries that stay are shown at least once.
    pub fn for_each(&self, mut each: impl FnMut(&K, &V)) -> io::Result<()> {
        if self.batches.usable() {
            match self.for_each_batched(&mut each) {
                Ok(()) => return Ok(()),
                // Only a first call is refused, before `each` was called.
                Err(error) if self.batches.refused(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.for_each_single(each)
    }

    fn for_each_batched(&self, each: &mut impl FnMut(&K, &V)) -> io::Result<()> {
        let mut count = BATCH.min(self.capacity().max(1));
        let (mut keys, mut values) = (vec![zeroed::<K>(); count], vec![zeroed::<V>(); count]);
        let mut position = None;
        loop {
            let batch = self.map.lookup_batch(
                &mut position,
                bytes_of_mut(&mut keys),
                bytes_of_mut(&mut values),
                count,
            );
            let (done, end) = match batch {
                Ok(Batch::More(done)) => (done, false),
                Ok(Batch::End(done)) => (done, true),
                // One bucket of a hash holds more than fits.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    count = count.saturating_mul(2);
                    keys.resize(count, zeroed());
                    values.resize(count, zeroed());
                    continue;
                }
                Err(error) => return Err(error),
            };
            for (key, value) in keys.iter().zip(&values).take(done) {
                each(key, value);
            }
            if end {
                return Ok(());
            }
        }
    }

    fn for_each_single(&self, mut each: impl FnMut(&K, &V)) -> io::Result<()> {
        let mut key: Option<K> = None;
        // A hash whose current key is removed begins anew: bounded, so that no writer can keep a
        // reader busy for ever.
        for _ in 0..self.capacity().saturating_mul(4).saturating_add(16) {
            let mut next = zeroed::<K>();
            let found = self.map.next_key(
                key.as_ref().map(|key| bytes_of(std::slice::from_ref(key))),
                bytes_of_mut(std::slice::from_mut(&mut next)),
            );
            match found {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
                Err(error) => return Err(error),
            }
            if let Some(value) = self.get(&next)? {
                each(&next, &value);
            }
            key = Some(next);
        }
        Ok(())
    }

    /// All entries.
    pub fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        self.for_each(|key, value| entries.push((*key, *value)))?;
        Ok(entries)
    }

    /// Sets all of `entries`, in order. Stops at the first that is refused.
    pub fn put_all(&self, entries: &[(K, V)]) -> Result<(), EntryError> {
        let mut start = 0;
        for chunk in entries.chunks(BATCH) {
            let at = |index| move |source| EntryError { index, source };
            let mut singles = chunk.iter().enumerate();
            if self.batches.usable() && chunk.len() > 1 {
                let keys: Vec<K> = chunk.iter().map(|(key, _)| *key).collect();
                let values: Vec<V> = chunk.iter().map(|(_, value)| *value).collect();
                match self
                    .map
                    .update_batch(bytes_of(&keys), bytes_of(&values), chunk.len())
                {
                    Ok(()) => singles = [].iter().enumerate(),
                    Err((error, 0)) if self.batches.refused(&error) => {}
                    Err((source, done)) => return Err(at(start + done)(source)),
                }
            }
            for (index, (key, value)) in singles {
                self.put(key, value).map_err(at(start + index))?;
            }
            start += chunk.len();
        }
        Ok(())
    }

    /// Removes all of `keys`; those that are not there are passed over. Says how many were there.
    pub fn remove_all(&self, keys: &[K]) -> Result<usize, EntryError> {
        let (mut next, mut removed) = (0, 0);
        while let Some(rest) = keys.get(next..).filter(|rest| !rest.is_empty()) {
            let chunk = rest.get(..BATCH).unwrap_or(rest);
            if self.batches.usable() && chunk.len() > 1 {
                match self.map.delete_batch(bytes_of(chunk), chunk.len()) {
                    Ok(()) => {
                        (next, removed) = (next + chunk.len(), removed + chunk.len());
                        continue;
                    }
                    // The kernel stops at a key that is not there: go on behind it.
                    Err((error, done)) if error.raw_os_error() == Some(libc::ENOENT) => {
                        (next, removed) = (next + done + 1, removed + done);
                        continue;
                    }
                    Err((error, 0)) if self.batches.refused(&error) => {}
                    Err((source, done)) => {
                        return Err(EntryError {
                            index: next + done,
                            source,
                        });
                    }
                }
            }
            for key in chunk {
                let was = self.remove(key).map_err(|source| EntryError {
                    index: next,
                    source,
                })?;
                removed += usize::from(was);
                next += 1;
            }
        }
        Ok(removed)
    }
}

/// A per-CPU array whose values are `V`.
#[derive(Debug)]
pub struct PerCpuTable<V> {
    map: MapFd,
    records: PhantomData<fn() -> V>,
}

impl<V: Plain> PerCpuTable<V> {
    /// Reads `map` as a table of these records.
    pub(super) fn new(map: MapFd) -> io::Result<Self> {
        const {
            assert!(
                size_of::<V>().is_multiple_of(8),
                "the kernel rounds values up to 8 bytes"
            );
        };
        let (key, value) = (size_of::<u32>(), size_of::<V>());
        if map.info.key_bytes as usize != key || map.info.value_bytes as usize != value {
            return Err(size_error(&map.info, key, value));
        }
        Ok(Self {
            map,
            records: PhantomData,
        })
    }

    /// The map's file descriptor and sizes.
    #[must_use]
    pub fn map(&self) -> &MapFd {
        &self.map
    }

    /// The values at `index`, one per possible CPU.
    pub fn get(&self, index: u32) -> io::Result<Vec<V>> {
        let cpus = self.map.lookup_bytes() / size_of::<V>();
        let mut values = vec![zeroed::<V>(); cpus];
        self.map
            .lookup(bytes_of(&[index]), bytes_of_mut(&mut values))?;
        Ok(values)
    }
}
