//! Changes of the tree: new names, removed names, renames. Only the memory file system changes;
//! elsewhere the answer is EROFS and a recorded denial.

use kvmlet_abi::linux::fcntl::F_SEAL_SEAL;
use kvmlet_abi::linux::{
    fcntl::AT_REMOVEDIR,
    fs::{RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT},
    stat::S_ISVTX,
};
use std::sync::Arc;

use kvmlet_abi::{Errno, Gva};
use kvmlet_hostfs::attr::{
    MAY_EXEC, MAY_WRITE, S_IFBLK, S_IFCHR, S_IFIFO, S_IFMT, S_IFREG, S_IFSOCK,
};
use kvmlet_policy::join;

use super::{
    AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_FOLLOW, AT_SYMLINK_NOFOLLOW, Target, only, read_path,
};
use crate::cx::Cx;
use crate::fd::FileKind;
use crate::outcome::SysResult;
use crate::syscalls::args::{Args, Fd, Flags, Mode, Str, Uint};
use crate::vfs;
use crate::vfs::file::{self, Contents};
use crate::vfs::open::{IsDir, deny_write, new_attr, writable_directory};
use crate::vfs::path::{Missing, Node};
use crate::vfs::tmpfs::{Exchange, InodeId, NewBody};

/// Creates something at a vacant name.
fn make(cx: &mut Cx<'_>, target: Target, body: &NewBody, mode: u32) -> SysResult {
    let missing = target.to_change().vacant(cx)?;
    let is_dir = if *body == NewBody::Dir {
        IsDir::Yes
    } else {
        IsDir::No
    };
    if missing.slash && is_dir == IsDir::No {
        return Err(Errno::ENOENT);
    }
    let dir = writable_directory(cx, target.call, &missing.dir, &missing.name)?;
    let attr = new_attr(cx, dir, mode, is_dir)?;
    cx.kernel
        .tmpfs
        .create(&mut cx.machine.memory, dir, &missing.name, body, attr)?;
    Ok(0)
}

/// mkdir(2)
///
/// # Errors
/// As its man page.
pub fn sys_mkdir(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Mode(mode)) = args.decode();
    make(
        cx,
        Target::new("mkdir", AT_FDCWD, path),
        &NewBody::Dir,
        mode & 0o1777,
    )
}

/// mkdirat(2)
///
/// # Errors
/// As its man page.
pub fn sys_mkdirat(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(dirfd), Str(path), Mode(mode)) = args.decode();
    make(
        cx,
        Target::new("mkdir", dirfd, path),
        &NewBody::Dir,
        mode & 0o1777,
    )
}

/// mknod(2)
///
/// # Errors
/// As its man page; `EPERM` for everything but regular files.
pub fn sys_mknod(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(path), Mode(mode), Uint(_)) = args.decode();
    mknod(cx, Target::new("mknod", AT_FDCWD, path), mode)
}

/// mknodat(2)
///
/// # Errors
/// As [`sys_mknod`].
pub fn sys_mknodat(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(dirfd), Str(path), Mode(mode), Uint(_)) = args.decode();
    mknod(cx, Target::new("mknod", dirfd, path), mode)
}

fn mknod(cx: &mut Cx<'_>, target: Target, mode: u32) -> SysResult {
    match mode & S_IFMT {
        0 | S_IFREG => make(cx, target, &NewBody::File(F_SEAL_SEAL), mode),
        S_IFIFO => make(cx, target, &NewBody::Fifo, mode),
        S_IFSOCK => {
            let missing = target.to_change().vacant(cx)?;
            writable_directory(cx, target.call, &missing.dir, &missing.name)?;
            cx.host.report.unsupported("mknod", "sockets".to_owned());
            Err(Errno::EPERM)
        }
        // Devices need a capability that no program has.
        S_IFCHR | S_IFBLK => Err(Errno::EPERM),
        _ => Err(Errno::EINVAL),
    }
}

/// symlink(2)
///
/// # Errors
/// As its man page.
pub fn sys_symlink(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(to), Str(path)) = args.decode();
    symlink(cx, to, Target::new("symlink", AT_FDCWD, path))
}

