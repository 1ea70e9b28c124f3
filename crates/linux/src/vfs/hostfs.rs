//! The host's files: the only place that opens one. Everything is opened from directory descriptors
//! by canonical paths. No symbolic link is ever followed by the host: links are resolved by us, in the
//! guest's namespace.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_hostfs::attr::{Attr, FileTime, MAY_EXEC, MAY_READ, S_IFDIR, S_IFLNK, S_IFREG};
use kvmlet_hostfs::{Enforcement, check_mode};
use kvmlet_policy::{Policy, beneath, file_name};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom};

use crate::host::Host;
use crate::hostfd::HostFd;
use crate::report::Remedy;

/// Names of one directory listed at most.
const LISTING_MAX: usize = 1 << 20;
/// Memory for the names of one part of a directory, in bytes: some ten thousand of them.
const LISTING_PART_BYTES: usize = 1 << 20;
/// Longest path that is opened, as Linux's PATH_MAX.
pub const PATH_MAX: usize = 4096;
/// File systems of the kernel's own (statfs(2), linux/magic.h).
const KERNEL_FILE_SYSTEMS: [i64; 14] = [
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
];
/// Tries again when a rename on the host raced with a lookup (openat2(2) EAGAIN).
const RACES_MAX: usize = 16;

/// A host error as the guest sees it.
#[must_use]
pub fn errno(error: rustix::io::Errno) -> Errno {
    match error {
        // Its own limit is another matter.
        rustix::io::Errno::MFILE => Errno::ENFILE,
        other => Errno::from_raw(other.raw_os_error()),
    }
}

/// The way that a path is walked on the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// One openat2(2) that refuses symbolic links.
    OpenAt2,
    /// Component by component, for hosts whose kernel or filter lacks openat2(2).
    Stepwise,
}

/// Directory descriptors that host paths are opened from.
#[derive(Debug)]
pub struct Roots {
    /// Canonical path of each base and its descriptor, longest path first; the last is `/`.
    bases: Vec<(Vec<u8>, Arc<HostFd>)>,
    lookup: Lookup,
}

/// The way to reach a host object again that was found.
#[derive(Debug)]
pub enum Handle {
    /// It is open as a location.
    Location(OwnedFd),
    /// In this directory, by the last component of its path: not open, which spares two host calls.
    Entry(Arc<HostFd>),
}

/// A part of one directory's names, in an order that stays: all of them, unless there are very many.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listing {
    /// Names that come before it.
    first: usize,
    /// (inode number, d_type, end of the name), without `.` and `..`.
    entries: Vec<(u64, u8, usize)>,
    /// All names, one after the other.
    names: Vec<u8>,
    /// The place where the host's directory goes on (d_off), if it does.
    next: Option<u64>,
}

impl Listing {
    /// Memory it takes, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let entries = self
            .entries
            .capacity()
            .saturating_mul(size_of::<(u64, u8, usize)>());
        self.names.capacity().saturating_add(entries)
    }

    /// The entries from that number on, counted from the start of the directory: inode number, d_type
    /// and name.
    pub fn from(&self, number: usize) -> impl Iterator<Item = (u64, u8, &[u8])> {
        let skip = number.saturating_sub(self.first);
        let before = skip.checked_sub(1).and_then(|last| self.entries.get(last));
        let mut start = before.map_or(0, |(_, _, end)| *end);
        self.entries.iter().skip(skip).map(move |(ino, kind, end)| {
            let name = self.names.get(start..*end).unwrap_or_default();
            start = *end;
            (*ino, *kind, name)
        })
    }

    /// The part that has entry `number`, or is the last: this one, or one after it.
    ///
    /// # Errors
    /// The host's.
    pub fn reach(self: &Arc<Self>, fd: BorrowedFd<'_>, number: usize) -> Result<Arc<Self>, Errno> {
        let mut part = Arc::clone(self);
        while let Some(next) = part.next {
            let end = part.first.saturating_add(part.entries.len());
            if number < end {
                break;
            }
            part = Arc::new(list_part(fd, end, next)?);
        }
        Ok(part)
    }

    /// True if entry `number` is in it or after it.
    #[must_use]
    pub fn starts_by(&self, number: usize) -> bool {
        self.first <= number
    }
}

const LOCATION: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

