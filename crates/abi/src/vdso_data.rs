//! The vDSO's data page: what the in-guest clock functions read, and their arithmetic.
//!
//! One page directly before the vDSO image, read-only for the guest and private to each VM. The
//! host rewrites it under a sequence count (odd while it is being written), as Linux does with its
//! own `vvar` page. [`VdsoData::read`] computes the same as the C code in the guest: a system call
//! answered on the host and a vDSO call agree.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Clocks that the data page can answer; the values are the clock ids of clock_gettime(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum VdsoClock {
    /// CLOCK_REALTIME
    Realtime = 0,
    /// CLOCK_MONOTONIC
    Monotonic = 1,
    /// CLOCK_MONOTONIC_RAW: not slewed by NTP.
    MonotonicRaw = 4,
    /// CLOCK_REALTIME_COARSE
    RealtimeCoarse = 5,
    /// CLOCK_MONOTONIC_COARSE
    MonotonicCoarse = 6,
    /// CLOCK_BOOTTIME: counts time in suspend.
    Boottime = 7,
    /// CLOCK_TAI
    Tai = 11,
}

impl VdsoClock {
    /// Every clock of the page.
    pub const ALL: [Self; 7] = [
        Self::Realtime,
        Self::Monotonic,
        Self::MonotonicRaw,
        Self::RealtimeCoarse,
        Self::MonotonicCoarse,
        Self::Boottime,
        Self::Tai,
    ];

    /// The clock of a clock_gettime(2) id, if the page holds it.
    pub fn from_id(clock_id: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|clock| clock.id() == clock_id)
    }

    /// The id that clock_gettime(2) takes.
    pub const fn id(self) -> i32 {
        self as i32
    }

    /// True for the clocks that advance once per tick.
    pub const fn is_coarse(self) -> bool {
        matches!(self, Self::RealtimeCoarse | Self::MonotonicCoarse)
    }
}

/// A point in time; `nsec` is below 10^9.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct VdsoTimestamp {
    /// Seconds since the clock's epoch.
    pub sec: i64,
    /// Nanoseconds in the second.
    pub nsec: u64,
}

impl VdsoTimestamp {
    /// From nanoseconds since the clock's epoch.
    pub fn from_ns(ns: i64) -> Self {
        Self {
            sec: ns.div_euclid(NS_PER_SEC as i64),
            // rem_euclid of a positive divisor is never negative.
            nsec: ns.rem_euclid(NS_PER_SEC as i64).unsigned_abs(),
        }
    }

    /// Nanoseconds since the clock's epoch, saturating after the year 2262.
    pub fn as_ns(self) -> i64 {
        let nsec = i64::try_from(self.nsec).unwrap_or(i64::MAX);
        self.sec
            .saturating_mul(NS_PER_SEC as i64)
            .saturating_add(nsec)
    }
}

/// Nanoseconds in a second.
pub const NS_PER_SEC: u64 = 1_000_000_000;
/// `mode`: the vDSO makes the system call.
pub const VDSO_MODE_CALL: u32 = 0;
/// `mode`: the vDSO computes from the TSC.
pub const VDSO_MODE_TSC: u32 = 1;
/// Fraction bits of `mult` and `mult_raw`: nanoseconds = (ticks * mult) >> VDSO_SHIFT, with a
/// 128-bit product that cannot overflow. A compile-time constant, for a variable 128-bit shift
/// would cost a branch per call.
pub const VDSO_SHIFT: u32 = 40;
/// Slots of the table of bases, indexed by clock id.
pub const VDSO_CLOCK_SLOTS: usize = 12;

