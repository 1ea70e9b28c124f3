//! read(2) and write(2) on what is no stream of bytes with a position: event counters, timers, signals,
//! sockets, pseudo-terminals.

use std::mem::size_of;

use kvmlet_abi::Errno;

use super::pty;
use super::transfer::{Buffers, Waiting, pause, wait_for};
use zerocopy::IntoBytes;

use crate::clock;
use crate::cx::Cx;
use crate::fd::{FileKind, OpenFile};
use crate::outcome::{CallState, Outcome, Source};
use crate::syscalls::net::transfer as sockets;
use crate::vfs::anon::ObjectId;
use crate::vfs::file::Message;
use crate::vfs::ready::{self, POLLIN, POLLOUT};
use crate::vfs::signalfd::{SIGINFO_BYTES, siginfo};

/// A count as read(2) and write(2) carry it, in bytes.
const COUNT_BYTES: u64 = size_of::<u64>() as u64;

/// Parks the call until `source` may be ready, unless it may not wait.
fn wait_unless_refused(waiting: Waiting, source: Source, state: &CallState) -> Outcome {
    match waiting {
        Waiting::Allowed => wait_for(source, state, 0),
        Waiting::Refused => Outcome::Done(Err(Errno::EAGAIN)),
    }
}

/// read(2) and its relatives.
pub(super) fn read(
    cx: &mut Cx<'_>,
    (message, file): (Message, &OpenFile),
    buffers: Buffers,
    waiting: Waiting,
    state: &CallState,
) -> Outcome {
    let outcome = match message {
        Message::Event(id) => read_event(cx, id, buffers, waiting, state),
        Message::Timer(id) => read_timer(cx, (id, file), buffers, waiting, state),
        Message::Signals(mask) => read_signals(cx, mask, buffers, waiting, state),
        Message::Inotify(id) => read_watched(cx, id, buffers, waiting, state),
        // recv(2) of nothing looks for a message; read(2) of nothing does not (sock_read_iter).
        Message::Socket(_) if buffers.left() == 0 => Ok(Outcome::Done(Ok(0))),
        Message::Socket(id) => return sockets::read(cx, id, buffers, waiting, state),
        Message::Pty(end) => return pty::read(cx, end, buffers, waiting, state),
        Message::None => Err(Errno::EINVAL),
    };
    outcome.unwrap_or_else(|error| Outcome::Done(Err(error)))
}

/// write(2) and its relatives.
pub(super) fn write(
    cx: &mut Cx<'_>,
    message: Message,
    buffers: Buffers,
    waiting: Waiting,
    state: &CallState,
) -> Outcome {
    let outcome = match message {
        Message::Event(id) => write_event(cx, id, buffers, waiting, state),
        Message::Socket(id) => return sockets::write(cx, id, buffers, waiting, state),
        Message::Pty(end) => return pty::write(cx, end, buffers, waiting, state),
        Message::Timer(_) | Message::Signals(_) | Message::Inotify(_) | Message::None => {
            Err(Errno::EINVAL)
        }
    };
    outcome.unwrap_or_else(|error| Outcome::Done(Err(error)))
}

fn read_event(
    cx: &mut Cx<'_>,
    id: ObjectId,
    mut buffers: Buffers,
    waiting: Waiting,
    state: &CallState,
) -> Result<Outcome, Errno> {
    if buffers.left() < COUNT_BYTES {
        return Err(Errno::EINVAL);
    }
    let Some(count) = cx.kernel.objects.event_mut(id)?.take() else {
        return Ok(wait_unless_refused(waiting, Source::Object(id), state));
    };
    cx.kernel.wake(Source::Object(id), POLLOUT);
    put_count(cx, &mut buffers, count)
}

/// Gives a count to the guest; one that cannot be written is lost, as it is on Linux.
fn put_count(cx: &mut Cx<'_>, buffers: &mut Buffers, count: u64) -> Result<Outcome, Errno> {
    let bytes = count.to_le_bytes();
    if buffers.scatter(cx, &bytes)? < bytes.len() {
        return Err(Errno::EFAULT);
    }
    Ok(Outcome::Done(Ok(COUNT_BYTES)))
}

