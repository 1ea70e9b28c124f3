//! timerfd_create(2), timerfd_settime(2), timerfd_gettime(2).

use kvmlet_abi::Errno;
use kvmlet_abi::linux::Timespec;
use kvmlet_abi::linux::{
    time::{
        CLOCK_BOOTTIME, CLOCK_BOOTTIME_ALARM, CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_REALTIME_ALARM,
    },
    timerfd::{TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET},
};

use super::eventfd::install;
use crate::clock;
use crate::cx::Cx;
use crate::fd::{self, FileKind, OpenFlags};
use crate::outcome::SysResult;
use crate::syscalls::args::{Args, Fd, Flags, Int, Ptr};
use crate::vfs::anon::ObjectId;
use crate::vfs::ready;
use crate::vfs::timerfd::TimerClock;

/// timerfd_create(2)
///
/// # Errors
/// `EINVAL` for an unknown clock or flag; `EPERM` for the alarm clocks, as without CAP_WAKE_ALARM;
/// `EMFILE`.
pub fn sys_timerfd_create(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(clock), Flags(flags)) = args.decode();
    let known = OpenFlags::CLOEXEC | OpenFlags::NONBLOCK;
    if flags & !known.bits() != 0 {
        return Err(Errno::EINVAL);
    }
    match clock {
        CLOCK_REALTIME | CLOCK_MONOTONIC | CLOCK_BOOTTIME => {}
        CLOCK_REALTIME_ALARM | CLOCK_BOOTTIME_ALARM => return Err(Errno::EPERM),
        _ => return Err(Errno::EINVAL),
    }
    let id = cx.kernel.objects.next_id();
    cx.kernel.objects.timers.create(id, TimerClock(clock));
    let flags = OpenFlags::from_bits_truncate(flags);
    install(cx, FileKind::Timer(id), flags, b"anon_inode:[timerfd]")
}

/// The timer behind a descriptor, after what is due has expired.
fn timer(cx: &mut Cx<'_>, fd: i32) -> Result<ObjectId, Errno> {
    let (_, file) = fd::get_io(cx, fd)?;
    let FileKind::Timer(id) = file.kind else {
        return Err(Errno::EINVAL);
    };
    ready::refresh(cx, &file);
    Ok(id)
}

/// (time to the next expiry, interval) as struct itimerspec.
fn itimerspec((value_ns, interval_ns): (u64, u64)) -> [Timespec; 2] {
    [clock::timespec(interval_ns), clock::timespec(value_ns)]
}

/// timerfd_settime(2)
///
/// # Errors
/// `EINVAL` for unknown flags, an invalid time, or another kind of descriptor; `EBADF`, `EFAULT`.
pub fn sys_timerfd_settime(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Flags(flags), Ptr(new), Ptr(old)) = args.decode();
    let [interval, value]: [Timespec; 2] = cx.read_struct(new)?;
    if flags & !(TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET) != 0 {
        return Err(Errno::EINVAL);
    }
    let (value, interval) = (clock::timespec_ns(value)?, clock::timespec_ns(interval)?);
    let id = timer(cx, fd)?;
    let clock_id = cx.kernel.objects.timers.get(id)?.clock.0;
    let now = clock::monotonic_ns(cx.host);
    let from_now = if flags & TFD_TIMER_ABSTIME == 0 {
        value
    } else {
        let shown = clock::read_ns(cx.host, clock_id).ok_or(Errno::EINVAL)?;
        value.saturating_sub(shown)
    };
    let expiry = (value > 0).then(|| now.saturating_add(from_now));
    let timers = &mut cx.kernel.objects.timers;
    let before = timers.set(id, now, (expiry, interval), flags)?;
    if old.0 != 0 {
        cx.write_struct(old, &itimerspec(before))?;
    }
    Ok(0)
}

/// timerfd_gettime(2)
///
/// # Errors
/// `EBADF`, `EINVAL` for another kind of descriptor, `EFAULT`.
pub fn sys_timerfd_gettime(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Ptr(current)) = args.decode();
    let id = timer(cx, fd)?;
    let now = clock::monotonic_ns(cx.host);
    let setting = cx.kernel.objects.timers.setting(id, now)?;
    cx.write_struct(current, &itimerspec(setting))?;
    Ok(0)
}
