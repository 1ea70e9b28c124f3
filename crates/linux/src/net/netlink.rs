//! rtnetlink(7): the answers to who asks for devices, addresses and routes. There is the loopback device only, and it
//! never changes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kvmlet_abi::Errno;
use kvmlet_abi::linux::netlink::{
    ARPHRD_LOOPBACK, IFA_ADDRESS, IFA_CACHEINFO, IFA_F_PERMANENT, IFA_FLAGS, IFA_INFINITY,
    IFA_LABEL, IFA_LOCAL, IFF_LOOPBACK, IFF_LOWER_UP, IFF_RUNNING, IFF_UP, IFLA_ADDRESS,
    IFLA_BROADCAST, IFLA_IFNAME, IFLA_MTU, IFLA_OPERSTATE, IFLA_QDISC, IFLA_TXQLEN, IfaCacheinfo,
    Ifaddrmsg, Ifinfomsg, NLM_F_ACK, NLM_F_DUMP, NLM_F_MULTI, NLMSG_DONE, NLMSG_ERROR, Nlmsghdr,
    RT_SCOPE_HOST, RTM_GETADDR, RTM_GETLINK, RTM_GETROUTE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE,
};
use kvmlet_abi::linux::socket::{AF_INET, AF_INET6, AF_UNSPEC};
use zerocopy::{FromBytes, IntoBytes};

use super::queue::{self, Message};
use super::{Name, routes};
use crate::cx::Cx;
use crate::id::ObjectId;
use crate::ipc::mq::{News, Notice};
use crate::kernel::Kernel;

/// The loopback device's number.
pub const LOOPBACK_INDEX: i32 = 1;
/// Its name.
pub const LOOPBACK_NAME: &str = "lo";
/// The longest packet that it takes, in bytes.
pub const LOOPBACK_MTU: u32 = 65_536;
/// Packets that wait for it at most.
pub const LOOPBACK_QUEUE: u32 = 1000;
/// Its flags (SIOCGIFFLAGS).
pub const LOOPBACK_FLAGS: u32 = IFF_UP | IFF_LOOPBACK | IFF_RUNNING;
/// The last type of request: 3 below each multiple of 4 is a new thing, 2 a look at one.
const LOOKS: u16 = 2;

/// Binds a socket to a port of netlink; to one of its own with 0.
///
/// # Errors
/// `EINVAL` for one that is bound to another.
pub fn bind(cx: &mut Cx<'_>, id: ObjectId, port: u32) -> Result<(), Errno> {
    let pid = cx.process()?.pid.0.cast_unsigned();
    let socket = cx.kernel.objects.sockets.get_mut(id)?;
    match &socket.name {
        Some(Name::Netlink(old)) if port == 0 || *old == port => {}
        Some(_) => return Err(Errno::EINVAL),
        None => socket.name = Some(Name::Netlink(if port == 0 { pid } else { port })),
    }
    Ok(())
}

/// Answers a request.
///
/// # Errors
/// `ECONNREFUSED` for one to another process, `ENOBUFS` if the answers to earlier ones fill the queue.
pub fn send(cx: &mut Cx<'_>, (id, port): (ObjectId, u32), bytes: &[u8]) -> Result<usize, Errno> {
    if port != 0 {
        return Err(Errno::ECONNREFUSED);
    }
    bind(cx, id, 0)?;
    if is_full(cx.kernel, id)? {
        return Err(Errno::ENOBUFS);
    }
    let socket = cx.kernel.objects.sockets.get(id)?;
    let own = match socket.name {
        Some(Name::Netlink(port)) => port,
        _ => 0,
    };
    let Ok((request, body)) = Nlmsghdr::read_from_prefix(bytes) else {
        return Ok(bytes.len());
    };
    let uid = cx.creds().user.real;
    for answer in answers(&request, body, (own, uid)) {
        let message = Message::datagram(&answer, Name::Netlink(0), None);
        cx.machine
            .memory
            .charge(message.charged_bytes())
            .map_err(|_| Errno::ENOBUFS)?;
        queue::deliver(cx.kernel, id, message)?;
    }
    Ok(bytes.len())
}

