//! Extended attributes (linux/xattr.h).

pub const XATTR_CREATE: u32 = 1;
pub const XATTR_REPLACE: u32 = 2;
