//! Objects by a name in a directory that is open.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_policy::file_name;
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::attr::{Attr, FileTime};
use crate::error::errno;
use crate::hostfd::HostFd;
use crate::object::{attr_from, attr_of, birth_time, birth_time_in, read_link};
use crate::roots::LOCATION;

/// The way to reach a host object again that was found.
#[derive(Debug)]
pub enum Handle {
    /// It is open as a location.
    Location(OwnedFd),
    /// In this directory, by the last component of its path: not open, which spares two host calls.
    Entry(Arc<HostFd>),
}

impl Handle {
    /// The directory that it is reached through.
    #[must_use]
    pub fn directory(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Location(_) => None,
            Self::Entry(dir) => Some(dir.as_fd()),
        }
    }

    /// The object at `path`, which had `attr`, open as a location.
    ///
    /// # Errors
    /// The host's; `ESTALE` if it was replaced meanwhile by one of another kind.
    pub fn into_location(self, path: &[u8], attr: &Attr) -> Result<OwnedFd, Errno> {
        match self {
            Self::Location(fd) => Ok(fd),
            Self::Entry(dir) => {
                // Another one may have taken the name: whatever is there now is meant, unless it is of
                // another kind than was asked for.
                let (fd, now) = locate_in(dir.as_fd(), path)?;
                if now.kind() == attr.kind() {
                    Ok(fd)
                } else {
                    Err(Errno::ESTALE)
                }
            }
        }
    }

    /// The target of the symbolic link at `path`.
    ///
    /// # Errors
    /// The host's; `EINVAL` if it is not a symbolic link.
    pub fn read_link(&self, path: &[u8]) -> Result<Vec<u8>, Errno> {
        match self {
            Self::Location(fd) => read_link(fd.as_fd()),
            Self::Entry(dir) => read_link_in(dir.as_fd(), path),
        }
    }

    /// When the object at `path` was created, if its file system knows.
    #[must_use]
    pub fn birth_time(&self, path: &[u8]) -> Option<FileTime> {
        match self {
            Self::Location(fd) => birth_time(fd.as_fd()),
            Self::Entry(dir) => birth_time_in(dir.as_fd(), path),
        }
    }
}

/// The attributes of what directory `dir` has by the name that `path` ends in, which is one plain
/// component. A symbolic link is not followed.
///
/// # Errors
/// The host's.
pub fn attr_in(dir: BorrowedFd<'_>, path: &[u8]) -> Result<Attr, Errno> {
    let found = rustix::fs::statat(dir, file_name(path), AtFlags::SYMLINK_NOFOLLOW);
    found.map_err(errno).map(attr_from)
}

/// As [`crate::Roots::locate`], of what directory `dir` has by the name that `path` ends in.
///
/// # Errors
/// The host's.
pub fn locate_in(dir: BorrowedFd<'_>, path: &[u8]) -> Result<(OwnedFd, Attr), Errno> {
    let fd = open_in(dir, path, LOCATION)?;
    let attr = attr_of(fd.as_fd())?;
    Ok((fd, attr))
}

/// One plain component, and no link: there is no way out of `dir`.
pub(crate) fn open_in(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, file_name(path), flags, Mode::empty()).map_err(errno)
}

/// The target of the symbolic link that directory `dir` has by the name that `path` ends in.
fn read_link_in(dir: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<u8>, Errno> {
    let target = rustix::fs::readlinkat(dir, file_name(path), Vec::new());
    target.map(CString::into_bytes).map_err(errno)
}
