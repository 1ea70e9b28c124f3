//! Names looked up on the host: in open directories, in one piece, through links, and while they change.
#![expect(clippy::disallowed_methods, reason = "tests make their own files")]

use kvmlet_abi::Errno;
use kvmlet_hostfs::Enforcement;

use super::tests::{O_CREAT_WRONLY, O_DIRECTORY, O_NOFOLLOW, O_PATH, both_lookups};
use crate::testing::{CWD, Sandbox, TempTree, call};

#[test]
fn names_in_an_open_directory() {
    let tree = TempTree::new("open-directory");
    tree.file("sub/file", b"in");
    tree.file("sub/deep/below", b"below");
    tree.link("sub/near", "file");
    tree.link("sub/far", "../sub/deep/below");
    tree.link("sub/out", "/etc/shadow");
    tree.link("sub/up", "../../../../../etc/shadow");
    tree.link("sub/loop", "loop");
    both_lookups(&tree, |sandbox| {
        let dir = sandbox.open("sub", O_DIRECTORY).unwrap();
        let open = |sandbox: &mut Sandbox, name: &str, flags: i64| {
            call!(sandbox, "openat", dir, name, flags).map(u64::cast_signed)
        };
        for (name, contents) in [
            ("file", "in"),
            ("near", "in"),
            ("far", "below"),
            ("deep/below", "below"),
            ("../sub/file", "in"),
        ] {
            let fd = open(sandbox, name, 0).unwrap();
            assert_eq!(sandbox.read(fd, 10).unwrap(), contents.as_bytes(), "{name}");
        }
        let stat_at = sandbox.room(144);
        call!(sandbox, "newfstatat", dir, "deep", stat_at, 0).unwrap();
        let stat: kvmlet_abi::linux::Stat = sandbox.get_struct(stat_at);
        assert_eq!(stat.st_mode & 0o170_000, 0o040_000);
        const NOFOLLOW: i64 = 0x100;
        call!(sandbox, "newfstatat", dir, "out", stat_at, NOFOLLOW).unwrap();
        let stat: kvmlet_abi::linux::Stat = sandbox.get_struct(stat_at);
        assert_eq!(stat.st_mode & 0o170_000, 0o120_000);
        let link = open(sandbox, "near", O_PATH | O_NOFOLLOW).unwrap();
        assert_eq!(call!(sandbox, "readlinkat", link, "", stat_at, 64), Ok(4));
        assert_eq!(
            call!(sandbox, "readlinkat", dir, "near", stat_at, 64),
            Ok(4)
        );
        assert_eq!(sandbox.get(stat_at, 4), b"file");
        assert!(sandbox.host.report.denials.is_empty());
        for name in ["out", "up"] {
            assert_eq!(open(sandbox, name, 0), Err(Errno::ENOENT), "{name}");
        }
        assert!(sandbox.denied("open out") && sandbox.denied("open up"));
        assert_eq!(open(sandbox, "loop", 0), Err(Errno::ELOOP));
        assert_eq!(open(sandbox, "near", O_NOFOLLOW), Err(Errno::ELOOP));
        assert_eq!(open(sandbox, "missing", 0), Err(Errno::ENOENT));
        assert_eq!(open(sandbox, "file/", 0), Err(Errno::ENOTDIR));
        assert_eq!(open(sandbox, "file", 1), Err(Errno::EROFS));
        assert_eq!(open(sandbox, "new", O_CREAT_WRONLY), Err(Errno::EROFS));
    });
}

