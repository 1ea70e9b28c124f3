//! Options of IP, IPv6, TCP and netlink.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kvmlet_abi::linux::netlink::SOL_NETLINK;
use kvmlet_abi::linux::socket::{
    IP_BIND_ADDRESS_NO_PORT, IP_FREEBIND, IP_MTU, IP_MTU_DISCOVER, IP_MULTICAST_ALL,
    IP_MULTICAST_LOOP, IP_MULTICAST_TTL, IP_PKTINFO, IP_RECVERR, IP_RECVOPTS, IP_RECVTOS,
    IP_RECVTTL, IP_TOS, IP_TTL, IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPV6_DONTFRAG,
    IPV6_HOPLIMIT, IPV6_MTU, IPV6_MTU_DISCOVER, IPV6_MULTICAST_HOPS, IPV6_MULTICAST_LOOP,
    IPV6_PKTINFO, IPV6_RECVERR, IPV6_RECVHOPLIMIT, IPV6_RECVPKTINFO, IPV6_RECVTCLASS, IPV6_TCLASS,
    IPV6_UNICAST_HOPS, IPV6_V6ONLY, In6Pktinfo, InPktinfo, TCP_CONGESTION, TCP_CORK,
    TCP_DEFER_ACCEPT, TCP_FASTOPEN, TCP_INFO, TCP_KEEPCNT, TCP_KEEPIDLE, TCP_KEEPINTVL,
    TCP_LINGER2, TCP_MAXSEG, TCP_NODELAY, TCP_NOTSENT_LOWAT, TCP_QUICKACK, TCP_SYNCNT,
    TCP_USER_TIMEOUT, TCP_WINDOW_CLAMP,
};
use kvmlet_abi::{Errno, Gva};
use zerocopy::{FromBytes, IntoBytes};

use super::control::Room;
use crate::cx::Cx;
use crate::id::ObjectId;
use crate::net::header::{HOPS, IpHeader, IpWish, IpWishes};
use crate::net::inet::{Transport, mapped};
use crate::net::netlink::{LOOPBACK_INDEX, LOOPBACK_MTU};
use crate::net::{Family, Socket};
use crate::outcome::SysResult;

/// An option that is a number: it is kept, and shown again. Few have an effect where nothing leaves the machine.
struct Number {
    level: i32,
    option: i32,
    default: i32,
    least: i32,
    most: i32,
}

const fn number(level: i32, option: i32, default: i32, least: i32, most: i32) -> Number {
    Number {
        level,
        option,
        default,
        least,
        most,
    }
}

/// A switch that is off at first.
const fn switch(level: i32, option: i32) -> Number {
    number(level, option, 0, 0, 1)
}

const NUMBERS: [Number; 38] = [
    switch(IPPROTO_TCP, TCP_NODELAY),
    switch(IPPROTO_TCP, TCP_CORK),
    number(IPPROTO_TCP, TCP_MAXSEG, 536, 88, 32_767),
    number(IPPROTO_TCP, TCP_KEEPIDLE, 7200, 1, 32_767),
    number(IPPROTO_TCP, TCP_KEEPINTVL, 75, 1, 32_767),
    number(IPPROTO_TCP, TCP_KEEPCNT, 9, 1, 127),
    number(IPPROTO_TCP, TCP_SYNCNT, 6, 1, 127),
    number(IPPROTO_TCP, TCP_LINGER2, 60, -1, i32::MAX),
    number(IPPROTO_TCP, TCP_DEFER_ACCEPT, 0, 0, i32::MAX),
    number(IPPROTO_TCP, TCP_WINDOW_CLAMP, 0, 0, i32::MAX),
    number(IPPROTO_TCP, TCP_QUICKACK, 1, 0, 1),
    number(IPPROTO_TCP, TCP_USER_TIMEOUT, 0, 0, i32::MAX),
    number(IPPROTO_TCP, TCP_FASTOPEN, 0, 0, i32::MAX),
    number(IPPROTO_TCP, TCP_NOTSENT_LOWAT, 0, i32::MIN, i32::MAX),
    number(IPPROTO_IP, IP_TOS, 0, 0, 255),
    number(IPPROTO_IP, IP_TTL, HOPS, 1, 255),
    switch(IPPROTO_IP, IP_RECVOPTS),
    switch(IPPROTO_IP, IP_PKTINFO),
    number(IPPROTO_IP, IP_MTU_DISCOVER, 1, 0, 5),
    switch(IPPROTO_IP, IP_RECVERR),
    switch(IPPROTO_IP, IP_RECVTTL),
    switch(IPPROTO_IP, IP_RECVTOS),
    switch(IPPROTO_IP, IP_FREEBIND),
    switch(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT),
    number(IPPROTO_IP, IP_MULTICAST_TTL, 1, 0, 255),
    number(IPPROTO_IP, IP_MULTICAST_LOOP, 1, 0, 1),
    number(IPPROTO_IP, IP_MULTICAST_ALL, 1, 0, 1),
    number(IPPROTO_IPV6, IPV6_UNICAST_HOPS, HOPS, 0, 255),
    number(IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 1, 0, 255),
    number(IPPROTO_IPV6, IPV6_MULTICAST_LOOP, 1, 0, 1),
    number(IPPROTO_IPV6, IPV6_MTU_DISCOVER, 1, 0, 5),
    switch(IPPROTO_IPV6, IPV6_RECVERR),
    switch(IPPROTO_IPV6, IPV6_V6ONLY),
    switch(IPPROTO_IPV6, IPV6_RECVPKTINFO),
    switch(IPPROTO_IPV6, IPV6_RECVHOPLIMIT),
    switch(IPPROTO_IPV6, IPV6_RECVTCLASS),
    number(IPPROTO_IPV6, IPV6_TCLASS, 0, 0, 255),
    switch(IPPROTO_TCP, TCP_FASTOPEN_CONNECT),
];

