//! Extended attributes (xattr(7)): those of users. No file shows others, and none can be set.

use kvmlet_abi::linux::inotify::IN_ATTRIB;
use kvmlet_abi::linux::limits::{XATTR_NAME_MAX, XATTR_SIZE_MAX};
use kvmlet_abi::linux::xattr::{XATTR_CREATE, XATTR_REPLACE};
use kvmlet_abi::{Errno, Gva};
use kvmlet_hostfs::attr::{MAY_WRITE, S_IFDIR, S_IFREG};
use kvmlet_hostfs::{check_mode, xattr};
use kvmlet_policy::Place;

use super::attrs::{Changeable, changeable};
use super::{AT_FDCWD, AT_SYMLINK_NOFOLLOW, Target};
use crate::cx::Cx;
use crate::fd;
use crate::outcome::SysResult;
use crate::syscalls::args::{Args, Fd, Flags, Len, Ptr, Str};
use crate::vfs::open::deny_write;
use crate::vfs::path::{Found, Node};
use crate::vfs::{attributes, notify};

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
    match known.iter().find(|class| name.starts_with(class)) {
        None => Err(Errno::EOPNOTSUPP),
        Some(class) if class.len() == name.len() => Err(Errno::EINVAL),
        Some(_) => Ok(name),
    }
}

/// True for the attributes that any program may have.
fn is_of_user(name: &[u8]) -> bool {
    name.starts_with(xattr::USER)
}

/// True if a file is on the host, whose file systems know attributes.
fn on_host(cx: &Cx<'_>, found: &Found) -> bool {
    cx.host.policy.classify(&found.path).is_of_host()
}

/// Gives the program `bytes`: their count alone, if it has no room.
fn give(cx: &mut Cx<'_>, (gva, size): (Gva, u64), bytes: &[u8]) -> SysResult {
    let len = bytes.len() as u64;
    if size == 0 {
        return Ok(len);
    }
    if len > size {
        return Err(Errno::ERANGE);
    }
    cx.write(gva, bytes)?;
    Ok(len)
}

fn get(cx: &mut Cx<'_>, found: Result<Found, Errno>, name: Gva, into: (Gva, u64)) -> SysResult {
    let name = read_name(cx, name)?;
    let found = found?;
    if is_of_user(&name) {
        let value = attributes::get(cx, &found, &name)?;
        return give(cx, into, &value);
    }
    if on_host(cx, &found) || name.starts_with(b"security.") {
        Err(Errno::ENODATA)
    } else {
        Err(Errno::EOPNOTSUPP)
    }
}

fn list(cx: &mut Cx<'_>, found: Result<Found, Errno>, into: (Gva, u64)) -> SysResult {
    let names = attributes::list(cx, &found?)?;
    let mut text = Vec::new();
    for name in names {
        text.extend_from_slice(&name);
        text.push(0);
    }
    give(cx, into, &text)
}

/// Sets an attribute, or takes it away.
fn change(
    cx: &mut Cx<'_>,
    call: &'static str,
    found: Result<Found, Errno>,
    (name, value): (Gva, Option<&[u8]>),
    flags: u32,
) -> SysResult {
    let name = read_name(cx, name)?;
    let found = found?;
    if !is_of_user(&name) {
        if cx.host.policy.classify(&found.path) == Place::Readable {
            return Err(deny_write(cx, call, &found.path));
        }
        if name.starts_with(b"trusted.") {
            return Err(Errno::EPERM);
        }
        cx.host
            .report
            .unsupported(call, crate::vfs::printable(&name));
        return Err(Errno::EOPNOTSUPP);
    }
    let id = match changeable(cx, call, &found)? {
        Changeable::Inode(inode) => inode,
        Changeable::Host(object) => {
            let (attr, named) = (object.attr, object.named());
            if !matches!(attr.kind(), S_IFREG | S_IFDIR) {
                return Err(Errno::EPERM);
            }
            check_mode(&cx.asker(), &attr, MAY_WRITE)?;
            if xattr::is_obeyed(&name) {
                cx.host
                    .report
                    .unsupported(call, crate::vfs::printable(&name));
                return Err(Errno::EPERM);
            }
            match value {
                Some(value) => xattr::set(named, &attr, (&name, value), flags)?,
                None => xattr::remove(named, &attr, &name)?,
            }
            return Ok(0);
        }
    };
    attributes::check_change(cx, id)?;
    attributes::change(cx, id, (&name, value), flags)?;
    notify::changed(cx, &found, id, IN_ATTRIB);
    Ok(0)
}

