//! Unmodified servers: run until they wait for connections, frozen, forked, given connections, and reset. After a
//! reset all is as in a new fork. Needs /dev/kvm, gcc and make.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::snapshot::compare::{check_equal, state};
use crate::testing::{Nobody, program};
use crate::{
    Door, Ending, EngineError, Feed, Flow, Input, Output, Program, Request, Sandbox, Served,
    ServerFork, Snapshot,
};

const LIMIT: Option<Duration> = Some(Duration::from_secs(60));

fn server(mode: &str) -> Program {
    let mut program = program("tests/guests", "webserver", &[mode]);
    program.memory_bytes = 48 << 20;
    program
}

fn peer() -> SocketAddr {
    "203.0.113.9:51000".parse().unwrap()
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes()
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(60))
}

fn listening(mode: &str) -> Sandbox {
    let mut sandbox = Sandbox::start(&server(mode)).unwrap();
    assert_eq!(
        sandbox.until_listening(None, LIMIT, &mut Nobody).unwrap(),
        Door::Port(8080),
        "{mode}"
    );
    sandbox
}

fn ask(fork: &mut ServerFork, path: &str, deadline: Option<Instant>) -> (Served, String) {
    let connection = fork.open(peer()).unwrap();
    let (request, mut answer) = (get(path), Vec::new());
    let mut input = Request::new(&request);
    let served = fork
        .exchange(connection, &mut input, &mut answer, deadline, &mut Nobody)
        .unwrap();
    (served, String::from_utf8_lossy(&answer).into_owned())
}

/// Warms the server by a request, and freezes it.
fn frozen(mode: &str) -> Snapshot {
    let mut sandbox = listening(mode);
    let connection = sandbox.connect(8080, None).unwrap();
    let (request, mut answer) = (get("/other"), Vec::new());
    let served = sandbox.exchange(
        connection,
        &mut Request::new(&request),
        &mut answer,
        soon(),
        &mut Nobody,
    );
    assert_eq!(served.unwrap(), Served::End);
    sandbox.hang_up(connection);
    sandbox.until_listening(None, LIMIT, &mut Nobody).unwrap();
    sandbox.freeze().unwrap()
}

const FIRST: &str = "counter 1 file 1 list 1 from 203.0.113.9:51000\n";

#[test]
fn each_request_meets_the_frozen_server() {
    for mode in [
        "accept", "poll", "select", "epoll", "threads", "prefork", "timers",
    ] {
        let mut fork = ServerFork::new(&frozen(mode)).unwrap();
        for round in 0..20 {
            let (served, answer) = ask(&mut fork, "/count", soon());
            assert_eq!(served, Served::End, "{mode} {round}");
            assert!(answer.ends_with(FIRST), "{mode} {round}: {answer:?}");
            fork.reset().unwrap();
        }
        // Without a reset the server goes on.
        ask(&mut fork, "/count", soon());
        let (_, answer) = ask(&mut fork, "/count", soon());
        assert!(
            mode == "prefork" || answer.contains("counter 2 file 2 list 2"),
            "{mode}: {answer}"
        );
    }
}

#[test]
fn a_server_may_wait_on_a_unix_socket() {
    let mut sandbox = Sandbox::start(&server("unix")).unwrap();
    let door = sandbox.until_listening(None, LIMIT, &mut Nobody).unwrap();
    assert!(matches!(door, Door::Unix(_)), "{door:?}");
    let mut fork = ServerFork::new(&sandbox.freeze().unwrap()).unwrap();
    for round in 0..5 {
        let (served, answer) = ask(&mut fork, "/count", soon());
        assert_eq!(served, Served::End, "{round}");
        assert!(answer.contains("counter 1 file 1 list 1 "), "{answer}");
        let (served, answer) = ask(&mut fork, "/bytes/700000", soon());
        assert_eq!((served, answer.len()), (Served::End, 700_000));
        fork.reset().unwrap();
    }
    let mut sandbox = Sandbox::start(&server("unix")).unwrap();
    let error = sandbox.until_listening(Some(80), Some(Duration::from_secs(5)), &mut Nobody);
    let text = error.unwrap_err().to_string();
    assert!(text.contains("listens on no TCP port, port 80"), "{text}");
}

