//! epoll_create(2), epoll_ctl(2), epoll_wait(2) and their relatives.

use imbl::Vector;
use kvmlet_abi::layout::USER_END;
use kvmlet_abi::linux::eventpoll::{EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD};
use kvmlet_abi::linux::{EpollEvent, Timespec};
use kvmlet_abi::{Errno, Gva};

use super::eventfd::install;
use crate::clock::{self, NSEC_PER_SEC};
use crate::cx::Cx;
use crate::fd::{self, FileKind, OpenFlags};
use crate::outcome::{CallState, Outcome, Resume, SysResult, Wait, WaitOn};
use crate::syscalls::args::{Args, Fd, Flags, Int, Len, Ptr};
use crate::vfs::anon::ObjectId;
use crate::vfs::epoll::{self, Asked, EPOLLET, EPOLLEXCLUSIVE, EPOLLWAKEUP, Key, RECHECK_NS};
use crate::vfs::file;
use crate::vfs::ready::{self, POLLERR, POLLHUP, POLLIN, POLLOUT};

/// Size of struct epoll_event, which is packed on x86-64, in bytes.
const EVENT_BYTES: u64 = size_of::<EpollEvent>() as u64;
/// Most events one call reports (EP_MAX_EVENTS).
const EVENTS_MAX: i32 = i32::MAX / size_of::<EpollEvent>() as i32;

fn create(cx: &mut Cx<'_>, flags: OpenFlags) -> SysResult {
    let id = cx.kernel.objects.next_id();
    cx.kernel.objects.epolls.create(id);
    install(cx, FileKind::Epoll(id), flags, b"anon_inode:[eventpoll]")
}

/// epoll_create(2)
///
/// # Errors
/// `EINVAL` for a size below 1, `EMFILE`.
pub fn sys_epoll_create(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Int(size) = args.decode();
    if size <= 0 {
        return Err(Errno::EINVAL);
    }
    create(cx, OpenFlags::empty())
}

/// epoll_create1(2)
///
/// # Errors
/// `EINVAL` for unknown flags, `EMFILE`.
pub fn sys_epoll_create1(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Flags(flags) = args.decode();
    if flags & !OpenFlags::CLOEXEC.bits() != 0 {
        return Err(Errno::EINVAL);
    }
    create(cx, OpenFlags::from_bits_truncate(flags))
}

/// epoll_ctl(2). The order of its errors is that of do_epoll_ctl in fs/eventpoll.c.
///
/// # Errors
/// As its man page.
pub fn sys_epoll_ctl(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    /// The events that may go with EPOLLEXCLUSIVE (EPOLLEXCLUSIVE_OK_BITS).
    const WITH_EXCLUSIVE: u32 = EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE;
    let (Fd(epoll_fd), Int(op), Fd(fd), Ptr(event)) = args.decode();
    let (events, data) = if op == EPOLL_CTL_DEL {
        (0, 0)
    } else {
        let EpollEvent { events, data } = cx.read_struct(event)?;
        (events, data)
    };
    let (epoll_file, epoll) = fd::get_io(cx, epoll_fd)?;
    let (file, target) = fd::get_io(cx, fd)?;
    if !file::can_be_watched(cx, &target.kind) {
        return Err(Errno::EPERM);
    }
    let FileKind::Epoll(id) = epoll.kind else {
        return Err(Errno::EINVAL);
    };
    if file == epoll_file {
        return Err(Errno::EINVAL);
    }
    if events & EPOLLEXCLUSIVE != 0 {
        let polled = u32::from((POLLIN | POLLOUT | POLLERR | POLLHUP).cast_unsigned());
        let unfit =
            matches!(target.kind, FileKind::Epoll(_)) || events & !(polled | WITH_EXCLUSIVE) != 0;
        if op == EPOLL_CTL_MOD || op == EPOLL_CTL_ADD && unfit {
            return Err(Errno::EINVAL);
        }
    }
    // Without CAP_BLOCK_SUSPEND it is taken away silently (ep_take_care_of_epollwakeup).
    let events = events & !EPOLLWAKEUP;
    let key = Key { file, fd };
    match op {
        EPOLL_CTL_ADD => epoll::add(cx, id, (key, &target), events, data)?,
        EPOLL_CTL_MOD => epoll::modify(cx, id, (key, &target), events, data)?,
        EPOLL_CTL_DEL => epoll::delete(cx, id, key)?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

/// epoll_wait(2)
pub fn sys_epoll_wait(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(events), Int(max), Int(timeout)) = args.decode();
    wait(cx, (fd, events, max), timeout_ms(timeout), state)
        .unwrap_or_else(|error| Outcome::Done(Err(error)))
}

/// Milliseconds as nanoseconds; a negative number waits for ever.
fn timeout_ms(ms: i32) -> Option<u64> {
    let ms = u64::try_from(ms).ok()?;
    Some(ms.saturating_mul(NSEC_PER_SEC / 1000))
}

/// epoll_pwait(2)
pub fn sys_epoll_pwait(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(events), Int(max), Int(timeout), Ptr(mask), Len(size)) = args.decode();
    let (asked, timeout_ns) = ((fd, events, max), timeout_ms(timeout));
    masked(cx, asked, (mask, size), timeout_ns, state)
}

