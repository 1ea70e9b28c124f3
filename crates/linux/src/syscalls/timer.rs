//! Timers: setitimer(2) and alarm(2), and those of timer_create(2).

use kvmlet_abi::Errno;
use kvmlet_abi::linux::{Itimerspec, Itimerval, Sigevent, Timespec, Timeval};
use kvmlet_abi::linux::{
    signal::{SIGEV_NONE, SIGEV_SIGNAL, SIGEV_THREAD, SIGEV_THREAD_ID},
    time::{ITIMER_PROF, ITIMER_REAL, ITIMER_VIRTUAL, TIMER_ABSTIME},
};

use super::time;
use crate::clock::{self, NSEC_PER_SEC, timespec, timespec_ns};
use crate::cx::Cx;
use crate::kernel::{Kernel, Pid, Tid};
use crate::outcome::SysResult;
use crate::signal::{NSIG, signo};
use crate::syscalls::args::{Args, Flags, Int, Ptr, Uint};
use crate::timer::{Expiry, Interval, Notify, PosixTimer, Setting, Timeline};

fn timeval_ns(value: Timeval) -> Result<u64, Errno> {
    let sec = u64::try_from(value.tv_sec).map_err(|_| Errno::EINVAL)?;
    let usec = u64::try_from(value.tv_usec).map_err(|_| Errno::EINVAL)?;
    if usec >= 1_000_000 {
        return Err(Errno::EINVAL);
    }
    Ok(sec
        .saturating_mul(NSEC_PER_SEC)
        .saturating_add(usec.saturating_mul(1000)))
}

/// Nanoseconds as a timeval, rounded up to a microsecond so that an armed timer never reads as zero.
fn timeval(ns: i64) -> Timeval {
    let usec = u64::try_from(ns).unwrap_or(0).div_ceil(1000);
    Timeval {
        tv_sec: (usec / 1_000_000).cast_signed(),
        tv_usec: (usec % 1_000_000).cast_signed(),
    }
}

fn signed(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}

fn unsigned(ns: i64) -> u64 {
    u64::try_from(ns).unwrap_or(0)
}

fn interval(which: i32) -> Result<Interval, Errno> {
    match which {
        ITIMER_REAL => Ok(Interval::Real),
        ITIMER_VIRTUAL => Ok(Interval::Virtual),
        ITIMER_PROF => Ok(Interval::Prof),
        _ => Err(Errno::EINVAL),
    }
}

/// Replaces an interval timer by one that expires after `value` nanoseconds (0: never) and every
/// `interval_ns` after that; returns what the old one had left.
fn swap_interval(
    cx: &mut Cx<'_>,
    which: Interval,
    value: u64,
    interval_ns: u64,
) -> Result<(i64, i64), Errno> {
    let pid = cx.process()?.pid;
    let now_ns = clock::monotonic_ns(cx.host);
    let old = cx.kernel.interval_timer_left((pid, which), now_ns);
    let timeline = Kernel::interval_timeline(pid, which);
    let now = cx.kernel.time_on(timeline, now_ns).ok_or(Errno::ESRCH)?;
    let expires_ns = (value > 0).then(|| now.saturating_add(signed(value)));
    cx.kernel
        .set_interval_timer((pid, which), expires_ns, signed(interval_ns));
    Ok(old)
}

fn itimerval((value, interval): (i64, i64)) -> Itimerval {
    Itimerval {
        it_interval: timeval(interval),
        it_value: timeval(value),
    }
}

/// setitimer(2)
///
/// # Errors
/// `EINVAL`, `EFAULT`.
pub fn sys_setitimer(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(which), Ptr(new_gva), Ptr(old_gva)) = args.decode();
    let new: Itimerval = if new_gva.0 == 0 {
        Itimerval::default()
    } else {
        cx.read_struct(new_gva)?
    };
    let (value, step) = (timeval_ns(new.it_value)?, timeval_ns(new.it_interval)?);
    let which = interval(which)?;
    let old = swap_interval(cx, which, value, step)?;
    if old_gva.0 != 0 {
        cx.write_struct(old_gva, &itimerval(old))?;
    }
    Ok(0)
}

