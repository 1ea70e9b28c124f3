//! Clocks and timers (linux/time.h, linux/time_types.h).

pub const CLOCK_REALTIME: i32 = 0;
pub const CLOCK_MONOTONIC: i32 = 1;
pub const CLOCK_PROCESS_CPUTIME_ID: i32 = 2;
pub const CLOCK_THREAD_CPUTIME_ID: i32 = 3;
pub const CLOCK_MONOTONIC_RAW: i32 = 4;
pub const CLOCK_REALTIME_COARSE: i32 = 5;
pub const CLOCK_MONOTONIC_COARSE: i32 = 6;
pub const CLOCK_BOOTTIME: i32 = 7;
pub const CLOCK_REALTIME_ALARM: i32 = 8;
pub const CLOCK_BOOTTIME_ALARM: i32 = 9;
pub const CLOCK_TAI: i32 = 11;

pub const TIMER_ABSTIME: u32 = 1;

pub const ITIMER_REAL: i32 = 0;
pub const ITIMER_VIRTUAL: i32 = 1;
pub const ITIMER_PROF: i32 = 2;

guest_struct! {
    /// struct timespec (clock_gettime(2))
    pub struct Timespec { pub tv_sec: i64, pub tv_nsec: i64, }
}

guest_struct! {
    /// struct timeval (gettimeofday(2))
    pub struct Timeval { pub tv_sec: i64, pub tv_usec: i64, }
}

guest_struct! {
    /// struct itimerval (setitimer(2))
    pub struct Itimerval { pub it_interval: Timeval, pub it_value: Timeval, }
}

guest_struct! {
    /// struct itimerspec (timer_settime(2))
    pub struct Itimerspec { pub it_interval: Timespec, pub it_value: Timespec, }
}
