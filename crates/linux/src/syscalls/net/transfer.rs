//! Sending and receiving on a pair of sockets.

use core::mem::offset_of;

use imbl::Vector;
use kvmlet_abi::linux::socket::{
    MSG_DONTWAIT, MSG_ERRQUEUE, MSG_NOSIGNAL, MSG_OOB, MSG_PEEK, MSG_TRUNC, MSG_WAITALL,
};
use kvmlet_abi::linux::uio::UIO_MAXIOV;
use kvmlet_abi::linux::{Mmsghdr, Msghdr};
use kvmlet_abi::{Errno, Gva};

use super::socket_of;
use crate::clock;
use crate::cx::Cx;
use crate::fd::FileKind;
use crate::outcome::{CallState, Outcome, Resume, Source, Wait, WaitOn};
use crate::syscalls::args::{Args, Fd, Flags, Len, Ptr, Uint};
use crate::syscalls::io::transfer::{Buffers, Waiting, pause};
use crate::vfs::anon::ObjectId;
use crate::vfs::unix::{self, SocketKind};

/// Longest message or part of a stream that is copied at once, in bytes: more than a queue holds.
const COPY_MAX: usize = 512 << 10;
/// Most messages of one call (UIO_MAXIOV).
const MESSAGES_MAX: u32 = UIO_MAXIOV as u32;

/// The part of struct msghdr that is read: name, its length, buffers, their number, control data, its
/// length.
struct Header {
    gva: Gva,
    name: Gva,
    name_len: u32,
    iov: Gva,
    iov_count: u64,
    control_len: u64,
}

/// Offsets in struct msghdr of what recvmsg(2) writes.
const NAME_LEN_AT: u64 = offset_of!(Msghdr, msg_namelen) as u64;
const CONTROL_LEN_AT: u64 = offset_of!(Msghdr, msg_controllen) as u64;
const FLAGS_AT: u64 = offset_of!(Msghdr, msg_flags) as u64;
/// Offset in struct mmsghdr of the length of a message, and its size, in bytes.
const LEN_AT: u64 = offset_of!(Mmsghdr, msg_len) as u64;
const MMSG_BYTES: u64 = size_of::<Mmsghdr>() as u64;

impl Header {
    fn read(cx: &mut Cx<'_>, gva: Gva) -> Result<Self, Errno> {
        let header: Msghdr = cx.read_struct(gva)?;
        Ok(Self {
            gva,
            name: Gva(header.msg_name),
            name_len: header.msg_namelen,
            iov: Gva(header.msg_iov),
            iov_count: header.msg_iovlen,
            control_len: header.msg_controllen,
        })
    }

    fn buffers(&self, cx: &mut Cx<'_>) -> Result<Buffers, Errno> {
        Buffers::array(cx, self.iov, self.iov_count).map_err(|error| match error {
            // Too many buffers is another error than for readv(2) (copy_msghdr_from_user).
            Errno::EINVAL if self.iov_count > UIO_MAXIOV as u64 => Errno::EMSGSIZE,
            other => other,
        })
    }
}

