//! The rate of a host clock against the TSC, learnt from samples.

use kvmlet_abi::vdso_data::{NS_PER_SEC, VDSO_SHIFT, ticks_to_ns};

use super::host::Sample;

/// A rate is measured over one to two of these.
const WINDOW_NS: i64 = 1_000_000_000;
/// The host steers its clocks by changing their rate; differences below this are its usual dither
/// (one unit of a 24-bit multiplier).
const DITHER_PPB: u64 = 200;
/// A change of rate is looked for over at least this.
const RECENT_NS: i64 = 50_000_000;
/// The rate over that alone is believed when it is at least this good.
const SHORT_ERROR_PPB: u64 = 10_000;
/// Bound given to a frequency that the caller names: NTP steers clocks by tens of ppm as a rule.
const HINT_ERROR_PPB: u64 = 100_000;

/// A sample this far from its prediction, beyond [`MISTRUST_PPB`] of the time since, was not made by
/// the same pair of clocks.
const MISTRUST_NS: u64 = 100_000;
/// NTP steers by less than this as a rule; a host that is set faster costs one interval in call mode.
const MISTRUST_PPB: u64 = 1_000_000;

/// Nanoseconds per tick.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slope {
    /// With [`VDSO_SHIFT`] fraction bits.
    pub mult: u64,
    /// Bound of the relative error, in parts per 10^9.
    pub error_ppb: u64,
}

impl Slope {
    /// From a TSC frequency in kHz, `None` for 0.
    pub fn from_khz(tsc_khz: u32) -> Option<Self> {
        let hz = u128::from(tsc_khz) * 1000;
        let mult = (u128::from(NS_PER_SEC) << VDSO_SHIFT).checked_div(hz)?;
        Some(Self {
            mult: u64::try_from(mult).ok()?,
            error_ppb: HINT_ERROR_PPB,
        })
    }

    /// Between two samples; `None` if either clock did not advance.
    fn between(from: Sample, to: Sample) -> Option<Self> {
        let ticks = to.tsc.checked_sub(from.tsc).filter(|ticks| *ticks > 0)?;
        let ns = to.ns.checked_sub(from.ns).filter(|ns| *ns > 0)?;
        let mult = (u128::from(ns.unsigned_abs()) << VDSO_SHIFT) / u128::from(ticks);
        let error_ticks = u128::from(from.error_ticks) + u128::from(to.error_ticks);
        let error_ppb = error_ticks * u128::from(NS_PER_SEC) / u128::from(ticks);
        Some(Self {
            mult: u64::try_from(mult).ok()?,
            error_ppb: u64::try_from(error_ppb).unwrap_or(u64::MAX),
        })
    }

    fn contradicts(self, other: Self) -> bool {
        let difference = u128::from(self.mult.abs_diff(other.mult)) * u128::from(NS_PER_SEC);
        let bound = u128::from(self.error_ppb)
            .saturating_add(u128::from(other.error_ppb))
            .saturating_add(u128::from(DITHER_PPB));
        difference > bound.saturating_mul(u128::from(self.mult.max(other.mult)))
    }
}

/// The sample does not continue the earlier ones: a clock stood, ran backwards or jumped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ClockBroken;

/// The current rate, and the samples that the next one is measured from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Rate {
    anchor: Sample,
    next_anchor: Sample,
    recent: Sample,
    newest: Sample,
    slope: Option<Slope>,
}

impl Rate {
    /// Starts at `first`; a rate the caller knows from elsewhere serves until a better one is measured.
    pub fn new(first: Sample, hint: Option<Slope>) -> Self {
        Self {
            anchor: first,
            next_anchor: first,
            recent: first,
            newest: first,
            slope: hint,
        }
    }

    /// The best rate so far; `None` before the second sample if there was no hint.
    pub fn slope(&self) -> Option<Slope> {
        self.slope
    }

    /// The newest sample.
    pub fn newest(&self) -> Sample {
        self.newest
    }

    /// Time that the clock shows at host TSC `tsc`, by the newest sample; `None` without a rate.
    pub fn predict_ns(&self, tsc: u64) -> Option<i64> {
        let mult = self.slope?.mult;
        let (ns, from) = (self.newest.ns, self.newest.tsc);
        Some(match tsc.checked_sub(from) {
            Some(ticks) => ns.saturating_add_unsigned(ticks_to_ns(ticks, mult)),
            None => ns.saturating_sub_unsigned(ticks_to_ns(from.saturating_sub(tsc), mult)),
        })
    }

    fn is_plausible(&self, sample: Sample) -> bool {
        let (Some(slope), Some(predicted_ns)) = (self.slope, self.predict_ns(sample.tsc)) else {
            return true;
        };
        let elapsed_ns = sample.ns.abs_diff(self.newest.ns);
        let tolerance_ppb = u128::from(slope.error_ppb) + u128::from(MISTRUST_PPB);
        let tolerance_ns =
            u128::from(elapsed_ns).saturating_mul(tolerance_ppb) / u128::from(NS_PER_SEC);
        u128::from(sample.ns.abs_diff(predicted_ns))
            <= tolerance_ns.saturating_add(u128::from(MISTRUST_NS))
    }

