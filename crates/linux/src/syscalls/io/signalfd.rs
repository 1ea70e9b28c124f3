//! signalfd(2).

use kvmlet_abi::{Errno, Gva};

use super::eventfd::install;
use super::number;
use crate::cx::Cx;
use crate::fd::{self, FileKind, OpenFlags};
use crate::outcome::SysResult;
use crate::signal::UNBLOCKABLE;
use crate::syscalls::args::{Args, Fd, Flags, Len, Ptr};

/// signalfd(2) without flags.
///
/// # Errors
/// As [`sys_signalfd4`].
pub fn sys_signalfd(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Ptr(mask), Len(size)) = args.decode();
    signalfd(cx, fd, (mask, size), 0)
}

/// signalfd4(2)
///
/// # Errors
/// `EINVAL` for unknown flags, a wrong set size or another kind of descriptor; `EBADF`, `EFAULT`,
/// `EMFILE`.
pub fn sys_signalfd4(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Ptr(mask), Len(size), Flags(flags)) = args.decode();
    signalfd(cx, fd, (mask, size), flags)
}

fn signalfd(cx: &mut Cx<'_>, fd: i32, (mask_gva, size): (Gva, u64), flags: u32) -> SysResult {
    if size != 8 {
        return Err(Errno::EINVAL);
    }
    let mask: u64 = cx.read_struct(mask_gva)?;
    let known = OpenFlags::CLOEXEC | OpenFlags::NONBLOCK;
    if flags & !known.bits() != 0 {
        return Err(Errno::EINVAL);
    }
    let mask = mask & !UNBLOCKABLE;
    if fd == -1 {
        let flags = OpenFlags::from_bits_truncate(flags);
        return install(cx, FileKind::Signals(mask), flags, b"anon_inode:[signalfd]");
    }
    let (id, file) = fd::get_io(cx, fd)?;
    if !matches!(file.kind, FileKind::Signals(_)) {
        return Err(Errno::EINVAL);
    }
    fd::file_mut(cx, id)?.kind = FileKind::Signals(mask);
    cx.kernel.signal_pending();
    Ok(number(fd))
}
