//! The hosts that a program may reach: rules over names, addresses and ports. No rule here touches the host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

/// The name by which a program reaches its caller's loopback addresses.
pub const CALLER: &str = "host.kvmlet.internal";
/// The longest name of a host, in bytes (RFC 1035, 2.3.4).
const NAME_MAX: usize = 253;
/// The longest part of one (RFC 1035, 2.3.4).
const LABEL_MAX: usize = 63;

/// Why a rule cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{rule:?}: {why}")]
pub struct NetError {
    rule: String,
    why: &'static str,
}

/// Addresses with a common start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Network {
    /// The first of them.
    first: IpAddr,
    /// Bits that all have.
    bits: u8,
}

/// The hosts that a rule is about.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Target {
    /// Everything on the public internet.
    Public,
    /// The caller's loopback addresses, as [`CALLER`].
    Caller,
    /// A name, in lower case.
    Name(String),
    /// All names that end so, in lower case, with the dot.
    Below(String),
    /// Addresses.
    Network(Network),
}

/// One rule: hosts, and the ports there.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Rule {
    target: Target,
    ports: RangeInclusive<u16>,
}

/// The way in which a host may be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Not at all.
    Refused,
    /// As it is named.
    Named,
    /// At addresses of the public internet that are not this machine's own.
    Public,
}

/// The rules for what may be reached; by default nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Net {
    rules: Vec<Rule>,
}

/// Addresses that are not of the public internet (the IANA registries of special-purpose addresses, and addresses of
/// cloud metadata that lie outside of them). A rule for addresses admits one only if all its addresses are of the same
/// kind: 0.0.0.0/0 does not mean the neighbours.
const SPECIAL_V4: [(Ipv4Addr, u8); 17] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 31, 196, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// The same of IPv6, besides all that lies outside of 2000::/3. Addresses with one of IPv4 in them, as of 6to4, are
/// among them.
const SPECIAL_V6: [(Ipv6Addr, u8); 7] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];

impl Network {
    fn one(address: IpAddr) -> Self {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        Self {
            first: address,
            bits,
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        let low = |all: u32| all.saturating_sub(u32::from(self.bits));
        match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(other)) => {
                let differs = first.to_bits() ^ other.to_bits();
                differs.checked_shr(low(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(first), IpAddr::V6(other)) => {
                let differs = first.to_bits() ^ other.to_bits();
                differs.checked_shr(low(128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// True if it has no bits but those that all its addresses have.
    fn is_exact(&self) -> bool {
        match self.first {
            IpAddr::V4(first) => {
                let rest = u32::MAX.checked_shr(u32::from(self.bits)).unwrap_or(0);
                first.to_bits() & rest == 0
            }
            IpAddr::V6(first) => {
                let rest = u128::MAX.checked_shr(u32::from(self.bits)).unwrap_or(0);
                first.to_bits() & rest == 0
            }
        }
    }

    /// True if it is a part of the other.
    fn is_within(&self, other: &Self) -> bool {
        self.bits >= other.bits && other.contains(self.first)
    }

    /// True if it admits an address: one of the public internet, or one of the kind that all its addresses are.
    fn admits(&self, address: IpAddr) -> bool {
        self.contains(address) && special(address).is_none_or(|kind| self.is_within(&kind))
    }
}

/// The special-purpose addresses that one is among; `None` for one of the public internet.
fn special(address: IpAddr) -> Option<Network> {
    let kind = |(first, bits): (IpAddr, u8)| Network { first, bits };
    let found = match address {
        IpAddr::V4(_) => SPECIAL_V4
            .into_iter()
            .map(|(first, bits)| kind((first.into(), bits)))
            .find(|kind| kind.contains(address)),
        IpAddr::V6(_) => SPECIAL_V6
            .into_iter()
            .map(|(first, bits)| kind((first.into(), bits)))
            .find(|kind| kind.contains(address)),
    };
    let global = kind((Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0).into(), 3));
    let other = || (address.is_ipv6() && !global.contains(address)).then(|| Network::one(address));
    found.or_else(other)
}

/// True for an address of the public internet.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    special(address.to_canonical()).is_none()
}

fn is_loopback(network: &Network) -> bool {
    let loopback = [
        Network {
            first: Ipv4Addr::new(127, 0, 0, 0).into(),
            bits: 8,
        },
        Network {
            first: Ipv4Addr::UNSPECIFIED.into(),
            bits: 8,
        },
        Network {
            first: Ipv6Addr::UNSPECIFIED.into(),
            bits: 127,
        },
    ];
    loopback.iter().any(|own| network.is_within(own))
}

/// A name of a host as rules have it: in lower case, without a dot at its end; `None` if it is none.
#[must_use]
pub fn host_name(text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let is_label = |label: &str| {
        let letters = label.bytes();
        let plain = |letter: u8| letter.is_ascii_alphanumeric() || letter == b'-' || letter == b'_';
        (1..=LABEL_MAX).contains(&label.len()) && letters.into_iter().all(plain)
    };
    // What ends in a number is an address, in whichever notation.
    let last = name.rsplit('.').next().unwrap_or_default();
    let is_number = last.starts_with(|letter: char| letter.is_ascii_digit());
    let fits = name.len() <= NAME_MAX && name.split('.').all(is_label) && !is_number;
    fits.then_some(name)
}

impl Rule {
    fn parse(text: &str) -> Result<Self, NetError> {
        let error = |why| NetError {
            rule: text.to_owned(),
            why,
        };
        let (host, ports) = split(text).map_err(error)?;
        let target = Target::parse(host).map_err(error)?;
        if target == Target::Caller && ports.is_none() {
            return Err(error("name a port: host.kvmlet.internal:PORT"));
        }
        Ok(Self {
            target,
            ports: ports.unwrap_or(1..=u16::MAX),
        })
    }
}

/// Takes a host and its ports apart. Colons are of the host where it is an address of IPv6 without brackets.
fn split(text: &str) -> Result<(&str, Option<RangeInclusive<u16>>), &'static str> {
    let (host, ports) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("a bracket is not closed")?;
        match rest.strip_prefix(':') {
            Some(ports) => (host, Some(ports)),
            None if rest.is_empty() => (host, None),
            None => return Err("after the bracket comes :PORT or nothing"),
        }
    } else if text.matches(':').count() > 1 {
        (text, None)
    } else {
        match text.split_once(':') {
            Some((host, ports)) => (host, Some(ports)),
            None => (text, None),
        }
    };
    if host.is_empty() {
        return Err("it names no host");
    }
    Ok((host, ports.map(parse_ports).transpose()?))
}

fn parse_port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|letter| letter.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|port: &u16| is_plain && *port != 0)
}

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, &'static str> {
    const WRONG: &str = "a port is a number from 1 to 65535, or two of them as in 8000-8080";
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let ports = parse_port(first).zip(parse_port(last)).ok_or(WRONG)?;
    if ports.0 > ports.1 {
        return Err("the first port of a range is the lower one");
    }
    Ok(ports.0..=ports.1)
}

