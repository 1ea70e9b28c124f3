//! The scheduler: which thread runs next, who is parked and on what, as a value.
//!
//! The threads of a program share a vCPU; a timer kick rotates the run queue. A wake-up is never
//! lost: checking a condition and parking on it happen in one handler, under the kernel's lock.

pub mod pi;

use std::collections::BTreeMap;

use imbl::{OrdMap, OrdSet, Vector};
use kvmlet_abi::Errno;

use crate::by_id::ById;
use crate::host::HostId;
use crate::id::ObjectId;
use crate::ipc::Line;
use crate::kernel::{Kernel, Tid};
use crate::outcome::{CallState, FutexKey, Resume, Source, SysResult, Turn, Wait, WaitOn};
use crate::vector;

/// Time slice of a thread when others can run, in nanoseconds.
pub const SLICE_NS: u64 = 10_000_000;

/// A call as it was made: its number and arguments.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Call {
    /// System call number.
    pub nr: u64,
    /// Arguments.
    pub args: [u64; 6],
}

/// A parked thread's call and what it waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parked {
    /// The call.
    pub call: Call,
    /// The wait.
    pub wait: Wait,
    /// The effect of a handler with SA_RESTART that interrupts it.
    pub interrupted: AfterHandler,
}

/// The fate of a call that a signal handler has interrupted (signal(7)).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AfterHandler {
    /// It gives EINTR, whatever the handler's flags.
    #[default]
    Fails,
    /// It starts again if the handler has SA_RESTART.
    MayRestart,
    /// It starts again, whatever the handler's flags.
    Restarts,
}

/// To whom a thread gives way that could go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Yield {
    /// To nobody.
    #[default]
    No,
    /// To the child that it has just made.
    ToChild,
    /// To all others: sched_yield(2). One that waits so for another that computes would else keep it from that.
    ToAll,
}

/// Run queue, parked threads, deadlines.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sched {
    /// Threads that can run, next first. The running thread is not in it.
    pub run_queue: Vector<Tid>,
    /// Threads that can run and have used up a slice, next first: see [`Sched::take_next`].
    spent: Vector<Tid>,
    /// Time that those of the run queue have had since one of `spent` had its turn, in nanoseconds.
    ahead_ns: u64,
    /// The thread that was taken last came from the run queue.
    is_ahead: bool,
    /// Threads that could run, were their process not stopped.
    pub stopped: Vector<Tid>,
    /// Parked threads.
    pub parked: ById<Tid, Parked>,
    /// Who is parked on each source, with the poll(2) events that it waits for. What a wake costs is by
    /// who waits for its source, not by who waits.
    waiters: OrdMap<(Source, Tid), i16>,
    /// Calls to make again before their thread enters the guest.
    pub retries: ById<Tid, (Call, CallState)>,
    /// Parked threads with a deadline, in order of guest monotonic nanoseconds.
    pub deadlines: OrdSet<(u64, Tid)>,
    /// To whom the running thread gives way.
    pub yielding: Yield,
    /// Waiters of each futex, first come first woken.
    pub futexes: OrdMap<FutexKey, Vector<Tid>>,
    /// Mutexes with priority inheritance.
    pub pi: pi::PiMutexes,
    /// Threads that wait for a message, first come first woken.
    pub receivers: Vector<Tid>,
    /// Threads that wait for objects of System V IPC, first come first served.
    pub lines: OrdMap<Line, Vector<Tid>>,
}

impl Sched {
    /// Adds a thread that can run.
    pub fn make_ready(&mut self, tid: Tid) {
        self.run_queue.push_back(tid);
    }

    /// Adds a thread that can run and has used up its slice, or given it up.
    pub fn end_slice(&mut self, tid: Tid) {
        self.spent.push_back(tid);
    }

    /// Threads that can run, without the running one.
    #[must_use]
    pub fn ready_count(&self) -> usize {
        self.run_queue.len().saturating_add(self.spent.len())
    }

