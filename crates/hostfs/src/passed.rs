//! Descriptors above 2 that the caller passes to a program.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use kvmlet_abi::Errno;
use rustix::fs::OFlags;

use crate::attr::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFREG, S_IFSOCK};
use crate::error::errno;
use crate::object::attr_of;
use crate::stdio::{Stream, stream_of};

/// Says why a descriptor is offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offer {
    /// The caller has left it open: pipes and regular files are passed.
    LeftOpen,
    /// The caller has named it: connected sockets are passed too.
    Named,
}

/// The reason why a descriptor is not passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unfit {
    /// It is a directory.
    Directory,
    /// It is a device, a terminal among them.
    Device,
    /// It is a mere location (O_PATH).
    Location,
    /// It is a socket, and nobody has named it.
    Socket,
    /// It is a socket without a peer.
    Unconnected,
    /// It is neither a pipe nor a file nor a socket.
    Other,
    /// The host's error.
    Host(Errno),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Directory => "it is a directory, which is never passed; show it by --read",
            Self::Device => "it is a device, which is never passed; every program has /dev/null",
            Self::Location => "it is open as a location (O_PATH) only; open it for reading",
            Self::Socket => "it is a socket; name it by --fd",
            Self::Unconnected => {
                "it is a socket without a peer; pass one that is connected, or publish a port by -p"
            }
            Self::Other => "it is no pipe, regular file or socket; pass one of those",
            Self::Host(errno) => return write!(f, "it cannot be passed: {errno}"),
        })
    }
}

/// The stream that a program gets for a descriptor of the caller's, as it was opened.
///
/// # Errors
/// [`Unfit`]; it is closed.
pub fn pass(fd: OwnedFd, offer: Offer) -> Result<Stream, Unfit> {
    let status = rustix::fs::fcntl_getfl(&fd).map_err(|error| Unfit::Host(errno(error)))?;
    if status.contains(OFlags::PATH) {
        return Err(Unfit::Location);
    }
    let attr = attr_of(fd.as_fd()).map_err(Unfit::Host)?;
    match attr.kind() {
        S_IFREG | S_IFIFO => {}
        S_IFSOCK if offer != Offer::Named => return Err(Unfit::Socket),
        S_IFSOCK if rustix::net::getpeername(&fd).is_err() => return Err(Unfit::Unconnected),
        S_IFSOCK => {}
        S_IFDIR => return Err(Unfit::Directory),
        S_IFCHR | S_IFBLK => return Err(Unfit::Device),
        _ => return Err(Unfit::Other),
    }
    stream_of(fd).map_err(Unfit::Host)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::testing::TempTree;
    use crate::{HostKind, stdio};

    fn kind(fd: impl Into<OwnedFd>, offer: Offer) -> Result<HostKind, Unfit> {
        match pass(fd.into(), offer)? {
            stdio::Stream::Host { kind, .. } => Ok(kind),
            stdio::Stream::Device { .. } => Err(Unfit::Device),
        }
    }

    #[test]
    fn each_kind_has_its_answer() {
        use Offer::{LeftOpen, Named};
        let tree = TempTree::new("passed");
        let open = |path: &std::path::Path| std::fs::File::open(path).unwrap();
        let file = tree.0.join("file");
        std::fs::write(&file, "x").unwrap();
        assert_eq!(kind(open(&file), LeftOpen), Ok(HostKind::FileStream));
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(kind(reader, LeftOpen), Ok(HostKind::Stream));
        for offer in [LeftOpen, Named] {
            assert_eq!(kind(open(&tree.0), offer), Err(Unfit::Directory));
            let null = open(std::path::Path::new("/dev/null"));
            assert_eq!(kind(null, offer), Err(Unfit::Device));
            let location = rustix::fs::open(&file, OFlags::PATH, rustix::fs::Mode::empty());
            assert_eq!(kind(location.unwrap(), offer), Err(Unfit::Location));
            let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty());
            assert_eq!(kind(event.unwrap(), offer), Err(Unfit::Other));
        }
        let (one, other) = UnixStream::pair().unwrap();
        assert_eq!(kind(one, LeftOpen), Err(Unfit::Socket));
        assert_eq!(
            kind(other.try_clone().unwrap(), Named),
            Ok(HostKind::Socket)
        );
        let listener = UnixListener::bind(tree.0.join("socket")).unwrap();
        assert_eq!(kind(listener, Named), Err(Unfit::Unconnected));
    }
}
