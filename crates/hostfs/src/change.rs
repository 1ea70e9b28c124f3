//! Changes of host trees, each of one name in a directory that is open: no path is walked and no symbolic link
//! followed.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use kvmlet_abi::Errno;
use kvmlet_policy::file_name;
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps,
};
use rustix::io::ReadWriteFlags;

use crate::attr::{Attr, FileTime, S_IFREG, S_IFSOCK};
use crate::error::errno;
use crate::file::HostFile;
use crate::handle::{attr_in, open_in};
use crate::object::{attr_of, birth_time_in};
use crate::stream::retry;

/// The purpose that a regular file is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reading (O_RDONLY)
    Read,
    /// Writing (O_WRONLY)
    Write,
    /// Both (O_RDWR)
    ReadWrite,
}

/// When written bytes are to be on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Some time later.
    Later,
    /// When the write has ended, without what only describes the file (O_DSYNC).
    Data,
    /// When the write has ended (O_SYNC).
    All,
}

/// The way that a file is opened to be changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriteMode {
    /// Purpose.
    pub access: Access,
    /// When its bytes are to be on the disk.
    pub durability: Durability,
}

impl WriteMode {
    pub(crate) fn flags(self) -> OFlags {
        let access = match self.access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::WRONLY,
            Access::ReadWrite => OFlags::RDWR,
        };
        let durability = match self.durability {
            Durability::Later => OFlags::empty(),
            Durability::Data => OFlags::DSYNC,
            Durability::All => OFlags::SYNC,
        };
        // O_NONBLOCK: should a FIFO have taken its place meanwhile, opening it must not wait.
        access | durability | OFlags::NONBLOCK | OFlags::NOCTTY
    }
}

/// Opens the regular file that `dir` has by the name that `path` ends in, as it is.
///
/// # Errors
/// The host's; `ESTALE` if there is no regular file.
pub fn open_to_change(
    dir: BorrowedFd<'_>,
    path: &[u8],
    mode: WriteMode,
) -> Result<(OwnedFd, Attr), Errno> {
    regular(open_in(dir, path, mode.flags())?)
}

/// Asks the host if the file or directory that is open here, be it as a location, may be changed. Nothing is opened for
/// that, which others could notice.
///
/// # Errors
/// The host's: `EACCES`, `EROFS`, `EPERM`.
pub fn check_access(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut wanted = rustix::fs::Access::WRITE_OK;
    if attr_of(fd)?.is_dir() {
        wanted |= rustix::fs::Access::EXEC_OK;
    }
    rustix::fs::accessat(rustix::fs::CWD, by_number(fd), wanted, AtFlags::EACCESS).map_err(errno)
}

/// What has been opened, if it is a regular file.
pub(crate) fn regular(fd: OwnedFd) -> Result<(OwnedFd, Attr), Errno> {
    let attr = attr_of(fd.as_fd())?;
    if attr.kind() == S_IFREG {
        Ok((fd, attr))
    } else {
        Err(Errno::ESTALE)
    }
}

/// Makes a regular file that was not there, with these permissions, and opens it.
///
/// # Errors
/// The host's: `EEXIST` if something is there.
pub fn create(
    dir: BorrowedFd<'_>,
    path: &[u8],
    mode: WriteMode,
    permissions: u32,
) -> Result<(OwnedFd, Attr), Errno> {
    let flags = mode.flags() | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let bits = Mode::from_bits_truncate(permissions);
    let made = rustix::fs::openat(dir, file_name(path), flags, bits);
    let fd = made.map_err(errno)?;
    let attr = undo_mask(fd.as_fd(), permissions)?;
    Ok((fd, attr))
}

/// Says if a file without a name may be given one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Linkable {
    /// Once ([`link_unnamed`]).
    Yes,
    /// Never (O_EXCL).
    No,
}

/// Makes a regular file without a name on the file system of `dir`, with these permissions, and opens it (O_TMPFILE).
///
/// # Errors
/// The host's: `EOPNOTSUPP` if its file system has none.
pub fn create_unnamed(
    dir: BorrowedFd<'_>,
    mode: WriteMode,
    permissions: u32,
    linkable: Linkable,
) -> Result<(OwnedFd, Attr), Errno> {
    let mut flags = mode.flags() | OFlags::TMPFILE | OFlags::CLOEXEC;
    flags.set(OFlags::EXCL, linkable == Linkable::No);
    let bits = Mode::from_bits_truncate(permissions);
    let fd = rustix::fs::openat(dir, ".", flags, bits).map_err(errno)?;
    let attr = undo_mask(fd.as_fd(), permissions)?;
    Ok((fd, attr))
}

/// Gives a file that [`create_unnamed`] has made the name that `to` ends in.
///
/// # Errors
/// The host's: `ENOENT` for one that had a name, or may have none.
pub fn link_unnamed(fd: BorrowedFd<'_>, to: (BorrowedFd<'_>, &[u8])) -> Result<(), Errno> {
    let (from, flags) = (by_number(fd), AtFlags::SYMLINK_FOLLOW);
    rustix::fs::linkat(rustix::fs::CWD, from, to.0, file_name(to.1), flags).map_err(errno)
}

