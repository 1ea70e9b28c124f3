//! The run loop: enter the guest, hear why it left, let the personality answer, until it ends.

use std::time::Duration;

use kvmlet_abi::call_page::Closed;
use kvmlet_abi::layout::StubConstant;
use kvmlet_abi::{Trap, UserRegs};
use kvmlet_linux::guest_call::CallStatus;
use kvmlet_linux::kernel::{End, Tid};
use kvmlet_linux::personality::{Made, Personality, Step};
use kvmlet_linux::report::Work;
use kvmlet_linux::signal::signo::SIGBUS;
use kvmlet_linux::syscalls::table;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::limit::Limit;
use crate::outcome::{Ending, RunOutcome};
use crate::sandbox::Sandbox;
use crate::time::{TICK_NS, host_time_ns, now_ns, ran_ns};
use crate::transport::{Busy, Returned, Waited};
use crate::{EngineError, flush};

/// Who runs the sandbox: asked whether to stop, told what is traced.
pub trait Owner {
    /// Called after a signal and every few hundredths of a second; `true` ends the run.
    fn stop_requested(&mut self) -> bool;
    /// Whether the process has been continued after a stop since this was asked last (SIGCONT): a limit on
    /// time leaves the stop out then.
    fn was_continued(&mut self) -> bool {
        false
    }
    /// One traced call. To write it may take no longer than the time that is `left`, if there is a limit.
    fn trace(&mut self, line: &str, left: Option<Duration>);
}

/// What a step runs until.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Until {
    /// The program's end.
    End,
    /// A thread waits for a message that is not there.
    Ready,
    /// The program has sent a message.
    Message,
    /// The called function has returned.
    Return,
    /// A thread waits that can be given a function to call.
    Callable,
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
    /// The owner asked for it.
    Interrupted,
    /// Every thread waits, and nothing but another message can wake one.
    Stuck,
}

/// What a run of the guest came to, besides its trap.
#[derive(Debug)]
struct Posted {
    waited: Waited,
    /// Until when the thread has been charged for its CPU time.
    charged_ns: u64,
    closed: Closed,
    made: Option<Made>,
}

impl Sandbox {
    /// Runs until the program ends or the time is over (on the host's CLOCK_MONOTONIC).
    pub(crate) fn run(
        &mut self,
        deadline_ns: Option<u64>,
        owner: &mut dyn Owner,
    ) -> Result<RunOutcome, EngineError> {
        let ending = match self.drive(Until::End, deadline_ns, owner)? {
            Stop::Ended(ending) => ending,
            Stop::TimedOut => Ending::Timeout,
            Stop::Interrupted => Ending::Interrupted,
            Stop::Reached | Stop::Stuck => {
                return Err(EngineError::Internal("a run stopped half-way".to_owned()));
            }
        };
        Ok(self.take_outcome(ending))
    }

    fn has_reached(&self, until: Until) -> bool {
        match until {
            Until::End => false,
            Until::Ready => self.personality.is_ready(),
            Until::Message => !self.personality.kernel.channel.outbox.is_empty(),
            Until::Return => self.personality.call_status() != CallStatus::Running,
            Until::Callable => self.personality.is_callable(),
        }
    }

    pub(crate) fn drive(
        &mut self,
        until: Until,
        deadline_ns: Option<u64>,
        owner: &mut dyn Owner,
    ) -> Result<Stop, EngineError> {
        let stop = self.drive_armed(until, deadline_ns, owner);
        if matches!(stop, Ok(Stop::Ended(_))) {
            self.personality.host.settings.restore();
        }
        // The thread is the caller's again: a late kick would interrupt a host call of its own.
        self.guest.vcpu.arm(None)?;
        stop
    }

