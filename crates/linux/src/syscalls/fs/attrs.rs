//! Changes of attributes: mode, owner, times, size.

use kvmlet_abi::linux::capability::{CAP_CHOWN, CAP_FOWNER, CAP_FSETID};
use kvmlet_abi::linux::fcntl::F_SEAL_EXEC;
use kvmlet_abi::linux::inotify::{IN_ACCESS, IN_ATTRIB, IN_MODIFY};
use kvmlet_abi::linux::stat::{UTIME_NOW, UTIME_OMIT};
use kvmlet_abi::linux::{Timespec, Timeval};
use kvmlet_abi::{Errno, Gva};
use kvmlet_hostfs::attr::{Attr, FileTime, MAY_WRITE, S_IFMT};
use kvmlet_hostfs::change::{self, NewTime};

use super::open::wait_for_lease;
use super::{AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW, Target, only};
use crate::cx::Cx;
use crate::fd::{self, FileKind, OpenFlags};
use crate::outcome::{CallState, Outcome, SysResult};
use crate::syscalls::args::{Args, Fd, Flags, Id, Len, Mode, Ptr, Str};
use crate::vfs;
use crate::vfs::anon::ObjectId;
use crate::vfs::file::{self, Message, Transfer};
use crate::vfs::guard;
use crate::vfs::hosttree;
use crate::vfs::leases;
use crate::vfs::notify;
use crate::vfs::open::{S_ISGID, deny_write};
use crate::vfs::overlay;
use crate::vfs::path::{Found, Node};
use crate::vfs::privilege;
use crate::vfs::tmpfs::InodeId;

/// Something whose attributes are to be changed.
pub(super) enum Changeable {
    /// In memory.
    Inode(InodeId),
    /// On the host.
    Host(hosttree::Object),
}

impl Changeable {
    /// True if the program has a capability over it.
    fn is_under(&self, cx: &Cx<'_>, cap: u8) -> Result<bool, Errno> {
        match self {
            Self::Inode(inode) => privilege::is_capable_over(cx, *inode, cap),
            Self::Host(_) => Ok(false),
        }
    }

    /// True if its owner is the program's user.
    fn is_own(&self, cx: &Cx<'_>, attr: &Attr) -> bool {
        match self {
            Self::Inode(_) => attr.uid == cx.creds().user.fs,
            Self::Host(_) => cx.asker().owns(attr),
        }
    }
}

/// Something that was found, to have its attributes changed.
///
/// # Errors
/// `EROFS`, recorded, where nothing may be changed; as [`hosttree::object`] and [`overlay::own`].
pub(super) fn changeable(
    cx: &mut Cx<'_>,
    call: &'static str,
    found: &Found,
) -> Result<Changeable, Errno> {
    match &found.node {
        Node::Tmp(inode) => return Ok(Changeable::Inode(*inode)),
        Node::Open(file) => {
            let kind = cx.kernel.files.get(file).ok_or(Errno::EBADF)?.kind.clone();
            if file::is_of_host_tree(&kind) && hosttree::is_writable(cx.host, &found.path) {
                return hosttree::object(cx, call, found).map(Changeable::Host);
            }
            let inode = file::changeable(cx, call, (&kind, &found.path));
            return inode.map(Changeable::Inode);
        }
        Node::Host(..) if hosttree::is_writable(cx.host, &found.path) => {
            return hosttree::object(cx, call, found).map(Changeable::Host);
        }
        Node::Host(..) => {
            if let Some(inode) = overlay::own(cx, found)? {
                return Ok(Changeable::Inode(inode));
            }
        }
        Node::Synth(_) => {}
    }
    Err(deny_write(cx, call, &found.path))
}

fn attr_of(cx: &Cx<'_>, changed: &Changeable) -> Result<Attr, Errno> {
    match changed {
        Changeable::Inode(inode) => cx.kernel.tmpfs.attr(*inode),
        Changeable::Host(object) => Ok(object.attr),
    }
}

