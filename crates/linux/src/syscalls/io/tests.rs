//! Calls on descriptors.
#![expect(clippy::disallowed_methods, reason = "tests make their own files")]

use std::path::Path;
use std::sync::Arc;

use kvmlet_abi::linux::{Pollfd, Sigaction};
use kvmlet_abi::{Errno, Gva};

use crate::kernel::End;
use crate::outcome::{CallState, Outcome, Resume, Source, Turn, Wait, WaitOn};
use crate::personality::{Cpu, Personality, Step};
use crate::sched::Call;
use crate::signal::SigInfo;
use crate::testing::{Arg, CWD, PID, Sandbox, TID, TempTree, call};

const O_RDWR_CREAT: i64 = 0o102;
const O_NONBLOCK: i64 = 0o4000;

fn sandbox() -> Sandbox {
    Sandbox::new(Path::new("/usr/share"))
}

fn pipe(sandbox: &mut Sandbox, flags: i64) -> (i64, i64) {
    let fds = sandbox.room(8);
    call!(sandbox, "pipe2", fds, flags).unwrap();
    let [read, write]: [i32; 2] = sandbox.get_struct(fds);
    (read.into(), write.into())
}

fn waits_on(outcome: &Outcome) -> (Vec<Source>, CallState) {
    let Outcome::Wait(wait) = outcome else {
        panic!("{outcome:?}")
    };
    let WaitOn::Sources(sources) = &wait.on else {
        panic!("{wait:?}")
    };
    let Resume::Retry(state) = &wait.resume else {
        panic!("{wait:?}")
    };
    (sources.iter().copied().collect(), state.clone())
}

#[test]
fn files_in_tmp_read_back() {
    let mut s = sandbox();
    let fd = s.open("/tmp/a", O_RDWR_CREAT).unwrap();
    assert_eq!(s.write(fd, b"hello world"), Ok(11));
    assert_eq!(call!(s, "lseek", fd, 6, 0), Ok(6));
    assert_eq!(s.read(fd, 100).unwrap(), b"world");
    assert_eq!(call!(s, "lseek", fd, -5, 2), Ok(6));
    assert_eq!(call!(s, "lseek", fd, -50, 1), Err(Errno::EINVAL));
    assert_eq!(call!(s, "lseek", fd, 0, 9), Err(Errno::EINVAL));
    let iov = s.iovecs(&[b"WO", b"", b"RLD!"]);
    assert_eq!(call!(s, "writev", fd, iov, 3), Ok(6));
    assert_eq!(s.slurp("/tmp/a").unwrap(), b"hello WORLD!");
    assert_eq!(call!(s, "ftruncate", fd, 5), Ok(0));
    assert_eq!(s.slurp("/tmp/a").unwrap(), b"hello");
    let buf = s.put(b"XY");
    assert_eq!(call!(s, "pwrite64", fd, buf, 2, 1), Ok(2));
    assert_eq!(s.slurp("/tmp/a").unwrap(), b"hXYlo");
    assert_eq!(call!(s, "pwrite64", fd, buf, 2, -1), Err(Errno::EINVAL));
    let appending = s.open("/tmp/a", 0o2001).unwrap();
    s.write(appending, b"!").unwrap();
    s.write(appending, b"?").unwrap();
    assert_eq!(s.slurp("/tmp/a").unwrap(), b"hXYlo!?");
    assert_eq!(s.read(appending, 1), Err(Errno::EBADF));
    assert_eq!(call!(s, "read", 99, buf, 1), Err(Errno::EBADF));
}

#[test]
fn bad_buffers_are_faults_not_failures() {
    let mut s = sandbox();
    s.spill("/tmp/a", b"0123456789").unwrap();
    let fd = s.open("/tmp/a", 2).unwrap();
    for buf in [0, 8, 0x7fff_ffff_0000, -1, i64::MIN] {
        assert_eq!(call!(s, "read", fd, buf, 4), Err(Errno::EFAULT), "{buf:#x}");
        assert_eq!(
            call!(s, "write", fd, buf, 4),
            Err(Errno::EFAULT),
            "{buf:#x}"
        );
        assert_eq!(
            call!(s, "writev", fd, buf, 1),
            Err(Errno::EFAULT),
            "{buf:#x}"
        );
        assert_eq!(call!(s, "stat", buf, buf), Err(Errno::EFAULT), "{buf:#x}");
        assert_eq!(call!(s, "pipe2", buf, 0), Err(Errno::EFAULT), "{buf:#x}");
    }
    let buf = s.room(16);
    assert_eq!(call!(s, "read", fd, buf, -1), Err(Errno::EFAULT));
    assert_eq!(call!(s, "readv", fd, buf, 2000), Err(Errno::EINVAL));
    let negative = s.put_struct(&[buf.cast_unsigned(), u64::MAX]);
    assert_eq!(call!(s, "readv", fd, negative, 1), Err(Errno::EINVAL));
    assert_eq!(s.slurp("/tmp/a").unwrap(), b"0123456789");
    assert_eq!(s.kernel.files.len(), 4);
    assert_eq!(call!(s, "getdents64", fd, buf, 16), Err(Errno::ENOTDIR));
}

