//! Changes of the tree: new names, removed names, renames. The memory file system changes, and the host's trees
//! that a program may change itself; elsewhere the answer is EROFS and a recorded denial.

use kvmlet_abi::linux::fcntl::F_SEAL_SEAL;
use kvmlet_abi::linux::{
    fcntl::AT_REMOVEDIR,
    fs::{RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT},
};
use std::sync::Arc;

use kvmlet_abi::{Errno, Gva};
use kvmlet_hostfs::attr::{MAY_WRITE, S_IFBLK, S_IFCHR, S_IFIFO, S_IFMT, S_IFREG, S_IFSOCK};
use kvmlet_hostfs::change::Present;
use kvmlet_policy::join;

use super::{
    AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_FOLLOW, AT_SYMLINK_NOFOLLOW, Target, only, read_path,
};
use crate::cx::Cx;
use crate::kernel::Kernel;
use crate::outcome::SysResult;
use crate::syscalls::args::{Args, Fd, Flags, Mode, Str, Uint};
use crate::vfs::file::{self, Contents};
use crate::vfs::hosttree;
use crate::vfs::notify::{self, Was};
use crate::vfs::open::{IsDir, deny_write, new_attr, writable_directory};
use crate::vfs::overlay;
use crate::vfs::path::CANONICAL_MAX;
use crate::vfs::path::{At, Found, Missing, Node};
use crate::vfs::privilege;
use crate::vfs::tmpfs::{DirData, Exchange, InodeId, NewBody};
use crate::vfs::{self, Dir};

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
    if hosttree::holds(cx.host, &missing.dir) {
        let call = target.call;
        return match body {
            NewBody::Dir => hosttree::mkdir(cx, call, &missing, mode),
            NewBody::File(_) => hosttree::mknod(cx, call, &missing, mode),
            NewBody::Socket => hosttree::make_socket(cx, call, &missing, (mode, None)).map(|_| ()),
            NewBody::Fifo | NewBody::Symlink(_) => hosttree::refuse_special(cx, call, &missing),
        }
        .map(|()| 0);
    }
    let dir = writable_directory(cx, target.call, &missing.dir, &missing.name)?;
    let attr = new_attr(cx, dir, mode, is_dir)?;
    let memory = &mut cx.machine.memory;
    let tmpfs = &mut cx.kernel.tmpfs;
    let inode = tmpfs.create(memory, dir, &missing.name, body, attr)?;
    notify::created(cx, dir, &missing.name, inode);
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
/// As its man page; `EPERM` for devices.
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
        S_IFSOCK => make(cx, target, &NewBody::Socket, mode),
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
    if hosttree::holds(cx.host, &missing.dir) {
        return hosttree::symlink(cx, target.call, &missing, &to).map(|()| 0);
    }
    let dir = writable_directory(cx, target.call, &missing.dir, &missing.name)?;
    let mut attr = new_attr(cx, dir, 0o777, IsDir::No)?;
    attr.mode = 0o777;
    let body = NewBody::Symlink(Arc::from(to));
    let memory = &mut cx.machine.memory;
    let tmpfs = &mut cx.kernel.tmpfs;
    let inode = tmpfs.create(memory, dir, &missing.name, &body, attr)?;
    notify::created(cx, dir, &missing.name, inode);
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
    if is_in_host_tree(cx, &found) {
        return link_on_host(cx, &found, new);
    }
    let source = match found.node {
        Node::Tmp(inode) => Some(inode),
        // With AT_EMPTY_PATH, and through /proc/self/fd: how an O_TMPFILE file gets a name.
        Node::Open(file) => {
            let kind = cx.kernel.files.get(&file).ok_or(Errno::EBADF)?.kind.clone();
            match file::contents(cx, &kind) {
                Contents::Tmp(inode) => Some(inode),
                Contents::Host(_) => overlay::own_path(cx, &found.path)?,
                _ => None,
            }
        }
        Node::Host(..) => overlay::own(cx, &found)?,
        Node::Synth(_) => None,
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
    if !same_tree(cx, &found.path, &missing.dir.path) {
        return Err(Errno::EXDEV);
    }
    let dir = writable_directory(cx, new.call, &missing.dir, &missing.name)?;
    let now = vfs::now(cx.host);
    cx.kernel
        .tmpfs
        .link(&mut cx.machine.memory, dir, &missing.name, source, now)?;
    notify::linked(cx, dir, &missing.name, source);
    Ok(0)
}

/// True if something that was found lies in a host tree that is changed itself.
fn is_in_host_tree(cx: &Cx<'_>, found: &Found) -> bool {
    let is_of_host = match &found.node {
        Node::Host(..) => true,
        Node::Open(file) => {
            let file = cx.kernel.files.get(file);
            file.is_some_and(|file| file::is_of_host_tree(&file.kind))
        }
        Node::Tmp(_) | Node::Synth(_) => false,
    };
    is_of_host && hosttree::is_writable(cx.host, &found.path)
}

