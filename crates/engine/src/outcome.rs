//! The outcome of a run.

use kvmlet_linux::{Changes, Denial, Uses};

use crate::stats::Stat;

/// The way that a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// The program exited with this status.
    Exited(u8),
    /// A signal killed the program.
    Signal(u8),
    /// The wall-clock limit.
    Timeout,
    /// The limit on CPU time.
    CpuTime,
    /// The memory limit.
    Memory,
    /// The limit on captured output.
    Output,
    /// The owner asked for it.
    Interrupted,
    /// A fault of kvmlet ended it.
    Broken,
}

impl Ending {
    /// The ending in one word.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Exited(_) => "exited",
            Self::Signal(_) => "signal",
            Self::Timeout => "timeout",
            Self::CpuTime => "cpu-time",
            Self::Memory => "memory",
            Self::Output => "output",
            Self::Interrupted => "interrupted",
            Self::Broken => "broken",
        }
    }

    /// The ending for a message.
    pub(crate) fn describe(self) -> String {
        match self {
            Self::Exited(status) => format!("it exited with status {status}"),
            Self::Signal(signo) => format!("signal {signo} killed it"),
            Self::Timeout => "its time was over".to_owned(),
            Self::CpuTime => "it used its CPU time".to_owned(),
            Self::Memory => "it reached its memory limit".to_owned(),
            Self::Output => "it reached the limit on its output".to_owned(),
            Self::Interrupted => "it was interrupted".to_owned(),
            Self::Broken => "a fault of kvmlet ended it".to_owned(),
        }
    }
}

/// The outcome of a run: its ending, its output, and the record of what it met.
#[derive(Debug)]
pub struct RunOutcome {
    /// The way that it ended.
    pub ending: Ending,
    /// Captured standard output.
    pub stdout: Vec<u8>,
    /// Captured standard error.
    pub stderr: Vec<u8>,
    /// Things that the policy refused.
    pub denials: Vec<Denial>,
    /// Things that are not supported and were met: name and detail.
    pub events: Vec<(String, String)>,
    /// Changes in trees that are changed in memory.
    pub changes: Changes,
    /// Paths that were used beyond the rules, while these were learned.
    pub uses: Uses,
    /// Counters and times.
    pub stats: Vec<(String, Stat)>,
}
