//! splice(2), tee(2), vmsplice(2): bytes move between pipes and other descriptors. Linux differs: they are copied.

use kvmlet_abi::linux::inotify::{IN_ACCESS, IN_MODIFY};
use kvmlet_abi::linux::poll::POLLIN;
use kvmlet_abi::{Errno, Gva};
use kvmlet_hostfs::stream::{self, Moved};

use super::copy::{End, Put, put};
use super::transfer::{
    self, Buffers, CHUNK, RW_MAX, Step, Until, blocked, taken, wait_until, write_pipe,
};
use crate::cx::Cx;
use crate::fd::{self, OpenFile, OpenFlags};
use crate::outcome::{CallState, Outcome, Source};
use crate::signal::{self, signo::SIGPIPE};
use crate::syscalls::args::{Args, Fd, Flags, Len, Ptr};
use crate::vfs::file::{self, Contents, Transfer};
use crate::vfs::notify;
use crate::vfs::pipe::{PipeId, WriteAs};
use crate::vfs::size_limit::{self, WriteAt};

const SPLICE_F_NONBLOCK: u32 = 2;
/// SPLICE_F_MOVE, SPLICE_F_NONBLOCK, SPLICE_F_MORE, SPLICE_F_GIFT
const KNOWN: u32 = 0xf;

fn pipe_of(file: &OpenFile) -> Option<PipeId> {
    match file::transfer(&file.kind) {
        Transfer::Pipe(pipe) => Some(pipe),
        _ => None,
    }
}

/// What is said of a call: how far it may go, and if it may wait.
#[derive(Clone, Copy)]
struct Span<'a> {
    len: u64,
    may_wait: bool,
    state: &'a CallState,
}

impl Span<'_> {
    /// The call has moved all that it can for now.
    fn blocked(self, cx: &Cx<'_>, until: Until) -> Result<Outcome, Errno> {
        match (self.state.progress, self.may_wait) {
            (0, true) => Ok(wait_until(cx, until, self.state, 0)),
            (0, false) => Err(Errno::EAGAIN),
            (done, _) => Ok(Outcome::Done(Ok(done))),
        }
    }
}

fn outcome(result: Result<Outcome, Errno>) -> Outcome {
    result.unwrap_or_else(|errno| Outcome::Done(Err(errno)))
}

/// Says if a pipe can be written; without a reader it is the end of its writers.
fn check_reader(cx: &mut Cx<'_>, pipe: PipeId) -> Result<(), Errno> {
    if cx.kernel.pipes.get(pipe)?.readers > 0 {
        return Ok(());
    }
    signal::send_to_self(cx, SIGPIPE);
    Err(Errno::EPIPE)
}

/// splice(2)
pub fn sys_splice(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(from), Ptr(from_offset), Fd(to), Ptr(to_offset), Len(len), Flags(flags)) =
        args.decode();
    let ends = ((from, from_offset), (to, to_offset));
    outcome(splice(cx, ends, (len, flags), state))
}

fn splice(
    cx: &mut Cx<'_>,
    ((from, from_offset), (to, to_offset)): ((i32, Gva), (i32, Gva)),
    (len, flags): (u64, u32),
    state: &CallState,
) -> Result<Outcome, Errno> {
    if len == 0 {
        return Ok(Outcome::Done(Ok(0)));
    }
    if flags & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    let (from_id, input) = fd::get_io(cx, from)?;
    let (to_id, output) = fd::get_io(cx, to)?;
    if !input.flags.readable() || !output.flags.writable() {
        return Err(Errno::EBADF);
    }
    let (in_pipe, out_pipe) = (pipe_of(&input), pipe_of(&output));
    let has_offset = |pipe: Option<PipeId>, offset: Gva| pipe.is_some() && offset.0 != 0;
    if has_offset(in_pipe, from_offset) || has_offset(out_pipe, to_offset) {
        return Err(Errno::ESPIPE);
    }
    let is_nonblocking = |file: &OpenFile| file.flags.contains(OpenFlags::NONBLOCK);
    let may_wait = flags & SPLICE_F_NONBLOCK == 0;
    let len = len.min(RW_MAX);
    let span = |may_wait| Span {
        len,
        may_wait,
        state,
    };
    match (in_pipe, out_pipe) {
        (Some(a), Some(b)) if a == b => Err(Errno::EINVAL),
        (Some(a), Some(b)) => {
            let may_wait = may_wait && !is_nonblocking(&input) && !is_nonblocking(&output);
            between_pipes(cx, (a, b), span(may_wait), Take::Away)
        }
        (Some(pipe), None) => {
            if output.flags.contains(OpenFlags::APPEND) {
                return Err(Errno::EINVAL);
            }
            let to = End {
                id: to_id,
                offset_gva: to_offset,
            };
            let may_wait = may_wait && !is_nonblocking(&input);
            out_of_pipe(cx, pipe, (to, &output), span(may_wait))
        }
        (None, Some(pipe)) => {
            let from = End {
                id: from_id,
                offset_gva: from_offset,
            };
            let may_wait = may_wait && !is_nonblocking(&output);
            into_pipe(cx, (from, input), pipe, span(may_wait))
        }
        (None, None) => Err(Errno::EINVAL),
    }
}

