//! New processes (fork(2), vfork(2), clone(2) without CLONE_THREAD).

use std::collections::BTreeSet;
use std::sync::Arc;

use kvmlet_abi::linux::sched::{
    CLONE_CHILD_CLEARTID, CLONE_CHILD_SETTID, CLONE_CLEAR_SIGHAND, CLONE_DETACHED, CLONE_FILES,
    CLONE_FS, CLONE_IO, CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID,
    CLONE_NEWTIME, CLONE_NEWUSER, CLONE_NEWUTS, CLONE_PARENT, CLONE_PARENT_SETTID, CLONE_PIDFD,
    CLONE_SETTLS, CLONE_SYSVSEM, CLONE_UNTRACED, CLONE_VFORK, CLONE_VM,
};
use kvmlet_abi::linux::signal::SIG_IGN;
use kvmlet_abi::{Errno, Gva};

use super::share::{self, Payer};
use crate::clock;
use crate::cx::Cx;
use crate::fd::{self, OpenFlags};
use crate::id::FilesId;
use crate::kernel::{Job, Kernel, Pid, Process, ProcessRef, Share, Thread, Tid};
use crate::mm;
use crate::outcome::{Outcome, Resume, Wait, WaitOn};
use crate::rlimit::{self, Resource};
use crate::sched::Yield;
use crate::signal::{SigState, ThreadSignals};
use crate::task::usage::Io;
use crate::vfs::pidfd;

/// Threads of a sandbox at most.
pub const THREADS_MAX: usize = 1024;
/// Highest id, as pid_max of a small machine.
const TID_MAX: i32 = 32768;

/// Flags that ask for a namespace of their own.
pub const NAMESPACES: u64 = CLONE_NEWTIME
    | CLONE_NEWNS
    | CLONE_NEWCGROUP
    | CLONE_NEWUTS
    | CLONE_NEWIPC
    | CLONE_NEWUSER
    | CLONE_NEWPID
    | CLONE_NEWNET;

/// Flags that a new process may have.
const KNOWN: u64 = CLONE_VM
    | CLONE_VFORK
    | CLONE_PARENT
    | CLONE_SYSVSEM
    | CLONE_SETTLS
    | CLONE_PARENT_SETTID
    | CLONE_CHILD_CLEARTID
    | CLONE_DETACHED
    | CLONE_CHILD_SETTID
    | CLONE_CLEAR_SIGHAND
    | CLONE_PIDFD
    | CLONE_FILES
    | CLONE_FS
    // Nothing is traced, and no disk has a queue of ours.
    | CLONE_UNTRACED
    | CLONE_IO;

/// The wishes of a caller of clone(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clone {
    /// CLONE_*.
    pub flags: u64,
    /// The signal that the child's end sends; a number that is no signal sends none.
    pub exit_signal: u8,
    /// The child's stack pointer; 0 for the parent's.
    pub stack: u64,
    /// The place in the parent's memory for the child's id.
    pub parent_tid: Gva,
    /// The place in the child's memory for it.
    pub child_tid: Gva,
    /// The child's FS base.
    pub tls: u64,
    /// The place in the parent's memory for a descriptor of the child.
    pub pidfd: Gva,
}

