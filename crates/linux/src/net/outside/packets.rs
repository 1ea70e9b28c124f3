//! Sequenced packets and datagrams to sockets of the host that have a path (unix(7)).
//!
//! Each message is given to the host as it is sent, so that the program is told what became of it. Only those for which
//! the host has no room wait here, before any that are sent later.
//!
//! A datagram socket of the program's may send to several of the host's. For each there is an end, and a socket of the
//! host with that one peer.

use kvmlet_abi::Errno;
use kvmlet_hostnet::{HostSocket, Moved, Traffic};

use super::tcp::{End, Far, Next, STRETCH_BYTES, add, attach, join};
use crate::cx::Cx;
use crate::id::ObjectId;
use crate::net::queue::{self, Ancillary, Payload, Unsent};
use crate::net::{
    BUFFER_BYTES, Credentials, Family, Link, Name, Shut, SocketKind, remove, remove_pending,
    shut_down,
};
use crate::outcome::Source;

/// Longest message that is carried, in bytes: the longest of a socket inside, whose SO_SNDBUF has the largest value
/// (unix_dgram_sendmsg in net/unix/af_unix.c).
/// Linux differs: who may raise its SO_SNDBUF beyond net.core.wmem_max can send longer ones.
const PACKET_MAX: usize = 2 * BUFFER_BYTES as usize - 32;

/// A message counts as so many bytes more, so that those without any are limited too.
const MESSAGE_COST: usize = 256;

/// Opens the host's socket of this number and path.
fn open(cx: &mut Cx<'_>, at: (usize, &[u8]), traffic: Traffic) -> Result<End, Errno> {
    cx.host.keep_rate()?;
    let label = String::from_utf8_lossy(at.1).into_owned();
    let access = &cx.host.outside.access;
    let opened: Result<HostSocket, _> = access.connect(at, traffic, &cx.host.share);
    let socket = opened.map_err(|error| cx.host.no_socket(error))?;
    Ok(End::new(Far::Host(socket, label)))
}

/// Connects the program's socket `client` of sequenced packets to a socket of the host, as
/// [`connect_unix`](super::connect_unix).
///
/// # Errors
/// The host's; `ENOBUFS`, `ENOMEM`.
pub fn connect_packets(
    cx: &mut Cx<'_>,
    client: ObjectId,
    at: (usize, &[u8]),
) -> Result<ObjectId, Errno> {
    let end = open(cx, at, Traffic::Packets)?;
    let id = add(cx, (Family::Unix, SocketKind::SeqPacket), end)?;
    make_room(cx, id)?;
    join(cx, id, client)?;
    Ok(id)
}

/// All that the host sends has room.
fn make_room(cx: &mut Cx<'_>, id: ObjectId) -> Result<(), Errno> {
    let end = cx.kernel.objects.sockets.get_mut(id)?;
    end.set_sndbuf(BUFFER_BYTES);
    Ok(())
}

/// The end that takes datagrams of `owner` for a socket of the host. A new one if there is none. `name` is the path that
/// the program knows it by.
///
/// # Errors
/// The host's; `ENOBUFS`, `ENOMEM`.
pub fn datagram_end(
    cx: &mut Cx<'_>,
    owner: ObjectId,
    at: (usize, &[u8]),
    name: Name,
) -> Result<ObjectId, Errno> {
    let sockets = &cx.kernel.objects.sockets;
    let mut known = sockets.get(owner)?.connected.iter();
    let is_there = |id: &&ObjectId| sockets.datagram_ends.get(*id) == Some(&at.0);
    if let Some(id) = known.find(is_there).copied() {
        return Ok(id);
    }
    let end = open_datagrams(cx, owner, at)?;
    let id = add(cx, (Family::Unix, SocketKind::Datagram), end)?;
    make_room(cx, id)?;
    let sockets = &mut cx.kernel.objects.sockets;
    sockets.datagram_ends.insert(id, at.0);
    sockets.get_mut(owner)?.connected.insert(id);
    let end = sockets.get_mut(id)?;
    end.name = Some(name);
    end.link = Link::Open(owner);
    Ok(id)
}

