//! The changes that a program has made in overlays, with their contents: what is needed to make them on the host.
//!
//! A set is taken when the program has ended. It keeps the changed files' pages and gives all other memory back. Bytes
//! that a file still shares with the host's are read from there, as long as that file is the one that was seen.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use kvmlet_abi::{Errno, PAGE_SIZE};
use kvmlet_hostfs::Roots;
use kvmlet_hostfs::attr::{Attr, FileTime, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use kvmlet_mem::GuestMemory;
use kvmlet_policy::join;

use super::attributes::{self, Attributes};
use super::changes::{Difference, Left, difference};
use super::tmpfs::lower::Seen;
use super::tmpfs::{Body, FileData, InodeId, TmpFs};
use crate::host::Host;

/// Work for a set at most, in comparisons of a page or so: some seconds.
const WORK_MAX: u64 = 4_000_000;
/// Changed names at most.
const ENTRIES_MAX: usize = 200_000;
/// Bytes of their paths at most.
const NAMES_MAX_BYTES: usize = 64 << 20;

/// The thing that a changed name has become.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Become {
    /// Nothing: it is gone.
    Removed,
    /// A regular file of a size in bytes.
    File(u64),
    /// A symbolic link with this target.
    Symlink(Vec<u8>),
    /// A directory.
    Directory,
    /// A named pipe, a socket or a device.
    Special,
    /// The same with other permission bits.
    Mode,
}

/// A name that has changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetEntry {
    /// Canonical path.
    pub path: Vec<u8>,
    /// The thing that it has become.
    pub made: Become,
    /// Permission bits.
    pub mode: u32,
    /// Last modification.
    pub mtime: FileTime,
    /// Last status change: the program's own order of its changes.
    pub ctime: FileTime,
    /// The host's object that had the name.
    pub seen: Option<Seen>,
    /// True if that was looked at after the program's end only: a part of a directory that is gone.
    pub is_late: bool,
    /// The place in the set of another name of the same file.
    pub same_as: Option<usize>,
    source: Source,
}

/// The place where a file's bytes are.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Source {
    None,
    Inode(InodeId),
    /// A file of the host's that is unchanged, in a directory that was moved.
    Host(Arc<[u8]>, Seen),
}

impl SetEntry {
    fn removed(seen: &Seen) -> Self {
        Self {
            path: Vec::new(),
            made: Become::Removed,
            mode: seen.mode,
            mtime: seen.mtime,
            ctime: seen.ctime,
            seen: Some(*seen),
            is_late: false,
            same_as: None,
            source: Source::None,
        }
    }

    fn made(made: Become, attr: &Attr, source: Source) -> Self {
        Self {
            path: Vec::new(),
            made,
            mode: attr.mode,
            mtime: attr.mtime,
            ctime: attr.ctime,
            seen: None,
            is_late: false,
            same_as: None,
            source,
        }
    }
}

/// The changes of a program that has ended.
#[derive(Debug)]
pub struct ChangeSet {
    /// They, sorted by path.
    pub entries: Vec<SetEntry>,
    /// True if there are more, or a part could not be looked at.
    pub is_cut: bool,
    tmpfs: TmpFs,
    memory: GuestMemory,
    roots: Arc<Roots>,
    /// The host's file that was read last, for the entry at this place.
    open: Option<(usize, OwnedFd)>,
}

