//! Timers as values: interval timers (setitimer(2)), POSIX timers (timer_create(2)), and sleeps on
//! CPU clocks (clock_nanosleep(2)).
//!
//! Every armed timer stands in one ordered set of its [`Timeline`], so that the earliest is found
//! without looking at the others. Times are nanoseconds on the timer's timeline.

use imbl::{OrdMap, OrdSet};

use crate::kernel::{Kernel, Pid, Tid};
use crate::outcome::WaitOn;
use crate::signal::{SI_KERNEL, SI_TIMER, SigDetail, SigInfo, signo};

/// Least distance of two expiries that nobody acknowledges, and of two CPU-time expiries, in
/// nanoseconds. It is a tick of a 250 Hz kernel, at which Linux looks at such timers.
pub const TICK_NS: i64 = 4_000_000;
/// Largest overrun count (DELAYTIMER_MAX).
const OVERRUN_MAX: i64 = i32::MAX as i64;

/// The clock that a timer's time is measured by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Timeline {
    /// The guest's CLOCK_MONOTONIC. Timers on the other system-wide clocks are converted to it.
    Monotonic,
    /// CPU time of a process.
    Process(Pid),
    /// CPU time of a thread.
    Thread(Tid),
}

/// The interval timers of setitimer(2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Interval {
    /// ITIMER_REAL
    Real,
    /// ITIMER_VIRTUAL
    Virtual,
    /// ITIMER_PROF; all CPU time is user time, so that it advances as ITIMER_VIRTUAL does.
    Prof,
}

/// Name of something that expires.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum TimerKey {
    /// An interval timer.
    Interval(Pid, Interval),
    /// A POSIX timer by its id.
    Posix(Pid, i32),
    /// A thread that sleeps on a CPU clock.
    Sleep(Tid),
    /// RLIMIT_CPU of a process.
    CpuLimit(Pid),
}

/// When a timer expires. Every field is 0 while it is disarmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Setting {
    /// Next expiry, or the last one while `queued` is false.
    pub expires_ns: i64,
    /// Distance of expiries; 0 for a single one.
    pub interval_ns: i64,
    /// True if it stands in the ordered set. An interval timer whose signal has not been taken yet
    /// does not; nor does one that notifies nobody.
    pub queued: bool,
}

impl Setting {
    /// Moves the expiry behind `now_ns` by whole intervals and says by how many.
    fn forward(&mut self, now_ns: i64) -> i64 {
        if self.interval_ns <= 0 || now_ns < self.expires_ns {
            return 0;
        }
        let passed = now_ns.saturating_sub(self.expires_ns) / self.interval_ns;
        let count = passed.saturating_add(1);
        let by = self.interval_ns.saturating_mul(count);
        self.expires_ns = self.expires_ns.saturating_add(by);
        count
    }

    /// As [`Setting::forward`], but shorter intervals than a tick move at least a tick behind `now_ns`.
    fn forward_coarsely(&mut self, now_ns: i64) -> i64 {
        if self.interval_ns < TICK_NS {
            self.forward(now_ns.saturating_add(TICK_NS))
        } else {
            self.forward(now_ns)
        }
    }
}

/// The time that a POSIX timer is set to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expiry {
    /// On the timer's timeline.
    pub at_ns: i64,
    /// See [`PosixTimer::goes_on`].
    pub goes_on: bool,
}

/// Whom a POSIX timer tells of its expiry (sigevent(3type)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notify {
    /// SIGEV_NONE
    Nobody,
    /// SIGEV_SIGNAL, or SIGEV_THREAD, which only the C library knows.
    Process,
    /// SIGEV_THREAD_ID
    Thread(Tid),
}

