//! The namespace, host files and synthetic files as a program sees them.
#![expect(clippy::disallowed_methods, reason = "tests make their own files")]

use std::collections::BTreeSet;
use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_hostfs::{Enforcement, Lookup};
use kvmlet_policy::Place;

use crate::creds::Creds;
use crate::testing::{CWD, Sandbox, TempTree, call};

pub(super) const O_PATH: i64 = 0o10_000_000;
pub(super) const O_NOFOLLOW: i64 = 0o400_000;
pub(super) const O_DIRECTORY: i64 = 0o200_000;
pub(super) const O_CREAT_WRONLY: i64 = 0o101;

pub(super) fn both_lookups(tree: &TempTree, check: impl Fn(&mut Sandbox)) {
    for lookup in [Lookup::OpenAt2, Lookup::Stepwise] {
        let mut sandbox = Sandbox::new(&tree.0);
        let roots = kvmlet_hostfs::Roots::open(&sandbox.host.policy).unwrap();
        sandbox.host.roots = std::sync::Arc::new(roots.with_lookup(lookup));
        check(&mut sandbox);
    }
}

#[test]
fn reads_files_of_the_working_directory() {
    let tree = TempTree::new("reads");
    tree.file("a.txt", b"hello");
    tree.file("sub/deep/b.txt", b"deep");
    both_lookups(&tree, |sandbox| {
        assert_eq!(sandbox.slurp("a.txt").unwrap(), b"hello");
        assert_eq!(
            sandbox.slurp("./sub//deep/../deep/./b.txt").unwrap(),
            b"deep"
        );
        let absolute = format!("{}/sub/deep/b.txt", tree.path());
        assert_eq!(sandbox.slurp(&absolute).unwrap(), b"deep");
        assert_eq!(sandbox.open("a.txt/", 0), Err(Errno::ENOTDIR));
        assert_eq!(sandbox.open("a.txt/x", 0), Err(Errno::ENOTDIR));
        assert_eq!(sandbox.open("a.txt/..", 0), Err(Errno::ENOTDIR));
        assert_eq!(sandbox.open("missing", 0), Err(Errno::ENOENT));
        assert_eq!(sandbox.open("", 0), Err(Errno::ENOENT));
        assert_eq!(sandbox.open("sub", 1), Err(Errno::EISDIR));
        let fd = sandbox.open("sub", 0).unwrap();
        assert_eq!(sandbox.read(fd, 10), Err(Errno::EISDIR));
        assert_eq!(sandbox.names("sub").unwrap(), ["deep"]);
        let buf = sandbox.room(5);
        let fd = call!(sandbox, "openat", fd, "deep/b.txt", 0)
            .unwrap()
            .cast_signed();
        assert_eq!(call!(sandbox, "pread64", fd, buf, 5, 2), Ok(2));
        assert_eq!(sandbox.get(buf, 2), b"ep");
        assert!(sandbox.host.report.denials.is_empty());
    });
}

#[test]
fn links_stay_in_the_namespace() {
    let tree = TempTree::new("links");
    tree.file("real/file", b"in");
    tree.link("to-file", "real/file");
    tree.link("to-dir", "real");
    tree.link("absolute", &format!("{}/real/file", tree.path()));
    tree.link("out", "/root");
    tree.link("out-file", "/etc/shadow");
    tree.link("up", "../../../../../../etc/shadow");
    tree.link("loop", "loop");
    tree.link("dangling", "nowhere");
    tree.link("into-tmp", "/tmp/made");
    both_lookups(&tree, |sandbox| {
        for name in [
            "to-file",
            "to-dir/file",
            "absolute",
            "to-dir/../real/file",
            "to-dir/../to-file",
        ] {
            assert_eq!(sandbox.slurp(name).unwrap(), b"in", "{name}");
        }
        for name in ["out-file", "up"] {
            assert_eq!(sandbox.open(name, 0), Err(Errno::ENOENT), "{name}");
        }
        assert_eq!(sandbox.open("out/.bashrc", 0), Err(Errno::ENOENT));
        assert_eq!(sandbox.host.report.denials.len(), 2 + 1);
        assert_eq!(sandbox.open("loop", 0), Err(Errno::ELOOP));
        assert_eq!(sandbox.open("dangling", 0), Err(Errno::ENOENT));
        assert_eq!(sandbox.open("to-file", O_NOFOLLOW), Err(Errno::ELOOP));
        // Created through a link of the host: in the memory file system.
        sandbox.spill("into-tmp", b"made").unwrap();
        assert_eq!(sandbox.slurp("/tmp/made").unwrap(), b"made");
        let buf = sandbox.room(64);
        assert_eq!(call!(sandbox, "readlink", "to-dir", buf, 64), Ok(4));
        assert_eq!(sandbox.get(buf, 4), b"real");
        assert_eq!(
            call!(sandbox, "readlink", "to-dir/", buf, 64),
            Err(Errno::EINVAL)
        );
        let stat = sandbox.room(144);
        call!(sandbox, "lstat", "to-dir", stat).unwrap();
        let stat: kvmlet_abi::linux::Stat = sandbox.get_struct(stat);
        assert_eq!((stat.st_mode & 0o170_000, stat.st_size), (0o120_000, 4));
    });
}

