//! Upgrades, other protocols, and what an operator does.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::{Served, Settings, read_answer, settings, status_of};
use crate::fork::{BootError, Program};
use crate::testing::{Act, FakeMaster};
use crate::{Isolate, TrustedProxies, WarmupRequest};

#[test]
fn an_upgrade_is_passed_through_and_pins_a_fork() {
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = host.local_addr().unwrap();
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = host.accept().unwrap();
        let mut head = Vec::new();
        let mut space = [0; 1024];
        while !head.ends_with(b"\r\n\r\n") {
            let length = stream.read(&mut space).unwrap();
            head.extend_from_slice(&space[..length]);
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.contains("\r\nupgrade: echo\r\n"), "{head}");
        assert!(head.contains("\r\nconnection: upgrade\r\n"), "{head}");
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\nX-Key: 1\r\n\r\nhello")
            .unwrap();
        loop {
            let length = stream.read(&mut space).unwrap();
            if length == 0 {
                return;
            }
            stream.write_all(&space[..length]).unwrap();
        }
    });
    let served = Served::start(
        Act::Host(address),
        Settings {
            // Of a request, not of what it becomes.
            timeout: Duration::from_millis(300),
            ..settings()
        },
    );
    let request = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    let mut stream = served.connect();
    stream.write_all(request).unwrap();
    let (head, _) = read_answer(&mut stream);
    assert_eq!(status_of(&head), 101);
    assert!(head.contains("upgrade: echo\r\n") && head.contains("x-key: 1\r\n"));
    let mut said = [0; 5];
    stream.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"hello");
    std::thread::sleep(Duration::from_millis(400));
    for _ in 0..3 {
        stream.write_all(b"\x01\r\nab").unwrap();
        stream.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"\x01\r\nab");
    }
    served.until("kvmlet_upgrades", 1);
    let mut other = served.connect();
    other.write_all(request).unwrap();
    assert_eq!(status_of(&read_answer(&mut other).0), 503);
    drop(stream);
    served.until("kvmlet_upgrades", 0);
    served.until("kvmlet_forks_busy ", 0);
    echo.join().unwrap();
}

#[test]
fn an_upgrade_that_the_program_does_not_take_is_a_request_like_others() {
    let served = Served::start(Act::Mirror, settings());
    let mut stream = served.connect();
    for _ in 0..3 {
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
            .unwrap();
        assert_eq!(status_of(&read_answer(&mut stream).0), 200);
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            .unwrap();
        assert_eq!(status_of(&read_answer(&mut stream).0), 200);
    }
    served.until("kvmlet_requests_total{outcome=\"ok\"}", 6);
}

#[test]
fn a_client_that_is_gone_is_counted() {
    let served = Served::start(Act::Hang, settings());
    let mut stream = served.connect();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        .unwrap();
    served.until("kvmlet_forks_busy ", 1);
    drop(stream);
    served.until("kvmlet_requests_total{outcome=\"aborted\"}", 1);
}

#[test]
fn a_stream_of_events_outlives_the_deadline() {
    let said = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = host.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = host.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]).unwrap();
        stream.write_all(said.as_bytes()).unwrap();
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(100));
            stream.write_all(b"data: x\n\n").unwrap();
        }
    });
    let served = Served::start(
        Act::Host(address),
        Settings {
            timeout: Duration::from_millis(250),
            ..settings()
        },
    );
    let answer = served.get("/");
    assert_eq!(answer.matches("data: x").count(), 4, "{answer}");
    assert!(answer.ends_with("0\r\n\r\n"));
    server.join().unwrap();
}

#[test]
fn a_connection_of_any_protocol_has_a_fork_of_its_own() {
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = host.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = host.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all.reverse();
        stream.write_all(&all).unwrap();
    });
    let served = Served::start(
        Act::Host(address),
        Settings {
            isolate: Isolate::Connection,
            ..settings()
        },
    );
    let mut stream = served.connect();
    stream.write_all(b"\0\x01abc").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"cba\x01\0");
    server.join().unwrap();
    served.until("kvmlet_reset_seconds_count", 1);
    served.until("kvmlet_requests_total{outcome=\"ok\"}", 1);
}

#[tokio::test]
async fn http2_with_prior_knowledge_has_many_requests_at_once() {
    let served = Served::start(Act::Mirror, settings());
    let stream = tokio::net::TcpStream::connect(served.address)
        .await
        .unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let mut asked = Vec::new();
    for number in 0..20 {
        let mut sender = sender.clone();
        asked.push(tokio::spawn(async move {
            let request = http::Request::post(format!("http://h/{number}"))
                .body(Full::new(Bytes::from(vec![b'x'; number])))
                .unwrap();
            sender.send_request(request).await.unwrap()
        }));
    }
    for (number, asked) in asked.into_iter().enumerate() {
        let response = asked.await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["x-requests"], "1");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(body.starts_with(format!("POST /{number} HTTP/1.1\r\nhost: h\r\n").as_bytes()));
    }
    // A host that is not that of the target.
    let request = http::Request::get("http://h/")
        .header("host", "evil")
        .body(Full::default())
        .unwrap();
    let response = sender.clone().send_request(request).await.unwrap();
    assert_eq!(response.status(), 400);
}

