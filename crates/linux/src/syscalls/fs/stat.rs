//! Attributes: the stat family, access, readlink, statfs.

use kvmlet_abi::linux::{
    fcntl::{AT_EACCESS, AT_STATX_SYNC_TYPE},
    magic::{CGROUP2_SUPER_MAGIC, PIPEFS_MAGIC, PROC_SUPER_MAGIC, SYSFS_MAGIC, TMPFS_MAGIC},
    stat::{STATX__RESERVED, STATX_MNT_ID},
    statfs::{ST_NODEV, ST_NOSUID, ST_RDONLY, ST_VALID},
};
use std::os::fd::AsFd;
use std::sync::Arc;

use kvmlet_abi::linux::Statfs;
use kvmlet_abi::{Errno, Gva, PAGE_SIZE};
use kvmlet_hostfs::Shown;
use kvmlet_hostfs::attr::{Attr, MAY_EXEC, MAY_WRITE, S_IFDIR, S_IFLNK, S_IFREG};
use kvmlet_policy::{Place, beneath};

use super::{AT_EMPTY_PATH, AT_FDCWD, AT_NO_AUTOMOUNT, AT_SYMLINK_NOFOLLOW, Target, only};
use crate::cx::Cx;
use crate::fd::{self, FileKind};
use crate::outcome::SysResult;
use crate::syscalls::args::{Args, Fd, Flags, Int, Mode, Ptr, Str};
use crate::vfs;
use crate::vfs::file::{self, FileSystem};
use crate::vfs::guard;
use crate::vfs::hosttree;
use crate::vfs::path::{Found, Node};
use crate::vfs::synth::{Synth, mount_number};
use crate::vfs::sysfs;
use crate::vfs::tmpfs::{Body, MAX_NAME, Store};

fn put_stat(cx: &mut Cx<'_>, attr: &Attr, gva: Gva) -> SysResult {
    cx.write_struct(gva, &attr.to_stat())?;
    Ok(0)
}

/// True if the path is empty, or none at all.
fn names_nothing(cx: &mut Cx<'_>, target: Target) -> Result<bool, Errno> {
    let mut first = [0];
    if target.path.0 != 0 {
        cx.read(target.path, &mut first)?;
    }
    Ok(first == [0])
}

/// With AT_EMPTY_PATH the stat calls take no path at all for an empty one.
fn find_stated(cx: &mut Cx<'_>, target: Target, at_flags: u32) -> Result<Found, Errno> {
    if target.path.0 == 0 && at_flags & AT_EMPTY_PATH != 0 && target.dirfd != AT_FDCWD {
        let (id, file) = fd::get(cx, target.dirfd)?;
        return Ok(Found {
            path: file.path.to_vec(),
            node: Node::Open(id),
        });
    }
    target.find(cx, at_flags)
}

fn stat_at(cx: &mut Cx<'_>, target: Target, at_flags: u32, gva: Gva) -> SysResult {
    if at_flags & AT_EMPTY_PATH != 0 && target.dirfd != AT_FDCWD && names_nothing(cx, target)? {
        let id = fd::id(cx, target.dirfd)?;
        let attr = vfs::file::attr(cx, id)?;
        return put_stat(cx, &attr, gva);
    }
    let found = find_stated(cx, target, at_flags)?;
    let attr = vfs::attr_of(cx, &found)?;
    put_stat(cx, &attr, gva)
}

/// stat(2)
///
/// # Errors
/// As its man page.
pub fn sys_stat(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Ptr(buf)) = args.decode();
    stat_at(cx, Target::new("stat", AT_FDCWD, path), 0, buf)
}

/// lstat(2)
///
/// # Errors
/// As its man page.
pub fn sys_lstat(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Ptr(buf)) = args.decode();
    stat_at(
        cx,
        Target::new("stat", AT_FDCWD, path),
        AT_SYMLINK_NOFOLLOW,
        buf,
    )
}

/// fstat(2)
///
/// # Errors
/// `EBADF`, `EFAULT`.
pub fn sys_fstat(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Ptr(buf)) = args.decode();
    let id = fd::id(cx, fd)?;
    let attr = vfs::file::attr(cx, id)?;
    put_stat(cx, &attr, buf)
}

