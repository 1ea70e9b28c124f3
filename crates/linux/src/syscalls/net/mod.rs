//! Sockets (socket(7)).

mod address;
#[cfg(test)]
mod client_tests;
mod connect;
mod control;
pub(super) mod interfaces;
mod ip_options;
mod options;
#[cfg(test)]
mod tests;
pub(super) mod transfer;

pub use connect::{sys_accept, sys_accept4, sys_bind, sys_connect, sys_listen};
use imbl::Vector;
use kvmlet_abi::Errno;
use kvmlet_abi::linux::netlink::NETLINK_ROUTE;
use kvmlet_abi::linux::socket::{
    AF_INET, AF_INET6, AF_MAX, AF_NETLINK, AF_PACKET, AF_UNIX, IPPROTO_ICMP, IPPROTO_MAX,
    IPPROTO_TCP, IPPROTO_UDP, SHUT_RD, SHUT_RDWR, SHUT_WR, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK,
    SOCK_PACKET, SOCK_RAW, SOCK_SEQPACKET, SOCK_STREAM, SOCK_TYPE_MASK,
};
use kvmlet_hostfs::attr::S_IFSOCK;
pub use options::{sys_getpeername, sys_getsockname, sys_getsockopt, sys_setsockopt};
pub use transfer::{
    sys_recvfrom, sys_recvmmsg, sys_recvmsg, sys_sendmmsg, sys_sendmsg, sys_sendto,
};

use crate::clock;
use crate::cx::Cx;
use crate::fd::{self, FileKind, OpenFile, OpenFlags};
use crate::id::ObjectId;
use crate::net::inet;
use crate::net::{self, Credentials, Family, Shut, SocketKind};
use crate::outcome::{CallState, Resume, Source, SysResult, Wait, WaitOn};
use crate::report::Remedy;
use crate::syscalls::args::{Args, Fd, Int, Ptr, Uint};
use crate::syscalls::io::number;
use crate::syscalls::io::transfer::Waiting;

/// Name of an address family (socket(2)).
fn family(domain: i32) -> String {
    match u16::try_from(domain) {
        Ok(AF_UNIX) => "AF_UNIX".to_owned(),
        Ok(AF_INET) => "AF_INET".to_owned(),
        Ok(AF_INET6) => "AF_INET6".to_owned(),
        Ok(AF_NETLINK) => "AF_NETLINK".to_owned(),
        Ok(AF_PACKET) => "AF_PACKET".to_owned(),
        _ => format!("family {domain}"),
    }
}

/// The error for a socket of another family, which is recorded if Linux has it.
fn refused(cx: &mut Cx<'_>, call: &str, domain: i32, kind: u32) -> Errno {
    const SOCK_FLAGS: u32 = SOCK_CLOEXEC | SOCK_NONBLOCK;
    if !(0..i32::from(AF_MAX)).contains(&domain) {
        return Errno::EAFNOSUPPORT;
    }
    if kind & !(SOCK_TYPE_MASK | SOCK_FLAGS) != 0 || kind & SOCK_TYPE_MASK > SOCK_PACKET {
        return Errno::EINVAL;
    }
    cx.host.report.deny(
        format!("{call} {}", family(domain)),
        Errno::EACCES,
        Remedy::NoNetwork,
    );
    Errno::EACCES
}

/// A socket that is asked for.
struct Wanted {
    family: Family,
    kind: SocketKind,
    flags: OpenFlags,
}

