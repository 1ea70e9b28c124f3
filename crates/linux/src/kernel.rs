//! The [`Kernel`] value: processes, threads, open files, the memory file system.
//!
//! Cloning it is a fork, assigning it is a reset. References inside are ids into persistent maps;
//! nothing in it is shared and mutable, and nothing in it is a host resource.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet, Vector};
use kvmlet_abi::UserRegs;
use kvmlet_abi::linux::signal::{CLD_EXITED, CLD_KILLED};

use crate::apart::Apart;
use crate::by_id::ById;
use crate::channel::Channel;
use crate::creds::Creds;
use crate::fd::{FdTable, FileId, OpenFile};
use crate::guest_call_state::HostCall;
use crate::id::{FilesId, FsId};
pub use crate::id::{MmId, Pid, Tid};
use crate::ipc::Ipc;
use crate::mm::Mm;
use crate::rlimit::Rlimits;
use crate::sched::Sched;
use crate::shared::Shared;
use crate::signal::signo::SIGCHLD;
use crate::signal::{Interrupted, SigInfo, SigState, ThreadSignals};
use crate::task::usage::Io;
use crate::timer::Timers;
use crate::tty::{Ctty, Ptys};
use crate::vfs::Cwd;
use crate::vfs::anon::Objects;
use crate::vfs::async_io::AsyncIo;
use crate::vfs::epoll::HeldWakes;
use crate::vfs::leases::Leases;
use crate::vfs::locks::Locks;
use crate::vfs::pipe::Pipes;
use crate::vfs::tmpfs::TmpFs;

/// Everything the guest can observe of its kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Live processes.
    pub processes: ById<Pid, Process>,
    /// Address spaces: VMAs and limits. Each is some process's; several share one after
    /// vfork(2).
    pub mms: ById<MmId, Mm>,
    /// Processes that have ended and that their parents have not waited for.
    pub zombies: OrdMap<Pid, Zombie>,
    /// The program's first process: the sandbox ends with it.
    pub main: Pid,
    /// The process group that an inherited terminal is lent to (tcsetpgrp(3)): [`Ctty::Inherited`].
    pub foreground: Pid,
    /// Says if somebody outside continues the program when it has been stopped.
    pub outside: Outside,
    /// Pseudo-terminals.
    pub ptys: Apart<Ptys>,
    /// CPU time of all threads, of those that have ended too, in nanoseconds.
    pub cpu_time_ns: u64,
    /// Number of times that a slave was read and that a handler of SIGINT was run: whoever does either may heed Ctrl-C.
    pub heeded: u64,
    /// Live threads of all processes.
    pub threads: ById<Tid, Thread>,
    /// Descriptor tables.
    pub fd_tables: Shared<FilesId, FdTable>,
    /// Working directories with their masks.
    pub fs: Shared<FsId, Fs>,
    /// Open file descriptions.
    pub files: OrdMap<FileId, OpenFile>,
    /// Next unused [`MmId`].
    pub next_mm: u64,
    /// Next unused [`FileId`].
    pub next_file: u64,
    /// [`Process::birth`] of the next process.
    pub next_birth: u64,
    /// Processes at most, with those that have not been waited for.
    pub processes_max: usize,
    /// Next thread or process id.
    pub next_tid: i32,
    /// The in-memory tree mounted at /tmp.
    pub tmpfs: Apart<TmpFs>,
    /// Pipes.
    pub pipes: Apart<Pipes>,
    /// Event counters, timers that are read, epoll instances, sockets.
    pub objects: Apart<Objects>,
    /// File locks.
    pub locks: Apart<Locks>,
    /// Leases on files.
    pub leases: Apart<Leases>,
    /// Who gets a signal when something happens to a file.
    pub async_io: Apart<AsyncIo>,
    /// Shared memory segments, semaphores, message queues.
    pub ipc: Apart<Ipc>,
    /// Run queue and parked threads.
    pub sched: Sched,
    /// Wakes that wait for the end of what makes them; none between two calls.
    pub held_wakes: HeldWakes,
    /// Interval timers, POSIX timers, sleeps on CPU clocks.
    pub timers: Apart<Timers>,
    /// The caller's credentials: those of our init, and of the first thread at its begin.
    pub caller: Arc<Creds>,
    /// Messages to and from the host.
    pub channel: Channel,
    /// The host's call of one of the program's functions.
    pub call: HostCall,
    /// Processes that are about to end: none of their threads runs again. Each ends in a step of its own.
    pub doomed: Vector<Doomed>,
    /// Set if the first process has no program, and the host acts for it.
    pub holder: Option<Holder>,
    /// Set when the program has ended.
    pub end: Option<End>,
}

