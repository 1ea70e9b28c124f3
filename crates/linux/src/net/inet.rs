//! IPv4 and IPv6 of one sandbox: TCP and UDP between its own processes, over a loopback device that is all there is.
//!
//! A connection is two sockets of the kernel value, a datagram a message in the receiver's queue. What is not for this
//! machine goes to [`outside`].
//!
//! Linux differs: ports below 1024 need no capability (as with ip_unprivileged_port_start 0). And a connection that has
//! ended leaves its port free at once: there is no TIME_WAIT.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use imbl::Vector;
use kvmlet_abi::Errno;
use kvmlet_abi::linux::socket::{
    IPPROTO_IPV6, IPV6_V6ONLY, SO_BROADCAST, SO_REUSEADDR, SO_REUSEPORT, SOL_SOCKET,
};

use super::header::IpWish;
use super::outside::{self, OWN_V4, OWN_V6, Place};
use super::{
    BACKLOG_MAX, Family, Link, Listener, Name, SPACE, Shut, Socket, SocketKind, Sockets, create,
    remove_pending,
};
use crate::cx::Cx;
use crate::id::ObjectId;
use crate::outcome::Source;
use crate::vector;
use crate::vfs::ready::{POLLIN, POLLRDNORM};

mod datagrams;

pub use datagrams::{connect_datagrams, send_datagram};

/// SO_SNDBUF of a TCP socket, and of one that is connected over the loopback device.
pub(super) const TCP_SNDBUF: u32 = 16_384;
const TCP_SNDBUF_CONNECTED: u32 = 2_626_560;
/// SO_RCVBUF of a TCP socket.
pub(super) const TCP_RCVBUF: u32 = 131_072;
/// Most bytes on their way from one TCP socket, overhead included.
const IN_FLIGHT_MAX: u64 = 512 << 10;

/// Ports that are tried one by one for a socket which asks for none, before all that are bound are looked at.
const TRIES: usize = 64;