#[test]
fn nothing_is_left_of_a_request() {
    for mode in ["epoll", "prefork"] {
        let snapshot = frozen(mode);
        let mut fork = ServerFork::new(&snapshot).unwrap();
        let clean = state(fork.sandbox());
        for path in [
            "/count",
            "/bytes/700000",
            "/reset",
            "/never",
            "/loop",
            "/forks",
            "/eat",
            "/kill",
            "/crash",
            "/exit",
            "/endless",
        ] {
            let short = Some(Instant::now() + Duration::from_millis(100));
            let deadline = if path == "/eat" { soon() } else { short };
            let (served, _) = ask(&mut fork, path, deadline);
            fork.reset().unwrap();
            let found = state(fork.sandbox());
            check_equal(&clean, &found, &format!("{path} ({served:?}) of {mode}"));
            let (_, answer) = ask(&mut fork, "/count", soon());
            assert!(answer.ends_with(FIRST), "{mode} after {path}: {answer:?}");
            fork.reset().unwrap();
        }
        // Connections that are open, and one that nobody has accepted, with bytes on their way.
        for _ in 0..3 {
            let connection = fork.open(peer()).unwrap();
            let sandbox = fork.sandbox();
            sandbox
                .send_to(connection, b"GET ", LIMIT, &mut Nobody)
                .unwrap();
        }
        fork.reset().unwrap();
        check_equal(&clean, &state(fork.sandbox()), "open connections");
        check_equal(
            &clean,
            &state(ServerFork::new(&snapshot).unwrap().sandbox()),
            "a new fork",
        );
    }
}

#[test]
fn each_end_has_its_name() {
    let snapshot = frozen("epoll");
    let mut fork = ServerFork::new(&snapshot).unwrap();
    let mut check = |path: &str, expected: Served| {
        let short = Some(Instant::now() + Duration::from_millis(200));
        let is_long = matches!(expected, Served::Ended(_));
        let deadline = if is_long { soon() } else { short };
        let (served, answer) = ask(&mut fork, path, deadline);
        assert_eq!(served, expected, "{path}");
        fork.reset().unwrap();
        answer
    };
    check("/count", Served::End);
    check("/loop", Served::TimedOut);
    check("/never", Served::Silent);
    check("/endless", Served::TimedOut);
    check("/reset", Served::Reset);
    check("/crash", Served::Ended(Ending::Signal(11)));
    check("/kill", Served::Ended(Ending::Signal(9)));
    check("/eat", Served::Ended(Ending::Memory));
    // What was sent before the end has come.
    assert!(check("/exit", Served::Ended(Ending::Exited(3))).ends_with("last\n"));
}

/// A client that sends piece by piece from another thread, and takes the response in pieces.
#[derive(Clone, Default)]
struct Pieces {
    state: Arc<Mutex<State>>,
    held: Vec<u8>,
}

#[derive(Default)]
struct State {
    given: Vec<u8>,
    is_over: bool,
    got: Vec<u8>,
    room_bytes: usize,
    enough: usize,
}

impl Input for Pieces {
    fn next(&mut self) -> Feed<'_> {
        let mut state = self.state.lock().unwrap();
        self.held.append(&mut state.given);
        match (self.held.is_empty(), state.is_over) {
            (false, _) => Feed::Bytes(&self.held),
            (true, true) => Feed::Shut,
            (true, false) => Feed::Later,
        }
    }

    fn taken(&mut self, count_bytes: usize) {
        self.held.drain(..count_bytes);
    }
}

impl Output for Pieces {
    fn room_bytes(&mut self) -> usize {
        self.state.lock().unwrap().room_bytes
    }

    fn write(&mut self, bytes: &[u8]) -> Flow {
        let mut state = self.state.lock().unwrap();
        assert!(bytes.len() <= state.room_bytes);
        state.room_bytes -= bytes.len();
        state.got.extend_from_slice(bytes);
        match state.got.len() >= state.enough {
            true => Flow::Enough,
            false => Flow::More,
        }
    }
}

