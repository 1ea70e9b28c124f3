//! ioctl(2) on devices of the network (netdevice(7)): the loopback device.

use kvmlet_abi::linux::netlink::{
    ARPHRD_LOOPBACK, Ifconf, Ifreq, SIOCGIFADDR, SIOCGIFBRDADDR, SIOCGIFCONF, SIOCGIFDSTADDR,
    SIOCGIFFLAGS, SIOCGIFHWADDR, SIOCGIFINDEX, SIOCGIFMETRIC, SIOCGIFMTU, SIOCGIFNAME,
    SIOCGIFNETMASK, SIOCGIFTXQLEN,
};
use kvmlet_abi::linux::socket::AF_INET;
use kvmlet_abi::{Errno, Gva};
use zerocopy::IntoBytes;

use crate::cx::Cx;
use crate::net::Family;
use crate::net::netlink::{
    LOOPBACK_FLAGS, LOOPBACK_INDEX, LOOPBACK_MTU, LOOPBACK_NAME, LOOPBACK_QUEUE,
};

const ADDRESS: [u8; 4] = [127, 0, 0, 1];
const NETMASK: [u8; 4] = [255, 0, 0, 0];

/// Answers a request about a device; `None` for another kind of request.
///
/// # Errors
/// `ENODEV` for a device that is not there, `EADDRNOTAVAIL`, `EFAULT`.
pub fn control(
    cx: &mut Cx<'_>,
    family: Family,
    (request, gva): (u32, Gva),
) -> Result<Option<u64>, Errno> {
    let has_addresses = matches!(family, Family::Inet | Family::Inet6);
    match request {
        SIOCGIFCONF if has_addresses => list(cx, gva).map(Some),
        SIOCGIFNAME => {
            let mut asked: Ifreq = cx.read_struct(gva)?;
            let index = i32::from_le_bytes(*asked.value.first_chunk().ok_or(Errno::EFAULT)?);
            if index != LOOPBACK_INDEX {
                return Err(Errno::ENODEV);
            }
            asked.ifr_name = named();
            cx.write_struct(gva, &asked)?;
            Ok(Some(0))
        }
        SIOCGIFADDR | SIOCGIFDSTADDR | SIOCGIFBRDADDR | SIOCGIFNETMASK if !has_addresses => {
            Ok(None)
        }
        SIOCGIFFLAGS | SIOCGIFADDR | SIOCGIFDSTADDR | SIOCGIFBRDADDR | SIOCGIFNETMASK
        | SIOCGIFMETRIC | SIOCGIFMTU | SIOCGIFHWADDR | SIOCGIFINDEX | SIOCGIFTXQLEN => {
            tell(cx, request, gva).map(Some)
        }
        _ => Ok(None),
    }
}

fn named() -> [u8; 16] {
    let mut name = [0; 16];
    name.iter_mut()
        .zip(LOOPBACK_NAME.bytes())
        .for_each(|(to, byte)| *to = byte);
    name
}

/// struct sockaddr_in without a port, in the room of a union.
fn socket_address(ip: [u8; 4]) -> [u8; 24] {
    let mut value = [0; 24];
    let bytes = [AF_INET.to_le_bytes(), [0; 2]];
    value
        .iter_mut()
        .zip(bytes.as_flattened().iter().chain(&ip))
        .for_each(|(to, byte)| *to = *byte);
    value
}

fn tell(cx: &mut Cx<'_>, request: u32, gva: Gva) -> Result<u64, Errno> {
    let mut asked: Ifreq = cx.read_struct(gva)?;
    if asked.ifr_name.split(|byte| *byte == 0).next() != Some(LOOPBACK_NAME.as_bytes()) {
        return Err(Errno::ENODEV);
    }
    let mut put = |bytes: &[u8]| {
        asked
            .value
            .iter_mut()
            .zip(bytes)
            .for_each(|(to, byte)| *to = *byte);
    };
    match request {
        SIOCGIFFLAGS => put(LOOPBACK_FLAGS.to_le_bytes().get(..2).unwrap_or_default()),
        SIOCGIFADDR | SIOCGIFDSTADDR => put(&socket_address(ADDRESS)),
        SIOCGIFBRDADDR => put(&socket_address([0; 4])),
        SIOCGIFNETMASK => put(&socket_address(NETMASK)),
        SIOCGIFMTU => put(LOOPBACK_MTU.as_bytes()),
        SIOCGIFHWADDR => {
            put(&[0; 24]);
            asked
                .value
                .iter_mut()
                .zip(ARPHRD_LOOPBACK.to_le_bytes())
                .for_each(|(to, byte)| *to = byte);
        }
        SIOCGIFINDEX => put(LOOPBACK_INDEX.as_bytes()),
        SIOCGIFTXQLEN => put(LOOPBACK_QUEUE.as_bytes()),
        _ => put(&[0; 4]),
    }
    cx.write_struct(gva, &asked)?;
    Ok(0)
}

/// SIOCGIFCONF: devices with an address of IPv4, as many as have room.
fn list(cx: &mut Cx<'_>, gva: Gva) -> Result<u64, Errno> {
    let mut asked: Ifconf = cx.read_struct(gva)?;
    let one = Ifreq {
        ifr_name: named(),
        value: socket_address(ADDRESS),
    };
    let len = i32::try_from(size_of::<Ifreq>()).unwrap_or(i32::MAX);
    if asked.ifc_buf == 0 {
        asked.ifc_len = len;
    } else if asked.ifc_len >= len {
        cx.write_struct(Gva(asked.ifc_buf), &one)?;
        asked.ifc_len = len;
    } else {
        asked.ifc_len = 0;
    }
    cx.write_struct(gva, &asked)?;
    Ok(0)
}
