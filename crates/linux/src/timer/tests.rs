//! Expiries, overruns, CPU clocks and sleeps, through the calls.

use std::path::Path;

use kvmlet_abi::Errno;
use kvmlet_abi::linux::{Itimerspec, Itimerval, Sigevent, Timespec, Timeval};

use super::*;
use crate::outcome::{CallState, Outcome};
use crate::rlimit::Resource;
use crate::signal::{SigInfo, bit};
use crate::testing::{Arg, PID, Sandbox, TID, call};

const MS: i64 = 1_000_000;
const SIG: u8 = 10;
const ABSOLUTE: i64 = 1;

fn sandbox() -> Sandbox {
    Sandbox::new(Path::new("/usr"))
}

/// Blocks [`SIG`] and the alarms, so that signals stay where they can be seen.
fn blocking() -> Sandbox {
    let mut s = sandbox();
    let mask = bit(SIG) | bit(signo::SIGALRM) | bit(signo::SIGPROF) | bit(signo::SIGVTALRM);
    s.cx().thread().unwrap().signals.mask = mask;
    s
}

fn create(s: &mut Sandbox, clock: i64, notify: i32) -> Result<i64, Errno> {
    let event = s.put_struct(&Sigevent {
        sigev_value: 77,
        sigev_signo: i32::from(SIG),
        sigev_notify: notify,
        sigev_notify_thread_id: TID.0,
        ..Sigevent::default()
    });
    let id = s.room(4);
    call!(s, "timer_create", clock, event, id)?;
    Ok(i64::from(s.get_struct::<i32>(id)))
}

fn span(value: i64, interval: i64) -> Itimerspec {
    let spec = |ns: i64| Timespec {
        tv_sec: ns / 1_000_000_000,
        tv_nsec: ns % 1_000_000_000,
    };
    Itimerspec {
        it_interval: spec(interval),
        it_value: spec(value),
    }
}

fn settime(s: &mut Sandbox, id: i64, flags: i64, value: i64, interval: i64) {
    let new = s.put_struct(&span(value, interval));
    call!(s, "timer_settime", id, flags, new, 0).unwrap();
}

fn take(s: &mut Sandbox, now_ns: u64) -> Option<SigInfo> {
    s.kernel.take_signal_of(TID, u64::MAX, now_ns)
}

fn fire(s: &mut Sandbox, now_ns: i64) {
    s.kernel
        .fire_due(Timeline::Monotonic, now_ns.cast_unsigned());
}

fn due(s: &Sandbox) -> i64 {
    s.kernel.timers.earliest_ns(Timeline::Monotonic).unwrap()
}

#[test]
fn an_interval_timer_counts_what_it_passes_over() {
    let mut s = blocking();
    let id = create(&mut s, 1, 0).unwrap();
    settime(&mut s, id, 0, 5 * MS, 10 * MS);
    let first = due(&s);
    fire(&mut s, first - 1);
    assert_eq!(take(&mut s, 0), None);
    fire(&mut s, first);
    // Nothing expires again before the signal is taken, however late that is.
    assert!(s.kernel.timers.is_idle());
    fire(&mut s, first + 500 * MS);
    let taken = take(&mut s, (first + 35 * MS).cast_unsigned()).unwrap();
    let detail = SigDetail::Timer {
        id: 0,
        overrun: 3,
        value: 77,
    };
    assert_eq!((taken.signo, taken.code), (SIG, SI_TIMER));
    assert_eq!(taken.detail, detail);
    assert_eq!(call!(s, "timer_getoverrun", id), Ok(3));
    assert_eq!(due(&s), first + 40 * MS);
    fire(&mut s, first + 40 * MS);
    let taken = take(&mut s, (first + 40 * MS).cast_unsigned()).unwrap();
    assert!(matches!(taken.detail, SigDetail::Timer { overrun: 0, .. }));
    assert_eq!(call!(s, "timer_getoverrun", id), Ok(0));
}

#[test]
fn overruns_saturate() {
    let mut s = blocking();
    let id = create(&mut s, 1, 0).unwrap();
    settime(&mut s, id, ABSOLUTE, 1, 1);
    take(&mut s, i64::MAX.cast_unsigned()).unwrap();
    assert_eq!(
        call!(s, "timer_getoverrun", id),
        Ok(i32::MAX.cast_unsigned().into())
    );
}

#[test]
fn one_shot_and_absolute_times_in_the_past() {
    let mut s = blocking();
    let id = create(&mut s, 0, 4).unwrap();
    settime(&mut s, id, ABSOLUTE, 1, 0);
    assert_eq!(take(&mut s, 0).unwrap().signo, SIG);
    assert!(s.kernel.timers.is_idle());
    let old = s.room(32);
    call!(s, "timer_gettime", id, old).unwrap();
    assert_eq!(s.get_struct::<Itimerspec>(old), span(0, 0));
}

