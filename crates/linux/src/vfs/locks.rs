//! Advisory locks (flock(2), fcntl(2)) as values.
//!
//! Those on files that are changed on the host are held there too, by descriptions of our own (`HostLocks`). These are
//! no part of the value. Linux differs: after a freeze forks hold among their own processes only what was held before.

use std::os::fd::AsFd;
use std::sync::Arc;

use imbl::{OrdMap, Vector};
use kvmlet_abi::Errno;
use kvmlet_hostfs::HostFd;
use kvmlet_hostfs::change::Access;
use kvmlet_hostfs::locks::{Foreign, LockMode, LockRange};

use super::pipe::LOCKS_SOURCE;
use super::{file, hosttree};
use crate::cx::Cx;
use crate::fd::FileId;
use crate::id::FilesId;
use crate::kernel::{Pid, Tid};
use crate::outcome::{Source, WaitOn};

/// Locks held at most; then ENOLCK.
const LOCKS_MAX: usize = 4096;
/// Waits that a search for a deadlock follows (MAX_DEADLK_ITERATIONS, fs/locks.c). A longer circle waits for ever, as
/// it does there.
const DEADLOCK_STEPS_MAX: usize = 10;
/// End of a lock that reaches to the end of the file, whatever its size.
pub const TO_END: u64 = u64::MAX;

pub use kvmlet_hostfs::locks::FileKey;

/// Who holds a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// A descriptor table: the process that it is of, or all that share it (F_SETLK).
    Files(FilesId),
    /// An open file description (F_OFD_SETLK).
    Description(FileId),
    /// An open file description (flock(2)): a kind of its own, which meets only its like.
    Flock(FileId),
}

impl Owner {
    fn same_kind(self, other: Self) -> bool {
        matches!(self, Self::Flock(_)) == matches!(other, Self::Flock(_))
    }
}

/// The other holders that a lock excludes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Writers (F_RDLCK, LOCK_SH).
    Shared,
    /// Everyone else (F_WRLCK, LOCK_EX).
    Exclusive,
}

/// A lock on `start..end` of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lock {
    /// The file.
    pub file: FileKey,
    /// Its holder.
    pub owner: Owner,
    /// The process that made it.
    pub pid: Pid,
    /// The other holders that it excludes.
    pub mode: Mode,
    /// First byte.
    pub start: u64,
    /// Byte past the last, or [`TO_END`].
    pub end: u64,
}

/// Who has a lock that is in the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blocker {
    /// The program itself, which wakes those who wait for it ([`wake`]).
    Program,
    /// Another process of the host's. Nobody tells when it gives the lock up.
    Host,
}

/// All locks held.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Locks {
    held: Vector<Lock>,
    /// Locks of processes that threads have begun to wait for. Some may not wait any more.
    wanted: OrdMap<Tid, Lock>,
}

impl Locks {
    /// A thread waits for a lock, or no longer does.
    pub fn wait(&mut self, tid: Tid, wanted: Option<Lock>) {
        match wanted {
            Some(lock) => drop(self.wanted.insert(tid, lock)),
            None => drop(self.wanted.remove(&tid)),
        }
    }

    /// True if whoever is in the way of `wanted` waits for its owner, or for one who does
    /// (posix_locks_deadlock in fs/locks.c). Locks of descriptions have no waiter that could be told.
    fn is_deadlock(&self, wanted: &Lock, is_waiting: impl Fn(Tid) -> bool) -> bool {
        let mut at = *wanted;
        // Each step is to another owner's wait. A circle that `wanted` is not in has no end.
        for _ in 0..=DEADLOCK_STEPS_MAX {
            let Some(blocker) = self.conflict(&at) else {
                return false;
            };
            if !matches!(blocker.owner, Owner::Files(_)) {
                return false;
            }
            if blocker.owner == wanted.owner {
                return true;
            }
            let mut waits = self.wanted.iter();
            let next = waits.find(|(tid, lock)| lock.owner == blocker.owner && is_waiting(**tid));
            let Some((_, next)) = next else {
                return false;
            };
            at = *next;
        }
        false
    }

    /// The first lock that would have to go before `wanted` can be held.
    #[must_use]
    pub fn conflict(&self, wanted: &Lock) -> Option<Lock> {
        self.held
            .iter()
            .find(|held| {
                held.file == wanted.file
                    && held.owner != wanted.owner
                    && held.owner.same_kind(wanted.owner)
                    && (held.mode == Mode::Exclusive || wanted.mode == Mode::Exclusive)
                    && held.start < wanted.end
                    && wanted.start < held.end
            })
            .copied()
    }