/// A POSIX timer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PosixTimer {
    /// The clock it was created on.
    pub clock_id: i32,
    /// The clock that its time is measured by.
    pub timeline: Timeline,
    /// Whom it tells.
    pub notify: Notify,
    /// sigev_notify as given, for /proc/self/timers.
    pub sigev_notify: i32,
    /// sigev_signo
    pub signo: u8,
    /// sigev_value
    pub value: u64,
    /// When it expires.
    pub setting: Setting,
    /// It goes on while the program is frozen ([`crate::clock::goes_on_frozen`]).
    pub goes_on: bool,
    /// The signal of its last expiry has not been taken, and it is re-armed when it is.
    pub unacknowledged: bool,
    /// Expiries passed over since the last signal.
    pub missed: i64,
    /// timer_getoverrun(2): overrun count of the last signal taken.
    pub overrun: i32,
}

/// All timers of a kernel.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Timers {
    intervals: OrdMap<(Pid, Interval), Setting>,
    posix: OrdMap<(Pid, i32), PosixTimer>,
    /// Last id given in each process.
    next_ids: OrdMap<Pid, i32>,
    sleepers: OrdMap<Tid, (Timeline, i64)>,
    /// CPU time at which RLIMIT_CPU is looked at next, in nanoseconds.
    cpu_limits: OrdMap<Pid, i64>,
    /// The timers of each timeline, the next to expire first; no set is empty.
    queues: OrdMap<Timeline, OrdSet<(i64, TimerKey)>>,
}

impl Timers {
    fn enqueue(&mut self, timeline: Timeline, at_ns: i64, key: TimerKey) {
        self.queues
            .entry(timeline)
            .or_default()
            .insert((at_ns, key));
    }

    fn dequeue(&mut self, timeline: Timeline, at_ns: i64, key: TimerKey) {
        let empty = self.queues.get_mut(&timeline).is_some_and(|queue| {
            queue.remove(&(at_ns, key));
            queue.is_empty()
        });
        if empty {
            self.queues.remove(&timeline);
        }
    }

    /// The earliest expiry on a timeline.
    #[must_use]
    pub fn earliest_ns(&self, timeline: Timeline) -> Option<i64> {
        let queue = self.queues.get(&timeline)?;
        queue.get_min().map(|(at_ns, _)| *at_ns)
    }

