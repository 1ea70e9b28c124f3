//! epoll, event counters, timers and signals as descriptors: what a comparison with Linux does not show.

#![expect(
    clippy::disallowed_methods,
    reason = "the host's side of an inherited stream"
)]

use std::os::fd::OwnedFd;
use std::path::Path;

use kvmlet_abi::Errno;
use kvmlet_hostfs::HostKind;

use crate::fd::{self, FileKind, OnExec, OpenFlags};
use crate::host::HostId;
use crate::kernel::{Kernel, Tid};
use crate::outcome::{CallState, Outcome, Source, WaitOn};
use crate::sched::Call;
use crate::signal::{SI_USER, SigInfo};
use crate::testing::{Arg, PID, Sandbox, TID, call};
use crate::vfs::open::description;

const IN: u32 = 1;
const OUT: u32 = 4;
const HUP: u32 = 0x10;
const ONESHOT: u32 = 1 << 30;
const ET: u32 = 1 << 31;
const EXCLUSIVE: u32 = 1 << 28;
const O_NONBLOCK: i64 = 0o4000;
const ADD: i64 = 1;
const MOD: i64 = 3;

fn sandbox() -> Sandbox {
    Sandbox::new(Path::new("/usr/share"))
}

fn pipe(s: &mut Sandbox) -> (i64, i64) {
    let fds = s.room(8);
    call!(s, "pipe2", fds, O_NONBLOCK).unwrap();
    let [read, write]: [i32; 2] = s.get_struct(fds);
    (read.into(), write.into())
}

fn epoll(s: &mut Sandbox) -> i64 {
    call!(s, "epoll_create1", 0).unwrap().cast_signed()
}

fn eventfd(s: &mut Sandbox, count: i64) -> i64 {
    call!(s, "eventfd2", count, O_NONBLOCK)
        .unwrap()
        .cast_signed()
}

fn ctl(s: &mut Sandbox, ep: i64, op: i64, fd: i64, events: u32) -> Result<u64, Errno> {
    let event = s.put_struct(&[events, fd as u32, 0]);
    call!(s, "epoll_ctl", ep, op, fd, event)
}

fn add(s: &mut Sandbox, ep: i64, fd: i64, events: u32) {
    ctl(s, ep, ADD, fd, events).unwrap();
}

/// The report of an instance now: descriptors and events.
fn ready(s: &mut Sandbox, ep: i64) -> Vec<(u32, u32)> {
    let events = s.room(12 * 8);
    let count = call!(s, "epoll_wait", ep, events, 8, 0).unwrap();
    (0..count as i64)
        .map(|index| {
            let [events, data, _]: [u32; 3] = s.get_struct(events + index * 12);
            (data, events)
        })
        .collect()
}

