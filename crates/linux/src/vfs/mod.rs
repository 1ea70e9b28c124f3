//! The virtual file system: one namespace over host trees, the memory file system at /tmp, and
//! synthetic files. Host files are reached through [`kvmlet_hostfs`].

pub mod access;
pub mod anon;
pub mod async_io;
pub mod attributes;
pub mod change_set;
pub mod changes;
pub mod deferred;
pub mod epoll;
pub mod eventfd;
pub mod exec;
pub mod fdinfo;
pub mod fifo;
pub mod file;
pub mod guard;
pub mod hosttree;
pub mod inotify;
pub mod learn;
pub mod leases;
pub mod locks;
pub mod notify;
pub mod open;
pub mod overlay;
pub mod path;
pub mod pidfd;
pub mod pipe;
pub mod privilege;
pub mod procfs;
pub mod ready;
pub mod request;
pub mod signalfd;
pub mod size_limit;
pub mod stdio;
pub mod synth;
pub mod sysfs;
pub mod timerfd;
pub mod tmpfs;
pub mod verdict;

pub use exec::{
    ExecFile, close_exec, is_directory, map_file, open_exec, open_exec_at, open_exec_fd, read_exec,
};
#[cfg(test)]
pub use ready::poll_ready;
#[cfg(test)]
pub use stdio::{StdStream, started_from};

use std::os::fd::AsFd;
use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_hostfs::attr::{Attr, FileTime};
use kvmlet_policy::{Place, WORK, file_name, parent};

use crate::clock;
use crate::cx::Cx;
use crate::host::Host;
use path::{Found, Node};
use tmpfs::{InodeId, TmpFs};

/// A directory that relative paths start from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Dir {
    /// By canonical path: host trees and synthetic directories, which the guest cannot move.
    Path(Arc<[u8]>),
    /// In the memory file system, where directories can be renamed and removed.
    Tmp(InodeId),
}

/// A process's working directory. One in the memory file system holds a reference to its inode
/// ([`TmpFs::open_ref`]).
pub type Cwd = Dir;

/// Now, as a file time.
#[must_use]
pub fn now(host: &Host) -> FileTime {
    FileTime::from_ns(clock::realtime_ns(host))
}

