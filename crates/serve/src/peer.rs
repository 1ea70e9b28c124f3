//! Who a client is, and whom we believe when it says for whom it asks.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// The other end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Peer {
    Inet(SocketAddr),
    Unix,
}

impl Peer {
    pub(crate) fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Inet(address) => {
                let ip = address.ip().to_canonical();
                Some(SocketAddr::new(ip, address.port()))
            }
            Self::Unix => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.ip().to_canonical().fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// A range of addresses: `10.0.0.0/8`, `::1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cidr {
    address: IpAddr,
    prefix_bits: u32,
}

fn bits(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    }
}

impl Cidr {
    fn contains(&self, address: IpAddr) -> bool {
        let (ours, width) = bits(self.address);
        let (theirs, their_width) = bits(address);
        let differ = (ours ^ theirs).checked_shr(128 - self.prefix_bits);
        width == their_width && differ.is_none_or(|differ| differ == 0)
    }
}

impl FromStr for Cidr {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| ())?;
        let (_, width) = bits(address);
        let prefix_bits = match prefix {
            None => width,
            Some(prefix) if prefix.bytes().all(|byte| byte.is_ascii_digit()) => {
                prefix.parse().map_err(|_| ())?
            }
            Some(_) => return Err(()),
        };
        (prefix_bits <= width)
            .then_some(Self {
                address,
                prefix_bits,
            })
            .ok_or(())
    }
}

/// Peers whose `X-Forwarded-*`, `Forwarded` and `X-Request-ID` are kept.
#[derive(Clone, Default, Debug)]
pub struct TrustedProxies {
    /// Ranges of addresses.
    pub ranges: Vec<Cidr>,
    /// Those that come by a UNIX socket.
    pub unix: bool,
}

impl TrustedProxies {
    pub(crate) fn contains(&self, peer: Peer) -> bool {
        match peer {
            Peer::Unix => self.unix,
            Peer::Inet(address) => {
                let address = address.ip().to_canonical();
                self.ranges.iter().any(|range| range.contains(address))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let range = |text: &str| text.parse::<Cidr>();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(range("10.0.0.0/8").unwrap().contains(address("10.9.8.7")));
        assert!(!range("10.0.0.0/8").unwrap().contains(address("11.0.0.0")));
        assert!(range("0.0.0.0/0").unwrap().contains(address("1.2.3.4")));
        assert!(!range("0.0.0.0/0").unwrap().contains(address("::1")));
        assert!(range("::/0").unwrap().contains(address("fe80::1")));
        assert!(range("::1").unwrap().contains(address("::1")));
        assert!(!range("::1").unwrap().contains(address("::2")));
        for wrong in [
            "",
            "10.0.0.0/33",
            "10.0.0/8",
            "::/129",
            "1.2.3.4/+8",
            "1.2.3.4/",
            "x",
        ] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
    }
}
