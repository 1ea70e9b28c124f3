//! Signals: dispositions, masks, pending sets, and what delivery does (signal(7)).

use std::collections::BTreeMap;

use imbl::{OrdMap, Vector};
pub use kvmlet_abi::linux::signal::{
    self as signo, _NSIG as NSIG, SI_KERNEL, SI_TIMER, SI_TKILL, SI_USER, SIG_DFL, SIG_IGN,
    SIGRTMIN,
};
use kvmlet_abi::linux::{Sigaction, StackT};
use kvmlet_abi::{Errno, Gva};

use crate::cx::Cx;
use crate::kernel::{Doomed, End, ExitStatus, Kernel, Pid, Process, Thread, Tid};
use crate::outcome::{CallState, Resume, Wait, WaitOn};
use crate::rlimit::Resource;
use crate::sched::{AfterHandler, Call, Parked};
use crate::task;
use crate::timer::Timeline;

use signo::{
    SIGABRT, SIGBUS, SIGCHLD, SIGCONT, SIGFPE, SIGILL, SIGKILL, SIGQUIT, SIGSEGV, SIGSTOP, SIGSYS,
    SIGTRAP, SIGURG, SIGWINCH, SIGXCPU, SIGXFSZ,
};

/// Signals that no mask, handler or SIG_IGN touches.
pub const UNBLOCKABLE: u64 = bit(SIGKILL) | bit(SIGSTOP);

/// Number of rt_sigtimedwait(2).
const RT_SIGTIMEDWAIT: u64 = 128;

/// Signals taken before any other: a machine fault's are about the instruction at `rip`
/// (SYNCHRONOUS_MASK in kernel/signal.c).
const SYNCHRONOUS: u64 =
    bit(SIGSEGV) | bit(SIGBUS) | bit(SIGILL) | bit(SIGTRAP) | bit(SIGFPE) | bit(SIGSYS);

/// Signals that end a process with a core dump: the thread that takes one writes it, so they wait for that thread
/// (SIG_KERNEL_COREDUMP_MASK in include/linux/signal.h).
const DUMPS: u64 = bit(SIGQUIT)
    | bit(SIGILL)
    | bit(SIGTRAP)
    | bit(SIGABRT)
    | bit(SIGFPE)
    | bit(SIGSEGV)
    | bit(SIGBUS)
    | bit(SIGSYS)
    | bit(SIGXCPU)
    | bit(SIGXFSZ);

/// A signal's bit in a mask.
#[must_use]
pub const fn bit(signo: u8) -> u64 {
    if signo >= 1 && signo <= NSIG {
        1 << (signo - 1)
    } else {
        0
    }
}

/// The content of siginfo_t for the kinds we raise (sigaction(2)).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SigInfo {
    /// si_signo
    pub signo: u8,
    /// si_code
    pub code: i32,
    /// si_errno
    pub errno: i32,
    /// The fields that follow.
    pub detail: SigDetail,
    /// Page-fault error code and CR2 for the signal frame's sigcontext; trap number.
    pub trap: TrapInfo,
}

/// The union of siginfo_t.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SigDetail {
    /// Nothing more.
    #[default]
    None,
    /// si_addr
    Fault(u64),
    /// si_pid, si_uid, si_value
    Sender {
        /// si_pid
        pid: i32,
        /// si_uid
        uid: u32,
        /// si_value
        value: u64,
    },
    /// si_pid, si_uid, si_status, si_utime
    Child {
        /// si_pid
        pid: i32,
        /// si_uid
        uid: u32,
        /// si_status
        status: i32,
        /// si_utime, in ticks of 10 ms
        utime: u64,
    },
    /// si_band, si_fd
    Poll {
        /// si_band: events of poll(2)
        band: i16,
        /// si_fd
        fd: i32,
    },
    /// si_timerid, si_overrun, si_value
    Timer {
        /// si_timerid
        id: i32,
        /// si_overrun, known when the signal is taken
        overrun: i32,
        /// si_value
        value: u64,
    },
}

/// The sigcontext fields of a CPU exception.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TrapInfo {
    /// Vector
    pub trapno: u64,
    /// Error code
    pub err: u64,
    /// CR2
    pub cr2: u64,
}

/// Pending signals: standard ones once each, real-time ones and those of timers queued in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pending {
    /// Oldest first; no queue is empty.
    queues: OrdMap<u8, Vector<SigInfo>>,
    /// Bits of the keys of `queues`.
    set: u64,
    /// Queued signals that count against RLIMIT_SIGPENDING.
    counted: usize,
}