/// The one that would continue the program's first process group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outside {
    /// A shell of the caller's, or whoever runs the sandbox: our init counts as it.
    Shell,
    /// Nobody: the caller's own job is orphaned.
    Nobody,
}

/// A sandbox that the host starts commands in (a box). Its first process, the holder, has one thread that never
/// runs. The host makes calls for it, and the commands are its children.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Holder {
    /// Commands of which the memory limit has ended a process ([`Process::command`]), until the host has asked.
    pub out_of_memory: OrdSet<u64>,
}

/// A process that is about to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Doomed {
    /// The process.
    pub pid: Pid,
    /// The thread that ends it.
    pub tid: Tid,
    /// The way that it ends.
    pub status: ExitStatus,
    /// The signal that ends it, if it is one that no thread has taken yet.
    pub signal: Option<SigInfo>,
}

/// The things that new kernels differ in.
#[derive(Debug)]
pub struct NewKernel {
    /// Working directory of the first process.
    pub cwd: Cwd,
    /// The caller's credentials.
    pub caller: Arc<Creds>,
    /// The in-memory tree.
    pub tmpfs: TmpFs,
    /// Processes at most.
    pub processes_max: usize,
    /// Descriptors that each may have at most.
    pub files_max: u64,
    /// [`Process::started_ns`] of the first process.
    pub started_ns: u64,
}

impl Kernel {
    /// A kernel with one process of one thread, ready to run. It has no program yet, and no file is open.
    #[must_use]
    pub fn new(new: NewKernel) -> Self {
        let mut sched = Sched::default();
        sched.make_ready(Tid::FIRST);
        let mut first = Process {
            started_ns: new.started_ns,
            ..Process::new(Pid::FIRST, MmId::FIRST)
        };
        first.rlimits.limit_files(new.files_max);
        let (mut fd_tables, mut fs) = (Shared::default(), Shared::default());
        let share = Share {
            files: fd_tables.add(FdTable::default(), 0),
            fs: fs.add(Fs::new(new.cwd), 0),
        };
        Self {
            processes: ById::unit(Pid::FIRST, first),
            zombies: OrdMap::new(),
            main: Pid::FIRST,
            foreground: Pid::FIRST,
            outside: Outside::Shell,
            ptys: Apart::default(),
            cpu_time_ns: 0,
            heeded: 0,
            mms: ById::unit(MmId::FIRST, Mm::default()),
            threads: ById::unit(
                Tid::FIRST,
                Thread::new((Pid::FIRST, Tid::FIRST), share, Arc::clone(&new.caller)),
            ),
            fd_tables,
            fs,
            files: OrdMap::new(),
            next_mm: MmId::FIRST.0.saturating_add(1),
            next_file: 1,
            next_birth: 1,
            next_tid: Tid::FIRST.0.saturating_add(1),
            tmpfs: new.tmpfs.into(),
            processes_max: new.processes_max,
            pipes: Apart::default(),
            objects: Apart::default(),
            locks: Apart::default(),
            leases: Apart::default(),
            async_io: Apart::default(),
            ipc: Apart::default(),
            sched,
            held_wakes: HeldWakes::default(),
            timers: Apart::default(),
            caller: new.caller,
            channel: Channel::default(),
            call: HostCall::default(),
            doomed: Vector::new(),
            holder: None,
            end: None,
        }
    }

    /// The relations of every process that has not been waited for.
    pub fn kin(&self) -> impl Iterator<Item = Kin> {
        let live = self.processes.values().map(|one| Kin {
            pid: one.pid,
            ppid: one.ppid,
            pgid: one.pgid,
            sid: one.sid,
            has_execed: one.has_execed,
        });
        let dead = self.zombies.values().map(|one| Kin {
            pid: one.pid,
            ppid: one.ppid,
            pgid: one.pgid,
            sid: one.sid,
            has_execed: one.has_execed,
        });
        live.chain(dead)
    }

    /// The process that the id of one of its threads names, ended or not (find_task_by_vpid in kernel/pid.c). Our init
    /// is one of them.
    #[must_use]
    pub fn kin_of(&self, id: i32) -> Option<Kin> {
        if id == Pid::INIT.0 {
            return Some(Kin::INIT);
        }
        let thread = self.threads.get(&Tid(id));
        let pid = thread.map_or(Pid(id), |thread| thread.pid);
        self.kin().find(|one| one.pid == pid)
    }

