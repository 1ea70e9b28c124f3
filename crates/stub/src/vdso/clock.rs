//! The host clock that feeds a VM's vDSO data page.
//!
//! Guest time is the host's CLOCK_MONOTONIC (and what is measured against it) as a line through the
//! last update: base + ticks * rate. Each update measures the host anew and draws the next line so
//! that it begins nowhere below the last one. A guest that is behind steps forward; one that is ahead
//! runs slower until the host has caught up. The steps are tens of nanoseconds as a rule.

use std::mem::offset_of;
use std::sync::Mutex;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use kvmlet_abi::vdso_data::{
    NS_PER_SEC, VDSO_MODE_CALL, VDSO_MODE_TSC, VDSO_SHIFT, VdsoClock, VdsoData, VdsoTimestamp,
    ticks_to_ns,
};

use super::host::{self, HostClockId, Sample};
use super::rate::{ClockBroken, Rate, Slope};

/// The longest interval between two updates.
const MAX_INTERVAL_NS: u64 = 100_000_000;
/// The shortest, while the rate is hardly known.
const MIN_INTERVAL_NS: u64 = 200_000;
/// An interval ends before the rate's error can have grown to this.
const ERROR_BUDGET_NS: u64 = 10_000;
/// How long a TSC that jumped is left alone: 100 ms at 2 GHz.
const CALL_MODE_TICKS: u64 = 200_000_000;
/// A rate is not measured over less than this.
const MIN_BASELINE_NS: i64 = 20_000;
/// A guest ahead of the host is slowed so that the host catches up in this time; more than an
/// interval, for an update that comes late must not turn a small lead into a large lag.
const SLEW_NS: u64 = 1_000_000_000;
/// A lead above this is taken back within one interval.
const LARGE_LEAD_NS: u64 = 25_000;
/// An offset between two host clocks that seems to shrink by less than this is measuring noise.
const OFFSET_NOISE_NS: i64 = 1_000;
/// The guest's reading of its TSC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestTsc {
    /// The host's TSC plus this many ticks, modulo 2^64 (KVM_VCPU_TSC_OFFSET; 0 on software KVM).
    Offset(i64),
    /// Something else: the vDSO makes system calls.
    Unrelated,
}

/// Guest time minus host time, as time_namespaces(7) has it. That of the monotonic clock is known when it starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GuestTimeOffsets {
    /// For CLOCK_MONOTONIC, its coarse and its raw variant.
    pub monotonic_ns: i64,
    /// For CLOCK_BOOTTIME.
    pub boottime_ns: i64,
    /// For CLOCK_REALTIME, its coarse variant and CLOCK_TAI.
    pub realtime_ns: i64,
}

/// The beginning of a [`HostClock`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClockConfig {
    /// The guest's TSC.
    pub guest_tsc: GuestTsc,
    /// The TSC frequency if the caller knows it (KVM_GET_TSC_KHZ): serves until a better one is
    /// measured, and is dropped if the measurement excludes it.
    pub tsc_khz: Option<u32>,
    /// Guest time minus host time.
    pub offsets: GuestTimeOffsets,
}

impl Default for ClockConfig {
    fn default() -> Self {
        Self {
            guest_tsc: GuestTsc::Offset(0),
            tsc_khz: None,
            offsets: GuestTimeOffsets::default(),
        }
    }
}

/// What is known of the host: the rates of the two clocks that the others are offsets of.
#[derive(Clone, Copy, Debug)]
struct Measured {
    mono: Rate,
    raw: Rate,
    /// Whether the host itself keeps time by its TSC.
    host_trusts_tsc: bool,
}

impl Measured {
    fn new(tsc_khz: Option<u32>) -> Self {
        let hint = tsc_khz.and_then(Slope::from_khz);
        Self {
            mono: Rate::new(host::sample(host::MONOTONIC), hint),
            raw: Rate::new(host::sample(host::MONOTONIC_RAW), hint),
            host_trusts_tsc: host::tsc_is_trusted(),
        }
    }

    fn add(&mut self, mono: Sample, raw: Sample) -> Result<(), ClockBroken> {
        self.mono.add(mono)?;
        self.raw.add(raw)
    }
}

/// Waits until the clocks have moved on enough since `first` to be compared.
fn wait_for_baseline(first: Sample) {
    // Bounded: a clock that stands is found out by the next sample.
    for _ in 0..10_000 {
        if host::now_ns(host::MONOTONIC).saturating_sub(first.ns) >= MIN_BASELINE_NS {
            break;
        }
        std::hint::spin_loop();
    }
}

