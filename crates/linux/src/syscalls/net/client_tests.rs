//! Connections whose client is the host.

use std::net::SocketAddr;
use std::path::Path;

use kvmlet_abi::Errno;

use crate::id::ObjectId;
use crate::net::{Shut, client};
use crate::outcome::Source;
use crate::testing::{Sandbox, call};
use crate::vfs::epoll;

const PORT: u16 = 8080;
const INET: i64 = 2;
const INET6: i64 = 10;
const STREAM_NONBLOCK: i64 = 1 | 0o4000;

fn sandbox() -> Sandbox {
    let mut s = Sandbox::new(Path::new("/usr/share"));
    s.touch_all();
    s
}

/// A listener on all addresses of a family.
fn listener(s: &mut Sandbox, family: i64, backlog: i64) -> i64 {
    let fd = call!(s, "socket", family, STREAM_NONBLOCK, 0)
        .unwrap()
        .cast_signed();
    let mut address = vec![0u8; 28];
    address[..2].copy_from_slice(&(family as u16).to_le_bytes());
    address[2..4].copy_from_slice(&PORT.to_be_bytes());
    let at = s.put(&address);
    call!(s, "bind", fd, at, 28).unwrap();
    call!(s, "listen", fd, backlog).unwrap();
    fd
}

fn accept(s: &mut Sandbox, listener: i64) -> Result<i64, Errno> {
    call!(s, "accept4", listener, 0, 0, 0o4000).map(u64::cast_signed)
}

fn connect(s: &mut Sandbox) -> ObjectId {
    client::connect(&mut s.cx(), PORT, None).unwrap()
}

/// The address that getpeername(2) shows.
fn peer(s: &mut Sandbox, fd: i64) -> Vec<u8> {
    let (at, len) = (s.room(28), s.put(&28u32.to_le_bytes()));
    call!(s, "getpeername", fd, at, len).unwrap();
    let len: u32 = s.get_struct(len);
    s.get(at, len as usize)
}

#[test]
fn bytes_go_both_ways_and_all_is_given_back() {
    let mut s = sandbox();
    let before = s.machine.memory.used_bytes();
    let listener = listener(&mut s, INET, 5);
    let id = connect(&mut s);
    assert_eq!(s.kernel.objects.sockets.clients(), 1);
    let fd = accept(&mut s, listener).unwrap();
    assert_eq!(client::receive(&mut s.cx(), id, 10), Err(Errno::EAGAIN));
    assert_eq!(client::send(&mut s.cx(), id, b"hello"), Ok(5));
    assert_eq!(s.read(fd, 10).unwrap(), b"hello");
    s.write(fd, b"answer").unwrap();
    assert!(client::is_readable(&s.kernel, id));
    assert_eq!(client::receive(&mut s.cx(), id, 3).unwrap(), b"ans");
    assert_eq!(client::receive(&mut s.cx(), id, 10).unwrap(), b"wer");
    // As much as a connection holds, and no more.
    let block = vec![7; 1 << 20];
    let sent = client::send(&mut s.cx(), id, &block).unwrap();
    assert!((100_000..600_000).contains(&sent), "{sent}");
    assert_eq!(client::send(&mut s.cx(), id, &block), Err(Errno::EAGAIN));
    assert!(!client::is_writable(&s.kernel, id));
    assert!(s.machine.memory.used_bytes() - before > sent as u64);
    client::shut_down(&mut s.cx(), id, Shut::SEND).unwrap();
    let mut got = 0;
    loop {
        match s.read(fd, 60_000).unwrap().len() {
            0 => break,
            count => got += count,
        }
    }
    assert_eq!(got, sent);
    call!(s, "close", fd).unwrap();
    assert_eq!(client::receive(&mut s.cx(), id, 10).unwrap(), b"");
    client::close(&mut s.cx(), id);
    client::close(&mut s.cx(), id);
    assert_eq!(client::send(&mut s.cx(), id, b"x"), Err(Errno::EBADF));
    call!(s, "close", listener).unwrap();
    assert_eq!(s.machine.memory.used_bytes(), before);
    assert_eq!(s.kernel.objects.sockets.clients(), 0);
}

#[test]
fn each_side_learns_of_the_others_end() {
    let mut s = sandbox();
    let listener = listener(&mut s, INET, 5);
    // What the client has not read when it closes is answered by RST.
    let id = connect(&mut s);
    let fd = accept(&mut s, listener).unwrap();
    s.write(fd, b"unread").unwrap();
    client::close(&mut s.cx(), id);
    assert_eq!(s.read(fd, 10), Err(Errno::ECONNRESET));
    // So is what the server has not read; afterwards there is nothing but the end.
    let id = connect(&mut s);
    let fd = accept(&mut s, listener).unwrap();
    client::send(&mut s.cx(), id, b"unread").unwrap();
    call!(s, "close", fd).unwrap();
    assert_eq!(client::receive(&mut s.cx(), id, 10), Err(Errno::ECONNRESET));
    assert_eq!(client::receive(&mut s.cx(), id, 10).unwrap(), b"");
    assert_eq!(client::send(&mut s.cx(), id, b"x"), Err(Errno::EPIPE));
    // A listener's end resets those that nobody has accepted.
    let id = connect(&mut s);
    call!(s, "close", listener).unwrap();
    assert_eq!(client::receive(&mut s.cx(), id, 10), Err(Errno::ECONNRESET));
    assert_eq!(
        client::connect(&mut s.cx(), PORT, None),
        Err(Errno::ECONNREFUSED)
    );
    assert!(!s.kernel.objects.sockets.is_listening_at(PORT));
}

