//! The system calls, by subject, and the table that names them all.

pub mod args;
pub mod ask;
pub mod channel;
pub mod credentials;
pub mod fs;
pub mod futex;
pub mod identity;
pub mod io;
pub mod ipc;
pub mod mem;
pub mod net;
pub mod peer;
pub mod pi;
pub mod placement;
pub mod process;
pub(crate) mod rows;
pub mod signal;
#[cfg(test)]
mod support_tests;
pub mod table;
pub mod thread;
pub mod time;
pub mod timer;
