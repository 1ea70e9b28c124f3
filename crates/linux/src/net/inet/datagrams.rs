//! Datagrams of UDP: connected and sent.

use std::net::SocketAddr;

use kvmlet_abi::Errno;

use super::{Transport, autobind, choose, destination, source, wished_source};
use crate::cx::Cx;
use crate::id::ObjectId;
use crate::net::Shut;
use crate::net::header::{IpHeader, IpWishes};
use crate::net::outside::{self, Place};
use crate::net::queue::{self, Message};
use crate::outcome::Source;
use crate::vfs::ready::POLLERR;

/// Longest datagram, in bytes: 65,535 without the headers of IPv4 and UDP.
const DATAGRAM_MAX: usize = 65_507;

/// Connects a UDP socket: what it sends goes there, and it receives from there only.
///
/// # Errors
/// As [`destination`].
pub fn connect_datagrams(cx: &mut Cx<'_>, id: ObjectId, to: SocketAddr) -> Result<(), Errno> {
    let (at, place) = destination(cx, id, to)?;
    if place == Place::Outside {
        outside::connect_datagrams(cx, id, at)?;
    }
    let sockets = &mut cx.kernel.objects.sockets;
    autobind(sockets, id)?;
    let socket = sockets.get_mut(id)?;
    let from = source(socket, at.ip())?;
    let port = socket.local().ok_or(Errno::EINVAL)?.port();
    socket.name = Some(socket.shown(from, port));
    socket.peer_name = Some(socket.shown(at.ip(), at.port()));
    Ok(())
}

/// Sends a datagram, to `to` or to whom the socket is connected to. What nobody receives, or has no room for, is lost.
///
/// # Errors
/// As [`destination`]; `EDESTADDRREQ`, `EMSGSIZE`, `EPIPE`; `EINVAL` or `ENETUNREACH` for a source that it cannot have.
/// `ECONNREFUSED` if nobody has received an earlier one; `ENOBUFS` at the memory limit.
pub fn send_datagram(
    cx: &mut Cx<'_>,
    (id, to): (ObjectId, Option<SocketAddr>),
    bytes: &[u8],
    wishes: &IpWishes,
) -> Result<usize, Errno> {
    let socket = cx.kernel.objects.sockets.get_mut(id)?;
    if bytes.len() > DATAGRAM_MAX {
        return Err(Errno::EMSGSIZE);
    }
    let is_connected = to.is_none();
    let to = to.or(socket.remote()).ok_or(Errno::EDESTADDRREQ)?;
    if to.port() == 0 {
        return Err(Errno::EINVAL);
    }
    if let Some(error) = socket.error.take() {
        return Err(error);
    }
    if socket.shut.contains(Shut::SEND) {
        return Err(Errno::EPIPE);
    }
    let (at, place) = destination(cx, id, to)?;
    let sockets = &mut cx.kernel.objects.sockets;
    autobind(sockets, id)?;
    let socket = sockets.get(id)?;
    let local = socket.local().ok_or(Errno::EINVAL)?;
    let wish = wishes.towards(at.ip());
    let from = SocketAddr::new(wished_source(socket, at.ip(), wish)?, local.port());
    let header = IpHeader::of(socket, at.ip(), wish);
    match place {
        Place::Inside => {}
        Place::Names => {
            outside::ask(cx, id, bytes);
            return Ok(bytes.len());
        }
        Place::Outside => return outside::send_datagram(cx, id, at, bytes),
    }
    let bound = sockets.ports.at(Transport::Udp, to.port());
    let Some(receiver) = choose(sockets, bound, (at, from)) else {
        if is_connected {
            sockets.get_mut(id)?.error = Some(Errno::ECONNREFUSED);
            cx.kernel.wake(Source::Object(id), POLLERR);
        }
        return Ok(bytes.len());
    };
    let peer = sockets.get_mut(receiver)?;
    if peer.queue.weight() > u64::from(peer.options.rcvbuf) || peer.shut.contains(Shut::RECEIVE) {
        return Ok(bytes.len());
    }
    let name = peer.shown(from.ip(), from.port());
    let message = Message::datagram(bytes, name, Some(header));
    cx.machine
        .memory
        .charge(message.charged_bytes())
        .map_err(|_| Errno::ENOBUFS)?;
    queue::deliver(cx.kernel, receiver, message)?;
    Ok(bytes.len())
}