    /// True if a thread can run beside the running one.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !(self.run_queue.is_empty() && self.spent.is_empty())
    }

    /// Takes the thread that is next; the one before it had the virtual CPU for `ran_ns`.
    ///
    /// A thread that has slept goes before those that computed for a whole slice. Otherwise each hand-over of a pipe
    /// would wait for a slice of any program that computes beside. Those that go ahead have one slice in all, then it
    /// is the turn of one that computes: nobody waits for ever.
    pub fn take_next(&mut self, ran_ns: u64) -> Option<Tid> {
        if self.spent.is_empty() {
            self.ahead_ns = 0;
        } else if self.is_ahead {
            self.ahead_ns = self.ahead_ns.saturating_add(ran_ns);
        }
        self.is_ahead =
            !self.run_queue.is_empty() && (self.spent.is_empty() || self.ahead_ns < SLICE_NS);
        if self.is_ahead {
            return self.run_queue.pop_front();
        }
        self.ahead_ns = 0;
        self.spent.pop_front()
    }

    /// Parks a thread in a call that never restarts.
    pub fn park(&mut self, tid: Tid, call: Call, wait: Wait) {
        self.park_call(tid, call, wait, AfterHandler::Fails);
    }

    /// Parks a thread.
    pub fn park_call(&mut self, tid: Tid, call: Call, wait: Wait, interrupted: AfterHandler) {
        if let Some(deadline_ns) = wait.deadline_ns {
            self.deadlines.insert((deadline_ns, tid));
        }
        if let WaitOn::Futex(key, _) | WaitOn::Requeue(key, _) = wait.on {
            self.futexes.entry(key).or_default().push_back(tid);
        }
        if let WaitOn::PiMutex(key, owner) = wait.on {
            self.pi.wait(key, tid, owner);
        }
        if let WaitOn::Line(line, _) = wait.on {
            self.lines.entry(line).or_default().push_back(tid);
        }
        if wait.on == WaitOn::Message {
            self.receivers.push_back(tid);
        }
        if let WaitOn::Sources(sources) = &wait.on {
            for source in sources {
                let (key, events) = waiter_key(*source);
                *self.waiters.entry((key, tid)).or_default() |= events;
            }
        }
        let parked = Parked {
            call,
            wait,
            interrupted,
        };
        self.parked.insert(tid, parked);
    }

    /// Takes a thread out of every queue it is parked in. `None` if it is not parked.
    pub fn unpark(&mut self, tid: Tid) -> Option<Parked> {
        let parked = self.parked.remove(&tid)?;
        if let Some(deadline_ns) = parked.wait.deadline_ns {
            self.deadlines.remove(&(deadline_ns, tid));
        }
        if let WaitOn::Futex(key, _) | WaitOn::Requeue(key, _) = parked.wait.on {
            self.leave_futex(key, tid);
        }
        if let WaitOn::PiMutex(key, _) = parked.wait.on {
            self.pi.leave(key, tid);
        }
        if let WaitOn::Line(line, _) = parked.wait.on {
            self.leave_line(line, tid);
        }
        if parked.wait.on == WaitOn::Message {
            vector::retain(&mut self.receivers, |waiter| *waiter != tid);
        }
        if let WaitOn::Sources(sources) = &parked.wait.on {
            for source in sources {
                self.waiters.remove(&(waiter_key(*source).0, tid));
            }
        }
        Some(parked)
    }

    fn leave_futex(&mut self, key: FutexKey, tid: Tid) {
        let empty = self.futexes.get_mut(&key).is_some_and(|queue| {
            vector::retain(queue, |waiter| *waiter != tid);
            queue.is_empty()
        });
        if empty {
            self.futexes.remove(&key);
        }
    }

    fn leave_line(&mut self, line: Line, tid: Tid) {
        let empty = self.lines.get_mut(&line).is_some_and(|queue| {
            vector::retain(queue, |waiter| *waiter != tid);
            queue.is_empty()
        });
        if empty {
            self.lines.remove(&line);
        }
    }

    /// The threads in a line, first come first.
    pub fn in_line(&self, line: Line) -> impl Iterator<Item = Tid> {
        self.lines.get(&line).into_iter().flatten().copied()
    }

    /// Forgets a thread that has ended.
    pub fn forget(&mut self, tid: Tid) {
        self.unpark(tid);
        self.retries.remove(&tid);
        vector::retain(&mut self.run_queue, |queued| *queued != tid);
        vector::retain(&mut self.spent, |queued| *queued != tid);
        vector::retain(&mut self.stopped, |queued| *queued != tid);
    }

    fn waiters_of(&self, source: Source) -> impl Iterator<Item = Tid> {
        let (key, _) = waiter_key(source);
        let all = (key, Tid(i32::MIN))..=(key, Tid(i32::MAX));
        self.waiters.range(all).map(|((_, tid), _)| *tid)
    }

    /// True if a thread is parked on `source`.
    #[must_use]
    pub fn is_awaited(&self, source: Source) -> bool {
        self.waiters_of(source).next().is_some()
    }

    /// True if a thread is parked on `source` in this call.
    #[must_use]
    pub fn is_awaited_by(&self, source: Source, nr: u64) -> bool {
        let mut waiters = self.waiters_of(source);
        waiters.any(|tid| {
            self.parked
                .get(&tid)
                .is_some_and(|parked| parked.call.nr == nr)
        })
    }

    /// The objects that threads are parked on.
    pub fn awaited_objects(&self) -> impl Iterator<Item = ObjectId> {
        let sources = self.waiters.keys().map(|(source, _)| *source);
        sources.filter_map(|source| match source {
            Source::Object(id) => Some(id),
            _ => None,
        })
    }

    /// Wakes every thread parked on `source`: their calls are made again.
    pub fn wake_source(&mut self, source: Source) {
        if self.waiters.is_empty() {
            return;
        }
        let woken: Vec<Tid> = self.waiters_of(source).collect();
        for tid in woken {
            self.retry(tid, false);
        }
    }

    /// True if nothing of the guest's may come before `tid` goes on: it is in the middle of a call that is
    /// one step.
    #[must_use]
    pub fn keeps_turn(&self, tid: Tid) -> bool {
        let again = self.retries.get(&tid);
        again.is_some_and(|(_, state)| state.turn == Turn::Kept)
    }

    /// Makes a parked thread's call again; `expired` says that its deadline has passed.
    pub fn retry(&mut self, tid: Tid, expired: bool) {
        let Some(parked) = self.unpark(tid) else {
            return;
        };
        if let Resume::Retry(mut state) = parked.wait.resume {
            state.expired = state.expired || expired;
            self.retries.insert(tid, (parked.call, state));
        }
        self.make_ready(tid);
    }

    /// The earliest deadline of a parked thread, guest monotonic nanoseconds.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.deadlines
            .get_min()
            .map(|(deadline_ns, _)| *deadline_ns)
    }

    /// Has those deadlines come earlier by `by_ns` that are of calls which `moves` says so of.
    pub fn move_deadlines(&mut self, by_ns: u64, moves: impl Fn(&Call) -> bool) {
        let waiting: Vec<(u64, Tid)> = self.deadlines.iter().copied().collect();
        for (deadline_ns, tid) in waiting {
            let Some(parked) = self.parked.get_mut(&tid).filter(|it| moves(&it.call)) else {
                continue;
            };
            let earlier_ns = deadline_ns.saturating_sub(by_ns);
            parked.wait.deadline_ns = Some(earlier_ns);
            if let Resume::Retry(state) = &mut parked.wait.resume
                && state.deadline_ns.is_some()
            {
                state.deadline_ns = Some(earlier_ns);
            }
            self.deadlines.remove(&(deadline_ns, tid));
            self.deadlines.insert((earlier_ns, tid));
        }
    }

    /// Waits for host descriptors: the first of all sources.
    fn host_waits(&self) -> impl Iterator<Item = (HostId, i16)> {
        let first = (Source::Host(HostId(0), 0), Tid(i32::MIN));
        self.waiters
            .range(first..)
            .map_while(|((source, _), events)| match source {
                Source::Host(id, _) => Some((*id, *events)),
                _ => None,
            })
    }

    /// True if any parked thread waits for a host descriptor. Asked at every call: an iterator of the map would
    /// be an allocation.
    #[must_use]
    pub fn waits_for_host(&self) -> bool {
        let first = self.waiters.get_min();
        matches!(first, Some(((Source::Host(..), _), _)))
    }

    /// The host descriptors waited for, with the poll(2) events of all who wait. Each is there once, since
    /// poll(2) takes no more of them than a process may have open.
    #[must_use]
    pub fn host_sources(&self) -> BTreeMap<HostId, i16> {
        let mut found: BTreeMap<HostId, i16> = BTreeMap::new();
        for (id, events) in self.host_waits() {
            *found.entry(id).or_default() |= events;
        }
        found
    }
}

