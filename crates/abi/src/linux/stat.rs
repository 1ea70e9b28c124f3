//! Attributes of files (linux/stat.h, asm/stat.h).

pub const S_IFMT: u32 = 0o170_000;
pub const S_IFSOCK: u32 = 0o140_000;
pub const S_IFLNK: u32 = 0o120_000;
pub const S_IFREG: u32 = 0o100_000;
pub const S_IFBLK: u32 = 0o060_000;
pub const S_IFDIR: u32 = 0o040_000;
pub const S_IFCHR: u32 = 0o020_000;
pub const S_IFIFO: u32 = 0o010_000;
pub const S_ISUID: u32 = 0o4000;
pub const S_ISGID: u32 = 0o2000;
pub const S_ISVTX: u32 = 0o1000;

pub const STATX_MNT_ID: u32 = 0x1000;
pub const STATX__RESERVED: u32 = 0x8000_0000;

pub const UTIME_NOW: i64 = 0x3fff_ffff;
pub const UTIME_OMIT: i64 = 0x3fff_fffe;

guest_struct! {
    /// struct stat (stat(2)), x86-64
    pub struct Stat {
        pub st_dev: u64, pub st_ino: u64, pub st_nlink: u64,
        pub st_mode: u32, pub st_uid: u32, pub st_gid: u32, pub pad0: u32,
        pub st_rdev: u64, pub st_size: i64, pub st_blksize: i64, pub st_blocks: i64,
        pub st_atime: u64, pub st_atime_nsec: u64, pub st_mtime: u64, pub st_mtime_nsec: u64,
        pub st_ctime: u64, pub st_ctime_nsec: u64, pub unused: [i64; 3],
    }
}

guest_struct! {
    /// struct statx_timestamp (statx(2))
    pub struct StatxTimestamp { pub tv_sec: i64, pub tv_nsec: u32, pub reserved: i32, }
}

guest_struct! {
    /// struct statx (statx(2))
    pub struct Statx {
        pub stx_mask: u32, pub stx_blksize: u32, pub stx_attributes: u64, pub stx_nlink: u32,
        pub stx_uid: u32, pub stx_gid: u32, pub stx_mode: u16, pub spare0: u16, pub stx_ino: u64,
        pub stx_size: u64, pub stx_blocks: u64, pub stx_attributes_mask: u64,
        pub stx_atime: StatxTimestamp, pub stx_btime: StatxTimestamp,
        pub stx_ctime: StatxTimestamp, pub stx_mtime: StatxTimestamp,
        pub stx_rdev_major: u32, pub stx_rdev_minor: u32, pub stx_dev_major: u32,
        pub stx_dev_minor: u32, pub stx_mnt_id: u64, pub stx_dio_mem_align: u32,
        pub stx_dio_offset_align: u32, pub spare3: [u64; 12],
    }
}
