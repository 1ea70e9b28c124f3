//! Path resolution (path_resolution(7)), in the guest's namespace. Symbolic links of the host are
//! read and followed here, never by the host, so that none leads out of the visible trees.

use kvmlet_abi::linux::fcntl::AT_FDCWD;
use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_hostfs::attr::{Attr, MAY_EXEC};
use kvmlet_hostfs::{Handle, HostFd};
use kvmlet_policy::{Place, file_name, is_canonical, is_name, join, parent};

mod host;

use super::Dir;
use super::learn;
use super::overlay::{self, Look};
use super::privilege;
pub use super::request::{Intent, Last, Request, Resolve, Start};
use super::synth::{self, Synth};
use super::tmpfs::{InodeId, MAX_NAME, TmpFs};
use crate::cx::Cx;
use crate::fd::FileId;
use crate::report::Remedy;

/// Symbolic links followed in one resolution at most (path_resolution(7)).
const LINKS_MAX: u32 = 40;
/// Longest canonical path that is composed, in bytes. Open descriptions keep theirs, so it is bounded.
/// Linux differs: a directory may lie deeper.
pub const CANONICAL_MAX: usize = 64 << 10;
/// Most bytes of components still to walk, in one resolution. Each costs work of ours.
/// Linux differs: forty symbolic links may lead through more.
const PENDING_MAX: usize = 4 * kvmlet_hostfs::PATH_MAX;

/// A directory reached: its canonical path, and its inode in the memory file system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct At {
    /// Canonical path.
    pub path: Arc<[u8]>,
    /// Set in the memory file system.
    pub tmp: Option<InodeId>,
}

/// A file system object found.
#[derive(Debug)]
pub enum Node {
    /// A host object.
    Host(Handle, Attr),
    /// An inode of the memory file system.
    Tmp(InodeId),
    /// A synthetic object.
    Synth(Synth),
    /// The object that an open description refers to (through /proc/self/fd).
    Open(FileId),
}

/// An object and its canonical path.
#[derive(Debug)]
pub struct Found {
    /// Canonical path.
    pub path: Vec<u8>,
    /// The object.
    pub node: Node,
}

/// A name that does not exist or was not looked up.
#[derive(Clone, Debug)]
pub struct Missing {
    /// The directory.
    pub dir: At,
    /// Its descriptor, if it is a host directory that the walk has started from ([`Start`]).
    pub open: Option<Arc<HostFd>>,
    /// The name; with [`Last::Parent`] also `.`, `..`, or nothing for `/`.
    pub name: Vec<u8>,
    /// True if the path ended in a slash.
    pub slash: bool,
}

/// The place where a resolution ended.
#[derive(Debug)]
pub enum Walked {
    /// At an object.
    Found(Found),
    /// At a directory and a name in it.
    Missing(Missing),
}

impl Dir {
    /// The directory as a place to start from.
    #[must_use]
    pub fn at(&self, tmpfs: &TmpFs) -> At {
        match self {
            Self::Path(path) => At {
                path: Arc::clone(path),
                tmp: None,
            },
            Self::Tmp(inode) => {
                // A removed directory has no path, but it can still be asked about itself.
                let path = tmpfs
                    .path_of(*inode)
                    .unwrap_or_else(|_| b"/tmp/ (deleted)".to_vec());
                At {
                    path: path.into(),
                    tmp: Some(*inode),
                }
            }
        }
    }
}

impl At {
    /// The directory to be kept.
    #[must_use]
    pub fn dir(&self) -> Dir {
        self.tmp
            .map_or_else(|| Dir::Path(Arc::clone(&self.path)), Dir::Tmp)
    }
}

/// Resolves to an existing object.
///
/// # Errors
/// As path_resolution(7): `ENOENT`, also for a name outside the visible trees; `ENOTDIR`, `EACCES`, `ELOOP`,
/// `ENAMETOOLONG`, `EXDEV`; `EROFS` for a denied write.
pub fn find(cx: &mut Cx<'_>, request: Request<'_>) -> Result<Found, Errno> {
    match walk(cx, request)? {
        Walked::Found(found) => Ok(found),
        Walked::Missing(_) => Err(Errno::ENOENT),
    }
}