/// The fate of the bytes in the first pipe.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Take {
    /// They leave it.
    Away,
    /// They stay (tee(2)).
    Copies,
}

fn between_pipes(
    cx: &mut Cx<'_>,
    (from, to): (PipeId, PipeId),
    span: Span<'_>,
    take: Take,
) -> Result<Outcome, Errno> {
    let source = cx.kernel.pipes.get(from)?;
    if source.is_empty() && source.writers == 0 {
        return Ok(Outcome::Done(Ok(0)));
    }
    if source.is_empty() {
        return span.blocked(cx, Until::Ready(Source::Pipe(from)));
    }
    check_reader(cx, to)?;
    let room = cx.kernel.pipes.get(to)?.room();
    if room == 0 {
        return span.blocked(cx, Until::Ready(Source::Pipe(to)));
    }
    // Neither holds more than a mebibyte.
    let most = usize::try_from(span.len).unwrap_or(usize::MAX).min(room);
    let source = cx.kernel.pipes.get(from)?;
    let (bytes, was_full) = (source.peek(most), source.is_full());
    let Step::Moved(count) = write_pipe(cx, to, &bytes, WriteAs::Stream)? else {
        return span.blocked(cx, Until::Ready(Source::Pipe(to)));
    };
    if take == Take::Away {
        taken(cx, from, count, was_full)?;
    }
    Ok(Outcome::Done(Ok(count as u64)))
}

fn out_of_pipe(
    cx: &mut Cx<'_>,
    pipe: PipeId,
    (to, output): (End, &OpenFile),
    span: Span<'_>,
) -> Result<Outcome, Errno> {
    let is_placed = to.offset_gva.0 != 0;
    if is_placed && file::transfer(&output.kind) != Transfer::Data {
        return Err(Errno::ESPIPE);
    }
    let mut done = span.state.progress;
    loop {
        let state = CallState {
            progress: done,
            ..span.state.clone()
        };
        let span = Span {
            state: &state,
            ..span
        };
        let source = cx.kernel.pipes.get(pipe)?;
        if done >= span.len || source.is_empty() && source.writers == 0 {
            return Ok(Outcome::Done(Ok(done)));
        }
        if source.is_empty() {
            return span.blocked(cx, Until::Ready(Source::Pipe(pipe)));
        }
        let left = span.len.saturating_sub(done);
        let most = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let (bytes, was_full) = (source.peek(most), source.is_full());
        let moved = if is_placed {
            let offset = to.offset(cx)?;
            let at = WriteAt::Offset(offset);
            let room = size_limit::writable_bytes(cx, output, at, (done, bytes.len() as u64))?;
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            let bytes = bytes.get(..room).unwrap_or(&bytes);
            file::write_at(cx, &output.kind, offset, bytes).and_then(|count| {
                to.advance(cx, offset.saturating_add(count as u64))?;
                Ok(Put::Moved(count))
            })
        } else {
            put(cx, (to.id, output), &bytes)
        };
        let count = match moved {
            Ok(Put::Moved(count)) => count,
            Ok(Put::Over) => return Ok(Outcome::Gone),
            Ok(Put::Blocked(_)) if output.flags.contains(OpenFlags::NONBLOCK) && done == 0 => {
                return Err(Errno::EAGAIN);
            }
            Ok(Put::Blocked(until)) => return span.blocked(cx, until),
            Err(errno) => {
                if errno == Errno::EPIPE {
                    signal::send_to_self(cx, SIGPIPE);
                }
                return match done {
                    0 => Err(errno),
                    done => Ok(Outcome::Done(Ok(done))),
                };
            }
        };
        taken(cx, pipe, count, was_full)?;
        done = done.saturating_add(count as u64);
        if count > 0 {
            notify::of_file(cx, to.id, IN_MODIFY);
        }
        if count < bytes.len() {
            return Ok(Outcome::Done(Ok(done)));
        }
        let left = span.len.saturating_sub(done);
        if let Some(state) = transfer::pause(cx, &output.kind, span.state, (done, left)) {
            return Ok(Outcome::Again(state));
        }
    }
}