/// Opens the regular file behind a descriptor once more.
///
/// # Errors
/// As [`open_to_change`].
pub fn open_again(fd: BorrowedFd<'_>, mode: WriteMode) -> Result<(OwnedFd, Attr), Errno> {
    regular(open_by_number(fd, mode)?)
}

/// Opens the object behind a descriptor once more.
pub(crate) fn open_by_number(fd: BorrowedFd<'_>, mode: WriteMode) -> Result<OwnedFd, Errno> {
    let flags = mode.flags() | OFlags::CLOEXEC;
    rustix::fs::openat(rustix::fs::CWD, by_number(fd), flags, Mode::empty()).map_err(errno)
}

/// The path of what a descriptor of this process is open on: the kernel goes there whatever its names are.
fn by_number(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Makes a directory with these permissions.
///
/// # Errors
/// The host's.
pub fn make_directory(dir: BorrowedFd<'_>, path: &[u8], permissions: u32) -> Result<(), Errno> {
    let bits = Mode::from_bits_truncate(permissions);
    rustix::fs::mkdirat(dir, file_name(path), bits).map_err(errno)?;
    // It is there; one that cannot be opened keeps the mode that this process's mask has left.
    if let Ok(fd) = open_in(dir, path, OFlags::RDONLY | OFlags::DIRECTORY) {
        let _ = undo_mask(fd.as_fd(), permissions);
    }
    Ok(())
}

/// Gives something new the permissions that this process's own mask (umask(2)) has taken from it.
fn undo_mask(fd: BorrowedFd<'_>, permissions: u32) -> Result<Attr, Errno> {
    let mut attr = attr_of(fd)?;
    let missing = permissions & !attr.mode & 0o1777;
    if missing != 0 {
        let bits = attr.mode & 0o7777 | missing;
        rustix::fs::fchmod(fd, Mode::from_bits_truncate(bits)).map_err(errno)?;
        attr.mode |= missing;
    }
    Ok(attr)
}

/// Makes a symbolic link with this target.
///
/// # Errors
/// The host's.
pub fn make_symlink(dir: BorrowedFd<'_>, path: &[u8], target: &[u8]) -> Result<(), Errno> {
    rustix::fs::symlinkat(target, dir, file_name(path)).map_err(errno)
}

/// Makes the name of a socket that nobody listens at, with these permissions but for those that this process's mask
/// takes. Answers the attributes of what has the name then, when it was created among them.
///
/// # Errors
/// The host's: `EEXIST` if something is there, `ENOSPC`; `ESTALE` if another thing has taken the name by now.
pub fn make_socket(dir: BorrowedFd<'_>, path: &[u8], permissions: u32) -> Result<Attr, Errno> {
    let bits = Mode::from_bits_truncate(permissions);
    rustix::fs::mknodat(dir, file_name(path), FileType::Socket, bits, 0).map_err(errno)?;
    let attr = attr_in(dir, path)?;
    if attr.kind() != S_IFSOCK {
        return Err(Errno::ESTALE);
    }
    let btime = birth_time_in(dir, path);
    Ok(Attr { btime, ..attr })
}

/// Gives what `from` names another name, `to` (link(2)). A symbolic link is not followed.
///
/// # Errors
/// The host's.
pub fn link(from: (BorrowedFd<'_>, &[u8]), to: (BorrowedFd<'_>, &[u8])) -> Result<(), Errno> {
    let names = (file_name(from.1), file_name(to.1));
    rustix::fs::linkat(from.0, names.0, to.0, names.1, AtFlags::empty()).map_err(errno)
}

/// Takes a name that is no directory away.
///
/// # Errors
/// The host's: `EISDIR` for a directory.
pub fn unlink(dir: BorrowedFd<'_>, path: &[u8]) -> Result<(), Errno> {
    rustix::fs::unlinkat(dir, file_name(path), AtFlags::empty()).map_err(errno)
}

/// Removes an empty directory.
///
/// # Errors
/// The host's.
pub fn remove_directory(dir: BorrowedFd<'_>, path: &[u8]) -> Result<(), Errno> {
    rustix::fs::unlinkat(dir, file_name(path), AtFlags::REMOVEDIR).map_err(errno)
}

/// The fate of something that has the new name already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Present {
    /// It is replaced.
    Replaced,
    /// It stays, and the rename fails (RENAME_NOREPLACE).
    Kept,
    /// It gets the old name (RENAME_EXCHANGE).
    Exchanged,
}