/// How long a line may be followed whose rate is off by up to `error_ppb`.
fn interval_ns(error_ppb: u64) -> u64 {
    let ns = u128::from(ERROR_BUDGET_NS) * u128::from(NS_PER_SEC) / u128::from(error_ppb.max(1));
    u64::try_from(ns)
        .unwrap_or(u64::MAX)
        .clamp(MIN_INTERVAL_NS, MAX_INTERVAL_NS)
}

fn ns_to_ticks(ns: u64, mult: u64) -> u64 {
    let ticks = (u128::from(ns) << VDSO_SHIFT) / u128::from(mult.max(1));
    // u64::MAX stands for "never".
    u64::try_from(ticks).unwrap_or(u64::MAX).min(u64::MAX - 1)
}

/// What this process has measured, so that only its first clock begins without a rate. Taken with
/// `try_lock` only: whoever does not get it goes on with what it measured itself.
static MEASURED: Mutex<Option<Measured>> = Mutex::new(None);

/// A host clock's difference to CLOCK_MONOTONIC, kept constant against measuring noise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Offset {
    ns: i64,
}

impl Offset {
    fn measure(clock: HostClockId) -> Self {
        let (low, high) = host::offset_from_monotonic(clock);
        Self {
            ns: low.midpoint(high),
        }
    }

    fn refine(&mut self, (low, high): (i64, i64)) {
        if self.ns < low {
            self.ns = low;
        } else if self.ns.saturating_sub(high) > OFFSET_NOISE_NS {
            // The host's clock was set back; the guest's follows.
            self.ns = high;
        }
    }
}

/// A host clock as the guest sees it since the last publication.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Line {
    /// Value at the publication.
    base_ns: i64,
    /// Nanoseconds per tick since; 0 while the guest makes calls.
    mult: u64,
}

impl Line {
    fn after(self, ticks: u64) -> i64 {
        self.base_ns
            .saturating_add_unsigned(ticks_to_ns(ticks, self.mult))
    }

    /// The line that begins no lower than `floor_ns` and follows the host's clock, which shows
    /// `host_ns` and runs at `mult`.
    fn draw(floor_ns: i64, host_ns: i64, mult: u64, interval_ns: u64) -> Self {
        let lead_ns = u64::try_from(floor_ns.saturating_sub(host_ns)).unwrap_or(0);
        if lead_ns == 0 {
            return Self {
                base_ns: host_ns,
                mult,
            };
        }
        let slew_ns = if lead_ns > LARGE_LEAD_NS {
            interval_ns
        } else {
            SLEW_NS
        };
        let slower = u128::from(mult) * u128::from(lead_ns) / u128::from(slew_ns.max(1));
        // Never slower than half the rate.
        let slower = u64::try_from(slower).unwrap_or(u64::MAX).min(mult / 2);
        Self {
            base_ns: floor_ns,
            mult: mult.saturating_sub(slower),
        }
    }
}

/// Guest time for one VM: writes its data page and answers its calls from the same numbers.
#[derive(Clone, Debug)]
pub struct HostClock {
    guest_tsc: GuestTsc,
    offsets: GuestTimeOffsets,
    measured: Measured,
    mono: Line,
    raw: Line,
    wall: Offset,
    boot: Offset,
    tai_sec: i64,
    /// What was written last.
    data: VdsoData,
    /// Host TSC at which `mono` and `raw` begin.
    published_tsc: u64,
    interval_ticks: u64,
    /// The page is due although its lines are still good.
    is_stale: bool,
    /// The time that the monotonic clock stands at.
    stopped_ns: Option<i64>,
}

impl HostClock {
    /// Looks at the host's clocks; takes some microseconds. Nothing is published yet: the page is
    /// in call mode until the first [`HostClock::publish`].
    pub fn new(config: ClockConfig) -> Self {
        let measured = match MEASURED.try_lock() {
            Ok(mut shared) => *shared.get_or_insert_with(|| Measured::new(config.tsc_khz)),
            Err(_) => Measured::new(config.tsc_khz),
        };
        let mut boot = Offset { ns: 0 };
        boot.refine(host::offset_from_monotonic(host::BOOTTIME));
        Self {
            guest_tsc: config.guest_tsc,
            offsets: config.offsets,
            measured,
            mono: Line::default(),
            raw: Line::default(),
            wall: Offset::measure(host::REALTIME),
            boot,
            tai_sec: host::tai_offset_sec(),
            data: VdsoData {
                coarse_res_ns: host::resolution_ns(host::MONOTONIC_COARSE).max(1),
                hres_ns: host::resolution_ns(host::MONOTONIC).max(1),
                ..VdsoData::new()
            },
            published_tsc: host::tsc(),
            interval_ticks: 0,
            is_stale: false,
            stopped_ns: None,
        }
    }