/// A protocol over IP.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Transport {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Socket {
    /// The protocol over IP that it speaks.
    #[must_use]
    pub fn transport(&self) -> Option<Transport> {
        match (self.family, self.kind) {
            (Family::Inet | Family::Inet6, SocketKind::Stream) => Some(Transport::Tcp),
            (Family::Inet | Family::Inet6, _) => Some(Transport::Udp),
            (Family::Unix | Family::Netlink, _) => None,
        }
    }

    pub(super) fn is_tcp(&self) -> bool {
        self.transport() == Some(Transport::Tcp)
    }

    fn is_set(&self, option: i32) -> bool {
        self.options.flag(SOL_SOCKET, option) != 0
    }

    fn is_v6_only(&self) -> bool {
        self.options.flag(IPPROTO_IPV6, IPV6_V6ONLY) != 0
    }

    /// Its address and port.
    #[must_use]
    pub fn local(&self) -> Option<SocketAddr> {
        match self.name {
            Some(Name::Inet(address)) => Some(address),
            Some(Name::Unix(_) | Name::Netlink(_)) | None => None,
        }
    }

    /// The address and port that it is connected to.
    #[must_use]
    pub fn remote(&self) -> Option<SocketAddr> {
        match self.peer_name {
            Some(Name::Inet(address)) => Some(address),
            Some(Name::Unix(_) | Name::Netlink(_)) | None => None,
        }
    }

    /// The address as a socket of its family shows it.
    pub(super) fn shown(&self, address: IpAddr, port: u16) -> Name {
        let address = match self.family {
            Family::Inet6 => IpAddr::V6(mapped(address)),
            Family::Inet | Family::Unix | Family::Netlink => address,
        };
        Name::Inet(SocketAddr::new(address, port))
    }

    /// True if one of the addresses that it is bound to is this one. With `None` of those of the other family.
    fn takes(&self, address: IpAddr) -> bool {
        let Some(local) = self.local() else {
            return false;
        };
        match local.ip() {
            IpAddr::V6(six) if six.is_unspecified() => !(address.is_ipv4() && self.is_v6_only()),
            own => {
                let own = own.to_canonical();
                own == address || own.is_unspecified() && own.is_ipv4() == address.is_ipv4()
            }
        }
    }

    /// True if there is an address that both are bound to.
    fn overlaps(&self, other: &Self) -> bool {
        let (Some(own), Some(theirs)) = (self.local(), other.local()) else {
            return false;
        };
        let [own, theirs] = [own.ip().to_canonical(), theirs.ip().to_canonical()];
        match (own.is_unspecified(), theirs.is_unspecified()) {
            (_, false) => self.takes(theirs),
            (false, true) => other.takes(own),
            // One of each family share those of IPv4, unless it is not to have any.
            (true, true) => {
                let is_apart = |socket: &Self, ip: IpAddr| ip.is_ipv6() && socket.is_v6_only();
                own.is_ipv4() == theirs.is_ipv4()
                    || !is_apart(self, own) && !is_apart(other, theirs)
            }
        }
    }

    /// True if a TCP socket takes more to send.
    pub(super) fn has_tcp_room(&self) -> bool {
        let room = self.in_flight_max();
        self.sent.saturating_add(self.sent / 2) <= room
    }

    /// Most bytes on their way from a TCP socket.
    pub(super) fn in_flight_max(&self) -> u64 {
        u64::from(self.options.sndbuf).min(IN_FLIGHT_MAX)
    }

    /// The other side has sent RST (tcp_reset in net/ipv4/tcp_input.c).
    pub(super) fn reset(&mut self) {
        self.error = Some(if self.is_done {
            Errno::EPIPE
        } else {
            Errno::ECONNRESET
        });
        self.shut = Shut::all();
        self.link = Link::None;
    }

    /// The other side will send no more (tcp_fin).
    pub(super) fn finish(&mut self) {
        self.shut |= Shut::RECEIVE;
        self.is_done = true;
    }

    /// The number of its state (tcpi_state in struct tcp_info).
    #[must_use]
    pub fn tcp_state_number(&self) -> u8 {
        match self.link {
            Link::Listening(_) => 10,
            Link::Connecting(_) => 2,
            Link::None => 7,
            Link::Open(_) | Link::Closed => match (self.is_done, self.shut.contains(Shut::SEND)) {
                (false, false) => 1,
                (true, false) => 8,
                (false, true) => 5,
                (true, true) => 7,
            },
        }
    }

    /// True if its end is to be abrupt (SO_LINGER with no time).
    pub(super) fn ends_by_reset(&self) -> bool {
        self.options.linger == [1, 0]
    }
}

/// An address as IPv6 has it.
#[must_use]
pub fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(four) => four.to_ipv6_mapped(),
        IpAddr::V6(six) => six,
    }
}

/// True if two sockets may not have the same port (inet_csk_bind_conflict, udp_lib_lport_inuse).
fn conflicts(one: &Socket, other: &Socket) -> bool {
    if !one.overlaps(other) {
        return false;
    }
    let both = |option| one.is_set(option) && other.is_set(option);
    let is_listening = one.is_tcp() && other.is_listening();
    let is_shared = both(SO_REUSEADDR) && !is_listening || both(SO_REUSEPORT);
    !is_shared
}

fn is_free(sockets: &Sockets, id: ObjectId, wanted: &Socket, port: u16) -> bool {
    let Some(transport) = wanted.transport() else {
        return false;
    };
    let others = sockets.ports.at(transport, port);
    others
        .filter(|other| *other != id)
        .filter_map(|other| sockets.sockets.get(&other))
        .all(|other| !conflicts(wanted, other))
}