/// newfstatat(2), fstatat(3)
///
/// # Errors
/// As its man page.
pub fn sys_newfstatat(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(dirfd), Str(path), Ptr(buf), Flags(flags)) = args.decode();
    only(flags, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH)?;
    stat_at(cx, Target::new("stat", dirfd, path), flags, buf)
}

/// statx(2)
///
/// # Errors
/// As its man page.
pub fn sys_statx(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(dirfd), Str(path), Flags(flags), Flags(mask), Ptr(buf)) = args.decode();
    only(
        flags,
        AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH | AT_STATX_SYNC_TYPE,
    )?;
    if mask & STATX__RESERVED != 0 || flags & AT_STATX_SYNC_TYPE == AT_STATX_SYNC_TYPE {
        return Err(Errno::EINVAL);
    }
    let found = find_stated(cx, Target::new("stat", dirfd, path), flags)?;
    let attr = vfs::attr_of(cx, &found)?;
    let attr = Attr {
        btime: attr.btime.or_else(|| vfs::birth_time(cx, &found)),
        ..attr
    };
    let mut statx = attr.to_statx();
    statx.stx_mnt_id = mount_number(cx.host.policy.classify(&found.path));
    statx.stx_mask |= mask & STATX_MNT_ID;
    cx.write_struct(buf, &statx)?;
    Ok(0)
}

/// access(2)
///
/// # Errors
/// As its man page.
pub fn sys_access(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Mode(mode)) = args.decode();
    access(cx, AT_FDCWD, path, mode, 0)
}

/// faccessat(2) as the kernel has it: without flags
///
/// # Errors
/// As its man page.
pub fn sys_faccessat(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(dirfd), Str(path), Mode(mode)) = args.decode();
    access(cx, dirfd, path, mode, 0)
}

/// faccessat2(2)
///
/// # Errors
/// As its man page.
pub fn sys_faccessat2(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(dirfd), Str(path), Mode(mode), Flags(flags)) = args.decode();
    access(cx, dirfd, path, mode, flags)
}

fn access(cx: &mut Cx<'_>, dirfd: i32, path: Gva, mode: u32, flags: u32) -> SysResult {
    only(flags, AT_EACCESS | AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)?;
    only(mode, 7)?;
    if flags & AT_EACCESS != 0 {
        return check_access(cx, dirfd, path, mode, flags);
    }
    // The real user is asked for.
    let real = Arc::new(cx.creds().of_real());
    let own = std::mem::replace(&mut cx.thread()?.creds, real);
    let answer = check_access(cx, dirfd, path, mode, flags);
    cx.thread()?.creds = own;
    answer
}

fn check_access(cx: &mut Cx<'_>, dirfd: i32, path: Gva, mode: u32, flags: u32) -> SysResult {
    let found = Target::new("access", dirfd, path).find(cx, flags)?;
    let attr = vfs::attr_of(cx, &found)?;
    let is_content = matches!(attr.kind(), S_IFREG | S_IFDIR | S_IFLNK);
    if mode & MAY_WRITE != 0 && is_content && !is_writable(cx, &found) {
        return Err(Errno::EROFS);
    }
    let no_exec = matches!(found.node, Node::Synth(_)) && !attr.is_dir() && mode & MAY_EXEC != 0;
    if no_exec || !vfs::privilege::permits_found(cx, &found, &attr, mode)? {
        return Err(Errno::EACCES);
    }
    Ok(0)
}

fn is_in_overlay(cx: &Cx<'_>, path: &[u8]) -> bool {
    cx.host.policy.classify(path) == Place::Overlay
}

/// True if what is the host's at `path` can be changed, there or in memory.
fn may_change(cx: &Cx<'_>, path: &[u8]) -> bool {
    let is_free = || guard::guard_of(cx.host, path, None).is_ok_and(|guard| !guard.is_protected());
    is_in_overlay(cx, path) || hosttree::is_writable(cx.host, path) && is_free()
}

