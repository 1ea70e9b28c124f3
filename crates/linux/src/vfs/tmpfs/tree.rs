//! Directories: names, links, renames.

use std::sync::Arc;

use imbl::OrdMap;
use kvmlet_abi::Errno;
use kvmlet_hostfs::attr::FileTime;
use kvmlet_mem::GuestMemory;
use kvmlet_policy::beneath;

use super::lower::LowerDir;
use super::{DirData, ENTRY_COST_BYTES, InodeId, NewAttr, NewBody, Pinned, TmpFs};

pub use kvmlet_abi::linux::limits::NAME_MAX as MAX_NAME;

/// Longest path of a directory that is still composed, in bytes.
const MAX_DIR_PATH: usize = 64 << 10;
/// Hard links of one inode at most.
const LINK_MAX: u32 = 65_000;

/// The way that renaming treats the target (rename(2)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exchange {
    /// Replaces it.
    Replace,
    /// RENAME_EXCHANGE: swaps the two.
    Swap,
}

impl DirData {
    pub(super) fn new(parent: InodeId) -> Self {
        Self {
            entries: OrdMap::new(),
            order: OrdMap::new(),
            next_cursor: 3,
            parent,
            name: Arc::from([]),
            lower: None,
        }
    }

    /// The inode called `name`.
    #[must_use]
    pub fn lookup(&self, name: &[u8]) -> Option<InodeId> {
        self.entries.get(name).map(|(inode, _)| *inode)
    }

    /// True if it has no entries, and shows no name of the host's as last listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.lower.as_ref().is_none_or(LowerDir::lists_nothing)
    }

    /// The entries whose cursor is at least `cursor`: (cursor, name, inode), in order. Cursors 1 and
    /// 2 are for `.` and `..`, which are not stored.
    pub fn entries_from(&self, cursor: u64) -> impl Iterator<Item = (u64, &Arc<[u8]>, InodeId)> {
        self.order
            .range(cursor..)
            .filter_map(|(at, name)| Some((*at, name, self.lookup(name)?)))
    }

    pub(super) fn insert(&mut self, name: &[u8], inode: InodeId) {
        let name: Arc<[u8]> = Arc::from(name);
        // What the host's name had becomes the entry's: a reader meets it once.
        let listed = self.lower.as_mut().and_then(|lower| lower.unlist(&name));
        let cursor = listed.unwrap_or_else(|| self.new_cursor());
        self.order.insert(cursor, Arc::clone(&name));
        self.entries.insert(name, (inode, cursor));
    }

    pub(super) fn new_cursor(&mut self) -> u64 {
        let cursor = self.next_cursor;
        self.next_cursor = self.next_cursor.saturating_add(1);
        cursor
    }

    fn remove(&mut self, name: &[u8]) {
        if let Some((_, cursor)) = self.entries.remove(name) {
            self.order.remove(&cursor);
        }
    }

    fn replace(&mut self, name: &[u8], inode: InodeId) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.0 = inode;
        }
    }
}

impl TmpFs {
    /// The inode called `name` in directory `dir`.
    ///
    /// # Errors
    /// `ENOTDIR`, `ENOENT`, `ENAMETOOLONG`.
    pub fn lookup(&self, dir: InodeId, name: &[u8]) -> Result<InodeId, Errno> {
        if name.len() > MAX_NAME {
            return Err(Errno::ENAMETOOLONG);
        }
        self.get(dir)?.dir()?.lookup(name).ok_or(Errno::ENOENT)
    }

