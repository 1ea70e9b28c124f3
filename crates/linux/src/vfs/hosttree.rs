//! Host trees that a program changes themselves. Every change is made to one name in a directory that is open.
//! The host follows no link, and nothing outside of the tree can be meant.
//!
//! Nothing here is part of the kernel value: a reset does not undo it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_abi::linux::stat::{S_ISGID, S_ISUID, S_ISVTX};
use kvmlet_hostfs::attr::{
    Attr, MAY_EXEC, MAY_READ, MAY_WRITE, S_IFDIR, S_IFLNK, S_IFREG, S_IFSOCK,
};
use kvmlet_hostfs::change::{self, Access, Durability, Linkable, Named, Present, WriteMode};
use kvmlet_hostfs::{Credentials, Handle, HostFd, HostKind, LookupCache, attr_in, check_mode};
use kvmlet_policy::{Guard, Place, join, parent};

use super::guard::{self, Change};
use super::path::{At, Found, Missing, Node};
use super::{access, file};
use crate::cx::Cx;
use crate::fd::{FileKind, OpenFlags};
use crate::host::Host;
use crate::id::ObjectId;
use crate::net::host_names;
use crate::report::Remedy;

/// True if canonical `path` lies in a tree that is changed itself.
#[must_use]
pub fn is_writable(host: &Host, path: &[u8]) -> bool {
    host.policy.classify(path) == Place::Writable
}

/// True if names in a directory are the host's to change.
#[must_use]
pub fn holds(host: &Host, dir: &At) -> bool {
    dir.tmp.is_none() && is_writable(host, &dir.path)
}

/// A directory that is open.
#[derive(Debug)]
enum DirFd {
    /// For this call.
    Opened(OwnedFd),
    /// By the program, or as the root of a tree.
    Kept(Arc<HostFd>),
}

impl AsFd for DirFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Opened(fd) => fd.as_fd(),
            Self::Kept(fd) => fd.as_fd(),
        }
    }
}

/// A name in a directory of such a tree.
#[derive(Debug)]
struct Spot {
    dir: DirFd,
    /// The directory's attributes.
    dir_attr: Attr,
    /// Its path and the name.
    path: Vec<u8>,
    /// The protection of that.
    guard: Guard,
}

impl Spot {
    /// The directory, and the path that ends in the name.
    fn name(&self) -> (BorrowedFd<'_>, &[u8]) {
        (self.dir.as_fd(), &self.path)
    }

    /// The attributes of what is there.
    fn attr(&self) -> Result<Attr, Errno> {
        attr_in(self.dir.as_fd(), &self.path)
    }

    /// Refuses what would reach or move protected names.
    fn check(&self, cx: &mut Cx<'_>, call: &str, change: Change) -> Result<(), Errno> {
        guard::check(cx, call, (&self.path, self.guard), change)
    }

    /// Before something of this kind is made.
    fn check_made(&self, cx: &mut Cx<'_>, call: &str, kind: u32) -> Result<(), Errno> {
        self.check(cx, call, Change::Made(kind))?;
        let comes = || self.attr() == Err(Errno::ENOENT);
        guard::check_repository(cx, call, self.name(), comes)
    }

    /// Before what is there is taken away.
    fn check_removed(&self, cx: &mut Cx<'_>, call: &str) -> Result<(), Errno> {
        if self.guard == Guard::Leading {
            self.check(cx, call, Change::Removed(self.attr()?.kind()))?;
        }
        guard::check_repository(cx, call, self.name(), || true)
    }

    /// Refuses to take away what only its owner may (may_delete in fs/namei.c).
    fn check_sticky(&self, who: &Credentials) -> Result<(), Errno> {
        if self.dir_attr.mode & S_ISVTX == 0 || who.owns(&self.dir_attr) || who.owns(&self.attr()?)
        {
            Ok(())
        } else {
            Err(Errno::EPERM)
        }
    }
}

/// Records a refused change of `path`; the error to answer.
pub(super) fn deny(
    cx: &mut Cx<'_>,
    call: &str,
    path: &[u8],
    (errno, remedy): (Errno, Remedy),
) -> Errno {
    let what = format!("{call} {}", super::printable(path));
    cx.host.report.deny(what, errno, remedy);
    errno
}

