//! rtnetlink(7) of routes: those of the loopback device, which are in the table of local addresses.
//!
//! Linux differs: hosts that a rule allows are reached without a route that is shown.

use std::net::{Ipv4Addr, Ipv6Addr};

use kvmlet_abi::Errno;
use kvmlet_abi::linux::netlink::{
    RT_SCOPE_HOST, RT_SCOPE_LINK, RT_TABLE_LOCAL, RT_TABLE_MAIN, RTA_CACHEINFO, RTA_DST, RTA_OIF,
    RTA_PREF, RTA_PREFSRC, RTA_PRIORITY, RTA_SRC, RTA_TABLE, RTA_UID, RTCF_BROADCAST, RTCF_LOCAL,
    RTM_F_CLONED, RTN_BROADCAST, RTN_LOCAL, RTPROT_KERNEL, RtaCacheinfo, Rtmsg,
};
use kvmlet_abi::linux::socket::{AF_INET, AF_INET6};
use zerocopy::{FromBytes, IntoBytes};

use super::netlink::{LOOPBACK_INDEX, attribute};

/// The last address of 127.0.0.0/8, to which it is broadcast.
const BROADCAST: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 255);

fn family(number: u16) -> u8 {
    u8::try_from(number).unwrap_or(0)
}

/// The value of the first attribute of this kind.
fn given(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let (header, _) = <[u16; 2]>::read_from_prefix(attributes).ok()?;
        let len = usize::from(header[0]);
        let value = attributes.get(4..len)?;
        if header[1] == kind {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

/// The route to one address, as RTM_NEWROUTE carries it; `uid` is who asks.
///
/// # Errors
/// `EINVAL` and `ERANGE` for a request that is cut short, `EOPNOTSUPP` for another family, `ENETUNREACH` for an address
/// that is not the loopback device's.
pub(super) fn one(request: &[u8], uid: u32) -> Result<Vec<u8>, Errno> {
    let asked = request.first().copied();
    let is_ip = [AF_INET, AF_INET6].map(family).map(Some).contains(&asked);
    if !is_ip {
        return Err(Errno::EOPNOTSUPP);
    }
    let Ok((_, attributes)) = Rtmsg::read_from_prefix(request) else {
        return Err(Errno::EINVAL);
    };
    let to = given(attributes, RTA_DST);
    if asked == Some(family(AF_INET)) {
        let to = match to {
            Some(bytes) => *bytes.first_chunk::<4>().ok_or(Errno::ERANGE)?,
            None => [0; 4],
        };
        return four(to.into(), uid).ok_or(Errno::ENETUNREACH);
    }
    let to = match to {
        Some(bytes) => *bytes.first_chunk::<16>().ok_or(Errno::EINVAL)?,
        None => [0; 16],
    };
    let to = Ipv6Addr::from(to);
    match to.is_loopback() {
        true => Ok(six(Asked::One)),
        false => Err(Errno::ENETUNREACH),
    }
}

/// As rt_fill_info in net/ipv4/route.c has it.
fn four(to: Ipv4Addr, uid: u32) -> Option<Vec<u8>> {
    if !to.is_loopback() && !to.is_unspecified() {
        return None;
    }
    let (kind, flags) = match to == BROADCAST {
        true => (RTN_BROADCAST, RTCF_BROADCAST | RTCF_LOCAL),
        false => (RTN_LOCAL, RTCF_LOCAL),
    };
    let route = Rtmsg {
        rtm_family: family(AF_INET),
        rtm_dst_len: 32,
        rtm_table: RT_TABLE_MAIN,
        rtm_type: kind,
        rtm_flags: flags | RTM_F_CLONED,
        ..Rtmsg::default()
    };
    let mut body = route.as_bytes().to_vec();
    let loopback = Ipv4Addr::LOCALHOST.octets();
    attribute(&mut body, RTA_TABLE, u32::from(RT_TABLE_MAIN).as_bytes());
    attribute(&mut body, RTA_DST, &to.octets());
    attribute(&mut body, RTA_OIF, LOOPBACK_INDEX.as_bytes());
    attribute(&mut body, RTA_PREFSRC, &loopback);
    attribute(&mut body, RTA_UID, uid.as_bytes());
    attribute(&mut body, RTA_CACHEINFO, used_once().as_bytes());
    Some(body)
}

fn used_once() -> RtaCacheinfo {
    RtaCacheinfo {
        rta_clntref: 1,
        ..RtaCacheinfo::default()
    }
}

/// The question that a route answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// That for one address.
    One,
    /// That for all routes.
    All,
}

/// The route to ::1, as rt6_fill_node in net/ipv6/route.c has it.
fn six(asked: Asked) -> Vec<u8> {
    let loopback = Ipv6Addr::LOCALHOST.octets();
    let route = Rtmsg {
        rtm_family: family(AF_INET6),
        rtm_dst_len: 128,
        rtm_src_len: if asked == Asked::One { 128 } else { 0 },
        rtm_table: RT_TABLE_LOCAL,
        rtm_protocol: RTPROT_KERNEL,
        rtm_type: RTN_LOCAL,
        ..Rtmsg::default()
    };
    let mut body = route.as_bytes().to_vec();
    attribute(&mut body, RTA_TABLE, u32::from(RT_TABLE_LOCAL).as_bytes());
    attribute(&mut body, RTA_DST, &loopback);
    if asked == Asked::One {
        attribute(&mut body, RTA_SRC, &[0; 16]);
        attribute(&mut body, RTA_PREFSRC, &loopback);
    }
    attribute(&mut body, RTA_PRIORITY, 0u32.as_bytes());
    attribute(&mut body, RTA_OIF, LOOPBACK_INDEX.as_bytes());
    attribute(&mut body, RTA_CACHEINFO, used_once().as_bytes());
    attribute(&mut body, RTA_PREF, &[0]);
    body
}

/// All routes of the families that are asked for.
pub(super) fn all(is_of: impl Fn(u16) -> bool) -> Vec<Vec<u8>> {
    let loopback = Ipv4Addr::LOCALHOST;
    let four = [
        (Ipv4Addr::new(127, 0, 0, 0), 8, (RTN_LOCAL, RT_SCOPE_HOST)),
        (loopback, 32, (RTN_LOCAL, RT_SCOPE_HOST)),
        (BROADCAST, 32, (RTN_BROADCAST, RT_SCOPE_LINK)),
    ];
    let mut found = Vec::new();
    for (to, prefix, (kind, scope)) in four.into_iter().filter(|_| is_of(AF_INET)) {
        let route = Rtmsg {
            rtm_family: family(AF_INET),
            rtm_dst_len: prefix,
            rtm_table: RT_TABLE_LOCAL,
            rtm_protocol: RTPROT_KERNEL,
            rtm_scope: scope,
            rtm_type: kind,
            ..Rtmsg::default()
        };
        let mut body = route.as_bytes().to_vec();
        attribute(&mut body, RTA_TABLE, u32::from(RT_TABLE_LOCAL).as_bytes());
        attribute(&mut body, RTA_DST, &to.octets());
        attribute(&mut body, RTA_PREFSRC, &loopback.octets());
        attribute(&mut body, RTA_OIF, LOOPBACK_INDEX.as_bytes());
        found.push(body);
    }
    if is_of(AF_INET6) {
        found.push(six(Asked::All));
    }
    found
}