fn link_on_host(cx: &mut Cx<'_>, found: &Found, new: Target) -> SysResult {
    let missing = new.to_change().vacant(cx)?;
    if missing.slash {
        return Err(Errno::ENOENT);
    }
    let is_same = same_tree(cx, &found.path, &missing.dir.path);
    if !is_same || !hosttree::holds(cx.host, &missing.dir) {
        return Err(Errno::EXDEV);
    }
    hosttree::link(cx, new.call, found, &missing).map(|()| 0)
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
    if hosttree::holds(cx.host, &missing.dir) {
        return hosttree::rmdir(cx, target.call, &missing).map(|()| 0);
    }
    let dir = removable(cx, target, &missing)?;
    let inode = cx.kernel.tmpfs.lookup(dir, &missing.name)?;
    list_to_replace(cx, inode)?;
    let now = vfs::now(cx.host);
    cx.kernel
        .tmpfs
        .rmdir(&mut cx.machine.memory, dir, &missing.name, now)?;
    notify::removed(cx, (dir, &missing.name), inode, Was::Directory);
    Ok(0)
}

fn unlink(cx: &mut Cx<'_>, target: Target) -> SysResult {
    let missing = target.to_change().parent(cx)?;
    if matches!(missing.name.as_slice(), b"" | b"." | b"..") {
        return Err(Errno::EISDIR);
    }
    if hosttree::holds(cx.host, &missing.dir) {
        return hosttree::unlink(cx, target.call, &missing).map(|()| 0);
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
    notify::removed(cx, (dir, &missing.name), inode, Was::File);
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
    stays(cx, &missing.dir, &missing.name)?;
    let inode = overlay::entry(cx, dir, &missing.name)?;
    privilege::check_delete(cx, dir, inode)?;
    Ok(dir)
}

/// Refuses to move or remove what leads to a visible tree.
fn stays(cx: &Cx<'_>, dir: &At, name: &[u8]) -> Result<(), Errno> {
    if cx.host.policy.holds_mount(&join(&dir.path, name)) {
        Err(Errno::EBUSY)
    } else {
        Ok(())
    }
}

/// True if two paths lie in one file system, as far as they can be changed.
fn same_tree(cx: &Cx<'_>, one: &[u8], other: &[u8]) -> bool {
    let policy = &cx.host.policy;
    policy.tree_of(one) == policy.tree_of(other)
}

/// Before a directory is removed or replaced: only one without names may be.
fn list_to_replace(cx: &mut Cx<'_>, inode: InodeId) -> Result<(), Errno> {
    if cx
        .kernel
        .tmpfs
        .get(inode)?
        .dir()
        .is_ok_and(DirData::is_empty)
    {
        overlay::list(cx, inode)?;
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

/// True if the last component of a path names no entry of its directory.
fn is_special(name: &[u8]) -> bool {
    matches!(name, b"" | b"." | b"..")
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
        (None, None)
            if hosttree::holds(cx.host, &from.dir) && hosttree::holds(cx.host, &to.dir) =>
        {
            return rename_on_host(cx, (&from, &to), flags);
        }
        (None, None) if hosttree::holds(cx.host, &from.dir) => return Err(Errno::EXDEV),
        (None, None) => return Err(deny_write(cx, old.call, &join(&from.dir.path, &from.name))),
        _ => return Err(Errno::EXDEV),
    };
    if is_special(&from.name) {
        return Err(Errno::EBUSY);
    }
    if is_special(&to.name) {
        return Err(if flags & RENAME_NOREPLACE == 0 {
            Errno::EBUSY
        } else {
            Errno::EEXIST
        });
    }
    if !same_tree(cx, &from.dir.path, &to.dir.path) {
        return Err(Errno::EXDEV);
    }
    stays(cx, &from.dir, &from.name)?;
    stays(cx, &to.dir, &to.name)?;
    let source = overlay::entry(cx, source_dir, &from.name)?;
    let target = match overlay::entry(cx, target_dir, &to.name) {
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
    // Before any rights are looked at (do_renameat2 in fs/namei.c).
    if cx.kernel.tmpfs.is_within(source, target_dir)? {
        return Err(Errno::EINVAL);
    }
    if let Some(target) = target
        && cx.kernel.tmpfs.is_within(target, source_dir)?
    {
        return Err(if exchange {
            Errno::EINVAL
        } else {
            Errno::ENOTEMPTY
        });
    }
    privilege::check_delete(cx, source_dir, source)?;
    match target {
        Some(target) => privilege::check_delete(cx, target_dir, target)?,
        None => {
            writable_directory(cx, new.call, &to.dir, &to.name)?;
        }
    }
    // A directory that changes its parent is itself changed: its `..`.
    if source_is_dir && source_dir != target_dir && !privilege::permits(cx, source, MAY_WRITE)? {
        return Err(Errno::EACCES);
    }
    if let Some(target) = target.filter(|target| !exchange && *target != source) {
        list_to_replace(cx, target)?;
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
    let renamed = Renamed {
        old: &join(&from.dir.path, &from.name),
        new: &join(&to.dir.path, &to.name),
        how,
    };
    // Of two names of one object, both stay.
    let follows = source != target.unwrap_or(source) || target.is_none();
    let renamed = follows.then_some(renamed);
    followed(cx, renamed.as_ref(), |cx| {
        let memory = &mut cx.machine.memory;
        cx.kernel.tmpfs.rename(memory, from_name, to_name, how, now)
    })?;
    if follows {
        let replaced = target.filter(|_| !exchange);
        notify::renamed(cx, from_name, to_name, source, replaced);
        if let Some(target) = target.filter(|_| exchange) {
            notify::renamed(cx, to_name, from_name, target, None);
        }
        notify::settle(cx);
    }
    Ok(0)
}

/// Renames something, and has the descriptions follow that remember its path, if there are any that could.
fn followed(
    cx: &mut Cx<'_>,
    renamed: Option<&Renamed<'_>>,
    rename: impl FnOnce(&mut Cx<'_>) -> Result<(), Errno>,
) -> SysResult {
    let (before, after) = renamed.map_or((0, 0), |renamed| renamed.lens(cx.kernel));
    // What only grows a bit in the tree may grow much in the descriptions.
    let charge = cx
        .machine
        .memory
        .charge_kernel(after.saturating_sub(before));
    charge.map_err(|_| Errno::ENOMEM)?;
    if let Err(error) = rename(cx) {
        cx.machine
            .memory
            .uncharge_kernel(after.saturating_sub(before));
        return Err(error);
    }
    cx.machine
        .memory
        .uncharge_kernel(before.saturating_sub(after));
    if let Some(renamed) = renamed {
        renamed.follow(cx.kernel);
    }
    Ok(0)
}

/// A rename in a host tree that is changed itself.
fn rename_on_host(cx: &mut Cx<'_>, (from, to): (&Missing, &Missing), flags: u32) -> SysResult {
    if !same_tree(cx, &from.dir.path, &to.dir.path) {
        return Err(Errno::EXDEV);
    }
    if is_special(&from.name) {
        return Err(Errno::EBUSY);
    }
    if is_special(&to.name) {
        return Err(match flags & RENAME_NOREPLACE {
            0 => Errno::EBUSY,
            _ => Errno::EEXIST,
        });
    }
    let (present, how) = if flags & RENAME_EXCHANGE != 0 {
        (Present::Exchanged, Exchange::Swap)
    } else if flags & RENAME_NOREPLACE != 0 {
        (Present::Kept, Exchange::Replace)
    } else {
        (Present::Replaced, Exchange::Replace)
    };
    let renamed = Renamed {
        old: &join(&from.dir.path, &from.name),
        new: &join(&to.dir.path, &to.name),
        how,
    };
    followed(cx, Some(&renamed), |cx| {
        hosttree::rename(cx, "rename", (from, to), present)
    })
}

/// A name that has become another. Open descriptions remember the path that they were opened by: those at or
/// beneath it follow.
struct Renamed<'a> {
    old: &'a [u8],
    new: &'a [u8],
    how: Exchange,
}

impl Renamed<'_> {
    /// The two parts of the path that `path` becomes, if it does.
    fn moved<'p>(&'p self, path: &'p [u8]) -> Option<[&'p [u8]; 2]> {
        let moved = |from: &[u8], to: &'p [u8]| {
            let rest = path.strip_prefix(from)?;
            (rest.is_empty() || rest.first() == Some(&b'/')).then_some([to, rest])
        };
        let there = moved(self.old, self.new);
        match self.how {
            Exchange::Swap => there.or_else(|| moved(self.new, self.old)),
            _ => there,
        }
    }

    /// Bytes of all paths that follow, before and after.
    fn lens(&self, kernel: &Kernel) -> (u64, u64) {
        kernel.files.values().fold((0, 0), |(before, after), file| {
            let Some(parts) = self.moved(&file.path) else {
                return (before, after);
            };
            let len = parts.iter().map(|part| part.len() as u64).sum();
            let old_len = file.path.len() as u64;
            (before.saturating_add(old_len), after.saturating_add(len))
        })
    }

    fn follow(&self, kernel: &mut Kernel) {
        let changes: Vec<_> = kernel
            .files
            .iter()
            .filter_map(|(id, file)| Some((*id, Arc::from(self.moved(&file.path)?.concat()))))
            .collect();
        for (id, path) in changes {
            if let Some(file) = kernel.files.get_mut(&id) {
                file.path = path;
            }
        }
        let directories: Vec<_> = kernel
            .fs
            .iter()
            .filter_map(|(id, fs)| match &fs.cwd {
                Dir::Path(path) => Some((id, self.moved(path)?.concat())),
                Dir::Tmp(_) => None,
            })
            // Nobody is charged for them.
            .filter(|(_, path)| path.len() <= CANONICAL_MAX)
            .collect();
        for (id, path) in directories {
            if let Some(fs) = kernel.fs.get_mut(id) {
                fs.cwd = Dir::Path(path.into());
            }
        }
    }
}