/// symlinkat(2)
///
/// # Errors
/// As its man page.
pub fn sys_symlinkat(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(to), Fd(dirfd), Str(path)) = args.decode();
    symlink(cx, to, Target::new("symlink", dirfd, path))
}

fn symlink(cx: &mut Cx<'_>, to: Gva, target: Target) -> SysResult {
    let to = read_path(cx, to)?;
    if to.is_empty() {
        return Err(Errno::ENOENT);
    }
    let missing = target.to_change().vacant(cx)?;
    if missing.slash {
        return Err(Errno::ENOENT);
    }
    let dir = writable_directory(cx, target.call, &missing.dir, &missing.name)?;
    let mut attr = new_attr(cx, dir, 0o777, IsDir::No)?;
    attr.mode = 0o777;
    let body = NewBody::Symlink(Arc::from(to));
    cx.kernel
        .tmpfs
        .create(&mut cx.machine.memory, dir, &missing.name, &body, attr)?;
    Ok(0)
}

/// link(2)
///
/// # Errors
/// As its man page.
pub fn sys_link(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(old), Str(new)) = args.decode();
    link(
        cx,
        Target::new("link", AT_FDCWD, old),
        Target::new("link", AT_FDCWD, new),
        0,
    )
}

/// linkat(2)
///
/// # Errors
/// As its man page.
pub fn sys_linkat(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(old_dir), Str(old), Fd(new_dir), Str(new), Flags(flags)) = args.decode();
    only(flags, AT_SYMLINK_FOLLOW | AT_EMPTY_PATH)?;
    link(
        cx,
        Target::new("link", old_dir, old),
        Target::new("link", new_dir, new),
        flags,
    )
}

fn link(cx: &mut Cx<'_>, old: Target, new: Target, flags: u32) -> SysResult {
    let follow = if flags & AT_SYMLINK_FOLLOW == 0 {
        AT_SYMLINK_NOFOLLOW
    } else {
        0
    };
    let found = old.find(cx, follow | flags & AT_EMPTY_PATH)?;
    let source = match found.node {
        Node::Tmp(inode) => Some(inode),
        // With AT_EMPTY_PATH, and through /proc/self/fd: how an O_TMPFILE file gets a name.
        Node::Open(file) => {
            let kind = cx.kernel.files.get(&file).ok_or(Errno::EBADF)?.kind.clone();
            match file::contents(cx, &kind) {
                Contents::Tmp(inode) => Some(inode),
                _ => None,
            }
        }
        Node::Host(..) | Node::Synth(_) => None,
    };
    let missing = new.to_change().vacant(cx)?;
    if missing.slash {
        return Err(Errno::ENOENT);
    }
    let (Some(source), Some(_)) = (source, missing.dir.tmp) else {
        // Between file systems, or on one that cannot be written.
        return match (source, missing.dir.tmp) {
            (None, None) => Err(deny_write(
                cx,
                new.call,
                &join(&missing.dir.path, &missing.name),
            )),
            _ => Err(Errno::EXDEV),
        };
    };
    let dir = writable_directory(cx, new.call, &missing.dir, &missing.name)?;
    let now = vfs::now(cx.host);
    cx.kernel
        .tmpfs
        .link(&mut cx.machine.memory, dir, &missing.name, source, now)?;
    Ok(0)
}

/// rmdir(2)
///
/// # Errors
/// As its man page.
pub fn sys_rmdir(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Str(path) = args.decode();
    rmdir(cx, Target::new("rmdir", AT_FDCWD, path))
}

/// unlink(2)
///
/// # Errors
/// As its man page.
pub fn sys_unlink(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Str(path) = args.decode();
    unlink(cx, Target::new("unlink", AT_FDCWD, path))
}

/// unlinkat(2)
///
/// # Errors
/// As its man page.
pub fn sys_unlinkat(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(dirfd), Str(path), Flags(flags)) = args.decode();
    only(flags, AT_REMOVEDIR)?;
    if flags & AT_REMOVEDIR == 0 {
        unlink(cx, Target::new("unlink", dirfd, path))
    } else {
        rmdir(cx, Target::new("rmdir", dirfd, path))
    }
}

