//! The host's side of an overlay. The changed part of a host tree is inodes like any others; an inode that
//! was the host's keeps where it was found there. A directory shows the host's names where it has no entry of its
//! own, a file the host's bytes where it has no page.
//!
//! An inode is made when something is first changed, of a directory when it is first walked through. The
//! place on the host stays with the inode when it is renamed.

use std::os::fd::AsFd;
use std::sync::Arc;

use imbl::OrdMap;
use kvmlet_abi::Errno;
use kvmlet_hostfs::HostFd;
use kvmlet_hostfs::attr::{Attr, FileTime, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG};
use kvmlet_mem::GuestMemory;
use kvmlet_policy::join;

use super::{
    Body, DirData, ENTRY_COST_BYTES, FileData, Inode, InodeId, NewAttr, NewBody, Pinned, SEAL_SEAL,
    Store, TMP_DEV, TmpFs,
};

/// Host memory charged for a name of the host's that a directory being read keeps, besides its length.
const LISTED_COST_BYTES: u64 = 256;
/// Set in the numbers of inodes that the host does not have, so that they are none of the host's.
const OWN_NUMBER: u64 = 1 << 62;

/// A file of the host's that an inode was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LowerFile {
    /// The place where it is found ([`kvmlet_hostfs::Roots`]).
    pub path: Arc<[u8]>,
    /// Bytes of it that show, from its start.
    pub shown: u64,
    /// The file when it was first changed.
    pub seen: Seen,
    /// Open while the inode is open or mapped.
    file: Option<OpenFile>,
}

/// A descriptor of the host's; two are equal if they are one.
#[derive(Clone, Debug)]
struct OpenFile(Arc<HostFd>);

impl PartialEq for OpenFile {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for OpenFile {}

impl LowerFile {
    /// Reads what shows at an offset; the count is short where it ends.
    ///
    /// # Errors
    /// The host's; `EIO` if it is not open.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        let left = usize::try_from(self.shown.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = into.len().min(left);
        let Some(into) = into.get_mut(..len).filter(|into| !into.is_empty()) else {
            return Ok(0);
        };
        let OpenFile(fd) = self.file.as_ref().ok_or(Errno::EIO)?;
        kvmlet_hostfs::read_at(fd.as_fd(), into, offset)
    }
}

/// A directory of the host's that an inode was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LowerDir {
    /// The place where it is found ([`kvmlet_hostfs::Roots`]).
    pub path: Arc<[u8]>,
    /// The directory as it was found.
    pub seen: Seen,
    /// Names of it that do not show: removed, or now an entry's. With the host's object that was found there.
    hidden: OrdMap<Arc<[u8]>, Seen>,
    /// Names of it that show, while the directory is open and has been listed.
    listed: OrdMap<Arc<[u8]>, ListedName>,
}

/// The host's object that had a name when something first took its place. It tells later if the host has changed
/// since then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Device number.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names that it had.
    pub nlink: u64,
    /// Size in bytes.
    pub size: u64,
    /// Last modification.
    pub mtime: FileTime,
    /// Last status change.
    pub ctime: FileTime,
}

impl Seen {
    /// The object with `attr`.
    #[must_use]
    pub fn of(attr: &Attr) -> Self {
        Self {
            dev: attr.dev,
            ino: attr.ino,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            nlink: attr.nlink,
            size: attr.size,
            mtime: attr.mtime,
            ctime: attr.ctime,
        }
    }
}

/// A name that a listing of the host's directory gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct ListedName {
    cursor: u64,
    ino: u64,
    /// d_type
    kind: u8,
}

impl LowerDir {
    pub(super) fn lists_nothing(&self) -> bool {
        self.listed.is_empty()
    }

    /// Memory charged for it, in bytes.
    pub(super) fn cost_bytes(&self) -> u64 {
        let hidden = (self.hidden.len() as u64).saturating_mul(ENTRY_COST_BYTES);
        let listed = self.listed.keys().map(|name| listed_cost_bytes(name));
        listed.fold(
            hidden.saturating_add(self.path.len() as u64),
            u64::saturating_add,
        )
    }

    /// Takes a name out of the listing; its cursor.
    pub(super) fn unlist(&mut self, name: &[u8]) -> Option<u64> {
        self.listed.remove(name).map(|listed| listed.cursor)
    }
}