/// Reads a value that is to be set.
fn read_value(cx: &mut Cx<'_>, gva: Gva, size: u64, flags: u32) -> Result<Vec<u8>, Errno> {
    check_value(size, flags)?;
    let mut value = vec![0; usize::try_from(size).map_err(|_| Errno::E2BIG)?];
    cx.read(gva, &mut value)?;
    Ok(value)
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
/// `ENODATA`, `EOPNOTSUPP`, `ERANGE`, `EACCES`; as path resolution.
pub fn sys_getxattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Str(name), Ptr(value), Len(size)) = args.decode();
    let found = by_path(cx, path);
    get(cx, found, name, (value, size))
}

/// lgetxattr(2)
///
/// # Errors
/// As [`sys_getxattr`].
pub fn sys_lgetxattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Str(name), Ptr(value), Len(size)) = args.decode();
    let found = by_link(cx, path);
    get(cx, found, name, (value, size))
}

/// fgetxattr(2)
///
/// # Errors
/// As [`sys_getxattr`], `EBADF`.
pub fn sys_fgetxattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Str(name), Ptr(value), Len(size)) = args.decode();
    let found = by_fd(cx, fd);
    get(cx, found, name, (value, size))
}

/// listxattr(2)
///
/// # Errors
/// As path resolution.
pub fn sys_listxattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Ptr(names), Len(size)) = args.decode();
    let found = by_path(cx, path);
    list(cx, found, (names, size))
}

/// llistxattr(2)
///
/// # Errors
/// As path resolution.
pub fn sys_llistxattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Ptr(names), Len(size)) = args.decode();
    let found = by_link(cx, path);
    list(cx, found, (names, size))
}

/// flistxattr(2)
///
/// # Errors
/// `EBADF`.
pub fn sys_flistxattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Ptr(names), Len(size)) = args.decode();
    let found = by_fd(cx, fd);
    list(cx, found, (names, size))
}

/// setxattr(2)
///
/// # Errors
/// As its man page; `EROFS` where nothing may be changed; as path resolution.
pub fn sys_setxattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Str(name), Ptr(value), Len(size), Flags(flags)) = args.decode();
    let value = read_value(cx, value, size, flags)?;
    let found = by_path(cx, path);
    change(cx, "setxattr", found, (name, Some(&value)), flags)
}

/// lsetxattr(2)
///
/// # Errors
/// As [`sys_setxattr`].
pub fn sys_lsetxattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Str(name), Ptr(value), Len(size), Flags(flags)) = args.decode();
    let value = read_value(cx, value, size, flags)?;
    let found = by_link(cx, path);
    change(cx, "setxattr", found, (name, Some(&value)), flags)
}

/// fsetxattr(2)
///
/// # Errors
/// As [`sys_setxattr`], `EBADF`.
pub fn sys_fsetxattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Str(name), Ptr(value), Len(size), Flags(flags)) = args.decode();
    let value = read_value(cx, value, size, flags)?;
    let found = by_fd(cx, fd);
    change(cx, "setxattr", found, (name, Some(&value)), flags)
}

/// removexattr(2)
///
/// # Errors
/// As [`sys_setxattr`].
pub fn sys_removexattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Str(name)) = args.decode();
    let found = by_path(cx, path);
    change(cx, "removexattr", found, (name, None), 0)
}

/// lremovexattr(2)
///
/// # Errors
/// As [`sys_setxattr`].
pub fn sys_lremovexattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Str(name)) = args.decode();
    let found = by_link(cx, path);
    change(cx, "removexattr", found, (name, None), 0)
}

/// fremovexattr(2)
///
/// # Errors
/// As [`sys_setxattr`], `EBADF`.
pub fn sys_fremovexattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Str(name)) = args.decode();
    let found = by_fd(cx, fd);
    change(cx, "removexattr", found, (name, None), 0)
}
