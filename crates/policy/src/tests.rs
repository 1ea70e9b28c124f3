//! The rules as a whole.

use super::*;
use proptest::prelude::*;

fn is_protected(policy: &Policy, path: &str) -> bool {
    let guard = policy.guard_of(path.as_bytes(), |_| false);
    guard.is_protected()
}

#[test]
fn default_rules() {
    let policy = Policy::default();
    for path in [
        "/usr",
        "/usr/bin/env",
        "/lib64/ld-linux-x86-64.so.2",
        "/etc/ld.so.cache",
        "/etc/ssl/certs/a",
    ] {
        assert_eq!(policy.classify(path.as_bytes()), Place::Readable, "{path}");
    }
    for path in [
        "/etc/shadow",
        "/etc/gshadow-",
        "/etc/hostname",
        "/root",
        "/home/u/x",
        "/usrx",
        "/etc/ssl/private",
    ] {
        assert_eq!(policy.classify(path.as_bytes()), Place::Outside, "{path}");
    }
    assert_eq!(policy.classify(b"/"), Place::Leading);
    assert_eq!(policy.classify(b"/etc"), Place::Leading);
    assert_eq!(policy.classify(b"/etc/ssl"), Place::Leading);
    assert_eq!(policy.classify(b"/tmp/a/b"), Place::Tmp);
    assert_eq!(policy.classify(b"/proc/self"), Place::Proc);
    assert_eq!(policy.classify(b"/dev"), Place::Dev);
    assert_eq!(policy.classify(b"/sys/devices"), Place::Sys);
    assert_eq!(policy.classify(b"/etc/hosts"), Place::Made);
}

#[test]
fn working_directory_and_its_parents() {
    let policy = Policy::with_working_directory(b"/home/u/work").unwrap();
    assert_eq!(policy.classify(b"/home/u/work/a.py"), Place::Readable);
    assert_eq!(policy.classify(b"/home/u"), Place::Leading);
    assert_eq!(policy.classify(b"/home/u/.ssh"), Place::Outside);
    assert_eq!(policy.classify(b"/home/u/workshop"), Place::Outside);
    assert!(policy.children(b"/home").contains(b"u".as_slice()));
    assert!(policy.children(b"/").contains(b"home".as_slice()));
}

#[test]
fn working_directory_under_tmp_or_shared_memory() {
    let policy = Policy::with_working_directory(b"/tmp/w").unwrap();
    assert_eq!(policy.classify(b"/tmp/w/x"), Place::Readable);
    assert_eq!(policy.classify(b"/tmp"), Place::Tmp);
    assert_eq!(policy.classify(b"/tmp/other"), Place::Tmp);
    assert_eq!(policy.classify(b"/dev/shm/a"), Place::Tmp);
    assert_eq!(policy.classify(b"/dev/shmem"), Place::Dev);
    let policy = Policy::with_working_directory(b"/dev/shm/w").unwrap();
    assert_eq!(policy.classify(b"/dev/shm"), Place::Leading);
    assert_eq!(policy.classify(b"/dev/shm/other"), Place::Dev);
    assert_eq!(policy.classify(b"/dev/shm/w/x"), Place::Readable);
    assert_eq!(policy.classify(b"/dev"), Place::Dev);
    assert_eq!(policy.classify(b"/dev/sda"), Place::Dev);
}

#[test]
fn unsuitable_directories() {
    for path in [
        "/",
        "/etc",
        "/etc/apt",
        "/proc",
        "/proc/1",
        "/sys/kernel",
        "/dev",
        "/dev/pts",
        "/dev/shm",
    ] {
        let error = Policy::with_working_directory(path.as_bytes()).unwrap_err();
        assert!(matches!(error, PolicyError::Unsuitable(_)), "{path}");
    }
    for path in ["", "work", "/a//b", "/a/../b", "/a/", "/a/."] {
        let error = Policy::with_working_directory(path.as_bytes()).unwrap_err();
        assert!(matches!(error, PolicyError::NotCanonical(_)), "{path}");
    }
    assert_eq!(
        Policy::with_working_directory(b"/tmp").unwrap(),
        Policy::default()
    );
    assert_eq!(
        Policy::with_working_directory(b"/usr/share").unwrap(),
        Policy::default()
    );
}

