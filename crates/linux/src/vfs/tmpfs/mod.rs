//! The memory file system: a value. File contents are guest frames, held by reference count, so that
//! read, write and mmap see one thing.
//!
//! Permissions are checked by the callers ([`super::change`]); this module keeps the tree
//! consistent and gives tmpfs's errors.

pub mod data;
pub mod lower;
mod room;
mod spilled;
mod tree;

pub use kvmlet_abi::linux::fcntl::{
    F_SEAL_FUTURE_WRITE as SEAL_FUTURE_WRITE, F_SEAL_SEAL as SEAL_SEAL, F_SEAL_WRITE as SEAL_WRITE,
};
use std::collections::BTreeSet;
use std::sync::Arc;

pub use data::{KeepSize, Seek, Stale};
use imbl::{OrdMap, OrdSet, Vector};
use kvmlet_abi::{Errno, Gpa, PAGE_SIZE};
use kvmlet_hostfs::attr::{Attr, FileTime, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, S_IFSOCK, makedev};
use kvmlet_mem::GuestMemory;
use kvmlet_policy::{SHM, TMP, WORK};
pub use room::{Disk, NoPage, Store};
pub use tree::{Exchange, MAX_NAME};

use super::attributes::{self, Attributes};
pub use crate::id::InodeId;

/// Device number of the memory file system (an anonymous one, as Linux's tmpfs has).
pub const TMP_DEV: u64 = makedev(0, 0x7f);
/// Host memory charged to the program for an inode: more than one takes.
pub(super) const INODE_COST_BYTES: u64 = 1024;
/// Host memory charged for a directory entry with the longest name.
pub(super) const ENTRY_COST_BYTES: u64 = 512;

/// The trees mounted at /tmp, /dev/shm and, in a box, /work, the changed parts of host trees ([`lower`]), and unnamed
/// files (O_TMPFILE, memfd_create).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TmpFs {
    inodes: OrdMap<InodeId, Inode>,
    next: u64,
    /// The path that each tree is mounted at, by its root.
    roots: OrdMap<InodeId, Arc<[u8]>>,
    /// Inodes of host files that have several names there, by the host's device and inode number.
    linked: OrdMap<(u64, u64), InodeId>,
    /// Inodes of which somebody is to know when they go.
    watched: OrdSet<InodeId>,
    /// Those of them that have gone, until they are taken.
    gone: Vector<InodeId>,
    /// Inodes that are there for the whole run ([`TmpFs::settle`]).
    settled: usize,
    /// The room that files take.
    room: room::Room,
}

/// A file, directory or symbolic link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inode {
    /// The content that it holds.
    pub body: Body,
    /// Device number that it shows.
    pub dev: u64,
    /// Inode number that it shows: the host's for what was there first.
    pub ino: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Directory entries that name it.
    pub nlink: u32,
    /// Last access.
    pub atime: FileTime,
    /// Last modification.
    pub mtime: FileTime,
    /// Last status change.
    pub ctime: FileTime,
    /// Creation.
    pub btime: FileTime,
    /// Open descriptions and working directories.
    pub opens: u32,
    /// Mappings.
    pub maps: u32,
    /// Shared mappings that may be written.
    pub writable_maps: u32,
    /// A mount point or an ancestor of one: neither moved nor removed.
    pub pinned: Pinned,
    /// The place of its pages. What is made in a directory takes the directory's.
    pub store: Store,
    /// True for a file without a name that may be given one (O_TMPFILE without O_EXCL).
    pub is_linkable: bool,
    /// Extended attributes. Without any of its own it shows those of the host's object that it was.
    pub attributes: Option<Attributes>,
}

/// Says if a directory must stay where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pinned {
    /// It may be moved and removed.
    No,
    /// It leads to a mounted host tree.
    Yes,
}

/// The content that an inode holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// A regular file.
    File(FileData),
    /// A directory.
    Dir(DirData),
    /// A symbolic link's target.
    Symlink(Arc<[u8]>),
    /// A named pipe; what is in it while it is open is a [`super::pipe::Pipe`].
    Fifo,
    /// The name of a socket, which knows its inode.
    Socket,
    /// A device or socket of a host tree, which cannot be opened, with its device number.
    Special(u64),
}

/// A regular file's contents.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FileData {
    /// Size in bytes.
    pub size: u64,
    /// Frames by page index; an absent one is a hole.
    pub pages: OrdMap<u64, Gpa>,
    /// Pages that lie on the host's disk.
    pub spilled: spilled::Spilled,
    /// The host's file that pages are read from which are absent.
    pub lower: Option<lower::LowerFile>,
    /// F_SEAL_* in force (fcntl(2)); a file that was not made by memfd_create(MFD_ALLOW_SEALING)
    /// has F_SEAL_SEAL from the start.
    pub seals: u32,
}

