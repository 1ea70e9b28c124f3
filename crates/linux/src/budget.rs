//! The time that may be spent for the guest before the engine looks at its limits again.

use std::time::{Duration, Instant};

/// The time that the personality works at a stretch. Work that goes on longer stops between two pieces.
const TURN: Duration = Duration::from_millis(1);

/// One stretch of work: since when it goes on.
#[derive(Debug, Default)]
pub struct Budget {
    since: Option<Instant>,
    unpopulated: Option<Populate>,
}

/// Pages that a call has still to fault in: all that is left of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Populate {
    /// First address.
    pub at: u64,
    /// First address behind them.
    pub end: u64,
    /// The consequence of a page that cannot be had.
    pub failure: Failure,
}

/// The consequence of a page that cannot be faulted in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// Nothing (mmap(2), mlockall(2)).
    Ignored,
    /// The call fails (mlock(2)).
    Fails,
}

impl Budget {
    /// A stretch begins. No clock is read before somebody asks.
    pub fn begin(&mut self) {
        *self = Self::default();
    }

    /// The call stops here, and goes on with `rest` if it has not failed.
    pub fn leave(&mut self, rest: Populate) {
        self.unpopulated = Some(rest);
    }

    /// Takes the pages that the call has left.
    pub fn take_left(&mut self) -> Option<Populate> {
        self.unpopulated.take()
    }

    /// True if the stretch has been long enough.
    ///
    /// Asked after each piece of work that may be one of many. The first time asked is the stretch's
    /// beginning, so that short work costs one look at the clock at most.
    pub fn is_spent(&mut self) -> bool {
        match self.since {
            Some(since) => since.elapsed() >= TURN,
            None => {
                self.since = Some(Instant::now());
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_ends_and_another_begins() {
        let mut budget = Budget::default();
        assert!(!budget.is_spent());
        while !budget.is_spent() {}
        budget.begin();
        assert!(!budget.is_spent());
    }
}