/// Decides which socket is meant.
///
/// # Errors
/// `EACCES` or `EPERM`, recorded, for what a sandbox has not; `EAFNOSUPPORT`, `EINVAL`, `ESOCKTNOSUPPORT` and
/// `EPROTONOSUPPORT` for what Linux has not.
fn wanted(
    cx: &mut Cx<'_>,
    call: &str,
    (domain, kind, protocol): (i32, u32, i32),
) -> Result<Wanted, Errno> {
    let allowed = OpenFlags::CLOEXEC | OpenFlags::NONBLOCK;
    let family = match u16::try_from(domain) {
        Ok(AF_UNIX) => Family::Unix,
        Ok(AF_INET) => Family::Inet,
        Ok(AF_INET6) => Family::Inet6,
        Ok(AF_NETLINK) => Family::Netlink,
        _ => return Err(refused(cx, call, domain, kind)),
    };
    if kind & !(SOCK_TYPE_MASK | allowed.bits()) != 0 || kind & SOCK_TYPE_MASK > SOCK_PACKET {
        return Err(Errno::EINVAL);
    }
    let (flags, of_kind) = (kind, kind & SOCK_TYPE_MASK);
    let kind = match family {
        Family::Unix => unix_kind(of_kind, protocol)?,
        Family::Inet | Family::Inet6 => inet_kind(cx, call, (domain, of_kind, protocol))?,
        Family::Netlink if of_kind != SOCK_RAW && of_kind != SOCK_DGRAM => {
            return Err(Errno::ESOCKTNOSUPPORT);
        }
        Family::Netlink if protocol != NETLINK_ROUTE => {
            let what = format!("{call} AF_NETLINK of protocol {protocol}");
            let errno = Errno::EPROTONOSUPPORT;
            cx.host.report.deny(what, errno, Remedy::NoNetwork);
            return Err(errno);
        }
        Family::Netlink => SocketKind::Datagram,
    };
    let flags = OpenFlags::from_bits_truncate(flags) & allowed;
    Ok(Wanted {
        family,
        kind,
        flags,
    })
}

fn unix_kind(kind: u32, protocol: i32) -> Result<SocketKind, Errno> {
    if protocol != 0 && protocol != i32::from(AF_UNIX) {
        return Err(Errno::EPROTONOSUPPORT);
    }
    match kind {
        SOCK_STREAM => Ok(SocketKind::Stream),
        // SOCK_RAW is taken for SOCK_DGRAM (unix_create in net/unix/af_unix.c).
        SOCK_DGRAM | SOCK_RAW => Ok(SocketKind::Datagram),
        SOCK_SEQPACKET => Ok(SocketKind::SeqPacket),
        _ => Err(Errno::ESOCKTNOSUPPORT),
    }
}

/// TCP or UDP (inet_create). Others would need a capability.
fn inet_kind(
    cx: &mut Cx<'_>,
    call: &str,
    (domain, kind, protocol): (i32, u32, i32),
) -> Result<SocketKind, Errno> {
    if !(0..IPPROTO_MAX).contains(&protocol) {
        return Err(Errno::EINVAL);
    }
    let errno = match (kind, protocol) {
        (SOCK_STREAM, 0 | IPPROTO_TCP) => return Ok(SocketKind::Stream),
        (SOCK_DGRAM, 0 | IPPROTO_UDP) => return Ok(SocketKind::Datagram),
        (SOCK_DGRAM, IPPROTO_ICMP) => Errno::EACCES,
        (SOCK_RAW, _) => Errno::EPERM,
        (SOCK_STREAM | SOCK_DGRAM, _) => return Err(Errno::EPROTONOSUPPORT),
        _ => return Err(Errno::ESOCKTNOSUPPORT),
    };
    let what = format!("{call} {} of ICMP or raw packets", family(domain));
    cx.host.report.deny(what, errno, Remedy::NoNetwork);
    Err(errno)
}

/// socket(2)
///
/// # Errors
/// As its man page; `EACCES` or `EPERM`, recorded, for what a sandbox has not.
pub fn sys_socket(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(domain), Uint(kind), Int(protocol)) = args.decode();
    let wanted = wanted(cx, "socket", (domain, kind, protocol))?;
    let memory = &mut cx.machine.memory;
    let id = net::create(cx.kernel, memory, wanted.family, wanted.kind)?;
    connect::install(cx, id, wanted.flags).map(number)
}

