//! Extended attributes of users (xattr(7)): values of inodes, or the host's. What was the host's shows the host's
//! attributes until one of them is changed.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use imbl::OrdMap;
use kvmlet_abi::Errno;
use kvmlet_abi::linux::xattr::{XATTR_CREATE, XATTR_REPLACE};
use kvmlet_hostfs::attr::{MAY_READ, MAY_WRITE, S_IFDIR, S_IFREG};
use kvmlet_hostfs::{Roots, attr_of, xattr};

use super::file::{self, Contents};
use super::path::{Found, Node};
use super::tmpfs::{Body, Inode, InodeId};
use super::{access, now, privilege};
use crate::cx::Cx;
use crate::fd::FileKind;

/// Values by name.
pub type Attributes = OrdMap<Arc<[u8]>, Arc<[u8]>>;

/// Names and values of one inode at most, in bytes. Linux differs: each file system has a bound of its own.
const ALL_MAX_BYTES: usize = 64 << 10;
/// Host memory charged for an attribute besides its name and value.
const COST_BYTES: u64 = 128;

/// Memory charged for attributes, in bytes.
#[must_use]
pub fn cost_bytes(attributes: Option<&Attributes>) -> u64 {
    let each = attributes.into_iter().flatten();
    each.fold(0, |sum, (name, value)| {
        let len = name.len().saturating_add(value.len()) as u64;
        sum.saturating_add(len).saturating_add(COST_BYTES)
    })
}

/// The place where attributes are.
enum Holder {
    Inode(InodeId),
    /// The host's file, open.
    Host(Arc<kvmlet_hostfs::HostFd>),
    /// The same, for this call.
    Opened(OwnedFd),
}

/// The place of something's attributes, which the program may read.
///
/// # Errors
/// `ENODATA` for what has none; `EACCES` by mode bits; `EOPNOTSUPP` for what is neither a file nor a directory of a
/// tree; the host's.
fn readable(cx: &mut Cx<'_>, found: &Found) -> Result<Holder, Errno> {
    let attr = super::attr_of(cx, found)?;
    if !matches!(attr.kind(), S_IFREG | S_IFDIR) {
        return Err(Errno::ENODATA);
    }
    if !privilege::permits_found(cx, found, &attr, MAY_READ)? {
        return Err(Errno::EACCES);
    }
    holder(cx, found)
}

fn holder(cx: &mut Cx<'_>, found: &Found) -> Result<Holder, Errno> {
    match &found.node {
        Node::Tmp(inode) => Ok(Holder::Inode(*inode)),
        Node::Synth(_) => Err(Errno::EOPNOTSUPP),
        Node::Host(handle, attr) => {
            let (who, path) = (cx.asker(), found.path.as_slice());
            let roots = Arc::clone(&cx.host.roots);
            let fd = roots.open_for_reading(&who, path, attr, handle.directory())?;
            access::refuse_kernel_files(cx.host, "getxattr", (path, attr), fd.as_fd())?;
            Ok(Holder::Opened(fd))
        }
        Node::Open(file) => {
            let kind = cx.kernel.files.get(file).ok_or(Errno::EBADF)?.kind.clone();
            match (file::contents(cx, &kind), &kind) {
                (Contents::Tmp(inode), _) => Ok(Holder::Inode(inode)),
                (_, FileKind::HostFile(host) | FileKind::HostDir(host)) => {
                    Ok(Holder::Host(cx.host.fd(*host)?))
                }
                (_, FileKind::Tmp(inode)) => Ok(Holder::Inode(*inode)),
                _ => Err(Errno::EOPNOTSUPP),
            }
        }
    }
}

/// The value of an attribute.
///
/// # Errors
/// `ENODATA` if there is none; as its man page; the host's.
pub fn get(cx: &mut Cx<'_>, found: &Found, name: &[u8]) -> Result<Vec<u8>, Errno> {
    match readable(cx, found)? {
        Holder::Inode(inode) => {
            let all = of_inode(cx, inode)?;
            let value = all.get(name).ok_or(Errno::ENODATA)?;
            Ok(value.to_vec())
        }
        Holder::Host(fd) => xattr::get(fd.as_fd(), name),
        Holder::Opened(fd) => xattr::get(fd.as_fd(), name),
    }
}

/// The names of all attributes. What may not be read shows none: Linux differs, which shows names.
///
/// # Errors
/// The host's.
pub fn list(cx: &mut Cx<'_>, found: &Found) -> Result<Vec<Vec<u8>>, Errno> {
    let holder = match readable(cx, found) {
        Err(Errno::ENODATA | Errno::EACCES | Errno::EOPNOTSUPP | Errno::EPERM) => {
            return Ok(Vec::new());
        }
        holder => holder?,
    };
    match holder {
        Holder::Inode(inode) => {
            let all = of_inode(cx, inode)?;
            Ok(all.keys().map(|name| name.to_vec()).collect())
        }
        Holder::Host(fd) => xattr::list(fd.as_fd()),
        Holder::Opened(fd) => xattr::list(fd.as_fd()),
    }
}

