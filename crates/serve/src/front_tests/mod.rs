//! The whole front, before programs that are not in a VM.
#![allow(
    clippy::disallowed_methods,
    reason = "clients and servers of the host, on loopback"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::fork::{BootError, Program};
use crate::testing::{Act, FakeMaster};
use crate::{
    AccessLog, Commands, Isolate, Notice, Place, ProgramSettings, Route, Server, Start, Tls,
    TrustedProxies, WarmupRequest,
};

mod hostile;
mod operation;
mod proxied;
mod routed;

/// Settings of a front before one program, and of that program.
#[derive(Clone)]
struct Settings {
    name: String,
    route: Route,
    isolate: Isolate,
    forks: usize,
    queue_max: usize,
    timeout: Duration,
    connection_timeout: Option<Duration>,
    idle_timeout: Duration,
    header_timeout: Duration,
    keepalive: Duration,
    body_bytes_max: u64,
    buffer_bytes: usize,
    connections_max: usize,
    upgrades_max: usize,
    grace: Duration,
    warmup_timeout: Duration,
    warmup: Vec<WarmupRequest>,
    access_log: AccessLog,
    trusted_proxies: TrustedProxies,
    proxy_protocol: bool,
    tls: Option<Arc<Tls>>,
    threads: usize,
}

impl Settings {
    fn of_front(&self) -> crate::Settings {
        crate::Settings {
            header_timeout: self.header_timeout,
            keepalive: self.keepalive,
            buffer_bytes: self.buffer_bytes,
            connections_max: self.connections_max,
            grace: self.grace,
            access_log: self.access_log,
            trusted_proxies: self.trusted_proxies.clone(),
            proxy_protocol: self.proxy_protocol,
            tls: self.tls.clone(),
            threads: self.threads,
        }
    }

    fn of_program(self) -> ProgramSettings {
        ProgramSettings {
            name: self.name,
            route: self.route,
            isolate: self.isolate,
            forks: self.forks,
            queue_max: self.queue_max,
            timeout: self.timeout,
            connection_timeout: self.connection_timeout,
            idle_timeout: self.idle_timeout,
            body_bytes_max: self.body_bytes_max,
            upgrades_max: self.upgrades_max,
            warmup_timeout: self.warmup_timeout,
            warmup: self.warmup,
        }
    }
}

fn settings() -> Settings {
    Settings {
        name: String::new(),
        route: Route::default(),
        isolate: Isolate::Request,
        forks: 2,
        queue_max: 64,
        timeout: Duration::from_secs(20),
        connection_timeout: None,
        idle_timeout: Duration::from_secs(20),
        header_timeout: Duration::from_secs(20),
        keepalive: Duration::from_secs(20),
        body_bytes_max: 1 << 20,
        buffer_bytes: 8 << 20,
        connections_max: 4096,
        upgrades_max: 1,
        grace: Duration::from_secs(10),
        warmup_timeout: Duration::from_secs(5),
        warmup: Vec::new(),
        access_log: AccessLog::Off,
        trusted_proxies: TrustedProxies::default(),
        proxy_protocol: false,
        tls: None,
        threads: 1,
    }
}

struct Served {
    address: SocketAddr,
    control: SocketAddr,
    commands: Commands,
    thread: Option<JoinHandle<Result<(), BootError>>>,
}

impl Served {
    fn start(act: Act, settings: Settings) -> Self {
        let start = move || Ok(Box::new(FakeMaster::new(act.clone())) as Box<dyn Program>);
        let served = Self::start_with(start, settings);
        served.until_ready();
        served
    }

