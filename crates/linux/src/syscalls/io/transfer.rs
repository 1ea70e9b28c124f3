//! Moving bytes between user memory and open files, in bounded pieces.

use imbl::Vector;
use kvmlet_abi::layout::USER_END;
use kvmlet_abi::linux::Iovec;
use kvmlet_abi::linux::inotify::{IN_ACCESS, IN_MODIFY};
use kvmlet_abi::linux::uio::UIO_MAXIOV;
use kvmlet_abi::{Errno, Gva, PAGE_SIZE};
use kvmlet_hostfs::stream::{self, Moved};
use zerocopy::FromBytes;

use super::message;
use super::terminal;
use crate::clock;
use crate::cx::Cx;
use crate::fd::{self, Device, FileKind, OpenFile, OpenFlags};
use crate::host::HostId;
use crate::kernel::End;
use crate::mm::user;
use crate::outcome::{CallState, Outcome, Resume, Source, Wait, WaitOn};
use crate::tty::job::Owner;
use crate::vfs::file::{self, Transfer};
use crate::vfs::notify;
use crate::vfs::pipe::{PIPE_BUF, Pipe, PipeId, WriteAs};
use crate::vfs::ready::{POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM};
use crate::vfs::size_limit::{self, WriteAt};

/// Bytes copied at once.
pub const CHUNK: usize = 64 << 10;
/// The time after which a call is made again that nothing tells when to, in nanoseconds.
const LOOK_NS: u64 = 20_000_000;
/// Most bytes that one call moves (MAX_RW_COUNT).
pub const RW_MAX: u64 = 0x7fff_f000;

/// A call's buffers in user memory: what is still to be moved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Buffers {
    /// (address, length in bytes) of each, the next one last.
    parts: Vec<(u64, u64)>,
    left: u64,
}

impl Buffers {
    /// One buffer.
    ///
    /// # Errors
    /// `EFAULT` if it reaches beyond user space.
    pub fn one(gva: Gva, len_bytes: u64) -> Result<Self, Errno> {
        if gva
            .0
            .checked_add(len_bytes)
            .is_none_or(|end| end > USER_END.0)
        {
            return Err(Errno::EFAULT);
        }
        let left = len_bytes.min(RW_MAX);
        Ok(Self {
            parts: vec![(gva.0, left)],
            left,
        })
    }

    /// An array of struct iovec.
    ///
    /// # Errors
    /// `EINVAL` for too many buffers or a negative length, `EFAULT`.
    pub fn array(cx: &mut Cx<'_>, gva: Gva, count: u64) -> Result<Self, Errno> {
        let count = usize::try_from(count)
            .ok()
            .filter(|count| *count <= UIO_MAXIOV)
            .ok_or(Errno::EINVAL)?;
        let mut bytes = vec![0u8; count.saturating_mul(size_of::<Iovec>())];
        cx.read(gva, &mut bytes)?;
        let mut parts = Vec::with_capacity(count);
        let mut left = 0u64;
        for raw in bytes.chunks_exact(size_of::<Iovec>()) {
            let Iovec {
                iov_base: base,
                iov_len: len,
            } = Iovec::read_from_bytes(raw).map_err(|_| Errno::EFAULT)?;
            if i64::try_from(len).is_err() {
                return Err(Errno::EINVAL);
            }
            if len > 0 && base.checked_add(len).is_none_or(|end| end > USER_END.0) {
                return Err(Errno::EFAULT);
            }
            let len = len.min(RW_MAX.saturating_sub(left));
            left = left.saturating_add(len);
            parts.push((base, len));
        }
        parts.reverse();
        Ok(Self { parts, left })
    }

    /// Bytes still to be moved.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Gives up what follows the first `max` bytes.
    fn truncate(&mut self, max: u64) {
        let mut room = max.min(self.left);
        self.left = room;
        for (_, len) in self.parts.iter_mut().rev() {
            *len = room.min(*len);
            room = room.saturating_sub(*len);
        }
    }