    /// A process's first thread, or the next one if that has ended.
    fn first_thread(&self, pid: Pid) -> Option<&Thread> {
        let first = self.threads.get(&Tid(pid.0));
        let of_process = |thread: &&Thread| thread.pid == pid;
        first.or_else(|| self.threads.values().find(of_process))
    }

    /// The tables of a process's first thread, or of the next one if that has ended.
    #[must_use]
    pub fn share_of(&self, pid: Pid) -> Option<Share> {
        self.first_thread(pid).map(|thread| thread.share)
    }

    /// The credentials of a process, as [`Kernel::share_of`]; of one that has ended, those that it had. Our init has
    /// the caller's.
    #[must_use]
    pub fn creds_of(&self, pid: Pid) -> &Arc<Creds> {
        if let Some(thread) = self.first_thread(pid) {
            return &thread.creds;
        }
        let zombie = self.zombies.get(&pid);
        zombie.map_or(&self.caller, |zombie| &zombie.creds)
    }

    /// The descriptors of a process, as [`Kernel::share_of`].
    #[must_use]
    pub fn fds_of(&self, pid: Pid) -> Option<&FdTable> {
        self.fd_tables.get(self.share_of(pid)?.files)
    }

    /// The same, to be changed.
    pub fn fds_of_mut(&mut self, pid: Pid) -> Option<&mut FdTable> {
        let files = self.share_of(pid)?.files;
        self.fd_tables.get_mut(files)
    }

    /// The working directory of a process, as [`Kernel::share_of`].
    #[must_use]
    pub fn fs_of(&self, pid: Pid) -> Option<&Fs> {
        self.fs.get(self.share_of(pid)?.fs)
    }

    /// The address space of a process.
    #[must_use]
    pub fn mm(&self, pid: Pid) -> Option<&Mm> {
        self.mms.get(&self.processes.get(&pid)?.mm)
    }

    /// The address space of a process, to be changed.
    pub fn mm_mut(&mut self, pid: Pid) -> Option<&mut Mm> {
        self.mms.get_mut(&self.processes.get(&pid)?.mm)
    }
}

/// A working directory and a mask (struct fs_struct).
#[derive(Clone, Debug)]
pub struct Fs {
    /// Working directory.
    pub cwd: Cwd,
    /// File mode creation mask.
    pub umask: u32,
}

impl Fs {
    /// A directory with the usual mask.
    #[must_use]
    pub fn new(cwd: Cwd) -> Self {
        Self { cwd, umask: 0o022 }
    }
}

/// The things that a thread has together with others, mostly with those of its process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share {
    /// Descriptor table (CLONE_FILES).
    pub files: FilesId,
    /// Working directory and mask (CLONE_FS).
    pub fs: FsId,
}

/// The way that the program ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// exit_group(2) with this status (low 8 bits).
    Exited(u8),
    /// Killed by this signal.
    Signal(u8),
    /// The memory limit was reached.
    Memory,
    /// The limit on captured output was reached.
    Output,
}

/// Host memory charged to the program for a process, without its texts: more than one takes.
const PROCESS_COST_BYTES: u64 = 48 << 10;

