//! open(2): from a path and flags to an open file description.

use kvmlet_abi::linux::capability::CAP_FSETID;
use kvmlet_abi::linux::fcntl::F_SEAL_SEAL;
use kvmlet_abi::linux::inotify::IN_MODIFY;
pub use kvmlet_abi::linux::stat::S_ISGID;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_hostfs::attr::{
    Attr, MAY_EXEC, MAY_READ, MAY_WRITE, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, S_IFSOCK,
};
use kvmlet_hostfs::{Handle, HostKind};
use kvmlet_policy::join;

use super::file;
use super::path::{self, At, Found, Intent, Last, Missing, Node, Request, Resolve, Start, Walked};
use super::privilege;
use super::synth::{self, Synth};
use super::tmpfs::{InodeId, NewAttr, NewBody};
use super::{Dir, access, attr_of, fifo, hosttree, leases, notify, now, overlay, set_tmp_size};
use crate::cx::Cx;
use crate::fd::{FileId, FileKind, OpenFile, OpenFlags};
use crate::report::Remedy;
use crate::tty::{Ctty, Lock};

/// The result of opening.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Opened {
    /// A new description.
    New(OpenFile),
    /// A description that already exists: streams that have no name to be opened by again.
    Existing(FileId),
    /// An end of a named pipe whose other end has been opened this many times, and now is not open: the
    /// call waits for it.
    Waiting(OpenFile, u64),
    /// A lease is in the way, until it is given up or until this time, in guest monotonic nanoseconds. The call is
    /// made again then.
    Leased(u64),
}

/// Arguments of an open(2).
#[derive(Clone, Debug)]
pub struct OpenRequest<'a> {
    /// The call's name, for denials.
    pub call: &'static str,
    /// The place where a relative path starts.
    pub start: Start,
    /// The path.
    pub path: &'a [u8],
    /// Flags.
    pub flags: OpenFlags,
    /// Permission bits of a new file, before the mask.
    pub mode: u32,
    /// Limits on the resolution.
    pub resolve: Resolve,
}

/// Opens a path.
///
/// # Errors
/// As open(2).
pub fn open(cx: &mut Cx<'_>, request: OpenRequest<'_>) -> Result<Opened, Errno> {
    let flags = checked(cx, request.flags)?;
    if flags.contains(OpenFlags::TMPFILE) {
        return open_unnamed(cx, &request, flags);
    }
    let creates = flags.contains(OpenFlags::CREAT);
    let exclusive = creates && flags.contains(OpenFlags::EXCL);
    let no_follow = exclusive || flags.contains(OpenFlags::NOFOLLOW);
    let last = match (creates, no_follow) {
        (true, true) => Last::CreateExclusive,
        (true, false) => Last::Create,
        (false, true) => Last::NoFollow,
        (false, false) => Last::Follow,
    };
    if creates && request.path.last() == Some(&b'/') {
        return Err(Errno::EISDIR);
    }
    let changes = creates || flags.writable() || flags.contains(OpenFlags::TRUNC);
    let walk = Request {
        call: request.call,
        start: request.start.clone(),
        path: request.path,
        last,
        intent: if changes { Intent::Write } else { Intent::Read },
        resolve: request.resolve,
    };
    let reads = !changes && !flags.contains(OpenFlags::PATH);
    if reads && let Some(found) = looked_at(cx, &walk) {
        match open_found(cx, request.call, found, flags) {
            // A link may have taken its place, which has to be followed.
            Err(Errno::ELOOP | Errno::ENOTDIR) => {}
            done => return done,
        }
    }
    match path::walk(cx, walk)? {
        Walked::Found(_) if exclusive => Err(Errno::EEXIST),
        Walked::Found(found) => open_found(cx, request.call, found, flags),
        Walked::Missing(missing) => match create(cx, &request, missing, flags) {
            // Another process of the host was faster.
            Err(Errno::EEXIST) if !exclusive => open_present(cx, request, flags),
            created => created,
        },
    }
}