/// A plain path is resolved in one piece, another one step by step.
#[test]
fn every_spelling_of_a_path_leads_to_the_same() {
    let tree = TempTree::new("spellings");
    tree.file("sub/file", b"in");
    tree.file("sub/deep/below", b"below");
    for (name, target) in [
        ("sub/near", "file"),
        ("sub/dir", "deep"),
        ("sub/out", "/etc/shadow"),
        ("sub/outside", "/root"),
        ("sub/up", "../../../../../root/x"),
        ("sub/loop", "loop"),
        ("sub/nowhere", "missing"),
        ("sub/made", "/tmp/made"),
        ("sub/slash", "file/"),
        ("sub/self", "/proc/self/cwd/sub/file"),
    ] {
        tree.link(name, target);
    }
    let names = [
        "",
        "/near",
        "/dir",
        "/dir/below",
        "/out",
        "/outside",
        "/outside/x",
        "/up",
        "/loop",
        "/loop/x",
        "/nowhere",
        "/nowhere/x",
        "/made",
        "/slash",
        "/self",
        "/file",
        "/file/x",
        "/deep",
        "/deep/below",
        "/deep/below/x",
        "/missing",
        "/missing/x",
    ];
    both_lookups(&tree, |sandbox| {
        for (name, flags) in names.iter().flat_map(|name| {
            [
                0,
                1,
                O_NOFOLLOW,
                O_DIRECTORY,
                O_PATH,
                O_PATH | O_NOFOLLOW,
                0o100,
                0o300,
            ]
            .map(|flags| (name, flags))
        }) {
            let mut outcome = |path: String| {
                sandbox.host.report.denials.clear();
                let opened = sandbox.open(&path, flags).map(|fd| {
                    let stat = sandbox.room(144);
                    call!(sandbox, "fstat", fd, stat).unwrap();
                    let stat: kvmlet_abi::linux::Stat = sandbox.get_struct(stat);
                    let text = sandbox.room(256);
                    let name = format!("/proc/self/fd/{fd}");
                    let len = call!(sandbox, "readlink", name.as_str(), text, 256).unwrap();
                    let shown = sandbox.get(text, usize::try_from(len).unwrap());
                    call!(sandbox, "close", fd).unwrap();
                    // What was made through the link is there the next time.
                    let _ = call!(sandbox, "unlink", "/tmp/made");
                    (
                        stat.st_ino * u64::from(stat.st_mode & 0o170_000 != 0o100_000),
                        shown,
                    )
                });
                (opened, sandbox.host.report.denials.len())
            };
            let plain = outcome(format!("sub{name}"));
            assert_eq!(outcome(format!("./sub{name}")), plain, "{name} {flags:o}");
            assert_eq!(
                outcome(format!("{}/sub{name}", tree.path())),
                plain,
                "{name} {flags:o}"
            );
            assert_eq!(
                outcome(format!("sub/../sub{name}")),
                plain,
                "{name} {flags:o}"
            );
        }
    });
}

#[test]
fn a_directory_that_was_moved_while_open_stays_what_it_is() {
    let tree = TempTree::new("moved");
    tree.file("sub/file", b"old");
    let mut sandbox = Sandbox::new(&tree.0);
    let dir = sandbox.open("sub", O_DIRECTORY).unwrap();
    std::fs::rename(tree.0.join("sub"), tree.0.join("moved")).unwrap();
    tree.file("sub/file", b"new");
    tree.file("sub/only", b"new");
    let fd = call!(sandbox, "openat", dir, "file", 0).unwrap();
    assert_eq!(sandbox.read(fd.cast_signed(), 10).unwrap(), b"old");
    assert_eq!(call!(sandbox, "openat", dir, "only", 0), Err(Errno::ENOENT));
    assert_eq!(sandbox.slurp("sub/file").unwrap(), b"new");
    assert_eq!(sandbox.slurp("moved/file").unwrap(), b"old");
    let located = sandbox.open("moved", O_PATH | O_DIRECTORY).unwrap();
    let entries = sandbox.room(256);
    call!(sandbox, "getdents64", dir, entries, 256).unwrap();
    // The first is `.`, and its number comes first.
    let own: u64 = sandbox.get_struct(entries);
    assert_eq!(own, sandbox.stat("moved").unwrap().st_ino);
    std::fs::rename(tree.0.join("moved"), tree.0.join("again")).unwrap();
    for dir in [dir, located] {
        let fd = call!(sandbox, "openat", dir, "file", 0).unwrap();
        assert_eq!(sandbox.read(fd.cast_signed(), 10).unwrap(), b"old");
    }
    // A removed one is empty.
    std::fs::remove_dir_all(tree.0.join("again")).unwrap();
    assert_eq!(call!(sandbox, "openat", dir, "file", 0), Err(Errno::ENOENT));
}

#[test]
fn an_open_directory_that_may_not_be_searched() {
    use std::os::unix::fs::PermissionsExt;
    let tree = TempTree::new("no-search");
    tree.file("dir/inside", b"x");
    let mode = |mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(tree.0.join("dir"), permissions).unwrap();
    };
    mode(0o444);
    let mut sandbox = Sandbox::new(&tree.0);
    sandbox.host.credentials.enforcement = Enforcement::ModeBits;
    let dir = sandbox.open("dir", O_DIRECTORY).unwrap();
    assert_eq!(
        call!(sandbox, "openat", dir, "inside", 0),
        Err(Errno::EACCES)
    );
    mode(0o755);
    assert!(call!(sandbox, "openat", dir, "inside", 0).is_ok());
    // Another one has its path meanwhile: what is known of that says nothing of this one.
    std::fs::rename(tree.0.join("dir"), tree.0.join("moved")).unwrap();
    tree.file("dir/inside", b"y");
    assert_eq!(sandbox.slurp("dir/inside").unwrap(), b"y");
    let closed = std::fs::Permissions::from_mode(0o444);
    std::fs::set_permissions(tree.0.join("moved"), closed).unwrap();
    assert_eq!(
        call!(sandbox, "openat", dir, "inside", 0),
        Err(Errno::EACCES)
    );
}