/// Binds a socket to an address and a port; with port 0 to one that is free.
///
/// # Errors
/// `EINVAL` for one that is bound; `EADDRNOTAVAIL` for an address of another machine; `EADDRINUSE`.
pub fn bind(cx: &mut Cx<'_>, id: ObjectId, address: SocketAddr) -> Result<(), Errno> {
    let sockets = &mut cx.kernel.objects.sockets;
    let socket = sockets.get(id)?;
    if socket.name.is_some() || socket.link != Link::None {
        return Err(Errno::EINVAL);
    }
    let ip = address.ip().to_canonical();
    if address.ip().is_ipv6() && ip.is_ipv4() && socket.is_v6_only() {
        return Err(Errno::EINVAL);
    }
    if !is_own(ip) && !ip.is_unspecified() {
        return Err(Errno::EADDRNOTAVAIL);
    }
    take_port(sockets, id, address)?;
    sockets.get_mut(id)?.keeps_address = !ip.is_unspecified();
    Ok(())
}

/// True for an address of this machine's.
fn is_own(ip: IpAddr) -> bool {
    ip.is_loopback() || ip == IpAddr::V4(OWN_V4) || ip == IpAddr::V6(OWN_V6)
}

fn take_port(sockets: &mut Sockets, id: ObjectId, address: SocketAddr) -> Result<(), Errno> {
    let mut wanted = sockets.get(id)?.clone();
    let transport = wanted.transport().ok_or(Errno::EINVAL)?;
    let mut port = address.port();
    wanted.name = Some(Name::Inet(address));
    if port == 0 {
        let mut tries = 0..TRIES;
        let found = tries.find_map(|_| {
            let next = sockets.ports.next();
            is_free(sockets, id, &wanted, next).then_some(next)
        });
        // Linux differs: it also looks at all ports that others have and that might be shared.
        let found = found.or_else(|| sockets.ports.unused(transport));
        port = found.ok_or(Errno::EADDRINUSE)?;
        wanted.is_autobound = true;
    } else if !is_free(sockets, id, &wanted, port) {
        return Err(Errno::EADDRINUSE);
    }
    let socket = sockets.get_mut(id)?;
    socket.name = Some(Name::Inet(SocketAddr::new(address.ip(), port)));
    socket.is_autobound = wanted.is_autobound;
    sockets.ports.bound.insert((transport, port, id));
    Ok(())
}

/// Gives a socket without a port one that is free.
///
/// # Errors
/// `EAGAIN` if there is none.
fn autobind(sockets: &mut Sockets, id: ObjectId) -> Result<(), Errno> {
    let socket = sockets.get(id)?;
    if socket.name.is_some() {
        return Ok(());
    }
    let any = any(socket.family);
    take_port(sockets, id, SocketAddr::new(any, 0)).map_err(|_| Errno::EAGAIN)
}

/// A socket is no longer bound.
pub(super) fn forget_port(sockets: &mut Sockets, id: ObjectId, socket: &Socket) {
    if let (Some(transport), Some(local)) = (socket.transport(), socket.local()) {
        sockets.ports.bound.remove(&(transport, local.port(), id));
        sockets.ports.listening.remove(&(local.port(), id));
    }
}

