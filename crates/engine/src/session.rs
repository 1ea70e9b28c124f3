//! A sandbox step by step: until it is ready, message by message, call by call.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use kvmlet_abi::{Errno, Gva};
use kvmlet_hv::Kicker;
use kvmlet_linux::{
    CallArg, CallError, Denial, News, Peer, Personality, PostError, Returns, SymbolError,
};

use crate::outcome::Ending;
use crate::run::{Limits, Stop, Streamed, Until};
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;
use crate::time::{TICK_NS, now_ns};
use crate::{EngineError, Owner, Program, RunOutcome, Stat, boot, stats};

/// The kind of value that a called function returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallReturns {
    /// An integer or pointer: rax.
    Int,
    /// A double: xmm0.
    Float,
    /// A pointer to a string that ends with a null byte.
    Bytes,
    /// Nothing.
    Nothing,
}

/// The value that a called function has returned.
#[derive(Clone, PartialEq, Debug)]
pub enum CallValue {
    /// rax, signed.
    Int(i64),
    /// xmm0.
    Float(f64),
    /// The string without its null byte.
    Bytes(Vec<u8>),
    /// Nothing.
    Nothing,
}

/// A call's result.
#[derive(Clone, PartialEq, Debug)]
pub struct CallResult {
    /// The value that the function returned.
    pub value: CallValue,
    /// The content of each [`CallArg::Buffer`] as the function left it, in their order.
    pub buffers: Vec<Vec<u8>>,
}

/// The fate of connections that lead out when a program is frozen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Connections {
    /// The freeze is refused.
    Refuse,
    /// They end, as if each other side had reset them.
    Drop,
}

/// When a time is over that begins at `start_ns`.
fn deadline_ns(start_ns: u64, timeout: Option<Duration>) -> Option<u64> {
    let len_ns = u64::try_from(timeout?.as_nanos()).unwrap_or(u64::MAX);
    Some(start_ns.saturating_add(len_ns))
}

impl Sandbox {
    /// Builds a VM and loads a program into it; nothing has run yet. `program.timeout` is not looked
    /// at: each step has its own.
    ///
    /// # Errors
    /// As [`crate::run`].
    pub fn start(program: &Program) -> Result<Self, EngineError> {
        let caught = std::panic::catch_unwind(AssertUnwindSafe(|| boot::build(program)));
        let built = caught.unwrap_or_else(|panic| Err(EngineError::from_panic(panic.as_ref())));
        built.map(|mut sandbox| {
            sandbox.personality.kernel.channel.peer = Peer::Present;
            sandbox
        })
    }

    /// Runs until a thread waits for a message that is not there: the ready point.
    ///
    /// # Errors
    /// [`EngineError::TimedOut`], [`EngineError::Interrupted`], [`EngineError::Ended`].
    pub fn until_ready(
        &mut self,
        timeout: Option<Duration>,
        owner: &mut dyn Owner,
    ) -> Result<(), EngineError> {
        self.step(Until::Ready, timeout, owner)
    }

    /// Lets the program run for a time.
    ///
    /// # Errors
    /// [`EngineError::Interrupted`], [`EngineError::Ended`].
    pub fn run_for(&mut self, time: Duration, owner: &mut dyn Owner) -> Result<(), EngineError> {
        match self.step(Until::End, Some(time), owner) {
            Err(EngineError::TimedOut) => Ok(()),
            other => other,
        }
    }

