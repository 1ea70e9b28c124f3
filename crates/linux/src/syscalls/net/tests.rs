//! Sockets: what a comparison with Linux does not show.

#![expect(clippy::disallowed_methods, reason = "tests make their own files")]

use std::path::Path;

use kvmlet_abi::Errno;

use crate::outcome::{CallState, Outcome, Resume, Source, WaitOn};
use crate::testing::{Sandbox, call};

const STREAM: i64 = 1;
const DATAGRAM: i64 = 2;
const SEQPACKET: i64 = 5;
const NONBLOCK: i64 = 0o4000;

fn pair(s: &mut Sandbox, kind: i64) -> (i64, i64) {
    let fds = s.room(8);
    call!(s, "socketpair", 1, kind, 0, fds).unwrap();
    let [a, b]: [i32; 2] = s.get_struct(fds);
    (a.into(), b.into())
}

fn sandbox() -> Sandbox {
    Sandbox::new(Path::new("/usr/share"))
}

#[test]
fn what_is_queued_is_charged_until_it_is_gone() {
    for kind in [STREAM, DATAGRAM, SEQPACKET] {
        let mut s = sandbox();
        s.touch_all();
        let before = s.machine.memory.used_bytes();
        let (a, b) = pair(&mut s, kind | NONBLOCK);
        let mut sent = 0;
        let block = s.put(&[7; 3000]);
        while let Ok(count) = call!(s, "sendto", a, block, 3000, 0, 0, 0) {
            sent += count;
        }
        let held = s.machine.memory.used_bytes() - before;
        assert!(sent > 100_000 && held >= sent && held < 300_000, "{held}");
        let into = s.room(3000);
        assert_eq!(call!(s, "recvfrom", b, into, 3000, 0, 0, 0), Ok(3000));
        assert!(s.machine.memory.used_bytes() - before < held);
        // One side's end gives back what the other has sent, and its own what it has received.
        call!(s, "sendto", b, block, 10, 0, 0, 0).unwrap();
        call!(s, "close", b).unwrap();
        call!(s, "close", a).unwrap();
        assert_eq!(s.machine.memory.used_bytes(), before);
        assert_eq!(s.kernel.objects.sockets, Default::default());
    }
}

#[test]
fn small_messages_do_not_pile_up() {
    let mut s = sandbox();
    let (a, _) = pair(&mut s, STREAM | NONBLOCK);
    let mut count = 0;
    while s.write(a, b"x").is_ok() {
        count += 1;
    }
    assert!((100..1000).contains(&count), "{count}");
}

#[test]
fn forks_share_no_queue() {
    let mut s = sandbox();
    let (a, b) = pair(&mut s, STREAM | NONBLOCK);
    s.write(a, b"before").unwrap();
    let frozen = s.kernel.clone();
    assert_eq!(s.read(b, 3).unwrap(), b"bef");
    s.write(a, b"after").unwrap();
    assert_eq!(s.read(b, 100).unwrap(), b"oreafter");
    s.kernel = frozen.clone();
    assert_eq!(s.read(b, 100).unwrap(), b"before");
    assert_eq!(s.read(b, 100), Err(Errno::EAGAIN));
}

#[test]
fn memory_of_long_messages_is_used_again_but_by_nobody_else() {
    for kind in [STREAM, DATAGRAM, SEQPACKET] {
        let mut s = sandbox();
        s.touch_all();
        let before = s.machine.memory.used_bytes();
        let (a, b) = pair(&mut s, kind | NONBLOCK);
        let empty = s.machine.memory.used_bytes();
        s.write(a, &[1; 40_000]).unwrap();
        let held = s.machine.memory.used_bytes() - empty;
        assert!((40_000..60_000).contains(&held), "{held}");
        let frozen = s.kernel.clone();
        assert_eq!(s.read(b, 40_000).unwrap(), [1; 40_000]);
        // The frozen program still has it: this one is elsewhere.
        s.write(a, &[2; 20_000]).unwrap();
        assert_eq!(s.read(b, 50_000).unwrap(), [2; 20_000]);
        // Here the memory is used again, and shows no more than was written.
        s.write(a, &[3; 13_000]).unwrap();
        assert_eq!(s.read(b, 50_000).unwrap(), [3; 13_000]);
        assert_eq!(s.machine.memory.used_bytes(), empty);
        call!(s, "close", b).unwrap();
        call!(s, "close", a).unwrap();
        assert_eq!(s.machine.memory.used_bytes(), before);
        s.kernel = frozen;
        s.machine.memory.charge(held + empty - before).unwrap();
        assert_eq!(s.read(b, 40_000).unwrap(), [1; 40_000]);
        assert_eq!(s.read(b, 40_000), Err(Errno::EAGAIN));
    }
}

