//! Descriptor tables and open file descriptions (open(2), "Open file descriptions").

use std::sync::Arc;

use bitflags::bitflags;
use imbl::OrdMap;

use kvmlet_abi::Errno;
use kvmlet_mem::GuestMemory;

use crate::cx::Cx;
use crate::host::HostId;
pub use crate::id::FileId;
use crate::kernel::{Kernel, ProcessRef};
use crate::net;
use crate::rlimit::{self, Resource};
use crate::tty::PtyEnd;
use crate::vfs;
use crate::vfs::anon::ObjectId;
use crate::vfs::pipe::PipeId;
use crate::vfs::tmpfs::InodeId;

bitflags! {
    /// Status flags and access mode of a description, with Linux's values (fcntl(2) F_GETFL).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct OpenFlags: u32 {
        /// O_WRONLY
        const WRONLY = 0o1;
        /// O_RDWR
        const RDWR = 0o2;
        /// O_CREAT
        const CREAT = 0o100;
        /// O_EXCL
        const EXCL = 0o200;
        /// O_NOCTTY
        const NOCTTY = 0o400;
        /// O_TRUNC
        const TRUNC = 0o1000;
        /// O_APPEND
        const APPEND = 0o2000;
        /// O_NONBLOCK
        const NONBLOCK = 0o4000;
        /// O_DSYNC
        const DSYNC = 0o10000;
        /// O_ASYNC
        const ASYNC = 0o20000;
        /// O_DIRECT
        const DIRECT = 0o40000;
        /// O_LARGEFILE
        const LARGEFILE = 0o100000;
        /// O_DIRECTORY
        const DIRECTORY = 0o200000;
        /// O_NOFOLLOW
        const NOFOLLOW = 0o400000;
        /// O_NOATIME
        const NOATIME = 0o1000000;
        /// O_CLOEXEC
        const CLOEXEC = 0o2000000;
        /// __O_SYNC
        const SYNC = 0o4000000;
        /// O_PATH
        const PATH = 0o10000000;
        /// __O_TMPFILE
        const TMPFILE = 0o20000000;
    }
}

impl OpenFlags {
    /// True if read(2) is allowed.
    #[must_use]
    pub fn readable(self) -> bool {
        !self.contains(Self::WRONLY) && !self.contains(Self::PATH)
    }

    /// True if write(2) is allowed.
    #[must_use]
    pub fn writable(self) -> bool {
        self.intersects(Self::WRONLY | Self::RDWR) && !self.contains(Self::PATH)
    }
}

impl OpenFlags {
    /// The flags that F_GETFL shows: the creation flags are not kept (open(2)).
    pub const KEPT: Self = Self::WRONLY
        .union(Self::RDWR)
        .union(Self::APPEND)
        .union(Self::NONBLOCK)
        .union(Self::DSYNC)
        .union(Self::ASYNC)
        .union(Self::DIRECT)
        .union(Self::LARGEFILE)
        .union(Self::DIRECTORY)
        .union(Self::NOFOLLOW)
        .union(Self::NOATIME)
        .union(Self::SYNC)
        .union(Self::PATH);
    /// The flags that F_SETFL may change (fcntl(2)).
    pub const SETTABLE: Self = Self::APPEND
        .union(Self::ASYNC)
        .union(Self::DIRECT)
        .union(Self::NOATIME)
        .union(Self::NONBLOCK);
}

/// A descriptor: which description, and FD_CLOEXEC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fd {
    /// The description.
    pub file: FileId,
    /// Close-on-exec.
    pub cloexec: bool,
}

/// Descriptors of a thread, and of all that share them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdTable {
    /// Descriptor number to descriptor.
    pub fds: OrdMap<i32, Fd>,
}

/// An open file description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFile {
    /// The thing that it is open on.
    pub kind: FileKind,
    /// File offset in bytes, or directory cursor.
    pub offset: u64,
    /// Access mode and status flags.
    pub flags: OpenFlags,
    /// Descriptors (and mappings) that refer to it.
    pub refs: u32,
    /// Absolute guest path it was opened by (/proc/self/fd links, messages).
    pub path: Arc<[u8]>,
}

/// Host memory charged to the program for an open file description: more than one takes.
const FILE_COST_BYTES: u64 = 512;

impl OpenFile {
    /// Host memory that it takes, in bytes, beside what its object is charged.
    #[must_use]
    pub fn cost_bytes(&self) -> u64 {
        let mut names = 0;
        if let FileKind::SynthDir(of_directory) = &self.kind {
            names = names_cost_bytes(of_directory);
        }
        FILE_COST_BYTES
            .saturating_add(self.path.len() as u64)
            .saturating_add(names)
    }
}

