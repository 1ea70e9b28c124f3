//! Advice of fadvise64(2) (linux/fadvise.h).

pub const POSIX_FADV_NOREUSE: i32 = 5;