const TCP_FASTOPEN_CONNECT: i32 = 30;
/// Ways to avoid congestion: there is none here.
const CONGESTION: [&[u8]; 2] = [b"cubic", b"reno"];
/// The level and number that the chosen one is kept by.
const CONGESTION_KEPT: (i32, i32) = (IPPROTO_TCP, TCP_CONGESTION);
const CONGESTION_NAME_MAX: usize = 16;

/// Refuses a level that the socket has not.
fn check_level(socket: &Socket, level: i32) -> Result<(), Errno> {
    let is_there = match socket.family {
        Family::Unix => return Err(Errno::EOPNOTSUPP),
        Family::Netlink => level == SOL_NETLINK,
        Family::Inet => level == IPPROTO_IP,
        Family::Inet6 => level == IPPROTO_IP || level == IPPROTO_IPV6,
    };
    let is_tcp = socket.transport() == Some(Transport::Tcp) && level == IPPROTO_TCP;
    if is_there || is_tcp {
        Ok(())
    } else {
        Err(Errno::ENOPROTOOPT)
    }
}

fn row(level: i32, option: i32) -> Result<&'static Number, Errno> {
    NUMBERS
        .iter()
        .find(|row| row.level == level && row.option == option)
        .ok_or(Errno::ENOPROTOOPT)
}

/// Those kept are told from ones never set by an offset.
fn value(socket: &Socket, row: &Number) -> i32 {
    socket
        .options
        .flag(row.level, row.option)
        .wrapping_add(row.default)
}

/// The bytes that getsockopt(2) gives.
///
/// # Errors
/// `ENOPROTOOPT`, `EOPNOTSUPP`, `ENOTCONN`.
pub fn get(socket: &Socket, level: i32, option: i32, room: u32) -> Result<Vec<u8>, Errno> {
    check_level(socket, level)?;
    match (level, option) {
        (SOL_NETLINK, option) => {
            let value = socket.options.flag(level, option);
            return Ok(value.as_bytes().to_vec());
        }
        (IPPROTO_TCP, TCP_INFO) => return Ok(tcp_info(socket)),
        (IPPROTO_TCP, TCP_CONGESTION) => {
            let (level, option) = CONGESTION_KEPT;
            let index = usize::try_from(socket.options.flag(level, option)).unwrap_or(0);
            let mut name = CONGESTION.get(index).unwrap_or(&CONGESTION[0]).to_vec();
            name.resize(CONGESTION_NAME_MAX, 0);
            return Ok(name);
        }
        (IPPROTO_IP, IP_MTU) | (IPPROTO_IPV6, IPV6_MTU) => {
            if !socket.is_connected() {
                return Err(Errno::ENOTCONN);
            }
            return Ok(LOOPBACK_MTU.as_bytes().to_vec());
        }
        _ => {}
    }
    let value = value(socket, row(level, option)?);
    // Of IP, numbers that fit are bytes for who asks for less than an int.
    let is_short = level == IPPROTO_IP && (1..4).contains(&room);
    Ok(match u8::try_from(value) {
        Ok(byte) if is_short => vec![byte],
        _ => value.as_bytes().to_vec(),
    })
}