/// Every buffer of writev(2) is a write of its own (do_loop_readv_writev in fs/read_write.c).
fn write_event(
    cx: &mut Cx<'_>,
    id: ObjectId,
    mut buffers: Buffers,
    waiting: Waiting,
    state: &CallState,
) -> Result<Outcome, Errno> {
    let mut done = state.progress;
    buffers.advance(done);
    let mut added = Err(Errno::EINVAL);
    while let Some((gva, len)) = buffers.peek(usize::MAX) {
        added = if len as u64 != COUNT_BYTES {
            Err(Errno::EINVAL)
        } else {
            cx.read_struct::<u64>(gva)
                .and_then(|value| cx.kernel.objects.event_mut(id)?.add(value))
        };
        match added {
            Ok(Some(())) => {
                done = done.saturating_add(COUNT_BYTES);
                buffers.advance(COUNT_BYTES);
                cx.kernel.wake(Source::Object(id), POLLIN);
                if let Some(state) = pause(cx, &FileKind::Event(id), state, (done, buffers.left()))
                {
                    return Ok(Outcome::Again(state));
                }
            }
            Ok(None) if waiting == Waiting::Allowed => {
                return Ok(wait_for(Source::Object(id), state, done));
            }
            Ok(None) => {
                added = Err(Errno::EAGAIN);
                break;
            }
            Err(_) => break,
        }
    }
    if done == 0 {
        added?;
    }
    Ok(Outcome::Done(Ok(done)))
}

fn read_timer(
    cx: &mut Cx<'_>,
    (id, file): (ObjectId, &OpenFile),
    mut buffers: Buffers,
    waiting: Waiting,
    state: &CallState,
) -> Result<Outcome, Errno> {
    if buffers.left() < COUNT_BYTES {
        return Err(Errno::EINVAL);
    }
    ready::refresh(cx, file);
    let now_ns = clock::monotonic_ns(cx.host);
    let Some(ticks) = cx.kernel.objects.timers.take(id, now_ns)? else {
        return Ok(wait_unless_refused(waiting, Source::Object(id), state));
    };
    put_count(cx, &mut buffers, ticks)
}

fn read_signals(
    cx: &mut Cx<'_>,
    mask: u64,
    mut buffers: Buffers,
    waiting: Waiting,
    state: &CallState,
) -> Result<Outcome, Errno> {
    let room = buffers.left() / SIGINFO_BYTES as u64;
    if room == 0 {
        return Err(Errno::EINVAL);
    }
    let mut done = 0u64;
    for _ in 0..room {
        let now_ns = clock::monotonic_ns(cx.host);
        let Some(info) = cx.kernel.take_signal_of(cx.tid, mask, now_ns) else {
            break;
        };
        match buffers.scatter(cx, siginfo(&info).as_bytes()) {
            Ok(SIGINFO_BYTES) => done = done.saturating_add(SIGINFO_BYTES as u64),
            _ if done == 0 => return Err(Errno::EFAULT),
            _ => break,
        }
    }
    if done == 0 {
        return Ok(wait_unless_refused(waiting, Source::Signals, state));
    }
    Ok(Outcome::Done(Ok(done)))
}

/// Whole events, as many as fit (inotify_read in fs/notify/inotify/inotify_user.c).
fn read_watched(
    cx: &mut Cx<'_>,
    id: ObjectId,
    mut buffers: Buffers,
    waiting: Waiting,
    state: &CallState,
) -> Result<Outcome, Errno> {
    let mut done = 0u64;
    while let Some(event) = cx.kernel.objects.inotifies.first(id) {
        if buffers.left() < event.len() as u64 {
            if done == 0 {
                return Err(Errno::EINVAL);
            }
            break;
        }
        // One that cannot be written is lost, as it is on Linux.
        let memory = &mut cx.machine.memory;
        cx.kernel.objects.inotifies.take_first(memory, id);
        if buffers.scatter(cx, &event)? < event.len() {
            return Err(Errno::EFAULT);
        }
        done = done.saturating_add(event.len() as u64);
        if cx.host.budget.is_spent() {
            break;
        }
    }
    if done == 0 {
        return Ok(wait_unless_refused(waiting, Source::Object(id), state));
    }
    Ok(Outcome::Done(Ok(done)))
}
