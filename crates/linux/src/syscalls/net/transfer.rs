//! Sending and receiving.

use core::mem::offset_of;
use std::net::SocketAddr;

use imbl::Vector;
use kvmlet_abi::linux::socket::{
    AF_INET, AF_UNSPEC, MSG_CMSG_CLOEXEC, MSG_DONTWAIT, MSG_ERRQUEUE, MSG_NOSIGNAL, MSG_OOB,
    MSG_PEEK, MSG_TRUNC, MSG_WAITALL, SCM_CREDENTIALS, SOL_SOCKET,
};
use kvmlet_abi::linux::uio::UIO_MAXIOV;
use kvmlet_abi::linux::{Mmsghdr, Msghdr};
use kvmlet_abi::{Errno, Gva};
use kvmlet_mem::{Bytes, SpareBlocks};
use zerocopy::IntoBytes;

use super::control::{self, Room};
use super::{address, ip_options, socket_of, timed_wait};
use crate::clock;
use crate::cx::Cx;
use crate::fd::FileKind;
use crate::id::{FileId, ObjectId};
use crate::net::header::IpHeader;
use crate::net::inet::{self, Transport};
use crate::net::pieces::Pieces;
use crate::net::queue::{self, Ancillary, Arrived, Payload, STREAM_MESSAGE_MAX, Unsent};
use crate::net::{Credentials, Family, Name, SocketKind, netlink, outside, rights, unix};
use crate::outcome::{CallState, Outcome, Source, Wait};
use crate::syscalls::args::{Args, Fd, Flags, Int, Len, Ptr, Uint};
use crate::syscalls::io::transfer::{Buffers, Waiting, pause};

/// Longest message or part of a stream that is copied at once, in bytes: more than a queue holds.
const COPY_MAX: usize = 512 << 10;
/// Most messages of one call (UIO_MAXIOV).
const MESSAGES_MAX: u32 = UIO_MAXIOV as u32;

/// The part of struct msghdr that is read: name, its length, buffers, their number, ancillary data, its
/// length.
struct Header {
    gva: Gva,
    name: Gva,
    name_len: u32,
    iov: Gva,
    iov_count: u64,
    control: Gva,
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
            control: Gva(header.msg_control),
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
    /// The call has moved something.
    Moved(Moved),
    Again(CallState),
    Wait(Wait),
}

/// The things that a call has moved.
#[derive(Debug, Default)]
struct Moved {
    /// The call's result.
    count: u64,
    /// MSG_TRUNC if the message was longer than the buffers.
    flags: u32,
    /// Where it came from.
    from: Option<Name>,
    /// Descriptions that came with it. Each has a reference for the caller, unless it was only looked at.
    files: Vec<FileId>,
    credentials: Option<Credentials>,
    /// The header of IP that it came with.
    ip: Option<IpHeader>,
}

impl Moved {
    fn bytes(count: u64) -> Self {
        Self {
            count,
            ..Self::default()
        }
    }

    /// Adds what has arrived, without its bytes.
    fn came_with(&mut self, arrived: &mut Arrived) {
        self.from = arrived.from.take().or(self.from.take());
        self.files.append(&mut arrived.files);
        self.credentials = arrived.credentials.or(self.credentials);
        self.ip = arrived.ip;
    }
}

fn waiting_of(file: &crate::fd::OpenFile, flags: u32) -> Waiting {
    if flags & MSG_DONTWAIT != 0 {
        Waiting::Refused
    } else {
        Waiting::Allowed.of(file)
    }
}

/// Takes `count` of the `found` bytes off the queue, which have been received, unless they are only looked at. The
/// descriptions that come with them stay in `arrived`; if they have been taken, their references are the caller's.
fn consume(
    cx: &mut Cx<'_>,
    id: ObjectId,
    flags: u32,
    (arrived, found, count): (&mut Arrived, usize, usize),
) -> Result<(), Errno> {
    if flags & MSG_PEEK == 0 {
        arrived.files = queue::consume(cx.kernel, &mut cx.machine.memory, id, count)?;
    } else if count < found && count <= arrived.files_at {
        // They come with what has not been copied.
        arrived.files.clear();
    }
    Ok(())
}

/// Drops the references to descriptions that the guest does not get.
fn give_up(cx: &mut Cx<'_>, flags: u32, files: Vec<FileId>) {
    if flags & MSG_PEEK == 0 {
        rights::give_up(cx, files);
    }
}