    /// Runs the program to its end, however that comes.
    ///
    /// # Errors
    /// [`EngineError::TimedOut`], [`EngineError::Interrupted`].
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
        owner: &mut dyn Owner,
    ) -> Result<(), EngineError> {
        match self.step(Until::End, timeout, owner) {
            Err(EngineError::Ended(ending)) if ending != Ending::Broken => Ok(()),
            other => other,
        }
    }

    /// Tells an owner of the rest of what the program has written, which was too little to be told at once.
    pub fn tell_rest(&mut self, owner: &mut dyn Owner) {
        let captured = &mut self.personality.host.captured;
        let streams = [
            (Streamed::Stdout, &mut captured.stdout),
            (Streamed::Stderr, &mut captured.stderr),
        ];
        for ((stream, held), wanted) in streams.into_iter().zip(owner.streamed()) {
            if wanted && !held.is_empty() {
                owner.output(stream, std::mem::take(held));
            }
        }
    }

    /// Makes system calls as the program, which does not run meanwhile. `generation` is that in which a descriptor
    /// that they use was opened.
    ///
    /// # Errors
    /// [`EngineError::Ended`], [`EngineError::Reset`], [`EngineError::File`].
    pub fn act_as_program<T>(
        &mut self,
        generation: Option<u64>,
        work: impl FnOnce(&mut Personality) -> Result<T, Errno>,
    ) -> Result<T, EngineError> {
        if generation.is_some_and(|generation| generation != self.generation()) {
            return Err(EngineError::Reset);
        }
        let done = self.act(|personality| personality.as_program(work))?;
        done.map_err(|errno| EngineError::File(errno.name()))
    }

    /// Runs a box until one of these has happened. [`EngineError::NotReady`] says that nothing can happen before
    /// the host does something for it.
    pub(crate) fn until_news(
        &mut self,
        news: &[News],
        owner: &mut dyn Owner,
    ) -> Result<(), EngineError> {
        self.until_news_within(news, None, owner)
    }

    /// As [`Sandbox::until_news`], for a time.
    pub(crate) fn until_news_within(
        &mut self,
        news: &[News],
        timeout: Option<Duration>,
        owner: &mut dyn Owner,
    ) -> Result<(), EngineError> {
        self.check_alive()?;
        self.personality.await_news(news);
        let reached = self.step(Until::News, timeout, owner);
        self.personality.await_news(&[]);
        reached
    }

    /// Acts for the holder of a box. Nothing of it runs meanwhile.
    ///
    /// # Errors
    /// [`EngineError::Ended`].
    pub(crate) fn act<T>(
        &mut self,
        work: impl FnOnce(&mut Personality) -> T,
    ) -> Result<T, EngineError> {
        self.check_alive()?;
        self.guarded(|sandbox| Ok(work(&mut sandbox.personality)))
    }

    /// Puts a message where the program receives it. Nothing runs.
    ///
    /// # Errors
    /// [`EngineError::MessageTooLong`], [`EngineError::InboxFull`], [`EngineError::Ended`].
    pub fn send(&mut self, message: &[u8]) -> Result<(), EngineError> {
        self.post(Arc::from(message))
    }

    /// As [`Sandbox::send`], of a message that is not copied.
    ///
    /// # Errors
    /// As [`Sandbox::send`].
    pub fn post(&mut self, message: Arc<[u8]>) -> Result<(), EngineError> {
        self.check_alive()?;
        let posted = self.guarded(|sandbox| Ok(sandbox.personality.post(message)))?;
        posted.map_err(|error| match error {
            PostError::TooLong { .. } => EngineError::MessageTooLong(error),
            PostError::Full { .. } => EngineError::InboxFull(error),
        })
    }

    /// Runs until the program has sent a message.
    ///
    /// # Errors
    /// As [`Sandbox::until_ready`]; [`EngineError::Silent`] when the program waits for a message
    /// itself without having sent one.
    pub fn recv(
        &mut self,
        timeout: Option<Duration>,
        owner: &mut dyn Owner,
    ) -> Result<Arc<[u8]>, EngineError> {
        self.check_alive()?;
        let take = |sandbox: &mut Self| Ok(sandbox.personality.take_message());
        if let Some(message) = self.guarded(take)? {
            return Ok(message);
        }
        self.step(Until::Message, timeout, owner)?;
        self.guarded(take)?.ok_or(EngineError::Silent)
    }

    /// Calls a function of the program by the name of its symbol, with the C calling convention, and
    /// runs until it returns.
    ///
    /// # Errors
    /// [`EngineError::UnknownSymbol`], [`EngineError::BadArgument`], [`EngineError::NotReady`] before
    /// the program has started, and as [`Sandbox::until_ready`].
    pub fn call(
        &mut self,
        symbol: &str,
        args: &[CallArg],
        returns: CallReturns,
        timeout: Option<Duration>,
        owner: &mut dyn Owner,
    ) -> Result<CallResult, EngineError> {
        self.check_alive()?;
        self.guarded(|sandbox| sandbox.make_call(symbol, args, returns, timeout, owner))
    }

    fn make_call(
        &mut self,
        symbol: &str,
        args: &[CallArg],
        returns: CallReturns,
        timeout: Option<Duration>,
        owner: &mut dyn Owner,
    ) -> Result<CallResult, EngineError> {
        let start_ns = now_ns();
        let deadline_ns = deadline_ns(start_ns, timeout);
        let mut is_late = false;
        // The owner may have to wait for a lock to answer.
        let mut asked_ns = start_ns;
        let mut goes_on = || {
            let now_ns = now_ns();
            is_late = deadline_ns.is_some_and(|deadline_ns| now_ns >= deadline_ns);
            if is_late || now_ns < asked_ns.saturating_add(TICK_NS) {
                return !is_late;
            }
            asked_ns = now_ns;
            !owner.stop_requested()
        };
        let origin = self.origin.as_deref();
        let known = origin.and_then(|frozen| frozen.symbol(symbol, &self.personality));
        let function = match known {
            Some(function) => function,
            None => {
                let found = self.personality.symbol(symbol, &mut goes_on);
                let function = found.map_err(|error| match error {
                    SymbolError::NoProgram => EngineError::NotReady,
                    SymbolError::Stopped if is_late => EngineError::TimedOut,
                    SymbolError::Stopped => EngineError::Interrupted,
                    other => EngineError::UnknownSymbol(other.to_string()),
                })?;
                if let Some(frozen) = origin {
                    frozen.note_symbol(symbol, function, &self.personality);
                }
                function
            }
        };
        let register = match returns {
            CallReturns::Float => Returns::Float,
            CallReturns::Int | CallReturns::Bytes | CallReturns::Nothing => Returns::Integer,
        };
        // One that has just answered is on its way to its next message.
        let has_run = self.origin.is_some() || self.times.guest_ns > 0;
        let main = self.personality.kernel.main;
        if has_run && !self.personality.is_callable_in(main) {
            self.step_to(Until::Callable(main), deadline_ns, owner)?;
        }
        self.personality
            .begin_call(function, args, register, &mut self.guest.vcpu)
            .map_err(|error| match error {
                CallError::NotReady => EngineError::NotReady,
                other => EngineError::BadArgument(format!("{symbol}: {other}")),
            })?;
        self.step_to(Until::Return, deadline_ns, owner)?;
        let returned = self
            .personality
            .take_return()
            .ok_or_else(|| EngineError::CallLost(symbol.to_owned()))?;
        let value = match returns {
            CallReturns::Int => CallValue::Int(returned.rax.cast_signed()),
            CallReturns::Float => CallValue::Float(f64::from_bits(returned.xmm0.unwrap_or(0))),
            CallReturns::Nothing => CallValue::Nothing,
            CallReturns::Bytes => {
                let string = self.personality.read_string(Gva(returned.rax));
                CallValue::Bytes(string.map_err(|errno| {
                    EngineError::BadArgument(format!(
                        "{symbol}: what it returned is no string: {errno}"
                    ))
                })?)
            }
        };
        Ok(CallResult {
            value,
            buffers: returned.buffers,
        })
    }

    /// Says if a freeze has to be refused: its forks would have no room, or there are connections. Ends those that lead out
    /// if it is told to; those of the host's stay.
    ///
    /// # Errors
    /// [`EngineError::FrozenTooOften`], [`EngineError::Connected`], [`EngineError::LeadsOut`]
    pub fn prepare_to_freeze(&mut self, connections: Connections) -> Result<(), EngineError> {
        if !self.personality.machine.memory.has_room_for_forks() {
            return Err(EngineError::FrozenTooOften);
        }
        self.check_unconnected()?;
        let open = self.personality.host.outside.connections();
        match (connections, open.first()) {
            (Connections::Refuse, Some(first)) => Err(EngineError::LeadsOut(first.clone())),
            (Connections::Drop, Some(_)) => {
                self.personality.drop_connections();
                Ok(())
            }
            (_, None) => Ok(()),
        }
    }

    /// Freezes the program where it is. It does not run any more; its forks do. [`Sandbox::prepare_to_freeze`] has said
    /// that nothing is in the way.
    ///
    /// # Errors
    /// [`EngineError::Ended`], those of [`Sandbox::prepare_to_freeze`], and what the host refuses.
    pub fn freeze(mut self) -> Result<Snapshot, EngineError> {
        self.check_alive()?;
        self.prepare_to_freeze(Connections::Refuse)?;
        if self.door.is_some() {
            self.make_clones_differ()?;
        }
        let caught = std::panic::catch_unwind(AssertUnwindSafe(|| Snapshot::freeze(self)));
        caught.unwrap_or_else(|panic| Err(EngineError::from_panic(panic.as_ref())))
    }

    /// Puts a fork back to the state of its snapshot. One that has ended starts again.
    ///
    /// # Errors
    /// [`EngineError::NotFork`], and what the host refuses.
    pub fn reset(&mut self) -> Result<(), EngineError> {
        let frozen = self.origin.clone().ok_or(EngineError::NotFork)?;
        if let Some(asking) = &self.asking {
            asking.forget();
        }
        let caught = std::panic::catch_unwind(AssertUnwindSafe(|| self.reset_to(&frozen)));
        let reset = caught.unwrap_or_else(|panic| Err(EngineError::from_panic(panic.as_ref())));
        if reset.is_err() {
            // Half of it may be the frozen program and half the request: only another reset, which
            // builds the fork anew, makes it usable.
            self.ended = Some(Ending::Broken);
        }
        reset
    }

    /// Takes the output that the program has written since the last call, captured from its standard output
    /// and error.
    pub fn take_output(&mut self) -> (Vec<u8>, Vec<u8>) {
        let captured = &mut self.personality.host.captured;
        (
            std::mem::take(&mut captured.stdout),
            std::mem::take(&mut captured.stderr),
        )
    }

    /// The ending of the program and its output, once it has ended.
    pub fn outcome(&mut self) -> Option<RunOutcome> {
        let ending = self.ended?;
        Some(self.take_outcome(ending))
    }

    /// The way that the program ended, if it has.
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        self.ended
    }

    /// 0 in a program that was never frozen, else a number that no other fork or reset has.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.personality.kernel.channel.generation
    }

    /// Stops the guest from any thread: the step that runs now, or the next one, asks its owner.
    #[must_use]
    pub fn kicker(&self) -> Kicker {
        self.guest.vcpu.kicker()
    }

    /// The program's memory limit, in bytes.
    #[must_use]
    pub fn memory_limit_bytes(&self) -> u64 {
        self.personality.machine.memory.limit_bytes()
    }

    /// The part of its memory limit that the program may still use, in bytes.
    #[must_use]
    pub fn memory_left_bytes(&self) -> u64 {
        let memory = &self.personality.machine.memory;
        memory.limit_bytes().saturating_sub(memory.used_bytes())
    }

    /// Pages that the last reset has put back or dropped.
    #[must_use]
    pub fn pages_reset(&self) -> u64 {
        self.last_reset.copied_pages + self.last_reset.dropped_pages
    }

    /// Exits from its VM so far, over all resets.
    #[must_use]
    pub fn exits(&self) -> u64 {
        self.guest.vcpu.counters().runs
    }

    /// CPU time of pollers for it so far, over all resets.
    #[must_use]
    pub fn poller_cpu(&self) -> Duration {
        Duration::from_nanos(self.transport.counts().poller_cpu_ns)
    }

    /// Takes what was refused, and what is unsupported, since the last time or the last reset.
    pub fn take_report(&mut self) -> (Vec<Denial>, Vec<(String, String)>) {
        self.personality.take_report()
    }

    /// Counters so far, and what the last reset did.
    #[must_use]
    pub fn stats(&self) -> Vec<(String, Stat)> {
        let mut all = stats::collect(
            self.guest.vcpu.counters(),
            self.guest.vm.ioctls(),
            self.full_flushes,
            &self.times,
            &self.transport.counts(),
            self.personality.machine.memory.peak_bytes(),
            &self.personality.host.report,
        );
        all.extend(stats::of_reset(
            &self.last_reset,
            self.personality.machine.memory.private_bytes(),
        ));
        all
    }

    /// KVM's own counters of the vCPU by name (KVM_GET_STATS_FD), `pf_taken` and `tlb_flush` among them.
    /// Costs some host calls.
    ///
    /// # Errors
    /// [`EngineError::Kvm`] on a kernel before 5.14.
    pub fn kvm_stats(&mut self) -> Result<Vec<(String, u64)>, EngineError> {
        let stats = self.guest.vcpu.stats()?;
        let all = stats.all().into_iter();
        Ok(all.map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// Succeeds if no connection of the host's is open.
    ///
    /// # Errors
    /// [`EngineError::Connected`]
    fn check_unconnected(&self) -> Result<(), EngineError> {
        match self.personality.connections() {
            0 => Ok(()),
            open => Err(EngineError::Connected(open)),
        }
    }

    pub(crate) fn check_alive(&self) -> Result<(), EngineError> {
        match self.ended {
            None => Ok(()),
            Some(ending) => Err(EngineError::Ended(ending)),
        }
    }

    /// Does something of ours that a guest's state goes into. A panic is a fault of ours: the sandbox is
    /// not to be trusted any more.
    pub(crate) fn guarded<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let caught = std::panic::catch_unwind(AssertUnwindSafe(|| work(self)));
        caught.unwrap_or_else(|panic| {
            self.ended = Some(Ending::Broken);
            Err(EngineError::from_panic(panic.as_ref()))
        })
    }

    pub(crate) fn step(
        &mut self,
        until: Until,
        timeout: Option<Duration>,
        owner: &mut dyn Owner,
    ) -> Result<(), EngineError> {
        let deadline_ns = timeout.and_then(|_| deadline_ns(now_ns(), timeout));
        self.step_to(until, deadline_ns, owner)
    }

    /// As [`Sandbox::step`], to a time of the host's CLOCK_MONOTONIC.
    fn step_to(
        &mut self,
        until: Until,
        deadline_ns: Option<u64>,
        owner: &mut dyn Owner,
    ) -> Result<(), EngineError> {
        let limits = Limits {
            deadline_ns,
            ..Limits::default()
        };
        self.step_within(until, limits, owner)
    }

    /// As [`Sandbox::step`], within limits.
    pub(crate) fn step_within(
        &mut self,
        until: Until,
        limits: Limits,
        owner: &mut dyn Owner,
    ) -> Result<(), EngineError> {
        self.check_alive()?;
        let driven = self.guarded(|sandbox| sandbox.drive(until, limits, owner));
        let stop = driven.inspect_err(|_| self.ended = Some(Ending::Broken))?;
        match stop {
            Stop::Reached => Ok(()),
            Stop::TimedOut | Stop::OutOfCpuTime => Err(EngineError::TimedOut),
            Stop::Interrupted => Err(EngineError::Interrupted),
            Stop::Stuck => Err(match until {
                Until::Message | Until::Said | Until::Return => EngineError::Silent,
                Until::Ready | Until::End | Until::Callable(_) | Until::News | Until::Listening => {
                    EngineError::NotReady
                }
            }),
            Stop::Ended(ending) => {
                self.ended = Some(ending);
                Err(EngineError::Ended(ending))
            }
        }
    }
}
