//! read(2), write(2), their vector and positioned forms, lseek(2).

use kvmlet_abi::linux::fs::{
    RWF_APPEND, RWF_DSYNC, RWF_HIPRI, RWF_NOAPPEND, RWF_NOWAIT, RWF_SYNC, SEEK_CUR, SEEK_DATA,
    SEEK_END, SEEK_HOLE, SEEK_SET,
};
use std::os::fd::AsFd;

use kvmlet_abi::Errno;
use kvmlet_hostfs::stream::{self, SeekTo};

use super::transfer::{self, Append, Buffers, Position, Waiting};
use crate::cx::Cx;
use crate::fd::{self, OpenFile, OpenFlags};
use crate::outcome::{CallState, Outcome, SysResult};
use crate::syscalls::args::{Args, Fd, Flags, Len, Offset, Ptr, Uint};
use crate::vfs::file::{self, Contents, Positions};
use crate::vfs::tmpfs::Seek;

/// Hints, and promises that memory keeps anyway.
const RWF_PLAIN: u32 = RWF_HIPRI | RWF_DSYNC | RWF_SYNC;

/// read(2)
pub fn sys_read(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(buf), Len(count)) = args.decode();
    transfer::read(
        cx,
        fd,
        Buffers::one(buf, count),
        Position::Current,
        Waiting::Allowed,
        state,
    )
}

/// write(2)
pub fn sys_write(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(buf), Len(count)) = args.decode();
    let how = (Waiting::Allowed, Append::AsOpened);
    transfer::write(
        cx,
        fd,
        Buffers::one(buf, count),
        Position::Current,
        how,
        state,
    )
}

/// readv(2)
pub fn sys_readv(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(iov), Len(count)) = args.decode();
    let buffers = Buffers::array(cx, iov, count);
    transfer::read(cx, fd, buffers, Position::Current, Waiting::Allowed, state)
}

/// writev(2)
pub fn sys_writev(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(iov), Len(count)) = args.decode();
    let buffers = Buffers::array(cx, iov, count);
    transfer::write(
        cx,
        fd,
        buffers,
        Position::Current,
        (Waiting::Allowed, Append::AsOpened),
        state,
    )
}

/// An offset argument for a file that has positions.
fn positioned(
    cx: &mut Cx<'_>,
    fd: i32,
    offset: u64,
    buffers: &Result<Buffers, Errno>,
) -> Result<Position, Errno> {
    if i64::try_from(offset).is_err() {
        return Err(Errno::EINVAL);
    }
    let (_, file) = fd::get_io(cx, fd)?;
    if !file::positions(cx, &file).can_be_named() {
        return Err(Errno::ESPIPE);
    }
    // The end must be an offset too (rw_verify_area of fs/read_write.c).
    let len = buffers.as_ref().map_or(0, Buffers::left);
    if i64::try_from(offset.saturating_add(len)).is_err() {
        return Err(Errno::EINVAL);
    }
    Ok(Position::At(offset))
}

fn read_positioned(
    cx: &mut Cx<'_>,
    fd: i32,
    buffers: Result<Buffers, Errno>,
    offset: u64,
    waiting: Waiting,
    state: &CallState,
) -> Outcome {
    match positioned(cx, fd, offset, &buffers) {
        Ok(position) => transfer::read(cx, fd, buffers, position, waiting, state),
        Err(error) => Outcome::Done(Err(error)),
    }
}

fn write_positioned(
    cx: &mut Cx<'_>,
    fd: i32,
    buffers: Result<Buffers, Errno>,
    offset: u64,
    how: (Waiting, Append),
    state: &CallState,
) -> Outcome {
    match positioned(cx, fd, offset, &buffers) {
        Ok(position) => transfer::write(cx, fd, buffers, position, how, state),
        Err(error) => Outcome::Done(Err(error)),
    }
}

/// pread64(2)
pub fn sys_pread64(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(buf), Len(count), Offset(offset)) = args.decode();
    read_positioned(
        cx,
        fd,
        Buffers::one(buf, count),
        offset,
        Waiting::Allowed,
        state,
    )
}

/// pwrite64(2)
pub fn sys_pwrite64(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(buf), Len(count), Offset(offset)) = args.decode();
    let how = (Waiting::Allowed, Append::AsOpened);
    write_positioned(cx, fd, Buffers::one(buf, count), offset, how, state)
}

/// preadv(2). On x86-64 the low half of the offset holds all of it.
pub fn sys_preadv(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(iov), Len(count), Offset(offset), Offset(_)) = args.decode();
    let buffers = Buffers::array(cx, iov, count);
    read_positioned(cx, fd, buffers, offset, Waiting::Allowed, state)
}

/// pwritev(2)
pub fn sys_pwritev(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(iov), Len(count), Offset(offset), Offset(_)) = args.decode();
    let buffers = Buffers::array(cx, iov, count);
    write_positioned(
        cx,
        fd,
        buffers,
        offset,
        (Waiting::Allowed, Append::AsOpened),
        state,
    )
}