/// Copies as much of `bytes` as fits and can be written into the buffers, and takes that off them.
///
/// # Errors
/// `EFAULT` if not even the first byte can be written.
fn scatter(cx: &mut Cx<'_>, buffers: &mut Buffers, bytes: &Pieces) -> Result<usize, Errno> {
    let mut done = 0usize;
    for piece in bytes.iter() {
        match buffers.scatter(cx, piece) {
            Ok(copied) => {
                done = done.saturating_add(copied);
                if copied < piece.len() {
                    break;
                }
            }
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
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
    let mut moved = Moved::bytes(state.progress);
    buffers.advance(moved.count);
    loop {
        let wanted = usize::try_from(buffers.left())
            .unwrap_or(COPY_MAX)
            .min(COPY_MAX);
        let arrived = match cx.kernel.objects.sockets.get_mut(id)?.arrived(wanted) {
            Err(_) if moved.count > 0 => return Ok(Done::Moved(moved)),
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
        let Some(mut arrived) = arrived else {
            let all = kind == SocketKind::Stream && flags & MSG_WAITALL != 0;
            if moved.count > 0 && !all {
                return Ok(Done::Moved(moved));
            }
            let on = Vector::unit(Source::Object(id));
            return match timed_wait(cx, on, waiting, (timeout_ns, moved.count), state) {
                Some(wait) => Ok(Done::Wait(wait)),
                None if moved.count > 0 => Ok(Done::Moved(moved)),
                None => Err(Errno::EAGAIN),
            };
        };
        // What the guest has is not shared with the queue any more, which may use the memory again.
        let bytes = core::mem::take(&mut arrived.bytes);
        let (found, copied) = (bytes.len(), scatter(cx, &mut buffers, &bytes));
        drop(bytes);
        if kind != SocketKind::Stream {
            // A message that could not be copied is gone, as it is on Linux.
            if !arrived.is_end {
                consume(cx, id, flags, (&mut arrived, found, found))?;
            }
            let whole = arrived.len_bytes as u64;
            match copied {
                Ok(copied) if copied == found => moved.count = copied as u64,
                copied => {
                    give_up(cx, flags, core::mem::take(&mut arrived.files));
                    copied?;
                    return Err(Errno::EFAULT);
                }
            }
            if moved.count < whole {
                moved.flags = MSG_TRUNC;
            }
            if flags & MSG_TRUNC != 0 {
                moved.count = whole;
            }
            moved.came_with(&mut arrived);
            return Ok(Done::Moved(moved));
        }
        let copied = match copied {
            Ok(copied) => copied,
            Err(_) if moved.count > 0 => return Ok(Done::Moved(moved)),
            Err(error) => return Err(error),
        };
        moved.count = moved.count.saturating_add(copied as u64);
        let is_short = copied < found;
        consume(cx, id, flags, (&mut arrived, found, copied))?;
        moved.came_with(&mut arrived);
        // All that is queued has been looked at: only MSG_WAITALL goes on.
        let over = is_short || copied == 0 || buffers.left() == 0 || !moved.files.is_empty();
        if over || flags & MSG_PEEK != 0 || flags & MSG_WAITALL == 0 {
            return Ok(Done::Moved(moved));
        }
        let progress = (moved.count, buffers.left());
        if let Some(state) = pause(cx, &FileKind::Socket(id), state, progress) {
            return Ok(Done::Again(state));
        }
    }
}

/// The receiver of a message.
#[derive(Clone, Copy)]
enum Receiver {
    /// Whom the socket is connected to.
    Peer,
    /// This socket.
    Socket(ObjectId),
    /// Whoever has this address.
    Inet(SocketAddr),
    /// A port of netlink.
    Netlink(u32),
}

/// Sends what has been copied.
fn send_once(
    cx: &mut Cx<'_>,
    (id, to): (ObjectId, Receiver),
    payload: Payload<'_>,
    ancillary: &Ancillary,
) -> Result<usize, Unsent> {
    let bytes = payload.bytes;
    let socket = cx.kernel.objects.sockets.get(id)?;
    let to = match (to, socket.transport(), socket.family) {
        (Receiver::Inet(to), _, _) => {
            return Ok(inet::send_datagram(
                cx,
                (id, Some(to)),
                bytes,
                &ancillary.ip,
            )?);
        }
        (_, Some(Transport::Udp), _) => {
            return Ok(inet::send_datagram(cx, (id, None), bytes, &ancillary.ip)?);
        }
        (Receiver::Netlink(port), _, _) => return Ok(netlink::send(cx, (id, port), bytes)?),
        (_, _, Family::Netlink) => return Ok(netlink::send(cx, (id, 0), bytes)?),
        (Receiver::Socket(to), _, _) => Some(to),
        (Receiver::Peer, _, _) => None,
    };
    outside::send_packet(cx, (id, to), payload, ancillary)
}

/// The receiver of a message that a call names, and what comes with it.
struct Outgoing {
    to: Receiver,
    ancillary: Ancillary,
}

impl Outgoing {
    /// Bytes for whom the socket is connected to.
    fn plain(cx: &mut Cx<'_>) -> Result<Self, Errno> {
        Ok(Self {
            to: Receiver::Peer,
            ancillary: control::plain(cx)?,
        })
    }
}

/// Copies up to `len_bytes` out of the buffers: into memory that a queue can keep, or if there are few into `scratch`,
/// which is empty if that fails.
///
/// # Errors
/// `EFAULT` if not even the first byte can be read.
fn gather(
    cx: &mut Cx<'_>,
    buffers: &Buffers,
    len_bytes: usize,
    scratch: &mut Vec<u8>,
) -> Result<Option<Bytes>, Errno> {
    if !SpareBlocks::is_for(len_bytes) {
        buffers.gather(cx, len_bytes, scratch)?;
        return Ok(None);
    }
    scratch.clear();
    let mut block = cx.machine.memory.spare_blocks.take();
    let into = block.memory().get_mut(..len_bytes).unwrap_or_default();
    let count = buffers.gather_into(cx, into)?;
    Ok(Some(block.filled(count)))
}

fn send(
    cx: &mut Cx<'_>,
    id: ObjectId,
    mut buffers: Buffers,
    outgoing: Outgoing,
    (flags, waiting): (u32, Waiting),
    state: &CallState,
) -> Result<Done, Errno> {
    let Outgoing { to, mut ancillary } = outgoing;
    let socket = cx.kernel.objects.sockets.get(id)?;
    let (kind, timeout_ns) = (socket.kind, socket.options.send_timeout_ns);
    if flags & MSG_OOB != 0 && socket.transport() != Some(Transport::Udp) {
        if kind == SocketKind::Stream {
            cx.host
                .report
                .unsupported("send", "out-of-band data".to_owned());
        }
        return Err(Errno::EOPNOTSUPP);
    }
    let mut done = state.progress;
    buffers.advance(done);
    if done > 0 {
        // They went with the first bytes.
        ancillary.files.clear();
    }
    let mut scratch = Vec::new();
    loop {
        let left = usize::try_from(buffers.left()).unwrap_or(usize::MAX);
        if kind == SocketKind::Stream && left == 0 {
            if done == 0 && cx.kernel.objects.sockets.get(id)?.family == Family::Unix {
                check_open(cx, id)?;
            }
            break;
        }
        if kind != SocketKind::Stream && left > COPY_MAX {
            return Err(Errno::EMSGSIZE);
        }
        let part = left.min(STREAM_MESSAGE_MAX);
        let part = if kind == SocketKind::Stream {
            part
        } else {
            left
        };
        let gathered = match gather(cx, &buffers, part, &mut scratch) {
            Err(error) if done == 0 => return Err(error),
            gathered => gathered.ok().flatten(),
        };
        let payload = match &gathered {
            Some(bytes) => Payload::from(bytes),
            None => Payload::from(scratch.as_slice()),
        };
        // What cannot be read whole is not sent at all.
        let sent = if payload.bytes.len() == part {
            send_once(cx, (id, to), payload, &ancillary)
        } else {
            Err(Unsent::Failed(Errno::EFAULT))
        };
        if let Some(bytes) = gathered {
            cx.machine.memory.spare_blocks.give_back(bytes);
        }
        match sent {
            Ok(count) => {
                done = done.saturating_add(count as u64);
                buffers.advance(count as u64);
                ancillary.files.clear();
                if kind != SocketKind::Stream {
                    break;
                }
                if let Some(state) = pause(cx, &FileKind::Socket(id), state, (done, buffers.left()))
                {
                    return Ok(Done::Again(state));
                }
            }
            Err(Unsent::NoRoom(source)) => {
                let on = Vector::unit(source);
                if let Some(wait) = timed_wait(cx, on, waiting, (timeout_ns, done), state) {
                    return Ok(Done::Wait(wait));
                }
                if done == 0 {
                    return Err(Errno::EAGAIN);
                }
                break;
            }
            Err(Unsent::Failed(_)) if done > 0 => break,
            Err(Unsent::Failed(error)) => {
                let signals = kind == SocketKind::Stream && flags & MSG_NOSIGNAL == 0;
                if error == Errno::EPIPE && signals {
                    crate::signal::send_to_self(cx, crate::signal::signo::SIGPIPE);
                }
                return Err(error);
            }
        }
    }
    Ok(Done::Moved(Moved::bytes(done)))
}

/// Refuses nothing at all to be sent by a stream that is not connected.
fn check_open(cx: &Cx<'_>, id: ObjectId) -> Result<(), Errno> {
    if cx.kernel.objects.sockets.get(id)?.is_connected() {
        Ok(())
    } else {
        Err(Errno::ENOTCONN)
    }
}

/// Sends bytes that are not in user memory to whom the socket is connected to.
///
/// # Errors
/// As [`queue::send`].
pub fn send_bytes(cx: &mut Cx<'_>, id: ObjectId, bytes: &[u8]) -> Result<usize, Unsent> {
    let ancillary = control::plain(cx)?;
    send_once(cx, (id, Receiver::Peer), bytes.into(), &ancillary)
}

fn outcome(done: Result<Done, Errno>) -> Outcome {
    match done {
        Ok(Done::Moved(moved)) => Outcome::Done(Ok(moved.count)),
        Ok(Done::Again(state)) => Outcome::Again(state),
        Ok(Done::Wait(wait)) => Outcome::Wait(wait),
        Err(error) => Outcome::Done(Err(error)),
    }
}

/// Receives bytes alone, and where they came from: descriptions are closed.
fn receive_bytes(
    cx: &mut Cx<'_>,
    id: ObjectId,
    buffers: Buffers,
    (flags, waiting): (u32, Waiting),
    state: &CallState,
) -> Result<Done, Errno> {
    let mut done = receive(cx, id, buffers, (flags, waiting), state)?;
    if let Done::Moved(moved) = &mut done {
        let files = core::mem::take(&mut moved.files);
        give_up(cx, flags, files);
    }
    Ok(done)
}

/// read(2) of a socket.
pub fn read(
    cx: &mut Cx<'_>,
    id: ObjectId,
    buffers: Buffers,
    waiting: Waiting,
    state: &CallState,
) -> Outcome {
    outcome(receive_bytes(cx, id, buffers, (0, waiting), state))
}

/// write(2) to a socket.
pub fn write(
    cx: &mut Cx<'_>,
    id: ObjectId,
    buffers: Buffers,
    waiting: Waiting,
    state: &CallState,
) -> Outcome {
    let sent = Outgoing::plain(cx)
        .and_then(|outgoing| send(cx, id, buffers, outgoing, (0, waiting), state));
    outcome(sent)
}

/// The receiver that a call names. A connection has one, and takes no other.
fn receiver(
    cx: &mut Cx<'_>,
    call: &'static str,
    id: ObjectId,
    (name, len): (Gva, i32),
) -> Result<Receiver, Errno> {
    if name.0 == 0 || len == 0 {
        let socket = cx.kernel.objects.sockets.get(id)?;
        if socket.kind == SocketKind::Datagram {
            unix::autobind_if_asked(cx, id)?;
        }
        return Ok(Receiver::Peer);
    }
    let bytes = address::read(cx, name, len)?;
    let socket = cx.kernel.objects.sockets.get(id)?;
    match socket.kind {
        // TCP does not look at it.
        SocketKind::Stream if socket.family != Family::Unix => Ok(Receiver::Peer),
        SocketKind::Datagram if socket.family == Family::Netlink => {
            address::netlink(&bytes).map(Receiver::Netlink)
        }
        SocketKind::Datagram if socket.transport() == Some(Transport::Udp) => {
            // Without an address it goes to whom the socket is connected to (udpv6_sendmsg).
            if socket.family == Family::Inet6 && address::family(&bytes) == Some(AF_UNSPEC) {
                return Ok(Receiver::Peer);
            }
            let family = match address::family(&bytes) {
                Some(AF_INET) => Family::Inet,
                _ => socket.family,
            };
            address::inet(&bytes, family).map(Receiver::Inet)
        }
        SocketKind::Stream if socket.is_connected() => Err(Errno::EISCONN),
        SocketKind::Stream => Err(Errno::EOPNOTSUPP),
        SocketKind::Datagram => {
            let to = address::unix(&bytes)?;
            unix::autobind_if_asked(cx, id)?;
            unix::find(cx, call, id, &to).map(Receiver::Socket)
        }
        SocketKind::SeqPacket => Ok(Receiver::Peer),
    }
}

/// sendto(2)
pub fn sys_sendto(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(buf), Len(len), Flags(flags), Ptr(name), Int(name_len)) = args.decode();
    let mut sent = || -> Result<Done, Errno> {
        let buffers = Buffers::one(buf, len)?;
        let (id, file) = socket_of(cx, "sendto", fd)?;
        let outgoing = Outgoing {
            to: receiver(cx, "sendto", id, (name, name_len))?,
            ..Outgoing::plain(cx)?
        };
        let how = (flags, waiting_of(&file, flags));
        send(cx, id, buffers, outgoing, how, state)
    };
    outcome(sent())
}

/// The name of a sender as recvmsg(2) gives it: nothing of one without.
fn sender_name(moved: &Moved) -> Vec<u8> {
    let from = moved.from.as_ref();
    from.map(|from| address::bytes_of(Some(from), Family::Unix))
        .unwrap_or_default()
}

/// recvfrom(2)
pub fn sys_recvfrom(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(buf), Len(len), Flags(flags), Ptr(name), Ptr(name_len)) = args.decode();
    let mut received = || -> Result<Done, Errno> {
        let buffers = Buffers::one(buf, len)?;
        let (id, file) = socket_of(cx, "recvfrom", fd)?;
        let how = (flags, waiting_of(&file, flags));
        let done = receive_bytes(cx, id, buffers, how, state)?;
        if let Done::Moved(moved) = &done
            && name.0 != 0
        {
            address::write(cx, name, name_len, &sender_name(moved))?;
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
    /// Size of struct sockaddr_storage: no name is longer.
    const NAME_MAX: i32 = 128;
    let (id, file) = socket_of(cx, call, fd)?;
    let header = Header::read(cx, gva)?;
    let buffers = header.buffers(cx)?;
    if state.progress > 0 {
        // Who receives, and what comes along, went with the first bytes of the stream; they may be gone by now.
        let how = (flags, waiting_of(&file, flags));
        let outgoing = Outgoing::plain(cx)?;
        return send(cx, id, buffers, outgoing, how, state);
    }
    let name_len = header.name_len.cast_signed().min(NAME_MAX);
    if header.name.0 != 0 && name_len < 0 {
        return Err(Errno::EINVAL);
    }
    let outgoing = Outgoing {
        ancillary: control::read(cx, id, header.control, header.control_len)?,
        to: receiver(cx, call, id, (header.name, name_len))?,
    };
    let how = (flags, waiting_of(&file, flags));
    send(cx, id, buffers, outgoing, how, state)
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
    let Done::Moved(mut moved) = done else {
        return Ok(done);
    };
    let files = core::mem::take(&mut moved.files);
    let told = tell(cx, (id, &header), &moved, (flags, &files));
    give_up(cx, flags, files);
    told?;
    Ok(Done::Moved(moved))
}

/// Gives the guest what came with a message: descriptions, credentials, the name of its sender.
fn tell(
    cx: &mut Cx<'_>,
    (id, header): (ObjectId, &Header),
    moved: &Moved,
    (flags, files): (u32, &[FileId]),
) -> Result<(), Errno> {
    let mut room = Room::new(header.control, header.control_len);
    let socket = cx.kernel.objects.sockets.get(id)?;
    let (family, options) = (socket.family, &socket.options);
    if options.passes_credentials() && family == Family::Unix {
        let Credentials { pid, uid, gid } = moved.credentials.unwrap_or(Credentials::UNKNOWN);
        let data = [pid, uid, gid];
        room.put(cx, SOL_SOCKET, SCM_CREDENTIALS, data.as_bytes())?;
    }
    if let Some(ip) = moved.ip {
        ip_options::put_header(cx, id, &mut room, ip)?;
    }
    room.put_files(cx, files, flags)?;
    let at = |offset: u64| Gva(header.gva.0.saturating_add(offset));
    let shown = moved.flags | room.flags | (flags & MSG_CMSG_CLOEXEC);
    cx.write_struct(at(FLAGS_AT), &shown)?;
    cx.write_struct(at(CONTROL_LEN_AT), &room.used_bytes())?;
    if header.name.0 != 0 {
        address::write(cx, header.name, at(NAME_LEN_AT), &sender_name(moved))?;
    }
    Ok(())
}

/// sendmsg(2)
pub fn sys_sendmsg(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(header), Flags(flags)) = args.decode();
    let sent = send_message(cx, "sendmsg", (fd, header), flags, state);
    outcome(sent.or_else(|error| match state.progress {
        // What has been sent counts, even if the rest cannot be found any more.
        0 => Err(error),
        count => Ok(Done::Moved(Moved::bytes(count))),
    }))
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
        let done = match one(cx, call, (fd, header), flags, state) {
            // What has been moved counts, even if the rest cannot be found any more.
            Err(_) if state.progress > 0 => Ok(Done::Moved(Moved::bytes(state.progress))),
            done => done,
        };
        match done {
            Ok(Done::Moved(one)) => {
                let len = u32::try_from(one.count).unwrap_or(u32::MAX);
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