fn rmdir(cx: &mut Cx<'_>, target: Target) -> SysResult {
    let missing = target.to_change().parent(cx)?;
    match missing.name.as_slice() {
        b"" => return Err(Errno::EBUSY),
        b"." => return Err(Errno::EINVAL),
        b".." => return Err(Errno::ENOTEMPTY),
        _ => {}
    }
    // The mount point of the memory file system itself.
    if *missing.dir.path == *b"/" && missing.name == b"tmp" {
        return Err(Errno::EBUSY);
    }
    let dir = removable(cx, target, &missing)?;
    let now = vfs::now(cx.host);
    cx.kernel
        .tmpfs
        .rmdir(&mut cx.machine.memory, dir, &missing.name, now)?;
    Ok(0)
}

fn unlink(cx: &mut Cx<'_>, target: Target) -> SysResult {
    let missing = target.to_change().parent(cx)?;
    if matches!(missing.name.as_slice(), b"" | b"." | b"..") {
        return Err(Errno::EISDIR);
    }
    let dir = removable(cx, target, &missing)?;
    let inode = cx.kernel.tmpfs.lookup(dir, &missing.name)?;
    if missing.slash && cx.kernel.tmpfs.get(inode)?.dir().is_err() {
        return Err(Errno::ENOTDIR);
    }
    let now = vfs::now(cx.host);
    cx.kernel
        .tmpfs
        .unlink(&mut cx.machine.memory, dir, &missing.name, now)?;
    Ok(0)
}

/// The directory that an existing name may be taken out of (may_delete in fs/namei.c).
fn removable(cx: &mut Cx<'_>, target: Target, missing: &Missing) -> Result<InodeId, Errno> {
    let Some(dir) = missing.dir.tmp else {
        return Err(deny_write(
            cx,
            target.call,
            &join(&missing.dir.path, &missing.name),
        ));
    };
    let inode = cx.kernel.tmpfs.lookup(dir, &missing.name)?;
    check_delete(cx, dir, inode)?;
    Ok(dir)
}

fn check_delete(cx: &Cx<'_>, dir: InodeId, inode: InodeId) -> Result<(), Errno> {
    let uid = cx.host.credentials.uid;
    let parent = cx.kernel.tmpfs.attr(dir)?;
    if !parent.grants(&cx.host.credentials, MAY_WRITE | MAY_EXEC) {
        return Err(Errno::EACCES);
    }
    let owner = cx.kernel.tmpfs.get(inode)?.uid;
    if parent.mode & S_ISVTX != 0 && uid != owner && uid != parent.uid {
        return Err(Errno::EPERM);
    }
    Ok(())
}

/// rename(2)
///
/// # Errors
/// As its man page.
pub fn sys_rename(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(old), Str(new)) = args.decode();
    rename(
        cx,
        Target::new("rename", AT_FDCWD, old),
        Target::new("rename", AT_FDCWD, new),
        0,
    )
}

/// renameat(2)
///
/// # Errors
/// As its man page.
pub fn sys_renameat(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(old_dir), Str(old), Fd(new_dir), Str(new)) = args.decode();
    rename(
        cx,
        Target::new("rename", old_dir, old),
        Target::new("rename", new_dir, new),
        0,
    )
}

/// renameat2(2)
///
/// # Errors
/// As its man page.
pub fn sys_renameat2(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(old_dir), Str(old), Fd(new_dir), Str(new), Flags(flags)) = args.decode();
    let (old, new) = (
        Target::new("rename", old_dir, old),
        Target::new("rename", new_dir, new),
    );
    rename(cx, old, new, flags)
}