/// A source as the waiters are kept by it, and the poll(2) events of a wait for it.
fn waiter_key(source: Source) -> (Source, i16) {
    match source {
        Source::Host(id, events) => (Source::Host(id, 0), events),
        other => (other, 0),
    }
}

impl Kernel {
    /// Ends a parked thread's wait with a result in `rax`, delivered rather than asked for again.
    pub fn deliver(&mut self, tid: Tid, result: SysResult) {
        if self.sched.unpark(tid).is_none() {
            return;
        }
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.regs.rax = rax_of(result);
            self.sched.make_ready(tid);
        }
    }

    /// Wakes at most `max` waiters of a futex whose bitset meets `bitset`; returns how many.
    pub fn wake_futex(&mut self, key: FutexKey, bitset: u32, max: u64) -> u64 {
        let Some(queue) = self.sched.futexes.get(&key) else {
            return 0;
        };
        let chosen: Vec<Tid> = queue
            .iter()
            .filter(|tid| {
                self.sched.parked.get(*tid).is_some_and(|parked| {
                    matches!(parked.wait.on, WaitOn::Futex(_, wanted) if wanted & bitset != 0)
                })
            })
            .take(usize::try_from(max).unwrap_or(usize::MAX))
            .copied()
            .collect();
        let mut woken = 0u64;
        for tid in chosen {
            self.deliver(tid, Ok(0));
            woken = woken.saturating_add(1);
        }
        woken
    }

    /// Moves at most `max` waiters of `from` to `to` without waking them; returns how many.
    ///
    /// # Errors
    /// `EINVAL` if one of them waits to be moved to a mutex with priority inheritance: those before it have been moved
    /// (futex_requeue in kernel/futex/requeue.c).
    pub fn requeue_futex(&mut self, from: FutexKey, to: FutexKey, max: u64) -> SysResult {
        if from == to {
            return Ok(0);
        }
        let Some(queue) = self.sched.futexes.get(&from) else {
            return Ok(0);
        };
        let max = usize::try_from(max).unwrap_or(usize::MAX).min(queue.len());
        let is_plain = |tid: &&Tid| {
            let parked = self.sched.parked.get(*tid);
            parked.is_some_and(|parked| matches!(parked.wait.on, WaitOn::Futex(..)))
        };
        let chosen: Vec<Tid> = queue
            .iter()
            .take(max)
            .take_while(is_plain)
            .copied()
            .collect();
        let is_cut = chosen.len() < max;
        let mut moved = 0u64;
        for tid in chosen {
            if let Some(parked) = self.sched.parked.get_mut(&tid)
                && let WaitOn::Futex(key, _) = &mut parked.wait.on
            {
                *key = to;
                self.sched.leave_futex(from, tid);
                self.sched.futexes.entry(to).or_default().push_back(tid);
                moved = moved.saturating_add(1);
            }
        }
        match is_cut {
            true => Err(Errno::EINVAL),
            false => Ok(moved),
        }
    }

    /// Makes the call of the first thread that waits for a message again: one that can run, if there is any.
    pub fn wake_receiver(&mut self) {
        let receivers = &self.sched.receivers;
        let running = receivers.iter().find(|tid| !self.is_stopped(**tid));
        if let Some(tid) = running.or(receivers.front()).copied() {
            self.sched.retry(tid, false);
        }
    }

    /// Ends the waits whose deadline is at or before `now_ns` (guest monotonic).
    pub fn expire(&mut self, now_ns: u64) {
        while let Some((deadline_ns, tid)) = self.sched.deadlines.get_min().copied() {
            if deadline_ns > now_ns {
                break;
            }
            let resume = self
                .sched
                .parked
                .get(&tid)
                .map(|parked| parked.wait.resume.clone());
            match resume {
                Some(Resume::Deliver { at_deadline, .. }) => self.deliver(tid, at_deadline),
                Some(Resume::Retry(_)) => self.sched.retry(tid, true),
                None => {
                    self.sched.deadlines.remove(&(deadline_ns, tid));
                }
            }
        }
    }
}

