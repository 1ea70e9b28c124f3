//! Signals: dispositions, masks, pending sets, and what delivery does (signal(7)).

use imbl::{OrdMap, Vector};
use kvmlet_abi::Errno;
use kvmlet_abi::linux::{Sigaction, StackT};

use crate::cx::Cx;
use crate::kernel::{End, Kernel, Pid, Tid};
use crate::outcome::{Resume, WaitOn};

/// Highest signal number.
pub const NSIG: u8 = 64;
/// First real-time signal (kernel's SIGRTMIN).
pub const SIGRTMIN: u8 = 32;
/// Queued real-time signals per process at most (RLIMIT_SIGPENDING as reported).
pub const SIGPENDING_MAX: usize = 1024;

#[allow(missing_docs)]
pub mod signo {
    pub const SIGILL: u8 = 4;
    pub const SIGTRAP: u8 = 5;
    pub const SIGABRT: u8 = 6;
    pub const SIGBUS: u8 = 7;
    pub const SIGFPE: u8 = 8;
    pub const SIGKILL: u8 = 9;
    pub const SIGSEGV: u8 = 11;
    pub const SIGPIPE: u8 = 13;
    pub const SIGALRM: u8 = 14;
    pub const SIGCHLD: u8 = 17;
    pub const SIGCONT: u8 = 18;
    pub const SIGSTOP: u8 = 19;
    pub const SIGTSTP: u8 = 20;
    pub const SIGTTIN: u8 = 21;
    pub const SIGTTOU: u8 = 22;
    pub const SIGURG: u8 = 23;
    pub const SIGWINCH: u8 = 28;
}
use signo::{
    SIGALRM, SIGCHLD, SIGCONT, SIGKILL, SIGPIPE, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG,
    SIGWINCH,
};

/// SIG_DFL
pub const SIG_DFL: u64 = 0;
/// SIG_IGN
pub const SIG_IGN: u64 = 1;
/// si_code SI_USER
pub const SI_USER: i32 = 0;
/// si_code SI_KERNEL
pub const SI_KERNEL: i32 = 0x80;
/// si_code SI_TIMER
pub const SI_TKILL: i32 = -6;

/// Signals that no mask, handler or SIG_IGN touches.
pub const UNBLOCKABLE: u64 = bit(SIGKILL) | bit(SIGSTOP);

/// A signal's bit in a mask.
#[must_use]
pub const fn bit(signo: u8) -> u64 {
    if signo >= 1 && signo <= NSIG {
        1 << (signo - 1)
    } else {
        0
    }
}

/// What siginfo_t carries for the kinds we raise (sigaction(2)).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SigInfo {
    /// si_signo
    pub signo: u8,
    /// si_code
    pub code: i32,
    /// si_errno
    pub errno: i32,
    /// What follows.
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

/// Pending signals: standard ones once each, real-time ones queued in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pending {
    standard: OrdMap<u8, SigInfo>,
    realtime: Vector<SigInfo>,
}

impl Pending {
    /// Adds a signal. A standard signal already pending is not added again.
    ///
    /// # Errors
    /// `EAGAIN` when too many real-time signals are queued (sigqueue(3)).
    pub fn add(&mut self, info: SigInfo) -> Result<(), Errno> {
        if info.signo >= SIGRTMIN {
            if self.realtime.len() >= SIGPENDING_MAX {
                return Err(Errno::EAGAIN);
            }
            self.realtime.push_back(info);
        } else {
            self.standard.entry(info.signo).or_insert(info);
        }
        Ok(())
    }

    /// The pending set.
    #[must_use]
    pub fn set(&self) -> u64 {
        self.standard
            .keys()
            .copied()
            .chain(self.realtime.iter().map(|info| info.signo))
            .fold(0, |set, signo| set | bit(signo))
    }

    /// Takes the lowest-numbered pending signal in `wanted`, oldest first.
    pub fn take(&mut self, wanted: u64) -> Option<SigInfo> {
        let standard = self
            .standard
            .keys()
            .copied()
            .find(|signo| wanted & bit(*signo) != 0);
        if let Some(signo) = standard {
            return self.standard.remove(&signo);
        }
        let lowest = self
            .realtime
            .iter()
            .map(|info| info.signo)
            .filter(|signo| wanted & bit(*signo) != 0)
            .min()?;
        let index = self.realtime.iter().position(|info| info.signo == lowest)?;
        Some(self.realtime.remove(index))
    }

