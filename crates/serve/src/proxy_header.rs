//! The header by which a proxy of streams says whose connection it hands on (HAProxy's PROXY protocol, 1 and 2).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::peer::Peer;

/// Longest header of version 1, with its end.
const LINE_BYTES_MAX: usize = 107;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Of version 2: signature, version and command, family, length.
const HEAD_BYTES: usize = 16;
/// Longest header of version 2 that is taken: addresses take 216 bytes at most, the rest is for extensions.
pub(crate) const BYTES_MAX: usize = HEAD_BYTES + 4096;

/// A header that is complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    /// Its own length.
    pub(crate) length_bytes: usize,
    /// The client, if it names one.
    pub(crate) client: Option<Peer>,
}

/// Bytes that do not begin with a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NoHeader;

/// The header at the start of `bytes`; `Ok(None)` if more of it must come.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Header>, NoHeader> {
    let start = &bytes[..bytes.len().min(SIGNATURE.len())];
    if SIGNATURE.starts_with(start) {
        return match bytes.len() {
            0..HEAD_BYTES => Ok(None),
            _ => version_2(bytes),
        };
    }
    version_1(bytes)
}

fn version_1(bytes: &[u8]) -> Result<Option<Header>, NoHeader> {
    let word = b"PROXY ";
    if !word.starts_with(&bytes[..bytes.len().min(word.len())]) {
        return Err(NoHeader);
    }
    let line = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let Some(end) = line.iter().position(|byte| *byte == b'\n') else {
        return if line.len() < LINE_BYTES_MAX {
            Ok(None)
        } else {
            Err(NoHeader)
        };
    };
    let line = line[..end].strip_suffix(b"\r").ok_or(NoHeader)?;
    let line = std::str::from_utf8(line).map_err(|_| NoHeader)?;
    let words: Vec<&str> = line.split(' ').collect();
    let client = match words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => None,
        ["PROXY", "TCP4", from, to, from_port, to_port] => {
            Some(named::<Ipv4Addr>(from, to, from_port, to_port)?)
        }
        ["PROXY", "TCP6", from, to, from_port, to_port] => {
            Some(named::<Ipv6Addr>(from, to, from_port, to_port)?)
        }
        _ => return Err(NoHeader),
    };
    Ok(Some(Header {
        length_bytes: end + 1,
        client,
    }))
}

/// The client in words: the addresses and ports of both ends, of which the second must be proper too.
fn named<A>(from: &str, to: &str, from_port: &str, to_port: &str) -> Result<Peer, NoHeader>
where
    A: FromStr + Into<std::net::IpAddr>,
{
    let address = |word: &str| word.parse::<A>().map_err(|_| NoHeader);
    address(to)?;
    port(to_port)?;
    let from = address(from)?;
    Ok(Peer::Inet(SocketAddr::new(from.into(), port(from_port)?)))
}

fn port(word: &str) -> Result<u16, NoHeader> {
    let is_plain = word.bytes().all(|byte| byte.is_ascii_digit());
    let has_zeros = word.len() > 1 && word.starts_with('0');
    if !is_plain || has_zeros {
        return Err(NoHeader);
    }
    word.parse().map_err(|_| NoHeader)
}

fn version_2(bytes: &[u8]) -> Result<Option<Header>, NoHeader> {
    let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or(NoHeader)?;
    let [.., command, family, high, low] = *head;
    let length = usize::from(u16::from_be_bytes([high, low]));
    let length_bytes = HEAD_BYTES + length;
    if length_bytes > BYTES_MAX {
        return Err(NoHeader);
    }
    let Some(said) = rest.get(..length) else {
        return match command {
            0x20 | 0x21 => Ok(None),
            _ => Err(NoHeader),
        };
    };
    let client = match (command, family) {
        // A connection of the proxy's own, or one whose client it does not name.
        (0x20, _) | (0x21, 0x00) => None,
        (0x21, 0x11) => {
            let (octets, ports) = addresses::<4, 8>(said)?;
            Some(Peer::Inet((Ipv4Addr::from(octets), ports).into()))
        }
        (0x21, 0x21) => {
            let (octets, ports) = addresses::<16, 32>(said)?;
            Some(Peer::Inet((Ipv6Addr::from(octets), ports).into()))
        }
        (0x21, 0x31) if said.len() >= 216 => Some(Peer::Unix),
        _ => return Err(NoHeader),
    };
    Ok(Some(Header {
        length_bytes,
        client,
    }))
}