/// True if an object is on a file system that can be written.
fn is_writable(cx: &Cx<'_>, found: &Found) -> bool {
    match &found.node {
        Node::Tmp(_) => true,
        Node::Open(file) => cx.kernel.files.get(file).is_some_and(|file| {
            file::is_on_writable_system(&file.kind)
                || file::is_of_host_tree(&file.kind) && may_change(cx, &file.path)
        }),
        Node::Host(..) => may_change(cx, &found.path),
        Node::Synth(_) => false,
    }
}

/// readlink(2)
///
/// # Errors
/// As its man page.
pub fn sys_readlink(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Ptr(buf), Int(size)) = args.decode();
    readlink(cx, AT_FDCWD, path, (buf, size))
}

/// readlinkat(2)
///
/// # Errors
/// As its man page.
pub fn sys_readlinkat(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(dirfd), Str(path), Ptr(buf), Int(size)) = args.decode();
    readlink(cx, dirfd, path, (buf, size))
}

fn readlink(cx: &mut Cx<'_>, dirfd: i32, path: Gva, (buf, size): (Gva, i32)) -> SysResult {
    let size = usize::try_from(size)
        .ok()
        .filter(|size| *size > 0)
        .ok_or(Errno::EINVAL)?;
    // An empty path stands for a link that is open itself, never for the working directory.
    let at_flags = if dirfd == AT_FDCWD {
        AT_SYMLINK_NOFOLLOW
    } else {
        AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH
    };
    let found = Target::new("readlink", dirfd, path).find(cx, at_flags)?;
    let target = link_target(cx, &found)?;
    let kept = target.get(..size).unwrap_or(&target);
    cx.write(buf, kept)?;
    Ok(kept.len() as u64)
}

fn link_target(cx: &mut Cx<'_>, found: &Found) -> Result<Vec<u8>, Errno> {
    let tmp_target = |cx: &Cx<'_>, inode| match &cx.kernel.tmpfs.get(inode)?.body {
        Body::Symlink(target) => Ok(target.to_vec()),
        Body::File(_) | Body::Dir(_) | Body::Fifo | Body::Socket | Body::Special(_) => {
            Err(Errno::EINVAL)
        }
    };
    match &found.node {
        Node::Host(handle, attr) if attr.is_symlink() => handle.read_link(&found.path),
        Node::Tmp(inode) => tmp_target(cx, *inode),
        Node::Synth(Synth::Link(target)) => Ok(target.clone()),
        Node::Synth(Synth::Sealed(errno)) => Err(*errno),
        Node::Synth(Synth::FdLink(file)) => {
            let file = cx.kernel.files.get(file).ok_or(Errno::ENOENT)?;
            Ok(file::link_text(cx, file))
        }
        // An empty path: the descriptor itself, which must be a link opened with O_PATH.
        Node::Open(file) => {
            let kind = &cx.kernel.files.get(file).ok_or(Errno::EBADF)?.kind;
            if let FileKind::Tmp(inode) = *kind {
                return tmp_target(cx, inode).map_err(|_| Errno::ENOENT);
            }
            let FileKind::HostLocation(host) = *kind else {
                return Err(Errno::ENOENT);
            };
            let fd = cx.host.fd(host)?;
            let attr = kvmlet_hostfs::attr_of(fd.as_fd())?;
            if attr.is_symlink() {
                kvmlet_hostfs::read_link(fd.as_fd())
            } else {
                Err(Errno::ENOENT)
            }
        }
        Node::Host(..) | Node::Synth(_) => Err(Errno::EINVAL),
    }
}

/// statfs(2)
///
/// # Errors
/// As its man page.
pub fn sys_statfs(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Ptr(buf)) = args.decode();
    let found = Target::new("statfs", AT_FDCWD, path).find(cx, 0)?;
    let statfs = file_system(cx, found)?;
    cx.write_struct(buf, &statfs)?;
    Ok(0)
}

/// fstatfs(2)
///
/// # Errors
/// As its man page.
pub fn sys_fstatfs(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Ptr(buf)) = args.decode();
    let (id, file) = fd::get(cx, fd)?;
    let found = Found {
        path: file.path.to_vec(),
        node: Node::Open(id),
    };
    let statfs = file_system(cx, found)?;
    cx.write_struct(buf, &statfs)?;
    Ok(0)
}

