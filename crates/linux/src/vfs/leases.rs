//! Leases on files (F_SETLEASE in fcntl(2)), as values. Who has one is told before another opens the file in a way that
//! the lease excludes. The other waits until the lease is given up, or until its time is over.
//!
//! Linux differs: other processes of the host break none, and execve(2) does not.

use std::os::fd::AsFd;

use imbl::{OrdMap, OrdSet};
use kvmlet_abi::Errno;
use kvmlet_abi::linux::capability::CAP_LEASE;
use kvmlet_abi::linux::fcntl::{F_RDLCK, F_UNLCK, F_WRLCK};
use kvmlet_hostfs::attr::{Attr, MAY_READ, MAY_WRITE, S_IFREG};
use kvmlet_hostfs::check_mode;

use super::async_io;
use super::file;
use super::locks::FileKey;
use super::pipe::LEASES_SOURCE;
use crate::clock;
use crate::cx::Cx;
use crate::fd::{FileId, FileKind, OpenFile, OpenFlags};
use crate::host::HostId;
use crate::outcome::Source;

/// Time that a holder has to give a lease up (/proc/sys/fs/lease-break-time), in nanoseconds.
pub const BREAK_TIME_NS: u64 = 45_000_000_000;
/// Leases held at most, and on one file; then ENOLCK. Linux differs: it has no such limits.
const LEASES_MAX: usize = 4096;
const LEASES_OF_FILE_MAX: usize = 64;

/// The others that a lease excludes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Writers (F_RDLCK).
    Read,
    /// Everyone (F_WRLCK).
    Write,
}

/// A lease that a description has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Lease {
    file: FileKey,
    kind: Kind,
    /// The descriptor by which it was asked for.
    fd: i32,
    /// The time by which it becomes one for reading, if a reader waits, in guest monotonic nanoseconds.
    weakens_ns: Option<u64>,
    /// The time by which it ends, if a writer waits.
    ends_ns: Option<u64>,
}

impl Lease {
    fn excludes(&self, writes: bool) -> bool {
        writes || self.kind == Kind::Write
    }

    /// The time at which something changes by itself.
    fn due_ns(&self) -> Option<u64> {
        let times = [self.weakens_ns, self.ends_ns];
        times.into_iter().flatten().min()
    }
}

/// All leases.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Leases {
    held: OrdMap<FileId, Lease>,
    by_file: OrdSet<(FileKey, FileId)>,
}

impl Leases {
    fn on(&self, file: FileKey) -> Vec<FileId> {
        let all = (file, FileId(0))..=(file, FileId(u64::MAX));
        self.by_file.range(all).map(|(_, id)| *id).collect()
    }

    fn put(&mut self, id: FileId, lease: Lease) {
        self.by_file.insert((lease.file, id));
        self.held.insert(id, lease);
    }

    fn remove(&mut self, id: FileId) -> Option<Lease> {
        let lease = self.held.remove(&id)?;
        self.by_file.remove(&(lease.file, id));
        Some(lease)
    }
}

impl Lease {
    /// True if somebody may wait until it is given up: its time has been set then.
    fn is_broken(&self) -> bool {
        self.ends_ns.is_some() || self.weakens_ns.is_some()
    }
}

fn key_of(attr: &Attr) -> FileKey {
    (attr.dev, attr.ino)
}

fn give_up(cx: &mut Cx<'_>, id: FileId) {
    if let Some(lease) = cx.kernel.leases.remove(id) {
        cx.kernel.disown(id);
        if lease.is_broken() {
            wake(cx);
        }
    }
}

fn wake(cx: &mut Cx<'_>) {
    cx.kernel.sched.wake_source(Source::Pipe(LEASES_SOURCE));
}

