//! The host calls one of the program's functions, by the System V ABI (AMD64 supplement, 3.2).
//!
//! A thread of a process is borrowed for it. That is one that waits for a message, else the first one
//! while it is in a system call that waits. One in vfork(2) is not borrowed. A frame is built below its stack
//! pointer, with the return address 0: nothing is mapped there, and stack walkers (backtraces, exceptions) end at it. The function has returned when the
//! thread comes to that address with the stack pointer of a return. The thread then gets back its registers
//! and its wait, and the program goes on as if nothing had been. The function's effects on memory, files and
//! signals stay, as with any call.

use std::sync::Arc;

use imbl::Vector;
use kvmlet_abi::layout::USER_END;
use kvmlet_abi::regs::FIXED_RFLAGS;
use kvmlet_abi::{Errno, Gva, UserRegs};

use crate::asks::{Answer, Question};
use crate::channel::{MESSAGE_MAX, PostError};
use crate::guest_call_state::{CallFrame, Suspended};
pub use crate::guest_call_state::{CallReturn, HostCall, Returns};
use crate::kernel::{Kernel, Pid, Thread, Tid, XState};
use crate::outcome::{CallState, Resume, Source, Wait, WaitOn};
use crate::personality::{Cpu, Personality};
use crate::sched::Call;

/// Integers and pointers among the arguments at most: what fits into registers.
pub const INTEGER_ARGS_MAX: usize = 6;
/// Floating-point arguments at most.
pub const FLOAT_ARGS_MAX: usize = 8;
/// Bytes of all byte arguments together at most: they are copied to the stack.
pub const ARG_BYTES_MAX: usize = 1 << 20;
/// Bytes of a NUL-terminated string that is read back at most.
pub const STRING_MAX: usize = MESSAGE_MAX;

const RED_ZONE: u64 = 128;
const RETURN_ADDRESS: u64 = 0;
const RETURN_ADDRESS_LEN: u64 = 8;
/// x87 control word and MXCSR of a new program (AMD64 supplement, 3.2.1).
const INITIAL_FCW: u16 = 0x37f;
const INITIAL_MXCSR: u32 = 0x1f80;
/// Places in a standard-format XSAVE image (SDM vol. 1, 13.4).
const MXCSR_AT: usize = 24;
const XMM_AT: usize = 160;
const XSTATE_BV_AT: usize = 512;
const XSAVE_HEADER_END: usize = 576;
/// XSTATE_BV bits of x87 and SSE.
const X87_SSE: u64 = 3;
const SSE: u8 = 2;

/// One argument.
#[derive(Clone, PartialEq, Debug)]
pub enum CallArg {
    /// In a general register.
    Int(u64),
    /// In a vector register.
    Float(f64),
    /// Copied to the stack, with a NUL behind it; its address is passed.
    Bytes(Arc<[u8]>),
    /// As `Bytes`, and what is there at the return is answered in [`CallReturn::buffers`].
    Buffer(Arc<[u8]>),
}

/// Why a call could not be begun. Nothing has changed but memory below the stack pointer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CallError {
    /// The program has ended.
    #[error("the program has ended")]
    Ended,
    /// Another call has not returned yet.
    #[error("another call is still running")]
    Busy,
    /// No thread waits for a message, and the first thread is not in a system call that waits.
    #[error("the program is not ready: run it until it waits for something")]
    NotReady,
    /// Not an address of the program.
    #[error("{:#x} is no address of a function", .0.0)]
    BadFunction(Gva),
    /// More arguments than fit into registers.
    #[error(
        "too many arguments: {INTEGER_ARGS_MAX} integers or byte strings and {FLOAT_ARGS_MAX} \
         floating-point numbers are possible"
    )]
    TooManyArgs,
    /// More than [`ARG_BYTES_MAX`].
    #[error("the arguments have more than {ARG_BYTES_MAX} bytes: send a message instead")]
    TooLarge,
    /// The arguments cannot be written below the thread's stack pointer.
    #[error("the arguments do not fit on the thread's stack")]
    NoStack,
}

/// The state of the host's call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallStatus {
    /// There is none.
    Idle,
    /// It has not returned.
    Running,
    /// [`Personality::take_return`] has its result.
    Returned,
    /// It never will return: the program has ended the thread that it ran on, has replaced itself
    /// (execve(2)), or has unmapped its buffers.
    Lost,
}

