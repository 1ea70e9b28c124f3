//! Sizes and durability: ftruncate, fallocate, fsync and hints.

use kvmlet_abi::linux::inotify::IN_MODIFY;
use kvmlet_abi::linux::{
    fadvise::POSIX_FADV_NOREUSE,
    falloc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE},
};
use kvmlet_abi::{Errno, PAGE_SIZE};

use kvmlet_hostfs::{Shown, change};
use std::os::fd::AsFd;

use crate::cx::Cx;
use crate::fd::{self, FileId, OpenFile};
use crate::host::HostId;
use crate::outcome::{CallState, Outcome, SysResult};
use crate::syscalls::args::{Args, Fd, Flags, Int, Len, Offset};
use crate::vfs::file::{self, Ranges, Synced};
use crate::vfs::notify;
use crate::vfs::tmpfs::{InodeId, KeepSize};
use crate::vfs::{self, size_limit};

/// ftruncate(2)
///
/// # Errors
/// As its man page.
pub fn sys_ftruncate(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Len(size)) = args.decode();
    let size = i64::try_from(size)
        .map_err(|_| Errno::EINVAL)?
        .cast_unsigned();
    let (id, file) = fd::get_io(cx, fd)?;
    if !file.flags.writable() {
        return Err(Errno::EINVAL);
    }
    size_limit::check_size(cx, &file.kind, size).map_err(not_a_file)?;
    file::set_size(cx, &file.kind, size).map_err(not_a_file)?;
    notify::of_file(cx, id, IN_MODIFY);
    Ok(0)
}

fn not_a_file(error: Errno) -> Errno {
    if error == Errno::EISDIR {
        Errno::EINVAL
    } else {
        error
    }
}

/// fallocate(2): `EOPNOTSUPP` for the modes that tmpfs has not.
pub fn sys_fallocate(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    match fallocate(cx, args, state) {
        Ok((id, outcome)) => {
            if matches!(outcome, Outcome::Done(Ok(_))) {
                notify::of_file(cx, id, IN_MODIFY);
            }
            outcome
        }
        Err(error) => Outcome::Done(Err(error)),
    }
}

