//! One call: charged, made, finished. How it came (by an exit, or from a thread that waits inside the
//! guest) decides only when its outcome can be applied.

use kvmlet_abi::{Gva, Trap};
use kvmlet_stub::trampoline::Stopped;

use super::{Cpu, Personality};
use crate::kernel::Tid;
use crate::mm;
use crate::net::outside;
use crate::outcome::{CallState, Outcome, Resume, SysResult, Turn};
use crate::sched::{Call, rax_of};
use crate::syscalls::table::{self, Needs};
use crate::trace;
use crate::vfs::notify;

/// #DB (SDM vol. 3A, 6.15).
const DEBUG_VECTOR: u8 = 1;

/// A call that has been made, with what is still to be done for it.
#[derive(Debug)]
pub struct Made {
    call: Call,
    outcome: Outcome,
    /// Where the call returns to, if its place is to be given a jump.
    jump: Option<Gva>,
}

impl Made {
    /// True if only its result is left. A thread that does not ask for it any more loses nothing else.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self.outcome, Outcome::Done(_))
    }
}

impl Personality {
    /// The chosen thread has left ring 3 and has not been charged for `spent_ns` of CPU time. Its registers
    /// are in its [`Thread`] value. `trap` says why it left, unless that has been answered meanwhile.
    ///
    /// [`Thread`]: crate::kernel::Thread
    pub fn handle(&mut self, tid: Tid, trap: Option<Trap>, spent_ns: u64, cpu: &mut dyn Cpu) {
        let thread = self.kernel.threads.get(&tid);
        if trap == Some(Trap::Syscall)
            && let Some(thread) = thread
        {
            let call = Call {
                nr: thread.regs.rax,
                args: thread.regs.syscall_args(),
            };
            self.bring_registers(tid, call.nr, cpu);
            if let Err(made) = self.make(tid, call, None, spent_ns, |_| false) {
                self.finish(tid, made);
            }
            return;
        }
        self.arrive(tid, spent_ns);
        match trap {
            Some(Trap::Exception {
                vector,
                error_code,
                fault_gva,
            }) => {
                // The next step sees that a call has returned: nothing is mapped there.
                let thread = self.kernel.threads.get(&tid);
                if thread.is_none_or(|thread| !self.has_returned(tid, &thread.regs)) {
                    self.exception(tid, vector, error_code, fault_gva, cpu);
                }
            }
            Some(Trap::HostFault) => self.host_fault(tid),
            Some(Trap::Syscall | Trap::Interrupted | Trap::Broken { .. }) | None => {}
        }
    }

    /// Makes a call for the first time. The thread has not been charged for `spent_ns` of CPU time.
    ///
    /// It may wait for the result inside the guest, where [`table::is_remote`] allows the call. Its
    /// registers are not in its [`Thread`] value then, and `back` is where the call returns to, if its place
    /// may be given a jump. It goes on with the result if there is no more to it and `stays` lets it.
    ///
    /// # Errors
    /// The rest of the work: the thread leaves the guest, and [`Personality::finish`] does it.
    ///
    /// [`Thread`]: crate::kernel::Thread
    #[allow(clippy::result_large_err)] // a box would be an allocation for each call that leaves
    pub fn make(
        &mut self,
        tid: Tid,
        call: Call,
        back: Option<Gva>,
        spent_ns: u64,
        stays: impl FnOnce(&Self) -> bool,
    ) -> Result<u64, Made> {
        // First: the call may ask for CPU time, or wait for it.
        self.arrive(tid, spent_ns);
        self.host.report.count_call(table::key(call.nr));
        let outcome = self.attempt(tid, &call, &CallState::default(), true);
        let jump = back
            .filter(|&back| mm::trampoline::can_be_trampoline(&mut self.cx(tid), back, call.nr));
        if matches!(outcome, Outcome::Done(_)) {
            self.work_outside();
        }
        match outcome {
            Outcome::Done(result) if jump.is_none() && stays(self) => Ok(rax_of(result)),
            outcome => Err(Made {
                call,
                outcome,
                jump,
            }),
        }
    }

    /// Moves what a call has sent to the host at once.
    fn work_outside(&mut self) {
        while self.kernel.objects.sockets.has_due() && !self.host.budget.is_spent() {
            outside::work(&mut self.cx(Tid::FIRST));
        }
    }

