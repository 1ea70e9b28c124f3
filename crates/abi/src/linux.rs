//! Linux structures as they lie in guest memory (x86-64 ABI), read and written by bytes only.
#![allow(missing_docs)]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! guest_struct {
    ($(#[$doc:meta])* pub struct $name:ident { $(pub $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $(pub $field: $ty,)* }
    };
}

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
guest_struct! {
    /// struct sigevent (sigevent(3type))
    pub struct Sigevent {
        pub sigev_value: u64, pub sigev_signo: i32, pub sigev_notify: i32,
        pub sigev_notify_thread_id: i32, pub pad: [i32; 11],
    }
}
guest_struct! {
    /// struct iovec (readv(2))
    pub struct Iovec { pub iov_base: u64, pub iov_len: u64, }
}
guest_struct! {
    /// struct stat (stat(2)), x86-64
    pub struct Stat {
        pub st_dev: u64, pub st_ino: u64, pub st_nlink: u64,
        pub st_mode: u32, pub st_uid: u32, pub st_gid: u32, pub pad0: u32,
        pub st_rdev: u64, pub st_size: i64, pub st_blksize: i64, pub st_blocks: i64,
        pub st_atime: u64, pub st_atime_nsec: u64, pub st_mtime: u64, pub st_mtime_nsec: u64,
        pub st_ctime: u64, pub st_ctime_nsec: u64, pub unused: [i64; 3],
    }
}
guest_struct! {
    /// struct statx_timestamp (statx(2))
    pub struct StatxTimestamp { pub tv_sec: i64, pub tv_nsec: u32, pub reserved: i32, }
}
guest_struct! {
    /// struct statx (statx(2))
    pub struct Statx {
        pub stx_mask: u32, pub stx_blksize: u32, pub stx_attributes: u64, pub stx_nlink: u32,
        pub stx_uid: u32, pub stx_gid: u32, pub stx_mode: u16, pub spare0: u16, pub stx_ino: u64,
        pub stx_size: u64, pub stx_blocks: u64, pub stx_attributes_mask: u64,
        pub stx_atime: StatxTimestamp, pub stx_btime: StatxTimestamp,
        pub stx_ctime: StatxTimestamp, pub stx_mtime: StatxTimestamp,
        pub stx_rdev_major: u32, pub stx_rdev_minor: u32, pub stx_dev_major: u32,
        pub stx_dev_minor: u32, pub stx_mnt_id: u64, pub stx_dio_mem_align: u32,
        pub stx_dio_offset_align: u32, pub spare3: [u64; 12],
    }
}
guest_struct! {
    /// struct statfs (statfs(2)), x86-64
    pub struct Statfs {
        pub f_type: i64, pub f_bsize: i64, pub f_blocks: u64, pub f_bfree: u64, pub f_bavail: u64,
        pub f_files: u64, pub f_ffree: u64, pub f_fsid: [i32; 2], pub f_namelen: i64,
        pub f_frsize: i64, pub f_flags: i64, pub f_spare: [i64; 4],
    }
}
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
guest_struct! {
    /// struct tms (times(2))
    pub struct Tms { pub tms_utime: i64, pub tms_stime: i64, pub tms_cutime: i64, pub tms_cstime: i64, }
}
guest_struct! {
    /// struct sysinfo (sysinfo(2)), x86-64
    pub struct Sysinfo {
        pub uptime: i64, pub loads: [u64; 3], pub totalram: u64, pub freeram: u64,
        pub sharedram: u64, pub bufferram: u64, pub totalswap: u64, pub freeswap: u64,
        pub procs: u16, pub pad: u16, pub pad1: u32, pub totalhigh: u64, pub freehigh: u64,
        pub mem_unit: u32, pub pad2: u32,
    }
}
guest_struct! {
    /// struct pollfd (poll(2))
    pub struct Pollfd { pub fd: i32, pub events: i16, pub revents: i16, }
}
guest_struct! {
    /// struct kernel_sigaction (rt_sigaction(2)), x86-64
    pub struct Sigaction { pub handler: u64, pub flags: u64, pub restorer: u64, pub mask: u64, }
}
guest_struct! {
    /// stack_t (sigaltstack(2))
    pub struct StackT { pub ss_sp: u64, pub ss_flags: i32, pub pad: u32, pub ss_size: u64, }
}
guest_struct! {
    /// struct clone_args (clone3(2)), version 2
    pub struct CloneArgs {
        pub flags: u64, pub pidfd: u64, pub child_tid: u64, pub parent_tid: u64,
        pub exit_signal: u64, pub stack: u64, pub stack_size: u64, pub tls: u64,
        pub set_tid: u64, pub set_tid_size: u64, pub cgroup: u64,
    }
}
guest_struct! {
    /// struct winsize (TIOCGWINSZ, ioctl_tty(2))
    pub struct Winsize { pub ws_row: u16, pub ws_col: u16, pub ws_xpixel: u16, pub ws_ypixel: u16, }
}

/// struct new_utsname (uname(2)): six NUL-padded fields of 65 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Utsname {
    pub fields: [[u8; 65]; 6],
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;
    use linux_raw_sys::general as raw;

    #[test]
    fn sizes_agree_with_the_kernel_headers() {
        assert_eq!(size_of::<Stat>(), size_of::<raw::stat>());
        assert_eq!(size_of::<Statx>(), size_of::<raw::statx>());
        assert_eq!(size_of::<Statfs>(), size_of::<raw::statfs64>());
        assert_eq!(size_of::<Rusage>(), size_of::<raw::rusage>());
        assert_eq!(size_of::<Timespec>(), size_of::<raw::__kernel_timespec>());
        assert_eq!(
            size_of::<Itimerval>(),
            size_of::<raw::__kernel_old_itimerval>()
        );
        assert_eq!(
            size_of::<Itimerspec>(),
            size_of::<raw::__kernel_itimerspec>()
        );
        assert_eq!(size_of::<Sigevent>(), 64);
        assert_eq!(size_of::<Pollfd>(), size_of::<raw::pollfd>());
        assert_eq!(size_of::<Sigaction>(), size_of::<raw::kernel_sigaction>());
        assert_eq!(size_of::<StackT>(), size_of::<raw::stack_t>());
        assert_eq!(size_of::<CloneArgs>(), size_of::<raw::clone_args>());
        assert_eq!(size_of::<Rlimit>(), size_of::<raw::rlimit64>());
        assert_eq!(size_of::<Winsize>(), size_of::<raw::winsize>());
        assert_eq!(
            size_of::<Utsname>(),
            size_of::<linux_raw_sys::system::new_utsname>()
        );
        assert_eq!(
            size_of::<Sysinfo>(),
            size_of::<linux_raw_sys::system::sysinfo>()
        );
    }

    #[test]
    fn offsets_agree_with_the_kernel_headers() {
        use core::mem::offset_of;
        assert_eq!(offset_of!(Stat, st_rdev), offset_of!(raw::stat, st_rdev));
        assert_eq!(offset_of!(Stat, st_mtime), offset_of!(raw::stat, st_mtime));
        assert_eq!(
            offset_of!(Statx, stx_size),
            offset_of!(raw::statx, stx_size)
        );
        assert_eq!(
            offset_of!(Statx, stx_mtime),
            offset_of!(raw::statx, stx_mtime)
        );
        assert_eq!(
            offset_of!(Statx, stx_mnt_id),
            offset_of!(raw::statx, stx_mnt_id)
        );
        assert_eq!(
            offset_of!(Sysinfo, mem_unit),
            offset_of!(linux_raw_sys::system::sysinfo, mem_unit)
        );
    }
}