    /// True if nothing waits for time to pass.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.queues.is_empty()
    }

    /// True if there is a POSIX timer, armed or not.
    #[must_use]
    pub fn has_posix(&self) -> bool {
        !self.posix.is_empty()
    }

    /// A POSIX timer.
    #[must_use]
    pub fn posix(&self, pid: Pid, id: i32) -> Option<&PosixTimer> {
        self.posix.get(&(pid, id))
    }

    /// The POSIX timers of a process, by id.
    pub fn posix_of(&self, pid: Pid) -> impl Iterator<Item = (i32, &PosixTimer)> {
        self.posix
            .range((pid, i32::MIN)..=(pid, i32::MAX))
            .map(|((_, id), timer)| (*id, timer))
    }

    /// POSIX timers of all processes.
    #[must_use]
    pub fn posix_count(&self) -> usize {
        self.posix.len()
    }

    /// The id that the next timer of a process gets.
    #[must_use]
    pub fn next_id(&self, pid: Pid) -> i32 {
        let mut id = self.next_ids.get(&pid).copied().unwrap_or(0);
        while self.posix.contains_key(&(pid, id)) {
            id = following(id);
        }
        id
    }

    /// Adds a POSIX timer under an id of [`Timers::next_id`].
    pub fn create(&mut self, pid: Pid, id: i32, timer: PosixTimer) {
        self.next_ids.insert(pid, following(id));
        self.posix.insert((pid, id), timer);
    }

    fn interval_timeline(pid: Pid, which: Interval) -> Timeline {
        match which {
            Interval::Real => Timeline::Monotonic,
            Interval::Virtual | Interval::Prof => Timeline::Process(pid),
        }
    }

    /// The setting of an interval timer.
    #[must_use]
    pub fn interval(&self, pid: Pid, which: Interval) -> Setting {
        self.intervals
            .get(&(pid, which))
            .copied()
            .unwrap_or_default()
    }

    fn put_interval(&mut self, pid: Pid, which: Interval, setting: Setting) {
        let timeline = Self::interval_timeline(pid, which);
        let key = TimerKey::Interval(pid, which);
        let old = self.interval(pid, which);
        if old.queued {
            self.dequeue(timeline, old.expires_ns, key);
        }
        if setting.queued {
            self.enqueue(timeline, setting.expires_ns, key);
        }
        if setting == Setting::default() {
            self.intervals.remove(&(pid, which));
        } else {
            self.intervals.insert((pid, which), setting);
        }
    }

    fn put_posix(&mut self, pid: Pid, id: i32, timer: PosixTimer) {
        self.take_posix(pid, id);
        if timer.setting.queued {
            self.enqueue(
                timer.timeline,
                timer.setting.expires_ns,
                TimerKey::Posix(pid, id),
            );
        }
        self.posix.insert((pid, id), timer);
    }

    fn take_posix(&mut self, pid: Pid, id: i32) -> Option<PosixTimer> {
        let timer = self.posix.remove(&(pid, id))?;
        if timer.setting.queued {
            self.dequeue(
                timer.timeline,
                timer.setting.expires_ns,
                TimerKey::Posix(pid, id),
            );
        }
        Some(timer)
    }

    /// Timers that went on while the program was frozen for `time_ns` expire that much earlier by CLOCK_MONOTONIC.
    pub fn pass_over(&mut self, time_ns: u64) {
        let time_ns = i64::try_from(time_ns).unwrap_or(i64::MAX);
        let goes_on = |timer: &PosixTimer| timer.goes_on && timer.setting != Setting::default();
        let moved: Vec<((Pid, i32), PosixTimer)> = self
            .posix
            .iter()
            .filter(|(_, timer)| goes_on(timer))
            .map(|(name, timer)| (*name, timer.clone()))
            .collect();
        for ((pid, id), mut timer) in moved {
            let expires_ns = timer.setting.expires_ns.saturating_sub(time_ns);
            // 0 stands for a timer that is disarmed.
            timer.setting.expires_ns = if expires_ns == 0 { -1 } else { expires_ns };
            self.put_posix(pid, id, timer);
        }
    }

    /// A thread begins to sleep on a CPU clock until `at_ns`.
    pub fn sleep(&mut self, tid: Tid, timeline: Timeline, at_ns: i64) {
        self.wake(tid);
        self.sleepers.insert(tid, (timeline, at_ns));
        self.enqueue(timeline, at_ns, TimerKey::Sleep(tid));
    }

    fn wake(&mut self, tid: Tid) {
        if let Some((timeline, at_ns)) = self.sleepers.remove(&tid) {
            self.dequeue(timeline, at_ns, TimerKey::Sleep(tid));
        }
    }

    /// RLIMIT_CPU of a process is looked at when it has used this much CPU time; `None` for never.
    pub(crate) fn set_cpu_limit(&mut self, pid: Pid, at_ns: Option<i64>) {
        let (timeline, key) = (Timeline::Process(pid), TimerKey::CpuLimit(pid));
        if let Some(old_ns) = self.cpu_limits.remove(&pid) {
            self.dequeue(timeline, old_ns, key);
        }
        if let Some(at_ns) = at_ns {
            self.cpu_limits.insert(pid, at_ns);
            self.enqueue(timeline, at_ns, key);
        }
    }

    /// A thread has ended: nothing sleeps for it, and no timer on its CPU clock expires any more.
    pub fn thread_gone(&mut self, tid: Tid) {
        self.wake(tid);
        let Some(queue) = self.queues.remove(&Timeline::Thread(tid)) else {
            return;
        };
        for (_, key) in queue {
            match key {
                TimerKey::Posix(pid, id) => {
                    if let Some(timer) = self.posix.get_mut(&(pid, id)) {
                        timer.setting = Setting::default();
                    }
                }
                TimerKey::Sleep(tid) => {
                    self.sleepers.remove(&tid);
                }
                TimerKey::Interval(..) | TimerKey::CpuLimit(_) => {}
            }
        }
    }
}

fn following(id: i32) -> i32 {
    id.checked_add(1).unwrap_or(0)
}

/// The fate of a sent signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sent {
    Pending,
    Dropped,
}