fn into_pipe(
    cx: &mut Cx<'_>,
    (from, input): (End, OpenFile),
    pipe: PipeId,
    span: Span<'_>,
) -> Result<Outcome, Errno> {
    let way = file::transfer(&input.kind);
    let is_file =
        way == Transfer::Data && !matches!(file::contents(cx, &input.kind), Contents::Directory);
    let is_stream = matches!(way, Transfer::Stream(_)) && from.offset_gva.0 == 0;
    if !is_file && !is_stream {
        return Err(Errno::EINVAL);
    }
    let offset = from.offset(cx)?;
    check_reader(cx, pipe)?;
    let room = cx.kernel.pipes.get(pipe)?.room();
    if room == 0 {
        return span.blocked(cx, Until::Ready(Source::Pipe(pipe)));
    }
    let most = usize::try_from(span.len).unwrap_or(usize::MAX).min(room);
    // Bytes of a stream that are read cannot be put back.
    if !cx.machine.memory.has_room(most as u64) {
        return Err(Errno::ENOMEM);
    }
    let mut bytes = vec![0; most];
    let mut moves = false;
    let got = match way {
        Transfer::Stream(host) => match stream::read(cx.host.get(host)?, &mut bytes)? {
            Moved::Bytes(count) => {
                cx.kernel.objects.epolls.stream_read(host, count as u64);
                count
            }
            moved => {
                let until = blocked(cx, host, POLLIN, moved);
                let is_nonblocking = input.flags.contains(OpenFlags::NONBLOCK);
                let may_wait = span.may_wait && !is_nonblocking;
                return Span { may_wait, ..span }.blocked(cx, until);
            }
        },
        _ => {
            let input = file::prepare(cx, from.id, input, offset)?;
            moves = from.offset_gva.0 != 0 || file::moves_offset(&input.kind);
            file::read_at(cx, &input.kind, offset, &mut bytes)?
        }
    };
    let bytes = bytes.get(..got).unwrap_or_default();
    if bytes.is_empty() {
        return Ok(Outcome::Done(Ok(0)));
    }
    // There is room for all of it.
    match write_pipe(cx, pipe, bytes, WriteAs::Stream)? {
        Step::Moved(count) => {
            if moves {
                from.advance(cx, offset.saturating_add(count as u64))?;
            }
            notify::of_file(cx, from.id, IN_ACCESS);
            Ok(Outcome::Done(Ok(count as u64)))
        }
        Step::Blocked(_) | Step::Over => Err(Errno::EAGAIN),
    }
}

/// tee(2)
pub fn sys_tee(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(from), Fd(to), Len(len), Flags(flags)) = args.decode();
    outcome(tee(cx, (from, to), (len, flags), state))
}

fn tee(
    cx: &mut Cx<'_>,
    (from, to): (i32, i32),
    (len, flags): (u64, u32),
    state: &CallState,
) -> Result<Outcome, Errno> {
    if flags & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    if len == 0 {
        return Ok(Outcome::Done(Ok(0)));
    }
    let (_, input) = fd::get_io(cx, from)?;
    let (_, output) = fd::get_io(cx, to)?;
    if !input.flags.readable() || !output.flags.writable() {
        return Err(Errno::EBADF);
    }
    let (Some(from), Some(to)) = (pipe_of(&input), pipe_of(&output)) else {
        return Err(Errno::EINVAL);
    };
    if from == to {
        return Err(Errno::EINVAL);
    }
    let nonblocking = (input.flags | output.flags).contains(OpenFlags::NONBLOCK);
    let span = Span {
        len,
        may_wait: flags & SPLICE_F_NONBLOCK == 0 && !nonblocking,
        state,
    };
    between_pipes(cx, (from, to), span, Take::Copies)
}

/// vmsplice(2)
pub fn sys_vmsplice(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(vector), Len(count), Flags(flags)) = args.decode();
    outcome(vmsplice(cx, fd, (vector, count), flags, state))
}

fn vmsplice(
    cx: &mut Cx<'_>,
    fd: i32,
    (vector, count): (Gva, u64),
    flags: u32,
    state: &CallState,
) -> Result<Outcome, Errno> {
    if flags & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    let (_, file) = fd::get_io(cx, fd)?;
    let is_source = file.flags.writable();
    if !is_source && !file.flags.readable() {
        return Err(Errno::EBADF);
    }
    let mut buffers = Buffers::array(cx, vector, count)?;
    if buffers.left() == 0 {
        return Ok(Outcome::Done(Ok(0)));
    }
    let pipe = pipe_of(&file).ok_or(Errno::EBADF)?;
    let span = Span {
        len: buffers.left(),
        may_wait: flags & SPLICE_F_NONBLOCK == 0,
        state,
    };
    let most = |room: usize| usize::try_from(span.len).unwrap_or(usize::MAX).min(room);
    if is_source {
        check_reader(cx, pipe)?;
        let room = cx.kernel.pipes.get(pipe)?.room();
        if room == 0 {
            return span.blocked(cx, Until::Ready(Source::Pipe(pipe)));
        }
        let mut bytes = Vec::new();
        buffers.gather(cx, most(room), &mut bytes)?;
        return match write_pipe(cx, pipe, &bytes, WriteAs::Stream)? {
            Step::Moved(count) => Ok(Outcome::Done(Ok(count as u64))),
            Step::Blocked(_) | Step::Over => Err(Errno::EAGAIN),
        };
    }
    let source = cx.kernel.pipes.get(pipe)?;
    if source.is_empty() && source.writers == 0 {
        return Ok(Outcome::Done(Ok(0)));
    }
    if source.is_empty() {
        return span.blocked(cx, Until::Ready(Source::Pipe(pipe)));
    }
    let (bytes, was_full) = (source.peek(most(source.len())), source.is_full());
    let moved = buffers.scatter(cx, &bytes)?;
    taken(cx, pipe, moved, was_full)?;
    Ok(Outcome::Done(Ok(moved as u64)))
}
