//! Connections into the sandbox whose client is the host: of TCP, and streams of AF_UNIX.
//!
//! The client's side is a socket of the kernel value that no description refers to: the host knows its number. To the
//! program it is any client. It shows an address that the host chooses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use kvmlet_abi::Errno;

use super::queue::{self, Ancillary, Unsent};
use super::unix::{self, Connected};
use super::{Credentials, Family, Link, Name, Shut, SocketKind, create, inet, released, rights};
use crate::cx::Cx;
use crate::id::ObjectId;
use crate::kernel::Kernel;
use crate::vfs::ready::{POLLERR, POLLHUP, POLLIN, POLLOUT};

/// Bytes that are received at a time at most.
const RECEIVED_BYTES_MAX: usize = 256 << 10;

/// Connects to whoever listens on a port of the loopback device, IPv4 first. `peer` is the address that the program
/// is shown as the client's, without it one of the loopback device. A client of IPv6 is shown to a listener of IPv4
/// with its port and 127.0.0.1.
///
/// # Errors
/// `ECONNREFUSED` if nobody listens; `EADDRNOTAVAIL` without a free port; `ENOMEM`.
pub fn connect(cx: &mut Cx<'_>, port: u16, peer: Option<SocketAddr>) -> Result<ObjectId, Errno> {
    let hosts = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    let sockets = &cx.kernel.objects.sockets;
    let to = hosts.into_iter().map(|host| SocketAddr::new(host, port));
    let mut found = to.filter_map(|to| {
        let from = peer.unwrap_or(SocketAddr::new(to.ip(), 0));
        Some((to, inet::listener(sockets, (to, from))?))
    });
    let (to, listener) = found.next().ok_or(Errno::ECONNREFUSED)?;
    let family = match to {
        SocketAddr::V4(_) => Family::Inet,
        SocketAddr::V6(_) => Family::Inet6,
    };
    let takes_v4_only = sockets.get(listener)?.family == Family::Inet;
    let id = create(
        cx.kernel,
        &mut cx.machine.memory,
        family,
        SocketKind::Stream,
    )?;
    cx.kernel.objects.sockets.clients.insert(id);
    let named = match peer {
        Some(peer) => {
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            Ok(match peer.is_ipv6() && takes_v4_only {
                true => SocketAddr::new(to.ip(), peer.port()),
                false => peer,
            })
        }
        None => inet::free_port(&mut cx.kernel.objects.sockets, id, to.ip()),
    };
    let attached = named.and_then(|from| {
        let socket = cx.kernel.objects.sockets.get_mut(id)?;
        socket.name = Some(Name::Inet(from));
        socket.peer_name = Some(Name::Inet(to));
        inet::attach(cx, id, listener)
    });
    if let Err(errno) = attached {
        close(cx, id);
        return Err(errno);
    }
    Ok(id)
}

/// Connects to a stream of AF_UNIX that listens. The program is shown nobody as the client (SO_PEERCRED).
///
/// # Errors
/// `ECONNREFUSED` if it listens no more; `EAGAIN` if its backlog is full; `ENOMEM`.
pub fn connect_unix(cx: &mut Cx<'_>, listener: ObjectId) -> Result<ObjectId, Errno> {
    let memory = &mut cx.machine.memory;
    let id = create(cx.kernel, memory, Family::Unix, SocketKind::Stream)?;
    cx.kernel.objects.sockets.clients.insert(id);
    let joined = match unix::join(cx, id, listener, Credentials::UNKNOWN) {
        Ok(Connected::Now) => Ok(id),
        Ok(Connected::NoRoom(_)) => Err(Errno::EAGAIN),
        Err(Errno::EBADF) => Err(Errno::ECONNREFUSED),
        Err(errno) => Err(errno),
    };
    joined.inspect_err(|_| close(cx, id))
}

/// Succeeds if `id` is a connection of the host's.
fn check(kernel: &Kernel, id: ObjectId) -> Result<(), Errno> {
    match kernel.objects.sockets.clients.contains(&id) {
        true => Ok(()),
        false => Err(Errno::EBADF),
    }
}

/// Sends as many bytes as have room.
///
/// # Errors
/// `EAGAIN` without room; `EPIPE`, `ECONNRESET` and `ECONNREFUSED` if the program takes no more; `ENOMEM` at the
/// memory limit.
pub fn send(cx: &mut Cx<'_>, id: ObjectId, bytes: &[u8]) -> Result<usize, Errno> {
    check(cx.kernel, id)?;
    let none = Ancillary::default();
    let memory = &mut cx.machine.memory;
    queue::send(cx.kernel, memory, (id, None), bytes.into(), &none).map_err(|unsent| match unsent {
        Unsent::Failed(errno) => errno,
        Unsent::NoRoom(_) => Errno::EAGAIN,
    })
}

/// Takes bytes that the program has sent, `max_bytes` at most: none if it will send no more.
///
/// # Errors
/// `EAGAIN` if there are none yet; `ECONNRESET` and `ECONNREFUSED` once, if the program has ended the connection.
pub fn receive(cx: &mut Cx<'_>, id: ObjectId, max_bytes: usize) -> Result<Vec<u8>, Errno> {
    check(cx.kernel, id)?;
    let socket = cx.kernel.objects.sockets.get_mut(id)?;
    let max_bytes = max_bytes.min(RECEIVED_BYTES_MAX);
    // One whose end has been told before has no more to tell.
    let is_over = socket.link == Link::None && socket.error.is_none() && socket.queue.is_empty();
    if is_over {
        return Ok(Vec::new());
    }
    let arrived = socket.arrived(max_bytes)?.ok_or(Errno::EAGAIN)?;
    let bytes = arrived.bytes.joined().into_owned();
    let count = bytes.len();
    drop(arrived);
    let files = queue::consume(cx.kernel, &mut cx.machine.memory, id, count)?;
    // Descriptions that the program sends along go no further.
    rights::give_up(cx, files);
    Ok(bytes)
}

/// shutdown(2)
///
/// # Errors
/// `ENOTCONN` if the program has ended the connection.
pub fn shut_down(cx: &mut Cx<'_>, id: ObjectId, how: Shut) -> Result<(), Errno> {
    check(cx.kernel, id)?;
    match cx.kernel.objects.sockets.get(id)?.family {
        Family::Unix => super::shut_down(cx.kernel, id, how),
        _ => inet::shut_down(cx, id, how),
    }
}

/// Ends a connection: by RST if the host has not received everything.
pub fn close(cx: &mut Cx<'_>, id: ObjectId) {
    if cx.kernel.objects.sockets.clients.remove(&id).is_some() {
        released(cx, id);
    }
}

/// True if there is something to receive, or the connection has ended.
#[must_use]
pub fn is_readable(kernel: &Kernel, id: ObjectId) -> bool {
    kernel.objects.sockets.poll(id) & (POLLIN | POLLERR | POLLHUP) != 0
}

/// True if bytes can be sent, or will never be.
#[must_use]
pub fn is_writable(kernel: &Kernel, id: ObjectId) -> bool {
    kernel.objects.sockets.poll(id) & (POLLOUT | POLLERR | POLLHUP) != 0
}
