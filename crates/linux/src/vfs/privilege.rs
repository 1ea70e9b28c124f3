//! Permissions over files that are values: by mode bits of a thread's ids for files, and by its capabilities
//! (capabilities(7)).
//!
//! Capabilities are for memory files and for changes. They are none over what the host has. There the mode bits decide,
//! for the caller and for the thread's user. So there is no privilege over a file of an overlay that the caller could
//! not read. Neither is anything to be read of it by becoming its owner inside.

use kvmlet_abi::Errno;
use kvmlet_abi::linux::capability::{CAP_DAC_OVERRIDE, CAP_FOWNER};
use kvmlet_hostfs::attr::{Attr, MAY_EXEC, MAY_READ, MAY_WRITE};
use kvmlet_policy::Place;

use super::file::{self, Contents};
use super::path::{Found, Node};
use super::tmpfs::lower::Seen;
use super::tmpfs::{Body, InodeId};
use crate::creds::Creds;
use crate::cx::Cx;
use crate::fd::FileId;

/// True if the program may act on an inode as its owner does.
///
/// # Errors
/// `EIO` without the inode.
pub fn owns(cx: &Cx<'_>, inode: InodeId) -> Result<bool, Errno> {
    let owner = cx.kernel.tmpfs.get(inode)?.uid;
    Ok(owner == cx.creds().user.fs || is_capable_over(cx, inode, CAP_FOWNER)?)
}

/// True if the program has a capability, and the inode is nothing of the host's that the caller could not read.
///
/// # Errors
/// `EIO` without the inode.
pub fn is_capable_over(cx: &Cx<'_>, inode: InodeId, cap: u8) -> Result<bool, Errno> {
    if !cx.creds().has(cap) {
        return Ok(false);
    }
    let on_host = on_host(cx, inode)?;
    Ok(on_host.is_none_or(|attr| is_legible(cx, &attr)))
}

/// The attributes on the host of what an inode shows.
fn on_host(cx: &Cx<'_>, inode: InodeId) -> Result<Option<Attr>, Errno> {
    let seen = match &cx.kernel.tmpfs.get(inode)?.body {
        Body::Dir(data) => data.lower.as_ref().map(|lower| lower.seen),
        Body::File(data) => data.lower.as_ref().map(|lower| lower.seen),
        _ => None,
    };
    let Some(Seen { mode, uid, gid, .. }) = seen else {
        return Ok(None);
    };
    Ok(Some(Attr {
        mode,
        uid,
        gid,
        ..cx.kernel.tmpfs.attr(inode)?
    }))
}

/// True if the mode bits let the caller know all that is there.
fn is_legible(cx: &Cx<'_>, attr: &Attr) -> bool {
    let wanted = match attr.is_dir() {
        true => MAY_READ | MAY_EXEC,
        false => MAY_READ,
    };
    attr.grants(&cx.host.credentials.ids, wanted)
}

/// True if the program may do all of `wanted` with an inode.
///
/// # Errors
/// `EIO` without the inode.
pub fn permits(cx: &Cx<'_>, inode: InodeId, wanted: u32) -> Result<bool, Errno> {
    let attr = cx.kernel.tmpfs.attr(inode)?;
    Ok(permits_value(
        cx,
        &attr,
        on_host(cx, inode)?.as_ref(),
        wanted,
    ))
}

/// True for something that has `attr` inside, and on the host, if it shows anything of that, `on_host`.
fn permits_value(cx: &Cx<'_>, attr: &Attr, on_host: Option<&Attr>, wanted: u32) -> bool {
    let (creds, caller) = (cx.creds(), &cx.host.credentials.ids);
    let ids = creds.for_files();
    let is_readable =
        |on_host: &Attr| on_host.uid == caller.uid || on_host.grants(caller, wanted & !MAY_WRITE);
    // To be changed inside, nothing need be known of it.
    if ids != *caller && !on_host.is_none_or(is_readable) {
        return false;
    }
    let is_free = on_host.is_none_or(|attr| is_legible(cx, attr));
    attr.grants(&ids, wanted) || is_free && overrides(&creds, attr, wanted)
}

/// As [`permits`], of something found with the attributes `attr`.
///
/// # Errors
/// As [`permits`].
pub fn permits_found(cx: &Cx<'_>, found: &Found, attr: &Attr, wanted: u32) -> Result<bool, Errno> {
    match found.node {
        Node::Tmp(inode) => permits(cx, inode, wanted),
        // An inode of its own once it is changed.
        Node::Host(..) if cx.host.policy.classify(&found.path) == Place::Overlay => {
            Ok(permits_value(cx, attr, Some(attr), wanted))
        }
        Node::Host(..) => Ok(cx.asker().granted(attr, wanted)),
        Node::Open(file) => permits_open(cx, file, attr, wanted),
        Node::Synth(_) => Ok(permits_own(&cx.creds(), attr, wanted)),
    }
}

/// As [`permits`], of what is open and has the attributes `attr`.
///
/// # Errors
/// As [`permits`]; `EBADF`.
pub fn permits_open(cx: &Cx<'_>, file: FileId, attr: &Attr, wanted: u32) -> Result<bool, Errno> {
    let kind = &cx.kernel.files.get(&file).ok_or(Errno::EBADF)?.kind;
    match file::contents(cx, kind) {
        Contents::Tmp(inode) => permits(cx, inode, wanted),
        _ if file::host(kind).is_some() => Ok(cx.asker().granted(attr, wanted)),
        _ => Ok(permits_own(&cx.creds(), attr, wanted)),
    }
}

/// True if the mode bits of something that is ours permit it, or a capability does.
fn permits_own(creds: &Creds, attr: &Attr, wanted: u32) -> bool {
    attr.grants(&creds.for_files(), wanted) || overrides(creds, attr, wanted)
}

/// True if a capability permits what mode bits do not (generic_permission in fs/namei.c). Executing takes a bit of
/// somebody's.
fn overrides(creds: &Creds, attr: &Attr, wanted: u32) -> bool {
    let is_possible = wanted & MAY_EXEC == 0 || attr.is_dir() || attr.mode & 0o111 != 0;
    is_possible && creds.has(CAP_DAC_OVERRIDE)
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