impl Target {
    fn parse(host: &str) -> Result<Self, &'static str> {
        const UNKNOWN: &str =
            "give a host's name, *.NAME, an address, a network as 10.0.0.0/8, or public";
        if host == "public" {
            return Ok(Self::Public);
        }
        let (address, bits) = match host.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (host, None),
        };
        if let Ok(address) = address.parse::<IpAddr>() {
            return Self::network(address, bits);
        }
        if bits.is_some() {
            return Err(UNKNOWN);
        }
        let (name, is_below) = match host.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (host, false),
        };
        if !name.is_ascii() {
            return Err("write a name of other letters in ASCII, as it is looked up: xn--...");
        }
        let name = host_name(name).ok_or(UNKNOWN)?;
        if name == CALLER && !is_below {
            return Ok(Self::Caller);
        }
        if name == "localhost" || name.ends_with(".localhost") {
            return Err(
                "localhost is the program's own; the caller's is host.kvmlet.internal:PORT",
            );
        }
        if name.ends_with("kvmlet.internal") {
            return Err("no such host: the caller's loopback address is host.kvmlet.internal:PORT");
        }
        Ok(if is_below {
            Self::Below(format!(".{name}"))
        } else {
            Self::Name(name)
        })
    }

    fn network(address: IpAddr, bits: Option<&str>) -> Result<Self, &'static str> {
        const BITS: &str = "the number of bits after the slash is from 0 to 32, or to 128 for IPv6";
        if address.to_canonical() != address {
            return Err("write an address of IPv4 as such");
        }
        let mut network = Network::one(address);
        if let Some(bits) = bits {
            let is_plain = !bits.is_empty() && bits.bytes().all(|letter| letter.is_ascii_digit());
            let given = bits
                .parse()
                .ok()
                .filter(|given| is_plain && *given <= network.bits);
            network.bits = given.ok_or(BITS)?;
        }
        if is_loopback(&network) {
            return Err(
                "loopback addresses are the program's own; the caller's is host.kvmlet.internal:PORT",
            );
        }
        if !network.is_exact() {
            return Err("the address of a network ends in zeros, as in 10.0.0.0/8");
        }
        Ok(Self::Network(network))
    }

    fn has_name(&self, name: &str) -> bool {
        if name == CALLER {
            return *self == Self::Caller;
        }
        match self {
            Self::Public => true,
            Self::Name(own) => name == own,
            Self::Below(end) => name.len() > end.len() && name.ends_with(end.as_str()),
            Self::Network(_) | Self::Caller => false,
        }
    }
}