    /// The inode at a canonical path beneath /tmp, /dev/shm or /work.
    ///
    /// # Errors
    /// As [`TmpFs::lookup`].
    pub fn at(&self, path: &[u8]) -> Result<InodeId, Errno> {
        let holding = self.roots.iter().filter(|(_, at)| beneath(at, path));
        let innermost = holding.max_by_key(|(_, at)| at.len());
        let (root, rest) = innermost.map_or((Self::ROOT, b"".as_slice()), |(root, at)| {
            (*root, path.get(at.len()..).unwrap_or_default())
        });
        let mut names = rest
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty());
        names.try_fold(root, |dir, name| self.lookup(dir, name))
    }

    /// The canonical path of a directory.
    ///
    /// # Errors
    /// `ENOENT` if it has been removed, `ENAMETOOLONG` beyond 64 KiB.
    pub fn path_of(&self, dir: InodeId) -> Result<Vec<u8>, Errno> {
        let mut names: Vec<Arc<[u8]>> = Vec::new();
        let mut len = 0usize;
        let mut at = dir;
        let mount = loop {
            if let Some(mount) = self.roots.get(&at) {
                break mount;
            }
            let data = self.get(at)?.dir()?;
            if data.parent == at {
                return Err(Errno::ENOENT);
            }
            len = len.saturating_add(data.name.len()).saturating_add(1);
            if len > MAX_DIR_PATH {
                return Err(Errno::ENAMETOOLONG);
            }
            names.push(Arc::clone(&data.name));
            at = data.parent;
        };
        let mut path = Vec::with_capacity(len.saturating_add(mount.len()));
        if names.is_empty() || **mount != *b"/" {
            path.extend_from_slice(mount);
        }
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        Ok(path)
    }

    /// Creates an inode called `name` in `dir`.
    ///
    /// # Errors
    /// `EEXIST`, `ENOENT` in a removed directory, `ENOSPC`, `ENAMETOOLONG`, `ENOTDIR`.
    pub fn create(
        &mut self,
        memory: &mut GuestMemory,
        dir: InodeId,
        name: &[u8],
        body: &NewBody,
        attr: NewAttr,
    ) -> Result<InodeId, Errno> {
        self.check_new_name(dir, name)?;
        memory.charge(ENTRY_COST_BYTES).map_err(|_| Errno::ENOSPC)?;
        let id = match self.insert(memory, body, attr) {
            Ok(id) => id,
            Err(error) => {
                memory.uncharge(ENTRY_COST_BYTES);
                return Err(error);
            }
        };
        self.place(id, dir)?;
        self.attach(dir, name, id, attr.now)?;
        Ok(id)
    }

    /// Marks a directory as leading to a mounted host tree.
    ///
    /// # Errors
    /// As [`TmpFs::get`].
    pub fn pin(&mut self, dir: InodeId) -> Result<(), Errno> {
        self.get_mut(dir)?.pinned = Pinned::Yes;
        Ok(())
    }

    fn check_new_name(&self, dir: InodeId, name: &[u8]) -> Result<(), Errno> {
        match self.lookup(dir, name) {
            Ok(_) => Err(Errno::EEXIST),
            Err(Errno::ENOENT) if self.get(dir)?.nlink == 0 => Err(Errno::ENOENT),
            Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Adds the entry and counts the link. For directories: sets its parent, counts its `..`.
    fn attach(
        &mut self,
        dir: InodeId,
        name: &[u8],
        id: InodeId,
        now: FileTime,
    ) -> Result<(), Errno> {
        let inode = self.get_mut(id)?;
        inode.nlink = inode.nlink.saturating_add(1);
        inode.ctime = now;
        let is_dir = inode.dir().is_ok();
        if is_dir {
            // The entry and its own `.`.
            inode.nlink = 2;
            let data = inode.dir_mut()?;
            data.parent = dir;
            data.name = Arc::from(name);
        }
        let parent = self.get_mut(dir)?;
        parent.dir_mut()?.insert(name, id);
        if is_dir {
            parent.nlink = parent.nlink.saturating_add(1);
        }
        parent.touch(now);
        Ok(())
    }

    /// Takes the entry away and uncounts the link; the inode stays.
    fn detach(
        &mut self,
        dir: InodeId,
        name: &[u8],
        id: InodeId,
        now: FileTime,
    ) -> Result<(), Errno> {
        let parent = self.get_mut(dir)?;
        parent.dir_mut()?.remove(name);
        parent.touch(now);
        let inode = self.get_mut(id)?;
        inode.ctime = now;
        if inode.dir().is_ok() {
            inode.nlink = 0;
            inode.dir_mut()?.parent = id;
            let parent = self.get_mut(dir)?;
            // Not every file system of the host counts directories in directories.
            parent.nlink = parent.nlink.saturating_sub(1).max(2);
        } else {
            inode.nlink = inode.nlink.saturating_sub(1);
        }
        Ok(())
    }

    /// Gives an inode another name.
    ///
    /// # Errors
    /// `EEXIST`, `EPERM` for a directory, `ENOENT`, `EMLINK`, `ENOSPC`, `ENAMETOOLONG`.
    pub fn link(
        &mut self,
        memory: &mut GuestMemory,
        dir: InodeId,
        name: &[u8],
        id: InodeId,
        now: FileTime,
    ) -> Result<(), Errno> {
        self.check_new_name(dir, name)?;
        let inode = self.get(id)?;
        if inode.nlink == 0 && !inode.is_linkable {
            return Err(Errno::ENOENT);
        }
        if inode.dir().is_ok() {
            return Err(Errno::EPERM);
        }
        if inode.nlink >= LINK_MAX {
            return Err(Errno::EMLINK);
        }
        memory.charge(ENTRY_COST_BYTES).map_err(|_| Errno::ENOSPC)?;
        self.attach(dir, name, id, now)
    }

    /// Removes a name that is not a directory's.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`.
    pub fn unlink(
        &mut self,
        memory: &mut GuestMemory,
        dir: InodeId,
        name: &[u8],
        now: FileTime,
    ) -> Result<(), Errno> {
        let id = self.lookup(dir, name)?;
        if self.get(id)?.dir().is_ok() {
            return Err(Errno::EISDIR);
        }
        self.remove_entry(memory, dir, name, id, now)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENOTEMPTY`, `EBUSY` for one that leads to a mounted tree.
    pub fn rmdir(
        &mut self,
        memory: &mut GuestMemory,
        dir: InodeId,
        name: &[u8],
        now: FileTime,
    ) -> Result<(), Errno> {
        let id = self.lookup(dir, name)?;
        let inode = self.get(id)?;
        let data = inode.dir()?;
        if inode.pinned == Pinned::Yes {
            return Err(Errno::EBUSY);
        }
        if !data.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.remove_entry(memory, dir, name, id, now)
    }

    fn remove_entry(
        &mut self,
        memory: &mut GuestMemory,
        dir: InodeId,
        name: &[u8],
        id: InodeId,
        now: FileTime,
    ) -> Result<(), Errno> {
        self.detach(dir, name, id, now)?;
        memory.uncharge(ENTRY_COST_BYTES);
        self.drop_if_unused(memory, id);
        Ok(())
    }

    /// Renames `from` = (directory, name) to `to`. Both directories exist.
    ///
    /// # Errors
    /// As rename(2): `ENOENT`, `EISDIR`, `ENOTDIR`, `ENOTEMPTY`, `EINVAL` for a directory moved
    /// into itself, `EBUSY` for one that leads to a mounted tree, `ENOSPC`.
    pub fn rename(
        &mut self,
        memory: &mut GuestMemory,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        exchange: Exchange,
        now: FileTime,
    ) -> Result<(), Errno> {
        let source = self.lookup(from.0, from.1)?;
        let target = match self.lookup(to.0, to.1) {
            Ok(id) => Some(id),
            Err(Errno::ENOENT) if exchange == Exchange::Replace => None,
            Err(error) => return Err(error),
        };
        if self.get(to.0)?.nlink == 0 {
            return Err(Errno::ENOENT);
        }
        if target == Some(source) {
            return Ok(());
        }
        self.check_move(source, to.0)?;
        if exchange == Exchange::Swap {
            let target = target.ok_or(Errno::ENOENT)?;
            self.check_move(target, from.0)?;
            return self.swap(from, source, to, target, now);
        }
        let source_is_dir = self.get(source)?.dir().is_ok();
        if let Some(target) = target {
            self.check_replace(source_is_dir, target)?;
            self.remove_entry(memory, to.0, to.1, target, now)?;
        }
        // One entry goes, one comes: the charge and the links of the source stay as they are.
        let links = self.get(source)?.nlink;
        self.detach(from.0, from.1, source, now)?;
        self.attach(to.0, to.1, source, now)?;
        self.get_mut(source)?.nlink = links;
        Ok(())
    }

    /// Refuses to move what is pinned, and a directory into itself.
    fn check_move(&self, moved: InodeId, into: InodeId) -> Result<(), Errno> {
        let inode = self.get(moved)?;
        if inode.pinned == Pinned::Yes {
            return Err(Errno::EBUSY);
        }
        if inode.dir().is_err() {
            return Ok(());
        }
        if self.is_within(moved, into)? {
            Err(Errno::EINVAL)
        } else {
            Ok(())
        }
    }

    /// True if directory `dir` is `tree` or lies beneath it.
    ///
    /// # Errors
    /// `ENOTDIR` if `dir` is none.
    pub fn is_within(&self, tree: InodeId, dir: InodeId) -> Result<bool, Errno> {
        let mut at = dir;
        loop {
            if at == tree {
                return Ok(true);
            }
            let parent = self.get(at)?.dir()?.parent;
            if parent == at {
                return Ok(false);
            }
            at = parent;
        }
    }

    fn check_replace(&self, source_is_dir: bool, target: InodeId) -> Result<(), Errno> {
        let inode = self.get(target)?;
        match (source_is_dir, inode.dir()) {
            (true, Err(_)) => Err(Errno::ENOTDIR),
            (false, Ok(_)) => Err(Errno::EISDIR),
            (true, Ok(_)) if inode.pinned == Pinned::Yes => Err(Errno::EBUSY),
            (true, Ok(dir)) if !dir.is_empty() => Err(Errno::ENOTEMPTY),
            _ => Ok(()),
        }
    }

    fn swap(
        &mut self,
        from: (InodeId, &[u8]),
        source: InodeId,
        to: (InodeId, &[u8]),
        target: InodeId,
        now: FileTime,
    ) -> Result<(), Errno> {
        let places = [(from, source, target), (to, target, source)];
        for ((dir, name), leaves, comes) in places {
            let leaves_dir = self.get(leaves)?.dir().is_ok();
            let comer = self.get_mut(comes)?;
            comer.ctime = now;
            let comes_dir = comer.dir().is_ok();
            if comes_dir {
                let data = comer.dir_mut()?;
                data.parent = dir;
                data.name = Arc::from(name);
            }
            let parent = self.get_mut(dir)?;
            parent.dir_mut()?.replace(name, comes);
            parent.touch(now);
            if comes_dir && !leaves_dir {
                parent.nlink = parent.nlink.saturating_add(1);
            } else if leaves_dir && !comes_dir {
                parent.nlink = parent.nlink.saturating_sub(1).max(2);
            }
        }
        Ok(())
    }
}

impl super::Inode {
    /// Contents changed.
    pub(super) fn touch(&mut self, now: FileTime) {
        self.mtime = now;
        self.ctime = now;
    }
}