/// A directory's entries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirData {
    /// Inode and cursor by name.
    entries: OrdMap<Arc<[u8]>, (InodeId, u64)>,
    /// Names by cursor, in order of creation: getdents64's stable order.
    order: OrdMap<u64, Arc<[u8]>>,
    next_cursor: u64,
    /// The directory it is in; itself for the root and for a removed one.
    pub parent: InodeId,
    /// Its name there.
    pub name: Arc<[u8]>,
    /// The host's directory whose names show where it has no entry.
    pub lower: Option<lower::LowerDir>,
}

/// The kind of a new inode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NewBody {
    /// An empty regular file with these seals.
    File(u32),
    /// An empty directory.
    Dir,
    /// A symbolic link.
    Symlink(Arc<[u8]>),
    /// A named pipe.
    Fifo,
    /// The name of a socket.
    Socket,
}

/// Owner, permissions and time of a new inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewAttr {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Now.
    pub now: FileTime,
}

impl TmpFs {
    /// The directory at /tmp.
    pub const ROOT: InodeId = InodeId(1);
    /// The directory at /dev/shm.
    /// Linux differs: the two are file systems of their own, and names do not move between them.
    pub const SHM: InodeId = InodeId(2);
    /// The directory at /work.
    pub const WORK: InodeId = InodeId(3);

    /// An empty tree, its root owned by root with mode 1777.
    #[must_use]
    pub fn new(now: FileTime) -> Self {
        let attr = NewAttr {
            mode: 0o1777,
            uid: 0,
            gid: 0,
            now,
        };
        let root = |id| {
            let mut root = Inode::new(&NewBody::Dir, attr, id);
            root.nlink = 2;
            root.pinned = Pinned::Yes;
            if id != Self::SHM {
                root.store = Store::Disk;
            }
            (id, root)
        };
        Self {
            inodes: [Self::ROOT, Self::SHM, Self::WORK]
                .into_iter()
                .map(root)
                .collect(),
            next: 4,
            roots: [(Self::ROOT, TMP), (Self::SHM, SHM), (Self::WORK, WORK)]
                .map(|(id, path)| (id, Arc::<[u8]>::from(path)))
                .into_iter()
                .collect(),
            linked: OrdMap::new(),
            watched: OrdSet::new(),
            gone: Vector::new(),
            settled: 0,
            room: room::Room::default(),
        }
    }

    /// All that there is now stays, and is no program's: roots of trees, and directories that lead to them.
    pub fn settle(&mut self) {
        self.settled = self.inodes.len();
    }

    /// Files and directories that programs have made or changed, and directories of the host that they have looked at.
    #[must_use]
    pub fn files(&self) -> u64 {
        self.inodes.len().saturating_sub(self.settled) as u64
    }

    /// From now on [`TmpFs::take_gone`] tells of an inode's end.
    pub fn watch_end(&mut self, id: InodeId) {
        self.watched.insert(id);
    }

    /// Takes a [`TmpFs::watch_end`] back.
    pub fn unwatch_end(&mut self, id: InodeId) {
        self.watched.remove(&id);
    }

    /// True if [`TmpFs::take_gone`] has something to tell.
    #[must_use]
    pub fn has_gone(&self) -> bool {
        !self.gone.is_empty()
    }

    /// A watched inode that has gone. Each is told once.
    pub fn take_gone(&mut self) -> Option<InodeId> {
        self.gone.pop_front()
    }

    /// An inode.
    ///
    /// # Errors
    /// `ENOENT` if it is gone (never while something refers to it).
    pub fn get(&self, id: InodeId) -> Result<&Inode, Errno> {
        self.inodes.get(&id).ok_or(Errno::ENOENT)
    }

    /// An inode, to be changed.
    ///
    /// # Errors
    /// As [`TmpFs::get`].
    pub fn get_mut(&mut self, id: InodeId) -> Result<&mut Inode, Errno> {
        self.inodes.get_mut(&id).ok_or(Errno::ENOENT)
    }

    /// A file without a name; one open reference.
    ///
    /// # Errors
    /// `ENOSPC` when the memory limit is reached.
    pub fn create_unnamed(
        &mut self,
        memory: &mut GuestMemory,
        seals: u32,
        attr: NewAttr,
    ) -> Result<InodeId, Errno> {
        let id = self.insert(memory, &NewBody::File(seals), attr)?;
        self.get_mut(id)?.opens = 1;
        Ok(id)
    }

