//! Connections that a proxy of streams hands on, with a header that names the client.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use super::{Served, Settings, settings, status_of};
use crate::testing::Act;
use crate::{Isolate, TrustedProxies};

const REQUEST: &str =
    "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 9.9.9.9\r\nConnection: close\r\n\r\n";

fn proxied(trusted: &[&str]) -> Settings {
    Settings {
        header_timeout: Duration::from_millis(300),
        trusted_proxies: TrustedProxies {
            ranges: trusted.iter().map(|range| range.parse().unwrap()).collect(),
            unix: false,
        },
        proxy_protocol: true,
        ..settings()
    }
}

/// The answer, a mirror of what the program got, and the addresses that it was told.
fn asked(served: &Served, header: &[u8]) -> (u16, String) {
    let answer = served.ask(&[header, REQUEST.as_bytes()].concat());
    let field = answer
        .lines()
        .find_map(|line| line.strip_prefix("x-forwarded-for: "));
    (status_of(&answer), field.unwrap_or_default().to_owned())
}

#[test]
fn the_client_is_whom_the_proxy_names() {
    let served = Served::start(Act::Mirror, proxied(&["127.0.0.0/8", "192.0.2.7"]));
    let version_2 = |command: u8, family: u8, said: &[u8]| {
        let length = u8::try_from(said.len()).unwrap();
        [
            b"\r\n\r\n\0\r\nQUIT\n",
            &[command, family, 0, length][..],
            said,
        ]
        .concat()
    };
    let four = [192, 0, 2, 1, 10, 0, 0, 1, 0x9c, 0x40, 1, 187];
    let said = |text: &str| (200, text.to_owned());
    for (header, wanted) in [
        // What such a client says of others is not kept.
        (
            &b"PROXY TCP4 192.0.2.1 10.0.0.1 40000 443\r\n"[..],
            "192.0.2.1",
        ),
        (b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n", "2001:db8::1"),
        (&version_2(0x21, 0x11, &four), "192.0.2.1"),
        // Another proxy, which is trusted too.
        (
            b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 443\r\n",
            "9.9.9.9, 192.0.2.7",
        ),
        // Nobody is named.
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
        (&version_2(0x20, 0, &[]), "127.0.0.1"),
    ] {
        assert_eq!(asked(&served, header), said(wanted), "{header:?}");
    }
    served.until("kvmlet_proxy_headers_refused_total", 0);
    for header in [
        &b""[..],
        b"PROXY TCP4 nobody\r\n",
        &version_2(0x21, 0x11, &four[..8]),
    ] {
        assert_eq!(asked(&served, header).0, 0, "{header:?}");
    }
    served.until("kvmlet_proxy_headers_refused_total", 3);
    // One that says half of it, and one that only looks if somebody listens.
    let mut slow = served.connect();
    slow.write_all(b"PROXY TC").unwrap();
    assert_eq!(slow.read(&mut [0]).unwrap(), 0);
    served.until("kvmlet_proxy_headers_refused_total", 4);
    drop(served.connect());
    assert_eq!(asked(&served, b"PROXY UNKNOWN\r\n").0, 200);
    assert_eq!(served.metric("kvmlet_proxy_headers_refused_total"), 4);
}

#[test]
fn one_that_has_not_said_who_it_is_when_the_end_is_asked_for_is_served() {
    let settings = Settings {
        header_timeout: Duration::from_secs(20),
        ..proxied(&["127.0.0.1"])
    };
    let mut served = Served::start(Act::Mirror, settings);
    let mut stream = served.connect();
    stream.write_all(b"PROXY UNK").unwrap();
    // It is accepted by now.
    assert_eq!(asked(&served, b"PROXY UNKNOWN\r\n").0, 200);
    served.commands.stop();
    std::thread::sleep(Duration::from_millis(50));
    let rest = format!("NOWN\r\n{REQUEST}");
    stream.write_all(rest.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(status_of(&answer), 200);
    served.end().unwrap();
}

#[test]
fn one_that_takes_its_time_does_not_hold_the_end_up() {
    let settings = Settings {
        header_timeout: Duration::from_secs(20),
        grace: Duration::from_secs(20),
        ..proxied(&["127.0.0.1"])
    };
    let mut served = Served::start(Act::Mirror, settings);
    let mut stream = served.connect();
    stream.write_all(b"PROXY UNK").unwrap();
    assert_eq!(asked(&served, b"PROXY UNKNOWN\r\n").0, 200);
    let begun = Instant::now();
    served.commands.stop();
    served.end().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_stranger_cannot_name_another() {
    let served = Served::start(Act::Mirror, proxied(&["192.0.2.0/24"]));
    assert_eq!(asked(&served, b""), (200, "127.0.0.1".to_owned()));
    let (status, _) = asked(&served, b"PROXY TCP4 192.0.2.1 10.0.0.1 40000 443\r\n");
    assert_eq!(status, 400);
}

#[test]
fn a_connection_of_any_protocol_comes_without_the_header() {
    let settings = Settings {
        isolate: Isolate::Connection,
        ..proxied(&["127.0.0.1"])
    };
    let served = Served::start(Act::Mirror, settings);
    let (status, said) = asked(&served, b"PROXY TCP4 192.0.2.1 10.0.0.1 40000 443\r\n");
    // It is no concern of ours what the client says then.
    assert_eq!((status, said.as_str()), (200, ""));
}