/// The name that is about to be made, removed or replaced.
///
/// # Errors
/// `EBUSY` where a tree begins; `EROFS`, recorded, for a protected name; `EACCES` by mode bits; the host's.
fn spot(cx: &mut Cx<'_>, call: &str, missing: &Missing) -> Result<Spot, Errno> {
    let path = join(&missing.dir.path, &missing.name);
    if cx.host.policy.holds_mount(&path) {
        return Err(Errno::EBUSY);
    }
    if !is_writable(cx.host, &path) {
        return Err(super::open::deny_write(cx, call, &path));
    }
    let dir = match &missing.open {
        Some(fd) => DirFd::Kept(Arc::clone(fd)),
        None => directory(cx.host, &missing.dir.path)?,
    };
    let guard = guard::guard_of(cx.host, &path, Some(dir.as_fd()))?;
    if guard.is_protected() {
        return Err(deny(cx, call, &path, (Errno::EROFS, Remedy::Protected)));
    }
    let dir_attr = kvmlet_hostfs::attr_of(dir.as_fd())?;
    if !dir_attr.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    access::refuse_kernel_files(cx.host, call, (&path, &dir_attr), dir.as_fd())?;
    check_mode(&cx.asker(), &dir_attr, MAY_WRITE | MAY_EXEC)?;
    Ok(Spot {
        dir,
        dir_attr,
        path,
        guard,
    })
}

fn directory(host: &Host, path: &[u8]) -> Result<DirFd, Errno> {
    if let Some(fd) = host.roots.base(path) {
        return Ok(DirFd::Kept(Arc::clone(fd)));
    }
    Ok(DirFd::Opened(host.roots.locate(path)?.0))
}

/// Forgets what was known of names that may be others now.
fn forget_names(host: &mut Host) {
    host.lookup_cache = LookupCache::default();
    host.searchable.clear();
}

// ---- names ----

/// mkdir(2), with permission bits before the mask.
///
/// # Errors
/// As the man page; as [`spot`].
pub fn mkdir(cx: &mut Cx<'_>, call: &str, missing: &Missing, mode: u32) -> Result<(), Errno> {
    let spot = spot(cx, call, missing)?;
    spot.check_made(cx, call, S_IFDIR)?;
    let umask = cx.fs()?.umask;
    let (dir, path) = spot.name();
    change::make_directory(dir, path, mode & 0o1777 & !umask)?;
    forget_names(cx.host);
    Ok(())
}

/// mknod(2) of a regular file, with permission bits before the mask.
///
/// # Errors
/// As [`create`].
pub fn mknod(cx: &mut Cx<'_>, call: &str, missing: &Missing, mode: u32) -> Result<(), Errno> {
    let how = WriteMode {
        access: Access::Write,
        durability: Durability::Later,
    };
    make_file(cx, call, missing, (how, mode)).map(|_| ())
}

/// The name of a socket, with permission bits before the mask: of one of the program's (bind(2)), or of none
/// (mknod(2)). The host has one there that nobody listens at, so that nobody reaches the program by it.
///
/// Linux differs: the host's file keeps the mode that it is made with, whatever chmod(2) sets inside.
///
/// # Errors
/// `EEXIST`; as [`spot`]; the host's.
pub fn make_socket(
    cx: &mut Cx<'_>,
    call: &str,
    missing: &Missing,
    (mode, socket): (u32, Option<ObjectId>),
) -> Result<host_names::Place, Errno> {
    let spot = spot(cx, call, missing)?;
    spot.check_made(cx, call, S_IFSOCK)?;
    let bits = mode & 0o777 & !cx.fs()?.umask;
    let (dir, path) = spot.name();
    let attr = change::make_socket(dir, path, bits)?;
    forget_names(cx.host);
    let place = host_names::Place::of(&attr, || None).ok_or(Errno::ESTALE)?;
    let names = &mut cx.kernel.objects.sockets.host_names;
    names.add(place, socket, bits);
    Ok(place)
}

/// The file that was found, if it is a socket of a host's tree.
#[must_use]
pub fn place_of_socket(cx: &Cx<'_>, found: &Found, attr: &Attr) -> Option<host_names::Place> {
    if cx.kernel.objects.sockets.host_names.is_empty() {
        return None;
    }
    host_names::Place::of(attr, || super::birth_time(cx, found))
}