    /// Drops a signal wherever it is pending.
    pub fn discard(&mut self, set: u64) {
        let dropped: Vec<u8> = self
            .standard
            .keys()
            .copied()
            .filter(|signo| set & bit(*signo) != 0)
            .collect();
        for signo in dropped {
            self.standard.remove(&signo);
        }
        self.realtime.retain(|info| set & bit(info.signo) == 0);
    }
}

/// A process's dispositions and process-directed pending signals.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SigState {
    /// Dispositions that are not the default.
    pub actions: OrdMap<u8, Sigaction>,
    /// Process-directed pending signals.
    pub pending: Pending,
    /// ITIMER_REAL: absolute guest monotonic nanoseconds and interval; `None` when disarmed.
    pub real_timer: Option<(u64, u64)>,
}

impl SigState {
    /// The disposition of a signal.
    #[must_use]
    pub fn action(&self, signo: u8) -> Sigaction {
        self.actions.get(&signo).copied().unwrap_or_default()
    }

    /// Whether a signal now does nothing: SIG_IGN, or default action "ignore" or "continue".
    /// Linux differs: the stop signals are ignored too, since a sandbox has no one to continue it.
    #[must_use]
    pub fn ignores(&self, signo: u8) -> bool {
        match self.action(signo).handler {
            SIG_IGN => signo != SIGKILL && signo != SIGSTOP,
            SIG_DFL => matches!(
                signo,
                SIGCHLD | SIGCONT | SIGURG | SIGWINCH | SIGSTOP | SIGTSTP | SIGTTIN | SIGTTOU
            ),
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

impl Kernel {
    /// Sends a signal to one thread (tgkill(2), synchronous faults that may be blocked).
    ///
    /// # Errors
    /// `ESRCH` for no such thread; `EAGAIN` when the queue is full.
    pub fn send_to_thread(&mut self, tid: Tid, info: SigInfo) -> Result<(), Errno> {
        let pid = self.threads.get(&tid).ok_or(Errno::ESRCH)?.pid;
        let process = self.processes.get(&pid).ok_or(Errno::ESRCH)?;
        let thread = self.threads.get_mut(&tid).ok_or(Errno::ESRCH)?;
        let blocked = thread.signals.mask & bit(info.signo) != 0;
        if process.signals.ignores(info.signo) && !blocked {
            return Ok(());
        }
        thread.signals.pending.add(info)?;
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
        let process = self.processes.get_mut(&pid).ok_or(Errno::ESRCH)?;
        let mut members = self
            .threads
            .values()
            .filter(|thread| thread.pid == pid)
            .peekable();
        let all_block = members.all(|thread| thread.signals.mask & bit(info.signo) != 0);
        if process.signals.ignores(info.signo) && !all_block {
            return Ok(());
        }
        process.signals.pending.add(info)?;
        // The first thread is preferred, as Linux prefers the main thread.
        let taker = self
            .threads
            .values()
            .find(|thread| thread.pid == pid && thread.signals.mask & bit(info.signo) == 0)
            .map(|thread| thread.tid);
        if let Some(tid) = taker {
            self.interrupt(tid);
        }
        Ok(())
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
        let Some(parked) = self.sched.unpark(tid) else {
            return;
        };
        let mut result = Err(Errno::EINTR);
        let mut saved_mask = None;
        if let Resume::Retry(state) = &parked.wait.resume {
            if state.progress > 0 {
                result = Ok(state.progress);
            }
            saved_mask = state.saved_mask;
        }
        let remain = match parked.wait.resume {
            Resume::Deliver { remain_gva, .. } => remain_gva,
            Resume::Retry(_) => 0,
        };
        let restart =
            result.is_err() && crate::syscalls::table::restarts(&parked.call, &parked.wait);
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.regs.rax = crate::sched::rax_of(result);
            if let Some(mask) = saved_mask {
                thread.signals.saved_mask = Some(mask);
            }
            thread.interrupted = Some(Interrupted {
                nr: parked.call.nr,
                restart,
                remain_gva: remain,
                deadline_ns: parked.wait.deadline_ns,
            });
            self.sched.make_ready(tid);
        }
    }

    /// The next signal that `tid` must take now, removed from the pending sets.
    pub fn take_signal(&mut self, tid: Tid) -> Option<SigInfo> {
        let thread = self.threads.get_mut(&tid)?;
        let wanted = !thread.signals.mask | UNBLOCKABLE;
        if let Some(info) = thread.signals.pending.take(wanted) {
            return Some(info);
        }
        self.processes
            .get_mut(&thread.pid)?
            .signals
            .pending
            .take(wanted)
    }

    /// Whether `tid` has a signal to take.
    #[must_use]
    pub fn has_signal(&self, tid: Tid) -> bool {
        let Some(thread) = self.threads.get(&tid) else {
            return false;
        };
        let wanted = !thread.signals.mask | UNBLOCKABLE;
        let process = self
            .processes
            .get(&thread.pid)
            .map_or(0, |process| process.signals.pending.set());
        (thread.signals.pending.set() | process) & wanted != 0
    }

    /// Raises SIGALRM for processes whose ITIMER_REAL has expired.
    pub fn fire_real_timers(&mut self, now_ns: u64) {
        let due: Vec<Pid> = self
            .processes
            .values()
            .filter(|process| {
                process
                    .signals
                    .real_timer
                    .is_some_and(|(at, _)| at <= now_ns)
            })
            .map(|process| process.pid)
            .collect();
        for pid in due {
            if let Some(process) = self.processes.get_mut(&pid) {
                process.signals.real_timer = match process.signals.real_timer {
                    Some((at, interval)) if interval > 0 => {
                        let missed = now_ns.saturating_sub(at) / interval;
                        Some((
                            at.saturating_add(interval.saturating_mul(missed.saturating_add(1))),
                            interval,
                        ))
                    }
                    _ => None,
                };
            }
            let info = SigInfo {
                signo: SIGALRM,
                code: SI_KERNEL,
                ..SigInfo::default()
            };
            let _ = self.send_to_process(pid, info);
        }
    }

    /// The earliest ITIMER_REAL expiry, guest monotonic nanoseconds.
    #[must_use]
    pub fn next_real_timer_ns(&self) -> Option<u64> {
        self.processes
            .values()
            .filter_map(|process| process.signals.real_timer.map(|(at, _)| at))
            .min()
    }

    /// Ends the whole program as if by an uncaught signal.
    pub fn kill_all(&mut self, signo: u8) {
        if self.end.is_none() {
            self.end = Some(End::Signal(signo));
        }
    }
}

/// A call that a signal ended: what delivery needs to restart it or to report the time left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interrupted {
    /// Its number, to be put back into `rax`.
    pub nr: u64,
    /// Whether a handler with SA_RESTART makes it start again.
    pub restart: bool,
    /// Where nanosleep(2) reports the remaining time; 0 for nowhere.
    pub remain_gva: u64,
    /// The deadline it had.
    pub deadline_ns: Option<u64>,
}

/// SIGPIPE to the calling thread, for a write to a pipe without readers.
pub fn send_sigpipe(cx: &mut Cx<'_>) {
    let tid = cx.tid;
    let detail = SigDetail::Sender {
        pid: cx.process().map_or(0, |p| p.pid.0),
        uid: cx.kernel.ids.uid,
        value: 0,
    };
    let info = SigInfo {
        signo: SIGPIPE,
        code: SI_USER,
        detail,
        ..SigInfo::default()
    };
    let _ = cx.kernel.send_to_thread(tid, info);
}

/// Replaces the calling thread's mask for the length of a call (ppoll, pselect6): returns the mask to
/// keep in [`crate::outcome::CallState::saved_mask`], or nothing if `sigmask_gva` is 0.
///
/// # Errors
/// `EINVAL` for a wrong set size, `EFAULT`.
pub fn with_mask(cx: &mut Cx<'_>, sigmask_gva: u64, size_bytes: u64) -> Result<Option<u64>, Errno> {
    if sigmask_gva == 0 {
        return Ok(None);
    }
    if size_bytes != 8 {
        return Err(Errno::EINVAL);
    }
    let mask: u64 = cx.read_struct(kvmlet_abi::Gva(sigmask_gva))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn info(signo: u8, code: i32) -> SigInfo {
        SigInfo {
            signo,
            code,
            ..SigInfo::default()
        }
    }

    #[test]
    fn standard_signals_merge_and_realtime_signals_queue() {
        let mut pending = Pending::default();
        pending.add(info(10, 1)).unwrap();
        pending.add(info(10, 2)).unwrap();
        pending.add(info(40, 1)).unwrap();
        pending.add(info(34, 1)).unwrap();
        pending.add(info(40, 2)).unwrap();
        let order: Vec<(u8, i32)> = std::iter::from_fn(|| pending.take(u64::MAX))
            .map(|i| (i.signo, i.code))
            .collect();
        assert_eq!(order, [(10, 1), (34, 1), (40, 1), (40, 2)]);
    }

    #[test]
    fn queue_is_bounded() {
        let mut pending = Pending::default();
        for _ in 0..SIGPENDING_MAX {
            pending.add(info(40, 0)).unwrap();
        }
        assert_eq!(pending.add(info(40, 0)), Err(Errno::EAGAIN));
    }
}