/// The place of everything that a call puts into the guest.
#[derive(Clone, PartialEq, Debug)]
struct Layout {
    /// Stack pointer at the function's first instruction: the return address is there.
    rsp: u64,
    /// The content of the stack from there on.
    block: Vec<u8>,
    /// Values of the integer registers, in order.
    integers: Vec<u64>,
    /// Values of the vector registers, in order.
    floats: Vec<u64>,
    /// Buffers to be read back.
    buffers: Vector<(Gva, usize)>,
}

impl Layout {
    /// Below the red zone come the byte arguments, each at a multiple of 16. The return address follows, with
    /// `rsp + 8` a multiple of 16 (AMD64 supplement, 3.2.2).
    fn new(rsp: u64, args: &[CallArg]) -> Result<Self, CallError> {
        let top = rsp.checked_sub(RED_ZONE).ok_or(CallError::NoStack)? & !15;
        let (mut integers, mut floats) = (Vec::new(), Vec::new());
        let mut buffers = Vector::new();
        let mut placed: Vec<(u64, &[u8])> = Vec::new();
        let (mut at, mut total) = (top, 0usize);
        for arg in args {
            match arg {
                CallArg::Int(value) => integers.push(*value),
                CallArg::Float(value) => floats.push(value.to_bits()),
                CallArg::Bytes(bytes) | CallArg::Buffer(bytes) => {
                    total = total.saturating_add(bytes.len());
                    if total > ARG_BYTES_MAX {
                        return Err(CallError::TooLarge);
                    }
                    let room = (bytes.len() as u64).saturating_add(1).next_multiple_of(16);
                    at = at.checked_sub(room).ok_or(CallError::NoStack)?;
                    integers.push(at);
                    placed.push((at, bytes));
                    if matches!(arg, CallArg::Buffer(_)) {
                        buffers.push_back((Gva(at), bytes.len()));
                    }
                }
            }
            if integers.len() > INTEGER_ARGS_MAX || floats.len() > FLOAT_ARGS_MAX {
                return Err(CallError::TooManyArgs);
            }
        }
        let rsp = at
            .checked_sub(RETURN_ADDRESS_LEN)
            .ok_or(CallError::NoStack)?;
        let mut block = vec![0; usize::try_from(top - rsp).map_err(|_| CallError::NoStack)?];
        put(&mut block, 0, &RETURN_ADDRESS.to_le_bytes());
        for (at, bytes) in placed {
            let offset = usize::try_from(at - rsp).map_err(|_| CallError::NoStack)?;
            put(&mut block, offset, bytes);
        }
        Ok(Self {
            rsp,
            block,
            integers,
            floats,
            buffers,
        })
    }

    /// The registers at the function's first instruction. What the thread had in the others is none of
    /// its business; `rbp` 0 ends a walk along frames.
    fn regs(&self, function: Gva, thread: &UserRegs) -> UserRegs {
        let integer = |index: usize| self.integers.get(index).copied().unwrap_or(0);
        UserRegs {
            rdi: integer(0),
            rsi: integer(1),
            rdx: integer(2),
            rcx: integer(3),
            r8: integer(4),
            r9: integer(5),
            // A function with variable arguments is told how many vector registers hold some.
            rax: self.floats.len() as u64,
            rsp: self.rsp,
            rip: function.0,
            rflags: FIXED_RFLAGS,
            fs_base: thread.fs_base,
            gs_base: thread.gs_base,
            selectors: thread.selectors,
            ..UserRegs::default()
        }
    }

    fn xstate(&self, xstate_len: usize) -> XState {
        if self.floats.is_empty() {
            return XState::Initial;
        }
        let mut image = vec![0; xstate_len.max(XSAVE_HEADER_END)];
        put(&mut image, 0, &INITIAL_FCW.to_le_bytes());
        put(&mut image, MXCSR_AT, &INITIAL_MXCSR.to_le_bytes());
        for (index, value) in self.floats.iter().enumerate() {
            put(&mut image, XMM_AT + 16 * index, &value.to_le_bytes());
        }
        put(&mut image, XSTATE_BV_AT, &X87_SSE.to_le_bytes());
        XState::Saved(image.into())
    }
}

/// Writes what fits.
fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    let places = into.iter_mut().skip(at);
    for (place, byte) in places.zip(bytes) {
        *place = *byte;
    }
}