#[test]
fn a_directory_that_may_not_be_searched_tells_no_names() {
    use std::os::unix::fs::PermissionsExt;
    let tree = TempTree::new("no-names");
    tree.file("dir/there/file", b"x");
    tree.file("dir/plain", b"x");
    let mut sandbox = Sandbox::new(&tree.0);
    sandbox.host.credentials.enforcement = Enforcement::ModeBits;
    let closed = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(tree.0.join("dir"), closed).unwrap();
    for name in ["there/file", "there/x", "plain/x", "missing/x", "missing"] {
        assert_eq!(
            sandbox.open(&format!("dir/{name}"), 0),
            Err(Errno::EACCES),
            "{name}"
        );
    }
}

/// The names that the host looks up for one call, by the depth of its path.
fn steps_of(depth: usize, ask: impl Fn(&mut Sandbox, &str)) -> u64 {
    let tree = TempTree::new(&format!("deep-{depth}"));
    let mut deep = "a/".repeat(depth);
    tree.file(&format!("{deep}file"), b"x");
    tree.link(&format!("{deep}link"), "file");
    tree.link(&format!("{deep}here"), ".");
    let mut sandbox = Sandbox::new(&tree.0);
    let policy = std::sync::Arc::make_mut(&mut sandbox.host.policy);
    policy.write_tree(tree.path().as_bytes()).unwrap();
    sandbox.host.credentials.enforcement = Enforcement::ModeBits;
    let before = sandbox.host.roots.steps();
    deep.insert_str(0, "./");
    ask(&mut sandbox, &deep);
    sandbox.host.roots.steps() - before
}

/// A program chooses how deep its paths go: the work for one is not to grow with the square of that.
#[test]
fn the_work_of_a_look_up_grows_with_the_depth() {
    type Ask = fn(&mut Sandbox, &str);
    let asks: [(&str, Ask); 6] = [
        ("read", |sandbox, deep| {
            sandbox.open(&format!("{deep}file"), 0).unwrap();
        }),
        ("create", |sandbox, deep| {
            sandbox.open(&format!("{deep}new"), O_CREAT_WRONLY).unwrap();
        }),
        ("create in nothing", |sandbox, deep| {
            let path = format!("{deep}missing/b/c/new");
            assert_eq!(sandbox.open(&path, O_CREAT_WRONLY), Err(Errno::ENOENT));
        }),
        ("mkdir", |sandbox, deep| {
            assert!(call!(sandbox, "mkdir", &*format!("{deep}dir"), 0o777).is_ok());
        }),
        ("through a link on the way", |sandbox, deep| {
            sandbox.open(&format!("{deep}here/file"), 0).unwrap();
        }),
        ("through a link", |sandbox, deep| {
            sandbox.open(&format!("{deep}link"), 0).unwrap();
        }),
    ];
    for (name, ask) in asks {
        let (some, more) = (steps_of(100, ask), steps_of(800, ask));
        assert!(
            more < 12 * some && more < 12 * 800,
            "{name}: {some}, {more}"
        );
    }
}

#[test]
fn links_make_no_path_without_end() {
    let tree = TempTree::new("long-chain");
    let mut sandbox = Sandbox::new(&tree.0);
    let steps = "a/".repeat(1990);
    for link in 0..40 {
        let target = format!("l{}/{steps}", link + 1);
        call!(
            sandbox,
            "symlink",
            target.as_str(),
            format!("/tmp/l{link}").as_str()
        )
        .unwrap();
    }
    assert_eq!(sandbox.open("/tmp/l0", 0), Err(Errno::ENAMETOOLONG));
    // Some links through long paths are fine.
    call!(sandbox, "mkdir", "/tmp/d", 0o755).unwrap();
    sandbox.spill("/tmp/d/file", b"found").unwrap();
    let long = "d/../".repeat(700);
    for (link, target) in [
        ("one", format!("{long}two")),
        ("two", format!("{long}d/file")),
    ] {
        call!(
            sandbox,
            "symlink",
            target.as_str(),
            format!("/tmp/{link}").as_str()
        )
        .unwrap();
    }
    assert_eq!(sandbox.slurp("/tmp/one").unwrap(), b"found");
}

