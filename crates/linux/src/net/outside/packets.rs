//! Sequenced packets and datagrams to sockets of the host that have a path (unix(7)).
//!
//! Each message is given to the host as it is sent, so that the program is told what became of it. Only those for which
//! the host has no room wait here, before any that are sent later.
//!
//! A datagram socket of the program's may send to several of the host's. For each there is an end, and a socket of the
//! host with that one peer.

use kvmlet_abi::Errno;
use kvmlet_hostnet::{HostSocket, Moved, Traffic};

use super::tcp::{End, Far, Next, STRETCH_BYTES, add, join};
use crate::cx::Cx;
use crate::id::ObjectId;
use crate::net::queue::{self, Ancillary, Unsent};
use crate::net::{
    BUFFER_BYTES, Credentials, Family, Link, Name, Shut, SocketKind, remove, remove_pending,
    shut_down,
};
use crate::outcome::Source;

/// Longest message of the host's, in bytes: no SO_SNDBUF that takes no privilege makes room for more.
const PACKET_MAX: usize = 2 * BUFFER_BYTES as usize;

/// A message counts as so many bytes more, so that those without any are limited too.
const MESSAGE_COST: usize = 256;

/// Opens the host's socket of this number and path.
fn open(cx: &mut Cx<'_>, at: (usize, &[u8]), traffic: Traffic) -> Result<End, Errno> {
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
    let of = Some((owner, at.0));
    let ends = &cx.host.outside.ends;
    if let Some((id, _)) = ends.iter().find(|(_, end)| end.datagrams_of == of) {
        return Ok(*id);
    }
    let traffic = match cx.kernel.objects.sockets.get(owner)?.name {
        Some(_) => Traffic::NamedDatagrams,
        None => Traffic::Datagrams,
    };
    let mut end = open(cx, at, traffic)?;
    end.datagrams_of = of;
    let id = add(cx, (Family::Unix, SocketKind::Datagram), end)?;
    make_room(cx, id)?;
    let sockets = &mut cx.kernel.objects.sockets;
    sockets.get_mut(owner)?.connected.insert(id);
    let end = sockets.get_mut(id)?;
    end.name = Some(name);
    end.link = Link::Open(owner);
    Ok(id)
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
    bytes: &[u8],
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
    let count = queue::send(
        cx.kernel,
        &mut cx.machine.memory,
        (id, to),
        bytes,
        ancillary,
    )?;
    let Some(end) = end else {
        return Ok(count);
    };
    let rule = cx.host.outside.ends.get(&end);
    let rule = rule.and_then(|end| end.datagrams_of.map(|(_, index)| index));
    match flush(cx, id, end) {
        Ok(()) => Ok(count),
        // Who is not connected finds a server that has made its socket anew.
        Err(Errno::ECONNREFUSED) if to.is_some() => {
            let end = open_again(cx, id, rule)?;
            let memory = &mut cx.machine.memory;
            let count = queue::send(cx.kernel, memory, (id, Some(end)), bytes, ancillary)?;
            flush(cx, id, end)?;
            Ok(count)
        }
        Err(errno) => Err(errno.into()),
    }
}

fn open_again(cx: &mut Cx<'_>, owner: ObjectId, rule: Option<usize>) -> Result<ObjectId, Errno> {
    let index = rule.ok_or(Errno::ECONNREFUSED)?;
    let path = cx.host.policy.sockets().nth(index);
    let path = path.ok_or(Errno::ECONNREFUSED)?.to_vec();
    let name = Name::Unix([path.as_slice(), b"\0"].concat().into());
    datagram_end(cx, owner, (index, &path), name)
}

/// Gives the host what waits at an end. A datagram socket whose peer has gone is connected to nothing.
fn flush(cx: &mut Cx<'_>, id: ObjectId, end: ObjectId) -> Result<(), Errno> {
    cx.kernel.hold_wakes();
    let sent = match cx.host.outside.ends.remove(&end) {
        Some(mut far) => {
            let sent = far.send_packets(cx, end);
            cx.host.outside.ends.insert(end, far);
            sent
        }
        None => Err(Errno::ECONNREFUSED),
    };
    if sent == Err(Errno::ECONNREFUSED) {
        cx.host.outside.ends.remove(&end);
        drop_end(cx, end);
        if let Ok(socket) = cx.kernel.objects.sockets.get_mut(id)
            && socket.kind == SocketKind::Datagram
            && socket.link == Link::Closed
        {
            (socket.link, socket.peer_name) = (Link::None, None);
        }
    }
    cx.kernel.release_wakes();
    sent
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
    /// The host's, for a message that is gone then.
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
                Err(errno @ (Errno::EPIPE | Errno::ECONNRESET)) if kind.is_connection() => {
                    // It takes no more, and may have sent something before.
                    while !cx.kernel.objects.sockets.get(id)?.queue.is_empty() {
                        queue::consume(cx.kernel, &mut cx.machine.memory, id, usize::MAX)?;
                    }
                    shut_down(cx.kernel, id, Shut::RECEIVE)?;
                    self.has_finished = true;
                    return Err(errno);
                }
                Err(errno) => return Err(errno),
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
            match queue::send(cx.kernel, memory, (id, None), &self.held, &ancillary) {
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
            // Pages of it that nothing is read into are never touched.
            *bytes = vec![0; PACKET_MAX];
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
            Ok(Moved::Bytes(count)) => {
                self.held
                    .extend_from_slice(bytes.get(..count).unwrap_or_default());
                self.holds_packet = true;
                None
            }
            Err(errno) => {
                // It is told once, before what has been sent.
                if let Ok(socket) = cx.kernel.objects.sockets.get_mut(owner)
                    && socket.link == Link::Open(id)
                {
                    socket.error = Some(errno);
                    cx.kernel.wake(Source::Object(owner), 0);
                }
                Some(Next::Again)
            }
        }
    }
}
