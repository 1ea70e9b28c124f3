//! Ports of the host that lead to a program's.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use kvmlet_abi::Errno;
use kvmlet_budget::{Held, Resource, Share};
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketType};

use crate::socket::{FLAGS, HostSocket, errno_of};

/// Connections that wait to be taken.
const BACKLOG: i32 = 128;

/// Another descriptor for the same; `None` if the process may open no more.
fn another(fd: &OwnedFd) -> Option<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3).ok()
}

/// A port of the host where connections come in.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    /// The address and the port.
    at: SocketAddr,
    /// A descriptor that makes room for a connection which is then refused, where the process may open no more.
    spare: Mutex<Option<OwnedFd>>,
    _of_process: Held,
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Listener {
    /// Listens at an address and a port.
    ///
    /// # Errors
    /// The host's: `EADDRINUSE`, `EADDRNOTAVAIL`, `EACCES`.
    pub fn open(at: SocketAddr) -> Result<Self, Errno> {
        let family = match at {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let open = || {
            let fd = rustix::net::socket_with(family, SocketType::STREAM, FLAGS, None)?;
            sockopt::set_socket_reuseaddr(&fd, true)?;
            if at.is_ipv6() {
                // The address that was named, and no other.
                sockopt::set_ipv6_v6only(&fd, true)?;
            }
            rustix::net::bind(&fd, &at)?;
            rustix::net::listen(&fd, BACKLOG)?;
            let own = SocketAddr::try_from(rustix::net::getsockname(&fd)?);
            Ok((fd, own.unwrap_or(at)))
        };
        let (fd, at) = open().map_err(errno_of)?;
        let spare = Mutex::new(another(&fd));
        Ok(Self {
            fd,
            at,
            spare,
            _of_process: Held::promised(Resource::Descriptors, 2),
        })
    }

    /// The address and the port.
    #[must_use]
    pub fn at(&self) -> SocketAddr {
        self.at
    }

    /// The next connection and where it comes from; `None` if there is none. One that there is no descriptor for is
    /// closed, and `Some(None)`, as is one that was given up before.
    ///
    /// An event tells of connections once: one that was left would wait for the next.
    #[must_use]
    pub fn accept(&self, share: &Arc<Share>) -> Option<Option<(HostSocket, SocketAddr)>> {
        let (fd, from) = match rustix::net::acceptfrom_with(&self.fd, FLAGS) {
            Ok(accepted) => accepted,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => return Some(None),
            Err(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => return self.refuse(),
            Err(_) => return None,
        };
        let from = from.and_then(|from| SocketAddr::try_from(from).ok());
        // It works without.
        let _ = sockopt::set_tcp_nodelay(&fd, true);
        let socket = HostSocket::of(fd, share).ok();
        Some(socket.zip(from))
    }

    /// Takes a connection and closes it at once: `Some(None)`; `None` if there is no room even for that.
    fn refuse<T>(&self) -> Option<Option<T>> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        drop(spare.take()?);
        let refused = rustix::net::acceptfrom_with(&self.fd, FLAGS).map(drop);
        *spare = another(&self.fd);
        refused.is_ok().then_some(None)
    }
}
