//! Clients and programs that mean ill.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use super::{Served, Settings, read_answer, settings, status_of};
use crate::testing::Act;

#[test]
fn an_answer_reaches_the_client_framed_in_one_way() {
    let chunked = "Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n";
    for (fields, wanted) in [
        (format!("Content-Length: 2\r\n{chunked}"), true),
        (format!("Content-Length: 99\r\n{chunked}"), true),
        ("Content-Length: 5, 5\r\n\r\nabcde".to_owned(), true),
        (
            "Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde".to_owned(),
            true,
        ),
        // A body that the client could not read.
        ("Transfer-Encoding: gzip\r\n\r\nabcde".to_owned(), false),
        (format!("Transfer-Encoding: gzip\r\n{chunked}"), false),
        (
            "Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcde".to_owned(),
            false,
        ),
        ("A : b\r\n\r\nabcde".to_owned(), false),
        ("A: b\r\n c\r\n\r\nabcde".to_owned(), false),
        ("A: b\0c\r\n\r\nabcde".to_owned(), false),
    ] {
        let said = format!("HTTP/1.1 200 OK\r\n{fields}GET HTTP/1.1 200 OK\r\n\r\n");
        let served = Served::start(Act::Say(said.into()), settings());
        let mut stream = served.connect();
        for _ in 0..2 {
            stream
                .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
                .unwrap();
            let (head, mut body) = read_answer(&mut stream);
            let head = head.to_ascii_lowercase();
            if !wanted {
                assert_eq!(status_of(&head.to_uppercase()), 502, "{fields:?} {head}");
                break;
            }
            let lengths = head.matches("content-length: ").count();
            let is_chunked = head.contains("transfer-encoding: chunked");
            assert_eq!(lengths + usize::from(is_chunked), 1, "{fields:?} {head}");
            if is_chunked {
                body = vec![0; 15];
                stream.read_exact(&mut body).unwrap();
                assert_eq!(body, b"5\r\nabcde\r\n0\r\n\r\n", "{fields:?}");
            } else {
                assert_eq!(body, b"abcde", "{fields:?}");
            }
        }
    }
    // It has none, whatever it says.
    let said = "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nabcde";
    let served = Served::start(Act::Say(said.into()), settings());
    let answer = served.get("/").to_ascii_lowercase();
    assert!(!answer.contains("content-length"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn a_protocol_that_nobody_asked_for_is_no_answer() {
    let said = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
    let served = Served::start(Act::Say(said.into()), settings());
    let answer = served
        .ask(b"GET / HTTP/1.1\r\nHost: h\r\nAccept: application/json\r\nConnection: close\r\n\r\n");
    assert_eq!(status_of(&answer), 502, "{answer}");
    assert!(answer.contains("x-request-id: "), "{answer}");
    assert!(answer.contains("\"outcome\":\"invalid\""), "{answer}");
    served.until("kvmlet_requests_total{outcome=\"invalid\"}", 1);
    served.until("kvmlet_forks_busy ", 0);
}

#[test]
fn interim_answers_without_end_are_no_answer() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(4000);
    let served = Served::start(Act::SayForever(interim.into()), settings());
    let begun = Instant::now();
    assert_eq!(status_of(&served.get("/")), 502);
    assert!(begun.elapsed() < settings().timeout / 2);
    // What follows a head has no such limit.
    let mut said = b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n".to_vec();
    said.extend_from_slice(&[b'x'; 3_000_000]);
    let served = Served::start(Act::Say(said.into()), settings());
    assert!(served.get("/").len() > 3_000_000);
}

#[test]
fn a_body_that_comes_fast_and_then_not_at_all_is_given_up() {
    let patience = Duration::from_millis(300);
    let served = Served::start(
        Act::Mirror,
        Settings {
            header_timeout: patience,
            ..settings()
        },
    );
    let mut stream = served.connect();
    stream
        .write_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n")
        .unwrap();
    stream.write_all(&[b'x'; 100_000]).unwrap();
    let begun = Instant::now();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert_eq!(status_of(&answer), 408, "{answer}");
    assert!(begun.elapsed() < 20 * patience);
}

#[test]
fn chunks_of_a_byte_each_are_one_body() {
    let served = Served::start(Act::Mirror, settings());
    let mut request = b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\
                        Transfer-Encoding: chunked\r\n\r\n"
        .to_vec();
    for _ in 0..50_000 {
        request.extend_from_slice(b"1\r\nx\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    let answer = served.ask(&request);
    assert!(answer.contains("\r\ncontent-length: 50000\r\n"));
    assert!(answer.ends_with(&"x".repeat(50_000)));
}

type Sent = BoxBody<Bytes, std::convert::Infallible>;

async fn http2(
    served: &Served,
) -> (
    http2::SendRequest<Sent>,
    tokio::task::JoinHandle<hyper::Result<()>>,
) {
    let stream = tokio::net::TcpStream::connect(served.address)
        .await
        .unwrap();
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(1000);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    (sender, tokio::spawn(connection))
}

fn get(uri: &str) -> http::request::Builder {
    Request::get(uri)
}

#[tokio::test]
async fn what_http1_may_not_say_http2_may_not_either() {
    let served = Served::start(Act::Mirror, settings());
    let (mut sender, _) = http2(&served).await;
    let long = "x".repeat(9000);
    for (request, wanted) in [
        (get("http://h/"), 200),
        (get("http://h/").header("x_forwarded_for", "9.9.9.9"), 400),
        (get("http://h/").header("content_length", "5"), 400),
        (get("http://h/").header("x", long.as_str()), 431),
        (get("http://a,b/"), 400),
        (get("http://h/a|b"), 400),
        (get(&format!("http://h/{long}")), 414),
    ] {
        let request = request.body(Empty::new().boxed()).unwrap();
        let shown = format!("{:.200}", format!("{request:?}"));
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), wanted, "{shown}");
    }
    for (name, wanted) in [
        ("x-sum", 200),
        ("authorization", 400),
        ("x-forwarded-for", 400),
        ("x_forwarded_for", 400),
    ] {
        let mut trailers = HeaderMap::new();
        trailers.insert(name, HeaderValue::from_static("1"));
        let body = Full::new(Bytes::from_static(b"abc"));
        let body = body.with_trailers(std::future::ready(Some(Ok(trailers))));
        let request = Request::post("http://h/").body(body.boxed()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), wanted, "{name}");
    }
}

#[tokio::test]
async fn an_answer_that_a_client_of_http2_does_not_take_is_broken_off() {
    let mut said = b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n".to_vec();
    said.extend_from_slice(&[b'x'; 500_000]);
    let served = Served::start(
        Act::Say(said.into()),
        Settings {
            header_timeout: Duration::from_millis(300),
            ..settings()
        },
    );
    let (mut sender, _) = http2(&served).await;
    let mut ask = async |uri| {
        let request = get(uri).body(Empty::new().boxed()).unwrap();
        sender.send_request(request).await.unwrap()
    };
    let stalled = ask("http://h/stalled").await;
    assert_eq!(stalled.status(), StatusCode::OK);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    // Others of the same connection are as before.
    let other = ask("http://h/other").await;
    let other = other.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(other.len(), 500_000);
    assert!(stalled.into_body().collect().await.is_err());
}

#[tokio::test]
async fn a_client_of_http2_that_asks_nothing_is_let_go() {
    let served = Served::start(
        Act::Mirror,
        Settings {
            keepalive: Duration::from_millis(200),
            ..settings()
        },
    );
    let (mut sender, connection) = http2(&served).await;
    let request = get("http://h/").body(Full::default().boxed()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    drop(response.into_body().collect().await);
    let ended = tokio::time::timeout(Duration::from_secs(10), connection).await;
    assert!(ended.is_ok());
    assert!(sender.ready().await.is_err());
    served.until("kvmlet_connections ", 0);
}