impl Net {
    /// Adds a rule: HOST, *.NAME, a network or `public`, each perhaps with :PORT or :PORT-PORT.
    ///
    /// # Errors
    /// [`NetError`] for what is none, or can match nothing.
    pub fn allow(&mut self, text: &str) -> Result<(), NetError> {
        let rule = Rule::parse(text)?;
        if !self.rules.contains(&rule) {
            self.rules.push(rule);
        }
        Ok(())
    }

    /// True without any rule: nothing can be reached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// True if a rule is about names, so that somebody has to look them up.
    #[must_use]
    pub fn has_names(&self) -> bool {
        let has_name = |rule: &Rule| !matches!(rule.target, Target::Network(_) | Target::Caller);
        self.rules.iter().any(has_name)
    }

    /// True if the program may reach its caller's loopback addresses at some port.
    #[must_use]
    pub fn reaches_caller(&self) -> bool {
        let mut rules = self.rules.iter();
        rules.any(|rule| rule.target == Target::Caller)
    }

    /// True if the program may connect to this port of its caller's loopback addresses.
    #[must_use]
    pub fn allows_caller(&self, port: u16) -> bool {
        self.allows_name(CALLER, port)
    }

    /// True if a name may be looked up. It is one as [`host_name`] gives it.
    #[must_use]
    pub fn allows_look_up(&self, name: &str) -> bool {
        self.rules.iter().any(|rule| rule.target.has_name(name))
    }

    /// True if a rule allows a port of a host of this name.
    #[must_use]
    pub fn allows_name(&self, name: &str, port: u16) -> bool {
        let mut rules = self.rules.iter();
        rules.any(|rule| rule.target.has_name(name) && rule.ports.contains(&port))
    }

    /// True if a rule allows this address and port, whatever the names of its host are.
    #[must_use]
    pub fn allows(&self, to: SocketAddr) -> bool {
        let address = to.ip().to_canonical();
        self.rules.iter().any(|rule| {
            let is_there = match &rule.target {
                Target::Public => is_public(address),
                Target::Network(network) => network.admits(address),
                Target::Caller | Target::Name(_) | Target::Below(_) => false,
            };
            is_there && rule.ports.contains(&to.port())
        })
    }

    /// True if a rule names the address itself, at some port: not only as one of the public internet. Whoever names a
    /// network of the internet, as 0.0.0.0/1, does not mean the machine that it is named on. A private one is named with
    /// all that is in it.
    #[must_use]
    pub fn names_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let is_special = !is_public(address);
        self.rules.iter().any(|rule| match &rule.target {
            Target::Network(network) => {
                network.admits(address) && (is_special || *network == Network::one(address))
            }
            _ => false,
        })
    }

    /// The way in which the rules let a port of a host be reached, an address or a name; `None` if `host` is neither.
    #[must_use]
    pub fn reach(&self, host: &str, port: u16) -> Option<Reach> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Some(match self.allows(SocketAddr::new(address, port)) {
                true if self.names_address(address) => Reach::Named,
                true => Reach::Public,
                false => Reach::Refused,
            });
        }
        let name = host_name(host)?;
        Some(match self.allows_name(&name, port) {
            true if name == CALLER => Reach::Named,
            true => Reach::Public,
            false => Reach::Refused,
        })
    }

    /// All ports that some rule allows, if no rule allows them all.
    #[must_use]
    pub fn ports(&self) -> Option<Vec<u16>> {
        /// More are not listed.
        const PORTS_MAX: usize = 1024;
        let mut ports = Vec::new();
        for rule in &self.rules {
            if rule.ports.clone().count() > PORTS_MAX.saturating_sub(ports.len()) {
                return None;
            }
            ports.extend(rule.ports.clone());
        }
        ports.sort_unstable();
        ports.dedup();
        Some(ports)
    }
}

/// A port of the host that leads to one of the program's: `[ADDR:]HOSTPORT:GUESTPORT`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Published {
    /// Its place on the host.
    pub host: SocketAddr,
    /// The program's port.
    pub port: u16,
}

