//! Copies between descriptors: sendfile(2), copy_file_range(2).

use kvmlet_abi::linux::inotify::{IN_ACCESS, IN_MODIFY};
use kvmlet_abi::{Errno, Gva};
use kvmlet_hostfs::stream;
use std::os::fd::AsFd;

use super::rw::is_open_for_reading;
use super::transfer::{self, CHUNK, RW_MAX, Step, Until, wait_until, write_as};
use crate::cx::Cx;
use crate::fd::{self, FileId, FileKind, OpenFile, OpenFlags};
use crate::net::queue::Unsent;
use crate::outcome::{CallState, Outcome};
use crate::syscalls::args::{Args, Fd, Flags, Len, Ptr};
use crate::syscalls::net::transfer as sockets;
use crate::vfs::file::{self, Contents, Message, Positions, Transfer};
use crate::vfs::notify;
use crate::vfs::size_limit::{self, WriteAt};

/// The place that a copy reads or writes: at the description's offset or at one in user memory.
#[derive(Clone, Copy)]
pub(super) struct End {
    /// The description.
    pub id: FileId,
    /// The place of the offset in user memory; 0 for the description's own.
    pub offset_gva: Gva,
}

impl End {
    pub fn offset(self, cx: &mut Cx<'_>) -> Result<u64, Errno> {
        if self.offset_gva.0 == 0 {
            return Ok(fd::file_mut(cx, self.id)?.offset);
        }
        let offset: u64 = cx.read_struct(self.offset_gva)?;
        if i64::try_from(offset).is_ok() {
            Ok(offset)
        } else {
            Err(Errno::EINVAL)
        }
    }

    pub fn advance(self, cx: &mut Cx<'_>, offset: u64) -> Result<(), Errno> {
        if self.offset_gva.0 == 0 {
            fd::file_mut(cx, self.id)?.offset = offset;
            return Ok(());
        }
        cx.write_struct(self.offset_gva, &offset)
    }
}

/// True if bytes can be read from it at any offset without waiting.
fn is_source(cx: &Cx<'_>, file: &OpenFile) -> bool {
    match file::contents(cx, &file.kind) {
        Contents::Host(_) | Contents::Inherited(_) | Contents::Text => true,
        Contents::Tmp(inode) => cx.kernel.tmpfs.size(inode).is_ok(),
        Contents::Zeros | Contents::Directory | Contents::None => false,
    }
}

/// True if both are of one regular file.
fn is_one_file(cx: &Cx<'_>, one: &FileKind, other: &FileKind) -> bool {
    match (file::contents(cx, one), file::contents(cx, other)) {
        (Contents::Tmp(one), Contents::Tmp(other)) => one == other,
        (Contents::Host(one), Contents::Host(other)) => {
            let attr = |id| kvmlet_hostfs::attr_of(cx.host.get(id).ok()?.fd.as_fd()).ok();
            let (one, other) = (attr(one), attr(other));
            one.zip(other)
                .is_some_and(|(one, other)| kvmlet_hostfs::is_same(&one, &other))
        }
        _ => false,
    }
}

/// sendfile(2)
pub fn sys_sendfile(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    match send(cx, args, state) {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Done(Err(error)),
    }
}