impl SigInfo {
    /// True if it counts against RLIMIT_SIGPENDING. A timer counts itself, as long as it exists.
    fn is_counted(&self) -> bool {
        !matches!(self.detail, SigDetail::Timer { .. })
    }

    /// True if it is queued however many of its number are pending.
    fn is_realtime(&self) -> bool {
        self.signo >= SIGRTMIN && self.is_counted()
    }
}

impl Pending {
    /// Adds a signal. A standard signal already pending is not added again, unless a timer sends it: every
    /// timer's signal is its own (send_sigqueue in kernel/signal.c), once.
    pub fn add(&mut self, info: SigInfo) {
        if !info.is_realtime()
            && let Some(queue) = self.queues.get(&info.signo)
        {
            let merged = match info.detail {
                SigDetail::Timer { id, .. } => queue.iter().any(|other| other.is_of_timer(id)),
                _ => true,
            };
            if merged {
                return;
            }
        }
        if info.is_counted() {
            self.counted = self.counted.saturating_add(1);
        }
        self.set |= bit(info.signo);
        self.queues.entry(info.signo).or_default().push_back(info);
    }

    /// Signals that count against RLIMIT_SIGPENDING.
    #[must_use]
    pub fn counted(&self) -> usize {
        self.counted
    }

    /// The pending set.
    #[must_use]
    pub fn set(&self) -> u64 {
        self.set
    }

    /// Takes a pending signal in `wanted`: a machine fault's first, then the lowest-numbered, oldest first.
    pub fn take(&mut self, wanted: u64) -> Option<SigInfo> {
        let ready = self.set & wanted;
        let first = if ready & SYNCHRONOUS == 0 {
            ready
        } else {
            ready & SYNCHRONOUS
        };
        let signo = u8::try_from(first.trailing_zeros()).ok()?.checked_add(1)?;
        let queue = self.queues.get_mut(&signo)?;
        let info = queue.pop_front()?;
        if queue.is_empty() {
            self.queues.remove(&signo);
            self.set &= !bit(signo);
        }
        if info.is_counted() {
            self.counted = self.counted.saturating_sub(1);
        }
        Some(info)
    }

    /// Drops the signals of a set wherever they are pending.
    pub fn discard(&mut self, set: u64) {
        self.retain(|info| set & bit(info.signo) == 0);
    }

    /// Drops the signal of a timer.
    pub fn discard_timer(&mut self, id: i32) {
        self.retain(|info| !info.is_of_timer(id));
    }

    /// Drops the signals of all timers (flush_itimer_signals in kernel/signal.c).
    pub fn discard_timers(&mut self) {
        self.retain(|info| !matches!(info.detail, SigDetail::Timer { .. }));
    }

    fn retain(&mut self, mut keep: impl FnMut(&SigInfo) -> bool) {
        let all = core::mem::take(self);
        for info in all.queues.into_iter().flat_map(|(_, queue)| queue) {
            if keep(&info) {
                self.add(info);
            }
        }
    }
}

impl SigInfo {
    fn is_of_timer(&self, timer: i32) -> bool {
        matches!(self.detail, SigDetail::Timer { id, .. } if id == timer)
    }
}

/// A process's dispositions and process-directed pending signals.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SigState {
    /// Dispositions that are not the default.
    pub actions: OrdMap<u8, Sigaction>,
    /// Process-directed pending signals.
    pub pending: Pending,
}

impl SigState {
    /// The disposition of a signal.
    #[must_use]
    pub fn action(&self, signo: u8) -> Sigaction {
        self.actions.get(&signo).copied().unwrap_or_default()
    }

    /// True if a signal now does nothing: SIG_IGN, or default action "ignore". What SIGCONT does beside its
    /// handler is done when it is sent.
    #[must_use]
    pub fn ignores(&self, signo: u8) -> bool {
        match self.action(signo).handler {
            SIG_IGN => signo != SIGKILL && signo != SIGSTOP,
            SIG_DFL => matches!(signo, SIGCHLD | SIGCONT | SIGURG | SIGWINCH),
            _ => false,
        }
    }
}

/// A thread's mask, alternate stack and pending signals.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ThreadSignals {
    /// Blocked signals.
    pub mask: u64,
    /// Mask to put back after the next delivery or the end of the call (rt_sigsuspend, ppoll).
    pub saved_mask: Option<u64>,
    /// Thread-directed pending signals.
    pub pending: Pending,
    /// Alternate stack; `ss_flags` keeps SS_AUTODISARM only, and SS_DISABLE when there is none.
    pub altstack: AltStack,
}

