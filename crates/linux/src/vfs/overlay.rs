//! A host tree that is changed in memory ([`super::tmpfs::lower`]): what it shows, and how something of the
//! host's becomes an inode. A directory does when it is first walked through, anything else when it is first
//! changed.
//!
//! Open descriptions of a file follow it then, so that they see the change.
//! Linux differs: a shared mapping made before keeps the old bytes.

use std::os::fd::AsFd;
use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_hostfs::attr::{Attr, S_IFREG};
use kvmlet_hostfs::{Handle, HostFd};
use kvmlet_policy::{Place, file_name, join, parent};

use super::path::{Found, Node};
use super::tmpfs::{InodeId, TmpFs};
use super::{access, file};
use crate::cx::Cx;
use crate::host::Host;

/// The thing that a directory shows by a name.
#[derive(Debug)]
pub enum Look {
    /// An inode.
    Inode(InodeId),
    /// The host's, not changed yet; no directory.
    Host(Handle, Attr),
    /// Nothing.
    Absent,
}

/// True if canonical `path` lies in an overlay.
#[must_use]
pub fn is_overlay(host: &Host, path: &[u8]) -> bool {
    host.policy.classify(path) == Place::Overlay
}

/// Looks `name` up in directory `dir` of any tree of inodes.
///
/// # Errors
/// `ENOTDIR`, `ENAMETOOLONG`, the host's; `ENOSPC` at the memory limit.
pub fn look(cx: &mut Cx<'_>, dir: InodeId, name: &[u8]) -> Result<Look, Errno> {
    match cx.kernel.tmpfs.lookup(dir, name) {
        Err(Errno::ENOENT) => {}
        found => return found.map(Look::Inode),
    }
    let Some(lower) = cx.kernel.tmpfs.lower_of(dir, name)? else {
        return Ok(Look::Absent);
    };
    if cx.host.policy.is_learning() && cx.host.policy.is_closed(&join(&lower, name)) {
        return Ok(Look::Absent);
    }
    let found = lower_directory(cx.host, &lower).and_then(|fd| {
        let attr = kvmlet_hostfs::attr_in(fd.as_fd(), name)?;
        Ok((fd, attr))
    });
    let (fd, attr) = match found {
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(Look::Absent),
        found => found?,
    };
    let is_known = || attr.nlink > 1 && cx.kernel.tmpfs.linked(&attr).is_some();
    if attr.is_dir() || is_known() {
        let memory = &mut cx.machine.memory;
        let inode = cx.kernel.tmpfs.adopt(memory, (dir, name), &attr, b"")?;
        return Ok(Look::Inode(inode));
    }
    Ok(Look::Host(Handle::Entry(fd), attr))
}

/// The host's directory at `path`, open as a location.
fn lower_directory(host: &mut Host, path: &Arc<[u8]>) -> Result<Arc<HostFd>, Errno> {
    if let Some(fd) = host.lower_dirs.get(path) {
        return Ok(fd);
    }
    let (fd, attr) = host.roots.locate(path)?;
    if !attr.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    access::refuse_kernel_files(host, "open", (path, &attr), fd.as_fd())?;
    let fd = host.charge_opened(fd)?;
    host.lower_dirs.keep(path, &fd);
    Ok(fd)
}

/// The inode of what directory `dir` shows by `name`: it is about to be changed.
///
/// # Errors
/// `ENOENT`; as [`look`].
pub fn entry(cx: &mut Cx<'_>, dir: InodeId, name: &[u8]) -> Result<InodeId, Errno> {
    let (handle, attr) = match look(cx, dir, name)? {
        Look::Inode(inode) => return Ok(inode),
        Look::Absent => return Err(Errno::ENOENT),
        Look::Host(handle, attr) => (handle, attr),
    };
    let target = if attr.is_symlink() {
        handle.read_link(name)?
    } else {
        Vec::new()
    };
    let memory = &mut cx.machine.memory;
    let inode = cx.kernel.tmpfs.adopt(memory, (dir, name), &attr, &target)?;
    let path = join(&cx.kernel.tmpfs.path_of(dir)?, name);
    if let Some(fd) = file::follow(cx, &path, (&attr, inode)) {
        cx.kernel.tmpfs.use_lower(inode, fd);
    }
    Ok(inode)
}

