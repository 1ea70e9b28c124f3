//! Sockets as values: what they are bound to, whom they are connected to, what is queued on them.
//!
//! A socket is a number in [`Sockets`]. One that a description refers to dies with it. A connection that nobody has
//! accepted has no description yet: it belongs to its listener.

pub mod client;
mod dead;
pub mod header;
pub mod host_names;
pub mod inet;
pub mod listen;
pub mod netlink;
pub mod outside;
pub mod pieces;
mod ports;
pub mod queue;
pub mod rights;
mod routes;
pub mod unix;

use std::net::SocketAddr;
use std::sync::Arc;

use bitflags::bitflags;
use imbl::{OrdMap, OrdSet, Vector};
use kvmlet_abi::Errno;
use kvmlet_abi::linux::capability::{CAP_SETGID, CAP_SETUID};
use kvmlet_abi::linux::socket::{AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, SO_PASSCRED};
use kvmlet_mem::GuestMemory;

use crate::creds::Quad;
use crate::cx::Cx;
use crate::id::{InodeId, ObjectId};
use crate::kernel::Kernel;
use crate::outcome::Source;
use crate::vector;
use crate::vfs::ready::{
    POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDHUP, POLLRDNORM, POLLWRBAND, POLLWRNORM,
};
pub use dead::drop_piece;
use host_names::HostNames;
use queue::Queue;

/// SO_SNDBUF and SO_RCVBUF of a new socket and the most that can be asked for, in bytes
/// (/proc/sys/net/core/wmem_default, wmem_max and so on).
pub const BUFFER_BYTES: u32 = 212_992;
/// Smallest SO_SNDBUF (SOCK_MIN_SNDBUF).
const SNDBUF_MIN: u32 = 4608;
/// Smallest SO_RCVBUF (SOCK_MIN_RCVBUF).
const RCVBUF_MIN: u32 = 2304;
/// Longest queue of connections that are not accepted (/proc/sys/net/core/somaxconn).
const BACKLOG_MAX: u32 = 4096;
/// Datagrams that wait for one receiver beyond one (/proc/sys/net/unix/max_dgram_qlen).
const DATAGRAMS_MAX: u32 = 10;
/// Host memory charged to the program for a socket: more than one takes with its options and an empty queue.
const SOCKET_COST_BYTES: u64 = 4096;

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Family {
    /// AF_UNIX
    Unix,
    /// AF_INET
    Inet,
    /// AF_INET6
    Inet6,
    /// AF_NETLINK
    Netlink,
}

impl Family {
    /// Its number.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::Unix => AF_UNIX,
            Self::Inet => AF_INET,
            Self::Inet6 => AF_INET6,
            Self::Netlink => AF_NETLINK,
        }
    }
}

/// The traffic that a socket carries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SocketKind {
    /// SOCK_STREAM
    Stream,
    /// SOCK_DGRAM
    Datagram,
    /// SOCK_SEQPACKET
    SeqPacket,
}

impl SocketKind {
    /// SO_TYPE
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Stream => 1,
            Self::Datagram => 2,
            Self::SeqPacket => 5,
        }
    }

    /// True if the end of one side is the end of the other.
    #[must_use]
    pub fn is_connection(self) -> bool {
        self != Self::Datagram
    }
}

bitflags! {
    /// Directions that are shut down.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Shut: u32 {
        /// RCV_SHUTDOWN
        const RECEIVE = 1;
        /// SEND_SHUTDOWN
        const SEND = 2;
    }
}

/// The name of a socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Name {
    /// sun_path: a path with its NUL, or an abstract name, which begins with one.
    Unix(Arc<[u8]>),
    /// An address and a port.
    Inet(SocketAddr),
    /// A port of netlink.
    Netlink(u32),
}

