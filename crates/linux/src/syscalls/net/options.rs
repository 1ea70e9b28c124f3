//! Names and options of a pair of sockets.

use kvmlet_abi::linux::Timeval;
use kvmlet_abi::linux::socket::{
    AF_UNIX, SO_ACCEPTCONN, SO_BROADCAST, SO_DEBUG, SO_DOMAIN, SO_DONTROUTE, SO_ERROR,
    SO_KEEPALIVE, SO_LINGER, SO_OOBINLINE, SO_PASSCRED, SO_PASSSEC, SO_PEERCRED, SO_PRIORITY,
    SO_PROTOCOL, SO_RCVBUF, SO_RCVLOWAT, SO_RCVTIMEO, SO_REUSEADDR, SO_REUSEPORT, SO_SNDBUF,
    SO_SNDLOWAT, SO_SNDTIMEO, SO_TIMESTAMP, SO_TYPE, SOL_SOCKET,
};
use kvmlet_abi::{Errno, Gva};
use zerocopy::IntoBytes;

use super::socket_of;
use crate::clock::NSEC_PER_SEC;
use crate::cx::Cx;
use crate::outcome::SysResult;
use crate::syscalls::args::{Args, Fd, Int, Ptr};
use crate::vfs::unix::Socket;

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
/// They would add ancillary data.
const ANCILLARY: [i32; 2] = [SO_PASSCRED, SO_PASSSEC];

/// Gives a name or an option to the guest, cut to the length at `len_gva`, and its length there.
fn put(cx: &mut Cx<'_>, to_gva: Gva, len_gva: Gva, bytes: &[u8], shown: Shown) -> SysResult {
    let room: i32 = cx.read_struct(len_gva)?;
    let room = usize::try_from(room).map_err(|_| Errno::EINVAL)?;
    let kept = bytes.get(..room).unwrap_or(bytes);
    cx.write(to_gva, kept)?;
    let len = match shown {
        Shown::Whole => bytes.len(),
        Shown::Kept => kept.len(),
    };
    cx.write_struct(len_gva, &u32::try_from(len).unwrap_or(u32::MAX))?;
    Ok(0)
}

/// Which length is told of a value that was cut.
#[derive(Clone, Copy)]
enum Shown {
    /// Its own: names.
    Whole,
    /// The length of the copied part: options.
    Kept,
}

/// getsockname(2): the family only.
///
/// # Errors
/// `EBADF`, `ENOTSOCK`, `EFAULT`, `EINVAL`; `EOPNOTSUPP` for an inherited socket.
pub fn sys_getsockname(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Ptr(name), Ptr(len)) = args.decode();
    socket_of(cx, "getsockname", fd)?;
    put(cx, name, len, AF_UNIX.as_bytes(), Shown::Whole)
}

/// getpeername(2): the family only.
///
/// # Errors
/// As [`sys_getsockname`]; `ENOTCONN` for a datagram socket that has lost its peer.
pub fn sys_getpeername(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Ptr(name), Ptr(len)) = args.decode();
    let (id, _) = socket_of(cx, "getpeername", fd)?;
    if !cx.kernel.objects.sockets.get(id)?.is_connected() {
        return Err(Errno::ENOTCONN);
    }
    put(cx, name, len, AF_UNIX.as_bytes(), Shown::Whole)
}

fn timeval(ns: Option<u64>) -> [u64; 2] {
    let ns = ns.unwrap_or(0);
    [ns / NSEC_PER_SEC, ns % NSEC_PER_SEC / 1000]
}

/// getsockopt(2)
///
/// # Errors
/// `EBADF`, `ENOTSOCK`, `EFAULT`, `EINVAL`; `ENOPROTOOPT` for an unknown option; `EOPNOTSUPP` for
/// another level than SOL_SOCKET and for an inherited socket.
pub fn sys_getsockopt(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Int(level), Int(option), Ptr(value), Ptr(len)) = args.decode();
    let (id, _) = socket_of(cx, "getsockopt", fd)?;
    let room: i32 = cx.read_struct(len)?;
    if room < 0 {
        return Err(Errno::EINVAL);
    }
    if level != SOL_SOCKET {
        return Err(Errno::EOPNOTSUPP);
    }
    let socket = cx.kernel.objects.sockets.get_mut(id)?;
    let number = |number: u32| number.as_bytes().to_vec();
    let flag = |socket: &Socket| {
        let value = socket.options.flags.get(&option).copied();
        value.unwrap_or(0).as_bytes().to_vec()
    };
    let bytes = match option {
        SO_TYPE => number(socket.kind.number()),
        SO_ERROR => {
            let error = socket.take_error().map_or(0, Errno::raw);
            error.as_bytes().to_vec()
        }
        SO_SNDBUF => number(socket.options.sndbuf),
        SO_RCVBUF => number(socket.options.rcvbuf),
        SO_LINGER => socket.options.linger.as_bytes().to_vec(),
        SO_PEERCRED => socket.creator.as_bytes().to_vec(),
        SO_RCVTIMEO => timeval(socket.options.receive_timeout_ns)
            .as_bytes()
            .to_vec(),
        SO_SNDTIMEO => timeval(socket.options.send_timeout_ns).as_bytes().to_vec(),
        SO_ACCEPTCONN | SO_PROTOCOL => number(0),
        SO_DOMAIN => number(AF_UNIX.into()),
        option if LOW_WATER.contains(&option) => number(1),
        SO_DEBUG | SO_PRIORITY => flag(socket),
        option if SWITCHES.contains(&option) || ANCILLARY.contains(&option) => flag(socket),
        _ => return Err(Errno::ENOPROTOOPT),
    };
    put(cx, value, len, &bytes, Shown::Kept)
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
    if level != SOL_SOCKET {
        return Err(Errno::EOPNOTSUPP);
    }
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
        option if ANCILLARY.contains(&option) && number != 0 => {
            cx.host
                .report
                .unsupported("setsockopt", "ancillary data".to_owned());
            return Err(Errno::EINVAL);
        }
        _ => {}
    }
    let socket = cx.kernel.objects.sockets.get_mut(id)?;
    match option {
        SO_SNDBUF => socket.set_sndbuf(number.cast_unsigned()),
        SO_RCVBUF => socket.set_rcvbuf(number.cast_unsigned()),
        SO_DEBUG => {}
        SO_PRIORITY if (0..=6).contains(&number) => {
            socket.options.flags.insert(option, number);
        }
        SO_PRIORITY => return Err(Errno::EPERM),
        option if SWITCHES.contains(&option) || ANCILLARY.contains(&option) => {
            socket.options.flags.insert(option, i32::from(number != 0));
        }
        option if LOW_WATER.contains(&option) => {}
        _ => return Err(Errno::ENOPROTOOPT),
    }
    Ok(0)
}
