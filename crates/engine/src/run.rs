//! The run loop: what runs next, enter the guest, answer why it left, until it ends.

use std::time::Duration;

use kvmlet_abi::Trap;
use kvmlet_linux::{CallStatus, Denial, End, Pid, STREAMED_BATCH_BYTES, Step, Work, table};

use crate::entry::Left;
use crate::limit::Limit;
use crate::outcome::{Ending, RunOutcome};
use crate::sandbox::{Sandbox, StubConstants};
use crate::time::{TICK_NS, host_time_ns, now_ns, ran_ns};
use crate::{EngineError, Program};

/// Who runs the sandbox: asked whether to stop, told what is traced.
pub trait Owner {
    /// Called after a signal and every few hundredths of a second; `true` ends the run.
    fn stop_requested(&mut self) -> bool;
    /// Whether the process has been continued after a stop since this was asked last (SIGCONT): a limit on
    /// time leaves the stop out then.
    fn was_continued(&mut self) -> bool {
        false
    }
    /// Whether the process has been told to stop (SIGTSTP) since this was asked last. It is asked only while a
    /// program is on the caller's terminal, and [`Owner::stop`] follows.
    fn was_told_to_stop(&mut self) -> bool {
        false
    }
    /// Stops the process until it is continued.
    fn stop(&mut self) {}
    /// The captured streams that are given to [`Owner::output`] as they are written: standard output and
    /// standard error.
    fn streamed(&self) -> [bool; 2] {
        [false; 2]
    }
    /// Waits in the engine's place while no thread can run and nothing of the host is waited for: for this time, or
    /// until [`Owner::stop_requested`] would say so. `false` if it cannot: the engine then waits itself.
    fn wait(&mut self, _time: Duration) -> bool {
        false
    }
    /// Output of a streamed stream since it was told last. It is not kept. The program waits meanwhile.
    fn output(&mut self, _stream: Streamed, _bytes: Vec<u8>) {}
    /// Says if [`Owner::denied`] is to be called.
    fn wants_denials(&self) -> bool {
        false
    }
    /// The policy has refused something for the first time. The program waits meanwhile.
    fn denied(&mut self, _denial: &Denial) {}
    /// One traced call. To write it may take no longer than the time that is `left`, if there is a limit.
    fn trace(&mut self, line: &str, left: Option<Duration>);
}

/// An owner that wants nothing: a deadline is what ends the run.
pub(crate) struct Nobody;

impl Owner for Nobody {
    fn stop_requested(&mut self) -> bool {
        false
    }

    fn trace(&mut self, _line: &str, _left: Option<Duration>) {}
}

/// A captured stream that the owner is told of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Streamed {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The owner is told of output that is this old, in nanoseconds: a line of it need not be told at once.
const OUTPUT_DELAY_NS: u64 = 5_000_000;

/// What a step runs until.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Until {
    /// The program's end.
    End,
    /// A thread waits for a message that is not there.
    Ready,
    /// The program has sent a message.
    Message,
    /// The program has sent a message, or has given up a question that it was asked.
    Said,
    /// The called function has returned.
    Return,
    /// A thread of this process waits that can be given a function to call.
    Callable(Pid),
    /// Something has happened that the host waits for, as the holder of a box or as a client.
    News,
    /// No thread can run, and one waits for a connection.
    Listening,
}

/// Why a step stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// What was waited for has come.
    Reached,
    /// The program has ended.
    Ended(Ending),
    /// The step's time is over.
    TimedOut,
    /// The program has used its CPU time.
    OutOfCpuTime,
    /// The owner asked for it.
    Interrupted,
    /// Every thread waits, and nothing but another message can wake one.
    Stuck,
}

/// What the loop keeps from one turn to the next. Times are on the host's CLOCK_MONOTONIC.
pub(crate) struct Drive<'a> {
    until: Until,
    pub owner: &'a mut dyn Owner,
    pub limit: Limit,
    /// What is left of the time in which no thread can run.
    idle_left_ns: u64,
    /// When the owner is asked next, whatever happens.
    pub tick_ns: u64,
    /// For when the vCPU's kick is set; `None` if it has fired.
    pub armed_ns: Option<u64>,
    /// The answers that the stub gives for the running thread.
    pub running: Option<StubConstants>,
    /// When the host began to work.
    mark_ns: u64,
    /// What it works for since then.
    work: Option<Work>,
    /// The streams that the owner is told of.
    streamed: [bool; 2],
    /// The refusals that the owner has been told of; `None` if it does not want to be.
    denials_told: Option<usize>,
    /// When it is told again, if there is not much.
    output_ns: u64,
    /// When the caller's terminal is looked after next.
    pub console_ns: u64,
    /// The host has been asked for events of its sockets since the guest ran.
    has_looked: bool,
}