/// The outcome of a transfer.
enum Done {
    /// The call's result, and whether the message was longer than the buffers.
    Moved(u64, Truncated),
    Again(CallState),
    Wait(Wait),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Truncated {
    No,
    Yes,
}

/// The wait of a call that has moved `progress` bytes; `None` when it may not wait or has waited long
/// enough (SO_RCVTIMEO, SO_SNDTIMEO).
fn wait(
    cx: &Cx<'_>,
    id: ObjectId,
    waiting: Waiting,
    (timeout_ns, progress): (Option<u64>, u64),
    state: &CallState,
) -> Option<Done> {
    let now_ns = clock::monotonic_ns(cx.host);
    let deadline_ns = state
        .deadline_ns
        .or_else(|| timeout_ns.map(|timeout_ns| now_ns.saturating_add(timeout_ns)));
    if waiting == Waiting::Refused || deadline_ns.is_some_and(|at| at <= now_ns) {
        return None;
    }
    Some(Done::Wait(Wait {
        on: WaitOn::Sources(Vector::unit(Source::Object(id))),
        deadline_ns,
        resume: Resume::Retry(CallState {
            deadline_ns,
            progress,
            expired: false,
            ..state.clone()
        }),
    }))
}

fn waiting_of(file: &crate::fd::OpenFile, flags: u32) -> Waiting {
    if flags & MSG_DONTWAIT != 0 {
        Waiting::Refused
    } else {
        Waiting::Allowed.of(file)
    }
}

fn receive(
    cx: &mut Cx<'_>,
    id: ObjectId,
    mut buffers: Buffers,
    (flags, waiting): (u32, Waiting),
    state: &CallState,
) -> Result<Done, Errno> {
    let socket = cx.kernel.objects.sockets.get(id)?;
    let (kind, timeout_ns) = (socket.kind, socket.options.receive_timeout_ns);
    if flags & MSG_OOB != 0 {
        return Err(if kind == SocketKind::Stream {
            Errno::EINVAL
        } else {
            Errno::EOPNOTSUPP
        });
    }
    if flags & MSG_ERRQUEUE != 0 {
        return Err(Errno::EAGAIN);
    }
    let mut done = state.progress;
    buffers.advance(done);
    loop {
        let wanted = usize::try_from(buffers.left())
            .unwrap_or(COPY_MAX)
            .min(COPY_MAX);
        let arrived = match cx.kernel.objects.sockets.get_mut(id)?.arrived(wanted) {
            Err(_) if done > 0 => return Ok(Done::Moved(done, Truncated::No)),
            Err(error) => return Err(error),
            // A datagram socket that receives no more ends a wait only (__skb_wait_for_more_packets).
            Ok(Some(nothing))
                if kind == SocketKind::Datagram
                    && waiting == Waiting::Refused
                    && nothing.is_end =>
            {
                return Err(Errno::EAGAIN);
            }
            Ok(arrived) => arrived,
        };
        let Some(arrived) = arrived else {
            let all = kind == SocketKind::Stream && flags & MSG_WAITALL != 0;
            if done > 0 && !all {
                return Ok(Done::Moved(done, Truncated::No));
            }
            return match wait(cx, id, waiting, (timeout_ns, done), state) {
                Some(wait) => Ok(wait),
                None if done > 0 => Ok(Done::Moved(done, Truncated::No)),
                None => Err(Errno::EAGAIN),
            };
        };
        let copied = buffers.scatter(cx, &arrived.bytes);
        if kind != SocketKind::Stream {
            // A message that could not be copied is gone, as it is on Linux.
            if flags & MSG_PEEK == 0 && !arrived.is_end {
                unix::consume(cx.kernel, &mut cx.machine.memory, id, wanted)?;
            }
            let copied = copied? as u64;
            if copied < arrived.bytes.len() as u64 {
                return Err(Errno::EFAULT);
            }
            let whole = arrived.len_bytes as u64;
            let result = if flags & MSG_TRUNC == 0 {
                copied
            } else {
                whole
            };
            let cut = if copied < whole {
                Truncated::Yes
            } else {
                Truncated::No
            };
            return Ok(Done::Moved(result, cut));
        }
        let copied = match copied {
            Ok(copied) => copied,
            Err(_) if done > 0 => return Ok(Done::Moved(done, Truncated::No)),
            Err(error) => return Err(error),
        };
        done = done.saturating_add(copied as u64);
        if flags & MSG_PEEK == 0 {
            unix::consume(cx.kernel, &mut cx.machine.memory, id, copied)?;
        }
        // All that is queued has been looked at: only MSG_WAITALL goes on.
        let over = copied < arrived.bytes.len() || copied == 0 || buffers.left() == 0;
        if over || flags & MSG_PEEK != 0 || flags & MSG_WAITALL == 0 {
            return Ok(Done::Moved(done, Truncated::No));
        }
        if let Some(state) = pause(cx, &FileKind::Socket(id), state, (done, buffers.left())) {
            return Ok(Done::Again(state));
        }
    }
}

fn send(
    cx: &mut Cx<'_>,
    id: ObjectId,
    mut buffers: Buffers,
    (flags, waiting): (u32, Waiting),
    state: &CallState,
) -> Result<Done, Errno> {
    let socket = cx.kernel.objects.sockets.get(id)?;
    let (kind, timeout_ns) = (socket.kind, socket.options.send_timeout_ns);
    if flags & MSG_OOB != 0 {
        if kind == SocketKind::Stream {
            cx.host
                .report
                .unsupported("send", "out-of-band data".to_owned());
        }
        return Err(Errno::EOPNOTSUPP);
    }
    let mut done = state.progress;
    buffers.advance(done);
    let mut bytes = Vec::new();
    loop {
        let left = usize::try_from(buffers.left()).unwrap_or(usize::MAX);
        if kind == SocketKind::Stream && left == 0 {
            break;
        }
        if kind != SocketKind::Stream && left > COPY_MAX {
            return Err(Errno::EMSGSIZE);
        }
        let part = left.min(unix::STREAM_MESSAGE_MAX);
        let part = if kind == SocketKind::Stream {
            part
        } else {
            left
        };
        buffers.gather(cx, part, &mut bytes).or_else(
            |error| {
                if done > 0 { Ok(()) } else { Err(error) }
            },
        )?;
        // What cannot be read whole is not sent at all.
        let sent = if bytes.len() == part {
            unix::send(cx.kernel, &mut cx.machine.memory, id, &bytes)
        } else {
            Err(Errno::EFAULT)
        };
        match sent {
            Ok(count) => {
                done = done.saturating_add(count as u64);
                buffers.advance(count as u64);
                if kind != SocketKind::Stream {
                    break;
                }
                if let Some(state) = pause(cx, &FileKind::Socket(id), state, (done, buffers.left()))
                {
                    return Ok(Done::Again(state));
                }
            }
            Err(Errno::EAGAIN) => {
                if let Some(wait) = wait(cx, id, waiting, (timeout_ns, done), state) {
                    return Ok(wait);
                }
                if done == 0 {
                    return Err(Errno::EAGAIN);
                }
                break;
            }
            Err(_) if done > 0 => break,
            Err(error) => {
                let signals = kind == SocketKind::Stream && flags & MSG_NOSIGNAL == 0;
                if error == Errno::EPIPE && signals {
                    crate::signal::send_to_self(cx, crate::signal::signo::SIGPIPE);
                }
                return Err(error);
            }
        }
    }
    Ok(Done::Moved(done, Truncated::No))
}

fn outcome(done: Result<Done, Errno>) -> Outcome {
    match done {
        Ok(Done::Moved(count, _)) => Outcome::Done(Ok(count)),
        Ok(Done::Again(state)) => Outcome::Again(state),
        Ok(Done::Wait(wait)) => Outcome::Wait(wait),
        Err(error) => Outcome::Done(Err(error)),
    }
}

/// read(2) of a socket.
pub fn read(
    cx: &mut Cx<'_>,
    id: ObjectId,
    buffers: Buffers,
    waiting: Waiting,
    state: &CallState,
) -> Outcome {
    outcome(receive(cx, id, buffers, (0, waiting), state))
}

/// write(2) to a socket.
pub fn write(
    cx: &mut Cx<'_>,
    id: ObjectId,
    buffers: Buffers,
    waiting: Waiting,
    state: &CallState,
) -> Outcome {
    outcome(send(cx, id, buffers, (0, waiting), state))
}

/// Refuses a destination: a connection has one, and nothing has a name here.
fn check_name(cx: &Cx<'_>, id: ObjectId, name: Gva, len: u32) -> Result<(), Errno> {
    const NAME_MAX: u32 = 128;
    if name.0 == 0 || len == 0 {
        return Ok(());
    }
    if len > NAME_MAX {
        return Err(Errno::EINVAL);
    }
    match cx.kernel.objects.sockets.get(id)?.kind {
        SocketKind::Stream => Err(Errno::EISCONN),
        SocketKind::Datagram if len <= 2 => Err(Errno::EINVAL),
        SocketKind::Datagram => Err(Errno::ECONNREFUSED),
        SocketKind::SeqPacket => Ok(()),
    }
}

/// sendto(2)
pub fn sys_sendto(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(buf), Len(len), Flags(flags), Ptr(name), Uint(name_len)) = args.decode();
    let mut sent = || -> Result<Done, Errno> {
        let buffers = Buffers::one(buf, len)?;
        let (id, file) = socket_of(cx, "sendto", fd)?;
        check_name(cx, id, name, name_len)?;
        send(cx, id, buffers, (flags, waiting_of(&file, flags)), state)
    };
    outcome(sent())
}

