//! Clocks: guest time is host time plus a per-sandbox offset on the monotonic clocks.

use std::fmt;

use kvmlet_abi::linux::Timespec;
use kvmlet_abi::linux::time::{CLOCK_BOOTTIME, CLOCK_REALTIME, CLOCK_TAI};
use kvmlet_abi::vdso_data::{VdsoClock, VdsoTimestamp};
use kvmlet_abi::{Errno, Gva};
use rustix::time::{ClockId, clock_gettime};

use crate::cx::Cx;
use crate::host::Host;

/// Nanoseconds in a second.
pub const NSEC_PER_SEC: u64 = 1_000_000_000;

/// Guest time: what calls report and the vDSO shows come from one source, so that they never
/// contradict each other.
pub trait GuestClock: fmt::Debug + Send + Sync {
    /// The time now.
    fn read(&self, clock: VdsoClock) -> VdsoTimestamp;
    /// Rewrites the vDSO's data page if that is due: `write` stores bytes at an offset of the page.
    fn update(&mut self, write: &mut dyn FnMut(usize, &[u8]));
    /// Has the monotonic clock stand at this time until [`GuestClock::start`], as while a machine sleeps: the program
    /// does not run, and what it waits for does not fall due.
    fn stop_at(&mut self, monotonic_ns: u64);
    /// Has a clock that stands go on.
    fn start(&mut self);
}

/// The host's clocks as they are, for a sandbox without a vDSO.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostClocks;

impl GuestClock for HostClocks {
    fn read(&self, clock: VdsoClock) -> VdsoTimestamp {
        let id = match clock {
            VdsoClock::Realtime | VdsoClock::Tai => ClockId::Realtime,
            VdsoClock::Monotonic => ClockId::Monotonic,
            VdsoClock::MonotonicRaw => ClockId::MonotonicRaw,
            VdsoClock::RealtimeCoarse => ClockId::RealtimeCoarse,
            VdsoClock::MonotonicCoarse => ClockId::MonotonicCoarse,
            VdsoClock::Boottime => ClockId::Boottime,
        };
        let time = clock_gettime(id);
        VdsoTimestamp::from_ns(
            time.tv_sec
                .saturating_mul(1_000_000_000)
                .saturating_add(time.tv_nsec),
        )
    }

    fn update(&mut self, _write: &mut dyn FnMut(usize, &[u8])) {}

    fn stop_at(&mut self, _monotonic_ns: u64) {}

    fn start(&mut self) {}
}

fn clock_ns(host: &Host, clock: VdsoClock) -> u64 {
    let time = host.clock.read(clock);
    let sec = u64::try_from(time.sec).unwrap_or(0);
    sec.saturating_mul(NSEC_PER_SEC).saturating_add(time.nsec)
}

/// CLOCK_REALTIME in nanoseconds since the Epoch.
#[must_use]
pub fn realtime_ns(host: &Host) -> u64 {
    clock_ns(host, VdsoClock::Realtime)
}

/// CLOCK_REALTIME in seconds since the Epoch.
#[must_use]
pub fn realtime_s(host: &Host) -> i64 {
    (realtime_ns(host) / NSEC_PER_SEC).cast_signed()
}

/// The guest's CLOCK_MONOTONIC, in nanoseconds.
#[must_use]
pub fn monotonic_ns(host: &Host) -> u64 {
    clock_ns(host, VdsoClock::Monotonic)
}

/// A system-wide clock of clock_gettime(2) by its number, in nanoseconds; `None` for others.
#[must_use]
pub fn read_ns(host: &Host, clock_id: i32) -> Option<u64> {
    // The alarm clocks show the same time as the clocks they are named after (timer_create(2)).
    let shown = match clock_id {
        8 => VdsoClock::Realtime,
        9 => VdsoClock::Boottime,
        id => VdsoClock::from_id(id)?,
    };
    Some(clock_ns(host, shown))
}

/// True for a wait that goes on while the program is frozen, as while a machine sleeps. A length of time by
/// CLOCK_REALTIME is measured by CLOCK_MONOTONIC (`hrtimer_init` in kernel/time/hrtimer.c), which stands then.
#[must_use]
pub fn goes_on_frozen(clock_id: i32, is_absolute: bool) -> bool {
    match clock_id {
        CLOCK_REALTIME => is_absolute,
        CLOCK_BOOTTIME | CLOCK_TAI => true,
        _ => false,
    }
}

/// CLOCK_BOOTTIME
#[must_use]
pub fn boottime_ns(host: &Host) -> u64 {
    clock_ns(host, VdsoClock::Boottime)
}

/// Nanoseconds as a timespec.
#[must_use]
pub fn timespec(ns: u64) -> Timespec {
    Timespec {
        tv_sec: (ns / NSEC_PER_SEC).cast_signed(),
        tv_nsec: (ns % NSEC_PER_SEC).cast_signed(),
    }
}

/// A timespec as nanoseconds, saturating.
///
/// # Errors
/// `EINVAL` for a negative second or a nanosecond outside 0..1e9 (clock_nanosleep(2)).
pub fn timespec_ns(time: Timespec) -> Result<u64, Errno> {
    let sec = u64::try_from(time.tv_sec).map_err(|_| Errno::EINVAL)?;
    let nsec = u64::try_from(time.tv_nsec).map_err(|_| Errno::EINVAL)?;
    if nsec >= NSEC_PER_SEC {
        return Err(Errno::EINVAL);
    }
    Ok(sec.saturating_mul(NSEC_PER_SEC).saturating_add(nsec))
}

/// Reads a timespec from user memory as nanoseconds.
///
/// # Errors
/// `EFAULT`; `EINVAL` as [`timespec_ns`].
pub fn read_timespec(cx: &mut Cx<'_>, gva: Gva) -> Result<u64, Errno> {
    timespec_ns(cx.read_struct(gva)?)
}

/// Fills `bytes` from the host's random number generator (getrandom(2)).
///
/// # Errors
/// `EIO` if the host cannot give any.
pub fn fill_random(bytes: &mut [u8]) -> Result<(), Errno> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => done = done.saturating_add(count),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return Err(Errno::EIO),
        }
    }
    Ok(())
}
