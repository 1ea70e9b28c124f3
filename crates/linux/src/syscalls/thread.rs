//! Threads: clone(2) and clone3(2) with CLONE_THREAD, exit(2), scheduling calls.

use kvmlet_abi::layout::USER_END;
use kvmlet_abi::linux::{CloneArgs, Timespec};
use kvmlet_abi::linux::{
    membarrier::{
        MEMBARRIER_CMD_GLOBAL, MEMBARRIER_CMD_PRIVATE_EXPEDITED, MEMBARRIER_CMD_QUERY,
        MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED,
    },
    sched::{
        CLONE_CHILD_CLEARTID, CLONE_CHILD_SETTID, CLONE_DETACHED, CLONE_FILES, CLONE_FS,
        CLONE_NEWUSER, CLONE_PARENT, CLONE_PARENT_SETTID, CLONE_PIDFD, CLONE_SETTLS, CLONE_SIGHAND,
        CLONE_SYSVSEM, CLONE_THREAD, CLONE_VFORK, CLONE_VM, SCHED_BATCH, SCHED_DEADLINE,
        SCHED_FIFO, SCHED_IDLE, SCHED_NORMAL, SCHED_RESET_ON_FORK, SCHED_RR,
    },
};
use kvmlet_abi::{Errno, Gva};

use crate::clock;
use crate::cx::Cx;
use crate::ipc::sem;
use crate::kernel::{ExitStatus, Pid, Process, Thread, Tid};
use crate::outcome::{CallState, Outcome, SysResult};
use crate::sched::Yield;
use crate::signal::NSIG;
use crate::signal::signo::SIGCHLD;
use crate::syscalls::args::{Args, Flags, Int, Len, Ptr, Uint, Word};
use crate::task;
use crate::task::fork::{Clone, NAMESPACES, allocate_tid};
use crate::task::share::{self, Payer};

/// Flags of a thread that shares everything, plus those that only say where to write ids.
const THREAD_NEEDS: u64 = CLONE_VM | CLONE_SIGHAND | CLONE_THREAD;
const THREAD_KNOWN: u64 = THREAD_NEEDS
    | CLONE_FS
    | CLONE_FILES
    | CLONE_SYSVSEM
    | CLONE_SETTLS
    | CLONE_PARENT_SETTID
    | CLONE_CHILD_CLEARTID
    | CLONE_DETACHED
    | CLONE_CHILD_SETTID;

/// clone(2), x86-64 argument order: flags, stack, parent_tid, child_tid, tls.
///
/// # Errors
/// As clone(2).
pub fn sys_clone(cx: &mut Cx<'_>, args: &Args, _state: &CallState) -> Outcome {
    let (Word(flags), Ptr(stack), Ptr(parent_tid), Ptr(child_tid), Word(tls)) = args.decode();
    let [exit_signal, ..] = flags.to_le_bytes();
    let new = Clone {
        flags: flags & !0xff,
        exit_signal,
        stack: stack.0,
        parent_tid,
        child_tid,
        tls,
        pidfd: parent_tid,
    };
    let both = CLONE_PIDFD | CLONE_PARENT_SETTID;
    if flags & both == both {
        return Outcome::Done(Err(Errno::EINVAL));
    }
    spawn(cx, &new)
}

/// fork(2)
pub fn sys_fork(cx: &mut Cx<'_>, _args: &Args, _state: &CallState) -> Outcome {
    spawn(cx, &process(0))
}

/// vfork(2)
pub fn sys_vfork(cx: &mut Cx<'_>, _args: &Args, _state: &CallState) -> Outcome {
    spawn(cx, &process(CLONE_VM | CLONE_VFORK))
}

/// A process that tells its parent of its end by SIGCHLD.
fn process(flags: u64) -> Clone {
    Clone {
        flags,
        exit_signal: SIGCHLD,
        stack: 0,
        parent_tid: Gva(0),
        child_tid: Gva(0),
        tls: 0,
        pidfd: Gva(0),
    }
}

/// clone3(2)
pub fn sys_clone3(cx: &mut Cx<'_>, args: &Args, _state: &CallState) -> Outcome {
    let (Ptr(clone_args), Len(size)) = args.decode();
    match read_clone_args(cx, clone_args, size) {
        Ok(new) => spawn(cx, &new),
        Err(errno) => Outcome::Done(Err(errno)),
    }
}