#[test]
fn bytes_stream_both_ways_while_the_guest_runs() {
    for mode in ["epoll", "timers"] {
        let mut fork = ServerFork::new(&frozen(mode)).unwrap();
        let pieces = Pieces::default();
        {
            let mut state = pieces.state.lock().unwrap();
            state.given = get("/echo");
            state.room_bytes = 1000;
            state.enough = usize::MAX;
        }
        let (client, waker) = (pieces.clone(), fork.waker());
        let writer = std::thread::spawn(move || {
            for round in 0..50_000u32 {
                let mut state = client.state.lock().unwrap();
                state.given.extend(round.to_le_bytes());
                state.room_bytes += 4;
                let is_full = state.given.len() > 100_000;
                drop(state);
                waker.wake();
                if is_full || round < 20 {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            client.state.lock().unwrap().is_over = true;
            waker.wake();
        });
        let connection = fork.open(peer()).unwrap();
        let (mut input, mut output) = (pieces.clone(), pieces.clone());
        let served = fork.exchange(connection, &mut input, &mut output, soon(), &mut Nobody);
        writer.join().unwrap();
        assert_eq!(served.unwrap(), Served::End, "{mode}");
        let expected: Vec<u8> = (0..50_000u32).flat_map(u32::to_le_bytes).collect();
        assert_eq!(pieces.state.lock().unwrap().got, expected);
        fork.reset().unwrap();
    }
}

#[test]
fn a_response_may_be_left_and_gone_on_with() {
    let mut fork = ServerFork::new(&frozen("epoll")).unwrap();
    let pieces = Pieces::default();
    {
        let mut state = pieces.state.lock().unwrap();
        state.given = get("/bytes/3000000");
        state.room_bytes = usize::MAX;
        state.enough = 1000;
    }
    let connection = fork.open(peer()).unwrap();
    let (mut input, mut output) = (pieces.clone(), pieces.clone());
    let served = fork.exchange(connection, &mut input, &mut output, soon(), &mut Nobody);
    assert_eq!(served.unwrap(), Served::Enough);
    // A client that takes nothing keeps the server waiting.
    pieces.state.lock().unwrap().room_bytes = 0;
    let short = Some(Instant::now() + Duration::from_millis(100));
    let served = fork.exchange(connection, &mut input, &mut output, short, &mut Nobody);
    assert_eq!(served.unwrap(), Served::TimedOut);
    {
        let mut state = pieces.state.lock().unwrap();
        state.room_bytes = usize::MAX;
        state.enough = usize::MAX;
    }
    let served = fork.exchange(connection, &mut input, &mut output, soon(), &mut Nobody);
    assert_eq!(served.unwrap(), Served::End);
    let state = pieces.state.lock().unwrap();
    assert_eq!(state.got.len(), 3_000_000);
    assert!(
        state
            .got
            .iter()
            .zip((b'a'..=b'z').cycle())
            .all(|(got, sent)| *got == sent)
    );
}

#[test]
fn a_program_that_does_not_come_to_its_listener_is_told_of() {
    let error = |mode: &str, port: Option<u16>, ms: u64| {
        let mut sandbox = Sandbox::start(&server(mode)).unwrap();
        let limit = Some(Duration::from_millis(ms));
        let error = sandbox
            .until_listening(port, limit, &mut Nobody)
            .unwrap_err();
        (error.kind(), error.to_string())
    };
    let (kind, text) = error("busy", None, 1000);
    assert_eq!(kind, "not_quiet");
    assert!(text.contains("thread 3 (webserver) of process 2"), "{text}");
    let (kind, text) = error("none", None, 60_000);
    assert_eq!(kind, "not_listening");
    assert!(text.contains("listens on no TCP port"), "{text}");
    let (kind, text) = error("two", None, 60_000);
    assert_eq!(kind, "not_listening");
    assert!(text.contains("8080, 8081"), "{text}");
    let (kind, text) = error("epoll", Some(9000), 60_000);
    assert_eq!(kind, "not_listening");
    assert!(text.contains("another port than 9000: 8080"), "{text}");
    let (kind, text) = error("quits", None, 60_000);
    assert_eq!(kind, "ended");
    assert!(text.contains("status 4"), "{text}");
    let mut sandbox = Sandbox::start(&server("two")).unwrap();
    let port = sandbox.until_listening(Some(8081), LIMIT, &mut Nobody);
    assert_eq!(port.unwrap(), Door::Port(8081));
}

#[test]
fn an_open_connection_refuses_a_freeze() {
    let mut sandbox = listening("epoll");
    let connection = sandbox.connect(8080, None).unwrap();
    let error = sandbox.freeze().unwrap_err();
    assert!(matches!(error, EngineError::Connected(1)), "{error}");
    let mut fork = ServerFork::new(&frozen("epoll")).unwrap();
    // One of another time leads nowhere.
    let sent = fork.sandbox().send_to(connection, b"x", LIMIT, &mut Nobody);
    assert!(
        matches!(sent, Err(EngineError::Connection("EBADF"))),
        "{sent:?}"
    );
}