/// Sets the mode of a name that the program has given a socket; `false` if this is none.
pub fn set_socket_mode(cx: &mut Cx<'_>, found: &Found, attr: &Attr, mode: u32) -> bool {
    let place = place_of_socket(cx, found, attr);
    let names = &mut cx.kernel.objects.sockets.host_names;
    place.is_some_and(|place| names.set_mode(place, mode))
}

/// A name with these attributes is about to go: the file that goes with it, if the program has given a socket that name
/// and it has no other.
fn last_name(cx: &Cx<'_>, spot: &Spot, attr: &Attr) -> Option<host_names::Place> {
    if cx.kernel.objects.sockets.host_names.is_empty() || attr.nlink > 1 {
        return None;
    }
    let (dir, path) = spot.name();
    host_names::Place::of(attr, || kvmlet_hostfs::birth_time_in(dir, path))
}

fn forget_socket(cx: &mut Cx<'_>, gone: Option<host_names::Place>) {
    if let Some(place) = gone {
        cx.kernel.objects.sockets.host_names.forget(place);
    }
}

/// mknod(2) of what other programs on the host could use: a named pipe.
///
/// # Errors
/// `EPERM`, recorded; as [`spot`].
pub fn refuse_special<T>(cx: &mut Cx<'_>, call: &str, missing: &Missing) -> Result<T, Errno> {
    let spot = spot(cx, call, missing)?;
    let refused = (Errno::EPERM, Remedy::SpecialFile);
    Err(deny(cx, call, &spot.path, refused))
}

/// symlink(2)
///
/// # Errors
/// As the man page; as [`spot`].
pub fn symlink(cx: &mut Cx<'_>, call: &str, missing: &Missing, target: &[u8]) -> Result<(), Errno> {
    let spot = spot(cx, call, missing)?;
    spot.check_made(cx, call, S_IFLNK)?;
    let (dir, path) = spot.name();
    change::make_symlink(dir, path, target)?;
    forget_names(cx.host);
    Ok(())
}

/// link(2) of what was found, in the same tree.
///
/// # Errors
/// As the man page; as [`spot`].
pub fn link(cx: &mut Cx<'_>, call: &str, found: &Found, missing: &Missing) -> Result<(), Errno> {
    let source = object(cx, call, found)?;
    let attr = source.attr;
    match attr.kind() {
        S_IFREG | S_IFLNK => {}
        S_IFSOCK if cx.asker().owns(&attr) => {}
        S_IFDIR => return Err(Errno::EPERM),
        _ => {
            let refused = (Errno::EPERM, Remedy::SpecialFile);
            return Err(deny(cx, call, &found.path, refused));
        }
    }
    // As fs.protected_hardlinks has it, which a process with more rights would not meet.
    let who = cx.asker();
    if !who.owns(&attr) && !who.granted(&attr, MAY_READ | MAY_WRITE) {
        return Err(Errno::EPERM);
    }
    let spot = spot(cx, call, missing)?;
    spot.check_made(cx, call, attr.kind())?;
    let dir = directory(cx.host, parent(&found.path));
    // Another one may have taken the name since it was opened: that is not the one that is meant.
    let named = dir.as_ref().ok().filter(|dir| {
        let now = attr_in(dir.as_fd(), &found.path);
        now.is_ok_and(|now| kvmlet_hostfs::is_same(&now, &attr))
    });
    if let Some(dir) = named {
        change::link((dir.as_fd(), &found.path), spot.name())?;
    } else if let (0, ObjectPlace::Open(fd)) = (attr.nlink, &source.place) {
        // Some file systems count no names (FUSE): only one that its name does not lead to is without one.
        change::link_unnamed(fd.as_fd(), spot.name())?;
    } else {
        return Err(dir.err().unwrap_or(Errno::ENOENT));
    }
    forget_names(cx.host);
    Ok(())
}

