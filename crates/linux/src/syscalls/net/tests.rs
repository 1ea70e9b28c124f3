//! Pairs of sockets: what a comparison with Linux does not show.

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

#[test]
fn other_families_and_ancillary_data_are_refused() {
    let mut s = sandbox();
    let fds = s.room(8);
    assert_eq!(call!(s, "socketpair", 2, 1, 0, fds), Err(Errno::EACCES));
    assert!(s.denied("socketpair AF_INET"));
    let (a, _) = pair(&mut s, STREAM);
    let control = s.put(&[0; 24]);
    let header = s.put_struct(&[0u64, 0, 0, 0, control.cast_unsigned(), 24, 0]);
    assert_eq!(call!(s, "sendmsg", a, header, 0), Err(Errno::EINVAL));
    assert!(!s.host.report.events.is_empty());
    assert_eq!(call!(s, "bind", a, 0, 0), Err(Errno::EACCES));
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
