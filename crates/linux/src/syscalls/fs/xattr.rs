//! Extended attributes (xattr(7)): no file shows any, and none can be set.

use kvmlet_abi::linux::limits::{XATTR_NAME_MAX, XATTR_SIZE_MAX};
use kvmlet_abi::linux::xattr::{XATTR_CREATE, XATTR_REPLACE};
use kvmlet_abi::{Errno, Gva};

use super::{AT_FDCWD, AT_SYMLINK_NOFOLLOW, Target};
use crate::cx::Cx;
use crate::fd;
use crate::outcome::SysResult;
use crate::syscalls::args::{Args, Fd, Flags, Len, Ptr, Str};
use crate::vfs::open::deny_write;
use crate::vfs::path::{Found, Node};

fn by_path(cx: &mut Cx<'_>, path: Gva) -> Result<Found, Errno> {
    Target::new("xattr", AT_FDCWD, path).find(cx, 0)
}

fn by_link(cx: &mut Cx<'_>, path: Gva) -> Result<Found, Errno> {
    Target::new("xattr", AT_FDCWD, path).find(cx, AT_SYMLINK_NOFOLLOW)
}

fn by_fd(cx: &mut Cx<'_>, fd: i32) -> Result<Found, Errno> {
    let (id, file) = fd::get_io(cx, fd)?;
    Ok(Found {
        path: file.path.to_vec(),
        node: Node::Open(id),
    })
}

/// Reads an attribute's name and checks its class.
fn read_name(cx: &mut Cx<'_>, gva: Gva) -> Result<Vec<u8>, Errno> {
    let name = cx
        .read_cstr(gva, XATTR_NAME_MAX.saturating_add(1))
        .map_err(|error| match error {
            Errno::ENAMETOOLONG => Errno::ERANGE,
            other => other,
        })?;
    if name.is_empty() {
        return Err(Errno::ERANGE);
    }
    let known = [b"user.".as_slice(), b"trusted.", b"security.", b"system."];
    if known.iter().any(|class| name.starts_with(class)) {
        Ok(name)
    } else {
        Err(Errno::EOPNOTSUPP)
    }
}

/// True if a file is on the host, whose file systems know attributes.
fn on_host(cx: &Cx<'_>, found: &Found) -> bool {
    cx.host.policy.classify(&found.path).is_of_host()
}

fn get(cx: &mut Cx<'_>, found: Result<Found, Errno>, name: Gva) -> SysResult {
    let name = read_name(cx, name)?;
    let found = found?;
    if on_host(cx, &found) || name.starts_with(b"security.") {
        Err(Errno::ENODATA)
    } else {
        Err(Errno::EOPNOTSUPP)
    }
}

fn change(
    cx: &mut Cx<'_>,
    call: &'static str,
    found: Result<Found, Errno>,
    name: Gva,
) -> SysResult {
    read_name(cx, name)?;
    let found = found?;
    if cx.host.policy.classify(&found.path) == kvmlet_policy::Place::Readable {
        return Err(deny_write(cx, call, &found.path));
    }
    cx.host.report.unsupported(call, String::new());
    Err(Errno::EOPNOTSUPP)
}

fn check_value(size: u64, flags: u32) -> Result<(), Errno> {
    if flags & !(XATTR_CREATE | XATTR_REPLACE) != 0 {
        return Err(Errno::EINVAL);
    }
    if size > XATTR_SIZE_MAX {
        Err(Errno::E2BIG)
    } else {
        Ok(())
    }
}

/// getxattr(2)
///
/// # Errors
/// `ENODATA`, `EOPNOTSUPP`; as path resolution.
pub fn sys_getxattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Str(name), Ptr(_), Len(_)) = args.decode();
    let found = by_path(cx, path);
    get(cx, found, name)
}

/// lgetxattr(2)
///
/// # Errors
/// As [`sys_getxattr`].
pub fn sys_lgetxattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Str(name), Ptr(_), Len(_)) = args.decode();
    let found = by_link(cx, path);
    get(cx, found, name)
}

/// fgetxattr(2)
///
/// # Errors
/// As [`sys_getxattr`], `EBADF`.
pub fn sys_fgetxattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Str(name), Ptr(_), Len(_)) = args.decode();
    let found = by_fd(cx, fd);
    get(cx, found, name)
}

/// listxattr(2): an empty list.
///
/// # Errors
/// As path resolution.
pub fn sys_listxattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Ptr(_), Len(_)) = args.decode();
    by_path(cx, path).map(|_| 0)
}

/// llistxattr(2): an empty list.
///
/// # Errors
/// As path resolution.
pub fn sys_llistxattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Ptr(_), Len(_)) = args.decode();
    by_link(cx, path).map(|_| 0)
}

/// flistxattr(2): an empty list.
///
/// # Errors
/// `EBADF`.
pub fn sys_flistxattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Ptr(_), Len(_)) = args.decode();
    by_fd(cx, fd).map(|_| 0)
}

/// setxattr(2)
///
/// # Errors
/// `EROFS`, `EOPNOTSUPP`, `EINVAL`, `E2BIG`; as path resolution.
pub fn sys_setxattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Str(name), Ptr(_), Len(size), Flags(flags)) = args.decode();
    check_value(size, flags)?;
    let found = by_path(cx, path);
    change(cx, "setxattr", found, name)
}

/// lsetxattr(2)
///
/// # Errors
/// As [`sys_setxattr`].
pub fn sys_lsetxattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Str(name), Ptr(_), Len(size), Flags(flags)) = args.decode();
    check_value(size, flags)?;
    let found = by_link(cx, path);
    change(cx, "setxattr", found, name)
}

/// fsetxattr(2)
///
/// # Errors
/// As [`sys_setxattr`], `EBADF`.
pub fn sys_fsetxattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Str(name), Ptr(_), Len(size), Flags(flags)) = args.decode();
    check_value(size, flags)?;
    let found = by_fd(cx, fd);
    change(cx, "setxattr", found, name)
}

/// removexattr(2)
///
/// # Errors
/// As [`sys_setxattr`].
pub fn sys_removexattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Str(name)) = args.decode();
    let found = by_path(cx, path);
    change(cx, "removexattr", found, name)
}

/// lremovexattr(2)
///
/// # Errors
/// As [`sys_setxattr`].
pub fn sys_lremovexattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Str(name)) = args.decode();
    let found = by_link(cx, path);
    change(cx, "removexattr", found, name)
}

/// fremovexattr(2)
///
/// # Errors
/// As [`sys_setxattr`], `EBADF`.
pub fn sys_fremovexattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Str(name)) = args.decode();
    let found = by_fd(cx, fd);
    change(cx, "removexattr", found, name)
}