    fn insert(
        &mut self,
        memory: &mut GuestMemory,
        body: &NewBody,
        attr: NewAttr,
    ) -> Result<InodeId, Errno> {
        let inode = Inode::new(body, attr, InodeId(self.next));
        self.put(memory, inode)
    }

    /// Charges and keeps a new inode.
    fn put(&mut self, memory: &mut GuestMemory, inode: Inode) -> Result<InodeId, Errno> {
        let id = InodeId(self.next);
        memory
            .charge(inode.cost_bytes())
            .map_err(|_| Errno::ENOSPC)?;
        self.next = self.next.saturating_add(1);
        self.inodes.insert(id, inode);
        Ok(id)
    }

    /// The attributes that stat(2) tells of an inode.
    ///
    /// # Errors
    /// As [`TmpFs::get`].
    pub fn attr(&self, id: InodeId) -> Result<Attr, Errno> {
        let inode = self.get(id)?;
        let (size, pages) = match &inode.body {
            Body::File(data) => (data.size, data.pages_in_use()),
            Body::Dir(DirData { lower: Some(_), .. }) => (PAGE_SIZE, 1),
            // As Linux's tmpfs counts: BOGO_DIRENT_SIZE for each entry, `.` and `..` included.
            Body::Dir(dir) => (
                (dir.entries.len() as u64)
                    .saturating_add(2)
                    .saturating_mul(20),
                0,
            ),
            Body::Symlink(target) => (target.len() as u64, 0),
            Body::Fifo | Body::Socket | Body::Special(_) => (0, 0),
        };
        let rdev = match &inode.body {
            Body::Special(rdev) => *rdev,
            Body::File(_) | Body::Dir(_) | Body::Symlink(_) | Body::Fifo | Body::Socket => 0,
        };
        Ok(Attr {
            dev: inode.dev,
            ino: inode.ino,
            mode: inode.mode,
            nlink: u64::from(inode.nlink),
            uid: inode.uid,
            gid: inode.gid,
            rdev,
            size,
            blksize: PAGE_SIZE as u32,
            blocks: pages.saturating_mul(PAGE_SIZE / 512),
            atime: inode.atime,
            mtime: inode.mtime,
            ctime: inode.ctime,
            btime: Some(inode.btime),
        })
    }

    /// One more open description or working directory.
    pub fn open_ref(&mut self, id: InodeId) {
        if let Ok(inode) = self.get_mut(id) {
            inode.opens = inode.opens.saturating_add(1);
        }
    }

    /// One less.
    pub fn close_ref(&mut self, memory: &mut GuestMemory, id: InodeId) {
        if let Ok(inode) = self.get_mut(id) {
            inode.opens = inode.opens.saturating_sub(1);
        }
        self.forget_listing(memory, id);
        self.drop_if_unused(memory, id);
    }

    /// One more mapping.
    pub fn map_ref(&mut self, id: InodeId, mapping: MapKind) {
        if let Ok(inode) = self.get_mut(id) {
            inode.maps = inode.maps.saturating_add(1);
            if mapping == MapKind::SharedWritable {
                inode.writable_maps = inode.writable_maps.saturating_add(1);
            }
        }
    }

    /// One less. Its kind is as in the [`TmpFs::map_ref`] that it takes back.
    pub fn map_unref(&mut self, memory: &mut GuestMemory, id: InodeId, mapping: MapKind) {
        if let Ok(inode) = self.get_mut(id) {
            inode.maps = inode.maps.saturating_sub(1);
            if mapping == MapKind::SharedWritable {
                inode.writable_maps = inode.writable_maps.saturating_sub(1);
            }
        }
        self.drop_if_unused(memory, id);
    }

    /// Removes an inode that nothing refers to, and frees its frames.
    fn drop_if_unused(&mut self, memory: &mut GuestMemory, id: InodeId) {
        let unused = self
            .get(id)
            .is_ok_and(|inode| inode.nlink == 0 && inode.opens == 0 && inode.maps == 0);
        if !unused {
            self.close_lower(id);
            return;
        }
        if let Some(inode) = self.inodes.remove(&id) {
            self.linked.remove(&(inode.dev, inode.ino));
            if self.watched.remove(&id).is_some() {
                self.gone.push_back(id);
            }
            memory.uncharge(inode.cost_bytes());
            if let Body::File(data) = inode.body {
                self.free_pages_of(memory, inode.store, &data);
                let is_on_disk = !data.spilled.is_empty();
                drop(data);
                if is_on_disk {
                    self.give_back_room();
                }
            }
        }
    }

