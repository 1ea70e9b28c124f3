//! The program that the front stands before, as far as the front knows it.

use std::sync::Arc;
use std::time::Duration;

use crate::wire::Wire;

/// The end of a connection that a program had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ending {
    /// The program closed it, or the front needs nothing more of it.
    Done,
    /// Its deadline has passed.
    TimedOut,
    /// The program has ended, in words.
    Crashed(String),
    /// It ended because it used more memory than it may, in words.
    Memory(String),
    /// The program waits for something that is not this connection, and takes none.
    NotListening,
    /// A fault that is not the program's.
    Failed(String),
}

impl Ending {
    /// True if the fork is at fault: one that fails again and again is made anew.
    pub(crate) fn is_failure(&self) -> bool {
        *self != Self::Done
    }
}

/// Work that a reset has done.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Reset {
    /// Pages that were put back.
    pub pages: u64,
}

/// Takes what the program writes to its standard output and error, while it runs.
pub trait Output {
    /// Bytes of standard output or, if `stream` is 2, of standard error.
    fn wrote(&mut self, stream: u8, bytes: &[u8]);

    /// The policy has refused this.
    fn denied(&mut self, refusal: &Refusal);
}

/// Something that the policy refused, in words.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Refusal {
    /// The thing that was tried and the error that the program got.
    pub what: String,
    /// It only asked whether something is there, as programs do that go on without.
    pub only_asked: bool,
}

/// A copy of the frozen program. It lives on one thread, which runs it.
pub trait Fork: Send {
    /// Hands the program a connection, whose other end is `wire`. Runs it until it has closed that, until it
    /// has ended, or until [`Wire::is_over`] or the wire's deadline.
    fn serve(&mut self, wire: &Wire, output: &mut dyn Output) -> Ending;

    /// Back to the frozen state.
    ///
    /// # Errors
    /// In words; the fork is of no use then.
    fn reset(&mut self) -> Result<Reset, String>;

    /// Exits from its VM so far.
    fn exits(&mut self) -> u64;

    /// CPU time of the threads that answer its system calls without an exit, so far.
    fn poller_cpu(&mut self) -> Duration;

    /// Makes [`Fork::serve`] look at its wire at once, from any thread. It holds until the next reset.
    fn waker(&self) -> Arc<dyn Fn() + Send + Sync>;
}

/// The frozen program.
pub trait Master: Send + Sync {
    /// A copy of it.
    ///
    /// # Errors
    /// In words.
    fn fork(&self) -> Result<Box<dyn Fork>, String>;
}

/// The reason that a program does not serve.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct BootError {
    /// A short name of its kind, which a caller can look at.
    pub kind: String,
    /// In words.
    pub message: String,
}

impl BootError {
    /// An error of this kind.
    pub fn new(kind: &str, message: impl Into<String>) -> Self {
        Self {
            kind: kind.to_owned(),
            message: message.into(),
        }
    }
}

/// The program before it is frozen: it listens, and may be asked things to become warm.
pub trait Program: Send {
    /// As [`Fork::serve`], and goes on until the program waits for the next connection.
    fn serve(&mut self, wire: &Wire, output: &mut dyn Output) -> Ending;

    /// As [`Fork::waker`].
    fn waker(&self) -> Arc<dyn Fn() + Send + Sync>;

    /// Freezes it.
    ///
    /// # Errors
    /// [`BootError`].
    fn freeze(self: Box<Self>) -> Result<Box<dyn Master>, BootError>;
}