/// Opens what has been made a moment ago by somebody else.
fn open_present(
    cx: &mut Cx<'_>,
    request: OpenRequest<'_>,
    flags: OpenFlags,
) -> Result<Opened, Errno> {
    let last = match flags.contains(OpenFlags::NOFOLLOW) {
        true => Last::NoFollow,
        false => Last::Follow,
    };
    let walk = Request {
        call: request.call,
        start: request.start,
        path: request.path,
        last,
        intent: Intent::Write,
        resolve: request.resolve,
    };
    let found = path::find(cx, walk)?;
    open_found(cx, request.call, found, flags)
}

/// The object that the request leads to, if the last look was at that.
fn looked_at(cx: &mut Cx<'_>, request: &Request<'_>) -> Option<Found> {
    let (Dir::Path(at), Some(dir)) = (&request.start.dir, &request.start.open) else {
        return None;
    };
    if !request.resolve.is_empty() {
        return None;
    }
    let path = join(at, request.path);
    let attr = cx.host.lookup_cache.take(dir, &path, (cx.host.now)())?;
    access::check_search_in(&cx.asker(), dir.as_fd()).ok()?;
    let node = Node::Host(Handle::Entry(Arc::clone(dir)), attr);
    Some(Found { path, node })
}

/// Refuses flag combinations that Linux refuses (build_open_flags in fs/open.c).
fn checked(cx: &mut Cx<'_>, flags: OpenFlags) -> Result<OpenFlags, Errno> {
    if flags.contains(OpenFlags::PATH) {
        let kept =
            OpenFlags::PATH | OpenFlags::DIRECTORY | OpenFlags::NOFOLLOW | OpenFlags::CLOEXEC;
        return Ok(flags & kept);
    }
    if flags.contains(OpenFlags::WRONLY | OpenFlags::RDWR) {
        // Linux differs: access mode 3 gives a descriptor for ioctl(2) only.
        cx.host
            .report
            .unsupported("open", "access mode 3".to_owned());
        return Err(Errno::EINVAL);
    }
    if flags.contains(OpenFlags::TMPFILE) {
        if !flags.contains(OpenFlags::DIRECTORY)
            || !flags.writable()
            || flags.contains(OpenFlags::CREAT)
        {
            return Err(Errno::EINVAL);
        }
    } else if flags.contains(OpenFlags::CREAT | OpenFlags::DIRECTORY) {
        return Err(Errno::EINVAL);
    }
    Ok(flags)
}

/// A description on `kind`.
#[must_use]
pub fn description(kind: FileKind, flags: OpenFlags, path: &[u8]) -> OpenFile {
    OpenFile {
        kind,
        offset: 0,
        flags: flags & OpenFlags::KEPT,
        refs: 0,
        path: Arc::from(path),
    }
}

/// Records a refused change of `path`; the error to answer.
pub fn deny_write(cx: &mut Cx<'_>, call: &str, path: &[u8]) -> Errno {
    let what = format!("{call} {}", super::printable(path));
    cx.host
        .report
        .deny(what, Errno::EROFS, Remedy::ReadOnlyTree);
    Errno::EROFS
}

