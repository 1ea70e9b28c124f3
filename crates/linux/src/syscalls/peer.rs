//! Calls on another process of the sandbox: its memory, its descriptors, what it shares.

use kvmlet_abi::linux::Iovec;
use kvmlet_abi::linux::uio::UIO_MAXIOV;
use kvmlet_abi::{Errno, Gva};
use zerocopy::FromZeros;
use zerocopy::IntoBytes;

use crate::creds::By;
use crate::cx::Cx;
use crate::fd::{self, FileId, OnExec};
use crate::kernel::{Pid, Process, Tid};
use crate::mm::user;
use crate::outcome::{CallState, Outcome, SysResult, Turn};
use crate::syscalls::args::{Args, Fd, Flags, Int, Len, Ptr, Word};
use crate::vfs::pidfd;

/// Bytes that are copied between two looks at the limits.
const CHUNK: usize = 64 << 10;
/// Most bytes of one call (MAX_RW_COUNT).
const BYTES_MAX: u64 = 0x7fff_f000;

/// The process of a thread, if the caller may look into it (ptrace_may_access in kernel/ptrace.c).
///
/// # Errors
/// `ESRCH`; `EPERM` for init, for the holder of a box, and for one of another user or that is not dumpable.
pub(super) fn accessible(cx: &mut Cx<'_>, id: i32) -> Result<(Pid, Tid), Errno> {
    if id == Pid::INIT.0 {
        return Err(Errno::EPERM);
    }
    let thread = cx.kernel.threads.get(&Tid(id));
    let (tid, pid) = match thread {
        Some(thread) => (thread.tid, thread.pid),
        // The first thread may have ended.
        None => {
            let tid = cx.kernel.threads_of(Pid(id)).next();
            (tid.ok_or(Errno::ESRCH)?, Pid(id))
        }
    };
    // It has the host's ends of other commands' pipes.
    if cx.kernel.is_holder(pid) {
        return Err(Errno::EPERM);
    }
    let process = cx.kernel.processes.get(&pid).ok_or(Errno::ESRCH)?;
    let is_open = process.dumpable;
    let theirs = cx.kernel.threads.get(&tid).ok_or(Errno::ESRCH)?;
    let target = (&*theirs.creds, is_open);
    let may = cx.creds().may_look_into(target, By::Real);
    if pid != cx.process()?.pid && !may {
        return Err(Errno::EPERM);
    }
    Ok((pid, tid))
}

// ---- memory ----

/// The direction of a copy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    FromPeer,
    ToPeer,
}

/// process_vm_readv(2)
pub fn sys_process_vm_readv(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Int(pid), Ptr(own), Len(own_count), Ptr(peer), Len(peer_count), Word(flags)) =
        args.decode();
    let vectors = ((own, own_count), (peer, peer_count));
    move_memory(cx, Way::FromPeer, pid, vectors, flags, state)
}

/// process_vm_writev(2)
pub fn sys_process_vm_writev(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Int(pid), Ptr(own), Len(own_count), Ptr(peer), Len(peer_count), Word(flags)) =
        args.decode();
    let vectors = ((own, own_count), (peer, peer_count));
    move_memory(cx, Way::ToPeer, pid, vectors, flags, state)
}

type Vector = (Gva, u64);

fn move_memory(
    cx: &mut Cx<'_>,
    way: Way,
    pid: i32,
    vectors: (Vector, Vector),
    flags: u64,
    state: &CallState,
) -> Outcome {
    match try_to_move(cx, way, pid, vectors, flags, state) {
        Ok(outcome) => outcome,
        // What has been moved in earlier turns counts.
        Err(_) if state.progress > 0 => Outcome::Done(Ok(state.progress)),
        Err(errno) => Outcome::Done(Err(errno)),
    }
}

fn try_to_move(
    cx: &mut Cx<'_>,
    way: Way,
    pid: i32,
    (own, peer): (Vector, Vector),
    flags: u64,
    state: &CallState,
) -> Result<Outcome, Errno> {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let own = read_vector(cx, own)?;
    if own.iter().all(|part| part.iov_len == 0) {
        return Ok(Outcome::Done(Ok(0)));
    }
    let peer = read_vector(cx, peer)?;
    if peer.iter().all(|part| part.iov_len == 0) {
        return Ok(Outcome::Done(Ok(0)));
    }
    let (_, tid) = accessible(cx, pid)?;
    let mut done = state.progress;
    let mut buf = vec![0; CHUNK];
    loop {
        let (Some((own_at, own_len)), Some((peer_at, peer_len))) =
            (place(&own, done), place(&peer, done))
        else {
            return Ok(Outcome::Done(Ok(done)));
        };
        let left = BYTES_MAX.saturating_sub(done);
        let len = own_len.min(peer_len).min(left);
        let len = usize::try_from(len).unwrap_or(CHUNK).min(CHUNK);
        let Some(buf) = buf.get_mut(..len).filter(|buf| !buf.is_empty()) else {
            return Ok(Outcome::Done(Ok(done)));
        };
        let (from, to) = match way {
            Way::FromPeer => ((tid, peer_at), (cx.tid, own_at)),
            Way::ToPeer => ((cx.tid, own_at), (tid, peer_at)),
        };
        let got = as_thread(cx, from.0, |cx| user::read_some(cx, from.1, buf));
        let bytes = got.and_then(|got| buf.get(..got).ok_or(Errno::EFAULT));
        let moved = match bytes {
            Ok(bytes) => as_thread(cx, to.0, |cx| user::write_some(cx, to.1, bytes)),
            Err(errno) => Err(errno),
        };
        match moved {
            Ok(moved) => done = done.saturating_add(moved as u64),
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => return Ok(Outcome::Done(Ok(done))),
        }
        if moved != Ok(len) {
            return Ok(Outcome::Done(Ok(done)));
        }
        if cx.host.budget.is_spent() {
            return Ok(Outcome::Again(CallState {
                progress: done,
                turn: Turn::Shared,
                ..state.clone()
            }));
        }
    }
}

