//! Clocks and sleeps.

use kvmlet_abi::Errno;
use kvmlet_abi::linux::resource::{RUSAGE_CHILDREN, RUSAGE_SELF, RUSAGE_THREAD};
use kvmlet_abi::linux::{Rusage, Timespec, Timeval, Tms};
use kvmlet_abi::linux::{
    param::USER_HZ,
    time::{
        CLOCK_BOOTTIME, CLOCK_BOOTTIME_ALARM, CLOCK_MONOTONIC, CLOCK_MONOTONIC_COARSE,
        CLOCK_MONOTONIC_RAW, CLOCK_PROCESS_CPUTIME_ID, CLOCK_REALTIME, CLOCK_REALTIME_ALARM,
        CLOCK_REALTIME_COARSE, CLOCK_TAI, CLOCK_THREAD_CPUTIME_ID, TIMER_ABSTIME,
    },
};

use crate::clock::{self, NSEC_PER_SEC, timespec};
use crate::cx::Cx;
use crate::kernel::{Pid, Tid};
use crate::outcome::{CallState, Outcome, Resume, SysResult, Wait, WaitOn};
use crate::syscalls::args::{Args, Flags, Int, Ptr};
use crate::timer::Timeline;

/// The step by which the coarse clocks advance (a 250 Hz tick).
const COARSE_RESOLUTION_NS: i64 = 4_000_000;

fn clock_ns(cx: &mut Cx<'_>, clock_id: i32) -> Result<u64, Errno> {
    if let Some(ns) = clock::read_ns(cx.host, clock_id) {
        return Ok(ns);
    }
    let timeline = match (cpu_timeline(cx, clock_id), process_of_clock(cx, clock_id)) {
        (Err(_), Some(pid)) => Timeline::Process(pid),
        (own, _) => own?,
    };
    let ns = match timeline {
        Timeline::Process(pid) if cx.kernel.zombies.contains_key(&pid) => {
            let zombie = cx.kernel.zombies.get(&pid);
            return Ok(zombie.map_or(0, |zombie| zombie.cpu_time_ns));
        }
        other => cx.kernel.time_on(other, 0).ok_or(Errno::EINVAL)?,
    };
    Ok(u64::try_from(ns).unwrap_or(0))
}

/// The process whose CPU clock a number is (clock_getcpuclockid(3)), ended or not. Its clock can be read;
/// Linux differs: timers and sleeps can be on it, too.
fn process_of_clock(cx: &Cx<'_>, clock_id: i32) -> Option<Pid> {
    let pid = Pid(!(clock_id >> 3));
    let is_process = clock_id < 0 && clock_id & 7 == 2;
    let exists = cx.kernel.kin().any(|one| one.pid == pid);
    (is_process && exists).then_some(pid)
}

/// The CPU clock of a number: those of the caller, and those of clock_getcpuclockid(3), whose low
/// three bits say which.
///
/// # Errors
/// `EINVAL` for no such clock, process or thread.
pub(super) fn cpu_timeline(cx: &mut Cx<'_>, clock_id: i32) -> Result<Timeline, Errno> {
    let (own, tid) = (cx.process()?.pid, cx.tid);
    match clock_id {
        CLOCK_PROCESS_CPUTIME_ID => Ok(Timeline::Process(own)),
        CLOCK_THREAD_CPUTIME_ID => Ok(Timeline::Thread(tid)),
        id if id < 0 && (id & 7 == 2 || id & 7 == 6) => {
            let target = !(id >> 3);
            if id & 4 == 0 {
                if target == 0 || target == own.0 {
                    Ok(Timeline::Process(own))
                } else {
                    Err(Errno::EINVAL)
                }
            } else if target == 0 || target == tid.0 {
                Ok(Timeline::Thread(tid))
            } else {
                let thread = cx.kernel.threads.get(&Tid(target));
                let own_thread = thread.is_some_and(|thread| thread.pid == own);
                own_thread
                    .then_some(Timeline::Thread(Tid(target)))
                    .ok_or(Errno::EINVAL)
            }
        }
        _ => Err(Errno::EINVAL),
    }
}