impl DirData {
    /// True if the host's directory had `name`, which an entry has taken the place of, or which is gone.
    #[must_use]
    pub fn replaces(&self, name: &[u8]) -> bool {
        let lower = self.lower.as_ref();
        lower.is_some_and(|lower| lower.hidden.contains_key(name))
    }

    /// The host's object that had `name`, which an entry has taken the place of, or which is gone.
    #[must_use]
    pub fn replaced(&self, name: &[u8]) -> Option<&Seen> {
        self.lower.as_ref()?.hidden.get(name)
    }

    /// The names of the host's directory that are gone, and what had them.
    pub fn removed(&self) -> impl Iterator<Item = (&[u8], &Seen)> {
        let hidden = self.lower.iter().flat_map(|lower| lower.hidden.iter());
        hidden
            .map(|(name, seen)| (&**name, seen))
            .filter(|(name, _)| self.lookup(name).is_none())
    }
}

fn listed_cost_bytes(name: &[u8]) -> u64 {
    LISTED_COST_BYTES.saturating_add(name.len() as u64)
}

/// An entry of a directory as getdents64(2) tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listed<'a> {
    /// Its cursor.
    pub cursor: u64,
    /// Its name.
    pub name: &'a [u8],
    /// Inode number.
    pub ino: u64,
    /// d_type
    pub kind: u8,
}

impl TmpFs {
    /// The root of the tree mounted at canonical `path`, if one is.
    #[must_use]
    pub fn root_at(&self, path: &[u8]) -> Option<InodeId> {
        let mut roots = self.roots.iter();
        roots.find(|(_, at)| ***at == *path).map(|(id, _)| *id)
    }

    /// True for the root of a tree.
    #[must_use]
    pub fn is_root(&self, id: InodeId) -> bool {
        self.roots.contains_key(&id)
    }

    /// Mounts the host's directory that has `attr` at canonical `path`, by which it is found too.
    ///
    /// # Errors
    /// `ENOSPC` at the memory limit.
    pub fn mount(
        &mut self,
        memory: &mut GuestMemory,
        path: &[u8],
        attr: &Attr,
    ) -> Result<InodeId, Errno> {
        let mut root =
            Inode::from_host(self.next_id(), lower_dir(self.next_id(), path, attr), attr);
        root.pinned = Pinned::Yes;
        let id = self.put(memory, root)?;
        self.roots.insert(id, Arc::from(path));
        Ok(id)
    }

    /// Mounts an empty directory at canonical `path`.
    ///
    /// # Errors
    /// `ENOSPC` at the memory limit.
    pub fn mount_empty(
        &mut self,
        memory: &mut GuestMemory,
        path: &[u8],
        attr: NewAttr,
    ) -> Result<InodeId, Errno> {
        let mut root = Inode::new(&NewBody::Dir, attr, self.next_id());
        root.store = Store::Disk;
        root.nlink = 2;
        root.pinned = Pinned::Yes;
        let id = self.put(memory, root)?;
        self.roots.insert(id, Arc::from(path));
        Ok(id)
    }

    const fn next_id(&self) -> InodeId {
        InodeId(self.next)
    }

    /// A new inode shows the device of the directory that it is made in, and a number that is none of the
    /// host's. Its pages lie where those of the directory's files do.
    ///
    /// # Errors
    /// As [`TmpFs::get`].
    pub fn place(&mut self, id: InodeId, dir: InodeId) -> Result<(), Errno> {
        let (dev, store) = self.get(dir).map(|dir| (dir.dev, dir.store))?;
        let inode = self.get_mut(id)?;
        inode.store = store;
        if dev != TMP_DEV {
            inode.dev = dev;
            inode.ino = OWN_NUMBER | id.0;
        }
        Ok(())
    }

    /// The place on the host of what directory `dir` shows by a name that it has no entry for.
    ///
    /// # Errors
    /// `ENOTDIR`.
    pub fn lower_of(&self, dir: InodeId, name: &[u8]) -> Result<Option<Arc<[u8]>>, Errno> {
        let lower = self.get(dir)?.dir()?.lower.as_ref();
        let shows = lower.filter(|lower| !lower.hidden.contains_key(name));
        Ok(shows.map(|lower| Arc::clone(&lower.path)))
    }

    /// The place on the host of directory `dir`, if it shows names of the host's.
    ///
    /// # Errors
    /// `ENOTDIR`.
    pub fn lower_path(&self, dir: InodeId) -> Result<Option<Arc<[u8]>>, Errno> {
        let lower = self.get(dir)?.dir()?.lower.as_ref();
        Ok(lower.map(|lower| Arc::clone(&lower.path)))
    }

