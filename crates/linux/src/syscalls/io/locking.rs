//! File locks: flock(2), and the lock commands of fcntl(2).

use imbl::Vector;
use kvmlet_abi::linux::Flock;
use kvmlet_abi::linux::fcntl::{
    F_GETLK, F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW, F_RDLCK, F_SETLK, F_SETLKW, F_UNLCK, F_WRLCK,
    LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN,
};
use kvmlet_abi::linux::fs::{SEEK_CUR, SEEK_END, SEEK_SET};
use kvmlet_abi::{Errno, Gva};
use kvmlet_hostfs::locks::LockMode;
use kvmlet_hostfs::stream;

use super::transfer::wait_for;
use crate::clock;
use crate::cx::Cx;
use crate::fd::{self, FileId, OpenFile};
use crate::outcome::{CallState, Outcome, Resume, Source, Wait, WaitOn};
use crate::syscalls::args::{Args, Fd, Uint};
use crate::vfs;
use crate::vfs::file::{self, Positions};
use crate::vfs::locks::{self, Blocker, Lock, Mode, Owner, TO_END};
use crate::vfs::pipe::LOCKS_SOURCE;

/// Time between two tries for a lock that another process of the host's holds.
const HOST_LOOK_NS: u64 = 5_000_000;

/// The action of a lock command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Test,
    Try,
    Wait,
}

/// Whose lock it is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holder {
    Process,
    Description,
}

/// A lock command of fcntl(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    action: Action,
    holder: Holder,
}

impl Request {
    /// The lock command of that number, if it is one.
    #[must_use]
    pub fn of(command: u32) -> Option<Self> {
        let (action, holder) = match command {
            F_GETLK => (Action::Test, Holder::Process),
            F_SETLK => (Action::Try, Holder::Process),
            F_SETLKW => (Action::Wait, Holder::Process),
            F_OFD_GETLK => (Action::Test, Holder::Description),
            F_OFD_SETLK => (Action::Try, Holder::Description),
            F_OFD_SETLKW => (Action::Wait, Holder::Description),
            _ => return None,
        };
        Some(Self { action, holder })
    }
}

/// F_GETLK, F_SETLK, F_SETLKW and their F_OFD_ forms.
pub fn fcntl(
    cx: &mut Cx<'_>,
    file: (FileId, &OpenFile),
    request: Request,
    arg: u64,
    state: &CallState,
) -> Outcome {
    cx.kernel.locks.wait(cx.tid, None);
    let tried = record_lock(cx, file, request, arg);
    answer(cx, tried, request.action == Action::Wait, state)
}

/// The answer to a call that has tried for a lock: it waits if something is in the way and it `waits` for that.
fn answer(
    cx: &Cx<'_>,
    tried: Result<Option<Blocker>, Errno>,
    waits: bool,
    state: &CallState,
) -> Outcome {
    match tried {
        Ok(Some(blocker)) if waits => wait(cx, blocker, state),
        Ok(Some(_)) => Outcome::Done(Err(Errno::EAGAIN)),
        Ok(None) => Outcome::Done(Ok(0)),
        Err(error) => Outcome::Done(Err(error)),
    }
}

/// Waits for a lock to be given up. Nobody tells of those of other processes of the host: they are asked for again.
fn wait(cx: &Cx<'_>, blocker: Blocker, state: &CallState) -> Outcome {
    if blocker == Blocker::Program {
        return wait_for(Source::Pipe(LOCKS_SOURCE), state, 0);
    }
    let next_ns = clock::monotonic_ns(cx.host).saturating_add(HOST_LOOK_NS);
    Outcome::Wait(Wait {
        on: WaitOn::Sources(Vector::unit(Source::Pipe(LOCKS_SOURCE))),
        deadline_ns: Some(next_ns),
        resume: Resume::Retry(CallState {
            has_waited: true,
            expired: false,
            ..state.clone()
        }),
    })
}

