//! Working directory and directory contents.

use std::os::fd::AsFd;
use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_hostfs::attr::{MAY_EXEC, S_IFDIR, d_type};
use kvmlet_hostfs::{Listing, PATH_MAX};
use kvmlet_policy::parent;

use super::{AT_FDCWD, Target};
use crate::cx::Cx;
use crate::fd::{self, FileId, FileKind, OpenFile, SynthNames};
use crate::host::HostId;
use crate::outcome::SysResult;
use crate::syscalls::args::{Args, Fd, Len, Ptr, Str, Uint};
use crate::vfs::file::{self, Names};
use crate::vfs::path::{At, Node};
use crate::vfs::privilege;
use crate::vfs::synth::{entry_number, inode_number};
use crate::vfs::tmpfs::InodeId;
use crate::vfs::{self, Dir, notify, overlay, synth};

/// getcwd(2): the length with the NUL.
///
/// # Errors
/// `ERANGE`, `ENOENT` for a removed directory, `ENAMETOOLONG`, `EFAULT`.
pub fn sys_getcwd(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Ptr(buf), Len(size)) = args.decode();
    let mut path = match cx.fs()?.cwd.clone() {
        Dir::Path(path) => path.to_vec(),
        Dir::Tmp(inode) => cx.kernel.tmpfs.path_of(inode)?,
    };
    if path.len() >= PATH_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    path.push(0);
    if size < path.len() as u64 {
        return Err(Errno::ERANGE);
    }
    cx.write(buf, &path)?;
    Ok(path.len() as u64)
}

/// chdir(2)
///
/// # Errors
/// As its man page.
pub fn sys_chdir(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Str(path) = args.decode();
    let found = Target::new("chdir", AT_FDCWD, path).find(cx, 0)?;
    let attr = vfs::attr_of(cx, &found)?;
    if !attr.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    if !privilege::permits_found(cx, &found, &attr, MAY_EXEC)? {
        return Err(Errno::EACCES);
    }
    let tmp = match found.node {
        Node::Tmp(inode) => Some(inode),
        Node::Open(file) => {
            let file = cx.kernel.files.get(&file).ok_or(Errno::EBADF)?.clone();
            let dir = vfs::file::directory(cx, &file).ok_or(Errno::ENOTDIR)?;
            vfs::set_cwd(cx, dir)?;
            return Ok(0);
        }
        Node::Host(..) | Node::Synth(_) => None,
    };
    vfs::set_cwd(
        cx,
        At {
            path: found.path.into(),
            tmp,
        }
        .dir(),
    )?;
    Ok(0)
}

/// fchdir(2)
///
/// # Errors
/// `EBADF`, `ENOTDIR`, `EACCES`.
pub fn sys_fchdir(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Fd(fd) = args.decode();
    let (id, file) = fd::get(cx, fd)?;
    let dir = vfs::file::directory(cx, &file).ok_or(Errno::ENOTDIR)?;
    let attr = vfs::file::attr(cx, id)?;
    if !privilege::permits_open(cx, id, &attr, MAY_EXEC)? {
        return Err(Errno::EACCES);
    }
    vfs::set_cwd(cx, dir)?;
    Ok(0)
}

/// An entry's layout in the buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// struct linux_dirent64
    Dirent64,
    /// struct linux_dirent
    Dirent,
}

/// One directory entry to be reported.
struct Entry<'a> {
    ino: u64,
    /// Cursor of the next entry.
    next: u64,
    kind: u8,
    name: &'a [u8],
}

