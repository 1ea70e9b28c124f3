//! The end of threads and processes (exit(2), exit_group(2), fatal signals).

use std::sync::Arc;

use kvmlet_abi::linux::signal::{SA_NOCLDWAIT, SIG_IGN};

use super::{robust, share};
use crate::clock;
use crate::creds::Creds;
use crate::cx::Cx;
use crate::ipc::mq::News;
use crate::ipc::sem;
use crate::kernel::{Doomed, ExitStatus, Kernel, Pid, Process, Thread, Tid, Zombie};
use crate::mm;
use crate::net::netlink;
use crate::outcome::{Source, WaitOn};
use crate::signal::signo::SIGCHLD;
use crate::signal::{NSIG, SI_USER, SigDetail, SigInfo};
use crate::vfs::{fifo, notify};

/// Nanoseconds of a clock tick (sysconf(_SC_CLK_TCK) is 100).
pub const TICK_NS: u64 = 10_000_000;

/// The calling thread ends, and its process with it if it is the last one.
pub fn end_thread(cx: &mut Cx<'_>, status: ExitStatus) {
    let Ok(pid) = cx.process().map(|process| process.pid) else {
        return;
    };
    // Also if it is the program's last one, which stays for those who look at its memory.
    cx.kernel.lose_call(cx.tid);
    if cx.kernel.threads_of(pid).nth(1).is_none() {
        return end_process(cx, pid, status);
    }
    robust::Walk::default().thread_exit(cx);
    share::leave(cx);
    notify::settle(cx);
    take_out(cx, cx.tid);
}

/// A signal ends the calling thread's process.
pub fn kill_self(cx: &mut Cx<'_>, signo: u8) {
    doom(cx, ExitStatus::Signal(signo));
}

/// The calling thread's process ends before any thread runs again ([`Kernel::doomed`]).
pub fn doom(cx: &mut Cx<'_>, status: ExitStatus) {
    let tid = cx.tid;
    if let Ok(pid) = cx.process().map(|process| process.pid) {
        cx.kernel.doomed.push_back(Doomed {
            pid,
            tid,
            status,
            signal: None,
        });
    }
}

/// A process ends, wherever its threads are. With the program's first process the sandbox ends: what else runs is
/// killed, as in a pid namespace. Linux differs: outside of one, other processes go on.
pub fn end_process(cx: &mut Cx<'_>, pid: Pid, status: ExitStatus) {
    if pid == cx.kernel.main {
        cx.kernel.end.get_or_insert(status.into());
        return;
    }
    if !cx.kernel.processes.contains_key(&pid) {
        return;
    }
    let caller = cx.tid;
    let threads: Vec<Tid> = cx.kernel.threads_of(pid).collect();
    let mut comm = [0; 16];
    let creds = Arc::clone(cx.kernel.creds_of(pid));
    let mut walk = robust::Walk::default();
    for tid in &threads {
        cx.tid = *tid;
        walk.thread_exit(cx);
        comm = cx.thread().map_or(comm, |thread| thread.comm);
    }
    let now = clock::realtime_s(cx.host);
    sem::process_gone(cx.kernel, &mut cx.machine.memory, pid, now);
    for notice in cx.kernel.ipc.mqueues.process_gone(pid) {
        netlink::tell(cx, notice, News::Removed);
    }
    for tid in &threads {
        cx.tid = *tid;
        share::leave(cx);
    }
    let process = cx.kernel.processes.get(&pid);
    let peak_bytes = process.map_or(0, |process| process.peak_bytes(&cx.machine.spaces));
    // Every step of it is possible while the last thread is there.
    let _ = mm::leave(cx);
    notify::settle(cx);
    for tid in threads {
        take_out(cx, tid);
    }
    cx.tid = caller;
    cx.kernel.timers_gone(pid);
    let Some(process) = cx.kernel.processes.remove(&pid) else {
        return;
    };
    cx.machine.memory.uncharge_kernel(process.charged_bytes);
    cx.kernel.wake_vfork(pid, process.vfork);
    if process.sid == pid {
        cx.kernel
            .session_leader_gone(pid, process.ctty, process.former_foreground);
    }
    let children = cx.kernel.orphan(&process, &creds);
    cx.kernel.release_orphans(&process, &children);
    cx.kernel.report_end(Zombie {
        pid,
        birth: process.birth,
        started_ns: process.started_ns,
        ppid: process.ppid,
        pgid: process.pgid,
        sid: process.sid,
        has_execed: process.has_execed,
        exit_signal: process.exit_signal,
        status,
        cpu_time_ns: process.cpu_time_ns,
        children_cpu_ns: process.children_cpu_ns,
        io: process.io,
        peak_bytes: peak_bytes.max(process.children_peak_bytes),
        comm,
        creds,
    });
    cx.kernel.process_ended(pid);
}

