//! Sockets: there is no network and no socket of any kind.

use kvmlet_abi::Errno;
use kvmlet_policy::NETWORK_REMEDY;

use super::io::{int, uint};
use crate::cx::Cx;
use crate::fd::{self, FileKind};
use crate::outcome::SysResult;
use crate::vfs::attr::S_IFSOCK;

/// Name of an address family (socket(2)).
fn family(domain: i32) -> String {
    match domain {
        1 => "AF_UNIX".to_owned(),
        2 => "AF_INET".to_owned(),
        10 => "AF_INET6".to_owned(),
        16 => "AF_NETLINK".to_owned(),
        17 => "AF_PACKET".to_owned(),
        other => format!("family {other}"),
    }
}

fn deny(cx: &mut Cx<'_>, call: &str, domain: i32, kind: u32) -> SysResult {
    const AF_MAX: i32 = 46;
    const SOCK_TYPE_MASK: u32 = 0xf;
    const SOCK_FLAGS: u32 = 0o2_000_000 | 0o4000;
    if !(0..AF_MAX).contains(&domain) {
        return Err(Errno::EAFNOSUPPORT);
    }
    if kind & !(SOCK_TYPE_MASK | SOCK_FLAGS) != 0 || kind & SOCK_TYPE_MASK > 10 {
        return Err(Errno::EINVAL);
    }
    cx.host.report.deny(
        format!("{call} {}", family(domain)),
        Errno::EACCES,
        NETWORK_REMEDY,
    );
    Err(Errno::EACCES)
}

/// socket(2)
///
/// # Errors
/// `EACCES`, recorded as a denial; `EAFNOSUPPORT`, `EINVAL` for what Linux has not.
pub fn sys_socket(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    deny(cx, "socket", int(args[0]), uint(args[1]))
}

/// socketpair(2)
///
/// # Errors
/// As [`sys_socket`].
pub fn sys_socketpair(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    deny(cx, "socketpair", int(args[0]), uint(args[1]))
}

/// A call on a descriptor that would have to be a socket. An inherited one is a stream only.
fn on_socket(cx: &mut Cx<'_>, call: &'static str, number: u64) -> SysResult {
    let (id, file) = fd::get_io(cx, int(number))?;
    if matches!(file.kind, FileKind::HostStream(_))
        && crate::vfs::file_attr(cx, id)?.kind() == S_IFSOCK
    {
        cx.host
            .report
            .unsupported(call, "on an inherited socket".to_owned());
        return Err(Errno::EOPNOTSUPP);
    }
    Err(Errno::ENOTSOCK)
}

macro_rules! on_sockets {
    ($($handler:ident $name:literal)*) => {$(
        #[doc = concat!($name, "(2)")]
        ///
        /// # Errors
        /// `ENOTSOCK`, `EBADF`; `EOPNOTSUPP` for an inherited socket.
        pub fn $handler(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
            on_socket(cx, $name, args[0])
        }
    )*};
}

on_sockets! {
    sys_connect "connect"
    sys_accept "accept"
    sys_accept4 "accept4"
    sys_sendto "sendto"
    sys_recvfrom "recvfrom"
    sys_sendmsg "sendmsg"
    sys_recvmsg "recvmsg"
    sys_sendmmsg "sendmmsg"
    sys_recvmmsg "recvmmsg"
    sys_shutdown "shutdown"
    sys_bind "bind"
    sys_listen "listen"
    sys_getsockname "getsockname"
    sys_getpeername "getpeername"
    sys_setsockopt "setsockopt"
    sys_getsockopt "getsockopt"
}