impl ChangeSet {
    /// The changes in all overlays.
    #[must_use]
    pub fn take(tmpfs: TmpFs, mut memory: GuestMemory, host: Host) -> Self {
        // What the search takes itself, the program's own memory makes room for.
        memory.keep_only(&tmpfs.frames());
        let mut search = Search {
            tmpfs: &tmpfs,
            memory: &memory,
            host: &host,
            found: BTreeMap::new(),
            left: Left {
                work: WORK_MAX,
                bytes: NAMES_MAX_BYTES,
            },
            is_cut: false,
        };
        for path in host.policy.overlays() {
            search.tree(path);
        }
        let Search { found, is_cut, .. } = search;
        let mut entries: Vec<SetEntry> = Vec::with_capacity(found.len());
        let mut first_names = HashMap::new();
        let mut frames = BTreeSet::new();
        for (path, entry) in found {
            let place = entries.len();
            let mut entry = SetEntry { path, ..entry };
            if let (Source::Inode(inode), Become::File(_)) = (&entry.source, &entry.made) {
                let first = *first_names.entry(*inode).or_insert(place);
                entry.same_as = (first != place).then_some(first);
                let data = tmpfs.get(*inode).and_then(|inode| inode.file());
                frames.extend(data.iter().flat_map(|data| data.pages.values().copied()));
            }
            entries.push(entry);
        }
        memory.keep_only(&frames);
        Self {
            entries,
            is_cut,
            tmpfs,
            memory,
            roots: host.roots,
            open: None,
        }
    }

    /// Reads a file's bytes at an offset; short only at its end.
    ///
    /// # Errors
    /// `EINVAL` for what is no file; `ESTALE` if bytes are the host's and that file has changed meanwhile; the host's.
    pub fn read(&mut self, place: usize, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        let entry = self.entries.get(place).ok_or(Errno::EINVAL)?;
        match &entry.source {
            Source::None => Err(Errno::EINVAL),
            Source::Host(path, seen) => {
                let left = usize::try_from(seen.size.saturating_sub(offset)).unwrap_or(usize::MAX);
                let len = into.len().min(left);
                let into = into.get_mut(..len).unwrap_or_default();
                let (path, seen) = (Arc::clone(path), *seen);
                self.read_lower((place, &path, &seen), offset, into)?;
                Ok(len)
            }
            Source::Inode(inode) => {
                let inode = *inode;
                self.read_inode((place, inode), offset, into)
            }
        }
    }

    /// The extended attributes of a file.
    #[must_use]
    pub fn attributes(&self, place: usize) -> Attributes {
        let source = self.entries.get(place).map(|entry| &entry.source);
        let all = match source {
            Some(Source::Inode(inode)) => {
                let inode = self.tmpfs.get(*inode).ok();
                inode.map(|inode| attributes::shown(inode, &self.roots))
            }
            Some(Source::Host(path, seen)) => {
                attributes::of_lower(&self.roots, path, (seen.dev, seen.ino))
            }
            Some(Source::None) | None => None,
        };
        all.unwrap_or_default()
    }

    /// The first place of a file from `offset` on that may have other bytes than zeros: its size if there is none.
    #[must_use]
    pub fn next_data(&self, place: usize, offset: u64) -> u64 {
        let Some(entry) = self.entries.get(place) else {
            return u64::MAX;
        };
        let Source::Inode(inode) = &entry.source else {
            return offset;
        };
        let Ok(data) = self.tmpfs.get(*inode).and_then(|inode| inode.file()) else {
            return u64::MAX;
        };
        let shown = data.lower.as_ref().map_or(0, |lower| lower.shown);
        if offset < shown {
            return offset;
        }
        let next = data.next_own(offset / PAGE_SIZE);
        let next = next.map_or(data.size, |page| page.saturating_mul(PAGE_SIZE));
        next.max(offset).min(data.size.max(offset))
    }

