//! Linux's constants and structures (x86-64 ABI): one file for each header, which its first line names.
//!
//! Each has Linux's own name. A structure lies here as in guest memory, and is read and written by
//! bytes only.
#![allow(missing_docs)]

macro_rules! guest_struct {
    ($(#[$doc:meta])* pub struct $name:ident { $(pub $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[derive(
            Clone,
            Copy,
            Debug,
            Default,
            PartialEq,
            Eq,
            zerocopy::FromBytes,
            zerocopy::IntoBytes,
            zerocopy::Immutable,
            zerocopy::KnownLayout,
        )]
        #[repr(C)]
        pub struct $name { $(pub $field: $ty,)* }
    };
}

pub mod auxvec;
pub mod capability;
pub mod close_range;
pub mod eventfd;
pub mod eventpoll;
pub mod fadvise;
pub mod falloc;
pub mod fcntl;
pub mod fs;
pub mod futex;
pub mod inotify;
pub mod ioctls;
pub mod ipc;
pub mod limits;
pub mod magic;
pub mod membarrier;
pub mod memfd;
pub mod mman;
pub mod mqueue;
pub mod netlink;
pub mod openat2;
pub mod param;
pub mod poll;
pub mod prctl;
pub mod random;
pub mod resource;
pub mod sched;
pub mod signal;
pub mod signalfd;
pub mod socket;
pub mod stat;
pub mod statfs;
pub mod sysinfo;
pub mod termios;
pub mod time;
pub mod timerfd;
pub mod times;
pub mod uio;
pub mod utsname;
pub mod wait;
pub mod xattr;

pub use eventpoll::EpollEvent;
pub use fcntl::Flock;
pub use openat2::OpenHow;
pub use poll::Pollfd;
pub use resource::{Rlimit, Rusage};
pub use sched::CloneArgs;
pub use signal::{Sigaction, Sigevent, StackT};
pub use signalfd::SignalfdSiginfo;
pub use socket::{Mmsghdr, Msghdr};
pub use stat::{Stat, Statx, StatxTimestamp};
pub use statfs::Statfs;
pub use sysinfo::Sysinfo;
pub use termios::Winsize;
pub use time::{Itimerspec, Itimerval, Timespec, Timeval};
pub use times::Tms;
pub use uio::Iovec;
pub use utsname::Utsname;

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
        assert_eq!(size_of::<SignalfdSiginfo>(), 128);
        assert_eq!(size_of::<EpollEvent>(), size_of::<raw::epoll_event>());
        assert_eq!(size_of::<Flock>(), size_of::<raw::flock>());
        assert_eq!(size_of::<OpenHow>(), size_of::<raw::open_how>());
        assert_eq!(size_of::<Msghdr>(), size_of::<linux_raw_sys::net::msghdr>());
        assert_eq!(
            size_of::<Mmsghdr>(),
            size_of::<linux_raw_sys::net::mmsghdr>()
        );
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
        assert_eq!(offset_of!(SignalfdSiginfo, ssi_ptr), 48);
        assert_eq!(offset_of!(SignalfdSiginfo, ssi_addr), 72);
        assert_eq!(offset_of!(EpollEvent, data), 4);
        assert_eq!(offset_of!(Flock, l_pid), offset_of!(raw::flock, l_pid));
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