/// The address that a destination means, and the side that it is on: none is this machine.
///
/// # Errors
/// `ENETUNREACH` for one that the socket has no address for; `EACCES` for a broadcast that has not been asked for.
fn destination(cx: &Cx<'_>, id: ObjectId, to: SocketAddr) -> Result<(SocketAddr, Place), Errno> {
    let socket = cx.kernel.objects.sockets.get(id)?;
    let ip = to.ip().to_canonical();
    let is_mapped = to.ip().is_ipv6() && ip.is_ipv4();
    if is_mapped && socket.is_v6_only() {
        return Err(Errno::ENETUNREACH);
    }
    if ip == IpAddr::V4(Ipv4Addr::BROADCAST) && !socket.is_set(SO_BROADCAST) {
        return Err(Errno::EACCES);
    }
    let ip = match ip {
        IpAddr::V4(four) if four.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(six) if six.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let to = SocketAddr::new(ip, to.port());
    Ok((to, outside::place_of(cx.host, to)))
}

/// The address that a socket sends from.
///
/// # Errors
/// `EINVAL` if it is bound to one of the other family, or to a loopback address and sends elsewhere.
fn source(socket: &Socket, to: IpAddr) -> Result<IpAddr, Errno> {
    let own = socket.local().map(|local| local.ip().to_canonical());
    let usual: IpAddr = match (to, to.is_loopback()) {
        (IpAddr::V4(_), true) => Ipv4Addr::LOCALHOST.into(),
        (IpAddr::V6(_), true) => Ipv6Addr::LOCALHOST.into(),
        (IpAddr::V4(_), false) => OWN_V4.into(),
        (IpAddr::V6(_), false) => OWN_V6.into(),
    };
    match own {
        None => Ok(usual),
        Some(own) if own.is_unspecified() && (own.is_ipv6() || to.is_ipv4()) => Ok(usual),
        Some(own) if own.is_loopback() && !to.is_loopback() => Err(Errno::EINVAL),
        Some(own) if own.is_ipv4() == to.is_ipv4() => Ok(own),
        Some(_) => Err(Errno::EINVAL),
    }
}

/// The address that a datagram is sent from: the one that is wished for, if this machine has it and it may go there.
///
/// # Errors
/// As [`source`]; `ENETUNREACH` (IPv4) or `EINVAL` (IPv6) for one that it does not have.
fn wished_source(socket: &Socket, to: IpAddr, wish: IpWish) -> Result<IpAddr, Errno> {
    let Some(wished) = wish.source.filter(|wished| !wished.is_unspecified()) else {
        return source(socket, to);
    };
    if !is_own(wished) {
        return Err(match wished {
            IpAddr::V4(_) => Errno::ENETUNREACH,
            IpAddr::V6(_) => Errno::EINVAL,
        });
    }
    let goes = wished.is_ipv4() == to.is_ipv4() && (to.is_loopback() || !wished.is_loopback());
    goes.then_some(wished).ok_or(Errno::EINVAL)
}

/// The socket among `found` that takes what comes to an address. Of several that are bound to the same (SO_REUSEPORT),
/// the sender's port decides.
fn choose(
    sockets: &Sockets,
    found: impl Iterator<Item = ObjectId>,
    (to, from): (SocketAddr, SocketAddr),
) -> Option<ObjectId> {
    let mut best: Vec<ObjectId> = Vec::new();
    let mut score = 0;
    for id in found {
        let Some(socket) = sockets.sockets.get(&id) else {
            continue;
        };
        let is_connected = socket.transport() == Some(Transport::Udp) && socket.remote().is_some();
        let is_from_peer = socket.remote().is_some_and(|remote| {
            SocketAddr::new(remote.ip().to_canonical(), remote.port()) == from
        });
        if !socket.takes(to.ip()) || is_connected && !is_from_peer {
            continue;
        }
        let is_exact = socket
            .local()
            .is_some_and(|local| local.ip().to_canonical() == to.ip());
        let is_same_family = socket.family == Family::Inet && to.is_ipv4();
        let this =
            1 + u32::from(is_same_family) + 2 * u32::from(is_exact) + 4 * u32::from(is_connected);
        if this > score {
            score = this;
            best.clear();
        }
        if this == score {
            best.push(id);
        }
    }
    let index = usize::from(from.port()).checked_rem(best.len())?;
    best.get(index).copied()
}

/// Lets connections come in (inet_listen).
///
/// # Errors
/// `EOPNOTSUPP` for datagrams; `EINVAL` for one that is connected; `EADDRINUSE`.
pub fn listen(cx: &mut Cx<'_>, id: ObjectId, backlog: i32) -> Result<(), Errno> {
    let sockets = &mut cx.kernel.objects.sockets;
    let socket = sockets.get_mut(id)?;
    if !socket.is_tcp() {
        return Err(Errno::EOPNOTSUPP);
    }
    let backlog = backlog.cast_unsigned().min(BACKLOG_MAX);
    match &mut socket.link {
        Link::Listening(listener) => {
            listener.backlog = backlog;
            return Ok(());
        }
        Link::None if !socket.is_connecting => {}
        Link::None | Link::Connecting(_) | Link::Open(_) | Link::Closed => {
            return Err(Errno::EINVAL);
        }
    }
    autobind(sockets, id).map_err(|_| Errno::EADDRINUSE)?;
    let socket = sockets.get(id)?;
    let port = socket.local().ok_or(Errno::EINVAL)?.port();
    if !is_free(sockets, id, socket, port) {
        return Err(Errno::EADDRINUSE);
    }
    let socket = sockets.get_mut(id)?;
    socket.link = Link::Listening(Listener {
        backlog,
        pending: Vector::new(),
        waiting: Vector::new(),
    });
    socket.shut = Shut::empty();
    sockets.ports.listening.insert((port, id));
    cx.kernel.sched.wake_source(Source::Object(id));
    Ok(())
}

/// The effect of an attempt to connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attempt {
    /// It is connected.
    Connected,
    /// Nobody listens there.
    Refused,
    /// The listener has no room yet.
    Waits,
}