/// The low half of `xmm0`.
fn xmm0(xstate: &XState) -> u64 {
    let XState::Saved(image) = xstate else {
        return 0;
    };
    let used = image.get(XSTATE_BV_AT).is_some_and(|bv| bv & SSE != 0);
    let low = image.get(XMM_AT..).and_then(|rest| rest.first_chunk());
    low.filter(|_| used)
        .map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

impl Personality {
    /// True if the program is at its ready point: a thread waits for a message and there is none.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.kernel.sched.receivers.is_empty() && self.kernel.channel.inbox.is_empty()
    }

    /// Queues a message for the program and wakes the thread that has waited longest for one.
    ///
    /// # Errors
    /// [`PostError`]; nothing is queued then.
    pub fn post(&mut self, message: Arc<[u8]>) -> Result<(), PostError> {
        self.kernel.channel.inbox.push(message)?;
        self.kernel.wake_receiver();
        Ok(())
    }

    /// Takes the oldest message that the program has sent.
    pub fn take_message(&mut self) -> Option<Arc<[u8]>> {
        self.take_answer().map(|(_, message)| message)
    }

    /// Queues a question, whose answer [`Personality::take_answer`] has with the same `number`, which is not 0.
    ///
    /// # Errors
    /// As [`Personality::post`].
    pub fn post_question(&mut self, number: u64, message: Arc<[u8]>) -> Result<(), PostError> {
        self.kernel.channel.inbox.push_numbered(number, message)?;
        self.kernel.wake_receiver();
        Ok(())
    }

    /// Takes the oldest message that the program has sent, with the number of the question that it answers, 0 if none.
    pub fn take_answer(&mut self) -> Option<(u64, Arc<[u8]>)> {
        let (number, message) = self.kernel.channel.outbox.pop_numbered()?;
        let memory = &mut self.machine.memory;
        memory.uncharge_kernel(message.len() as u64);
        self.kernel.sched.wake_source(Source::Outbox);
        Some((number, message))
    }

    /// Takes the number of a question that the program has received and will not answer any more.
    pub fn take_unanswered(&mut self) -> Option<u64> {
        self.kernel.channel.unanswered.pop_front()
    }

    /// True if the program has sent a message, or has given a question up.
    #[must_use]
    pub fn has_said(&self) -> bool {
        let channel = &self.kernel.channel;
        !channel.outbox.is_empty() || !channel.unanswered.is_empty()
    }

    /// Has the program ask those with these names.
    pub fn let_ask(&mut self, names: Vec<String>) {
        let names = names.into_iter().map(String::into_boxed_str);
        self.kernel.channel.asks.names = names.collect();
    }

    /// Takes a question of the program's.
    pub fn take_question(&mut self) -> Option<Question> {
        self.kernel.channel.asks.take_new()
    }

    /// True if the program has a question that has not been taken.
    #[must_use]
    pub fn has_question(&self) -> bool {
        self.kernel.channel.asks.has_new()
    }

    /// Gives the program the answer to the question with this ticket, and wakes who waits for it.
    pub fn answer(&mut self, ticket: u64, answer: Answer) {
        let memory = &mut self.machine.memory;
        let asks = &mut self.kernel.channel.asks;
        memory.uncharge_kernel(asks.uncharge_question(ticket));
        let wanted = asks.is_wanted(ticket);
        let len_bytes = match &answer {
            Ok(bytes) if wanted => bytes.len() as u64,
            _ => 0,
        };
        match memory.charge_kernel(len_bytes) {
            Ok(()) => asks.answer(ticket, answer, len_bytes),
            Err(_) => asks.answer(ticket, Err(Errno::ENOMEM), 0),
        }
        self.kernel.sched.wake_source(Source::Answer(ticket));
        self.kernel.sched.wake_source(Source::AskRoom);
    }

    /// Ends the questions that the host has seen and not answered: there will be no answer (`EPIPE`).
    pub fn drop_questions(&mut self) {
        for ticket in self.kernel.channel.asks.seen() {
            self.answer(ticket, Err(Errno::EPIPE));
        }
    }

    /// True if the program has asked and is to be answered.
    #[must_use]
    pub fn awaits_answers(&self) -> bool {
        self.kernel.channel.asks.are_awaited()
    }

    /// True if a process has a thread that a call may be made on.
    #[must_use]
    pub fn is_callable_in(&self, pid: Pid) -> bool {
        self.kernel.borrowable(pid).is_some()
    }

    /// Makes the program's first process call `function`: see [`Personality::begin_call_in`].
    ///
    /// # Errors
    /// [`CallError`]
    pub fn begin_call(
        &mut self,
        function: Gva,
        args: &[CallArg],
        returns: Returns,
        cpu: &mut dyn Cpu,
    ) -> Result<(), CallError> {
        self.begin_call_in(self.kernel.main, function, args, returns, cpu)
    }

    /// Makes a process call `function` the next time it runs. The result is there once
    /// [`Personality::call_status`] says so.
    ///
    /// # Errors
    /// [`CallError`]
    pub fn begin_call_in(
        &mut self,
        pid: Pid,
        function: Gva,
        args: &[CallArg],
        returns: Returns,
        cpu: &mut dyn Cpu,
    ) -> Result<(), CallError> {
        if self.kernel.end.is_some() {
            return Err(CallError::Ended);
        }
        if self.kernel.call.tid().is_some() {
            return Err(CallError::Busy);
        }
        if function.0 >= USER_END.0 {
            return Err(CallError::BadFunction(function));
        }
        let tid = self.kernel.borrowable(pid).ok_or(CallError::NotReady)?;
        self.save_xstate(tid, cpu);
        let rsp = self.kernel.threads.get(&tid).map_or(0, |t| t.regs.rsp);
        let layout = Layout::new(rsp, args)?;
        self.cx(tid)
            .write(Gva(layout.rsp), &layout.block)
            .map_err(|_| CallError::NoStack)?;
        let xstate = layout.xstate(self.host.xstate_len);
        let behind = self.kernel.mask_behind_wait(tid);
        let Some(suspended) = self.kernel.suspend(tid) else {
            return Err(CallError::NotReady);
        };
        let Some(thread) = self.kernel.threads.get_mut(&tid) else {
            return Err(CallError::NotReady);
        };
        let frame = CallFrame {
            tid,
            regs: thread.regs,
            xstate: core::mem::replace(&mut thread.xstate, xstate),
            mask: thread.signals.mask,
            saved_mask: thread.signals.saved_mask.take(),
            interrupted: thread.interrupted.take(),
            suspended,
            returned_rsp: layout.rsp.wrapping_add(RETURN_ADDRESS_LEN),
            returns,
            buffers: layout.buffers.clone(),
            is_childless: false,
        };
        thread.regs = layout.regs(function, &frame.regs);
        // What the thread waits for is still blocked for the function.
        thread.signals.mask |= behind;
        self.kernel.call = HostCall::Running(Arc::new(frame));
        Ok(())
    }

    /// Makes a process call `fork`, the C library's function, which gets no child: clone(2) fails with `EAGAIN`. What
    /// runs are the functions that were registered to run before a fork and after it, in the parent
    /// (pthread_atfork(3)). Otherwise it is as [`Personality::begin_call_in`].
    ///
    /// # Errors
    /// [`CallError`]
    pub fn begin_fork_handlers_in(
        &mut self,
        pid: Pid,
        fork: Gva,
        cpu: &mut dyn Cpu,
    ) -> Result<(), CallError> {
        self.begin_call_in(pid, fork, &[], Returns::Integer, cpu)?;
        if let HostCall::Running(frame) = &mut self.kernel.call
            && let Some(frame) = Arc::get_mut(frame)
        {
            frame.is_childless = true;
        }
        Ok(())
    }

    /// The state of the host's call.
    #[must_use]
    pub fn call_status(&self) -> CallStatus {
        match self.kernel.call {
            HostCall::Idle => CallStatus::Idle,
            HostCall::Running(_) => CallStatus::Running,
            HostCall::Returned(_) => CallStatus::Returned,
            HostCall::Lost => CallStatus::Lost,
        }
    }

    /// Takes the result of a call that has returned.
    pub fn take_return(&mut self) -> Option<CallReturn> {
        match core::mem::take(&mut self.kernel.call) {
            HostCall::Returned(result) => Some(result),
            other => {
                self.kernel.call = other;
                None
            }
        }
    }

    /// Reads a NUL-terminated string of at most [`STRING_MAX`] bytes, its NUL counted, from the
    /// program's memory: what a function that returns `char *` has answered.
    ///
    /// # Errors
    /// `EFAULT` for a bad pointer, `ENAMETOOLONG` for a longer string, `ESRCH` when the program has no
    /// thread left.
    pub fn read_string(&mut self, gva: Gva) -> Result<Vec<u8>, Errno> {
        let main = self.kernel.main;
        let tid = self.kernel.threads_of(main).next().ok_or(Errno::ESRCH)?;
        self.cx(tid).read_cstr(gva, STRING_MAX)
    }

    /// True if `tid`, with these registers, has returned from the host's call. A call through a null
    /// pointer has another stack pointer.
    pub(crate) fn has_returned(&self, tid: Tid, regs: &UserRegs) -> bool {
        match &self.kernel.call {
            HostCall::Running(frame) => {
                frame.tid == tid && regs.rip == RETURN_ADDRESS && regs.rsp == frame.returned_rsp
            }
            _ => false,
        }
    }

    /// The call has returned: its result is kept, and the thread goes back to what it was in.
    pub(crate) fn finish_call(&mut self, tid: Tid, cpu: &mut dyn Cpu) {
        let HostCall::Running(frame) = core::mem::replace(&mut self.kernel.call, HostCall::Lost)
        else {
            return;
        };
        if frame.returns == Returns::Float {
            self.save_xstate(tid, cpu);
        }
        let mut buffers = Some(Vec::with_capacity(frame.buffers.len()));
        for (gva, len_bytes) in &frame.buffers {
            let mut bytes = vec![0; *len_bytes];
            match (&mut buffers, self.cx(tid).read(*gva, &mut bytes)) {
                (Some(buffers), Ok(())) => buffers.push(bytes),
                _ => buffers = None,
            }
        }
        let Some(thread) = self.kernel.threads.get_mut(&tid) else {
            return;
        };
        let rax = thread.regs.rax;
        let xmm0 = (frame.returns == Returns::Float).then(|| xmm0(&thread.xstate));
        if let Some(buffers) = buffers {
            self.kernel.call = HostCall::Returned(CallReturn { rax, xmm0, buffers });
        }
        restore(thread, &frame);
        self.give_up_live(tid);
        self.go_back(tid, &frame.suspended);
    }

    /// The thread goes back into its system call.
    fn go_back(&mut self, tid: Tid, suspended: &Suspended) {
        let (call, wait) = match suspended {
            Suspended::Again(call, state) => {
                self.kernel
                    .sched
                    .retries
                    .insert(tid, (*call, state.clone()));
                return;
            }
            Suspended::Wait(parked) => (parked.call, &parked.wait),
        };
        // What it waits for may have come meanwhile: it looks again.
        let state = match (&wait.on, &wait.resume) {
            (WaitOn::Message, _) => return self.receive_again(tid, call, wait),
            (_, Resume::Retry(state)) => state.clone(),
            // A waker may have found nobody. Every user of futex(2) expects wake-ups without cause.
            (WaitOn::Futex(..), Resume::Deliver { .. }) => {
                if let Some(thread) = self.kernel.threads.get_mut(&tid) {
                    thread.regs.rax = 0;
                }
                return;
            }
            (on, Resume::Deliver { .. }) => CallState {
                deadline_ns: match on {
                    WaitOn::CpuTime(_, at_ns) => u64::try_from(*at_ns).ok(),
                    _ => wait.deadline_ns,
                },
                ..CallState::default()
            },
        };
        self.kernel.sched.retries.insert(tid, (call, state));
    }

    /// The thread waits for a message again, where it was: before all others.
    fn receive_again(&mut self, tid: Tid, call: Call, wait: &Wait) {
        let sched = &mut self.kernel.sched;
        let after = crate::syscalls::table::after_handler(&call, wait);
        sched.park_call(tid, call, wait.clone(), after);
        crate::vector::retain(&mut sched.receivers, |waiter| *waiter != tid);
        sched.receivers.push_front(tid);
        self.leave(tid);
        if !self.kernel.channel.inbox.is_empty() {
            self.kernel.wake_receiver();
        } else if self.kernel.has_signal(tid) {
            self.kernel.interrupt(tid);
        }
    }
}