/// Resolves a path.
///
/// # Errors
/// As [`find`].
pub fn walk(cx: &mut Cx<'_>, request: Request<'_>) -> Result<Walked, Errno> {
    if request.path.is_empty() {
        return Err(Errno::ENOENT);
    }
    if request.path.len() >= kvmlet_hostfs::PATH_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    let base = request.start.dir.at(&cx.kernel.tmpfs);
    let mut walker = Walker {
        at: base.clone(),
        base,
        open: request.start.open.clone(),
        pending: Vec::new(),
        links: 0,
        slash: false,
        stepwise: false,
        above: None,
        request,
        cx,
    };
    let walked = match walker.begin()? {
        Some(walked) => walked,
        None => walker.run()?,
    };
    if let Walked::Found(found) = &walked
        && walker.cx.host.policy.is_learning()
    {
        let given = join(&walker.base.path, walker.request.path);
        let given = match walker.request.path.first() {
            Some(b'/') => walker.request.path,
            _ => &given,
        };
        learn::found(walker.cx, found, (walker.links > 0).then_some(given));
    }
    Ok(walked)
}

/// The thing that a component led to.
enum Step {
    Directory(At, Option<Node>),
    /// A symbolic link's target, and the link itself if it is one of the host's.
    Link(Vec<u8>, Option<Node>),
    Magic(FileId),
    Object(Node),
    Absent,
}

struct Walker<'a, 'b> {
    cx: &'a mut Cx<'b>,
    request: Request<'a>,
    /// The start of the walk: what RESOLVE_BENEATH and RESOLVE_IN_ROOT may not leave.
    base: At,
    at: At,
    /// The descriptor of `at`, as long as the walk has not left its start.
    open: Option<Arc<HostFd>>,
    /// Components still to do, the next one last.
    pending: Vec<Vec<u8>>,
    links: u32,
    slash: bool,
    /// True once a link lies ahead that is to be met step by step.
    stepwise: bool,
    /// The directory `at`, if the last step has found it.
    above: Option<Node>,
}

impl Walker<'_, '_> {
    /// Tries a path that is plain, as most are, in one piece. Otherwise, or when it ends in a link, the
    /// components to walk are pending then.
    fn begin(&mut self) -> Result<Option<Walked>, Errno> {
        let given = self.request.path;
        let absolute = given.first() == Some(&b'/');
        let path = if absolute {
            given.to_vec()
        } else {
            join(&self.at.path, given)
        };
        let plain = self.request.resolve.is_empty()
            && self.request.last != Last::Parent
            && (absolute || self.at.tmp.is_none())
            && path.len() < kvmlet_hostfs::PATH_MAX;
        let policy = &self.cx.host.policy;
        let readable = if self.open.is_some() && is_name(given) {
            // Only a directory of the host's own can be open; another tree may begin in it.
            !policy.is_secret(&path) && !policy.is_mount_point(&path)
        } else {
            is_canonical(&path) && policy.classify(&path).is_on_host()
        };
        if !(plain && readable) {
            return self.push(given).map(|()| None);
        }
        match self.host_step(&path) {
            Ok(Step::Directory(_, Some(node)) | Step::Object(node)) => {
                Ok(Some(Walked::Found(Found { path, node })))
            }
            Ok(Step::Link(target, _)) if self.follows() => self.link(&path, &target).map(|()| None),
            Ok(Step::Link(_, Some(node))) => Ok(Some(Walked::Found(Found { path, node }))),
            Ok(Step::Absent) if !self.may_be_missing() => Err(Errno::ENOENT),
            // A link on the way, or what is missing may be a directory on the way.
            Ok(_) | Err(Errno::ELOOP) => self.push(given).map(|()| None),
            Err(error) => Err(error),
        }
    }

    /// True if a link that is the last component is followed.
    fn follows(&self) -> bool {
        self.slash || !matches!(self.request.last, Last::NoFollow | Last::CreateExclusive)
    }

    /// True if the last component may be missing.
    fn may_be_missing(&self) -> bool {
        matches!(self.request.last, Last::Create | Last::CreateExclusive)
    }

