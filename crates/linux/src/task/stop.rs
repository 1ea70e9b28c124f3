//! Stops and continuations of processes (job control in signal(7), setpgid(2)).

use kvmlet_abi::linux::signal::{
    CLD_CONTINUED, CLD_STOPPED, SA_NOCLDSTOP, SIG_IGN, SIGHUP, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU,
};

use super::exit::TICK_NS;
use crate::kernel::{Job, Kernel, Outside, Pid, Process, Tid};
use crate::outcome::Source;
use crate::signal::signo::{SIGCHLD, SIGCONT};
use crate::signal::{SI_KERNEL, SigDetail, SigInfo, bit};

/// Signals whose default action stops the process.
pub const STOPS: u64 = bit(SIGSTOP) | bit(SIGTSTP) | bit(SIGTTIN) | bit(SIGTTOU);

impl Kernel {
    /// True if a thread may not run before its process gets SIGCONT.
    #[must_use]
    pub fn is_stopped(&self, tid: Tid) -> bool {
        let thread = self.threads.get(&tid);
        let process = thread.and_then(|thread| self.processes.get(&thread.pid));
        process.is_some_and(|process| matches!(process.job, Job::Stopped { .. }))
    }

    /// A stop signal or SIGCONT is sent, be it blocked or ignored. Each takes the pending ones of the other kind
    /// away, and SIGCONT continues the process (prepare_signal in kernel/signal.c).
    pub fn prepare_job_signal(&mut self, pid: Pid, signo: u8) {
        if STOPS & bit(signo) != 0 {
            self.discard_signals(pid, bit(SIGCONT));
        } else if signo == SIGCONT {
            self.discard_signals(pid, STOPS);
            self.continue_process(pid);
        }
    }

    /// Drops pending signals of a process and of its threads.
    pub fn discard_signals(&mut self, pid: Pid, set: u64) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        process.signals.pending.discard(set);
        let threads: Vec<Tid> = self.threads_of(pid).collect();
        for tid in threads {
            if let Some(thread) = self.threads.get_mut(&tid) {
                thread.signals.pending.discard(set);
            }
        }
    }

    /// A signal stops a process. Says if it did: in an orphaned process group only SIGSTOP stops, because nobody
    /// would continue what the others stop.
    pub fn stop_process(&mut self, pid: Pid, signo: u8) -> bool {
        let group = self.processes.get(&pid).map(|process| process.pgid);
        if signo != SIGSTOP && group.is_none_or(|group| self.is_orphaned(group)) {
            return false;
        }
        if let Some(process) = self.processes.get_mut(&pid) {
            process.job = Job::Stopped {
                signo,
                is_told: false,
            };
        }
        // A thread of it may have been woken for a message.
        if !self.channel.inbox.is_empty() {
            self.wake_receiver();
        }
        self.report_job(pid, CLD_STOPPED, signo);
        true
    }

    fn continue_process(&mut self, pid: Pid) {
        match self.processes.get_mut(&pid) {
            Some(process) if matches!(process.job, Job::Stopped { .. }) => {
                process.job = Job::Continued;
            }
            _ => return,
        }
        let stopped = core::mem::take(&mut self.sched.stopped);
        for tid in stopped {
            match self.is_stopped(tid) {
                true => self.sched.stopped.push_back(tid),
                false => self.sched.make_ready(tid),
            }
        }
        self.report_job(pid, CLD_CONTINUED, SIGCONT);
    }

    /// Tells the parent of a process that it has stopped or goes on (do_notify_parent_cldstop).
    fn report_job(&mut self, pid: Pid, code: i32, status: u8) {
        let Some(process) = self.processes.get(&pid) else {
            return;
        };
        let (ppid, utime) = (process.ppid, process.cpu_time_ns / TICK_NS);
        let Some(parent) = self.processes.get(&ppid) else {
            return;
        };
        let action = parent.signals.action(SIGCHLD);
        if action.handler != SIG_IGN && action.flags & SA_NOCLDSTOP == 0 {
            let info = SigInfo {
                signo: SIGCHLD,
                code,
                detail: SigDetail::Child {
                    pid: pid.0,
                    uid: self.creds_of(pid).user.real,
                    status: i32::from(status),
                    utime,
                },
                ..SigInfo::default()
            };
            // It is a standard signal: there is always room.
            let _ = self.send_to_process(ppid, info);
        }
        self.sched.wake_source(Source::Children(ppid));
    }

    /// True if no member of a process group has a parent of another group in its session: nobody would continue
    /// it (setpgid(2)). Our init counts as the shell of the program's first process, if there is one outside.
    #[must_use]
    pub fn is_orphaned(&self, group: Pid) -> bool {
        let mut members = self.processes.values().filter(|one| one.pgid == group);
        let is_led = |one: &Process| one.pid == self.main && self.outside == Outside::Shell;
        !members.any(|one| is_led(one) || self.is_connected(one))
    }

    /// True if a member of a process group has a parent in the sandbox that could continue it.
    #[must_use]
    pub fn is_led(&self, group: Pid) -> bool {
        let mut members = self.processes.values().filter(|one| one.pgid == group);
        members.any(|one| self.is_connected(one))
    }

    /// Sends a signal of the kernel's to each member of a process group.
    pub fn send_to_group(&mut self, group: Pid, signo: u8) {
        let members = self.processes.values().filter(|one| one.pgid == group);
        let members: Vec<Pid> = members.map(|one| one.pid).collect();
        for pid in members {
            let info = SigInfo {
                signo,
                code: SI_KERNEL,
                ..SigInfo::default()
            };
            // It is a standard signal: there is always room.
            let _ = self.send_to_process(pid, info);
        }
    }

    /// True if the parent of a process is in another group of its session.
    fn is_connected(&self, process: &Process) -> bool {
        let parent = self.processes.get(&process.ppid);
        parent.is_some_and(|parent| parent.pgid != process.pgid && parent.sid == process.sid)
    }

    /// The end of a process may leave groups orphaned: its own, and those of its former `children`. Stopped
    /// members of such a group get SIGHUP and SIGCONT (kill_orphaned_pgrp in kernel/exit.c).
    pub fn release_orphans(&mut self, gone: &Process, children: &[Pid]) {
        let mut groups: Vec<Pid> = Vec::new();
        for pid in children {
            if let Some(child) = self.processes.get(pid)
                && child.pgid != gone.pgid
                && child.sid == gone.sid
                && !groups.contains(&child.pgid)
            {
                groups.push(child.pgid);
            }
        }
        if self.is_connected(gone) {
            groups.push(gone.pgid);
        }
        for group in groups {
            let mut members = self.processes.values().filter(|one| one.pgid == group);
            let has_stopped = members.any(|one| matches!(one.job, Job::Stopped { .. }));
            if has_stopped && self.is_orphaned(group) {
                self.send_to_group(group, SIGHUP);
                self.send_to_group(group, SIGCONT);
            }
        }
    }
}