/// The limits on the time of a step.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Limits {
    /// The end, on the host's CLOCK_MONOTONIC.
    pub deadline_ns: Option<u64>,
    /// CPU time from now on.
    pub cpu_time: Option<Duration>,
    /// Time in which no thread can run, from now on: then it is stuck.
    pub idle: Option<Duration>,
}

impl Limits {
    /// Those of a program whose sandbox began to be made at a time.
    pub fn of(program: &Program, started_ns: u64) -> Self {
        let end_ns = |timeout| started_ns.saturating_add(duration_ns(timeout));
        Self {
            deadline_ns: program.timeout.map(end_ns),
            cpu_time: program.cpu_time,
            idle: None,
        }
    }
}

fn duration_ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl<'a> Drive<'a> {
    fn new(until: Until, limits: Limits, owner: &'a mut dyn Owner) -> Self {
        let now_ns = now_ns();
        let streamed = owner.streamed();
        let denials_told = owner.wants_denials().then_some(0);
        let cpu_ns = limits.cpu_time.map(duration_ns);
        Self {
            until,
            owner,
            limit: Limit::new(limits.deadline_ns, now_ns).with_cpu(cpu_ns, now_ns),
            idle_left_ns: limits.idle.map_or(u64::MAX, duration_ns),
            tick_ns: now_ns.saturating_add(TICK_NS),
            armed_ns: None,
            running: None,
            mark_ns: now_ns,
            work: None,
            streamed,
            denials_told,
            output_ns: now_ns,
            console_ns: now_ns,
            has_looked: false,
        }
    }

    /// Asks the owner.
    pub fn check(&mut self, now_ns: u64) -> Option<Stop> {
        self.limit.check(self.owner, now_ns)
    }
}

impl Sandbox {
    /// Runs until the program ends or its time is over.
    pub(crate) fn run(
        &mut self,
        limits: Limits,
        owner: &mut dyn Owner,
    ) -> Result<RunOutcome, EngineError> {
        let ending = match self.drive(Until::End, limits, owner)? {
            Stop::Ended(ending) => ending,
            Stop::TimedOut => Ending::Timeout,
            Stop::OutOfCpuTime => Ending::CpuTime,
            Stop::Interrupted => Ending::Interrupted,
            Stop::Reached | Stop::Stuck => {
                return Err(EngineError::Internal("a run stopped half-way".to_owned()));
            }
        };
        Ok(self.take_outcome(ending))
    }

    /// Runs until what `until` says, the program's end, the time, or the owner's wish, whichever is first.
    pub(crate) fn drive(
        &mut self,
        until: Until,
        limits: Limits,
        owner: &mut dyn Owner,
    ) -> Result<Stop, EngineError> {
        self.wake_up();
        let mut drive = Drive::new(until, limits, owner);
        self.personality.host.captured.streamed = drive.streamed;
        let mut stop = match self.tend_console(&mut drive) {
            Ok(None) => self.drive_armed(&mut drive),
            Ok(Some(stop)) => Ok(stop),
            Err(error) => Err(error),
        };
        let has_ended = matches!(stop, Ok(Stop::Ended(_)));
        if self.personality.has_console() {
            if let Some(cut) = self.drain_console(has_ended, &mut drive)? {
                stop = Ok(cut);
            }
        } else if has_ended {
            self.personality.host.settings.restore();
        }
        if has_ended && let Some(cut) = self.drain_network(&mut drive)? {
            stop = Ok(cut);
        }
        // The thread is the caller's again: a late kick would interrupt a host call of its own.
        self.guest.vcpu.arm(None)?;
        stop
    }

    /// Has the clocks go on. For a fork that runs for the first time since it was made or reset, the time since the
    /// freeze has passed at once.
    fn wake_up(&mut self) {
        if let Some(frozen) = &self.origin
            && self.woken != Some(self.generation())
        {
            let wall_ns = kvmlet_linux::realtime_ns(&self.personality.host);
            let passed_ns = wall_ns.saturating_sub(frozen.wall_ns);
            self.personality.pass_over(passed_ns);
            self.woken = Some(self.generation());
        }
        self.personality.host.clock.start();
    }

