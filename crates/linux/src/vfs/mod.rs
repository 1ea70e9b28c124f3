//! The virtual file system: one namespace over host trees, the memory file system at /tmp, and
//! synthetic files. Only this module and its children call the host's file interface.
#![allow(clippy::disallowed_methods)]

pub mod anon;
pub mod attr;
pub mod deferred;
pub mod epoll;
pub mod eventfd;
pub mod exec;
pub mod fdinfo;
pub mod fifo;
pub mod hostfs;
pub mod locks;
pub mod lookup_cache;
pub mod open;
pub mod path;
pub mod pipe;
pub mod procfs;
pub mod ready;
pub mod request;
pub mod signalfd;
pub mod size_limit;
pub mod stdio;
pub mod stream;
pub mod synth;
pub mod terminal;
pub mod timerfd;
pub mod tmpfs;
pub mod unix;

pub use exec::{ExecFile, close_exec, is_directory, map_file, open_exec, read_exec};
pub use ready::poll_ready;
pub use stdio::{StdStream, started_from, working_directory};

use std::os::fd::AsFd;
use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_policy::TMP;

use crate::clock;
use crate::cx::Cx;
use crate::fd::{FileId, FileKind, OpenFile};
use crate::host::Host;
use attr::{Attr, FileTime, S_IFIFO, S_IFSOCK};
use path::{Found, Node};
use synth::Synth;
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

/// The directory that a description is open on, if it is one.
#[must_use]
pub fn dir_of(cx: &Cx<'_>, file: &OpenFile) -> Option<Dir> {
    let by_path = || Dir::Path(Arc::clone(&file.path));
    match file.kind {
        FileKind::HostDir(_) | FileKind::SynthDir(_) => Some(by_path()),
        FileKind::Tmp(inode) => {
            let is_dir = cx
                .kernel
                .tmpfs
                .get(inode)
                .is_ok_and(|inode| inode.dir().is_ok());
            is_dir.then_some(Dir::Tmp(inode))
        }
        FileKind::HostLocation(host) => {
            let attr = hostfs::attr_of(cx.host.get(host).ok()?.fd.as_fd()).ok()?;
            attr.is_dir().then(by_path)
        }
        FileKind::SynthLocation => {
            (synth::lookup(cx, &file.path) == Some(Synth::Dir)).then(by_path)
        }
        _ => None,
    }
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
        Node::Host(_, attr) => Ok(*attr),
        Node::Tmp(inode) => cx.kernel.tmpfs.attr(*inode),
        Node::Synth(node) => Ok(synth::attr(cx, &found.path, node)),
        Node::Open(file) => file_attr(cx, *file),
    }
}