#[test]
fn draining_ends_what_is_under_way_and_takes_nothing_new() {
    let mut served = Served::start(Act::Hang, settings());
    let mut idle = served.connect();
    let mut busy = served.connect();
    busy.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        .unwrap();
    served.until("kvmlet_forks_busy ", 1);
    served.commands.stop();
    // Idle clients are let go soon.
    assert_eq!(idle.read(&mut [0; 9]).unwrap(), 0);
    assert!(TcpStream::connect(served.address).is_err());
    assert!(!served.thread.as_ref().unwrap().is_finished());
    // The second time, at once.
    let begun = Instant::now();
    served.commands.stop();
    served.end().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_request_that_is_on_its_way_when_draining_begins_is_answered_as_the_last() {
    let mut served = Served::start(Act::Mirror, settings());
    let request = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let mut streams = Vec::new();
    for asked in [0, 1, 2] {
        let mut stream = served.connect();
        for _ in 0..asked {
            stream.write_all(request).unwrap();
            let (head, _) = read_answer(&mut stream);
            assert!(!head.contains("connection: close"), "{head}");
        }
        streams.push(stream);
    }
    served.until("kvmlet_connections", 3);
    served.commands.stop();
    while status_of(&served.control("/-/ready")) != 503 {
        std::thread::sleep(Duration::from_millis(1));
    }
    for stream in &mut streams {
        stream.write_all(request).unwrap();
        let (head, _) = read_answer(stream);
        assert_eq!(status_of(&head), 200);
        assert!(head.contains("connection: close\r\n"), "{head}");
        assert_eq!(stream.read(&mut [0; 9]).unwrap(), 0);
    }
    served.end().unwrap();
}

#[test]
fn draining_waits_for_answers() {
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = host.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = host.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
            .unwrap();
    });
    let mut served = Served::start(Act::Host(address), settings());
    let mut stream = served.connect();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        .unwrap();
    served.until("kvmlet_forks_busy ", 1);
    served.commands.stop();
    assert_eq!(read_answer(&mut stream).1, b"late");
    served.end().unwrap();
    server.join().unwrap();
}

#[test]
fn a_reload_fails_no_request() {
    let served = Served::start(Act::Mirror, settings());
    let clients: usize = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut stream = served.connect();
                    for _ in 0..100 {
                        stream
                            .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
                            .unwrap();
                        let (head, _) = read_answer(&mut stream);
                        assert_eq!(status_of(&head), 200);
                    }
                })
            })
            .collect();
        for number in 1..=5 {
            served.commands.reload();
            served.until("kvmlet_reloads_total", number);
        }
        asking
            .into_iter()
            .map(|asked| asked.join().unwrap())
            .count()
    });
    assert_eq!(clients, 4);
    served.until("kvmlet_requests_total{outcome=\"ok\"}", 400);
    // Those of the pools that went are gone.
    served.until("kvmlet_forks ", 2);
}

#[test]
fn a_program_that_does_not_start_is_an_error() {
    let start = || Err(BootError::new("not_listening", "it does not listen"));
    let mut served = Served::start_with(start, settings());
    assert_eq!(served.end().unwrap_err().kind, "not_listening");
}

#[test]
fn a_warm_up_that_fails_stops_the_start() {
    let mirrored = |status| {
        let warmup = WarmupRequest::new("POST /warm", &[], b"abc".to_vec(), status).unwrap();
        Settings {
            warmup: vec![warmup],
            ..settings()
        }
    };
    let served = Served::start(Act::Mirror, mirrored(Some(200)));
    assert_eq!(status_of(&served.get("/")), 200);
    drop(served);
    let start = || Ok(Box::new(FakeMaster::new(Act::Mirror)) as Box<dyn Program>);
    let mut served = Served::start_with(start, mirrored(Some(201)));
    let error = served.end().unwrap_err();
    assert_eq!(error.kind, "warmup");
    assert!(
        error
            .message
            .starts_with("the warm-up request 'POST /warm' was answered with 200 OK: POST /warm"),
        "{error}"
    );
}

#[test]
fn the_control_address_is_no_place_for_clients() {
    let served = Served::start(Act::Mirror, settings());
    assert_eq!(status_of(&served.control("/-/healthy")), 200);
    assert_eq!(status_of(&served.control("/")), 404);
    assert!(served.control("/-/status").contains("\"ready\":true"));
    // Nor are its pages there for clients.
    assert!(served.get("/metrics").contains("GET /metrics HTTP/1.1"));
}

#[test]
fn ids_are_made_unless_a_trusted_proxy_gives_one() {
    let request = b"GET / HTTP/1.1\r\nHost: h\r\nX-Request-ID: mine\r\nConnection: close\r\n\r\n";
    let served = Served::start(Act::Mirror, settings());
    assert!(!served.ask(request).contains("mine"));
    let served = Served::start(
        Act::Mirror,
        Settings {
            trusted_proxies: TrustedProxies {
                ranges: vec!["127.0.0.0/8".parse().unwrap()],
                unix: false,
            },
            ..settings()
        },
    );
    let answer = served.ask(request);
    assert_eq!(
        answer.matches("x-request-id: mine\r\n").count(),
        2,
        "{answer}"
    );
}

#[test]
fn an_endless_answer_ends_at_the_deadline_and_with_its_client() {
    let mut said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    // After the head, chunks; the fake says all of it again, which is garbage in a chunk's place.
    said.extend_from_slice(b"3\r\nabc\r\n");
    let served = Served::start(Act::SayForever(said.into()), settings());
    let answer = served.get("/");
    assert!(
        answer.contains("abc") && !answer.ends_with("0\r\n\r\n"),
        "{answer}"
    );
    served.until("kvmlet_forks_busy ", 0);
    let endless = Act::SayForever("HTTP/1.1 200 OK\r\n\r\nabc".into());
    let served = Served::start(
        endless,
        Settings {
            timeout: Duration::from_millis(100),
            ..settings()
        },
    );
    let answer = served.get("/");
    assert!(!answer.ends_with("0\r\n\r\n"));
    served.until("kvmlet_requests_total{outcome=\"deadline\"}", 1);
    let mut stream = served.connect();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        .unwrap();
    served.until("kvmlet_forks_busy ", 1);
    drop(stream);
    served.until("kvmlet_forks_busy ", 0);
}