    fn until_ready(&self) {
        let begun = Instant::now();
        while !self.control("/-/ready").starts_with("HTTP/1.1 200") {
            assert!(begun.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn start_with(
        start: impl Fn() -> Result<Box<dyn Program>, BootError> + Send + Sync + 'static,
        settings: Settings,
    ) -> Self {
        let of_front = settings.of_front();
        let start =
            Arc::new(move |_: &mut dyn crate::Output, _: &(dyn Fn() -> bool + Sync)| start());
        Self::start_all(of_front, vec![(settings.of_program(), start)])
    }

    fn start_all(settings: crate::Settings, programs: Vec<(ProgramSettings, Arc<Start>)>) -> Self {
        let bind = || "0".parse::<Place>().unwrap().bind().unwrap();
        let (listener, control) = (bind(), bind());
        let address = listener.name().parse().unwrap();
        let control_address = control.name().parse().unwrap();
        let server = Server::new(
            settings,
            programs,
            Vec::new(),
            vec![listener],
            Some(control),
            Notice::Quiet,
        )
        .unwrap();
        let commands = Commands::default();
        let told = commands.clone();
        let thread = std::thread::spawn(move || server.run(&told));
        Self {
            address,
            control: control_address,
            commands,
            thread: Some(thread),
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    /// What comes for `request` until the end of the connection.
    fn ask(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        let mut answer = Vec::new();
        // One whose rest nobody reads is reset.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn get(&self, path: &str) -> String {
        self.ask(format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").as_bytes())
    }

    fn control(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.control).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn metric(&self, name: &str) -> u64 {
        let all = self.control("/metrics");
        let line = all.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name}\n{all}"))
            .trim()
            .parse()
            .unwrap()
    }

    fn until(&self, name: &str, value: u64) {
        let begun = Instant::now();
        while self.metric(name) != value {
            assert!(begun.elapsed() < Duration::from_secs(20), "{name} {value}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn end(&mut self) -> Result<(), BootError> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.commands.stop();
        self.commands.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// An answer of a connection that goes on: its head and its body.
fn read_answer(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .to_ascii_lowercase()
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (head, body)
}

fn status_of(answer: &str) -> u16 {
    let status = answer
        .strip_prefix("HTTP/1.1 ")
        .or(answer.strip_prefix("HTTP/1.0 "));
    status.map_or(0, |status| status[..3].parse().unwrap())
}

#[test]
fn each_request_of_a_connection_meets_a_clean_fork() {
    let served = Served::start(Act::Mirror, settings());
    let mut stream = served.connect();
    for number in 0..20 {
        let body = "x".repeat(number);
        let request =
            format!("POST /{number} HTTP/1.1\r\nHost: h\r\nContent-Length: {number}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).unwrap();
        let (head, mirrored) = read_answer(&mut stream);
        assert!(head.contains("x-requests: 1\r\n"), "{head}");
        // What belongs to the fork's connection stays there.
        assert!(!head.contains("keep-alive"), "{head}");
        let mirrored = String::from_utf8(mirrored).unwrap();
        assert!(mirrored.starts_with(&format!("POST /{number} HTTP/1.1\r\nhost: h\r\n")));
        assert!(mirrored.contains("\r\nconnection: close\r\n"));
        assert!(mirrored.ends_with(&format!("\r\n\r\n{body}")));
    }
    served.until("kvmlet_requests_total{outcome=\"ok\"}", 20);
    served.until("kvmlet_reset_seconds_count", 20);
    assert_eq!(served.metric("kvmlet_pages_reset_total"), 60);
}

#[test]
fn without_isolation_a_fork_keeps_what_it_has() {
    let served = Served::start(
        Act::Mirror,
        Settings {
            isolate: Isolate::None,
            forks: 1,
            ..settings()
        },
    );
    assert!(served.get("/").contains("x-requests: 1\r\n"));
    assert!(served.get("/").contains("x-requests: 2\r\n"));
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let served = Served::start(Act::Mirror, settings());
    let mut requests = String::new();
    for number in 0..10 {
        requests += &format!("GET /{number} HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    let mut stream = served.connect();
    stream.write_all(requests.as_bytes()).unwrap();
    for number in 0..10 {
        let (_, body) = read_answer(&mut stream);
        assert!(body.starts_with(format!("GET /{number} ").as_bytes()));
    }
}

#[test]
fn bodies_in_chunks_and_trailers_reach_the_program() {
    let served = Served::start(Act::Mirror, settings());
    let chunked = "POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n";
    // Its length is known once it is read: no program has to know chunks.
    let answer = served.ask(format!("{chunked}\r\n").as_bytes());
    assert!(answer.contains("\r\ncontent-length: 5\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nabcde"), "{answer}");
    let answer = served.ask(format!("{chunked}X-Sum: 7\r\n\r\n").as_bytes());
    assert!(answer.contains("\r\ntrailer: x-sum\r\n"), "{answer}");
    assert!(answer.ends_with("0\r\nx-sum: 7\r\n\r\n"), "{answer}");
}

#[test]
fn a_client_that_expects_to_be_told_to_continue_is_told() {
    let served = Served::start(Act::Mirror, settings());
    let mut stream = served.connect();
    let head = b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    stream.write_all(head).unwrap();
    let (head, _) = read_answer(&mut stream);
    assert_eq!(status_of(&head), 100);
    stream.write_all(b"abc").unwrap();
    let (head, body) = read_answer(&mut stream);
    assert_eq!(status_of(&head), 200);
    assert!(body.ends_with(b"abc"));
    assert!(!String::from_utf8(body).unwrap().contains("expect"));
    // What is too long is said to be before it is sent.
    let head =
        b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 9999999\r\n\r\n";
    assert_eq!(status_of(&served.ask(head)), 413);
}

#[test]
fn head_has_a_length_and_no_body() {
    let served = Served::start(Act::Mirror, settings());
    let answer = served.ask(b"HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert_eq!(status_of(&answer), 200);
    assert!(answer.contains("content-length: "), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    let (head, _) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(answer.len(), head.len() + 4);
    served.until("kvmlet_requests_total{outcome=\"ok\"}", 1);
}

#[test]
fn answers_without_a_body_are_complete() {
    for status in ["204 No Content", "304 Not Modified"] {
        let said = format!("HTTP/1.1 {status}\r\nX-A: b\r\n\r\n");
        let served = Served::start(Act::Say(said.into()), settings());
        let mut stream = served.connect();
        for _ in 0..2 {
            stream
                .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
                .unwrap();
            let (head, _) = read_answer(&mut stream);
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
        }
    }
    let said = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let served = Served::start(Act::Say(said.into()), settings());
    let (head, _) = {
        let mut stream = served.connect();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            .unwrap();
        read_answer(&mut stream)
    };
    assert!(head.contains("content-length: 0\r\n"));
}

#[test]
fn an_answer_that_ends_with_its_connection_is_complete_only_if_the_program_ended_it() {
    let said = "HTTP/1.1 200 OK\r\n\r\nabc";
    let served = Served::start(Act::Say(said.into()), settings());
    let answer = served.get("/");
    assert!(answer.ends_with("\r\n3\r\nabc\r\n0\r\n\r\n"), "{answer}");
    let served = Served::start(Act::SayAndCrash(said.into()), settings());
    let answer = served.get("/");
    assert_eq!(status_of(&answer), 200);
    assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
    served.until("kvmlet_requests_total{outcome=\"crash\"}", 1);
}

#[test]
fn interim_answers_are_left_out_and_trailers_handed_on() {
    let said = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\
                Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n";
    let served = Served::start(Act::Say(said.into()), settings());
    let answer = served.get("/");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\r\n3\r\nabc\r\n0\r\n"), "{answer}");
}

#[test]
fn failures_are_answers() {
    let hang = Settings {
        timeout: Duration::from_millis(50),
        ..settings()
    };
    let garbage = Act::Say("SSH-2.0-x\r\n".into());
    let half = Act::Say("HTTP/1.1 200 OK\r\nConte".into());
    for (act, settings, status, outcome, reason) in [
        (Act::Crash, settings(), 502, "crash", "SIGSEGV"),
        (Act::Memory, settings(), 502, "memory", "memory"),
        (Act::Hang, hang, 504, "deadline", "in time"),
        (Act::Close, settings(), 502, "invalid", "no answer"),
        (half, settings(), 502, "invalid", "no answer"),
        (garbage, settings(), 502, "invalid", "not HTTP"),
    ] {
        let served = Served::start(act, settings);
        let answer = served.get("/");
        assert_eq!(status_of(&answer), status, "{answer}");
        assert!(answer.contains(reason), "{answer}");
        assert!(answer.contains("request id: "), "{answer}");
        served.until(
            &format!("kvmlet_requests_total{{outcome=\"{outcome}\"}}"),
            1,
        );
        let request =
            "GET / HTTP/1.1\r\nHost: h\r\nAccept: application/json\r\nConnection: close\r\n\r\n";
        let answer = served.ask(request.as_bytes());
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(
            body.starts_with(&format!("{{\"status\":{status},")),
            "{body}"
        );
        assert!(body.contains(&format!("\"outcome\":\"{outcome}\"")));
    }
}

#[test]
fn an_answer_that_is_cut_off_is_seen_to_be() {
    let said = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc";
    let served = Served::start(Act::Say(said.into()), settings());
    let answer = served.get("/");
    assert!(answer.contains("content-length: 10\r\n") && answer.ends_with("abc"));
    served.until("kvmlet_requests_total{outcome=\"invalid\"}", 1);
}

#[test]
fn full_is_said_at_once() {
    let served = Served::start(
        Act::Hang,
        Settings {
            forks: 1,
            queue_max: 0,
            ..settings()
        },
    );
    served.until("kvmlet_forks ", 1);
    let mut first = served.connect();
    first
        .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        .unwrap();
    served.until("kvmlet_forks_busy ", 1);
    let answer = served.get("/");
    assert_eq!(status_of(&answer), 503);
    assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
    // A client that goes gives its fork back.
    drop(first);
    served.until("kvmlet_forks_busy ", 0);
}

#[test]
fn a_request_that_waits_too_long_for_a_fork_is_given_up() {
    let said = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: x\n\n";
    let served = Served::start(
        Act::SayForever(said.into()),
        Settings {
            forks: 1,
            timeout: Duration::from_millis(200),
            ..settings()
        },
    );
    // A stream of events holds the only fork.
    let mut first = served.connect();
    first
        .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        .unwrap();
    served.until("kvmlet_upgrades", 1);
    let answer = served.get("/");
    assert_eq!(status_of(&answer), 503);
    assert!(answer.contains("no fork was free in time"), "{answer}");
}

#[test]
fn slow_and_idle_clients_cost_no_fork() {
    let served = Served::start(
        Act::Mirror,
        Settings {
            forks: 1,
            ..settings()
        },
    );
    let mut slow = Vec::new();
    for number in 0..300 {
        let mut stream = served.connect();
        let start: &[u8] = match number % 3 {
            0 => b"",
            1 => b"GET / HTTP/1.1\r\nHost: ",
            _ => b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc",
        };
        stream.write_all(start).unwrap();
        slow.push(stream);
    }
    for _ in 0..5 {
        assert_eq!(status_of(&served.get("/")), 200);
    }
    assert_eq!(served.metric("kvmlet_forks_busy "), 0);
    // They are served as soon as they are done.
    let last = slow.last_mut().unwrap();
    last.write_all(b"defghi").unwrap();
    assert!(read_answer(last).1.ends_with(b"abcdefghi"));
}

#[test]
fn a_client_that_reads_slowly_costs_no_fork_once_the_answer_is_there() {
    let body = vec![b'x'; 900 << 10];
    let mut said =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    said.extend_from_slice(&body);
    let served = Served::start(
        Act::Say(said.into()),
        Settings {
            forks: 1,
            ..settings()
        },
    );
    let mut slow = served.connect();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        .unwrap();
    served.until("kvmlet_reset_seconds_count", 1);
    assert_eq!(
        served.get("/").split_once("\r\n\r\n").unwrap().1.len(),
        body.len()
    );
    assert_eq!(read_answer(&mut slow).1, body);
}

#[test]
fn limits_of_time_end_what_is_slow() {
    let served = Served::start(
        Act::Mirror,
        Settings {
            header_timeout: Duration::from_millis(80),
            keepalive: Duration::from_millis(80),
            ..settings()
        },
    );
    let mut silent = served.connect();
    assert_eq!(silent.read(&mut [0; 9]).unwrap(), 0);
    assert_eq!(status_of(&served.ask(b"GET / HTTP/1.1\r\nHost: ")), 408);
    let slow = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc";
    assert_eq!(status_of(&served.ask(slow)), 408);
    let mut idle = served.connect();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        .unwrap();
    read_answer(&mut idle);
    assert_eq!(idle.read(&mut [0; 9]).unwrap(), 0);
}

/// Requests that another parser could read otherwise. Each is refused and reaches no program, nor does what
/// follows it.
fn smuggled() -> Vec<String> {
    let lines = include_str!("smuggled.txt").lines();
    let all: Vec<_> = lines
        .filter(|line| !line.starts_with('#'))
        .map(unescaped)
        .collect();
    assert_eq!(all.len(), 40);
    all
}

/// A line of that file.
fn unescaped(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line.chars();
    while let Some(char) = rest.next() {
        text.push(match char {
            '\\' => match rest.next().unwrap() {
                'r' => '\r',
                'n' => '\n',
                '0' => '\0',
                '\\' => '\\',
                'x' => {
                    let digits: String = rest.by_ref().take(2).collect();
                    char::from(u8::from_str_radix(&digits, 16).unwrap())
                }
                other => panic!("\\{other} in {line}"),
            },
            char => char,
        });
    }
    text
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    let served = Served::start(Act::Mirror, settings());
    let smuggled = smuggled();
    for request in &smuggled {
        let all = format!("{request}GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n");
        let answer = served.ask(all.as_bytes());
        assert_eq!(status_of(&answer), 400, "{request:?}: {answer}");
        assert!(!answer.contains("/smuggled"), "{request:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{request:?}");
    }
    assert_eq!(served.metric("kvmlet_run_seconds_count"), 0);
    let refused = served.metric("kvmlet_requests_total{outcome=\"refused\"}");
    assert_eq!(refused, smuggled.len() as u64);
}

#[test]
fn a_refused_request_is_answered_after_those_before_it() {
    let served = Served::start(Act::Mirror, settings());
    let answer = served.ask(
        b"GET /first HTTP/1.1\r\nHost: h\r\n\r\nGET /second HTTP/1.1\nHost: h\r\n\r\nGET /third HTTP/1.1\r\nHost: h\r\n\r\n",
    );
    assert!(answer.contains("GET /first"));
    assert!(answer.contains("HTTP/1.1 400 "));
    assert!(!answer.contains("third"));
    assert_eq!(status_of(&served.ask(b"\x16\x03\x01\0\x05hello")), 400);
}