impl Kernel {
    /// The time on a timeline, `now_ns` being the guest's CLOCK_MONOTONIC; `None` for the CPU clock of
    /// what is gone.
    #[must_use]
    pub fn time_on(&self, timeline: Timeline, now_ns: u64) -> Option<i64> {
        let ns = match timeline {
            Timeline::Monotonic => now_ns,
            Timeline::Process(pid) => self.processes.get(&pid)?.cpu_time_ns,
            Timeline::Thread(tid) => self.threads.get(&tid)?.cpu_time_ns,
        };
        Some(i64::try_from(ns).unwrap_or(i64::MAX))
    }

    /// Adds CPU time to a thread and its process, and fires the timers that this makes due.
    pub fn charge_cpu(&mut self, tid: Tid, spent_ns: u64) {
        let Some(thread) = self.threads.get_mut(&tid) else {
            return;
        };
        thread.cpu_time_ns = thread.cpu_time_ns.saturating_add(spent_ns);
        self.cpu_time_ns = self.cpu_time_ns.saturating_add(spent_ns);
        let pid = thread.pid;
        if let Some(process) = self.processes.get_mut(&pid) {
            process.cpu_time_ns = process.cpu_time_ns.saturating_add(spent_ns);
        }
        if !self.timers.is_idle() {
            self.fire_due(Timeline::Process(pid), 0);
            self.fire_due(Timeline::Thread(tid), 0);
        }
    }

    /// CPU time after which a timer on a running thread's clocks expires, in nanoseconds.
    #[must_use]
    pub fn cpu_until_expiry_ns(&self, tid: Tid) -> Option<u64> {
        if self.timers.is_idle() {
            return None;
        }
        let pid = self.threads.get(&tid)?.pid;
        [Timeline::Process(pid), Timeline::Thread(tid)]
            .into_iter()
            .filter_map(|timeline| {
                let left = self
                    .timers
                    .earliest_ns(timeline)?
                    .saturating_sub(self.time_on(timeline, 0)?);
                Some(u64::try_from(left).unwrap_or(0))
            })
            .min()
    }

    /// Fires what is due on a timeline. A timer fires once at most, since whatever it does next is
    /// later than now.
    pub fn fire_due(&mut self, timeline: Timeline, now_ns: u64) {
        let Some(now) = self.time_on(timeline, now_ns) else {
            return;
        };
        let Some(queue) = self.timers.queues.get(&timeline) else {
            return;
        };
        let due: Vec<TimerKey> = queue
            .iter()
            .take_while(|(at_ns, _)| *at_ns <= now)
            .map(|(_, key)| *key)
            .collect();
        if due.is_empty() {
            return;
        }
        self.with_wakes_held(|kernel| {
            for key in due {
                match key {
                    TimerKey::Interval(pid, which) => kernel.fire_interval(pid, which, now),
                    TimerKey::Posix(pid, id) => kernel.fire_posix(pid, id, now),
                    TimerKey::Sleep(tid) => kernel.end_sleep(tid),
                    TimerKey::CpuLimit(pid) => kernel.fire_cpu_limit(pid),
                }
            }
        });
    }

    fn end_sleep(&mut self, tid: Tid) {
        let slept = self.timers.sleepers.get(&tid).copied();
        self.timers.wake(tid);
        // A thread that a signal has woken meanwhile sleeps no more, or for something else.
        let parked = self.sched.parked.get(&tid).map(|parked| &parked.wait.on);
        if let (Some((timeline, at_ns)), Some(WaitOn::CpuTime(waited, until_ns))) = (slept, parked)
            && timeline == *waited
            && at_ns == *until_ns
        {
            self.deliver(tid, Ok(0));
        }
    }

    fn fire_interval(&mut self, pid: Pid, which: Interval, now: i64) {
        let mut setting = self.timers.interval(pid, which);
        let signo = match which {
            Interval::Real => signo::SIGALRM,
            Interval::Virtual => signo::SIGVTALRM,
            Interval::Prof => signo::SIGPROF,
        };
        if setting.interval_ns == 0 {
            setting = Setting::default();
        } else if which == Interval::Real {
            // It goes on when its signal is taken (dequeue_signal in kernel/signal.c), and so stops
            // for good when SIGALRM is ignored.
            setting.queued = false;
        } else {
            setting.forward_coarsely(now);
        }
        self.timers.put_interval(pid, which, setting);
        let info = SigInfo {
            signo,
            code: SI_KERNEL,
            ..SigInfo::default()
        };
        let _ = self.send_to_process(pid, info);
    }

