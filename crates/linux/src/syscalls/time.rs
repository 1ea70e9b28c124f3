//! Clocks, sleeps and timers.

use kvmlet_abi::linux::{Itimerval, Rusage, Timespec, Timeval, Tms};
use kvmlet_abi::{Errno, Gva};

use crate::clock::{self, NSEC_PER_SEC, timespec};
use crate::cx::Cx;
use crate::kernel::Tid;
use crate::outcome::{CallState, Outcome, Resume, SysResult, Wait, WaitOn};

const CLOCK_PROCESS_CPUTIME_ID: i32 = 2;
const CLOCK_THREAD_CPUTIME_ID: i32 = 3;
const TIMER_ABSTIME: u64 = 1;
/// Ticks a second of times(2) (USER_HZ).
const USER_HZ: u64 = 100;
/// What the coarse clocks advance by (a 250 Hz tick).
const COARSE_RESOLUTION_NS: i64 = 4_000_000;

fn clock_ns(cx: &mut Cx<'_>, clock_id: i32) -> Result<u64, Errno> {
    if let Some(ns) = clock::read_ns(cx.host, clock_id) {
        return Ok(ns);
    }
    match clock_id {
        CLOCK_PROCESS_CPUTIME_ID => process_cpu_ns(cx),
        CLOCK_THREAD_CPUTIME_ID => Ok(cx.thread()?.cpu_time_ns),
        // CPU clocks of processes and threads (clock_getcpuclockid(3)): the low three bits say which.
        id if id < 0 && (id & 7 == 2 || id & 7 == 6) => {
            let target = !(id >> 3);
            if id & 4 == 0 {
                let own = cx.process()?.pid.0;
                if target == 0 || target == own {
                    process_cpu_ns(cx)
                } else {
                    Err(Errno::EINVAL)
                }
            } else if target == 0 {
                Ok(cx.thread()?.cpu_time_ns)
            } else {
                let thread = cx.kernel.threads.get(&Tid(target));
                thread.map(|thread| thread.cpu_time_ns).ok_or(Errno::EINVAL)
            }
        }
        _ => Err(Errno::EINVAL),
    }
}

fn process_cpu_ns(cx: &mut Cx<'_>) -> Result<u64, Errno> {
    let process = cx.process()?;
    let (pid, ended) = (process.pid, process.ended_cpu_ns);
    let live: u64 = cx
        .kernel
        .threads
        .values()
        .filter(|thread| thread.pid == pid)
        .fold(0, |sum, thread| sum.saturating_add(thread.cpu_time_ns));
    Ok(live.saturating_add(ended))
}

#[allow(clippy::cast_possible_truncation)]
fn clock_id(raw: u64) -> i32 {
    raw as i32
}

/// clock_gettime(2)
///
/// # Errors
/// `EINVAL`, `EFAULT`.
pub fn sys_clock_gettime(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let ns = clock_ns(cx, clock_id(args[0]))?;
    cx.write_struct(Gva(args[1]), &timespec(ns))?;
    Ok(0)
}

/// clock_getres(2)
///
/// # Errors
/// `EINVAL`, `EFAULT`.
pub fn sys_clock_getres(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let id = clock_id(args[0]);
    clock_ns(cx, id)?;
    let tv_nsec = if matches!(id, 5 | 6) {
        COARSE_RESOLUTION_NS
    } else {
        1
    };
    if args[1] != 0 {
        cx.write_struct(Gva(args[1]), &Timespec { tv_sec: 0, tv_nsec })?;
    }
    Ok(0)
}

/// clock_settime(2): a program may not set clocks.
///
/// # Errors
/// Always `EPERM`, as without CAP_SYS_TIME.
pub fn sys_clock_settime(_cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Err(Errno::EPERM)
}

/// gettimeofday(2)
///
/// # Errors
/// `EFAULT`.
pub fn sys_gettimeofday(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    if args[0] != 0 {
        let now = timespec(clock::realtime_ns(cx.host));
        cx.write_struct(
            Gva(args[0]),
            &Timeval {
                tv_sec: now.tv_sec,
                tv_usec: now.tv_nsec / 1000,
            },
        )?;
    }
    if args[1] != 0 {
        cx.write_struct(Gva(args[1]), &[0u32; 2])?;
    }
    Ok(0)
}

/// time(2)
///
/// # Errors
/// `EFAULT`.
pub fn sys_time(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let seconds = clock::realtime_ns(cx.host) / NSEC_PER_SEC;
    if args[0] != 0 {
        cx.write_struct(Gva(args[0]), &seconds)?;
    }
    Ok(seconds)
}

fn sleep_until(deadline_ns: u64, remain_gva: u64) -> Outcome {
    Outcome::Wait(Wait {
        on: WaitOn::Nothing,
        deadline_ns: Some(deadline_ns),
        resume: Resume::Deliver {
            at_deadline: Ok(0),
            remain_gva,
        },
    })
}

/// nanosleep(2)
pub fn sys_nanosleep(cx: &mut Cx<'_>, args: &[u64; 6], _state: &CallState) -> Outcome {
    match clock::read_timespec(cx, args[0]) {
        Ok(ns) => sleep_until(clock::monotonic_ns(cx.host).saturating_add(ns), args[1]),
        Err(errno) => Outcome::Done(Err(errno)),
    }
}

