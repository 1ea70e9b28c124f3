//! Locks that are held against other processes of the host: flock(2), and those of open file descriptions (fcntl(2)).
//!
//! A sandbox has one open file description of each file for each kind of lock, and holds by it what any of its
//! processes holds. Nothing here waits. The locks go with the descriptions.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use kvmlet_abi::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::FlockOperation;

use crate::change::{Access, Durability, WriteMode, open_by_number};
use crate::error::errno;
use crate::hostfd::HostFd;

/// Device and inode number.
pub type FileKey = (u64, u64);

/// The other holders that a lock excludes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockMode {
    /// Writers.
    Shared,
    /// Everyone else.
    Exclusive,
}

/// Bytes of a file: from the first to the one past the last. [`u64::MAX`] is the end of the file, whatever its size.
pub type LockRange = (u64, u64);

/// A lock of another process of the host's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Foreign {
    /// The holders that it excludes.
    pub mode: LockMode,
    /// The bytes that it is on.
    pub range: LockRange,
    /// True if a description holds it, false if a process does.
    pub is_of_description: bool,
}

/// Opens the object behind a descriptor once more, for locks. Which way it is opened is told beside it.
///
/// # Errors
/// The host's: `EACCES` if it may not be opened in any way that will do.
pub fn open_for_locks(fd: BorrowedFd<'_>, mode: LockMode) -> Result<(OwnedFd, Access), Errno> {
    let ways = match mode {
        // Opening for reading only tells nobody on the host of a change.
        LockMode::Shared => [Access::Read, Access::Write],
        LockMode::Exclusive => [Access::ReadWrite, Access::Write],
    };
    let mut opened = Err(Errno::EACCES);
    for access in ways {
        let durability = Durability::Later;
        let again = open_by_number(fd, WriteMode { access, durability });
        opened = again.map(|fd| (fd, access));
        if opened.is_ok() {
            break;
        }
    }
    opened
}

/// The description that holds the record locks of a file.
#[derive(Debug)]
struct Holder {
    fd: Arc<HostFd>,
    access: Access,
}

/// The locks that a sandbox holds on the host's files.
#[derive(Debug, Default)]
pub struct HostLocks {
    records: BTreeMap<FileKey, Holder>,
    whole: BTreeMap<FileKey, Arc<HostFd>>,
}

impl HostLocks {
    /// True if it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.whole.is_empty()
    }

    /// True if a file has a description that can hold record locks of this mode.
    #[must_use]
    pub fn can_hold_records(&self, file: FileKey, mode: LockMode) -> bool {
        let holder = self.records.get(&file);
        holder.is_some_and(|holder| match mode {
            LockMode::Shared => holder.access != Access::Write,
            LockMode::Exclusive => holder.access != Access::Read,
        })
    }

    /// Gives a file another description for its record locks, by [`open_for_locks`]. `shared` is held by it at once: what
    /// the one before held. That one goes.
    ///
    /// # Errors
    /// The host's; then the one before stays.
    pub fn use_for_records(
        &mut self,
        file: FileKey,
        (fd, access): (Arc<HostFd>, Access),
        shared: &[LockRange],
    ) -> Result<(), Errno> {
        for range in shared {
            // Only the one before can be in the way, with what is no shared lock.
            let held = set(fd.as_fd(), libc::F_RDLCK, *range);
            held.map_err(|error| {
                if error == Errno::EAGAIN {
                    Errno::ENOLCK
                } else {
                    error
                }
            })?;
        }
        self.records.insert(file, Holder { fd, access });
        Ok(())
    }

    /// Holds a range of a file that has a description for it.
    ///
    /// # Errors
    /// `EAGAIN` if another process of the host's is in the way; `ENOLCK` without a description; the host's.
    pub fn hold_record(
        &mut self,
        file: FileKey,
        mode: LockMode,
        range: LockRange,
    ) -> Result<(), Errno> {
        let holder = self.records.get(&file).ok_or(Errno::ENOLCK)?;
        let kind = match mode {
            LockMode::Shared => libc::F_RDLCK,
            LockMode::Exclusive => libc::F_WRLCK,
        };
        set(holder.fd.as_fd(), kind, range)
    }

    /// Gives a range up.
    pub fn release_record(&mut self, file: FileKey, range: LockRange) {
        if let Some(holder) = self.records.get(&file) {
            // Dividing a lock may fail at the host's limit: then more is held until the description goes.
            let _ = set(holder.fd.as_fd(), libc::F_UNLCK, range);
        }
    }

    /// Gives all record locks of a file up.
    pub fn release_records(&mut self, file: FileKey) {
        self.records.remove(&file);
    }

    /// A lock of another process that a record lock would meet. `fd` is open on the file.
    ///
    /// # Errors
    /// The host's.
    pub fn foreign_record(
        &self,
        file: FileKey,
        fd: BorrowedFd<'_>,
        mode: LockMode,
        range: LockRange,
    ) -> Result<Option<Foreign>, Errno> {
        let holder = self.records.get(&file);
        let kind = match mode {
            LockMode::Shared => libc::F_RDLCK,
            LockMode::Exclusive => libc::F_WRLCK,
        };
        let mut asked = flock(kind, range)?;
        let fd = holder.map_or(fd, |holder| holder.fd.as_fd());
        fcntl(fd, FcntlArg::F_OFD_GETLK(&mut asked)).map_err(from_nix)?;
        if i32::from(asked.l_type) == libc::F_UNLCK {
            return Ok(None);
        }
        let start = u64::try_from(asked.l_start).unwrap_or(0);
        let len = u64::try_from(asked.l_len).unwrap_or(0);
        let end = match len {
            0 => u64::MAX,
            len => start.saturating_add(len),
        };
        Ok(Some(Foreign {
            mode: match i32::from(asked.l_type) == libc::F_RDLCK {
                true => LockMode::Shared,
                false => LockMode::Exclusive,
            },
            range: (start, end),
            is_of_description: asked.l_pid == -1,
        }))
    }

    /// True if a file has a description for locks on all of it.
    #[must_use]
    pub fn can_hold_whole(&self, file: FileKey) -> bool {
        self.whole.contains_key(&file)
    }

    /// Gives a file a description for locks on all of it.
    pub fn use_for_whole(&mut self, file: FileKey, fd: Arc<HostFd>) {
        self.whole.insert(file, fd);
    }

    /// Holds all of a file that has a description for it (flock(2)).
    ///
    /// # Errors
    /// `EAGAIN` if another process of the host's is in the way: nothing is held then, as on Linux.
    pub fn hold_whole(&mut self, file: FileKey, mode: LockMode) -> Result<(), Errno> {
        let fd = self.whole.get(&file).ok_or(Errno::ENOLCK)?;
        let operation = match mode {
            LockMode::Shared => FlockOperation::NonBlockingLockShared,
            LockMode::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        let held = rustix::fs::flock(fd.as_fd(), operation).map_err(errno);
        if held.is_err() {
            self.whole.remove(&file);
        }
        held
    }

    /// Gives the lock on all of a file up.
    pub fn release_whole(&mut self, file: FileKey) {
        self.whole.remove(&file);
    }
}

