//! A sandboxed program's view of the host's files: pure rules over absolute path names.
//!
//! A [`Policy`] answers one question, [`Policy::classify`]: which tree does a canonical path belong
//! to. Paths are bytes, absolute, without `.`, `..`, empty components or symbolic links; resolving a
//! program's path to such a form is the caller's work. No rule here touches the host.
#![forbid(unsafe_code)]

mod path;

pub use path::{ancestors, beneath, file_name, is_canonical, is_name, join, parent};

use std::collections::BTreeSet;

/// The tree a canonical path belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// A host file or directory that may be read.
    Readable,
    /// A directory that only leads to something visible: ours, listing [`Policy::children`].
    Leading,
    /// The memory file system.
    Tmp,
    /// The process file system, ours.
    Proc,
    /// Devices, ours.
    Dev,
    /// The system file system, ours.
    Sys,
    /// Everything else.
    Outside,
}

/// Mount point of the memory file system.
pub const TMP: &[u8] = b"/tmp";
/// Mount point of the second tree of the memory file system (shm_open(3)).
pub const SHM: &[u8] = b"/dev/shm";
/// Mount point of the process file system.
pub const PROC: &[u8] = b"/proc";
/// Directory of the devices.
pub const DEV: &[u8] = b"/dev";
/// Mount point of the system file system.
pub const SYS: &[u8] = b"/sys";

/// Host trees of programs and libraries.
const SYSTEM_TREES: [&[u8]; 7] = [
    b"/usr", b"/bin", b"/sbin", b"/lib", b"/lib32", b"/lib64", b"/libx32",
];

/// What is visible of the host's /etc: what any program may know. Nothing that may hold a key, a password or the name
/// of the machine; whole directories only where they hold settings of one runtime.
const ETC_NAMES: [&[u8]; 60] = [
    b"/etc/ImageMagick-6",
    b"/etc/ImageMagick-7",
    b"/etc/R",
    b"/etc/alternatives",
    b"/etc/bash.bashrc",
    b"/etc/debian_version",
    b"/etc/default/locale",
    b"/etc/fonts",
    b"/etc/gdb/gdbinit.d",
    b"/etc/groff",
    b"/etc/group",
    b"/etc/host.conf",
    b"/etc/inputrc",
    b"/etc/java-11-openjdk",
    b"/etc/java-17-openjdk",
    b"/etc/java-21-openjdk",
    b"/etc/java-25-openjdk",
    b"/etc/java-8-openjdk",
    b"/etc/ld-musl-x86_64.d",
    b"/etc/ld-musl-x86_64.path",
    b"/etc/ld.so.cache",
    b"/etc/ld.so.conf",
    b"/etc/ld.so.conf.d",
    b"/etc/ld.so.preload",
    b"/etc/locale.alias",
    b"/etc/locale.conf",
    b"/etc/localtime",
    b"/etc/login.defs",
    b"/etc/lsb-release",
    b"/etc/magic",
    b"/etc/magic.mime",
    b"/etc/manpath.config",
    b"/etc/mime.types",
    b"/etc/mtab",
    b"/etc/networks",
    b"/etc/nsswitch.conf",
    b"/etc/os-release",
    b"/etc/passwd",
    b"/etc/perl",
    b"/etc/php",
    b"/etc/profile",
    b"/etc/profile.d",
    b"/etc/protocols",
    b"/etc/python3",
    b"/etc/python3.10",
    b"/etc/python3.11",
    b"/etc/python3.12",
    b"/etc/python3.13",
    b"/etc/python3.14",
    b"/etc/python3.9",
    b"/etc/rpc",
    b"/etc/services",
    b"/etc/sgml",
    b"/etc/shells",
    b"/etc/ssl/certs",
    b"/etc/ssl/openssl.cnf",
    b"/etc/terminfo",
    b"/etc/timezone",
    b"/etc/xattr.conf",
    b"/etc/xml",
];

/// Never readable, whatever else a policy says: password hashes (shadow(5)).
const SECRETS: [&[u8]; 4] = [
    b"/etc/shadow",
    b"/etc/shadow-",
    b"/etc/gshadow",
    b"/etc/gshadow-",
];

/// Why a directory cannot be made visible.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PolicyError {
    /// Not an absolute path in canonical form.
    #[error("not an absolute path without '.', '..' or double slashes: {0:?}")]
    NotCanonical(String),
    /// Making it visible would show kernel interfaces, secrets or everything.
    #[error("{0:?} cannot be made visible to the program")]
    Unsuitable(String),
}

/// The rules in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Canonical host paths readable as a whole, whatever they are; sorted.
    readable: BTreeSet<Vec<u8>>,
}

impl Default for Policy {
    /// The system trees and the list from /etc; no working directory.
    fn default() -> Self {
        let names = SYSTEM_TREES.iter().chain(&ETC_NAMES);
        Self {
            readable: names.map(|name| name.to_vec()).collect(),
        }
    }
}