/// The contents of the data page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VdsoData {
    /// Odd while the host writes the rest.
    pub seq: u32,
    /// [`VDSO_MODE_CALL`] or [`VDSO_MODE_TSC`].
    pub mode: u32,
    /// Guest TSC at which every base was taken.
    pub tsc_base: u64,
    /// Nanoseconds per tick of all clocks but CLOCK_MONOTONIC_RAW, with [`VDSO_SHIFT`] fraction bits.
    pub mult: u64,
    /// Nanoseconds per tick of CLOCK_MONOTONIC_RAW, with [`VDSO_SHIFT`] fraction bits.
    pub mult_raw: u64,
    /// Value of each clock at `tsc_base`, indexed by clock id; the coarse clocks and the ids
    /// without a clock here hold zeros.
    pub base: [VdsoTimestamp; VDSO_CLOCK_SLOTS],
    /// Tick of the coarse clocks, what clock_getres(2) says of them; never 0 in TSC mode.
    pub coarse_res_ns: u32,
    /// Resolution of the other clocks, as clock_getres(2) says it.
    pub hres_ns: u32,
    /// Time zone that gettimeofday(2) reports, in minutes west of Greenwich.
    pub tz_minuteswest: i32,
    /// Daylight saving type that gettimeofday(2) reports.
    pub tz_dsttime: i32,
    /// CPU that getcpu(2) reports.
    pub cpu: u32,
    /// NUMA node that getcpu(2) reports.
    pub node: u32,
    /// Changes whenever this VM becomes a copy of another, so that programs can reseed.
    pub generation: u64,
}

const _: () = assert!(size_of::<VdsoData>() <= crate::PAGE_SIZE as usize);

impl VdsoData {
    /// A page in call mode: correct before the clocks are known.
    pub const fn new() -> Self {
        Self {
            seq: 0,
            mode: VDSO_MODE_CALL,
            tsc_base: 0,
            mult: 0,
            mult_raw: 0,
            base: [VdsoTimestamp { sec: 0, nsec: 0 }; VDSO_CLOCK_SLOTS],
            coarse_res_ns: 4_000_000,
            hres_ns: 1,
            tz_minuteswest: 0,
            tz_dsttime: 0,
            cpu: 0,
            node: 0,
            generation: 0,
        }
    }

    /// The page's bytes, in the guest's layout.
    pub fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }

    /// The base of a clock that is not coarse.
    pub fn set_base(&mut self, clock: VdsoClock, at: VdsoTimestamp) {
        if let Some(slot) = self.base.get_mut(clock as usize) {
            *slot = at;
        }
    }

    /// The vDSO's answer at guest TSC `tsc`; `None` in call mode.
    pub fn read(&self, clock: VdsoClock, tsc: u64) -> Option<VdsoTimestamp> {
        if self.mode != VDSO_MODE_TSC {
            return None;
        }
        let (source, mult) = match clock {
            VdsoClock::RealtimeCoarse => (VdsoClock::Realtime, self.mult),
            VdsoClock::MonotonicCoarse => (VdsoClock::Monotonic, self.mult),
            VdsoClock::MonotonicRaw => (clock, self.mult_raw),
            _ => (clock, self.mult),
        };
        let elapsed_ns = ticks_to_ns(tsc.saturating_sub(self.tsc_base), mult);
        let now = self.advance(source, elapsed_ns)?;
        if !clock.is_coarse() {
            return Some(now);
        }
        // Ticks are counted on CLOCK_MONOTONIC, whose steps the wall clock follows.
        // Linux differs: its tick has a phase of its own.
        let mono_ns = self.advance(VdsoClock::Monotonic, elapsed_ns)?.as_ns();
        let into_tick_ns = mono_ns.checked_rem_euclid(i64::from(self.coarse_res_ns))?;
        Some(VdsoTimestamp::from_ns(
            now.as_ns().saturating_sub(into_tick_ns),
        ))
    }

    fn advance(&self, clock: VdsoClock, elapsed_ns: u64) -> Option<VdsoTimestamp> {
        let base = self.base.get(clock as usize)?;
        let nsec = base.nsec.wrapping_add(elapsed_ns);
        Some(VdsoTimestamp {
            sec: base.sec.wrapping_add((nsec / NS_PER_SEC).cast_signed()),
            nsec: nsec % NS_PER_SEC,
        })
    }

    /// Resolution of `clock` in nanoseconds, as clock_getres(2) says it.
    pub fn resolution_ns(&self, clock: VdsoClock) -> u32 {
        if clock.is_coarse() {
            self.coarse_res_ns
        } else {
            self.hres_ns
        }
    }
}

