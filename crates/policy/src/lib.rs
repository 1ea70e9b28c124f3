//! A sandboxed program's view of the host's files: pure rules over absolute path names.
//!
//! A [`Policy`] answers one question, [`Policy::classify`]: which tree does a canonical path belong
//! to. Paths are bytes, absolute, without `.`, `..`, empty components or symbolic links; resolving a
//! program's path to such a form is the caller's work. No rule here touches the host.
#![forbid(unsafe_code)]

mod learn;
pub mod net;
mod path;
mod place;
mod protected;

pub use learn::Opening;
pub use path::{ancestors, beneath, file_name, is_canonical, is_name, join, parent};
pub use place::Place;
pub use protected::{Guard, guard_of, is_saved_set, makes_repository};

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Mount point of the memory file system.
pub const TMP: &[u8] = b"/tmp";
/// Mount point of the second tree of the memory file system (shm_open(3)).
pub const SHM: &[u8] = b"/dev/shm";
/// Mount point of the third tree of the memory file system, where a policy shows it ([`Policy::show_work`]).
pub const WORK: &[u8] = b"/work";
/// The directory in memory for what lasts as long as the machine runs (hier(7)), which every program has. The host's is
/// not shown. There is none for /var/tmp: what people have there is to last, and an empty one would hide it.
pub const RUN: &[u8] = b"/run";
/// Its permission bits, as Debian has them.
const RUN_MODE: u32 = 0o755;
/// Permission bits of a directory for everybody.
const SHARED: u32 = 0o1777;
/// Symbolic links of ours, and where they lead.
pub const LINKS: [(&[u8], &[u8]); 2] = [(b"/var/lock", b"/run/lock"), (b"/var/run", b"/run")];
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
const ETC_NAMES: [&[u8]; 65] = [
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
    b"/etc/mailcap",
    b"/etc/mailcap.order",
    b"/etc/manpath.config",
    b"/etc/mime.types",
    b"/etc/mtab",
    b"/etc/nanorc",
    b"/etc/networks",
    b"/etc/nsswitch.conf",
    b"/etc/os-release",
    b"/etc/papersize",
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
    b"/etc/vim",
    b"/etc/xattr.conf",
    b"/etc/xml",
];

/// Directory of the host's settings.
const ETC: &[u8] = b"/etc";

/// Names of machines (hosts(5)): a program's own machine has only itself.
pub const HOSTS: &[u8] = b"/etc/hosts";

/// The servers that names are asked of (resolv.conf(5)): ours.
pub const RESOLV_CONF: &[u8] = b"/etc/resolv.conf";

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
    /// A socket that may be connected to lies where the program could put another one in its place.
    #[error("{0:?} lies in a tree that the program may change: it could put another socket there")]
    Replaceable(String),
}

/// The changes that a program may make in a host tree that it sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MountMode {
    /// None.
    ReadOnly,
    /// Any, kept in memory: the host's tree is only read.
    Overlay,
    /// Any but those of protected names ([`guard_of`]), made in the host's tree at once.
    ReadWrite,
}

/// A host file or tree that a program sees.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// Its canonical path on the host.
    pub host: Vec<u8>,
    /// The changes that the program may make.
    pub mode: MountMode,
}

/// The rules in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// The visible parts of the host, by the canonical path that the program sees it at.
    mounts: BTreeMap<Vec<u8>, Mount>,
    /// Paths that were named to be changed: protected names among them are not protected.
    named: BTreeSet<Vec<u8>>,
    /// The roots of trees of the memory file system, besides [`TMP`] and [`SHM`], with their permission bits.
    memory: BTreeMap<Vec<u8>, u32>,
    /// The hosts that may be reached.
    net: net::Net,
    /// Ports of the host that lead to the program's.
    published: Vec<net::Published>,
    /// Sockets of the host that may be connected to, by canonical paths of the host.
    sockets: BTreeSet<Vec<u8>>,
    /// Set while a program's needs are learned: the caller's home directory.
    learning: Option<Vec<u8>>,
}