#[test]
fn files_of_the_kernel_are_refused_wherever_they_are_mounted() {
    use std::os::fd::AsFd;
    let tree = TempTree::new("kernel-files");
    tree.file("plain", b"x");
    let mut sandbox = Sandbox::new(&tree.0);
    let mut refused = |path: &std::path::Path| {
        let file = std::fs::File::open(path).unwrap();
        let attr = kvmlet_hostfs::attr_of(file.as_fd()).unwrap();
        let name = path.to_str().unwrap().as_bytes();
        let found = super::access::refuse_kernel_files(
            &mut sandbox.host,
            "open",
            (name, &attr),
            file.as_fd(),
        );
        (found, sandbox.host.report.denials.len())
    };
    assert_eq!(refused(&tree.0.join("plain")), (Ok(()), 0));
    assert_eq!(
        refused("/proc/self/environ".as_ref()),
        (Err(Errno::EACCES), 1)
    );
    assert_eq!(refused("/proc".as_ref()), (Err(Errno::EACCES), 2));
}

/// Somebody on the host swaps a file for links that lead out, and for a named pipe, while the program
/// opens it in every way.
#[test]
fn names_that_change_meanwhile_never_lead_out() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let tree = TempTree::new("swapped");
    tree.file("sub/name", b"in");
    let secret = TempTree::new("swapped-secret");
    let outside = secret.file("name", b"secret");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (name, spare) = (tree.0.join("sub/name"), tree.0.join("sub/spare"));
            while !stop.load(Ordering::Relaxed) {
                std::os::unix::fs::symlink(&outside, &spare).unwrap();
                std::fs::rename(&spare, &name).unwrap();
                std::fs::write(&spare, b"in").unwrap();
                std::fs::rename(&spare, &name).unwrap();
                let mode = rustix::fs::Mode::from_raw_mode(0o666);
                let kind = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(rustix::fs::CWD, &spare, kind, mode, 0).unwrap();
                std::fs::rename(&spare, &name).unwrap();
                std::fs::write(&spare, b"in").unwrap();
                std::fs::rename(&spare, &name).unwrap();
            }
        });
        let mut sandbox = Sandbox::new(&tree.0);
        let dir = sandbox.open("sub", O_DIRECTORY).unwrap();
        let (mut seen, begin) = (0, std::time::Instant::now());
        let stat = sandbox.room(144);
        let mut rounds = 0..;
        // The other thread may have no CPU for a while, and leave a pipe there.
        while let Some(round) = rounds.next()
            && (round < 4000 || seen == 0 && begin.elapsed().as_secs() < 60)
        {
            if round % 2 == 0 {
                call!(sandbox, "newfstatat", dir, "name", stat, 0x100).ok();
            }
            for opened in [
                call!(sandbox, "openat", dir, "name", 0),
                call!(sandbox, "openat", CWD, "sub/name", 0),
            ] {
                let Ok(fd) = opened else { continue };
                let fd = fd.cast_signed();
                // Empty between its creation and its contents; of no use if a FIFO was opened.
                match sandbox.read(fd, 10) {
                    Ok(contents) => {
                        assert!(contents == b"in" || contents.is_empty(), "{contents:?}");
                        seen += usize::from(!contents.is_empty());
                    }
                    Err(error) => assert_eq!(error, Errno::EBADF),
                }
                call!(sandbox, "close", fd).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(seen > 0);
    });
}

/// Looks at a name, has it changed, and opens it.
fn after_a_look(
    sandbox: &mut Sandbox,
    dir: i64,
    name: &str,
    change: impl FnOnce(),
) -> Result<i64, Errno> {
    let stat = sandbox.room(144);
    call!(sandbox, "newfstatat", dir, name, stat, 0x100).unwrap();
    change();
    call!(sandbox, "openat", dir, name, O_NOFOLLOW).map(u64::cast_signed)
}