    /// Binds this guest time to another VM; the page is due at once.
    pub fn set_guest_tsc(&mut self, guest_tsc: GuestTsc) {
        self.guest_tsc = guest_tsc;
        self.interval_ticks = 0;
    }

    /// The number that tells a copied VM from its original; the page is due at once.
    pub fn set_generation(&mut self, generation: u64) {
        self.data.generation = generation;
        self.interval_ticks = 0;
    }

    /// Has the monotonic clock stand at a guest time, until it is started.
    pub fn stop_at(&mut self, monotonic_ns: i64) {
        self.stopped_ns = Some(monotonic_ns);
    }

    /// Has a clock that stands go on from there; the page is due at once.
    pub fn start(&mut self) {
        let Some(guest_ns) = self.stopped_ns.take() else {
            return;
        };
        let age_ticks = host::tsc().wrapping_sub(self.published_tsc);
        // To measure the host costs more than a short request.
        let is_measured = self.mono.mult != 0 && age_ticks < self.interval_ticks;
        let host_ns = match is_measured {
            true => self.mono.after(age_ticks),
            false => host::now_ns(HostClockId(VdsoClock::Monotonic.id())),
        };
        self.offsets.monotonic_ns = guest_ns.saturating_sub(host_ns);
        if is_measured {
            self.fill_page(self.data.seq, VDSO_MODE_TSC);
            self.is_stale = true;
        } else {
            // What was written last is of another time.
            self.data.mode = VDSO_MODE_CALL;
            self.interval_ticks = 0;
        }
    }

    /// The page as last written.
    pub fn data(&self) -> &VdsoData {
        &self.data
    }

    /// Time until the page is due to be rewritten, zero when it is. A guest that runs on past it
    /// keeps a clock that cannot run backwards but slowly loses the host's.
    pub fn due_in(&self) -> Duration {
        if self.interval_ticks == u64::MAX {
            return Duration::MAX;
        }
        let age_ticks = host::tsc().wrapping_sub(self.published_tsc);
        let left_ticks = self.interval_ticks.saturating_sub(age_ticks);
        let mult = self.measured.mono.slope().map_or(0, |slope| slope.mult);
        Duration::from_nanos(ticks_to_ns(left_ticks, mult))
    }

    /// Publishes if the page is due, at the cost of one TSC read if it is not. Returns whether it
    /// did. A page whose lines are good still is written without measuring anew. `write` is as for [`HostClock::publish`].
    pub fn update(&mut self, write: &mut dyn FnMut(usize, &[u8])) -> bool {
        // A TSC that ran backwards counts as due.
        let due = host::tsc().wrapping_sub(self.published_tsc) >= self.interval_ticks;
        if due {
            self.publish(write);
        } else if self.is_stale {
            let writing = self.begin_writing(write);
            self.write_page(writing, VDSO_MODE_TSC, write);
        }
        due || core::mem::take(&mut self.is_stale)
    }

    /// Measures the host and rewrites the data page under its sequence count.
    ///
    /// `write(offset, bytes)` stores bytes at an offset of the data page, in the order of the calls;
    /// a call with 4 bytes is one aligned store. The guest may run meanwhile.
    pub fn publish(&mut self, write: &mut dyn FnMut(usize, &[u8])) {
        let slopes = self.measure();
        let writing = self.begin_writing(write);
        // From here to the end readers wait: what they read before, on the old line, they read
        // before this TSC value.
        let tsc = host::tsc_after_stores();
        let age_ticks = tsc.saturating_sub(self.published_tsc);
        let (mono_floor, raw_floor) = (self.mono.after(age_ticks), self.raw.after(age_ticks));
        let mono_now = self.measured.mono.predict_ns(tsc).unwrap_or(mono_floor);
        let raw_now = self.measured.raw.predict_ns(tsc).unwrap_or(raw_floor);
        if let Some((mono, raw)) = slopes {
            let interval_ns = interval_ns(mono.error_ppb.max(raw.error_ppb));
            self.mono = Line::draw(mono_floor, mono_now, mono.mult, interval_ns);
            self.raw = Line::draw(raw_floor, raw_now, raw.mult, interval_ns);
            self.interval_ticks = ns_to_ticks(interval_ns, mono.mult);
        } else {
            self.mono = Line {
                base_ns: mono_floor,
                mult: 0,
            };
            self.raw = Line {
                base_ns: raw_floor,
                mult: 0,
            };
            self.interval_ticks = if self.may_use_tsc() {
                CALL_MODE_TICKS
            } else {
                u64::MAX
            };
        }
        self.published_tsc = tsc;
        let mode = if slopes.is_some() {
            VDSO_MODE_TSC
        } else {
            VDSO_MODE_CALL
        };
        self.write_page(writing, mode, write);
        self.is_stale = false;
    }

