//! rt_sigaction, rt_sigprocmask and their kin; kill and tgkill.

use kvmlet_abi::linux::signal::{
    MINSIGSTKSZ, SIG_BLOCK, SIG_SETMASK, SIG_UNBLOCK, SS_AUTODISARM, SS_DISABLE, SS_ONSTACK,
};
use kvmlet_abi::linux::{Sigaction, StackT};
use kvmlet_abi::{Errno, Gva};

use crate::clock;
use crate::creds::Creds;
use crate::cx::Cx;
use crate::frame;
use crate::kernel::{Kin, Pid, Tid};
use crate::outcome::{CallState, Outcome, Resume, SysResult, Wait, WaitOn};
use crate::signal::signo::SIGCONT;
use crate::signal::{AltStack, NSIG, SI_TKILL, SI_USER, SigDetail, SigInfo, UNBLOCKABLE, bit};
use crate::syscalls::args::{Args, Fd, Flags, Int, Len, Ptr};
use crate::vfs::pidfd;

fn signal_number(number: i32) -> Result<u8, Errno> {
    match u8::try_from(number) {
        Ok(signo) if (1..=NSIG).contains(&signo) => Ok(signo),
        _ => Err(Errno::EINVAL),
    }
}

/// rt_sigaction(2)
///
/// # Errors
/// `EINVAL` for a bad number or set size, or SIGKILL and SIGSTOP; `EFAULT`.
pub fn sys_rt_sigaction(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(signo), Ptr(new_gva), Ptr(old_gva), Len(size)) = args.decode();
    let signo = signal_number(signo)?;
    if size != 8 {
        return Err(Errno::EINVAL);
    }
    let new: Option<Sigaction> = if new_gva.0 == 0 {
        None
    } else {
        Some(cx.read_struct(new_gva)?)
    };
    if new.is_some() && bit(signo) & UNBLOCKABLE != 0 {
        return Err(Errno::EINVAL);
    }
    let old = cx.process()?.signals.action(signo);
    if let Some(mut action) = new {
        action.mask &= !UNBLOCKABLE;
        let process = cx.process()?;
        process.signals.actions.insert(signo, action);
        // POSIX: setting a disposition that ignores a pending signal discards it.
        if process.signals.ignores(signo) {
            let pid = process.pid;
            cx.kernel.discard_signals(pid, bit(signo));
        }
    }
    if old_gva.0 != 0 {
        cx.write_struct(old_gva, &old)?;
    }
    Ok(0)
}

/// rt_sigprocmask(2)
///
/// # Errors
/// `EINVAL` for a bad set size or `how`; `EFAULT`.
pub fn sys_rt_sigprocmask(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(how), Ptr(new_gva), Ptr(old_gva), Len(size)) = args.decode();
    if size != 8 {
        return Err(Errno::EINVAL);
    }
    let old = cx.thread()?.signals.mask;
    if new_gva.0 != 0 {
        let set: u64 = cx.read_struct(new_gva)?;
        let new = match how {
            SIG_BLOCK => old | set,
            SIG_UNBLOCK => old & !set,
            SIG_SETMASK => set,
            _ => return Err(Errno::EINVAL),
        };
        cx.thread()?.signals.mask = new & !UNBLOCKABLE;
    }
    if old_gva.0 != 0 {
        cx.write_struct(old_gva, &old)?;
    }
    Ok(0)
}

/// rt_sigpending(2)
///
/// # Errors
/// `EINVAL` for a size above 8; `EFAULT`.
pub fn sys_rt_sigpending(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Ptr(set_gva), Len(size)) = args.decode();
    if size > 8 {
        return Err(Errno::EINVAL);
    }
    let shared = cx.process()?.signals.pending.set();
    let thread = cx.thread()?;
    let set = (shared | thread.signals.pending.set()) & thread.signals.mask;
    let bytes = set.to_le_bytes();
    let len = usize::try_from(size).unwrap_or(8);
    cx.write(set_gva, bytes.get(..len).unwrap_or_default())?;
    Ok(0)
}

/// rt_sigsuspend(2)
pub fn sys_rt_sigsuspend(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Ptr(mask_gva), Len(size)) = args.decode();
    if let (Some(mask), Ok(thread)) = (state.saved_mask, cx.thread()) {
        // Interrupted for nothing: the mask is in force already.
        thread.signals.saved_mask = Some(mask);
        return until_a_signal();
    }
    let change = |cx: &mut Cx<'_>| -> Result<(), Errno> {
        if size != 8 {
            return Err(Errno::EINVAL);
        }
        let mask: u64 = cx.read_struct(mask_gva)?;
        let thread = cx.thread()?;
        thread.signals.saved_mask = Some(thread.signals.mask);
        thread.signals.mask = mask & !UNBLOCKABLE;
        Ok(())
    };
    match change(cx) {
        Ok(()) => until_a_signal(),
        Err(errno) => Outcome::Done(Err(errno)),
    }
}