    /// The next stretch of at most `max` bytes, without taking it.
    pub(super) fn peek(&mut self, max: usize) -> Option<(Gva, usize)> {
        while self.parts.last().is_some_and(|(_, len)| *len == 0) {
            self.parts.pop();
        }
        let (gva, len) = *self.parts.last()?;
        Some((
            Gva(gva),
            usize::try_from(len).unwrap_or(usize::MAX).min(max),
        ))
    }

    /// Takes `count` bytes.
    pub fn advance(&mut self, count: u64) {
        let mut count = count.min(self.left);
        self.left = self.left.saturating_sub(count);
        while count > 0 {
            let Some((gva, len)) = self.parts.last_mut() else {
                break;
            };
            let step = count.min(*len);
            *gva = gva.saturating_add(step);
            *len = len.saturating_sub(step);
            count = count.saturating_sub(step);
            if *len == 0 {
                self.parts.pop();
            }
        }
    }

    /// Copies as much as is in the buffers and can be read, at most `max` bytes, into `out`, without
    /// taking it.
    ///
    /// # Errors
    /// `EFAULT` if not even the first byte can be read.
    pub(in crate::syscalls) fn gather(
        &self,
        cx: &mut Cx<'_>,
        max: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        // What it has is written over: only what it grows by need be cleared.
        out.resize(usize::try_from(self.left).unwrap_or(max).min(max), 0);
        let gathered = self.gather_into(cx, out);
        out.truncate(*gathered.as_ref().unwrap_or(&0));
        gathered.map(|_| ())
    }

