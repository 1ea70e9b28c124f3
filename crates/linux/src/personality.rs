//! One sandbox's personality: the kernel value, the memory and host side it acts on, and the steps
//! that the engine drives: which thread runs next, and what a trap means.

use std::sync::Arc;

use kvmlet_abi::layout::USER_END;
use kvmlet_abi::regs::is_canonical;
use kvmlet_abi::trap::{PF_FETCH, PF_PK, PF_USER, PF_WRITE};
use kvmlet_abi::{Gva, Trap};
use kvmlet_stub::trampoline::Stopped;

use crate::clock;
use crate::cx::{Cx, Machine};
use crate::frame::{self, Delivered};
use crate::host::{Host, HostId};
use crate::kernel::{End, Kernel, Tid, XState};
use crate::mm::{self, Access, FaultError};
use crate::outcome::{CallState, Outcome, Resume, SysResult, Turn};
use crate::sched::{Call, SLICE_NS, rax_of};
use crate::signal::{SI_KERNEL, SigDetail, SigInfo, TrapInfo, signo};
use crate::syscalls::table::{self, Needs};
use crate::timer::Timeline;
use crate::trace;

/// #DB (SDM vol. 3A, 6.15).
const DEBUG_VECTOR: u8 = 1;

/// The vCPU's extended state, as much as the personality needs of a CPU.
pub trait Cpu {
    /// The state now in the vCPU's registers, as a standard-format XSAVE image.
    fn save_xstate(&mut self) -> Arc<[u8]>;
    /// Loads an image, or the initial state for `None`. The image may be the guest's: an invalid one
    /// is replaced by the initial state.
    fn load_xstate(&mut self, image: Option<&[u8]>);
}

/// What the engine does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Enter the guest with this thread's registers.
    Run(Tid),
    /// Nothing can run before a host descriptor is ready or this time (guest monotonic ns).
    Idle {
        /// Earliest deadline; `None` for none.
        deadline_ns: Option<u64>,
    },
    /// There is more to do before anything can run. It has taken a while: the engine looks at its limits,
    /// and asks again.
    Again,
    /// The program has ended.
    Ended(End),
}

/// The kernel value with the memory and the host it acts on.
#[derive(Debug)]
pub struct Personality {
    /// The kernel value.
    pub kernel: Kernel,
    /// Frames and page tables.
    pub machine: Machine,
    /// Host descriptors, policy, reports.
    pub host: Host,
    /// Thread chosen to run.
    current: Option<Tid>,
    /// Whose extended state is in the vCPU.
    live: Option<Tid>,
    /// When the current thread's slice ends, guest monotonic ns.
    slice_end_ns: u64,
}

impl Personality {
    /// Joins a kernel value to its memory and host.
    #[must_use]
    pub fn new(kernel: Kernel, machine: Machine, host: Host) -> Self {
        Self {
            kernel,
            machine,
            host,
            current: None,
            live: None,
            slice_end_ns: 0,
        }
    }

    /// Takes every thread off the vCPU: the kernel value holds all of its state afterwards, as a
    /// freeze needs it.
    pub fn park(&mut self, cpu: &mut dyn Cpu) {
        self.host.finish_call();
        if let Some(tid) = self.live {
            self.save_xstate(tid, cpu);
        }
        if let Some(tid) = self.current.take() {
            self.kernel.sched.run_queue.push_front(tid);
        }
    }

    /// Goes on from another kernel value in which no thread is on a vCPU: a reset. What the vCPU holds
    /// of the old one's threads is given up.
    pub fn assign(&mut self, kernel: Kernel) {
        self.kernel = kernel;
        self.machine.hot_pages = mm::HotPages::default();
        self.current = None;
        self.live = None;
        self.slice_end_ns = 0;
    }