/// unlink(2)
///
/// # Errors
/// As the man page; as [`spot`].
pub fn unlink(cx: &mut Cx<'_>, call: &str, missing: &Missing) -> Result<(), Errno> {
    let spot = spot(cx, call, missing)?;
    if missing.slash && !spot.attr()?.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    spot.check_removed(cx, call)?;
    spot.check_sticky(&cx.asker())?;
    let attr = spot.attr();
    let gone = attr.ok().and_then(|attr| last_name(cx, &spot, &attr));
    let (dir, path) = spot.name();
    change::unlink(dir, path)?;
    forget_socket(cx, gone);
    forget_names(cx.host);
    Ok(())
}

/// rmdir(2)
///
/// # Errors
/// As the man page; as [`spot`].
pub fn rmdir(cx: &mut Cx<'_>, call: &str, missing: &Missing) -> Result<(), Errno> {
    let spot = spot(cx, call, missing)?;
    guard::check_repository(cx, call, spot.name(), || true)?;
    spot.check_sticky(&cx.asker())?;
    let (dir, path) = spot.name();
    change::remove_directory(dir, path)?;
    forget_names(cx.host);
    Ok(())
}

/// renameat2(2) within one tree.
///
/// # Errors
/// As the man page; as [`spot`].
pub fn rename(
    cx: &mut Cx<'_>,
    call: &str,
    (from, to): (&Missing, &Missing),
    present: Present,
) -> Result<(), Errno> {
    let old = spot(cx, call, from)?;
    let new = spot(cx, call, to)?;
    let source = old.attr()?;
    let target = match new.attr() {
        Err(Errno::ENOENT) => None,
        found => Some(found?),
    };
    let exchange = present == Present::Exchanged;
    let moved = [Some(source), target.filter(|_| exchange)];
    for kind in moved.iter().flatten().map(Attr::kind) {
        old.check(cx, call, Change::Moved(kind))?;
        new.check(cx, call, Change::Moved(kind))?;
    }
    guard::check_repository(cx, call, old.name(), || !exchange)?;
    guard::check_repository(cx, call, new.name(), || target.is_none())?;
    if !source.is_dir() && (from.slash || !exchange && to.slash) {
        return Err(Errno::ENOTDIR);
    }
    if exchange && to.slash && target.is_some_and(|target| !target.is_dir()) {
        return Err(Errno::ENOTDIR);
    }
    old.check_sticky(&cx.asker())?;
    if target.is_some() {
        new.check_sticky(&cx.asker())?;
    }
    // A directory that changes its parent is itself changed: its `..`.
    if source.is_dir() && !kvmlet_hostfs::is_same(&old.dir_attr, &new.dir_attr) {
        check_mode(&cx.asker(), &source, MAY_WRITE)?;
    }
    let replaced = target.filter(|target| !exchange && !kvmlet_hostfs::is_same(target, &source));
    let gone = replaced.and_then(|target| last_name(cx, &new, &target));
    change::rename(old.name(), new.name(), present)?;
    forget_socket(cx, gone);
    forget_names(cx.host);
    Ok(())
}

// ---- opening ----

/// The way that flags ask a file to be opened on the host. Appending is done by each write.
fn write_mode(flags: OpenFlags) -> WriteMode {
    let access = match (flags.readable(), flags.writable()) {
        (_, false) => Access::Read,
        (false, true) => Access::Write,
        (true, true) => Access::ReadWrite,
    };
    let durability = if flags.contains(OpenFlags::SYNC) {
        Durability::All
    } else if flags.contains(OpenFlags::DSYNC) {
        Durability::Data
    } else {
        Durability::Later
    };
    WriteMode { access, durability }
}

/// Opens the regular file at `path`, which was found with `attr`, to change it.
///
/// # Errors
/// `EROFS`, recorded, for a protected name; `EACCES` by mode bits; for what is no file, as opening it for reading;
/// the host's.
pub fn open(
    cx: &mut Cx<'_>,
    call: &str,
    (path, attr): (&[u8], &Attr),
    dir: Option<BorrowedFd<'_>>,
    flags: OpenFlags,
) -> Result<FileKind, Errno> {
    check_found(cx, call, (path, attr), dir, wanted_by(flags))?;
    // The root of a tree may have another name on the host.
    let is_root = cx.host.policy.is_mount_point(path);
    let own = match dir {
        None if !is_root => Some(directory(cx.host, parent(path))?),
        _ => None,
    };
    let dir = own.as_ref().map(AsFd::as_fd).or(dir).filter(|_| !is_root);
    let roots = Arc::clone(&cx.host.roots);
    let opening = |mode: WriteMode| match dir {
        Some(dir) => change::open_to_change(dir, path, mode),
        None => roots.open_to_change(path, mode),
    };
    open_by(cx, call, (path, attr), flags, opening)
}

