//! File attributes as values, and their form in guest memory.

pub use kvmlet_abi::linux::stat::{
    S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK,
};
use kvmlet_abi::linux::{Stat, Statx, StatxTimestamp};

use crate::Ids;

/// Permission to read (access(2) R_OK).
pub const MAY_READ: u32 = 4;
/// Permission to write (access(2) W_OK).
pub const MAY_WRITE: u32 = 2;
/// Permission to execute or search (access(2) X_OK).
pub const MAY_EXEC: u32 = 1;

/// A file time: seconds and nanoseconds since the Epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct FileTime {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds, below 1e9.
    pub nsec: u32,
}

impl FileTime {
    /// From nanoseconds since the Epoch.
    #[must_use]
    pub fn from_ns(ns: u64) -> Self {
        let nsec = u32::try_from(ns % 1_000_000_000).unwrap_or(0);
        Self {
            sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
            nsec,
        }
    }

    fn statx(self) -> StatxTimestamp {
        StatxTimestamp {
            tv_sec: self.sec,
            tv_nsec: self.nsec,
            reserved: 0,
        }
    }
}

/// The attributes that stat(2) tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attr {
    /// Device number of the file system.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Hard links.
    pub nlink: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, for devices.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    /// 512-byte blocks allocated.
    pub blocks: u64,
    /// Last access.
    pub atime: FileTime,
    /// Last modification.
    pub mtime: FileTime,
    /// Last status change.
    pub ctime: FileTime,
    /// Creation, where known.
    pub btime: Option<FileTime>,
}

/// Major number of a device number (makedev(3)).
#[must_use]
pub fn major(dev: u64) -> u32 {
    (((dev >> 32) & 0xffff_f000) | ((dev >> 8) & 0xfff)) as u32
}

/// Minor number of a device number (makedev(3)).
#[must_use]
pub fn minor(dev: u64) -> u32 {
    (((dev >> 12) & 0xffff_ff00) | (dev & 0xff)) as u32
}

/// A device number (makedev(3)).
#[must_use]
pub const fn makedev(major: u32, minor: u32) -> u64 {
    let (major, minor) = (major as u64, minor as u64);
    ((major & 0xffff_f000) << 32)
        | ((major & 0xfff) << 8)
        | ((minor & 0xffff_ff00) << 12)
        | (minor & 0xff)
}

impl Attr {
    /// The type bits.
    #[must_use]
    pub fn kind(&self) -> u32 {
        self.mode & S_IFMT
    }

    /// True if it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.kind() == S_IFDIR
    }

    /// True if it is a symbolic link.
    #[must_use]
    pub fn is_symlink(&self) -> bool {
        self.kind() == S_IFLNK
    }

    /// True if the mode bits grant all of `wanted` (path_resolution(7), without capabilities).
    #[must_use]
    pub fn grants(&self, who: &Ids, wanted: u32) -> bool {
        let class = if who.uid == self.uid {
            self.mode >> 6
        } else if who.is_member(self.gid) {
            self.mode >> 3
        } else {
            self.mode
        };
        class & wanted & 7 == wanted & 7
    }

    /// As struct stat.
    #[must_use]
    pub fn to_stat(self) -> Stat {
        Stat {
            st_dev: self.dev,
            st_ino: self.ino,
            st_nlink: self.nlink,
            st_mode: self.mode,
            st_uid: self.uid,
            st_gid: self.gid,
            st_rdev: self.rdev,
            st_size: self.size.cast_signed(),
            st_blksize: i64::from(self.blksize),
            st_blocks: self.blocks.cast_signed(),
            st_atime: self.atime.sec.cast_unsigned(),
            st_atime_nsec: u64::from(self.atime.nsec),
            st_mtime: self.mtime.sec.cast_unsigned(),
            st_mtime_nsec: u64::from(self.mtime.nsec),
            st_ctime: self.ctime.sec.cast_unsigned(),
            st_ctime_nsec: u64::from(self.ctime.nsec),
            ..Stat::default()
        }
    }

    /// As struct statx: the basic fields, and the creation time where known.
    #[must_use]
    pub fn to_statx(self) -> Statx {
        const STATX_BASIC_STATS: u32 = 0x7ff;
        const STATX_BTIME: u32 = 0x800;
        Statx {
            stx_mask: STATX_BASIC_STATS | if self.btime.is_some() { STATX_BTIME } else { 0 },
            stx_blksize: self.blksize,
            stx_nlink: u32::try_from(self.nlink).unwrap_or(u32::MAX),
            stx_uid: self.uid,
            stx_gid: self.gid,
            stx_mode: (self.mode & 0xffff) as u16,
            stx_ino: self.ino,
            stx_size: self.size,
            stx_blocks: self.blocks,
            stx_atime: self.atime.statx(),
            stx_btime: self.btime.unwrap_or_default().statx(),
            stx_ctime: self.ctime.statx(),
            stx_mtime: self.mtime.statx(),
            stx_rdev_major: major(self.rdev),
            stx_rdev_minor: minor(self.rdev),
            stx_dev_major: major(self.dev),
            stx_dev_minor: minor(self.dev),
            ..Statx::default()
        }
    }
}

/// d_type of a mode (readdir(3)).
#[must_use]
pub fn d_type(mode: u32) -> u8 {
    ((mode & S_IFMT) >> 12) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_round_trip() {
        for (a, b) in [(1, 3), (8, 17), (259, 70_000), (0xfffff, 0xfffff)] {
            let dev = makedev(a, b);
            assert_eq!((major(dev), minor(dev)), (a, b));
        }
    }

    #[test]
    fn owner_bits_come_first_even_when_they_grant_less() {
        let who = Ids {
            uid: 5,
            gid: 6,
            groups: [7].into(),
        };
        let mut attr = Attr {
            uid: 5,
            gid: 6,
            mode: S_IFREG | 0o077,
            ..Attr::default()
        };
        assert!(!attr.grants(&who, MAY_READ));
        attr.uid = 0;
        assert!(attr.grants(&who, MAY_READ | MAY_WRITE));
        attr.mode = S_IFREG | 0o607;
        attr.gid = 7;
        assert!(!attr.grants(&who, MAY_READ));
        attr.gid = 8;
        assert!(attr.grants(&who, MAY_EXEC));
    }
}