/// clock_gettime(2)
///
/// # Errors
/// `EINVAL`, `EFAULT`.
pub fn sys_clock_gettime(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(id), Ptr(time)) = args.decode();
    let ns = clock_ns(cx, id)?;
    cx.write_struct(time, &timespec(ns))?;
    Ok(0)
}

/// clock_getres(2)
///
/// # Errors
/// `EINVAL`, `EFAULT`.
pub fn sys_clock_getres(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(id), Ptr(resolution)) = args.decode();
    clock_ns(cx, id)?;
    let tv_nsec = if matches!(id, 5 | 6) {
        COARSE_RESOLUTION_NS
    } else {
        1
    };
    if resolution.0 != 0 {
        cx.write_struct(resolution, &Timespec { tv_sec: 0, tv_nsec })?;
    }
    Ok(0)
}

/// gettimeofday(2)
///
/// # Errors
/// `EFAULT`.
pub fn sys_gettimeofday(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Ptr(time), Ptr(zone)) = args.decode();
    if time.0 != 0 {
        let now = timespec(clock::realtime_ns(cx.host));
        cx.write_struct(
            time,
            &Timeval {
                tv_sec: now.tv_sec,
                tv_usec: now.tv_nsec / 1000,
            },
        )?;
    }
    if zone.0 != 0 {
        cx.write_struct(zone, &[0u32; 2])?;
    }
    Ok(0)
}

/// time(2)
///
/// # Errors
/// `EFAULT`.
pub fn sys_time(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Ptr(seconds_gva) = args.decode();
    let seconds = clock::realtime_ns(cx.host) / NSEC_PER_SEC;
    if seconds_gva.0 != 0 {
        cx.write_struct(seconds_gva, &seconds)?;
    }
    Ok(seconds)
}

/// Sleeps until a time on a timeline. A sleep that was interrupted for nothing goes on to the end it had.
fn sleep_until(cx: &mut Cx<'_>, timeline: Timeline, until_ns: i64, remain_gva: u64) -> Outcome {
    let (on, deadline_ns) = match timeline {
        Timeline::Monotonic => {
            let deadline_ns = u64::try_from(until_ns).unwrap_or(0);
            (WaitOn::Nothing, Some(deadline_ns))
        }
        _ => {
            let now = cx.kernel.time_on(timeline, 0);
            if now.is_none_or(|now| now >= until_ns) {
                return Outcome::Done(Ok(0));
            }
            cx.kernel.timers.sleep(cx.tid, timeline, until_ns);
            (WaitOn::CpuTime(timeline, until_ns), None)
        }
    };
    Outcome::Wait(Wait {
        on,
        deadline_ns,
        resume: Resume::Deliver {
            at_deadline: Ok(0),
            remain_gva,
        },
    })
}

fn signed(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}

/// nanosleep(2)
pub fn sys_nanosleep(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Ptr(time), Ptr(remain)) = args.decode();
    let until_ns = match (state.deadline_ns, clock::read_timespec(cx, time)) {
        (Some(until_ns), _) => until_ns,
        (None, Ok(ns)) => clock::monotonic_ns(cx.host).saturating_add(ns),
        (None, Err(errno)) => return Outcome::Done(Err(errno)),
    };
    sleep_until(cx, Timeline::Monotonic, signed(until_ns), remain.0)
}

/// The timeline that clock_nanosleep(2) sleeps by on a clock.
///
/// # Errors
/// `EINVAL` for no clock and for the caller's own CPU clock; `EOPNOTSUPP` for a clock to read only.
fn sleep_timeline(cx: &mut Cx<'_>, clock_id: i32) -> Result<Timeline, Errno> {
    match clock_id {
        CLOCK_REALTIME | CLOCK_MONOTONIC | CLOCK_BOOTTIME | CLOCK_TAI => Ok(Timeline::Monotonic),
        // The alarm clocks need a real-time clock device.
        CLOCK_THREAD_CPUTIME_ID
        | CLOCK_MONOTONIC_RAW
        | CLOCK_REALTIME_COARSE
        | CLOCK_MONOTONIC_COARSE
        | CLOCK_REALTIME_ALARM
        | CLOCK_BOOTTIME_ALARM => Err(Errno::EOPNOTSUPP),
        id => match cpu_timeline(cx, id)? {
            // Nobody sleeps until it has itself run.
            Timeline::Thread(tid) if tid == cx.tid => Err(Errno::EINVAL),
            timeline => Ok(timeline),
        },
    }
}

