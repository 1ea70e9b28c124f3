//! The parts of a sandbox's network that are opened before its program starts, and its second wall stands.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use kvmlet_abi::Errno;

use crate::listener::Listener;
use crate::resolver::{self, Resolver};

/// Ports of the host that lead to the program's, and who looks names up for it.
#[derive(Debug, Default)]
pub struct Access {
    listeners: Vec<(Listener, u16)>,
    /// The end of a process that looks names up; `None` if threads do.
    helper: Mutex<Option<Resolver>>,
}

impl Access {
    /// Listens at an address of the host, for connections to the program's `port`. Answers where that is.
    ///
    /// # Errors
    /// The host's.
    pub fn publish(&mut self, at: SocketAddr, port: u16) -> Result<SocketAddr, Errno> {
        let listener = Listener::open(at)?;
        let at = listener.at();
        self.listeners.push((listener, port));
        Ok(at)
    }

    /// The ports of the host, and the program's that each leads to.
    #[must_use]
    pub fn listeners(&self) -> &[(Listener, u16)] {
        &self.listeners
    }

    /// Has names looked up by a process: this is its end, for [`resolver::serve`].
    ///
    /// # Errors
    /// The host's.
    pub fn helper(&self) -> Result<OwnedFd, Errno> {
        let (resolver, other) = resolver::pair()?;
        let mut helper = self.helper.lock().unwrap_or_else(PoisonError::into_inner);
        *helper = Some(resolver);
        Ok(other)
    }

    /// Who looks names up: the process, for the first who asks, and threads for others.
    ///
    /// # Errors
    /// The host's.
    pub fn resolver(&self) -> Result<Resolver, Errno> {
        let mut helper = self.helper.lock().unwrap_or_else(PoisonError::into_inner);
        match helper.take() {
            Some(resolver) => Ok(resolver),
            None => Resolver::with_threads(),
        }
    }
}