/// pause(2)
pub fn sys_pause(_cx: &mut Cx<'_>, _args: &Args, _state: &CallState) -> Outcome {
    until_a_signal()
}

fn until_a_signal() -> Outcome {
    Outcome::Wait(Wait {
        on: WaitOn::Nothing,
        deadline_ns: None,
        resume: Resume::Deliver {
            at_deadline: Err(Errno::EINTR),
            remain_gva: 0,
        },
    })
}

/// rt_sigtimedwait(2): takes a pending signal of the set, or waits for one.
pub fn sys_rt_sigtimedwait(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    match sigtimedwait(cx, args, state) {
        Ok(outcome) => outcome,
        Err(errno) => Outcome::Done(Err(errno)),
    }
}

fn sigtimedwait(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Result<Outcome, Errno> {
    let (Ptr(set_gva), Ptr(info_gva), Ptr(timeout), Len(size)) = args.decode();
    if size != 8 {
        return Err(Errno::EINVAL);
    }
    let set: u64 = cx.read_struct(set_gva)?;
    let set = set & !UNBLOCKABLE;
    let now = clock::monotonic_ns(cx.host);
    if let Some(info) = cx.kernel.take_signal_of(cx.tid, set, now) {
        crate::signal::restore_mask(cx, state.saved_mask);
        if info_gva.0 != 0 {
            cx.write(info_gva, &frame::siginfo_bytes(&info))?;
        }
        return Ok(Outcome::Done(Ok(u64::from(info.signo))));
    }
    if state.saved_mask.is_some() {
        // Woken by a signal outside the set, or the time is over.
        crate::signal::restore_mask(cx, state.saved_mask);
        return Ok(Outcome::Done(Err(if state.expired {
            Errno::EAGAIN
        } else {
            Errno::EINTR
        })));
    }
    let deadline_ns = match timeout.0 {
        0 => None,
        _ => Some(now.saturating_add(clock::read_timespec(cx, timeout)?)),
    };
    if deadline_ns.is_some_and(|deadline| deadline <= now) {
        return Ok(Outcome::Done(Err(Errno::EAGAIN)));
    }
    // The waited-for signals are unblocked while waiting, so that one interrupts the wait; it is
    // then taken here, before delivery looks for it.
    let thread = cx.thread()?;
    let saved_mask = Some(thread.signals.mask);
    thread.signals.mask &= !set;
    Ok(Outcome::Wait(Wait {
        on: WaitOn::Signals(set),
        deadline_ns,
        resume: Resume::Retry(CallState {
            deadline_ns,
            saved_mask,
            ..CallState::default()
        }),
    }))
}

/// rt_sigreturn(2)
pub fn sys_rt_sigreturn(cx: &mut Cx<'_>, _args: &Args, _state: &CallState) -> Outcome {
    frame::sigreturn(cx)
}

/// sigaltstack(2)
///
/// # Errors
/// `EPERM` while running on it; `EINVAL`, `ENOMEM`, `EFAULT`.
pub fn sys_sigaltstack(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Ptr(new_gva), Ptr(old_gva)) = args.decode();
    let new: Option<StackT> = if new_gva.0 == 0 {
        None
    } else {
        Some(cx.read_struct(new_gva)?)
    };
    let thread = cx.thread()?;
    let current = thread.signals.altstack.0;
    let on_it = frame::on_altstack(&current, thread.regs.rsp);
    let mut old = current;
    old.ss_flags |= if on_it { SS_ONSTACK } else { 0 };
    if let Some(stack) = new {
        if on_it {
            return Err(Errno::EPERM);
        }
        let mode = stack.ss_flags & !SS_AUTODISARM;
        let value = match mode {
            SS_DISABLE => StackT {
                ss_flags: SS_DISABLE,
                ..StackT::default()
            },
            0 | SS_ONSTACK => {
                if stack.ss_size < MINSIGSTKSZ {
                    return Err(Errno::ENOMEM);
                }
                StackT {
                    ss_flags: stack.ss_flags & SS_AUTODISARM,
                    pad: 0,
                    ..stack
                }
            }
            _ => return Err(Errno::EINVAL),
        };
        thread.signals.altstack = AltStack(value);
    }
    if old_gva.0 != 0 {
        cx.write_struct(old_gva, &old)?;
    }
    Ok(0)
}