/// The permissions that flags ask for.
fn wanted_by(flags: OpenFlags) -> u32 {
    let mut wanted = if flags.readable() { MAY_READ } else { 0 };
    if flags.writable() || flags.contains(OpenFlags::TRUNC) {
        wanted |= MAY_WRITE;
    }
    wanted
}

/// Opens a file that may be opened, by `opening`.
fn open_by(
    cx: &mut Cx<'_>,
    call: &str,
    (path, attr): (&[u8], &Attr),
    flags: OpenFlags,
    opening: impl Fn(WriteMode) -> Result<(OwnedFd, Attr), Errno>,
) -> Result<FileKind, Errno> {
    let truncates = flags.contains(OpenFlags::TRUNC);
    let mode = write_mode(flags);
    if truncates && mode.access == Access::Read {
        // Linux truncates what it then opens for reading only.
        let access = Access::Write;
        let (fd, opened) = opening(WriteMode { access, ..mode })?;
        check_opened(cx, call, (path, attr), (fd.as_fd(), &opened))?;
        drop_set_id(cx.host, fd.as_fd(), &opened);
        change::set_size(fd.as_fd(), 0)?;
    }
    let (fd, opened) = opening(mode)?;
    check_opened(cx, call, (path, attr), (fd.as_fd(), &opened))?;
    if mode.access != Access::Read {
        drop_set_id(cx.host, fd.as_fd(), &opened);
    }
    if truncates && mode.access != Access::Read {
        change::set_size(fd.as_fd(), 0)?;
    }
    let kind = if mode.access == Access::Read {
        HostKind::File
    } else {
        HostKind::WritableFile
    };
    Ok(FileKind::HostFile(cx.host.insert_opened(fd, kind)?))
}

/// Takes the set-id bits of a file that is about to be written. The host does that, but not for root.
/// Linux differs: they go with the first byte that is written.
fn drop_set_id(host: &Host, fd: BorrowedFd<'_>, attr: &Attr) {
    if host.credentials.ids.uid == 0 && attr.mode & (S_ISUID | S_ISGID) != 0 {
        // Who may not change it is not its owner: then the host takes them.
        let _ = change::set_mode(Named::Open(fd), attr, attr.mode & 0o1777);
    }
}

/// Refuses what is not for the program to open and change, by its kind, its name and its mode bits.
fn check_found(
    cx: &mut Cx<'_>,
    call: &str,
    (path, attr): (&[u8], &Attr),
    dir: Option<BorrowedFd<'_>>,
    wanted: u32,
) -> Result<(), Errno> {
    if attr.kind() != S_IFREG {
        let errno = match attr.kind() {
            S_IFSOCK => Errno::ENXIO,
            _ => Errno::EACCES,
        };
        return Err(deny(cx, call, path, (errno, Remedy::SpecialFile)));
    }
    let guard = guard::guard_of(cx.host, path, dir)?;
    guard::check(cx, call, (path, guard), Change::Changed(S_IFREG))?;
    check_mode(&cx.asker(), attr, wanted)
}

/// Refuses what [`open`] for writing would refuse, and opens nothing.
///
/// # Errors
/// As [`open`].
pub fn check_open(cx: &mut Cx<'_>, call: &str, (path, attr): (&[u8], &Attr)) -> Result<(), Errno> {
    check_found(cx, call, (path, attr), None, MAY_WRITE)?;
    let (fd, now) = cx.host.roots.locate(path)?;
    access::refuse_kernel_files(cx.host, call, (path, &now), fd.as_fd())?;
    change::check_access(fd.as_fd())
}