impl Layout {
    /// Appends an entry if it fits into `room` bytes.
    fn put(self, out: &mut Vec<u8>, room: usize, entry: &Entry<'_>) -> bool {
        // Both have 8 + 8 + 2 bytes before what differs, and one byte of type and a NUL.
        let len = entry.name.len().saturating_add(20).next_multiple_of(8);
        let end = out.len().saturating_add(len);
        let Ok(record) = u16::try_from(len) else {
            return false;
        };
        if end > room {
            return false;
        }
        out.extend_from_slice(&entry.ino.to_le_bytes());
        out.extend_from_slice(&entry.next.to_le_bytes());
        out.extend_from_slice(&record.to_le_bytes());
        if self == Self::Dirent64 {
            out.push(entry.kind);
        }
        out.extend_from_slice(entry.name);
        out.resize(end, 0);
        if self == Self::Dirent
            && let Some(last) = out.last_mut()
        {
            *last = entry.kind;
        }
        true
    }
}

/// getdents64(2)
///
/// # Errors
/// As its man page.
pub fn sys_getdents64(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    getdents(cx, args, Layout::Dirent64)
}

/// getdents(2)
///
/// # Errors
/// As its man page.
pub fn sys_getdents(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    getdents(cx, args, Layout::Dirent)
}

fn getdents(cx: &mut Cx<'_>, args: &Args, layout: Layout) -> SysResult {
    /// Most bytes answered at once, whatever the buffer's size.
    const ANSWER_MAX: usize = 64 << 10;
    let (Fd(fd), Ptr(buf), Uint(size)) = args.decode();
    let (id, file) = fd::get_io(cx, fd)?;
    let room = (size as usize).min(ANSWER_MAX);
    let mut out = Vec::new();
    let mut cursor = file.offset;
    let full = list(cx, (id, &file), &mut cursor, |entry| {
        layout.put(&mut out, room, entry)
    })?;
    notify::listed(cx, id);
    if out.is_empty() {
        return if full { Err(Errno::EINVAL) } else { Ok(0) };
    }
    cx.write(buf, &out)?;
    fd::file_mut(cx, id)?.offset = cursor;
    touch(cx, id);
    Ok(out.len() as u64)
}

fn touch(cx: &mut Cx<'_>, id: FileId) {
    if let Some(FileKind::Tmp(inode)) = cx.kernel.files.get(&id).map(|file| file.kind.clone()) {
        let now = vfs::now(cx.host);
        cx.kernel.tmpfs.accessed(inode, now);
    }
}

