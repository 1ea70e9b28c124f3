//! The operations of each kind of file. Every operation is one `match` over [`FileKind`] without a wildcard:
//! a new kind does not compile before each operation has its answer here.
//!
//! Calls that belong to one kind (epoll_ctl(2), timerfd_settime(2)) look for that kind themselves.
#![deny(clippy::wildcard_enum_match_arm)]

use std::os::fd::AsFd;
use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_hostfs::attr::{self, Attr, S_IFIFO, S_IFREG, S_IFSOCK};
use kvmlet_hostfs::{HostKind, change, stream};

use super::inotify::Subject;
use super::synth::{self, Synth};
use super::tmpfs::InodeId;
use super::{
    Dir, epoll, fdinfo, fifo, hosttree, leases, locks, notify, open, overlay, pidfd, set_tmp_size,
};
use crate::cx::Cx;
use crate::fd::{Device, FileId, FileKind, OpenFile};
use crate::host::HostId;
use crate::ipc::mq::News;
use crate::net;

mod follow;
mod io;
mod reopen;

pub use follow::follow;
pub use io::*;
pub use reopen::reopen;

// ---- identity ----

/// The host's descriptor behind a description.
#[must_use]
pub fn host(kind: &FileKind) -> Option<HostId> {
    match kind {
        FileKind::HostFile(host)
        | FileKind::HostDir(host)
        | FileKind::HostLocation(host)
        | FileKind::HostStream(host) => Some(*host),
        FileKind::Capture(_)
        | FileKind::Input(_)
        | FileKind::Tmp(_)
        | FileKind::Device(_)
        | FileKind::Text(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation
        | FileKind::Pipe(_)
        | FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Socket(_)
        | FileKind::Process(_)
        | FileKind::Pty(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_) => None,
    }
}

/// The holder of a description's bytes, for calls that need no open file to move them: mmap(2), execve(2),
/// copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contents {
    /// A regular file of the host's.
    Host(HostId),
    /// A regular file of the host's that was inherited: its position is the host's.
    Inherited(HostId),
    /// A file or directory of the memory file system.
    Tmp(InodeId),
    /// A text that is made when it is read.
    Text,
    /// Zeros without end, private to each mapping.
    Zeros,
    /// Names.
    Directory,
    /// Nothing that lasts.
    None,
}

/// The holder of a description's bytes.
#[must_use]
pub fn contents(cx: &Cx<'_>, kind: &FileKind) -> Contents {
    match kind {
        FileKind::HostFile(host) => Contents::Host(*host),
        FileKind::HostStream(host) if is_regular(cx, *host) => Contents::Inherited(*host),
        FileKind::Tmp(inode) => Contents::Tmp(*inode),
        FileKind::Text(_) => Contents::Text,
        FileKind::Device(Device::Zero) => Contents::Zeros,
        FileKind::HostDir(_) | FileKind::SynthDir(_) => Contents::Directory,
        FileKind::HostStream(_)
        | FileKind::HostLocation(_)
        | FileKind::Capture(_)
        | FileKind::Input(_)
        | FileKind::Device(Device::Null | Device::Full | Device::Random | Device::Urandom)
        | FileKind::SynthLocation
        | FileKind::Pipe(_)
        | FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Socket(_)
        | FileKind::Process(_)
        | FileKind::Pty(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_) => Contents::None,
    }
}

/// True if an inherited stream is a file, which never waits.
fn is_regular(cx: &Cx<'_>, host: HostId) -> bool {
    cx.host
        .get(host)
        .is_ok_and(|host| host.kind == HostKind::FileStream)
}