fn open_file(cx: &mut Cx<'_>, fd: i32) -> Result<Found, Errno> {
    let (id, file) = fd::get_io(cx, fd)?;
    Ok(Found {
        path: file.path.to_vec(),
        node: Node::Open(id),
    })
}

/// The socket that something found is an open description of.
fn socket_of(cx: &Cx<'_>, found: &Found) -> Option<ObjectId> {
    let Node::Open(file) = found.node else {
        return None;
    };
    match file::transfer(&cx.kernel.files.get(&file)?.kind) {
        Transfer::Message(Message::Socket(socket)) => Some(socket),
        _ => None,
    }
}

fn set_mode(cx: &mut Cx<'_>, call: &'static str, found: &Found, mode: u32) -> SysResult {
    if let Some(socket) = socket_of(cx, found) {
        cx.kernel.objects.sockets.get_mut(socket)?.mode = mode & 0o7777;
        return Ok(0);
    }
    let changed = changeable(cx, call, found)?;
    let attr = attr_of(cx, &changed)?;
    if attr.is_symlink() {
        return Err(Errno::EOPNOTSUPP);
    }
    if !changed.is_own(cx, &attr) && !changed.is_under(cx, CAP_FOWNER)? {
        return Err(Errno::EPERM);
    }
    let mut mode = mode & 0o7777;
    if !cx.creds().is_member(attr.gid) && !changed.is_under(cx, CAP_FSETID)? {
        mode &= !S_ISGID;
    }
    let now = vfs::now(cx.host);
    let id = match changed {
        Changeable::Inode(inode) => inode,
        Changeable::Host(object) => {
            guard::check_set_id(cx, call, (&found.path, &attr), mode)?;
            if hosttree::set_socket_mode(cx, found, &attr, mode) {
                return Ok(0);
            }
            change::set_mode(object.named(), &attr, mode)?;
            hosttree::forget_permissions(cx.host);
            return Ok(0);
        }
    };
    let inode = cx.kernel.tmpfs.get_mut(id)?;
    if inode.file().is_ok_and(|data| data.seals & F_SEAL_EXEC != 0)
        && (mode ^ inode.mode) & 0o111 != 0
    {
        return Err(Errno::EPERM);
    }
    inode.mode = inode.mode & S_IFMT | mode;
    inode.ctime = now;
    notify::changed(cx, found, id, IN_ATTRIB);
    Ok(0)
}

/// chmod(2)
///
/// # Errors
/// As its man page.
pub fn sys_chmod(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Mode(mode)) = args.decode();
    chmod(cx, AT_FDCWD, path, mode, 0)
}

/// fchmodat(2) as the kernel has it: without flags
///
/// # Errors
/// As its man page.
pub fn sys_fchmodat(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(dirfd), Str(path), Mode(mode)) = args.decode();
    chmod(cx, dirfd, path, mode, 0)
}

/// fchmodat2(2)
///
/// # Errors
/// As its man page.
pub fn sys_fchmodat2(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(dirfd), Str(path), Mode(mode), Flags(flags)) = args.decode();
    only(flags, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)?;
    chmod(cx, dirfd, path, mode, flags)
}

fn chmod(cx: &mut Cx<'_>, dirfd: i32, path: Gva, mode: u32, flags: u32) -> SysResult {
    let found = Target::new("chmod", dirfd, path)
        .to_change()
        .find(cx, flags)?;
    set_mode(cx, "chmod", &found, mode)
}

/// fchmod(2)
///
/// # Errors
/// As its man page.
pub fn sys_fchmod(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Mode(mode)) = args.decode();
    let found = open_file(cx, fd)?;
    set_mode(cx, "fchmod", &found, mode)
}

