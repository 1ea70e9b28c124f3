//! The host as the holder of a box, without KVM: nothing of a command runs.

use super::{Command, Links, News, Personality, SpawnError, Stdio, TerminalSize};
use crate::fd::OpenFlags;
use crate::kernel::{ExitStatus, Pid};
use crate::signal::signo::{SIGKILL, SIGSTOP};
use crate::testing::{Sandbox, TempTree};
use kvmlet_abi::Errno;
use kvmlet_abi::linux::inotify::IN_CREATE;

fn holder(tree: &TempTree) -> Personality {
    let Sandbox {
        kernel,
        machine,
        mut host,
        ..
    } = Sandbox::new(&tree.0);
    std::sync::Arc::make_mut(&mut host.policy).show_work();
    let mut personality = Personality::new(kernel, machine, host);
    personality.become_holder(b"/work").unwrap();
    personality
}

fn command(argv: &[&str]) -> Command {
    Command {
        argv: argv.iter().map(|word| word.as_bytes().to_vec()).collect(),
        env: vec![(b"PATH".to_vec(), b"/usr/bin:/bin".to_vec())],
        cwd: b"/work".to_vec(),
        stdio: [Stdio::Pipe, Stdio::Pipe, Stdio::Pipe, Stdio::Absent],
        terminal: None,
    }
}

fn listed(p: &mut Personality, path: &[u8]) -> Vec<(Vec<u8>, bool)> {
    let listed = p.list(path).unwrap().into_iter();
    listed.map(|one| (one.name, one.is_directory)).collect()
}

/// All that a command takes: processes, zombies, threads, address spaces, open files, and memory without page tables,
/// which are free only when a VM has dropped them.
fn taken(personality: &Personality) -> (usize, usize, usize, usize, usize, u64) {
    let kernel = &personality.kernel;
    (
        kernel.processes.len(),
        kernel.zombies.len(),
        kernel.threads.len(),
        kernel.mms.len(),
        kernel.files.len(),
        personality.machine.memory.resident_bytes(),
    )
}

#[test]
fn files_of_a_box() {
    let tree = TempTree::new("holder-files");
    let mut p = holder(&tree);
    let flags = OpenFlags::RDWR | OpenFlags::CREAT;
    let number = p.open(b"a name\n", flags, 0o600).unwrap();
    let bytes: Vec<u8> = (0..300_000u32).map(|at| at as u8).collect();
    assert_eq!(p.write(number, &bytes), Ok(bytes.len()));
    p.close(number);
    let number = p.open(b"/work/a name\n", OpenFlags::empty(), 0).unwrap();
    assert_eq!(p.read(number, 1 << 20).unwrap(), bytes);
    assert_eq!(p.read(number, 1 << 20).unwrap(), b"");
    p.close(number);
    assert_eq!(
        p.stat(b"a name\n", Links::Shown).unwrap().size_bytes,
        300_000
    );
    p.make_directory(b"d").unwrap();
    p.rename(b"a name\n", b"d/b").unwrap();
    assert_eq!(listed(&mut p, b"."), [(b"d".to_vec(), true)]);
    assert_eq!(listed(&mut p, b"/work/d"), [(b"b".to_vec(), false)]);
    assert_eq!(p.remove(b"d"), Err(Errno::ENOTEMPTY));
    p.remove(b"d/b").unwrap();
    p.remove(b"d").unwrap();
    assert!(listed(&mut p, b"/").contains(&(b"work".to_vec(), true)));
    assert_eq!(p.remove(b"/work"), Err(Errno::EROFS));
    assert_eq!(p.list(b"a\0b"), Err(Errno::EINVAL));
    assert_eq!(p.list(&[b'a'; 5000]), Err(Errno::ENAMETOOLONG));
}

#[test]
fn nothing_inside_ends_the_holder() {
    let tree = TempTree::new("holder-signals");
    let mut p = holder(&tree);
    let main = p.kernel.main;
    for signo in [SIGKILL, SIGSTOP] {
        p.signal(main, signo).unwrap();
    }
    p.kernel.out_of_memory(super::Tid(main.0));
    assert!(p.kernel.doomed.is_empty() && p.kernel.end.is_none());
    assert!(!p.kernel.is_stopped(super::Tid(main.0)));
}

#[test]
fn a_command_comes_and_goes_without_a_trace() {
    let tree = TempTree::new("holder-spawn");
    let mut p = holder(&tree);
    let mut rounds = Vec::new();
    for _ in 0..3 {
        let spawned = p.spawn(&command(&["true"])).unwrap();
        assert_eq!(p.kernel.processes[&spawned.pid].sid, spawned.pid);
        assert!(!p.is_news(News::Ended(spawned.pid)));
        assert_eq!(p.wait(spawned.pid), Ok(None));
        let [Some(stdin), Some(stdout), Some(stderr), None] = spawned.streams else {
            panic!("{:?}", spawned.streams);
        };
        assert_eq!(p.write(stdin, &[1; 100_000]), Ok(64 << 10));
        assert_eq!(p.write(stdin, b"x"), Err(Errno::EAGAIN));
        assert!(!p.is_news(News::Writable(stdin)));
        assert_eq!(p.read(stdout, 10), Err(Errno::EAGAIN));
        p.await_news(&[News::Readable(stderr)]);
        assert!(!p.has_news());
        p.end_command(spawned.command);
        assert!(p.end_doomed());
        assert!(p.has_news() && p.is_news(News::Ended(spawned.pid)));
        assert_eq!(p.wait(spawned.pid), Ok(Some(ExitStatus::Signal(SIGKILL))));
        assert_eq!(p.wait(spawned.pid), Err(Errno::ECHILD));
        assert_eq!(p.read(stdout, 10).unwrap(), b"");
        assert_eq!(p.write(stdin, b"x"), Err(Errno::EPIPE));
        for number in [stdin, stdout, stderr] {
            p.close(number);
        }
        rounds.push(taken(&p));
    }
    assert_eq!(rounds[1], rounds[2]);
}

