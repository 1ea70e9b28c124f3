//! The parts of a sandbox's network that are opened before its program starts, and its second wall stands.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use kvmlet_abi::Errno;
use kvmlet_budget::Share;

use crate::listener::Listener;
use crate::resolver::{self, Resolver};
use crate::socket::{HostSocket, OpenError};
use crate::unix::{self, Connector, Traffic};

/// Ports of the host that lead to the program's, who looks names up for it, and who connects it to sockets of the host.
#[derive(Debug, Default)]
pub struct Access {
    listeners: Vec<(Listener, u16)>,
    /// The end of a process that looks names up; `None` if threads do.
    helper: Mutex<Option<Resolver>>,
    /// The end of a process that connects to sockets with a path; `None` if this one does.
    connector: Mutex<Option<Connector>>,
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

    /// Has connections to sockets with a path made by a process: this is its end, for [`unix::serve`].
    ///
    /// # Errors
    /// The host's.
    pub fn connecting_helper(&self) -> Result<OwnedFd, Errno> {
        let (connector, other) = unix::pair()?;
        let mut own = self
            .connector
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *own = Some(connector);
        Ok(other)
    }

    /// Connects to the host's socket at a canonical path: the one of this number, among those that may be connected to.
    ///
    /// # Errors
    /// [`OpenError`]: `ENOENT`, `EACCES`, `ECONNREFUSED`, `EPROTOTYPE` if it carries other traffic, `EAGAIN` if its
    /// backlog is full, `EPERM` if it takes datagrams from another only.
    pub fn connect(
        &self,
        at: (usize, &[u8]),
        traffic: Traffic,
        share: &Arc<Share>,
    ) -> Result<HostSocket, OpenError> {
        let mut connector = self
            .connector
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        unix::open(connector.as_mut(), at, traffic, share)
    }
}
