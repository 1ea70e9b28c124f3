//! Connections to and from the outside: of TCP, and streams to sockets of the host that have a path.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use kvmlet_abi::Errno;
use kvmlet_abi::linux::socket::{
    IPPROTO_TCP, SO_KEEPALIVE, SOL_SOCKET, TCP_KEEPCNT, TCP_KEEPIDLE, TCP_KEEPINTVL,
};
use kvmlet_hostnet::{Connected, HostSocket, Moved, Ready, Traffic};

use super::names::Stream;
use super::{ENDS_MAX, Reached, packets};
use crate::cx::Cx;
use crate::id::ObjectId;
use crate::net::inet::{self, Attempt};
use crate::net::queue::{self, Ancillary, STREAM_MESSAGE_MAX};
use crate::net::{
    Credentials, Family, Link, SPACE, Shut, SocketKind, create, remove, remove_pending, shut_down,
};
use crate::outcome::Source;

/// Bytes that are moved at a stretch.
pub(super) const STRETCH_BYTES: usize = 256 << 10;
/// Connections from outside that are taken at a stretch.
const ARRIVALS_MAX: usize = 16;

/// What an end leads to.
#[derive(Debug)]
pub(super) enum Far {
    /// A socket of the host, and its name for people.
    Host(HostSocket, String),
    /// Who answers for names.
    Names(Stream),
}

/// The host's side of a connection.
#[derive(Debug)]
pub struct End {
    pub(super) far: Far,
    /// It is no connection, but takes datagrams.
    pub(super) takes_datagrams: bool,
    /// The program's socket, until it is connected.
    connecting: Option<ObjectId>,
    /// The host has something to be read, as far as is known.
    pub(super) readable: bool,
    /// The host takes more, as far as is known.
    pub(super) writable: bool,
    /// The other side sends no more.
    pub(super) has_ended: bool,
    /// The other side has been told that no more is sent.
    pub(super) has_finished: bool,
    /// Bytes from outside for which there was no memory.
    pub(super) held: Vec<u8>,
    /// They are a packet, perhaps one without bytes.
    pub(super) holds_packet: bool,
}

/// What becomes of an end after a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// It waits for a change.
    Waits,
    /// There is more to do at once.
    Again,
    /// The program has closed its side, and all is done.
    Done,
    /// The connection is broken.
    Broken(Errno),
}

impl End {
    pub(super) fn new(far: Far) -> Self {
        Self {
            far,
            takes_datagrams: false,
            connecting: None,
            readable: true,
            writable: true,
            has_ended: false,
            has_finished: false,
            held: Vec::new(),
            holds_packet: false,
        }
    }

    /// True if it leads to a socket of the host.
    pub(super) fn is_host(&self) -> bool {
        matches!(self.far, Far::Host(..))
    }

    /// Its name, if it is a connection to the host.
    pub(super) fn label(&self) -> Option<String> {
        match &self.far {
            Far::Host(_, label) if !self.takes_datagrams => Some(label.clone()),
            Far::Host(..) | Far::Names(_) => None,
        }
    }

    /// True if it has bytes for the program for which there was no memory.
    pub(super) fn holds_bytes(&self) -> bool {
        !self.held.is_empty() || self.holds_packet
    }

    /// The host has told of an event.
    pub(super) fn note(&mut self, ready: Ready) {
        self.readable |= ready.readable;
        self.writable |= ready.writable;
    }
}

/// Makes an end for a connection to `to`, of the program's socket `client`.
pub(super) fn add(
    cx: &mut Cx<'_>,
    (family, kind): (Family, SocketKind),
    end: End,
) -> Result<ObjectId, Errno> {
    let id = create(cx.kernel, &mut cx.machine.memory, family, kind)?;
    if let Err(errno) = attach(cx, id, end) {
        remove(cx, id);
        return Err(errno);
    }
    cx.kernel.objects.sockets.ends.insert(id);
    Ok(id)
}

