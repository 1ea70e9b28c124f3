//! Timers that are read (timerfd_create(2)) as values.

use imbl::{OrdMap, OrdSet};
use kvmlet_abi::Errno;
use kvmlet_abi::linux::time::CLOCK_REALTIME;
use kvmlet_abi::linux::timerfd::{TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET};

use super::anon::ObjectId;
use super::ready::POLLIN;
use crate::clock;
use crate::kernel::Kernel;
use crate::outcome::Source;

/// Clock of a timer: only what its absolute times mean depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimerClock(pub i32);

/// A timer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimerFd {
    /// Its clock.
    pub clock: TimerClock,
    /// Flags of the last timerfd_settime(2) (/proc/self/fdinfo).
    pub settime_flags: u32,
    /// When it expires next or, if it has, when it did: guest monotonic nanoseconds. `None` when
    /// disarmed.
    expiry_ns: Option<u64>,
    /// Interval in nanoseconds; 0 for a single expiry.
    interval_ns: u64,
    /// Expirations not yet read.
    ticks: u64,
    /// It has expired and is not armed again before it is read or asked for (fs/timerfd.c).
    expired: bool,
    /// Its clock has been set, which the next read(2) tells (TFD_TIMER_CANCEL_ON_SET).
    cancelled: bool,
}

/// All timers, and those armed in order of expiry.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TimerFds {
    timers: OrdMap<ObjectId, TimerFd>,
    armed: OrdSet<(u64, ObjectId)>,
}

impl TimerFd {
    /// Expirations not yet read.
    #[must_use]
    pub fn ticks(&self) -> u64 {
        self.ticks
    }

    /// poll(2) events that hold.
    #[must_use]
    pub fn poll(&self) -> i16 {
        if self.ticks > 0 { POLLIN } else { 0 }
    }

    /// Counts the intervals that have passed since the expiry and arms the timer for the next.
    fn forward(&mut self, now_ns: u64) {
        if !self.expired || self.interval_ns == 0 {
            return;
        }
        let Some(expiry_ns) = self.expiry_ns else {
            return;
        };
        // The expiry itself is counted already (hrtimer_forward_now() less one).
        let passed = now_ns.saturating_sub(expiry_ns) / self.interval_ns;
        self.ticks = self.ticks.saturating_add(passed);
        let next = passed
            .saturating_add(1)
            .checked_mul(self.interval_ns)
            .and_then(|ns| ns.checked_add(expiry_ns));
        self.expiry_ns = Some(next.unwrap_or(u64::MAX));
        self.expired = false;
    }

    /// Its clock goes on while the program is frozen.
    fn goes_on(&self) -> bool {
        let is_absolute = self.settime_flags & TFD_TIMER_ABSTIME != 0;
        clock::goes_on_frozen(self.clock.0, is_absolute)
    }

    /// It is to be told when its clock is set. For that flag Linux asks for an absolute time too (fs/timerfd.c).
    fn is_told_of_clocks(&self) -> bool {
        let flags = TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET;
        self.clock.0 == CLOCK_REALTIME && self.settime_flags & flags == flags
    }

    /// (time to the next expiry, interval) in nanoseconds; the first is 0 for a disarmed timer.
    #[must_use]
    pub fn setting(&self, now_ns: u64) -> (u64, u64) {
        let left = self
            .expiry_ns
            .map_or(0, |expiry_ns| expiry_ns.saturating_sub(now_ns));
        (left, self.interval_ns)
    }
}

impl TimerFds {
    /// Adds a disarmed timer.
    pub fn create(&mut self, id: ObjectId, clock: TimerClock) {
        let timer = TimerFd {
            clock,
            settime_flags: 0,
            expiry_ns: None,
            interval_ns: 0,
            ticks: 0,
            expired: false,
            cancelled: false,
        };
        self.timers.insert(id, timer);
    }

    /// A timer.
    ///
    /// # Errors
    /// `EBADF` if it is gone (never while a description refers to it).
    pub fn get(&self, id: ObjectId) -> Result<&TimerFd, Errno> {
        self.timers.get(&id).ok_or(Errno::EBADF)
    }

    /// Removes a timer.
    pub fn remove(&mut self, id: ObjectId) {
        self.disarm(id);
        self.timers.remove(&id);
    }