/// epoll_pwait2(2)
pub fn sys_epoll_pwait2(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(events), Int(max), Ptr(timeout), Ptr(mask), Len(size)) = args.decode();
    let (asked, mask) = ((fd, events, max), (mask, size));
    let timeout = if timeout.0 == 0 {
        Ok(None)
    } else {
        cx.read_struct::<Timespec>(timeout)
            .and_then(clock::timespec_ns)
            .map(Some)
    };
    match timeout {
        Ok(timeout_ns) => masked(cx, asked, mask, timeout_ns, state),
        // What a retry cannot read any more was good at the first try.
        Err(_) if *state != CallState::default() => masked(cx, asked, mask, None, state),
        Err(error) => Outcome::Done(Err(error)),
    }
}

/// The instance, the array for events, and its length.
type Asking = (i32, Gva, i32);

/// Waits with the signal mask at an address, of a size.
fn masked(
    cx: &mut Cx<'_>,
    asked: Asking,
    (mask, size): (Gva, u64),
    timeout_ns: Option<u64>,
    state: &CallState,
) -> Outcome {
    let mut state = state.clone();
    if state == CallState::default() {
        match crate::signal::with_mask(cx, mask, size) {
            Ok(saved_mask) => state.saved_mask = saved_mask,
            Err(error) => return Outcome::Done(Err(error)),
        }
    }
    let outcome =
        wait(cx, asked, timeout_ns, &state).unwrap_or_else(|error| Outcome::Done(Err(error)));
    if matches!(outcome, Outcome::Done(_)) {
        crate::signal::restore_mask(cx, state.saved_mask);
    }
    outcome
}

fn wait(
    cx: &mut Cx<'_>,
    (fd, events_gva, max): Asking,
    timeout_ns: Option<u64>,
    state: &CallState,
) -> Result<Outcome, Errno> {
    if max <= 0 || max > EVENTS_MAX {
        return Err(Errno::EINVAL);
    }
    let max = u64::from(max.unsigned_abs());
    let beyond = events_gva.0.checked_add(max.saturating_mul(EVENT_BYTES));
    if beyond.is_none_or(|end| end > USER_END.0) {
        return Err(Errno::EFAULT);
    }
    let (_, file) = match fd::get_io(cx, fd) {
        // Closed by another thread during the wait, whose time is now over.
        Err(_) if state.expired => return Ok(Outcome::Done(Ok(0))),
        found => found?,
    };
    let FileKind::Epoll(id) = file.kind else {
        return Err(Errno::EINVAL);
    };
    ready::refresh(cx, &file);
    let count = epoll::report(cx, id, max, &mut |cx, index, events, data| {
        let at = events_gva
            .0
            .saturating_add(index.saturating_mul(EVENT_BYTES));
        cx.write_struct(Gva(at), &EpollEvent { events, data })
    })?;
    let now_ns = clock::monotonic_ns(cx.host);
    let deadline_ns = state
        .deadline_ns
        .or_else(|| timeout_ns.map(|timeout_ns| now_ns.saturating_add(timeout_ns)));
    if count > 0 || timeout_ns == Some(0) || deadline_ns.is_some_and(|at| at <= now_ns) {
        return Ok(Outcome::Done(Ok(count)));
    }
    Ok(Outcome::Wait(park(cx, id, deadline_ns, state)))
}

fn park(cx: &Cx<'_>, id: ObjectId, deadline_ns: Option<u64>, state: &CallState) -> Wait {
    let mut sources = Vector::new();
    let recheck = epoll::wait_sources(cx, id, &mut sources, &mut Asked::default());
    let recheck_ns = recheck.then(|| clock::monotonic_ns(cx.host).saturating_add(RECHECK_NS));
    Wait {
        on: WaitOn::Sources(sources),
        deadline_ns: [deadline_ns, recheck_ns].into_iter().flatten().min(),
        resume: Resume::Retry(CallState {
            deadline_ns,
            saved_mask: state.saved_mask,
            ..CallState::default()
        }),
    }
}