#[test]
fn a_stream_is_the_same_in_whatever_pieces_it_is_sent_and_received() {
    const PEEK: i64 = 2;
    let mut s = sandbox();
    let (a, b) = pair(&mut s, STREAM | NONBLOCK);
    let bytes: Vec<u8> = (0..150_000u32).map(|number| (number % 251) as u8).collect();
    let (from, into) = (s.put(&bytes), s.room(bytes.len() as u64));
    let (mut sent, mut received) = (0usize, 0usize);
    let sizes = [1, 4095, 12_288, 12_287, 48_832, 3, 60_000, 700, 9000];
    let mut turns = sizes.iter().cycle();
    while received < bytes.len() {
        let size = *turns.next().unwrap();
        let count = size.min(bytes.len() - sent) as i64;
        let at = from + sent as i64;
        sent += call!(s, "sendto", a, at, count, 0, 0, 0).unwrap_or(0) as usize;
        let size = *turns.next().unwrap() as i64;
        for flags in [PEEK, 0] {
            let Ok(count) = call!(s, "recvfrom", b, into, size, flags, 0, 0) else {
                continue;
            };
            let got = s.get(into, count as usize);
            assert_eq!(got, bytes[received..received + count as usize]);
            received += if flags == 0 { count as usize } else { 0 };
        }
    }
    assert_eq!(sent, received);
}

#[test]
fn waits_remember_what_was_moved() {
    let mut s = sandbox();
    let (a, b) = pair(&mut s, STREAM);
    let big = s.room(1 << 20);
    let args = [
        a.into(),
        big.into(),
        (1 << 20).into(),
        0.into(),
        0.into(),
        0.into(),
    ];
    let outcome = s.outcome("sendto", &args, &CallState::default());
    let Outcome::Wait(wait) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(matches!(&wait.on, WaitOn::Sources(on) if matches!(on[0], Source::Object(_))));
    let Resume::Retry(state) = wait.resume else {
        panic!("{:?}", wait.resume)
    };
    assert!(state.progress > 100_000 && state.progress < 1 << 20);
    let into = s.room(1 << 20);
    let mut state = state;
    let mut received = 0;
    loop {
        received += call!(s, "recvfrom", b, into, 1 << 20, 0, 0, 0).unwrap();
        match s.outcome("sendto", &args, &state) {
            Outcome::Done(result) => {
                assert_eq!(result, Ok(1 << 20));
                break;
            }
            Outcome::Wait(wait) => {
                let Resume::Retry(next) = wait.resume else {
                    panic!("{:?}", wait.resume)
                };
                state = next;
            }
            other => panic!("{other:?}"),
        }
    }
    received += call!(s, "recvfrom", b, into, 1 << 20, 0, 0, 0).unwrap();
    assert_eq!(received, 1 << 20);
}

/// struct sockaddr_in of this address and port.
fn inet(s: &mut Sandbox, ip: [u8; 4], port: u16) -> i64 {
    let [high, low] = port.to_be_bytes();
    let [a, b, c, d] = ip;
    s.put(&[2, 0, high, low, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0])
}

#[test]
fn another_machine_is_not_reached() {
    let mut s = sandbox();
    let to = inet(&mut s, [192, 0, 2, 1], 80);
    let stream = call!(s, "socket", 2, STREAM, 0).unwrap().cast_signed();
    let datagrams = call!(s, "socket", 2, DATAGRAM, 0).unwrap().cast_signed();
    let refused = Err(Errno::ENETUNREACH);
    assert_eq!(call!(s, "connect", stream, to, 16), refused);
    assert_eq!(call!(s, "connect", datagrams, to, 16), refused);
    assert!(s.denied("connect 192.0.2.1:80"));
    let bytes = s.put(b"x");
    assert_eq!(call!(s, "sendto", datagrams, bytes, 1, 0, to, 16), refused);
    assert!(s.denied("sendto 192.0.2.1:80"));
    assert_eq!(call!(s, "bind", stream, to, 16), Err(Errno::EADDRNOTAVAIL));
    let own = inet(&mut s, [127, 0, 0, 1], 80);
    assert_eq!(
        call!(s, "connect", stream, own, 16),
        Err(Errno::ECONNREFUSED)
    );
}