impl Policy {
    /// The default rules, and the tree of the working directory readable.
    ///
    /// # Errors
    /// [`PolicyError`] as [`Policy::allow_tree`].
    pub fn with_working_directory(cwd: &[u8]) -> Result<Self, PolicyError> {
        let mut policy = Self::default();
        policy.allow_tree(cwd)?;
        Ok(policy)
    }

    /// The rules for a program that is started in `cwd`, and the directory where it starts. The tree of
    /// `cwd` is readable, unless that would show too much ([`Policy::allow_tree`]). Then the program starts
    /// there as far as the directory is visible anyway (`/`, /etc), and in `/` otherwise.
    #[must_use]
    pub fn started_from(cwd: &[u8]) -> (Self, &[u8]) {
        let mut policy = Self::default();
        let shown = policy.allow_tree(cwd).is_ok();
        let visible = shown || is_canonical(cwd) && policy.classify(cwd) == Place::Leading;
        (policy, if visible { cwd } else { b"/" })
    }

    /// Makes the host tree at `path` readable. A path already visible changes nothing; so does /tmp
    /// itself, which stays the memory file system.
    ///
    /// # Errors
    /// [`PolicyError::NotCanonical`]; [`PolicyError::Unsuitable`] for `/`, /etc, /proc, /sys, /dev
    /// and what lies beneath these (except beneath /dev/shm and what is already visible).
    pub fn allow_tree(&mut self, path: &[u8]) -> Result<(), PolicyError> {
        let text = || String::from_utf8_lossy(path).into_owned();
        if !is_canonical(path) {
            return Err(PolicyError::NotCanonical(text()));
        }
        if path == TMP || self.classify(path) == Place::Readable {
            return Ok(());
        }
        let shared_memory = beneath(SHM, path) && path != SHM;
        let forbidden = [PROC, SYS, DEV, b"/etc".as_slice()];
        if path == b"/" || !shared_memory && forbidden.iter().any(|tree| beneath(tree, path)) {
            return Err(PolicyError::Unsuitable(text()));
        }
        self.readable.insert(path.to_vec());
        Ok(())
    }

    /// True if a readable directory has something at this canonical path that is not readable all the same.
    #[must_use]
    pub fn is_secret(&self, path: &[u8]) -> bool {
        SECRETS.contains(&path)
    }

    /// Which tree a canonical path belongs to.
    #[must_use]
    pub fn classify(&self, path: &[u8]) -> Place {
        if self.is_secret(path) {
            return Place::Outside;
        }
        if ancestors(path).any(|prefix| self.readable.contains(prefix)) {
            return Place::Readable;
        }
        let own = [(TMP, Place::Tmp), (PROC, Place::Proc), (SYS, Place::Sys)];
        for (tree, place) in own {
            if beneath(tree, path) {
                return place;
            }
        }
        if self.leads(path) {
            return Place::Leading;
        }
        // A visible host tree in /dev/shm takes the place of the memory file system.
        if beneath(SHM, path) && !self.leads(SHM) {
            return Place::Tmp;
        }
        if beneath(DEV, path) {
            Place::Dev
        } else {
            Place::Outside
        }
    }

    /// Whether a visible tree lies strictly beneath `path`, which is not /dev itself.
    fn leads(&self, path: &[u8]) -> bool {
        let strictly = |tree: &&Vec<u8>| beneath(path, tree) && tree.as_slice() != path;
        path == b"/" || path != DEV && self.readable.iter().any(|tree| strictly(&tree))
    }

    /// Names directly beneath `path` that are, or lead to, a visible tree; sorted.
    #[must_use]
    pub fn children(&self, path: &[u8]) -> BTreeSet<Vec<u8>> {
        let own = [TMP, PROC, DEV, SYS].into_iter();
        let all = own.chain(self.readable.iter().map(Vec::as_slice));
        all.filter(|tree| beneath(path, tree) && *tree != path)
            .filter_map(|tree| {
                let rest = tree.get(path.len()..)?;
                let rest = rest.strip_prefix(b"/").unwrap_or(rest);
                rest.split(|byte| *byte == b'/').next().map(<[u8]>::to_vec)
            })
            .collect()
    }

    /// The roots of the readable trees, sorted.
    pub fn readable_trees(&self) -> impl Iterator<Item = &[u8]> {
        self.readable.iter().map(Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
            "/etc/hosts",
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
        fn every_child_of_a_leading_directory_is_visible(depth in 0usize..4) {
            let policy = Policy::with_working_directory(b"/home/u/work/deep").unwrap();
            let path = ancestors(b"/home/u/work").nth(depth).unwrap();
            for name in policy.children(path) {
                prop_assert_ne!(policy.classify(&join(path, &name)), Place::Outside);
            }
        }
    }
}