/// recvfrom(2). Nobody's name is known: its length is 0.
pub fn sys_recvfrom(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(buf), Len(len), Flags(flags), Ptr(name), Ptr(name_len)) = args.decode();
    let mut received = || -> Result<Done, Errno> {
        let buffers = Buffers::one(buf, len)?;
        let (id, file) = socket_of(cx, "recvfrom", fd)?;
        let done = receive(cx, id, buffers, (flags, waiting_of(&file, flags)), state)?;
        if let Done::Moved(..) = done
            && name.0 != 0
        {
            cx.write_struct(name_len, &0u32)?;
        }
        Ok(done)
    };
    outcome(received())
}

fn send_message(
    cx: &mut Cx<'_>,
    call: &'static str,
    (fd, gva): (i32, Gva),
    flags: u32,
    state: &CallState,
) -> Result<Done, Errno> {
    let (id, file) = socket_of(cx, call, fd)?;
    let header = Header::read(cx, gva)?;
    let buffers = header.buffers(cx)?;
    if header.control_len > 0 {
        // Descriptors and credentials are not passed.
        cx.host
            .report
            .unsupported(call, "ancillary data".to_owned());
        return Err(Errno::EINVAL);
    }
    check_name(cx, id, header.name, header.name_len)?;
    send(cx, id, buffers, (flags, waiting_of(&file, flags)), state)
}