#[test]
fn all_that_tcp_takes_is_given_back() {
    let mut s = sandbox();
    s.touch_all();
    let before = s.machine.memory.used_bytes();
    let listener = call!(s, "socket", 2, STREAM | NONBLOCK, 0)
        .unwrap()
        .cast_signed();
    let at = inet(&mut s, [127, 0, 0, 1], 8080);
    call!(s, "bind", listener, at, 16).unwrap();
    call!(s, "listen", listener, 3).unwrap();
    let mut clients = Vec::new();
    for number in 0..10 {
        let fd = call!(s, "socket", 2, STREAM | NONBLOCK, 0)
            .unwrap()
            .cast_signed();
        assert_eq!(call!(s, "connect", fd, at, 16), Err(Errno::EINPROGRESS));
        // Beyond the backlog they wait.
        let again = call!(s, "connect", fd, at, 16);
        assert_eq!(again.is_ok(), number < 4, "{number}: {again:?}");
        clients.push(fd);
    }
    let accepted = call!(s, "accept", listener, 0, 0).unwrap().cast_signed();
    assert_eq!(call!(s, "connect", clients[4], at, 16), Ok(0));
    assert_eq!(
        call!(s, "connect", clients[5], at, 16),
        Err(Errno::EALREADY)
    );
    while s.write(clients[0], &[1; 1000]).is_ok() {}
    assert!(s.machine.memory.used_bytes() - before > 100_000);
    call!(s, "close", clients[9]).unwrap();
    call!(s, "close", listener).unwrap();
    assert_eq!(
        call!(s, "connect", clients[5], at, 16),
        Err(Errno::ECONNREFUSED)
    );
    for fd in &clients[..9] {
        call!(s, "close", *fd).unwrap();
    }
    call!(s, "close", accepted).unwrap();
    assert_eq!(s.machine.memory.used_bytes(), before);
    // Only the place of the next port is remembered.
    let rest = format!("{:?}", s.kernel.objects.sockets);
    assert!(
        !rest.contains("Socket {") && !rest.contains("ObjectId"),
        "{rest}"
    );
}

/// struct sockaddr_un with this path or abstract name.
fn address(s: &mut Sandbox, name: &str) -> (i64, i64) {
    let bytes = [b"\x01\x00", name.as_bytes()].concat();
    (s.put(&bytes), bytes.len() as i64)
}

fn socket(s: &mut Sandbox, kind: i64) -> i64 {
    call!(s, "socket", 1, kind, 0).unwrap().cast_signed()
}

fn listener(s: &mut Sandbox, name: &str, backlog: i64) -> i64 {
    let fd = socket(s, STREAM | NONBLOCK);
    let (at, len) = address(s, name);
    call!(s, "bind", fd, at, len).unwrap();
    call!(s, "listen", fd, backlog).unwrap();
    fd
}

#[test]
fn all_that_sockets_take_is_given_back() {
    let mut s = sandbox();
    s.touch_all();
    let before = s.machine.memory.used_bytes();
    let listener = listener(&mut s, "/tmp/s", 100);
    let (at, len) = address(&mut s, "/tmp/s");
    let mut clients = Vec::new();
    for _ in 0..20 {
        let fd = socket(&mut s, STREAM | NONBLOCK);
        call!(s, "connect", fd, at, len).unwrap();
        s.write(fd, b"early").unwrap();
        clients.push(fd);
    }
    let held = s.machine.memory.used_bytes() - before;
    assert!(held > 20 * 3000, "{held}");
    let accepted = call!(s, "accept", listener, 0, 0).unwrap().cast_signed();
    assert_eq!(s.read(accepted, 10).unwrap(), b"early");
    call!(s, "close", listener).unwrap();
    assert_eq!(s.read(clients[1], 10), Err(Errno::ECONNRESET));
    for fd in clients {
        call!(s, "close", fd).unwrap();
    }
    call!(s, "close", accepted).unwrap();
    call!(s, "unlink", "/tmp/s").unwrap();
    assert_eq!(s.machine.memory.used_bytes(), before);
    assert_eq!(s.kernel.objects.sockets, Default::default());
}

#[test]
fn forks_share_no_listener() {
    let mut s = sandbox();
    let listener = listener(&mut s, "\0name", 5);
    let (at, len) = address(&mut s, "\0name");
    let client = socket(&mut s, STREAM);
    let frozen = s.kernel.clone();
    call!(s, "connect", client, at, len).unwrap();
    call!(s, "accept", listener, 0, 0).unwrap();
    s.kernel = frozen.clone();
    assert_eq!(
        call!(s, "accept", listener, 0, 0),
        Err(Errno::EAGAIN),
        "the connection was the other's"
    );
    call!(s, "connect", client, at, len).unwrap();
    call!(s, "accept", listener, 0, 0).unwrap();
}

