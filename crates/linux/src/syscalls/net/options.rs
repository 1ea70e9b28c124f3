//! Names and options of sockets.

use kvmlet_abi::linux::Timeval;
use kvmlet_abi::linux::socket::{
    IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP, SO_ACCEPTCONN, SO_BINDTODEVICE,
    SO_BINDTOIFINDEX, SO_BROADCAST, SO_DEBUG, SO_DOMAIN, SO_DONTROUTE, SO_ERROR, SO_KEEPALIVE,
    SO_LINGER, SO_MARK, SO_OOBINLINE, SO_PASSCRED, SO_PASSSEC, SO_PEERCRED, SO_PRIORITY,
    SO_PROTOCOL, SO_RCVBUF, SO_RCVLOWAT, SO_RCVTIMEO, SO_REUSEADDR, SO_REUSEPORT, SO_SNDBUF,
    SO_SNDLOWAT, SO_SNDTIMEO, SO_TIMESTAMP, SO_TYPE, SOL_SOCKET,
};
use kvmlet_abi::{Errno, Gva};
use zerocopy::IntoBytes;

use super::{address, ip_options, socket_of};
use crate::clock::NSEC_PER_SEC;
use crate::cx::Cx;
use crate::id::ObjectId;
use crate::net::inet::Transport;
use crate::net::{Credentials, SPACE, Socket};
use crate::outcome::{Source, SysResult};
use crate::report::Remedy;
use crate::syscalls::args::{Args, Fd, Int, Ptr};

/// 1, which cannot be changed on such sockets to any effect.
const LOW_WATER: [i32; 2] = [SO_RCVLOWAT, SO_SNDLOWAT];
/// Switches that change nothing on a pair: SO_DEBUG excepted, they can be set and are shown.
const SWITCHES: [i32; 7] = [
    SO_REUSEADDR,
    SO_DONTROUTE,
    SO_BROADCAST,
    SO_KEEPALIVE,
    SO_OOBINLINE,
    SO_REUSEPORT,
    SO_TIMESTAMP,
];
/// Switches of ancillary data.
const ANCILLARY: [i32; 2] = [SO_PASSCRED, SO_PASSSEC];

/// Options that say which way packets take, or whose they seem to be, by level and number. A sandbox has none of them, and
/// who asks for one is told of.
const ROUTING: [((i32, i32), &str); 8] = [
    ((SOL_SOCKET, SO_BINDTODEVICE), "SO_BINDTODEVICE"),
    ((SOL_SOCKET, SO_MARK), "SO_MARK"),
    ((SOL_SOCKET, SO_BINDTOIFINDEX), "SO_BINDTOIFINDEX"),
    ((IPPROTO_IP, 4), "IP_OPTIONS"),
    ((IPPROTO_IP, 19), "IP_TRANSPARENT"),
    ((IPPROTO_IP, 50), "IP_UNICAST_IF"),
    ((IPPROTO_IPV6, 57), "IPV6_RTHDR"),
    ((IPPROTO_IPV6, 75), "IPV6_TRANSPARENT"),
];

/// Gives an option to the guest, cut to the length at `len_gva`, and the length of the copied part there.
fn put(cx: &mut Cx<'_>, to_gva: Gva, len_gva: Gva, bytes: &[u8]) -> SysResult {
    let room: i32 = cx.read_struct(len_gva)?;
    let room = usize::try_from(room).map_err(|_| Errno::EINVAL)?;
    let kept = bytes.get(..room).unwrap_or(bytes);
    cx.write(to_gva, kept)?;
    cx.write_struct(len_gva, &u32::try_from(kept.len()).unwrap_or(u32::MAX))?;
    Ok(0)
}

/// getsockname(2)
///
/// # Errors
/// `EBADF`, `ENOTSOCK`, `EFAULT`, `EINVAL`; `EOPNOTSUPP` for an inherited socket.
pub fn sys_getsockname(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Ptr(name), Ptr(len)) = args.decode();
    let (id, _) = socket_of(cx, "getsockname", fd)?;
    let socket = cx.kernel.objects.sockets.get(id)?;
    let bytes = address::bytes_of(socket.name.as_ref(), socket.family);
    address::write(cx, name, len, &bytes)?;
    Ok(0)
}

/// getpeername(2)
///
/// # Errors
/// As [`sys_getsockname`]; `ENOTCONN` without a peer.
pub fn sys_getpeername(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Ptr(name), Ptr(len)) = args.decode();
    let (id, _) = socket_of(cx, "getpeername", fd)?;
    let sockets = &cx.kernel.objects.sockets;
    let bytes = address::bytes_of(sockets.peer_name(id)?.as_ref(), sockets.get(id)?.family);
    address::write(cx, name, len, &bytes)?;
    Ok(0)
}

fn timeval(ns: Option<u64>) -> [u64; 2] {
    let ns = ns.unwrap_or(0);
    [ns / NSEC_PER_SEC, ns % NSEC_PER_SEC / 1000]
}

