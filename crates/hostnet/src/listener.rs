//! Ports of the host that lead to a program's.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_budget::{Held, Resource, Share};
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketType};

use crate::socket::{FLAGS, HostSocket, errno_of};

/// Connections that wait to be taken.
const BACKLOG: i32 = 128;

/// A port of the host where connections come in.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    /// The address and the port.
    at: SocketAddr,
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
        Ok(Self {
            fd,
            at,
            _of_process: Held::promised(Resource::Descriptors, 1),
        })
    }

    /// The address and the port.
    #[must_use]
    pub fn at(&self) -> SocketAddr {
        self.at
    }

    /// The next connection and where it comes from; `None` if there is none. One that a sandbox has no descriptor for is
    /// closed, and `Some(None)`.
    #[must_use]
    pub fn accept(&self, share: &Arc<Share>) -> Option<Option<(HostSocket, SocketAddr)>> {
        let (fd, from) = rustix::net::acceptfrom_with(&self.fd, FLAGS).ok()?;
        let from = from.and_then(|from| SocketAddr::try_from(from).ok());
        // It works without.
        let _ = sockopt::set_tcp_nodelay(&fd, true);
        let socket = HostSocket::of(fd, share).ok();
        Some(socket.zip(from))
    }
}