/// One process: what its threads share.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its id (the id of its first thread).
    pub pid: Pid,
    /// The number of processes before it: it tells the process from others that have had its id.
    pub birth: u64,
    /// Time since the system's start when it began (CLOCK_BOOTTIME), in nanoseconds.
    pub started_ns: u64,
    /// Parent's id.
    pub ppid: Pid,
    /// The command of the holder's that it descends from, whatever its parent and its session are by now: the
    /// [`Process::birth`] of the command's first process. 0 for none.
    pub command: u64,
    /// Process group.
    pub pgid: Pid,
    /// Session.
    pub sid: Pid,
    /// Controlling terminal.
    pub ctty: Option<Ctty>,
    /// The foreground process group of the controlling terminal that a session leader had before it was hung up.
    pub former_foreground: Option<Pid>,
    /// The signal that its end sends to its parent; a number that is no signal sends none (clone(2)).
    pub exit_signal: u8,
    /// The thread that waits for its end or its execve(2) (vfork(2)).
    pub vfork: Option<Tid>,
    /// True once it has called execve(2).
    pub has_execed: bool,
    /// PR_SET_CHILD_SUBREAPER: descendants that lose their parent become its children.
    pub is_subreaper: bool,
    /// PR_SET_PDEATHSIG: the signal that it gets when its parent ends; 0 for none.
    pub death_signal: u8,
    /// Stopped or running, for its parent and the scheduler.
    pub job: Job,
    /// CPU time of children that it has waited for, and of theirs, in nanoseconds.
    pub children_cpu_ns: u64,
    /// Its address space.
    pub mm: MmId,
    /// Signal dispositions and process-directed pending signals.
    pub signals: SigState,
    /// Absolute guest path of the executable (/proc/self/exe).
    pub exe: Arc<[u8]>,
    /// Argument vector as passed to execve (/proc/self/cmdline), NUL-separated.
    pub cmdline: Arc<[u8]>,
    /// Environment as passed to execve (/proc/self/environ), NUL-separated.
    pub environ: Arc<[u8]>,
    /// Auxiliary vector as on the first stack (/proc/self/auxv).
    pub auxv: Arc<[u8]>,
    /// PR_SET_DUMPABLE (prctl(2)).
    pub dumpable: bool,
    /// CPU time of its threads, ended ones included, in nanoseconds.
    pub cpu_time_ns: u64,
    /// The bytes that ended threads of its and children that it has waited for have moved.
    pub io: Io,
    /// The memory that it had at most in earlier address spaces, in bytes.
    pub former_peak_bytes: u64,
    /// The most that one of the children that it has waited for had, or one of theirs.
    pub children_peak_bytes: u64,
    /// Resource limits (prlimit(2)).
    pub rlimits: Rlimits,
    /// Host memory that is charged to the program for it, in bytes.
    pub charged_bytes: u64,
}

impl Process {
    /// A process without a parent or a program.
    #[must_use]
    pub fn new(pid: Pid, mm: MmId) -> Self {
        let none: Arc<[u8]> = Arc::default();
        Self {
            pid,
            birth: 0,
            started_ns: 0,
            ppid: Pid::INIT,
            command: 0,
            pgid: pid,
            sid: pid,
            ctty: None,
            former_foreground: None,
            exit_signal: SIGCHLD,
            vfork: None,
            has_execed: false,
            is_subreaper: false,
            death_signal: 0,
            job: Job::Running,
            children_cpu_ns: 0,
            mm,
            signals: SigState::default(),
            exe: Arc::clone(&none),
            cmdline: Arc::clone(&none),
            environ: Arc::clone(&none),
            auxv: none,
            dumpable: true,
            cpu_time_ns: 0,
            io: Io::default(),
            former_peak_bytes: 0,
            children_peak_bytes: 0,
            rlimits: Rlimits::initial(),
            charged_bytes: 0,
        }
    }

    /// Host memory that is charged to the program for it, in bytes. It covers as many descriptors as it may
    /// have, a thread, and the texts of /proc.
    #[must_use]
    pub fn cost_bytes(&self) -> u64 {
        let texts = [&self.cmdline, &self.environ, &self.auxv];
        let texts: usize = texts.iter().map(|text| text.len()).sum();
        PROCESS_COST_BYTES.saturating_add(texts as u64)
    }
}

/// Stops and continuations of a process, with what wait(2) has still to report of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Job {
    /// Its threads may run.
    Running,
    /// None of its threads runs before SIGCONT.
    Stopped {
        /// The signal that stopped it.
        signo: u8,
        /// True once its parent has been told by wait(2).
        is_told: bool,
    },
    /// SIGCONT has continued it, and its parent has not been told by wait(2).
    Continued,
}

/// The end of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitStatus {
    /// exit_group(2) with this status (low 8 bits), or the end of its last thread.
    Exited(u8),
    /// Killed by this signal.
    Signal(u8),
}

impl ExitStatus {
    /// The status word of wait(2).
    #[must_use]
    pub fn wait_word(self) -> u32 {
        match self {
            Self::Exited(status) => u32::from(status) << 8,
            Self::Signal(signo) => u32::from(signo),
        }
    }

    /// si_code and si_status of SIGCHLD (sigaction(2)).
    #[must_use]
    pub fn child_code(self) -> (i32, u8) {
        match self {
            Self::Exited(status) => (CLD_EXITED, status),
            Self::Signal(signo) => (CLD_KILLED, signo),
        }
    }
}

impl From<ExitStatus> for End {
    fn from(status: ExitStatus) -> Self {
        match status {
            ExitStatus::Exited(status) => Self::Exited(status),
            ExitStatus::Signal(signo) => Self::Signal(signo),
        }
    }
}

/// A process, told from others that have had its id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProcessRef {
    /// Its id.
    pub pid: Pid,
    /// [`Process::birth`].
    pub birth: u64,
}