/// getsockopt(2)
///
/// # Errors
/// `EBADF`, `ENOTSOCK`, `EFAULT`, `EINVAL`; `ENOPROTOOPT` for an unknown option; `EOPNOTSUPP` for
/// another level than SOL_SOCKET with AF_UNIX, and for an inherited socket.
pub fn sys_getsockopt(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Int(level), Int(option), Ptr(value), Ptr(len)) = args.decode();
    let (id, _) = socket_of(cx, "getsockopt", fd)?;
    let room: i32 = cx.read_struct(len)?;
    if room < 0 {
        return Err(Errno::EINVAL);
    }
    if level != SOL_SOCKET {
        let socket = cx.kernel.objects.sockets.get(id)?;
        let bytes = ip_options::get(socket, level, option, room.cast_unsigned())?;
        return put(cx, value, len, &bytes);
    }
    let socket = cx.kernel.objects.sockets.get_mut(id)?;
    let number = |number: u32| number.as_bytes().to_vec();
    let flag = |socket: &Socket| socket.options.flag(level, option).as_bytes().to_vec();
    let bytes = match option {
        SO_TYPE => number(socket.kind.number()),
        SO_ERROR => {
            let error = socket.take_error().map_or(0, Errno::raw);
            error.as_bytes().to_vec()
        }
        SO_SNDBUF => number(socket.options.sndbuf),
        SO_RCVBUF => number(socket.options.rcvbuf),
        SO_LINGER => socket.options.linger.as_bytes().to_vec(),
        SO_PEERCRED => {
            let Credentials { pid, uid, gid } = socket.peer_credentials;
            [pid, uid, gid].as_bytes().to_vec()
        }
        SO_RCVTIMEO => timeval(socket.options.receive_timeout_ns)
            .as_bytes()
            .to_vec(),
        SO_SNDTIMEO => timeval(socket.options.send_timeout_ns).as_bytes().to_vec(),
        SO_ACCEPTCONN => number(u32::from(socket.is_listening())),
        SO_PROTOCOL => number(match socket.transport() {
            Some(Transport::Tcp) => IPPROTO_TCP.cast_unsigned(),
            Some(Transport::Udp) => IPPROTO_UDP.cast_unsigned(),
            None => 0,
        }),
        SO_DOMAIN => number(socket.family.number().into()),
        option if LOW_WATER.contains(&option) => number(1),
        SO_DEBUG | SO_PRIORITY => flag(socket),
        option if SWITCHES.contains(&option) || ANCILLARY.contains(&option) => flag(socket),
        // A sandbox has one device, and nothing is bound to it.
        SO_BINDTODEVICE => Vec::new(),
        SO_MARK | SO_BINDTOIFINDEX => number(0),
        _ => return Err(Errno::ENOPROTOOPT),
    };
    put(cx, value, len, &bytes)
}

/// SO_RCVTIMEO and SO_SNDTIMEO: 0 waits for ever (sock_set_timeout in net/core/sock.c).
fn timeout_ns(value: Timeval) -> Result<Option<u64>, Errno> {
    if !(0..1_000_000).contains(&value.tv_usec) {
        return Err(Errno::EDOM);
    }
    let Ok(sec) = u64::try_from(value.tv_sec) else {
        // A negative time has passed already.
        return Ok(Some(0));
    };
    let usec = value.tv_usec.unsigned_abs();
    let ns = sec
        .saturating_mul(NSEC_PER_SEC)
        .saturating_add(usec.saturating_mul(1000));
    Ok((ns > 0).then_some(ns))
}

/// setsockopt(2)
///
/// # Errors
/// As [`sys_getsockopt`]; `EDOM` for an invalid time.
pub fn sys_setsockopt(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Int(level), Int(option), Ptr(value), Int(len)) = args.decode();
    let (id, _) = socket_of(cx, "setsockopt", fd)?;
    let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?;
    let result = match level {
        SOL_SOCKET => set(cx, id, option, (value, len)),
        _ => ip_options::set(cx, id, (level, option), (value, len)),
    };
    let routing = ROUTING.iter().find(|(of, _)| *of == (level, option));
    if let (Err(error), Some((_, name))) = (result, routing) {
        let what = format!("setsockopt {name}");
        cx.host.report.deny(what, error, Remedy::NoNetwork);
    }
    result
}

/// Options of SOL_SOCKET.
fn set(cx: &mut Cx<'_>, id: ObjectId, option: i32, (value, len): (Gva, usize)) -> SysResult {
    let level = SOL_SOCKET;
    if len < size_of::<i32>() {
        return Err(Errno::EINVAL);
    }
    let number: i32 = cx.read_struct(value)?;
    match option {
        SO_RCVTIMEO | SO_SNDTIMEO => {
            if len < size_of::<Timeval>() {
                return Err(Errno::EINVAL);
            }
            let timeout = timeout_ns(cx.read_struct(value)?)?;
            let options = &mut cx.kernel.objects.sockets.get_mut(id)?.options;
            if option == SO_RCVTIMEO {
                options.receive_timeout_ns = timeout;
            } else {
                options.send_timeout_ns = timeout;
            }
            return Ok(0);
        }
        SO_LINGER => {
            if len < size_of::<[i32; 2]>() {
                return Err(Errno::EINVAL);
            }
            let [on, seconds]: [i32; 2] = cx.read_struct(value)?;
            let linger = [i32::from(on != 0), seconds];
            cx.kernel.objects.sockets.get_mut(id)?.options.linger = linger;
            return Ok(0);
        }
        SO_DEBUG if number != 0 => return Err(Errno::EACCES),
        _ => {}
    }
    let socket = cx.kernel.objects.sockets.get_mut(id)?;
    match option {
        SO_SNDBUF => {
            socket.set_sndbuf(number.cast_unsigned());
            // Who waits for room may have it now (sk_write_space).
            if socket.is_writable() {
                cx.kernel.wake(Source::Object(id), SPACE);
            }
        }
        SO_RCVBUF => socket.set_rcvbuf(number.cast_unsigned()),
        SO_DEBUG => {}
        SO_PRIORITY if (0..=6).contains(&number) => {
            socket.options.set_flag(level, option, number);
        }
        SO_PRIORITY => return Err(Errno::EPERM),
        option if SWITCHES.contains(&option) || ANCILLARY.contains(&option) => {
            let value = i32::from(number != 0);
            socket.options.set_flag(level, option, value);
        }
        option if LOW_WATER.contains(&option) => {}
        _ => return Err(Errno::ENOPROTOOPT),
    }
    Ok(0)
}