/// sigaltstack(2) state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AltStack(pub StackT);

impl Default for AltStack {
    fn default() -> Self {
        Self(StackT {
            ss_flags: 2,
            ..StackT::default()
        })
    }
}

/// The place that a sent signal goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// Into the queue.
    Queue,
    /// Nowhere: it is pending already, and the queue is full.
    None,
}

impl Kernel {
    /// True if a signal to a thread has no effect: it is ignored, and the thread does not block it.
    #[must_use]
    pub fn drops_for_thread(&self, tid: Tid, signo: u8) -> bool {
        self.threads
            .get(&tid)
            .is_none_or(|thread| !self.blocks(thread, signo) && self.ignores(thread.pid, signo))
    }

    /// True if a signal to a process has no effect: it is ignored, and not every thread blocks it.
    #[must_use]
    pub fn drops_for_process(&self, pid: Pid, signo: u8) -> bool {
        let mut members = self.threads.values().filter(|thread| thread.pid == pid);
        self.ignores(pid, signo) && members.any(|thread| !self.blocks(thread, signo))
    }

    fn ignores(&self, pid: Pid, signo: u8) -> bool {
        let process = self.processes.get(&pid);
        process.is_none_or(|process| process.signals.ignores(signo))
    }

    /// True if a thread blocks a signal, be it that rt_sigtimedwait(2) lets it through for now
    /// (real_blocked in kernel/signal.c).
    fn blocks(&self, thread: &Thread, signo: u8) -> bool {
        (thread.signals.mask | self.mask_behind_wait(thread.tid)) & bit(signo) != 0
    }

    /// The mask that a thread gets back from rt_sigtimedwait(2), be it that the call waits or that it is about to be
    /// made again.
    #[must_use]
    pub fn mask_behind_wait(&self, tid: Tid) -> u64 {
        let parked = self.sched.parked.get(&tid).map(|parked| &parked.wait);
        let again = self.sched.retries.get(&tid);
        let mask = match (parked, again) {
            (
                Some(Wait {
                    on: WaitOn::Signals(_),
                    resume: Resume::Retry(state),
                    ..
                }),
                _,
            ) => state.saved_mask,
            (_, Some((call, state))) if call.nr == RT_SIGTIMEDWAIT => state.saved_mask,
            _ => None,
        };
        mask.unwrap_or(0)
    }

    /// The thread that takes a signal to its process. The first one is preferred, as Linux prefers the
    /// main thread.
    fn taker(&self, pid: Pid, signo: u8) -> Option<Tid> {
        self.threads
            .values()
            .find(|thread| thread.pid == pid && thread.signals.mask & bit(signo) == 0)
            .map(|thread| thread.tid)
    }

    /// Queued signals and POSIX timers, which RLIMIT_SIGPENDING counts for all processes of a user together.
    #[must_use]
    pub fn queued_signals(&self) -> usize {
        let processes = self.processes.values();
        let shared: usize = processes
            .map(|process| process.signals.pending.counted())
            .sum();
        let threads = self.threads.values();
        let own: usize = threads.map(|thread| thread.signals.pending.counted()).sum();
        shared
            .saturating_add(own)
            .saturating_add(self.timers.posix_count())
    }

    /// True if RLIMIT_SIGPENDING of a process lets one more signal or timer be queued.
    #[must_use]
    pub fn may_queue_signal(&self, pid: Pid) -> bool {
        let limit = self.processes.get(&pid);
        let limit = limit.map_or(0, |process| process.rlimits.soft(Resource::Sigpending));
        (self.queued_signals() as u64) < limit
    }

    /// Says if there is room for a signal beside those that are `pending` already (send_signal_locked
    /// in kernel/signal.c). Standard signals always have some; so has the first of a number that kill(2)
    /// sends.
    fn place(&self, pid: Pid, pending: u64, info: &SigInfo) -> Result<Place, Errno> {
        if !info.is_realtime() || self.may_queue_signal(pid) {
            return Ok(Place::Queue);
        }
        match info.code {
            SI_USER if pending & bit(info.signo) != 0 => Ok(Place::None),
            SI_USER => Ok(Place::Queue),
            _ => Err(Errno::EAGAIN),
        }
    }