fn optional_signal(number: i32) -> Result<Option<u8>, Errno> {
    if number == 0 {
        Ok(None)
    } else {
        signal_number(number).map(Some)
    }
}

fn sender(cx: &mut Cx<'_>, signo: u8, code: i32) -> Result<SigInfo, Errno> {
    let pid = cx.process()?.pid.0;
    let detail = SigDetail::Sender {
        pid,
        uid: cx.creds().user.real,
        value: 0,
    };
    Ok(SigInfo {
        signo,
        code,
        detail,
        ..SigInfo::default()
    })
}

/// Refuses a signal to a thread of another user (check_kill_permission in kernel/signal.c).
///
/// # Errors
/// `EPERM`; SIGCONT may be sent within a session.
fn check_signal(cx: &Cx<'_>, (pid, target): (Pid, &Creds), signo: Option<u8>) -> Result<(), Errno> {
    let own = cx.kernel.threads.get(&cx.tid).map(|thread| thread.pid);
    if own == Some(pid) || cx.creds().may_signal(target) {
        return Ok(());
    }
    let session = |pid: Pid| cx.kernel.kin_of(pid.0).map(|one| one.sid);
    let is_in_session = own.is_some_and(|own| session(own) == session(pid));
    match signo == Some(SIGCONT) && is_in_session {
        true => Ok(()),
        false => Err(Errno::EPERM),
    }
}

/// kill(2): to whom it goes is looked at before the signal's number.
///
/// # Errors
/// `ESRCH`, `EINVAL`; `EPERM` for none of several that may get it.
pub fn sys_kill(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(target), Int(signo)) = args.decode();
    let caller = cx.process()?;
    let (own, own_group) = (caller.pid, caller.pgid);
    let group = match target {
        i32::MIN => return Err(Errno::ESRCH),
        // Every process but the caller and pid 1.
        -1 => None,
        0 => Some(own_group),
        group if group < 0 => Some(Pid(group.saturating_neg())),
        pid => {
            let named = cx.kernel.kin_of(pid).ok_or(Errno::ESRCH)?.pid;
            return send_process(cx, named, signo, SI_USER);
        }
    };
    let is_target = |one: &Kin| match group {
        Some(group) => one.pgid == group,
        None => one.pid != own,
    };
    let targets: Vec<Pid> = cx
        .kernel
        .kin()
        .filter(is_target)
        .map(|one| one.pid)
        .collect();
    if targets.is_empty() {
        return Err(Errno::ESRCH);
    }
    let mut answer = Err(Errno::ESRCH);
    for pid in targets {
        match send_process(cx, pid, signo, SI_USER) {
            // One that gets it is enough.
            Ok(_) => answer = Ok(0),
            // Nobody is told of those whom a signal to all does not reach.
            Err(Errno::EPERM) if group.is_none() => {
                if answer == Err(Errno::ESRCH) {
                    answer = Ok(0);
                }
            }
            Err(errno) => answer = answer.or(Err(errno)),
        }
    }
    answer
}

fn send_process(cx: &mut Cx<'_>, pid: Pid, signo: i32, code: i32) -> SysResult {
    let info = sender(cx, 0, code)?;
    queue_process(cx, pid, optional_signal(signo)?, info)
}

/// Sends a signal to a process, or none to see whether it could be. One that has ended already takes none, and neither
/// does our init, which has no handler (SIGNAL_UNKILLABLE in kernel/signal.c).
fn queue_process(cx: &mut Cx<'_>, pid: Pid, signo: Option<u8>, info: SigInfo) -> SysResult {
    check_signal(cx, (pid, cx.kernel.creds_of(pid)), signo)?;
    if let Some(signo) = signo
        && cx.kernel.processes.contains_key(&pid)
    {
        cx.kernel.send_to_process(pid, SigInfo { signo, ..info })?;
    }
    Ok(0)
}

/// The process of a thread that a signal is for, of `tgid` if that is given.
///
/// # Errors
/// `EINVAL` for an id that none has, `ESRCH`.
fn named_thread(cx: &Cx<'_>, tgid: Option<i32>, tid: i32) -> Result<Tid, Errno> {
    if tid <= 0 || tgid.is_some_and(|tgid| tgid <= 0) {
        return Err(Errno::EINVAL);
    }
    let named = cx.kernel.kin_of(tid).ok_or(Errno::ESRCH)?;
    match tgid {
        Some(tgid) if named.pid.0 != tgid => Err(Errno::ESRCH),
        _ => Ok(Tid(tid)),
    }
}