#[test]
fn duplicates_share_the_offset() {
    let mut s = sandbox();
    s.spill("/tmp/a", b"abcdef").unwrap();
    let fd = s.open("/tmp/a", 0o2_000_000).unwrap();
    assert_eq!(call!(s, "fcntl", fd, 1, 0), Ok(1));
    let copy = call!(s, "fcntl", fd, 0, 10).unwrap().cast_signed();
    assert_eq!(copy, 10);
    assert_eq!(call!(s, "fcntl", copy, 1, 0), Ok(0));
    assert_eq!(s.read(fd, 2).unwrap(), b"ab");
    assert_eq!(s.read(copy, 2).unwrap(), b"cd");
    assert_eq!(call!(s, "dup2", fd, 20), Ok(20));
    assert_eq!(call!(s, "dup3", fd, fd, 0), Err(Errno::EINVAL));
    assert_eq!(call!(s, "dup2", fd, 5000), Err(Errno::EBADF));
    assert_eq!(call!(s, "close_range", fd, 15, 0), Ok(0));
    assert_eq!(s.read(20, 2).unwrap(), b"ef");
    assert_eq!(call!(s, "close_range", 9, 3, 0), Err(Errno::EINVAL));
    assert_eq!(call!(s, "close", fd), Err(Errno::EBADF));
    assert_eq!(call!(s, "fcntl", 20, 3, 0), Ok(0o100_000));
    assert_eq!(call!(s, "fcntl", 20, 4, 0o6001), Ok(0));
    assert_eq!(call!(s, "fcntl", 20, 3, 0), Ok(0o106_000));
    assert_eq!(call!(s, "fcntl", 20, 999, 0), Err(Errno::EINVAL));
}

