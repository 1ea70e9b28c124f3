//! Limits and usage (linux/resource.h, asm-generic/resource.h).

use super::time::Timeval;

pub const RLIM_INFINITY: u64 = u64::MAX;

pub const RUSAGE_CHILDREN: i32 = -1;
pub const RUSAGE_SELF: i32 = 0;
pub const RUSAGE_THREAD: i32 = 1;

pub const PRIO_PROCESS: i32 = 0;
pub const PRIO_PGRP: i32 = 1;
pub const PRIO_USER: i32 = 2;

guest_struct! {
    /// struct rlimit64 (prlimit(2))
    pub struct Rlimit { pub rlim_cur: u64, pub rlim_max: u64, }
}

guest_struct! {
    /// struct rusage (getrusage(2))
    pub struct Rusage {
        pub ru_utime: Timeval, pub ru_stime: Timeval, pub ru_maxrss: i64, pub ru_ixrss: i64,
        pub ru_idrss: i64, pub ru_isrss: i64, pub ru_minflt: i64, pub ru_majflt: i64,
        pub ru_nswap: i64, pub ru_inblock: i64, pub ru_oublock: i64, pub ru_msgsnd: i64,
        pub ru_msgrcv: i64, pub ru_nsignals: i64, pub ru_nvcsw: i64, pub ru_nivcsw: i64,
    }
}