/// The part of a synthetic file's text that a description keeps: a part of a long one, as Linux's
/// seq_file has it. The rest is made when it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The part.
    pub bytes: Arc<[u8]>,
    /// Its offset in the text, in bytes.
    pub at: u64,
    /// The place after it, if something follows: the address of a mapping.
    pub next: Option<u64>,
}

impl Text {
    /// A text that is kept as a whole.
    #[must_use]
    pub fn whole(bytes: Vec<u8>) -> Self {
        Self {
            bytes: bytes.into(),
            at: 0,
            next: None,
        }
    }

    /// Offset of its end, in bytes.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.at.saturating_add(self.bytes.len() as u64)
    }

    /// True if a read at `offset` can be answered from it.
    #[must_use]
    pub fn covers(&self, offset: u64) -> bool {
        self.at <= offset && (offset < self.end() || self.next.is_none())
    }
}

/// Names of a synthetic directory and their d_type.
pub type SynthNames = Arc<[(Vec<u8>, u8)]>;

/// Host memory that the names of a synthetic directory take, in bytes: they are short.
#[must_use]
pub fn names_cost_bytes(names: &SynthNames) -> u64 {
    const NAME_COST_BYTES: u64 = 64;
    NAME_COST_BYTES.saturating_mul(names.len() as u64)
}

/// The thing that a description is open on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular host file, read at explicit offsets.
    HostFile(HostId),
    /// A host directory.
    HostDir(HostId),
    /// A host object opened with O_PATH, a symbolic link included.
    HostLocation(HostId),
    /// An inherited stream (stdin, stdout, stderr): terminal, pipe, socket, file or device.
    HostStream(HostId),
    /// Captured standard output (1) or standard error (2).
    Capture(u8),
    /// Standard input given as bytes; looks like a pipe whose writer has closed.
    Input(Arc<[u8]>),
    /// A file or directory of the memory file system.
    Tmp(InodeId),
    /// A character device of ours.
    Device(Device),
    /// A synthetic read-only file (a /proc file as it was when opened).
    Text(Text),
    /// A synthetic directory (`/`, /proc, /dev...): names in order with their d_type.
    SynthDir(SynthNames),
    /// A synthetic object opened with O_PATH: looked up by its path when used.
    SynthLocation,
    /// One end of a pipe of ours; the access mode says which.
    Pipe(PipeId),
    /// An event counter.
    Event(ObjectId),
    /// A timer that is read.
    Timer(ObjectId),
    /// An epoll instance.
    Epoll(ObjectId),
    /// A socket.
    Socket(ObjectId),
    /// An inotify instance.
    Inotify(ObjectId),
    /// Signals of this set, read by whom they are pending for (signalfd(2)).
    Signals(u64),
    /// A process (pidfd_open(2)).
    Process(ProcessRef),
    /// An end of a pseudo-terminal.
    Pty(PtyEnd),
    /// A POSIX message queue.
    Mqueue(ObjectId),
}

/// Character devices that exist in every sandbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// /dev/null
    Null,
    /// /dev/zero
    Zero,
    /// /dev/full
    Full,
    /// /dev/random
    Random,
    /// /dev/urandom
    Urandom,
}

impl FdTable {
    /// The lowest unused number that is at least `min`.
    #[must_use]
    pub fn lowest_free(&self, min: i32) -> i32 {
        // Without a gap, as a table mostly is, there is nothing to look through.
        let used = i32::try_from(self.fds.len()).unwrap_or(i32::MAX);
        let last = self.fds.get_max().map_or(-1, |(last, _)| *last);
        if last.saturating_add(1) == used && min <= used {
            return used;
        }
        let mut free = min;
        for (used, _) in self.fds.range(min..) {
            if *used != free {
                break;
            }
            free = free.saturating_add(1);
        }
        free
    }
}

/// First number that the calling process may not use: its RLIMIT_NOFILE.
///
/// # Errors
/// `ESRCH` if the process is gone.
pub fn limit(cx: &mut Cx<'_>) -> Result<i32, Errno> {
    let soft = rlimit::soft(cx, Resource::Nofile)?;
    Ok(i32::try_from(soft).unwrap_or(i32::MAX))
}

/// The description that `fd` refers to.
///
/// # Errors
/// `EBADF`.
pub fn id(cx: &mut Cx<'_>, fd: i32) -> Result<FileId, Errno> {
    let fd = cx.fds()?.fds.get(&fd).ok_or(Errno::EBADF)?;
    Ok(fd.file)
}

/// As [`id`], and a copy of it.
///
/// # Errors
/// `EBADF`.
pub fn get(cx: &mut Cx<'_>, fd: i32) -> Result<(FileId, OpenFile), Errno> {
    let id = id(cx, fd)?;
    let file = cx.kernel.files.get(&id).ok_or(Errno::EBADF)?;
    Ok((id, file.clone()))
}

