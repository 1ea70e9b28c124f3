//! inotify_init1(2), inotify_add_watch(2), inotify_rm_watch(2).

use kvmlet_abi::Errno;
use kvmlet_abi::linux::fcntl::AT_FDCWD;
use kvmlet_abi::linux::inotify::{
    IN_ALL_EVENTS, IN_DONT_FOLLOW, IN_EXCL_UNLINK, IN_IGNORED, IN_ISDIR, IN_MASK_ADD,
    IN_MASK_CREATE, IN_ONESHOT, IN_ONLYDIR, IN_Q_OVERFLOW, IN_UNMOUNT,
};
use kvmlet_abi::linux::limits::PATH_MAX;
use kvmlet_hostfs::attr::MAY_READ;

use super::number;
use crate::cx::Cx;
use crate::fd::{self, FileKind, OnExec, OpenFlags};
use crate::outcome::SysResult;
use crate::syscalls::args::{Args, Fd, Flags, Int, Str};
use crate::vfs::anon::ObjectId;
use crate::vfs::attr_of;
use crate::vfs::inotify::Subject;
use crate::vfs::open::description;
use crate::vfs::path::{self, Intent, Last, Node, Request, Resolve};
use crate::vfs::privilege;
use crate::vfs::{notify, overlay};

/// All bits that inotify_add_watch(2) knows (ALL_INOTIFY_BITS).
const KNOWN: u32 = IN_ALL_EVENTS
    | IN_UNMOUNT
    | IN_Q_OVERFLOW
    | IN_IGNORED
    | IN_ONLYDIR
    | IN_DONT_FOLLOW
    | IN_EXCL_UNLINK
    | IN_MASK_ADD
    | IN_MASK_CREATE
    | IN_ISDIR
    | IN_ONESHOT;

/// inotify_init(2)
///
/// # Errors
/// As [`sys_inotify_init1`].
pub fn sys_inotify_init(cx: &mut Cx<'_>, _args: &Args) -> SysResult {
    create(cx, 0)
}

/// inotify_init1(2)
///
/// # Errors
/// `EINVAL` for unknown flags, `EMFILE`.
pub fn sys_inotify_init1(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Flags(flags) = args.decode();
    create(cx, flags)
}

fn create(cx: &mut Cx<'_>, flags: u32) -> SysResult {
    let known = OpenFlags::CLOEXEC | OpenFlags::NONBLOCK;
    if flags & !known.bits() != 0 {
        return Err(Errno::EINVAL);
    }
    let flags = OpenFlags::from_bits_truncate(flags);
    let id = cx.kernel.objects.next_id();
    cx.kernel.objects.inotifies.create(id)?;
    let kept = flags & OpenFlags::NONBLOCK;
    let file = description(FileKind::Inotify(id), kept, b"anon_inode:inotify");
    fd::install_new(cx, file, OnExec::of(flags)).map(number)
}

fn instance(cx: &mut Cx<'_>, fd: i32) -> Result<ObjectId, Errno> {
    let (_, file) = fd::get_io(cx, fd)?;
    let FileKind::Inotify(id) = file.kind else {
        return Err(Errno::EINVAL);
    };
    Ok(id)
}

/// inotify_add_watch(2)
///
/// # Errors
/// As its man page.
pub fn sys_inotify_add_watch(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Str(path), Flags(mask)) = args.decode();
    if mask & KNOWN == 0 {
        return Err(Errno::EINVAL);
    }
    fd::get_io(cx, fd)?;
    if mask & IN_MASK_ADD != 0 && mask & IN_MASK_CREATE != 0 {
        return Err(Errno::EINVAL);
    }
    let id = instance(cx, fd)?;
    let path = cx.read_cstr(path, PATH_MAX)?;
    let subject = find(cx, &path, mask)?;
    notify::watch(cx, id, subject, mask).map(number)
}

fn find(cx: &mut Cx<'_>, path: &[u8], mask: u32) -> Result<Subject, Errno> {
    let last = if mask & IN_DONT_FOLLOW == 0 {
        Last::Follow
    } else {
        Last::NoFollow
    };
    let request = Request {
        call: "inotify_add_watch",
        start: path::start(cx, AT_FDCWD, path)?,
        path,
        last,
        intent: Intent::Read,
        resolve: Resolve::empty(),
    };
    let found = path::find(cx, request)?;
    let attr = attr_of(cx, &found)?;
    if mask & IN_ONLYDIR != 0 && !attr.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    if !attr.is_symlink() && !privilege::permits_found(cx, &found, &attr, MAY_READ)? {
        return Err(Errno::EACCES);
    }
    // Of an overlay, an inode that keeps its watch when it is moved.
    if let Some(inode) = overlay::own(cx, &found)? {
        return Ok(Subject::Inode(inode));
    }
    if let Node::Tmp(inode) = found.node {
        return Ok(Subject::Inode(inode));
    }
    // Linux differs: pipes, sockets and such, by /proc/self/fd, can be watched too.
    notify::subject_of(cx, &found).ok_or(Errno::EPERM)
}

/// inotify_rm_watch(2)
///
/// # Errors
/// `EBADF`; `EINVAL` for another kind of descriptor, and if there is no such watch.
pub fn sys_inotify_rm_watch(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Int(wd)) = args.decode();
    let id = instance(cx, fd)?;
    notify::unwatch(cx, id, wd).map(|()| 0)
}
