//! The rate at which a program may open sockets of the host and ask it for names.

use std::time::{Duration, Instant};

/// Between two, in the long run: 1,000 a second.
const EACH: Duration = Duration::from_millis(1);
/// As many may come at once after a quiet time: 10,000.
const AHEAD_MAX: Duration = Duration::from_secs(10);

/// A bucket that fills again with time. A reset does not fill it: requests of a server share one.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Rate {
    /// When it is full again. It is full from the start.
    full_at: Option<Instant>,
}

impl Rate {
    /// Takes one out, if there is one at `now`.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let from = self.full_at.map_or(now, |at| at.max(now));
        if from.duration_since(now) + EACH > AHEAD_MAX {
            return false;
        }
        self.full_at = from.checked_add(EACH);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(rate: &mut Rate, now: Instant) -> usize {
        (0..20_000).filter(|_| rate.take(now)).count()
    }

    #[test]
    fn many_at_once_and_then_as_many_as_come_back() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        assert_eq!(taken(&mut rate, start), 10_000);
        assert_eq!(taken(&mut rate, start + Duration::from_micros(900)), 0);
        assert_eq!(taken(&mut rate, start + Duration::from_secs(1)), 1000);
        assert_eq!(taken(&mut rate, start + Duration::from_secs(3600)), 10_000);
    }
}