    /// Has readers wait; answers the sequence count meanwhile.
    fn begin_writing(&mut self, write: &mut dyn FnMut(usize, &[u8])) -> u32 {
        let writing = self.data.seq | 1;
        write(offset_of!(VdsoData, seq), &writing.to_ne_bytes());
        fence(Ordering::SeqCst);
        writing
    }

    /// Writes the page, and lets readers go on.
    fn write_page(&mut self, writing: u32, mode: u32, write: &mut dyn FnMut(usize, &[u8])) {
        self.fill_page(writing.wrapping_add(1), mode);
        let body = offset_of!(VdsoData, mode);
        if let Some(bytes) = self.data.bytes().get(body..) {
            write(body, bytes);
        }
        fence(Ordering::SeqCst);
        write(offset_of!(VdsoData, seq), &self.data.seq.to_ne_bytes());
    }

    fn may_use_tsc(&self) -> bool {
        self.measured.host_trusts_tsc && self.guest_tsc != GuestTsc::Unrelated
    }

    /// Takes in what the host's clocks say now. Returns the rates of CLOCK_MONOTONIC and
    /// CLOCK_MONOTONIC_RAW, or `None` if the guest must make calls.
    fn measure(&mut self) -> Option<(Slope, Slope)> {
        self.wall
            .refine(host::offset_from_monotonic(host::REALTIME));
        self.boot
            .refine(host::offset_from_monotonic(host::BOOTTIME));
        self.tai_sec = host::tai_offset_sec();
        if !self.may_use_tsc() {
            return None;
        }
        // The lock comes before the samples, so that those it holds are older.
        let mut lock = MEASURED.try_lock().ok();
        if let Some(shared) = lock.as_deref().copied().flatten()
            && shared.mono.newest().ns > self.measured.mono.newest().ns
        {
            self.measured = shared;
        }
        if self.measured.mono.slope().is_none() {
            wait_for_baseline(self.measured.mono.newest());
        }
        let (mono, raw) = (
            host::sample(host::MONOTONIC),
            host::sample(host::MONOTONIC_RAW),
        );
        let outcome = self.measured.add(mono, raw);
        if outcome.is_err() {
            // The host may have slept, moved to another machine or found its TSC unstable.
            self.measured = Measured {
                mono: Rate::new(mono, None),
                raw: Rate::new(raw, None),
                host_trusts_tsc: host::tsc_is_trusted(),
            };
        }
        if let Some(shared) = lock.as_deref_mut() {
            *shared = Some(self.measured);
        }
        outcome.ok()?;
        self.measured.mono.slope().zip(self.measured.raw.slope())
    }

    fn fill_page(&mut self, seq: u32, mode: u32) {
        let mono_ns = self.mono.base_ns;
        let boot_ns = mono_ns.saturating_add(self.boot.ns);
        let wall_ns = mono_ns
            .saturating_add(self.wall.ns)
            .saturating_add(self.offsets.realtime_ns);
        let wall = VdsoTimestamp::from_ns(wall_ns);
        let tai = VdsoTimestamp {
            sec: wall.sec.saturating_add(self.tai_sec),
            ..wall
        };
        let bases = [
            (VdsoClock::Realtime, wall),
            (VdsoClock::Tai, tai),
            (
                VdsoClock::Monotonic,
                VdsoTimestamp::from_ns(mono_ns.saturating_add(self.offsets.monotonic_ns)),
            ),
            (
                VdsoClock::MonotonicRaw,
                VdsoTimestamp::from_ns(self.raw.base_ns.saturating_add(self.offsets.monotonic_ns)),
            ),
            (
                VdsoClock::Boottime,
                VdsoTimestamp::from_ns(boot_ns.saturating_add(self.offsets.boottime_ns)),
            ),
        ];
        for (clock, at) in bases {
            self.data.set_base(clock, at);
        }
        self.data.seq = seq;
        self.data.mode = mode;
        self.data.tsc_base = self.guest_tsc_of(self.published_tsc).unwrap_or(0);
        self.data.mult = self.mono.mult;
        self.data.mult_raw = self.raw.mult;
    }