#[test]
fn every_program_has_a_directory_for_what_runs() {
    let mut policy = Policy::default();
    for path in ["/run", "/run/app/pid"] {
        assert_eq!(policy.classify(path.as_bytes()), Place::Tmp, "{path}");
        assert_eq!(policy.memory_root(path.as_bytes()), Some(RUN));
    }
    assert_eq!(policy.memory_root(b"/tmp/x/y"), Some(TMP));
    assert_eq!(policy.memory_root(b"/dev/shm/x"), None);
    assert_eq!(policy.classify(b"/var"), Place::Leading);
    let shown: Vec<_> = policy.children(b"/var").into_iter().collect();
    assert_eq!(shown, [b"lock".to_vec(), b"run".to_vec()]);
    for path in ["/var/lib", "/var/tmp"] {
        assert_eq!(policy.classify(path.as_bytes()), Place::Outside, "{path}");
    }
    assert_eq!(policy.classify(b"/var/run"), Place::Made);
    assert_eq!(policy.link(b"/var/run"), Some(b"/run".as_slice()));
    assert_eq!(policy.link(b"/var/lock"), Some(b"/run/lock".as_slice()));
    assert_eq!(policy.link(b"/var/run/x"), None);
    // What lies in it on the host is there where it is named, and so is all of it.
    policy.allow_tree(b"/run/app").unwrap();
    assert_eq!(policy.classify(b"/run/app/pid"), Place::Readable);
    assert_eq!(policy.classify(b"/run/other"), Place::Tmp);
    policy
        .bind_tree(b"/srv/run", b"/run", MountMode::ReadWrite)
        .unwrap();
    assert_eq!(policy.classify(b"/run/other"), Place::Writable);
    assert!(policy.memory().next().is_none());
    assert_eq!(policy.link(b"/var/run"), Some(b"/run".as_slice()));
    policy.allow_tree(b"/var").unwrap();
    assert_eq!(policy.classify(b"/var/run"), Place::Readable);
}

#[test]
fn settings_are_shown_where_they_are_named() {
    let mut policy = Policy::default();
    policy.allow_named_tree(b"/etc/nginx").unwrap();
    assert_eq!(policy.classify(b"/etc/nginx/nginx.conf"), Place::Readable);
    assert_eq!(policy.classify(b"/etc/nginx2"), Place::Outside);
    assert_eq!(policy.classify(b"/etc"), Place::Leading);
    for path in [
        "/etc",
        "/etc/shadow",
        "/etc/gshadow-",
        "/etc/nginx/..",
        "/proc/1",
        "/",
    ] {
        assert!(policy.allow_named_tree(path.as_bytes()).is_err(), "{path}");
    }
    assert_eq!(policy.classify(b"/etc/shadow"), Place::Outside);
    // Ours stay ours.
    policy.allow_named_tree(b"/etc/hosts").unwrap();
    assert_eq!(policy.classify(b"/etc/hosts"), Place::Made);
    policy.allow_named_tree(b"/srv/x").unwrap();
    assert_eq!(policy.classify(b"/srv/x/y"), Place::Readable);
}

#[test]
fn an_overlay_takes_what_lies_in_it() {
    let mut policy = Policy::default();
    policy.allow_tree(b"/home/u/work/data").unwrap();
    policy.allow_tree(b"/home/u").unwrap();
    policy.overlay_tree(b"/home/u/work").unwrap();
    assert_eq!(policy.classify(b"/home/u/work/data/x"), Place::Overlay);
    assert_eq!(policy.classify(b"/home/u/other"), Place::Readable);
    policy.overlay_tree(b"/home/u/work/deep").unwrap();
    policy.allow_tree(b"/home/u/work/deep").unwrap();
    let overlays: Vec<&[u8]> = policy.overlays().collect();
    assert_eq!(overlays, [b"/home/u/work".as_slice()]);
    let mut policy = Policy::default();
    for path in [
        "/",
        "/tmp",
        "/usr",
        "/usr/share/x",
        "/etc",
        "/dev/shm",
        "/proc",
    ] {
        let refused = policy.overlay_tree(path.as_bytes());
        assert!(matches!(refused, Err(PolicyError::Unsuitable(_))), "{path}");
    }
    policy.overlay_tree(b"/tmp/w").unwrap();
    assert_eq!(policy.classify(b"/tmp/w/x"), Place::Overlay);
    assert_eq!(policy.classify(b"/tmp/x"), Place::Tmp);
}