/// As [`open`], of the very file that has `attr` and is open as `fd`.
///
/// # Errors
/// `ESTALE` if another one has its name.
pub fn open_same(
    cx: &mut Cx<'_>,
    call: &str,
    (path, attr): (&[u8], &Attr),
    fd: BorrowedFd<'_>,
    flags: OpenFlags,
) -> Result<FileKind, Errno> {
    let now = cx.host.roots.locate(path);
    let is_named = now.is_ok_and(|(_, now)| kvmlet_hostfs::is_same(&now, attr));
    if is_named {
        return open(cx, call, (path, attr), None, flags);
    }
    // Some file systems count no names (FUSE): only one that its name does not lead to is without one.
    if attr.nlink == 0 {
        // Nobody else can mean another one by it.
        check_found(cx, call, (path, attr), None, wanted_by(flags))?;
        let opening = |mode: WriteMode| change::open_again(fd, mode);
        return open_by(cx, call, (path, attr), flags, opening);
    }
    Err(Errno::ESTALE)
}

/// Another file may have taken the name between the look and the open.
fn check_opened(
    cx: &mut Cx<'_>,
    call: &str,
    (path, found): (&[u8], &Attr),
    (fd, opened): (BorrowedFd<'_>, &Attr),
) -> Result<(), Errno> {
    if !kvmlet_hostfs::is_same(opened, found) {
        check_mode(&cx.asker(), opened, MAY_READ | MAY_WRITE)?;
    }
    access::refuse_kernel_files(cx.host, call, (path, opened), fd)
}

/// Makes a regular file that is not there and opens it, with permission bits before the mask.
///
/// # Errors
/// `EEXIST` if there is one by now; as [`spot`]; the host's.
pub fn create(
    cx: &mut Cx<'_>,
    call: &str,
    missing: &Missing,
    (flags, mode): (OpenFlags, u32),
) -> Result<FileKind, Errno> {
    let how = write_mode(flags);
    let fd = make_file(cx, call, missing, (how, mode))?;
    let kind = if how.access == Access::Read {
        HostKind::File
    } else {
        HostKind::WritableFile
    };
    Ok(FileKind::HostFile(cx.host.insert_opened(fd, kind)?))
}

/// Makes a file without a name in the directory at `dir` and opens it (O_TMPFILE). Answers a path for it too, as Linux
/// shows one.
///
/// # Errors
/// The host's: `EOPNOTSUPP` if its file system has no such files; as [`spot`].
pub fn create_unnamed(
    cx: &mut Cx<'_>,
    call: &str,
    dir: &At,
    (flags, mode): (OpenFlags, u32),
) -> Result<(FileKind, Vec<u8>), Errno> {
    let missing = Missing {
        dir: dir.clone(),
        open: None,
        name: b"#unnamed".to_vec(),
        slash: false,
    };
    let spot = spot_of_file(cx, call, &missing)?;
    guard::check_set_id(cx, call, (&spot.path, &Attr::default()), mode)?;
    let umask = cx.fs()?.umask;
    let linkable = match flags.contains(OpenFlags::EXCL) {
        true => Linkable::No,
        false => Linkable::Yes,
    };
    let (how, bits) = (write_mode(flags), mode & 0o7777 & !umask);
    let (fd, attr) = change::create_unnamed(spot.dir.as_fd(), how, bits, linkable)?;
    let path = join(&dir.path, format!("#{}", attr.ino).as_bytes());
    let id = cx.host.insert_opened(fd, HostKind::WritableFile)?;
    Ok((FileKind::HostFile(id), path))
}

/// Refuses what [`create`] would refuse, and makes nothing.
///
/// # Errors
/// As [`create`], but for what is there by now.
pub fn check_create(cx: &mut Cx<'_>, call: &str, missing: &Missing) -> Result<(), Errno> {
    let spot = spot_of_file(cx, call, missing)?;
    change::check_access(spot.dir.as_fd())
}

/// The name that a file is about to be made by.
fn spot_of_file(cx: &mut Cx<'_>, call: &str, missing: &Missing) -> Result<Spot, Errno> {
    let spot = spot(cx, call, missing)?;
    spot.check_made(cx, call, S_IFREG)?;
    Ok(spot)
}

fn make_file(
    cx: &mut Cx<'_>,
    call: &str,
    missing: &Missing,
    (how, mode): (WriteMode, u32),
) -> Result<OwnedFd, Errno> {
    let spot = spot_of_file(cx, call, missing)?;
    guard::check_set_id(cx, call, (&spot.path, &Attr::default()), mode)?;
    let umask = cx.fs()?.umask;
    let (dir, path) = spot.name();
    let (fd, _) = change::create(dir, path, how, mode & 0o7777 & !umask)?;
    forget_names(cx.host);
    Ok(fd)
}

// ---- attributes ----

/// Something that is there, to have its attributes changed.
#[derive(Debug)]
pub struct Object {
    place: ObjectPlace,
    /// The directory that it is in and its path, or what is open on it.
    path: Vec<u8>,
    /// Its attributes.
    pub attr: Attr,
}

#[derive(Debug)]
enum ObjectPlace {
    /// By its name in this directory.
    In(DirFd),
    /// It is open, as more than a location.
    Open(Arc<HostFd>),
    /// The root of a tree, opened for reading.
    Root(OwnedFd),
}

impl Object {
    /// It, as the changes of attributes take it.
    #[must_use]
    pub fn named(&self) -> Named<'_> {
        match &self.place {
            ObjectPlace::In(dir) => Named::In(dir.as_fd(), &self.path),
            ObjectPlace::Open(fd) => Named::Open(fd.as_fd()),
            ObjectPlace::Root(fd) => Named::Open(fd.as_fd()),
        }
    }
}

