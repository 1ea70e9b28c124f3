//! Sockets: there is no network, and no socket has a name. There are pairs of connected ones.

mod options;
#[cfg(test)]
mod tests;
pub(super) mod transfer;

use kvmlet_abi::Errno;
use kvmlet_abi::linux::socket::{
    AF_INET, AF_INET6, AF_MAX, AF_NETLINK, AF_PACKET, AF_UNIX, SHUT_RD, SHUT_RDWR, SHUT_WR,
    SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_PACKET, SOCK_RAW, SOCK_SEQPACKET, SOCK_STREAM,
    SOCK_TYPE_MASK,
};
use kvmlet_hostfs::attr::S_IFSOCK;
pub use options::{sys_getpeername, sys_getsockname, sys_getsockopt, sys_setsockopt};
pub use transfer::{
    sys_recvfrom, sys_recvmmsg, sys_recvmsg, sys_sendmmsg, sys_sendmsg, sys_sendto,
};

use crate::cx::Cx;
use crate::fd::{self, FileKind, OnExec, OpenFile, OpenFlags};
use crate::outcome::SysResult;
use crate::report::Remedy;
use crate::syscalls::args::{Args, Fd, Flags, Int, Ptr, Uint};
use crate::vfs::anon::ObjectId;
use crate::vfs::open::description;
use crate::vfs::unix::{self, Shut, SocketKind};

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

fn deny(cx: &mut Cx<'_>, call: &str, domain: i32, kind: u32) -> SysResult {
    const SOCK_FLAGS: u32 = SOCK_CLOEXEC | SOCK_NONBLOCK;
    if !(0..i32::from(AF_MAX)).contains(&domain) {
        return Err(Errno::EAFNOSUPPORT);
    }
    if kind & !(SOCK_TYPE_MASK | SOCK_FLAGS) != 0 || kind & SOCK_TYPE_MASK > SOCK_PACKET {
        return Err(Errno::EINVAL);
    }
    cx.host.report.deny(
        format!("{call} {}", family(domain)),
        Errno::EACCES,
        Remedy::NoNetwork,
    );
    Err(Errno::EACCES)
}

/// socket(2)
///
/// # Errors
/// `EACCES`, recorded as a denial; `EAFNOSUPPORT`, `EINVAL` for what Linux has not.
pub fn sys_socket(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(domain), Uint(kind), Int(_)) = args.decode();
    deny(cx, "socket", domain, kind)
}

/// socketpair(2)
///
/// # Errors
/// As its man page for AF_UNIX; other families as [`sys_socket`].
pub fn sys_socketpair(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(domain), Uint(kind), Int(protocol), Ptr(fds)) = args.decode();
    let flags = OpenFlags::CLOEXEC | OpenFlags::NONBLOCK;
    if domain != i32::from(AF_UNIX) || kind & !(SOCK_TYPE_MASK | flags.bits()) != 0 {
        return deny(cx, "socketpair", domain, kind);
    }
    let of_kind = match kind & SOCK_TYPE_MASK {
        SOCK_STREAM => Some(SocketKind::Stream),
        // SOCK_RAW is taken for SOCK_DGRAM (unix_create in net/unix/af_unix.c).
        SOCK_DGRAM | SOCK_RAW => Some(SocketKind::Datagram),
        SOCK_SEQPACKET => Some(SocketKind::SeqPacket),
        kind if kind > SOCK_PACKET => return Err(Errno::EINVAL),
        _ => None,
    };
    if protocol != 0 && protocol != i32::from(AF_UNIX) {
        return Err(Errno::EPROTONOSUPPORT);
    }
    let of_kind = of_kind.ok_or(Errno::ESOCKTNOSUPPORT)?;
    let flags = OpenFlags::from_bits_truncate(kind) & flags;
    let ids = [cx.kernel.objects.next_id(), cx.kernel.objects.next_id()];
    let pid = cx.process()?.pid.0.cast_unsigned();
    let creator = [pid, cx.kernel.ids.uid, cx.kernel.ids.gid];
    cx.kernel.objects.sockets.pair(ids, of_kind, creator);
    let kept = OpenFlags::RDWR | (flags & OpenFlags::NONBLOCK);
    // Both descriptions exist before either is installed: a failure releases what it holds.
    let pair = ids.map(|id| {
        let file = description(FileKind::Socket(id), kept, b"socket:");
        fd::install_new(cx, file, OnExec::of(flags))
    });
    let written = match pair {
        [Ok(a), Ok(b)] => cx.write_struct(fds, &[a, b]),
        _ => Err(Errno::EMFILE),
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
    unix::shut_down(cx.kernel, id, how)?;
    Ok(0)
}

fn kind_of(cx: &mut Cx<'_>, call: &'static str, number: i32) -> Result<SocketKind, Errno> {
    let (id, _) = socket_of(cx, call, number)?;
    Ok(cx.kernel.objects.sockets.get(id)?.kind)
}

/// connect(2): there is nobody to connect to.
///
/// # Errors
/// `ECONNREFUSED`, `ENOTSOCK`, `EBADF`; `EOPNOTSUPP` for an inherited socket.
pub fn sys_connect(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Ptr(_), Int(_)) = args.decode();
    kind_of(cx, "connect", fd)?;
    cx.host.report.unsupported("connect", String::new());
    Err(Errno::ECONNREFUSED)
}

/// bind(2): no socket has a name.
///
/// # Errors
/// `EACCES`, recorded as a denial; `ENOTSOCK`, `EBADF`; `EOPNOTSUPP` for an inherited socket.
pub fn sys_bind(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Ptr(_), Int(_)) = args.decode();
    kind_of(cx, "bind", fd)?;
    cx.host
        .report
        .deny("bind AF_UNIX".to_owned(), Errno::EACCES, Remedy::NoNetwork);
    Err(Errno::EACCES)
}

/// The answer of listen(2) and accept(2) for a socket that has no name.
fn not_listening(cx: &mut Cx<'_>, call: &'static str, number: i32) -> SysResult {
    let kind = kind_of(cx, call, number)?;
    cx.host.report.unsupported(call, String::new());
    match kind {
        SocketKind::Datagram => Err(Errno::EOPNOTSUPP),
        SocketKind::Stream | SocketKind::SeqPacket => Err(Errno::EINVAL),
    }
}

/// listen(2)
///
/// # Errors
/// `EINVAL` or `EOPNOTSUPP`, `ENOTSOCK`, `EBADF`.
pub fn sys_listen(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Int(_)) = args.decode();
    not_listening(cx, "listen", fd)
}

/// accept(2)
///
/// # Errors
/// As [`sys_listen`].
pub fn sys_accept(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Ptr(_), Ptr(_)) = args.decode();
    not_listening(cx, "accept", fd)
}

/// accept4(2)
///
/// # Errors
/// As [`sys_listen`].
pub fn sys_accept4(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Ptr(_), Ptr(_), Flags(_)) = args.decode();
    not_listening(cx, "accept4", fd)
}