/// Changes owner and group. With CAP_CHOWN those of values may be any; else the owner stays and the group becomes one
/// of the thread's.
fn set_owner(cx: &mut Cx<'_>, call: &'static str, found: &Found, uid: u32, gid: u32) -> SysResult {
    if socket_of(cx, found).is_some() {
        // Linux differs: the group can become any of the caller's.
        let ids = cx.creds().for_files();
        let stays = (uid == u32::MAX || uid == ids.uid) && (gid == u32::MAX || gid == ids.gid);
        return if stays { Ok(0) } else { Err(Errno::EPERM) };
    }
    let changed = changeable(cx, call, found)?;
    let attr = attr_of(cx, &changed)?;
    let wanted = |id: u32| Some(id).filter(|id| *id != u32::MAX);
    let is_owner = changed.is_own(cx, &attr);
    let is_free = changed.is_under(cx, CAP_CHOWN)?;
    if wanted(uid).is_some_and(|uid| uid != attr.uid || !is_owner) && !is_free {
        return Err(Errno::EPERM);
    }
    if let Some(gid) = wanted(gid)
        && !is_free
        && !(is_owner && (gid == attr.gid || cx.creds().is_member(gid)))
    {
        return Err(Errno::EPERM);
    }
    let now = vfs::now(cx.host);
    let id = match changed {
        Changeable::Inode(inode) => inode,
        Changeable::Host(object) => {
            change::set_owner(object.named(), wanted(uid), wanted(gid))?;
            hosttree::forget_permissions(cx.host);
            return Ok(0);
        }
    };
    let inode = cx.kernel.tmpfs.get_mut(id)?;
    inode.uid = wanted(uid).unwrap_or(inode.uid);
    inode.gid = wanted(gid).unwrap_or(inode.gid);
    if !attr.is_dir() {
        // The set-id bits do not survive a change of owner (chown(2)).
        inode.mode &= !0o4000;
        if inode.mode & 0o010 != 0 {
            inode.mode &= !S_ISGID;
        }
    }
    inode.ctime = now;
    if wanted(uid).or(wanted(gid)).is_some() {
        notify::changed(cx, found, id, IN_ATTRIB);
    }
    Ok(0)
}

/// chown(2)
///
/// # Errors
/// As its man page.
pub fn sys_chown(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Id(uid), Id(gid)) = args.decode();
    let found = Target::new("chown", AT_FDCWD, path)
        .to_change()
        .find(cx, 0)?;
    set_owner(cx, "chown", &found, uid, gid)
}

/// lchown(2)
///
/// # Errors
/// As its man page.
pub fn sys_lchown(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Id(uid), Id(gid)) = args.decode();
    let found = Target::new("lchown", AT_FDCWD, path)
        .to_change()
        .find(cx, AT_SYMLINK_NOFOLLOW)?;
    set_owner(cx, "lchown", &found, uid, gid)
}

/// fchown(2)
///
/// # Errors
/// As its man page.
pub fn sys_fchown(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Id(uid), Id(gid)) = args.decode();
    let found = open_file(cx, fd)?;
    set_owner(cx, "fchown", &found, uid, gid)
}

/// fchownat(2)
///
/// # Errors
/// As its man page.
pub fn sys_fchownat(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(dirfd), Str(path), Id(uid), Id(gid), Flags(flags)) = args.decode();
    only(flags, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)?;
    let found = Target::new("chown", dirfd, path)
        .to_change()
        .find(cx, flags)?;
    set_owner(cx, "chown", &found, uid, gid)
}

/// The change to a file time (utimensat(2)).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stamp {
    Keep,
    Now,
    At(FileTime),
}

impl Stamp {
    fn on_host(self) -> NewTime {
        match self {
            Self::Keep => NewTime::Kept,
            Self::Now => NewTime::Now,
            Self::At(time) => NewTime::At(time),
        }
    }
}

