//! Processes and threads: how they begin, end and are waited for.

pub mod exit;
pub mod fork;
pub mod robust;
pub mod share;
pub mod spawn;
pub mod stop;
pub mod usage;
pub mod wait;