    /// The inode of a host file with several names, if one of them has become one.
    #[must_use]
    pub fn linked(&self, attr: &Attr) -> Option<InodeId> {
        self.linked.get(&(attr.dev, attr.ino)).copied()
    }

    /// Makes an entry of what directory `dir` shows of the host by `name`: something that has `attr`, and
    /// `target` if it is a symbolic link. Nothing that can be seen changes.
    ///
    /// # Errors
    /// `ENOSPC` at the memory limit.
    pub fn adopt(
        &mut self,
        memory: &mut GuestMemory,
        (dir, name): (InodeId, &[u8]),
        attr: &Attr,
        target: &[u8],
    ) -> Result<InodeId, Errno> {
        let place = self.lower_of(dir, name)?.ok_or(Errno::ENOENT)?;
        let place = join(&place, name);
        // The entry, and the name that is hidden by it.
        let cost = ENTRY_COST_BYTES.saturating_mul(2);
        memory.charge(cost).map_err(|_| Errno::ENOSPC)?;
        let linked = self.linked(attr).filter(|_| !attr.is_dir());
        let id = match linked {
            Some(id) => id,
            None => {
                let id = self.next_id();
                let body = match attr.kind() {
                    S_IFREG => lower_file(&place, attr),
                    S_IFDIR => lower_dir(dir, &place, attr),
                    S_IFLNK => Body::Symlink(Arc::from(target)),
                    S_IFIFO => Body::Fifo,
                    _ => Body::Special(attr.rdev),
                };
                let mut inode = Inode::from_host(id, body, attr);
                if let Ok(data) = inode.dir_mut() {
                    data.name = Arc::from(name);
                }
                match self.put(memory, inode) {
                    Ok(id) => id,
                    Err(error) => {
                        memory.uncharge(cost);
                        return Err(error);
                    }
                }
            }
        };
        if !attr.is_dir() && attr.nlink > 1 {
            self.linked.insert((attr.dev, attr.ino), id);
        }
        let data = self.get_mut(dir)?.dir_mut()?;
        let listed = data.lower.as_ref().map(|lower| lower.listed.len());
        data.insert(name, id);
        if let Some(lower) = &mut data.lower {
            lower.hidden.insert(Arc::from(name), Seen::of(attr));
            if listed != Some(lower.listed.len()) {
                memory.uncharge(listed_cost_bytes(name));
            }
        }
        Ok(id)
    }

    /// Uses `fd` for the host's bytes of a file until it is neither open nor mapped.
    pub fn use_lower(&mut self, id: InodeId, fd: Arc<HostFd>) {
        let data = self.get_mut(id).and_then(Inode::file_mut);
        if let Ok(FileData {
            lower: Some(lower), ..
        }) = data
        {
            lower.file = Some(OpenFile(fd));
        }
    }

    /// The place of the host's file whose bytes an inode shows, if it is to be opened for that.
    #[must_use]
    pub fn unopened_lower(&self, id: InodeId) -> Option<&Arc<[u8]>> {
        let lower = self.get(id).ok()?.file().ok()?.lower.as_ref()?;
        let needed = lower.file.is_none() && lower.shown > 0;
        needed.then_some(&lower.path)
    }

    /// Closes the host's file of an inode that is neither open nor mapped.
    pub(super) fn close_lower(&mut self, id: InodeId) {
        let is_open = |inode: &Inode| match &inode.body {
            Body::File(data) => data
                .lower
                .as_ref()
                .is_some_and(|lower| lower.file.is_some()),
            Body::Dir(_) | Body::Symlink(_) | Body::Fifo | Body::Socket | Body::Special(_) => false,
        };
        let idle = self
            .get(id)
            .is_ok_and(|inode| inode.opens == 0 && inode.maps == 0 && is_open(inode));
        if idle
            && let Ok(data) = self.get_mut(id).and_then(Inode::file_mut)
            && let Some(lower) = &mut data.lower
        {
            lower.file = None;
        }
    }