fn read_clone_args(cx: &mut Cx<'_>, clone_args: Gva, size: u64) -> Result<Clone, Errno> {
    let size = usize::try_from(size).map_err(|_| Errno::E2BIG)?;
    if size < 64 {
        return Err(Errno::EINVAL);
    }
    if size > 4096 {
        return Err(Errno::E2BIG);
    }
    let mut bytes = vec![0u8; size.max(size_of::<CloneArgs>())];
    cx.read(clone_args, bytes.get_mut(..size).ok_or(Errno::EINVAL)?)?;
    if bytes
        .iter()
        .skip(size_of::<CloneArgs>())
        .any(|byte| *byte != 0)
    {
        return Err(Errno::E2BIG);
    }
    let (clone, _) =
        <CloneArgs as zerocopy::FromBytes>::read_from_prefix(&bytes).map_err(|_| Errno::EINVAL)?;
    if clone.set_tid_size != 0 || clone.set_tid != 0 {
        return Err(Errno::EPERM);
    }
    if (clone.stack == 0) != (clone.stack_size == 0) {
        return Err(Errno::EINVAL);
    }
    if clone.flags & (CLONE_THREAD | CLONE_PARENT) != 0 && clone.exit_signal != 0 {
        return Err(Errno::EINVAL);
    }
    let stack = clone
        .stack
        .checked_add(clone.stack_size)
        .ok_or(Errno::EINVAL)?;
    let exit_signal = u8::try_from(clone.exit_signal)
        .ok()
        .filter(|signo| *signo <= NSIG)
        .ok_or(Errno::EINVAL)?;
    Ok(Clone {
        flags: clone.flags,
        exit_signal,
        stack,
        parent_tid: Gva(clone.parent_tid),
        child_tid: Gva(clone.child_tid),
        tls: clone.tls,
        pidfd: Gva(clone.pidfd),
    })
}

/// Makes a thread or a process, as the flags say.
fn spawn(cx: &mut Cx<'_>, new: &Clone) -> Outcome {
    let flags = new.flags;
    if flags & CLONE_SIGHAND != 0 && flags & CLONE_VM == 0
        || flags & CLONE_THREAD != 0 && flags & CLONE_SIGHAND == 0
        || flags & CLONE_PIDFD != 0 && flags & (CLONE_DETACHED | CLONE_THREAD) != 0
    {
        return Outcome::Done(Err(Errno::EINVAL));
    }
    if flags & CLONE_SETTLS != 0 && new.tls >= USER_END.0 {
        return Outcome::Done(Err(Errno::EPERM));
    }
    if flags & CLONE_THREAD == 0 {
        return task::fork::fork(cx, new).unwrap_or_else(|errno| Outcome::Done(Err(errno)));
    }
    Outcome::Done(spawn_thread(cx, new))
}

fn spawn_thread(cx: &mut Cx<'_>, new: &Clone) -> SysResult {
    let flags = new.flags;
    if flags & !THREAD_KNOWN != 0 {
        cx.host
            .report
            .unsupported("clone", format!("flags {flags:#x}"));
        return Err(Errno::EINVAL);
    }
    task::fork::check_threads(cx)?;
    let tid = allocate_tid(cx.kernel)?;
    let share = share::inherit(cx, flags, Payer::Apart)?;
    let raw = tid.0.cast_unsigned();
    if flags & CLONE_PARENT_SETTID != 0 {
        // Linux ignores a fault here.
        let _ = cx.write_struct(new.parent_tid, &raw);
    }
    if flags & CLONE_CHILD_SETTID != 0 {
        // Linux ignores a fault here: the child would write it itself.
        let _ = cx.write_struct(new.child_tid, &raw);
    }
    let parent = cx.thread()?;
    let thread = Thread::child_of(parent, new, (parent.pid, tid), share);
    cx.kernel.threads.insert(tid, thread);
    cx.kernel.sched.make_ready(tid);
    Ok(u64::from(raw))
}

/// unshare(2)
///
/// # Errors
/// `EINVAL` for unknown flags, and for what other threads have too. `EPERM` for namespaces; `ENOMEM` at the memory
/// limit.
pub fn sys_unshare(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    const ALONE: u64 = CLONE_THREAD | CLONE_SIGHAND | CLONE_VM;
    const KNOWN: u64 = ALONE | CLONE_FS | CLONE_FILES | CLONE_SYSVSEM | NAMESPACES;
    let Word(flags) = args.decode();
    let process = cx.process()?;
    let (pid, mm) = (process.pid, process.mm);
    let has_threads = cx.kernel.threads_of(pid).nth(1).is_some();
    let needs_alone = flags & (ALONE | CLONE_NEWUSER) != 0;
    let shares_memory = |one: &Process| one.mm == mm && one.pid != pid;
    if flags & !KNOWN != 0
        || needs_alone && has_threads
        || flags & CLONE_VM != 0 && cx.kernel.processes.values().any(shares_memory)
    {
        return Err(Errno::EINVAL);
    }
    if flags & NAMESPACES != 0 {
        let flags = format!("namespaces {:#x}", flags & NAMESPACES);
        cx.host.report.unsupported("unshare", flags);
        return Err(Errno::EPERM);
    }
    let has_undo = cx.kernel.ipc.semaphores.has_undo(pid);
    if flags & CLONE_SYSVSEM != 0 && has_undo && has_threads {
        let what = "SEM_UNDO of one of several threads".to_owned();
        cx.host.report.unsupported("unshare", what);
        return Err(Errno::EINVAL);
    }
    if flags & CLONE_FS != 0 {
        share::unshare_fs(cx)?;
    }
    if flags & CLONE_FILES != 0 {
        share::unshare_files(cx, Payer::Apart)?;
    }
    if flags & CLONE_SYSVSEM != 0 {
        let now = clock::realtime_s(cx.host);
        sem::process_gone(cx.kernel, &mut cx.machine.memory, pid, now);
    }
    Ok(0)
}

