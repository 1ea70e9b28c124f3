//! eventfd(2).

use kvmlet_abi::Errno;
use kvmlet_abi::linux::eventfd::EFD_SEMAPHORE;

use super::number;
use crate::cx::Cx;
use crate::fd::{self, FileKind, OnExec, OpenFlags};
use crate::outcome::SysResult;
use crate::syscalls::args::{Args, Flags, Uint};
use crate::vfs::eventfd::{EventFd, EventMode};
use crate::vfs::open::description;

/// Gives an object without a name its description and descriptor.
///
/// # Errors
/// `EMFILE`
pub(super) fn install(cx: &mut Cx<'_>, kind: FileKind, flags: OpenFlags, path: &[u8]) -> SysResult {
    let kept = OpenFlags::RDWR | (flags & OpenFlags::NONBLOCK);
    let file = description(kind, kept, path);
    fd::install_new(cx, file, OnExec::of(flags)).map(number)
}

/// eventfd(2) without flags.
///
/// # Errors
/// `EMFILE`
pub fn sys_eventfd(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Uint(initial) = args.decode();
    create(cx, initial, 0)
}

/// eventfd2(2)
///
/// # Errors
/// `EINVAL` for unknown flags, `EMFILE`.
pub fn sys_eventfd2(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Uint(initial), Flags(flags)) = args.decode();
    create(cx, initial, flags)
}

fn create(cx: &mut Cx<'_>, count: u32, flags: u32) -> SysResult {
    let known = EFD_SEMAPHORE | (OpenFlags::CLOEXEC | OpenFlags::NONBLOCK).bits();
    if flags & !known != 0 {
        return Err(Errno::EINVAL);
    }
    let mode = if flags & EFD_SEMAPHORE == 0 {
        EventMode::Counter
    } else {
        EventMode::Semaphore
    };
    let id = cx.kernel.objects.next_id();
    let event = EventFd {
        count: count.into(),
        mode,
    };
    cx.kernel.objects.events.insert(id, event);
    let flags = OpenFlags::from_bits_truncate(flags & !EFD_SEMAPHORE);
    install(cx, FileKind::Event(id), flags, b"anon_inode:[eventfd]")
}