/// The value of `rax` for a result.
#[must_use]
pub fn rax_of(result: SysResult) -> u64 {
    match result {
        Ok(value) => value,
        Err(errno) => errno.as_rax(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::MmId;
    use imbl::vector;

    fn futex_wait(key: FutexKey, bitset: u32, deadline_ns: Option<u64>) -> Wait {
        Wait {
            on: WaitOn::Futex(key, bitset),
            deadline_ns,
            resume: Resume::Deliver {
                at_deadline: Err(Errno::ETIMEDOUT),
                remain_gva: 0,
            },
        }
    }

    #[test]
    fn unpark_leaves_no_queue_behind() {
        let key = FutexKey::Private(MmId(1), 0x1000);
        let mut sched = Sched::default();
        sched.park(Tid(1), Call::default(), futex_wait(key, 1, Some(5)));
        sched.park(Tid(2), Call::default(), futex_wait(key, 1, None));
        assert_eq!(sched.next_deadline_ns(), Some(5));
        sched.unpark(Tid(1));
        assert_eq!(sched.next_deadline_ns(), None);
        assert_eq!(sched.futexes.get(&key), Some(&vector![Tid(2)]));
        sched.forget(Tid(2));
        assert_eq!(sched, Sched::default());
    }

    #[test]
    fn who_has_slept_goes_before_who_computes_for_one_slice_in_all() {
        let mut sched = Sched::default();
        let (sleeper, first, second) = (Tid(1), Tid(2), Tid(3));
        sched.end_slice(first);
        sched.end_slice(second);
        let mut turns = Vec::new();
        for _ in 0..12 {
            if !sched.run_queue.contains(&sleeper) {
                sched.make_ready(sleeper);
            }
            let Some(next) = sched.take_next(match turns.last() {
                Some(&last) if last == sleeper => SLICE_NS / 3,
                Some(_) => SLICE_NS,
                None => 0,
            }) else {
                panic!("nobody is next");
            };
            if next != sleeper {
                sched.end_slice(next);
            }
            turns.push(next);
        }
        let ahead = [sleeper, sleeper, sleeper, sleeper];
        let one_after_the_other = [&ahead[..], &[first], &ahead[..], &[second]].concat();
        assert_eq!(turns[..10], one_after_the_other);
        sched.forget(first);
        sched.forget(second);
        sched.forget(sleeper);
        assert!(!sched.has_ready());
        assert_eq!(sched.take_next(SLICE_NS), None);
    }

    #[test]
    fn a_plain_requeue_stops_at_who_waits_for_a_mutex() {
        let key = |at| FutexKey::Private(MmId(1), at);
        let (from, to) = (key(0x1000), key(0x3000));
        let mut kernel = crate::testing::Sandbox::new(std::path::Path::new("/usr/share")).kernel;
        let before = kernel.sched.clone();
        let to_mutex = Wait {
            on: WaitOn::Requeue(from, key(0x2000)),
            ..futex_wait(from, 1, None)
        };
        let plain = || futex_wait(from, 1, None);
        for (tid, wait) in [(11, plain()), (12, to_mutex), (13, plain())] {
            kernel.sched.park(Tid(tid), Call::default(), wait);
        }
        assert_eq!(kernel.requeue_futex(from, to, 1), Ok(1));
        assert_eq!(kernel.requeue_futex(from, to, u64::MAX), Err(Errno::EINVAL));
        assert_eq!(kernel.sched.futexes.get(&to), Some(&vector![Tid(11)]));
        for tid in [11, 12, 13] {
            kernel.sched.forget(Tid(tid));
        }
        assert_eq!(kernel.sched, before);
    }

    #[test]
    fn deadlines_move_for_some_calls() {
        let key = FutexKey::Private(MmId(1), 0x1000);
        let mut sched = Sched::default();
        for (tid, nr) in [(1, 7), (2, 8), (3, 7)] {
            let call = Call { nr, args: [0; 6] };
            sched.park(Tid(tid), call, futex_wait(key, 1, Some(10 * tid as u64)));
        }
        sched.move_deadlines(15, |call| call.nr == 7);
        let deadlines: Vec<_> = sched.deadlines.iter().copied().collect();
        assert_eq!(deadlines, [(0, Tid(1)), (15, Tid(3)), (20, Tid(2))]);
        assert_eq!(sched.parked[&Tid(3)].wait.deadline_ns, Some(15));
        // Who has waited longest is still woken first.
        assert_eq!(sched.futexes[&key], vector![Tid(1), Tid(2), Tid(3)]);
        for tid in 1..=3 {
            sched.forget(Tid(tid));
        }
        assert_eq!(sched, Sched::default());
    }

    #[test]
    fn a_source_wakes_only_its_waiters() {
        let mut sched = Sched::default();
        let wait = |pipe| Wait {
            on: WaitOn::Sources(vector![Source::Pipe(pipe)]),
            deadline_ns: None,
            resume: Resume::Retry(CallState::default()),
        };
        sched.park(
            Tid(1),
            Call {
                nr: 7,
                args: [0; 6],
            },
            wait(1),
        );
        sched.park(Tid(2), Call::default(), wait(2));
        assert!(sched.is_awaited(Source::Pipe(1)) && sched.is_awaited(Source::Pipe(2)));
        sched.wake_source(Source::Pipe(1));
        assert!(!sched.is_awaited(Source::Pipe(1)) && sched.is_awaited(Source::Pipe(2)));
        assert_eq!(sched.run_queue, vector![Tid(1)]);
        assert_eq!(sched.retries.get(&Tid(1)).map(|(call, _)| call.nr), Some(7));
        assert!(sched.parked.contains_key(&Tid(2)));
    }

    #[test]
    fn a_host_descriptor_is_waited_for_with_the_events_of_all() {
        let mut sched = Sched::default();
        let wait = |events: &[i16]| Wait {
            on: WaitOn::Sources(
                events
                    .iter()
                    .map(|events| Source::Host(HostId(3), *events))
                    .chain([Source::Pipe(0)])
                    .collect(),
            ),
            deadline_ns: None,
            resume: Resume::Retry(CallState::default()),
        };
        sched.park(Tid(1), Call::default(), wait(&[1, 2]));
        sched.park(Tid(2), Call::default(), wait(&[4]));
        assert!(sched.waits_for_host());
        assert_eq!(sched.host_sources(), BTreeMap::from([(HostId(3), 7)]));
        sched.unpark(Tid(1));
        assert_eq!(sched.host_sources(), BTreeMap::from([(HostId(3), 4)]));
        sched.wake_source(Source::Host(HostId(3), 0));
        assert!(!sched.waits_for_host() && sched.waiters.is_empty());
        assert_eq!(sched.run_queue, vector![Tid(2)]);
    }
}