fn flock(kind: i32, (start, end): LockRange) -> Result<libc::flock, Errno> {
    let len = match end {
        u64::MAX => 0,
        end => end.saturating_sub(start),
    };
    Ok(libc::flock {
        l_type: i16::try_from(kind).map_err(|_| Errno::EINVAL)?,
        l_whence: i16::try_from(libc::SEEK_SET).map_err(|_| Errno::EINVAL)?,
        l_start: i64::try_from(start).map_err(|_| Errno::EOVERFLOW)?,
        l_len: i64::try_from(len).map_err(|_| Errno::EOVERFLOW)?,
        l_pid: 0,
    })
}

fn set(fd: BorrowedFd<'_>, kind: i32, range: LockRange) -> Result<(), Errno> {
    let lock = flock(kind, range)?;
    match fcntl(fd, FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => Ok(()),
        // The host may answer either (fcntl(2)).
        Err(nix::errno::Errno::EACCES) => Err(Errno::EAGAIN),
        Err(error) => Err(from_nix(error)),
    }
}

fn from_nix(error: nix::errno::Errno) -> Errno {
    Errno::from_raw(error as i32)
}

#[cfg(test)]
mod tests {
    use kvmlet_budget::Share;

    use super::*;
    use crate::object::attr_of;
    use crate::testing::TempTree;

    fn counted(fd: OwnedFd) -> Arc<HostFd> {
        Arc::new(HostFd::of_guest(fd, &Arc::new(Share::default())).unwrap())
    }

    #[test]
    fn two_sandboxes_exclude_each_other() {
        let tree = TempTree::new("locks");
        let path = tree.0.join("file");
        std::fs::write(&path, "0123456789").unwrap();
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let attr = attr_of(file.as_fd()).unwrap();
        let key = (attr.dev, attr.ino);
        let [mut one, mut two] = [HostLocks::default(), HostLocks::default()];
        for (locks, mode) in [
            (&mut one, LockMode::Shared),
            (&mut two, LockMode::Exclusive),
        ] {
            let (fd, access) = open_for_locks(file.as_fd(), mode).unwrap();
            locks
                .use_for_records(key, (counted(fd), access), &[])
                .unwrap();
            let (fd, _) = open_for_locks(file.as_fd(), LockMode::Shared).unwrap();
            locks.use_for_whole(key, counted(fd));
        }
        assert!(!one.can_hold_records(key, LockMode::Exclusive));
        one.hold_record(key, LockMode::Shared, (0, 5)).unwrap();
        two.hold_record(key, LockMode::Shared, (0, 2)).unwrap();
        let refused = two.hold_record(key, LockMode::Exclusive, (4, u64::MAX));
        assert_eq!(refused, Err(Errno::EAGAIN));
        let met = two
            .foreign_record(key, file.as_fd(), LockMode::Exclusive, (4, 9))
            .unwrap()
            .unwrap();
        assert_eq!((met.mode, met.range), (LockMode::Shared, (0, 5)));
        assert!(met.is_of_description);
        // What is held goes over to a description that can hold more.
        let (fd, access) = open_for_locks(file.as_fd(), LockMode::Exclusive).unwrap();
        one.use_for_records(key, (counted(fd), access), &[(0, 5)])
            .unwrap();
        assert!(two.hold_record(key, LockMode::Exclusive, (4, 5)).is_err());
        one.hold_record(key, LockMode::Exclusive, (7, 8)).unwrap();
        one.release_record(key, (4, 5));
        two.hold_record(key, LockMode::Exclusive, (4, 5)).unwrap();
        one.release_records(key);
        two.hold_record(key, LockMode::Exclusive, (0, u64::MAX))
            .unwrap();
        // Locks on all of a file are of another kind.
        one.hold_whole(key, LockMode::Shared).unwrap();
        two.hold_whole(key, LockMode::Shared).unwrap();
        assert_eq!(two.hold_whole(key, LockMode::Exclusive), Err(Errno::EAGAIN));
        assert!(!two.can_hold_whole(key));
        one.hold_whole(key, LockMode::Exclusive).unwrap();
        one.release_whole(key);
        assert!(one.is_empty() || !one.can_hold_whole(key));
    }
}
