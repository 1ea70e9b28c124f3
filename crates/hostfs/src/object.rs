//! An open object of the host, asked about itself.

use std::os::fd::BorrowedFd;

use kvmlet_abi::Errno;
use kvmlet_abi::linux::Statfs;
use kvmlet_policy::file_name;
use rustix::fs::AtFlags;

use crate::attr::{Attr, FileTime};
use crate::error::errno;

/// File systems of the kernel's own (statfs(2), linux/magic.h).
const KERNEL_FILE_SYSTEMS: [i64; 19] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x27_e0eb,   // cgroup
    0x6367_7270, // cgroup2
    0xcafe_4a11, // bpf
    0x6165_676c, // pstore
    0xde5e_81e4, // efivarfs
    0x6265_6570, // configfs
    0xf97c_ff8c, // selinuxfs
    0x4249_4e4d, // binfmt_misc
    0x6e73_6673, // nsfs
    0x6e66_7364, // nfsd
    0x6759_6969, // rpc_pipefs
    0x6573_5543, // fusectl
    0x4341_5d53, // smackfs
    0x0765_5821, // resctrl
];

/// The attributes of an open host object.
///
/// # Errors
/// The host's.
pub fn attr_of(fd: BorrowedFd<'_>) -> Result<Attr, Errno> {
    rustix::fs::fstat(fd).map_err(errno).map(attr_from)
}

pub(crate) fn attr_from(stat: rustix::fs::Stat) -> Attr {
    let time = |sec: i64, nsec: u64| FileTime {
        sec,
        nsec: u32::try_from(nsec).unwrap_or(0),
    };
    Attr {
        dev: stat.st_dev,
        ino: stat.st_ino,
        mode: stat.st_mode,
        nlink: stat.st_nlink,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
        blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        btime: None,
    }
}

/// True if both are of one object.
#[must_use]
pub fn is_same(one: &Attr, other: &Attr) -> bool {
    (one.dev, one.ino, one.kind()) == (other.dev, other.ino, other.kind())
}

/// True if what `fd` is open on, which has `attr`, belongs to a file system of the kernel's own. Its files
/// act on the machine or tell of other processes, this one included.
#[must_use]
pub fn is_kernel_file(fd: BorrowedFd<'_>, attr: &Attr) -> bool {
    is_on(fd, attr, &KERNEL_FILE_SYSTEMS)
}

/// True for a directory in which names are mounted once they are looked up (autofs).
pub(crate) fn is_mounting(fd: BorrowedFd<'_>, attr: &Attr) -> bool {
    const AUTOFS: i64 = 0x187;
    is_on(fd, attr, &[AUTOFS])
}

/// True for what lies on one of these file systems of the kernel's.
fn is_on(fd: BorrowedFd<'_>, attr: &Attr, kinds: &[i64]) -> bool {
    // They are on no device, which spares most files the question.
    if rustix::fs::major(attr.dev) != 0 {
        return false;
    }
    // Those answer; 9p, say, does not of every symbolic link.
    rustix::fs::fstatfs(fd).is_ok_and(|found| kinds.contains(&found.f_type))
}

/// The target of a symbolic link opened as a location.
///
/// # Errors
/// The host's; `EINVAL` if it is not a symbolic link.
pub fn read_link(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    match rustix::fs::readlinkat(fd, "", Vec::new()) {
        Ok(target) => Ok(target.into_bytes()),
        // Linux answers ENOENT for an empty path to something that is not a link.
        Err(rustix::io::Errno::NOENT) => Err(Errno::EINVAL),
        Err(error) => Err(errno(error)),
    }
}

/// When a host object was created, if its file system knows.
#[must_use]
pub fn birth_time(fd: BorrowedFd<'_>) -> Option<FileTime> {
    birth_time_at(fd, b"", AtFlags::EMPTY_PATH)
}

/// The same of what directory `dir` has by the name that `path` ends in. A symbolic link is not followed.
#[must_use]
pub fn birth_time_in(dir: BorrowedFd<'_>, path: &[u8]) -> Option<FileTime> {
    birth_time_at(dir, file_name(path), AtFlags::SYMLINK_NOFOLLOW)
}

fn birth_time_at(dir: BorrowedFd<'_>, name: &[u8], flags: AtFlags) -> Option<FileTime> {
    use rustix::fs::StatxFlags;
    let found = rustix::fs::statx(dir, name, flags, StatxFlags::BTIME).ok()?;
    let known = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::BTIME);
    known.then_some(FileTime {
        sec: found.stx_btime.tv_sec,
        nsec: found.stx_btime.tv_nsec,
    })
}

/// Reads at an offset; short only at the end of the file.
///
/// # Errors
/// The host's.
pub fn read_at(fd: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut done = 0usize;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = offset.saturating_add(done as u64);
        match rustix::io::pread(fd, rest, at) {
            Ok(0) => break,
            Ok(count) => done = done.saturating_add(count),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) if done == 0 => return Err(errno(error)),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// Says if a program may change what it sees of a file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shown {
    /// It may only read it.
    ReadOnly,
    /// It may change it as far as the host lets it.
    AsMounted,
}

/// Free space and such of the file system that `fd` is on.
///
/// # Errors
/// The host's.
pub fn file_system(fd: BorrowedFd<'_>, shown: Shown) -> Result<Statfs, Errno> {
    const ST_RDONLY: i64 = 1;
    const ST_VALID: i64 = 0x20;
    let found = rustix::fs::fstatfs(fd).map_err(errno)?;
    let read_only = match shown {
        Shown::ReadOnly => ST_RDONLY,
        Shown::AsMounted => 0,
    };
    Ok(Statfs {
        f_type: found.f_type,
        f_bsize: found.f_bsize,
        f_blocks: found.f_blocks,
        f_bfree: found.f_bfree,
        f_bavail: found.f_bavail,
        f_files: found.f_files,
        f_ffree: found.f_ffree,
        f_namelen: found.f_namelen,
        f_frsize: found.f_frsize,
        f_flags: found.f_flags | read_only | ST_VALID,
        ..Statfs::default()
    })
}