/// The rest of a process that has ended, for its parent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Zombie {
    /// Its id.
    pub pid: Pid,
    /// [`Process::birth`].
    pub birth: u64,
    /// [`Process::started_ns`]
    pub started_ns: u64,
    /// Parent's id.
    pub ppid: Pid,
    /// Process group.
    pub pgid: Pid,
    /// Session.
    pub sid: Pid,
    /// True if it has called execve(2).
    pub has_execed: bool,
    /// The signal that its end has sent; a number that is no signal has sent none.
    pub exit_signal: u8,
    /// The way that it ended.
    pub status: ExitStatus,
    /// CPU time of its threads, in nanoseconds.
    pub cpu_time_ns: u64,
    /// That of children that it has waited for, and of theirs.
    pub children_cpu_ns: u64,
    /// The bytes that it has moved, and they.
    pub io: Io,
    /// The memory that it had at most, or one of them, in bytes.
    pub peak_bytes: u64,
    /// Name of its last thread.
    pub comm: [u8; 16],
    /// Credentials of its last thread.
    pub creds: Arc<Creds>,
}

/// The relations of a process, ended or not: a group and a session last as long as one of their members is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kin {
    /// Its id.
    pub pid: Pid,
    /// Parent's id.
    pub ppid: Pid,
    /// Process group.
    pub pgid: Pid,
    /// Session.
    pub sid: Pid,
    /// True once it has called execve(2).
    pub has_execed: bool,
}

impl Kin {
    /// Those of our init.
    pub const INIT: Self = Self {
        pid: Pid::INIT,
        ppid: Pid(0),
        pgid: Pid::INIT,
        sid: Pid::INIT,
        has_execed: true,
    };
}

/// One thread.
#[derive(Clone, Debug)]
pub struct Thread {
    /// Its id.
    pub tid: Tid,
    /// The process it belongs to.
    pub pid: Pid,
    /// Its descriptors and its directory.
    pub share: Share,
    /// Its users, groups and capabilities. Threads of a process may have different ones (setuid(2), "C library/kernel
    /// differences").
    pub creds: Arc<Creds>,
    /// User-mode registers, valid whenever the thread is not on a vCPU.
    pub regs: UserRegs,
    /// x87, SSE, AVX... state.
    pub xstate: XState,
    /// Signal mask, alternate stack, thread-directed pending signals.
    pub signals: ThreadSignals,
    /// set_tid_address(2) / CLONE_CHILD_CLEARTID: cleared and woken at exit; 0 for none.
    pub clear_child_tid: u64,
    /// set_robust_list(2) head; 0 for none.
    pub robust_list: u64,
    /// Thread name (PR_SET_NAME), NUL-padded.
    pub comm: [u8; 16],
    /// A call that a signal has just ended, until the signal is delivered.
    pub interrupted: Option<Interrupted>,
    /// CPU time used, in nanoseconds (measured around guest entries).
    pub cpu_time_ns: u64,
    /// The bytes that its calls have moved.
    pub io: Io,
    /// set_mempolicy(2)
    pub memory_policy: MemoryPolicy,
    /// ioprio_set(2); 0 for none.
    pub io_priority: u32,
    /// setpriority(2): from -20 to 19. There is one CPU for one thread at a time, so it changes nothing.
    pub nice: i8,
}

/// A thread's memory policy (set_mempolicy(2)). There is one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemoryPolicy {
    /// MPOL_*, with its flags.
    pub mode: u32,
    /// True if it names the node.
    pub has_nodes: bool,
}

impl Thread {
    /// A thread that has not run: no registers, no name, nothing blocked or pending.
    #[must_use]
    pub fn new((pid, tid): (Pid, Tid), share: Share, creds: Arc<Creds>) -> Self {
        Self {
            tid,
            pid,
            share,
            creds,
            regs: UserRegs::default(),
            xstate: XState::Initial,
            signals: ThreadSignals::default(),
            clear_child_tid: 0,
            robust_list: 0,
            comm: [0; 16],
            interrupted: None,
            cpu_time_ns: 0,
            io: Io::default(),
            memory_policy: MemoryPolicy::default(),
            io_priority: 0,
            nice: 0,
        }
    }
}

/// The place of a thread's extended state.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum XState {
    /// As after reset (SDM vol. 1, 13.6).
    #[default]
    Initial,
    /// In this XSAVE image, standard format.
    Saved(Arc<[u8]>),
    /// In the vCPU's registers. Never so in a frozen kernel.
    Live,
}