/// getitimer(2)
///
/// # Errors
/// `EINVAL`, `EFAULT`.
pub fn sys_getitimer(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(which), Ptr(current)) = args.decode();
    let which = interval(which)?;
    let pid = cx.process()?.pid;
    let now_ns = clock::monotonic_ns(cx.host);
    let left = cx.kernel.interval_timer_left((pid, which), now_ns);
    cx.write_struct(current, &itimerval(left))?;
    Ok(0)
}

/// alarm(2)
///
/// # Errors
/// None.
pub fn sys_alarm(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Uint(seconds) = args.decode();
    let seconds = u64::from(seconds);
    let (old, _) = swap_interval(cx, Interval::Real, seconds.saturating_mul(NSEC_PER_SEC), 0)?;
    let old = unsigned(old);
    // alarm(2) rounds to seconds, and a pending alarm never reads as 0.
    let rounded = old.saturating_add(NSEC_PER_SEC / 2) / NSEC_PER_SEC;
    Ok(if old > 0 { rounded.max(1) } else { 0 })
}

/// The timeline that a clock's timers are measured by.
///
/// # Errors
/// `EINVAL` for no clock; `EOPNOTSUPP` for one without timers.
fn timer_timeline(cx: &mut Cx<'_>, clock_id: i32) -> Result<Timeline, Errno> {
    match clock_id {
        // CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI
        0 | 1 | 7 | 11 => Ok(Timeline::Monotonic),
        // The raw and coarse clocks have no timers; the alarm clocks need a real-time clock device.
        4 | 5 | 6 | 8 | 9 => Err(Errno::EOPNOTSUPP),
        id => time::cpu_timeline(cx, id),
    }
}

fn notification(cx: &mut Cx<'_>, event: &Sigevent) -> Result<Notify, Errno> {
    let pid = cx.process()?.pid;
    let notify = match event.sigev_notify {
        SIGEV_NONE => return Ok(Notify::Nobody),
        SIGEV_SIGNAL | SIGEV_THREAD => Notify::Process,
        SIGEV_THREAD_ID => {
            let tid = Tid(event.sigev_notify_thread_id);
            match cx.kernel.threads.get(&tid) {
                Some(thread) if thread.pid == pid => Notify::Thread(tid),
                _ => return Err(Errno::EINVAL),
            }
        }
        _ => return Err(Errno::EINVAL),
    };
    if (1..=i32::from(NSIG)).contains(&event.sigev_signo) {
        Ok(notify)
    } else {
        Err(Errno::EINVAL)
    }
}

/// timer_create(2)
///
/// # Errors
/// `EINVAL`, `EOPNOTSUPP`, `EFAULT`; `EAGAIN` for too many timers.
pub fn sys_timer_create(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(clock_id), Ptr(event_gva), Ptr(id_gva)) = args.decode();
    let given: Option<Sigevent> = if event_gva.0 == 0 {
        None
    } else {
        Some(cx.read_struct(event_gva)?)
    };
    let timeline = timer_timeline(cx, clock_id)?;
    let pid = cx.process()?.pid;
    if !cx.kernel.may_queue_signal(pid) {
        return Err(Errno::EAGAIN);
    }
    let id = cx.kernel.timers.next_id(pid);
    let event = given.unwrap_or(Sigevent {
        sigev_value: u64::from(id.cast_unsigned()),
        sigev_signo: i32::from(signo::SIGALRM),
        ..Sigevent::default()
    });
    let notify = notification(cx, &event)?;
    cx.write_struct(id_gva, &id)?;
    let timer = PosixTimer {
        clock_id,
        timeline,
        notify,
        sigev_notify: event.sigev_notify,
        signo: u8::try_from(event.sigev_signo).unwrap_or(0),
        value: event.sigev_value,
        setting: Setting::default(),
        goes_on: false,
        unacknowledged: false,
        missed: 0,
        overrun: 0,
    };
    cx.kernel.timers.create(pid, id, timer);
    Ok(0)
}