#[test]
fn a_tree_to_change_takes_what_lies_in_it_and_leaves_protected_names() {
    let mut policy = Policy::with_working_directory(b"/home/u/work/data").unwrap();
    policy.overlay_tree(b"/home/u/work").unwrap();
    policy.write_tree(b"/home/u/work/.vscode/a").unwrap();
    policy.write_tree(b"/home/u/work/out").unwrap();
    assert_eq!(policy.classify(b"/home/u/work/out/x"), Place::Writable);
    assert_eq!(policy.classify(b"/home/u/work/x"), Place::Overlay);
    policy.write_tree(b"/home/u/work").unwrap();
    policy.write_tree(b"/home/u/work/.git").unwrap();
    policy.allow_tree(b"/home/u/work/data").unwrap();
    assert_eq!(policy.classify(b"/home/u/work/data/x"), Place::Writable);
    assert_eq!(policy.overlays().count(), 0);
    assert!(policy.is_mount_point(b"/home/u/work"));
    assert!(!policy.is_mount_point(b"/home/u/work/out"));
    for path in [
        "/home/u/work/.envrc",
        "/home/u/work/.vscode",
        "/home/u/work/.vscode/b",
        "/home/u/work/.git/config",
        "/home/u/work/.git/hooks/x",
    ] {
        assert!(is_protected(&policy, path), "{path}");
    }
    for path in ["/home/u/work/.vscode/a/x", "/home/u/work/.git/index"] {
        assert!(!is_protected(&policy, path), "{path}");
    }
    for path in ["/", "/tmp", "/usr/local", "/etc/x", "/dev/shm", "/proc"] {
        let refused = policy.write_tree(path.as_bytes());
        assert!(matches!(refused, Err(PolicyError::Unsuitable(_))), "{path}");
    }
}

#[test]
fn trees_at_other_places_and_in_memory() {
    let mut policy = Policy::default();
    policy.overlay_tree(b"/home/u/p").unwrap();
    policy.show_memory(b"/home/u/p/build").unwrap();
    let rw = MountMode::ReadWrite;
    policy
        .bind_tree(b"/home/u/p/.git", b"/data/git", rw)
        .unwrap();
    policy
        .bind_tree(b"/srv/x", b"/home/u/p/build/x", MountMode::ReadOnly)
        .unwrap();
    assert_eq!(policy.classify(b"/home/u/p/build/o"), Place::Tmp);
    assert_eq!(policy.classify(b"/home/u/p/build/x/y"), Place::Readable);
    assert_eq!(policy.classify(b"/home/u/p/other"), Place::Overlay);
    assert_eq!(policy.classify(b"/data"), Place::Leading);
    assert_eq!(policy.classify(b"/data/git/index"), Place::Writable);
    assert!(policy.makes(b"/data") && !policy.makes(b"/home/u/other"));
    assert!(policy.holds_mount(b"/home/u/p/build"));
    let git = b"/data/git".as_slice();
    assert_eq!(policy.tree_of(b"/data/git/x"), Some(git));
    assert!(is_protected(&policy, "/data/git/config"));
    assert_eq!(
        policy.guard_of(b"/data/git/hooks", |_| false),
        Guard::Leading
    );
    for (host, path) in [
        ("/etc/shadow", "/x"),
        ("/x", "/etc/x"),
        ("/proc", "/x"),
        ("/x", "/tmp"),
        ("/usr/lib", "/x"),
        ("/", "/x"),
    ] {
        let refused = policy.bind_tree(host.as_bytes(), path.as_bytes(), rw);
        assert!(refused.is_err(), "{host} {path}");
    }
}

#[test]
fn all_but_what_is_closed_is_open_while_needs_are_learned() {
    let mut policy = Policy::with_working_directory(b"/home/u/work").unwrap();
    policy.overlay_tree(b"/home/u/work").unwrap();
    policy.write_tree(b"/srv/out").unwrap();
    policy.write_tree(b"/srv/file").unwrap();
    policy.allow_tree(b"/home/u/.ssh/known_hosts").unwrap();
    policy.allow_net("public").unwrap();
    policy.learn(b"/data/homes/me", |path| path != b"/srv/file");
    assert!(policy.net().is_empty() && !policy.changes_host());
    for path in [
        "/",
        "/home",
        "/home/u",
        "/home/u/work",
        "/home/u/work/.envrc",
        "/srv/out/x",
        "/srv/file",
        "/data/homes/me/a",
        "/opt/x",
        "/var/lib/dpkg/status",
        "/home/u/.config",
        "/home/u/.config/app/settings",
        "/x/.git/HEAD",
    ] {
        assert_eq!(policy.classify(path.as_bytes()), Place::Overlay, "{path}");
    }
    for path in ["/usr/bin/env", "/home/u/.ssh/known_hosts", "/etc/passwd"] {
        assert_eq!(policy.classify(path.as_bytes()), Place::Readable, "{path}");
        assert!(!policy.is_learned(path.as_bytes()));
    }
    let deep = "/a".repeat(101);
    for path in [
        "/etc/shadow",
        "/etc/ssl/private/key",
        "/home/u/.ssh/id_rsa",
        "/root/.bash_history",
        "/home/u/.config/gh/hosts.yml",
        "/data/homes/me/.aws",
        "/x/.git/hooks/a",
        "/home/u/.BASHRC",
        "/var/log/auth.log",
        "/home/u/.mozilla/x",
        deep.as_str(),
    ] {
        assert_eq!(policy.classify(path.as_bytes()), Place::Outside, "{path}");
        assert!(policy.is_closed(path.as_bytes()));
    }
    // The host's is not shown: there is one in memory.
    assert_eq!(policy.classify(b"/run/secrets"), Place::Tmp);
    assert_eq!(policy.classify(b"/etc"), Place::Leading);
    assert_eq!(policy.classify(b"/tmp/x"), Place::Tmp);
    assert_eq!(policy.classify(b"/proc/1"), Place::Proc);
    assert_eq!(policy.classify(b"/dev/null"), Place::Dev);
    assert!(policy.is_learned(b"/srv/file") && !policy.is_learned(b"/srv/out/x"));
    assert!(!policy.is_learned(b"/home/u/work/x") && policy.is_learned(b"/home/u/x"));
    for (path, opening) in [
        ("/", Opening::Part),
        ("/data", Opening::Part),
        ("/data/homes/me", Opening::Part),
        ("/data/homes/me/work", Opening::All),
        ("/data/x", Opening::All),
        ("/home/v", Opening::Part),
        ("/home/v/.config", Opening::Part),
        ("/home/v/.ssh", Opening::None),
        ("/var/lib", Opening::Part),
        ("/opt", Opening::All),
    ] {
        assert_eq!(policy.opening(path.as_bytes()), opening, "{path}");
    }
    assert_eq!(Policy::default().opening(b"/opt"), Opening::None);
}

