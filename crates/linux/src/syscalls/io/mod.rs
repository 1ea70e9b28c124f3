//! Calls on descriptors: transfers, positions, duplication, control, readiness.

mod control;
mod copy;
mod descriptor;
mod epoll;
mod eventfd;
mod inotify;
mod locking;
pub(super) mod message;
mod pidfd;
mod poll;
mod pty;
mod rw;
mod signalfd;
mod size;
mod splice;
mod terminal;
mod timerfd;
pub(super) mod transfer;

pub use control::sys_ioctl;
pub use copy::{sys_copy_file_range, sys_sendfile};
pub use descriptor::{
    sys_close, sys_close_range, sys_dup, sys_dup2, sys_dup3, sys_fcntl, sys_memfd_create, sys_pipe,
    sys_pipe2,
};
pub use epoll::{
    sys_epoll_create, sys_epoll_create1, sys_epoll_ctl, sys_epoll_pwait, sys_epoll_pwait2,
    sys_epoll_wait,
};
pub use eventfd::{sys_eventfd, sys_eventfd2};
pub use inotify::{
    sys_inotify_add_watch, sys_inotify_init, sys_inotify_init1, sys_inotify_rm_watch,
};
pub use locking::sys_flock;
pub use pidfd::sys_pidfd_open;
pub use poll::{sys_poll, sys_ppoll, sys_pselect6, sys_select};
pub use rw::{
    sys_lseek, sys_pread64, sys_preadv, sys_preadv2, sys_pwrite64, sys_pwritev, sys_pwritev2,
    sys_read, sys_readv, sys_write, sys_writev,
};
pub use signalfd::{sys_signalfd, sys_signalfd4};
pub use size::{
    sys_fadvise64, sys_fallocate, sys_fdatasync, sys_fsync, sys_ftruncate, sys_readahead, sys_sync,
    sys_sync_file_range, sys_syncfs,
};
pub use splice::{sys_splice, sys_tee, sys_vmsplice};
pub use timerfd::{sys_timerfd_create, sys_timerfd_gettime, sys_timerfd_settime};

/// An `int` argument: the low 32 bits, as Linux takes it.
#[allow(clippy::cast_possible_truncation)]
pub(super) fn int(arg: u64) -> i32 {
    arg as i32
}

/// An `unsigned int` argument.
#[allow(clippy::cast_possible_truncation)]
pub(super) fn uint(arg: u64) -> u32 {
    arg as u32
}

/// A descriptor as a call's result.
pub(super) fn number(fd: i32) -> u64 {
    u64::from(fd.cast_unsigned())
}

#[cfg(test)]
mod epoll_tests;
#[cfg(test)]
mod tests;