/// Takes a thread out of all that knows it.
pub fn take_out(cx: &mut Cx<'_>, tid: Tid) -> Option<Thread> {
    let caller = core::mem::replace(&mut cx.tid, tid);
    fifo::abandon(cx);
    cx.tid = caller;
    let kernel = &mut *cx.kernel;
    kernel.lose_call(tid);
    kernel.timers.thread_gone(tid);
    kernel.locks.wait(tid, None);
    kernel.sched.forget(tid);
    kernel.channel.let_go(tid.0);
    // It may have been woken for a message that it does not take any more.
    if !kernel.channel.inbox.is_empty() {
        kernel.wake_receiver();
    }
    let waited_for = |process: &&Process| process.vfork == Some(tid);
    let children = kernel.processes.values().filter(waited_for);
    let children: Vec<Pid> = children.map(|child| child.pid).collect();
    for pid in children {
        if let Some(child) = kernel.processes.get_mut(&pid) {
            child.vfork = None;
        }
    }
    let thread = kernel.threads.remove(&tid)?;
    if let Some(process) = kernel.processes.get_mut(&thread.pid) {
        process.io.add(thread.io);
    }
    Some(thread)
}

impl Kernel {
    /// The threads of a process, the first one first.
    pub fn threads_of(&self, pid: Pid) -> impl Iterator<Item = Tid> {
        let threads = self.threads.values();
        threads
            .filter(move |thread| thread.pid == pid)
            .map(|thread| thread.tid)
    }

    /// The parent that waits for a child's end or execve(2) goes on. It may have gone, and its id may be another
    /// thread's by now.
    pub fn wake_vfork(&mut self, child: Pid, waiter: Option<Tid>) {
        if let Some(tid) = waiter
            && let Some(parked) = self.sched.parked.get(&tid)
            && parked.wait.on == WaitOn::Vfork(child)
        {
            self.deliver(tid, Ok(u64::from(child.0.cast_unsigned())));
        }
    }

    /// The children of a process that has ended get another parent: the nearest ancestor that asked for it, or ours,
    /// which waits at once. Returns the live ones.
    fn orphan(&mut self, gone: &Process, creds: &Creds) -> Vec<Pid> {
        let parent = self.reaper_of(gone);
        let children: Vec<Pid> = self
            .processes
            .values()
            .filter(|process| process.ppid == gone.pid)
            .map(|process| process.pid)
            .collect();
        for pid in &children {
            let Some(child) = self.processes.get_mut(pid) else {
                continue;
            };
            child.ppid = parent;
            child.exit_signal = SIGCHLD;
            let info = SigInfo {
                signo: child.death_signal,
                code: SI_USER,
                detail: SigDetail::Sender {
                    pid: gone.pid.0,
                    uid: creds.user.real,
                    value: 0,
                },
                ..SigInfo::default()
            };
            if info.signo != 0 {
                // A full queue loses it, as on Linux.
                let _ = self.send_to_process(*pid, info);
            }
        }
        let of_gone = |zombie: &&Zombie| zombie.ppid == gone.pid;
        let dead: Vec<Zombie> = self.zombies.values().filter(of_gone).cloned().collect();
        for zombie in dead {
            self.zombies.remove(&zombie.pid);
            self.report_end(Zombie {
                ppid: parent,
                exit_signal: SIGCHLD,
                ..zombie
            });
        }
        children
    }

    /// The next parent of the children of a process.
    fn reaper_of(&self, process: &Process) -> Pid {
        let mut at = process.ppid;
        // A parent is older than its children, so there is an end to it.
        while let Some(ancestor) = self.processes.get(&at) {
            if ancestor.is_subreaper {
                return at;
            }
            at = ancestor.ppid;
        }
        Pid::INIT
    }

    /// Tells the parent of a process that it has ended. What the parent does not want to know leaves no zombie
    /// (do_notify_parent in kernel/signal.c).
    fn report_end(&mut self, zombie: Zombie) {
        let Some(parent) = self.processes.get(&zombie.ppid) else {
            return;
        };
        let action = parent.signals.action(SIGCHLD);
        let is_unwanted = zombie.exit_signal == SIGCHLD
            && (action.handler == SIG_IGN || action.flags & SA_NOCLDWAIT != 0);
        let (ppid, signo) = (zombie.ppid, zombie.exit_signal);
        let (code, value) = zombie.status.child_code();
        let info = SigInfo {
            signo,
            code,
            detail: SigDetail::Child {
                pid: zombie.pid.0,
                uid: zombie.creds.user.real,
                status: i32::from(value),
                utime: zombie.cpu_time_ns / TICK_NS,
            },
            ..SigInfo::default()
        };
        if !is_unwanted {
            self.zombies.insert(zombie.pid, zombie);
        }
        if (1..=NSIG).contains(&signo) {
            // A full queue loses it, as on Linux.
            let _ = self.send_to_process(ppid, info);
        }
        self.sched.wake_source(Source::Children(ppid));
    }
}