#[test]
fn setting_and_deleting_take_the_signal_back() {
    let mut s = blocking();
    for delete in [false, true] {
        let id = create(&mut s, 1, 0).unwrap();
        settime(&mut s, id, ABSOLUTE, 1, 0);
        assert_eq!(s.cx().process().unwrap().signals.pending.set(), bit(SIG));
        if delete {
            call!(s, "timer_delete", id).unwrap();
            assert_eq!(call!(s, "timer_delete", id), Err(Errno::EINVAL));
        } else {
            settime(&mut s, id, 0, 0, 0);
        }
        assert_eq!(take(&mut s, 0), None);
    }
}

#[test]
fn a_silent_timer_only_tells_the_time_left() {
    let mut s = blocking();
    let id = create(&mut s, 7, 1).unwrap();
    settime(&mut s, id, 0, 3_600_000 * MS, 7_200_000 * MS);
    assert!(s.kernel.timers.is_idle());
    let left = s.room(32);
    call!(s, "timer_gettime", id, left).unwrap();
    let left: Itimerspec = s.get_struct(left);
    assert!((3590..=3600).contains(&left.it_value.tv_sec));
    assert_eq!(left.it_interval.tv_sec, 7200);
}

#[test]
fn an_ignored_timer_goes_on_coarsely() {
    let mut s = sandbox();
    let event = s.put_struct(&Sigevent {
        sigev_signo: i32::from(signo::SIGURG),
        ..Sigevent::default()
    });
    let id = s.room(4);
    call!(s, "timer_create", 1, event, id).unwrap();
    settime(&mut s, 0, 0, 1, 1);
    let at = due(&s);
    fire(&mut s, at);
    assert_eq!(take(&mut s, 0), None);
    assert!(due(&s) > at + TICK_NS);
}

#[test]
fn a_new_setting_counts_its_own_overruns_only() {
    let mut s = sandbox();
    let event = s.put_struct(&Sigevent {
        sigev_signo: i32::from(signo::SIGURG),
        ..Sigevent::default()
    });
    let id = s.room(4);
    call!(s, "timer_create", 1, event, id).unwrap();
    settime(&mut s, 0, 0, 5 * MS, 5 * MS);
    let ignored = due(&s);
    fire(&mut s, ignored + 50 * MS);
    s.cx().thread().unwrap().signals.mask = bit(signo::SIGURG);
    settime(&mut s, 0, 0, 5 * MS, 5 * MS);
    let at = due(&s);
    fire(&mut s, at);
    let taken = take(&mut s, at.cast_unsigned()).unwrap();
    assert!(matches!(taken.detail, SigDetail::Timer { overrun: 0, .. }));
}

#[test]
fn timers_are_bounded_and_numbered_by_process() {
    let mut s = sandbox();
    let process = s.kernel.processes.get(&PID).unwrap();
    let limit = process.rlimits.soft(Resource::Sigpending) as i64;
    for number in 0..limit {
        assert_eq!(create(&mut s, 1, 0), Ok(number));
    }
    assert_eq!(create(&mut s, 1, 0), Err(Errno::EAGAIN));
    call!(s, "timer_delete", 5).unwrap();
    assert_eq!(create(&mut s, 1, 0), Ok(limit));
    s.kernel.delete_posix_timers(PID);
    assert!(s.kernel.timers.posix_of(PID).next().is_none());
}

#[test]
fn what_timer_create_refuses() {
    let mut s = sandbox();
    for clock in [4, 5, 6, 8, 9] {
        assert_eq!(create(&mut s, clock, 0), Err(Errno::EOPNOTSUPP));
    }
    assert_eq!(create(&mut s, 10, 0), Err(Errno::EINVAL));
    assert_eq!(create(&mut s, 1, 3), Err(Errno::EINVAL));
    let mut event = |event: Sigevent| {
        let (event, id) = (s.put_struct(&event), s.room(4));
        call!(s, "timer_create", 1, event, id)
    };
    for (notify, signo, tid) in [(0, 0, 0), (0, 65, 0), (4, 10, 3)] {
        let bad = Sigevent {
            sigev_notify: notify,
            sigev_signo: signo,
            sigev_notify_thread_id: tid,
            ..Sigevent::default()
        };
        assert_eq!(event(bad), Err(Errno::EINVAL));
    }
    assert_eq!(call!(s, "timer_create", 1, 1, 0), Err(Errno::EFAULT));
    assert_eq!(call!(s, "timer_create", 1, 0, 1), Err(Errno::EFAULT));
    assert!(s.kernel.timers.posix_of(PID).next().is_none());
}