/// Gives what `from` names the name `to` in its place (renameat2(2)).
///
/// # Errors
/// The host's.
pub fn rename(
    from: (BorrowedFd<'_>, &[u8]),
    to: (BorrowedFd<'_>, &[u8]),
    present: Present,
) -> Result<(), Errno> {
    let flags = match present {
        Present::Replaced => RenameFlags::empty(),
        Present::Kept => RenameFlags::NOREPLACE,
        Present::Exchanged => RenameFlags::EXCHANGE,
    };
    let names = (file_name(from.1), file_name(to.1));
    rustix::fs::renameat_with(from.0, names.0, to.0, names.1, flags).map_err(errno)
}

/// Something that is there, as its attributes are changed: open, or by its name.
#[derive(Clone, Copy, Debug)]
pub enum Named<'a> {
    /// A descriptor that is more than a location.
    Open(BorrowedFd<'a>),
    /// In this directory, by the last component of this path; a symbolic link is not followed.
    In(BorrowedFd<'a>, &'a [u8]),
}

impl<'a> Named<'a> {
    /// The descriptor: of the object, or of the directory that it is in.
    pub(crate) fn fd(self) -> BorrowedFd<'a> {
        match self {
            Self::Open(fd) | Self::In(fd, _) => fd,
        }
    }
}

/// Sets permission bits. The process may not do that by a name: that would reach beyond its trees.
///
/// # Errors
/// The host's; `ESTALE` if another object has taken the name of the one with `attr`. `EACCES` for what can be
/// opened neither for reading nor for writing.
pub fn set_mode(named: Named<'_>, attr: &Attr, bits: u32) -> Result<(), Errno> {
    let bits = Mode::from_bits_truncate(bits);
    let own = open_named(named, attr)?;
    let fd = own.as_ref().map_or_else(|| named.fd(), |own| own.as_fd());
    rustix::fs::fchmod(fd, bits).map_err(errno)
}

/// What is named with `attr`, opened if it is not open.
///
/// # Errors
/// As [`set_mode`].
pub(crate) fn open_named(named: Named<'_>, attr: &Attr) -> Result<Option<OwnedFd>, Errno> {
    let Named::In(dir, path) = named else {
        return Ok(None);
    };
    let base = OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = match open_in(dir, path, OFlags::RDONLY | base) {
        Err(Errno::EACCES) if !attr.is_dir() => open_in(dir, path, OFlags::WRONLY | base)?,
        opened => opened?,
    };
    if !crate::object::is_same(&attr_of(fd.as_fd())?, attr) {
        return Err(Errno::ESTALE);
    }
    Ok(Some(fd))
}

/// Sets the group, and has the host drop the set-id bits. The owner stays.
///
/// # Errors
/// The host's.
pub fn set_owner(named: Named<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    let uid = uid.map(rustix::fs::Uid::from_raw);
    let gid = gid.map(rustix::fs::Gid::from_raw);
    match named {
        Named::Open(fd) => rustix::fs::fchown(fd, uid, gid),
        Named::In(dir, path) => {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(dir, file_name(path), uid, gid, flags)
        }
    }
    .map_err(errno)
}

/// The change of a file time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NewTime {
    /// It stays (UTIME_OMIT).
    Kept,
    /// The host's time (UTIME_NOW).
    Now,
    /// This one.
    At(FileTime),
}

impl NewTime {
    fn timespec(self) -> Timespec {
        let (tv_sec, tv_nsec) = match self {
            Self::Kept => (0, rustix::fs::UTIME_OMIT),
            Self::Now => (0, rustix::fs::UTIME_NOW),
            Self::At(time) => (time.sec, i64::from(time.nsec)),
        };
        Timespec { tv_sec, tv_nsec }
    }
}

/// Sets the times of last access and of last modification.
///
/// # Errors
/// The host's.
pub fn set_times(named: Named<'_>, access: NewTime, change: NewTime) -> Result<(), Errno> {
    let times = Timestamps {
        last_access: access.timespec(),
        last_modification: change.timespec(),
    };
    match named {
        Named::Open(fd) => rustix::fs::futimens(fd, &times),
        Named::In(dir, path) => {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(dir, file_name(path), &times, flags)
        }
    }
    .map_err(errno)
}

/// Writes at the end of the file, wherever that is by then.
///
/// # Errors
/// The host's.
pub fn append(file: &HostFile, bytes: &[u8]) -> Result<usize, Errno> {
    let part = [IoSlice::new(bytes)];
    let written = retry(|| rustix::io::pwritev2(&file.fd, &part, 0, ReadWriteFlags::APPEND));
    written.map_err(errno)
}

/// Gives a range of a file room on the disk, or takes it away (fallocate(2)).
///
/// # Errors
/// The host's.
pub fn allocate(file: &HostFile, mode: u32, offset: u64, len_bytes: u64) -> Result<(), Errno> {
    let mode = FallocateFlags::from_bits_retain(mode);
    retry(|| rustix::fs::fallocate(&file.fd, mode, offset, len_bytes)).map_err(errno)
}

/// Has what was written be on the disk, without what only describes the file (fdatasync(2)).
///
/// # Errors
/// The host's.
pub fn sync_data(file: &HostFile) -> Result<(), Errno> {
    rustix::fs::fdatasync(&file.fd).map_err(errno)
}

/// Sets the size of an open file.
///
/// # Errors
/// The host's.
pub fn set_size(fd: BorrowedFd<'_>, size: u64) -> Result<(), Errno> {
    retry(|| rustix::fs::ftruncate(fd, size)).map_err(errno)
}