    fn disarm(&mut self, id: ObjectId) {
        if let Some(expiry_ns) = self.timers.get(&id).and_then(|timer| timer.expiry_ns) {
            self.armed.remove(&(expiry_ns, id));
        }
    }

    fn arm(&mut self, id: ObjectId) {
        if let Some(timer) = self.timers.get(&id).filter(|timer| !timer.expired)
            && let Some(expiry_ns) = timer.expiry_ns
        {
            self.armed.insert((expiry_ns, id));
        }
    }

    /// Changes a timer and keeps the order of expiries.
    fn update<T>(
        &mut self,
        id: ObjectId,
        change: impl FnOnce(&mut TimerFd) -> T,
    ) -> Result<T, Errno> {
        self.disarm(id);
        let changed = self.timers.get_mut(&id).ok_or(Errno::EBADF).map(change);
        self.arm(id);
        changed
    }

    /// Takes and returns what read(2) answers: expirations since the last one; `None` if it has to wait.
    ///
    /// # Errors
    /// As [`TimerFds::get`]; `ECANCELED` once if its clock was set and that is to be told.
    pub fn take(&mut self, id: ObjectId, now_ns: u64) -> Result<Option<u64>, Errno> {
        self.update(id, |timer| {
            if core::mem::take(&mut timer.cancelled) {
                timer.ticks = 0;
                timer.expired = false;
                return Err(Errno::ECANCELED);
            }
            if timer.ticks == 0 {
                return Ok(None);
            }
            timer.forward(now_ns);
            timer.expired = false;
            if timer.interval_ns == 0 {
                timer.expiry_ns = None;
            }
            Ok(Some(core::mem::take(&mut timer.ticks)))
        })?
    }

    /// timerfd_gettime(2): (time to the next expiry, interval), in nanoseconds.
    ///
    /// # Errors
    /// As [`TimerFds::get`].
    pub fn setting(&mut self, id: ObjectId, now_ns: u64) -> Result<(u64, u64), Errno> {
        self.update(id, |timer| {
            timer.forward(now_ns);
            timer.setting(now_ns)
        })
    }

    /// timerfd_settime(2): arms the timer, or disarms it with `None`. The setting it had.
    ///
    /// # Errors
    /// As [`TimerFds::get`].
    pub fn set(
        &mut self,
        id: ObjectId,
        now_ns: u64,
        (expiry_ns, interval_ns): (Option<u64>, u64),
        flags: u32,
    ) -> Result<(u64, u64), Errno> {
        self.update(id, |timer| {
            timer.forward(now_ns);
            let old = timer.setting(now_ns);
            timer.settime_flags = flags;
            timer.expiry_ns = expiry_ns;
            timer.interval_ns = interval_ns;
            timer.ticks = 0;
            timer.expired = false;
            timer.cancelled = false;
            old
        })
    }

    /// Timers that went on while the program was frozen for `time_ns` expire that much earlier. Those that are to be told
    /// of a clock that was set: who waits for them is to be woken.
    fn pass_over(&mut self, time_ns: u64) -> Vec<ObjectId> {
        let ids: Vec<ObjectId> = self.timers.keys().copied().collect();
        let mut told = Vec::new();
        for id in ids {
            let _ = self.update(id, |timer| {
                if timer.goes_on() {
                    let expiry_ns = timer.expiry_ns.as_mut();
                    expiry_ns
                        .into_iter()
                        .for_each(|ns| *ns = ns.saturating_sub(time_ns));
                }
                if timer.is_told_of_clocks() {
                    timer.cancelled = true;
                    timer.ticks = timer.ticks.saturating_add(1);
                    told.push(id);
                }
            });
        }
        told
    }

    /// The earliest expiry, guest monotonic nanoseconds.
    #[must_use]
    pub fn next_ns(&self) -> Option<u64> {
        self.armed.get_min().map(|(expiry_ns, _)| *expiry_ns)
    }
}

impl Kernel {
    /// As [`crate::Personality::pass_over`], for timers that are read.
    pub(crate) fn pass_over_timerfds(&mut self, time_ns: u64) {
        if self.objects.timers.timers.is_empty() {
            return;
        }
        for id in self.objects.timers.pass_over(time_ns) {
            self.wake(Source::Object(id), POLLIN);
        }
    }