    /// Holds `wanted`, replacing what its owner held in that range. Beside or in a lock of its owner's that excludes
    /// the same, it becomes a part of that (posix_lock_inode in fs/locks.c).
    ///
    /// # Errors
    /// `EAGAIN` if another owner's lock is in the way, `ENOLCK` when too many are held.
    pub fn hold(&mut self, wanted: Lock) -> Result<(), Errno> {
        if self.conflict(&wanted).is_some() {
            return Err(Errno::EAGAIN);
        }
        let joins = |held: &&Lock| {
            held.file == wanted.file
                && held.owner == wanted.owner
                && held.mode == wanted.mode
                && held.start <= wanted.end
                && wanted.start <= held.end
        };
        // Each is apart from the next: what they join is no wider than they are.
        let joined = self.held.iter().filter(joins);
        let whole = joined.fold(wanted, |whole, held| Lock {
            start: whole.start.min(held.start),
            end: whole.end.max(held.end),
            pid: held.pid,
            ..whole
        });
        let mut kept = self.without(&whole);
        if kept.len() >= LOCKS_MAX {
            return Err(Errno::ENOLCK);
        }
        kept.push_back(whole);
        self.held = kept;
        Ok(())
    }

    /// Gives up what `range.owner` holds of `range`.
    ///
    /// # Errors
    /// `ENOLCK` if what is left is in too many pieces: nothing has changed.
    pub fn release(&mut self, range: &Lock) -> Result<(), Errno> {
        let kept = self.without(range);
        if kept.len() > LOCKS_MAX {
            return Err(Errno::ENOLCK);
        }
        self.held = kept;
        Ok(())
    }

    /// The locks that are left without what `range.owner` holds of `range`.
    fn without(&self, range: &Lock) -> Vector<Lock> {
        let mut kept = Vector::new();
        for held in &self.held {
            let overlaps = held.file == range.file
                && held.owner == range.owner
                && held.start < range.end
                && range.start < held.end;
            if !overlaps {
                kept.push_back(*held);
                continue;
            }
            if held.start < range.start {
                kept.push_back(Lock {
                    end: range.start,
                    ..*held
                });
            }
            if held.end > range.end {
                kept.push_back(Lock {
                    start: range.end,
                    ..*held
                });
            }
        }
        kept
    }

    /// Gives up every lock for which `gone` holds; those that were.
    fn drop_where(&mut self, gone: impl Fn(&Lock) -> bool) -> Vec<Lock> {
        let dropped: Vec<Lock> = self
            .held
            .iter()
            .filter(|held| gone(held))
            .copied()
            .collect();
        if !dropped.is_empty() {
            crate::vector::retain(&mut self.held, |held| !gone(held));
        }
        dropped
    }

    /// The record locks on a file, or those on all of it: the kind of `owner`.
    fn on(&self, file: FileKey, owner: Owner) -> impl Iterator<Item = &Lock> {
        let held = self.held.iter();
        held.filter(move |held| held.file == file && held.owner.same_kind(owner))
    }

    /// The parts of a record lock's range that nobody holds.
    fn free_parts(&self, lock: &Lock) -> Vec<LockRange> {
        let mut taken: Vec<LockRange> = self
            .on(lock.file, lock.owner)
            .map(|held| (held.start, held.end))
            .collect();
        taken.sort_unstable();
        let mut parts = Vec::new();
        let mut at = lock.start;
        for (start, end) in taken {
            if start >= lock.end {
                break;
            }
            if at < start {
                parts.push((at, start));
            }
            at = at.max(end);
        }
        if at < lock.end {
            parts.push((at, lock.end));
        }
        parts
    }
}

// ---- locks on the host ----

/// The host's descriptor of a file whose locks other processes of the host meet: one in a tree that is changed itself.
pub fn on_host(cx: &Cx<'_>, file: FileId) -> Option<Arc<HostFd>> {
    let open = cx.kernel.files.get(&file)?;
    let in_tree = file::is_of_host_tree(&open.kind) && hosttree::is_writable(cx.host, &open.path);
    let host = file::host(&open.kind).filter(|_| in_tree)?;
    cx.host.fd(host).ok()
}

impl Mode {
    fn of_host(self) -> LockMode {
        match self {
            Self::Shared => LockMode::Shared,
            Self::Exclusive => LockMode::Exclusive,
        }
    }
}

