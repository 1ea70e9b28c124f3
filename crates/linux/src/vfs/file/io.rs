//! Readiness, transfers and positions.

use std::os::fd::AsFd;

use kvmlet_abi::Errno;
use kvmlet_hostfs::attr::S_IFREG;
use kvmlet_hostfs::{change, stream, terminal};

use super::{attr, is_regular};
use crate::clock;
use crate::cx::Cx;
use crate::fd::{self, Device, FileId, FileKind, OpenFile};
use crate::host::HostId;
use crate::outcome::{Source, Turn};
use crate::tty::PtyEnd;
use crate::vfs::anon::ObjectId;
use crate::vfs::epoll::{self, Asked};
use crate::vfs::eventfd::EventFd;
use crate::vfs::pipe::PipeId;
use crate::vfs::ready::{POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT, POLLRDNORM, POLLWRNORM};
use crate::vfs::timerfd::TimerFd;
use crate::vfs::{self, synth};

// ---- readiness ----

/// The events that hold now, of those that `events` asks a host stream for, of all for others.
#[must_use]
pub fn poll(cx: &Cx<'_>, file: &OpenFile, events: i16, asked: &mut Asked) -> i16 {
    let (readable, writable) = (POLLIN | POLLRDNORM, POLLOUT | POLLWRNORM);
    let objects = &cx.kernel.objects;
    match &file.kind {
        FileKind::HostStream(host) => asked.host_ready(cx.host, *host, events),
        FileKind::Pipe(pipe) => {
            let Ok(pipe) = cx.kernel.pipes.get(*pipe) else {
                return POLLNVAL;
            };
            let mut state = 0;
            if file.flags.readable() {
                state |= if pipe.is_empty() { 0 } else { readable };
                let hung_up = pipe.writers == 0 && file.offset != pipe.writer_opens;
                state |= if hung_up { POLLHUP } else { 0 };
            }
            if file.flags.writable() {
                state |= if pipe.is_full() { 0 } else { writable };
                state |= if pipe.readers == 0 { POLLERR } else { 0 };
            }
            state
        }
        FileKind::Input(bytes) => {
            let rest = file.offset < bytes.len() as u64;
            POLLHUP | if rest { readable } else { 0 }
        }
        FileKind::Capture(_) => writable,
        FileKind::Mqueue(id) => match cx.kernel.ipc.mqueues.get(*id) {
            Ok(queue) => queue.poll(),
            Err(_) => POLLERR,
        },
        FileKind::Event(id) => objects.events.get(id).map_or(POLLERR, EventFd::poll),
        FileKind::Timer(id) => objects.timers.get(*id).map_or(POLLERR, TimerFd::poll),
        FileKind::Socket(id) => objects.sockets.poll(*id),
        FileKind::Epoll(id) if epoll::is_readable(cx, *id, asked) => readable,
        FileKind::Epoll(_) => 0,
        FileKind::Inotify(id) if objects.inotifies.readable_bytes(*id) > 0 => readable,
        FileKind::Inotify(_) => 0,
        FileKind::Signals(mask) if cx.kernel.pending_set(cx.tid) & mask != 0 => POLLIN,
        FileKind::Signals(_) => 0,
        FileKind::Process(process) if cx.kernel.is_running(*process) => 0,
        FileKind::Process(_) => readable,
        FileKind::Pty(end) => match cx.kernel.ptys.get(end.index) {
            Ok(pty) => pty.poll(end.side),
            Err(_) => POLLERR,
        },
        FileKind::HostFile(_)
        | FileKind::HostDir(_)
        | FileKind::HostLocation(_)
        | FileKind::Tmp(_)
        | FileKind::Device(_)
        | FileKind::Text(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation => readable | writable,
    }
}

/// The source to wait for until `events` may hold; `None` if they always hold or never will. An epoll
/// instance waits for what it watches ([`epoll::wait_sources`]).
#[must_use]
pub fn wait_source(cx: &Cx<'_>, file: &OpenFile, events: i16) -> Option<Source> {
    match &file.kind {
        FileKind::HostStream(host) => {
            (!is_regular(cx, *host)).then_some(Source::Host(*host, events))
        }
        FileKind::Pipe(pipe) => Some(Source::Pipe(*pipe)),
        FileKind::Event(id)
        | FileKind::Mqueue(id)
        | FileKind::Timer(id)
        | FileKind::Socket(id)
        | FileKind::Inotify(id) => Some(Source::Object(*id)),
        FileKind::Pty(end) => Some(Source::Object(end.source)),
        FileKind::Signals(_) => Some(Source::Signals),
        FileKind::Process(process) => Some(Source::End(process.pid)),
        FileKind::HostFile(_)
        | FileKind::HostDir(_)
        | FileKind::HostLocation(_)
        | FileKind::Capture(_)
        | FileKind::Input(_)
        | FileKind::Tmp(_)
        | FileKind::Device(_)
        | FileKind::Text(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation
        | FileKind::Epoll(_) => None,
    }
}

/// The source that raises events of a description for an epoll instance, and which of them concern it.
#[must_use]
pub fn watched(file: &OpenFile) -> (Option<Source>, i16) {
    const ANY: i16 = -1;
    match &file.kind {
        FileKind::HostStream(host) => (Some(Source::Host(*host, 0)), ANY),
        FileKind::Pipe(pipe) => {
            let mut listens = POLLERR | POLLHUP;
            if file.flags.readable() {
                listens |= POLLIN | POLLRDNORM;
            }
            if file.flags.writable() {
                listens |= POLLOUT | POLLWRNORM;
            }
            (Some(Source::Pipe(*pipe)), listens)
        }
        FileKind::Event(id)
        | FileKind::Mqueue(id)
        | FileKind::Timer(id)
        | FileKind::Epoll(id)
        | FileKind::Socket(id)
        | FileKind::Inotify(id) => (Some(Source::Object(*id)), ANY),
        FileKind::Pty(end) => (Some(Source::Object(end.source)), ANY),
        FileKind::Signals(_) => (Some(Source::Signals), ANY),
        FileKind::Process(process) => (Some(Source::End(process.pid)), ANY),
        FileKind::HostFile(_)
        | FileKind::HostDir(_)
        | FileKind::HostLocation(_)
        | FileKind::Capture(_)
        | FileKind::Input(_)
        | FileKind::Tmp(_)
        | FileKind::Device(_)
        | FileKind::Text(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation => (None, 0),
    }
}

/// The source of the signals of signal-driven I/O (O_ASYNC in open(2)); `None` for a file that sends none.
/// Linux differs: the caller's terminal does.
#[must_use]
pub fn signals(kind: &FileKind) -> Option<Source> {
    match kind {
        FileKind::Pipe(pipe) => Some(Source::Pipe(*pipe)),
        FileKind::Socket(id) | FileKind::Inotify(id) => Some(Source::Object(*id)),
        FileKind::Pty(end) => Some(Source::Object(end.source)),
        FileKind::Tmp(_)
        | FileKind::HostFile(_)
        | FileKind::HostDir(_)
        | FileKind::HostLocation(_)
        | FileKind::HostStream(_)
        | FileKind::Input(_)
        | FileKind::Capture(_)
        | FileKind::Device(_)
        | FileKind::Text(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation
        | FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Process(_)
        | FileKind::Signals(_) => None,
    }
}

/// True if a description can be watched by epoll: Linux refuses what has no poll operation.
#[must_use]
pub fn can_be_watched(cx: &Cx<'_>, kind: &FileKind) -> bool {
    match kind {
        FileKind::HostStream(host) => !is_regular(cx, *host),
        FileKind::Pipe(_)
        | FileKind::Input(_)
        | FileKind::Capture(_)
        | FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_)
        | FileKind::Process(_)
        | FileKind::Pty(_)
        | FileKind::Socket(_)
        | FileKind::Device(Device::Random) => true,
        FileKind::HostFile(_)
        | FileKind::HostDir(_)
        | FileKind::HostLocation(_)
        | FileKind::Tmp(_)
        | FileKind::Device(Device::Null | Device::Zero | Device::Full | Device::Urandom)
        | FileKind::Text(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation => false,
    }
}

// ---- moving bytes ----

/// The way in which read(2) and write(2) move bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transfer {
    /// At an offset, without waiting: [`read_at`], [`write_at`].
    Data,
    /// An inherited stream.
    Stream(HostId),
    /// A pipe of ours.
    Pipe(PipeId),
    /// Captured output.
    Capture(u8),
    /// Whole values or messages.
    Message(Message),
}

/// A kind whose reads and writes carry whole values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    /// An event counter.
    Event(ObjectId),
    /// A timer.
    Timer(ObjectId),
    /// An epoll instance or a process, which have neither.
    None,
    /// A socket.
    Socket(ObjectId),
    /// Signals of this set.
    Signals(u64),
    /// An inotify instance.
    Inotify(ObjectId),
    /// An end of a pseudo-terminal.
    Pty(PtyEnd),
}

/// The way in which a description's bytes are moved.
#[must_use]
pub fn transfer(kind: &FileKind) -> Transfer {
    match kind {
        FileKind::HostStream(host) => Transfer::Stream(*host),
        FileKind::Pipe(pipe) => Transfer::Pipe(*pipe),
        FileKind::Capture(number) => Transfer::Capture(*number),
        FileKind::Event(id) => Transfer::Message(Message::Event(*id)),
        FileKind::Timer(id) => Transfer::Message(Message::Timer(*id)),
        FileKind::Epoll(_) | FileKind::Process(_) => Transfer::Message(Message::None),
        FileKind::Socket(id) => Transfer::Message(Message::Socket(*id)),
        FileKind::Signals(mask) => Transfer::Message(Message::Signals(*mask)),
        FileKind::Inotify(id) => Transfer::Message(Message::Inotify(*id)),
        FileKind::Pty(end) => Transfer::Message(Message::Pty(*end)),
        FileKind::HostFile(_)
        | FileKind::HostDir(_)
        | FileKind::HostLocation(_)
        | FileKind::Input(_)
        | FileKind::Tmp(_)
        | FileKind::Device(_)
        | FileKind::Text(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation
        | FileKind::Mqueue(_) => Transfer::Data,
    }
}

/// Says if others may have their turn in the middle of a transfer. One that Linux makes under the file's
/// lock is one step, one of a stream or a device is not.
#[must_use]
pub fn turn(cx: &Cx<'_>, kind: &FileKind) -> Turn {
    match kind {
        FileKind::HostStream(host) if is_regular(cx, *host) => Turn::Kept,
        FileKind::HostStream(_)
        | FileKind::Pipe(_)
        | FileKind::Capture(_)
        | FileKind::Device(_)
        | FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Pty(_)
        | FileKind::Socket(_) => Turn::Shared,
        FileKind::HostFile(_)
        | FileKind::HostDir(_)
        | FileKind::HostLocation(_)
        | FileKind::Input(_)
        | FileKind::Tmp(_)
        | FileKind::Text(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Process(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_) => Turn::Kept,
    }
}

/// True if a transfer moves the description's offset. Streams have no offset of ours; that of standard
/// input given as bytes is the number read.
#[must_use]
pub fn moves_offset(kind: &FileKind) -> bool {
    match kind {
        FileKind::Pipe(_)
        | FileKind::HostStream(_)
        | FileKind::Capture(_)
        | FileKind::Pty(_)
        | FileKind::Device(_) => false,
        FileKind::HostFile(_)
        | FileKind::HostDir(_)
        | FileKind::HostLocation(_)
        | FileKind::Input(_)
        | FileKind::Tmp(_)
        | FileKind::Text(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation
        | FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Socket(_)
        | FileKind::Process(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_) => true,
    }
}

/// Reads bytes of a file that never waits; fewer at its end.
///
/// # Errors
/// `EISDIR`, `EBADF`, `EINVAL` for what is read otherwise; the host's.
pub fn read_at(
    cx: &mut Cx<'_>,
    kind: &FileKind,
    offset: u64,
    into: &mut [u8],
) -> Result<usize, Errno> {
    let from = |bytes: &[u8], at: u64, into: &mut [u8]| {
        let rest = offset
            .checked_sub(at)
            .and_then(|at| usize::try_from(at).ok())
            .and_then(|at| bytes.get(at..))
            .unwrap_or_default();
        let count = rest.len().min(into.len());
        into.iter_mut().zip(rest).for_each(|(to, byte)| *to = *byte);
        count
    };
    match kind {
        FileKind::HostFile(host) => stream::read_at(cx.host.get(*host)?, into, offset),
        FileKind::HostStream(host) => stream::read_at(cx.host.get(*host)?, into, offset),
        FileKind::Tmp(inode) => {
            let count = cx
                .kernel
                .tmpfs
                .read(&cx.machine.memory, *inode, offset, into)?;
            let now = vfs::now(cx.host);
            cx.kernel.tmpfs.accessed(*inode, now);
            Ok(count)
        }
        FileKind::Text(text) => Ok(from(&text.bytes, text.at, into)),
        FileKind::Input(bytes) => Ok(from(bytes, 0, into)),
        FileKind::Mqueue(queue) => {
            let status = cx.kernel.ipc.mqueues.get(*queue)?.status();
            Ok(from(status.as_bytes(), 0, into))
        }
        FileKind::Device(Device::Null) => Ok(0),
        FileKind::Device(Device::Zero | Device::Full) => {
            into.fill(0);
            Ok(into.len())
        }
        FileKind::Device(Device::Random | Device::Urandom) => {
            clock::fill_random(into)?;
            Ok(into.len())
        }
        FileKind::HostDir(_) | FileKind::SynthDir(_) => Err(Errno::EISDIR),
        FileKind::HostLocation(_) | FileKind::SynthLocation => Err(Errno::EBADF),
        FileKind::Capture(_)
        | FileKind::Pipe(_)
        | FileKind::Event(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Socket(_)
        | FileKind::Process(_)
        | FileKind::Pty(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_) => Err(Errno::EINVAL),
    }
}

/// Writes to a file that never waits; fewer bytes at a limit.
///
/// # Errors
/// `EISDIR`, `EBADF` for what cannot be written so, `ENOSPC`.
pub fn write_at(
    cx: &mut Cx<'_>,
    kind: &FileKind,
    offset: u64,
    bytes: &[u8],
) -> Result<usize, Errno> {
    match kind {
        FileKind::Tmp(inode) => {
            let now = vfs::now(cx.host);
            let memory = &mut cx.machine.memory;
            let (count, stale) = cx.kernel.tmpfs.write(memory, *inode, offset, bytes, now)?;
            vfs::drop_mappings(cx, *inode, &stale)?;
            Ok(count)
        }
        FileKind::HostFile(host) => stream::write_at(cx.host.get(*host)?, bytes, offset),
        FileKind::Device(Device::Full) => Err(Errno::ENOSPC),
        FileKind::Device(Device::Null | Device::Zero | Device::Random | Device::Urandom) => {
            Ok(bytes.len())
        }
        FileKind::HostDir(_) | FileKind::SynthDir(_) => Err(Errno::EISDIR),
        FileKind::HostLocation(_)
        | FileKind::HostStream(_)
        | FileKind::Capture(_)
        | FileKind::Input(_)
        | FileKind::Text(_)
        | FileKind::SynthLocation
        | FileKind::Pipe(_)
        | FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Socket(_)
        | FileKind::Process(_)
        | FileKind::Pty(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_) => Err(Errno::EBADF),
    }
}

/// The size of a file that writes can be appended to; `None` for what has no end of its own.
///
/// # Errors
/// `EISDIR`, the host's.
pub fn end(cx: &Cx<'_>, kind: &FileKind) -> Result<Option<u64>, Errno> {
    match kind {
        FileKind::Tmp(_) | FileKind::HostFile(_) => super::limited_size(cx, kind),
        FileKind::HostDir(_)
        | FileKind::HostLocation(_)
        | FileKind::HostStream(_)
        | FileKind::Capture(_)
        | FileKind::Input(_)
        | FileKind::Device(_)
        | FileKind::Text(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation
        | FileKind::Pipe(_)
        | FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Socket(_)
        | FileKind::Process(_)
        | FileKind::Pty(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_) => Ok(None),
    }
}

/// Writes at the end of a file, which was at `end` a moment ago. On the host somebody else may have moved it.
///
/// # Errors
/// As [`write_at`].
pub fn append(cx: &mut Cx<'_>, kind: &FileKind, end: u64, bytes: &[u8]) -> Result<usize, Errno> {
    if let FileKind::HostFile(host) = kind {
        return change::append(cx.host.get(*host)?, bytes);
    }
    write_at(cx, kind, end, bytes)
}

/// Makes what is read of a synthetic file at `offset`, as Linux generates it then.
///
/// # Errors
/// `ENOMEM` at the memory limit.
pub fn prepare(
    cx: &mut Cx<'_>,
    id: FileId,
    file: OpenFile,
    offset: u64,
) -> Result<OpenFile, Errno> {
    let FileKind::Text(old) = &file.kind else {
        return Ok(file);
    };
    if offset != 0 && old.covers(offset) {
        return Ok(file);
    }
    let Some(text) = synth::text_at(cx, &file.path, old, offset) else {
        return Ok(file);
    };
    vfs::open::charge_text(cx, text.bytes.len())?;
    cx.machine.memory.uncharge(old.bytes.len() as u64);
    let kind = FileKind::Text(text);
    fd::file_mut(cx, id)?.kind = kind.clone();
    Ok(OpenFile { kind, ..file })
}

/// The number of bytes that a read would give now (FIONREAD).
///
/// # Errors
/// `ENOTTY` for what has no such number, `EINVAL`, the host's.
pub fn readable_bytes(cx: &mut Cx<'_>, (id, file): (FileId, &OpenFile)) -> Result<u64, Errno> {
    match &file.kind {
        FileKind::Pipe(pipe) => Ok(cx.kernel.pipes.get(*pipe)?.len() as u64),
        FileKind::Socket(id) => Ok(cx.kernel.objects.sockets.get(*id)?.readable_bytes()? as u64),
        FileKind::Epoll(_) => Err(Errno::EINVAL),
        FileKind::Inotify(id) => Ok(cx.kernel.objects.inotifies.readable_bytes(*id) as u64),
        FileKind::Pty(end) => Ok(cx.kernel.ptys.get(end.index)?.readable_bytes(end.side) as u64),
        FileKind::Input(bytes) => Ok((bytes.len() as u64).saturating_sub(file.offset)),
        FileKind::HostStream(host) => terminal::readable_bytes(cx.host.get(*host)?.fd.as_fd()),
        FileKind::HostFile(_) | FileKind::Tmp(_) => {
            let attr = attr(cx, id)?;
            if attr.kind() == S_IFREG {
                Ok(attr.size.saturating_sub(file.offset))
            } else {
                Err(Errno::ENOTTY)
            }
        }
        FileKind::HostDir(_)
        | FileKind::HostLocation(_)
        | FileKind::Capture(_)
        | FileKind::Device(_)
        | FileKind::Text(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation
        | FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Timer(_)
        | FileKind::Process(_)
        | FileKind::Signals(_) => Err(Errno::ENOTTY),
    }
}

// ---- positions ----

/// A description's position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Positions {
    /// Any, kept in the description.
    Own,
    /// Any, kept by the host.
    Host(HostId),
    /// This one only.
    Fixed(u64),
    /// None, which lseek(2) does not mind (noop_llseek).
    Ignored,
    /// None.
    None,
}

/// A description's position, and who keeps it.
#[must_use]
pub fn positions(cx: &Cx<'_>, file: &OpenFile) -> Positions {
    match &file.kind {
        FileKind::HostStream(host) if is_regular(cx, *host) => Positions::Host(*host),
        FileKind::Device(Device::Null | Device::Zero | Device::Full) => Positions::Fixed(0),
        FileKind::Device(Device::Random | Device::Urandom) => Positions::Fixed(file.offset),
        FileKind::Event(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Process(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_) => Positions::Ignored,
        FileKind::HostStream(_)
        | FileKind::Pipe(_)
        | FileKind::Input(_)
        | FileKind::Capture(_)
        | FileKind::Pty(_)
        | FileKind::Socket(_) => Positions::None,
        FileKind::HostFile(_)
        | FileKind::HostDir(_)
        | FileKind::HostLocation(_)
        | FileKind::Tmp(_)
        | FileKind::Mqueue(_)
        | FileKind::Text(_)
        | FileKind::SynthDir(_)
        | FileKind::SynthLocation => Positions::Own,
    }
}

impl Positions {
    /// True if pread(2) and pwrite(2) have a meaning.
    #[must_use]
    pub fn can_be_named(self) -> bool {
        match self {
            Self::Own | Self::Host(_) | Self::Fixed(_) => true,
            Self::Ignored | Self::None => false,
        }
    }
}