impl Roots {
    /// Opens the bases: `/`, /etc and the readable directories outside it.
    ///
    /// # Errors
    /// The host's error when `/` cannot be opened; `ENFILE` when sandboxes have all the descriptors that
    /// they may have.
    pub fn open(policy: &Policy) -> Result<Self, Errno> {
        let root =
            rustix::fs::open("/", LOCATION | OFlags::DIRECTORY, Mode::empty()).map_err(errno)?;
        let probe = rustix::fs::openat2(&root, ".", LOCATION, Mode::empty(), BENEATH);
        // A filter that does not know the call may answer either.
        let missing = matches!(
            probe,
            Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM | rustix::io::Errno::INVAL)
        );
        let lookup = if missing {
            Lookup::Stepwise
        } else {
            Lookup::OpenAt2
        };
        let mut roots = Self {
            bases: vec![(b"/".to_vec(), Arc::new(base(root)?))],
            lookup,
        };
        let outside_etc = policy
            .readable_trees()
            .filter(|tree| !beneath(b"/etc", tree));
        let mut opened = Vec::new();
        for path in outside_etc.chain([b"/etc".as_slice()]) {
            // What is a symbolic link or a file, or does not exist, is opened from `/` when named.
            let found = roots.open_at(path, LOCATION | OFlags::DIRECTORY);
            // What leads to the working directory may be private: as on Linux, who is there may stay.
            let found = found.or_else(|error| open_here(path).ok_or(error));
            if let Ok(fd) = found {
                opened.push((path.to_vec(), Arc::new(base(fd)?)));
            }
        }
        roots.bases.extend(opened);
        roots
            .bases
            .sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        Ok(roots)
    }

    /// The same bases, walked in another way.
    #[must_use]
    pub fn with_lookup(self, lookup: Lookup) -> Self {
        Self { lookup, ..self }
    }

    /// Opens canonical `path` without following any symbolic link.
    ///
    /// # Errors
    /// `ELOOP` if a directory on the way is a symbolic link (or the object is, and `flags` lack
    /// O_PATH); otherwise the host's.
    pub fn open_at(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let (base, fd) = self
            .bases
            .iter()
            .find(|(base, _)| beneath(base, path))
            .ok_or(Errno::ENOENT)?;
        let rest = path.get(base.len()..).unwrap_or_default();
        let rest = rest.strip_prefix(b"/").unwrap_or(rest);
        let rest = if rest.is_empty() {
            b".".as_slice()
        } else {
            rest
        };
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match self.lookup {
            Lookup::OpenAt2 => open_beneath(fd.as_fd(), rest, flags),
            Lookup::Stepwise => open_stepwise(fd.as_fd(), rest, flags),
        }
    }

    /// The descriptor of the directory at `path`, if it is a base.
    #[must_use]
    pub fn base(&self, path: &[u8]) -> Option<&Arc<HostFd>> {
        let found = self.bases.iter().find(|(base, _)| base == path);
        found.map(|(_, fd)| fd)
    }

    /// Opens `path` as a location and reads its attributes.
    ///
    /// # Errors
    /// As [`Roots::open_at`].
    pub fn locate(&self, path: &[u8]) -> Result<(OwnedFd, Attr), Errno> {
        let fd = self.open_at(path, LOCATION)?;
        let attr = attr_of(fd.as_fd())?;
        Ok((fd, attr))
    }
}

fn base(fd: OwnedFd) -> Result<HostFd, Errno> {
    HostFd::of_vm(fd).map_err(|_| Errno::ENFILE)
}

fn open_beneath(base: BorrowedFd<'_>, rest: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    for _ in 0..RACES_MAX {
        match rustix::fs::openat2(base, rest, flags, Mode::empty(), BENEATH) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(errno(error)),
            Ok(fd) => return Ok(fd),
        }
    }
    Err(Errno::EAGAIN)
}

fn open_stepwise(base: BorrowedFd<'_>, rest: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut names: Vec<&[u8]> = rest.split(|byte| *byte == b'/').collect();
    let last = names.pop().unwrap_or(b".");
    let mut current: Option<OwnedFd> = None;
    for name in names {
        let at = current.as_ref().map_or(base, AsFd::as_fd);
        let next = rustix::fs::openat(at, name, LOCATION, Mode::empty()).map_err(errno)?;
        let attr = attr_of(next.as_fd())?;
        if attr.is_symlink() {
            return Err(Errno::ELOOP);
        }
        if !attr.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        current = Some(next);
    }
    let at = current.as_ref().map_or(base, AsFd::as_fd);
    rustix::fs::openat(at, last, flags, Mode::empty()).map_err(errno)
}