pub(super) fn open_found(
    cx: &mut Cx<'_>,
    call: &'static str,
    found: Found,
    flags: OpenFlags,
) -> Result<Opened, Errno> {
    let attr = attr_of(cx, &found)?;
    if flags.contains(OpenFlags::DIRECTORY) && !attr.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    if flags.contains(OpenFlags::PATH) {
        return locate(cx, found, flags);
    }
    if attr.is_symlink() {
        return Err(Errno::ELOOP);
    }
    let changes = flags.writable() || flags.contains(OpenFlags::TRUNC);
    if attr.is_dir() && (flags.writable() || flags.contains(OpenFlags::CREAT)) {
        return Err(Errno::EISDIR);
    }
    let is_others = match found.node {
        Node::Tmp(inode) => !privilege::owns(cx, inode)?,
        _ => !cx.asker().owns(&attr),
    };
    if flags.contains(OpenFlags::NOATIME) && is_others {
        return Err(Errno::EPERM);
    }
    let fifo = matches!(found.node, Node::Host(..)) && attr.kind() == S_IFIFO;
    if (changes || fifo)
        && let Some(inode) = overlay::own(cx, &found)?
    {
        return open_tmp(cx, inode, flags, &found.path);
    }
    // One that is refused breaks no lease.
    if let Node::Host(_, attr) = &found.node
        && (!changes || hosttree::is_writable(cx.host, &found.path))
        && let Some(until_ns) = leases::broken_on_host(cx, attr, flags)?
    {
        return Ok(Opened::Leased(until_ns));
    }
    let kind = match found.node {
        Node::Host(handle, _) if changes && hosttree::is_writable(cx.host, &found.path) => {
            hosttree::open(cx, call, (&found.path, &attr), handle.directory(), flags)?
        }
        Node::Host(..) if changes => return Err(deny_write(cx, call, &found.path)),
        Node::Host(handle, _) => open_host(cx, call, (&found.path, &attr), handle.directory())?,
        Node::Tmp(inode) => {
            return open_tmp(cx, inode, flags, &found.path);
        }
        Node::Synth(Synth::Dir) => FileKind::SynthDir(Arc::from(synth::list(cx, &found.path))),
        Node::Synth(Synth::Text) if changes => return Err(Errno::EACCES),
        Node::Synth(Synth::Text) => {
            let text = synth::text(cx, &found.path).ok_or(Errno::ENOENT)?;
            charge_text(cx, text.bytes.len())?;
            FileKind::Text(text)
        }
        Node::Synth(Synth::Device(device)) => FileKind::Device(device),
        Node::Synth(Synth::Ptmx) => FileKind::Pty(cx.kernel.open_pty(&mut cx.machine.memory)?),
        Node::Synth(Synth::Pty(index)) => return open_slave(cx, index, flags, &found.path),
        Node::Synth(Synth::Tty) => {
            let Some(Ctty::Pty(index)) = cx.process()?.ctty else {
                return Err(Errno::ENXIO);
            };
            let creds = cx.creds();
            FileKind::Pty(cx.kernel.open_slave(index, Lock::Passed, &creds)?)
        }
        Node::Synth(Synth::Closed | Synth::Private) => return Err(Errno::EACCES),
        // Linux differs: it can be opened, and not read.
        Node::Synth(Synth::Withheld) => return Err(Errno::EPERM),
        Node::Synth(Synth::Link(_) | Synth::FdLink(_) | Synth::Sealed(_)) => {
            return Err(Errno::ELOOP);
        }
        Node::Open(file) => return file::reopen(cx, call, file, flags),
    };
    Ok(Opened::New(description(kind, flags, &found.path)))
}

/// Opens the slave of a pseudo-terminal, which may become the caller's controlling terminal.
///
/// # Errors
/// As [`Kernel::open_slave`](crate::kernel::Kernel::open_slave).
pub fn open_slave(
    cx: &mut Cx<'_>,
    index: u32,
    flags: OpenFlags,
    path: &[u8],
) -> Result<Opened, Errno> {
    let creds = cx.creds();
    let end = cx.kernel.open_slave(index, Lock::Heeded, &creds)?;
    if flags.readable() && !flags.contains(OpenFlags::NOCTTY) {
        let pid = cx.process()?.pid;
        cx.kernel.take_ctty_on_open(pid, index);
    }
    Ok(Opened::New(description(FileKind::Pty(end), flags, path)))
}

pub(super) fn open_host(
    cx: &mut Cx<'_>,
    call: &str,
    (path, attr): (&[u8], &Attr),
    dir: Option<BorrowedFd<'_>>,
) -> Result<FileKind, Errno> {
    let who = cx.asker();
    let fd = match cx.host.roots.open_for_reading(&who, path, attr, dir) {
        Ok(fd) => fd,
        Err(errno) => {
            if !matches!(attr.kind(), S_IFREG | S_IFDIR) {
                let what = format!("{call} {}", super::printable(path));
                cx.host.report.deny(what, errno, Remedy::SpecialFile);
            }
            return Err(errno);
        }
    };
    access::refuse_kernel_files(cx.host, call, (path, attr), fd.as_fd())?;
    let (id, kind) = if attr.is_dir() {
        let id = cx.host.insert_opened(fd, HostKind::Directory)?;
        (id, FileKind::HostDir(id))
    } else {
        let id = cx.host.insert_opened(fd, HostKind::File)?;
        (id, FileKind::HostFile(id))
    };
    cx.host.deferred.check(id, attr, who);
    Ok(kind)
}