/// Holds `lock` on an open file: on the host too, where its other processes meet it. If another lock is in the way, it
/// is not held, and the answer says whose that is.
///
/// # Errors
/// `ENOLCK`
pub fn hold(cx: &mut Cx<'_>, file: FileId, lock: Lock) -> Result<Option<Blocker>, Errno> {
    if cx.kernel.locks.conflict(&lock).is_some() {
        return Ok(Some(Blocker::Program));
    }
    let Some(fd) = on_host(cx, file) else {
        return cx.kernel.locks.hold(lock).map(|()| None);
    };
    let held = match lock.owner {
        Owner::Flock(_) => hold_whole(cx, &fd, &lock),
        Owner::Files(_) | Owner::Description(_) => hold_record(cx, (file, &fd), &lock),
    };
    match held {
        Err(Errno::EAGAIN) => return Ok(Some(Blocker::Host)),
        held => held?,
    }
    let held = cx.kernel.locks.hold(lock);
    if held.is_err() {
        release_on_host(cx, &[lock]);
    }
    held.map(|()| None)
}

/// Opens a file once more for its locks.
fn open_again(
    cx: &mut Cx<'_>,
    fd: &HostFd,
    mode: LockMode,
) -> Result<(Arc<HostFd>, Access), Errno> {
    let opened = kvmlet_hostfs::locks::open_for_locks(fd.as_fd(), mode);
    let (own, access) = opened.map_err(|_| Errno::ENOLCK)?;
    Ok((cx.host.charge_opened(own)?, access))
}

fn hold_whole(cx: &mut Cx<'_>, fd: &HostFd, lock: &Lock) -> Result<(), Errno> {
    if !cx.host.locks.can_hold_whole(lock.file) {
        let (own, _) = open_again(cx, fd, LockMode::Shared)?;
        cx.host.locks.use_for_whole(lock.file, own);
    }
    let held = cx.host.locks.hold_whole(lock.file, lock.mode.of_host());
    let held_before = |held: &Lock| held.owner == lock.owner;
    if held.is_err() && cx.kernel.locks.on(lock.file, lock.owner).any(held_before) {
        // One that was to become another is lost, as on Linux (flock(2)).
        cx.kernel.locks.release(lock)?;
        wake(cx);
    }
    held
}

fn hold_record(cx: &mut Cx<'_>, (file, fd): (FileId, &HostFd), lock: &Lock) -> Result<(), Errno> {
    let mode = lock.mode.of_host();
    if !cx.host.locks.can_hold_records(lock.file, mode) {
        // Opening it for nothing at each try would be told to whoever watches the file on the host.
        if foreign(cx, file, lock)?.is_some() {
            return Err(Errno::EAGAIN);
        }
        let own = open_again(cx, fd, mode)?;
        // A description that cannot hold this one holds shared ones at most, or gives ENOLCK.
        let held = cx.kernel.locks.on(lock.file, lock.owner);
        let shared: Vec<LockRange> = held.map(|held| (held.start, held.end)).collect();
        cx.host.locks.use_for_records(lock.file, own, &shared)?;
    }
    let range = (lock.start, lock.end);
    let held = cx.host.locks.hold_record(lock.file, mode, range);
    if held.is_err() {
        forget_unused(cx, lock);
    }
    held
}

/// Gives up a range of an open file's lock.
///
/// # Errors
/// `ENOLCK` if what is left is in too many pieces.
pub fn release(cx: &mut Cx<'_>, lock: &Lock) -> Result<(), Errno> {
    cx.kernel.locks.release(lock)?;
    release_on_host(cx, &[*lock]);
    Ok(())
}

/// What `locks` were has been given up here: on the host too, as far as nobody else here holds it.
fn release_on_host(cx: &mut Cx<'_>, locks: &[Lock]) {
    if cx.host.locks.is_empty() {
        return;
    }
    for lock in locks {
        if !matches!(lock.owner, Owner::Flock(_)) {
            for range in cx.kernel.locks.free_parts(lock) {
                cx.host.locks.release_record(lock.file, range);
            }
        }
        forget_unused(cx, lock);
    }
}

/// Closes the descriptor for locks of a kind that a file has none of.
fn forget_unused(cx: &mut Cx<'_>, lock: &Lock) {
    if cx.kernel.locks.on(lock.file, lock.owner).next().is_some() {
        return;
    }
    match lock.owner {
        Owner::Flock(_) => cx.host.locks.release_whole(lock.file),
        Owner::Files(_) | Owner::Description(_) => cx.host.locks.release_records(lock.file),
    }
}

