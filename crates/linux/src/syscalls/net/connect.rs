//! Names of sockets, and connections: bind(2), listen(2), connect(2), accept(2).

use std::net::SocketAddr;

use imbl::Vector;
use kvmlet_abi::linux::socket::{AF_UNSPEC, SOCK_CLOEXEC, SOCK_NONBLOCK};
use kvmlet_abi::{Errno, Gva};

use super::{address, socket_of, timed_wait};
use crate::cx::Cx;
use crate::fd::{self, FileKind, OnExec, OpenFile, OpenFlags};
use crate::id::ObjectId;
use crate::net::inet::{self, Attempt, Attempted};
use crate::net::listen::{self, Accepted};
use crate::net::unix::{self, Connected};
use crate::net::{Family, SocketKind, netlink};
use crate::outcome::{CallState, Outcome, Source, SysResult};
use crate::syscalls::args::{Args, Fd, Flags, Int, Ptr};
use crate::syscalls::io::number;
use crate::syscalls::io::transfer::Waiting;
use crate::vfs::open::description;

/// bind(2)
///
/// # Errors
/// As its man page. `EROFS`, recorded, for a path outside of the memory file system. `EADDRNOTAVAIL` for an address of
/// another machine. `EOPNOTSUPP` for an inherited socket.
pub fn sys_bind(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Ptr(name), Int(len)) = args.decode();
    let (id, _) = socket_of(cx, "bind", fd)?;
    let bytes = address::read(cx, name, len)?;
    match cx.kernel.objects.sockets.get(id)?.family {
        Family::Unix if address::is_unnamed(&bytes) => unix::autobind(cx, id)?,
        Family::Unix => unix::bind(cx, id, &address::unix(&bytes)?)?,
        family @ (Family::Inet | Family::Inet6) => {
            inet::bind(cx, id, address::inet(&bytes, family)?)?;
        }
        Family::Netlink => netlink::bind(cx, id, address::netlink(&bytes)?)?,
    }
    Ok(0)
}

/// listen(2)
///
/// # Errors
/// As its man page; `EOPNOTSUPP` for an inherited socket.
pub fn sys_listen(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Int(backlog)) = args.decode();
    let (id, _) = socket_of(cx, "listen", fd)?;
    match cx.kernel.objects.sockets.get(id)?.family {
        Family::Unix => unix::listen(cx, id, backlog)?,
        Family::Inet | Family::Inet6 => inet::listen(cx, id, backlog)?,
        Family::Netlink => return Err(Errno::EOPNOTSUPP),
    }
    Ok(0)
}

/// connect(2): it waits while the listener has no room.
pub fn sys_connect(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    connect(cx, args, state).unwrap_or_else(|error| Outcome::Done(Err(error)))
}