#[test]
fn the_real_timer_waits_for_its_signal_to_be_taken() {
    let mut s = blocking();
    let tv = |ms: i64| Timeval {
        tv_sec: ms / 1000,
        tv_usec: ms % 1000 * 1000,
    };
    let new = s.put_struct(&Itimerval {
        it_interval: tv(10),
        it_value: tv(5),
    });
    call!(s, "setitimer", 0, new, 0).unwrap();
    let first = due(&s);
    fire(&mut s, first);
    assert!(s.kernel.timers.is_idle());
    let left = s.room(32);
    call!(s, "getitimer", 0, left).unwrap();
    let left: Itimerval = s.get_struct(left);
    assert_eq!((left.it_value, left.it_interval), (tv(0), tv(10)));
    let taken = take(&mut s, (first + 25 * MS).cast_unsigned()).unwrap();
    assert_eq!((taken.signo, taken.code), (signo::SIGALRM, SI_KERNEL));
    assert_eq!(due(&s), first + 30 * MS);
    assert_eq!(call!(s, "alarm", 0), Ok(1));
    assert!(s.kernel.timers.is_idle());
}

#[test]
fn cpu_timers_follow_the_time_used() {
    let mut s = blocking();
    let new = s.put_struct(&Itimerval {
        it_interval: Timeval {
            tv_sec: 0,
            tv_usec: 10_000,
        },
        it_value: Timeval {
            tv_sec: 0,
            tv_usec: 10_000,
        },
    });
    call!(s, "setitimer", 2, new, 0).unwrap();
    assert_eq!(s.kernel.cpu_until_expiry_ns(TID), Some(10_000_000));
    s.kernel.charge_cpu(TID, 9_000_000);
    assert_eq!(take(&mut s, 0), None);
    s.kernel.charge_cpu(TID, 1_500_000);
    assert_eq!(take(&mut s, 0).unwrap().signo, signo::SIGPROF);
    assert_eq!(s.kernel.cpu_until_expiry_ns(TID), Some(9_500_000));
    let id = create(&mut s, 3, 0).unwrap();
    settime(&mut s, id, ABSOLUTE, 11 * MS, 0);
    assert_eq!(s.kernel.cpu_until_expiry_ns(TID), Some(500_000));
    s.kernel.charge_cpu(TID, 500_000);
    assert_eq!(take(&mut s, 0).unwrap().signo, SIG);
    s.kernel.timers.thread_gone(TID);
    assert_eq!(s.kernel.cpu_until_expiry_ns(TID), Some(9_000_000));
}

#[test]
fn sleeps_on_cpu_clocks() {
    let mut s = sandbox();
    let time = s.put_struct(&Timespec {
        tv_sec: 0,
        tv_nsec: 1_000_000,
    });
    let args = [2, 0, time, 0].map(Arg::Int);
    let outcome = s.outcome("clock_nanosleep", &args, &CallState::default());
    let Outcome::Wait(wait) = outcome else {
        panic!("{outcome:?}")
    };
    s.kernel.sched.park(TID, Default::default(), wait);
    s.kernel.charge_cpu(TID, 999_999);
    assert!(s.kernel.sched.parked.contains_key(&TID));
    s.kernel.charge_cpu(TID, 1);
    assert!(s.kernel.sched.parked.is_empty());
    assert!(s.kernel.timers.is_idle());
    for (clock, errno) in [
        (3, Errno::EOPNOTSUPP),
        (-2, Errno::EINVAL),
        (10, Errno::EINVAL),
        (5, Errno::EOPNOTSUPP),
    ] {
        assert_eq!(call!(s, "clock_nanosleep", clock, 0, time, 0), Err(errno));
    }
}

#[test]
fn a_sleep_interrupted_for_nothing_goes_on() {
    let mut s = sandbox();
    let time = s.put_struct(&Timespec {
        tv_sec: 5,
        tv_nsec: 0,
    });
    let args = [time, 0].map(Arg::Int);
    let Outcome::Wait(wait) = s.outcome("nanosleep", &args, &CallState::default()) else {
        panic!()
    };
    let until = wait.deadline_ns;
    s.kernel.sched.park(TID, Default::default(), wait);
    s.kernel.interrupt(TID);
    assert!(s.kernel.resume_interrupted(TID));
    let (_, state) = s.kernel.sched.retries.get(&TID).cloned().unwrap();
    let Outcome::Wait(again) = s.outcome("nanosleep", &args, &state) else {
        panic!()
    };
    assert_eq!(again.deadline_ns, until);
}
