//! Limits on time.
//!
//! The one on wall-clock time stands still while the whole process is stopped (SIGSTOP, Ctrl-Z). The one on CPU time
//! counts what the thread that runs the sandbox has used: guest code, and the work for it.

use std::time::Duration;

use crate::run::{Owner, Stop};
use crate::time::{TICK_NS, thread_cpu_ns};

/// When a step must end, on the host's CLOCK_MONOTONIC, which goes on while a process is stopped.
#[derive(Debug)]
pub(crate) struct Limit {
    deadline_ns: Option<u64>,
    /// When the owner was asked last.
    asked_ns: u64,
    cpu: Option<CpuLimit>,
}

/// A limit on CPU time.
#[derive(Debug)]
struct CpuLimit {
    /// The thread's CPU time that is the end, in nanoseconds.
    end_ns: u64,
    /// Before this it cannot be over, on the host's CLOCK_MONOTONIC.
    due_ns: u64,
}

/// The CPU time is not looked at more often than this, in nanoseconds.
const CPU_LOOK_NS: u64 = 2_000_000;

impl Limit {
    pub fn new(deadline_ns: Option<u64>, now_ns: u64) -> Self {
        Self {
            deadline_ns,
            asked_ns: now_ns,
            cpu: None,
        }
    }

    /// The same, and at most `cpu_ns` of the calling thread's CPU time from now on.
    pub fn with_cpu(self, cpu_ns: Option<u64>, now_ns: u64) -> Self {
        let cpu = cpu_ns.map(|cpu_ns| CpuLimit {
            end_ns: thread_cpu_ns().saturating_add(cpu_ns),
            due_ns: now_ns.saturating_add(cpu_ns),
        });
        Self { cpu, ..self }
    }

    /// The next time that a limit may be over.
    pub fn due_ns(&self) -> Option<u64> {
        let cpu = self.cpu.as_ref().map(|cpu| cpu.due_ns);
        [self.deadline_ns, cpu].into_iter().flatten().min()
    }

    /// The time that is left, if there is a limit.
    pub fn left(&self, now_ns: u64) -> Option<Duration> {
        let deadline_ns = self.deadline_ns?;
        Some(Duration::from_nanos(deadline_ns.saturating_sub(now_ns)))
    }

    /// True if the owner is to be asked now, whatever the tick says.
    pub fn is_due(&self, now_ns: u64) -> bool {
        self.due_ns().is_some_and(|due_ns| now_ns >= due_ns)
    }

    fn is_over(&self, now_ns: u64) -> bool {
        self.deadline_ns
            .is_some_and(|deadline_ns| now_ns >= deadline_ns)
    }

    fn is_cpu_over(&mut self, now_ns: u64) -> bool {
        let Some(cpu) = self.cpu.as_mut().filter(|cpu| now_ns >= cpu.due_ns) else {
            return false;
        };
        let left_ns = cpu.end_ns.saturating_sub(thread_cpu_ns());
        cpu.due_ns = now_ns.saturating_add(left_ns.max(CPU_LOOK_NS));
        left_ns == 0
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
        if self.is_over(now_ns) {
            return Some(Stop::TimedOut);
        }
        self.is_cpu_over(now_ns).then_some(Stop::OutOfCpuTime)
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
        assert_eq!(limit.due_ns(), Some(12 * SECOND_NS - TICK_NS));
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
        assert_eq!(limit.due_ns(), Some(SECOND_NS));
    }
    #[test]
    fn cpu_time_is_the_threads_own() {
        let mut owner = Asked::default();
        let mut limit = Limit::new(None, 0).with_cpu(Some(20_000_000), 0);
        assert!(!limit.is_due(19_999_999) && limit.is_due(20_000_000));
        // Time that others had does not count.
        assert_eq!(limit.check(&mut owner, SECOND_NS), None);
        assert!(limit.due_ns().is_some_and(|due_ns| due_ns > SECOND_NS));
        let start_ns = thread_cpu_ns();
        while thread_cpu_ns() < start_ns + 20_000_000 {
            std::hint::spin_loop();
        }
        assert_eq!(
            limit.check(&mut owner, 2 * SECOND_NS),
            Some(Stop::OutOfCpuTime)
        );
    }
}