fn connect(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Result<Outcome, Errno> {
    let (Fd(fd), Ptr(name), Int(len)) = args.decode();
    let (id, file) = socket_of(cx, "connect", fd)?;
    let bytes = address::read(cx, name, len)?;
    let socket = cx.kernel.objects.sockets.get(id)?;
    let timeout_ns = socket.options.send_timeout_ns;
    let given = address::family(&bytes);
    match (socket.family, socket.kind) {
        (Family::Netlink, _) => {
            let port = address::netlink(&bytes)?;
            netlink::bind(cx, id, 0)?;
            if port != 0 {
                return Err(Errno::ECONNREFUSED);
            }
        }
        (Family::Inet | Family::Inet6, _) if given == Some(AF_UNSPEC) => {
            inet::forget_peer(cx, id)?;
        }
        (family @ (Family::Inet | Family::Inet6), SocketKind::Stream) => {
            let to = address::inet(&bytes, family)?;
            return connect_tcp(cx, (id, &file), to, state);
        }
        (family @ (Family::Inet | Family::Inet6), _) => {
            inet::connect_datagrams(cx, id, address::inet(&bytes, family)?)?;
        }
        (Family::Unix, SocketKind::Datagram) => {
            let to = match given {
                None => return Err(Errno::EINVAL),
                Some(AF_UNSPEC) => None,
                Some(_) => Some(address::unix(&bytes)?),
            };
            unix::connect_datagrams(cx, id, to.as_ref())?;
        }
        (Family::Unix, SocketKind::Stream | SocketKind::SeqPacket) => {
            let to = address::unix(&bytes)?;
            match unix::connect(cx, id, &to)? {
                Connected::Now => {}
                Connected::NoRoom(source) => {
                    return wait_for(cx, &file, source, timeout_ns, state);
                }
            }
        }
    }
    Ok(Outcome::Done(Ok(0)))
}

/// Connects a TCP socket, or tells what has become of an earlier attempt (inet_stream_connect).
fn connect_tcp(
    cx: &mut Cx<'_>,
    (id, file): (ObjectId, &OpenFile),
    to: SocketAddr,
    state: &CallState,
) -> Result<Outcome, Errno> {
    let done = Ok(Outcome::Done(Ok(0)));
    let waits = !file.flags.contains(OpenFlags::NONBLOCK);
    match cx.kernel.objects.sockets.get_mut(id)?.attempted() {
        Attempted::Nothing => {}
        Attempted::Connected => return Err(Errno::EISCONN),
        Attempted::NowConnected => return done,
        Attempted::Failed(error) => {
            inet::forget_peer(cx, id)?;
            return Err(error);
        }
        Attempted::Waits if waits => return wait_to_connect(cx, id, file, state),
        Attempted::Waits => return Err(Errno::EALREADY),
    }
    let attempt = match inet::connect(cx, id, to) {
        Ok(attempt) => attempt,
        Err(error) => {
            inet::forget_peer(cx, id)?;
            return Err(error);
        }
    };
    if waits {
        return match attempt {
            Attempt::Connected => done,
            Attempt::Refused => {
                inet::forget_peer(cx, id)?;
                Err(Errno::ECONNREFUSED)
            }
            Attempt::Waits => {
                cx.kernel.objects.sockets.get_mut(id)?.begin_connecting();
                wait_to_connect(cx, id, file, state)
            }
        };
    }
    // The answer comes while the call is on its way, and the program is told of it later.
    let socket = cx.kernel.objects.sockets.get_mut(id)?;
    socket.begin_connecting();
    if attempt == Attempt::Refused {
        inet::fail(socket, Errno::ECONNREFUSED);
        cx.kernel.wake(Source::Object(id), 0);
    }
    Err(Errno::EINPROGRESS)
}

fn wait_to_connect(
    cx: &Cx<'_>,
    id: ObjectId,
    file: &OpenFile,
    state: &CallState,
) -> Result<Outcome, Errno> {
    let options = &cx.kernel.objects.sockets.get(id)?.options;
    let timeout_ns = options.send_timeout_ns;
    wait_for(cx, file, Source::Object(id), timeout_ns, state).map_err(|_| Errno::EINPROGRESS)
}

/// Parks the call until `source` is ready.
///
/// # Errors
/// `EAGAIN` if it may not wait, or not any more.
fn wait_for(
    cx: &Cx<'_>,
    file: &OpenFile,
    source: Source,
    timeout_ns: Option<u64>,
    state: &CallState,
) -> Result<Outcome, Errno> {
    let waiting = Waiting::Allowed.of(file);
    let on = Vector::unit(source);
    let wait = timed_wait(cx, on, waiting, (timeout_ns, 0), state).ok_or(Errno::EAGAIN)?;
    Ok(Outcome::Wait(wait))
}

/// accept(2)
pub fn sys_accept(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(name), Ptr(len)) = args.decode();
    accept(cx, "accept", fd, (name, len, 0), state)
        .unwrap_or_else(|error| Outcome::Done(Err(error)))
}

/// accept4(2)
pub fn sys_accept4(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(name), Ptr(len), Flags(flags)) = args.decode();
    accept(cx, "accept4", fd, (name, len, flags), state)
        .unwrap_or_else(|error| Outcome::Done(Err(error)))
}

fn accept(
    cx: &mut Cx<'_>,
    call: &'static str,
    fd: i32,
    (name, len, flags): (Gva, Gva, u32),
    state: &CallState,
) -> Result<Outcome, Errno> {
    if flags & !(SOCK_CLOEXEC | SOCK_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let (id, file) = socket_of(cx, call, fd)?;
    let limit = fd::limit(cx)?;
    if cx.fds()?.lowest_free(0) >= limit {
        return Err(Errno::EMFILE);
    }
    let accepted = match listen::accept(cx, id)? {
        Accepted::Now(accepted) => accepted,
        // The end of what comes in ends a wait only.
        Accepted::Never if !file.flags.contains(OpenFlags::NONBLOCK) => return Err(Errno::EINVAL),
        Accepted::NotYet | Accepted::Never => {
            let options = &cx.kernel.objects.sockets.get(id)?.options;
            let timeout_ns = options.receive_timeout_ns;
            return wait_for(cx, &file, Source::Object(id), timeout_ns, state);
        }
    };
    let flags = OpenFlags::from_bits_truncate(flags);
    let new = install(cx, accepted, flags)?;
    if name.0 != 0 {
        let peer = cx.kernel.objects.sockets.peer_name(accepted);
        let told = match peer {
            Ok(peer) => {
                let family = cx.kernel.objects.sockets.get(accepted)?.family;
                address::write(cx, name, len, &address::bytes_of(peer.as_ref(), family))
            }
            Err(_) => Err(Errno::ECONNABORTED),
        };
        if let Err(error) = told {
            fd::close(cx, new)?;
            return Err(error);
        }
    }
    Ok(Outcome::Done(Ok(number(new))))
}

/// Gives a socket a description and a descriptor. On failure it is gone.
///
/// # Errors
/// `EMFILE`; `ENOMEM` at the memory limit.
pub(super) fn install(cx: &mut Cx<'_>, id: ObjectId, flags: OpenFlags) -> Result<i32, Errno> {
    let kept = OpenFlags::RDWR | (flags & OpenFlags::NONBLOCK);
    let file = description(FileKind::Socket(id), kept, b"socket:");
    fd::install_new(cx, file, OnExec::of(flags))
}