/// The state of an attempt to connect that an earlier call has begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attempted {
    /// There was none.
    Nothing,
    /// It waits for room on its listener.
    Waits,
    /// It is connected, and the program has not been told.
    NowConnected,
    /// It has failed.
    Failed(Errno),
    /// It has been connected before, or listens.
    Connected,
}

impl Socket {
    /// The state of an attempt to connect. The program is told of its end with this.
    pub fn attempted(&mut self) -> Attempted {
        match self.link {
            Link::Connecting(_) => Attempted::Waits,
            Link::Open(_) | Link::Closed if self.is_connecting => {
                self.is_connecting = false;
                Attempted::NowConnected
            }
            Link::None if self.is_connecting => {
                self.is_connecting = false;
                Attempted::Failed(self.error.take().unwrap_or(Errno::ECONNABORTED))
            }
            Link::None if self.peer_name.is_none() => Attempted::Nothing,
            Link::None | Link::Open(_) | Link::Closed | Link::Listening(_) => Attempted::Connected,
        }
    }

    /// The program will be told how its attempt to connect has ended.
    pub fn begin_connecting(&mut self) {
        self.is_connecting = true;
    }
}

/// Begins to connect a TCP socket.
///
/// # Errors
/// As [`destination`]; `EADDRNOTAVAIL` without a free port; `ENOMEM`.
pub fn connect(cx: &mut Cx<'_>, id: ObjectId, to: SocketAddr) -> Result<Attempt, Errno> {
    let (at, place) = destination(cx, id, to)?;
    // Before it takes a port: it may be bound after a refusal.
    let reached = match place {
        Place::Outside => Some(outside::reach(cx.host, "connect", at)?),
        Place::Inside | Place::Names => None,
    };
    let sockets = &mut cx.kernel.objects.sockets;
    autobind(sockets, id).map_err(|_| Errno::EADDRNOTAVAIL)?;
    let socket = sockets.get_mut(id)?;
    let from = source(socket, at.ip())?;
    let port = socket.local().ok_or(Errno::EINVAL)?.port();
    socket.name = Some(socket.shown(from, port));
    socket.peer_name = Some(socket.shown(at.ip(), at.port()));
    if let Some(reached) = reached {
        return outside::connect(cx, id, reached);
    }
    if place == Place::Names {
        return outside::connect_names(cx, id);
    }
    match listener(sockets, (at, SocketAddr::new(from, port))) {
        Some(listener) => attach(cx, id, listener),
        None => Ok(Attempt::Refused),
    }
}

/// The listener that takes a connection to an address.
pub(super) fn listener(
    sockets: &Sockets,
    (to, from): (SocketAddr, SocketAddr),
) -> Option<ObjectId> {
    choose(sockets, sockets.ports.listening_at(to.port()), (to, from))
}

