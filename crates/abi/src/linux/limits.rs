//! Limits of names and arguments (linux/limits.h, linux/binfmts.h).

pub const PATH_MAX: usize = 4096;
pub const NAME_MAX: usize = 255;
pub const XATTR_NAME_MAX: usize = 255;
pub const XATTR_SIZE_MAX: u64 = 65_536;
/// Longest argument of execve(2), its NUL counted.
pub const MAX_ARG_STRLEN: usize = 131_072;