    fn drive_armed(&mut self, drive: &mut Drive<'_>) -> Result<Stop, EngineError> {
        loop {
            self.exchange_questions();
            let step = self.personality.next(&mut self.guest.vcpu);
            self.emit_trace(drive);
            if drive.streamed != [false; 2] {
                self.emit_output(drive);
            }
            self.emit_denials(drive);
            self.guest.vcpu.check()?;
            if self.has_reached(drive.until) {
                return Ok(Stop::Reached);
            }
            let stop = match step {
                Step::Run(tid) => {
                    let is_quiet = self.personality.host.outside.begin_computing();
                    if !is_quiet && !core::mem::replace(&mut drive.has_looked, true) {
                        self.personality.network_ready();
                        continue;
                    }
                    drive.has_looked = false;
                    let left = self.enter(tid, drive)?;
                    self.personality.host.outside.end_computing();
                    self.account_for(&left, drive);
                    self.settle(left, drive)?
                }
                Step::Again => self.work_again(drive)?,
                Step::Idle { deadline_ns } => self.idle(deadline_ns, drive)?,
                Step::Ended(end) => Some(Stop::Ended(ending(end))),
            };
            if let Some(stop) = stop {
                return Ok(stop);
            }
        }
    }

    fn has_reached(&self, until: Until) -> bool {
        // Of what a process has done that is about to end, some may still be taken back.
        if !self.personality.kernel.doomed.is_empty() {
            return false;
        }
        match until {
            Until::End => false,
            Until::Ready => self.personality.is_ready(),
            Until::Message => !self.personality.kernel.channel.outbox.is_empty(),
            Until::Said => self.personality.has_said(),
            Until::Return => self.personality.call_status() != CallStatus::Running,
            Until::Callable(pid) => self.personality.is_callable_in(pid),
            Until::News => self.personality.has_news(),
            Until::Listening => {
                self.personality.is_parked()
                    && !self.personality.awaits_answers()
                    && !self.personality.awaited_doors().is_empty()
            }
        }
    }

    /// The personality has worked for a while and goes on: looks at limits and hosts if it is time.
    fn work_again(&mut self, drive: &mut Drive<'_>) -> Result<Option<Stop>, EngineError> {
        let now_ns = now_ns();
        let kicked = self.guest.vcpu.take_kick();
        if kicked {
            drive.armed_ns = None;
        }
        if !kicked && now_ns < drive.tick_ns && !drive.limit.is_due(now_ns) {
            return Ok(None);
        }
        drive.tick_ns = now_ns.saturating_add(TICK_NS);
        self.poll_hosts(Duration::ZERO)?;
        match self.tend_console(drive)? {
            None => Ok(drive.check(now_ns)),
            stop => Ok(stop),
        }
    }

    /// No thread can run: waits for a host descriptor or a deadline, at most a tick.
    fn idle(
        &mut self,
        wake_ns: Option<u64>,
        drive: &mut Drive<'_>,
    ) -> Result<Option<Stop>, EngineError> {
        let for_ever = wake_ns.is_none() && !self.personality.waits_for_host();
        if for_ever && drive.until != Until::End {
            return Ok(Some(Stop::Stuck));
        }
        let before_ns = now_ns();
        self.account(drive.work.take(), before_ns.saturating_sub(drive.mark_ns));
        let mut until_ns = before_ns
            .saturating_add(TICK_NS)
            .min(drive.limit.due_ns().unwrap_or(u64::MAX));
        if let Some(wake_ns) = wake_ns {
            until_ns = until_ns.min(host_time_ns(&self.personality, wake_ns, before_ns));
        }
        let time = Duration::from_nanos(until_ns.saturating_sub(before_ns));
        let has_hosts = !self.personality.host_waits().is_empty()
            || self.personality.host.outside.as_fd().is_some();
        if has_hosts || !drive.owner.wait(time) {
            self.poll_hosts(time)?;
        }
        let after_ns = now_ns();
        drive.mark_ns = after_ns;
        let idle_ns = after_ns.saturating_sub(before_ns);
        self.times.idle_ns += idle_ns;
        drive.idle_left_ns = drive.idle_left_ns.saturating_sub(idle_ns);
        if drive.idle_left_ns == 0 {
            return Ok(Some(Stop::Stuck));
        }
        match self.tend_console(drive)? {
            None => Ok(drive.check(after_ns)),
            stop => Ok(stop),
        }
    }