fn receive_message(
    cx: &mut Cx<'_>,
    call: &'static str,
    (fd, gva): (i32, Gva),
    flags: u32,
    state: &CallState,
) -> Result<Done, Errno> {
    let (id, file) = socket_of(cx, call, fd)?;
    let header = Header::read(cx, gva)?;
    let buffers = header.buffers(cx)?;
    let done = receive(cx, id, buffers, (flags, waiting_of(&file, flags)), state)?;
    if let Done::Moved(_, truncated) = done {
        let shown = if truncated == Truncated::Yes {
            MSG_TRUNC
        } else {
            0
        };
        let at = |offset: u64| Gva(header.gva.0.saturating_add(offset));
        cx.write_struct(at(FLAGS_AT), &shown)?;
        cx.write_struct(at(CONTROL_LEN_AT), &0u64)?;
        if header.name.0 != 0 {
            cx.write_struct(at(NAME_LEN_AT), &0u32)?;
        }
    }
    Ok(done)
}

/// sendmsg(2)
pub fn sys_sendmsg(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(header), Flags(flags)) = args.decode();
    outcome(send_message(cx, "sendmsg", (fd, header), flags, state))
}

/// recvmsg(2)
pub fn sys_recvmsg(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(header), Flags(flags)) = args.decode();
    outcome(receive_message(cx, "recvmsg", (fd, header), flags, state))
}

type Message = fn(&mut Cx<'_>, &'static str, (i32, Gva), u32, &CallState) -> Result<Done, Errno>;

/// Several messages: waits for the first only, then moves what can be moved at once.
fn several(
    cx: &mut Cx<'_>,
    call: &'static str,
    (fd, headers, count, flags): (i32, Gva, u32, u32),
    state: &CallState,
    one: Message,
) -> Outcome {
    if let Err(error) = socket_of(cx, call, fd) {
        return Outcome::Done(Err(error));
    }
    let (first, default) = (state.messages, CallState::default());
    let mut moved = first;
    let count = u64::from(count.min(MESSAGES_MAX));
    for index in first..count {
        let header = Gva(headers.0.saturating_add(index.saturating_mul(MMSG_BYTES)));
        let flags = flags | if index == 0 { 0 } else { MSG_DONTWAIT };
        let state = if index == first { state } else { &default };
        match one(cx, call, (fd, header), flags, state) {
            Ok(Done::Moved(len, _)) => {
                let len = u32::try_from(len).unwrap_or(u32::MAX);
                let at = Gva(header.0.saturating_add(LEN_AT));
                match cx.write_struct(at, &len) {
                    Err(error) if moved == 0 => return Outcome::Done(Err(error)),
                    Err(_) => break,
                    Ok(()) => moved = moved.saturating_add(1),
                }
                if moved < count && cx.host.budget.is_spent() {
                    return Outcome::Again(CallState {
                        messages: moved,
                        ..default.kept(0)
                    });
                }
            }
            Ok(Done::Again(state)) => {
                return Outcome::Again(CallState {
                    messages: moved,
                    ..state.kept(state.progress)
                });
            }
            Ok(Done::Wait(wait)) => return Outcome::Wait(wait),
            Err(error) if moved == 0 => return Outcome::Done(Err(error)),
            Err(_) => break,
        }
    }
    Outcome::Done(Ok(moved))
}

/// sendmmsg(2)
pub fn sys_sendmmsg(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(headers), Uint(count), Flags(flags)) = args.decode();
    let messages = (fd, headers, count, flags);
    several(cx, "sendmmsg", messages, state, send_message)
}

/// recvmmsg(2)
pub fn sys_recvmmsg(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(headers), Uint(count), Flags(flags), Ptr(timeout)) = args.decode();
    if timeout.0 != 0 {
        // Only the time between messages is limited by it, and none is waited for but the first.
        if let Err(error) = clock::read_timespec(cx, timeout) {
            return Outcome::Done(Err(error));
        }
    }
    let messages = (fd, headers, count, flags);
    several(cx, "recvmmsg", messages, state, receive_message)
}