/// The lock that `wanted` would meet on the host.
///
/// # Errors
/// The host's.
pub fn foreign(cx: &Cx<'_>, file: FileId, wanted: &Lock) -> Result<Option<Foreign>, Errno> {
    let Some(fd) = on_host(cx, file) else {
        return Ok(None);
    };
    let range = (wanted.start, wanted.end);
    let mode = wanted.mode.of_host();
    let locks = &cx.host.locks;
    locks.foreign_record(wanted.file, fd.as_fd(), mode, range)
}

// ---- their end ----

/// The calling thread is about to wait for a lock of its process (F_SETLKW).
///
/// # Errors
/// `EDEADLK` if it would wait for itself.
pub fn begin_wait(cx: &mut Cx<'_>, wanted: &Lock) -> Result<(), Errno> {
    let parked = &cx.kernel.sched.parked;
    let is_waiting = |tid| match parked.get(&tid).map(|parked| &parked.wait.on) {
        Some(WaitOn::Sources(sources)) => sources.contains(&Source::Pipe(LOCKS_SOURCE)),
        _ => false,
    };
    if cx.kernel.locks.is_deadlock(wanted, is_waiting) {
        return Err(Errno::EDEADLK);
    }
    cx.kernel.locks.wait(cx.tid, Some(*wanted));
    Ok(())
}

/// Wakes those who wait for a lock.
pub fn wake(cx: &mut Cx<'_>) {
    cx.kernel.sched.wake_source(Source::Pipe(LOCKS_SOURCE));
}

/// A descriptor of `file` has been closed: its table loses its locks on that file (fcntl(2)).
pub fn closed(cx: &mut Cx<'_>, files: FilesId, file: FileId) {
    let owner = Owner::Files(files);
    if !cx.kernel.locks.held.iter().any(|held| held.owner == owner) {
        return;
    }
    let Ok(attr) = super::file::attr(cx, file) else {
        return;
    };
    let key = (attr.dev, attr.ino);
    drop_where(cx, |held| held.file == key && held.owner == owner);
}

/// Gives up every lock for which `gone` holds.
fn drop_where(cx: &mut Cx<'_>, gone: impl Fn(&Lock) -> bool) {
    let dropped = cx.kernel.locks.drop_where(gone);
    if !dropped.is_empty() {
        release_on_host(cx, &dropped);
        wake(cx);
    }
}

/// A descriptor table is gone, and its locks with it.
pub fn table_gone(cx: &mut Cx<'_>, files: FilesId) {
    let owner = Owner::Files(files);
    drop_where(cx, |held| held.owner == owner);
}