/// Sends a signal to a thread, or none to see whether it could be; one that has ended takes none.
fn queue_thread(cx: &mut Cx<'_>, tid: Tid, signo: Option<u8>, info: SigInfo) -> SysResult {
    let Some(thread) = cx.kernel.threads.get(&tid) else {
        let pid = Pid(tid.0);
        check_signal(cx, (pid, cx.kernel.creds_of(pid)), signo)?;
        return Ok(0);
    };
    check_signal(cx, (thread.pid, &thread.creds), signo)?;
    if let Some(signo) = signo {
        cx.kernel.send_to_thread(tid, SigInfo { signo, ..info })?;
    }
    Ok(0)
}

fn send_thread(cx: &mut Cx<'_>, tid: Tid, signo: i32) -> SysResult {
    let info = sender(cx, 0, SI_TKILL)?;
    queue_thread(cx, tid, optional_signal(signo)?, info)
}

/// tkill(2)
///
/// # Errors
/// `EINVAL`, `ESRCH`.
pub fn sys_tkill(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(tid), Int(signo)) = args.decode();
    let tid = named_thread(cx, None, tid)?;
    send_thread(cx, tid, signo)
}

/// tgkill(2)
///
/// # Errors
/// `EINVAL`, `ESRCH`.
pub fn sys_tgkill(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(tgid), Int(tid), Int(signo)) = args.decode();
    let tid = named_thread(cx, Some(tgid), tid)?;
    send_thread(cx, tid, signo)
}

/// rt_sigqueueinfo(2): with a negative si_code, as Linux demands, but for the caller's own thread.
///
/// # Errors
/// `EFAULT`, `EPERM`, `ESRCH`, `EINVAL`, `EAGAIN`.
pub fn sys_rt_sigqueueinfo(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(pid), Int(signo), Ptr(info_gva)) = args.decode();
    let info = queued_info(cx, info_gva, pid)?;
    let named = cx.kernel.kin_of(pid).ok_or(Errno::ESRCH)?.pid;
    queue_process(cx, named, optional_signal(signo)?, info)
}

/// pidfd_send_signal(2)
///
/// # Errors
/// `EINVAL` for flags, or a siginfo of another signal; `EBADF`, `EFAULT`, `EPERM`, `ESRCH`, `EAGAIN`.
pub fn sys_pidfd_send_signal(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Int(signo), Ptr(info_gva), Flags(flags)) = args.decode();
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let process = pidfd::signalled_by(cx, fd)?;
    let info = match info_gva.0 {
        0 => sender(cx, 0, SI_USER)?,
        _ if cx.read_struct::<i32>(info_gva)? != signo => return Err(Errno::EINVAL),
        _ => queued_info(cx, info_gva, process.pid.0)?,
    };
    if !cx.kernel.exists(process) {
        return Err(Errno::ESRCH);
    }
    queue_process(cx, process.pid, optional_signal(signo)?, info)
}

/// rt_tgsigqueueinfo(2)
///
/// # Errors
/// As [`sys_rt_sigqueueinfo`].
pub fn sys_rt_tgsigqueueinfo(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(tgid), Int(tid), Int(signo), Ptr(info_gva)) = args.decode();
    let info = queued_info(cx, info_gva, tid);
    let named = match (info, named_thread(cx, Some(tgid), tid)) {
        // Ids that none has come before a siginfo that is not allowed.
        (Err(Errno::EPERM), Err(Errno::EINVAL)) => return Err(Errno::EINVAL),
        (Err(errno), _) => return Err(errno),
        (Ok(_), named) => named?,
    };
    queue_thread(cx, named, optional_signal(signo)?, info?)
}

/// The siginfo to queue. Only to itself may a thread send what looks like the kernel's or kill(2)'s.
fn queued_info(cx: &mut Cx<'_>, gva: Gva, target: i32) -> Result<SigInfo, Errno> {
    let words: [u32; 8] = cx.read_struct(gva)?;
    let [_, errno, code, _, pid, uid, value_low, value_high] = words;
    let code = code.cast_signed();
    if (code >= 0 || code == SI_TKILL) && cx.tid.0 != target {
        return Err(Errno::EPERM);
    }
    let value = u64::from(value_low) | (u64::from(value_high) << 32);
    let detail = SigDetail::Sender {
        pid: pid.cast_signed(),
        uid,
        value,
    };
    Ok(SigInfo {
        code,
        errno: errno.cast_signed(),
        detail,
        ..SigInfo::default()
    })
}