/// socketpair(2)
///
/// # Errors
/// As its man page; `EACCES` or `EPERM`, recorded, for what a sandbox has not.
pub fn sys_socketpair(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(domain), Uint(kind), Int(protocol), Ptr(fds)) = args.decode();
    let wanted = wanted(cx, "socketpair", (domain, kind, protocol))?;
    if wanted.family != Family::Unix {
        return Err(Errno::EOPNOTSUPP);
    }
    let creator = Credentials::of_peer(cx)?;
    let memory = &mut cx.machine.memory;
    let a = net::create(cx.kernel, memory, wanted.family, wanted.kind)?;
    let b = match net::create(cx.kernel, memory, wanted.family, wanted.kind) {
        Ok(b) => b,
        Err(error) => {
            net::released(cx, a);
            return Err(error);
        }
    };
    net::pair(cx.kernel, [a, b], creator)?;
    // Both descriptions exist before either number is written: a failure releases what it holds.
    let pair = [a, b].map(|id| connect::install(cx, id, wanted.flags));
    let written = match pair {
        [Ok(a), Ok(b)] => cx.write_struct(fds, &[a, b]),
        [Err(error), _] | [_, Err(error)] => Err(error),
    };
    if written.is_err() {
        for number in pair.into_iter().flatten() {
            fd::close(cx, number)?;
        }
    }
    written.map(|()| 0)
}

/// The socket behind a descriptor. An inherited one is a stream only.
fn socket_of(
    cx: &mut Cx<'_>,
    call: &'static str,
    number: i32,
) -> Result<(ObjectId, OpenFile), Errno> {
    let (id, file) = fd::get_io(cx, number)?;
    if let FileKind::Socket(socket) = file.kind {
        return Ok((socket, file));
    }
    if crate::vfs::file::attr(cx, id)?.kind() != S_IFSOCK {
        return Err(Errno::ENOTSOCK);
    }
    cx.host
        .report
        .unsupported(call, "on an inherited socket".to_owned());
    Err(Errno::EOPNOTSUPP)
}

/// shutdown(2)
///
/// # Errors
/// `EINVAL` for an unknown direction, `ENOTSOCK`, `EBADF`; `EOPNOTSUPP` for an inherited socket.
pub fn sys_shutdown(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Int(how)) = args.decode();
    let (id, _) = socket_of(cx, "shutdown", fd)?;
    let how = match how {
        SHUT_RD => Shut::RECEIVE,
        SHUT_WR => Shut::SEND,
        SHUT_RDWR => Shut::all(),
        _ => return Err(Errno::EINVAL),
    };
    match cx.kernel.objects.sockets.get(id)?.family {
        Family::Unix => net::shut_down(cx.kernel, id, how)?,
        Family::Inet | Family::Inet6 => inet::shut_down(cx, id, how)?,
        Family::Netlink => return Err(Errno::EOPNOTSUPP),
    }
    Ok(0)
}

/// The wait of a call that has moved `progress` bytes; `None` when it may not wait or has waited long enough
/// (SO_RCVTIMEO, SO_SNDTIMEO).
fn timed_wait(
    cx: &Cx<'_>,
    on: Vector<Source>,
    waiting: Waiting,
    (timeout_ns, progress): (Option<u64>, u64),
    state: &CallState,
) -> Option<Wait> {
    let now_ns = clock::monotonic_ns(cx.host);
    let deadline_ns = state
        .deadline_ns
        .or_else(|| timeout_ns.map(|timeout_ns| now_ns.saturating_add(timeout_ns)));
    if waiting == Waiting::Refused || deadline_ns.is_some_and(|at| at <= now_ns) {
        return None;
    }
    Some(Wait {
        on: WaitOn::Sources(on),
        deadline_ns,
        resume: Resume::Retry(CallState {
            deadline_ns,
            progress,
            expired: false,
            ..state.clone()
        }),
    })
}