#[test]
fn secrets_and_other_trees_are_denied() {
    use std::os::unix::fs::PermissionsExt;
    let tree = TempTree::new("denied");
    let mut sandbox = Sandbox::new(&tree.0);
    assert_eq!(sandbox.open("/etc/shadow", 0), Err(Errno::ENOENT));
    assert!(sandbox.denied("open /etc/shadow"));
    assert_eq!(sandbox.stat("/var/lib").err(), Some(Errno::ENOENT));
    assert!(sandbox.denied("stat /var/lib"));
    assert_eq!(sandbox.open("/no-such-name", 0), Err(Errno::ENOENT));
    assert_eq!(sandbox.open("/etc/no-such-name", 0), Err(Errno::ENOENT));
    assert!(!sandbox.denied("open /no-such-name"));
    // Optional settings that do not exist are no denial; what is outside /etc is not told.
    let hidden = std::fs::read_dir("/etc")
        .unwrap()
        .filter_map(Result::ok)
        .find(|entry| {
            let path = entry.path();
            path.is_dir()
                && path.metadata().unwrap().permissions().mode() & 1 != 0
                && !path.is_symlink()
                && sandbox
                    .host
                    .policy
                    .classify(path.to_str().unwrap().as_bytes())
                    == Place::Outside
        });
    let hidden = hidden.unwrap().path().to_str().unwrap().to_owned();
    assert_eq!(
        sandbox.open(&format!("{hidden}/no-such/name"), 0),
        Err(Errno::ENOENT)
    );
    assert_eq!(sandbox.open(&hidden, 0), Err(Errno::ENOENT));
    assert_eq!(sandbox.open("/var/no-such/name", 0), Err(Errno::ENOENT));
    // What a report shows cannot command a terminal.
    assert_eq!(sandbox.open("/srv/\x1b[2J", 0), Err(Errno::ENOENT));
    assert!(
        sandbox.denied("open /srv/\\u{1b}[2J"),
        "{:?}",
        sandbox.host.report.denials
    );
    sandbox.slurp("/etc/passwd").unwrap();
    sandbox.slurp("/lib64/ld-linux-x86-64.so.2").unwrap();
    // The host's /tmp is not there, except for what leads to the working directory.
    assert_eq!(
        sandbox.names("/tmp").unwrap(),
        [tree.0.file_name().unwrap().to_str().unwrap()]
    );
}