/// A description is gone, and its locks with it.
pub fn released(cx: &mut Cx<'_>, file: FileId) {
    let owners = [Owner::Description(file), Owner::Flock(file)];
    drop_where(cx, |held| owners.contains(&held.owner));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(owner: Owner, mode: Mode, start: u64, end: u64) -> Lock {
        Lock {
            file: (1, 2),
            owner,
            pid: Pid(2),
            mode,
            start,
            end,
        }
    }

    #[test]
    fn a_circle_of_waits_is_a_deadlock() {
        let process = |number: i32| Owner::Files(FilesId(number.unsigned_abs().into()));
        let byte = |pid: i32, at: u64| lock(process(pid), Mode::Exclusive, at, at + 1);
        let mut locks = Locks::default();
        for pid in 2..5 {
            locks.hold(byte(pid, pid.cast_unsigned().into())).unwrap();
        }
        locks.wait(Tid(2), Some(byte(2, 3)));
        assert!(!locks.is_deadlock(&byte(3, 4), |_| true));
        locks.wait(Tid(3), Some(byte(3, 4)));
        assert!(locks.is_deadlock(&byte(4, 2), |_| true));
        // One of them has given up.
        assert!(!locks.is_deadlock(&byte(4, 2), |tid| tid != Tid(3)));
        // A circle of others.
        locks.wait(Tid(4), Some(byte(4, 2)));
        assert!(!locks.is_deadlock(&byte(5, 2), |_| true));
        let description = lock(Owner::Description(FileId(1)), Mode::Exclusive, 2, 3);
        assert!(!locks.is_deadlock(&description, |_| true));
    }

    #[test]
    fn the_pieces_of_a_lock_are_counted() {
        let owner = Owner::Files(FilesId(2));
        let part = |at: u64| lock(owner, Mode::Exclusive, 2 * at + 1, 2 * at + 2);
        let mut locks = Locks::default();
        locks.hold(lock(owner, Mode::Exclusive, 0, TO_END)).unwrap();
        let split = (0..).find(|at| locks.release(&part(*at)).is_err());
        assert_eq!(split, Some(LOCKS_MAX as u64 - 1));
        assert_eq!(locks.held.len(), LOCKS_MAX);
        let elsewhere = Lock {
            file: (3, 4),
            ..part(0)
        };
        assert_eq!(locks.hold(elsewhere), Err(Errno::ENOLCK));
        // What takes no more pieces is let through, and so is a lock in place of others.
        locks.release(&lock(owner, Mode::Exclusive, 0, 1)).unwrap();
        locks.hold(lock(owner, Mode::Shared, 0, TO_END)).unwrap();
        assert_eq!(locks.held.len(), 1);
    }

    #[test]
    fn what_nobody_holds_is_free() {
        let (a, b) = (Owner::Files(FilesId(1)), Owner::Description(FileId(2)));
        let mut locks = Locks::default();
        for (start, end) in [(10, 20), (30, 40), (35, 50)] {
            locks.hold(lock(b, Mode::Shared, start, end)).unwrap();
        }
        let whole = lock(Owner::Flock(FileId(3)), Mode::Exclusive, 0, TO_END);
        locks.hold(whole).unwrap();
        let free = |start, end| locks.free_parts(&lock(a, Mode::Shared, start, end));
        assert_eq!(free(0, TO_END), [(0, 10), (20, 30), (50, TO_END)]);
        assert_eq!(free(12, 31), [(20, 30)]);
        assert!(free(12, 18).is_empty());
        assert_eq!(free(60, 70), [(60, 70)]);
    }

    #[test]
    fn what_lies_beside_a_lock_becomes_a_part_of_it() {
        let owner = Owner::Files(FilesId(2));
        let other = |start, end| lock(Owner::Flock(FileId(1)), Mode::Shared, start, end);
        let part = |start, end| lock(owner, Mode::Exclusive, start, end);
        let mut locks = Locks::default();
        let first = Lock {
            pid: Pid(9),
            ..part(10, 20)
        };
        locks.hold(first).unwrap();
        locks.hold(part(30, TO_END)).unwrap();
        assert_eq!(locks.held.len(), 2);
        locks.hold(part(12, 13)).unwrap();
        locks.hold(other(0, TO_END)).unwrap();
        assert_eq!(locks.held.len(), 3);
        locks.hold(part(20, 30)).unwrap();
        assert_eq!(locks.held.len(), 2);
        let found = locks.held.iter().find(|held| held.owner == owner).unwrap();
        assert_eq!((found.start, found.end), (10, TO_END));
        // A weaker one in its middle is apart.
        locks.hold(lock(owner, Mode::Shared, 15, 16)).unwrap();
        assert_eq!(locks.held.len(), 4);
    }

    #[test]
    fn exclusion_and_splitting() {
        let (a, b) = (Owner::Description(FileId(1)), Owner::Description(FileId(2)));
        let mut locks = Locks::default();
        locks.hold(lock(a, Mode::Exclusive, 0, 100)).unwrap();
        assert_eq!(
            locks.hold(lock(b, Mode::Shared, 50, 60)),
            Err(Errno::EAGAIN)
        );
        locks.release(&lock(a, Mode::Shared, 40, 70)).unwrap();
        locks.hold(lock(b, Mode::Shared, 50, 60)).unwrap();
        assert_eq!(
            locks.hold(lock(b, Mode::Shared, 39, 60)),
            Err(Errno::EAGAIN)
        );
        assert_eq!(
            locks.hold(lock(b, Mode::Shared, 50, 71)),
            Err(Errno::EAGAIN)
        );
        // One's own lock is replaced, not in the way.
        locks.hold(lock(b, Mode::Exclusive, 50, 60)).unwrap();
        // flock(2) does not see record locks.
        locks
            .hold(lock(Owner::Flock(FileId(3)), Mode::Exclusive, 0, TO_END))
            .unwrap();
        assert_eq!(locks.drop_where(|held| held.owner == a).len(), 2);
        assert!(locks.drop_where(|held| held.owner == a).is_empty());
    }
}