/// A path for people: control characters, which could command a terminal, are escaped.
#[must_use]
pub fn printable(path: &[u8]) -> String {
    let mut shown = String::with_capacity(path.len());
    for letter in String::from_utf8_lossy(path).chars() {
        if letter.is_control() {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// A directory's path, as shown: a removed one is marked so.
#[must_use]
pub fn path_text(cx: &Cx<'_>, dir: &Dir) -> Vec<u8> {
    match dir {
        Dir::Path(path) => path.to_vec(),
        Dir::Tmp(inode) => {
            let path = cx.kernel.tmpfs.path_of(*inode);
            path.unwrap_or_else(|_| b"/tmp (deleted)".to_vec())
        }
    }
}

/// The attributes of something found.
///
/// # Errors
/// The host's.
pub fn attr_of(cx: &mut Cx<'_>, found: &Found) -> Result<Attr, Errno> {
    match &found.node {
        Node::Host(handle, attr) => {
            let names = &cx.kernel.objects.sockets.host_names;
            Ok(names.shown(*attr, || handle.birth_time(&found.path)))
        }
        Node::Tmp(inode) => cx.kernel.tmpfs.attr(*inode),
        Node::Synth(node) => Ok(synth::attr(cx, &found.path, node)),
        Node::Open(file) => file::attr(cx, *file),
    }
}

/// When something of the host's that was found was created, if its file system knows.
#[must_use]
pub fn birth_time(cx: &Cx<'_>, found: &Found) -> Option<FileTime> {
    match &found.node {
        Node::Host(handle, _) => handle.birth_time(&found.path),
        Node::Open(file) => {
            let host = file::host(&cx.kernel.files.get(file)?.kind)?;
            kvmlet_hostfs::birth_time(cx.host.get(host).ok()?.fd.as_fd())
        }
        Node::Tmp(_) | Node::Synth(_) => None,
    }
}

/// Closes a descriptor of the calling process.
///
/// # Errors
/// `EBADF`.
pub fn close_fd(cx: &mut Cx<'_>, number: i32) -> Result<(), Errno> {
    crate::fd::close(cx, number)
}

/// Makes `dir` the calling process's working directory.
///
/// # Errors
/// `ESRCH` if the process is gone.
pub fn set_cwd(cx: &mut Cx<'_>, dir: Dir) -> Result<(), Errno> {
    if let Dir::Tmp(inode) = dir {
        cx.kernel.tmpfs.open_ref(inode);
    }
    let old = std::mem::replace(&mut cx.fs()?.cwd, dir);
    if let Dir::Tmp(inode) = old {
        cx.kernel.tmpfs.close_ref(&mut cx.machine.memory, inode);
    }
    Ok(())
}

/// Has the calling process, which starts at a path in memory or in an overlay, be in the directory itself. The
/// path may become another's.
///
/// # Errors
/// The host's; `ENOSPC` at the memory limit.
pub fn enter_cwd(cx: &mut Cx<'_>) -> Result<(), Errno> {
    let Dir::Path(path) = cx.fs()?.cwd.clone() else {
        return Ok(());
    };
    let found = match cx.host.policy.classify(&path) {
        Place::Overlay => overlay::directory(cx, &path),
        Place::Tmp => cx.kernel.tmpfs.at(&path),
        Place::Readable
        | Place::Writable
        | Place::Leading
        | Place::Proc
        | Place::Dev
        | Place::Sys
        | Place::Made
        | Place::Outside => return Ok(()),
    };
    match found {
        Ok(inode) => set_cwd(cx, Dir::Tmp(inode)),
        // It has been removed on the host.
        Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Truncates or extends a file of the memory file system and drops stale mappings.
///
/// # Errors
/// As [`TmpFs::set_size`]; `ENOMEM` if a page table cannot be split.
pub fn set_tmp_size(cx: &mut Cx<'_>, inode: InodeId, size: u64) -> Result<(), Errno> {
    let now = now(cx.host);
    let stale = cx
        .kernel
        .tmpfs
        .set_size(&mut cx.machine.memory, inode, size, now)?;
    drop_mappings(cx, inode, &stale)
}

/// Unmaps what a change to a file has left stale.
///
/// # Errors
/// `ENOMEM` if a page table cannot be split.
pub fn drop_mappings(cx: &mut Cx<'_>, inode: InodeId, stale: &tmpfs::Stale) -> Result<(), Errno> {
    let mapped = cx.kernel.tmpfs.get(inode).is_ok_and(|inode| inode.maps > 0);
    if mapped && !stale.is_empty() {
        crate::mm::unmap_stale(cx, inode, stale)?;
    }
    Ok(())
}

/// The memory file system of a new sandbox, with the overlays, and the mount points of trees that lie in it.
///
/// # Errors
/// `ENOSPC` at the memory limit.
pub fn new_tmpfs(host: &Host, memory: &mut kvmlet_mem::GuestMemory) -> Result<TmpFs, Errno> {
    let now = now(host);
    let mut tmpfs = TmpFs::new(now);
    let attr = tmpfs::NewAttr {
        mode: 0o755,
        uid: 0,
        gid: 0,
        now,
    };
    for (path, mode) in host.policy.memory().filter(|(path, _)| *path != WORK) {
        let attr = tmpfs::NewAttr { mode, ..attr };
        tmpfs.mount_empty(memory, path, attr)?;
    }
    for target in kvmlet_policy::LINKS.map(|(_, target)| target) {
        // Where links of ours lead there is a directory for everybody.
        if let Some(dir) = tmpfs.root_at(parent(target)) {
            let mode = 0o1777;
            let attr = tmpfs::NewAttr { mode, ..attr };
            let body = tmpfs::NewBody::Dir;
            let made = tmpfs.create(memory, dir, file_name(target), &body, attr)?;
            tmpfs.pin(made)?;
        }
    }
    let mounts = host.policy.mounts().map(|(tree, _)| tree);
    for tree in mounts.chain(host.policy.memory().map(|(tree, _)| tree)) {
        let Some(root) = host.policy.memory_root(parent(tree)) else {
            continue;
        };
        let Some(mut dir) = tmpfs.root_at(root) else {
            continue;
        };
        let below = tree.strip_prefix(root).unwrap_or_default();
        for name in below
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
        {
            dir = match tmpfs.lookup(dir, name) {
                Ok(found) => found,
                Err(_) => tmpfs.create(memory, dir, name, &tmpfs::NewBody::Dir, attr)?,
            };
            tmpfs.pin(dir)?;
        }
    }
    for path in host.policy.overlays() {
        // One that is not there, or no directory, shows nothing.
        if let Ok((_, attr)) = host.roots.locate(path)
            && attr.is_dir()
        {
            tmpfs.mount(memory, path, &attr)?;
        }
    }
    tmpfs.settle();
    Ok(tmpfs)
}

#[cfg(test)]
mod lookup_tests;
#[cfg(test)]
mod tests;