impl Default for VdsoData {
    fn default() -> Self {
        Self::new()
    }
}

/// Nanoseconds in `ticks`, truncated to 64 bits as the C code does.
pub fn ticks_to_ns(ticks: u64, mult: u64) -> u64 {
    // The product of two 64-bit values fits in 128 bits.
    (u128::from(ticks).wrapping_mul(u128::from(mult)) >> VDSO_SHIFT) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> VdsoData {
        let mut data = VdsoData {
            mode: VDSO_MODE_TSC,
            tsc_base: 1_000,
            mult: 1 << (VDSO_SHIFT - 1),
            mult_raw: 1 << (VDSO_SHIFT - 2),
            ..VdsoData::new()
        };
        for clock in VdsoClock::ALL {
            if !clock.is_coarse() {
                data.set_base(
                    clock,
                    VdsoTimestamp {
                        sec: 7,
                        nsec: 999_999_999,
                    },
                );
            }
        }
        data
    }

    #[test]
    fn advances_from_the_base_and_carries_into_seconds() {
        let data = page();
        let ts = data.read(VdsoClock::Monotonic, 1_004).unwrap();
        assert_eq!(ts, VdsoTimestamp { sec: 8, nsec: 1 });
        let raw = data.read(VdsoClock::MonotonicRaw, 1_004).unwrap();
        assert_eq!(raw, VdsoTimestamp { sec: 8, nsec: 0 });
    }

    #[test]
    fn a_tsc_behind_the_base_reads_the_base() {
        let ts = page().read(VdsoClock::Realtime, 5).unwrap();
        assert_eq!(
            ts,
            VdsoTimestamp {
                sec: 7,
                nsec: 999_999_999
            }
        );
    }

    #[test]
    fn a_day_without_update_does_not_overflow() {
        let ticks = 86_400 * 2 * NS_PER_SEC;
        let ts = page().read(VdsoClock::Tai, 1_000 + ticks).unwrap();
        assert_eq!(
            ts,
            VdsoTimestamp {
                sec: 7 + 86_400,
                nsec: 999_999_999
            }
        );
    }

    #[test]
    fn coarse_is_the_last_tick() {
        let data = page();
        let ts = data.read(VdsoClock::MonotonicCoarse, 1_000).unwrap();
        assert_eq!(
            ts,
            VdsoTimestamp {
                sec: 7,
                nsec: 996_000_000
            }
        );
        let ts = data.read(VdsoClock::RealtimeCoarse, 1_002).unwrap();
        assert_eq!(ts, VdsoTimestamp { sec: 8, nsec: 0 });
        let broken = VdsoData {
            coarse_res_ns: 0,
            ..data
        };
        assert_eq!(broken.read(VdsoClock::MonotonicCoarse, 1_000), None);
    }

    #[test]
    fn call_mode_answers_nothing() {
        assert_eq!(VdsoData::new().read(VdsoClock::Realtime, 1), None);
    }

    #[test]
    fn ids_and_nanoseconds_round_trip() {
        for clock in VdsoClock::ALL {
            assert_eq!(VdsoClock::from_id(clock.id()), Some(clock));
        }
        for id in [-1, 2, 3, 8, 12, i32::MAX] {
            assert_eq!(VdsoClock::from_id(id), None);
        }
        for ns in [0, 1, -1, 1_999_999_999, i64::MAX, i64::MIN + 1_000_000_000] {
            assert_eq!(VdsoTimestamp::from_ns(ns).as_ns(), ns);
        }
    }
}