    fn read_inode(
        &mut self,
        (place, inode): (usize, InodeId),
        offset: u64,
        into: &mut [u8],
    ) -> Result<usize, Errno> {
        let data = self.tmpfs.get(inode)?.file()?;
        let left = usize::try_from(data.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = into.len().min(left);
        let into = into.get_mut(..len).unwrap_or_default();
        let lower = data.lower.as_ref();
        let lower = lower.map(|lower| (Arc::clone(&lower.path), lower.shown, lower.seen));
        let mut done = 0usize;
        while done < len {
            let at = offset.saturating_add(done as u64);
            let in_page = at % PAGE_SIZE;
            let count = (len.saturating_sub(done)).min((PAGE_SIZE - in_page) as usize);
            let end = done.saturating_add(count);
            let part = into.get_mut(done..end).unwrap_or_default();
            done = end;
            if self.read_own(inode, at, part)? {
                continue;
            }
            part.fill(0);
            let Some((path, shown, seen)) = &lower else {
                continue;
            };
            let shows = usize::try_from(shown.saturating_sub(at)).unwrap_or(usize::MAX);
            let shown = part.get_mut(..count.min(shows)).unwrap_or_default();
            if !shown.is_empty() {
                self.read_lower((place, path, seen), at, shown)?;
            }
        }
        Ok(len)
    }

    /// Reads bytes of one page, if the file has it for itself: true then.
    fn read_own(&self, inode: InodeId, at: u64, into: &mut [u8]) -> Result<bool, Errno> {
        let data = self.tmpfs.get(inode)?.file()?;
        if let Some(frame) = data.pages.get(&(at / PAGE_SIZE)) {
            let read = self.memory.read(frame.wrapping_add(at % PAGE_SIZE), into);
            return read.map(|()| true).map_err(|_| Errno::EIO);
        }
        Ok(data.spilled.read(at, into)? > 0)
    }

    /// Fills `into` from the file of the host's at `path`, which must be the one that was `seen`.
    fn read_lower(
        &mut self,
        (place, path, seen): (usize, &[u8], &Seen),
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), Errno> {
        let open = self.open.take().filter(|(at, _)| *at == place);
        let fd = match open {
            Some((_, fd)) => fd,
            None => match self.roots.open_file(path) {
                // Another program of the host's has taken it away.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Err(Errno::ESTALE),
                opened => opened?,
            },
        };
        let is_other = |fd: &OwnedFd| -> Result<bool, Errno> {
            let attr = kvmlet_hostfs::attr_of(fd.as_fd())?;
            let same = |seen: &Seen| {
                (
                    seen.dev,
                    seen.ino,
                    seen.mode & S_IFMT,
                    seen.size,
                    seen.mtime,
                )
            };
            Ok(same(&Seen::of(&attr)) != same(seen))
        };
        // Once more afterwards: it may change while it is read.
        if is_other(&fd)? {
            return Err(Errno::ESTALE);
        }
        let count = kvmlet_hostfs::read_at(fd.as_fd(), into, offset)?;
        if count < into.len() || is_other(&fd)? {
            return Err(Errno::ESTALE);
        }
        self.open = Some((place, fd));
        Ok(())
    }
}

/// A search for all changes.
struct Search<'a> {
    tmpfs: &'a TmpFs,
    memory: &'a GuestMemory,
    host: &'a Host,
    found: BTreeMap<Vec<u8>, SetEntry>,
    left: Left,
    is_cut: bool,
}

/// A directory to look at, with its path.
enum Ahead {
    /// An inode that was the host's and is where it was.
    InPlace(InodeId, Vec<u8>),
    /// An inode that was not there.
    New(InodeId, Vec<u8>),
    /// A directory of the host's, at its place, that has moved with one above it.
    Moved(Arc<[u8]>, Vec<u8>),
}