    /// The frames of all files.
    #[must_use]
    pub fn frames(&self) -> BTreeSet<Gpa> {
        let files = self.inodes.values().filter_map(|inode| inode.file().ok());
        files
            .flat_map(|data| data.pages.values().copied())
            .collect()
    }

    /// Frees every frame of the file system: when its sandbox ends or it is replaced.
    pub fn free_all(&mut self, memory: &mut GuestMemory) {
        for (_, inode) in std::mem::take(&mut self.inodes) {
            if let Body::File(data) = inode.body {
                self.free_pages_of(memory, inode.store, &data);
            }
        }
    }
}

/// The change that a mapping of a file can make to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapKind {
    /// Private, or shared and never writable.
    ReadOnly,
    /// Shared, and writable or able to become so.
    SharedWritable,
}

impl Inode {
    fn new(body: &NewBody, attr: NewAttr, id: InodeId) -> Self {
        let (kind, body) = match body {
            NewBody::File(seals) => (
                S_IFREG,
                Body::File(FileData {
                    seals: *seals,
                    ..FileData::default()
                }),
            ),
            NewBody::Dir => (S_IFDIR, Body::Dir(DirData::new(id))),
            NewBody::Symlink(target) => (S_IFLNK, Body::Symlink(Arc::clone(target))),
            NewBody::Fifo => (S_IFIFO, Body::Fifo),
            NewBody::Socket => (S_IFSOCK, Body::Socket),
        };
        Self {
            body,
            dev: TMP_DEV,
            ino: id.0,
            mode: kind | (attr.mode & 0o7777),
            uid: attr.uid,
            gid: attr.gid,
            nlink: 0,
            atime: attr.now,
            mtime: attr.now,
            ctime: attr.now,
            btime: attr.now,
            opens: 0,
            maps: 0,
            writable_maps: 0,
            pinned: Pinned::No,
            store: Store::Memory,
            is_linkable: false,
            attributes: Some(Attributes::new()),
        }
    }

    fn cost_bytes(&self) -> u64 {
        let attributes = attributes::cost_bytes(self.attributes.as_ref());
        attributes.saturating_add(self.body_cost_bytes())
    }

    fn body_cost_bytes(&self) -> u64 {
        match &self.body {
            Body::Symlink(target) => INODE_COST_BYTES.saturating_add(target.len() as u64),
            Body::File(FileData {
                lower: Some(lower), ..
            }) => INODE_COST_BYTES.saturating_add(lower.path.len() as u64),
            Body::Dir(DirData {
                lower: Some(lower), ..
            }) => INODE_COST_BYTES.saturating_add(lower.cost_bytes()),
            Body::File(_) | Body::Dir(_) | Body::Fifo | Body::Socket | Body::Special(_) => {
                INODE_COST_BYTES
            }
        }
    }

    /// The contents of a regular file.
    ///
    /// # Errors
    /// `EISDIR` for a directory, `EINVAL` for anything else.
    pub fn file(&self) -> Result<&FileData, Errno> {
        match &self.body {
            Body::File(data) => Ok(data),
            Body::Dir(_) => Err(Errno::EISDIR),
            Body::Symlink(_) | Body::Fifo | Body::Socket | Body::Special(_) => Err(Errno::EINVAL),
        }
    }

    /// As [`Inode::file`], to be changed.
    ///
    /// # Errors
    /// As [`Inode::file`].
    pub fn file_mut(&mut self) -> Result<&mut FileData, Errno> {
        match &mut self.body {
            Body::File(data) => Ok(data),
            Body::Dir(_) => Err(Errno::EISDIR),
            Body::Symlink(_) | Body::Fifo | Body::Socket | Body::Special(_) => Err(Errno::EINVAL),
        }
    }

    /// The entries of a directory.
    ///
    /// # Errors
    /// `ENOTDIR`.
    pub fn dir(&self) -> Result<&DirData, Errno> {
        match &self.body {
            Body::Dir(dir) => Ok(dir),
            Body::File(_) | Body::Symlink(_) | Body::Fifo | Body::Socket | Body::Special(_) => {
                Err(Errno::ENOTDIR)
            }
        }
    }

    pub(super) fn dir_mut(&mut self) -> Result<&mut DirData, Errno> {
        match &mut self.body {
            Body::Dir(dir) => Ok(dir),
            Body::File(_) | Body::Symlink(_) | Body::Fifo | Body::Socket | Body::Special(_) => {
                Err(Errno::ENOTDIR)
            }
        }
    }
}

#[cfg(test)]
mod spilled_tests;
#[cfg(test)]
mod tests;