    /// Counts the time before the entry as the host's, the time since as the guest's.
    fn account_for(&mut self, left: &Left, drive: &mut Drive<'_>) {
        let spent_ns = left.after_ns.saturating_sub(left.before_ns);
        if left.trap == Trap::Syscall {
            self.transport
                .note_call(left.regs.rax, left.posted.waited, spent_ns, left.after_ns);
        }
        self.account(drive.work, left.before_ns.saturating_sub(drive.mark_ns));
        drive.work = match left.trap {
            Trap::Syscall => Some(Work::Call(table::key(left.regs.rax))),
            Trap::Exception { vector: 14, .. } => Some(Work::Fault),
            _ => None,
        };
        self.times.guest_ns += spent_ns;
        drive.mark_ns = left.after_ns;
    }

    fn account(&mut self, work: Option<Work>, spent_ns: u64) {
        self.times.personality_ns += spent_ns;
        if let Some(work) = work {
            self.personality.host.report.spend(work, spent_ns);
        }
    }

    /// Answers why the thread has left, and looks at the limit.
    fn settle(&mut self, left: Left, drive: &mut Drive<'_>) -> Result<Option<Stop>, EngineError> {
        let Left {
            tid,
            regs,
            trap,
            posted,
            after_ns,
            ..
        } = left;
        if let Some(thread) = self.personality.kernel.threads.get_mut(&tid) {
            thread.regs = regs;
        }
        if trap != Trap::Syscall {
            self.personality.unwind_jump(tid, trap);
        }
        let charge_ns = ran_ns(posted.charged_ns, after_ns);
        // Before time goes on: what that wakes must be parked.
        let trap = self.settle_posted(tid, trap, posted);
        self.personality
            .handle(tid, trap, charge_ns, &mut self.guest.vcpu);
        let stop = match trap {
            Some(Trap::Interrupted) => self.kicked(after_ns, drive)?,
            Some(Trap::Broken {
                exit_reason,
                detail,
            }) => return Err(broken(exit_reason, detail)),
            _ => None,
        };
        match stop {
            None if drive.limit.is_due(after_ns) => Ok(drive.check(after_ns)),
            stop => Ok(stop),
        }
    }

    /// A signal or the vCPU's kick has come.
    fn kicked(&mut self, now_ns: u64, drive: &mut Drive<'_>) -> Result<Option<Stop>, EngineError> {
        drive.armed_ns = None;
        if let Some(stop) = drive.check(now_ns) {
            return Ok(Some(stop));
        }
        if now_ns >= drive.tick_ns {
            drive.tick_ns = now_ns.saturating_add(TICK_NS);
        }
        self.poll_hosts(Duration::ZERO)?;
        self.tend_console(drive)
    }

    fn emit_output(&mut self, drive: &mut Drive<'_>) {
        let captured = &mut self.personality.host.captured;
        let streams = [
            (Streamed::Stdout, &mut captured.stdout),
            (Streamed::Stderr, &mut captured.stderr),
        ];
        if streams.iter().all(|(_, held)| held.is_empty()) {
            return;
        }
        let now_ns = now_ns();
        let is_due = now_ns >= drive.output_ns;
        for ((stream, held), wanted) in streams.into_iter().zip(drive.streamed) {
            if wanted && !held.is_empty() && (is_due || held.len() > STREAMED_BATCH_BYTES) {
                drive.owner.output(stream, std::mem::take(held));
                drive.output_ns = now_ns.saturating_add(OUTPUT_DELAY_NS);
            }
        }
    }

    fn emit_denials(&mut self, drive: &mut Drive<'_>) {
        let Some(told) = drive.denials_told else {
            return;
        };
        let denials = &self.personality.host.report.denials;
        for denial in denials.iter().skip(told) {
            drive.owner.denied(denial);
        }
        drive.denials_told = Some(denials.len());
    }

    fn emit_trace(&mut self, drive: &mut Drive<'_>) {
        for line in self.personality.host.report.trace_lines.drain(..) {
            drive.owner.trace(&line, drive.limit.left(now_ns()));
        }
    }
}

pub(crate) fn ending(end: End) -> Ending {
    match end {
        End::Exited(status) => Ending::Exited(status),
        End::Signal(signo) => Ending::Signal(signo),
        End::Memory => Ending::Memory,
        End::Output => Ending::Output,
    }
}

/// The error of a vCPU that has left for a reason that is not known.
fn broken(exit_reason: u32, detail: u64) -> EngineError {
    EngineError::Internal(format!(
        "the virtual CPU stopped in an unknown state: exit {exit_reason}, detail {detail:#x}"
    ))
}
