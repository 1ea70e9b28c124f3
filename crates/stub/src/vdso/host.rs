//! Readings of the host's clocks and its time stamp counter.

use std::arch::x86_64::{__cpuid, _mm_lfence, _mm_mfence, _rdtsc};

/// A host clock of clock_gettime(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct HostClockId(pub libc::clockid_t);

pub(super) const MONOTONIC: HostClockId = HostClockId(libc::CLOCK_MONOTONIC);
pub(super) const MONOTONIC_RAW: HostClockId = HostClockId(libc::CLOCK_MONOTONIC_RAW);
pub(super) const REALTIME: HostClockId = HostClockId(libc::CLOCK_REALTIME);
pub(super) const MONOTONIC_COARSE: HostClockId = HostClockId(libc::CLOCK_MONOTONIC_COARSE);
pub(super) const BOOTTIME: HostClockId = HostClockId(libc::CLOCK_BOOTTIME);
pub(super) const TAI: HostClockId = HostClockId(libc::CLOCK_TAI);

const NS_PER_SEC: i64 = 1_000_000_000;
const SAMPLE_TRIES: u32 = 5;

/// The host's TSC, read after every earlier load has completed (SDM vol. 2B, RDTSC).
pub(super) fn tsc() -> u64 {
    // SAFETY: LFENCE and RDTSC exist on every x86-64 processor and touch no memory; a process
    // forbids RDTSC to itself only by prctl(PR_SET_TSC).
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

/// The host's TSC, read after every earlier store is visible to all processors.
pub(super) fn tsc_after_stores() -> u64 {
    // SAFETY: MFENCE exists on every x86-64 processor and touches no memory.
    unsafe { _mm_mfence() };
    tsc()
}

/// Nanoseconds since the clock's epoch; 0 for a clock that the host lacks.
pub(super) fn now_ns(clock: HostClockId) -> i64 {
    timespec_ns(|ts| {
        // SAFETY: `ts` is a valid, writable timespec.
        unsafe { libc::clock_gettime(clock.0, ts) }
    })
}

/// Resolution of the clock in nanoseconds; 0 for a clock that the host lacks.
pub(super) fn resolution_ns(clock: HostClockId) -> u32 {
    let ns = timespec_ns(|ts| {
        // SAFETY: `ts` is a valid, writable timespec.
        unsafe { libc::clock_getres(clock.0, ts) }
    });
    u32::try_from(ns).unwrap_or(0)
}

fn timespec_ns(call: impl FnOnce(&mut libc::timespec) -> libc::c_int) -> i64 {
    let mut ts = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    if call(&mut ts) != 0 {
        return 0;
    }
    ts.tv_sec
        .saturating_mul(NS_PER_SEC)
        .saturating_add(ts.tv_nsec)
}

/// A host clock and the TSC, read at the same moment up to an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sample {
    /// Host TSC.
    pub tsc: u64,
    /// Host clock.
    pub ns: i64,
    /// The clock was read within this many ticks of `tsc`.
    pub error_ticks: u64,
}

/// The tightest of a few samples: a try during which the thread was descheduled loses.
pub(super) fn sample(clock: HostClockId) -> Sample {
    let mut best = sample_once(clock);
    for _ in 1..SAMPLE_TRIES {
        let next = sample_once(clock);
        if next.error_ticks < best.error_ticks {
            best = next;
        }
    }
    best
}

fn sample_once(clock: HostClockId) -> Sample {
    let before = tsc();
    let ns = now_ns(clock);
    let after = tsc();
    let width = after.saturating_sub(before);
    Sample {
        tsc: before.saturating_add(width / 2),
        ns,
        error_ticks: width.div_ceil(2),
    }
}

/// Bounds of `clock` minus CLOCK_MONOTONIC in nanoseconds, both inclusive.
pub(super) fn offset_from_monotonic(clock: HostClockId) -> (i64, i64) {
    let (mut low, mut high) = (i64::MIN, i64::MAX);
    for _ in 0..SAMPLE_TRIES {
        let before = now_ns(MONOTONIC);
        let ns = now_ns(clock);
        let after = now_ns(MONOTONIC);
        let (try_low, try_high) = (ns.saturating_sub(after), ns.saturating_sub(before));
        if try_low > high || try_high < low {
            // The clock was set between two tries.
            (low, high) = (try_low, try_high);
        } else {
            (low, high) = (low.max(try_low), high.min(try_high));
        }
    }
    (low, high)
}

/// CLOCK_TAI minus CLOCK_REALTIME: leap seconds, 0 on a host that was not told of them.
pub(super) fn tai_offset_sec() -> i64 {
    let (wall, tai) = (now_ns(REALTIME), now_ns(TAI));
    if tai == 0 {
        return 0;
    }
    tai.saturating_sub(wall)
        .saturating_add(NS_PER_SEC / 2)
        .div_euclid(NS_PER_SEC)
}

/// Whether the host's kernel keeps time by the TSC, which it does only after it has found it stable
/// and the same on every processor. A paravirtual clock is a function of the TSC too, but follows
/// migrations: it counts only with an invariant TSC.
#[expect(
    clippy::disallowed_methods,
    reason = "a fact about the host, not a file for a guest"
)]
pub(super) fn tsc_is_trusted() -> bool {
    const CURRENT: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    match std::fs::read_to_string(CURRENT) {
        Ok(name) if name.trim() == "tsc" => true,
        Ok(name) if name.trim() == "kvm-clock" => tsc_is_invariant(),
        Ok(_) => false,
        Err(_) => tsc_is_invariant(),
    }
}

/// CPUID leaf 0x80000007, EDX bit 8 (SDM vol. 3B, 18.17.1 "Invariant TSC").
fn tsc_is_invariant() -> bool {
    const POWER_LEAF: u32 = 0x8000_0007;
    __cpuid(0x8000_0000).eax >= POWER_LEAF && __cpuid(POWER_LEAF).edx & (1 << 8) != 0
}
