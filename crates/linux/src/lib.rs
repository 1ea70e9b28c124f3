//! The Linux personality: what a system call means, in safe Rust, without KVM.
//!
//! Everything the guest can observe of its kernel is one [`Kernel`] value; a handler gets a [`Cx`]
//! and returns an [`Outcome`]: it never blocks. How a call reached us (an exit, a shared page) is
//! unknown here: a call is a thread's registers.
#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

pub mod budget;
pub mod cx;
pub mod fd;
pub mod host;
pub mod hostfd;
pub mod kernel;
pub mod outcome;
pub mod report;

pub mod channel;
pub mod clock;
pub mod exec;
pub mod frame;
pub mod futex;
pub mod guest_call;
pub mod mm;
pub mod personality;
pub mod rlimit;
pub mod sched;
pub mod signal;
pub mod symbols;
pub mod syscalls;
#[cfg(test)]
pub(crate) mod testing;
pub mod timer;
pub mod trace;
pub mod vfs;
pub use cx::Cx;
pub use host::Host;
pub use kernel::{Kernel, Pid, Tid};
pub use outcome::{Outcome, Wait};
