//! A file of the host's for what sandboxes have too much of to keep in memory. It has no name, so that nobody else opens
//! it, and is gone with the last descriptor of it, however the process ends.
//!
//! It is dealt out in extents. What is freed is given back to the host's file system (FALLOC_FL_PUNCH_HOLE).

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use kvmlet_abi::{Errno, PAGE_SIZE};
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags};

use crate::HostFd;
use crate::error::errno;
use crate::stream::retry;

/// Pages of an extent.
pub const EXTENT_PAGES: u64 = 16;
/// Bytes of an extent.
pub const EXTENT_BYTES: u64 = EXTENT_PAGES * PAGE_SIZE;
/// Stretches that are given back at a time: the guest waits for it.
const GIVEN_BACK_MAX: usize = 64;
/// Names that are tried on a file system that has no files without one.
const NAMES_MAX: u32 = 16;

/// The file. Sandboxes may have it in common: nobody reads what he has not written.
pub struct Spill {
    fd: HostFd,
    /// The process that has made it: a child of fork(2) has a descriptor of the same file.
    process: u32,
    places: Mutex<Places>,
}

/// Which file it is, and nothing that changes.
impl fmt::Debug for Spill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spill")
            .field("fd", &self.fd)
            .finish_non_exhaustive()
    }
}

/// Extents by number.
#[derive(Debug, Default)]
struct Places {
    /// Nobody's, and without room on the disk.
    free: Stretches,
    /// Nobody's any more, and still with room on the disk.
    freed: Stretches,
    /// The first that was never used.
    next: u32,
}

/// Numbers, as stretches from a first one to the one behind the last. None touches another.
#[derive(Debug, Default)]
struct Stretches(BTreeMap<u32, u32>);

impl Stretches {
    fn add(&mut self, mut start: u32, mut end: u32) {
        if let Some((&before, &until)) = self.0.range(..start).next_back()
            && until == start
        {
            self.0.remove(&before);
            start = before;
        }
        if let Some(until) = self.0.remove(&end) {
            end = until;
        }
        self.0.insert(start, end);
    }

    fn take_one(&mut self) -> Option<u32> {
        let (start, end) = self.0.pop_first()?;
        let rest = start.saturating_add(1);
        if rest < end {
            self.0.insert(rest, end);
        }
        Some(start)
    }
}

impl Spill {
    /// A new file in directory `dir`, which nobody but the user may read.
    ///
    /// # Errors
    /// The host's; `ENFILE` if sandboxes may have no more descriptors.
    pub fn open(dir: &[u8]) -> Result<Self, Errno> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(dir, flags, Mode::empty()).map_err(errno)?;
        let fd = match without_name(&dir) {
            // Older file systems, some of layers and NFS.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => named_once(&dir),
            made => made,
        };
        let fd = HostFd::of_vm(fd.map_err(errno)?).map_err(|_| Errno::ENFILE)?;
        Ok(Self {
            fd,
            process: std::process::id(),
            places: Mutex::default(),
        })
    }

    /// An extent that holds nothing. `None` if there are no more, and in a child of fork(2).
    #[must_use]
    pub fn extent(self: &Arc<Self>) -> Option<Extent> {
        if !self.is_ours() {
            return None;
        }
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.free.0.is_empty() {
            self.give_back_some(&mut places);
        }
        let number = match places.free.take_one() {
            Some(number) => number,
            None => {
                let number = places.next;
                places.next = number.checked_add(1)?;
                number
            }
        };
        Some(Extent {
            spill: Arc::clone(self),
            number,
        })
    }

    /// Gives room of extents that are nobody's back to the host: some of it, if it lies in many places.
    pub fn give_back(&self) {
        if self.is_ours() {
            let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            self.give_back_some(&mut places);
        }
    }

    fn give_back_some(&self, places: &mut Places) {
        for _ in 0..GIVEN_BACK_MAX {
            let Some((start, end)) = places.freed.0.pop_first() else {
                break;
            };
            let len_bytes = u64::from(end.saturating_sub(start)).saturating_mul(EXTENT_BYTES);
            self.punch(u64::from(start).saturating_mul(EXTENT_BYTES), len_bytes);
            places.free.add(start, end);
        }
    }

    /// A file system that cannot do it keeps the room for what is written there next.
    fn punch(&self, offset: u64, len_bytes: u64) {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let _ = retry(|| rustix::fs::fallocate(&self.fd, mode, offset, len_bytes));
    }

    /// False in a child of fork(2), which must change nothing of its parent's.
    fn is_ours(&self) -> bool {
        self.process == std::process::id()
    }
}

/// A file that has no name, and gets none.
fn without_name(dir: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(dir, c".", flags, Mode::RUSR | Mode::WUSR)
}

/// A file that has a name for a moment.
fn named_once(dir: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::RDWR | OFlags::CLOEXEC;
    let mut last = rustix::io::Errno::EXIST;
    for _ in 0..NAMES_MAX {
        let number = std::hash::RandomState::new().build_hasher().finish();
        let name = format!(".kvmlet-{number:016x}");
        match rustix::fs::openat(dir, &name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => {
                rustix::fs::unlinkat(dir, &name, AtFlags::empty())?;
                return Ok(fd);
            }
            Err(error) => last = error,
        }
        if last != rustix::io::Errno::EXIST {
            break;
        }
    }
    Err(last)
}