/// Changes the leases of a file whose time is over (time_out_leases in fs/locks.c).
fn time_out(cx: &mut Cx<'_>, file: FileKey) {
    let now_ns = clock::monotonic_ns(cx.host);
    let over = |at_ns: Option<u64>| at_ns.is_some_and(|at_ns| at_ns <= now_ns);
    for id in cx.kernel.leases.on(file) {
        let Some(lease) = cx.kernel.leases.held.get_mut(&id) else {
            continue;
        };
        if over(lease.weakens_ns) {
            (lease.kind, lease.weakens_ns) = (Kind::Read, None);
        }
        if over(lease.ends_ns) {
            give_up(cx, id);
        }
    }
}

/// F_GETLEASE: the lease as it will be when it has been given up as far as others wait for that.
///
/// # Errors
/// Those of fstat(2).
pub fn get(cx: &mut Cx<'_>, id: FileId) -> Result<i16, Errno> {
    if cx.kernel.leases.held.is_empty() {
        return Ok(F_UNLCK);
    }
    let attr = file::attr(cx, id)?;
    time_out(cx, key_of(&attr));
    Ok(match cx.kernel.leases.held.get(&id) {
        None => F_UNLCK,
        Some(lease) if lease.ends_ns.is_some() => F_UNLCK,
        Some(lease) if lease.weakens_ns.is_some() || lease.kind == Kind::Read => F_RDLCK,
        Some(_) => F_WRLCK,
    })
}

/// F_SETLEASE.
///
/// # Errors
/// `EAGAIN` if another description is in the way, or there is no lease to give up. `EACCES` for a file of another
/// user; `EINVAL` for one that is not regular; `ENOLCK` beyond the most.
pub fn set(
    cx: &mut Cx<'_>,
    (fd, id): (i32, FileId),
    open: &OpenFile,
    wanted: i32,
) -> Result<(), Errno> {
    let kind = match i16::try_from(wanted) {
        Ok(F_UNLCK) if cx.kernel.leases.held.contains_key(&id) => {
            give_up(cx, id);
            return Ok(());
        }
        Ok(F_UNLCK) => return Err(Errno::EAGAIN),
        Ok(F_RDLCK) => Kind::Read,
        Ok(F_WRLCK) => Kind::Write,
        _ => return Err(Errno::EINVAL),
    };
    let attr = file::attr(cx, id)?;
    if !matches!(open.kind, FileKind::Tmp(_) | FileKind::HostFile(_)) || attr.kind() != S_IFREG {
        return Err(Errno::EINVAL);
    }
    let creds = cx.creds();
    if attr.uid != creds.user.fs && !creds.has(CAP_LEASE) {
        return Err(Errno::EACCES);
    }
    let file = key_of(&attr);
    time_out(cx, file);
    if is_open(cx, (id, open), file, kind)? {
        return Err(Errno::EAGAIN);
    }
    let leases = &cx.kernel.leases;
    let on_file = leases.on(file);
    let is_crowded = on_file.len() >= LEASES_OF_FILE_MAX;
    for other in on_file.into_iter().filter(|other| *other != id) {
        let ends = leases
            .held
            .get(&other)
            .is_some_and(|one| one.ends_ns.is_some());
        if kind == Kind::Write || ends {
            return Err(Errno::EAGAIN);
        }
    }
    let old = leases.held.get(&id).copied();
    if old.is_none() && (is_crowded || leases.held.len() >= LEASES_MAX) {
        return Err(Errno::ENOLCK);
    }
    let weakens_ns = match kind {
        Kind::Read => None,
        Kind::Write => old.and_then(|old| old.weakens_ns),
    };
    let lease = Lease {
        file,
        kind,
        fd,
        weakens_ns,
        ends_ns: old.and_then(|old| old.ends_ns),
    };
    cx.kernel.leases.put(id, lease);
    async_io::own_unless_owned(cx, id, None)?;
    if old.is_some() {
        wake(cx);
    }
    Ok(())
}

