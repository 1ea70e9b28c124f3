//! The process that keeps the sockets of several servers, each of which takes over from the one before.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{
    PidfdFlags, PidfdGetfdFlags, Signal, getpid, getppid, pidfd_getfd, pidfd_open,
};

/// The way to the process that has started this one, and that is told when it serves.
#[derive(Debug)]
pub struct Keeper {
    end: OwnedFd,
    takes_over: bool,
}

impl Keeper {
    /// The parent of this process, which reads from the pipe whose other end is the descriptor `number`. Another
    /// process serves until this one does, if it `takes_over`. From here on it is told to stop when its parent ends.
    ///
    /// # Errors
    /// The host's.
    pub fn of_parent(number: i32, takes_over: bool) -> io::Result<Self> {
        let parent = getppid();
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        // It may have ended just before.
        if getppid() != parent {
            return Err(io::Error::other("the process that keeps it has ended"));
        }
        let end = own_descriptor(number)?;
        Ok(Self { end, takes_over })
    }

    /// True until this process has the clients of another one.
    pub(crate) fn has_another(&self) -> bool {
        self.takes_over
    }

    /// Says that it serves.
    #[expect(
        clippy::disallowed_methods,
        reason = "a pipe between this process and its parent"
    )]
    pub(crate) fn tell(self) {
        // Nobody may read it, as when it is told to stop meanwhile.
        let _ = rustix::io::write(&self.end, b"s");
    }
}

/// A descriptor of our own for what the number of another one stands for, without the belief that it is one.
pub(crate) fn own_descriptor(number: i32) -> io::Result<OwnedFd> {
    let process = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(process, number, PidfdGetfdFlags::empty())?)
}