/// The attributes that an inode shows.
///
/// # Errors
/// `ENOENT` without the inode.
fn of_inode(cx: &Cx<'_>, id: InodeId) -> Result<Attributes, Errno> {
    Ok(shown(cx.kernel.tmpfs.get(id)?, &cx.host.roots))
}

/// The attributes that an inode shows: its own, or those of the host's object that it was, as they are now.
#[must_use]
pub fn shown(inode: &Inode, roots: &Roots) -> Attributes {
    if let Some(own) = &inode.attributes {
        return own.clone();
    }
    let path = match &inode.body {
        Body::File(data) => data.lower.as_ref().map(|lower| &lower.path),
        Body::Dir(data) => data.lower.as_ref().map(|lower| &lower.path),
        Body::Symlink(_) | Body::Fifo | Body::Socket | Body::Special(_) => None,
    };
    let of_host = path.and_then(|path| of_lower(roots, path, (inode.dev, inode.ino)));
    of_host.unwrap_or_default()
}

/// The attributes of the host's object at `path`, if it is the one with this device and inode number.
pub fn of_lower(roots: &Roots, path: &[u8], wanted: (u64, u64)) -> Option<Attributes> {
    let fd = roots.open_file(path).ok()?;
    let attr = attr_of(fd.as_fd()).ok()?;
    if (attr.dev, attr.ino) != wanted {
        return None;
    }
    let mut all = Attributes::new();
    let mut len_bytes = 0usize;
    for name in xattr::list(fd.as_fd()).ok()? {
        let value = xattr::get(fd.as_fd(), &name).ok()?;
        len_bytes = len_bytes.saturating_add(name.len().saturating_add(value.len()));
        if len_bytes > ALL_MAX_BYTES {
            return Some(all);
        }
        all.insert(Arc::from(name), Arc::from(value));
    }
    Some(all)
}

/// Refuses to change attributes of what has none, or may not be written (xattr_permission in fs/xattr.c).
///
/// # Errors
/// `EPERM`, `EACCES`.
pub fn check_change(cx: &Cx<'_>, inode: InodeId) -> Result<(), Errno> {
    const S_ISVTX: u32 = 0o1000;
    let attr = cx.kernel.tmpfs.attr(inode)?;
    if !matches!(attr.kind(), S_IFREG | S_IFDIR) {
        return Err(Errno::EPERM);
    }
    if attr.is_dir() && attr.mode & S_ISVTX != 0 && !privilege::owns(cx, inode)? {
        return Err(Errno::EPERM);
    }
    match privilege::permits(cx, inode, MAY_WRITE)? {
        true => Ok(()),
        false => Err(Errno::EACCES),
    }
}

/// Gives an inode an attribute, with the flags of setxattr(2); without a value takes it away.
///
/// # Errors
/// `EEXIST`, `ENODATA`; `ENOSPC` for too many bytes, and at the memory limit.
pub fn change(
    cx: &mut Cx<'_>,
    id: InodeId,
    (name, value): (&[u8], Option<&[u8]>),
    flags: u32,
) -> Result<(), Errno> {
    let mut all = of_inode(cx, id)?;
    let exists = all.contains_key(name);
    if exists && flags & XATTR_CREATE != 0 {
        return Err(Errno::EEXIST);
    }
    if !exists && (flags & XATTR_REPLACE != 0 || value.is_none()) {
        return Err(Errno::ENODATA);
    }
    match value {
        Some(value) => drop(all.insert(Arc::from(name), Arc::from(value))),
        None => drop(all.remove(name)),
    }
    let len_bytes = all.iter().fold(0usize, |sum, (name, value)| {
        sum.saturating_add(name.len()).saturating_add(value.len())
    });
    if len_bytes > ALL_MAX_BYTES {
        return Err(Errno::ENOSPC);
    }
    let now = now(cx.host);
    let memory = &mut cx.machine.memory;
    let inode = cx.kernel.tmpfs.get_mut(id)?;
    let (before, after) = (
        cost_bytes(inode.attributes.as_ref()),
        cost_bytes(Some(&all)),
    );
    if after > before {
        let more = memory.charge(after - before);
        more.map_err(|_| Errno::ENOSPC)?;
    } else {
        memory.uncharge(before - after);
    }
    inode.attributes = Some(all);
    inode.ctime = now;
    Ok(())
}