/// Opens an inode of the memory file system as the mode bits allow; takes a reference.
pub(super) fn open_tmp(
    cx: &mut Cx<'_>,
    inode: InodeId,
    flags: OpenFlags,
    path: &[u8],
) -> Result<Opened, Errno> {
    let attr = cx.kernel.tmpfs.attr(inode)?;
    let mut wanted = 0;
    if flags.readable() {
        wanted |= MAY_READ;
    }
    if flags.writable() || flags.contains(OpenFlags::TRUNC) {
        wanted |= MAY_WRITE;
    }
    if !privilege::permits(cx, inode, wanted)? {
        return Err(Errno::EACCES);
    }
    if attr.kind() == S_IFIFO {
        return fifo::open(cx, inode, flags, path);
    }
    if let Some(until_ns) = leases::broken_by(cx, &attr, flags)? {
        return Ok(Opened::Leased(until_ns));
    }
    match attr.kind() {
        S_IFREG | S_IFDIR => {}
        S_IFSOCK => return Err(Errno::ENXIO),
        S_IFLNK => return Err(Errno::ELOOP),
        _ => return Err(Errno::EACCES),
    }
    if flags.contains(OpenFlags::TRUNC) && !attr.is_dir() {
        set_tmp_size(cx, inode, 0)?;
        notify::at(cx, path, inode, IN_MODIFY);
    }
    overlay::open_lower(cx, inode)?;
    cx.kernel.tmpfs.open_ref(inode);
    let file = description(FileKind::Tmp(inode), flags, path);
    Ok(Opened::New(file))
}

/// O_PATH
fn locate(cx: &mut Cx<'_>, found: Found, flags: OpenFlags) -> Result<Opened, Errno> {
    let kind = match found.node {
        Node::Host(handle, attr) => {
            let fd = handle.into_location(&found.path, &attr)?;
            access::refuse_kernel_files(cx.host, "open", (&found.path, &attr), fd.as_fd())?;
            FileKind::HostLocation(cx.host.insert_opened(fd, HostKind::Location)?)
        }
        Node::Tmp(inode) => {
            cx.kernel.tmpfs.open_ref(inode);
            FileKind::Tmp(inode)
        }
        Node::Synth(_) => FileKind::SynthLocation,
        Node::Open(file) => {
            let mut open = cx.kernel.files.get(&file).ok_or(Errno::ENOENT)?.clone();
            if let Some(inode) = fifo::inode_of(cx, &open.kind) {
                // The pipe goes with its ends, of which this is none.
                open.kind = FileKind::Tmp(inode);
            }
            if matches!(open.kind, FileKind::Pty(_)) {
                // Neither does it keep an end open.
                open.kind = FileKind::SynthLocation;
            }
            file::hold(cx, &open)?;
            return Ok(Opened::New(OpenFile {
                flags,
                refs: 0,
                offset: 0,
                ..open
            }));
        }
    };
    Ok(Opened::New(description(kind, flags, &found.path)))
}

/// Charges the contents of a synthetic file, which every description keeps, to the memory limit.
///
/// # Errors
/// `ENOMEM`.
pub fn charge_text(cx: &mut Cx<'_>, len_bytes: usize) -> Result<(), Errno> {
    cx.machine
        .memory
        .charge(len_bytes as u64)
        .map_err(|_| Errno::ENOMEM)
}

/// The directory of a new name, if it can be changed: its inode in the memory file system.
///
/// # Errors
/// `EROFS`, recorded, elsewhere; `EACCES` by mode bits; `ENOENT` in a removed directory.
pub fn writable_directory(
    cx: &mut Cx<'_>,
    call: &str,
    dir: &At,
    name: &[u8],
) -> Result<InodeId, Errno> {
    let Some(inode) = dir.tmp else {
        return Err(deny_write(cx, call, &kvmlet_policy::join(&dir.path, name)));
    };
    let attr = cx.kernel.tmpfs.attr(inode)?;
    if attr.nlink == 0 {
        return Err(Errno::ENOENT);
    }
    match privilege::permits(cx, inode, MAY_WRITE | MAY_EXEC)? {
        true => Ok(inode),
        false => Err(Errno::EACCES),
    }
}