impl Default for Policy {
    /// The system trees and the list from /etc; no working directory.
    fn default() -> Self {
        let names = SYSTEM_TREES.iter().chain(&ETC_NAMES);
        let mount = |name: &&[u8]| (name.to_vec(), Mount::own(name, MountMode::ReadOnly));
        Self {
            mounts: names.map(mount).collect(),
            named: BTreeSet::new(),
            memory: BTreeMap::from([(RUN.to_vec(), RUN_MODE)]),
            net: net::Net::default(),
            published: Vec::new(),
            sockets: BTreeSet::new(),
            learning: None,
        }
    }
}

/// True if a program may be let change the host tree at `path`, in memory or on the host.
fn is_changeable(path: &[u8]) -> bool {
    path != TMP && !SYSTEM_TREES.iter().any(|tree| beneath(tree, path))
}

/// The longest of sorted roots that `path` lies in. `last` gives the last root within bounds, with what belongs to it.
/// The work depends on the number of roots, not on the length of a path, which is a program's to choose.
fn innermost<'a, 'b, T>(
    path: &'a [u8],
    last: impl Fn((Bound<&[u8]>, Bound<&[u8]>)) -> Option<(&'b [u8], T)>,
) -> Option<(&'a [u8], T)> {
    let mut most = Bound::Included(path);
    loop {
        let (root, value) = last((Bound::Unbounded, most))?;
        if beneath(root, path) {
            return Some((path.get(..root.len())?, value));
        }
        // A root of `path` before this one is the start of both.
        let same = root
            .iter()
            .zip(path)
            .take_while(|(one, other)| one == other);
        let start = path.get(..same.count())?;
        most = match start.len() == root.len() {
            true => Bound::Excluded(start),
            false => Bound::Included(start),
        };
    }
}

impl Mount {
    /// A tree of the host at its own path.
    fn own(path: &[u8], mode: MountMode) -> Self {
        Self {
            host: path.to_vec(),
            mode,
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

    /// Allows what a rule says to be reached ([`net::Net::allow`]).
    ///
    /// # Errors
    /// [`net::NetError`]
    pub fn allow_net(&mut self, rule: &str) -> Result<(), net::NetError> {
        self.net.allow(rule)
    }

    /// Has a port of the host lead to one of the program's ([`net::Published::parse`]).
    ///
    /// # Errors
    /// [`net::NetError`]
    pub fn publish(&mut self, text: &str) -> Result<net::Published, net::NetError> {
        let published = net::Published::parse(text)?;
        self.published.push(published);
        Ok(published)
    }

    /// Ports of the host that lead to the program's.
    #[must_use]
    pub fn published(&self) -> &[net::Published] {
        &self.published
    }

    /// Lets the program connect to the host's socket at canonical `path`, and see that there is one. Trees that it may
    /// change are named before.
    ///
    /// # Errors
    /// As [`Policy::allow_tree`]; [`PolicyError::Replaceable`] in a tree that it may change.
    pub fn allow_socket(&mut self, path: &[u8]) -> Result<(), PolicyError> {
        let is_replaceable = self
            .mounts()
            .any(|(_, mount)| mount.mode == MountMode::ReadWrite && beneath(&mount.host, path));
        if is_replaceable {
            let text = String::from_utf8_lossy(path).into_owned();
            return Err(PolicyError::Replaceable(text));
        }
        self.allow_tree(path)?;
        self.sockets.insert(path.to_vec());
        Ok(())
    }

    /// The sockets of the host that may be connected to, by canonical paths of the host, sorted.
    pub fn sockets(&self) -> impl Iterator<Item = &[u8]> {
        self.sockets.iter().map(Vec::as_slice)
    }

    /// The socket that canonical `path` leads to: its number among [`Policy::sockets`], and its path on the host. `None` if
    /// it may not be connected to.
    #[must_use]
    pub fn socket_at(&self, path: &[u8]) -> Option<(usize, &[u8])> {
        let host = self.on_host(path);
        let mut sockets = self.sockets().enumerate();
        sockets.find(|(_, socket)| *socket == host)
    }

    /// The hosts that may be reached.
    #[must_use]
    pub fn net(&self) -> &net::Net {
        &self.net
    }

    /// Has a tree of the memory file system at [`WORK`].
    pub fn show_work(&mut self) {
        self.memory.insert(WORK.to_vec(), SHARED);
    }

    /// Has a tree of the memory file system, empty at the start, at `path`.
    ///
    /// # Errors
    /// As [`Policy::allow_tree`]; also where a host tree begins.
    pub fn show_memory(&mut self, path: &[u8]) -> Result<(), PolicyError> {
        self.suitable(path)?;
        if self.is_mount_point(path) {
            let text = String::from_utf8_lossy(path).into_owned();
            return Err(PolicyError::Unsuitable(text));
        }
        // What lies in /tmp is in memory anyway.
        self.memory.insert(path.to_vec(), SHARED);
        Ok(())
    }

    /// A mount at `path` takes the place of [`RUN`].
    fn make_room(&mut self, path: &[u8]) {
        if path == RUN {
            self.memory.remove(path);
        }
    }

    /// Makes the host file or tree at `host` visible at `path`, in the place of what is visible there.
    ///
    /// # Errors
    /// As [`Policy::allow_tree`], of both; as [`Policy::overlay_tree`] if it may be changed; for /tmp itself.
    pub fn bind_tree(
        &mut self,
        host: &[u8],
        path: &[u8],
        mode: MountMode,
    ) -> Result<(), PolicyError> {
        self.suitable(host)?;
        self.suitable(path)?;
        let unsuitable = |path: &[u8]| {
            let text = String::from_utf8_lossy(path).into_owned();
            Err(PolicyError::Unsuitable(text))
        };
        if self.is_secret(host) || mode != MountMode::ReadOnly && !is_changeable(host) {
            return unsuitable(host);
        }
        let memory = self.memory.get(path);
        if path == TMP || memory.is_some_and(|mode| path != RUN || *mode != RUN_MODE) {
            return unsuitable(path);
        }
        self.make_room(path);
        if mode == MountMode::ReadWrite {
            self.named.insert(host.to_vec());
        }
        let host = host.to_vec();
        self.mounts.insert(path.to_vec(), Mount { host, mode });
        Ok(())
    }

    /// Where canonical `path`, which lies in a visible tree, is on the host.
    fn on_host(&self, path: &[u8]) -> Vec<u8> {
        match self.mount_of(path) {
            Some((root, mount)) if root != mount.host => {
                let rest = path.get(root.len()..).unwrap_or_default();
                [&mount.host, rest].concat()
            }
            _ => path.to_vec(),
        }
    }

    /// True if a tree that the host has elsewhere, or not at all, begins at canonical `path` or beneath it.
    #[must_use]
    pub fn makes(&self, path: &[u8]) -> bool {
        let elsewhere = self.mounts().filter(|(root, mount)| *root != mount.host);
        let memory = self.memory.keys().map(Vec::as_slice);
        memory
            .chain(elsewhere.map(|(root, _)| root))
            .any(|root| beneath(path, root))
    }

    /// Has the program's needs be learned: it may read all of the host, but for what [`Policy::opening`] leaves closed,
    /// and change it in memory. Nothing is changed on the host, and nothing can be reached, whatever the rules say: what
    /// the program reads is to stay here. `home` is the caller's home directory; `is_directory` is asked about trees.
    pub fn learn(&mut self, home: &[u8], is_directory: impl Fn(&[u8]) -> bool) {
        self.mounts.retain(|path, mount| {
            let is_file = mount.mode == MountMode::ReadWrite && !is_directory(path);
            // A file is changed in memory as a part of the whole tree.
            !is_file
        });
        for mount in self.mounts.values_mut() {
            if mount.mode == MountMode::ReadWrite {
                mount.mode = MountMode::Overlay;
            }
        }
        let whole = Mount::own(b"/", MountMode::Overlay);
        self.mounts.insert(b"/".to_vec(), whole);
        self.net = net::Net::default();
        self.sockets = BTreeSet::new();
        self.learning = Some(home.to_vec());
    }

    /// True if the program's needs are learned.
    #[must_use]
    pub fn is_learning(&self) -> bool {
        self.learning.is_some()
    }

    /// The part of canonical `path` that is open because the program's needs are learned.
    #[must_use]
    pub fn opening(&self, path: &[u8]) -> Opening {
        let home = self.learning.as_deref();
        home.map_or(Opening::None, |home| learn::opening(path, home))
    }

    /// True if canonical `path` is visible only because the program's needs are learned.
    #[must_use]
    pub fn is_learned(&self, path: &[u8]) -> bool {
        self.is_learning() && self.is_whole(path) && self.classify(path) == Place::Overlay
    }

    /// True if what the host has at canonical `path` is closed while the program's needs are learned. A program may
    /// have given another name to a directory on the way to it.
    #[must_use]
    pub fn is_closed(&self, path: &[u8]) -> bool {
        self.is_learning() && self.classify(path) == Place::Outside
    }

    /// True if a path lies in no tree but that of the whole host.
    fn is_whole(&self, path: &[u8]) -> bool {
        self.mount_of(path).is_some_and(|(root, _)| root == b"/")
    }

    /// The root of the tree that canonical `path` lies in; `None` in the trees of our own.
    #[must_use]
    pub fn tree_of<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        let mount = self.mount_of(path).map(|(root, _)| root);
        [mount, self.memory_of(path)]
            .into_iter()
            .flatten()
            .max_by_key(|root| root.len())
    }

    /// The trees of the memory file system, besides [`TMP`] and [`SHM`], with their permission bits.
    pub fn memory(&self) -> impl Iterator<Item = (&[u8], u32)> {
        self.memory
            .iter()
            .map(|(path, mode)| (path.as_slice(), *mode))
    }

    /// The target of a link of ours at canonical `path`.
    #[must_use]
    pub fn link(&self, path: &[u8]) -> Option<&'static [u8]> {
        let (_, target) = LINKS.iter().find(|(link, _)| *link == path)?;
        let is_in_tree = |path| self.mount_of(path).is_some_and(|(root, _)| root != b"/");
        let is_shown = |path| self.memory_of(path).is_some() || is_in_tree(path);
        // A tree that has the link's own place has its own.
        (is_shown(target) && !is_shown(path)).then_some(*target)
    }

    /// The paths of links of ours.
    fn links(&self) -> impl Iterator<Item = &[u8]> {
        let all = LINKS.into_iter().map(|(at, _)| at);
        all.filter(|at| self.link(at).is_some())
    }

    /// Makes the host tree at `path` readable. A path already visible changes nothing; so does /tmp
    /// itself, which stays the memory file system.
    ///
    /// # Errors
    /// [`PolicyError::NotCanonical`]; [`PolicyError::Unsuitable`] for `/`, /etc, /proc, /sys, /dev
    /// and what lies beneath these (except beneath /dev/shm and what is already visible).
    pub fn allow_tree(&mut self, path: &[u8]) -> Result<(), PolicyError> {
        if is_canonical(path) && (path == TMP || self.shows_host(path)) {
            return Ok(());
        }
        self.suitable(path)?;
        self.make_room(path);
        let mount = Mount::own(path, MountMode::ReadOnly);
        self.mounts.insert(path.to_vec(), mount);
        Ok(())
    }

    /// Makes the host tree at `path` readable because somebody has named it. It may lie beneath /etc, as the settings of
    /// a server do.
    ///
    /// # Errors
    /// As [`Policy::allow_tree`]; for /etc as a whole, and for password hashes, however they are named.
    pub fn allow_named_tree(&mut self, path: &[u8]) -> Result<(), PolicyError> {
        let is_setting = beneath(ETC, path) && path != ETC && is_canonical(path);
        if !is_setting || self.shows_host(path) || self.is_secret(path) {
            return self.allow_tree(path);
        }
        let mount = Mount::own(path, MountMode::ReadOnly);
        self.mounts.insert(path.to_vec(), mount);
        Ok(())
    }

    /// Makes the host tree at `path` visible at its own path, changes to it being kept in memory. What is
    /// visible of it already can be changed so too.
    ///
    /// # Errors
    /// As [`Policy::allow_tree`]; also for /tmp and the trees of programs and libraries, and what lies
    /// in them.
    pub fn overlay_tree(&mut self, path: &[u8]) -> Result<(), PolicyError> {
        self.suitable(path)?;
        let text = || String::from_utf8_lossy(path).into_owned();
        if !is_changeable(path) {
            return Err(PolicyError::Unsuitable(text()));
        }
        self.make_room(path);
        // A tree in an overlay is part of it: there is one tree of changes, and renames work.
        self.mounts.retain(|tree, _| !beneath(path, tree));
        if self.classify(path) != Place::Overlay {
            let mount = Mount::own(path, MountMode::Overlay);
            self.mounts.insert(path.to_vec(), mount);
        }
        Ok(())
    }

    /// Makes the host tree at `path` visible at its own path, and lets the program change it. What is visible
    /// of it already can be changed so too. A protected name in it cannot, unless it is named so itself.
    ///
    /// # Errors
    /// As [`Policy::overlay_tree`].
    pub fn write_tree(&mut self, path: &[u8]) -> Result<(), PolicyError> {
        self.suitable(path)?;
        if !is_changeable(path) || self.is_secret(path) {
            let text = String::from_utf8_lossy(path).into_owned();
            return Err(PolicyError::Unsuitable(text));
        }
        self.named.insert(path.to_vec());
        self.make_room(path);
        self.mounts.retain(|tree, _| !beneath(path, tree));
        if self.classify(path) != Place::Writable {
            let mount = Mount::own(path, MountMode::ReadWrite);
            self.mounts.insert(path.to_vec(), mount);
        }
        Ok(())
    }

    /// The protection of canonical `path` in a tree that may be changed. `exists` says if there is something at another
    /// path that the program sees.
    #[must_use]
    pub fn guard_of(&self, path: &[u8], exists: impl FnMut(&[u8]) -> bool) -> Guard {
        let host = self.on_host(path);
        let is_named = |part: &[u8]| {
            let mut named = self.named.iter();
            named.any(|named| beneath(part, named) && beneath(named, &host))
        };
        let guard = protected::by_name(&host, is_named);
        if guard.is_protected() {
            return guard;
        }
        let is_named = |part: &[u8]| is_named(&self.on_host(part));
        guard.max(protected::in_repository(path, exists, is_named))
    }

    /// As [`makes_repository`], of a path in a tree that may be changed; not of one that was named.
    #[must_use]
    pub fn makes_repository(&self, path: &[u8], exists: impl Fn(&[u8]) -> bool) -> bool {
        makes_repository(path, &exists, &exists) && !self.named.contains(&self.on_host(path))
    }

    /// Refuses what would show kernel interfaces, secrets or everything.
    fn suitable(&self, path: &[u8]) -> Result<(), PolicyError> {
        let text = || String::from_utf8_lossy(path).into_owned();
        if !is_canonical(path) {
            return Err(PolicyError::NotCanonical(text()));
        }
        let shared_memory = beneath(SHM, path) && path != SHM;
        let forbidden = [PROC, SYS, DEV, ETC];
        if path == b"/" || !shared_memory && forbidden.iter().any(|tree| beneath(tree, path)) {
            return Err(PolicyError::Unsuitable(text()));
        }
        Ok(())
    }

    /// True if `path` is one of the host's that is visible.
    fn shows_host(&self, path: &[u8]) -> bool {
        self.classify(path).is_of_host()
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
        if path == HOSTS || path == RESOLV_CONF || self.link(path).is_some() {
            return Place::Made;
        }
        let memory = self.memory_of(path);
        let mount = self.mount_of(path);
        // Of two trees, what is in both is the inner one's.
        let is_memory =
            memory.is_some_and(|memory| mount.is_none_or(|(root, _)| root.len() < memory.len()));
        if is_memory {
            return Place::Tmp;
        }
        // Everything lies in the whole host while needs are learned: then the rules beneath decide.
        let inner = mount.filter(|(root, _)| *root != b"/");
        if let Some((_, mount)) = inner {
            return match mount.mode {
                MountMode::ReadOnly => Place::Readable,
                MountMode::Overlay => Place::Overlay,
                MountMode::ReadWrite => Place::Writable,
            };
        }
        let own = [(TMP, Place::Tmp), (PROC, Place::Proc), (SYS, Place::Sys)];
        for (tree, place) in own {
            if beneath(tree, path) {
                return place;
            }
        }
        if mount.is_some() && self.opening(path) != Opening::None {
            return Place::Overlay;
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

    /// The mount that a canonical path lies in, and where that is.
    #[must_use]
    pub fn mount_of<'a>(&self, path: &'a [u8]) -> Option<(&'a [u8], &Mount)> {
        innermost(path, |most| {
            let (root, mount) = self.mounts.range::<[u8], _>(most).next_back()?;
            Some((root.as_slice(), mount))
        })
    }

    /// The root of the tree of the memory file system that a canonical path lies in, besides [`TMP`] and [`SHM`].
    fn memory_of<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        let found = innermost(path, |most| {
            let (root, _) = self.memory.range::<[u8], _>(most).next_back()?;
            Some((root.as_slice(), ()))
        });
        found.map(|(root, ())| root)
    }

    /// The root of the tree of the memory file system that a canonical path lies in; `None` elsewhere, and in [`SHM`].
    #[must_use]
    pub fn memory_root<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        if self.classify(path) != Place::Tmp {
            return None;
        }
        let tmp = || beneath(TMP, path).then_some(TMP);
        self.memory_of(path).or_else(tmp)
    }

    /// True if one of the visible trees begins at this canonical path.
    #[must_use]
    pub fn is_mount_point(&self, path: &[u8]) -> bool {
        self.mounts.contains_key(path)
    }

    /// True if one of the visible trees begins at this canonical path or beneath it: what is there stays.
    #[must_use]
    pub fn holds_mount(&self, path: &[u8]) -> bool {
        let mut trees = self.mounts.keys().chain(self.memory.keys());
        trees.any(|tree| beneath(path, tree))
    }

    /// Whether a visible tree lies strictly beneath `path`, which is not /dev itself.
    fn leads(&self, path: &[u8]) -> bool {
        let strictly = |tree: &&Vec<u8>| beneath(path, tree) && tree.as_slice() != path;
        let mut trees = self.mounts.keys().chain(self.memory.keys());
        let mut links = self.links();
        path == b"/"
            || path != DEV && trees.any(|tree| strictly(&tree))
            || links.any(|link| beneath(path, link) && link != path)
    }

    /// Names directly beneath `path` that are, or lead to, a visible tree; sorted.
    #[must_use]
    pub fn children(&self, path: &[u8]) -> BTreeSet<Vec<u8>> {
        let own = [TMP, PROC, DEV, SYS, HOSTS, RESOLV_CONF].into_iter();
        let own = own.chain(self.memory().map(|(path, _)| path));
        let own = own.chain(self.links());
        let all = own.chain(self.mounts.keys().map(Vec::as_slice));
        all.filter(|tree| beneath(path, tree) && *tree != path)
            .filter_map(|tree| {
                let rest = tree.get(path.len()..)?;
                let rest = rest.strip_prefix(b"/").unwrap_or(rest);
                rest.split(|byte| *byte == b'/').next().map(<[u8]>::to_vec)
            })
            .collect()
    }

    /// The files and trees of the host that are visible, by the path that the program sees them at, sorted.
    pub fn mounts(&self) -> impl Iterator<Item = (&[u8], &Mount)> {
        let mounts = self.mounts.iter();
        mounts.map(|(path, mount)| (path.as_slice(), mount))
    }

    /// The trees whose changes are kept in memory, sorted.
    pub fn overlays(&self) -> impl Iterator<Item = &[u8]> {
        let overlays = self
            .mounts()
            .filter(|(_, mount)| mount.mode == MountMode::Overlay);
        overlays.map(|(path, _)| path)
    }

    /// True if the program may change a tree of the host's.
    #[must_use]
    pub fn changes_host(&self) -> bool {
        let mut modes = self.mounts.values().map(|mount| mount.mode);
        modes.any(|mode| mode == MountMode::ReadWrite)
    }
}

#[cfg(test)]
mod tests;