/// Gives the end `id` the host's side of its connection.
pub(super) fn attach(cx: &mut Cx<'_>, id: ObjectId, end: End) -> Result<(), Errno> {
    if cx.host.outside.ends.len() >= ENDS_MAX {
        return Err(Errno::ENOBUFS);
    }
    if let Far::Host(socket, _) = &end.far {
        let host = &mut *cx.host;
        let events = host.outside.events(&host.share);
        let added = events.and_then(|events| events.add(socket, id.0));
        added.map_err(|error| cx.host.no_socket(error))?;
    }
    cx.host.outside.ends.insert(id, end);
    Ok(())
}

/// Begins to connect the program's socket `client` to what may be reached outside.
///
/// # Errors
/// The host's; `ENOBUFS`, `ENOMEM`.
pub fn connect(cx: &mut Cx<'_>, client: ObjectId, reached: Reached) -> Result<Attempt, Errno> {
    let opened = HostSocket::connect(reached.at, &cx.host.share);
    let (socket, connected) = opened.map_err(|error| cx.host.no_socket(error))?;
    let own = cx.kernel.objects.sockets.get(client)?;
    let (family, options) = (own.family, &own.options);
    if options.flag(SOL_SOCKET, SO_KEEPALIVE) != 0 {
        // Those kept are told from ones never set by an offset.
        let seconds = |option, default: i32| {
            let set = options.flag(IPPROTO_TCP, option).saturating_add(default);
            u32::try_from(set).unwrap_or(1)
        };
        let idle = Duration::from_secs(seconds(TCP_KEEPIDLE, 7200).into());
        let interval = Duration::from_secs(seconds(TCP_KEEPINTVL, 75).into());
        socket.keep_alive(idle, interval, seconds(TCP_KEEPCNT, 9));
    }
    let mut end = End::new(Far::Host(socket, reached.label));
    end.connecting = Some(client);
    (end.readable, end.writable) = (false, false);
    let id = add(cx, (family, SocketKind::Stream), end)?;
    cx.kernel.objects.sockets.get_mut(client)?.link = Link::Connecting(id);
    if connected == Connected::NotYet {
        return Ok(Attempt::Waits);
    }
    if let Some(end) = cx.host.outside.ends.get_mut(&id) {
        end.connecting = None;
        (end.readable, end.writable) = (true, true);
    }
    join(cx, id, client)?;
    Ok(Attempt::Connected)
}

/// Connects the program's socket `client` to who answers for names.
///
/// # Errors
/// `ENOBUFS`, `ENOMEM`.
pub fn connect_names(cx: &mut Cx<'_>, client: ObjectId) -> Result<Attempt, Errno> {
    let family = cx.kernel.objects.sockets.get(client)?.family;
    let end = End::new(Far::Names(Stream::default()));
    let id = add(cx, (family, SocketKind::Stream), end)?;
    join(cx, id, client)?;
    Ok(Attempt::Connected)
}

/// Connects the program's socket `client`, a stream of AF_UNIX, to a socket of the host: the one of this number and path
/// ([`kvmlet_policy::Policy::socket_at`]). Gives the end.
///
/// # Errors
/// The host's; `ENOBUFS`, `ENOMEM`.
pub fn connect_unix(
    cx: &mut Cx<'_>,
    client: ObjectId,
    at: (usize, &[u8]),
) -> Result<ObjectId, Errno> {
    cx.host.keep_rate()?;
    let label = String::from_utf8_lossy(at.1).into_owned();
    let access = &cx.host.outside.access;
    let opened = access.connect(at, Traffic::Stream, &cx.host.share);
    let socket = opened.map_err(|error| cx.host.no_socket(error))?;
    let end = End::new(Far::Host(socket, label));
    let id = add(cx, (Family::Unix, SocketKind::Stream), end)?;
    join(cx, id, client)?;
    Ok(id)
}