/// The low byte of a status is what a parent is told (wait(2)).
fn exited(status: i32) -> ExitStatus {
    let [code, ..] = status.to_le_bytes();
    ExitStatus::Exited(code)
}

/// exit(2): ends the calling thread; the last one ends its process.
pub fn sys_exit(cx: &mut Cx<'_>, args: &Args, _state: &CallState) -> Outcome {
    let Int(status) = args.decode();
    task::exit::end_thread(cx, exited(status));
    Outcome::Gone
}

/// exit_group(2)
pub fn sys_exit_group(cx: &mut Cx<'_>, args: &Args, _state: &CallState) -> Outcome {
    let Int(status) = args.decode();
    task::exit::doom(cx, exited(status));
    Outcome::Gone
}

/// set_tid_address(2)
///
/// # Errors
/// None for a running thread.
pub fn sys_set_tid_address(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Ptr(clear_child_tid) = args.decode();
    cx.thread()?.clear_child_tid = clear_child_tid.0;
    Ok(u64::from(cx.tid.0.cast_unsigned()))
}

/// sched_yield(2): goes to the end of the run queue.
pub fn sys_sched_yield(cx: &mut Cx<'_>, _args: &Args) -> SysResult {
    cx.kernel.sched.yielding = Yield::ToAll;
    Ok(0)
}

/// A thread that a scheduling call is about: all of them are scheduled alike.
fn target(cx: &Cx<'_>, tid: i32) -> Result<(), Errno> {
    match tid {
        0 => Ok(()),
        tid if tid < 0 => Err(Errno::EINVAL),
        tid => cx.kernel.kin_of(tid).map(|_| ()).ok_or(Errno::ESRCH),
    }
}

/// As [`target`], of a call that changes something (check_same_owner in kernel/sched/syscalls.c).
///
/// # Errors
/// As [`target`]; `EPERM` for a thread of another user.
fn changed_target(cx: &Cx<'_>, tid: i32) -> Result<(), Errno> {
    target(cx, tid)?;
    if tid == 0 || tid == cx.tid.0 {
        return Ok(());
    }
    let theirs = match cx.kernel.threads.get(&Tid(tid)) {
        Some(thread) => &thread.creds,
        None => cx.kernel.creds_of(Pid(tid)),
    };
    match cx.creds().may_schedule(theirs) {
        true => Ok(()),
        false => Err(Errno::EPERM),
    }
}

/// A thread whose CPUs a call is about. Unlike for the other calls, a negative number is that of no thread.
fn affine(cx: &Cx<'_>, tid: i32) -> Result<(), Errno> {
    target(cx, tid).map_err(|_| Errno::ESRCH)
}

/// sched_getaffinity(2): one CPU.
///
/// # Errors
/// `EINVAL` for a size under 8 or not a multiple of 8; `ESRCH`, `EFAULT`.
pub fn sys_sched_getaffinity(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(tid), Uint(len), Ptr(mask_gva)) = args.decode();
    if len < 8 || !len.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    affine(cx, tid)?;
    cx.write_struct(mask_gva, &1u64)?;
    Ok(8)
}

/// sched_setaffinity(2): succeeds for a mask that contains CPU 0, the only one.
///
/// # Errors
/// `EINVAL` for a mask without CPU 0; `ESRCH`, `EFAULT`.
pub fn sys_sched_setaffinity(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(tid), Uint(len), Ptr(mask_gva)) = args.decode();
    affine(cx, tid)?;
    changed_target(cx, tid)?;
    let mut mask = [0u8; 8];
    let len = usize::try_from(len).unwrap_or(8).min(8);
    cx.read(mask_gva, mask.get_mut(..len).unwrap_or_default())?;
    if mask.first().is_some_and(|byte| byte & 1 != 0) {
        Ok(0)
    } else {
        Err(Errno::EINVAL)
    }
}