/// True if a file is open in a way that a lease for `id` would exclude (check_conflicting_open in fs/locks.c).
fn is_open(
    cx: &mut Cx<'_>,
    (id, open): (FileId, &OpenFile),
    file: FileKey,
    kind: Kind,
) -> Result<bool, Errno> {
    if kind == Kind::Read && open.flags.writable() {
        return Ok(true);
    }
    let others = cx.kernel.files.iter().filter(|(other, _)| **other != id);
    let in_the_way = others.filter(|(_, other)| {
        let may_be = match (&other.kind, &open.kind) {
            (FileKind::Tmp(one), FileKind::Tmp(own)) => one == own,
            (FileKind::Tmp(_) | FileKind::HostFile(_), FileKind::HostFile(_)) => true,
            (FileKind::HostFile(_), FileKind::Tmp(_)) => true,
            _ => false,
        };
        may_be
            && !other.flags.contains(OpenFlags::PATH)
            && (kind == Kind::Write || other.flags.writable())
    });
    let suspects: Vec<FileId> = in_the_way.map(|(other, _)| *other).collect();
    for other in suspects {
        if key_of(&file::attr(cx, other)?) == file {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Tells who has a lease that an open with `flags` breaks. Returns the time at which the first of them has to be given
/// up; `None` if nothing is in the way.
///
/// # Errors
/// `EAGAIN` if something is, for who does not wait.
pub fn broken_by(cx: &mut Cx<'_>, attr: &Attr, flags: OpenFlags) -> Result<Option<u64>, Errno> {
    if cx.kernel.leases.held.is_empty() || attr.kind() != S_IFREG {
        return Ok(None);
    }
    let file = key_of(attr);
    time_out(cx, file);
    let writes = flags.writable() || flags.contains(OpenFlags::TRUNC);
    let at_ns = clock::monotonic_ns(cx.host).saturating_add(BREAK_TIME_NS);
    let mut first_ns = None;
    for id in cx.kernel.leases.on(file) {
        let Some(lease) = cx.kernel.leases.held.get_mut(&id) else {
            continue;
        };
        if !lease.excludes(writes) {
            continue;
        }
        let is_told = lease.ends_ns.is_some() || !writes && lease.weakens_ns.is_some();
        match writes {
            _ if is_told => {}
            true => lease.ends_ns = Some(at_ns),
            false => lease.weakens_ns = Some(at_ns),
        }
        let (fd, due_ns) = (lease.fd, lease.due_ns());
        first_ns = [first_ns, due_ns].into_iter().flatten().min();
        if !is_told {
            cx.kernel.tell_of_lease(id, fd);
        }
    }
    if first_ns.is_some() && flags.contains(OpenFlags::NONBLOCK) {
        return Err(Errno::EAGAIN);
    }
    Ok(first_ns)
}

/// The same of a file of the host's, if its mode lets the caller open it.
///
/// # Errors
/// As [`broken_by`].
pub fn broken_on_host(
    cx: &mut Cx<'_>,
    attr: &Attr,
    flags: OpenFlags,
) -> Result<Option<u64>, Errno> {
    if cx.kernel.leases.held.is_empty() {
        return Ok(None);
    }
    let writes = flags.writable() || flags.contains(OpenFlags::TRUNC);
    let read = if flags.readable() { MAY_READ } else { 0 };
    let write = if writes { MAY_WRITE } else { 0 };
    match check_mode(&cx.asker(), attr, read | write) {
        Ok(()) => broken_by(cx, attr, flags),
        // It says so itself.
        Err(_) => Ok(None),
    }
}

/// The same of the file of a description that is opened once more.
///
/// # Errors
/// As [`broken_by`].
pub fn broken_by_reopening(
    cx: &mut Cx<'_>,
    host: HostId,
    flags: OpenFlags,
) -> Result<Option<u64>, Errno> {
    if cx.kernel.leases.held.is_empty() {
        return Ok(None);
    }
    let attr = kvmlet_hostfs::attr_of(cx.host.fd(host)?.as_fd())?;
    broken_on_host(cx, &attr, flags)
}

/// A description is gone, and its lease with it.
pub fn released(cx: &mut Cx<'_>, id: FileId) {
    let lease = cx.kernel.leases.remove(id);
    if lease.is_some_and(|lease| lease.is_broken()) {
        wake(cx);
    }
}