fn open_datagrams(cx: &mut Cx<'_>, owner: ObjectId, at: (usize, &[u8])) -> Result<End, Errno> {
    let traffic = match cx.kernel.objects.sockets.get(owner)?.name {
        Some(_) => Traffic::NamedDatagrams,
        None => Traffic::Datagrams,
    };
    let mut end = open(cx, at, traffic)?;
    end.takes_datagrams = true;
    Ok(end)
}

/// The host's path of a rule's number.
fn path_of(cx: &Cx<'_>, index: usize) -> Result<Vec<u8>, Errno> {
    let path = cx.host.policy.sockets().nth(index);
    path.map(<[u8]>::to_vec).ok_or(Errno::ECONNREFUSED)
}

/// Gives an end the host's side again that it has not in a fork and after a reset. There is no connection that could
/// have ended: who takes datagrams takes those of the fork.
fn revive(cx: &mut Cx<'_>, owner: ObjectId, id: ObjectId) -> Result<(), Errno> {
    let index = cx.kernel.objects.sockets.datagram_ends.get(&id).copied();
    let Some(index) = index.filter(|_| !cx.host.outside.ends.contains_key(&id)) else {
        return Ok(());
    };
    let path = path_of(cx, index)?;
    let end = open_datagrams(cx, owner, (index, &path)).map_err(|errno| match errno {
        Errno::ENOENT => Errno::ECONNREFUSED,
        other => other,
    })?;
    attach(cx, id, end)
}

/// An end that is due has no host's side. A connection has been reset then. Datagrams that had not been taken are lost.
pub(super) fn lose(cx: &mut Cx<'_>, id: ObjectId) {
    if !cx.kernel.objects.sockets.datagram_ends.contains_key(&id) {
        return drop_end(cx, id);
    }
    let has_owner = |cx: &Cx<'_>| {
        let socket = cx.kernel.objects.sockets.get(id);
        socket.is_ok_and(|socket| matches!(socket.link, Link::Open(_)))
    };
    if !has_owner(cx) {
        return drop_end(cx, id);
    }
    let memory = &mut cx.machine.memory;
    while let Ok(socket) = cx.kernel.objects.sockets.get(id)
        && !socket.queue.is_empty()
        && queue::consume(cx.kernel, memory, id, usize::MAX).is_ok()
    {}
}

/// Takes an end away, as if the other side had gone.
pub(super) fn drop_end(cx: &mut Cx<'_>, id: ObjectId) {
    let socket = cx.kernel.objects.sockets.get(id);
    match socket.is_ok_and(|socket| socket.kind == SocketKind::Datagram) {
        true => remove(cx, id),
        false => remove_pending(cx, id),
    }
}

/// Sends a message, or bytes of a stream, as [`queue::send`]. What goes to the host goes there at once.
///
/// # Errors
/// As [`queue::send`]; the host's. `ECONNREFUSED` once if the host's socket has gone.
pub fn send_packet(
    cx: &mut Cx<'_>,
    (id, to): (ObjectId, Option<ObjectId>),
    bytes: Payload<'_>,
    ancillary: &Ancillary,
) -> Result<usize, Unsent> {
    let sockets = &cx.kernel.objects.sockets;
    let socket = sockets.get(id)?;
    let peer = to.or(match socket.link {
        Link::Open(peer) => Some(peer),
        _ => None,
    });
    let is_stream = socket.kind == SocketKind::Stream;
    let end = peer.filter(|peer| !is_stream && sockets.ends.contains(peer));
    let Some(end) = end else {
        let memory = &mut cx.machine.memory;
        return queue::send(cx.kernel, memory, (id, to), bytes, ancillary);
    };
    let rule = sockets.datagram_ends.get(&end).copied();
    match send_out(cx, (id, to), end, bytes, ancillary) {
        // Who is not connected finds a server that has made its socket anew.
        Err(Unsent::Failed(Errno::ECONNREFUSED)) if to.is_some() => {
            let index = rule.ok_or(Errno::ECONNREFUSED)?;
            let path = path_of(cx, index)?;
            let name = Name::Unix([path.as_slice(), b"\0"].concat().into());
            let end = datagram_end(cx, id, (index, &path), name)?;
            send_out(cx, (id, Some(end)), end, bytes, ancillary)
        }
        sent => sent,
    }
}

