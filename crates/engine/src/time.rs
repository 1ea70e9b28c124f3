//! Host time, and what of it is the guest's.

use kvmlet_linux::Personality;
use rustix::time::{ClockId, clock_gettime};

/// The longest time between two questions to the owner, in nanoseconds. A signal may have come in the
/// moment before the guest was entered, or while the host works for it.
pub(crate) const TICK_NS: u64 = 40_000_000;

/// The host's CLOCK_MONOTONIC, in nanoseconds.
pub(crate) fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec
        .unsigned_abs()
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec.unsigned_abs())
}

/// CPU time of the calling thread, in nanoseconds.
pub(crate) fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec
        .unsigned_abs()
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec.unsigned_abs())
}

/// The CPU time of a thread that has been inside the guest between two times. It is kicked once a tick at
/// least: beyond that the process was stopped, or had no CPU.
pub(crate) fn ran_ns(since_ns: u64, now_ns: u64) -> u64 {
    now_ns.saturating_sub(since_ns).min(2 * TICK_NS)
}

/// A time on the guest's monotonic clock as one on the host's.
pub(crate) fn host_time_ns(personality: &Personality, guest_ns: u64, now_ns: u64) -> u64 {
    let guest_now_ns = kvmlet_linux::monotonic_ns(&personality.host);
    now_ns.saturating_add(guest_ns.saturating_sub(guest_now_ns))
}
