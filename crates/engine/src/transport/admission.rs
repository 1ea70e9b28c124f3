//! When a poller pays: pure decisions over measured times.
//!
//! A polled call saves about an exit (X) and costs its poller the time until the next call. So a poller
//! is asked for when several calls have come close together. It stays until the guest has been quiet for
//! longer than a program's start usually is. It is asked for later each time it has answered too few calls
//! to be worth waking.

use super::Calls;

/// Calls close together that ask for a poller, at first.
const PRICE_MIN: u32 = 8;
/// The same after sessions that were not worth it.
const PRICE_MAX: u32 = 4096;
/// Two calls are close together if less than this many X lie between them.
const CLOSE_X: u64 = 8;
/// A poller gives up when the guest has posted nothing for this many X.
pub(super) const QUIET_X: u64 = 64;
/// A session that has answered fewer calls than this was not worth it.
const WORTH_CALLS: u64 = 16;

/// One sandbox's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Admission {
    mode: Calls,
    credit: u32,
    price: u32,
}

impl Admission {
    /// Of a program that has not run: its start makes many calls.
    pub fn new(mode: Calls) -> Self {
        Self {
            mode,
            credit: PRICE_MIN,
            price: PRICE_MIN,
        }
    }

    /// A call has left the VM, `gap_ns` after the one before it.
    pub fn note_exit(&mut self, gap_ns: u64, x_ns: u64) {
        if self.mode == Calls::Poll {
            self.credit = PRICE_MIN;
            return;
        }
        let far = gap_ns / (x_ns.max(1).saturating_mul(CLOSE_X));
        self.credit = match u32::try_from(far) {
            Ok(0) => self.credit.saturating_add(1),
            Ok(far) => self.credit.saturating_sub(far),
            Err(_) => 0,
        };
    }

    /// True if a poller should be asked for.
    pub fn wants_poller(&self) -> bool {
        match self.mode {
            Calls::Exit => false,
            // Any call asks; what only computes has none.
            Calls::Poll => self.credit > 0,
            Calls::Auto => self.credit >= self.price,
        }
    }

    /// A poller has gone to sleep after answering so many calls.
    pub fn note_session(&mut self, answered: u64) {
        self.price = if answered < WORTH_CALLS {
            self.price.saturating_mul(2).min(PRICE_MAX)
        } else {
            PRICE_MIN
        };
        self.credit = 0;
    }

    /// No poller could be had.
    pub fn note_refused(&mut self) {
        self.credit = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const X_NS: u64 = 30_000;

    fn quiet() -> Admission {
        let mut admission = Admission::new(Calls::Auto);
        admission.note_session(1000);
        admission
    }

    #[test]
    fn a_burst_asks_for_a_poller_and_single_calls_do_not() {
        let mut admission = quiet();
        for _ in 1..PRICE_MIN {
            admission.note_exit(X_NS, X_NS);
            assert!(!admission.wants_poller());
        }
        admission.note_exit(X_NS, X_NS);
        assert!(admission.wants_poller());
        let mut admission = quiet();
        for _ in 0..1000 {
            admission.note_exit(100 * X_NS, X_NS);
            assert!(!admission.wants_poller());
        }
        admission.note_exit(u64::MAX, 0);
        assert!(!admission.wants_poller());
    }

    #[test]
    fn sessions_that_answer_little_make_the_next_dearer() {
        let mut admission = quiet();
        let mut asked_after = Vec::new();
        for _ in 0..12 {
            let mut calls = 0u32;
            while !admission.wants_poller() {
                admission.note_exit(X_NS, X_NS);
                calls += 1;
            }
            asked_after.push(calls);
            admission.note_session(1);
        }
        assert_eq!(asked_after[..4], [8, 16, 32, 64]);
        assert_eq!(asked_after.last(), Some(&PRICE_MAX));
        admission.note_session(1000);
        for _ in 0..PRICE_MIN {
            admission.note_exit(X_NS, X_NS);
        }
        assert!(admission.wants_poller());
    }

    #[test]
    fn the_other_modes_do_not_measure() {
        let mut exit = Admission::new(Calls::Exit);
        let mut poll = Admission::new(Calls::Poll);
        assert!(!exit.wants_poller() && poll.wants_poller());
        poll.note_session(1);
        assert!(!poll.wants_poller());
        for _ in 0..100 {
            exit.note_exit(1, X_NS);
            poll.note_exit(u64::MAX, X_NS);
        }
        assert!(!exit.wants_poller() && poll.wants_poller());
    }
}