/// clock_nanosleep(2)
pub fn sys_clock_nanosleep(cx: &mut Cx<'_>, args: &[u64; 6], _state: &CallState) -> Outcome {
    let deadline = |cx: &mut Cx<'_>| -> Result<u64, Errno> {
        let id = clock_id(args[0]);
        if !matches!(id, 0 | 1 | 7 | 8 | 9 | 11) {
            // Linux refuses the thread clock and sleeps on the process clock, which is not offered.
            return Err(if id == CLOCK_PROCESS_CPUTIME_ID {
                Errno::EOPNOTSUPP
            } else {
                Errno::EINVAL
            });
        }
        let ns = clock::read_timespec(cx, args[2])?;
        let now = clock::monotonic_ns(cx.host);
        if args[1] & TIMER_ABSTIME == 0 {
            return Ok(now.saturating_add(ns));
        }
        let on_clock = clock::read_ns(cx.host, id).ok_or(Errno::EINVAL)?;
        Ok(now.saturating_add(ns.saturating_sub(on_clock)))
    };
    let remain_gva = if args[1] & TIMER_ABSTIME == 0 {
        args[3]
    } else {
        0
    };
    match deadline(cx) {
        Ok(deadline_ns) => sleep_until(deadline_ns, remain_gva),
        Err(errno) => Outcome::Done(Err(errno)),
    }
}

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
fn timeval(ns: u64) -> Timeval {
    let usec = ns.div_ceil(1000);
    Timeval {
        tv_sec: (usec / 1_000_000).cast_signed(),
        tv_usec: (usec % 1_000_000).cast_signed(),
    }
}

fn swap_real_timer(cx: &mut Cx<'_>, new: Option<(u64, u64)>) -> Result<(u64, u64), Errno> {
    let now = clock::monotonic_ns(cx.host);
    let timer = &mut cx.process()?.signals.real_timer;
    let old = timer.map_or((0, 0), |(at, interval)| {
        (at.saturating_sub(now).max(1), interval)
    });
    *timer = new.map(|(value, interval)| (now.saturating_add(value), interval));
    Ok(old)
}

fn only_real(cx: &mut Cx<'_>, which: u64) -> Result<(), Errno> {
    #[allow(clippy::cast_possible_truncation)]
    match which as i32 {
        0 => Ok(()),
        1 | 2 => {
            cx.host
                .report
                .unsupported("setitimer", "a CPU-time timer".to_owned());
            Err(Errno::ENOSYS)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// setitimer(2), ITIMER_REAL.
///
/// # Errors
/// `EINVAL`, `EFAULT`; `ENOSYS` for the CPU-time timers.
pub fn sys_setitimer(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    only_real(cx, args[0])?;
    let new: Itimerval = if args[1] == 0 {
        Itimerval::default()
    } else {
        cx.read_struct(Gva(args[1]))?
    };
    let (value, interval) = (timeval_ns(new.it_value)?, timeval_ns(new.it_interval)?);
    let (old_value, old_interval) = swap_real_timer(cx, (value > 0).then_some((value, interval)))?;
    if args[2] != 0 {
        let old = Itimerval {
            it_interval: timeval(old_interval),
            it_value: timeval(old_value),
        };
        cx.write_struct(Gva(args[2]), &old)?;
    }
    Ok(0)
}

/// getitimer(2), ITIMER_REAL.
///
/// # Errors
/// As [`sys_setitimer`].
pub fn sys_getitimer(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    only_real(cx, args[0])?;
    let now = clock::monotonic_ns(cx.host);
    let (value, interval) = cx
        .process()?
        .signals
        .real_timer
        .map_or((0, 0), |(at, interval)| {
            (at.saturating_sub(now).max(1), interval)
        });
    let current = Itimerval {
        it_interval: timeval(interval),
        it_value: timeval(value),
    };
    cx.write_struct(Gva(args[1]), &current)?;
    Ok(0)
}

/// alarm(2)
///
/// # Errors
/// None.
pub fn sys_alarm(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let seconds = args[0] & 0xffff_ffff;
    let new = (seconds > 0).then_some((seconds.saturating_mul(NSEC_PER_SEC), 0));
    let (old, _) = swap_real_timer(cx, new)?;
    // alarm(2) rounds to seconds, and a pending alarm never reads as 0.
    let rounded = old.saturating_add(NSEC_PER_SEC / 2) / NSEC_PER_SEC;
    Ok(if old > 0 { rounded.max(1) } else { 0 })
}

/// times(2): all CPU time is user time.
///
/// # Errors
/// `EFAULT`.
pub fn sys_times(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let tick = NSEC_PER_SEC / USER_HZ;
    let user = process_cpu_ns(cx)? / tick;
    if args[0] != 0 {
        cx.write_struct(
            Gva(args[0]),
            &Tms {
                tms_utime: user.cast_signed(),
                ..Tms::default()
            },
        )?;
    }
    Ok(clock::monotonic_ns(cx.host) / tick)
}

/// getrusage(2): CPU time as user time and the peak of memory; other fields are 0.
///
/// # Errors
/// `EINVAL`, `EFAULT`.
#[allow(clippy::cast_possible_truncation)]
pub fn sys_getrusage(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let cpu_ns = match args[0] as i32 {
        0 => process_cpu_ns(cx)?,
        1 => cx.thread()?.cpu_time_ns,
        -1 => 0,
        _ => return Err(Errno::EINVAL),
    };
    let peak = if args[0] as i32 == -1 {
        0
    } else {
        cx.machine.memory.peak_bytes() / 1024
    };
    let usage = Rusage {
        ru_utime: Timeval {
            tv_sec: (cpu_ns / NSEC_PER_SEC).cast_signed(),
            tv_usec: (cpu_ns % NSEC_PER_SEC / 1000).cast_signed(),
        },
        ru_maxrss: peak.cast_signed(),
        ..Rusage::default()
    };
    cx.write_struct(Gva(args[1]), &usage)?;
    Ok(0)
}