/// The directory that a description is open on, if it is one.
#[must_use]
pub fn directory(cx: &Cx<'_>, file: &OpenFile) -> Option<Dir> {
    let by_path = || Dir::Path(Arc::clone(&file.path));
    match &file.kind {
        FileKind::HostDir(_) | FileKind::SynthDir(_) => Some(by_path()),
        FileKind::Tmp(inode) => {
            let found = cx.kernel.tmpfs.get(*inode);
            let is_dir = found.is_ok_and(|inode| inode.dir().is_ok());
            is_dir.then_some(Dir::Tmp(*inode))
        }
        FileKind::HostLocation(host) => {
            let attr = kvmlet_hostfs::attr_of(cx.host.get(*host).ok()?.fd.as_fd()).ok()?;
            attr.is_dir().then(by_path)
        }
        FileKind::SynthLocation => {
            (synth::lookup(cx, &file.path) == Some(Synth::Dir)).then(by_path)
        }
        FileKind::HostFile(_)
        | FileKind::HostStream(_)
        | FileKind::Capture(_)
        | FileKind::Input(_)
        | FileKind::Device(_)
        | FileKind::Text(_)
        | FileKind::Pipe(_)
        | FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Socket(_)
        | FileKind::Process(_)
        | FileKind::Pty(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_) => None,
    }
}

/// The place of the names of a directory that is open for reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Names {
    /// The host has them.
    Host(HostId),
    /// The memory file system has them, if it is a directory.
    Tmp(InodeId),
    /// The description has them.
    Synth,
    /// It is no directory.
    None,
}

/// The place where getdents64(2) finds names.
#[must_use]
pub fn names(kind: &FileKind) -> Names {
    match kind {
        FileKind::HostDir(host) => Names::Host(*host),
        FileKind::Tmp(inode) => Names::Tmp(*inode),
        FileKind::SynthDir(_) => Names::Synth,
        FileKind::HostFile(_)
        | FileKind::HostLocation(_)
        | FileKind::HostStream(_)
        | FileKind::Capture(_)
        | FileKind::Input(_)
        | FileKind::Device(_)
        | FileKind::Text(_)
        | FileKind::SynthLocation
        | FileKind::Pipe(_)
        | FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Socket(_)
        | FileKind::Process(_)
        | FileKind::Pty(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_) => Names::None,
    }
}

/// The minor number of the file system of message queues.
const MQUEUE_DEVICE: u32 = 0x13;
/// The size that a message queue shows (FILENT_SIZE in ipc/mqueue.c).
const MQUEUE_SIZE: u64 = 80;

/// The attributes of an open description (fstat(2)).
///
/// # Errors
/// `EBADF`, the host's.
pub fn attr(cx: &mut Cx<'_>, id: FileId) -> Result<Attr, Errno> {
    let file = cx.kernel.files.get(&id).ok_or(Errno::EBADF)?;
    let own = |mode: u32, ino: u64| Attr {
        dev: attr::makedev(0, 0x7e),
        ino,
        mode,
        nlink: 1,
        // Linux differs: a pipe or a socket belongs to who has made it.
        uid: cx.kernel.caller.user.real,
        gid: cx.kernel.caller.group.real,
        blksize: 4096,
        ..Attr::default()
    };
    match &file.kind {
        FileKind::HostFile(host)
        | FileKind::HostDir(host)
        | FileKind::HostLocation(host)
        | FileKind::HostStream(host) => {
            if let Some(attr) = cx.host.told(*host) {
                return Ok(attr);
            }
            let fd = &cx.host.get(*host)?.fd;
            let attr = kvmlet_hostfs::attr_of(fd.as_fd())?;
            let names = &cx.kernel.objects.sockets.host_names;
            Ok(names.shown(attr, || kvmlet_hostfs::birth_time(fd.as_fd())))
        }
        FileKind::Tmp(inode) => cx.kernel.tmpfs.attr(*inode),
        FileKind::Device(device) => Ok(synth::attr(cx, &file.path, &Synth::Device(*device))),
        FileKind::Text(_) => Ok(synth::attr(cx, &file.path, &Synth::Text)),
        FileKind::SynthDir(_) => Ok(synth::attr(cx, &file.path, &Synth::Dir)),
        FileKind::Pty(end) => Ok(synth::pty_attr(cx, &file.path, *end)),
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
            ..own(
                S_IFSOCK | cx.kernel.objects.sockets.get(*socket)?.mode,
                socket.0.saturating_add(16),
            )
        }),
        FileKind::Mqueue(id) => {
            let queue = cx.kernel.ipc.mqueues.get(*id)?;
            Ok(Attr {
                dev: attr::makedev(0, MQUEUE_DEVICE),
                uid: queue.perm.uid,
                gid: queue.perm.gid,
                size: MQUEUE_SIZE,
                atime: queue.atime,
                mtime: queue.mtime,
                ctime: queue.mtime,
                ..own(S_IFREG | queue.perm.mode, id.0.saturating_add(16))
            })
        }
        // They share one inode without a type, which is root's (fs/anon_inodes.c).
        FileKind::Event(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Process(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_) => Ok(Attr {
            dev: attr::makedev(0, 0xf),
            uid: 0,
            gid: 0,
            ..own(0o600, 1)
        }),
    }
}