    /// Does what the outcome of a call says. The thread has left the guest; its registers are in its
    /// [`Thread`] value.
    ///
    /// [`Thread`]: crate::kernel::Thread
    pub fn finish(&mut self, tid: Tid, made: Made) {
        let Made {
            call,
            outcome,
            jump,
        } = made;
        // First: the call may end the thread or its program's text.
        if let Some(back) = jump
            && mm::trampoline::make_trampoline(&mut self.cx(tid), back, call.nr)
        {
            self.host.report.trampolines = self.host.report.trampolines.saturating_add(1);
        }
        self.apply(tid, call, &CallState::default(), outcome);
    }

    /// Makes a call again that has waited, or has had its turn, and does what its outcome says.
    pub(super) fn retry(&mut self, tid: Tid, call: Call, state: &CallState, cpu: &mut dyn Cpu) {
        self.bring_registers(tid, call.nr, cpu);
        let first = *state == CallState::default();
        if first {
            self.host.report.count_call(table::key(call.nr));
        }
        let outcome = self.attempt(tid, &call, state, first);
        self.apply(tid, call, state, outcome);
    }

    /// A thread comes from the guest: it is charged for its CPU time, so that timers on its CPU clocks may
    /// expire, and the work for it may take its time.
    fn arrive(&mut self, tid: Tid, spent_ns: u64) {
        self.kernel.charge_cpu(tid, spent_ns);
        self.host.budget.begin();
    }

    /// Brings what the call's row needs of the thread out of the vCPU.
    fn bring_registers(&mut self, tid: Tid, nr: u64, cpu: &mut dyn Cpu) {
        if table::row(nr).is_some_and(|row| row.needs == Needs::All) {
            self.save_xstate(tid, cpu);
        }
    }

    /// One try at a call, traced if calls are.
    fn attempt(&mut self, tid: Tid, call: &Call, state: &CallState, first: bool) -> Outcome {
        self.host.begin_call();
        if !self.host.report.trace {
            let outcome = table::call(&mut self.cx(tid), call, state);
            self.settle_watches(tid);
            return outcome;
        }
        let line = trace::entry(&mut self.cx(tid), table::row(call.nr), call);
        let outcome = table::call(&mut self.cx(tid), call, state);
        self.settle_watches(tid);
        let line = trace::exit(&line, &outcome, first);
        self.host.report.trace_lines.push(line);
        outcome
    }

    /// A call may have ended what somebody watches, by its last mapping for example.
    fn settle_watches(&mut self, tid: Tid) {
        if self.kernel.tmpfs.has_gone() {
            notify::settle(&mut self.cx(tid));
        }
    }

    /// Puts a thread back to where its program is. It has left the guest by itself, perhaps in the middle of
    /// a jump to the stub.
    pub fn unwind_jump(&mut self, tid: Tid, trap: Trap) {
        let stopped = match trap {
            Trap::Exception {
                vector: DEBUG_VECTOR,
                ..
            } => Stopped::Step,
            _ => Stopped::Otherwise,
        };
        let kernel = &mut self.kernel;
        if let Some(thread) = kernel.threads.get_mut(&tid)
            && let Some(process) = kernel.processes.get(&thread.pid)
            && let Some(mm) = kernel.mms.get(&process.mm)
        {
            mm.unwind_trampoline(stopped, &mut thread.regs);
        }
    }

    fn apply(&mut self, tid: Tid, call: Call, state: &CallState, outcome: Outcome) {
        match outcome {
            Outcome::Done(result) => self.done(tid, state, result),
            Outcome::Again(state) => drop(self.kernel.sched.retries.insert(tid, (call, state))),
            Outcome::Wait(mut wait) => {
                if let Resume::Retry(state) = &mut wait.resume {
                    state.turn = Turn::Waited;
                }
                let after = table::after_handler(&call, &wait);
                self.kernel.sched.park_call(tid, call, wait, after);
                self.leave(tid);
                // A signal that is already pending interrupts the wait at once: check and park
                // happen together.
                if self.kernel.has_signal(tid) {
                    self.kernel.interrupt(tid);
                }
            }
            Outcome::Registers => {
                // execve(2) by another thread than the first takes over the first one's id.
                if !self.kernel.threads.contains_key(&tid) {
                    self.leave(tid);
                }
            }
            Outcome::Gone => {
                self.kernel.sched.forget(tid);
                if self.cpus[0].live == Some(tid) {
                    self.cpus[0].live = None;
                }
                self.leave(tid);
            }
        }
    }

    pub(super) fn done(&mut self, tid: Tid, state: &CallState, result: SysResult) {
        if let Some(thread) = self.kernel.threads.get_mut(&tid) {
            thread.regs.rax = rax_of(result);
            if let Some(mask) = state.saved_mask {
                thread.signals.mask = mask;
            }
        }
    }
}