/// Gives the entries from `cursor` on to `put` until it refuses one; whether it did.
fn list(
    cx: &mut Cx<'_>,
    (id, file): (FileId, &OpenFile),
    cursor: &mut u64,
    mut put: impl FnMut(&Entry<'_>) -> bool,
) -> Result<bool, Errno> {
    let dir = vfs::file::directory(cx, file).ok_or(Errno::ENOTDIR)?;
    if *cursor < 2 {
        let (own, above) = dot_numbers(cx, file, &dir)?;
        let directory = d_type(S_IFDIR);
        for (at, ino, name) in [(0, own, b".".as_slice()), (1, above, b"..")] {
            if *cursor == at {
                let next = at.saturating_add(1);
                if !put(&Entry {
                    ino,
                    next,
                    kind: directory,
                    name,
                }) {
                    return Ok(true);
                }
                *cursor = next;
            }
        }
    }
    match file::names(&file.kind) {
        Names::Tmp(inode) => list_tmp(cx, inode, cursor, put),
        Names::Host(host) => {
            let listing = host_listing(cx, host, *cursor)?;
            Ok(list_from(listing.from(number_at(*cursor)), cursor, put))
        }
        Names::Synth => {
            let entries = synth_entries(cx, id, *cursor)?;
            let entries = entries
                .iter()
                .skip(number_at(*cursor))
                .map(|(name, kind)| (entry_number(&file.path, name), *kind, name.as_slice()));
            Ok(list_from(entries, cursor, put))
        }
        Names::None => Err(Errno::ENOTDIR),
    }
}

/// The number of the entry at a cursor: the first after `.` and `..` is at 2.
fn number_at(cursor: u64) -> usize {
    usize::try_from(cursor.saturating_sub(2)).unwrap_or(usize::MAX)
}

/// Gives the entries at the cursor, numbered one by one.
fn list_from<'a>(
    entries: impl Iterator<Item = (u64, u8, &'a [u8])>,
    cursor: &mut u64,
    mut put: impl FnMut(&Entry<'_>) -> bool,
) -> bool {
    for (ino, kind, name) in entries {
        let next = cursor.saturating_add(1);
        if !put(&Entry {
            ino,
            next,
            kind,
            name,
        }) {
            return true;
        }
        *cursor = next;
    }
    false
}

fn list_tmp(
    cx: &mut Cx<'_>,
    inode: InodeId,
    cursor: &mut u64,
    mut put: impl FnMut(&Entry<'_>) -> bool,
) -> Result<bool, Errno> {
    if *cursor <= 2 {
        overlay::list(cx, inode)?;
    }
    for listed in cx.kernel.tmpfs.list_from(inode, *cursor)? {
        let next = listed.cursor.saturating_add(1);
        if !put(&Entry {
            ino: listed.ino,
            next,
            kind: listed.kind,
            name: listed.name,
        }) {
            return Ok(true);
        }
        *cursor = next;
    }
    Ok(false)
}

/// A synthetic directory's names as they were when it was last read from its start.
fn synth_entries(cx: &mut Cx<'_>, id: FileId, cursor: u64) -> Result<SynthNames, Errno> {
    let path = Arc::clone(&fd::file_mut(cx, id)?.path);
    let fresh: Option<SynthNames> = (cursor <= 2).then(|| Arc::from(synth::list(cx, &path)));
    let file = cx.kernel.files.get_mut(&id).ok_or(Errno::EBADF)?;
    let FileKind::SynthDir(entries) = &mut file.kind else {
        return Err(Errno::ENOTDIR);
    };
    if let Some(fresh) = fresh {
        let memory = &mut cx.machine.memory;
        let charged = memory.charge_kernel(fd::names_cost_bytes(&fresh));
        charged.map_err(|_| Errno::ENOMEM)?;
        memory.uncharge_kernel(fd::names_cost_bytes(entries));
        *entries = fresh;
    }
    Ok(Arc::clone(entries))
}

/// The part of a host directory's names that the cursor is in, as they were when it was last read from
/// its start.
fn host_listing(cx: &mut Cx<'_>, host: HostId, cursor: u64) -> Result<Arc<Listing>, Errno> {
    let number = number_at(cursor);
    let file = cx.host.get(host)?;
    // Cursor 2 follows `..`: the first entry is about to be given.
    let kept = file.listing.as_ref().filter(|_| cursor > 2);
    let start = match kept.filter(|kept| kept.starts_by(number)) {
        Some(kept) => Arc::clone(kept),
        None => Arc::new(kvmlet_hostfs::list(file.fd.as_fd())?),
    };
    let listing = start.reach(file.fd.as_fd(), number)?;
    if !kept.is_some_and(|kept| Arc::ptr_eq(kept, &listing)) {
        cx.host.keep_listing(host, &listing);
    }
    Ok(listing)
}

/// Inode numbers of `.` and `..`.
fn dot_numbers(cx: &mut Cx<'_>, file: &OpenFile, dir: &Dir) -> Result<(u64, u64), Errno> {
    if let Dir::Tmp(inode) = dir {
        let tmpfs = &cx.kernel.tmpfs;
        let above = tmpfs.get(*inode)?.dir()?.parent;
        return Ok((tmpfs.get(*inode)?.ino, tmpfs.get(above)?.ino));
    }
    let number = |cx: &Cx<'_>, path: &[u8]| {
        cx.host
            .roots
            .locate(path)
            .map_or_else(|_| inode_number(path), |(_, attr)| attr.ino)
    };
    let own = match file::host(&file.kind) {
        Some(host) => kvmlet_hostfs::attr_of(cx.host.get(host)?.fd.as_fd())?.ino,
        None => inode_number(&file.path),
    };
    Ok((own, number(cx, parent(&file.path))))
}