#[test]
fn what_has_been_looked_at_may_change_before_it_is_opened() {
    let tree = TempTree::new("looked");
    let place = |name: &str| tree.0.join("sub").join(name);
    both_lookups(&tree, |sandbox| {
        for name in ["kept", "other", "gone", "link", "fifo", "directory"] {
            std::fs::remove_dir_all(place(name)).ok();
            std::fs::remove_file(place(name)).ok();
            tree.file(&format!("sub/{name}"), name.as_bytes());
        }
        let dir = sandbox.open("sub", O_DIRECTORY).unwrap();
        let fd = after_a_look(sandbox, dir, "kept", || {}).unwrap();
        assert_eq!(sandbox.read(fd, 10).unwrap(), b"kept");
        let fd = after_a_look(sandbox, dir, "other", || {
            std::fs::write(place("spare"), b"new").unwrap();
            std::fs::rename(place("spare"), place("other")).unwrap();
        })
        .unwrap();
        assert_eq!(sandbox.read(fd, 10).unwrap(), b"new");
        let gone = after_a_look(sandbox, dir, "gone", || {
            std::fs::remove_file(place("gone")).unwrap();
        });
        assert_eq!(gone, Err(Errno::ENOENT));
        let link = after_a_look(sandbox, dir, "link", || {
            std::fs::remove_file(place("link")).unwrap();
            tree.link("sub/link", "kept");
        });
        assert_eq!(link, Err(Errno::ELOOP));
        // A link that may be followed is.
        std::fs::remove_file(place("link")).unwrap();
        tree.file("sub/link", b"link");
        let stat = sandbox.room(144);
        call!(sandbox, "newfstatat", dir, "link", stat, 0).unwrap();
        std::fs::remove_file(place("link")).unwrap();
        tree.link("sub/link", "kept");
        let fd = call!(sandbox, "openat", dir, "link", 0).unwrap();
        assert_eq!(sandbox.read(fd.cast_signed(), 10).unwrap(), b"kept");
        // The open is answered, and what is not the guest's to open cannot be used; or the look was too
        // long ago.
        let fifo = after_a_look(sandbox, dir, "fifo", || {
            std::fs::remove_file(place("fifo")).unwrap();
            let mode = rustix::fs::Mode::from_raw_mode(0o666);
            let kind = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, place("fifo"), kind, mode, 0).unwrap();
        });
        match fifo {
            Ok(fd) => {
                assert_eq!(sandbox.read(fd, 10), Err(Errno::EBADF));
                call!(sandbox, "close", fd).unwrap();
            }
            Err(error) => assert_eq!(error, Errno::EACCES),
        }
        let directory = after_a_look(sandbox, dir, "directory", || {
            std::fs::remove_file(place("directory")).unwrap();
            std::fs::create_dir(place("directory")).unwrap();
        })
        .unwrap();
        let refused = sandbox.read(directory, 10).unwrap_err();
        assert!(
            matches!(refused, Errno::EBADF | Errno::EISDIR),
            "{refused:?}"
        );
    });
}

#[test]
fn a_file_that_was_just_opened_is_known() {
    let tree = TempTree::new("told");
    tree.file("file", b"four");
    let mut sandbox = Sandbox::new(&tree.0);
    let size = |sandbox: &mut Sandbox, fd: i64| {
        let at = sandbox.room(144);
        call!(sandbox, "fstat", fd, at).unwrap();
        sandbox.get_struct::<kvmlet_abi::linux::Stat>(at).st_size
    };
    let grow = |contents: &[u8]| std::fs::write(tree.0.join("file"), contents).unwrap();
    sandbox.open("file", 0).unwrap();
    let id = *sandbox.host.files.keys().last().unwrap();
    sandbox.host.begin_call();
    assert!(sandbox.host.told(id).is_some());
    // Not to any call but the next.
    sandbox.host.begin_call();
    assert!(sandbox.host.told(id).is_none());
    let mut sandbox = Sandbox::new(&tree.0);
    let fd = sandbox.open("file", 0).unwrap();
    assert_eq!(size(&mut sandbox, fd), 4);
    // Asked again, or after another call, the host tells.
    grow(b"seven b");
    assert_eq!(size(&mut sandbox, fd), 7);
    let fd = sandbox.open("file", 0).unwrap();
    call!(sandbox, "getpid").unwrap();
    grow(b"nine byte");
    assert_eq!(size(&mut sandbox, fd), 9);
    // So it does after a while.
    let fd = sandbox.open("file", 0).unwrap();
    crate::testing::pass(std::time::Duration::from_millis(2));
    grow(b"ten bytes!");
    assert_eq!(size(&mut sandbox, fd), 10);
}

#[test]
fn descriptors_are_closed_after_the_answer() {
    let tree = TempTree::new("closing");
    tree.file("file", b"");
    let mut sandbox = Sandbox::new(&tree.0);
    let fd = sandbox.open("file", 0).unwrap();
    let id = *sandbox.host.files.keys().last().unwrap();
    let held = sandbox.host.fd(id).unwrap();
    call!(sandbox, "close", fd).unwrap();
    assert!(sandbox.host.get(id).is_err());
    assert_eq!(std::sync::Arc::strong_count(&held), 2);
    sandbox.host.finish_call();
    assert_eq!(std::sync::Arc::strong_count(&held), 1);
}