    /// Sends a signal to one thread (tgkill(2), synchronous faults that may be blocked).
    ///
    /// # Errors
    /// `ESRCH` for no such thread; `EAGAIN` when the queue is full.
    pub fn send_to_thread(&mut self, tid: Tid, info: SigInfo) -> Result<(), Errno> {
        let pid = self.threads.get(&tid).ok_or(Errno::ESRCH)?.pid;
        if self.is_holder(pid) {
            return Ok(());
        }
        self.prepare_job_signal(pid, info.signo);
        if self.drops_for_thread(tid, info.signo) || self.ends_at_once(&[tid], pid, info) {
            return Ok(());
        }
        let thread = self.threads.get(&tid).ok_or(Errno::ESRCH)?;
        if self.place(thread.pid, thread.signals.pending.set(), &info)? == Place::None {
            return Ok(());
        }
        let thread = self.threads.get_mut(&tid).ok_or(Errno::ESRCH)?;
        let blocked = thread.signals.mask & bit(info.signo) != 0;
        thread.signals.pending.add(info);
        self.signal_pending();
        if !blocked {
            self.interrupt(tid);
        }
        Ok(())
    }

    /// Sends a signal to a process (kill(2)): any thread that does not block it takes it.
    ///
    /// # Errors
    /// `ESRCH` for no such process; `EAGAIN` when the queue is full.
    pub fn send_to_process(&mut self, pid: Pid, info: SigInfo) -> Result<(), Errno> {
        if self.is_holder(pid) {
            return Ok(());
        }
        self.prepare_job_signal(pid, info.signo);
        if self.drops_for_process(pid, info.signo) && self.processes.contains_key(&pid) {
            return Ok(());
        }
        let threads: Vec<Tid> = self.threads_of(pid).collect();
        if self.ends_at_once(&threads, pid, info) {
            return Ok(());
        }
        let process = self.processes.get(&pid).ok_or(Errno::ESRCH)?;
        if self.place(pid, process.signals.pending.set(), &info)? == Place::None {
            return Ok(());
        }
        let process = self.processes.get_mut(&pid).ok_or(Errno::ESRCH)?;
        process.signals.pending.add(info);
        self.signal_pending();
        if let Some(tid) = self.taker(pid, info.signo) {
            self.interrupt(tid);
        }
        Ok(())
    }

    /// Ends a process by a signal that one of these threads could take now, wherever its threads are: vfork(2) holds
    /// them too. Says if it did. Its default action is to end the process (complete_signal in kernel/signal.c).
    fn ends_at_once(&mut self, threads: &[Tid], pid: Pid, info: SigInfo) -> bool {
        let Some(process) = self.processes.get(&pid) else {
            return false;
        };
        let (signo, kills) = (info.signo, info.signo == SIGKILL);
        let is_default = process.signals.action(signo).handler == SIG_DFL;
        let others = task::stop::STOPS | DUMPS;
        if !kills && (!is_default || process.signals.ignores(signo) || others & bit(signo) != 0) {
            return false;
        }
        let takes = |tid: &&Tid| {
            let thread = self.threads.get(*tid);
            let can = thread.is_some_and(|thread| !self.blocks(thread, signo));
            can && (kills || !self.is_stopped(**tid))
        };
        let Some(tid) = threads.iter().find(takes).copied() else {
            return false;
        };
        self.doomed.push_back(Doomed {
            pid,
            tid,
            status: ExitStatus::Signal(signo),
            signal: Some(info),
        });
        true
    }