/// True if a socket takes no more for now.
///
/// # Errors
/// `EBADF` if it is gone.
pub fn is_full(kernel: &Kernel, id: ObjectId) -> Result<bool, Errno> {
    let socket = kernel.objects.sockets.get(id)?;
    Ok(socket.queue.weight() > u64::from(socket.options.rcvbuf))
}

/// Gives a socket the notice that it was named for (mq_notify(3)). It is lost with the socket, and without memory.
pub fn tell(cx: &mut Cx<'_>, notice: Notice, news: News) {
    let Notice::Socket { socket, mut cookie } = notice else {
        return;
    };
    if let Some(last) = cookie.last_mut() {
        *last = news as u8;
    }
    let message = Message::datagram(&cookie, Name::Netlink(0), None);
    let is_there = cx.kernel.objects.sockets.get(socket).is_ok();
    let memory = &mut cx.machine.memory;
    if is_there && memory.charge(message.charged_bytes()).is_ok() {
        // It is there.
        let _ = queue::deliver(cx.kernel, socket, message);
    }
}

/// A message with this content.
fn message(request: &Nlmsghdr, port: u32, (kind, flags): (u16, u16), body: &[u8]) -> Vec<u8> {
    let len = size_of::<Nlmsghdr>().saturating_add(body.len());
    let header = Nlmsghdr {
        nlmsg_len: u32::try_from(len).unwrap_or(u32::MAX),
        nlmsg_type: kind,
        nlmsg_flags: flags,
        nlmsg_seq: request.nlmsg_seq,
        nlmsg_pid: port,
    };
    let mut bytes = [header.as_bytes(), body].concat();
    bytes.resize(len.next_multiple_of(4), 0);
    bytes
}

pub(super) fn attribute(into: &mut Vec<u8>, kind: u16, value: &[u8]) {
    const HEADER: usize = 4;
    let len = HEADER.saturating_add(value.len());
    into.extend_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_ne_bytes());
    into.extend_from_slice(&kind.to_ne_bytes());
    into.extend_from_slice(value);
    into.resize(into.len().next_multiple_of(4), 0);
}

fn loopback() -> Vec<u8> {
    let link = Ifinfomsg {
        ifi_family: 0,
        pad: 0,
        ifi_type: ARPHRD_LOOPBACK,
        ifi_index: LOOPBACK_INDEX,
        ifi_flags: LOOPBACK_FLAGS | IFF_LOWER_UP,
        ifi_change: 0,
    };
    let mut body = link.as_bytes().to_vec();
    attribute(&mut body, IFLA_IFNAME, b"lo\0");
    attribute(&mut body, IFLA_TXQLEN, LOOPBACK_QUEUE.as_bytes());
    attribute(&mut body, IFLA_OPERSTATE, &[0]);
    attribute(&mut body, IFLA_MTU, LOOPBACK_MTU.as_bytes());
    attribute(&mut body, IFLA_QDISC, b"noqueue\0");
    attribute(&mut body, IFLA_ADDRESS, &[0; 6]);
    attribute(&mut body, IFLA_BROADCAST, &[0; 6]);
    body
}