fn as_thread<T>(cx: &mut Cx<'_>, tid: Tid, act: impl FnOnce(&mut Cx<'_>) -> T) -> T {
    let caller = core::mem::replace(&mut cx.tid, tid);
    let result = act(cx);
    cx.tid = caller;
    result
}

fn read_vector(cx: &mut Cx<'_>, (at, count): Vector) -> Result<Vec<Iovec>, Errno> {
    if count > UIO_MAXIOV as u64 {
        return Err(Errno::EINVAL);
    }
    let mut parts = vec![Iovec::new_zeroed(); usize::try_from(count).unwrap_or(0)];
    cx.read(at, parts.as_mut_bytes())?;
    if parts
        .iter()
        .any(|part| i64::try_from(part.iov_len).is_err())
    {
        return Err(Errno::EINVAL);
    }
    Ok(parts)
}

/// The place of a byte, and the length of what is left of its part.
fn place(parts: &[Iovec], offset: u64) -> Option<(Gva, u64)> {
    let mut before = offset;
    for part in parts {
        match part.iov_len.checked_sub(before) {
            Some(left) if left > 0 => {
                return Some((Gva(part.iov_base.wrapping_add(before)), left));
            }
            _ => before = before.saturating_sub(part.iov_len),
        }
    }
    None
}

// ---- descriptors ----

/// pidfd_getfd(2)
///
/// # Errors
/// `EINVAL`, `EBADF`, `ESRCH`, `EPERM`, `EMFILE`.
pub fn sys_pidfd_getfd(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(process), Fd(number), Flags(flags)) = args.decode();
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let process = pidfd::process_of(cx, process)?;
    if !cx.kernel.is_running(process) {
        return Err(Errno::ESRCH);
    }
    let (pid, _) = accessible(cx, process.pid.0)?;
    let file = file_of(cx, pid, number)?;
    let new = fd::install(cx, file, 0, OnExec::Close)?;
    Ok(u64::from(new.cast_unsigned()))
}

/// The description that a descriptor of a process refers to.
fn file_of(cx: &Cx<'_>, pid: Pid, number: i32) -> Result<FileId, Errno> {
    let table = cx.kernel.fds_of(pid).ok_or(Errno::ESRCH)?;
    let entry = table.fds.get(&number).ok_or(Errno::EBADF)?;
    Ok(entry.file)
}

// ---- kcmp(2) ----

const KCMP_FILE: i32 = 0;
const KCMP_VM: i32 = 1;
const KCMP_FILES: i32 = 2;
const KCMP_FS: i32 = 3;
const KCMP_SIGHAND: i32 = 4;
const KCMP_IO: i32 = 5;
const KCMP_SYSVSEM: i32 = 6;
const KCMP_EPOLL_TFD: i32 = 7;

/// kcmp(2)
///
/// # Errors
/// `EINVAL`, `ESRCH`, `EPERM`, `EBADF`; `EOPNOTSUPP` for KCMP_EPOLL_TFD.
pub fn sys_kcmp(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(first), Int(second), Int(kind), Word(one), Word(other)) = args.decode();
    let (first, one_tid) = accessible(cx, first)?;
    let (second, other_tid) = accessible(cx, second)?;
    let share = |cx: &Cx<'_>, tid: Tid| {
        let thread = cx.kernel.threads.get(&tid).ok_or(Errno::ESRCH)?;
        Ok::<_, Errno>(thread.share)
    };
    let number = |word: u64| {
        let Int(number) = crate::syscalls::args::Argument::of(word);
        number
    };
    let mm = |process: &Process| process.mm;
    let spaces = |cx: &Cx<'_>, pid: Pid| cx.kernel.processes.get(&pid).map(mm);
    let order = match kind {
        KCMP_FILE => {
            let one = file_of(cx, first, number(one))?;
            one.cmp(&file_of(cx, second, number(other))?)
        }
        KCMP_VM => spaces(cx, first).cmp(&spaces(cx, second)),
        KCMP_FILES => share(cx, one_tid)?.files.cmp(&share(cx, other_tid)?.files),
        KCMP_FS => share(cx, one_tid)?.fs.cmp(&share(cx, other_tid)?.fs),
        // Threads of a process share them, and no others do.
        KCMP_SIGHAND => first.cmp(&second),
        KCMP_SYSVSEM => {
            let semaphores = &cx.kernel.ipc.semaphores;
            let owner = |pid: Pid| semaphores.has_undo(pid).then_some(pid);
            owner(first).cmp(&owner(second))
        }
        // Nobody has any.
        KCMP_IO => core::cmp::Ordering::Equal,
        KCMP_EPOLL_TFD => {
            let what = "KCMP_EPOLL_TFD".to_owned();
            cx.host.report.unsupported("kcmp", what);
            return Err(Errno::EOPNOTSUPP);
        }
        _ => return Err(Errno::EINVAL),
    };
    Ok(match order {
        core::cmp::Ordering::Equal => 0,
        core::cmp::Ordering::Less => 1,
        core::cmp::Ordering::Greater => 2,
    })
}