fn set_times(
    cx: &mut Cx<'_>,
    call: &'static str,
    found: &Found,
    access: Stamp,
    modification: Stamp,
) -> SysResult {
    if (access, modification) == (Stamp::Keep, Stamp::Keep) {
        return Ok(0);
    }
    let changed = changeable(cx, call, found)?;
    let attr = attr_of(cx, &changed)?;
    if !changed.is_own(cx, &attr) && !changed.is_under(cx, CAP_FOWNER)? {
        if (access, modification) != (Stamp::Now, Stamp::Now) {
            return Err(Errno::EPERM);
        }
        let may_write = match &changed {
            Changeable::Inode(inode) => privilege::permits(cx, *inode, MAY_WRITE)?,
            Changeable::Host(_) => cx.asker().granted(&attr, MAY_WRITE),
        };
        if !may_write {
            return Err(Errno::EACCES);
        }
    }
    let now = vfs::now(cx.host);
    let id = match changed {
        Changeable::Inode(inode) => inode,
        Changeable::Host(object) => {
            change::set_times(object.named(), access.on_host(), modification.on_host())?;
            return Ok(0);
        }
    };
    let inode = cx.kernel.tmpfs.get_mut(id)?;
    for (time, stamp) in [(&mut inode.atime, access), (&mut inode.mtime, modification)] {
        match stamp {
            Stamp::Keep => {}
            Stamp::Now => *time = now,
            Stamp::At(at) => *time = at,
        }
    }
    inode.ctime = now;
    // As fsnotify_change in linux/fsnotify.h says it.
    let mask = match (access, modification) {
        (_, Stamp::Keep) => IN_ACCESS,
        (Stamp::Keep, _) => IN_MODIFY,
        _ => IN_ATTRIB,
    };
    notify::changed(cx, found, id, mask);
    Ok(0)
}

fn stamp_of(time: Timespec) -> Result<Stamp, Errno> {
    match time.tv_nsec {
        UTIME_NOW => Ok(Stamp::Now),
        UTIME_OMIT => Ok(Stamp::Keep),
        nsec => match u32::try_from(nsec) {
            Ok(nsec) if nsec < 1_000_000_000 => Ok(Stamp::At(FileTime {
                sec: time.tv_sec,
                nsec,
            })),
            _ => Err(Errno::EINVAL),
        },
    }
}

/// utimensat(2); without a path it is futimens(3)
///
/// # Errors
/// As its man page.
pub fn sys_utimensat(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(dirfd), Str(path), Ptr(times), Flags(flags)) = args.decode();
    only(flags, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)?;
    let (access, change) = if times.0 == 0 {
        (Stamp::Now, Stamp::Now)
    } else {
        let [access, change]: [Timespec; 2] = cx.read_struct(times)?;
        (stamp_of(access)?, stamp_of(change)?)
    };
    let found = if path.0 == 0 && dirfd != AT_FDCWD {
        if flags & AT_SYMLINK_NOFOLLOW != 0 {
            return Err(Errno::EINVAL);
        }
        open_file(cx, dirfd)?
    } else {
        Target::new("utime", dirfd, path)
            .to_change()
            .find(cx, flags)?
    };
    set_times(cx, "utime", &found, access, change)
}

fn utimes(cx: &mut Cx<'_>, dirfd: i32, path: Gva, times: Gva) -> SysResult {
    let stamp = |time: Timeval| match u32::try_from(time.tv_usec) {
        Ok(usec) if usec < 1_000_000 => Ok(Stamp::At(FileTime {
            sec: time.tv_sec,
            nsec: usec.saturating_mul(1000),
        })),
        _ => Err(Errno::EINVAL),
    };
    let (access, change) = if times.0 == 0 {
        (Stamp::Now, Stamp::Now)
    } else {
        let [access, change]: [Timeval; 2] = cx.read_struct(times)?;
        (stamp(access)?, stamp(change)?)
    };
    let found = Target::new("utime", dirfd, path).to_change().find(cx, 0)?;
    set_times(cx, "utime", &found, access, change)
}

