//! Permissions over files that are values: by mode bits, and for root by being root (capabilities(7)).
//!
//! A caller who is root has a program that is root over its memory files and over its changes. It is not root over
//! what the host has: there the mode bits decide, whatever the caller might do itself. So it has no privilege over a
//! file of an overlay that it could not read.

use kvmlet_abi::Errno;
use kvmlet_hostfs::attr::{Attr, MAY_EXEC, MAY_READ, MAY_WRITE};
use kvmlet_policy::Place;

use super::path::{Found, Node};
use super::tmpfs::lower::Seen;
use super::tmpfs::{Body, InodeId};
use crate::cx::Cx;

/// True if the program may act on an inode as its owner does.
///
/// # Errors
/// `EIO` without the inode.
pub fn owns(cx: &Cx<'_>, inode: InodeId) -> Result<bool, Errno> {
    let owner = cx.kernel.tmpfs.get(inode)?.uid;
    Ok(owner == cx.host.credentials.uid || is_root_over(cx, inode)?)
}

/// True if the program is root, and the inode is nothing of the host's that it could not read.
///
/// # Errors
/// `EIO` without the inode.
pub fn is_root_over(cx: &Cx<'_>, inode: InodeId) -> Result<bool, Errno> {
    if cx.host.credentials.uid != 0 {
        return Ok(false);
    }
    let seen = match &cx.kernel.tmpfs.get(inode)?.body {
        Body::Dir(data) => data.lower.as_ref().map(|lower| lower.seen),
        Body::File(data) => data.lower.as_ref().map(|lower| lower.seen),
        _ => None,
    };
    let Some(Seen { mode, uid, gid, .. }) = seen else {
        return Ok(true);
    };
    let on_host = Attr {
        mode,
        uid,
        gid,
        ..cx.kernel.tmpfs.attr(inode)?
    };
    Ok(is_legible(cx, &on_host))
}

/// True if the mode bits let the program know all that is there.
fn is_legible(cx: &Cx<'_>, attr: &Attr) -> bool {
    let wanted = match attr.is_dir() {
        true => MAY_READ | MAY_EXEC,
        false => MAY_READ,
    };
    attr.grants(&cx.host.credentials, wanted)
}

/// True if the program may do all of `wanted` with an inode.
///
/// # Errors
/// `EIO` without the inode.
pub fn permits(cx: &Cx<'_>, inode: InodeId, wanted: u32) -> Result<bool, Errno> {
    let attr = cx.kernel.tmpfs.attr(inode)?;
    Ok(attr.grants(&cx.host.credentials, wanted)
        || is_root_over(cx, inode)? && can_override(&attr, wanted))
}

/// As [`permits`], of something found with the attributes `attr`.
///
/// # Errors
/// As [`permits`].
pub fn permits_found(cx: &Cx<'_>, found: &Found, attr: &Attr, wanted: u32) -> Result<bool, Errno> {
    if attr.grants(&cx.host.credentials, wanted) {
        return Ok(true);
    }
    match found.node {
        Node::Tmp(inode) => permits(cx, inode, wanted),
        // An inode of its own once it is changed.
        Node::Host(..) if cx.host.policy.classify(&found.path) == Place::Overlay => {
            let is_root = cx.host.credentials.uid == 0 && is_legible(cx, attr);
            Ok(is_root && can_override(attr, wanted))
        }
        Node::Host(..) | Node::Open(_) | Node::Synth(_) => Ok(false),
    }
}

/// CAP_DAC_OVERRIDE: executing takes a bit of somebody's.
fn can_override(attr: &Attr, wanted: u32) -> bool {
    wanted & MAY_EXEC == 0 || attr.is_dir() || attr.mode & 0o111 != 0
}

/// Refuses to change names in a directory with a sticky bit that belong to others, and in one that may not be changed.
///
/// # Errors
/// `EACCES`, `EPERM`.
pub fn check_delete(cx: &Cx<'_>, dir: InodeId, inode: InodeId) -> Result<(), Errno> {
    const S_ISVTX: u32 = 0o1000;
    if !permits(cx, dir, MAY_WRITE | MAY_EXEC)? {
        return Err(Errno::EACCES);
    }
    let is_sticky = cx.kernel.tmpfs.attr(dir)?.mode & S_ISVTX != 0;
    if is_sticky && !owns(cx, inode)? && !owns(cx, dir)? {
        return Err(Errno::EPERM);
    }
    Ok(())
}