    fn guest_tsc_of(&self, host_tsc: u64) -> Option<u64> {
        match self.guest_tsc {
            GuestTsc::Offset(ticks) => Some(host_tsc.wrapping_add_signed(ticks)),
            GuestTsc::Unrelated => None,
        }
    }

    /// Guest time now, as the vDSO would answer. System calls that report or compare times use it, so that
    /// a call and the vDSO never contradict each other.
    pub fn read(&self, clock: VdsoClock) -> VdsoTimestamp {
        if let (
            Some(ns),
            VdsoClock::Monotonic | VdsoClock::MonotonicCoarse | VdsoClock::MonotonicRaw,
        ) = (self.stopped_ns, clock)
        {
            return VdsoTimestamp::from_ns(ns);
        }
        let tsc = self.guest_tsc_of(host::tsc());
        tsc.and_then(|tsc| self.data.read(clock, tsc))
            .unwrap_or_else(|| VdsoTimestamp::from_ns(self.read_host(clock)))
    }

    /// In call mode the host answers; what a line showed before it ended remains the floor.
    fn read_host(&self, clock: VdsoClock) -> i64 {
        let host_ns = host::now_ns(HostClockId(clock.id()));
        let (floor_ns, offset_ns) = match clock {
            // The wall clock follows the host even when that is set back.
            VdsoClock::Realtime | VdsoClock::RealtimeCoarse | VdsoClock::Tai => {
                (i64::MIN, self.offsets.realtime_ns)
            }
            VdsoClock::Monotonic | VdsoClock::MonotonicCoarse => {
                (self.mono.base_ns, self.offsets.monotonic_ns)
            }
            VdsoClock::MonotonicRaw => (self.raw.base_ns, self.offsets.monotonic_ns),
            VdsoClock::Boottime => (
                self.mono.base_ns.saturating_add(self.boot.ns),
                self.offsets.boottime_ns,
            ),
        };
        host_ns.max(floor_ns).saturating_add(offset_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MULT: u64 = 1 << (VDSO_SHIFT - 1);

    #[test]
    fn a_clock_that_goes_on_is_written_without_measuring() {
        const STOPPED_NS: i64 = 5_000_000_000;
        let mut clock = HostClock::new(ClockConfig::default());
        clock.publish(&mut |_, _| {});
        let is_by_tsc = clock.data.mode == VDSO_MODE_TSC;
        let published_tsc = clock.published_tsc;
        clock.interval_ticks = u64::MAX - 1;
        let now_ns = |clock: &HostClock| {
            let now = clock.read(VdsoClock::Monotonic);
            now.sec * 1_000_000_000 + now.nsec.cast_signed()
        };
        for _ in 0..3 {
            clock.stop_at(STOPPED_NS);
            assert_eq!(now_ns(&clock), STOPPED_NS);
            clock.start();
            let started_ns = now_ns(&clock);
            assert!(started_ns >= STOPPED_NS, "{started_ns}");
            let mut written = Vec::new();
            assert!(clock.update(&mut |offset, _| written.push(offset)));
            assert_eq!(written.len(), 3, "count, page, count");
            assert!(now_ns(&clock) >= started_ns);
            if is_by_tsc {
                assert_eq!(clock.published_tsc, published_tsc);
                assert!(!clock.update(&mut |_, _| panic!("it is good still")));
            }
        }
    }

    #[test]
    fn a_guest_behind_steps_forward() {
        let line = Line::draw(1_000, 1_500, MULT, MAX_INTERVAL_NS);
        assert_eq!(
            line,
            Line {
                base_ns: 1_500,
                mult: MULT
            }
        );
    }

    #[test]
    fn a_guest_ahead_waits_for_the_host_without_stepping_back() {
        let lead_ns = 1_000;
        let line = Line::draw(10_000, 10_000 - lead_ns, MULT, MAX_INTERVAL_NS);
        assert_eq!(line.base_ns, 10_000);
        let ticks = 2 * SLEW_NS;
        let host = Line {
            base_ns: 10_000 - lead_ns,
            mult: MULT,
        };
        assert!(line.after(ticks).abs_diff(host.after(ticks)) <= 1);
    }

    #[test]
    fn a_large_lead_goes_within_an_interval_and_a_huge_one_never_stops_the_clock() {
        let line = Line::draw(1_000_000, 900_000, MULT, MAX_INTERVAL_NS);
        let host = Line {
            base_ns: 900_000,
            mult: MULT,
        };
        let ticks = 2 * MAX_INTERVAL_NS;
        assert!(line.after(ticks).abs_diff(host.after(ticks)) <= 1);
        let line = Line::draw(i64::MAX / 2, 0, MULT, MAX_INTERVAL_NS);
        assert_eq!(line.mult, MULT / 2);
    }

    #[test]
    fn the_interval_follows_the_error() {
        assert_eq!(interval_ns(0), MAX_INTERVAL_NS);
        assert_eq!(interval_ns(1_000_000), 10_000_000);
        assert_eq!(interval_ns(u64::MAX), MIN_INTERVAL_NS);
    }

    #[test]
    fn an_offset_ignores_noise_and_follows_steps() {
        let mut offset = Offset { ns: 100 };
        offset.refine((90, 95));
        assert_eq!(offset.ns, 100);
        offset.refine((110, 120));
        assert_eq!(offset.ns, 110);
        offset.refine((-5_000, -4_900));
        assert_eq!(offset.ns, -4_900);
    }

    #[test]
    fn an_unrelated_tsc_leaves_the_guest_in_call_mode() {
        let mut clock = HostClock::new(ClockConfig {
            guest_tsc: GuestTsc::Unrelated,
            ..ClockConfig::default()
        });
        clock.publish(&mut |_, _| {});
        assert_eq!(clock.data().mode, VDSO_MODE_CALL);
        assert_eq!(clock.data().seq % 2, 0);
        assert_eq!(clock.due_in(), Duration::MAX);
        let first = clock.read(VdsoClock::Monotonic);
        assert!(first <= clock.read(VdsoClock::Monotonic));
        assert!(first.sec >= 0 && first != VdsoTimestamp::default());
    }

    #[test]
    fn offsets_shift_the_guest_against_the_host() {
        const HOUR_NS: i64 = 3_600_000_000_000;
        for guest_tsc in [GuestTsc::Offset(-1_000_000), GuestTsc::Unrelated] {
            let mut plain = HostClock::new(ClockConfig {
                guest_tsc,
                ..ClockConfig::default()
            });
            let mut shifted = HostClock::new(ClockConfig {
                guest_tsc,
                offsets: GuestTimeOffsets {
                    monotonic_ns: HOUR_NS,
                    boottime_ns: 2 * HOUR_NS,
                    realtime_ns: 3 * HOUR_NS,
                },
                ..ClockConfig::default()
            });
            plain.publish(&mut |_, _| {});
            shifted.publish(&mut |_, _| {});
            for clock in VdsoClock::ALL {
                let hours = match clock {
                    VdsoClock::Boottime => 2,
                    VdsoClock::Realtime | VdsoClock::RealtimeCoarse | VdsoClock::Tai => 3,
                    _ => 1,
                };
                let apart = shifted.read(clock).as_ns() - plain.read(clock).as_ns();
                assert!(
                    apart.abs_diff(hours * HOUR_NS) < 1_000_000_000,
                    "{clock:?}: {apart}"
                );
            }
        }
    }

    #[test]
    fn a_copy_is_told_at_once_that_it_is_one() {
        let mut clock = HostClock::new(ClockConfig {
            guest_tsc: GuestTsc::Unrelated,
            ..ClockConfig::default()
        });
        clock.publish(&mut |_, _| {});
        assert!(!clock.update(&mut |_, _| {}));
        clock.set_generation(7);
        let mut told = None;
        let at = offset_of!(VdsoData, generation) - offset_of!(VdsoData, mode);
        assert!(clock.update(&mut |offset, bytes| {
            if offset == offset_of!(VdsoData, mode) {
                told = Some(bytes[at..at + 8].to_vec());
            }
        }));
        assert_eq!(told, Some(7_u64.to_ne_bytes().to_vec()));
    }
}
