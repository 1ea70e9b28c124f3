//! The directories that host files are opened from, by canonical paths. No symbolic link is ever followed
//! by the host: links are resolved by us, in the guest's namespace.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvmlet_abi::Errno;
use kvmlet_policy::{Policy, beneath};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::attr::{Attr, MAY_READ, S_IFDIR, S_IFLNK, S_IFREG, S_IFSOCK};
use crate::change::{self, WriteMode};
use crate::credentials::{Credentials, check_mode};
use crate::error::errno;
use crate::handle::{locate_in, open_in};
use crate::hostfd::HostFd;
use crate::object::attr_of;

pub use kvmlet_abi::linux::limits::PATH_MAX;

/// Tries again when a rename on the host raced with a lookup (openat2(2) EAGAIN).
const RACES_MAX: usize = 16;

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
    /// Canonical path of each base, as the program sees it, and its descriptor, longest path first; the last
    /// is `/`.
    bases: Vec<(Vec<u8>, Arc<HostFd>)>,
    /// What is visible at another path than the host's and may be a file: that path, and the host's.
    elsewhere: Vec<(Vec<u8>, Vec<u8>)>,
    lookup: Lookup,
    /// Names that the host has looked up for it.
    steps: AtomicU64,
}

pub(crate) const LOCATION: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
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
            elsewhere: Vec::new(),
            lookup,
            steps: AtomicU64::new(0),
        };
        let outside_etc = policy
            .mounts()
            .map(|(path, mount)| (path, mount.host.as_slice()))
            .filter(|(_, host)| !beneath(b"/etc", host));
        let mut opened = Vec::new();
        for (path, host) in outside_etc.chain([(b"/etc".as_slice(), b"/etc".as_slice())]) {
            // What is a symbolic link or a file, or does not exist, is opened from `/` when named.
            let found = roots.open_at(host, LOCATION | OFlags::DIRECTORY);
            // What leads to the working directory may be private: as on Linux, who is there may stay.
            let found = found.or_else(|error| open_here(host).ok_or(error));
            if let Ok(fd) = found {
                opened.push((path.to_vec(), Arc::new(base(fd)?)));
            }
        }
        roots.bases.extend(opened);
        let elsewhere = policy
            .mounts()
            .filter(|(path, mount)| *path != mount.host)
            .map(|(path, mount)| (path.to_vec(), mount.host.clone()));
        roots.elsewhere.extend(elsewhere);
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
    fn open_at(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let elsewhere = self.elsewhere.iter().find(|(at, _)| at == path);
        let (path, base) = match elsewhere {
            Some((_, host)) => (host.as_slice(), self.bases.last()),
            None => {
                let base = self.bases.iter().find(|(base, _)| beneath(base, path));
                (path, base)
            }
        };
        let (base, fd) = base.ok_or(Errno::ENOENT)?;
        let rest = path.get(base.len()..).unwrap_or_default();
        let rest = rest.strip_prefix(b"/").unwrap_or(rest);
        let rest = if rest.is_empty() {
            b".".as_slice()
        } else {
            rest
        };
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let names = rest.split(|byte| *byte == b'/').count();
        self.steps.fetch_add(names as u64, Ordering::Relaxed);
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
    /// `ELOOP` if a directory on the way is a symbolic link; otherwise the host's.
    pub fn locate(&self, path: &[u8]) -> Result<(OwnedFd, Attr), Errno> {
        let fd = self.open_at(path, LOCATION)?;
        let attr = attr_of(fd.as_fd())?;
        Ok((fd, attr))
    }

    /// As [`Roots::locate`], of what the open directory `dir` has by the name that `path` ends in.
    ///
    /// # Errors
    /// The host's.
    pub fn locate_in(&self, dir: BorrowedFd<'_>, path: &[u8]) -> Result<(OwnedFd, Attr), Errno> {
        self.steps.fetch_add(1, Ordering::Relaxed);
        locate_in(dir, path)
    }

    /// The names that the host has looked up for it so far: the work of finding things.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Opens for reading what was found at `path` with `attr`, in directory `dir` if that is open. It must
    /// be a regular file or a directory. Permissions are the guest's. Another one may have taken the name
    /// meanwhile, so that what was opened is to be looked at again.
    ///
    /// # Errors
    /// `EACCES`, `ENXIO` for what could act or block when opened.
    pub fn open_for_reading(
        &self,
        who: &Credentials,
        path: &[u8],
        attr: &Attr,
        dir: Option<BorrowedFd<'_>>,
    ) -> Result<OwnedFd, Errno> {
        match attr.kind() {
            S_IFREG | S_IFDIR => {}
            S_IFLNK => return Err(Errno::ELOOP),
            S_IFSOCK => return Err(Errno::ENXIO),
            _ => return Err(Errno::EACCES),
        }
        check_mode(who, attr, MAY_READ)?;
        // O_NONBLOCK: should a FIFO have taken its place meanwhile, opening it must not wait.
        let mut flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        if attr.is_dir() {
            flags |= OFlags::DIRECTORY;
        }
        match dir {
            Some(dir) => open_in(dir, path, flags),
            None => self.open_at(path, flags),
        }
    }

    /// Opens the regular file at `path` for reading, for what it is, whoever may read it.
    ///
    /// # Errors
    /// The host's.
    pub fn open_file(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        // O_NONBLOCK: should a FIFO have taken its place, opening it must not wait.
        self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
    }

    /// As [`change::open_to_change`], of the file that is itself visible at `path`.
    ///
    /// # Errors
    /// As that.
    pub fn open_to_change(&self, path: &[u8], mode: WriteMode) -> Result<(OwnedFd, Attr), Errno> {
        change::regular(self.open_at(path, mode.flags())?)
    }

    /// Opens the root of the tree at `path`, a directory or a file, for its attributes to be changed.
    ///
    /// # Errors
    /// The host's; `ESTALE` for what could act when it is opened.
    pub fn open_root(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let (_, attr) = self.locate(path)?;
        if !matches!(attr.kind(), S_IFREG | S_IFDIR) {
            return Err(Errno::ESTALE);
        }
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        match self.open_at(path, OFlags::RDONLY | flags) {
            Err(Errno::EACCES) if !attr.is_dir() => self.open_at(path, OFlags::WRONLY | flags),
            opened => opened,
        }
    }

    /// True if the host has something at canonical `path`, outside the visible trees. This decides between
    /// ENOENT and a recorded denial.
    #[must_use]
    pub fn exists(&self, path: &[u8]) -> bool {
        !matches!(self.locate(path), Err(Errno::ENOENT | Errno::ENAMETOOLONG))
    }

    /// True if `wanted`, which lies in or beneath the hidden `entry` of /etc, is known not to exist.
    /// Programs look for optional settings there and take a denial for a broken installation. What is in
    /// directories that not everyone may search, and outside /etc, is not told.
    #[must_use]
    pub fn is_absent_setting(&self, entry: &[u8], wanted: &[u8]) -> bool {
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
            match self.locate(&path) {
                Ok((_, attr)) if attr.is_dir() && attr.mode & SEARCHABLE_BY_ALL != 0 => {}
                Err(Errno::ENOENT) => return true,
                _ => return false,
            }
            path = kvmlet_policy::join(&path, name);
        }
        matches!(self.locate(&path), Err(Errno::ENOENT))
    }

    /// A directory's entries by name, for the synthetic directories that show a part of a host one.
    ///
    /// # Errors
    /// Never fails on missing names: they are left out.
    #[must_use]
    pub fn located(
        &self,
        dir: &[u8],
        names: impl Iterator<Item = Vec<u8>>,
    ) -> BTreeMap<Vec<u8>, Attr> {
        names
            .filter_map(|name| {
                let (_, attr) = self.locate(&kvmlet_policy::join(dir, &name)).ok()?;
                Some((name, attr))
            })
            .collect()
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