    /// Puts the components of a path or of a link's target in front of what is still to do.
    fn push(&mut self, path: &[u8]) -> Result<(), Errno> {
        if path.first() == Some(&b'/') {
            if self.request.resolve.contains(Resolve::BENEATH) {
                return Err(Errno::EXDEV);
            }
            let root = At {
                path: Arc::from(b"/".as_slice()),
                tmp: None,
            };
            let in_root = self.request.resolve.contains(Resolve::IN_ROOT);
            let to = if in_root { self.base.clone() } else { root };
            self.enter(to)?;
        }
        if self.pending.is_empty() && path.last() == Some(&b'/') {
            self.slash = true;
        }
        let names = path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty());
        let at = self.pending.len();
        self.pending.extend(names.map(<[u8]>::to_vec));
        if let Some(new) = self.pending.get_mut(at..) {
            new.reverse();
        }
        let pending: usize = self.pending.iter().map(|name| name.len() + 1).sum();
        if pending > PENDING_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        Ok(())
    }

    fn enter(&mut self, to: At) -> Result<(), Errno> {
        let no_xdev = self.request.resolve.contains(Resolve::NO_XDEV);
        if no_xdev && self.mount_of(&to.path) != self.mount_of(&self.at.path) {
            return Err(Errno::EXDEV);
        }
        self.go(to);
        Ok(())
    }

    fn go(&mut self, to: At) {
        self.at = to;
        self.open = None;
    }

    fn mount_of(&self, path: &[u8]) -> u64 {
        super::synth::mount_number(self.cx.host.policy.classify(path))
    }

    fn run(&mut self) -> Result<Walked, Errno> {
        let mut node = None;
        while let Some(name) = self.pending.pop() {
            if self.pending.is_empty() && self.request.last == Last::Parent {
                return Ok(Walked::Missing(self.missing(name)));
            }
            self.above = node.take();
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    self.up()?;
                    continue;
                }
                _ => {}
            }
            self.may_search()?;
            let (path, step) = self.step(&name)?;
            let last = self.pending.is_empty();
            let follow = !last || self.follows();
            match step {
                Step::Directory(at, found) => {
                    self.enter(at)?;
                    node = found;
                }
                Step::Link(target, _) if follow => self.link(&path, &target)?,
                Step::Link(target, node) => {
                    let node = match node {
                        Some(node) => node,
                        None => self.unfollowed(&path, target)?,
                    };
                    return Ok(Walked::Found(Found { path, node }));
                }
                Step::Magic(file) if follow => {
                    if let Some(found) = self.magic(file)? {
                        return Ok(Walked::Found(found));
                    }
                }
                Step::Magic(file) => {
                    let node = Node::Synth(Synth::FdLink(file));
                    return Ok(Walked::Found(Found { path, node }));
                }
                Step::Object(Node::Synth(Synth::Sealed(errno))) if follow => return Err(errno),
                Step::Object(Node::Synth(Synth::Closed)) if !last => return Err(Errno::EACCES),
                Step::Object(node) if last && (!self.slash || is_closed(&node)) => {
                    return Ok(Walked::Found(Found { path, node }));
                }
                Step::Object(_) => return Err(Errno::ENOTDIR),
                Step::Absent => return self.absent(path),
            }
        }
        if self.request.last == Last::Parent {
            return Ok(Walked::Missing(self.missing(Vec::new())));
        }
        let node = match node {
            Some(node) => node,
            None => self.directory_node()?,
        };
        Ok(Walked::Found(Found {
            path: self.at.path.to_vec(),
            node,
        }))
    }

    fn absent(&mut self, path: Vec<u8>) -> Result<Walked, Errno> {
        if !self.pending.is_empty() || !self.may_be_missing() {
            return Err(Errno::ENOENT);
        }
        // A run of components may have been skipped: `at` is made the directory of the missing one.
        let dir = parent(&path);
        if *dir != *self.at.path {
            self.go(At {
                path: Arc::from(dir),
                tmp: None,
            });
        }
        Ok(Walked::Missing(self.missing(file_name(&path).to_vec())))
    }

    /// A name in the directory that the walk is at.
    fn missing(&self, name: Vec<u8>) -> Missing {
        Missing {
            dir: self.at.clone(),
            open: self.open.clone(),
            name,
            slash: self.slash,
        }
    }

    /// The directory that the walk is at, as an object.
    fn directory_node(&mut self) -> Result<Node, Errno> {
        if let Some(inode) = self.at.tmp {
            return Ok(Node::Tmp(inode));
        }
        match self.cx.host.policy.classify(&self.at.path) {
            Place::Readable | Place::Writable => {
                let (fd, attr) = self.cx.host.roots.locate(&self.at.path)?;
                if attr.is_dir() {
                    Ok(Node::Host(Handle::Location(fd), attr))
                } else {
                    Err(Errno::ENOTDIR)
                }
            }
            Place::Tmp => Ok(Node::Tmp(self.cx.kernel.tmpfs.at(&self.at.path)?)),
            Place::Overlay => Ok(Node::Tmp(overlay::directory(self.cx, &self.at.path)?)),
            _ => Ok(Node::Synth(Synth::Dir)),
        }
    }

    /// Search permission on the directory the walk is at.
    fn may_search(&self) -> Result<(), Errno> {
        let Some(inode) = self.at.tmp else {
            return Ok(());
        };
        match privilege::permits(self.cx, inode, MAY_EXEC)? {
            true => Ok(()),
            false => Err(Errno::EACCES),
        }
    }

    fn up(&mut self) -> Result<(), Errno> {
        if self.at.path == self.base.path && self.at.tmp == self.base.tmp {
            if self.request.resolve.contains(Resolve::BENEATH) {
                return Err(Errno::EXDEV);
            }
            if self.request.resolve.contains(Resolve::IN_ROOT) {
                return Ok(());
            }
        }
        self.may_search()?;
        let path = parent(&self.at.path).to_vec();
        let tmpfs = &self.cx.kernel.tmpfs;
        let tmp = match self.at.tmp {
            Some(inode) if !tmpfs.is_root(inode) => {
                let above = tmpfs.get(inode)?.dir()?.parent;
                if above == inode {
                    return Err(Errno::ENOENT);
                }
                Some(above)
            }
            _ => self.inode_at(&path)?,
        };
        self.enter(At {
            path: path.into(),
            tmp,
        })
    }

    /// Looks a component up, or a whole run of components that lie in a readable tree; says at which
    /// path it arrived.
    fn step(&mut self, name: &[u8]) -> Result<(Vec<u8>, Step), Errno> {
        if let Some(arrived) = self.host_run(name)? {
            return Ok(arrived);
        }
        if name.len() > MAX_NAME {
            return Err(Errno::ENAMETOOLONG);
        }
        let path = join(&self.at.path, name);
        if path.len() > CANONICAL_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let step = match self.cx.host.policy.classify(&path) {
            Place::Readable | Place::Writable => self.host_step(&path)?,
            Place::Overlay => self.overlay_step(name, &path)?,
            Place::Leading => match self.cx.host.roots.locate(&path) {
                Err(Errno::ENOENT) if self.cx.host.policy.makes(&path) => ours(&path),
                Err(Errno::ENOENT) => Step::Absent,
                Err(error) => return Err(error),
                Ok((fd, attr)) if attr.is_symlink() => host::host_link(fd, attr)?,
                Ok((_, attr)) if attr.is_dir() => ours(&path),
                Ok(_) => return Err(Errno::ENOTDIR),
            },
            Place::Tmp => {
                let step = self.tmp_step(name, &path)?;
                if matches!(step, Step::Absent) {
                    self.miss(&path);
                }
                step
            }
            Place::Proc | Place::Dev | Place::Sys | Place::Made => {
                match synth::lookup(self.cx, &path) {
                    None => Step::Absent,
                    Some(Synth::Dir) => ours(&path),
                    Some(Synth::Link(target)) => Step::Link(target, None),
                    Some(Synth::FdLink(file)) => Step::Magic(file),
                    Some(other) => Step::Object(Node::Synth(other)),
                }
            }
            Place::Outside => self.outside(&path)?,
        };
        Ok((path, step))
    }

    fn tmp_step(&mut self, name: &[u8], path: &[u8]) -> Result<Step, Errno> {
        let tmpfs = &self.cx.kernel.tmpfs;
        let found = match self.at.tmp {
            _ if tmpfs.root_at(path).is_some() => tmpfs.root_at(path).ok_or(Errno::ENOENT),
            Some(dir) => tmpfs.lookup(dir, name),
            // From outside: /tmp itself from `/`, or a start given by path.
            None => tmpfs.at(path),
        };
        let inode = match found {
            Err(Errno::ENOENT) => return Ok(Step::Absent),
            found => found?,
        };
        self.inode_step(inode, path)
    }

    /// Looks `name` up in a tree of the host that is changed in memory.
    fn overlay_step(&mut self, name: &[u8], path: &[u8]) -> Result<Step, Errno> {
        if let Some(root) = self.cx.kernel.tmpfs.root_at(path) {
            return self.inode_step(root, path);
        }
        let dir = match self.at.tmp {
            Some(dir) => dir,
            None => overlay::directory(self.cx, parent(path))?,
        };
        match overlay::look(self.cx, dir, name)? {
            Look::Inode(inode) => self.inode_step(inode, path),
            Look::Host(handle, attr) if attr.is_symlink() => match handle.read_link(name) {
                Ok(target) => Ok(Step::Link(target, Some(Node::Host(handle, attr)))),
                Err(Errno::ENOENT | Errno::EINVAL) => Ok(Step::Absent),
                Err(error) => Err(error),
            },
            Look::Host(handle, attr) => Ok(Step::Object(Node::Host(handle, attr))),
            Look::Absent => Ok(Step::Absent),
        }
    }

    fn inode_step(&self, inode: InodeId, path: &[u8]) -> Result<Step, Errno> {
        Ok(match &self.cx.kernel.tmpfs.get(inode)?.body {
            super::tmpfs::Body::Dir(_) => {
                let at = At {
                    path: Arc::from(path),
                    tmp: Some(inode),
                };
                Step::Directory(at, Some(Node::Tmp(inode)))
            }
            super::tmpfs::Body::Symlink(target) => Step::Link(target.to_vec(), None),
            super::tmpfs::Body::File(_)
            | super::tmpfs::Body::Fifo
            | super::tmpfs::Body::Socket
            | super::tmpfs::Body::Special(_) => Step::Object(Node::Tmp(inode)),
        })
    }

    /// All that was asked for by way of `path`.
    fn wanted(&self, path: &[u8]) -> Vec<u8> {
        let mut wanted = path.to_vec();
        for name in self.pending.iter().rev() {
            wanted.push(b'/');
            wanted.extend_from_slice(name);
        }
        wanted
    }

    /// Notes a name that is not in memory: the host may have it, in a directory that this one stands for.
    fn miss(&mut self, path: &[u8]) {
        let remedy = match self.request.intent {
            Intent::Write => return,
            Intent::Read if self.request.is_for_socket() => Remedy::HostSocket,
            Intent::Read => Remedy::HiddenTree,
        };
        let what = super::printable(&self.wanted(path));
        let what = format!("{} {what}", self.request.call);
        self.cx.host.report.miss(what, remedy);
    }

    /// A name outside the visible trees: absent if the host has none, else a denial.
    fn outside(&mut self, path: &[u8]) -> Result<Step, Errno> {
        let wanted = self.wanted(path);
        if !self.cx.host.roots.exists(path) || self.cx.host.roots.is_absent_setting(path, &wanted) {
            return Ok(Step::Absent);
        }
        let (errno, remedy) = match self.request.intent {
            // As if it were not there: a program goes on without a setting that it cannot see.
            Intent::Read if self.request.is_for_socket() => (Errno::ENOENT, Remedy::HostSocket),
            Intent::Read => (Errno::ENOENT, Remedy::HiddenTree),
            Intent::Write => (Errno::EROFS, Remedy::ReadOnlyTree),
        };
        let what = if self.links > 0 {
            self.request.path
        } else {
            &wanted
        };
        self.cx.host.report.deny(
            format!("{} {}", self.request.call, super::printable(what)),
            errno,
            remedy,
        );
        Err(errno)
    }

    /// Follows a symbolic link at `path`.
    fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Errno> {
        self.links = self.links.saturating_add(1);
        self.stepwise = false;
        if self.links > LINKS_MAX || self.request.resolve.contains(Resolve::NO_SYMLINKS) {
            return Err(Errno::ELOOP);
        }
        if target.is_empty() {
            return Err(Errno::ENOENT);
        }
        let dir = parent(path);
        if *dir != *self.at.path {
            let tmp = self.inode_at(dir)?;
            self.go(At {
                path: Arc::from(dir),
                tmp,
            });
        }
        self.push(target)
    }

    /// Follows /proc/self/fd/N: to a directory, the walk goes on from there; anything else is the
    /// end of it.
    fn magic(&mut self, file: FileId) -> Result<Option<Found>, Errno> {
        self.links = self.links.saturating_add(1);
        self.stepwise = false;
        let refused = Resolve::NO_MAGICLINKS | Resolve::NO_SYMLINKS;
        if self.links > LINKS_MAX || self.request.resolve.intersects(refused) {
            return Err(Errno::ELOOP);
        }
        if self
            .request
            .resolve
            .intersects(Resolve::BENEATH | Resolve::IN_ROOT)
        {
            return Err(Errno::EXDEV);
        }
        let open = self
            .cx
            .kernel
            .files
            .get(&file)
            .ok_or(Errno::ENOENT)?
            .clone();
        if let Some(dir) = super::file::directory(self.cx, &open) {
            let at = dir.at(&self.cx.kernel.tmpfs);
            self.enter(at)?;
            return Ok(None);
        }
        if !self.pending.is_empty() || self.slash {
            return Err(Errno::ENOTDIR);
        }
        Ok(Some(Found {
            path: open.path.to_vec(),
            node: Node::Open(file),
        }))
    }

    /// The inode of the directory at canonical `path`, where directories are inodes.
    fn inode_at(&mut self, path: &[u8]) -> Result<Option<InodeId>, Errno> {
        match self.cx.host.policy.classify(path) {
            Place::Tmp => self.cx.kernel.tmpfs.at(path).map(Some),
            Place::Overlay => overlay::directory(self.cx, path).map(Some),
            Place::Readable
            | Place::Writable
            | Place::Leading
            | Place::Proc
            | Place::Dev
            | Place::Sys
            | Place::Made
            | Place::Outside => Ok(None),
        }
    }

    /// A symbolic link of ours that is itself the answer.
    fn unfollowed(&mut self, path: &[u8], target: Vec<u8>) -> Result<Node, Errno> {
        match self.cx.host.policy.classify(path) {
            Place::Tmp | Place::Overlay => {
                let dir = self.at.tmp.ok_or(Errno::ENOENT)?;
                let name = file_name(path);
                Ok(Node::Tmp(self.cx.kernel.tmpfs.lookup(dir, name)?))
            }
            _ => Ok(Node::Synth(Synth::Link(target))),
        }
    }
}

/// A directory of our own.
fn ours(path: &[u8]) -> Step {
    let at = At {
        path: Arc::from(path),
        tmp: None,
    };
    Step::Directory(at, None)
}

/// True for a directory that nobody goes into.
fn is_closed(node: &Node) -> bool {
    matches!(node, Node::Synth(Synth::Closed))
}

/// The directory that `dirfd` names, for relative paths (openat(2)).
///
/// # Errors
/// `EBADF`, `ENOTDIR`, `ENOENT` for an empty path.
pub fn start(cx: &mut Cx<'_>, dirfd: i32, path: &[u8]) -> Result<Start, Errno> {
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    if dirfd == AT_FDCWD || path.first() == Some(&b'/') {
        return Ok(cx.fs()?.cwd.clone().into());
    }
    let (_, file) = crate::fd::get(cx, dirfd)?;
    let dir = super::file::directory(cx, &file).ok_or(Errno::ENOTDIR)?;
    let open = match super::file::host(&file.kind) {
        Some(host) => Some(cx.host.fd(host)?),
        None => None,
    };
    Ok(Start { dir, open })
}