/// Gives a socket a port that is free at an address: both.
///
/// # Errors
/// `EADDRNOTAVAIL` if there is none.
pub(super) fn free_port(
    sockets: &mut Sockets,
    id: ObjectId,
    ip: IpAddr,
) -> Result<SocketAddr, Errno> {
    take_port(sockets, id, SocketAddr::new(ip, 0)).map_err(|_| Errno::EADDRNOTAVAIL)?;
    sockets.get(id)?.local().ok_or(Errno::EADDRNOTAVAIL)
}

/// Connects a socket to a listener, or has it wait for room there.
pub(super) fn attach(cx: &mut Cx<'_>, id: ObjectId, listener: ObjectId) -> Result<Attempt, Errno> {
    let sockets = &mut cx.kernel.objects.sockets;
    if let Link::Listening(listening) = &mut sockets.get_mut(listener)?.link
        && listening.is_full()
    {
        listening.waiting.push_back(id);
        sockets.get_mut(id)?.link = Link::Connecting(listener);
        return Ok(Attempt::Waits);
    }
    join(cx, id, listener)?;
    Ok(Attempt::Connected)
}

/// Connects a socket to a listener that has room.
fn join(cx: &mut Cx<'_>, id: ObjectId, listener: ObjectId) -> Result<(), Errno> {
    let sockets = &cx.kernel.objects.sockets;
    let client = sockets.get(id)?;
    let (Some(from), Some(to)) = (client.local(), client.remote()) else {
        return Err(Errno::EINVAL);
    };
    let listening = sockets.get(listener)?;
    let (family, options) = (listening.family, listening.options.clone());
    let accepted = create(
        cx.kernel,
        &mut cx.machine.memory,
        family,
        SocketKind::Stream,
    )?;
    let sockets = &mut cx.kernel.objects.sockets;
    let socket = sockets.get_mut(accepted)?;
    socket.name = Some(socket.shown(to.ip().to_canonical(), to.port()));
    socket.peer_name = Some(socket.shown(from.ip().to_canonical(), from.port()));
    socket.link = Link::Open(id);
    socket.options = options;
    socket.is_pending = true;
    socket.grow_sndbuf();
    let socket = sockets.get_mut(id)?;
    socket.link = Link::Open(accepted);
    socket.grow_sndbuf();
    let port = (Transport::Tcp, to.port(), accepted);
    sockets.ports.bound.insert(port);
    if let Link::Listening(listener) = &mut sockets.get_mut(listener)?.link {
        listener.pending.push_back(accepted);
    }
    cx.kernel
        .wake(Source::Object(listener), POLLIN | POLLRDNORM);
    cx.kernel.wake(Source::Object(id), SPACE);
    Ok(())
}

impl Socket {
    /// The buffer of a connection grows by itself, unless its size was set.
    pub(super) fn grow_sndbuf(&mut self) {
        if self.options.sndbuf == TCP_SNDBUF {
            self.options.sndbuf = TCP_SNDBUF_CONNECTED;
        }
    }
}

/// A listener has room for one that waits to be connected.
pub(super) fn admit(cx: &mut Cx<'_>, id: ObjectId, listener: ObjectId) {
    if join(cx, id, listener).is_err()
        && let Ok(socket) = cx.kernel.objects.sockets.get_mut(id)
    {
        fail(socket, Errno::ECONNREFUSED);
        cx.kernel.wake(Source::Object(id), 0);
    }
}

/// An attempt to connect has failed.
pub fn fail(socket: &mut Socket, error: Errno) {
    socket.error = Some(error);
    socket.shut = Shut::all();
    socket.link = Link::None;
}