/// Makes a process. The caller has checked that the flags fit together.
///
/// # Errors
/// `EAGAIN` at a limit on processes, `ENOMEM` at the memory limit. `EPERM` for new namespaces, `EINVAL` for flags
/// that are not supported. `EMFILE` and `EFAULT` for a descriptor of the child.
pub fn fork(cx: &mut Cx<'_>, clone: &Clone) -> Result<Outcome, Errno> {
    if clone.flags & NAMESPACES != 0 {
        let flags = format!("namespaces {:#x}", clone.flags & NAMESPACES);
        cx.host.report.unsupported("clone", flags);
        return Err(Errno::EPERM);
    }
    if clone.flags & !KNOWN != 0 {
        let flags = format!("flags {:#x} of a new process", clone.flags);
        cx.host.report.unsupported("clone", flags);
        return Err(Errno::EINVAL);
    }
    if cx.kernel.call.is_childless(cx.tid) {
        // The host's own call: nobody is to be told of a limit.
        return Err(Errno::EAGAIN);
    }
    check_limits(cx)?;
    let cost_bytes = cx.process()?.cost_bytes();
    if !cx.machine.memory.has_room(cost_bytes) {
        return Err(Errno::ENOMEM);
    }
    let caller = cx.tid;
    let tid = allocate_tid(cx.kernel)?;
    let pid = Pid(tid.0);
    let raw = tid.0.cast_unsigned();
    let birth = cx.kernel.next_birth;
    let pidfd = match clone.flags & CLONE_PIDFD {
        0 => None,
        _ => Some(open_child(cx, ProcessRef { pid, birth }, clone.pidfd)?),
    };
    let space = match clone.flags & CLONE_VM {
        0 => mm::fork(cx),
        _ => cx.process().map(|process| process.mm),
    };
    let space = match (space, pidfd) {
        (Err(errno), Some(number)) => {
            fd::close(cx, number)?;
            return Err(errno);
        }
        (space, _) => space?,
    };
    if clone.flags & CLONE_PARENT_SETTID != 0 {
        // Linux ignores a fault here.
        let _ = cx.write_struct(clone.parent_tid, &raw);
    }
    let grandparent = cx.process()?.ppid;
    let started_ns = clock::boottime_ns(cx.host);
    // The holder waits for its commands only, init for whatever comes.
    let sibling_of = match cx.kernel.is_holder(grandparent) {
        true => Pid::INIT,
        false => grandparent,
    };
    let parent = cx.process()?;
    let mut signals = SigState {
        actions: parent.signals.actions.clone(),
        ..SigState::default()
    };
    if clone.flags & CLONE_CLEAR_SIGHAND != 0 {
        let actions = signals.actions.into_iter();
        signals.actions = actions
            .filter(|(_, action)| action.handler == SIG_IGN)
            .collect();
    }
    let (ppid, exit_signal) = match clone.flags & CLONE_PARENT {
        0 => (parent.pid, clone.exit_signal),
        _ => (sibling_of, parent.exit_signal),
    };
    let child = Process {
        pid,
        birth,
        started_ns,
        ppid,
        mm: space,
        signals,
        exit_signal,
        vfork: (clone.flags & CLONE_VFORK != 0).then_some(caller),
        has_execed: false,
        is_subreaper: false,
        death_signal: 0,
        former_foreground: None,
        job: Job::Running,
        children_cpu_ns: 0,
        cpu_time_ns: 0,
        io: Io::default(),
        former_peak_bytes: 0,
        children_peak_bytes: 0,
        charged_bytes: cost_bytes,
        ..parent.clone()
    };
    cx.machine.memory.charge_kernel_anyway(cost_bytes);
    let share = share::inherit(cx, clone.flags, Payer::Process)?;
    if let Some(number) = pidfd
        && clone.flags & CLONE_FILES == 0
    {
        drop_pidfd(cx, share.files, number);
    }
    let thread = Thread::child_of(cx.thread()?, clone, (pid, tid), share);
    cx.kernel.processes.insert(pid, child);
    cx.kernel.threads.insert(tid, thread);
    cx.kernel.next_birth = birth.saturating_add(1);
    cx.kernel.arm_cpu_limit(pid);
    if clone.flags & CLONE_CHILD_SETTID != 0 {
        cx.tid = tid;
        // Linux ignores a fault here.
        let _ = cx.write_struct(clone.child_tid, &raw);
        cx.tid = caller;
    }
    // The child first: it mostly executes another program soon, and the parent waits for it.
    cx.kernel.sched.run_queue.push_front(tid);
    if clone.flags & CLONE_VFORK == 0 {
        cx.kernel.sched.yielding = Yield::ToChild;
        return Ok(Outcome::Done(Ok(u64::from(raw))));
    }
    Ok(Outcome::Wait(Wait {
        on: WaitOn::Vfork(pid),
        deadline_ns: None,
        resume: Resume::Deliver {
            at_deadline: Err(Errno::EINTR),
            remain_gva: 0,
        },
    }))
}

/// Refuses a new process where a limit is reached.
///
/// # Errors
/// `EAGAIN`.
pub fn check_limits(cx: &mut Cx<'_>) -> Result<(), Errno> {
    let processes = cx
        .kernel
        .processes
        .len()
        .saturating_add(cx.kernel.zombies.len());
    let most = cx.kernel.processes_max;
    if processes >= most {
        let what = format!("more than {most} processes; --max-procs allows more");
        cx.host.report.unsupported("clone", what);
        return Err(Errno::EAGAIN);
    }
    check_threads(cx)
}