#[test]
fn one_beyond_the_backlog_waits() {
    let mut s = sandbox();
    let listener = listener(&mut s, INET, 1);
    let ids: Vec<ObjectId> = (0..4).map(|_| connect(&mut s)).collect();
    assert!(client::is_writable(&s.kernel, ids[1]));
    assert!(!client::is_writable(&s.kernel, ids[2]));
    assert_eq!(client::send(&mut s.cx(), ids[2], b"x"), Err(Errno::EAGAIN));
    assert_eq!(client::receive(&mut s.cx(), ids[2], 1), Err(Errno::EAGAIN));
    // One that has gone is not connected.
    client::close(&mut s.cx(), ids[2]);
    accept(&mut s, listener).unwrap();
    assert_eq!(client::send(&mut s.cx(), ids[3], b"x"), Ok(1));
    accept(&mut s, listener).unwrap();
    let fd = accept(&mut s, listener).unwrap();
    assert_eq!(s.read(fd, 10).unwrap(), b"x");
    assert_eq!(accept(&mut s, listener), Err(Errno::EAGAIN));
}

#[test]
fn the_server_sees_the_address_that_the_host_gives() {
    let mut s = sandbox();
    let four: SocketAddr = "203.0.113.9:5000".parse().unwrap();
    let six: SocketAddr = "[2001:db8::7]:6000".parse().unwrap();
    let fd = listener(&mut s, INET, 5);
    client::connect(&mut s.cx(), PORT, Some(four)).unwrap();
    client::connect(&mut s.cx(), PORT, Some(six)).unwrap();
    let accepted = accept(&mut s, fd).unwrap();
    assert_eq!(
        peer(&mut s, accepted)[..8],
        [2, 0, 0x13, 0x88, 203, 0, 113, 9]
    );
    // There is no IPv6 address in struct sockaddr_in.
    let accepted = accept(&mut s, fd).unwrap();
    assert_eq!(
        peer(&mut s, accepted)[..8],
        [2, 0, 0x17, 0x70, 127, 0, 0, 1]
    );
    let mut s = sandbox();
    let fd = listener(&mut s, INET6, 5);
    client::connect(&mut s.cx(), PORT, Some(six)).unwrap();
    let accepted = accept(&mut s, fd).unwrap();
    let shown = peer(&mut s, accepted);
    assert_eq!(
        (shown.len(), &shown[8..12]),
        (28, &[0x20, 1, 0xd, 0xb8][..])
    );
    client::connect(&mut s.cx(), PORT, Some(four)).unwrap();
    let accepted = accept(&mut s, fd).unwrap();
    assert_eq!(peer(&mut s, accepted)[18..24], [0xff, 0xff, 203, 0, 113, 9]);
    client::connect(&mut s.cx(), PORT, None).unwrap();
    let accepted = accept(&mut s, fd).unwrap();
    assert_eq!(peer(&mut s, accepted)[18..24], [0xff, 0xff, 127, 0, 0, 1]);
}

/// A descriptor number of the program's is none of the host's connections.
#[test]
fn only_connections_of_the_hosts_are_touched() {
    let mut s = sandbox();
    let listener = listener(&mut s, INET, 5);
    let id = connect(&mut s);
    let fd = accept(&mut s, listener).unwrap();
    for other in (0..=id.0 + 1).map(ObjectId).filter(|other| *other != id) {
        assert_eq!(client::send(&mut s.cx(), other, b"x"), Err(Errno::EBADF));
        assert_eq!(client::receive(&mut s.cx(), other, 1), Err(Errno::EBADF));
        client::close(&mut s.cx(), other);
    }
    assert_eq!(client::send(&mut s.cx(), id, b"x"), Ok(1));
    assert_eq!(s.read(fd, 10).unwrap(), b"x");
}

#[test]
fn a_listener_is_awaited_by_itself_or_through_instances() {
    let mut s = sandbox();
    let listener = listener(&mut s, INET, 5);
    let outer = call!(s, "epoll_create1", 0).unwrap().cast_signed();
    let inner = call!(s, "epoll_create1", 0).unwrap().cast_signed();
    let event = |s: &mut Sandbox, events: u32| {
        let at = s.put(&[0; 12]);
        let bytes = events.to_le_bytes();
        s.cx().write(kvmlet_abi::Gva(at as u64), &bytes).unwrap();
        at
    };
    let is_awaited = |s: &Sandbox| {
        let (_, id) = s.kernel.objects.sockets.listening().next().unwrap();
        epoll::awaited_objects(&s.kernel).contains(&id)
    };
    let readable = event(&mut s, 1);
    call!(s, "epoll_ctl", outer, 1, inner, readable).unwrap();
    let writable = event(&mut s, 4);
    call!(s, "epoll_ctl", inner, 1, listener, writable).unwrap();
    let into = s.room(12);
    let args = [outer, into, 1, -1].map(crate::testing::Arg::Int);
    let outcome = s.outcome("epoll_wait", &args, &Default::default());
    let crate::outcome::Outcome::Wait(wait) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(!is_awaited(&s));
    let tid = crate::testing::TID;
    s.kernel.sched.park(tid, Default::default(), wait);
    // It waits for what a listener never has.
    assert!(!is_awaited(&s));
    call!(s, "epoll_ctl", inner, 3, listener, readable).unwrap();
    assert!(is_awaited(&s));
    s.kernel.sched.unpark(tid);
    assert!(!is_awaited(&s));
    let (_, id) = s.kernel.objects.sockets.listening().next().unwrap();
    let accepting = s.outcome(
        "accept",
        &[listener, 0, 0].map(crate::testing::Arg::Int),
        &Default::default(),
    );
    assert!(matches!(
        accepting,
        crate::outcome::Outcome::Done(Err(Errno::EAGAIN))
    ));
    assert!(!s.kernel.sched.is_awaited(Source::Object(id)));
}