fn file_system(cx: &mut Cx<'_>, found: Found) -> Result<Statfs, Errno> {
    let own = |kind: i64| Statfs {
        f_type: kind,
        f_bsize: PAGE_SIZE.cast_signed(),
        f_frsize: PAGE_SIZE.cast_signed(),
        f_namelen: MAX_NAME as i64,
        f_flags: ST_RDONLY | ST_NOSUID | ST_NODEV | ST_VALID,
        ..Statfs::default()
    };
    // A file of an overlay that is not changed yet lies on the file system that its change will be on.
    let mut is_tmp = matches!(found.node, Node::Tmp(_)) || is_in_overlay(cx, &found.path);
    let mut store = Store::Disk;
    if let Node::Tmp(inode) = found.node {
        store = cx.kernel.tmpfs.get(inode)?.store;
    }
    match found.node {
        Node::Host(handle, attr) if !is_tmp => {
            let fd = handle.into_location(&found.path, &attr)?;
            return kvmlet_hostfs::file_system(fd.as_fd(), shown(cx, &found.path));
        }
        Node::Open(file) => {
            let kind = cx.kernel.files.get(&file).ok_or(Errno::EBADF)?.kind.clone();
            if let FileKind::Tmp(inode) = kind {
                store = cx.kernel.tmpfs.get(inode)?.store;
            }
            match file::file_system(cx, &kind)? {
                FileSystem::Host(host) if !is_tmp || !file::is_of_host_tree(&kind) => {
                    let shown = match file::is_of_host_tree(&kind) {
                        true => shown(cx, &found.path),
                        false => Shown::ReadOnly,
                    };
                    return kvmlet_hostfs::file_system(cx.host.fd(host)?.as_fd(), shown);
                }
                FileSystem::Pipes => return Ok(own(PIPEFS_MAGIC)),
                FileSystem::Tmp => is_tmp = true,
                FileSystem::Host(_) | FileSystem::OfPath => {}
            }
        }
        Node::Host(..) | Node::Tmp(_) | Node::Synth(_) => {}
    }
    if is_tmp {
        let memory = &cx.machine.memory;
        let most = memory.limit_bytes() / PAGE_SIZE;
        let files = memory.limit_bytes().saturating_sub(memory.resident_bytes()) / PAGE_SIZE;
        let (mut blocks, mut free) = (most, files);
        let tmpfs = &cx.kernel.tmpfs;
        if let Some((limit_bytes, used_bytes)) = tmpfs.disk_bytes()
            && store == Store::Disk
        {
            let left = limit_bytes.saturating_sub(used_bytes) / PAGE_SIZE;
            let limit = limit_bytes / PAGE_SIZE;
            (blocks, free) = match tmpfs.spills() {
                true => (limit, left),
                false => (limit.min(most), left.min(files)),
            };
        }
        return Ok(Statfs {
            f_blocks: blocks,
            f_bfree: free,
            f_bavail: free,
            f_files: most,
            f_ffree: files,
            f_flags: ST_NOSUID | ST_NODEV | ST_VALID,
            ..own(TMPFS_MAGIC)
        });
    }
    match cx.host.policy.classify(&found.path) {
        Place::Proc => Ok(own(PROC_SUPER_MAGIC)),
        Place::Sys if beneath(sysfs::CGROUPS, &found.path) => Ok(own(CGROUP2_SUPER_MAGIC)),
        Place::Sys => Ok(own(SYSFS_MAGIC)),
        Place::Dev | Place::Made => Ok(own(TMPFS_MAGIC)),
        _ => {
            let (fd, _) = cx.host.roots.locate(&found.path)?;
            kvmlet_hostfs::file_system(fd.as_fd(), shown(cx, &found.path))
        }
    }
}

/// The way that a program sees the host's file system at `path`.
fn shown(cx: &Cx<'_>, path: &[u8]) -> Shown {
    if hosttree::is_writable(cx.host, path) {
        Shown::AsMounted
    } else {
        Shown::ReadOnly
    }
}