    /// Ends a parked thread's wait because a signal is to be delivered. The call returns its partial
    /// count, or `EINTR` marked for restart by its row ([`Kernel::restart_of`]).
    pub fn interrupt(&mut self, tid: Tid) {
        if let Some(parked) = self.sched.parked.get(&tid)
            && matches!(parked.wait.on, WaitOn::Signals(_))
        {
            self.sched.retry(tid, false);
            return;
        }
        let is_held = |parked: &Parked| matches!(parked.wait.on, WaitOn::Vfork(_));
        if self.sched.parked.get(&tid).is_some_and(is_held) {
            return;
        }
        let Some(parked) = self.sched.unpark(tid) else {
            return;
        };
        let until = match parked.wait.on {
            WaitOn::CpuTime(timeline, at_ns) => Some((timeline, at_ns)),
            _ => parked.wait.deadline_ns.map(|at_ns| {
                let at_ns = i64::try_from(at_ns).unwrap_or(i64::MAX);
                (Timeline::Monotonic, at_ns)
            }),
        };
        let (state, remain_gva) = match parked.wait.resume {
            Resume::Retry(state) => (state, 0),
            Resume::Deliver { remain_gva, .. } => {
                let deadline_ns = until.map(|(_, at_ns)| u64::try_from(at_ns).unwrap_or(0));
                let state = CallState {
                    deadline_ns,
                    ..CallState::default()
                };
                (state, remain_gva)
            }
        };
        let result = match &state {
            state if state.progress > 0 => Ok(state.progress),
            // It is not at the futex any more that the call names.
            state if state.is_requeued => Err(Errno::EAGAIN),
            _ => Err(Errno::EINTR),
        };
        if result.is_ok() {
            self.count_io(tid, state.moves, result);
        }
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.regs.rax = crate::sched::rax_of(result);
            if let Some(mask) = state.saved_mask {
                thread.signals.saved_mask = Some(mask);
            }
            thread.interrupted = (result == Err(Errno::EINTR)).then_some(Interrupted {
                call: parked.call,
                state,
                after_handler: parked.interrupted,
                remain_gva,
                until,
            });
            self.sched.make_ready(tid);
        }
    }

    /// True if a signal has just ended a call of `tid`.
    #[must_use]
    pub fn is_interrupted(&self, tid: Tid) -> bool {
        let thread = self.threads.get(&tid);
        thread.is_some_and(|thread| thread.interrupted.is_some())
    }

    /// Makes a call that a signal has ended again, as if it had never been interrupted. Says if there was one.
    ///
    /// No handler runs for the signal, since another thread has taken it or it does nothing.
    pub fn resume_interrupted(&mut self, tid: Tid) -> bool {
        let Some(thread) = self.threads.get_mut(&tid) else {
            return false;
        };
        let Some(interrupted) = thread.interrupted.take() else {
            return false;
        };
        let mut state = interrupted.state;
        if let Some(mask) = thread.signals.saved_mask.take() {
            state.saved_mask = Some(mask);
        }
        self.sched.retries.insert(tid, (interrupted.call, state));
        true
    }

    /// The next signal that `tid` must take now, removed from the pending sets. `now_ns` is the guest's
    /// CLOCK_MONOTONIC.
    pub fn take_signal(&mut self, tid: Tid, now_ns: u64) -> Option<SigInfo> {
        let thread = self.threads.get(&tid)?;
        let pid = thread.pid;
        let process = self.processes.get(&pid);
        let shared = process.map_or(0, |process| self.shared_for(thread, process));
        let thread = self.threads.get_mut(&tid)?;
        let wanted = !thread.signals.mask | UNBLOCKABLE;
        let mut info = match thread.signals.pending.take(wanted) {
            Some(info) => info,
            None => {
                let process = self.processes.get_mut(&pid)?;
                process.signals.pending.take(shared)?
            }
        };
        self.acknowledge(pid, &mut info, now_ns);
        Some(info)
    }

    /// The process-directed pending signals that are for a thread: those it does not block, and no thread
    /// before it would take.
    fn shared_for(&self, thread: &Thread, process: &Process) -> u64 {
        let mut left = process.signals.pending.set() & (!thread.signals.mask | UNBLOCKABLE);
        if left == 0 {
            return 0;
        }
        for other in self
            .threads
            .values()
            .filter(|other| other.pid == process.pid)
        {
            if other.tid == thread.tid {
                break;
            }
            left &= other.signals.mask;
        }
        left
    }

    /// Wakes threads for process-directed signals that became theirs, since the thread they were for has
    /// blocked them or ended (retarget_shared_pending in kernel/signal.c).
    pub fn retarget_signals(&mut self) {
        let waiting = self.processes.values().filter_map(|process| {
            let set = process.signals.pending.set();
            (set != 0).then_some((process.pid, set))
        });
        let mut waiting = waiting.peekable();
        if waiting.peek().is_none() {
            return;
        }
        let mut waiting: BTreeMap<Pid, u64> = waiting.collect();
        let mut takers: Vec<Tid> = Vec::new();
        for thread in self.threads.values() {
            if let Some(left) = waiting.get_mut(&thread.pid)
                && *left & !thread.signals.mask != 0
            {
                *left &= thread.signals.mask;
                takers.push(thread.tid);
            }
        }
        for tid in takers {
            self.interrupt(tid);
        }
    }

    /// The next signal of a set that is pending for `tid` or its process, removed from there; the timer
    /// that sent it goes on.
    pub fn take_signal_of(&mut self, tid: Tid, wanted: u64, now_ns: u64) -> Option<SigInfo> {
        let thread = self.threads.get_mut(&tid)?;
        let pid = thread.pid;
        let mut info = match thread.signals.pending.take(wanted) {
            Some(info) => info,
            None => {
                let process = self.processes.get_mut(&pid)?;
                process.signals.pending.take(wanted)?
            }
        };
        self.acknowledge(pid, &mut info, now_ns);
        Some(info)
    }

    /// True if `tid` has a signal to take.
    #[must_use]
    pub fn has_signal(&self, tid: Tid) -> bool {
        let thread = self.threads.get(&tid);
        thread.is_some_and(|thread| {
            let process = self.processes.get(&thread.pid);
            process.is_some_and(|process| self.has_signal_of(thread, process))
        })
    }

    /// The same of a thread that is at hand with its process.
    #[must_use]
    pub fn has_signal_of(&self, thread: &Thread, process: &Process) -> bool {
        let wanted = !thread.signals.mask | UNBLOCKABLE;
        thread.signals.pending.set() & wanted != 0 || self.shared_for(thread, process) != 0
    }

    /// Ends the whole program as if by an uncaught signal.
    pub fn kill_all(&mut self, signo: u8) {
        if self.end.is_none() {
            self.end = Some(End::Signal(signo));
        }
    }
}