fn restore(thread: &mut Thread, frame: &CallFrame) {
    thread.regs = frame.regs;
    thread.xstate = frame.xstate.clone();
    thread.signals.mask = frame.mask;
    thread.signals.saved_mask = frame.saved_mask;
    thread.interrupted = frame.interrupted.clone();
}

impl Kernel {
    /// The thread of a process that a call may be made on. A parent in vfork(2) is not lent: its child has its stack,
    /// and the call would be made twice.
    fn borrowable(&self, pid: Pid) -> Option<Tid> {
        let is_its = |tid: &Tid| {
            let thread = self.threads.get(tid);
            thread.is_some_and(|thread| thread.pid == pid)
        };
        if let Some(tid) = self.sched.receivers.iter().copied().find(is_its) {
            return Some(tid);
        }
        let tid = self.threads_of(pid).next()?;
        let waits = match self.sched.parked.get(&tid) {
            Some(parked) => !matches!(parked.wait.on, WaitOn::Vfork(_)),
            None => self.sched.retries.contains_key(&tid),
        };
        waits.then_some(tid)
    }

    /// Takes a thread out of its system call and makes it the next to run.
    fn suspend(&mut self, tid: Tid) -> Option<Suspended> {
        if let Some(parked) = self.sched.unpark(tid) {
            self.sched.run_queue.push_front(tid);
            return Some(Suspended::Wait(parked));
        }
        let (call, state) = self.sched.retries.remove(&tid)?;
        Some(Suspended::Again(call, state))
    }
}

#[cfg(test)]
mod tests;
