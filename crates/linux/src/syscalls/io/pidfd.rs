//! pidfd_open(2).

use kvmlet_abi::Errno;

use super::number;
use crate::cx::Cx;
use crate::fd::OpenFlags;
use crate::kernel::{Pid, Tid};
use crate::outcome::SysResult;
use crate::syscalls::args::{Args, Flags, Int};
use crate::vfs::pidfd;

/// pidfd_open(2)
///
/// # Errors
/// `EINVAL` for flags other than PIDFD_NONBLOCK, an id below 1, or a thread that is not its process's first;
/// `ESRCH`, `EMFILE`.
pub fn sys_pidfd_open(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(pid), Flags(flags)) = args.decode();
    if flags & !OpenFlags::NONBLOCK.bits() != 0 || pid <= 0 {
        return Err(Errno::EINVAL);
    }
    match cx.kernel.process_ref(Pid(pid)) {
        Some(process) => pidfd::open(cx, process, OpenFlags::from_bits_truncate(flags)).map(number),
        None if cx.kernel.threads.contains_key(&Tid(pid)) => Err(Errno::EINVAL),
        None => Err(Errno::ESRCH),
    }
}