fn fallocate(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Result<(FileId, Outcome), Errno> {
    /// Every mode Linux knows.
    const KNOWN: u32 = 0x7f;
    let (Fd(fd), Flags(mode), Offset(offset), Len(len)) = args.decode();
    let (id, file) = fd::get_io(cx, fd)?;
    let (Ok(start), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
        return Err(Errno::EINVAL);
    };
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    if mode & !KNOWN != 0 || mode & FALLOC_FL_PUNCH_HOLE != 0 && mode & FALLOC_FL_KEEP_SIZE == 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    if !file.flags.writable() {
        return Err(Errno::EBADF);
    }
    let inode = match file::ranges(&file.kind) {
        Ranges::Tmp(inode) => inode,
        Ranges::Host(host) => {
            let range = (start.cast_unsigned(), len.cast_unsigned());
            let outcome = allocate_on_host(cx, (host, &file), mode, range, state)?;
            return Ok((id, outcome));
        }
        Ranges::Pipe => return Err(Errno::ESPIPE),
        Ranges::Directory | Ranges::None => return Err(Errno::ENODEV),
    };
    cx.kernel.tmpfs.size(inode).map_err(|_| Errno::ENODEV)?;
    let end = start.checked_add(len).ok_or(Errno::EFBIG)?;
    let range = (start.cast_unsigned(), end.cast_unsigned());
    if matches!(mode, 0 | FALLOC_FL_KEEP_SIZE) {
        size_limit::check_size(cx, &file.kind, range.1)?;
    }
    let outcome = match mode {
        0 => allocate(cx, inode, range, KeepSize::No, state),
        FALLOC_FL_KEEP_SIZE => allocate(cx, inode, range, KeepSize::Yes, state),
        m if m == FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE => punch_hole(cx, inode, range, state),
        _ => Err(Errno::EOPNOTSUPP),
    };
    outcome.map(|outcome| (id, outcome))
}

fn allocate(
    cx: &mut Cx<'_>,
    inode: InodeId,
    (start, end): (u64, u64),
    keep_size: KeepSize,
    state: &CallState,
) -> Result<Outcome, Errno> {
    /// Bytes that get memory between two looks at the budget.
    const PIECE_BYTES: u64 = 2 << 20;
    let now = vfs::now(cx.host);
    let (memory, tmpfs) = (&mut cx.machine.memory, &mut cx.kernel.tmpfs);
    let mut done = state.progress;
    if done == 0 {
        tmpfs.check_allocation(memory, inode, (start, end))?;
    }
    loop {
        let at = start.saturating_add(done);
        let stop = at.saturating_add(PIECE_BYTES).min(end);
        tmpfs.allocate(memory, inode, (at, stop), keep_size, now)?;
        done = stop.saturating_sub(start);
        if stop >= end {
            return Ok(Outcome::Done(Ok(0)));
        }
        if cx.host.budget.is_spent() {
            return Ok(Outcome::Again(state.kept(done)));
        }
    }
}

fn punch_hole(
    cx: &mut Cx<'_>,
    inode: InodeId,
    (start, end): (u64, u64),
    state: &CallState,
) -> Result<Outcome, Errno> {
    /// Pages of the host's that are copied between two looks at the budget.
    const PIECE_PAGES: u64 = 512;
    let (memory, tmpfs) = (&mut cx.machine.memory, &mut cx.kernel.tmpfs);
    let mut from = state.progress;
    // Parts of pages are zeroed, which hides nothing.
    let has_pages = start.div_ceil(PAGE_SIZE) < end / PAGE_SIZE;
    while has_pages
        && let Some(next) = tmpfs.copy_behind(memory, inode, (end, from, PIECE_PAGES))?
    {
        from = next;
        if cx.host.budget.is_spent() {
            return Ok(Outcome::Again(state.kept(from)));
        }
    }
    let now = vfs::now(cx.host);
    let stale = tmpfs.punch_hole(memory, inode, start, end, now)?;
    vfs::drop_mappings(cx, inode, &stale)?;
    Ok(Outcome::Done(Ok(0)))
}

/// fallocate(2) of a host file: only what the memory file system has too.
fn allocate_on_host(
    cx: &mut Cx<'_>,
    (host, file): (HostId, &OpenFile),
    mode: u32,
    (start, len): (u64, u64),
    state: &CallState,
) -> Result<Outcome, Errno> {
    /// Bytes that get room between two looks at the budget.
    const PIECE_BYTES: u64 = 256 << 20;
    const PUNCH: u32 = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    if !matches!(mode, 0 | FALLOC_FL_KEEP_SIZE | PUNCH) {
        return Err(Errno::EOPNOTSUPP);
    }
    let end = start
        .checked_add(len)
        .filter(|end| i64::try_from(*end).is_ok())
        .ok_or(Errno::EFBIG)?;
    let mut done = state.progress;
    if mode != PUNCH && done == 0 {
        size_limit::check_size(cx, &file.kind, end)?;
        // One that cannot end well does not begin: the pieces would fill the disk first.
        let fd = cx.host.fd(host)?;
        let system = kvmlet_hostfs::file_system(fd.as_fd(), Shown::AsMounted)?;
        let room = system
            .f_blocks
            .saturating_mul(system.f_bsize.unsigned_abs());
        if room > 0 && len > room {
            return Err(Errno::ENOSPC);
        }
    }
    loop {
        let at = start.saturating_add(done);
        let piece = end.saturating_sub(at).min(PIECE_BYTES);
        // All there is to take away lies before the end of the file: one step.
        let piece = if mode == PUNCH {
            end.saturating_sub(at)
        } else {
            piece
        };
        change::allocate(cx.host.get(host)?, mode, at, piece)?;
        done = done.saturating_add(piece);
        if done >= len {
            return Ok(Outcome::Done(Ok(0)));
        }
        if cx.host.budget.is_spent() {
            return Ok(Outcome::Again(state.kept(done)));
        }
    }
}

/// fsync(2)
///
/// # Errors
/// `EBADF`, `EINVAL` for what cannot be synchronised.
pub fn sys_fsync(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Fd(fd) = args.decode();
    sync(cx, fd, Synced::All)
}

fn sync(cx: &mut Cx<'_>, fd: i32, synced: Synced) -> SysResult {
    let (_, file) = fd::get_io(cx, fd)?;
    file::sync(cx, &file, synced)?;
    Ok(0)
}

/// fdatasync(2)
///
/// # Errors
/// As [`sys_fsync`].
pub fn sys_fdatasync(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Fd(fd) = args.decode();
    sync(cx, fd, Synced::Data)
}

/// sync(2): memory is not cached.
/// Linux differs: what was written to host trees reaches the disk when the host writes it, or by fsync(2).
///
/// # Errors
/// None.
pub fn sys_sync(_cx: &mut Cx<'_>, _args: &Args) -> SysResult {
    Ok(0)
}

/// syncfs(2)
///
/// # Errors
/// `EBADF`.
pub fn sys_syncfs(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Fd(fd) = args.decode();
    fd::get_io(cx, fd)?;
    Ok(0)
}

/// sync_file_range(2)
///
/// # Errors
/// `EINVAL`, `ESPIPE`, `EBADF`.
pub fn sys_sync_file_range(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Offset(offset), Len(len), Flags(flags)) = args.decode();
    let (_, file) = fd::get_io(cx, fd)?;
    let (Ok(start), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
        return Err(Errno::EINVAL);
    };
    if flags & !7 != 0 || start.checked_add(len).is_none() {
        return Err(Errno::EINVAL);
    }
    match file::ranges(&file.kind) {
        Ranges::Host(_) | Ranges::Directory | Ranges::Tmp(_) => Ok(0),
        Ranges::Pipe | Ranges::None => Err(Errno::ESPIPE),
    }
}

/// fadvise64(2): a hint that changes nothing here.
///
/// # Errors
/// `EINVAL` for unknown advice, `ESPIPE` for a pipe, `EBADF`.
pub fn sys_fadvise64(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Offset(_), Len(len), Int(advice)) = args.decode();
    let (_, file) = fd::get_io(cx, fd)?;
    if file::ranges(&file.kind) == Ranges::Pipe {
        return Err(Errno::ESPIPE);
    }
    if len.cast_signed() < 0 || !(0..=POSIX_FADV_NOREUSE).contains(&advice) {
        return Err(Errno::EINVAL);
    }
    Ok(0)
}

/// readahead(2): a hint that changes nothing here.
///
/// # Errors
/// `EBADF`, `EINVAL` for what is no regular file.
pub fn sys_readahead(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Offset(_), Len(_)) = args.decode();
    let (_, file) = fd::get_io(cx, fd)?;
    if !file.flags.readable() {
        return Err(Errno::EBADF);
    }
    match file::ranges(&file.kind) {
        Ranges::Host(_) => Ok(0),
        Ranges::Tmp(inode) if cx.kernel.tmpfs.size(inode).is_ok() => Ok(0),
        Ranges::Tmp(_) | Ranges::Directory | Ranges::Pipe | Ranges::None => Err(Errno::EINVAL),
    }
}