/// The attributes of an open description (fstat(2)).
///
/// # Errors
/// `EBADF`, the host's.
pub fn file_attr(cx: &mut Cx<'_>, id: FileId) -> Result<Attr, Errno> {
    let file = cx.kernel.files.get(&id).ok_or(Errno::EBADF)?;
    let own = |mode: u32, ino: u64| Attr {
        dev: attr::makedev(0, 0x7e),
        ino,
        mode,
        nlink: 1,
        uid: cx.kernel.ids.uid,
        gid: cx.kernel.ids.gid,
        blksize: 4096,
        ..Attr::default()
    };
    match &file.kind {
        FileKind::HostFile(host)
        | FileKind::HostDir(host)
        | FileKind::HostLocation(host)
        | FileKind::HostStream(host) => match cx.host.told(*host) {
            Some(attr) => Ok(attr),
            None => hostfs::attr_of(cx.host.get(*host)?.fd.as_fd()),
        },
        FileKind::Tmp(inode) => cx.kernel.tmpfs.attr(*inode),
        FileKind::Device(device) => Ok(synth::attr(cx, &file.path, &Synth::Device(*device))),
        FileKind::Text(_) => Ok(synth::attr(cx, &file.path, &Synth::Text)),
        FileKind::SynthDir(_) => Ok(synth::attr(cx, &file.path, &Synth::Dir)),
        FileKind::SynthLocation => {
            let node = synth::lookup(cx, &file.path).ok_or(Errno::ENOENT)?;
            Ok(synth::attr(cx, &file.path, &node))
        }
        FileKind::Capture(number) => Ok(own(S_IFIFO | 0o600, u64::from(*number).saturating_add(1))),
        FileKind::Input(_) => Ok(own(S_IFIFO | 0o600, 1)),
        FileKind::Pipe(pipe) => {
            let ends = cx.kernel.pipes.get(*pipe)?;
            if let Some(inode) = ends.inode {
                return cx.kernel.tmpfs.attr(inode);
            }
            let created = ends.created;
            let attr = own(S_IFIFO | 0o600, pipe.saturating_add(16));
            Ok(Attr {
                atime: created,
                mtime: created,
                ctime: created,
                ..attr
            })
        }
        FileKind::Socket(socket) => Ok(Attr {
            dev: attr::makedev(0, 8),
            ..own(S_IFSOCK | 0o777, socket.0.saturating_add(16))
        }),
        // They share one inode without a type, which is root's (fs/anon_inodes.c).
        FileKind::Event(_) | FileKind::Timer(_) | FileKind::Epoll(_) | FileKind::Signals(_) => {
            Ok(Attr {
                dev: attr::makedev(0, 0xf),
                uid: 0,
                gid: 0,
                ..own(0o600, 1)
            })
        }
    }
}

/// Releases what a description holds and removes it: nothing refers to it any more.
pub fn release(cx: &mut Cx<'_>, id: FileId) {
    locks::released(cx, id);
    epoll::file_released(cx.kernel, &mut cx.machine.memory, id);
    let Some(file) = cx.kernel.files.remove(&id) else {
        return;
    };
    cx.machine.memory.uncharge_kernel(file.cost_bytes());
    match file.kind {
        FileKind::HostFile(host)
        | FileKind::HostDir(host)
        | FileKind::HostLocation(host)
        | FileKind::HostStream(host) => cx.host.decref(host),
        FileKind::Tmp(inode) => cx.kernel.tmpfs.close_ref(&mut cx.machine.memory, inode),
        FileKind::Pipe(_) => fifo::close(cx, &file),
        FileKind::Event(object) => drop(cx.kernel.objects.events.remove(&object)),
        FileKind::Timer(object) => cx.kernel.objects.timers.remove(object),
        FileKind::Epoll(object) => epoll::released(cx.kernel, &mut cx.machine.memory, object),
        FileKind::Socket(object) => unix::released(cx.kernel, &mut cx.machine.memory, object),
        FileKind::Text(text) => cx.machine.memory.uncharge(text.bytes.len() as u64),
        FileKind::Capture(_)
        | FileKind::Input(_)
        | FileKind::Device(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation
        | FileKind::Signals(_) => {}
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
    let old = std::mem::replace(&mut cx.process()?.cwd, dir);
    if let Dir::Tmp(inode) = old {
        cx.kernel.tmpfs.close_ref(&mut cx.machine.memory, inode);
    }
    Ok(())
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

/// The memory file system of a new sandbox, with the mount points of host trees that lie under /tmp.
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
    for tree in host.policy.readable_trees() {
        let Some(below) = tree
            .strip_prefix(TMP)
            .and_then(|below| below.strip_prefix(b"/"))
        else {
            continue;
        };
        let mut dir = TmpFs::ROOT;
        for name in below.split(|byte| *byte == b'/') {
            dir = match tmpfs.lookup(dir, name) {
                Ok(found) => found,
                Err(_) => tmpfs.create(memory, dir, name, &tmpfs::NewBody::Dir, attr)?,
            };
            tmpfs.pin(dir)?;
        }
    }
    Ok(tmpfs)
}

#[cfg(test)]
mod lookup_tests;
#[cfg(test)]
mod tests;