/// The attributes of an open host object.
///
/// # Errors
/// The host's.
pub fn attr_of(fd: BorrowedFd<'_>) -> Result<Attr, Errno> {
    rustix::fs::fstat(fd).map_err(errno).map(attr_from)
}

fn attr_from(stat: rustix::fs::Stat) -> Attr {
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

/// The attributes of what directory `dir` has by the name that `path` ends in, which is one plain
/// component. A symbolic link is not followed.
///
/// # Errors
/// The host's.
pub fn attr_in(dir: BorrowedFd<'_>, path: &[u8]) -> Result<Attr, Errno> {
    let found = rustix::fs::statat(dir, file_name(path), AtFlags::SYMLINK_NOFOLLOW);
    found.map_err(errno).map(attr_from)
}

/// As [`Roots::locate`], of what directory `dir` has by the name that `path` ends in.
///
/// # Errors
/// The host's.
pub fn locate_in(dir: BorrowedFd<'_>, path: &[u8]) -> Result<(OwnedFd, Attr), Errno> {
    let fd = open_in(dir, path, LOCATION)?;
    let attr = attr_of(fd.as_fd())?;
    Ok((fd, attr))
}

/// One plain component, and no link: there is no way out of `dir`.
fn open_in(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, file_name(path), flags, Mode::empty()).map_err(errno)
}

impl Handle {
    /// The directory that it is reached through.
    #[must_use]
    pub fn directory(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Location(_) => None,
            Self::Entry(dir) => Some(dir.as_fd()),
        }
    }

    /// The object at `path`, which had `attr`, open as a location.
    ///
    /// # Errors
    /// The host's; `ESTALE` if it was replaced meanwhile by one of another kind.
    pub fn into_location(self, path: &[u8], attr: &Attr) -> Result<OwnedFd, Errno> {
        match self {
            Self::Location(fd) => Ok(fd),
            Self::Entry(dir) => {
                // Another one may have taken the name: whatever is there now is meant, unless it is of
                // another kind than was asked for.
                let (fd, now) = locate_in(dir.as_fd(), path)?;
                if now.kind() == attr.kind() {
                    Ok(fd)
                } else {
                    Err(Errno::ESTALE)
                }
            }
        }
    }

    /// The target of the symbolic link at `path`.
    ///
    /// # Errors
    /// The host's; `EINVAL` if it is not a symbolic link.
    pub fn read_link(&self, path: &[u8]) -> Result<Vec<u8>, Errno> {
        match self {
            Self::Location(fd) => read_link(fd.as_fd()),
            Self::Entry(dir) => read_link_in(dir.as_fd(), path),
        }
    }

    /// When the object at `path` was created, if its file system knows.
    #[must_use]
    pub fn birth_time(&self, path: &[u8]) -> Option<FileTime> {
        match self {
            Self::Location(fd) => birth_time(fd.as_fd()),
            Self::Entry(dir) => {
                birth_time_at(dir.as_fd(), file_name(path), AtFlags::SYMLINK_NOFOLLOW)
            }
        }
    }
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