/// A message of one byte with these descriptors.
fn pass(s: &mut Sandbox, to: i64, fds: &[i64]) -> Result<u64, Errno> {
    let fds: Vec<u8> = fds
        .iter()
        .flat_map(|fd| (*fd as i32).to_le_bytes())
        .collect();
    let len = 16 + fds.len() as u64;
    let control = s.put(&[&len.to_le_bytes()[..], &[1, 0, 0, 0, 1, 0, 0, 0], &fds].concat());
    let iov = s.iovecs(&[b"x"]);
    let iov = iov.cast_unsigned();
    let header = s.put_struct(&[0u64, 0, iov, 1, control.cast_unsigned(), len, 0]);
    call!(s, "sendmsg", to, header, 0)
}

#[test]
fn descriptions_in_messages_are_bounded_and_lost_ones_are_found() {
    let mut s = sandbox();
    s.touch_all();
    let before = s.machine.memory.used_bytes();
    let kept = s.kernel.files.len();
    // Sockets that are in their own messages: none is left, however many were made.
    for _ in 0..2000 {
        let (a, b) = pair(&mut s, STREAM);
        pass(&mut s, a, &[a, b]).unwrap();
        call!(s, "close", a).unwrap();
        call!(s, "close", b).unwrap();
    }
    assert_eq!(s.kernel.files.len(), kept);
    assert_eq!(s.machine.memory.used_bytes(), before);
    // Those that are not lost are counted.
    let (a, b) = pair(&mut s, STREAM | NONBLOCK);
    let many = [b; 253];
    let refused = loop {
        if let Err(error) = pass(&mut s, a, &many) {
            break error;
        }
    };
    assert_eq!(refused, Errno::ETOOMANYREFS);
    assert!(s.kernel.objects.sockets.in_flight() > 1024);
    assert!(s.kernel.objects.sockets.in_flight() < 1024 + 253);
    call!(s, "close", a).unwrap();
    call!(s, "close", b).unwrap();
    // So many are looked through no later than when others are sent.
    let (a, b) = pair(&mut s, STREAM);
    pass(&mut s, a, &[b]).unwrap();
    call!(s, "close", b).unwrap();
    call!(s, "close", a).unwrap();
    assert_eq!(s.kernel.files.len(), kept);
    assert_eq!(s.machine.memory.used_bytes(), before);
}

#[test]
fn a_chain_of_messages_is_dropped_at_once() {
    let mut s = sandbox();
    let kept = s.kernel.files.len();
    let (mut last, other) = pair(&mut s, STREAM);
    call!(s, "close", other).unwrap();
    for _ in 0..1000 {
        let (a, b) = pair(&mut s, STREAM);
        pass(&mut s, a, &[last]).unwrap();
        call!(s, "close", last).unwrap();
        call!(s, "close", a).unwrap();
        last = b;
    }
    assert!(s.kernel.files.len() > 1000);
    call!(s, "close", last).unwrap();
    assert_eq!(s.kernel.files.len(), kept);
    assert_eq!(s.kernel.objects.sockets.in_flight(), 0);
}

#[test]
fn a_socket_of_the_host_is_not_reached() {
    let tree = crate::testing::TempTree::new("host-socket");
    let path = tree.0.join("socket");
    let mode = rustix::fs::Mode::RWXU;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Socket,
        mode,
        0,
    )
    .unwrap();
    let mut s = Sandbox::new(&tree.0);
    let path = path.to_str().unwrap();
    let (at, len) = address(&mut s, path);
    for kind in [STREAM, DATAGRAM] {
        let fd = socket(&mut s, kind);
        assert_eq!(call!(s, "connect", fd, at, len), Err(Errno::EACCES));
    }
    assert!(s.denied(&format!("connect {path}")));
    let fd = socket(&mut s, STREAM);
    let (at, len) = address(&mut s, &format!("{}/new", tree.path()));
    assert_eq!(call!(s, "bind", fd, at, len), Err(Errno::EROFS));
}

#[test]
fn a_failed_pair_leaves_nothing() {
    let mut s = sandbox();
    assert_eq!(call!(s, "socketpair", 1, 1, 0, 8), Err(Errno::EFAULT));
    while call!(s, "dup", 0).is_ok() {}
    call!(s, "close", 100).unwrap();
    let fds = s.room(8);
    assert_eq!(call!(s, "socketpair", 1, 1, 0, fds), Err(Errno::EMFILE));
    assert_eq!(s.kernel.objects.sockets, Default::default());
}