/// Owner and permissions of something new in `dir` (open(2), inode_init_owner).
///
/// # Errors
/// `ESRCH`, `ENOENT` if process or directory are gone.
pub fn new_attr(cx: &mut Cx<'_>, dir: InodeId, mode: u32, is_dir: IsDir) -> Result<NewAttr, Errno> {
    let umask = cx.fs()?.umask;
    let parent = cx.kernel.tmpfs.attr(dir)?;
    let mut mode = mode & 0o7777 & !umask;
    let creds = cx.creds();
    let mut gid = creds.group.fs;
    if parent.mode & S_ISGID != 0 {
        gid = parent.gid;
        if is_dir == IsDir::Yes {
            mode |= S_ISGID;
        } else if mode & 0o010 != 0 && !creds.is_member(gid) && !creds.has(CAP_FSETID) {
            mode &= !S_ISGID;
        }
    }
    Ok(NewAttr {
        mode,
        uid: creds.user.fs,
        gid,
        now: now(cx.host),
    })
}

/// Says if something new is a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IsDir {
    /// It is.
    Yes,
    /// It is not.
    No,
}

fn create(
    cx: &mut Cx<'_>,
    request: &OpenRequest<'_>,
    missing: Missing,
    flags: OpenFlags,
) -> Result<Opened, Errno> {
    if hosttree::holds(cx.host, &missing.dir) {
        let kind = hosttree::create(cx, request.call, &missing, (flags, request.mode))?;
        let path = kvmlet_policy::join(&missing.dir.path, &missing.name);
        return Ok(Opened::New(description(kind, flags, &path)));
    }
    let dir = writable_directory(cx, request.call, &missing.dir, &missing.name)?;
    let attr = new_attr(cx, dir, request.mode, IsDir::No)?;
    let body = NewBody::File(F_SEAL_SEAL);
    let memory = &mut cx.machine.memory;
    let inode = cx
        .kernel
        .tmpfs
        .create(memory, dir, &missing.name, &body, attr)?;
    cx.kernel.tmpfs.open_ref(inode);
    notify::created(cx, dir, &missing.name, inode);
    let path = kvmlet_policy::join(&missing.dir.path, &missing.name);
    Ok(Opened::New(description(FileKind::Tmp(inode), flags, &path)))
}

/// O_TMPFILE
fn open_unnamed(
    cx: &mut Cx<'_>,
    request: &OpenRequest<'_>,
    flags: OpenFlags,
) -> Result<Opened, Errno> {
    let walk = Request {
        call: request.call,
        start: request.start.clone(),
        path: request.path,
        last: Last::Follow,
        intent: Intent::Write,
        resolve: request.resolve,
    };
    let found = path::find(cx, walk)?;
    if !attr_of(cx, &found)?.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    let tmp = if let Node::Tmp(inode) = found.node {
        Some(inode)
    } else {
        None
    };
    let at = At {
        path: Arc::from(found.path.as_slice()),
        tmp,
    };
    if hosttree::holds(cx.host, &at) {
        let how = (flags, request.mode);
        let (kind, path) = hosttree::create_unnamed(cx, request.call, &at, how)?;
        let kept = flags.difference(OpenFlags::DIRECTORY);
        return Ok(Opened::New(description(kind, kept, &path)));
    }
    let dir = writable_directory(cx, request.call, &at, b"")?;
    let attr = new_attr(cx, dir, request.mode, IsDir::No)?;
    let inode = cx
        .kernel
        .tmpfs
        .create_unnamed(&mut cx.machine.memory, F_SEAL_SEAL, attr)?;
    cx.kernel.tmpfs.place(inode, dir)?;
    cx.kernel.tmpfs.get_mut(inode)?.is_linkable = !flags.contains(OpenFlags::EXCL);
    let path = kvmlet_policy::join(&found.path, format!("#{}", inode.0).as_bytes());
    let kept = flags.difference(OpenFlags::DIRECTORY);
    Ok(Opened::New(description(FileKind::Tmp(inode), kept, &path)))
}