proptest! {
    #[test]
    fn no_path_beneath_an_outside_one_is_readable(path in "(/(etc|shadow|home|u|work|tmp|usr|[a-c])){1,5}", more in "(/[a-z]{1,3}){1,3}") {
        let policy = Policy::with_working_directory(b"/home/u/work").unwrap();
        if policy.classify(path.as_bytes()) == Place::Outside {
            let deeper = format!("{path}{more}");
            prop_assert_eq!(policy.classify(deeper.as_bytes()), Place::Outside);
        }
    }

    #[test]
    fn a_path_lies_in_the_innermost_tree_around_it(
        roots in prop::collection::btree_set("(/(a|b|ab|a-)){1,4}", 0..12),
        path in "(/(a|b|ab|a-|c)){1,6}",
    ) {
        let mut policy = Policy::default();
        for root in &roots {
            let mount = Mount::own(root.as_bytes(), MountMode::ReadOnly);
            policy.mounts.insert(root.as_bytes().to_vec(), mount);
            policy.memory.insert(root.as_bytes().to_vec(), 0o700);
        }
        let path = path.as_bytes();
        let wanted = ancestors(path).find(|part| policy.mounts.contains_key(*part));
        prop_assert_eq!(policy.mount_of(path).map(|(root, _)| root), wanted);
        prop_assert_eq!(policy.memory_of(path), wanted);
        prop_assert_eq!(policy.tree_of(path), wanted);
    }

    #[test]
    fn every_child_of_a_leading_directory_is_visible(depth in 0usize..4) {
        let policy = Policy::with_working_directory(b"/home/u/work/deep").unwrap();
        let path = ancestors(b"/home/u/work").nth(depth).unwrap();
        for name in policy.children(path) {
            prop_assert_ne!(policy.classify(&join(path, &name)), Place::Outside);
        }
    }
}

#[test]
fn a_socket_is_reached_by_its_own_rule_only() {
    let mut policy = Policy::default();
    policy.allow_tree(b"/run/all").unwrap();
    assert_eq!(policy.socket_at(b"/run/all/x.sock"), None);
    policy.allow_socket(b"/run/y.sock").unwrap();
    policy.allow_socket(b"/run/all/x.sock").unwrap();
    assert_eq!(policy.classify(b"/run/y.sock"), Place::Readable);
    let found = policy.socket_at(b"/run/y.sock");
    assert_eq!(found, Some((1, b"/run/y.sock".as_slice())));
    assert_eq!(policy.socket_at(b"/run/y.sock/z"), None);
    assert_eq!(policy.socket_at(b"/run"), None);
    // By whatever path the program sees it.
    policy
        .bind_tree(b"/run/all", b"/srv", MountMode::ReadOnly)
        .unwrap();
    let found = policy.socket_at(b"/srv/x.sock");
    assert_eq!(found, Some((0, b"/run/all/x.sock".as_slice())));
    policy.learn(b"", |_| true);
    assert_eq!(policy.sockets().count(), 0);
}

#[test]
fn a_socket_does_not_lie_where_the_program_may_put_another() {
    let mut policy = Policy::default();
    policy.write_tree(b"/srv/app").unwrap();
    assert!(matches!(
        policy.allow_socket(b"/srv/app/run/x.sock"),
        Err(PolicyError::Replaceable(_))
    ));
    policy.allow_socket(b"/srv/x.sock").unwrap();
    assert!(policy.allow_socket(b"/proc/x.sock").is_err());
    assert!(policy.allow_socket(b"/run/../x.sock").is_err());
}