impl Published {
    /// Reads `[ADDR:]HOSTPORT:GUESTPORT`; without ADDR, it is 127.0.0.1. Port 0 of the host means any that is free.
    ///
    /// # Errors
    /// [`NetError`]
    pub fn parse(text: &str) -> Result<Self, NetError> {
        let error = |why| NetError {
            rule: text.to_owned(),
            why,
        };
        let (rest, port) = text
            .rsplit_once(':')
            .ok_or(error("write [ADDR:]HOSTPORT:GUESTPORT"))?;
        let port = parse_port(port).ok_or(error("the port inside is a number from 1 to 65535"))?;
        let (address, host_port) = match rest.rsplit_once(':') {
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), rest),
            Some((address, host_port)) => {
                let bare = address
                    .strip_prefix('[')
                    .and_then(|address| address.strip_suffix(']'));
                let parsed = match bare {
                    Some(six) => six.parse::<Ipv6Addr>().map(IpAddr::V6).ok(),
                    None => address.parse::<Ipv4Addr>().map(IpAddr::V4).ok(),
                };
                let parsed = parsed.ok_or(error("ADDR is an address, one of IPv6 in brackets"))?;
                (parsed, host_port)
            }
        };
        let is_plain = host_port.bytes().all(|letter| letter.is_ascii_digit());
        let host_port = host_port
            .parse()
            .ok()
            .filter(|_| is_plain)
            .ok_or(error("the port outside is a number from 0 to 65535"))?;
        Ok(Self {
            host: SocketAddr::new(address, host_port),
            port,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_in_which_a_host_is_reached() {
        let mut net = Net::default();
        for rule in [
            "10.0.0.0/8:5432",
            "*.example.com:443",
            "public:80",
            "192.0.0.0/3:443",
            "199.7.83.42",
        ] {
            net.allow(rule).unwrap();
        }
        net.allow("host.kvmlet.internal:9").unwrap();
        for (host, port, reach) in [
            ("10.1.2.3", 5432, Some(Reach::Named)),
            ("10.1.2.3", 80, Some(Reach::Refused)),
            ("8.8.8.8", 80, Some(Reach::Public)),
            ("A.example.com.", 443, Some(Reach::Public)),
            ("example.com", 443, Some(Reach::Refused)),
            ("example.org", 80, Some(Reach::Public)),
            (CALLER, 9, Some(Reach::Named)),
            (CALLER, 80, Some(Reach::Refused)),
            ("a b", 80, None),
            ("198.41.0.4", 443, Some(Reach::Public)),
            ("199.7.83.42", 443, Some(Reach::Named)),
        ] {
            assert_eq!(net.reach(host, port), reach, "{host}:{port}");
        }
    }
    use proptest::prelude::*;

    fn rules(texts: &[&str]) -> Net {
        let mut net = Net::default();
        for text in texts {
            net.allow(text).unwrap();
        }
        net
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn names_are_compared_by_part() {
        let net = rules(&["api.example.com:443", "*.example.org"]);
        assert!(net.allows_name("api.example.com", 443));
        assert!(!net.allows_name("api.example.com", 80));
        assert!(net.allows_name("a.b.example.org", 1));
        for name in [
            "example.org",
            "xexample.org",
            "api.example.com.evil.net",
            "example.com",
            ".example.org",
        ] {
            assert!(!net.allows_look_up(name), "{name}");
        }
        assert!(!net.allows(at("93.184.216.34:443")));
        assert_eq!(host_name("API.Example.com.").unwrap(), "api.example.com");
        for name in [
            "",
            ".",
            "a..b",
            "1.2.3.4",
            "0x7f.1",
            "2130706433",
            "a/b",
            "a b",
        ] {
            assert_eq!(host_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_rule_for_everything_names_no_address() {
        let all = rules(&["0.0.0.0/0", "::/0"]);
        for text in ["93.184.215.14", "2606:4700::1"] {
            let address: IpAddr = text.parse().unwrap();
            assert!(all.allows(SocketAddr::new(address, 443)) && !all.names_address(address));
            assert!(rules(&[text]).names_address(address));
        }
    }

    #[test]
    fn special_addresses_need_a_rule_of_their_own() {
        let public = rules(&["public"]);
        let all = rules(&["0.0.0.0/0", "::/0"]);
        for address in [
            "0.0.0.0:1",
            "10.0.0.1:1",
            "100.100.100.200:1",
            "127.0.0.1:1",
            "168.63.129.16:80",
            "169.254.169.254:80",
            "172.31.0.1:1",
            "192.0.2.1:1",
            "192.168.1.1:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "[::]:1",
            "[::1]:1",
            "[::7f00:1]:1",
            "[::ffff:10.0.0.1]:1",
            "[::ffff:169.254.169.254]:1",
            "[64:ff9b::a00:1]:1",
            "[2002:a00:1::1]:1",
            "[2001:0:a00:1::1]:1",
            "[fd00:ec2::254]:80",
            "[fe80::1]:1",
            "[ff02::1]:1",
        ] {
            assert!(!public.allows(at(address)), "{address}");
            assert!(!all.allows(at(address)), "{address}");
        }
        for address in ["8.8.8.8:53", "[2606:4700::1111]:443", "[::ffff:8.8.8.8]:53"] {
            assert!(public.allows(at(address)), "{address}");
            assert!(all.allows(at(address)), "{address}");
        }
        let private = rules(&["10.0.0.0/8:5432", "169.254.169.254", "fd00::/16"]);
        assert!(private.allows(at("10.2.3.4:5432")));
        assert!(private.allows(at("[::ffff:10.2.3.4]:5432")));
        assert!(!private.allows(at("10.2.3.4:5433")));
        assert!(private.allows(at("169.254.169.254:80")));
        assert!(!private.allows(at("169.254.169.253:80")));
        assert!(private.allows(at("[fd00::1]:80")));
        assert!(!private.allows(at("[fd01::1]:80")));
    }

    #[test]
    fn what_can_match_nothing_is_no_rule() {
        for text in [
            "",
            ":80",
            "host:",
            "host:0",
            "host:65536",
            "host:80-",
            "host:90-80",
            "host:+80",
            "host:http",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "::/129",
            "fe80::1%eth0",
            "127.0.0.1",
            "127.0.0.0/8",
            "0.0.0.0",
            "::1",
            "::ffff:10.0.0.1",
            "localhost",
            "localhost:80",
            "0x7f000001",
            "127.1",
            "*",
            "*.",
            "a.*.com",
            "http://host",
            "host.kvmlet.internal",
            "*.kvmlet.internal",
            "[::1",
            "[2606::1]80",
            "h\u{f6}st",
        ] {
            assert!(Net::default().allow(text).is_err(), "{text}");
        }
        for text in [
            "host",
            "host:80",
            "host:80-90",
            "2606::1",
            "[2606::1]:80",
            "2606::/16",
            "[2606::/16]:80",
            "public:443",
            "host.kvmlet.internal:80",
        ] {
            Net::default().allow(text).unwrap();
        }
        let error = Net::default().allow("host:0").unwrap_err().to_string();
        assert!(error.starts_with("\"host:0\": a port"), "{error}");
    }

    #[test]
    fn the_caller_is_reached_by_its_own_rule_only() {
        let net = rules(&["public", "*.internal"]);
        assert!(!net.allows_caller(80) && !net.allows_look_up(CALLER));
        let net = rules(&["public"]);
        assert!(!net.allows_look_up(CALLER) && !net.reaches_caller());
        let net = rules(&["host.kvmlet.internal:8000-8001"]);
        assert!(net.allows_caller(8001) && !net.allows_caller(8002));
        assert!(!net.has_names());
    }

    #[test]
    fn ports_are_listed_if_each_rule_has_some() {
        assert_eq!(rules(&["a:80-82", "b:81"]).ports(), Some(vec![80, 81, 82]));
        assert_eq!(rules(&["a:80", "b"]).ports(), None);
        assert_eq!(rules(&[]).ports(), Some(Vec::new()));
    }

    #[test]
    fn published_ports() {
        let parse = |text| Published::parse(text).map(|it| (it.host.to_string(), it.port));
        assert_eq!(parse("8080:80"), Ok(("127.0.0.1:8080".to_owned(), 80)));
        assert_eq!(
            parse("0.0.0.0:8080:80"),
            Ok(("0.0.0.0:8080".to_owned(), 80))
        );
        assert_eq!(parse("[::1]:0:80"), Ok(("[::1]:0".to_owned(), 80)));
        for text in [
            "80",
            "a:80",
            "80:0",
            "80:a",
            "::1:80:80",
            "localhost:80:80",
            ":80",
            "+1:80",
        ] {
            assert!(Published::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_written_breaks_the_rules(text in "\\PC{0,40}") {
            let _ = Net::default().allow(&text);
            let _ = Published::parse(&text);
        }

        #[test]
        fn a_network_has_its_own_addresses(first: u32, bits in 0u8..=32, other: u32) {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            let network = Network { first: Ipv4Addr::from(first & mask).into(), bits };
            prop_assert!(network.is_exact());
            prop_assert_eq!(network.contains(Ipv4Addr::from(other).into()), other & mask == first & mask);
        }
    }
}