/// The two are connected.
pub(super) fn join(cx: &mut Cx<'_>, id: ObjectId, client: ObjectId) -> Result<(), Errno> {
    let sockets = &mut cx.kernel.objects.sockets;
    let socket = sockets.get_mut(client)?;
    let (name, peer_name) = (socket.name.clone(), socket.peer_name.clone());
    socket.link = Link::Open(id);
    socket.grow_sndbuf();
    let end = sockets.get_mut(id)?;
    (end.name, end.peer_name) = (peer_name, name);
    end.link = Link::Open(client);
    end.grow_sndbuf();
    cx.kernel.wake(Source::Object(client), SPACE);
    cx.kernel.objects.sockets.due.insert(id);
    Ok(())
}

/// Takes connections from outside.
pub(super) fn arrivals(cx: &mut Cx<'_>) {
    let arriving: Vec<usize> = cx.host.outside.arriving.iter().copied().collect();
    for index in arriving {
        for _ in 0..ARRIVALS_MAX {
            let host = &mut *cx.host;
            let listener = host.outside.access.listeners().get(index);
            let accepted =
                listener.and_then(|(listener, port)| Some((listener.accept(&host.share)?, *port)));
            let Some((accepted, port)) = accepted else {
                cx.host.outside.arriving.remove(&index);
                break;
            };
            if let Some((socket, from)) = accepted {
                // One that fails is closed: nobody inside takes it.
                let _ = arrive(cx, socket, from, port);
            }
        }
    }
}

/// A connection from outside for the program's `port`. Where nobody listens it is reset.
fn arrive(cx: &mut Cx<'_>, socket: HostSocket, from: SocketAddr, port: u16) -> Result<(), Errno> {
    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
    let label = format!("a connection from {from}");
    let mut own: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    if from.is_ipv6() {
        own.reverse();
    }
    let sockets = &cx.kernel.objects.sockets;
    let found = own.into_iter().find_map(|ip| {
        let at = SocketAddr::new(ip, port);
        Some((at, inet::listener(sockets, (at, from))?))
    });
    let Some((at, listener)) = found else {
        socket.reset();
        return Err(Errno::ECONNREFUSED);
    };
    let family = if from.is_ipv6() {
        Family::Inet6
    } else {
        Family::Inet
    };
    let end = End::new(Far::Host(socket, label));
    let id = add(cx, (family, SocketKind::Stream), end)?;
    let sockets = &mut cx.kernel.objects.sockets;
    let end = sockets.get_mut(id)?;
    end.name = Some(end.shown(from.ip(), from.port()));
    end.peer_name = Some(end.shown(at.ip(), at.port()));
    if let Err(errno) = inet::attach(cx, id, listener) {
        cx.host.outside.ends.remove(&id);
        remove_pending(cx, id);
        return Err(errno);
    }
    Ok(())
}

/// Does a piece of what is due for an end.
pub(super) fn step(cx: &mut Cx<'_>, id: ObjectId) {
    let Some(mut end) = cx.host.outside.ends.remove(&id) else {
        // Its other half is gone.
        return packets::lose(cx, id);
    };
    match end.step(cx, id) {
        Next::Again => {
            cx.host.outside.ends.insert(id, end);
            cx.kernel.objects.sockets.note_change(id);
        }
        Next::Waits => drop(cx.host.outside.ends.insert(id, end)),
        Next::Done => remove(cx, id),
        Next::Broken(errno) => {
            let socket = cx.kernel.objects.sockets.get(id);
            let peer = socket.ok().and_then(|socket| match socket.link {
                Link::Open(peer) => Some(peer),
                _ => None,
            });
            // What has come is read before the error.
            remove_pending(cx, id);
            if let Some(peer) = peer
                && let Ok(peer) = cx.kernel.objects.sockets.get_mut(peer)
                && peer.error.is_some()
                && errno != Errno::EPIPE
            {
                peer.error = Some(errno);
            }
            if let Far::Host(socket, _) = end.far {
                socket.reset();
            }
        }
    }
}