/// As [`get`], but descriptions opened with O_PATH do not count (open(2)).
///
/// # Errors
/// `EBADF`.
pub fn get_io(cx: &mut Cx<'_>, fd: i32) -> Result<(FileId, OpenFile), Errno> {
    let (id, file) = get(cx, fd)?;
    if file.flags.contains(OpenFlags::PATH) {
        Err(Errno::EBADF)
    } else {
        Ok((id, file))
    }
}

/// A description, to be changed.
///
/// # Errors
/// `EBADF` if it is gone.
pub fn file_mut<'a>(cx: &'a mut Cx<'_>, id: FileId) -> Result<&'a mut OpenFile, Errno> {
    cx.kernel.files.get_mut(&id).ok_or(Errno::EBADF)
}

/// Adds a description without a descriptor: `refs` is as given. It is charged to the program, for whose
/// limit the caller has looked out.
pub fn add_file(kernel: &mut Kernel, memory: &mut GuestMemory, file: OpenFile) -> FileId {
    memory.charge_kernel_anyway(file.cost_bytes());
    let id = FileId(kernel.next_file);
    kernel.next_file = kernel.next_file.saturating_add(1);
    kernel.files.insert(id, file);
    id
}

/// Says if a descriptor is closed by execve(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnExec {
    /// It stays open.
    Keep,
    /// FD_CLOEXEC.
    Close,
}

impl OnExec {
    /// From O_CLOEXEC among open flags.
    #[must_use]
    pub fn of(flags: OpenFlags) -> Self {
        if flags.contains(OpenFlags::CLOEXEC) {
            Self::Close
        } else {
            Self::Keep
        }
    }
}

/// Gives an existing description the lowest free descriptor that is at least `min`; the description
/// gains a reference.
///
/// # Errors
/// `EMFILE`.
pub fn install(cx: &mut Cx<'_>, file: FileId, min: i32, on_exec: OnExec) -> Result<i32, Errno> {
    let limit = limit(cx)?;
    let fds = cx.fds()?;
    let number = fds.lowest_free(min);
    if number >= limit {
        return Err(Errno::EMFILE);
    }
    fds.fds.insert(
        number,
        Fd {
            file,
            cloexec: on_exec == OnExec::Close,
        },
    );
    let file = file_mut(cx, file)?;
    file.refs = file.refs.saturating_add(1);
    Ok(number)
}

/// Gives a new description (its `refs` is ignored) the lowest free descriptor. On failure what the
/// description holds is released.
///
/// # Errors
/// `EMFILE`; `ENOMEM` at the memory limit.
pub fn install_new(cx: &mut Cx<'_>, file: OpenFile, on_exec: OnExec) -> Result<i32, Errno> {
    let memory = &mut cx.machine.memory;
    let fits = memory.has_room(file.cost_bytes());
    let id = add_file(cx.kernel, memory, OpenFile { refs: 0, ..file });
    let number = if fits {
        install(cx, id, 0, on_exec)
    } else {
        Err(Errno::ENOMEM)
    };
    if number.is_err() {
        vfs::file::release(cx, id);
    }
    number
}

/// Puts an existing description at descriptor `number`, closing what was there (dup2(2)).
///
/// # Errors
/// `EBADF` for a number outside the limit.
pub fn install_at(
    cx: &mut Cx<'_>,
    file: FileId,
    number: i32,
    on_exec: OnExec,
) -> Result<(), Errno> {
    if number < 0 || number >= limit(cx)? {
        return Err(Errno::EBADF);
    }
    let kept = file_mut(cx, file)?;
    kept.refs = kept.refs.saturating_add(1);
    let new = Fd {
        file,
        cloexec: on_exec == OnExec::Close,
    };
    if let Some(old) = cx.fds()?.fds.insert(number, new) {
        closed(cx, old.file);
    }
    Ok(())
}

/// Closes a descriptor.
///
/// # Errors
/// `EBADF`.
pub fn close(cx: &mut Cx<'_>, number: i32) -> Result<(), Errno> {
    let old = cx.fds()?.fds.remove(&number).ok_or(Errno::EBADF)?;
    closed(cx, old.file);
    Ok(())
}

/// A descriptor of the calling thread that referred to `file` is gone.
fn closed(cx: &mut Cx<'_>, file: FileId) {
    if let Ok(files) = cx.thread().map(|thread| thread.share.files) {
        vfs::locks::closed(cx, files, file);
    }
    vfs::file::closed(cx, file);
    unref(cx, file);
}

/// Drops a reference to a description; the last one releases it.
pub fn unref(cx: &mut Cx<'_>, file: FileId) {
    let Some(open) = cx.kernel.files.get_mut(&file) else {
        return;
    };
    open.refs = open.refs.saturating_sub(1);
    match open.refs {
        0 => vfs::file::release(cx, file),
        refs => net::rights::lost_reference(cx.kernel, file, refs),
    }
}