fn itimerspec((value, interval): (i64, i64)) -> Itimerspec {
    Itimerspec {
        it_interval: timespec(unsigned(interval)),
        it_value: timespec(unsigned(value)),
    }
}

fn own_timer(cx: &mut Cx<'_>, id: i32) -> Result<(Pid, i32), Errno> {
    let pid = cx.process()?.pid;
    match cx.kernel.timers.posix(pid, id) {
        Some(_) => Ok((pid, id)),
        None => Err(Errno::EINVAL),
    }
}

fn expiry(
    cx: &mut Cx<'_>,
    timer: (Pid, i32),
    flags: u32,
    value: Timespec,
) -> Result<Expiry, Errno> {
    let value = signed(timespec_ns(value)?);
    let (clock_id, timeline) = cx
        .kernel
        .timers
        .posix(timer.0, timer.1)
        .map(|timer| (timer.clock_id, timer.timeline))
        .ok_or(Errno::EINVAL)?;
    let now_ns = clock::monotonic_ns(cx.host);
    let now = cx.kernel.time_on(timeline, now_ns).ok_or(Errno::ESRCH)?;
    let is_absolute = flags & TIMER_ABSTIME != 0;
    let at_ns = match (is_absolute, timeline) {
        (false, _) => now.saturating_add(value),
        (true, Timeline::Monotonic) => {
            // Linux differs: a timer on CLOCK_REALTIME does not follow the host when its clock is set.
            let on_clock = clock::read_ns(cx.host, clock_id).ok_or(Errno::EINVAL)?;
            now.saturating_add(value.saturating_sub(signed(on_clock)))
        }
        (true, _) => value,
    };
    let goes_on = clock::goes_on_frozen(clock_id, is_absolute);
    Ok(Expiry { at_ns, goes_on })
}

/// timer_settime(2)
///
/// # Errors
/// `EINVAL`, `EFAULT`; `ESRCH` for the CPU clock of a thread that has ended.
pub fn sys_timer_settime(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(id), Flags(flags), Ptr(new_gva), Ptr(old_gva)) = args.decode();
    if new_gva.0 == 0 {
        return Err(Errno::EINVAL);
    }
    let new: Itimerspec = cx.read_struct(new_gva)?;
    let step = signed(timespec_ns(new.it_interval)?);
    let value_ns = timespec_ns(new.it_value)?;
    let timer = own_timer(cx, id)?;
    let expires = if value_ns == 0 {
        None
    } else {
        Some(expiry(cx, timer, flags, new.it_value)?)
    };
    let now_ns = clock::monotonic_ns(cx.host);
    let old = cx.kernel.posix_timer_left(timer, now_ns).unwrap_or((0, 0));
    cx.kernel.set_posix_timer(timer, expires, step, now_ns);
    if old_gva.0 != 0 {
        cx.write_struct(old_gva, &itimerspec(old))?;
    }
    Ok(0)
}

/// timer_gettime(2)
///
/// # Errors
/// `EINVAL`, `EFAULT`.
pub fn sys_timer_gettime(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(id), Ptr(current)) = args.decode();
    let timer = own_timer(cx, id)?;
    let now_ns = clock::monotonic_ns(cx.host);
    let left = cx.kernel.posix_timer_left(timer, now_ns).unwrap_or((0, 0));
    cx.write_struct(current, &itimerspec(left))?;
    Ok(0)
}

/// timer_getoverrun(2)
///
/// # Errors
/// `EINVAL`.
pub fn sys_timer_getoverrun(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Int(id) = args.decode();
    let (pid, id) = own_timer(cx, id)?;
    let timer = cx.kernel.timers.posix(pid, id).ok_or(Errno::EINVAL)?;
    Ok(u64::from(timer.overrun.cast_unsigned()))
}

/// timer_delete(2)
///
/// # Errors
/// `EINVAL`.
pub fn sys_timer_delete(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Int(id) = args.decode();
    let (pid, id) = own_timer(cx, id)?;
    cx.kernel.delete_posix_timer(pid, id);
    Ok(0)
}