#[test]
fn descriptors_run_out() {
    let mut s = sandbox();
    s.spill("/tmp/a", b"").unwrap();
    let mut opened = 3;
    let error = loop {
        match s.open("/tmp/a", 0) {
            Ok(_) => opened += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((error, opened), (Errno::EMFILE, 1024));
    assert_eq!(s.open("/tmp/b", O_RDWR_CREAT), Err(Errno::EMFILE));
    assert_eq!(s.stat("/tmp/b").err(), Some(Errno::ENOENT));
    let fds = s.room(8);
    assert_eq!(call!(s, "pipe2", fds, 0), Err(Errno::EMFILE));
    assert_eq!(s.kernel.files.len(), 1024);
}

#[test]
fn a_pipe_carries_bytes_and_ends() {
    let mut s = sandbox();
    let (read, write) = pipe(&mut s, 0);
    let buf = s.room(100);
    let reading = s.outcome(
        "read",
        &[Arg::Int(read), Arg::Int(buf), Arg::Int(100)],
        &CallState::default(),
    );
    let (sources, _) = waits_on(&reading);
    assert_eq!(sources, [Source::Pipe(1)]);
    assert_eq!(s.write(write, b"abc"), Ok(3));
    assert_eq!(s.read(read, 2).unwrap(), b"ab");
    let count = s.room(4);
    assert_eq!(call!(s, "ioctl", read, 0x541b, count), Ok(0));
    assert_eq!(s.get_struct::<i32>(count), 1);
    assert_eq!(call!(s, "lseek", read, 0, 0), Err(Errno::ESPIPE));
    assert_eq!(call!(s, "pread64", read, buf, 1, 0), Err(Errno::ESPIPE));
    call!(s, "close", write).unwrap();
    assert_eq!(s.read(read, 100).unwrap(), b"c");
    assert_eq!(s.read(read, 100).unwrap(), b"");
    call!(s, "close", read).unwrap();
    assert_eq!(s.kernel.pipes.get(1).err(), Some(Errno::EBADF));
}

#[test]
fn a_full_pipe_makes_the_writer_wait_with_its_progress() {
    let mut s = sandbox();
    let (read, write) = pipe(&mut s, 0);
    let bytes = vec![7u8; 100_000];
    let buf = s.put(&bytes);
    let args = [Arg::Int(write), Arg::Int(buf), Arg::Int(100_000)];
    let (_, state) = waits_on(&s.outcome("write", &args, &CallState::default()));
    assert_eq!(state.progress, 65_536);
    assert_eq!(s.read(read, 65_536).unwrap().len(), 65_536);
    let done = s.outcome("write", &args, &state);
    assert!(matches!(done, Outcome::Done(Ok(100_000))), "{done:?}");
    assert_eq!(s.read(read, 65_536).unwrap().len(), 34_464);
    call!(s, "close", read).unwrap();
    assert_eq!(s.write(write, b"x"), Err(Errno::EPIPE));
    let doomed = s.kernel.doomed.front();
    let doomed = doomed
        .and_then(|doomed| doomed.signal)
        .map(|info| info.signo);
    assert_eq!(doomed, Some(crate::signal::signo::SIGPIPE));
}

#[test]
fn small_pipe_writes_are_whole_and_nonblocking_ones_do_not_wait() {
    let mut s = sandbox();
    let (read, write) = pipe(&mut s, O_NONBLOCK);
    assert_eq!(s.read(read, 1), Err(Errno::EAGAIN));
    assert_eq!(s.write(write, &vec![1; 65_000]), Ok(65_000));
    assert_eq!(s.write(write, &vec![1; 1000]), Err(Errno::EAGAIN));
    assert_eq!(s.write(write, &vec![1; 5000]), Ok(536));
    assert_eq!(call!(s, "fcntl", write, 1032, 0), Ok(65_536));
    assert_eq!(call!(s, "fcntl", write, 1031, 100_000), Ok(131_072));
    assert_eq!(s.write(write, &vec![1; 1000]), Ok(1000));
}

#[test]
fn poll_and_select_tell_what_is_ready() {
    let mut s = sandbox();
    let (read, write) = pipe(&mut s, 0);
    let entry = |fd: i64, events: i16| Pollfd {
        fd: fd as i32,
        events,
        revents: 99,
    };
    let fds = s.put_struct(&[entry(read, 1), entry(write, 4), entry(77, 1), entry(-1, 1)]);
    assert_eq!(call!(s, "poll", fds, 4, -1), Ok(2));
    let after: [Pollfd; 4] = s.get_struct(fds);
    assert_eq!(after.map(|entry| entry.revents), [0, 4, 0x20, 0]);
    assert_eq!(call!(s, "poll", fds, 1, 0), Ok(0));
    let args = [Arg::Int(fds), Arg::Int(1), Arg::Int(50)];
    let waiting = s.outcome("poll", &args, &CallState::default());
    let (sources, state) = waits_on(&waiting);
    assert_eq!(sources, [Source::Pipe(1)]);
    assert!(state.deadline_ns.is_some());
    let expired = CallState {
        expired: true,
        ..state.clone()
    };
    assert!(matches!(
        s.outcome("poll", &args, &expired),
        Outcome::Done(Ok(0))
    ));
    s.write(write, b"x").unwrap();
    assert!(matches!(
        s.outcome("poll", &args, &state),
        Outcome::Done(Ok(1))
    ));
    call!(s, "close", write).unwrap();
    assert_eq!(call!(s, "poll", fds, 1, 0), Ok(1));
    assert_eq!(s.get_struct::<Pollfd>(fds).revents, 0x11);
    assert_eq!(call!(s, "poll", fds, 2000, 0), Err(Errno::EINVAL));

    let sets = s.put_struct(&[1u64 << read]);
    assert_eq!(call!(s, "select", read + 1, sets, 0, 0, 0), Ok(1));
    let bad = s.put_struct(&[1u64 << 40]);
    assert_eq!(call!(s, "select", 64, bad, 0, 0, 0), Err(Errno::EBADF));
    assert_eq!(call!(s, "select", -1, 0, 0, 0, 0), Err(Errno::EINVAL));
    let zero = s.put_struct(&[0i64, 0]);
    assert_eq!(call!(s, "select", 0, 0, 0, 0, zero), Ok(0));
    assert_eq!(call!(s, "pselect6", 0, 0, 0, 0, zero, 0), Ok(0));
    assert_eq!(call!(s, "ppoll", fds, 1, zero, 0, 0), Ok(1));
}

#[test]
fn captured_output_is_limited() {
    let mut s = Sandbox::with_limits(Path::new("/usr/share"), 32 << 20, 10);
    assert_eq!(s.write(1, b"12345"), Ok(5));
    assert_eq!(s.write(2, b"678"), Ok(3));
    let buf = s.put(b"more");
    let over = s.outcome(
        "write",
        &[Arg::Int(1), Arg::Int(buf), Arg::Int(4)],
        &CallState::default(),
    );
    assert!(matches!(over, Outcome::Gone), "{over:?}");
    assert_eq!(s.kernel.end, Some(End::Output));
    assert_eq!(
        (
            s.host.captured.stdout.as_slice(),
            s.host.captured.stderr.as_slice()
        ),
        (&b"12345mo"[..], &b"678"[..])
    );
}

#[test]
fn input_given_as_bytes_is_a_pipe_at_its_end() {
    let mut s = sandbox();
    assert_eq!(call!(s, "lseek", 0, 0, 1), Err(Errno::ESPIPE));
    assert_eq!(s.read(0, 3).unwrap(), b"inp");
    assert_eq!(s.read(0, 100).unwrap(), b"ut\n");
    assert_eq!(s.read(0, 100).unwrap(), b"");
    let stat = s.room(144);
    call!(s, "fstat", 0, stat).unwrap();
    assert_eq!(
        s.get_struct::<kvmlet_abi::linux::Stat>(stat).st_mode & 0o170_000,
        0o010_000
    );
    assert_eq!(call!(s, "ioctl", 0, 0x5401, stat), Err(Errno::ENOTTY));
}

#[test]
fn copies_between_files() {
    let mut s = sandbox();
    let bytes: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
    let from = s.open("/tmp/from", O_RDWR_CREAT).unwrap();
    assert_eq!(s.write(from, &bytes), Ok(200_000));
    let to = s.open("/tmp/to", O_RDWR_CREAT).unwrap();
    let offset = s.put_struct(&[100u64]);
    assert_eq!(
        call!(s, "sendfile", to, from, offset, 1_000_000),
        Ok(199_900)
    );
    assert_eq!(s.get_struct::<u64>(offset), 200_000);
    assert_eq!(s.slurp("/tmp/to").unwrap(), &bytes[100..]);
    call!(s, "lseek", from, 0, 0).unwrap();
    call!(s, "lseek", to, 0, 0).unwrap();
    assert_eq!(call!(s, "copy_file_range", from, 0, to, 0, 50, 0), Ok(50));
    assert_eq!(
        &s.slurp("/tmp/to").unwrap()[..60],
        [&bytes[..50], &bytes[150..160]].concat()
    );
    let (read, write) = pipe(&mut s, 0);
    assert_eq!(
        call!(s, "copy_file_range", from, 0, write, 0, 50, 0),
        Err(Errno::EINVAL)
    );
    assert_eq!(call!(s, "sendfile", write, from, 0, 10), Ok(10));
    assert_eq!(s.read(read, 100).unwrap(), &bytes[50..60]);
    assert_eq!(call!(s, "splice", read, 0, to, 0, 1, 2), Err(Errno::EAGAIN));
    assert_eq!(call!(s, "splice", from, 0, write, 0, 10, 0), Ok(10));
    assert_eq!(s.read(read, 100).unwrap(), &bytes[60..70]);
    let again = s.outcome(
        "splice",
        &[
            read.into(),
            0.into(),
            to.into(),
            0.into(),
            1.into(),
            0.into(),
        ],
        &CallState::default(),
    );
    // Others may run while it waits.
    let Outcome::Wait(Wait {
        resume: Resume::Retry(state),
        ..
    }) = again
    else {
        panic!("{again:?}");
    };
    let waited = CallState {
        has_waited: true,
        ..CallState::default()
    };
    assert_eq!(state, waited);
}

#[test]
fn locks_exclude_other_descriptions() {
    let mut s = sandbox();
    s.spill("/tmp/a", b"").unwrap();
    let (one, two) = (s.open("/tmp/a", 2).unwrap(), s.open("/tmp/a", 2).unwrap());
    const LOCK_EX_NB: i64 = 6;
    assert_eq!(call!(s, "flock", one, LOCK_EX_NB), Ok(0));
    assert_eq!(call!(s, "flock", two, LOCK_EX_NB), Err(Errno::EAGAIN));
    let waiting = s.outcome(
        "flock",
        &[Arg::Int(two), Arg::Int(2)],
        &CallState::default(),
    );
    assert_eq!(waits_on(&waiting).0, [Source::Pipe(0)]);
    call!(s, "close", one).unwrap();
    assert_eq!(call!(s, "flock", two, LOCK_EX_NB), Ok(0));
    // Record locks of one process never conflict; those of descriptions do.
    let one = s.open("/tmp/a", 2).unwrap();
    let write_lock = s.put_struct(&[1u64, 0, 10, 0]);
    assert_eq!(call!(s, "fcntl", one, 6, write_lock), Ok(0));
    assert_eq!(call!(s, "fcntl", two, 6, write_lock), Ok(0));
    assert_eq!(call!(s, "fcntl", two, 37, write_lock), Err(Errno::EAGAIN));
    call!(s, "close", one).unwrap();
    assert_eq!(call!(s, "fcntl", two, 37, write_lock), Ok(0));
}

#[test]
fn only_locks_of_the_host_are_asked_for_again() {
    let tree = TempTree::new("locked");
    let path = tree.file("file", b"x");
    let mut s = Sandbox::new(&tree.0);
    let root = tree.path().as_bytes();
    let policy = std::sync::Arc::make_mut(&mut s.host.policy);
    policy.write_tree(root).unwrap();
    let (one, two) = (s.open("file", 2).unwrap(), s.open("file", 2).unwrap());
    let waits_until = |s: &mut Sandbox, name: &str, args: &[Arg<'_>]| {
        let outcome = s.outcome(name, args, &CallState::default());
        assert_eq!(waits_on(&outcome).0, [Source::Pipe(0)]);
        let Outcome::Wait(wait) = outcome else {
            panic!("{outcome:?}")
        };
        wait.deadline_ns
    };
    let write_lock = s.put_struct(&[1u64, 0, 10, 0]);
    let (flock, ofd_setlkw) = ([2], [38, write_lock]);
    let calls: [(&str, &[i64]); 2] = [("flock", &flock), ("fcntl", &ofd_setlkw)];
    for (name, rest) in calls {
        let args =
            |fd| -> Vec<Arg<'_>> { [fd].iter().chain(rest).copied().map(Arg::Int).collect() };
        assert_eq!(s.call(name, &args(one)), Ok(0));
        assert_eq!(waits_until(&mut s, name, &args(two)), None, "{name}");
    }
    call!(s, "close", one).unwrap();
    let outside = std::fs::File::options().read(true).write(true).open(path);
    let outside = outside.unwrap();
    rustix::fs::flock(&outside, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let flock = [Arg::Int(two), Arg::Int(2)];
    assert!(waits_until(&mut s, "flock", &flock).is_some());
    drop(outside);
    assert_eq!(s.call("flock", &flock), Ok(0));
}

#[test]
fn sealed_memory_files() {
    let mut s = sandbox();
    let fd = call!(s, "memfd_create", "name", 3).unwrap().cast_signed();
    s.write(fd, b"data").unwrap();
    assert_eq!(call!(s, "fcntl", fd, 1033, 8), Ok(0));
    assert_eq!(s.write(fd, b"x"), Err(Errno::EPERM));
    assert_eq!(call!(s, "fcntl", fd, 1034, 0), Ok(8));
    let buf = s.room(64);
    let link = format!("/proc/self/fd/{fd}");
    let len = call!(s, "readlink", link.as_str(), buf, 64).unwrap();
    assert_eq!(s.get(buf, len as usize), b"/memfd:name (deleted)");
    let plain = call!(s, "memfd_create", "plain", 0).unwrap().cast_signed();
    assert_eq!(call!(s, "fcntl", plain, 1033, 8), Err(Errno::EPERM));
    assert_eq!(call!(s, "memfd_create", "bad", 0x400), Err(Errno::EINVAL));
}

#[test]
fn sockets_are_denied() {
    let mut s = sandbox();
    assert_eq!(call!(s, "socket", 17, 3, 0), Err(Errno::EACCES));
    assert!(s.denied("socket AF_PACKET"));
    assert_eq!(call!(s, "socket", 2, 3, 1), Err(Errno::EPERM));
    assert_eq!(call!(s, "socket", 99, 1, 0), Err(Errno::EAFNOSUPPORT));
    assert_eq!(call!(s, "connect", 1, 0, 0), Err(Errno::ENOTSOCK));
    assert_eq!(call!(s, "connect", 9, 0, 0), Err(Errno::EBADF));
}

#[test]
fn sizes_and_space() {
    let mut s = sandbox();
    let fd = s.open("/tmp/a", O_RDWR_CREAT).unwrap();
    assert_eq!(call!(s, "fallocate", fd, 0, 0, 10_000), Ok(0));
    let stat = s.stat("/tmp/a").unwrap();
    assert_eq!((stat.st_size, stat.st_blocks), (10_000, 24));
    assert_eq!(call!(s, "fallocate", fd, 3, 0, 4096), Ok(0));
    assert_eq!(s.stat("/tmp/a").unwrap().st_blocks, 16);
    assert_eq!(call!(s, "fallocate", fd, 0, 0, 1 << 40), Err(Errno::ENOSPC));
    assert_eq!(
        call!(s, "fallocate", fd, 0x10, 0, 1),
        Err(Errno::EOPNOTSUPP)
    );
    assert_eq!(call!(s, "ftruncate", fd, -1), Err(Errno::EINVAL));
    assert_eq!(call!(s, "ftruncate", fd, 1 << 40), Ok(0));
    assert_eq!(call!(s, "lseek", fd, 1 << 41, 0), Ok(1 << 41));
    assert_eq!(s.write(fd, b"x"), Ok(1));
    assert_eq!(s.stat("/tmp/a").unwrap().st_size, (1 << 41) + 1);
    assert_eq!(call!(s, "openat", CWD, "/tmp/a", 0o1001, 0), Ok(4));
    assert_eq!(s.stat("/tmp/a").unwrap().st_blocks, 0);
}

/// No thread has run: nothing is asked of it.
struct NoCpu;

impl Cpu for NoCpu {
    fn save_xstate(&mut self) -> Arc<[u8]> {
        unreachable!("no thread has run")
    }

    fn load_xstate(&mut self, _: Option<&[u8]>) {}
}

/// A read that stopped in the middle with a signal pending: whether it has gone on before the handler runs.
fn goes_on(turn: Turn) -> bool {
    let mut s = Sandbox::new(Path::new("/usr/share"));
    let fd = s.open("/dev/zero", 0).unwrap();
    let buf = s.put(&[7; 200]);
    let stack = s.room(8192) + 8192;
    let call = Call {
        nr: 0,
        args: [fd.cast_unsigned(), buf.cast_unsigned(), 200, 0, 0, 0],
    };
    let state = CallState {
        progress: 100,
        turn,
        ..CallState::default()
    };
    let handler = Sigaction {
        handler: 0x1000,
        flags: 0x0400_0000,
        ..Sigaction::default()
    };
    let process = s.kernel.processes.get_mut(&PID).unwrap();
    process.signals.actions.insert(10, handler);
    s.kernel.threads.get_mut(&TID).unwrap().regs.rsp = stack.cast_unsigned();
    s.kernel.sched.make_ready(TID);
    s.kernel.sched.retries.insert(TID, (call, state));
    let info = SigInfo {
        signo: 10,
        ..SigInfo::default()
    };
    s.kernel.send_to_thread(TID, info).unwrap();
    let mut personality = Personality::new(s.kernel, s.machine, s.host);
    // On a busy machine it may have worked for a turn's time.
    let mut steps = std::iter::repeat_with(|| personality.next(&mut NoCpu));
    assert_eq!(
        steps.find(|step| *step != Step::Again),
        Some(Step::Run(TID))
    );
    let thread = personality.kernel.threads.get(&TID).unwrap();
    assert_eq!(thread.regs.rip, 0x1000);
    let mut bytes = [0; 200];
    let gva = Gva(buf.cast_unsigned());
    personality.cx(TID).read(gva, &mut bytes).unwrap();
    assert_eq!(bytes[..100], [7; 100]);
    bytes[100..] == [0; 100]
}

#[test]
fn a_signal_ends_what_is_shared_and_waits_for_what_is_one_step() {
    assert!(!goes_on(Turn::Shared));
    assert!(goes_on(Turn::Kept));
    assert!(goes_on(Turn::Waited));
}
