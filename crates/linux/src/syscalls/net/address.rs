//! Addresses as calls carry them (struct sockaddr_un and its kin).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::sync::Arc;

use kvmlet_abi::linux::socket::{
    AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, AF_UNSPEC, SockaddrIn, SockaddrIn6, SockaddrNl,
};
use kvmlet_abi::{Errno, Gva};
use zerocopy::{FromBytes, IntoBytes};

use crate::cx::Cx;
use crate::net::unix::Address;
use crate::net::{Family, Name};

/// Longest address of any family (struct sockaddr_storage), in bytes.
const ADDRESS_MAX: usize = 128;
/// Size of struct sockaddr_un, in bytes.
const UNIX_MAX: usize = 110;
/// Size of sa_family, in bytes.
const FAMILY_BYTES: usize = size_of::<u16>();
/// Size of struct sockaddr_in6 without its last field, which may be left out, in bytes.
const INET6_MIN: usize = 24;

/// Reads an address (move_addr_to_kernel).
///
/// # Errors
/// `EINVAL` for an impossible length, `EFAULT`.
pub fn read(cx: &mut Cx<'_>, gva: Gva, len: i32) -> Result<Vec<u8>, Errno> {
    let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?;
    if len > ADDRESS_MAX {
        return Err(Errno::EINVAL);
    }
    let mut bytes = vec![0; len];
    cx.read(gva, &mut bytes)?;
    Ok(bytes)
}

/// The family that an address begins with; `None` of one that is too short.
#[must_use]
pub fn family(bytes: &[u8]) -> Option<u16> {
    bytes
        .first_chunk()
        .map(|family| u16::from_le_bytes(*family))
}

/// True for an address of AF_UNIX that has a family and nothing else: the socket is given a name.
#[must_use]
pub fn is_unnamed(bytes: &[u8]) -> bool {
    bytes.len() == FAMILY_BYTES && family(bytes) == Some(AF_UNIX)
}

/// An address of AF_UNIX (unix_validate_addr).
///
/// # Errors
/// `EINVAL`
pub fn unix(bytes: &[u8]) -> Result<Address, Errno> {
    if bytes.len() <= FAMILY_BYTES || bytes.len() > UNIX_MAX || family(bytes) != Some(AF_UNIX) {
        return Err(Errno::EINVAL);
    }
    let name = bytes.get(FAMILY_BYTES..).unwrap_or_default();
    if name.first() == Some(&0) {
        return Ok(Address::Abstract(Arc::from(name)));
    }
    let path = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(Address::Path(path.to_vec()))
}

/// An address and a port, for a socket of this family.
///
/// # Errors
/// `EINVAL` for one that is too short, `EAFNOSUPPORT` for one of another family.
pub fn inet(bytes: &[u8], of: Family) -> Result<SocketAddr, Errno> {
    let unsupported = Errno::EAFNOSUPPORT;
    if of == Family::Inet6 {
        if bytes.len() < INET6_MIN {
            return Err(Errno::EINVAL);
        }
        if family(bytes) != Some(AF_INET6) {
            return Err(unsupported);
        }
        let mut whole = bytes.to_vec();
        whole.resize(size_of::<SockaddrIn6>(), 0);
        let given = SockaddrIn6::read_from_bytes(&whole).map_err(|_| Errno::EINVAL)?;
        let ip = Ipv6Addr::from(given.sin6_addr);
        let port = u16::from_be_bytes(given.sin6_port);
        return Ok(SocketAddrV6::new(ip, port, given.sin6_flowinfo, 0).into());
    }
    let Ok((given, _)) = SockaddrIn::read_from_prefix(bytes) else {
        return Err(Errno::EINVAL);
    };
    let ip = Ipv4Addr::from(given.sin_addr);
    match given.sin_family {
        AF_INET => {}
        // As good as AF_INET with no address (__inet_bind).
        AF_UNSPEC if ip.is_unspecified() => {}
        _ => return Err(unsupported),
    }
    Ok(SocketAddrV4::new(ip, u16::from_be_bytes(given.sin_port)).into())
}

/// A port of netlink.
///
/// # Errors
/// `EINVAL`
pub fn netlink(bytes: &[u8]) -> Result<u32, Errno> {
    let given = SockaddrNl::read_from_prefix(bytes).map_err(|_| Errno::EINVAL)?;
    if given.0.nl_family != AF_NETLINK {
        return Err(Errno::EINVAL);
    }
    Ok(given.0.nl_pid)
}

/// The bytes of a name; of a socket without one, what its family has for that.
#[must_use]
pub fn bytes_of(name: Option<&Name>, of: Family) -> Vec<u8> {
    match (name, of) {
        (Some(Name::Unix(name)), _) => [AF_UNIX.as_bytes(), name].concat(),
        (Some(Name::Inet(SocketAddr::V4(four))), _) => SockaddrIn {
            sin_family: AF_INET,
            sin_port: four.port().to_be_bytes(),
            sin_addr: four.ip().octets(),
            sin_zero: [0; 8],
        }
        .as_bytes()
        .to_vec(),
        (Some(Name::Inet(SocketAddr::V6(six))), _) => SockaddrIn6 {
            sin6_family: AF_INET6,
            sin6_port: six.port().to_be_bytes(),
            sin6_flowinfo: 0,
            sin6_addr: six.ip().octets(),
            sin6_scope_id: 0,
        }
        .as_bytes()
        .to_vec(),
        (Some(Name::Netlink(port)), _) => netlink_bytes(*port),
        (None, Family::Unix) => AF_UNIX.as_bytes().to_vec(),
        (None, Family::Inet) => {
            let none = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
            bytes_of(Some(&Name::Inet(none)), of)
        }
        (None, Family::Inet6) => {
            let none = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
            bytes_of(Some(&Name::Inet(none)), of)
        }
        (None, Family::Netlink) => netlink_bytes(0),
    }
}

fn netlink_bytes(port: u32) -> Vec<u8> {
    SockaddrNl {
        nl_family: AF_NETLINK,
        nl_pad: 0,
        nl_pid: port,
        nl_groups: 0,
    }
    .as_bytes()
    .to_vec()
}

/// Gives an address to the guest, cut to the length at `len_gva`, and its own length there (move_addr_to_user).
///
/// # Errors
/// `EINVAL` for a negative length, `EFAULT`.
pub fn write(cx: &mut Cx<'_>, gva: Gva, len_gva: Gva, bytes: &[u8]) -> Result<(), Errno> {
    let room: i32 = cx.read_struct(len_gva)?;
    let room = usize::try_from(room).map_err(|_| Errno::EINVAL)?;
    cx.write(gva, bytes.get(..room).unwrap_or(bytes))?;
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    cx.write_struct(len_gva, &len)
}