/// A process and its user, as SO_PEERCRED and SCM_CREDENTIALS show them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Credentials {
    /// Process id.
    pub pid: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Credentials {
    /// Nobody's, as SO_PEERCRED shows them.
    pub const NONE: Self = Self {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    /// Those of a message that was sent without (the overflow ids).
    pub const UNKNOWN: Self = Self {
        pid: 0,
        uid: 65_534,
        gid: 65_534,
    };

    /// Those of a socket that the calling thread connects or listens with: the effective ids (cred_to_ucred in
    /// net/core/sock.c).
    ///
    /// # Errors
    /// `ESRCH` if it is gone.
    pub fn of_peer(cx: &mut Cx<'_>) -> Result<Self, Errno> {
        let creds = cx.creds();
        Ok(Self {
            pid: cx.process()?.pid.0.cast_unsigned(),
            uid: creds.user.effective,
            gid: creds.group.effective,
        })
    }

    /// Those of a message that the calling thread sends: the real ids (scm_send in include/net/scm.h).
    ///
    /// # Errors
    /// `ESRCH` if it is gone.
    pub fn of_sender(cx: &mut Cx<'_>) -> Result<Self, Errno> {
        let creds = cx.creds();
        Ok(Self {
            uid: creds.user.real,
            gid: creds.group.real,
            ..Self::of_peer(cx)?
        })
    }

    /// True if a thread may send a message in this one's name: its own process, any of its ids (scm_check_creds in
    /// net/core/scm.c). Linux differs: another process takes CAP_SYS_ADMIN, which nobody has inside.
    ///
    /// # Errors
    /// `ESRCH` if it is gone.
    pub fn may_be_sent(self, cx: &mut Cx<'_>) -> Result<bool, Errno> {
        let creds = cx.creds();
        let is_one_of = |id: u32, ids: Quad| [ids.real, ids.effective, ids.saved].contains(&id);
        let is_own = self.pid == cx.process()?.pid.0.cast_unsigned();
        Ok(is_own
            && (is_one_of(self.uid, creds.user) || creds.has(CAP_SETUID))
            && (is_one_of(self.gid, creds.group) || creds.has(CAP_SETGID)))
    }
}

/// The other side of a socket.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Link {
    /// There is none.
    None,
    /// Connections come in.
    Listening(Listener),
    /// It waits until this listener has room for it.
    Connecting(ObjectId),
    /// Connected.
    Open(ObjectId),
    /// The other side has been closed; a datagram socket finds out when it sends.
    Closed,
}

/// Connections that come in.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Listener {
    /// As many as may wait, and one more.
    backlog: u32,
    /// Those that nobody has accepted, oldest first: our sides of them.
    pending: Vector<ObjectId>,
    /// Sockets that wait for room.
    waiting: Vector<ObjectId>,
}

impl Listener {
    fn is_full(&self) -> bool {
        self.pending.len() > self.backlog as usize
    }
}

/// Settings that setsockopt(2) changes and that change nothing else are kept by number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// SO_SNDBUF as getsockopt(2) shows it.
    pub sndbuf: u32,
    /// SO_RCVBUF as getsockopt(2) shows it.
    pub rcvbuf: u32,
    /// SO_RCVTIMEO in nanoseconds; `None` waits for ever.
    pub receive_timeout_ns: Option<u64>,
    /// SO_SNDTIMEO in nanoseconds; `None` waits for ever.
    pub send_timeout_ns: Option<u64>,
    /// Others that are not 0, by level and number.
    pub flags: OrdMap<(i32, i32), i32>,
    /// SO_LINGER: l_onoff and l_linger.
    pub linger: [i32; 2],
}

impl Options {
    /// The value of one that is kept by number.
    #[must_use]
    pub fn flag(&self, level: i32, option: i32) -> i32 {
        self.flags.get(&(level, option)).copied().unwrap_or(0)
    }

    /// Keeps the value of one by number.
    pub fn set_flag(&mut self, level: i32, option: i32, value: i32) {
        if value == 0 {
            self.flags.remove(&(level, option));
        } else {
            self.flags.insert((level, option), value);
        }
    }

    /// SO_PASSCRED: the sender's credentials come with what is received.
    #[must_use]
    pub fn passes_credentials(&self) -> bool {
        self.flag(kvmlet_abi::linux::socket::SOL_SOCKET, SO_PASSCRED) != 0
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sndbuf: BUFFER_BYTES,
            rcvbuf: BUFFER_BYTES,
            receive_timeout_ns: None,
            send_timeout_ns: None,
            flags: OrdMap::new(),
            linger: [0; 2],
        }
    }
}