/// The target of the symbolic link that directory `dir` has by the name that `path` ends in.
fn read_link_in(dir: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<u8>, Errno> {
    let target = rustix::fs::readlinkat(dir, file_name(path), Vec::new());
    target.map(CString::into_bytes).map_err(errno)
}

/// Opens for reading what was found at `path` with `attr`, in directory `dir` if that is open. It must
/// be a regular file or a directory. Permissions are the guest's. Another one may have taken the name
/// meanwhile, for which there is [`check_opened`].
///
/// # Errors
/// `EACCES`, `ENXIO` for what could act or block when opened.
pub fn open_for_reading(
    host: &Host,
    path: &[u8],
    attr: &Attr,
    dir: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, Errno> {
    match attr.kind() {
        S_IFREG | S_IFDIR => {}
        S_IFLNK => return Err(Errno::ELOOP),
        kvmlet_hostfs::attr::S_IFSOCK => return Err(Errno::ENXIO),
        _ => return Err(Errno::EACCES),
    }
    check_mode(&host.credentials, attr, MAY_READ)?;
    // O_NONBLOCK: should a FIFO have taken its place meanwhile, opening it must not wait.
    let mut flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    if attr.is_dir() {
        flags |= OFlags::DIRECTORY;
    }
    match dir {
        Some(dir) => open_in(dir, path, flags),
        None => host.roots.open_at(path, flags),
    }
}

/// The attributes of what [`open_for_reading`] has opened, if it may stay open. By its name there was
/// something with the attributes `found`.
///
/// # Errors
/// `ESTALE` if another kind has taken the name; as what was found there would have been refused.
pub fn check_opened(host: &mut Host, fd: BorrowedFd<'_>, found: &Attr) -> Result<Attr, Errno> {
    let opened = attr_of(fd)?;
    if opened.kind() != found.kind() {
        return Err(Errno::ESTALE);
    }
    check_mode(&host.credentials, &opened, MAY_READ)?;
    if !is_same(&opened, found) {
        refuse_kernel_files(host, "open", (b"what took a file's place", &opened), fd)?;
    }
    Ok(opened)
}

/// True if both are of one object.
#[must_use]
pub fn is_same(one: &Attr, other: &Attr) -> bool {
    (one.dev, one.ino, one.kind()) == (other.dev, other.ino, other.kind())
}

/// Refuses and records what belongs to a file system of the kernel's own. Its files act on the machine or
/// tell of other processes, this one included. Such a file system may be mounted in a readable tree.
///
/// # Errors
/// `EACCES`.
pub fn refuse_kernel_files(
    host: &mut Host,
    call: &str,
    (path, attr): (&[u8], &Attr),
    fd: BorrowedFd<'_>,
) -> Result<(), Errno> {
    // They are on no device, which spares most files the question.
    if rustix::fs::major(attr.dev) != 0 {
        return Ok(());
    }
    // Those answer; 9p, say, does not of every symbolic link.
    if !rustix::fs::fstatfs(fd).is_ok_and(|found| KERNEL_FILE_SYSTEMS.contains(&found.f_type)) {
        return Ok(());
    }
    host.report.deny(
        format!("{call} {}", super::printable(path)),
        Errno::EACCES,
        Remedy::KernelFile,
    );
    Err(Errno::EACCES)
}

/// Refuses a path whose visible directories are not all searchable, when the host would not.
///
/// # Errors
/// `EACCES`; `ELOOP` for a symbolic link on the way; the host's.
pub fn check_search(host: &mut Host, path: &[u8]) -> Result<(), Errno> {
    if host.credentials.enforcement == Enforcement::Host {
        return Ok(());
    }
    let unknown: Vec<&[u8]> = kvmlet_policy::ancestors(path)
        .skip(1)
        .take_while(|dir| {
            !host.searchable.contains(*dir)
                && host.policy.classify(dir) == kvmlet_policy::Place::Readable
        })
        .collect();
    // The outermost first: whether anything is in a directory is not to be told before it may be searched.
    for dir in unknown.into_iter().rev() {
        let (_, attr) = host.roots.locate(dir)?;
        if attr.is_symlink() {
            return Err(Errno::ELOOP);
        }
        if !attr.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        if !attr.grants(&host.credentials, MAY_EXEC) {
            return Err(Errno::EACCES);
        }
        host.remember_searchable(dir);
    }
    Ok(())
}

/// As [`check_search`], of a directory that is open. It is asked each time: what is known of its path may
/// be another one's.
///
/// # Errors
/// `EACCES`; the host's.
pub fn check_search_in(host: &Host, dir: BorrowedFd<'_>) -> Result<(), Errno> {
    if host.credentials.enforcement == Enforcement::Host {
        return Ok(());
    }
    check_mode(&host.credentials, &attr_of(dir)?, MAY_EXEC)
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

/// Lists a directory.
///
/// # Errors
/// The host's.
pub fn list(fd: BorrowedFd<'_>) -> Result<Listing, Errno> {
    list_part(fd, 0, 0)
}

/// The part that begins with entry `first`, at the host's offset `at`.
fn list_part(fd: BorrowedFd<'_>, first: usize, at: u64) -> Result<Listing, Errno> {
    // A descriptor of our own, so that its position is ours alone.
    let own = rustix::fs::openat(
        fd,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(errno)?;
    let mut buf = vec![MaybeUninit::<u8>::uninit(); 32 << 10];
    if at != 0 {
        rustix::fs::seek(&own, SeekFrom::Start(at)).map_err(errno)?;
    }
    let mut dir = RawDir::new(own, &mut buf);
    let mut listing = Listing {
        first,
        ..Listing::default()
    };
    while let Some(entry) = dir.next() {
        let entry = entry.map_err(errno)?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        if first.saturating_add(listing.entries.len()) >= LISTING_MAX {
            break;
        }
        listing.names.extend_from_slice(name);
        let kind = type_number(entry.file_type());
        let end = listing.names.len();
        listing.entries.push((entry.ino(), kind, end));
        if listing.size_bytes() >= LISTING_PART_BYTES {
            listing.next = Some(entry.next_entry_cookie());
            break;
        }
    }
    Ok(listing)
}

fn type_number(kind: FileType) -> u8 {
    match kind {
        FileType::Unknown => 0,
        known => kvmlet_hostfs::attr::d_type(known.as_raw_mode()),
    }
}

/// The calling process's working directory, if `path` is that.
fn open_here(path: &[u8]) -> Option<OwnedFd> {
    if working_directory().ok()? != path {
        return None;
    }
    let flags = LOCATION | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(".", flags, Mode::empty()).ok()
}

/// The calling process's working directory, canonical.
///
/// # Errors
/// The host's.
pub fn working_directory() -> Result<Vec<u8>, Errno> {
    Ok(rustix::process::getcwd(Vec::new())
        .map_err(errno)?
        .into_bytes())
}

/// Free space and such of the file system that `fd` is on.
///
/// # Errors
/// The host's.
pub fn file_system(fd: BorrowedFd<'_>) -> Result<kvmlet_abi::linux::Statfs, Errno> {
    const ST_RDONLY: i64 = 1;
    const ST_VALID: i64 = 0x20;
    let found = rustix::fs::fstatfs(fd).map_err(errno)?;
    Ok(kvmlet_abi::linux::Statfs {
        f_type: found.f_type,
        f_bsize: found.f_bsize,
        f_blocks: found.f_blocks,
        f_bfree: found.f_bfree,
        f_bavail: found.f_bavail,
        f_files: found.f_files,
        f_ffree: found.f_ffree,
        f_namelen: found.f_namelen,
        f_frsize: found.f_frsize,
        f_flags: found.f_flags | ST_RDONLY | ST_VALID,
        ..kvmlet_abi::linux::Statfs::default()
    })
}

/// True if the host has something at canonical `path`, outside the visible trees. This decides between
/// ENOENT and a recorded denial.
#[must_use]
pub fn exists(host: &Host, path: &[u8]) -> bool {
    !matches!(
        host.roots.locate(path),
        Err(Errno::ENOENT | Errno::ENAMETOOLONG)
    )
}

/// True if `wanted`, which lies in or beneath the hidden `entry` of /etc, is known not to exist.
/// Programs look for optional settings there and take a denial for a broken installation. What is in
/// directories that not everyone may search, and outside /etc, is not told.
#[must_use]
pub fn is_absent_setting(host: &Host, entry: &[u8], wanted: &[u8]) -> bool {
    const SEARCHABLE_BY_ALL: u32 = 0o001;
    if !beneath(b"/etc", entry) || !kvmlet_policy::is_canonical(wanted) {
        return false;
    }
    let mut path = entry.to_vec();
    let below = wanted.get(entry.len()..).unwrap_or_default();
    for name in below
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty())
    {
        match host.roots.locate(&path) {
            Ok((_, attr)) if attr.is_dir() && attr.mode & SEARCHABLE_BY_ALL != 0 => {}
            Err(Errno::ENOENT) => return true,
            _ => return false,
        }
        path = kvmlet_policy::join(&path, name);
    }
    matches!(host.roots.locate(&path), Err(Errno::ENOENT))
}

/// When a host object was created, if its file system knows.
#[must_use]
pub fn birth_time(fd: BorrowedFd<'_>) -> Option<FileTime> {
    birth_time_at(fd, b"", AtFlags::EMPTY_PATH)
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

/// A directory's entries by name, for the synthetic directories that show a part of a host one.
///
/// # Errors
/// Never fails on missing names: they are left out.
#[must_use]
pub fn located(
    host: &Host,
    dir: &[u8],
    names: impl Iterator<Item = Vec<u8>>,
) -> BTreeMap<Vec<u8>, Attr> {
    names
        .filter_map(|name| {
            let (_, attr) = host.roots.locate(&kvmlet_policy::join(dir, &name)).ok()?;
            Some((name, attr))
        })
        .collect()
}