fn send(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Result<Outcome, Errno> {
    let (Fd(out_fd), Fd(in_fd), Ptr(offset_gva), Len(count)) = args.decode();
    let (in_id, mut input) = fd::get_io(cx, in_fd)?;
    let (out_id, output) = fd::get_io(cx, out_fd)?;
    if !is_open_for_reading(&input) || !output.flags.writable() {
        return Err(Errno::EBADF);
    }
    if !is_source(cx, &input) || output.flags.contains(OpenFlags::APPEND) {
        return Err(Errno::EINVAL);
    }
    if i64::try_from(count).is_err() {
        return Err(Errno::EINVAL);
    }
    let from = End {
        id: in_id,
        offset_gva,
    };
    let mut done = state.progress;
    let mut left = count.min(RW_MAX).saturating_sub(done);
    let mut offset = position(cx, from, &input)?;
    let mut buf = vec![0u8; CHUNK];
    while left > 0 {
        let len = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let Some(into) = buf.get_mut(..len) else {
            break;
        };
        input = file::prepare(cx, in_id, input, offset)?;
        let got = file::read_at(cx, &input.kind, offset, into)?;
        let bytes = into.get(..got).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        match put(cx, (out_id, &output), bytes) {
            Ok(Put::Moved(0)) => break,
            Ok(Put::Moved(count)) => {
                let moved = count as u64;
                done = done.saturating_add(moved);
                left = left.saturating_sub(moved);
                offset = offset.saturating_add(moved);
                set_position(cx, from, &input, offset)?;
                if let Some(state) = transfer::pause(cx, &output.kind, state, (done, left)) {
                    return Ok(Outcome::Again(state));
                }
            }
            Ok(Put::Over) => return Ok(Outcome::Gone),
            Ok(Put::Blocked(until)) if !output.flags.contains(OpenFlags::NONBLOCK) => {
                return Ok(wait_until(cx, until, state, done));
            }
            Ok(Put::Blocked(_)) if done == 0 => return Err(Errno::EAGAIN),
            Ok(Put::Blocked(_)) => break,
            Err(error) => {
                if error == Errno::EPIPE {
                    crate::signal::send_to_self(cx, crate::signal::signo::SIGPIPE);
                }
                if done == 0 {
                    return Err(error);
                }
                break;
            }
        }
    }
    moved(cx, (in_id, out_id), done);
    Ok(Outcome::Done(Ok(done)))
}

/// Tells who watches the files that bytes have moved from one of them to the other.
fn moved(cx: &mut Cx<'_>, (from, to): (FileId, FileId), count: u64) {
    if count > 0 {
        notify::of_file(cx, from, IN_ACCESS);
        notify::of_file(cx, to, IN_MODIFY);
    }
}

/// The position of a source; that of an inherited file is the host's.
fn position(cx: &mut Cx<'_>, end: End, file: &OpenFile) -> Result<u64, Errno> {
    match file::positions(cx, file) {
        Positions::Host(host) if end.offset_gva.0 == 0 => {
            stream::seek(cx.host.get(host)?, stream::SeekTo::Current(0))
        }
        _ => end.offset(cx),
    }
}

fn set_position(cx: &mut Cx<'_>, end: End, file: &OpenFile, offset: u64) -> Result<(), Errno> {
    match file::positions(cx, file) {
        Positions::Host(host) if end.offset_gva.0 == 0 => {
            stream::seek(cx.host.get(host)?, stream::SeekTo::Start(offset)).map(|_| ())
        }
        _ => end.advance(cx, offset),
    }
}

/// The effect of a write of bytes that are not in user memory.
pub(super) enum Put {
    /// This many are written.
    Moved(usize),
    /// None is until then.
    Blocked(Until),
    /// The limit on captured output is reached.
    Over,
}

/// Writes bytes that are not in user memory to any description, at its own offset.
pub(super) fn put(
    cx: &mut Cx<'_>,
    (id, file): (FileId, &OpenFile),
    bytes: &[u8],
) -> Result<Put, Errno> {
    let offset = fd::file_mut(cx, id)?.offset;
    let way = file::transfer(&file.kind);
    let at = match way {
        Transfer::Data => WriteAt::Offset(offset),
        Transfer::Stream(_) | Transfer::Pipe(_) | Transfer::Capture(_) | Transfer::Message(_) => {
            WriteAt::OwnPosition
        }
    };
    let room = size_limit::writable_bytes(cx, file, at, (0, bytes.len() as u64))?;
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    let bytes = bytes.get(..room).unwrap_or(bytes);
    Ok(match way {
        Transfer::Stream(host) => match transfer::write_stream(cx, host, bytes)? {
            Ok(count) => Put::Moved(count),
            Err(until) => Put::Blocked(until),
        },
        Transfer::Pipe(pipe) => match transfer::write_pipe(cx, pipe, bytes, write_as(file))? {
            Step::Moved(count) => Put::Moved(count),
            Step::Blocked(until) => Put::Blocked(until),
            Step::Over => Put::Over,
        },
        Transfer::Message(Message::Socket(socket)) => {
            match sockets::send_bytes(cx, socket, bytes) {
                Err(Unsent::NoRoom(source)) => Put::Blocked(Until::Ready(source)),
                Err(Unsent::Failed(error)) => return Err(error),
                Ok(count) => Put::Moved(count),
            }
        }
        Transfer::Message(
            Message::Event(_)
            | Message::Timer(_)
            | Message::None
            | Message::Signals(_)
            | Message::Inotify(_),
        ) => return Err(Errno::EINVAL),
        Transfer::Message(Message::Pty(end)) => match super::pty::write_step(cx, end, bytes)? {
            Ok(count) => Put::Moved(count),
            Err(until) => Put::Blocked(until),
        },
        Transfer::Capture(number) => match transfer::capture(cx, number, bytes) {
            transfer::Captured::Kept => Put::Moved(bytes.len()),
            transfer::Captured::Over => Put::Over,
        },
        Transfer::Data => {
            let count = file::write_at(cx, &file.kind, offset, bytes)?;
            if file::moves_offset(&file.kind) {
                fd::file_mut(cx, id)?.offset = offset.saturating_add(count as u64);
            }
            Put::Moved(count)
        }
    })
}

/// copy_file_range(2). It never waits: both files are regular.
pub fn sys_copy_file_range(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    copy_range(cx, args, state).unwrap_or_else(|error| Outcome::Done(Err(error)))
}

fn copy_range(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Result<Outcome, Errno> {
    let (Fd(in_fd), Ptr(in_offset), Fd(out_fd), Ptr(out_offset), Len(count), Flags(flags)) =
        args.decode();
    let (in_id, input) = fd::get_io(cx, in_fd)?;
    let (out_id, output) = fd::get_io(cx, out_fd)?;
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    if !is_open_for_reading(&input)
        || !output.flags.writable()
        || output.flags.contains(OpenFlags::APPEND)
    {
        return Err(Errno::EBADF);
    }
    let regular = |cx: &mut Cx<'_>, file: &OpenFile| match file::contents(cx, &file.kind) {
        Contents::Host(_) => Ok(()),
        Contents::Tmp(inode) => cx.kernel.tmpfs.size(inode).map(|_| ()),
        Contents::Directory => Err(Errno::EISDIR),
        Contents::Inherited(_) | Contents::Text | Contents::Zeros | Contents::None => {
            Err(Errno::EINVAL)
        }
    };
    regular(cx, &input)?;
    regular(cx, &output)?;
    let (from, to) = (
        End {
            id: in_id,
            offset_gva: in_offset,
        },
        End {
            id: out_id,
            offset_gva: out_offset,
        },
    );
    let (mut read_at, mut write_at) = (from.offset(cx)?, to.offset(cx)?);
    let mut done = state.progress;
    let left = count.min(RW_MAX).saturating_sub(done);
    let at = WriteAt::Offset(write_at);
    let mut left = size_limit::writable_bytes(cx, &output, at, (done, left))?;
    if is_one_file(cx, &input.kind, &output.kind)
        && read_at < write_at.saturating_add(left)
        && write_at < read_at.saturating_add(left)
    {
        return Err(Errno::EINVAL);
    }
    let mut buf = vec![0u8; usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)];
    while left > 0 {
        let len = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let Some(into) = buf.get_mut(..len) else {
            break;
        };
        let got = file::read_at(cx, &input.kind, read_at, into)?;
        let bytes = into.get(..got).unwrap_or_default();
        let stored = if bytes.is_empty() {
            Ok(0)
        } else {
            file::write_at(cx, &output.kind, write_at, bytes)
        };
        let moved = match stored {
            Ok(0) => break,
            Ok(count) => count as u64,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        };
        done = done.saturating_add(moved);
        left = left.saturating_sub(moved);
        read_at = read_at.saturating_add(moved);
        write_at = write_at.saturating_add(moved);
        if left > 0 && (cx.host.budget.is_spent() || cx.host.captured.is_due()) {
            from.advance(cx, read_at)?;
            to.advance(cx, write_at)?;
            return Ok(Outcome::Again(state.kept(done)));
        }
    }
    from.advance(cx, read_at)?;
    to.advance(cx, write_at)?;
    moved(cx, (in_id, out_id), done);
    Ok(Outcome::Done(Ok(done)))
}
