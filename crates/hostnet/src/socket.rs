//! Open sockets of the host: connections, and UDP sockets with one peer.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use kvmlet_abi::Errno;
use kvmlet_budget::{Claim, Exhausted, Held, Resource, Share};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::sockopt;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType};

/// An open socket of the host's, counted while it is open.
#[derive(Debug)]
pub struct HostSocket {
    fd: OwnedFd,
    _of_sandbox: Held,
    _of_process: Held,
}

/// Why there is no socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenError {
    /// The host refuses it.
    Host(Errno),
    /// Sandboxes have all the descriptors that they may have.
    Exhausted(Exhausted),
}

impl From<rustix::io::Errno> for OpenError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Host(errno_of(errno))
    }
}

impl From<Exhausted> for OpenError {
    fn from(exhausted: Exhausted) -> Self {
        Self::Exhausted(exhausted)
    }
}

/// The outcome of reading or writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moved {
    /// So many bytes. Of a read, none is the end.
    Bytes(usize),
    /// None before the next event.
    NotYet,
}

/// The state of an attempt to connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Connected {
    /// It is connected.
    Now,
    /// An event will tell.
    NotYet,
}

pub(crate) fn errno_of(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}

fn moved(result: rustix::io::Result<usize>) -> Result<Moved, Errno> {
    match result {
        Ok(count) => Ok(Moved::Bytes(count)),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(Moved::NotYet),
        Err(errno) => Err(errno_of(errno)),
    }
}

fn family(of: SocketAddr) -> AddressFamily {
    match of {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    }
}

pub(crate) const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

impl AsFd for HostSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl HostSocket {
    pub(crate) fn of(fd: OwnedFd, share: &Arc<Share>) -> Result<Self, Exhausted> {
        Ok(Self {
            fd,
            _of_sandbox: Held::take_share(share, Resource::Descriptors, 1)?,
            _of_process: Held::take(Resource::Descriptors, Claim::Guest, 1)?,
        })
    }

    fn open(of: SocketAddr, kind: SocketType, share: &Arc<Share>) -> Result<Self, OpenError> {
        // Counted before it is opened: no descriptor is taken that may not be had.
        let of_sandbox = Held::take_share(share, Resource::Descriptors, 1)?;
        let of_process = Held::take(Resource::Descriptors, Claim::Guest, 1)?;
        Ok(Self {
            fd: rustix::net::socket_with(family(of), kind, FLAGS, None)?,
            _of_sandbox: of_sandbox,
            _of_process: of_process,
        })
    }

    /// Begins a connection of TCP. Small pieces are sent at once: whoever writes to it has gathered them already.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn connect(to: SocketAddr, share: &Arc<Share>) -> Result<(Self, Connected), OpenError> {
        let socket = Self::open(to, SocketType::STREAM, share)?;
        sockopt::set_tcp_nodelay(&socket.fd, true)?;
        match rustix::net::connect(&socket.fd, &to) {
            Ok(()) => Ok((socket, Connected::Now)),
            Err(rustix::io::Errno::INPROGRESS | rustix::io::Errno::INTR) => {
                Ok((socket, Connected::NotYet))
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// A UDP socket that sends to one address and receives from there only.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn with_peer(to: SocketAddr, share: &Arc<Share>) -> Result<Self, OpenError> {
        let socket = Self::open(to, SocketType::DGRAM, share)?;
        rustix::net::connect(&socket.fd, &to)?;
        Ok(socket)
    }

    /// True if an address is one of this machine's own: what is sent there would be sent from there. Nothing is sent.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn is_own(address: SocketAddr, share: &Arc<Share>) -> Result<bool, OpenError> {
        let socket = Self::with_peer(address, share)?;
        let own = SocketAddr::try_from(rustix::net::getsockname(&socket.fd)?);
        Ok(own.is_ok_and(|own| own.ip() == address.ip()))
    }

    /// The end of an attempt to connect, once an event has told of it.
    ///
    /// # Errors
    /// The reason why it has failed.
    pub fn connected(&self) -> Result<Connected, Errno> {
        match sockopt::socket_error(&self.fd).map_err(errno_of)? {
            Err(errno) => Err(errno_of(errno)),
            Ok(()) => match rustix::net::getpeername(&self.fd) {
                Ok(_) => Ok(Connected::Now),
                Err(rustix::io::Errno::NOTCONN) => Ok(Connected::NotYet),
                Err(errno) => Err(errno_of(errno)),
            },
        }
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// The host's.
    pub fn read(&self, bytes: &mut [u8]) -> Result<Moved, Errno> {
        let read = rustix::net::recv(&self.fd, bytes, RecvFlags::DONTWAIT);
        moved(read.map(|(count, _)| count))
    }

    /// Writes as much as the host takes.
    ///
    /// # Errors
    /// The host's.
    pub fn write(&self, bytes: &[u8]) -> Result<Moved, Errno> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        moved(rustix::net::send(&self.fd, bytes, flags))
    }

    /// True if nothing more comes: of packets, one without bytes reads as the end does.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        self.has(PollFlags::RDHUP | PollFlags::HUP)
            && matches!(
                rustix::net::recv(&self.fd, &mut [0; 1][..], flags),
                Ok((0, _))
            )
    }

    /// True if the other side has closed it: it neither sends nor takes anything more. Of TCP it is known only once it
    /// has answered by RST.
    #[must_use]
    pub fn is_hung_up(&self) -> bool {
        self.has(PollFlags::HUP | PollFlags::ERR)
    }

    /// True if one of these events holds now.
    fn has(&self, events: PollFlags) -> bool {
        let mut asked = [PollFd::new(&self.fd, events)];
        let now = Timespec::default();
        let found = rustix::event::poll(&mut asked, Some(&now));
        found.is_ok() && asked.iter().any(|asked| asked.revents().intersects(events))
    }

    /// Says that nothing more will be written.
    pub fn finish(&self) {
        // One that is no longer connected has nobody to be told.
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
    }

    /// Closes it abruptly: the other side finds it reset.
    pub fn reset(self) {
        // Without it, the other side finds its end.
        let _ = sockopt::set_socket_linger(&self.fd, Some(Duration::ZERO));
    }

    /// SO_KEEPALIVE, TCP_KEEPIDLE, TCP_KEEPINTVL and TCP_KEEPCNT: the other side is asked now and then if it is there.
    pub fn keep_alive(&self, idle: Duration, interval: Duration, count: u32) {
        // A socket without them works.
        let _ = sockopt::set_socket_keepalive(&self.fd, true);
        let _ = sockopt::set_tcp_keepidle(&self.fd, idle);
        let _ = sockopt::set_tcp_keepintvl(&self.fd, interval);
        let _ = sockopt::set_tcp_keepcnt(&self.fd, count);
    }
}
