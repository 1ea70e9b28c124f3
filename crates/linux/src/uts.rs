//! The kernel's description of itself, as uname(2) and /proc give it.

/// Version string of uname(2): the Linux whose calls the table follows.
pub const RELEASE: &str = "6.1.0-kvmlet";
/// Host name of every sandbox.
pub const NODENAME: &str = "kvmlet";