/// A stretch of the file that belongs to whoever has this value. What was there before may be read until it is
/// written over: its owner knows what he has written.
#[derive(Debug)]
pub struct Extent {
    spill: Arc<Spill>,
    number: u32,
}

impl Extent {
    fn at(&self, offset: u64) -> u64 {
        u64::from(self.number)
            .saturating_mul(EXTENT_BYTES)
            .saturating_add(offset)
    }

    /// The file that it is part of.
    #[must_use]
    pub fn spill(&self) -> &Arc<Spill> {
        &self.spill
    }

    /// Fills `into` from `offset` in it.
    ///
    /// # Errors
    /// `EIO` if the file has no such bytes; the host's.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        let mut done = 0usize;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = self.at(offset.saturating_add(done as u64));
            match crate::read_at(self.spill.fd.as_fd(), rest, at)? {
                0 => return Err(Errno::EIO),
                count => done = done.saturating_add(count),
            }
        }
        Ok(())
    }

    /// Writes all of `bytes` at `offset` in it.
    ///
    /// # Errors
    /// `ENOSPC` if the host has no room for it, by whatever limit; the host's. Some of them may be written then.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        use rustix::io::Errno as Host;
        if !self.spill.is_ours() {
            return Err(Errno::EIO);
        }
        let mut done = 0usize;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let at = self.at(offset.saturating_add(done as u64));
            match retry(|| rustix::io::pwrite(&self.spill.fd, rest, at)) {
                Ok(0) | Err(Host::NOSPC | Host::DQUOT | Host::FBIG) => return Err(Errno::ENOSPC),
                Ok(count) => done = done.saturating_add(count),
                Err(error) => return Err(errno(error)),
            }
        }
        Ok(())
    }

    /// Gives the room of a part of it back to the host.
    pub fn punch(&mut self, offset: u64, len_bytes: u64) {
        if self.spill.is_ours() {
            self.spill.punch(self.at(offset), len_bytes);
        }
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        // In a child of fork(2) the lock may be held for ever.
        if self.spill.is_ours() {
            let mut places = self
                .spill
                .places
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            places.freed.add(self.number, self.number.saturating_add(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempTree;

    /// Bytes of the file that have room on the disk.
    fn room(spill: &Spill) -> u64 {
        let stat = rustix::fs::fstat(&spill.fd).unwrap();
        stat.st_blocks.unsigned_abs() * 512
    }

    #[test]
    fn what_is_written_is_read_and_no_name_is_left() {
        let tree = TempTree::new("spill");
        let dir = std::os::unix::ffi::OsStrExt::as_bytes(tree.0.as_os_str());
        let spill = Arc::new(Spill::open(dir).unwrap());
        assert_eq!(std::fs::read_dir(&tree.0).unwrap().count(), 0);
        let stat = rustix::fs::fstat(&spill.fd).unwrap();
        assert_eq!((stat.st_mode & 0o777, stat.st_nlink), (0o600, 0));
        let mut one = spill.extent().unwrap();
        let mut two = spill.extent().unwrap();
        one.write(10, b"one").unwrap();
        two.write(10, b"two").unwrap();
        let mut read = [0; 3];
        one.read(10, &mut read).unwrap();
        assert_eq!(&read, b"one");
        two.read(10, &mut read).unwrap();
        assert_eq!(&read, b"two");
        // Behind the end of the file there is nothing.
        assert_eq!(two.read(EXTENT_BYTES, &mut read), Err(Errno::EIO));
    }

    #[test]
    fn a_file_system_without_unnamed_files_has_one_without_a_name_too() {
        let tree = TempTree::new("spill-named");
        let dir = OwnedFd::from(std::fs::File::open(&tree.0).unwrap());
        let fd = named_once(&dir).unwrap();
        assert_eq!(rustix::fs::fstat(&fd).unwrap().st_nlink, 0);
        assert_eq!(std::fs::read_dir(&tree.0).unwrap().count(), 0);
    }

    #[test]
    fn what_is_freed_goes_back_to_the_disk_and_is_used_again() {
        let tree = TempTree::new("spill-freed");
        let dir = std::os::unix::ffi::OsStrExt::as_bytes(tree.0.as_os_str());
        let spill = Arc::new(Spill::open(dir).unwrap());
        let mut extents: Vec<Extent> = (0..100).map(|_| spill.extent().unwrap()).collect();
        for extent in &mut extents {
            extent.write(0, &[7; EXTENT_BYTES as usize]).unwrap();
        }
        assert!(room(&spill) >= 100 * EXTENT_BYTES);
        // Every other one: stretches that do not touch.
        let mut number = 0;
        extents.retain(|_| {
            number += 1;
            number % 2 == 0
        });
        spill.give_back();
        assert!(room(&spill) <= 51 * EXTENT_BYTES, "{}", room(&spill));
        let again = spill.extent().unwrap();
        assert!(again.number < 100);
        extents.clear();
        drop(again);
        spill.give_back();
        assert!(room(&spill) <= EXTENT_BYTES, "{}", room(&spill));
        assert_eq!(spill.places.lock().unwrap().next, 100);
    }

    #[test]
    fn a_directory_that_is_none_is_an_error() {
        assert_eq!(Spill::open(b"/proc/nowhere").unwrap_err(), Errno::ENOENT);
        assert_eq!(Spill::open(b"/etc/passwd").unwrap_err(), Errno::ENOTDIR);
    }
}