/// clock_nanosleep(2)
pub fn sys_clock_nanosleep(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Int(id), Flags(flags), Ptr(time), Ptr(remain)) = args.decode();
    let absolute = flags & TIMER_ABSTIME != 0;
    let until = |cx: &mut Cx<'_>| -> Result<(Timeline, i64), Errno> {
        let timeline = sleep_timeline(cx, id)?;
        if let Some(until_ns) = state.deadline_ns {
            return Ok((timeline, signed(until_ns)));
        }
        let time = signed(clock::read_timespec(cx, time)?);
        let now_ns = clock::monotonic_ns(cx.host);
        let now = cx.kernel.time_on(timeline, now_ns).ok_or(Errno::EINVAL)?;
        if !absolute {
            return Ok((timeline, now.saturating_add(time)));
        }
        if timeline == Timeline::Monotonic {
            let on_clock = clock::read_ns(cx.host, id).ok_or(Errno::EINVAL)?;
            let left = time.saturating_sub(signed(on_clock));
            return Ok((timeline, now.saturating_add(left)));
        }
        Ok((timeline, time))
    };
    let remain_gva = if absolute { 0 } else { remain.0 };
    match until(cx) {
        Ok((timeline, until_ns)) => sleep_until(cx, timeline, until_ns, remain_gva),
        Err(errno) => Outcome::Done(Err(errno)),
    }
}

/// times(2): all CPU time is user time.
///
/// # Errors
/// `EFAULT`.
pub fn sys_times(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Ptr(buf) = args.decode();
    let tick = NSEC_PER_SEC / USER_HZ;
    let process = cx.process()?;
    let [user, of_children] = [process.cpu_time_ns, process.children_cpu_ns].map(|ns| ns / tick);
    if buf.0 != 0 {
        cx.write_struct(
            buf,
            &Tms {
                tms_utime: user.cast_signed(),
                tms_cutime: of_children.cast_signed(),
                ..Tms::default()
            },
        )?;
    }
    Ok(clock::monotonic_ns(cx.host) / tick)
}

/// The resources that CPU time and memory at most stand for. All of the time is user time; other fields are 0.
#[must_use]
pub fn rusage(cpu_ns: u64, peak_bytes: u64) -> Rusage {
    Rusage {
        ru_utime: Timeval {
            tv_sec: (cpu_ns / NSEC_PER_SEC).cast_signed(),
            tv_usec: (cpu_ns % NSEC_PER_SEC / 1000).cast_signed(),
        },
        ru_maxrss: (peak_bytes / 1024).cast_signed(),
        ..Rusage::default()
    }
}

/// getrusage(2)
///
/// # Errors
/// `EINVAL`, `EFAULT`.
pub fn sys_getrusage(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(who), Ptr(usage_gva)) = args.decode();
    let thread_ns = cx.thread()?.cpu_time_ns;
    let pid = cx.process()?.pid;
    let process = cx.kernel.processes.get(&pid).ok_or(Errno::ESRCH)?;
    let own_bytes = process.peak_bytes(&cx.machine.spaces);
    let usage = match who {
        RUSAGE_SELF => rusage(process.cpu_time_ns, own_bytes),
        RUSAGE_THREAD => rusage(thread_ns, own_bytes),
        RUSAGE_CHILDREN => rusage(process.children_cpu_ns, process.children_peak_bytes),
        _ => return Err(Errno::EINVAL),
    };
    cx.write_struct(usage_gva, &usage)?;
    Ok(0)
}