fn record_lock(
    cx: &mut Cx<'_>,
    (id, file): (FileId, &OpenFile),
    request: Request,
    gva: u64,
) -> Result<Option<Blocker>, Errno> {
    let mut wanted: Flock = cx.read_struct(Gva(gva))?;
    let pid = cx.process()?.pid;
    let files = cx.thread()?.share.files;
    let owner = match request.holder {
        Holder::Process => Owner::Files(files),
        Holder::Description if wanted.l_pid != 0 => return Err(Errno::EINVAL),
        Holder::Description => Owner::Description(id),
    };
    let (start, end) = range(cx, (id, file), &wanted)?;
    let mode = match wanted.l_type {
        F_RDLCK => Mode::Shared,
        F_WRLCK | F_UNLCK => Mode::Exclusive,
        _ => return Err(Errno::EINVAL),
    };
    let attr = vfs::file::attr(cx, id)?;
    let lock = Lock {
        file: (attr.dev, attr.ino),
        owner,
        pid,
        mode,
        start,
        end,
    };
    if request.action == Action::Test {
        if wanted.l_type == F_UNLCK {
            return Err(Errno::EINVAL);
        }
        match cx.kernel.locks.conflict(&lock) {
            None => match locks::foreign(cx, id, &lock)? {
                None => wanted.l_type = F_UNLCK,
                Some(held) => {
                    // A process of the host has no number here (locks_translate_pid in fs/locks.c).
                    let pid = if held.is_of_description { -1 } else { 0 };
                    let is_shared = held.mode == LockMode::Shared;
                    tell(&mut wanted, is_shared, held.range, pid);
                }
            },
            Some(held) => {
                let pid = match held.owner {
                    Owner::Files(_) => held.pid.0,
                    Owner::Description(_) | Owner::Flock(_) => -1,
                };
                let is_shared = held.mode == Mode::Shared;
                tell(&mut wanted, is_shared, (held.start, held.end), pid);
            }
        }
        cx.write_struct(Gva(gva), &wanted)?;
        return Ok(None);
    }
    match wanted.l_type {
        F_RDLCK if !file.flags.readable() => return Err(Errno::EBADF),
        F_WRLCK if !file.flags.writable() => return Err(Errno::EBADF),
        F_UNLCK => {
            locks::release(cx, &lock)?;
            locks::wake(cx);
            return Ok(None);
        }
        _ => {}
    }
    let blocker = locks::hold(cx, id, lock)?;
    let waits = request.action == Action::Wait && request.holder == Holder::Process;
    if waits && blocker.is_some() {
        locks::begin_wait(cx, &lock)?;
    }
    if blocker.is_none() {
        // A lock may have become weaker.
        locks::wake(cx);
    }
    Ok(blocker)
}

/// Writes down the lock that is in the way (F_GETLK).
fn tell(wanted: &mut Flock, is_shared: bool, (start, end): (u64, u64), pid: i32) {
    wanted.l_type = if is_shared { F_RDLCK } else { F_WRLCK };
    wanted.l_whence = 0;
    wanted.l_start = i64::try_from(start).unwrap_or(i64::MAX);
    let len = if end == TO_END {
        0
    } else {
        end.saturating_sub(start)
    };
    wanted.l_len = i64::try_from(len).unwrap_or(0);
    wanted.l_pid = pid;
}

/// The bytes a struct flock is about (fcntl(2)): a negative length reaches backwards, 0 to the end.
fn range(
    cx: &mut Cx<'_>,
    (id, file): (FileId, &OpenFile),
    wanted: &Flock,
) -> Result<(u64, u64), Errno> {
    let base = match u32::from(wanted.l_whence.cast_unsigned()) {
        SEEK_SET => 0,
        SEEK_CUR => match file::positions(cx, file) {
            Positions::Host(host) => stream::seek(cx.host.get(host)?, stream::SeekTo::Current(0))?,
            _ => file.offset,
        },
        SEEK_END => file::attr(cx, id)?.size,
        _ => return Err(Errno::EINVAL),
    };
    let base = i64::try_from(base).map_err(|_| Errno::EOVERFLOW)?;
    let start = base.checked_add(wanted.l_start).ok_or(Errno::EOVERFLOW)?;
    let (start, end) = match wanted.l_len {
        0 => (start, None),
        len if len > 0 => (start, Some(start.checked_add(len).ok_or(Errno::EOVERFLOW)?)),
        len => (start.checked_add(len).ok_or(Errno::EINVAL)?, Some(start)),
    };
    let start = u64::try_from(start).map_err(|_| Errno::EINVAL)?;
    let end = end.map_or(Ok(TO_END), |end| {
        u64::try_from(end).map_err(|_| Errno::EINVAL)
    })?;
    Ok((start, end))
}

/// flock(2)
pub fn sys_flock(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Uint(operation)) = args.decode();
    cx.kernel.locks.wait(cx.tid, None);
    let tried = whole_file_lock(cx, fd, operation & !LOCK_NB);
    answer(cx, tried, operation & LOCK_NB == 0, state)
}

fn whole_file_lock(cx: &mut Cx<'_>, fd: i32, operation: u32) -> Result<Option<Blocker>, Errno> {
    let (id, _) = fd::get_io(cx, fd)?;
    let mode = match operation {
        LOCK_SH => Mode::Shared,
        LOCK_EX | LOCK_UN => Mode::Exclusive,
        _ => return Err(Errno::EINVAL),
    };
    let attr = vfs::file::attr(cx, id)?;
    let lock = Lock {
        file: (attr.dev, attr.ino),
        owner: Owner::Flock(id),
        pid: cx.process()?.pid,
        mode,
        start: 0,
        end: TO_END,
    };
    let blocker = if operation == LOCK_UN {
        locks::release(cx, &lock)?;
        None
    } else {
        locks::hold(cx, id, lock)?
    };
    if blocker.is_none() {
        locks::wake(cx);
    }
    Ok(blocker)
}