fn address(ip: IpAddr) -> Vec<u8> {
    let (family, prefix) = match ip {
        IpAddr::V4(_) => (AF_INET, 8),
        IpAddr::V6(_) => (AF_INET6, 128),
    };
    let header = Ifaddrmsg {
        ifa_family: u8::try_from(family).unwrap_or(0),
        ifa_prefixlen: prefix,
        ifa_flags: IFA_F_PERMANENT,
        ifa_scope: RT_SCOPE_HOST,
        ifa_index: LOOPBACK_INDEX.cast_unsigned(),
    };
    let mut body = header.as_bytes().to_vec();
    match ip {
        IpAddr::V4(four) => {
            attribute(&mut body, IFA_ADDRESS, &four.octets());
            attribute(&mut body, IFA_LOCAL, &four.octets());
            attribute(&mut body, IFA_LABEL, b"lo\0");
        }
        IpAddr::V6(six) => attribute(&mut body, IFA_ADDRESS, &six.octets()),
    }
    attribute(&mut body, IFA_FLAGS, u32::from(IFA_F_PERMANENT).as_bytes());
    let forever = IfaCacheinfo {
        ifa_prefered: IFA_INFINITY,
        ifa_valid: IFA_INFINITY,
        ..IfaCacheinfo::default()
    };
    attribute(&mut body, IFA_CACHEINFO, forever.as_bytes());
    body
}

/// The datagrams that answer a request of user `uid`.
fn answers(request: &Nlmsghdr, body: &[u8], (port, uid): (u32, u32)) -> Vec<Vec<u8>> {
    let dumps = request.nlmsg_flags & NLM_F_DUMP == NLM_F_DUMP;
    let family = body.first().copied().map_or(AF_UNSPEC, u16::from);
    let is_of = |wanted: u16| family == AF_UNSPEC || family == wanted;
    let found: Vec<(u16, Vec<u8>)> = match request.nlmsg_type {
        RTM_GETLINK => vec![(RTM_NEWLINK, loopback())],
        RTM_GETADDR => {
            let four = is_of(AF_INET).then(|| address(IpAddr::V4(Ipv4Addr::LOCALHOST)));
            let six = is_of(AF_INET6).then(|| address(IpAddr::V6(Ipv6Addr::LOCALHOST)));
            let both = four.into_iter().chain(six);
            both.map(|body| (RTM_NEWADDR, body)).collect()
        }
        RTM_GETROUTE if dumps => {
            let each = routes::all(is_of).into_iter();
            each.map(|body| (RTM_NEWROUTE, body)).collect()
        }
        RTM_GETROUTE if body.is_empty() => return Vec::new(),
        RTM_GETROUTE => match routes::one(body, uid) {
            Ok(route) => vec![(RTM_NEWROUTE, route)],
            Err(errno) => return vec![error(request, port, errno)],
        },
        kind if kind % 4 == LOOKS => return vec![error(request, port, Errno::EOPNOTSUPP)],
        kind if kind < RTM_NEWLINK => return Vec::new(),
        _ => return vec![error(request, port, Errno::EPERM)],
    };
    let all = |flags: u16| {
        let each = found.iter();
        each.flat_map(move |(kind, body)| message(request, port, (*kind, flags), body))
            .collect::<Vec<u8>>()
    };
    if dumps {
        let done = message(request, port, (NLMSG_DONE, NLM_F_MULTI), 0u32.as_bytes());
        let first = all(NLM_F_MULTI);
        return [first, done]
            .into_iter()
            .filter(|one| !one.is_empty())
            .collect();
    }
    let is_loopback = Ifinfomsg::read_from_prefix(body)
        .is_ok_and(|(asked, _)| [0, LOOPBACK_INDEX].contains(&asked.ifi_index));
    match request.nlmsg_type {
        RTM_GETROUTE => {}
        RTM_GETLINK if is_loopback => {}
        RTM_GETLINK => return vec![error(request, port, Errno::ENODEV)],
        // Nobody asks for one address.
        _ => return vec![error(request, port, Errno::ENETUNREACH)],
    }
    let mut answers = vec![all(0)];
    if request.nlmsg_flags & NLM_F_ACK != 0 {
        let body = [0u32.as_bytes(), request.as_bytes()].concat();
        answers.push(message(request, port, (NLMSG_ERROR, 0), &body));
    }
    answers
}

fn error(request: &Nlmsghdr, port: u32, error: Errno) -> Vec<u8> {
    let body = [error.raw().wrapping_neg().as_bytes(), request.as_bytes()].concat();
    message(request, port, (NLMSG_ERROR, 0), &body)
}