/// utimes(2)
///
/// # Errors
/// As its man page.
pub fn sys_utimes(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Ptr(times)) = args.decode();
    utimes(cx, AT_FDCWD, path, times)
}

/// futimesat(2)
///
/// # Errors
/// As its man page.
pub fn sys_futimesat(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(dirfd), Str(path), Ptr(times)) = args.decode();
    utimes(cx, dirfd, path, times)
}

/// utime(2)
///
/// # Errors
/// As its man page.
pub fn sys_utime(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Ptr(times)) = args.decode();
    let (access, change) = if times.0 == 0 {
        (Stamp::Now, Stamp::Now)
    } else {
        let [access, change]: [i64; 2] = cx.read_struct(times)?;
        let at = |sec| Stamp::At(FileTime { sec, nsec: 0 });
        (at(access), at(change))
    };
    let found = Target::new("utime", AT_FDCWD, path)
        .to_change()
        .find(cx, 0)?;
    set_times(cx, "utime", &found, access, change)
}

/// truncate(2)
pub fn sys_truncate(cx: &mut Cx<'_>, args: &Args, _state: &CallState) -> Outcome {
    truncate(cx, args).unwrap_or_else(|errno| Outcome::Done(Err(errno)))
}

fn truncate(cx: &mut Cx<'_>, args: &Args) -> Result<Outcome, Errno> {
    let (Str(path), Len(size)) = args.decode();
    let size = i64::try_from(size)
        .map_err(|_| Errno::EINVAL)?
        .cast_unsigned();
    let found = Target::new("truncate", AT_FDCWD, path)
        .to_change()
        .find(cx, 0)?;
    let attr = vfs::attr_of(cx, &found)?;
    if attr.is_dir() {
        return Err(Errno::EISDIR);
    }
    let inode = match changeable(cx, "truncate", &found)? {
        Changeable::Inode(inode) => inode,
        Changeable::Host(object) => {
            return match leases::broken_on_host(cx, &attr, OpenFlags::WRONLY)? {
                Some(until_ns) => Ok(wait_for_lease(until_ns)),
                None => Ok(truncate_on_host(cx, &object, size).into()),
            };
        }
    };
    if !privilege::permits(cx, inode, MAY_WRITE)? {
        return Err(Errno::EACCES);
    }
    let attr = cx.kernel.tmpfs.attr(inode)?;
    if let Some(until_ns) = leases::broken_by(cx, &attr, OpenFlags::WRONLY)? {
        return Ok(wait_for_lease(until_ns));
    }
    vfs::size_limit::check_size(cx, &FileKind::Tmp(inode), size)?;
    if size > 0 {
        overlay::open_lower(cx, inode)?;
    }
    // As if it were open meanwhile: the host's file is closed again with the last reference.
    cx.kernel.tmpfs.open_ref(inode);
    let done = vfs::set_tmp_size(cx, inode, size);
    if done.is_ok() {
        notify::changed(cx, &found, inode, IN_MODIFY);
    }
    cx.kernel.tmpfs.close_ref(&mut cx.machine.memory, inode);
    Ok(done.map(|()| 0).into())
}

fn truncate_on_host(cx: &mut Cx<'_>, object: &hosttree::Object, size: u64) -> SysResult {
    let host = hosttree::open_to_truncate(cx, "truncate", object)?;
    let kind = FileKind::HostFile(host);
    let done =
        vfs::size_limit::check_size(cx, &kind, size).and_then(|()| file::set_size(cx, &kind, size));
    cx.host.decref(host);
    done.map(|()| 0)
}

/// umask(2)
///
/// # Errors
/// None for a running thread.
pub fn sys_umask(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Mode(mask) = args.decode();
    let fs = cx.fs()?;
    let old = fs.umask;
    fs.umask = mask & 0o777;
    Ok(u64::from(old))
}