    fn fire_posix(&mut self, pid: Pid, id: i32, now: i64) {
        let Some(mut timer) = self.timers.take_posix(pid, id) else {
            return;
        };
        timer.setting.queued = false;
        let detail = SigDetail::Timer {
            id,
            overrun: 0,
            value: timer.value,
        };
        let info = SigInfo {
            signo: timer.signo,
            code: SI_TIMER,
            detail,
            ..SigInfo::default()
        };
        if timer.notify != Notify::Nobody {
            self.prepare_job_signal(pid, timer.signo);
        }
        let sent = match timer.notify {
            Notify::Nobody => Sent::Dropped,
            Notify::Process if self.drops_for_process(pid, timer.signo) => Sent::Dropped,
            Notify::Process => sent(self.send_to_process(pid, info)),
            Notify::Thread(tid) if self.drops_for_thread(tid, timer.signo) => Sent::Dropped,
            Notify::Thread(tid) => sent(self.send_to_thread(tid, info)),
        };
        if timer.setting.interval_ns == 0 {
            timer.setting = Setting::default();
        } else if sent == Sent::Pending {
            timer.unacknowledged = true;
        } else {
            let passed = timer.setting.forward_coarsely(now);
            timer.missed = timer.missed.saturating_add(passed);
            timer.setting.queued = true;
        }
        self.timers.put_posix(pid, id, timer);
    }

    /// Sets a POSIX timer, or disarms it with `expires` of `None`. What is pending of its
    /// earlier expiries is dropped.
    pub fn set_posix_timer(
        &mut self,
        (pid, id): (Pid, i32),
        expires: Option<Expiry>,
        interval_ns: i64,
        now_ns: u64,
    ) {
        self.drop_timer_signal(pid, id);
        let Some(mut timer) = self.timers.take_posix(pid, id) else {
            return;
        };
        timer.unacknowledged = false;
        timer.missed = 0;
        timer.overrun = 0;
        timer.goes_on = expires.is_some_and(|expires| expires.goes_on);
        timer.setting = match expires {
            None => Setting::default(),
            Some(Expiry { at_ns, .. }) => Setting {
                expires_ns: at_ns,
                interval_ns,
                queued: timer.notify != Notify::Nobody,
            },
        };
        let timeline = timer.timeline;
        self.timers.put_posix(pid, id, timer);
        self.fire_due(timeline, now_ns);
    }

    /// Time left to the next expiry and the interval (timer_gettime(2)); 0 for a disarmed timer.
    #[must_use]
    pub fn posix_timer_left(&self, (pid, id): (Pid, i32), now_ns: u64) -> Option<(i64, i64)> {
        let timer = self.timers.posix(pid, id)?;
        let mut setting = timer.setting;
        if setting.expires_ns == 0 && setting.interval_ns == 0 {
            return Some((0, 0));
        }
        let Some(now) = self.time_on(timer.timeline, now_ns) else {
            return Some((0, 0));
        };
        setting.forward(now);
        let left = setting.expires_ns.saturating_sub(now);
        // A timer that is about to tell of its expiry still reads as armed (posix-timers.c).
        let least = i64::from(timer.notify != Notify::Nobody);
        Some((left.max(least), setting.interval_ns))
    }

    /// Removes a POSIX timer, and its signal if that is pending. Says whether there was one.
    pub fn delete_posix_timer(&mut self, pid: Pid, id: i32) -> bool {
        self.drop_timer_signal(pid, id);
        self.timers.take_posix(pid, id).is_some()
    }

    /// Removes all timers of a process that ends.
    pub fn timers_gone(&mut self, pid: Pid) {
        self.delete_posix_timers(pid);
        for which in [Interval::Real, Interval::Virtual, Interval::Prof] {
            self.set_interval_timer((pid, which), None, 0);
        }
        self.timers.set_cpu_limit(pid, None);
    }

