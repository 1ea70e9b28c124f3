//! The side that an address is on: inside, ours, or outside, and what the rules say of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use kvmlet_abi::Errno;
use kvmlet_hostnet::HostSocket;
use kvmlet_policy::net::{CALLER, is_public};

use crate::host::Host;
use crate::report::Remedy;

/// Who answers for names (/etc/resolv.conf).
pub(super) const NAMES: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);
pub(super) const NAMES_PORT: u16 = 53;
/// The address that stands for the caller's loopback addresses.
pub(super) const CALLERS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 54);
/// The addresses that a socket shows as its own once it is connected to the outside: nothing of the host's.
pub const OWN_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// The same of IPv6.
pub const OWN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

/// The side that an address is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The sandbox's own.
    Inside,
    /// Who answers for names.
    Names,
    /// Elsewhere.
    Outside,
}

/// An address that may be reached, as the host knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reached {
    /// The address on the host.
    pub at: SocketAddr,
    /// Its name for people.
    pub label: String,
}

/// The side that an address is on. It is one of IPv4 if it can be.
#[must_use]
pub fn place_of(host: &Host, to: SocketAddr) -> Place {
    let ip = to.ip();
    if ip == IpAddr::V4(NAMES) && to.port() == NAMES_PORT {
        Place::Names
    } else if ip == IpAddr::V4(CALLERS) && host.policy.net().reaches_caller() {
        Place::Outside
    } else if ip.is_loopback() || ip == IpAddr::V4(OWN_V4) || ip == IpAddr::V6(OWN_V6) {
        Place::Inside
    } else {
        Place::Outside
    }
}

/// Asks the rules whether an address outside may be reached.
///
/// # Errors
/// Recorded: `ENETUNREACH` where there is no rule at all, as without a network, `EACCES` where none fits. `ENOBUFS`
/// without a descriptor to look with, or after too many sockets lately.
pub fn reach(host: &mut Host, call: &str, to: SocketAddr) -> Result<Reached, Errno> {
    let net = host.policy.net();
    if to.ip() == IpAddr::V4(CALLERS) {
        let label = format!("{CALLER}:{}", to.port());
        if !net.allows_caller(to.port()) {
            return Err(refuse(host, format!("{call} {label}")));
        }
        host.keep_rate()?;
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, to.port()));
        return Ok(Reached { at, label });
    }
    let now = (host.now)();
    let known = &host.outside.admitted;
    let allowed = known
        .names(to.ip(), now)
        .find(|name| net.allows_name(name, to.port()));
    let is_allowed = net.allows(to) || is_public(to.ip()) && allowed.is_some();
    let name = allowed.or_else(|| known.names(to.ip(), now).next());
    let label = match name {
        Some(name) => format!("{name}:{}", to.port()),
        None => to.to_string(),
    };
    if !is_allowed {
        let withheld = known
            .withheld(to.ip(), now)
            .map(|name| withheld(name, to.ip()));
        return Err(match withheld {
            Some(what) => refuse(host, what),
            None => refuse(host, format!("{call} {label}")),
        });
    }
    let is_named = net.names_address(to.ip());
    host.keep_rate()?;
    // Of this machine's own addresses those that are public are reached only if they are named: what listens there
    // may not expect the internet.
    if !is_named {
        let own = HostSocket::is_own(to, &host.share);
        if own.map_err(|error| host.no_socket(error))? {
            return Err(refuse(host, format!("{call} {to}")));
        }
    }
    Ok(Reached { at: to, label })
}

/// What is recorded of a name that leads to an address that only a rule for addresses admits.
pub(super) fn withheld(name: &str, address: IpAddr) -> String {
    format!("resolve {name} to {address}")
}

fn refuse(host: &mut Host, what: String) -> Errno {
    let errno = match host.policy.net().is_empty() {
        true => Errno::ENETUNREACH,
        false => Errno::EACCES,
    };
    host.report.deny(what, errno, Remedy::Address);
    errno
}