    fn drive_armed(
        &mut self,
        until: Until,
        deadline_ns: Option<u64>,
        owner: &mut dyn Owner,
    ) -> Result<Stop, EngineError> {
        let mut mark_ns = now_ns();
        let mut armed_ns: Option<u64> = None;
        let mut running: Option<Tid> = None;
        let mut tick_ns = mark_ns.saturating_add(TICK_NS);
        // What the host has done since the guest left.
        let mut work = None;
        let mut limit = Limit::new(deadline_ns, mark_ns);
        loop {
            let step = self.personality.next(&mut self.guest.vcpu);
            self.emit_trace(owner, &limit);
            self.guest.vcpu.check()?;
            if self.has_reached(until) {
                return Ok(Stop::Reached);
            }
            let tid = match step {
                Step::Run(tid) => tid,
                Step::Ended(end) => return Ok(Stop::Ended(ending(end))),
                Step::Again => {
                    let now_ns = now_ns();
                    let kicked = self.guest.vcpu.take_kick();
                    if kicked {
                        armed_ns = None;
                    }
                    if kicked || now_ns >= tick_ns || limit.is_due(now_ns) {
                        tick_ns = now_ns.saturating_add(TICK_NS);
                        self.poll_hosts(Duration::ZERO)?;
                        if let Some(stop) = limit.check(owner, now_ns) {
                            return Ok(stop);
                        }
                    }
                    continue;
                }
                Step::Idle {
                    deadline_ns: wake_ns,
                } => {
                    let for_ever =
                        wake_ns.is_none() && !self.personality.kernel.sched.waits_for_host();
                    if for_ever && until != Until::End {
                        return Ok(Stop::Stuck);
                    }
                    let before_ns = now_ns();
                    self.account(work.take(), before_ns.saturating_sub(mark_ns));
                    self.idle(wake_ns, limit.deadline_ns(), before_ns)?;
                    mark_ns = now_ns();
                    self.times.idle_ns += mark_ns.saturating_sub(before_ns);
                    if let Some(stop) = limit.check(owner, mark_ns) {
                        return Ok(stop);
                    }
                    continue;
                }
            };
            if running != Some(tid) {
                self.write_constant(StubConstant::Tid, u64::from(tid.0.cast_unsigned()))?;
                running = Some(tid);
            }
            self.prepare_entry()?;
            let before_ns = now_ns();
            self.arm(&mut armed_ns, limit.deadline_ns(), tick_ns, before_ns)?;
            let Some(mut regs) = self.personality.kernel.threads.get(&tid).map(|t| t.regs) else {
                return Err(EngineError::Internal(
                    "the chosen thread is gone".to_owned(),
                ));
            };
            let (trap, posted) = self.enter_guest(tid, &mut regs, armed_ns, before_ns)?;
            let after_ns = now_ns();
            let spent_ns = after_ns.saturating_sub(before_ns);
            if trap == Trap::Syscall {
                self.transport
                    .note_call(regs.rax, posted.waited, spent_ns, after_ns);
            }
            self.account(work, before_ns.saturating_sub(mark_ns));
            work = work_of(trap, &regs);
            self.times.guest_ns += spent_ns;
            mark_ns = after_ns;
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
            match trap {
                Some(Trap::Interrupted) => {
                    armed_ns = None;
                    if let Some(stop) = limit.check(owner, after_ns) {
                        return Ok(stop);
                    }
                    if after_ns >= tick_ns {
                        tick_ns = after_ns.saturating_add(TICK_NS);
                    }
                    self.poll_hosts(Duration::ZERO)?;
                }
                Some(Trap::Broken {
                    exit_reason,
                    detail,
                }) => {
                    return Err(EngineError::Internal(format!(
                        "the virtual CPU stopped in an unknown state: exit {exit_reason}, detail {detail:#x}"
                    )));
                }
                _ => {}
            }
            if limit.is_due(after_ns)
                && let Some(stop) = limit.check(owner, after_ns)
            {
                return Ok(stop);
            }
        }
    }

    fn account(&mut self, work: Option<Work>, spent_ns: u64) {
        self.times.personality_ns += spent_ns;
        if let Some(work) = work {
            self.personality.host.report.spend(work, spent_ns);
        }
    }

    /// Runs a thread in ring 3 until it leaves. Where a poller serves this sandbox, it answers the
    /// thread's calls meanwhile.
    fn enter_guest(
        &mut self,
        tid: Tid,
        regs: &mut UserRegs,
        armed_ns: Option<u64>,
        now_ns: u64,
    ) -> Result<(Trap, Posted), EngineError> {
        let vcpu = &mut self.guest.vcpu;
        let link = match self.personality.host.report.trace {
            true => None,
            false => self
                .transport
                .link_for_entry(vcpu.call_page(), || vcpu.tsc_khz()),
        };
        let busy = Busy::enter();
        let Some(link) = link else {
            let trap = vcpu.run(regs);
            let waited = match vcpu.waiting() {
                Some(_) => Waited::Unclaimed,
                None => Waited::No,
            };
            let posted = Posted {
                waited,
                charged_ns: now_ns,
                closed: Closed::Unclaimed,
                made: None,
            };
            return Ok((trap, posted));
        };
        let Some(personality) = self.personality.lend() else {
            return Err(EngineError::Internal("the personality is lent".to_owned()));
        };
        link.lend(personality, tid, armed_ns.unwrap_or(0), now_ns);
        let trap = vcpu.run(regs);
        drop(busy);
        let Returned {
            personality,
            charged_ns,
            closed,
            made,
            failed,
        } = link.take_back(vcpu.waiting())?;
        self.personality.give_back(personality);
        if let Some(error) = failed {
            return Err(error);
        }
        let waited = match (vcpu.waiting(), closed) {
            (None, _) => Waited::No,
            (Some(_), Closed::Unclaimed) => {
                link.note_stall();
                Waited::Unclaimed
            }
            (Some(_), Closed::Answered(_) | Closed::Made | Closed::Stray | Closed::Refused) => {
                Waited::Claimed
            }
        };
        Ok((
            trap,
            Posted {
                waited,
                charged_ns,
                closed,
                made,
            },
        ))
    }