/// Refuses a new thread where a limit is reached.
///
/// # Errors
/// `EAGAIN`.
pub fn check_threads(cx: &mut Cx<'_>) -> Result<(), Errno> {
    let threads = cx.kernel.threads.len();
    if threads >= THREADS_MAX {
        return Err(Errno::EAGAIN);
    }
    let most = rlimit::soft(cx, Resource::Nproc)?;
    if (threads as u64) < most {
        return Ok(());
    }
    // Linux differs: root's threads count too.
    let user = cx.creds().user.real;
    let threads = cx.kernel.threads.values();
    let of_user = threads.filter(|thread| thread.creds.user.real == user);
    match (of_user.count() as u64) < most {
        true => Ok(()),
        false => Err(Errno::EAGAIN),
    }
}

/// Gives the parent a descriptor of its child. Linux differs: the number is written before the memory is copied.
fn open_child(cx: &mut Cx<'_>, child: ProcessRef, place: Gva) -> Result<i32, Errno> {
    let number = pidfd::open(cx, child, OpenFlags::empty())?;
    if let Err(errno) = cx.write_struct(place, &number) {
        fd::close(cx, number)?;
        return Err(errno);
    }
    Ok(number)
}

/// Takes the descriptor of a child out of its own table, into which it was copied.
fn drop_pidfd(cx: &mut Cx<'_>, files: FilesId, number: i32) {
    let table = cx.kernel.fd_tables.get_mut(files);
    if let Some(entry) = table.and_then(|table| table.fds.remove(&number)) {
        fd::unref(cx, entry.file);
    }
}

impl Thread {
    /// The thread that returns from clone(2) as the new one, in its parent's process or as the first of another.
    #[must_use]
    pub fn child_of(parent: &Self, clone: &Clone, (pid, tid): (Pid, Tid), share: Share) -> Self {
        let mut regs = parent.regs;
        regs.rax = 0;
        if clone.stack != 0 {
            regs.rsp = clone.stack;
        }
        if clone.flags & CLONE_SETTLS != 0 {
            regs.fs_base = clone.tls;
            regs.selectors.fs = 0;
        }
        let clears = clone.flags & CLONE_CHILD_CLEARTID != 0;
        let keeps_altstack = clone.flags & (CLONE_VM | CLONE_VFORK) != CLONE_VM;
        Self {
            regs,
            xstate: parent.xstate.clone(),
            signals: ThreadSignals {
                mask: parent.signals.mask,
                altstack: match keeps_altstack {
                    true => parent.signals.altstack,
                    false => Default::default(),
                },
                ..ThreadSignals::default()
            },
            clear_child_tid: if clears { clone.child_tid.0 } else { 0 },
            comm: parent.comm,
            memory_policy: parent.memory_policy,
            io_priority: parent.io_priority,
            nice: parent.nice,
            ..Self::new((pid, tid), share, Arc::clone(&parent.creds))
        }
    }
}

/// An id that nothing has: no thread, no zombie, no group and no session.
///
/// # Errors
/// `EAGAIN` if there is none.
pub fn allocate_tid(kernel: &mut Kernel) -> Result<Tid, Errno> {
    let kin = kernel
        .kin()
        .flat_map(|one| [one.pid.0, one.pgid.0, one.sid.0]);
    let threads = kernel.threads.keys().map(|tid| tid.0);
    // A terminal remembers groups that may have ended.
    let processes = kernel.processes.values();
    let former = processes.filter_map(|one| one.former_foreground);
    let groups = kernel.ptys.foreground_groups().chain(former);
    let groups = groups.map(|group| group.0);
    let used: BTreeSet<i32> = kin.chain(threads).chain(groups).collect();
    for _ in 0..=used.len() {
        let tid = Tid(kernel.next_tid);
        kernel.next_tid = if tid.0 >= TID_MAX {
            Pid::FIRST.0
        } else {
            tid.0.saturating_add(1)
        };
        if !used.contains(&tid.0) {
            return Ok(tid);
        }
    }
    Err(Errno::EAGAIN)
}