/// A kind of file system (statfs(2)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileSystem {
    /// The host tells.
    Host(HostId),
    /// The memory file system.
    Tmp,
    /// That of pipes.
    Pipes,
    /// The one that the description's path is on.
    OfPath,
}

/// The file system that a description is on.
///
/// # Errors
/// `EBADF` for a pipe that is gone.
pub fn file_system(cx: &mut Cx<'_>, kind: &FileKind) -> Result<FileSystem, Errno> {
    Ok(match kind {
        FileKind::HostFile(host)
        | FileKind::HostDir(host)
        | FileKind::HostLocation(host)
        | FileKind::HostStream(host) => FileSystem::Host(*host),
        FileKind::Pipe(pipe) if cx.kernel.pipes.get(*pipe)?.inode.is_some() => FileSystem::Tmp,
        FileKind::Pipe(_) | FileKind::Input(_) | FileKind::Capture(_) => FileSystem::Pipes,
        FileKind::Tmp(_) => FileSystem::Tmp,
        FileKind::Device(_)
        | FileKind::Text(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation
        | FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Socket(_)
        | FileKind::Process(_)
        | FileKind::Pty(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_) => FileSystem::OfPath,
    })
}

/// True if a description is on something in a visible tree of the host, by its name there.
#[must_use]
pub fn is_of_host_tree(kind: &FileKind) -> bool {
    match kind {
        FileKind::HostFile(_) | FileKind::HostDir(_) | FileKind::HostLocation(_) => true,
        FileKind::HostStream(_)
        | FileKind::Tmp(_)
        | FileKind::Capture(_)
        | FileKind::Input(_)
        | FileKind::Device(_)
        | FileKind::Text(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation
        | FileKind::Pipe(_)
        | FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Socket(_)
        | FileKind::Process(_)
        | FileKind::Pty(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_) => false,
    }
}

/// The thing that a watch on a description's object is on (inotify(7)), if it can be watched.
#[must_use]
pub fn watchable(cx: &Cx<'_>, file: &OpenFile) -> Option<Subject> {
    match &file.kind {
        FileKind::Tmp(inode) => Some(Subject::Inode(*inode)),
        FileKind::Pipe(_) => fifo::inode_of(cx, &file.kind).map(Subject::Inode),
        FileKind::HostFile(_)
        | FileKind::HostDir(_)
        | FileKind::HostLocation(_)
        | FileKind::Device(_)
        | FileKind::Text(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation
        | FileKind::Pty(_) => Some(Subject::Path(Arc::clone(&file.path))),
        FileKind::HostStream(_)
        | FileKind::Capture(_)
        | FileKind::Input(_)
        | FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Socket(_)
        | FileKind::Process(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_) => None,
    }
}

/// True if a description is on a file system that can be written.
#[must_use]
pub fn is_on_writable_system(kind: &FileKind) -> bool {
    match kind {
        FileKind::Tmp(_) | FileKind::HostStream(_) | FileKind::Pty(_) => true,
        FileKind::HostFile(_)
        | FileKind::HostDir(_)
        | FileKind::HostLocation(_)
        | FileKind::Capture(_)
        | FileKind::Input(_)
        | FileKind::Device(_)
        | FileKind::Text(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation
        | FileKind::Pipe(_)
        | FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Socket(_)
        | FileKind::Process(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_) => false,
    }
}

/// The text that readlink(2) shows for an open description (proc_pid_fd(5)).
#[must_use]
pub fn link_text(cx: &Cx<'_>, file: &OpenFile) -> Vec<u8> {
    match &file.kind {
        FileKind::Pipe(id) => match fifo::inode_of(cx, &file.kind) {
            Some(inode) => tmp_text(cx, inode, &file.path),
            None => format!("pipe:[{id}]").into_bytes(),
        },
        FileKind::Input(_) => b"pipe:[0]".to_vec(),
        FileKind::Capture(number) => format!("pipe:[{number}]").into_bytes(),
        FileKind::Socket(id) => format!("socket:[{}]", id.0.saturating_add(16)).into_bytes(),
        FileKind::Tmp(inode) => tmp_text(cx, *inode, &file.path),
        FileKind::Pty(end) if !cx.kernel.ptys.is_shown(end.index) => {
            [&file.path, b" (deleted)".as_slice()].concat()
        }
        FileKind::Pty(_) => file.path.to_vec(),
        FileKind::HostFile(_)
        | FileKind::HostDir(_)
        | FileKind::HostLocation(_)
        | FileKind::HostStream(_)
        | FileKind::Device(_)
        | FileKind::Text(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation
        | FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Process(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_) => file.path.to_vec(),
    }
}

fn tmp_text(cx: &Cx<'_>, inode: InodeId, path: &[u8]) -> Vec<u8> {
    let inode = cx.kernel.tmpfs.get(inode);
    if inode.is_ok_and(|inode| inode.nlink > 0) {
        path.to_vec()
    } else {
        [path, b" (deleted)".as_slice()].concat()
    }
}

/// The position and the lines of a kind's own in /proc/self/fdinfo (proc_pid_fdinfo(5)).
#[must_use]
pub fn info(cx: &Cx<'_>, file: &OpenFile) -> (u64, String) {
    match &file.kind {
        FileKind::Event(id) => (file.offset, fdinfo::of_event(cx, *id)),
        FileKind::Timer(id) => (file.offset, fdinfo::of_timer(cx, *id)),
        FileKind::Mqueue(_) => (file.offset, String::new()),
        FileKind::Process(process) => (file.offset, pidfd::info(cx, *process)),
        FileKind::Epoll(id) => (file.offset, cx.kernel.objects.epolls.info(*id)),
        FileKind::Signals(mask) => (file.offset, format!("sigmask:\t{mask:016x}\n")),
        FileKind::Inotify(id) => (file.offset, fdinfo::of_inotify(cx, *id)),
        FileKind::Pipe(_) => (0, String::new()),
        FileKind::Pty(_) => (0, String::new()),
        FileKind::HostFile(_)
        | FileKind::HostDir(_)
        | FileKind::HostLocation(_)
        | FileKind::HostStream(_)
        | FileKind::Capture(_)
        | FileKind::Input(_)
        | FileKind::Tmp(_)
        | FileKind::Device(_)
        | FileKind::Text(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation
        | FileKind::Socket(_) => (file.offset, String::new()),
    }
}

// ---- references ----

/// Takes the references that a second description on the same object needs. Pipes are counted by access
/// mode, which the caller does.
///
/// # Errors
/// `ENOMEM` for a text at the memory limit.
pub fn hold(cx: &mut Cx<'_>, file: &OpenFile) -> Result<(), Errno> {
    match &file.kind {
        FileKind::HostFile(host)
        | FileKind::HostDir(host)
        | FileKind::HostLocation(host)
        | FileKind::HostStream(host) => cx.host.incref(*host),
        FileKind::Tmp(inode) => cx.kernel.tmpfs.open_ref(*inode),
        FileKind::Mqueue(id) => cx.kernel.ipc.mqueues.opened(*id),
        FileKind::Text(text) => open::charge_text(cx, text.bytes.len())?,
        FileKind::Capture(_)
        | FileKind::Input(_)
        | FileKind::Device(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation
        | FileKind::Pipe(_)
        | FileKind::Event(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Socket(_)
        | FileKind::Process(_)
        | FileKind::Pty(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_) => {}
    }
    Ok(())
}

/// Releases what a description holds and removes it: nothing refers to it any more.
pub fn release(cx: &mut Cx<'_>, id: FileId) {
    notify::closed(cx, id);
    locks::released(cx, id);
    leases::released(cx, id);
    cx.kernel.async_io.file_released(id);
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
        FileKind::Socket(object) => net::released(cx, object),
        FileKind::Text(text) => cx.machine.memory.uncharge(text.bytes.len() as u64),
        FileKind::Pty(end) => cx.kernel.close_pty(&mut cx.machine.memory, end),
        FileKind::Mqueue(id) => {
            let memory = &mut cx.machine.memory;
            cx.kernel.ipc.mqueues.released(memory, id);
        }
        FileKind::Inotify(object) => notify::released(cx, object),
        FileKind::Capture(_)
        | FileKind::Input(_)
        | FileKind::Device(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation
        | FileKind::Process(_)
        | FileKind::Signals(_) => {}
    }
    notify::settle(cx);
}

/// A process has closed a descriptor of a description, which others may still refer to.
pub fn closed(cx: &mut Cx<'_>, id: FileId) {
    let Some(FileKind::Mqueue(queue)) = cx.kernel.files.get(&id).map(|file| &file.kind) else {
        return;
    };
    let queue = *queue;
    if let Ok(pid) = cx.process().map(|process| process.pid)
        && let Some(notice) = cx.kernel.ipc.mqueues.closed_by(queue, pid)
    {
        net::netlink::tell(cx, notice, News::Removed);
    }
}

// ---- changing ----

/// The inode that a change of attributes concerns (chmod(2), chown(2), utimensat(2)).
///
/// # Errors
/// `EROFS`, recorded, for what cannot be changed; `EPERM`, `EOPNOTSUPP`; `ENOSPC` in an overlay.
pub fn changeable(
    cx: &mut Cx<'_>,
    call: &'static str,
    (kind, path): (&FileKind, &[u8]),
) -> Result<InodeId, Errno> {
    match kind {
        FileKind::Tmp(inode) => Ok(*inode),
        FileKind::Pipe(pipe) if cx.kernel.pipes.get(*pipe)?.inode.is_some() => {
            cx.kernel.pipes.get(*pipe)?.inode.ok_or(Errno::EBADF)
        }
        FileKind::Pipe(_) | FileKind::Input(_) | FileKind::Capture(_) | FileKind::HostStream(_) => {
            cx.host
                .report
                .unsupported(call, "on a pipe or an inherited stream".to_owned());
            Err(Errno::EPERM)
        }
        // The inode is shared with all of their kind (fs/anon_inodes.c).
        FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Process(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_)
        | FileKind::Socket(_) => Err(Errno::EOPNOTSUPP),
        FileKind::HostFile(_) | FileKind::HostDir(_) | FileKind::HostLocation(_) => {
            match overlay::own_path(cx, path)? {
                Some(inode) => Ok(inode),
                None => Err(open::deny_write(cx, call, path)),
            }
        }
        FileKind::Device(_)
        | FileKind::Text(_)
        | FileKind::Pty(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation => Err(open::deny_write(cx, call, path)),
    }
}

/// The size of a regular file that a program may write, for RLIMIT_FSIZE.
///
/// # Errors
/// `EISDIR`, the host's.
pub fn limited_size(cx: &Cx<'_>, kind: &FileKind) -> Result<Option<u64>, Errno> {
    match kind {
        FileKind::Tmp(inode) => cx.kernel.tmpfs.size(*inode).map(Some),
        FileKind::HostStream(host) => stream::file_size(cx.host.get(*host)?),
        FileKind::HostFile(host) => {
            let attr = kvmlet_hostfs::attr_of(cx.host.get(*host)?.fd.as_fd())?;
            Ok(Some(attr.size))
        }
        FileKind::HostDir(_)
        | FileKind::HostLocation(_)
        | FileKind::Capture(_)
        | FileKind::Input(_)
        | FileKind::Device(_)
        | FileKind::Text(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation
        | FileKind::Pipe(_)
        | FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Socket(_)
        | FileKind::Process(_)
        | FileKind::Pty(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_) => Ok(None),
    }
}

/// ftruncate(2)
///
/// # Errors
/// `EINVAL` for what has no size, `EISDIR`, the host's.
pub fn set_size(cx: &mut Cx<'_>, kind: &FileKind, size: u64) -> Result<(), Errno> {
    match kind {
        FileKind::Tmp(inode) => set_tmp_size(cx, *inode, size),
        FileKind::HostStream(host) => stream::set_size(cx.host.get(*host)?, size),
        FileKind::HostFile(host) => change::set_size(cx.host.get(*host)?.fd.as_fd(), size),
        FileKind::HostDir(_)
        | FileKind::HostLocation(_)
        | FileKind::Capture(_)
        | FileKind::Input(_)
        | FileKind::Device(_)
        | FileKind::Text(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation
        | FileKind::Pipe(_)
        | FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Socket(_)
        | FileKind::Process(_)
        | FileKind::Pty(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_) => Err(Errno::EINVAL),
    }
}

/// The changes of a file that are written through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Synced {
    /// All (fsync(2)).
    All,
    /// Those that reading its bytes again takes (fdatasync(2)).
    Data,
}

/// Writes a description's changes through (fsync(2)). What is in memory always is.
///
/// # Errors
/// `EINVAL` for what cannot be synchronised, the host's.
pub fn sync(cx: &mut Cx<'_>, file: &OpenFile, synced: Synced) -> Result<(), Errno> {
    match &file.kind {
        FileKind::HostStream(host) | FileKind::HostFile(host) if is_regular(cx, *host) => {
            stream::sync(cx.host.get(*host)?)
        }
        FileKind::HostFile(host) | FileKind::HostDir(host)
            if hosttree::is_writable(cx.host, &file.path) =>
        {
            let host = cx.host.get(*host)?;
            match synced {
                Synced::All => stream::sync(host),
                Synced::Data => change::sync_data(host),
            }
        }
        FileKind::HostStream(_)
        | FileKind::Pipe(_)
        | FileKind::Input(_)
        | FileKind::Capture(_)
        | FileKind::Device(_)
        | FileKind::Text(_)
        | FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Socket(_)
        | FileKind::Process(_)
        | FileKind::Pty(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_) => Err(Errno::EINVAL),
        FileKind::HostFile(_)
        | FileKind::HostDir(_)
        | FileKind::HostLocation(_)
        | FileKind::Tmp(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation => Ok(()),
    }
}

/// Space that a call may set aside or hints that it may give for a range of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ranges {
    /// Of a file in memory.
    Tmp(InodeId),
    /// Of a file of the host's.
    Host(HostId),
    /// Of a directory.
    Directory,
    /// It is a pipe.
    Pipe,
    /// It is something else without them.
    None,
}

/// The ranges of a description (fallocate(2), sync_file_range(2), posix_fadvise(2), readahead(2)).
#[must_use]
pub fn ranges(kind: &FileKind) -> Ranges {
    match kind {
        FileKind::Tmp(inode) => Ranges::Tmp(*inode),
        FileKind::HostFile(host) => Ranges::Host(*host),
        FileKind::HostDir(_) => Ranges::Directory,
        FileKind::Pipe(_) | FileKind::Input(_) | FileKind::Capture(_) => Ranges::Pipe,
        FileKind::HostLocation(_)
        | FileKind::HostStream(_)
        | FileKind::Device(_)
        | FileKind::Text(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation
        | FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Socket(_)
        | FileKind::Process(_)
        | FileKind::Pty(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_) => Ranges::None,
    }
}

#[cfg(test)]
mod tests {
    /// A match elsewhere would have to be found by whoever adds a kind.
    #[test]
    fn kinds_are_told_apart_here_only() {
        for (name, text) in crate::testing::sources() {
            if name.starts_with("vfs/file/") {
                continue;
            }
            for line in text.lines() {
                let line = line.trim_start().trim_start_matches("| ");
                let is_arm = line.starts_with("FileKind::") && line.contains("=>");
                assert!(!is_arm, "{name}: {line}");
            }
        }
    }
}