    /// Does what a posted call has come to. Returns the trap that is still to be handled: a guest that
    /// left from a call which has been made meanwhile has nothing else to say.
    fn settle_posted(&mut self, tid: Tid, trap: Trap, posted: Posted) -> Option<Trap> {
        match (posted.closed, posted.made) {
            // It was told to leave, and went where a slot is still missing: its own doing.
            (Closed::Made | Closed::Stray, _) if matches!(trap, Trap::Broken { .. }) => {
                self.is_suspect = true;
                self.personality.kernel.kill_all(SIGBUS);
                None
            }
            _ if matches!(trap, Trap::Broken { .. }) => Some(trap),
            (Closed::Answered(result), _) => {
                if let Some(thread) = self.personality.kernel.threads.get_mut(&tid) {
                    thread.regs.rax = result;
                }
                None
            }
            (Closed::Stray, Some(made)) if made.is_done() => Some(trap),
            (Closed::Made | Closed::Stray, Some(made)) => {
                self.personality.finish(tid, made);
                None
            }
            (Closed::Made | Closed::Stray, None) | (Closed::Unclaimed | Closed::Refused, _) => {
                Some(trap)
            }
        }
    }

    /// What must be true before ring 3 runs: slots known, stale translations gone, clock fresh.
    fn prepare_entry(&mut self) -> Result<(), EngineError> {
        let Personality { host, machine, .. } = &mut *self.personality;
        for slot in machine.memory.take_new_slots() {
            self.guest.vm.set_slot(slot)?;
        }
        if flush::discharge(&mut self.guest, machine)? {
            self.full_flushes = self.full_flushes.saturating_add(1);
        }
        let (memory, data) = (&mut machine.memory, self.setup.vdso.data);
        host.clock.update(&mut |offset, bytes| {
            // The page is the VM's own and always present: a failed write cannot happen.
            let _ = memory.write(data.wrapping_add(offset as u64), bytes);
        });
        Ok(())
    }

    /// Sets the kick for the earliest thing that must interrupt the guest. The timer is left alone
    /// while it fires early enough: an early kick costs little, a host call at every entry much.
    fn arm(
        &mut self,
        armed_ns: &mut Option<u64>,
        deadline_ns: Option<u64>,
        tick_ns: u64,
        now_ns: u64,
    ) -> Result<(), EngineError> {
        let mut wanted_ns = tick_ns.min(deadline_ns.unwrap_or(u64::MAX));
        if let Some(kick_ns) = self.personality.kick_ns() {
            wanted_ns = wanted_ns.min(host_time_ns(&self.personality, kick_ns, now_ns));
        }
        if armed_ns.is_none_or(|armed_ns| armed_ns > wanted_ns || armed_ns <= now_ns) {
            self.guest.vcpu.arm(Some(wanted_ns))?;
            *armed_ns = Some(wanted_ns);
        }
        Ok(())
    }

    /// Waits for a host descriptor or a deadline, at most a tick.
    fn idle(
        &mut self,
        wake_ns: Option<u64>,
        deadline_ns: Option<u64>,
        now_ns: u64,
    ) -> Result<(), EngineError> {
        let mut until_ns = now_ns
            .saturating_add(TICK_NS)
            .min(deadline_ns.unwrap_or(u64::MAX));
        if let Some(wake_ns) = wake_ns {
            until_ns = until_ns.min(host_time_ns(&self.personality, wake_ns, now_ns));
        }
        self.poll_hosts(Duration::from_nanos(until_ns.saturating_sub(now_ns)))
    }

    fn poll_hosts(&mut self, wait: Duration) -> Result<(), EngineError> {
        let waits = self.personality.host_waits();
        if waits.is_empty() && wait.is_zero() {
            return Ok(());
        }
        let mut files = Vec::with_capacity(waits.len());
        for (id, events) in &waits {
            if let Ok(fd) = self.personality.host.fd(*id) {
                files.push((
                    *id,
                    fd,
                    PollFlags::from_bits_truncate(events.cast_unsigned()),
                ));
            }
        }
        let mut fds: Vec<PollFd<'_>> = files
            .iter()
            .map(|(_, fd, events)| PollFd::new(fd.as_ref(), *events))
            .collect();
        let timeout = Timespec::try_from(wait).unwrap_or_default();
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(EngineError::Host(format!("poll: {error}"))),
        }
        let ready: Vec<_> = fds
            .iter()
            .zip(&files)
            .filter(|(fd, _)| !fd.revents().is_empty())
            .map(|(_, (id, _, _))| *id)
            .collect();
        for id in ready {
            self.personality.host_ready(id);
        }
        Ok(())
    }

    fn emit_trace(&mut self, owner: &mut dyn Owner, limit: &Limit) {
        for line in self.personality.host.report.trace_lines.drain(..) {
            owner.trace(&line, limit.left(now_ns()));
        }
    }
}

/// The kind of work that a trap makes.
fn work_of(trap: Trap, regs: &UserRegs) -> Option<Work> {
    match trap {
        Trap::Syscall => Some(Work::Call(table::key(regs.rax))),
        Trap::Exception { vector: 14, .. } => Some(Work::Fault),
        _ => None,
    }
}

fn ending(end: End) -> Ending {
    match end {
        End::Exited(status) => Ending::Exited(status),
        End::Signal(signo) => Ending::Signal(signo),
        End::Memory => Ending::Memory,
        End::Output => Ending::Output,
    }
}