/// Sends a message of the program's socket `id` to the host by `end`.
fn send_out(
    cx: &mut Cx<'_>,
    (id, to): (ObjectId, Option<ObjectId>),
    end: ObjectId,
    bytes: Payload<'_>,
    ancillary: &Ancillary,
) -> Result<usize, Unsent> {
    if let Err(errno) = revive(cx, id, end) {
        if errno == Errno::ECONNREFUSED {
            forsake(cx, id, end);
        }
        return Err(errno.into());
    }
    let memory = &mut cx.machine.memory;
    let count = queue::send(cx.kernel, memory, (id, to), bytes, ancillary)?;
    flush(cx, id, end)?;
    Ok(count)
}

/// Gives the host what waits at an end. A datagram socket whose peer has gone is connected to nothing.
///
/// # Errors
/// The host's, for the last message.
fn flush(cx: &mut Cx<'_>, id: ObjectId, end: ObjectId) -> Result<(), Errno> {
    cx.kernel.hold_wakes();
    let sent = match cx.host.outside.ends.remove(&end) {
        Some(mut far) => {
            // What the host refuses is told at once, also if it had no room a moment ago.
            far.writable = true;
            let sent = far.send_packets(cx, end);
            cx.host.outside.ends.insert(end, far);
            sent
        }
        None => Err(Errno::ECONNREFUSED),
    };
    cx.kernel.release_wakes();
    if sent == Err(Errno::ECONNREFUSED) {
        forsake(cx, id, end);
    }
    sent
}

/// The other side of an end has gone, and the program is about to be told.
fn forsake(cx: &mut Cx<'_>, id: ObjectId, end: ObjectId) {
    cx.kernel.hold_wakes();
    cx.host.outside.ends.remove(&end);
    drop_end(cx, end);
    if let Ok(socket) = cx.kernel.objects.sockets.get_mut(id)
        && socket.kind == SocketKind::Datagram
        && socket.link == Link::Closed
    {
        (socket.link, socket.peer_name) = (Link::None, None);
    }
    cx.kernel.release_wakes();
}

impl End {
    /// As [`End::step`], of packets and datagrams.
    pub(super) fn step_packets(&mut self, cx: &mut Cx<'_>, id: ObjectId) -> Next {
        match self.send_packets(cx, id) {
            Ok(()) => {}
            Err(Errno::ECONNREFUSED) => return Next::Done,
            // That message is lost.
            Err(_) => return Next::Again,
        }
        let Ok(socket) = cx.kernel.objects.sockets.get(id) else {
            return Next::Done;
        };
        if !matches!(socket.link, Link::Open(_)) {
            return match socket.queue.is_empty() {
                true => Next::Done,
                false => Next::Waits,
            };
        }
        if socket.queue.is_empty() && socket.shut.contains(Shut::RECEIVE) && !self.has_finished {
            self.has_finished = true;
            if let Far::Host(far, _) = &self.far {
                far.finish();
            }
        }
        self.take_packets(cx, id)
    }

