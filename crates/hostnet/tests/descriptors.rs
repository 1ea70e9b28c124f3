//! A process that may open no more descriptors. The limit is the process's: no other test runs in it.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvmlet_budget::Share;
use kvmlet_hostnet::{Events, Listener};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn connections_that_nobody_can_take_are_refused_and_later_ones_are_taken() {
    let listener = Listener::open("127.0.0.1:0".parse().unwrap()).unwrap();
    let share: Arc<Share> = Arc::default();
    let events = Events::open(&share).unwrap();
    events.add(&listener, 1).unwrap();
    let clients: Vec<_> = (0..3)
        .map(|_| TcpStream::connect(listener.at()).unwrap())
        .collect();
    let old = getrlimit(Resource::Nofile);
    let lowered = Rlimit {
        current: Some(64),
        maximum: old.maximum,
    };
    setrlimit(Resource::Nofile, lowered).unwrap();
    let mut held = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        held.push(file);
    }
    // Of one event, all that wait are taken.
    assert_eq!(events.take().len(), 1);
    for _ in &clients {
        assert!(matches!(listener.accept(&share), Some(None)));
    }
    assert!(listener.accept(&share).is_none());
    drop(held);
    setrlimit(Resource::Nofile, old).unwrap();
    for mut client in clients {
        assert!(!matches!(client.read(&mut [0]), Ok(1..)));
    }
    let _client = TcpStream::connect(listener.at()).unwrap();
    let start = Instant::now();
    while events.take().is_empty() {
        assert!(start.elapsed() < Duration::from_secs(10));
    }
    assert!(matches!(listener.accept(&share), Some(Some(_))));
}