/// A socket forgets whom it is connected to, or was about to be (tcp_disconnect, udp_disconnect).
pub fn forget_peer(cx: &mut Cx<'_>, id: ObjectId) -> Result<(), Errno> {
    let sockets = &mut cx.kernel.objects.sockets;
    let old = sockets.get(id)?.clone();
    if let Link::Connecting(listener) = old.link {
        if let Ok(found) = sockets.get_mut(listener)
            && let Link::Listening(listening) = &mut found.link
        {
            vector::retain(&mut listening.waiting, |waiting| *waiting != id);
        }
        sockets.note_change(listener);
    }
    // A UDP socket gives its port back too.
    let gives_port = old.is_autobound && !old.is_tcp();
    if gives_port {
        forget_port(sockets, id, &old);
    }
    let socket = sockets.get_mut(id)?;
    if gives_port {
        socket.name = None;
        socket.is_autobound = false;
    } else if let (Some(local), false) = (old.local(), old.keeps_address) {
        socket.name = Some(Name::Inet(SocketAddr::new(any(old.family), local.port())));
    }
    let is_reset = matches!(old.link, Link::Open(_) | Link::Closed | Link::Connecting(_));
    socket.link = Link::None;
    socket.peer_name = None;
    socket.error = is_reset.then_some(Errno::ECONNRESET);
    socket.shut = Shut::empty();
    socket.is_connecting = false;
    socket.is_done = false;
    if old.is_tcp() {
        let queue = core::mem::take(&mut socket.queue);
        sockets.dead.add(queue);
        if let Link::Open(to) = old.link {
            super::disconnect(cx, (id, &old), to, true);
        }
    }
    Ok(())
}

/// The address that a socket has which takes what comes to any.
fn any(family: Family) -> IpAddr {
    match family {
        Family::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        Family::Inet | Family::Unix | Family::Netlink => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    }
}

/// shutdown(2) of a TCP or UDP socket (inet_shutdown).
///
/// # Errors
/// `ENOTCONN` for one that is not connected; its directions are shut down nevertheless.
pub fn shut_down(cx: &mut Cx<'_>, id: ObjectId, how: Shut) -> Result<(), Errno> {
    let socket = cx.kernel.objects.sockets.get_mut(id)?;
    let mut result = Ok(());
    match &socket.link {
        Link::Listening(_) => {
            if how.contains(Shut::RECEIVE) {
                stop_listening(cx, id)?;
            }
            return Ok(());
        }
        Link::Connecting(_) => {
            forget_peer(cx, id)?;
            let socket = cx.kernel.objects.sockets.get_mut(id)?;
            fail(socket, Errno::ECONNRESET);
            socket.is_connecting = true;
        }
        Link::Open(to) => {
            let to = *to;
            socket.shut |= how;
            if how.contains(Shut::SEND)
                && let Ok(peer) = cx.kernel.objects.sockets.get_mut(to)
            {
                peer.finish();
                cx.kernel.wake(Source::Object(to), 0);
            }
        }
        Link::Closed => socket.shut |= how,
        Link::None => {
            if socket.is_tcp() || socket.peer_name.is_none() {
                result = Err(Errno::ENOTCONN);
            }
            socket.shut |= how;
        }
    }
    cx.kernel.wake(Source::Object(id), 0);
    result
}

/// Nobody can connect any more; those that nobody has accepted are reset.
fn stop_listening(cx: &mut Cx<'_>, id: ObjectId) -> Result<(), Errno> {
    let sockets = &mut cx.kernel.objects.sockets;
    let socket = sockets.get_mut(id)?;
    let link = core::mem::replace(&mut socket.link, Link::None);
    if let Some(local) = socket.local() {
        sockets.ports.listening.remove(&(local.port(), id));
    }
    if let Link::Listening(listener) = link {
        cx.kernel.hold_wakes();
        end_listener(cx, listener);
        cx.kernel.release_wakes();
    }
    cx.kernel.wake(Source::Object(id), 0);
    Ok(())
}

/// Ends the connections on a listener that has gone.
pub(super) fn end_listener(cx: &mut Cx<'_>, listener: Listener) {
    for pending in listener.pending {
        remove_pending(cx, pending);
    }
    for waiting in listener.waiting {
        if let Ok(socket) = cx.kernel.objects.sockets.get_mut(waiting) {
            fail(socket, Errno::ECONNREFUSED);
            cx.kernel.wake(Source::Object(waiting), 0);
        }
    }
}