/// Something that was found in a tree that is changed itself, and is about to be changed.
///
/// # Errors
/// `EROFS`, recorded, for a protected name; `ESTALE` if it has lost its name; the host's.
pub fn object(cx: &mut Cx<'_>, call: &str, found: &Found) -> Result<Object, Errno> {
    let path = found.path.clone();
    let dir = match &found.node {
        Node::Host(handle, _) => handle.directory(),
        _ => None,
    };
    let guard = guard::guard_of(cx.host, &path, dir)?;
    if guard.is_protected() {
        return Err(deny(cx, call, &path, (Errno::EROFS, Remedy::Protected)));
    }
    let (attr, open) = match &found.node {
        Node::Host(_, attr) => (*attr, None),
        Node::Open(file) => {
            let kind = cx.kernel.files.get(file).ok_or(Errno::EBADF)?.kind.clone();
            let host = file::host(&kind).ok_or(Errno::EBADF)?;
            let open = cx.host.get(host)?;
            let attr = kvmlet_hostfs::attr_of(open.fd.as_fd())?;
            let is_location = open.kind == HostKind::Location;
            (attr, (!is_location).then(|| Arc::clone(&open.fd)))
        }
        Node::Tmp(_) | Node::Synth(_) => return Err(Errno::EROFS),
    };
    guard::check(cx, call, (&path, guard), Change::Changed(attr.kind()))?;
    let place = match (open, &found.node) {
        (Some(fd), _) => ObjectPlace::Open(fd),
        (None, _) if cx.host.policy.is_mount_point(&path) => {
            ObjectPlace::Root(cx.host.roots.open_root(&path)?)
        }
        (None, Node::Host(Handle::Entry(dir), _)) => ObjectPlace::In(DirFd::Kept(Arc::clone(dir))),
        (None, _) => {
            let dir = directory(cx.host, parent(&path))?;
            if !kvmlet_hostfs::is_same(&attr_in(dir.as_fd(), &path)?, &attr) {
                return Err(Errno::ESTALE);
            }
            ObjectPlace::In(dir)
        }
    };
    if let ObjectPlace::In(dir) = &place {
        let dir_attr = kvmlet_hostfs::attr_of(dir.as_fd())?;
        access::refuse_kernel_files(cx.host, call, (&path, &dir_attr), dir.as_fd())?;
    }
    Ok(Object { place, path, attr })
}

/// Opens an object to truncate it (truncate(2)).
///
/// # Errors
/// As [`open`].
pub fn open_to_truncate(
    cx: &mut Cx<'_>,
    call: &str,
    object: &Object,
) -> Result<crate::host::HostId, Errno> {
    let dir = match &object.place {
        ObjectPlace::In(dir) => Some(dir.as_fd()),
        ObjectPlace::Open(_) | ObjectPlace::Root(_) => None,
    };
    let found = (object.path.as_slice(), &object.attr);
    let kind = open(cx, call, found, dir, OpenFlags::WRONLY)?;
    file::host(&kind).ok_or(Errno::EBADF)
}

/// Forgets what was known of permissions.
pub fn forget_permissions(host: &mut Host) {
    forget_names(host);
}