/// Address and port of the client: two addresses come first, `BOTH` bytes together.
fn addresses<const ONE: usize, const BOTH: usize>(
    said: &[u8],
) -> Result<([u8; ONE], u16), NoHeader> {
    let (both, ports) = said.split_first_chunk::<BOTH>().ok_or(NoHeader)?;
    let (from, _) = both.split_first_chunk::<ONE>().ok_or(NoHeader)?;
    let (port, rest) = ports.split_first_chunk::<2>().ok_or(NoHeader)?;
    // The other end's.
    rest.first_chunk::<2>().ok_or(NoHeader)?;
    Ok((*from, u16::from_be_bytes(*port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version_2_of(command: u8, family: u8, said: &[u8]) -> Vec<u8> {
        let length = u16::try_from(said.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, said].concat()
    }

    fn inet(text: &str) -> Option<Peer> {
        Some(Peer::Inet(text.parse().unwrap()))
    }

    fn good() -> Vec<(Vec<u8>, Option<Peer>)> {
        let four = [192, 0, 2, 1, 10, 0, 0, 1, 0x9c, 0x40, 1, 187];
        let mut six = [0; 36];
        (six[0], six[1], six[15], six[33]) = (0x20, 1, 5, 80);
        let with_extension = [&four[..], &[3, 0, 4, 1, 2, 3, 4]].concat();
        vec![
            (
                b"PROXY TCP4 192.0.2.1 10.0.0.1 40000 443\r\n".to_vec(),
                inet("192.0.2.1:40000"),
            ),
            (
                b"PROXY TCP6 2001::5 ::1 80 443\r\n".to_vec(),
                inet("[2001::5]:80"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ::1 ::1 1 2\r\n".to_vec(), None),
            (version_2_of(0x21, 0x11, &four), inet("192.0.2.1:40000")),
            (
                version_2_of(0x21, 0x11, &with_extension),
                inet("192.0.2.1:40000"),
            ),
            (version_2_of(0x21, 0x21, &six), inet("[2001::5]:80")),
            (version_2_of(0x21, 0x31, &[0; 216]), Some(Peer::Unix)),
            (version_2_of(0x21, 0x00, b"ignored"), None),
            (version_2_of(0x20, 0x11, &[]), None),
        ]
    }

    #[test]
    fn headers_are_read_however_they_are_cut() {
        for (header, client) in good() {
            let whole = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            let length_bytes = header.len();
            for cut in 0..length_bytes {
                assert_eq!(parse(&whole[..cut]), Ok(None), "{header:?} {cut}");
            }
            for cut in length_bytes..=whole.len() {
                let found = Header {
                    length_bytes,
                    client,
                };
                assert_eq!(parse(&whole[..cut]), Ok(Some(found)), "{header:?} {cut}");
            }
        }
    }

    #[test]
    fn what_is_not_quite_a_header_is_none() {
        for text in [
            "GET / HTTP/1.1\r\n",
            "PRI * HTTP/2.0\r\n",
            "PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4  2\r\n",
            "PROXY TCP4 1.2.3.04 1.2.3.4 1 2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
            "PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY \r\n",
            "proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4\0 1.2.3.4 1 2\r\n",
        ] {
            assert_eq!(parse(text.as_bytes()), Err(NoHeader), "{text}");
        }
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LINE_BYTES_MAX));
        assert_eq!(parse(long.as_bytes()), Err(NoHeader));
        for (command, family, length) in [
            (0x11, 0x11, 12),
            (0x22, 0x11, 12),
            (0x21, 0x11, 11),
            (0x21, 0x21, 35),
            (0x21, 0x31, 215),
            (0x21, 0x12, 12),
            (0x21, 0xff, 400),
            (0x20, 0x00, 4097),
        ] {
            let header = version_2_of(command, family, &vec![0; length]);
            assert_eq!(
                parse(&header),
                Err(NoHeader),
                "{command:x} {family:x} {length}"
            );
        }
        // It would be waited for, whatever it is.
        assert_eq!(
            parse(&version_2_of(0x33, 0x11, &[0; 12])[..20]),
            Err(NoHeader)
        );
    }

    #[test]
    fn a_byte_that_is_changed_makes_no_panic_and_no_longer_header() {
        for (header, _) in good() {
            for at in 0..header.len() {
                for value in 0..=u8::MAX {
                    let mut changed = header.clone();
                    changed[at] = value;
                    if let Ok(Some(found)) = parse(&changed) {
                        assert!(found.length_bytes <= changed.len());
                    }
                }
            }
        }
    }
}