    /// As [`Buffers::gather`], as much as `out` holds; answers the number of bytes.
    ///
    /// # Errors
    /// `EFAULT` if not even the first byte can be read.
    pub(in crate::syscalls) fn gather_into(
        &self,
        cx: &mut Cx<'_>,
        out: &mut [u8],
    ) -> Result<usize, Errno> {
        let mut done = 0usize;
        for (gva, len) in self.parts.iter().rev() {
            let rest = out.get_mut(done..).unwrap_or_default();
            let len = usize::try_from(*len).unwrap_or(usize::MAX).min(rest.len());
            let into = rest.get_mut(..len).unwrap_or_default();
            match user::read_some(cx, Gva(*gva), into) {
                Ok(copied) => {
                    done = done.saturating_add(copied);
                    if copied < len {
                        break;
                    }
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }
}

impl Buffers {
    /// Faults the first `max` bytes of the buffers in for writing, without changing them.
    ///
    /// # Errors
    /// `EFAULT`
    pub(super) fn touch(&self, cx: &mut Cx<'_>, max: usize) -> Result<(), Errno> {
        let mut room = max;
        for (gva, len) in self.parts.iter().rev() {
            let len = usize::try_from(*len).unwrap_or(usize::MAX).min(room);
            room = room.saturating_sub(len);
            touch(cx, Gva(*gva), len)?;
        }
        Ok(())
    }

    /// Copies as much of `bytes` as fits and can be written into the buffers, and takes that off them.
    ///
    /// # Errors
    /// `EFAULT` if not even the first byte can be written.
    pub fn scatter(&mut self, cx: &mut Cx<'_>, bytes: &[u8]) -> Result<usize, Errno> {
        let mut done = 0usize;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let Some((gva, len)) = self.peek(rest.len()) else {
                break;
            };
            match user::write_some(cx, gva, rest.get(..len).unwrap_or_default()) {
                Ok(copied) => {
                    done = done.saturating_add(copied);
                    self.advance(copied as u64);
                    if copied < len {
                        break;
                    }
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }
}

/// Pipes take whole pages. Bytes after the last page that could be read are not written, and an only
/// page that could not is a fault (pipe_write in fs/pipe.c).
fn whole_pages(way: Transfer, buffers: &Buffers, bytes: &mut Vec<u8>) -> Result<(), Errno> {
    let wanted = usize::try_from(buffers.left()).unwrap_or(CHUNK).min(CHUNK);
    let is_stream = match way {
        Transfer::Stream(_) | Transfer::Pipe(_) | Transfer::Capture(_) => true,
        Transfer::Data | Transfer::Message(_) => false,
    };
    if !is_stream || bytes.len() >= wanted {
        return Ok(());
    }
    bytes.truncate(bytes.len() & !(PIPE_BUF - 1));
    if bytes.is_empty() {
        Err(Errno::EFAULT)
    } else {
        Ok(())
    }
}

/// The place in the file at which a transfer starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Position {
    /// At the description's offset, which moves.
    Current,
    /// At this offset; the description's does not move.
    At(u64),
}

/// Says if a transfer may wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waiting {
    /// Unless the description has O_NONBLOCK.
    Allowed,
    /// RWF_NOWAIT
    Refused,
}

impl Waiting {
    /// The same for a transfer on a description, which may have O_NONBLOCK.
    #[must_use]
    pub fn of(self, file: &OpenFile) -> Self {
        if file.flags.contains(OpenFlags::NONBLOCK) {
            Self::Refused
        } else {
            self
        }
    }
}

/// Says if written bytes go to the end of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Append {
    /// As the description's O_APPEND says.
    AsOpened,
    /// RWF_APPEND
    Always,
    /// RWF_NOAPPEND
    Never,
}

/// Parks the call until `source` is ready, remembering what was moved already.
#[must_use]
pub fn wait_for(source: Source, state: &CallState, progress: u64) -> Outcome {
    Outcome::Wait(Wait {
        on: WaitOn::Sources(Vector::unit(source)),
        deadline_ns: state.deadline_ns,
        resume: Resume::Retry(CallState {
            progress,
            has_waited: true,
            ..state.clone()
        }),
    })
}

/// Has the call made again after `progress` bytes, if it has worked for long enough and `left` are left.
#[must_use]
pub(in crate::syscalls) fn pause(
    cx: &mut Cx<'_>,
    kind: &FileKind,
    state: &CallState,
    (progress, left): (u64, u64),
) -> Option<CallState> {
    let is_over = cx.host.budget.is_spent() || cx.host.captured.is_due();
    (left > 0 && is_over).then(|| CallState {
        progress,
        turn: file::turn(cx, kind),
        ..state.clone()
    })
}

/// The event that a transfer which cannot go on waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Until {
    /// This source being ready.
    Ready(Source),
    /// Nothing tells: it is tried again a moment later.
    Later,
}

/// Parks the call until it is worth another try, remembering what was moved already. A deadline of
/// `state` is the call's own to look at.
#[must_use]
pub fn wait_until(cx: &Cx<'_>, until: Until, state: &CallState, progress: u64) -> Outcome {
    if let Until::Ready(source) = until {
        return wait_for(source, state, progress);
    }
    let next_ns = clock::monotonic_ns(cx.host).saturating_add(LOOK_NS);
    Outcome::Wait(Wait {
        on: WaitOn::Nothing,
        deadline_ns: Some(state.deadline_ns.unwrap_or(u64::MAX).min(next_ns)),
        resume: Resume::Retry(CallState {
            progress,
            ..state.clone()
        }),
    })
}

/// The effect of one step of a transfer.
pub(super) enum Step {
    /// This many bytes; 0 ends the transfer.
    Moved(usize),
    /// Nothing until then.
    Blocked(Until),
    /// The limit on captured output is reached.
    Over,
}

/// read(2) and its relatives.
pub fn read(
    cx: &mut Cx<'_>,
    fd: i32,
    buffers: Result<Buffers, Errno>,
    position: Position,
    waiting: Waiting,
    state: &CallState,
) -> Outcome {
    let (id, file) = match fd::get_io(cx, fd) {
        Ok(found) => found,
        Err(error) => return Outcome::Done(Err(error)),
    };
    if !file.flags.readable() {
        return Outcome::Done(Err(Errno::EBADF));
    }
    let mut buffers = match buffers {
        Ok(buffers) => buffers,
        Err(error) => return Outcome::Done(Err(error)),
    };
    let way = file::transfer(&file.kind);
    if let Transfer::Message(message) = way {
        let waiting = waiting.of(&file);
        return message::read(cx, (message, &file), buffers, waiting, state);
    }
    if let Transfer::Stream(host) = way
        && position == Position::Current
        && terminal::is_terminal(cx, host)
    {
        return terminal::read(cx, (host, waiting.of(&file)), buffers, state);
    }
    let mut done = state.progress;
    if let Transfer::Pipe(id) = way
        && done == 0
        && buffers.left() > 0
        && cx.kernel.pipes.get(id).is_ok_and(Pipe::has_packets)
    {
        return read_packet(cx, id, buffers).into();
    }
    let mut offset = match position {
        Position::Current => file.offset,
        Position::At(offset) => offset.saturating_add(done),
    };
    buffers.advance(done);
    if let Err(error) = check_range(&file.kind, position, offset, buffers.left()) {
        return Outcome::Done(Err(error));
    }
    let file = match file::prepare(cx, id, file, offset) {
        Ok(file) => file,
        Err(error) => return Outcome::Done(Err(error)),
    };
    let mut buf = vec![0u8; usize::try_from(buffers.left()).unwrap_or(CHUNK).min(CHUNK)];
    let mut result = Ok(());
    let mut again = None;
    while let Some((gva, len)) = buffers.peek(CHUNK) {
        let Some(into) = buf.get_mut(..len) else {
            break;
        };
        match read_step(cx, &file, (offset, position), into, (gva, done)) {
            Ok(Step::Moved(0) | Step::Over) => break,
            Ok(Step::Moved(count)) => {
                let moved = count as u64;
                done = done.saturating_add(moved);
                offset = offset.saturating_add(moved);
                buffers.advance(moved);
                if count < len {
                    break;
                }
                again = pause(cx, &file.kind, state, (done, buffers.left()));
                if again.is_some() {
                    break;
                }
            }
            Ok(Step::Blocked(_)) if done > 0 => break,
            Ok(Step::Blocked(until)) => {
                if waiting == Waiting::Refused || file.flags.contains(OpenFlags::NONBLOCK) {
                    return Outcome::Done(Err(Errno::EAGAIN));
                }
                return wait_until(cx, until, state, 0);
            }
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    if position == Position::Current
        && file::moves_offset(&file.kind)
        && let Ok(open) = fd::file_mut(cx, id)
    {
        open.offset = offset;
    }
    if let Some(state) = again {
        return Outcome::Again(state);
    }
    if done > 0 {
        notify::of_file(cx, id, IN_ACCESS);
    }
    Outcome::Done(if done > 0 {
        Ok(done)
    } else {
        result.map(|()| 0)
    })
}

/// Refuses a range that ends beyond the largest offset (rw_verify_area in fs/read_write.c).
fn check_range(kind: &FileKind, position: Position, offset: u64, len: u64) -> Result<(), Errno> {
    if position == Position::Current && !file::moves_offset(kind) {
        return Ok(());
    }
    let end = offset
        .checked_add(len)
        .and_then(|end| i64::try_from(end).ok());
    end.map(|_| ()).ok_or(Errno::EINVAL)
}

/// Fills at most `into.len()` bytes and copies them to `gva`. `done` bytes of the call were read
/// before.
fn read_step(
    cx: &mut Cx<'_>,
    file: &OpenFile,
    (offset, position): (u64, Position),
    into: &mut [u8],
    (gva, done): (Gva, u64),
) -> Result<Step, Errno> {
    let count = match file::transfer(&file.kind) {
        Transfer::Stream(host) => {
            // What has been read from a stream cannot be put back: the buffer is tried first.
            touch(cx, gva, into.len())?;
            let moved = match position {
                Position::At(_) => Moved::Bytes(stream::read_at(cx.host.get(host)?, into, offset)?),
                // A second read could wait for more although the call has something to answer.
                Position::Current => stream::read(cx.host.get(host)?, into)?,
            };
            match moved {
                Moved::Bytes(count) => {
                    cx.kernel.objects.epolls.stream_read(host, count as u64);
                    count
                }
                Moved::Nothing | Moved::NotYet => {
                    return Ok(Step::Blocked(blocked(cx, host, POLLIN, moved)));
                }
            }
        }
        Transfer::Pipe(pipe) => return read_pipe(cx, pipe, into.len(), gva),
        Transfer::Data | Transfer::Capture(_) | Transfer::Message(_) => {
            file::read_at(cx, &file.kind, offset, into)?
        }
    };
    match user::write_some(cx, gva, into.get(..count).unwrap_or_default()) {
        Err(error) if done == 0 => Err(error),
        Err(_) => Ok(Step::Moved(0)),
        Ok(copied) => Ok(Step::Moved(copied)),
    }
}

/// Reads at most one packet, whatever the number of buffers.
fn read_packet(cx: &mut Cx<'_>, id: PipeId, mut buffers: Buffers) -> Result<u64, Errno> {
    let max = usize::try_from(buffers.left()).unwrap_or(usize::MAX);
    let pipe = cx.kernel.pipes.get(id)?;
    let (bytes, was_full) = (pipe.peek(max), pipe.is_full());
    let count = buffers.scatter(cx, &bytes)?;
    if count < bytes.len() {
        return Err(Errno::EFAULT);
    }
    taken(cx, id, count, was_full)?;
    Ok(count as u64)
}

/// Takes bytes that were read out of a pipe and tells who waits for room.
pub(super) fn taken(
    cx: &mut Cx<'_>,
    id: PipeId,
    count: usize,
    was_full: bool,
) -> Result<(), Errno> {
    cx.kernel.pipes.consume(&mut cx.machine.memory, id, count)?;
    if was_full {
        cx.kernel.wake(Source::Pipe(id), POLLOUT | POLLWRNORM);
    } else {
        cx.kernel.sched.wake_source(Source::Pipe(id));
    }
    Ok(())
}

fn read_pipe(cx: &mut Cx<'_>, id: PipeId, max: usize, gva: Gva) -> Result<Step, Errno> {
    let pipe = cx.kernel.pipes.get(id)?;
    if pipe.is_empty() {
        return Ok(if pipe.writers == 0 {
            Step::Moved(0)
        } else {
            Step::Blocked(Until::Ready(Source::Pipe(id)))
        });
    }
    let (bytes, was_full) = (pipe.peek(max), pipe.is_full());
    // What does not fit whole stays in the pipe (pipe_read in fs/pipe.c).
    cx.write(gva, &bytes)?;
    taken(cx, id, bytes.len(), was_full)?;
    Ok(Step::Moved(bytes.len()))
}

/// Faults a buffer in for writing without changing it.
fn touch(cx: &mut Cx<'_>, gva: Gva, len_bytes: usize) -> Result<(), Errno> {
    let end = gva.checked_add(len_bytes as u64).ok_or(Errno::EFAULT)?;
    let mut at = gva;
    while at < end {
        let byte: u8 = cx.read_struct(at)?;
        cx.write_struct(at, &byte)?;
        at = at.page_down().checked_add(PAGE_SIZE).ok_or(Errno::EFAULT)?;
    }
    Ok(())
}

/// write(2) and its relatives.
pub fn write(
    cx: &mut Cx<'_>,
    fd: i32,
    buffers: Result<Buffers, Errno>,
    position: Position,
    (waiting, append): (Waiting, Append),
    state: &CallState,
) -> Outcome {
    let (id, file) = match fd::get_io(cx, fd) {
        Ok(found) => found,
        Err(error) => return Outcome::Done(Err(error)),
    };
    if !file.flags.writable() {
        return Outcome::Done(Err(Errno::EBADF));
    }
    let mut buffers = match buffers {
        Ok(buffers) => buffers,
        Err(error) => return Outcome::Done(Err(error)),
    };
    let way = file::transfer(&file.kind);
    if let Transfer::Message(message) = way {
        let waiting = waiting.of(&file);
        return message::write(cx, message, buffers, waiting, state);
    }
    let mut done = state.progress;
    buffers.advance(done);
    let (mut offset, place) = match start(cx, &file, (position, done), append) {
        Ok(found) => found,
        Err(error) => return Outcome::Done(Err(error)),
    };
    if let Err(error) = check_range(&file.kind, position, offset, buffers.left()) {
        return Outcome::Done(Err(error));
    }
    if buffers.left() > 0 {
        let at = match position {
            Position::Current if matches!(way, Transfer::Stream(_)) => WriteAt::OwnPosition,
            _ => WriteAt::Offset(offset),
        };
        match size_limit::writable_bytes(cx, &file, at, (done, buffers.left())) {
            Ok(len_bytes) => buffers.truncate(len_bytes),
            Err(error) => return Outcome::Done(Err(error)),
        }
    }
    if matches!(file.kind, FileKind::Device(Device::Null | Device::Zero)) {
        // What nobody keeps is not even looked at (write_null).
        return Outcome::Done(Ok(buffers.left()));
    }
    let mut bytes = Vec::new();
    let mut result = Ok(());
    let mut again = None;
    while buffers.left() > 0 {
        let gathered = buffers
            .gather(cx, CHUNK, &mut bytes)
            .and_then(|()| whole_pages(way, &buffers, &mut bytes));
        if let Err(error) = gathered {
            result = Err(error);
            break;
        }
        match write_step(cx, &file, (offset, position, place), &bytes) {
            Ok(Step::Moved(count)) => {
                let moved = count as u64;
                done = done.saturating_add(moved);
                offset = offset.saturating_add(moved);
                buffers.advance(moved);
                if count == 0 {
                    break;
                }
                again = pause(cx, &file.kind, state, (done, buffers.left()));
                if again.is_some() {
                    break;
                }
            }
            Ok(Step::Over) => return Outcome::Gone,
            Ok(Step::Blocked(until)) => {
                if waiting == Waiting::Refused || file.flags.contains(OpenFlags::NONBLOCK) {
                    result = Err(Errno::EAGAIN);
                    break;
                }
                return wait_until(cx, until, state, done);
            }
            Err(error) => {
                if error == Errno::EPIPE {
                    crate::signal::send_to_self(cx, crate::signal::signo::SIGPIPE);
                }
                result = Err(error);
                break;
            }
        }
    }
    if position == Position::Current
        && file::moves_offset(&file.kind)
        && let Ok(open) = fd::file_mut(cx, id)
    {
        open.offset = offset;
    }
    if let Some(state) = again {
        return Outcome::Again(state);
    }
    if done > 0 {
        notify::of_file(cx, id, IN_MODIFY);
    }
    Outcome::Done(if done > 0 {
        Ok(done)
    } else {
        result.map(|()| 0)
    })
}

/// The place in a file that bytes are written to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// An offset.
    Offset,
    /// Its end.
    End,
}

/// The place in the file at which a write that has moved `done` bytes goes on.
fn start(
    cx: &mut Cx<'_>,
    file: &OpenFile,
    (position, done): (Position, u64),
    append: Append,
) -> Result<(u64, Place), Errno> {
    let appends = match append {
        Append::AsOpened => file.flags.contains(OpenFlags::APPEND),
        Append::Always => true,
        Append::Never => false,
    };
    // pwrite(2) appends too on Linux when O_APPEND is set.
    if appends && let Some(end) = file::end(cx, &file.kind)? {
        return Ok((end, Place::End));
    }
    Ok(match position {
        Position::Current => (file.offset, Place::Offset),
        Position::At(offset) => (offset.saturating_add(done), Place::Offset),
    })
}

/// The event to wait for, for a transfer with an inherited stream that could not move anything.
pub(super) fn blocked(cx: &mut Cx<'_>, host: HostId, events: i16, moved: Moved) -> Until {
    cx.kernel.objects.epolls.stream_blocked(host, events);
    match moved {
        Moved::NotYet => Until::Later,
        _ => Until::Ready(Source::Host(host, events)),
    }
}

/// Writes to an inherited stream at its own position, as much as can be at once.
pub(super) fn write_stream(
    cx: &mut Cx<'_>,
    host: HostId,
    bytes: &[u8],
) -> Result<Result<usize, Until>, Errno> {
    if terminal::may_write(cx, host)? == Owner::Theirs {
        return Ok(Err(Until::Later));
    }
    Ok(match stream::write(cx.host.get(host)?, bytes)? {
        Moved::Bytes(count) => Ok(count),
        moved => Err(blocked(cx, host, POLLOUT, moved)),
    })
}

/// Writes the first bytes of `bytes`, as many as can be at once.
fn write_step(
    cx: &mut Cx<'_>,
    file: &OpenFile,
    (offset, position, place): (u64, Position, Place),
    bytes: &[u8],
) -> Result<Step, Errno> {
    match file::transfer(&file.kind) {
        Transfer::Stream(host) => match position {
            Position::At(_) => stream::write_at(cx.host.get(host)?, bytes, offset).map(Step::Moved),
            Position::Current => Ok(match write_stream(cx, host, bytes)? {
                Ok(count) => Step::Moved(count),
                Err(until) => Step::Blocked(until),
            }),
        },
        Transfer::Pipe(pipe) => write_pipe(cx, pipe, bytes, write_as(file)),
        Transfer::Capture(number) => Ok(match capture(cx, number, bytes) {
            Captured::Kept => Step::Moved(bytes.len()),
            Captured::Over => Step::Over,
        }),
        Transfer::Data | Transfer::Message(_) => match place {
            Place::Offset => file::write_at(cx, &file.kind, offset, bytes),
            Place::End => file::append(cx, &file.kind, offset, bytes),
        }
        .map(Step::Moved),
    }
}

/// The way that a write to a pipe is kept, by the description's O_DIRECT.
pub(super) fn write_as(file: &OpenFile) -> WriteAs {
    if file.flags.contains(OpenFlags::DIRECT) {
        WriteAs::Packets
    } else {
        WriteAs::Stream
    }
}

pub(super) fn write_pipe(
    cx: &mut Cx<'_>,
    id: PipeId,
    bytes: &[u8],
    how: WriteAs,
) -> Result<Step, Errno> {
    let memory = &mut cx.machine.memory;
    match cx.kernel.pipes.write(memory, id, bytes, how) {
        Err(Errno::EAGAIN) => Ok(Step::Blocked(Until::Ready(Source::Pipe(id)))),
        Err(error) => Err(error),
        Ok(count) => {
            cx.kernel.wake(Source::Pipe(id), POLLIN | POLLRDNORM);
            Ok(Step::Moved(count))
        }
    }
}

/// The fate of captured output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Captured {
    /// All of it is kept.
    Kept,
    /// The limit is reached: the program ends.
    Over,
}

/// Keeps captured output; over the limit the program ends.
pub fn capture(cx: &mut Cx<'_>, number: u8, bytes: &[u8]) -> Captured {
    let (into, room) = cx.host.captured.stream(number);
    let kept = bytes.get(..room).unwrap_or(bytes);
    into.extend_from_slice(kept);
    if kept.len() < bytes.len() {
        cx.kernel.end.get_or_insert(End::Output);
        return Captured::Over;
    }
    Captured::Kept
}