#[test]
fn writes_outside_tmp_are_refused() {
    let tree = TempTree::new("rofs");
    tree.file("a", b"x");
    let mut sandbox = Sandbox::new(&tree.0);
    assert_eq!(sandbox.open("a", 1), Err(Errno::EROFS));
    assert!(sandbox.denied(&format!("open {}/a", tree.path())));
    assert_eq!(sandbox.open("new", O_CREAT_WRONLY), Err(Errno::EROFS));
    assert_eq!(sandbox.open("a", 0o1000), Err(Errno::EROFS));
    assert_eq!(sandbox.open("a", 0o100), Ok(3));
    assert_eq!(
        sandbox.open("/var/log/x", O_CREAT_WRONLY),
        Err(Errno::EROFS)
    );
    assert_eq!(call!(sandbox, "mkdir", "d", 0o777), Err(Errno::EROFS));
    assert_eq!(call!(sandbox, "mkdir", "/usr", 0o777), Err(Errno::EEXIST));
    assert_eq!(call!(sandbox, "unlink", "a"), Err(Errno::EROFS));
    assert_eq!(call!(sandbox, "rename", "a", "b"), Err(Errno::EROFS));
    assert_eq!(call!(sandbox, "rename", "a", "/tmp/b"), Err(Errno::EXDEV));
    assert_eq!(call!(sandbox, "link", "a", "/tmp/b"), Err(Errno::EXDEV));
    assert_eq!(call!(sandbox, "symlink", "a", "l"), Err(Errno::EROFS));
    assert_eq!(call!(sandbox, "chmod", "a", 0o600), Err(Errno::EROFS));
    assert_eq!(call!(sandbox, "truncate", "a", 0), Err(Errno::EROFS));
    assert_eq!(
        call!(sandbox, "utimensat", CWD, "a", 0, 0),
        Err(Errno::EROFS)
    );
    assert_eq!(call!(sandbox, "access", "a", 2), Err(Errno::EROFS));
    assert_eq!(call!(sandbox, "access", "a", 4), Ok(0));
    assert_eq!(call!(sandbox, "rmdir", "/tmp"), Err(Errno::EBUSY));
    let name = tree.path();
    assert_eq!(call!(sandbox, "rmdir", name), Err(Errno::EBUSY));
    assert_eq!(
        call!(sandbox, "rename", name, "/tmp/moved"),
        Err(Errno::EBUSY)
    );
    assert_eq!(std::fs::read(tree.0.join("a")).unwrap(), b"x");
}

#[test]
fn fifos_and_sockets_of_the_host_are_not_opened() {
    let tree = TempTree::new("fifo");
    let path = tree.0.join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let mut sandbox = Sandbox::new(&tree.0);
    assert_eq!(sandbox.open("pipe", 0), Err(Errno::EACCES));
    assert_eq!(sandbox.stat("pipe").unwrap().st_mode & 0o170_000, 0o010_000);
    assert_eq!(sandbox.host.report.denials.len(), 1);
}