    /// execve(2) removes the POSIX timers; interval timers go on.
    pub fn delete_posix_timers(&mut self, pid: Pid) {
        let ids: Vec<i32> = self.timers.posix_of(pid).map(|(id, _)| id).collect();
        for id in ids {
            self.delete_posix_timer(pid, id);
        }
    }

    fn drop_timer_signal(&mut self, pid: Pid, id: i32) {
        let Some(timer) = self.timers.posix(pid, id) else {
            return;
        };
        match timer.notify {
            Notify::Nobody => {}
            Notify::Process => {
                if let Some(process) = self.processes.get_mut(&pid) {
                    process.signals.pending.discard_timer(id);
                }
            }
            Notify::Thread(tid) => {
                if let Some(thread) = self.threads.get_mut(&tid) {
                    thread.signals.pending.discard_timer(id);
                }
            }
        }
    }

    /// Sets an interval timer to expire at `expires_ns`, or disarms it.
    pub fn set_interval_timer(
        &mut self,
        (pid, which): (Pid, Interval),
        expires_ns: Option<i64>,
        interval_ns: i64,
    ) {
        let setting = expires_ns.map_or_else(Setting::default, |expires_ns| Setting {
            expires_ns,
            interval_ns,
            queued: true,
        });
        self.timers.put_interval(pid, which, setting);
    }

    /// Time left on an interval timer and its interval (getitimer(2)); 0 for a disarmed one and for one
    /// whose signal has not been taken.
    #[must_use]
    pub fn interval_timer_left(&self, (pid, which): (Pid, Interval), now_ns: u64) -> (i64, i64) {
        let setting = self.timers.interval(pid, which);
        let timeline = Timers::interval_timeline(pid, which);
        let now = self.time_on(timeline, now_ns).unwrap_or(0);
        let left = if setting.queued {
            setting.expires_ns.saturating_sub(now).max(1)
        } else {
            0
        };
        (left, setting.interval_ns)
    }

    /// The timeline that an interval timer runs on.
    #[must_use]
    pub fn interval_timeline(pid: Pid, which: Interval) -> Timeline {
        Timers::interval_timeline(pid, which)
    }

    /// A signal has been taken from a pending set: the timer that sent it goes on, and `info` learns how
    /// many expiries it stands for.
    pub(crate) fn acknowledge(&mut self, pid: Pid, info: &mut SigInfo, now_ns: u64) {
        if let SigDetail::Timer { id, overrun, .. } = &mut info.detail {
            *overrun = self.acknowledge_posix(pid, *id, now_ns);
        }
        let mut real = self.timers.interval(pid, Interval::Real);
        if info.signo == signo::SIGALRM && !real.queued && real.interval_ns > 0 {
            real.forward(i64::try_from(now_ns).unwrap_or(i64::MAX));
            real.queued = true;
            self.timers.put_interval(pid, Interval::Real, real);
        }
    }

    fn acknowledge_posix(&mut self, pid: Pid, id: i32, now_ns: u64) -> i32 {
        let Some(mut timer) = self.timers.posix(pid, id).cloned() else {
            return 0;
        };
        if !timer.unacknowledged {
            return 0;
        }
        timer.unacknowledged = false;
        if let Some(now) = self.time_on(timer.timeline, now_ns) {
            // The expiry that was signalled is itself no overrun.
            let passed = timer.setting.forward(now).saturating_sub(1).max(0);
            let total = timer.missed.saturating_add(passed).min(OVERRUN_MAX);
            timer.overrun = i32::try_from(total).unwrap_or(i32::MAX);
            timer.setting.queued = true;
        }
        timer.missed = 0;
        let overrun = timer.overrun;
        self.timers.put_posix(pid, id, timer);
        overrun
    }
}

fn sent(result: Result<(), kvmlet_abi::Errno>) -> Sent {
    if result.is_ok() {
        Sent::Pending
    } else {
        Sent::Dropped
    }
}

mod cpu_limit;
#[cfg(test)]
mod tests;