/// A call that a signal ended: what delivery needs to restart it or to report the time left.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interrupted {
    /// The call.
    pub call: Call,
    /// The state it goes on with if no handler runs. The deadline of a sleep on a CPU clock is on that clock.
    pub state: CallState,
    /// The effect of a handler on it.
    pub after_handler: AfterHandler,
    /// The address that nanosleep(2) reports the remaining time at; 0 for nowhere.
    pub remain_gva: u64,
    /// When its wait would have ended.
    pub until: Option<(Timeline, i64)>,
}

/// A signal to the calling thread, for what its call did (send_sig in kernel/signal.c): SIGPIPE, SIGXFSZ.
pub fn send_to_self(cx: &mut Cx<'_>, signo: u8) {
    let tid = cx.tid;
    let detail = SigDetail::Sender {
        pid: cx.process().map_or(0, |p| p.pid.0),
        uid: cx.creds().user.real,
        value: 0,
    };
    let info = SigInfo {
        signo,
        code: SI_USER,
        detail,
        ..SigInfo::default()
    };
    let _ = cx.kernel.send_to_thread(tid, info);
}

/// Replaces the calling thread's mask for the length of a call (ppoll, pselect6).
///
/// Returns the mask to keep in [`crate::outcome::CallState::saved_mask`], or nothing if `sigmask_gva` is 0.
///
/// # Errors
/// `EINVAL` for a wrong set size, `EFAULT`.
pub fn with_mask(cx: &mut Cx<'_>, sigmask_gva: Gva, size_bytes: u64) -> Result<Option<u64>, Errno> {
    if sigmask_gva.0 == 0 {
        return Ok(None);
    }
    if size_bytes != 8 {
        return Err(Errno::EINVAL);
    }
    let mask: u64 = cx.read_struct(sigmask_gva)?;
    let thread = cx.thread()?;
    let old = thread.signals.mask;
    thread.signals.mask = mask & !UNBLOCKABLE;
    Ok(Some(old))
}

/// Puts the mask back when a call that used [`with_mask`] ends by itself.
pub fn restore_mask(cx: &mut Cx<'_>, saved_mask: Option<u64>) {
    if let (Some(mask), Ok(thread)) = (saved_mask, cx.thread()) {
        thread.signals.mask = mask;
    }
}

/// Dispositions after execve(2): handlers become the default, ignored signals stay ignored.
///
/// # Errors
/// `ESRCH` if the process is gone.
pub fn reset_for_exec(cx: &mut Cx<'_>) -> Result<(), Errno> {
    let process = cx.process()?;
    process.signals.actions = process
        .signals
        .actions
        .iter()
        .filter(|(_, action)| action.handler == SIG_IGN)
        .map(|(signo, action)| {
            (
                *signo,
                Sigaction {
                    handler: action.handler,
                    ..Sigaction::default()
                },
            )
        })
        .collect();
    // Timers end with the program that set them; interval timers do not (execve(2)).
    process.signals.pending.discard_timers();
    let pid = process.pid;
    cx.kernel.delete_posix_timers(pid);
    let signals = &mut cx.thread()?.signals;
    signals.pending.discard_timers();
    signals.altstack = AltStack::default();
    Ok(())
}

#[cfg(test)]
mod tests;