impl End {
    fn step(&mut self, cx: &mut Cx<'_>, id: ObjectId) -> Next {
        if let Some(client) = self.connecting
            && let Some(next) = self.finish_connecting(cx, id, client)
        {
            return next;
        }
        let Ok(socket) = cx.kernel.objects.sockets.get(id) else {
            return Next::Done;
        };
        // It waits for room on a listener of the program's.
        if matches!(socket.link, Link::Connecting(_)) {
            return Next::Waits;
        }
        let (is_unix, kind) = (socket.family == Family::Unix, socket.kind);
        if let Far::Names(_) = self.far {
            return self.answer_names(cx, id);
        }
        if is_unix && self.has_ended && self.readable {
            self.readable = false;
            if self.is_closed() {
                return Next::Done;
            }
        }
        if kind != SocketKind::Stream {
            return self.step_packets(cx, id);
        }
        let mut moved = 0usize;
        if let Some(next) = self.send_out(cx, id, &mut moved) {
            return next;
        }
        if let Some(next) = self.take_in(cx, id, &mut moved) {
            return next;
        }
        match moved >= STRETCH_BYTES {
            true => Next::Again,
            false => Next::Waits,
        }
    }

    /// Looks how an attempt to connect has ended; `None` if the connection is there.
    fn finish_connecting(
        &mut self,
        cx: &mut Cx<'_>,
        id: ObjectId,
        client: ObjectId,
    ) -> Option<Next> {
        let is_waiting = |cx: &Cx<'_>| {
            let client = cx.kernel.objects.sockets.get(client);
            client.is_ok_and(|client| client.link == Link::Connecting(id))
        };
        if !is_waiting(cx) {
            // The program has given it up.
            return Some(Next::Done);
        }
        let Far::Host(socket, _) = &self.far else {
            return Some(Next::Done);
        };
        if !self.readable && !self.writable {
            return Some(Next::Waits);
        }
        match socket.connected() {
            Ok(Connected::NotYet) => {
                (self.readable, self.writable) = (false, false);
                Some(Next::Waits)
            }
            Ok(Connected::Now) => {
                self.connecting = None;
                (self.readable, self.writable) = (true, true);
                join(cx, id, client).is_err().then_some(Next::Done)
            }
            Err(errno) => {
                if let Ok(client) = cx.kernel.objects.sockets.get_mut(client) {
                    inet::fail(client, errno);
                }
                cx.kernel.wake(Source::Object(client), 0);
                Some(Next::Done)
            }
        }
    }

    /// Gives the host what the program has sent.
    fn send_out(&mut self, cx: &mut Cx<'_>, id: ObjectId, moved: &mut usize) -> Option<Next> {
        let Far::Host(far, _) = &self.far else {
            return None;
        };
        while *moved < STRETCH_BYTES {
            let socket = cx.kernel.objects.sockets.get_mut(id).ok()?;
            let arrived = match socket.arrived(STREAM_MESSAGE_MAX) {
                Err(errno) => return Some(Next::Broken(errno)),
                Ok(None) => break,
                Ok(Some(arrived)) => arrived,
            };
            if arrived.is_end {
                if !matches!(socket.link, Link::Open(_)) {
                    // The program has closed its side, and the host has all of it.
                    return Some(match socket.error {
                        Some(errno) => Next::Broken(errno),
                        None => Next::Done,
                    });
                }
                if !self.has_finished {
                    self.has_finished = true;
                    far.finish();
                }
                break;
            }
            if !self.writable {
                break;
            }
            let written = far.write(&arrived.bytes.joined());
            drop(arrived);
            match written {
                Ok(Moved::Bytes(count)) => {
                    *moved = moved.saturating_add(count);
                    // The end has no files.
                    let memory = &mut cx.machine.memory;
                    queue::consume(cx.kernel, memory, id, count).ok()?;
                }
                Ok(Moved::NotYet) => self.writable = false,
                Err(Errno::EPIPE) if socket.family == Family::Unix => {
                    // It takes no more, and may have sent something before.
                    let count = socket.queue.readable_bytes();
                    queue::consume(cx.kernel, &mut cx.machine.memory, id, count).ok()?;
                    shut_down(cx.kernel, id, Shut::RECEIVE).ok()?;
                    self.has_finished = true;
                }
                Err(errno) => return Some(Next::Broken(errno)),
            }
        }
        None
    }

    /// True if the host's side has been closed, and not only sends no more.
    pub(super) fn is_closed(&self) -> bool {
        match &self.far {
            Far::Host(far, _) => far.is_hung_up(),
            Far::Names(_) => false,
        }
    }

    /// Gives the program what the host has.
    fn take_in(&mut self, cx: &mut Cx<'_>, id: ObjectId, moved: &mut usize) -> Option<Next> {
        let Far::Host(far, _) = &self.far else {
            return None;
        };
        let mut bytes = Vec::new();
        while *moved < STRETCH_BYTES && !self.has_ended {
            let socket = cx.kernel.objects.sockets.get(id).ok()?;
            if !matches!(socket.link, Link::Open(_)) || !socket.is_writable() {
                break;
            }
            let is_unix = socket.family == Family::Unix;
            if self.held.is_empty() {
                if !self.readable {
                    break;
                }
                bytes.resize(STREAM_MESSAGE_MAX, 0);
                match far.read(&mut bytes) {
                    Ok(Moved::NotYet) => {
                        self.readable = false;
                        break;
                    }
                    Ok(Moved::Bytes(0)) => {
                        self.has_ended = true;
                        if is_unix && far.is_hung_up() {
                            return Some(Next::Done);
                        }
                        // It is connected: nothing fails.
                        let _ = match is_unix {
                            true => shut_down(cx.kernel, id, Shut::SEND),
                            false => inet::shut_down(cx, id, Shut::SEND),
                        };
                        break;
                    }
                    Ok(Moved::Bytes(count)) => {
                        self.held
                            .extend_from_slice(bytes.get(..count).unwrap_or_default());
                    }
                    Err(errno) => return Some(Next::Broken(errno)),
                }
            }
            let count = give(cx, id, &mut self.held);
            if count == 0 {
                break;
            }
            *moved = moved.saturating_add(count);
        }
        None
    }

    /// Answers questions for names that have come whole.
    fn answer_names(&mut self, cx: &mut Cx<'_>, id: ObjectId) -> Next {
        loop {
            let Ok(socket) = cx.kernel.objects.sockets.get_mut(id) else {
                return Next::Done;
            };
            let arrived = match socket.arrived(STREAM_MESSAGE_MAX) {
                Err(_) => return Next::Done,
                Ok(None) => break,
                Ok(Some(arrived)) => arrived,
            };
            if arrived.is_end {
                // What is still to be answered is not waited for.
                return Next::Done;
            }
            let count = arrived.bytes.len();
            if queue::consume(cx.kernel, &mut cx.machine.memory, id, count).is_err() {
                return Next::Done;
            }
            let Far::Names(stream) = &mut self.far else {
                return Next::Done;
            };
            if stream.take(cx, id, &arrived.bytes.joined()).is_err() {
                return Next::Done;
            }
        }
        Next::Waits
    }
}

/// Queues held bytes for the program, as many as there is room for.
fn give(cx: &mut Cx<'_>, id: ObjectId, held: &mut Vec<u8>) -> usize {
    let memory = &mut cx.machine.memory;
    let ancillary = Ancillary {
        sender: Credentials::UNKNOWN,
        ..Ancillary::default()
    };
    let sent = queue::send(
        cx.kernel,
        memory,
        (id, None),
        held.as_slice().into(),
        &ancillary,
    );
    // Without memory for it, it stays where it is until there is.
    let count = sent.unwrap_or(0).min(held.len());
    held.drain(..count);
    count
}