    pub(crate) fn cx(&mut self, tid: Tid) -> Cx<'_> {
        Cx {
            kernel: &mut self.kernel,
            machine: &mut self.machine,
            host: &mut self.host,
            tid,
        }
    }

    /// Decides what runs next, making woken calls again and delivering signals on the way.
    pub fn next(&mut self, cpu: &mut dyn Cpu) -> Step {
        self.host.finish_call();
        self.host.budget.begin();
        // Once each time: a timer of a nanosecond must not keep us from the guest for ever.
        self.expire_timers();
        self.kernel.retarget_signals();
        let mut worked = false;
        loop {
            if let Some(end) = self.kernel.end {
                return Step::Ended(end);
            }
            if worked && self.host.budget.is_spent() {
                return Step::Again;
            }
            let Some(tid) = self.choose() else {
                return Step::Idle {
                    deadline_ns: self.earliest_ns(),
                };
            };
            if self.kernel.pipes.is_opening() && self.kernel.is_interrupted(tid) {
                crate::vfs::fifo::abandon(&mut self.cx(tid));
            }
            if let Some((call, state)) = self.kernel.sched.retries.remove(&tid) {
                worked = true;
                let ends = state.turn == Turn::Shared && state.progress > 0;
                if ends && self.kernel.has_signal(tid) {
                    self.done(tid, &state, Ok(state.progress));
                } else {
                    self.dispatch(tid, call, &state, cpu);
                }
                continue;
            }
            if self.kernel.has_signal(tid) {
                worked = true;
                self.deliver_one(tid, cpu);
                continue;
            }
            let Some(thread) = self.kernel.threads.get_mut(&tid) else {
                self.current = None;
                continue;
            };
            // A signal that another thread took, or that became ignored, leaves no mark on the call.
            if thread.interrupted.is_some() {
                self.kernel.resume_interrupted(tid);
                continue;
            }
            if let Some(mask) = thread.signals.saved_mask.take() {
                thread.signals.mask = mask;
                continue;
            }
            let regs = thread.regs;
            if self.has_returned(tid, &regs) {
                self.finish_call(tid, cpu);
                continue;
            }
            let rip = regs.rip;
            if rip >= USER_END.0 {
                self.fetch_beyond(tid, rip);
                continue;
            }
            self.load_xstate(tid, cpu);
            return Step::Run(tid);
        }
    }

    /// The signal for a `rip` behind user space: what the fetch would raise.
    fn fetch_beyond(&mut self, tid: Tid, rip: u64) {
        const SEGV_MAPERR: i32 = 1;
        let (code, detail, trap) = if is_canonical(rip) {
            let trap = TrapInfo {
                trapno: 14,
                err: u64::from(PF_USER | PF_FETCH),
                cr2: rip,
            };
            (SEGV_MAPERR, SigDetail::Fault(rip), trap)
        } else {
            let trap = TrapInfo {
                trapno: 13,
                err: 0,
                cr2: 0,
            };
            (SI_KERNEL, SigDetail::Fault(0), trap)
        };
        self.fault_signal(tid, signo::SIGSEGV, code, detail, trap);
    }

    fn expire_timers(&mut self) {
        if self.earliest_ns().is_none() {
            return;
        }
        let now_ns = clock::monotonic_ns(&self.host);
        self.kernel.fire_timerfds(now_ns);
        self.kernel.expire(now_ns);
        self.kernel.fire_due(Timeline::Monotonic, now_ns);
    }

    /// The running thread has used CPU time: timers on its CPU clocks may expire.
    pub fn charge_cpu(&mut self, tid: Tid, spent_ns: u64) {
        self.kernel.charge_cpu(tid, spent_ns);
    }

    /// The current thread while it may go on, else the next of the run queue.
    fn choose(&mut self) -> Option<Tid> {
        let yielding = core::mem::take(&mut self.kernel.sched.yielding);
        if let Some(tid) = self.current {
            let sched = &self.kernel.sched;
            let stays = sched.run_queue.is_empty() || sched.keeps_turn(tid);
            if stays || !(yielding || clock::monotonic_ns(&self.host) >= self.slice_end_ns) {
                return Some(tid);
            }
            self.kernel.sched.make_ready(tid);
        }
        self.current = self.kernel.sched.run_queue.pop_front();
        if self.current.is_some() {
            self.slice_end_ns = clock::monotonic_ns(&self.host).saturating_add(SLICE_NS);
        }
        self.current
    }

    fn earliest_ns(&self) -> Option<u64> {
        let timer = self.kernel.timers.earliest_ns(Timeline::Monotonic);
        let timer = timer.map(|at_ns| u64::try_from(at_ns).unwrap_or(0));
        let timerfd = self.kernel.objects.timers.next_ns();
        [self.kernel.sched.next_deadline_ns(), timer, timerfd]
            .into_iter()
            .flatten()
            .min()
    }

    /// When the engine must kick the running thread, guest monotonic nanoseconds: the end of its
    /// slice if others wait for the vCPU or for host descriptors, or the earliest deadline or timer.
    #[must_use]
    pub fn kick_ns(&self) -> Option<u64> {
        let others = !self.kernel.sched.run_queue.is_empty() || self.kernel.sched.waits_for_host();
        let slice = others.then(|| {
            // A slice that has ended is followed by another: descriptors are looked at once a slice.
            let now = clock::monotonic_ns(&self.host);
            if self.slice_end_ns > now {
                self.slice_end_ns
            } else {
                now.saturating_add(SLICE_NS)
            }
        });
        let cpu = self
            .current
            .and_then(|tid| self.kernel.cpu_until_expiry_ns(tid))
            .map(|left_ns| clock::monotonic_ns(&self.host).saturating_add(left_ns));
        [self.earliest_ns(), slice, cpu].into_iter().flatten().min()
    }

    /// Host descriptors that parked threads wait for, with their poll(2) events.
    #[must_use]
    pub fn host_waits(&self) -> Vec<(HostId, i16)> {
        self.kernel.sched.host_sources().into_iter().collect()
    }

    /// A host descriptor has become ready: calls that wait for it are made again.
    pub fn host_ready(&mut self, id: HostId) {
        self.kernel
            .sched
            .wake_source(crate::outcome::Source::Host(id, 0));
    }

    /// The chosen thread has left ring 3 by `trap`; its registers are in its [`Thread`] value.
    ///
    /// [`Thread`]: crate::kernel::Thread
    pub fn handle(&mut self, tid: Tid, trap: Trap, cpu: &mut dyn Cpu) {
        self.host.budget.begin();
        match trap {
            Trap::Syscall => {
                let Some(thread) = self.kernel.threads.get(&tid) else {
                    return;
                };
                let call = Call {
                    nr: thread.regs.rax,
                    args: thread.regs.syscall_args(),
                };
                self.dispatch(tid, call, &CallState::default(), cpu);
            }
            Trap::Exception {
                vector,
                error_code,
                fault_gva,
            } => {
                // The next step sees that a call has returned: nothing is mapped there.
                let thread = self.kernel.threads.get(&tid);
                if thread.is_none_or(|thread| !self.has_returned(tid, &thread.regs)) {
                    self.exception(tid, vector, error_code, fault_gva, cpu);
                }
            }
            Trap::HostFault => {
                if !mm::host_fault(&mut self.cx(tid)) {
                    // No file has shrunk: the host could not read one (an I/O error).
                    let trap = TrapInfo {
                        trapno: 14,
                        err: 0,
                        cr2: 0,
                    };
                    self.fault_signal(tid, signo::SIGBUS, SI_KERNEL, SigDetail::None, trap);
                }
            }
            Trap::Interrupted | Trap::Broken { .. } => {}
        }
    }

    /// Looks the call up, makes it, and does what its outcome says.
    fn dispatch(&mut self, tid: Tid, call: Call, state: &CallState, cpu: &mut dyn Cpu) {
        let row = table::row(call.nr);
        if let Some(row) = row
            && row.needs == Needs::All
        {
            self.save_xstate(tid, cpu);
        }
        let first = *state == CallState::default();
        self.host.begin_call();
        if first {
            self.host.report.count_call(table::key(call.nr));
        }
        let line = self
            .host
            .report
            .trace
            .then(|| trace::entry(&mut self.cx(tid), row, &call));
        let outcome = table::call(&mut self.cx(tid), &call, state);
        if let Some(line) = line {
            self.host
                .report
                .trace_lines
                .push(trace::exit(&line, &outcome, first));
        }
        self.apply(tid, call, state, outcome);
    }

    /// Makes a call whose row [`table::is_remote`] allows it, for a thread that waits for the result
    /// inside the guest; its registers are not in its [`Thread`] value. Unless the outcome is
    /// [`Outcome::Done`] and [`Personality::must_leave`] lets the thread go on, it leaves the guest and
    /// [`Personality::finish`] does the rest.
    ///
    /// [`Thread`]: crate::kernel::Thread
    pub fn make(&mut self, tid: Tid, call: &Call) -> Outcome {
        self.host.budget.begin();
        self.host.begin_call();
        self.host.report.count_call(table::key(call.nr));
        table::call(&mut self.cx(tid), call, &CallState::default())
    }

    /// Does what the outcome of [`Personality::make`] says. The thread has left the guest; its registers
    /// are in its [`Thread`] value, as after a system call.
    ///
    /// [`Thread`]: crate::kernel::Thread
    pub fn finish(&mut self, tid: Tid, call: Call, outcome: Outcome) {
        self.apply(tid, call, &CallState::default(), outcome);
    }

    /// Whether the place that makes call `nr` and returns to `back` can be given a jump to the stub
    /// ([`mm::Trampolines`]).
    pub fn can_jump(&mut self, tid: Tid, back: Gva, nr: u64) -> bool {
        mm::trampoline::can_be_trampoline(&mut self.cx(tid), back, nr)
    }

    /// Gives the place that makes call `nr` and returns to `back` a jump to the stub, if it can have one.
    /// The guest is not running.
    pub fn make_jump(&mut self, tid: Tid, back: Gva, nr: u64) {
        if mm::trampoline::make_trampoline(&mut self.cx(tid), back, nr) {
            self.host.report.trampolines = self.host.report.trampolines.saturating_add(1);
        }
    }

    /// The thread has left the guest by itself, perhaps in the middle of a jump to the stub: puts it back
    /// to where its program is.
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
        {
            process.mm.unwind_trampoline(stopped, &mut thread.regs);
        }
    }

    /// Whether the thread on the vCPU must leave the guest before its next instruction: for a signal,
    /// for what must be flushed or added to the VM, or because another thread comes first. Whether it must
    /// leave earlier than a kick is set for, [`Personality::kick_ns`] tells.
    #[must_use]
    pub fn must_leave(&self, tid: Tid) -> bool {
        let kernel = &self.kernel;
        kernel.end.is_some()
            || kernel.sched.yielding
            || self.current != Some(tid)
            || kernel.has_signal(tid)
            || !self.machine.tables.pending().is_none()
            || self.machine.memory.has_new_slots()
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
                if self.live == Some(tid) {
                    self.live = None;
                }
                self.leave(tid);
            }
        }
    }

    fn done(&mut self, tid: Tid, state: &CallState, result: SysResult) {
        if let Some(thread) = self.kernel.threads.get_mut(&tid) {
            thread.regs.rax = rax_of(result);
            if let Some(mask) = state.saved_mask {
                thread.signals.mask = mask;
            }
        }
    }

    pub(crate) fn leave(&mut self, tid: Tid) {
        if self.current == Some(tid) {
            self.current = None;
        }
    }

    /// Brings the thread's extended state out of the vCPU.
    pub(crate) fn save_xstate(&mut self, tid: Tid, cpu: &mut dyn Cpu) {
        if self.live != Some(tid) {
            return;
        }
        self.live = None;
        if let Some(thread) = self.kernel.threads.get_mut(&tid)
            && thread.xstate == XState::Live
        {
            thread.xstate = XState::Saved(cpu.save_xstate());
        }
    }

    /// The thread has been given another extended state than the one in the vCPU, if any.
    pub(crate) fn give_up_live(&mut self, tid: Tid) {
        if self.live == Some(tid) {
            self.live = None;
        }
    }

    /// Puts the thread's extended state into the vCPU, saving whose is there.
    fn load_xstate(&mut self, tid: Tid, cpu: &mut dyn Cpu) {
        if self.live == Some(tid) {
            let live = self
                .kernel
                .threads
                .get(&tid)
                .is_some_and(|thread| thread.xstate == XState::Live);
            if live {
                return;
            }
            // A handler has given the thread another state (rt_sigreturn, execve).
            self.live = None;
        }
        if let Some(owner) = self.live {
            self.save_xstate(owner, cpu);
        }
        if let Some(thread) = self.kernel.threads.get_mut(&tid) {
            match core::mem::replace(&mut thread.xstate, XState::Live) {
                XState::Saved(image) => cpu.load_xstate(Some(&image)),
                XState::Initial | XState::Live => cpu.load_xstate(None),
            }
            self.live = Some(tid);
        }
    }

    fn deliver_one(&mut self, tid: Tid, cpu: &mut dyn Cpu) {
        let now_ns = clock::monotonic_ns(&self.host);
        let Some(info) = self.kernel.take_signal(tid, now_ns) else {
            return;
        };
        self.save_xstate(tid, cpu);
        if let Some(mut line) = self.host.report.trace.then(String::new) {
            line.push_str(&trace::signal(tid, &info));
            self.host.report.trace_lines.push(line);
        }
        if frame::deliver(&mut self.cx(tid), &info) == Delivered::Killed {
            self.leave(tid);
        }
    }

    fn fault_signal(&mut self, tid: Tid, signo: u8, code: i32, detail: SigDetail, trap: TrapInfo) {
        let info = SigInfo {
            signo,
            code,
            errno: 0,
            detail,
            trap,
        };
        frame::force(&mut self.cx(tid), tid, info);
    }

    fn exception(
        &mut self,
        tid: Tid,
        vector: u8,
        error_code: u32,
        fault_gva: Gva,
        cpu: &mut dyn Cpu,
    ) {
        const FPE_INTDIV: i32 = 1;
        const ILL_ILLOPN: i32 = 2;
        const TRAP_TRACE: i32 = 2;
        const BUS_ADRALN: i32 = 1;
        let rip = self
            .kernel
            .threads
            .get(&tid)
            .map_or(0, |thread| thread.regs.rip);
        let trap = TrapInfo {
            trapno: u64::from(vector),
            err: u64::from(error_code),
            cr2: if vector == 14 { fault_gva.0 } else { 0 },
        };
        let at_rip = SigDetail::Fault(rip);
        // Signals and codes by vector: arch/x86/kernel/traps.c.
        let (signo, code, detail) = match vector {
            0 => (signo::SIGFPE, FPE_INTDIV, at_rip),
            // Linux differs: int1 gives TRAP_BRKPT; telling it from a single step needs DR6.
            1 => (signo::SIGTRAP, TRAP_TRACE, at_rip),
            3 => (signo::SIGTRAP, SI_KERNEL, SigDetail::None),
            6 => (signo::SIGILL, ILL_ILLOPN, at_rip),
            7 | 16 | 19 => (signo::SIGFPE, self.fpe_code(tid, vector, cpu), at_rip),
            11 | 12 => (signo::SIGBUS, SI_KERNEL, SigDetail::None),
            14 => return self.page_fault(tid, error_code, fault_gva, trap),
            17 => (signo::SIGBUS, BUS_ADRALN, SigDetail::None),
            _ => (signo::SIGSEGV, SI_KERNEL, SigDetail::None),
        };
        self.fault_signal(tid, signo, code, detail, trap);
    }

    /// si_code of a floating-point exception, from the state that raised it (fpu__exception_code).
    fn fpe_code(&mut self, tid: Tid, vector: u8, cpu: &mut dyn Cpu) -> i32 {
        self.save_xstate(tid, cpu);
        let Some(XState::Saved(image)) = self.kernel.threads.get(&tid).map(|thread| &thread.xstate)
        else {
            return 0;
        };
        let word = |at: usize| match image.get(at..at.saturating_add(2)) {
            Some([low, high]) => u16::from_le_bytes([*low, *high]),
            _ => 0,
        };
        let raised = if vector == 16 {
            word(2) & !word(0) & 0x3f
        } else {
            word(24) & !(word(24) >> 7) & 0x3f
        };
        match raised {
            bits if bits & 0x01 != 0 => 7,
            bits if bits & 0x04 != 0 => 3,
            bits if bits & 0x08 != 0 => 4,
            bits if bits & 0x12 != 0 => 5,
            bits if bits & 0x20 != 0 => 6,
            _ => 0,
        }
    }

    fn page_fault(&mut self, tid: Tid, error_code: u32, gva: Gva, trap: TrapInfo) {
        const BUS_ADRERR: i32 = 2;
        const SEGV_PKUERR: i32 = 4;
        if error_code & PF_PK != 0 {
            // Linux differs: the handler runs, and the thread goes on, with every key open.
            return self.fault_signal(
                tid,
                signo::SIGSEGV,
                SEGV_PKUERR,
                SigDetail::Fault(gva.0),
                trap,
            );
        }
        let access = if error_code & PF_FETCH != 0 {
            Access::Exec
        } else if error_code & PF_WRITE != 0 {
            Access::Write
        } else {
            Access::Read
        };
        match mm::fault(&mut self.cx(tid), gva, access) {
            Ok(()) => {}
            Err(FaultError::Segv { code }) => {
                self.fault_signal(tid, signo::SIGSEGV, code, SigDetail::Fault(gva.0), trap);
            }
            Err(FaultError::Bus) => {
                self.fault_signal(
                    tid,
                    signo::SIGBUS,
                    BUS_ADRERR,
                    SigDetail::Fault(gva.0),
                    trap,
                );
            }
            Err(FaultError::OutOfMemory) => self.kernel.end = Some(End::Memory),
        }
    }
}