/// The inode of the directory at canonical `path` in an overlay.
///
/// # Errors
/// `ENOENT`, `ENOTDIR`; as [`look`].
pub fn directory(cx: &mut Cx<'_>, path: &[u8]) -> Result<InodeId, Errno> {
    let mut names = Vec::new();
    let mut at = path;
    let mut dir = loop {
        if let Some(root) = cx.kernel.tmpfs.root_at(at) {
            break root;
        }
        if at == b"/" {
            return Err(Errno::ENOENT);
        }
        names.push(file_name(at));
        at = parent(at);
    };
    for name in names.into_iter().rev() {
        dir = match look(cx, dir, name)? {
            Look::Inode(inode) => inode,
            Look::Host(..) => return Err(Errno::ENOTDIR),
            Look::Absent => return Err(Errno::ENOENT),
        };
    }
    Ok(dir)
}

/// The inode at canonical `path` in any tree of inodes, if there is one already.
#[must_use]
pub fn known(tmpfs: &TmpFs, path: &[u8]) -> Option<InodeId> {
    let mut names = Vec::new();
    let mut at = path;
    let root = loop {
        if let Some(root) = tmpfs.root_at(at) {
            break root;
        }
        if at == b"/" {
            return None;
        }
        names.push(file_name(at));
        at = parent(at);
    };
    let mut names = names.into_iter().rev();
    names.try_fold(root, |dir, name| tmpfs.lookup(dir, name).ok())
}

/// The inode of the file at canonical `path`, which is about to be changed; `None` outside the overlays.
///
/// # Errors
/// As [`entry`].
pub fn own_path(cx: &mut Cx<'_>, path: &[u8]) -> Result<Option<InodeId>, Errno> {
    if !is_overlay(cx.host, path) {
        return Ok(None);
    }
    let dir = directory(cx, parent(path))?;
    entry(cx, dir, file_name(path)).map(Some)
}

/// The inode of something of the host's that was found, which is about to be changed; `None` outside the
/// overlays.
///
/// # Errors
/// As [`entry`].
pub fn own(cx: &mut Cx<'_>, found: &Found) -> Result<Option<InodeId>, Errno> {
    match found.node {
        Node::Host(..) => own_path(cx, &found.path),
        Node::Tmp(_) | Node::Synth(_) | Node::Open(_) => Ok(None),
    }
}

/// Opens the host's file that an inode shows bytes of, if it is not open. This comes before the inode is
/// opened or cut off.
///
/// # Errors
/// `ESTALE` if another file has taken its place on the host; the host's.
pub fn open_lower(cx: &mut Cx<'_>, inode: InodeId) -> Result<(), Errno> {
    let Some(path) = cx.kernel.tmpfs.unopened_lower(inode).cloned() else {
        return Ok(());
    };
    let shown = cx.kernel.tmpfs.attr(inode)?;
    let fd = cx.host.roots.open_file(&path)?;
    let attr = kvmlet_hostfs::attr_of(fd.as_fd())?;
    if attr.kind() != S_IFREG || (attr.dev, attr.ino) != (shown.dev, shown.ino) {
        return Err(Errno::ESTALE);
    }
    access::refuse_kernel_files(cx.host, "open", (&path, &attr), fd.as_fd())?;
    let fd = cx.host.charge_opened(fd)?;
    cx.kernel.tmpfs.use_lower(inode, fd);
    Ok(())
}

/// Takes the names that a directory shows of the host's, as they are now.
///
/// # Errors
/// The host's; `ENOMEM` at the memory limit.
pub fn list(cx: &mut Cx<'_>, dir: InodeId) -> Result<(), Errno> {
    let Some(lower) = cx.kernel.tmpfs.lower_path(dir)? else {
        return Ok(());
    };
    let mut names = Vec::new();
    let listed =
        lower_directory(cx.host, &lower).and_then(|fd| Ok((kvmlet_hostfs::list(fd.as_fd())?, fd)));
    match listed {
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
        Err(error) => return Err(error),
        Ok((listing, fd)) => {
            let room = cx.machine.memory.limit_bytes();
            let mut part = Arc::new(listing);
            loop {
                let from = names.len();
                let new = part.from(from);
                names.extend(new.map(|(ino, kind, name)| (ino, kind, Arc::from(name))));
                // Each name will be charged more than this.
                if (names.len() as u64).saturating_mul(256) > room {
                    return Err(Errno::ENOMEM);
                }
                let next = part.reach(fd.as_fd(), names.len())?;
                if names.len() == from || Arc::ptr_eq(&next, &part) {
                    break;
                }
                part = next;
            }
        }
    }
    let policy = &cx.host.policy;
    if policy.is_learning() {
        names.retain(|(_, _, name)| !policy.is_closed(&join(&lower, name)));
    }
    let memory = &mut cx.machine.memory;
    cx.kernel.tmpfs.take_listing(memory, dir, &names)
}