/// One socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Socket {
    /// Its address family.
    pub family: Family,
    /// The traffic that it carries.
    pub kind: SocketKind,
    /// SO_PEERCRED
    pub peer_credentials: Credentials,
    /// Who called listen(2), for those that connect.
    credentials: Credentials,
    /// Settings.
    pub options: Options,
    /// Permission bits, which nobody looks at (fchmod(2)).
    pub mode: u32,
    /// The name that it is bound to.
    pub name: Option<Name>,
    /// The name of the peer: with AF_UNIX once it has been closed, otherwise always.
    peer_name: Option<Name>,
    /// True as long as nobody has accepted it.
    is_pending: bool,
    /// True if its port was chosen for it.
    is_autobound: bool,
    /// True if it was bound to one address.
    keeps_address: bool,
    /// True from an attempt to connect until the program has been told how it ended.
    is_connecting: bool,
    /// True if the other side has said that it sends no more.
    is_done: bool,
    /// The inode that its name leads to; it holds a reference.
    inode: Option<InodeId>,
    /// The file of the host that has its name.
    host_name: Option<host_names::Place>,
    link: Link,
    /// Datagram sockets that are connected to this one.
    connected: OrdSet<ObjectId>,
    queue: Queue,
    /// Weight of what was sent and is not yet received.
    sent: u64,
    shut: Shut,
    /// SO_ERROR
    error: Option<Errno>,
}

impl Socket {
    fn new(family: Family, kind: SocketKind) -> Self {
        let is_ip = matches!(family, Family::Inet | Family::Inet6);
        let options = match kind {
            SocketKind::Stream if is_ip => Options {
                sndbuf: inet::TCP_SNDBUF,
                rcvbuf: inet::TCP_RCVBUF,
                ..Options::default()
            },
            _ => Options::default(),
        };
        Self {
            family,
            kind,
            peer_credentials: Credentials::NONE,
            credentials: Credentials::NONE,
            options,
            mode: 0o777,
            name: None,
            peer_name: None,
            is_pending: false,
            is_autobound: false,
            keeps_address: false,
            is_connecting: false,
            is_done: false,
            inode: None,
            host_name: None,
            link: Link::None,
            connected: OrdSet::new(),
            queue: Queue::default(),
            sent: 0,
            shut: Shut::empty(),
            error: None,
        }
    }

    /// unix_writable()
    #[must_use]
    pub fn is_writable(&self) -> bool {
        if self.is_tcp() {
            return self.has_tcp_room();
        }
        !self.is_listening() && self.sent.saturating_mul(4) <= u64::from(self.options.sndbuf)
    }

    /// SO_ACCEPTCONN
    #[must_use]
    pub fn is_listening(&self) -> bool {
        matches!(self.link, Link::Listening(_))
    }

    /// True if it is, or has been, connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        match self.link {
            Link::Open(_) => true,
            // A connection keeps its peer's name after the peer has closed.
            Link::Closed => true,
            // Of UDP the address is all.
            Link::None => self.kind == SocketKind::Datagram && self.peer_name.is_some(),
            Link::Listening(_) | Link::Connecting(_) => false,
        }
    }

    /// True for a datagram socket whose queue takes no more from those that it is not connected to itself.
    fn is_crowded(&self) -> bool {
        self.family == Family::Unix
            && self.kind == SocketKind::Datagram
            && self.queue.len() > DATAGRAMS_MAX as usize
    }

    /// SO_ERROR, which asking clears.
    pub fn take_error(&mut self) -> Option<Errno> {
        self.error.take()
    }

    /// Bytes that FIONREAD tells: all of a stream, the first datagram.
    ///
    /// # Errors
    /// `EINVAL` for a listening socket.
    pub fn readable_bytes(&self) -> Result<usize, Errno> {
        if self.is_listening() {
            return Err(Errno::EINVAL);
        }
        Ok(if self.kind == SocketKind::Datagram {
            self.queue.first_len()
        } else {
            self.queue.readable_bytes()
        })
    }

    /// The number that TIOCOUTQ tells: the weight of what was sent and is not yet received.
    #[must_use]
    pub fn unsent_bytes(&self) -> u64 {
        self.sent
    }

    /// SO_SNDBUF: Linux doubles it.
    pub fn set_sndbuf(&mut self, wanted: u32) {
        self.options.sndbuf = (wanted.min(BUFFER_BYTES).saturating_mul(2)).max(SNDBUF_MIN);
    }

    /// SO_RCVBUF: Linux doubles it.
    pub fn set_rcvbuf(&mut self, wanted: u32) {
        self.options.rcvbuf = (wanted.min(BUFFER_BYTES).saturating_mul(2)).max(RCVBUF_MIN);
    }
}

