//! Commands of the host's: children of the holder, each with all that descends from it
//! ([`crate::kernel::Holder`]).

use kvmlet_abi::Errno;

use super::fork::{allocate_tid, check_limits};
use crate::clock;
use crate::cx::Cx;
use crate::fd::FdTable;
use crate::kernel::{Doomed, End, ExitStatus, Fs, Kernel, MmId, Pid, Process, Share, Thread, Tid};
use crate::mm::Mm;
use crate::signal::SigState;
use crate::signal::signo::SIGKILL;
use crate::vfs::Dir;

/// Makes a child of the calling process in the same directory, without a program and without an open file.
///
/// It has a session and a process group of its own. It does not run before it is in the run queue.
///
/// # Errors
/// `EAGAIN` at a limit on processes, `ENOMEM` at the memory limit.
pub fn spawn(cx: &mut Cx<'_>) -> Result<Tid, Errno> {
    check_limits(cx)?;
    let parent = cx.process()?.clone();
    let cost_bytes = parent.cost_bytes();
    if !cx.machine.memory.has_room(cost_bytes) {
        return Err(Errno::ENOMEM);
    }
    let tid = allocate_tid(cx.kernel)?;
    let (pid, mm) = (Pid(tid.0), MmId(cx.kernel.next_mm));
    let machine = &mut *cx.machine;
    machine
        .spaces
        .create(&mut machine.memory, mm)
        .map_err(|_| Errno::ENOMEM)?;
    machine.memory.charge_kernel_anyway(cost_bytes);
    cx.kernel.next_mm = cx.kernel.next_mm.saturating_add(1);
    cx.kernel.mms.insert(mm, Mm::default());
    let birth = cx.kernel.next_birth;
    cx.kernel.next_birth = birth.saturating_add(1);
    let fs = cx.fs()?.clone();
    if let Dir::Tmp(inode) = fs.cwd {
        cx.kernel.tmpfs.open_ref(inode);
    }
    // The process's cost has both.
    let share = Share {
        files: cx.kernel.fd_tables.add(FdTable::default(), 0),
        fs: cx.kernel.fs.add(Fs::new(fs.cwd), 0),
    };
    let child = Process {
        birth,
        started_ns: clock::boottime_ns(cx.host),
        ppid: parent.pid,
        command: birth,
        signals: SigState::default(),
        rlimits: parent.rlimits,
        charged_bytes: cost_bytes,
        ..Process::new(pid, mm)
    };
    cx.kernel.processes.insert(pid, child);
    let thread = Thread::new((pid, tid), share, cx.creds());
    cx.kernel.threads.insert(tid, thread);
    cx.kernel.arm_cpu_limit(pid);
    Ok(tid)
}

impl Kernel {
    /// True if a process is the holder, which nothing inside ends, stops or changes, as pid 1 of Linux.
    #[must_use]
    pub fn is_holder(&self, pid: Pid) -> bool {
        self.holder.is_some() && pid == self.main
    }

    /// Ends a command with everything that descends from it.
    pub fn end_command(&mut self, command: u64) {
        let of_command = |one: &&Process| one.command == command && command != 0;
        let members: Vec<Pid> = self
            .processes
            .values()
            .filter(of_command)
            .map(|one| one.pid)
            .collect();
        for pid in members {
            self.doom_process(pid);
        }
    }

    /// There is no memory for what a thread needs. The program ends; in a box, only the thread's process does. The
    /// holder gets an error instead.
    pub fn out_of_memory(&mut self, tid: Tid) {
        let pid = self.threads.get(&tid).map(|thread| thread.pid);
        let process = pid.and_then(|pid| self.processes.get(&pid));
        let (Some(holder), Some(process)) = (&mut self.holder, process) else {
            self.end.get_or_insert(End::Memory);
            return;
        };
        let pid = process.pid;
        if pid == self.main {
            return;
        }
        holder.out_of_memory.insert(process.command);
        self.doom_process(pid);
    }

    fn doom_process(&mut self, pid: Pid) {
        let first = self.threads_of(pid).next();
        if let Some(tid) = first {
            self.doomed.push_back(Doomed {
                pid,
                tid,
                status: ExitStatus::Signal(SIGKILL),
                signal: None,
            });
        }
    }
}
