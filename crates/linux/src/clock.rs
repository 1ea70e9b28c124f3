//! Clocks: guest time is host time plus a per-sandbox offset on the monotonic clocks.

use kvmlet_abi::linux::Timespec;
use kvmlet_abi::{Errno, Gva};
use rustix::time::{ClockId, clock_gettime};

use crate::cx::Cx;
use crate::host::Host;

/// Nanoseconds in a second.
pub const NSEC_PER_SEC: u64 = 1_000_000_000;

fn host_ns(id: ClockId) -> u64 {
    let time = clock_gettime(id);
    let sec = u64::try_from(time.tv_sec).unwrap_or(0);
    let nsec = u64::try_from(time.tv_nsec).unwrap_or(0);
    sec.saturating_mul(NSEC_PER_SEC).saturating_add(nsec)
}

/// CLOCK_REALTIME in nanoseconds since the Epoch.
#[must_use]
pub fn realtime_ns(_host: &Host) -> u64 {
    host_ns(ClockId::Realtime)
}

/// The guest's CLOCK_MONOTONIC, in nanoseconds.
#[must_use]
pub fn monotonic_ns(host: &Host) -> u64 {
    host_ns(ClockId::Monotonic).saturating_add_signed(host.time_offset_ns)
}

/// A system-wide clock of clock_gettime(2) by its number, in nanoseconds; `None` for others.
#[must_use]
pub fn read_ns(host: &Host, clock_id: i32) -> Option<u64> {
    Some(match clock_id {
        0 => realtime_ns(host),
        1 => monotonic_ns(host),
        4 => host_ns(ClockId::MonotonicRaw).saturating_add_signed(host.time_offset_ns),
        5 => host_ns(ClockId::RealtimeCoarse),
        6 => host_ns(ClockId::MonotonicCoarse).saturating_add_signed(host.time_offset_ns),
        7 => host_ns(ClockId::Boottime).saturating_add_signed(host.time_offset_ns),
        8 => host_ns(ClockId::RealtimeAlarm),
        9 => host_ns(ClockId::BoottimeAlarm).saturating_add_signed(host.time_offset_ns),
        // The offset of TAI is the host's own: clock_gettime(2).
        11 => host_ns(ClockId::Realtime).saturating_add(37 * NSEC_PER_SEC),
        _ => return None,
    })
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
pub fn read_timespec(cx: &mut Cx<'_>, gva: u64) -> Result<u64, Errno> {
    timespec_ns(cx.read_struct(Gva(gva))?)
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