/// All sockets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sockets {
    sockets: OrdMap<ObjectId, Arc<Socket>>,
    /// Sockets that are bound to an inode of the memory file system.
    by_inode: OrdMap<InodeId, ObjectId>,
    /// Names in host trees.
    pub host_names: HostNames,
    /// Abstract names: each kind of socket has its own.
    abstract_names: OrdMap<(SocketKind, Arc<[u8]>), ObjectId>,
    /// Ports of TCP and UDP.
    ports: ports::Ports,
    /// The number that the next name by itself is made of (autobind in unix(7)).
    next_autobind: u32,
    /// Descriptions in messages.
    in_flight: rights::InFlight,
    /// Messages to be dropped.
    dead: dead::Dead,
    /// Clients that are the host: no description refers to them.
    clients: OrdSet<ObjectId>,
    /// Sockets that lead out of the sandbox ([`outside`]).
    ends: OrdSet<ObjectId>,
    /// Those that take datagrams for a socket of the host, and the number of the rule that names it.
    datagram_ends: OrdMap<ObjectId, usize>,
    /// Those for which something is to be done.
    due: OrdSet<ObjectId>,
}

impl Sockets {
    /// A socket.
    ///
    /// # Errors
    /// `EBADF` if it is gone (never while a description refers to it).
    pub fn get(&self, id: ObjectId) -> Result<&Socket, Errno> {
        self.sockets.get(&id).map(Arc::as_ref).ok_or(Errno::EBADF)
    }

    /// All sockets, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (ObjectId, &Socket)> {
        self.sockets
            .iter()
            .map(|(id, socket)| (*id, socket.as_ref()))
    }

    /// A socket, to be changed.
    ///
    /// # Errors
    /// As [`Sockets::get`].
    pub fn get_mut(&mut self, id: ObjectId) -> Result<&mut Socket, Errno> {
        self.sockets
            .get_mut(&id)
            .map(Arc::make_mut)
            .ok_or(Errno::EBADF)
    }

    /// The name of the other side.
    ///
    /// # Errors
    /// `ENOTCONN` without one.
    pub fn peer_name(&self, id: ObjectId) -> Result<Option<Name>, Errno> {
        let socket = self.get(id)?;
        if !socket.is_connected() {
            return Err(Errno::ENOTCONN);
        }
        match socket.link {
            Link::Open(peer) if socket.family == Family::Unix => Ok(self.get(peer)?.name.clone()),
            _ => Ok(socket.peer_name.clone()),
        }
    }

    /// poll(2) events that hold (unix_poll, unix_dgram_poll).
    #[must_use]
    pub fn poll(&self, id: ObjectId) -> i16 {
        let Ok(socket) = self.get(id) else {
            return POLLERR;
        };
        if socket.is_tcp() {
            return tcp_state(socket);
        }
        let mut state = 0;
        if socket.error.is_some() {
            state |= POLLERR;
        }
        if socket.shut.is_all() {
            state |= POLLHUP;
        }
        if socket.shut.contains(Shut::RECEIVE) {
            state |= POLLRDHUP | POLLIN | POLLRDNORM;
        }
        let waits = match &socket.link {
            Link::Listening(listener) => !listener.pending.is_empty(),
            _ => !socket.queue.is_empty(),
        };
        if waits {
            state |= POLLIN | POLLRDNORM;
        }
        if socket.kind.is_connection() && socket.link == Link::None {
            state |= POLLHUP;
        }
        if socket.is_writable() && !self.is_held_up(id, socket) {
            state |= POLLOUT | POLLWRNORM | POLLWRBAND;
        }
        state
    }

    /// True if the receiver that a datagram socket is connected to takes no more from it.
    fn is_held_up(&self, id: ObjectId, socket: &Socket) -> bool {
        let Link::Open(to) = socket.link else {
            return false;
        };
        socket.kind == SocketKind::Datagram
            && to != id
            && self
                .get(to)
                .is_ok_and(|peer| peer.link != Link::Open(id) && peer.is_crowded())
    }

    /// Messages in all queues have this many descriptions, those that are to be dropped left out.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight.total().saturating_sub(self.dead.files())
    }

    /// Connections whose client is the host.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// True if a socket listens on a TCP port.
    #[must_use]
    pub fn is_listening_at(&self, port: u16) -> bool {
        self.ports.listening_at(port).next().is_some()
    }

    /// The TCP sockets that listen, by their ports.
    pub fn listening(&self) -> impl Iterator<Item = (u16, ObjectId)> {
        self.ports.listening()
    }

    /// The streams of AF_UNIX that listen.
    pub fn listening_streams(&self) -> impl Iterator<Item = ObjectId> {
        let named = self.by_inode.values().chain(self.abstract_names.values());
        let named = named.copied().chain(self.host_names.sockets());
        named.filter(|id| {
            let socket = self.get(*id);
            socket.is_ok_and(|socket| {
                socket.kind == SocketKind::Stream && matches!(socket.link, Link::Listening(_))
            })
        })
    }

    /// True if something is to be dropped or looked for before any thread runs ([`drop_piece`]).
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.dead.is_empty() || self.in_flight.is_due() || self.has_due()
    }
}

