//! A limit on wall-clock time. It stands still while the whole process is stopped (SIGSTOP, Ctrl-Z).

use std::time::Duration;

use crate::run::{Owner, Stop};
use crate::time::TICK_NS;

/// When a step must end, on the host's CLOCK_MONOTONIC, which goes on while a process is stopped.
#[derive(Debug)]
pub(crate) struct Limit {
    deadline_ns: Option<u64>,
    /// When the owner was asked last.
    asked_ns: u64,
}

impl Limit {
    pub fn new(deadline_ns: Option<u64>, now_ns: u64) -> Self {
        Self {
            deadline_ns,
            asked_ns: now_ns,
        }
    }

    pub fn deadline_ns(&self) -> Option<u64> {
        self.deadline_ns
    }

    /// The time that is left, if there is a limit.
    pub fn left(&self, now_ns: u64) -> Option<Duration> {
        let deadline_ns = self.deadline_ns?;
        Some(Duration::from_nanos(deadline_ns.saturating_sub(now_ns)))
    }

    /// True if the owner is to be asked now, whatever the tick says.
    pub fn is_due(&self, now_ns: u64) -> bool {
        self.deadline_ns
            .is_some_and(|deadline_ns| now_ns >= deadline_ns)
    }

    /// Asks the owner, who is asked once a tick at least.
    ///
    /// Of the time since it was asked last, a tick was the program's, and the rest the stop's if there was one.
    pub fn check(&mut self, owner: &mut dyn Owner, now_ns: u64) -> Option<Stop> {
        let unseen_ns = now_ns.saturating_sub(self.asked_ns);
        self.asked_ns = now_ns;
        if owner.stop_requested() {
            return Some(Stop::Interrupted);
        }
        if owner.was_continued() {
            let stopped_ns = unseen_ns.saturating_sub(TICK_NS);
            self.deadline_ns = self
                .deadline_ns
                .map(|deadline_ns| deadline_ns.saturating_add(stopped_ns));
        }
        self.is_due(now_ns).then_some(Stop::TimedOut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Asked {
        stop: bool,
        continued: bool,
    }

    impl Owner for Asked {
        fn stop_requested(&mut self) -> bool {
            self.stop
        }

        fn was_continued(&mut self) -> bool {
            std::mem::take(&mut self.continued)
        }

        fn trace(&mut self, _line: &str, _left: Option<Duration>) {}
    }

    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn a_limit_ends_the_step_at_its_time() {
        let mut limit = Limit::new(Some(SECOND_NS), 0);
        let mut owner = Asked::default();
        assert_eq!(limit.check(&mut owner, SECOND_NS - 1), None);
        assert_eq!(limit.check(&mut owner, SECOND_NS), Some(Stop::TimedOut));
        assert_eq!(
            Limit::new(None, 0).check(&mut owner, u64::MAX),
            None,
            "no limit"
        );
        owner.stop = true;
        assert_eq!(limit.check(&mut owner, 1), Some(Stop::Interrupted));
    }

    #[test]
    fn time_in_which_the_process_was_stopped_does_not_count() {
        let mut limit = Limit::new(Some(2 * SECOND_NS), 0);
        let mut owner = Asked::default();
        assert_eq!(limit.check(&mut owner, SECOND_NS), None);
        owner.continued = true;
        assert_eq!(limit.check(&mut owner, 11 * SECOND_NS), None);
        assert_eq!(limit.deadline_ns(), Some(12 * SECOND_NS - TICK_NS));
        assert_eq!(
            limit.check(&mut owner, 12 * SECOND_NS),
            Some(Stop::TimedOut)
        );
    }

    /// Anybody may send SIGCONT to a process that is not stopped.
    #[test]
    fn a_continuation_without_a_stop_moves_nothing() {
        let mut limit = Limit::new(Some(SECOND_NS), 0);
        let mut owner = Asked::default();
        for now_ns in (0..SECOND_NS).step_by(TICK_NS as usize) {
            owner.continued = true;
            assert_eq!(limit.check(&mut owner, now_ns), None);
        }
        assert_eq!(limit.deadline_ns(), Some(SECOND_NS));
    }
}