/// RWF_* of preadv2(2) and pwritev2(2).
fn rwf(cx: &mut Cx<'_>, flags: u32) -> Result<(Waiting, Append), Errno> {
    let known = RWF_PLAIN | RWF_NOWAIT | RWF_APPEND | RWF_NOAPPEND;
    if flags & !known != 0 {
        cx.host
            .report
            .unsupported("preadv2", format!("flags {:#x}", flags & !known));
        return Err(Errno::EOPNOTSUPP);
    }
    let waiting = if flags & RWF_NOWAIT == 0 {
        Waiting::Allowed
    } else {
        Waiting::Refused
    };
    let append = match flags & (RWF_APPEND | RWF_NOAPPEND) {
        0 => Append::AsOpened,
        RWF_APPEND => Append::Always,
        RWF_NOAPPEND => Append::Never,
        _ => return Err(Errno::EINVAL),
    };
    Ok((waiting, append))
}

/// preadv2(2)
pub fn sys_preadv2(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(iov), Len(count), Offset(offset), Offset(_), Flags(flags)) = args.decode();
    let (waiting, append) = match rwf(cx, flags) {
        Ok(how) => how,
        Err(error) => return Outcome::Done(Err(error)),
    };
    if append != Append::AsOpened {
        return Outcome::Done(Err(Errno::EOPNOTSUPP));
    }
    let buffers = Buffers::array(cx, iov, count);
    if offset == u64::MAX {
        return transfer::read(cx, fd, buffers, Position::Current, waiting, state);
    }
    read_positioned(cx, fd, buffers, offset, waiting, state)
}

/// pwritev2(2)
pub fn sys_pwritev2(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(iov), Len(count), Offset(offset), Offset(_), Flags(flags)) = args.decode();
    let how = match rwf(cx, flags) {
        Ok(how) => how,
        Err(error) => return Outcome::Done(Err(error)),
    };
    let buffers = Buffers::array(cx, iov, count);
    if offset == u64::MAX {
        return transfer::write(cx, fd, buffers, Position::Current, how, state);
    }
    write_positioned(cx, fd, buffers, offset, how, state)
}

/// lseek(2)
///
/// # Errors
/// As its man page.
pub fn sys_lseek(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Offset(offset), Uint(whence)) = args.decode();
    let (id, file) = fd::get_io(cx, fd)?;
    if whence > SEEK_HOLE {
        return Err(Errno::EINVAL);
    }
    let at = match file::positions(cx, &file) {
        Positions::Ignored => return Ok(0),
        Positions::None => return Err(Errno::ESPIPE),
        Positions::Host(host) => {
            let to = seek_to(whence, offset)?;
            return stream::seek(cx.host.get(host)?, to);
        }
        Positions::Fixed(at) => at,
        Positions::Own => new_offset(cx, &file, whence, offset.cast_signed())?,
    };
    fd::file_mut(cx, id)?.offset = at;
    Ok(at)
}

fn seek_to(whence: u32, offset: u64) -> Result<SeekTo, Errno> {
    let delta = offset.cast_signed();
    Ok(match whence {
        SEEK_CUR => SeekTo::Current(delta),
        SEEK_END => SeekTo::End(delta),
        _ if delta < 0 => {
            return Err(if whence == SEEK_SET {
                Errno::EINVAL
            } else {
                Errno::ENXIO
            });
        }
        SEEK_DATA => SeekTo::Data(offset),
        SEEK_HOLE => SeekTo::Hole(offset),
        _ => SeekTo::Start(offset),
    })
}

fn new_offset(cx: &mut Cx<'_>, file: &OpenFile, whence: u32, delta: i64) -> Result<u64, Errno> {
    let contents = file::contents(cx, &file.kind);
    let base = match (whence, contents) {
        (SEEK_SET, _) => 0,
        (SEEK_CUR, _) => file.offset,
        (SEEK_END, Contents::Host(host)) => {
            kvmlet_hostfs::attr_of(cx.host.get(host)?.fd.as_fd())?.size
        }
        (SEEK_END, Contents::Tmp(inode)) => {
            cx.kernel.tmpfs.size(inode).map_err(|_| Errno::EINVAL)?
        }
        (_, Contents::Host(host)) => {
            let to = seek_to(whence, delta.cast_unsigned())?;
            return stream::seek(cx.host.get(host)?, to);
        }
        (_, Contents::Tmp(inode)) => {
            let offset = u64::try_from(delta).map_err(|_| Errno::ENXIO)?;
            let seek = if whence == SEEK_DATA {
                Seek::Data
            } else {
                Seek::Hole
            };
            return cx
                .kernel
                .tmpfs
                .seek(inode, offset, seek)
                .map_err(|error| match error {
                    Errno::EISDIR => Errno::EINVAL,
                    other => other,
                });
        }
        (_, Contents::Inherited(_) | Contents::Text | Contents::Zeros) => {
            return Err(Errno::EINVAL);
        }
        (_, Contents::Directory | Contents::None) => return Err(Errno::EINVAL),
    };
    let base = i64::try_from(base).map_err(|_| Errno::EOVERFLOW)?;
    let sum = base.checked_add(delta).ok_or(Errno::EOVERFLOW)?;
    u64::try_from(sum).map_err(|_| Errno::EINVAL)
}

/// True if a description is open for reading its bytes: O_PATH ones are not.
pub(super) fn is_open_for_reading(file: &OpenFile) -> bool {
    file.flags.readable() && !file.flags.contains(OpenFlags::PATH)
}
