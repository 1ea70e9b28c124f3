//! The view of a program whose needs are being learned: all of the host's files, but for those that no program should
//! get unasked. Changes of them are kept in memory.

use crate::protected::{Guard, by_name, private_by_name};
use crate::{beneath, parent};

/// Directories of the machine that stay closed: trees of our own, and others with secrets of the machine or of all its
/// users.
const CLOSED: [&[u8]; 20] = [
    b"/dev",
    b"/etc",
    b"/proc",
    b"/run",
    b"/sys",
    b"/tmp",
    b"/var/backups",
    b"/var/cache/debconf",
    b"/var/crash",
    b"/var/lib/NetworkManager",
    b"/var/lib/containerd",
    b"/var/lib/containers",
    b"/var/lib/docker",
    b"/var/lib/kubelet",
    b"/var/lib/private",
    b"/var/lib/sss",
    b"/var/lib/systemd",
    b"/var/log",
    b"/var/mail",
    b"/var/spool",
];

/// The components of a path that is opened, at most: each costs work, and a program chooses how many there are.
const DEPTH_MAX: usize = 100;

/// The part of what lies at a path, and beneath it, that is open while needs are learned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opening {
    /// Nothing.
    None,
    /// A directory with names that are closed, or may be.
    Part,
    /// All. Deeper down there may still be protected names.
    All,
}

/// The part of canonical `path` that is open. `home` is the caller's home directory, canonical; empty if there is none.
pub(crate) fn opening(path: &[u8], home: &[u8]) -> Opening {
    let is_deep = path.iter().filter(|byte| **byte == b'/').count() > DEPTH_MAX;
    if is_deep || CLOSED.iter().any(|tree| beneath(tree, path)) {
        return Opening::None;
    }
    let guard = by_name(path, |_| false).max(private_by_name(path));
    if guard.is_protected() {
        return Opening::None;
    }
    let is_home = path == b"/home" || path == b"/root" || parent(path) == b"/home";
    let leads = !home.is_empty() && beneath(path, home);
    let has_closed = CLOSED.iter().any(|tree| beneath(path, tree));
    if path == b"/" || is_home || leads || has_closed || guard == Guard::Leading {
        Opening::Part
    } else {
        Opening::All
    }
}