/// Parks the only thread in a call that has to wait.
fn park(s: &mut Sandbox, name: &str, args: &[Arg<'_>]) -> Vec<Source> {
    let Outcome::Wait(wait) = s.outcome(name, args, &CallState::default()) else {
        panic!("{name} does not wait");
    };
    let WaitOn::Sources(sources) = wait.on.clone() else {
        panic!("{name} waits for {:?}", wait.on);
    };
    s.kernel.sched.park(TID, Call::default(), wait);
    sources.iter().copied().collect()
}

/// True if the parked thread has been woken since; it is as if it had never waited.
fn woken(s: &mut Sandbox) -> bool {
    let woken = s.kernel.sched.retries.remove(&TID).is_some();
    s.kernel.sched.forget(TID);
    woken
}

fn inherit(s: &mut Sandbox, end: OwnedFd, flags: OpenFlags) -> (i64, HostId) {
    let host = s.host.insert(end, HostKind::Stream);
    let file = description(FileKind::HostStream(host), flags, b"pipe:[1]");
    let number = fd::install_new(&mut s.cx(), file, OnExec::Keep).unwrap();
    (number.into(), host)
}

#[test]
fn an_edge_survives_being_frozen_once() {
    let mut s = sandbox();
    let ep = epoll(&mut s);
    let (read, write) = pipe(&mut s);
    let event = eventfd(&mut s, 0);
    add(&mut s, ep, read, IN | ET);
    add(&mut s, ep, event, IN | OUT | ET);
    s.write(write, b"x").unwrap();
    let frozen: Kernel = s.kernel.clone();
    for _ in 0..3 {
        // Each fork is told of what was raised before the freeze, once, and of nothing of another's.
        assert_eq!(ready(&mut s, ep), [(event as u32, OUT), (read as u32, IN)]);
        assert_eq!(ready(&mut s, ep), []);
        s.write(write, b"y").unwrap();
        s.write(event, &1u64.to_le_bytes()).unwrap();
        assert_eq!(
            ready(&mut s, ep),
            [(read as u32, IN), (event as u32, IN | OUT)]
        );
        s.kernel = frozen.clone();
    }
    // What was reported before a freeze is not reported after it.
    ready(&mut s, ep);
    let frozen = s.kernel.clone();
    assert_eq!(ready(&mut s, ep), []);
    s.kernel = frozen;
    assert_eq!(ready(&mut s, ep), []);
}

#[test]
fn a_frozen_waiter_is_woken_in_the_fork() {
    let mut s = sandbox();
    let ep = epoll(&mut s);
    let (read, write) = pipe(&mut s);
    add(&mut s, ep, read, IN | ET | ONESHOT);
    let events = s.room(12);
    let args = [ep.into(), events.into(), 1.into(), (-1).into()];
    park(&mut s, "epoll_wait", &args);
    let frozen = s.kernel.clone();
    for _ in 0..2 {
        s.write(write, b"x").unwrap();
        assert!(woken(&mut s));
        assert_eq!(ready(&mut s, ep), [(read as u32, IN)]);
        s.write(write, b"x").unwrap();
        assert_eq!(ready(&mut s, ep), []);
        ctl(&mut s, ep, MOD, read, IN | ONESHOT).unwrap();
        assert_eq!(ready(&mut s, ep), [(read as u32, IN)]);
        s.kernel = frozen.clone();
        let buffered = s.kernel.objects.epolls.clone();
        assert_eq!(buffered, frozen.objects.epolls);
    }
}

#[test]
fn registrations_go_with_the_description() {
    let mut s = sandbox();
    s.touch_all();
    let before = s.machine.memory.used_bytes();
    let ep = epoll(&mut s);
    let (read, write) = pipe(&mut s);
    let copy = call!(s, "dup", read).unwrap().cast_signed();
    add(&mut s, ep, read, IN);
    add(&mut s, ep, copy, IN | ET);
    assert_eq!(ctl(&mut s, ep, ADD, copy, IN), Err(Errno::EEXIST));
    call!(s, "close", read).unwrap();
    s.write(write, b"x").unwrap();
    assert_eq!(ready(&mut s, ep).len(), 2);
    call!(s, "close", copy).unwrap();
    assert_eq!(ready(&mut s, ep), []);
    let event = eventfd(&mut s, 1);
    add(&mut s, ep, event, IN);
    call!(s, "close", ep).unwrap();
    for fd in [write, event] {
        call!(s, "close", fd).unwrap();
    }
    assert_eq!(s.kernel.objects.events.len(), 0);
    assert_eq!(s.machine.memory.used_bytes(), before);
}

#[test]
fn nesting_is_bounded() {
    let mut s = sandbox();
    let all: Vec<i64> = (0..7).map(|_| epoll(&mut s)).collect();
    for pair in all[..5].windows(2) {
        add(&mut s, pair[1], pair[0], IN);
    }
    assert_eq!(ctl(&mut s, all[5], ADD, all[4], IN), Err(Errno::ELOOP));
    assert_eq!(ctl(&mut s, all[0], ADD, all[4], IN), Err(Errno::ELOOP));
    assert_eq!(ctl(&mut s, all[0], ADD, all[5], IN), Err(Errno::ELOOP));
    assert_eq!(ctl(&mut s, all[0], ADD, all[0], IN), Err(Errno::EINVAL));
    add(&mut s, all[6], all[3], IN);
}

#[test]
fn many_ways_to_one_event_cost_as_much_as_there_are_items() {
    let mut s = sandbox();
    let event = eventfd(&mut s, 0);
    let levels: Vec<i64> = (0..5).map(|_| epoll(&mut s)).collect();
    add(&mut s, levels[0], event, IN);
    for pair in levels.windows(2) {
        for _ in 0..150 {
            let copy = call!(s, "dup", pair[0]).unwrap().cast_signed();
            add(&mut s, pair[1], copy, IN);
        }
    }
    // 150^4 ways: it would take for ever to go each.
    s.write(event, &1u64.to_le_bytes()).unwrap();
    assert_eq!(ready(&mut s, levels[4]).len(), 8);
    s.read(event, 8).unwrap();
    assert_eq!(ready(&mut s, levels[4]), []);
}

#[test]
fn a_call_asks_each_instance_and_each_stream_once() {
    let mut s = sandbox();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let (stdin, host) = inherit(&mut s, reader, OpenFlags::NONBLOCK);
    let streams: Vec<i64> = (0..200)
        .map(|_| call!(s, "dup", stdin).unwrap().cast_signed())
        .collect();
    let (inner, outer) = (epoll(&mut s), epoll(&mut s));
    for stream in &streams {
        add(&mut s, inner, *stream, IN);
    }
    add(&mut s, outer, inner, IN);
    let tops: Vec<i64> = (0..100).map(|_| epoll(&mut s)).collect();
    for top in &tops {
        add(&mut s, *top, outer, IN);
    }
    // Ten times a hundred ways to two hundred items.
    let polled = (0..1000).flat_map(|index| [tops[index % tops.len()] as u32, IN]);
    let polled: Vec<u8> = polled.flat_map(u32::to_le_bytes).collect();
    let fds = s.put(&polled);
    let args = [fds.into(), 1000.into(), (-1).into()];
    let sources = park(&mut s, "poll", &args);
    let of_host = |sources: &[Source]| {
        let hosts = sources
            .iter()
            .filter(|source| matches!(source, Source::Host(..)));
        hosts.count()
    };
    assert_eq!((sources.len(), of_host(&sources)), (1001, 1));
    // The host's poll(2) takes no more entries than a process may have descriptors.
    let second = s.kernel.sched.parked[&TID].clone();
    s.kernel.sched.park(Tid(2), second.call, second.wait);
    assert_eq!(
        s.kernel
            .sched
            .host_sources()
            .into_iter()
            .collect::<Vec<_>>(),
        [(host, 0x19)]
    );
    s.kernel.sched.forget(Tid(2));
    s.kernel.sched.forget(TID);
    let events = s.room(12);
    let args = [inner.into(), events.into(), 1.into(), (-1).into()];
    assert_eq!(of_host(&park(&mut s, "epoll_wait", &args)), 1);
    s.kernel.sched.forget(TID);
    rustix::io::write(&writer, b"x").unwrap();
    assert_eq!(call!(s, "poll", fds, 1000, -1), Ok(1000));
}

#[test]
fn exclusive_items_share_an_event() {
    let mut s = sandbox();
    let (read, write) = pipe(&mut s);
    let [first, second] = [epoll(&mut s), epoll(&mut s)];
    add(&mut s, first, read, IN | EXCLUSIVE | ET);
    add(&mut s, second, read, IN | EXCLUSIVE | ET);
    // Nobody waits: each is told.
    s.write(write, b"x").unwrap();
    assert_eq!(ready(&mut s, second).len(), 1);
    assert_eq!(ready(&mut s, first).len(), 1);
    let events = s.room(12);
    let args = [first.into(), events.into(), 1.into(), (-1).into()];
    park(&mut s, "epoll_wait", &args);
    s.write(write, b"x").unwrap();
    assert!(woken(&mut s));
    assert_eq!(ready(&mut s, second), []);
    assert_eq!(ready(&mut s, first).len(), 1);
}

#[test]
fn inherited_streams_have_edges() {
    let mut s = sandbox();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let (stdin, host) = inherit(&mut s, reader, OpenFlags::NONBLOCK);
    let ep = epoll(&mut s);
    add(&mut s, ep, stdin, IN | ET);
    assert_eq!(ready(&mut s, ep), []);
    let write = |bytes: &[u8]| rustix::io::write(&writer, bytes).unwrap();
    write(b"abc");
    assert_eq!(ready(&mut s, ep), [(stdin as u32, IN)]);
    assert_eq!(ready(&mut s, ep), []);
    assert_eq!(s.read(stdin, 1).unwrap(), b"a");
    assert_eq!(ready(&mut s, ep), []);
    // More came than was read.
    write(b"de");
    assert_eq!(ready(&mut s, ep), [(stdin as u32, IN)]);
    // While there is something unread, a wait looks again by itself; else the host tells.
    let events = s.room(12);
    let args = [ep.into(), events.into(), 1.into(), (-1).into()];
    let sources = park(&mut s, "epoll_wait", &args);
    assert!(sources.contains(&Source::Host(host, 0x18)), "{sources:?}");
    assert!(s.kernel.sched.next_deadline_ns().is_some());
    s.kernel.sched.forget(TID);
    assert_eq!(s.read(stdin, 9).unwrap(), b"bcde");
    assert_eq!(s.read(stdin, 9), Err(Errno::EAGAIN));
    let sources = park(&mut s, "epoll_wait", &args);
    assert!(sources.contains(&Source::Host(host, 0x19)), "{sources:?}");
    assert_eq!(s.kernel.sched.next_deadline_ns(), None);
    s.kernel.sched.forget(TID);
    write(b"f");
    assert_eq!(ready(&mut s, ep), [(stdin as u32, IN)]);
    drop(writer);
    assert_eq!(ready(&mut s, ep), [(stdin as u32, IN | HUP)]);
    assert_eq!(ready(&mut s, ep), []);
    let sources = park(&mut s, "epoll_wait", &args);
    assert!(
        !sources
            .iter()
            .any(|source| matches!(source, Source::Host(..)))
    );
    s.kernel.sched.forget(TID);
    // An item that is changed is told anew.
    ctl(&mut s, ep, MOD, stdin, IN | ET).unwrap();
    assert_eq!(ready(&mut s, ep), [(stdin as u32, IN | HUP)]);
    assert_eq!(ready(&mut s, ep), []);
    // A level is told as long as it holds, through another instance too.
    ctl(&mut s, ep, MOD, stdin, IN).unwrap();
    let outer = epoll(&mut s);
    add(&mut s, outer, ep, IN);
    assert_eq!(ready(&mut s, outer), [(ep as u32, IN)]);
    assert_eq!(ready(&mut s, ep), [(stdin as u32, IN | HUP)]);
    assert_eq!(ready(&mut s, ep), [(stdin as u32, IN | HUP)]);
}

#[test]
fn a_timer_wakes_who_waits_for_it() {
    let mut s = sandbox();
    let timer = call!(s, "timerfd_create", 1, O_NONBLOCK)
        .unwrap()
        .cast_signed();
    let ep = epoll(&mut s);
    add(&mut s, ep, timer, IN);
    let spec = s.put_struct(&[0u64, 0, 3600, 0]);
    call!(s, "timerfd_settime", timer, 0, spec, 0).unwrap();
    let events = s.room(12);
    park(
        &mut s,
        "epoll_wait",
        &[ep.into(), events.into(), 1.into(), (-1).into()],
    );
    let at = s.kernel.objects.timers.next_ns().unwrap();
    s.kernel.fire_timerfds(at - 1);
    assert!(s.kernel.sched.retries.is_empty());
    let frozen = s.kernel.clone();
    s.kernel.fire_timerfds(at);
    assert!(woken(&mut s));
    assert_eq!(ready(&mut s, ep), [(timer as u32, IN)]);
    assert_eq!(s.read(timer, 8).unwrap(), 1u64.to_le_bytes());
    s.kernel = frozen;
    assert_eq!(ready(&mut s, ep), []);
    assert_eq!(s.read(timer, 8), Err(Errno::EAGAIN));
    call!(s, "close", timer).unwrap();
    assert_eq!(s.kernel.objects.timers.next_ns(), None);
}

#[test]
fn a_signal_wakes_who_reads_signals() {
    let mut s = sandbox();
    s.kernel.threads.get_mut(&TID).unwrap().signals.mask = 1 << 9;
    let mask = s.put_struct(&(1u64 << 9));
    let fd = call!(s, "signalfd4", -1, mask, 8, 0).unwrap().cast_signed();
    let info = s.room(128);
    park(&mut s, "read", &[fd.into(), info.into(), 128.into()]);
    let sent = SigInfo {
        signo: 10,
        code: SI_USER,
        ..SigInfo::default()
    };
    s.kernel.send_to_process(PID, sent).unwrap();
    assert!(woken(&mut s));
    assert_eq!(call!(s, "read", fd, info, 128), Ok(128));
    assert_eq!(s.get_struct::<u32>(info), 10);
    assert!(!s.kernel.has_signal(TID));
}

#[test]
fn a_temporary_mask_is_put_back() {
    let mut s = sandbox();
    let ep = epoll(&mut s);
    let (events, mask) = (s.room(12), s.put_struct(&u64::MAX));
    assert_eq!(call!(s, "epoll_pwait", ep, events, 1, 0, mask, 8), Ok(0));
    assert_eq!(s.kernel.threads[&TID].signals.mask, 0);
    let args = [
        ep.into(),
        events.into(),
        1.into(),
        (-1).into(),
        mask.into(),
        8.into(),
    ];
    let outcome = s.outcome("epoll_pwait", &args, &CallState::default());
    let Outcome::Wait(wait) = outcome else {
        panic!("{outcome:?}")
    };
    let crate::outcome::Resume::Retry(state) = wait.resume else {
        panic!("{:?}", wait.resume)
    };
    assert_eq!(state.saved_mask, Some(0));
    assert_eq!(
        call!(s, "epoll_pwait", ep, events, 1, 0, mask, 4),
        Err(Errno::EINVAL)
    );
}
