//! The header of IP that a datagram comes with, as far as programs see and choose it (ip(7), ipv6(7)).

use std::net::IpAddr;

use kvmlet_abi::linux::socket::{
    IP_TOS, IP_TTL, IPPROTO_IP, IPPROTO_IPV6, IPV6_TCLASS, IPV6_UNICAST_HOPS,
};

use super::Socket;

/// Routers that a packet may pass, unless its socket says otherwise.
pub const HOPS: i32 = 64;

/// The header of IP that a datagram came with, as far as a receiver may ask for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IpHeader {
    /// The address that it was sent to.
    pub to: IpAddr,
    /// Routers that it might still have passed (TTL, hop limit).
    pub hops: u8,
    /// Its traffic class (TOS).
    pub class: u8,
}

impl IpHeader {
    /// The header of one whose sender says nothing about it.
    #[must_use]
    pub fn usual(to: IpAddr) -> Self {
        Self {
            to,
            hops: u8::try_from(HOPS).unwrap_or(u8::MAX),
            class: 0,
        }
    }

    /// The header of a datagram that a socket sends.
    #[must_use]
    pub fn of(socket: &Socket, to: IpAddr, wish: IpWish) -> Self {
        let [hops, class] = match to {
            IpAddr::V4(_) => [(IPPROTO_IP, IP_TTL), (IPPROTO_IP, IP_TOS)],
            IpAddr::V6(_) => [
                (IPPROTO_IPV6, IPV6_UNICAST_HOPS),
                (IPPROTO_IPV6, IPV6_TCLASS),
            ],
        };
        let kept = |(level, option)| socket.options.flag(level, option);
        let usual = Self::usual(to);
        // An option is kept as its distance from the usual value.
        let hops = u8::try_from(kept(hops).saturating_add(HOPS)).unwrap_or(usual.hops);
        Self {
            to,
            hops: wish.hops.unwrap_or(hops),
            class: wish.class.or(u8::try_from(kept(class)).ok()).unwrap_or(0),
        }
    }
}

/// A wish of a sender for one datagram, in place of what its socket says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IpWish {
    /// The address that it is to come from.
    pub source: Option<IpAddr>,
    /// Routers that it may pass.
    pub hops: Option<u8>,
    /// Its traffic class.
    pub class: Option<u8>,
}

/// Wishes by the family that a datagram goes by in the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IpWishes {
    /// For IPv4.
    pub four: IpWish,
    /// For IPv6.
    pub six: IpWish,
}

impl IpWishes {
    /// Those for a datagram to this address.
    #[must_use]
    pub fn towards(&self, to: IpAddr) -> IpWish {
        if to.is_ipv4() { self.four } else { self.six }
    }
}