#[test]
fn a_sender_is_woken_once_for_all_that_is_received() {
    let mut s = sandbox();
    let (a, b) = pair(&mut s, STREAM | NONBLOCK);
    let set = call!(s, "epoll_create1", 0).unwrap().cast_signed();
    // Readable and writable, so that each wake concerns every one.
    let event = s.put(&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    while let Ok(fd) = call!(s, "dup", a) {
        call!(s, "epoll_ctl", set, 1, fd.cast_signed(), event).unwrap();
    }
    let timed_read = |s: &mut Sandbox| {
        let start = std::time::Instant::now();
        let count = s.read(b, 4096).unwrap().len();
        (count, start.elapsed())
    };
    while s.write(a, b"x").is_ok() {}
    let (count, all) = timed_read(&mut s);
    assert!(count > 100, "{count}");
    s.write(a, b"x").unwrap();
    let (count, one) = timed_read(&mut s);
    assert_eq!(count, 1);
    assert!(all < 40 * one, "{all:?} for all, {one:?} for one");
}

#[test]
fn what_a_listener_leaves_is_dropped_in_pieces() {
    let mut s = sandbox();
    s.touch_all();
    let before = s.machine.memory.used_bytes();
    let listener = listener(&mut s, "\0many", 100);
    let (at, len) = address(&mut s, "\0many");
    for _ in 0..50 {
        let fd = socket(&mut s, STREAM | NONBLOCK);
        call!(s, "connect", fd, at, len).unwrap();
        while s.write(fd, b"x").is_ok() {}
        call!(s, "close", fd).unwrap();
    }
    crate::fd::close(&mut s.cx(), listener as i32).unwrap();
    let mut pieces = 0;
    while crate::net::drop_piece(&mut s.cx()) {
        pieces += 1;
    }
    assert!(pieces > 50, "{pieces}");
    assert!(!s.kernel.objects.sockets.has_work());
    assert_eq!(s.machine.memory.used_bytes(), before);
}

#[test]
fn lost_descriptions_are_looked_for_once_after_many_are_closed() {
    let mut s = sandbox();
    let kept = s.kernel.files.len();
    let mut all = Vec::new();
    for _ in 0..20 {
        let (a, b) = pair(&mut s, STREAM);
        pass(&mut s, a, &[a, b]).unwrap();
        all.extend([a, b]);
    }
    for fd in all {
        crate::fd::close(&mut s.cx(), fd as i32).unwrap();
    }
    // None of them has been looked for yet.
    assert_eq!(s.kernel.files.len(), kept + 40);
    assert!(crate::net::drop_piece(&mut s.cx()));
    assert!(s.kernel.objects.sockets.has_work());
    while crate::net::drop_piece(&mut s.cx()) {}
    assert_eq!(s.kernel.files.len(), kept);
}

#[test]
fn what_a_message_has_sent_counts_when_its_descriptor_is_closed() {
    let mut s = sandbox();
    let (a, b) = pair(&mut s, STREAM);
    let (passed, _) = pair(&mut s, STREAM);
    let bytes = s.room(1 << 20).cast_unsigned();
    let fd = (passed as i32).to_le_bytes();
    let control = [&20u64.to_le_bytes()[..], &[1, 0, 0, 0, 1, 0, 0, 0], &fd].concat();
    let control = s.put(&control).cast_unsigned();
    let iov = s.put_struct(&[bytes, 1 << 20]).cast_unsigned();
    let header = s.put_struct(&[0u64, 0, iov, 1, control, 20, 0]);
    let args = [a.into(), header.into(), 0.into()];
    let Outcome::Wait(wait) = s.outcome("sendmsg", &args, &CallState::default()) else {
        panic!("it fits");
    };
    let Resume::Retry(state) = wait.resume else {
        panic!("{:?}", wait.resume)
    };
    call!(s, "close", passed).unwrap();
    let into = s.room(1 << 20);
    call!(s, "recvfrom", b, into, 1 << 20, 0, 0, 0).unwrap();
    let Outcome::Wait(wait) = s.outcome("sendmsg", &args, &state) else {
        panic!("the call ended with what was sent");
    };
    let Resume::Retry(more) = wait.resume else {
        panic!("{:?}", wait.resume)
    };
    assert!(more.progress > state.progress);
}