    /// Takes a sample in. On error the rate is as it was.
    pub fn add(&mut self, sample: Sample) -> Result<(), ClockBroken> {
        if !self.is_plausible(sample) {
            return Err(ClockBroken);
        }
        let long = Slope::between(self.anchor, sample).ok_or(ClockBroken)?;
        let short = Slope::between(self.recent, sample).ok_or(ClockBroken)?;
        Slope::between(self.newest, sample).ok_or(ClockBroken)?;
        if short.error_ppb <= SHORT_ERROR_PPB && short.contradicts(long) {
            // The host began to steer its clock otherwise: what lies before counts no more.
            self.anchor = self.recent;
            self.next_anchor = self.recent;
            self.slope = Some(short);
        } else {
            // An estimate from elsewhere or from before yields to a measured one that is as good
            // or that excludes it.
            self.slope = match self.slope {
                Some(old) if old.error_ppb < long.error_ppb && !old.contradicts(long) => Some(old),
                _ => Some(long),
            };
        }
        self.newest = sample;
        if sample.ns.saturating_sub(self.recent.ns) >= RECENT_NS {
            self.recent = sample;
        }
        if sample.ns.saturating_sub(self.next_anchor.ns) >= WINDOW_NS {
            self.anchor = self.next_anchor;
            self.next_anchor = sample;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERROR_TICKS: u64 = 40;

    /// A 2 GHz TSC against a clock that runs `ppm` fast, with sampling noise inside the bound.
    struct Host {
        tsc: u64,
        ns: f64,
        turn: u64,
    }

    impl Host {
        fn new() -> Self {
            Self {
                tsc: 1_000_000,
                ns: 5e9,
                turn: 0,
            }
        }

        fn after_ms(&mut self, ms: f64, ppm: f64) -> Sample {
            let ticks = ms * 2e6;
            self.tsc += ticks as u64;
            self.ns += ticks / 2.0 * (1.0 + ppm * 1e-6);
            self.turn = self
                .turn
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(99);
            let noise = (self.turn >> 33) % (2 * ERROR_TICKS);
            Sample {
                tsc: self.tsc + noise - ERROR_TICKS,
                ns: self.ns as i64,
                error_ticks: ERROR_TICKS,
            }
        }
    }

    fn error_ppb(rate: &Rate, ppm: f64) -> f64 {
        let mult = rate.slope().unwrap().mult as f64 / (1u64 << VDSO_SHIFT) as f64;
        ((mult / (0.5 * (1.0 + ppm * 1e-6))) - 1.0).abs() * 1e9
    }

    #[test]
    fn the_error_stays_below_its_bound_and_shrinks() {
        let mut host = Host::new();
        let mut rate = Rate::new(host.after_ms(0.0, 12.0), None);
        assert_eq!(rate.slope(), None);
        for _ in 0..50 {
            rate.add(host.after_ms(100.0, 12.0)).unwrap();
            assert!(error_ppb(&rate, 12.0) <= rate.slope().unwrap().error_ppb as f64 + 1.0);
        }
        assert!(error_ppb(&rate, 12.0) < 60.0);
    }

    #[test]
    fn a_change_of_rate_is_seen_at_the_next_sample() {
        let mut host = Host::new();
        let mut rate = Rate::new(host.after_ms(0.0, 0.0), None);
        for _ in 0..30 {
            rate.add(host.after_ms(100.0, 0.0)).unwrap();
        }
        rate.add(host.after_ms(100.0, 500.0)).unwrap();
        assert!(error_ppb(&rate, 500.0) < 1_000.0);
    }

    #[test]
    fn a_good_hint_bridges_the_start_and_a_bad_one_is_dropped() {
        let mut host = Host::new();
        let good = Slope::from_khz(2_000_000).unwrap();
        let mut rate = Rate::new(host.after_ms(0.0, 20.0), Some(good));
        rate.add(host.after_ms(0.05, 20.0)).unwrap();
        assert_eq!(rate.slope(), Some(good));
        rate.add(host.after_ms(100.0, 20.0)).unwrap();
        assert!(error_ppb(&rate, 20.0) < 1_000.0);

        let bad = Slope::from_khz(2_100_000).unwrap();
        let mut rate = Rate::new(host.after_ms(0.0, 20.0), Some(bad));
        rate.add(host.after_ms(0.05, 20.0)).unwrap();
        assert_ne!(rate.slope(), Some(bad));
        assert!(error_ppb(&rate, 20.0) <= rate.slope().unwrap().error_ppb as f64);
        assert_eq!(Slope::from_khz(0), None);
    }

    #[test]
    fn clocks_that_stand_or_run_backwards_are_refused() {
        let mut host = Host::new();
        let mut rate = Rate::new(host.after_ms(0.0, 0.0), None);
        let good = host.after_ms(100.0, 0.0);
        rate.add(good).unwrap();
        let before = rate;
        assert_eq!(rate.add(good), Err(ClockBroken));
        let back = Sample {
            tsc: 7,
            ..host.after_ms(100.0, 0.0)
        };
        assert_eq!(rate.add(back), Err(ClockBroken));
        let good = host.after_ms(100.0, 0.0);
        let jumped = Sample {
            ns: good.ns + 1_000_000,
            ..good
        };
        assert_eq!(rate.add(jumped), Err(ClockBroken));
        assert_eq!(rate, before);
    }
}