/// setsockopt(2)
///
/// # Errors
/// `ENOPROTOOPT`, `EOPNOTSUPP`, `EINVAL`, `EFAULT`; `ENOENT` for an unknown way to avoid congestion; `ENODEV` for a
/// group of receivers.
pub fn set(
    cx: &mut Cx<'_>,
    id: ObjectId,
    (level, option): (i32, i32),
    (gva, len): (Gva, usize),
) -> SysResult {
    check_level(cx.kernel.objects.sockets.get(id)?, level)?;
    if (level, option) == CONGESTION_KEPT {
        let mut name = vec![0; len.min(CONGESTION_NAME_MAX)];
        cx.read(gva, &mut name)?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let found = CONGESTION.iter().position(|known| *known == name);
        let index = i32::try_from(found.ok_or(Errno::ENOENT)?).unwrap_or(0);
        let socket = cx.kernel.objects.sockets.get_mut(id)?;
        socket.options.set_flag(level, option, index);
        return Ok(0);
    }
    if level == SOL_NETLINK {
        /// The last option of netlink (NETLINK_GET_STRICT_CHK).
        const LAST: i32 = 12;
        if !(1..=LAST).contains(&option) {
            return Err(Errno::ENOPROTOOPT);
        }
    }
    if (level == IPPROTO_IP && MEMBERSHIP.contains(&option))
        || (level == IPPROTO_IPV6 && MEMBERSHIP_6.contains(&option))
    {
        return Err(Errno::ENODEV);
    }
    let row = match level {
        SOL_NETLINK => None,
        _ => Some(row(level, option)?),
    };
    let given = match len {
        4.. => cx.read_struct::<i32>(gva)?,
        1..4 if level == IPPROTO_IP => i32::from(cx.read_struct::<u8>(gva)?),
        _ => return Err(Errno::EINVAL),
    };
    let kept = match row {
        None => given,
        Some(row) if row.least == 0 && row.most == 1 => {
            i32::from(given != 0).wrapping_sub(row.default)
        }
        // The number by itself.
        Some(row) if given == -1 && (row.option == IP_TTL || level == IPPROTO_IPV6) => 0,
        Some(row) if (row.least..=row.most).contains(&given) => given.wrapping_sub(row.default),
        Some(_) => return Err(Errno::EINVAL),
    };
    let socket = cx.kernel.objects.sockets.get_mut(id)?;
    if (level, option) == (IPPROTO_IPV6, IPV6_V6ONLY) && socket.name.is_some() {
        return Err(Errno::EINVAL);
    }
    socket.options.set_flag(level, option, kept);
    Ok(0)
}

/// IP_MULTICAST_IF, IP_ADD_MEMBERSHIP and their kin: the loopback device has no groups.
const MEMBERSHIP: [i32; 6] = [35, 36, 39, 40, 42, 45];
const MEMBERSHIP_6: [i32; 4] = [20, 21, 42, 45];

/// The first part of struct tcp_info: its state, and what does not depend on the way that there is not.
fn tcp_info(socket: &Socket) -> Vec<u8> {
    const BYTES: usize = 104;
    const MSS_AT: usize = 16;
    /// Bytes of a packet over the loopback device without its headers.
    const MSS: u32 = 65_483;
    let mut info = vec![0; BYTES];
    if let Some(state) = info.first_mut() {
        *state = socket.tcp_state_number();
    }
    for at in [MSS_AT, MSS_AT.saturating_add(4)] {
        if let Some(mss) = info.get_mut(at..at.saturating_add(4)) {
            mss.copy_from_slice(MSS.as_bytes());
        }
    }
    info
}