/// The events that hold of a TCP socket (tcp_poll).
fn tcp_state(socket: &Socket) -> i16 {
    if let Link::Listening(listener) = &socket.link {
        let waits = !listener.pending.is_empty();
        return if waits { POLLIN | POLLRDNORM } else { 0 };
    }
    let mut state = 0;
    if socket.error.is_some() {
        state |= POLLERR;
    }
    if socket.shut.is_all() || socket.link == Link::None {
        state |= POLLHUP;
    }
    if socket.shut.contains(Shut::RECEIVE) {
        state |= POLLRDHUP;
    }
    if socket.shut.contains(Shut::RECEIVE) || !socket.queue.is_empty() {
        state |= POLLIN | POLLRDNORM;
    }
    let is_connecting = matches!(socket.link, Link::Connecting(_));
    if !is_connecting && (socket.shut.contains(Shut::SEND) || socket.has_tcp_room()) {
        state |= POLLOUT | POLLWRNORM;
    }
    state
}

/// The events that a sender's wait queue is woken with (unix_write_space).
pub const SPACE: i16 = POLLOUT | POLLWRNORM | POLLWRBAND;

/// Adds a socket, charged to the program.
///
/// # Errors
/// `ENOMEM` at the memory limit.
pub fn create(
    kernel: &mut Kernel,
    memory: &mut GuestMemory,
    family: Family,
    kind: SocketKind,
) -> Result<ObjectId, Errno> {
    memory
        .charge_kernel(SOCKET_COST_BYTES)
        .map_err(|_| Errno::ENOMEM)?;
    let id = kernel.objects.next_id();
    let socket = Socket::new(family, kind);
    let sockets = &mut kernel.objects.sockets.sockets;
    sockets.insert(id, Arc::new(socket));
    Ok(id)
}

/// Connects two new sockets with each other (socketpair(2)).
///
/// # Errors
/// As [`Sockets::get`].
pub fn pair(kernel: &mut Kernel, ids: [ObjectId; 2], creator: Credentials) -> Result<(), Errno> {
    let [a, b] = ids;
    for (id, peer) in [(a, b), (b, a)] {
        let socket = kernel.objects.sockets.get_mut(id)?;
        socket.link = Link::Open(peer);
        socket.credentials = creator;
        socket.peer_credentials = creator;
        if socket.kind == SocketKind::Datagram {
            socket.connected.insert(peer);
        }
    }
    Ok(())
}

/// shutdown(2)
///
/// # Errors
/// As [`Sockets::get`].
pub fn shut_down(kernel: &mut Kernel, id: ObjectId, how: Shut) -> Result<(), Errno> {
    let socket = kernel.objects.sockets.get_mut(id)?;
    socket.shut |= how;
    let is_connection = socket.kind.is_connection();
    if let Link::Open(to) = socket.link
        && is_connection
    {
        let mut theirs = Shut::empty();
        theirs.set(Shut::SEND, how.contains(Shut::RECEIVE));
        theirs.set(Shut::RECEIVE, how.contains(Shut::SEND));
        kernel.objects.sockets.get_mut(to)?.shut |= theirs;
        kernel.wake(Source::Object(to), 0);
    }
    kernel.wake(Source::Object(id), 0);
    Ok(())
}