impl Search<'_> {
    fn is_over(&mut self) -> bool {
        self.is_cut |= self.left.is_over() || self.found.len() >= ENTRIES_MAX;
        self.is_cut
    }

    /// Adds an entry. A name that was removed and made again is one entry.
    fn put(&mut self, path: Vec<u8>, mut entry: SetEntry) {
        if self.is_over() {
            return;
        }
        self.left.bytes = self.left.bytes.saturating_sub(path.len());
        self.left.spend(1);
        match self.found.get_mut(&path) {
            Some(old) if old.made == Become::Removed => {
                entry.seen = old.seen;
                entry.is_late = old.is_late;
                *old = entry;
            }
            Some(old) if entry.made == Become::Removed => {
                old.seen = entry.seen;
                old.is_late = entry.is_late;
            }
            Some(_) => {}
            None => {
                self.found.insert(path, entry);
            }
        }
    }

    fn tree(&mut self, path: &[u8]) {
        let Some(root) = self.tmpfs.root_at(path) else {
            return;
        };
        let mut ahead = vec![Ahead::InPlace(root, path.to_vec())];
        while let Some(next) = ahead.pop() {
            if self.is_over() {
                return;
            }
            match next {
                Ahead::InPlace(dir, path) => self.in_place(dir, &path, &mut ahead),
                Ahead::New(dir, path) => self.new_directory(dir, &path, &mut ahead),
                Ahead::Moved(place, path) => self.moved(&place, &path, None, &mut ahead),
            }
        }
    }

    fn in_place(&mut self, dir: InodeId, path: &[u8], ahead: &mut Vec<Ahead>) {
        let tmpfs = self.tmpfs;
        let Ok(names) = tmpfs.get(dir).and_then(|inode| inode.dir()) else {
            return;
        };
        for (name, seen) in names.removed() {
            self.removed(join(path, name), seen);
        }
        for (_, name, inode) in names.entries_from(0) {
            if self.is_over() {
                return;
            }
            let path = join(path, name);
            let seen = names.replaced(name);
            if let Some(seen) = seen
                && tmpfs.is_in_place(inode, &path)
            {
                let attr = tmpfs.attr(inode).unwrap_or_default();
                if attr.mode != seen.mode {
                    let mut entry = SetEntry::made(Become::Mode, &attr, Source::None);
                    entry.seen = Some(*seen);
                    self.put(path.clone(), entry);
                }
                self.left.bytes = self.left.bytes.saturating_sub(path.len());
                ahead.push(Ahead::InPlace(inode, path));
                continue;
            }
            let mut is_same = Difference::Other;
            if let Some(seen) = seen {
                let found = (inode, path.as_slice());
                is_same = if unchanged(tmpfs, inode, seen) {
                    Difference::Mode
                } else {
                    difference(self.tmpfs, self.memory, self.host, found, &mut self.left)
                };
                let mode = tmpfs.get(inode).map_or(0, |inode| inode.mode);
                if is_same == Difference::Mode && mode == seen.mode {
                    is_same = Difference::None;
                }
            }
            match is_same {
                Difference::None => continue,
                Difference::Mode => {
                    let attr = tmpfs.attr(inode).unwrap_or_default();
                    let mut entry = SetEntry::made(Become::Mode, &attr, Source::None);
                    entry.seen = seen.copied();
                    self.put(path, entry);
                    continue;
                }
                Difference::Other => {}
            }
            if let Some(seen) = seen {
                self.removed(path.clone(), seen);
            }
            self.made(inode, path, ahead);
        }
    }

    /// A name whose object of the host's is gone, with all that was in it.
    fn removed(&mut self, path: Vec<u8>, seen: &Seen) {
        let is_dir = |seen: &Seen| seen.mode & S_IFMT == S_IFDIR;
        self.put(path.clone(), SetEntry::removed(seen));
        let mut dirs = vec![path];
        if !is_dir(seen) {
            return;
        }
        while let Some(dir) = dirs.pop() {
            if self.is_over() {
                return;
            }
            for (name, attr) in self.list(&dir) {
                let path = join(&dir, &name);
                let seen = Seen::of(&attr);
                let mut entry = SetEntry::removed(&seen);
                entry.is_late = true;
                self.put(path.clone(), entry);
                if is_dir(&seen) {
                    dirs.push(path);
                }
            }
        }
    }

    /// The names of a directory of the host's as it is now. What cannot be listed makes the set incomplete.
    fn list(&mut self, place: &[u8]) -> Vec<(Vec<u8>, Attr)> {
        let mut names = Vec::new();
        let listed = self.list_into(place, &mut names);
        if !matches!(
            listed,
            Ok(()) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP)
        ) {
            self.is_cut = true;
        }
        names
    }

    fn list_into(&mut self, place: &[u8], names: &mut Vec<(Vec<u8>, Attr)>) -> Result<(), Errno> {
        let (fd, attr) = self.host.roots.locate(place)?;
        if !attr.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        let mut part = Arc::new(kvmlet_hostfs::list(fd.as_fd())?);
        let mut count = 0usize;
        loop {
            let from = count;
            for (_, _, name) in part.from(from) {
                count = count.saturating_add(1);
                self.left.spend(1);
                if self.is_over() || names.len() >= ENTRIES_MAX {
                    self.is_cut = true;
                    return Ok(());
                }
                match kvmlet_hostfs::attr_in(fd.as_fd(), name) {
                    Err(Errno::ENOENT) => {}
                    attr => names.push((name.to_vec(), attr?)),
                }
            }
            let next = part.reach(fd.as_fd(), count)?;
            if count == from || Arc::ptr_eq(&next, &part) {
                return Ok(());
            }
            part = next;
        }
    }

    /// A name that the host does not have so.
    fn made(&mut self, inode: InodeId, path: Vec<u8>, ahead: &mut Vec<Ahead>) {
        let (Ok(attr), Ok(body)) = (
            self.tmpfs.attr(inode),
            self.tmpfs.get(inode).map(|inode| &inode.body),
        ) else {
            self.is_cut = true;
            return;
        };
        let made = match body {
            Body::File(data) => Become::File(data.size),
            Body::Dir(_) => {
                ahead.push(Ahead::New(inode, path.clone()));
                Become::Directory
            }
            Body::Symlink(target) => Become::Symlink(target.to_vec()),
            Body::Fifo | Body::Socket | Body::Special(_) => Become::Special,
        };
        self.put(path, SetEntry::made(made, &attr, Source::Inode(inode)));
    }

    fn new_directory(&mut self, dir: InodeId, path: &[u8], ahead: &mut Vec<Ahead>) {
        let tmpfs = self.tmpfs;
        let Ok(names) = tmpfs.get(dir).and_then(|inode| inode.dir()) else {
            return;
        };
        for (_, name, inode) in names.entries_from(0) {
            if self.is_over() {
                return;
            }
            self.made(inode, join(path, name), ahead);
        }
        if let Some(lower) = &names.lower {
            self.moved(&lower.path, path, Some(dir), ahead);
        }
    }

    /// The names that a directory which has moved to `path` shows of the host's directory at `place`.
    fn moved(&mut self, place: &[u8], path: &[u8], dir: Option<InodeId>, ahead: &mut Vec<Ahead>) {
        let inode = dir.and_then(|dir| self.tmpfs.get(dir).ok());
        let names = inode.and_then(|inode| inode.dir().ok());
        for (name, attr) in self.list(place) {
            if self.is_over() {
                return;
            }
            if names.is_some_and(|names| names.replaces(&name) || names.lookup(&name).is_some()) {
                continue;
            }
            let (place, path) = (join(place, &name), join(path, &name));
            let seen = Seen::of(&attr);
            let (made, source) = match attr.kind() {
                _ if attr.is_dir() => {
                    ahead.push(Ahead::Moved(place.into(), path.clone()));
                    (Become::Directory, Source::None)
                }
                S_IFREG => (Become::File(attr.size), Source::Host(place.into(), seen)),
                S_IFLNK => {
                    let target = self.host.roots.locate(&place);
                    let target = target.and_then(|(fd, _)| kvmlet_hostfs::read_link(fd.as_fd()));
                    let Ok(target) = target else {
                        self.is_cut = true;
                        return;
                    };
                    (Become::Symlink(target), Source::None)
                }
                _ => (Become::Special, Source::None),
            };
            self.put(path, SetEntry::made(made, &attr, source));
        }
    }
}

/// True if an inode is the host's object that was `seen`, with the contents that it had then, whatever the host has now.
fn unchanged(tmpfs: &TmpFs, inode: InodeId, seen: &Seen) -> bool {
    let Ok(inode) = tmpfs.get(inode) else {
        return false;
    };
    let kind = |mode: u32| mode & S_IFMT;
    if (inode.dev, inode.ino, kind(inode.mode)) != (seen.dev, seen.ino, kind(seen.mode)) {
        return false;
    }
    if inode.attributes.is_some() {
        return false;
    }
    match &inode.body {
        Body::File(FileData {
            size,
            pages,
            lower: Some(lower),
            ..
        }) => pages.is_empty() && lower.shown == *size && *size == seen.size,
        Body::File(_) | Body::Dir(_) => false,
        Body::Symlink(_) | Body::Fifo | Body::Socket | Body::Special(_) => true,
    }
}
