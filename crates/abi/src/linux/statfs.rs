//! Attributes of file systems (asm/statfs.h, linux/statfs.h).

pub const ST_RDONLY: i64 = 1;
pub const ST_NOSUID: i64 = 2;
pub const ST_NODEV: i64 = 4;
pub const ST_VALID: i64 = 0x20;

guest_struct! {
    /// struct statfs (statfs(2)), x86-64
    pub struct Statfs {
        pub f_type: i64, pub f_bsize: i64, pub f_blocks: u64, pub f_bfree: u64, pub f_bavail: u64,
        pub f_files: u64, pub f_ffree: u64, pub f_fsid: [i32; 2], pub f_namelen: i64,
        pub f_frsize: i64, pub f_flags: i64, pub f_spare: [i64; 4],
    }
}