/// sched_getscheduler(2): SCHED_OTHER.
///
/// # Errors
/// `ESRCH`, `EINVAL`.
pub fn sys_sched_getscheduler(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Int(tid) = args.decode();
    target(cx, tid).map(|()| 0)
}

/// sched_getparam(2): priority 0.
///
/// # Errors
/// `ESRCH`, `EINVAL`, `EFAULT`.
pub fn sys_sched_getparam(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(tid), Ptr(param)) = args.decode();
    parameter(param)?;
    target(cx, tid)?;
    cx.write_struct(param, &0u32)?;
    Ok(0)
}

/// A struct sched_param must be given (sched_setparam(2): `EINVAL` without).
fn parameter(gva: Gva) -> Result<(), Errno> {
    if gva.0 == 0 {
        Err(Errno::EINVAL)
    } else {
        Ok(())
    }
}

/// sched_setscheduler(2): SCHED_OTHER, SCHED_BATCH and SCHED_IDLE with priority 0, else `EPERM`, as
/// for a process without CAP_SYS_NICE.
///
/// # Errors
/// `EPERM`, `EINVAL`, `ESRCH`, `EFAULT`.
pub fn sys_sched_setscheduler(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(tid), Int(policy), Ptr(param)) = args.decode();
    parameter(param)?;
    target(cx, tid)?;
    let priority: u32 = cx.read_struct(param)?;
    match (policy & !SCHED_RESET_ON_FORK, priority) {
        (SCHED_NORMAL | SCHED_BATCH | SCHED_IDLE, 0) => changed_target(cx, tid).map(|()| 0),
        (SCHED_FIFO | SCHED_RR, 1..=99) => Err(Errno::EPERM),
        _ => Err(Errno::EINVAL),
    }
}

/// sched_setparam(2): priority 0 is the only one of SCHED_OTHER.
///
/// # Errors
/// `EINVAL`, `ESRCH`, `EFAULT`.
pub fn sys_sched_setparam(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(tid), Ptr(param)) = args.decode();
    parameter(param)?;
    target(cx, tid)?;
    let priority: u32 = cx.read_struct(param)?;
    if priority == 0 {
        changed_target(cx, tid).map(|()| 0)
    } else {
        Err(Errno::EINVAL)
    }
}

/// sched_get_priority_max(2)
///
/// # Errors
/// `EINVAL` for an unknown policy.
pub fn sys_sched_get_priority_max(_cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Int(policy) = args.decode();
    match policy {
        SCHED_FIFO | SCHED_RR => Ok(99),
        SCHED_NORMAL | SCHED_BATCH | SCHED_IDLE | SCHED_DEADLINE => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// sched_get_priority_min(2)
///
/// # Errors
/// `EINVAL` for an unknown policy.
pub fn sys_sched_get_priority_min(_cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Int(policy) = args.decode();
    match policy {
        SCHED_FIFO | SCHED_RR => Ok(1),
        SCHED_NORMAL | SCHED_BATCH | SCHED_IDLE | SCHED_DEADLINE => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// sched_rr_get_interval(2): the time slice.
///
/// # Errors
/// `ESRCH`, `EINVAL`, `EFAULT`.
pub fn sys_sched_rr_get_interval(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(tid), Ptr(interval)) = args.decode();
    target(cx, tid)?;
    let slice = Timespec {
        tv_sec: 0,
        tv_nsec: crate::sched::SLICE_NS.cast_signed(),
    };
    cx.write_struct(interval, &slice)?;
    Ok(0)
}

/// getcpu(2): CPU 0 of node 0.
///
/// # Errors
/// `EFAULT`.
pub fn sys_getcpu(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Ptr(cpu), Ptr(node), Ptr(_)) = args.decode();
    for gva in [cpu, node] {
        if gva.0 != 0 {
            cx.write_struct(gva, &0u32)?;
        }
    }
    Ok(0)
}

/// gettid(2)
///
/// # Errors
/// None.
pub fn sys_gettid(cx: &mut Cx<'_>, _args: &Args) -> SysResult {
    Ok(u64::from(cx.tid.0.cast_unsigned()))
}

/// membarrier(2): the threads of a program share one CPU, so every command is already fulfilled.
///
/// # Errors
/// `EINVAL` for an unknown command.
pub fn sys_membarrier(_cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(command), Flags(flags), Int(_)) = args.decode();
    match command {
        MEMBARRIER_CMD_QUERY => {
            let known = MEMBARRIER_CMD_GLOBAL
                | MEMBARRIER_CMD_PRIVATE_EXPEDITED
                | MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED;
            Ok(u64::from(known.cast_unsigned()))
        }
        MEMBARRIER_CMD_GLOBAL
        | MEMBARRIER_CMD_PRIVATE_EXPEDITED
        | MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED
            if flags == 0 =>
        {
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}
