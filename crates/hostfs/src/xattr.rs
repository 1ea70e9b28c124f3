//! Extended attributes of host files (xattr(7)): those of users, which any program may have. What the kernel and
//! system programs keep there is neither shown nor changed.
//!
//! All of it is done by a descriptor that is open for more than a location: a name could lead elsewhere.

use std::os::fd::{AsFd, BorrowedFd};

use kvmlet_abi::Errno;
use rustix::fs::XattrFlags;

use crate::attr::Attr;
use crate::change::{Named, open_named};
use crate::error::errno;

/// Names of the attributes that are shown begin with this.
pub const USER: &[u8] = b"user.";

/// Attributes of users that file systems and servers of files obey: what another path shows, whose a file is and what it
/// may do. Nobody changes them from inside.
const OBEYED: [&[u8]; 5] = [
    b"user.overlay.",
    b"user.fuseoverlayfs.",
    b"user.containers.",
    b"user.virtfs.",
    b"user.rsync.%",
];

/// True for an attribute by which programs of the host go.
#[must_use]
pub fn is_obeyed(name: &[u8]) -> bool {
    OBEYED.iter().any(|prefix| name.starts_with(prefix))
}

/// The names of a file's attributes.
///
/// # Errors
/// The host's.
pub fn list(fd: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let len = rustix::fs::flistxattr_query(fd).map_err(errno)?;
    let mut names = vec![0; len];
    // More of them may have come: that is ERANGE, as any caller may meet it.
    let len = rustix::fs::flistxattr(fd, names.as_mut_slice()).map_err(errno)?;
    names.truncate(len);
    let names = names.split(|byte| *byte == 0);
    let of_user = names.filter(|name| name.starts_with(USER));
    Ok(of_user.map(<[u8]>::to_vec).collect())
}

/// The value of an attribute.
///
/// # Errors
/// The host's: `ENODATA` if there is none.
pub fn get(fd: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>, Errno> {
    let len = rustix::fs::fgetxattr_query(fd, name).map_err(errno)?;
    let mut value = vec![0; len];
    if len > 0 {
        let len = rustix::fs::fgetxattr(fd, name, value.as_mut_slice()).map_err(errno)?;
        value.truncate(len);
    }
    Ok(value)
}

/// Sets an attribute of something that has `attr`, with the flags of setxattr(2).
///
/// # Errors
/// The host's; as [`crate::change::set_mode`].
pub fn set(
    named: Named<'_>,
    attr: &Attr,
    (name, value): (&[u8], &[u8]),
    flags: u32,
) -> Result<(), Errno> {
    let flags = XattrFlags::from_bits_retain(flags);
    let own = open_named(named, attr)?;
    let fd = own.as_ref().map_or_else(|| named.fd(), |own| own.as_fd());
    rustix::fs::fsetxattr(fd, name, value, flags).map_err(errno)
}

/// Takes an attribute away.
///
/// # Errors
/// The host's: `ENODATA` if there is none; as [`crate::change::set_mode`].
pub fn remove(named: Named<'_>, attr: &Attr, name: &[u8]) -> Result<(), Errno> {
    let own = open_named(named, attr)?;
    let fd = own.as_ref().map_or_else(|| named.fd(), |own| own.as_fd());
    rustix::fs::fremovexattr(fd, name).map_err(errno)
}