/// Adds what a receiver asks for of the header that a datagram came with: its destination, hops and class
/// (ip_cmsg_recv_offset, ip6_datagram_recv_ctl).
///
/// # Errors
/// `EFAULT`
pub fn put_header(
    cx: &mut Cx<'_>,
    id: ObjectId,
    room: &mut Room,
    header: IpHeader,
) -> Result<(), Errno> {
    let options = cx.kernel.objects.sockets.get(id)?.options.clone();
    let asks = |level, option| options.flag(level, option) != 0;
    let hops = i32::from(header.hops);
    if asks(IPPROTO_IPV6, IPV6_RECVPKTINFO) {
        let info = In6Pktinfo {
            ipi6_addr: mapped(header.to).octets(),
            ipi6_ifindex: LOOPBACK_INDEX,
        };
        room.put(cx, IPPROTO_IPV6, IPV6_PKTINFO, info.as_bytes())?;
    }
    let IpAddr::V4(to) = header.to else {
        if asks(IPPROTO_IPV6, IPV6_RECVHOPLIMIT) {
            room.put(cx, IPPROTO_IPV6, IPV6_HOPLIMIT, hops.as_bytes())?;
        }
        if asks(IPPROTO_IPV6, IPV6_RECVTCLASS) {
            let class = i32::from(header.class);
            room.put(cx, IPPROTO_IPV6, IPV6_TCLASS, class.as_bytes())?;
        }
        return Ok(());
    };
    if asks(IPPROTO_IP, IP_PKTINFO) {
        let info = InPktinfo {
            ipi_ifindex: LOOPBACK_INDEX,
            ipi_spec_dst: to.octets(),
            ipi_addr: to.octets(),
        };
        room.put(cx, IPPROTO_IP, IP_PKTINFO, info.as_bytes())?;
    }
    if asks(IPPROTO_IP, IP_RECVTTL) {
        room.put(cx, IPPROTO_IP, IP_TTL, hops.as_bytes())?;
    }
    if asks(IPPROTO_IP, IP_RECVTOS) {
        room.put(cx, IPPROTO_IP, IP_TOS, header.class.as_bytes())?;
    }
    Ok(())
}

/// Reads a wish for the header of a datagram (ip_cmsg_send, ip6_datagram_send_ctl). Those of other levels are none.
///
/// # Errors
/// `EINVAL` for what is malformed or unknown.
pub fn read_wish(
    (level, kind): (i32, i32),
    data: &[u8],
    wishes: &mut IpWishes,
) -> Result<(), Errno> {
    match level {
        IPPROTO_IP => read_wish_4(kind, data, &mut wishes.four),
        IPPROTO_IPV6 => read_wish_6(kind, data, &mut wishes.six),
        _ => Ok(()),
    }
}

fn read_wish_4(kind: i32, data: &[u8], wish: &mut IpWish) -> Result<(), Errno> {
    match kind {
        IP_PKTINFO => {
            let info = InPktinfo::read_from_bytes(data).map_err(|_| Errno::EINVAL)?;
            wish.source = Some(Ipv4Addr::from(info.ipi_spec_dst).into());
        }
        IP_TTL => {
            let hops = byte(data)?.filter(|hops| *hops > 0);
            wish.hops = Some(hops.ok_or(Errno::EINVAL)?);
        }
        IP_TOS => {
            wish.class = match data {
                [class] => Some(*class),
                data => Some(byte(data)?.ok_or(Errno::EINVAL)?),
            };
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(())
}

fn read_wish_6(kind: i32, data: &[u8], wish: &mut IpWish) -> Result<(), Errno> {
    match kind {
        IPV6_PKTINFO => {
            let (info, _) = In6Pktinfo::read_from_prefix(data).map_err(|_| Errno::EINVAL)?;
            wish.source = Some(Ipv6Addr::from(info.ipi6_addr).into());
        }
        IPV6_HOPLIMIT => wish.hops = byte(data)?,
        IPV6_TCLASS => wish.class = byte(data)?,
        IPV6_DONTFRAG if byte(data)?.is_some_and(|value| value <= 1) => {}
        _ => return Err(Errno::EINVAL),
    }
    Ok(())
}

/// An int from 0 to 255. `None` for -1, which leaves the choice to the kernel.
fn byte(data: &[u8]) -> Result<Option<u8>, Errno> {
    match i32::read_from_bytes(data).map_err(|_| Errno::EINVAL)? {
        -1 => Ok(None),
        value => u8::try_from(value).map(Some).map_err(|_| Errno::EINVAL),
    }
}