    /// Lets the timers expire that are due at `now_ns`, guest monotonic.
    pub fn fire_timerfds(&mut self, now_ns: u64) {
        self.with_wakes_held(|kernel| kernel.fire_timerfds_due(now_ns));
    }

    fn fire_timerfds_due(&mut self, now_ns: u64) {
        while let Some((expiry_ns, id)) = self.objects.timers.armed.get_min().copied() {
            if expiry_ns > now_ns {
                break;
            }
            self.objects.timers.armed.remove(&(expiry_ns, id));
            if let Some(timer) = self.objects.timers.timers.get_mut(&id) {
                timer.expired = true;
                timer.ticks = timer.ticks.saturating_add(1);
            }
            self.wake(Source::Object(id), POLLIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ObjectId = ObjectId(1);

    fn fire(timers: &mut TimerFds, now_ns: u64) -> bool {
        let due = timers.next_ns().is_some_and(|at| at <= now_ns);
        if due {
            let (at, id) = *timers.armed.get_min().unwrap();
            timers.armed.remove(&(at, id));
            let timer = timers.timers.get_mut(&id).unwrap();
            timer.expired = true;
            timer.ticks += 1;
        }
        due
    }

    fn timers() -> TimerFds {
        let mut timers = TimerFds::default();
        timers.create(ID, TimerClock(1));
        timers
    }

    #[test]
    fn a_single_expiry_is_counted_once() {
        let mut timers = timers();
        assert_eq!(timers.set(ID, 100, (Some(150), 0), 0), Ok((0, 0)));
        assert_eq!(timers.setting(ID, 110), Ok((40, 0)));
        assert!(!fire(&mut timers, 149) && fire(&mut timers, 150) && !fire(&mut timers, 999));
        assert_eq!(timers.setting(ID, 500), Ok((0, 0)));
        assert_eq!(timers.get(ID).unwrap().poll(), POLLIN);
        assert_eq!(timers.take(ID, 600), Ok(Some(1)));
        assert_eq!(timers.take(ID, 600), Ok(None));
        assert_eq!(timers.next_ns(), None);
    }

    #[test]
    fn intervals_are_counted_when_read() {
        let mut timers = timers();
        timers.set(ID, 0, (Some(10), 100), 0).unwrap();
        assert!(fire(&mut timers, 10));
        // It fires once only until it is read.
        assert_eq!(timers.next_ns(), None);
        assert_eq!(timers.take(ID, 350), Ok(Some(4)));
        assert_eq!(timers.next_ns(), Some(410));
        assert!(fire(&mut timers, 410));
        assert_eq!(timers.setting(ID, 515), Ok((95, 100)));
        assert!(fire(&mut timers, 610));
        assert_eq!(timers.take(ID, 610), Ok(Some(3)));
        assert_eq!(timers.set(ID, 620, (None, 0), 0), Ok((90, 100)));
        assert_eq!(timers.next_ns(), None);
        assert_eq!(timers.setting(ID, 999), Ok((0, 0)));
        timers.remove(ID);
        assert_eq!(timers, TimerFds::default());
    }

    #[test]
    fn a_clock_that_was_set_is_told_once() {
        let mut timers = TimerFds::default();
        timers.create(ID, TimerClock(CLOCK_REALTIME));
        let flags = TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET;
        timers.set(ID, 100, (Some(500), 0), flags).unwrap();
        assert_eq!(timers.pass_over(300), [ID]);
        assert_eq!(timers.get(ID).unwrap().poll(), POLLIN);
        assert_eq!(timers.take(ID, 110), Err(Errno::ECANCELED));
        assert_eq!(timers.take(ID, 110), Ok(None));
        assert_eq!(timers.next_ns(), Some(200));
        // It is not told of a length of time, which does not go on either.
        timers
            .set(ID, 100, (Some(500), 0), TFD_TIMER_CANCEL_ON_SET)
            .unwrap();
        assert_eq!(timers.pass_over(300), []);
        assert_eq!(timers.next_ns(), Some(500));
    }

    #[test]
    fn the_end_of_time_is_no_overflow() {
        let mut timers = timers();
        timers.set(ID, 0, (Some(1), u64::MAX), 0).unwrap();
        assert!(fire(&mut timers, 1));
        assert_eq!(timers.take(ID, u64::MAX), Ok(Some(1)));
        assert_eq!(timers.next_ns(), Some(u64::MAX));
    }
}
