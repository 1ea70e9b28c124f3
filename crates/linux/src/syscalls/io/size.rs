//! Sizes and durability: ftruncate, fallocate, fsync and hints.

use kvmlet_abi::Errno;
use kvmlet_abi::linux::{
    fadvise::POSIX_FADV_NOREUSE,
    falloc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE},
};

use crate::cx::Cx;
use crate::fd;
use crate::outcome::{CallState, Outcome, SysResult};
use crate::syscalls::args::{Args, Fd, Flags, Int, Len, Offset};
use crate::vfs::file::{self, Ranges};
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
    let (_, file) = fd::get_io(cx, fd)?;
    if !file.flags.writable() {
        return Err(Errno::EINVAL);
    }
    size_limit::check_size(cx, &file.kind, size).map_err(not_a_file)?;
    file::set_size(cx, &file.kind, size).map_err(not_a_file)?;
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
    fallocate(cx, args, state).unwrap_or_else(|error| Outcome::Done(Err(error)))
}

fn fallocate(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Result<Outcome, Errno> {
    /// Every mode Linux knows.
    const KNOWN: u32 = 0x7f;
    let (Fd(fd), Flags(mode), Offset(offset), Len(len)) = args.decode();
    let (_, file) = fd::get_io(cx, fd)?;
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
        Ranges::Pipe => return Err(Errno::ESPIPE),
        Ranges::ReadOnly | Ranges::Directory | Ranges::None => return Err(Errno::ENODEV),
    };
    cx.kernel.tmpfs.size(inode).map_err(|_| Errno::ENODEV)?;
    let end = start.checked_add(len).ok_or(Errno::EFBIG)?;
    let range = (start.cast_unsigned(), end.cast_unsigned());
    if matches!(mode, 0 | FALLOC_FL_KEEP_SIZE) {
        size_limit::check_size(cx, &file.kind, range.1)?;
    }
    match mode {
        0 => allocate(cx, inode, range, KeepSize::No, state),
        FALLOC_FL_KEEP_SIZE => allocate(cx, inode, range, KeepSize::Yes, state),
        m if m == FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE => {
            let now = vfs::now(cx.host);
            let (start, end) = range;
            let stale =
                cx.kernel
                    .tmpfs
                    .punch_hole(&mut cx.machine.memory, inode, start, end, now)?;
            vfs::drop_mappings(cx, inode, &stale)?;
            Ok(Outcome::Done(Ok(0)))
        }
        _ => Err(Errno::EOPNOTSUPP),
    }
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

/// fsync(2)
///
/// # Errors
/// `EBADF`, `EINVAL` for what cannot be synchronised.
pub fn sys_fsync(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Fd(fd) = args.decode();
    sync(cx, fd)
}

fn sync(cx: &mut Cx<'_>, fd: i32) -> SysResult {
    let (_, file) = fd::get_io(cx, fd)?;
    file::sync(cx, &file.kind)?;
    Ok(0)
}

/// fdatasync(2)
///
/// # Errors
/// As [`sys_fsync`].
pub fn sys_fdatasync(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Fd(fd) = args.decode();
    sync(cx, fd)
}

/// sync(2): nothing that a program can write is cached.
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
        Ranges::ReadOnly | Ranges::Directory | Ranges::Tmp(_) => Ok(0),
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
        Ranges::ReadOnly => Ok(0),
        Ranges::Tmp(inode) if cx.kernel.tmpfs.size(inode).is_ok() => Ok(0),
        Ranges::Tmp(_) | Ranges::Directory | Ranges::Pipe | Ranges::None => Err(Errno::EINVAL),
    }
}