#[test]
fn mode_bits_count_for_a_caller_with_capabilities() {
    use std::os::unix::fs::PermissionsExt;
    let tree = TempTree::new("modes");
    tree.file("closed", b"x");
    tree.file("dir/inside", b"x");
    for name in ["closed", "dir"] {
        std::fs::set_permissions(tree.0.join(name), std::fs::Permissions::from_mode(0o000))
            .unwrap();
    }
    let mut sandbox = Sandbox::new(&tree.0);
    sandbox.host.credentials.enforcement = Enforcement::ModeBits;
    assert_eq!(sandbox.open("closed", 0), Err(Errno::EACCES));
    assert_eq!(sandbox.open("dir/inside", 0), Err(Errno::EACCES));
    assert_eq!(sandbox.stat("dir/inside").err(), Some(Errno::EACCES));
    assert_eq!(call!(sandbox, "access", "closed", 4), Err(Errno::EACCES));
    std::fs::set_permissions(tree.0.join("dir"), std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn only_what_programs_make_is_counted_as_their_files() {
    let tree = TempTree::new("counted");
    let mut sandbox = Sandbox::new(&tree.0);
    assert_eq!(sandbox.kernel.tmpfs.files(), 0);
    sandbox.spill("/tmp/a", b"x").unwrap();
    assert_eq!(call!(sandbox, "mkdir", "/tmp/d", 0o777), Ok(0));
    assert_eq!(sandbox.kernel.tmpfs.files(), 2);
    // What is there at the start stays, whoever asks.
    let removed = call!(sandbox, "rmdir", "/run/lock");
    assert!(matches!(removed, Err(Errno::EBUSY | Errno::EACCES)));
}

#[test]
fn synthetic_directories() {
    let tree = TempTree::new("synth");
    let mut sandbox = Sandbox::new(&tree.0);
    let root = sandbox.names("/").unwrap();
    for name in ["dev", "etc", "proc", "sys", "tmp", "usr"] {
        assert!(root.iter().any(|found| found == name), "{name} in {root:?}");
    }
    assert!(
        !root.iter().any(|name| name == "root" || name == "home"),
        "{root:?}"
    );
    let etc = sandbox.names("/etc").unwrap();
    assert!(
        etc.iter().any(|name| name == "passwd") && !etc.iter().any(|name| name == "shadow"),
        "{etc:?}"
    );
    assert_eq!(
        sandbox.slurp("/sys/devices/system/cpu/online").unwrap(),
        b"0\n"
    );
    assert_eq!(
        sandbox.names("/sys/devices/system/cpu").unwrap(),
        [
            "cpu0",
            "isolated",
            "kernel_max",
            "offline",
            "online",
            "possible",
            "present",
            "smt"
        ]
    );
    let null = sandbox.stat("/dev/null").unwrap();
    assert_eq!((null.st_mode, null.st_rdev), (0o020_666, 0x103));
    let fd = sandbox.open("/dev/zero", 2).unwrap();
    assert_eq!(sandbox.read(fd, 3).unwrap(), [0, 0, 0]);
    let fd = sandbox.open("/dev/full", 1).unwrap();
    assert_eq!(sandbox.write(fd, b"x"), Err(Errno::ENOSPC));
    assert_eq!(sandbox.open("/dev/tty", 2), Err(Errno::ENXIO));
    assert_eq!(sandbox.open("/dev/sda", 0), Err(Errno::ENOENT));
    assert_eq!(sandbox.open("/dev/null/x", 0), Err(Errno::ENOTDIR));
}

/// Anonymous inodes are root's, mode 0600 (fs/anon_inodes.c).
#[test]
fn only_root_learns_that_a_counter_cannot_be_opened_again() {
    let tree = TempTree::new("counter");
    let mut sandbox = Sandbox::new(&tree.0);
    let fd = sandbox.call("eventfd2", &[0.into(), 0.into()]).unwrap();
    let path = format!("/proc/self/fd/{fd}");
    for (uid, refusal) in [(0, Errno::ENXIO), (1000, Errno::EACCES)] {
        sandbox.cx().thread().unwrap().creds = Arc::new(Creds::of_user(uid));
        assert_eq!(sandbox.open(&path, 2), Err(refusal), "{uid}");
    }
}

#[test]
fn init_is_there_and_takes_no_signal() {
    let tree = TempTree::new("vfs-init");
    let mut sandbox = Sandbox::new(&tree.0);
    assert_eq!(sandbox.slurp("/proc/1/cmdline").unwrap(), b"kvmlet\0");
    assert_eq!(sandbox.slurp("/proc/1/comm").unwrap(), b"kvmlet\n");
    let stat = String::from_utf8(sandbox.slurp("/proc/1/stat").unwrap()).unwrap();
    assert!(stat.starts_with("1 (kvmlet) S 0 1 1 "), "{stat}");
    assert_eq!(stat.split(' ').count(), 52);
    let children = sandbox.slurp("/proc/1/task/1/children").unwrap();
    assert_eq!(children, format!("{} ", crate::testing::PID.0).as_bytes());
    for signo in [0, 9, 15] {
        assert_eq!(call!(sandbox, "kill", 1, signo), Ok(0));
    }
    assert_eq!(call!(sandbox, "kill", 1, 65), Err(Errno::EINVAL));
    assert_eq!(call!(sandbox, "kill", -1, 9), Err(Errno::ESRCH));
    assert_eq!(call!(sandbox, "getpgid", 1), Ok(1));
    assert_eq!(call!(sandbox, "getsid", 1), Ok(1));
    assert!(sandbox.kernel.doomed.is_empty());
}

#[test]
fn proc_shows_the_process() {
    let tree = TempTree::new("proc");
    let file = tree.file("data", b"0123456789");
    let mut sandbox = Sandbox::new(&tree.0);
    assert_eq!(sandbox.slurp("/proc/self/cmdline").unwrap(), b"test\0-x\0");
    assert_eq!(sandbox.slurp("/proc/2/comm").unwrap(), b"test\n");
    assert_eq!(sandbox.slurp("/proc/thread-self/comm").unwrap(), b"test\n");
    assert_eq!(sandbox.open("/proc/3", 0), Err(Errno::ENOENT));
    assert_eq!(
        sandbox.names("/proc/self/fd").unwrap(),
        ["0", "1", "2", "3"]
    );
    let status = String::from_utf8(sandbox.slurp("/proc/self/status").unwrap()).unwrap();
    let held = sandbox.kernel.caller.effective.bits();
    assert!(
        status.contains("\nPid:\t2\n") && status.contains(&format!("\nCapEff:\t{held:016x}\n")),
        "{status}"
    );
    let stat = String::from_utf8(sandbox.slurp("/proc/self/stat").unwrap()).unwrap();
    assert_eq!(stat.split(' ').count(), 52, "{stat}");
    let maps = String::from_utf8(sandbox.slurp("/proc/self/maps").unwrap()).unwrap();
    assert!(maps.starts_with("00100000-00500000 rw-p"), "{maps}");
    for name in [
        "meminfo",
        "cpuinfo",
        "stat",
        "uptime",
        "loadavg",
        "version",
        "filesystems",
        "mounts",
    ] {
        assert!(
            !sandbox.slurp(&format!("/proc/{name}")).unwrap().is_empty(),
            "{name}"
        );
    }
    let fd = sandbox.open("data", 0).unwrap();
    assert_eq!(sandbox.read(fd, 4).unwrap(), b"0123");
    let buf = sandbox.room(256);
    let link = format!("/proc/self/fd/{fd}");
    let len = call!(sandbox, "readlink", link.as_str(), buf, 256).unwrap();
    assert_eq!(
        sandbox.get(buf, len as usize),
        file.to_str().unwrap().as_bytes()
    );
    // Opened again: with an offset of its own.
    let again = sandbox.open(&link, 0).unwrap();
    assert_eq!(sandbox.read(again, 4).unwrap(), b"0123");
    assert_eq!(sandbox.open(&link, 1), Err(Errno::EROFS));
    let len = call!(sandbox, "readlink", "/proc/self/cwd", buf, 256).unwrap();
    assert_eq!(sandbox.get(buf, len as usize), tree.path().as_bytes());
    assert_eq!(sandbox.slurp("/proc/self/cwd/data").unwrap(), b"0123456789");
    assert_eq!(sandbox.slurp("/dev/stdin").unwrap(), b"input\n");
}

#[test]
fn locations() {
    let tree = TempTree::new("opath");
    tree.file("dir/file", b"x");
    tree.link("link", "dir/file");
    let mut sandbox = Sandbox::new(&tree.0);
    let dir = sandbox.open("dir", O_PATH).unwrap();
    let file = call!(sandbox, "openat", dir, "file", 0)
        .unwrap()
        .cast_signed();
    assert_eq!(sandbox.read(file, 1).unwrap(), b"x");
    let link = sandbox.open("link", O_PATH | O_NOFOLLOW).unwrap();
    assert_eq!(sandbox.read(link, 1), Err(Errno::EBADF));
    let buf = sandbox.room(256);
    assert_eq!(call!(sandbox, "readlinkat", link, "", buf, 256), Ok(8));
    assert_eq!(call!(sandbox, "openat", file, "x", 0), Err(Errno::ENOTDIR));
    assert_eq!(call!(sandbox, "fchdir", dir), Ok(0));
    assert_eq!(
        call!(sandbox, "getcwd", buf, 256),
        Ok(tree.path().len() as u64 + 5)
    );
    assert_eq!(sandbox.slurp("file").unwrap(), b"x");
    assert_eq!(sandbox.open("file", O_DIRECTORY), Err(Errno::ENOTDIR));
    // fstat through an empty path.
    assert_eq!(call!(sandbox, "newfstatat", link, "", buf, 0x1000), Ok(0));
    let stat: kvmlet_abi::linux::Stat = sandbox.get_struct(buf);
    assert_eq!(stat.st_mode & 0o170_000, 0o120_000);
    assert_eq!(
        call!(sandbox, "newfstatat", link, "", buf, 0),
        Err(Errno::ENOENT)
    );
}

#[test]
fn openat2_scopes() {
    let tree = TempTree::new("openat2");
    tree.file("dir/file", b"x");
    tree.link("dir/out", "../top");
    tree.link("dir/abs", "/etc/passwd");
    tree.link("dir/in", "file");
    tree.file("top", b"y");
    let mut sandbox = Sandbox::new(&tree.0);
    let dir = sandbox.open("dir", 0).unwrap();
    let mut openat2 = |path: &str, resolve: u64| {
        let how = sandbox.put_struct(&[0u64, 0, resolve]);
        call!(sandbox, "openat2", dir, path, how, 24).map(|_| ())
    };
    const NO_SYMLINKS: u64 = 4;
    const BENEATH: u64 = 8;
    const IN_ROOT: u64 = 16;
    assert_eq!(openat2("in", 0), Ok(()));
    assert_eq!(openat2("in", BENEATH), Ok(()));
    assert_eq!(openat2("in", NO_SYMLINKS), Err(Errno::ELOOP));
    assert_eq!(openat2("out", BENEATH), Err(Errno::EXDEV));
    assert_eq!(openat2("abs", BENEATH), Err(Errno::EXDEV));
    assert_eq!(openat2("../top", BENEATH), Err(Errno::EXDEV));
    assert_eq!(openat2("/file", IN_ROOT), Ok(()));
    assert_eq!(openat2("../../file", IN_ROOT), Ok(()));
    assert_eq!(openat2("out", IN_ROOT), Err(Errno::ENOENT));
    assert_eq!(openat2("file", 0x80), Err(Errno::EINVAL));
}

#[test]
fn host_descriptors_are_given_back() {
    let tree = TempTree::new("leak");
    tree.file("dir/file", b"x");
    let mut sandbox = Sandbox::new(&tree.0);
    let before = sandbox.host.files.len();
    for _ in 0..50 {
        for (path, flags) in [
            ("dir/file", 0),
            ("dir", 0),
            ("dir", O_PATH),
            ("dir/file", O_PATH),
        ] {
            let fd = sandbox.open(path, flags).unwrap();
            let copy = call!(sandbox, "dup", fd).unwrap().cast_signed();
            call!(sandbox, "close", fd).unwrap();
            call!(sandbox, "close", copy).unwrap();
        }
    }
    assert_eq!(sandbox.host.files.len(), before);
    assert_eq!(sandbox.kernel.files.len(), 3);
}

#[test]
fn synthetic_contents_are_charged_while_they_are_open() {
    let tree = TempTree::new("charge");
    let mut sandbox = Sandbox::new(&tree.0);
    let buf = sandbox.put(b"x");
    let round = |sandbox: &mut Sandbox| {
        let maps = sandbox.open("/proc/self/maps", 0).unwrap();
        let again = sandbox.open(&format!("/proc/self/fd/{maps}"), 0).unwrap();
        assert_eq!(call!(sandbox, "read", again, buf, 1), Ok(1));
        let open = sandbox.machine.memory.used_bytes();
        call!(sandbox, "close", maps).unwrap();
        call!(sandbox, "close", again).unwrap();
        (open, sandbox.machine.memory.used_bytes())
    };
    let (_, closed) = round(&mut sandbox);
    let (open, after) = round(&mut sandbox);
    assert!(open > closed);
    assert_eq!(after, closed);
}

#[test]
fn programs_are_regular_and_executable() {
    use std::os::unix::fs::PermissionsExt;
    let tree = TempTree::new("exec");
    let path = tree.file("run", b"#!/bin/sh\n");
    tree.file("data", b"");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut sandbox = Sandbox::new(&tree.0);
    let before = sandbox.host.files.len();
    let file = super::open_exec(&mut sandbox.cx(), b"run").unwrap();
    assert_eq!(
        super::read_exec(&mut sandbox.cx(), &file, 2, 100).unwrap(),
        b"/bin/sh\n"
    );
    super::close_exec(&mut sandbox.cx(), file);
    assert_eq!(sandbox.host.files.len(), before);
    for (path, errno) in [
        ("data", Errno::EACCES),
        (".", Errno::EACCES),
        ("no", Errno::ENOENT),
        ("/dev/null", Errno::EACCES),
    ] {
        assert_eq!(
            super::open_exec(&mut sandbox.cx(), path.as_bytes()).err(),
            Some(errno),
            "{path}"
        );
    }
}

#[test]
fn proc_shows_the_environment_and_timers() {
    let mut sandbox = Sandbox::new(std::path::Path::new("/usr"));
    assert_eq!(sandbox.slurp("/proc/self/environ").unwrap(), b"A=1\0");
    assert_eq!(sandbox.slurp("/proc/self/auxv").unwrap(), [0; 16]);
    assert_eq!(sandbox.slurp("/proc/self/timers").unwrap(), b"");
    let id = sandbox.room(4);
    for clock in [0, 2] {
        crate::testing::call!(sandbox, "timer_create", clock, 0, id).unwrap();
    }
    let shown = String::from_utf8(sandbox.slurp("/proc/self/timers").unwrap()).unwrap();
    let newest = "ID: 1\nsignal: 14/0000000000000001\nnotify: signal/pid.2\nClockID: -6\n";
    assert!(shown.starts_with(newest), "{shown}");
    assert!(
        shown.ends_with("ID: 0\nsignal: 14/0000000000000000\nnotify: signal/pid.2\nClockID: 0\n")
    );
}

#[test]
fn shared_memory_is_a_tree_of_its_own() {
    use crate::testing::call;
    let mut sandbox = Sandbox::new(std::path::Path::new("/usr"));
    sandbox.spill("/dev/shm/a", b"shared").unwrap();
    assert_eq!(sandbox.slurp("/dev/shm/../shm/a").unwrap(), b"shared");
    assert_eq!(sandbox.open("/tmp/a", 0), Err(Errno::ENOENT));
    assert_eq!(sandbox.names("/dev/shm").unwrap(), ["a"]);
    assert!(sandbox.names("/dev").unwrap().contains(&"shm".to_owned()));
    assert_eq!(sandbox.stat("/dev/shm").unwrap().st_mode, 0o041_777);
    call!(sandbox, "mkdir", "/dev/shm/d", 0o700).unwrap();
    call!(sandbox, "chdir", "/dev/shm/d").unwrap();
    let buf = sandbox.room(64);
    let len = call!(sandbox, "getcwd", buf, 64).unwrap() as usize;
    assert_eq!(sandbox.get(buf, len), b"/dev/shm/d\0");
    assert_eq!(sandbox.slurp("../a").unwrap(), b"shared");
    assert_eq!(sandbox.slurp("../../shm/a").unwrap(), b"shared");
    assert_eq!(call!(sandbox, "rmdir", "/dev/shm"), Err(Errno::EROFS));
    call!(sandbox, "unlink", "/dev/shm/a").unwrap();
}

#[test]
fn a_long_host_directory_is_listed_in_parts() {
    let tree = TempTree::new("long-listing");
    let count = 9_000;
    let name = |number: usize| format!("{number}{}", "n".repeat(240));
    for number in 0..count {
        std::fs::File::create(tree.0.join(name(number))).unwrap();
    }
    let mut sandbox = Sandbox::new(&tree.0);
    let expected: BTreeSet<String> = (0..count).map(name).collect();
    let path = tree.0.to_str().unwrap();
    for _ in 0..2 {
        let listed = sandbox.names(path).unwrap();
        assert_eq!(listed.len(), count);
        assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), expected);
    }
    // Not all of it at once.
    let kept = sandbox.host.files.values();
    let kept = kept.filter_map(|file| file.file.listing.as_ref());
    assert!(kept.map(|listing| listing.size_bytes()).sum::<usize>() < 3 << 20);
    // From any place again.
    let dir = sandbox.open(path, 0).unwrap();
    let buf = sandbox.room(4096);
    let at = |sandbox: &mut Sandbox, cursor: usize| {
        call!(sandbox, "lseek", dir, cursor as i64, 0).unwrap();
        call!(sandbox, "getdents64", dir, buf, 300).unwrap();
        sandbox.get(buf, 200)[19..].to_vec()
    };
    let first = at(&mut sandbox, 2);
    let late = at(&mut sandbox, 8_500);
    assert_ne!(first, late);
    assert_eq!(at(&mut sandbox, 100).len(), late.len());
    assert_eq!(at(&mut sandbox, 8_500), late);
    assert_eq!(at(&mut sandbox, 2), first);
}

#[test]
fn what_a_path_shows_no_terminal_obeys() {
    let path = "/a\u{1b}[31m\n\u{7f}\u{9b}2J\u{e9}".as_bytes();
    let shown = super::printable(path);
    assert_eq!(shown, r"/a\u{1b}[31m\n\u{7f}\u{9b}2J".to_owned() + "\u{e9}");
}