    /// Takes the names of the host's directory as they are now into directory `dir`: inode number, d_type,
    /// name. Those that it knew keep their cursors.
    ///
    /// # Errors
    /// `ENOMEM` at the memory limit.
    pub fn take_listing(
        &mut self,
        memory: &mut GuestMemory,
        dir: InodeId,
        names: &[(u64, u8, Arc<[u8]>)],
    ) -> Result<(), Errno> {
        let DirData {
            entries,
            order,
            next_cursor,
            lower,
            ..
        } = self.get_mut(dir)?.dir_mut()?;
        let Some(lower) = lower else { return Ok(()) };
        let mut old = std::mem::take(&mut lower.listed);
        for (ino, kind, name) in names {
            if entries.contains_key(name) || lower.hidden.contains_key(name) {
                continue;
            }
            let known = old.remove(name);
            if known.is_none() && memory.charge(listed_cost_bytes(name)).is_err() {
                lower.listed.extend(old);
                return Err(Errno::ENOMEM);
            }
            let cursor = known.map_or(*next_cursor, |known| known.cursor);
            if known.is_none() {
                *next_cursor = next_cursor.saturating_add(1);
                order.insert(cursor, Arc::clone(name));
            }
            let listed = ListedName {
                cursor,
                ino: *ino,
                kind: *kind,
            };
            lower.listed.insert(Arc::clone(name), listed);
        }
        for (name, listed) in old {
            order.remove(&listed.cursor);
            memory.uncharge(listed_cost_bytes(&name));
        }
        Ok(())
    }

    /// Gives up the listing of a directory that is not open.
    pub fn forget_listing(&mut self, memory: &mut GuestMemory, dir: InodeId) {
        let is_listed = |inode: &Inode| match &inode.body {
            Body::Dir(data) => !data.lower.as_ref().is_none_or(LowerDir::lists_nothing),
            Body::File(_) | Body::Symlink(_) | Body::Fifo | Body::Socket | Body::Special(_) => {
                false
            }
        };
        let idle = self
            .get(dir)
            .is_ok_and(|inode| inode.opens == 0 && is_listed(inode));
        if idle {
            // Without names it charges nothing.
            let _ = self.take_listing(memory, dir, &[]);
        }
    }

    /// The entries of a directory from a cursor on, in order. Cursors 1 and 2 are for `.` and `..`, which
    /// are not among them.
    ///
    /// # Errors
    /// `ENOTDIR`.
    pub fn list_from(
        &self,
        dir: InodeId,
        cursor: u64,
    ) -> Result<impl Iterator<Item = Listed<'_>>, Errno> {
        let data = self.get(dir)?.dir()?;
        let lower = data.lower.as_ref();
        Ok(data.order.range(cursor..).filter_map(move |(at, name)| {
            let (ino, kind) = match data.lookup(name) {
                Some(id) => {
                    let inode = self.get(id).ok()?;
                    (inode.ino, kvmlet_hostfs::attr::d_type(inode.mode))
                }
                None => {
                    let listed = lower?.listed.get(name)?;
                    (listed.ino, listed.kind)
                }
            };
            Some(Listed {
                cursor: *at,
                name,
                ino,
                kind,
            })
        }))
    }
}

fn lower_file(path: &[u8], attr: &Attr) -> Body {
    Body::File(FileData {
        size: attr.size,
        seals: SEAL_SEAL,
        lower: Some(LowerFile {
            path: Arc::from(path),
            shown: attr.size,
            seen: Seen::of(attr),
            file: None,
        }),
        ..FileData::default()
    })
}

fn lower_dir(parent: InodeId, path: &[u8], attr: &Attr) -> Body {
    let mut data = DirData::new(parent);
    data.lower = Some(LowerDir {
        path: Arc::from(path),
        seen: Seen::of(attr),
        hidden: OrdMap::new(),
        listed: OrdMap::new(),
    });
    Body::Dir(data)
}

impl Inode {
    /// An inode that shows what the host's object with `attr` did.
    fn from_host(id: InodeId, body: Body, attr: &Attr) -> Self {
        let links = u32::try_from(attr.nlink).unwrap_or(u32::MAX);
        let least = if attr.is_dir() { 2 } else { 1 };
        let born = |time: FileTime| time.min(attr.ctime);
        let new = super::NewAttr {
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            now: attr.ctime,
        };
        Self {
            body,
            dev: attr.dev,
            ino: attr.ino,
            mode: attr.mode & (S_IFMT | 0o7777),
            nlink: links.max(least),
            atime: attr.atime,
            mtime: attr.mtime,
            ctime: attr.ctime,
            btime: attr.btime.unwrap_or_else(|| born(attr.mtime)),
            store: Store::Disk,
            attributes: None,
            ..Self::new(&super::NewBody::Fifo, new, id)
        }
    }
}