    /// Gives the host messages that the program has sent, as long as it takes them.
    ///
    /// # Errors
    /// The host's, for the last message, which is gone then. `ECONNREFUSED` for all.
    fn send_packets(&mut self, cx: &mut Cx<'_>, id: ObjectId) -> Result<(), Errno> {
        let Far::Host(far, _) = &self.far else {
            return Ok(());
        };
        while self.writable {
            let socket = cx.kernel.objects.sockets.get_mut(id)?;
            // An error is of the program's side, and stops nothing that it has sent.
            let _ = socket.take_error();
            let Some(message) = socket.queue.first() else {
                return Ok(());
            };
            let written = far.write(message);
            if written == Ok(Moved::NotYet) {
                self.writable = false;
                return Ok(());
            }
            let kind = socket.kind;
            queue::consume(cx.kernel, &mut cx.machine.memory, id, usize::MAX)?;
            match written {
                Ok(_) => {}
                // Nobody takes those that come after it either.
                Err(Errno::ECONNREFUSED) => return Err(Errno::ECONNREFUSED),
                Err(errno @ (Errno::EPIPE | Errno::ECONNRESET)) if kind.is_connection() => {
                    // It takes no more, and may have sent something before.
                    while !cx.kernel.objects.sockets.get(id)?.queue.is_empty() {
                        queue::consume(cx.kernel, &mut cx.machine.memory, id, usize::MAX)?;
                    }
                    shut_down(cx.kernel, id, Shut::RECEIVE)?;
                    self.has_finished = true;
                    return Err(errno);
                }
                Err(errno) if cx.kernel.objects.sockets.get(id)?.queue.is_empty() => {
                    return Err(errno);
                }
                // The program has been told that it was sent: it is lost, and those after it are not.
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Gives the program messages of the host's.
    fn take_packets(&mut self, cx: &mut Cx<'_>, id: ObjectId) -> Next {
        let mut moved = 0usize;
        let mut bytes = Vec::new();
        while moved < STRETCH_BYTES && !self.has_ended {
            if !self.holds_packet {
                if !self.readable {
                    return Next::Waits;
                }
                match self.read_packet(cx, id, &mut bytes) {
                    Some(Next::Again) => {
                        moved = moved.saturating_add(MESSAGE_COST);
                        continue;
                    }
                    Some(next) => return next,
                    None => {}
                }
            }
            let ancillary = Ancillary {
                sender: Credentials::UNKNOWN,
                ..Ancillary::default()
            };
            let memory = &mut cx.machine.memory;
            match queue::send(
                cx.kernel,
                memory,
                (id, None),
                self.held.as_slice().into(),
                &ancillary,
            ) {
                // It is told once there is room, or memory.
                Err(Unsent::NoRoom(_) | Unsent::Failed(Errno::ENOMEM)) => return Next::Waits,
                // Others are not taken: the program receives no more, or from another only.
                Ok(_) | Err(Unsent::Failed(_)) => {}
            }
            let cost = self.held.len().saturating_add(MESSAGE_COST);
            moved = moved.saturating_add(cost);
            self.holds_packet = false;
            self.held.clear();
        }
        match self.has_ended {
            true => Next::Waits,
            false => Next::Again,
        }
    }

    /// Reads a message of the host's, which is held then; otherwise what is next.
    fn read_packet(&mut self, cx: &mut Cx<'_>, id: ObjectId, bytes: &mut Vec<u8>) -> Option<Next> {
        let Far::Host(far, _) = &self.far else {
            return Some(Next::Done);
        };
        let Ok(socket) = cx.kernel.objects.sockets.get(id) else {
            return Some(Next::Done);
        };
        let (Link::Open(owner), kind) = (&socket.link, socket.kind) else {
            return Some(Next::Waits);
        };
        let owner = *owner;
        if !socket.is_writable() {
            return Some(Next::Waits);
        }
        if bytes.is_empty() {
            // Pages of it that nothing is read into are never touched. One byte more tells longer messages.
            *bytes = vec![0; PACKET_MAX + 1];
        }
        match far.read(bytes) {
            Ok(Moved::NotYet) => {
                self.readable = false;
                Some(Next::Waits)
            }
            Ok(Moved::Bytes(0)) if kind.is_connection() && far.is_at_end() => {
                self.has_ended = true;
                if self.is_closed() {
                    return Some(Next::Done);
                }
                // It is connected: nothing fails.
                let _ = shut_down(cx.kernel, id, Shut::SEND);
                Some(Next::Waits)
            }
            Ok(Moved::Bytes(count)) if count > PACKET_MAX => {
                let what = format!("a message of more than {PACKET_MAX} bytes");
                cx.host.report.unsupported("recv", what);
                tell(cx, (id, owner), Errno::EMSGSIZE);
                Some(Next::Again)
            }
            Ok(Moved::Bytes(count)) => {
                self.held
                    .extend_from_slice(bytes.get(..count).unwrap_or_default());
                self.holds_packet = true;
                None
            }
            Err(errno) => {
                tell(cx, (id, owner), errno);
                Some(Next::Again)
            }
        }
    }
}

/// The program is told of an error at an end that it is connected to: once, before what has been sent.
fn tell(cx: &mut Cx<'_>, (id, owner): (ObjectId, ObjectId), errno: Errno) {
    if let Ok(socket) = cx.kernel.objects.sockets.get_mut(owner)
        && socket.link == Link::Open(id)
    {
        socket.error = Some(errno);
        cx.kernel.wake(Source::Object(owner), 0);
    }
}