#[test]
fn what_cannot_be_started_leaves_nothing() {
    let tree = TempTree::new("holder-refused");
    let mut p = holder(&tree);
    let number = p.open(b"data", OpenFlags::CREAT, 0o600).unwrap();
    p.close(number);
    let mut refused = |command: &Command| {
        // Once for what the holder keeps: pages of its memory, names of the host's.
        let _ = p.spawn(command);
        let before = taken(&p);
        let error = p.spawn(command).unwrap_err();
        assert_eq!(taken(&p), before, "{error:?}");
        error
    };
    assert_eq!(refused(&command(&["no-such"])), SpawnError::NotFound);
    assert_eq!(refused(&command(&[])), SpawnError::NotFound);
    assert!(matches!(
        refused(&command(&["./data"])),
        SpawnError::Exec(_)
    ));
    let cwd = b"/missing".to_vec();
    let there = Command {
        cwd,
        ..command(&["true"])
    };
    assert_eq!(refused(&there), SpawnError::Directory(Errno::ENOENT));
    p.kernel.processes_max = 1;
    let full = p.spawn(&command(&["true"])).unwrap_err();
    assert_eq!(full, SpawnError::Limit(Errno::EAGAIN));
}

#[test]
fn the_memory_limit_ends_a_process_of_a_command() {
    let tree = TempTree::new("holder-memory");
    let mut p = holder(&tree);
    let one = p.spawn(&command(&["true"])).unwrap();
    let other = p.spawn(&command(&["true"])).unwrap();
    p.kernel.out_of_memory(super::Tid(one.pid.0));
    assert!(p.end_doomed() && !p.end_doomed());
    assert!(p.kernel.end.is_none());
    assert_eq!(
        p.wait(Pid(one.pid.0)),
        Ok(Some(ExitStatus::Signal(SIGKILL)))
    );
    assert_eq!(p.wait(other.pid), Ok(None));
    assert!(!p.was_out_of_memory(other.command));
    assert!(p.was_out_of_memory(one.command) && !p.was_out_of_memory(one.command));
}

#[test]
fn a_terminal_of_a_command() {
    let tree = TempTree::new("holder-terminal");
    let mut p = holder(&tree);
    let size = TerminalSize {
        columns: 100,
        rows: 30,
    };
    let mut rounds = Vec::new();
    for _ in 0..3 {
        let spawned = p
            .spawn(&Command {
                terminal: Some(size),
                ..command(&["true"])
            })
            .unwrap();
        let [Some(to_type), Some(shown), None, None] = spawned.streams else {
            panic!("{:?}", spawned.streams);
        };
        let (_, foreground) = p.kernel.terminal_of(spawned.pid).unwrap();
        assert_eq!(foreground, Some(spawned.pid));
        assert_eq!(p.kernel.ptys.get(0).unwrap().size, size.into());
        assert_eq!(p.read(shown, 10), Err(Errno::EAGAIN));
        assert!(!p.is_news(News::Readable(shown)) && p.is_news(News::Writable(to_type)));
        // It echoes, and makes two characters of the end of a line.
        assert_eq!(p.write(to_type, b"ab\n"), Ok(3));
        assert!(p.is_news(News::Readable(shown)));
        assert_eq!(p.read(shown, 10).unwrap(), b"ab\r\n");
        let wider = TerminalSize {
            columns: 120,
            ..size
        };
        assert_eq!(p.resize(shown, wider), Ok(()));
        assert_eq!(p.kernel.ptys.get(0).unwrap().size, wider.into());
        p.end_command(spawned.command);
        assert!(p.end_doomed());
        assert!(p.wait(spawned.pid).unwrap().is_some());
        // Nobody has it any more.
        assert!(p.is_news(News::Readable(shown)) && p.is_news(News::Writable(to_type)));
        assert_eq!(p.read(shown, 10), Err(Errno::EIO));
        assert_eq!(p.write(to_type, b"x"), Err(Errno::EPIPE));
        p.close(to_type);
        assert!(p.kernel.ptys.is_shown(0));
        p.close(shown);
        assert!(p.kernel.ptys.get(0).is_err());
        assert_eq!(p.resize(shown, size), Err(Errno::ENOTTY));
        rounds.push(taken(&p));
    }
    assert_eq!(rounds[1], rounds[2]);
}

#[test]
fn a_watch_has_what_happens_in_a_directory() {
    let tree = TempTree::new("holder-watch");
    let mut p = holder(&tree);
    let number = p.open_watch().unwrap();
    assert!(!p.is_news(News::Readable(number)));
    let watch = p.add_watch(number, b"/work", IN_CREATE).unwrap();
    p.make_directory(b"d").unwrap();
    assert!(p.is_news(News::Readable(number)));
    let events = p.read(number, 4096).unwrap();
    assert_eq!(events[..4], watch.to_ne_bytes());
    assert_eq!(events[16..18], *b"d\0");
    assert_eq!(p.remove_watch(number, watch), Ok(()));
    assert_eq!(p.remove_watch(number, watch), Err(Errno::EINVAL));
    assert_eq!(
        p.add_watch(number, b"/work/none", IN_CREATE),
        Err(Errno::ENOENT)
    );
    p.close(number);
}