fn rename(cx: &mut Cx<'_>, old: Target, new: Target, flags: u32) -> SysResult {
    only(flags, RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT)?;
    let exchange = flags & RENAME_EXCHANGE != 0;
    if exchange && flags & (RENAME_NOREPLACE | RENAME_WHITEOUT) != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & RENAME_WHITEOUT != 0 {
        // Needs a capability (CAP_MKNOD) that no program has.
        return Err(Errno::EPERM);
    }
    let from = old.to_change().parent(cx)?;
    let to = new.to_change().parent(cx)?;
    let (source_dir, target_dir) = match (from.dir.tmp, to.dir.tmp) {
        (Some(source), Some(target)) => (source, target),
        (None, None) => return Err(deny_write(cx, old.call, &join(&from.dir.path, &from.name))),
        _ => return Err(Errno::EXDEV),
    };
    let special = |name: &[u8]| matches!(name, b"" | b"." | b"..");
    if special(&from.name) {
        return Err(Errno::EBUSY);
    }
    if special(&to.name) {
        return Err(if flags & RENAME_NOREPLACE == 0 {
            Errno::EBUSY
        } else {
            Errno::EEXIST
        });
    }
    let source = cx.kernel.tmpfs.lookup(source_dir, &from.name)?;
    let target = match cx.kernel.tmpfs.lookup(target_dir, &to.name) {
        Ok(target) => Some(target),
        Err(Errno::ENOENT) => None,
        Err(error) => return Err(error),
    };
    if flags & RENAME_NOREPLACE != 0 && target.is_some() {
        return Err(Errno::EEXIST);
    }
    let is_dir = |cx: &Cx<'_>, inode: InodeId| {
        cx.kernel
            .tmpfs
            .get(inode)
            .is_ok_and(|inode| inode.dir().is_ok())
    };
    let source_is_dir = is_dir(cx, source);
    if !source_is_dir && (from.slash || !exchange && to.slash) {
        return Err(Errno::ENOTDIR);
    }
    if exchange && to.slash && target.is_some_and(|target| !is_dir(cx, target)) {
        return Err(Errno::ENOTDIR);
    }
    check_delete(cx, source_dir, source)?;
    match target {
        Some(target) => check_delete(cx, target_dir, target)?,
        None => {
            writable_directory(cx, new.call, &to.dir, &to.name)?;
        }
    }
    // A directory that changes its parent is itself changed: its `..`.
    if source_is_dir
        && source_dir != target_dir
        && !cx
            .kernel
            .tmpfs
            .attr(source)?
            .grants(&cx.host.credentials, MAY_WRITE)
    {
        return Err(Errno::EACCES);
    }
    let now = vfs::now(cx.host);
    let how = if exchange {
        Exchange::Swap
    } else {
        Exchange::Replace
    };
    let (from_name, to_name) = (
        (source_dir, from.name.as_slice()),
        (target_dir, to.name.as_slice()),
    );
    cx.kernel
        .tmpfs
        .rename(&mut cx.machine.memory, from_name, to_name, how, now)?;
    let (old_path, new_path) = (
        join(&from.dir.path, &from.name),
        join(&to.dir.path, &to.name),
    );
    if source != target.unwrap_or(source) || target.is_none() {
        renamed(cx, &old_path, &new_path, how);
    }
    Ok(0)
}

/// Open descriptions remember the path they were opened by: those at or beneath a renamed path follow.
fn renamed(cx: &mut Cx<'_>, old: &[u8], new: &[u8], how: Exchange) {
    let moved = |path: &[u8], from: &[u8], to: &[u8]| {
        let rest = path
            .strip_prefix(from)
            .filter(|rest| rest.is_empty() || rest.first() == Some(&b'/'))?;
        Some(Arc::<[u8]>::from([to, rest].concat()))
    };
    let changes: Vec<_> = cx
        .kernel
        .files
        .iter()
        .filter(|(_, file)| matches!(file.kind, FileKind::Tmp(_)))
        .filter_map(|(id, file)| {
            let there = moved(&file.path, old, new);
            let path = if how == Exchange::Swap {
                there.or_else(|| moved(&file.path, new, old))
            } else {
                there
            };
            Some((*id, path?))
        })
        .collect();
    for (id, path) in changes {
        if let Some(file) = cx.kernel.files.get_mut(&id) {
            file.path = path;
        }
    }
}