/// Removes a socket whose description is gone, the connections that nobody has accepted from it, and what is queued
/// on both. A description in a message goes with its last reference, once [`drop_piece`] comes to it.
pub fn released(cx: &mut Cx<'_>, id: ObjectId) {
    cx.kernel.hold_wakes();
    remove(cx, id);
    cx.kernel.release_wakes();
}

/// Takes a socket out of all that knows it.
fn remove(cx: &mut Cx<'_>, id: ObjectId) {
    let Some(socket) = cx.kernel.objects.sockets.sockets.remove(&id) else {
        return;
    };
    let mut socket = Arc::unwrap_or_clone(socket);
    cx.machine.memory.uncharge_kernel(SOCKET_COST_BYTES);
    forget_name(cx, id, &socket);
    let is_unread = !socket.queue.is_empty() || socket.ends_by_reset();
    let queue = core::mem::take(&mut socket.queue);
    cx.kernel.objects.sockets.dead.add(queue);
    match core::mem::replace(&mut socket.link, Link::None) {
        Link::Open(to) => disconnect(cx, (id, &socket), to, is_unread),
        Link::Listening(listener) => {
            inet::end_listener(cx, listener);
            // Those that wait for room on it.
            cx.kernel.wake(Source::Object(id), 0);
        }
        Link::Connecting(listener) => {
            if let Ok(found) = cx.kernel.objects.sockets.get_mut(listener)
                && let Link::Listening(listening) = &mut found.link
            {
                vector::retain(&mut listening.waiting, |waiting| *waiting != id);
            }
            cx.kernel.objects.sockets.note_change(listener);
        }
        Link::None | Link::Closed => {}
    }
    for other in &socket.connected {
        if let Ok(sender) = cx.kernel.objects.sockets.get_mut(*other)
            && sender.link == Link::Open(id)
        {
            sender.link = Link::Closed;
            sender.peer_name.clone_from(&socket.name);
            cx.kernel.wake(Source::Object(*other), SPACE);
        }
    }
    // Those that wait to send to it.
    cx.kernel.sched.wake_source(Source::Object(id));
}

/// A socket goes: its name leads nowhere any more.
fn forget_name(cx: &mut Cx<'_>, id: ObjectId, socket: &Socket) {
    cx.host.outside.forget(id);
    let sockets = &mut cx.kernel.objects.sockets;
    sockets.ends.remove(&id);
    sockets.datagram_ends.remove(&id);
    sockets.due.remove(&id);
    unix::forget_name(cx, id, socket);
    inet::forget_port(&mut cx.kernel.objects.sockets, id, socket);
}

/// Removes a connection that nobody will accept.
fn remove_pending(cx: &mut Cx<'_>, id: ObjectId) {
    let Some(socket) = cx.kernel.objects.sockets.sockets.remove(&id) else {
        return;
    };
    let mut socket = Arc::unwrap_or_clone(socket);
    cx.machine.memory.uncharge_kernel(SOCKET_COST_BYTES);
    forget_name(cx, id, &socket);
    let queue = core::mem::take(&mut socket.queue);
    cx.kernel.objects.sockets.dead.add(queue);
    if let Link::Open(to) = socket.link {
        disconnect(cx, (id, &socket), to, true);
    }
}

/// The socket `gone` has been removed: `to`, which it was connected to, gets to know.
fn disconnect(cx: &mut Cx<'_>, (id, gone): (ObjectId, &Socket), to: ObjectId, is_unread: bool) {
    let Ok(peer) = cx.kernel.objects.sockets.get_mut(to) else {
        return;
    };
    if !peer.kind.is_connection() {
        peer.connected.remove(&id);
        return;
    }
    peer.link = Link::Closed;
    match (gone.family, is_unread) {
        (Family::Inet | Family::Inet6, true) => peer.reset(),
        (Family::Inet | Family::Inet6, false) => peer.finish(),
        (Family::Unix | Family::Netlink, is_unread) => {
            peer.shut = Shut::all();
            if is_unread {
                peer.error = Some(Errno::ECONNRESET);
            }
            peer.peer_name.clone_from(&gone.name);
        }
    }
    cx.kernel.wake(Source::Object(to), 0);
}
