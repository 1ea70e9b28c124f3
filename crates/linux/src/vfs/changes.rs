//! The changes that a program has made in overlays, as data.

use std::os::fd::AsFd;

use kvmlet_abi::PAGE_SIZE;
use kvmlet_hostfs::attr::Attr;
use kvmlet_mem::GuestMemory;
use kvmlet_policy::join;

use super::attributes;
use super::tmpfs::{Body, FileData, InodeId, TmpFs};
use crate::host::Host;

/// The way that a name has changed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ChangeKind {
    /// The host has nothing by it.
    Added,
    /// Its contents or mode are others, or it is another object.
    Modified,
    /// It is gone.
    Removed,
}

/// A name that has changed. A new directory stands for what is in it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Change {
    /// Canonical path; that of a new directory ends in a slash.
    pub path: Vec<u8>,
    /// The way that it has changed.
    pub kind: ChangeKind,
}

/// Work for the list of changes at most, in comparisons of a page or so: a fraction of a second. The program
/// has ended by then, so that no limit of its own counts.
const WORK_MAX: u64 = 60_000;
/// The work of asking the host for a name.
const NAME_WORK: u64 = 4;
/// Bytes of all names at most.
const NAMES_MAX_BYTES: usize = 8 << 20;

/// The changes that were found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// They, sorted by path.
    pub found: Vec<Change>,
    /// True if there may be more: the search has ended before.
    pub is_cut: bool,
}

/// The work and the memory that are left for a search.
pub(super) struct Left {
    pub work: u64,
    pub bytes: usize,
}

impl Left {
    pub fn is_over(&self) -> bool {
        self.work == 0 || self.bytes == 0
    }

    pub fn spend(&mut self, work: u64) {
        self.work = self.work.saturating_sub(work);
    }
}

/// The changes in all overlays: of a great many, the first.
#[must_use]
pub fn changes(tmpfs: &TmpFs, memory: &GuestMemory, host: &Host) -> Changes {
    let mut left = Left {
        work: WORK_MAX,
        bytes: NAMES_MAX_BYTES,
    };
    let mut found = Vec::new();
    let mut is_cut = false;
    let add = |found: &mut Vec<Change>, left: &mut Left, change: Change| {
        left.bytes = left.bytes.saturating_sub(change.path.len());
        found.push(change);
    };
    for path in host.policy.overlays() {
        // Directories to look at: of the host's, and where they were there.
        let root = tmpfs.root_at(path);
        let mut ahead: Vec<(InodeId, Vec<u8>)> = Vec::new();
        ahead.extend(root.map(|root| (root, path.to_vec())));
        while let Some((dir, path)) = ahead.pop() {
            is_cut |= left.is_over();
            if is_cut {
                break;
            }
            let Ok(names) = tmpfs.get(dir).and_then(|inode| inode.dir()) else {
                continue;
            };
            for (name, _) in names.removed() {
                if left.is_over() {
                    break;
                }
                let change = Change {
                    path: join(&path, name),
                    kind: ChangeKind::Removed,
                };
                add(&mut found, &mut left, change);
            }
            for (_, name, inode) in names.entries_from(0) {
                if left.is_over() {
                    break;
                }
                let path = join(&path, name);
                if !names.replaces(name) {
                    add(&mut found, &mut left, added(tmpfs, inode, path));
                } else if tmpfs.is_in_place(inode, &path) && is_directory(tmpfs, inode) {
                    left.bytes = left.bytes.saturating_sub(path.len());
                    ahead.push((inode, path));
                } else if difference(tmpfs, memory, host, (inode, &path), &mut left)
                    != Difference::None
                {
                    let kind = ChangeKind::Modified;
                    add(&mut found, &mut left, Change { path, kind });
                }
            }
            is_cut |= left.is_over();
        }
    }
    found.sort_unstable();
    Changes { found, is_cut }
}

fn is_directory(tmpfs: &TmpFs, inode: InodeId) -> bool {
    tmpfs.get(inode).is_ok_and(|inode| inode.dir().is_ok())
}

fn added(tmpfs: &TmpFs, inode: InodeId, mut path: Vec<u8>) -> Change {
    if is_directory(tmpfs, inode) {
        path.push(b'/');
    }
    Change {
        path,
        kind: ChangeKind::Added,
    }
}

/// The difference between an inode and the host's object of the same name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Difference {
    /// None that counts.
    None,
    /// The permission bits.
    Mode,
    /// The contents, or it is another object.
    Other,
}

/// The difference between an inode and what the host has at `path` now.
pub(super) fn difference(
    tmpfs: &TmpFs,
    memory: &GuestMemory,
    host: &Host,
    (inode, path): (InodeId, &[u8]),
    left: &mut Left,
) -> Difference {
    left.spend(NAME_WORK);
    let (Ok(ours), Ok((_, theirs))) = (tmpfs.attr(inode), host.roots.locate(path)) else {
        return Difference::Other;
    };
    let same = |attr: &Attr| (attr.dev, attr.ino, attr.kind());
    if same(&ours) != same(&theirs) {
        return Difference::Other;
    }
    let has_other_attributes = tmpfs.get(inode).is_ok_and(|inode| {
        let own = inode.attributes.as_ref();
        own.is_some_and(|own| {
            let theirs = attributes::of_lower(&host.roots, path, (theirs.dev, theirs.ino));
            *own != theirs.unwrap_or_default()
        })
    });
    if has_other_attributes {
        return Difference::Other;
    }
    let data = tmpfs.get(inode).and_then(|inode| inode.file());
    let is_other = data.is_ok_and(|data| {
        ours.size != theirs.size || has_other_bytes(data, memory, host, path, left)
    });
    match ours.mode == theirs.mode {
        _ if is_other => Difference::Other,
        true => Difference::None,
        false => Difference::Mode,
    }
}

/// As far as the work goes: a file whose pages are not all compared has probably changed.
fn has_other_bytes(
    data: &FileData,
    memory: &GuestMemory,
    host: &Host,
    path: &[u8],
    left: &mut Left,
) -> bool {
    let shown = data.lower.as_ref().map_or(0, |lower| lower.shown);
    if shown >= data.size && data.own_pages().next().is_none() {
        return false;
    }
    let Ok(fd) = host.roots.open_file(path) else {
        return true;
    };
    // Only what is the file's own can differ, and holes where the host's file was hidden.
    if shown < data.size && data.next_own(shown.div_ceil(PAGE_SIZE)).is_none() {
        return true;
    }
    data.own_pages().any(|page| {
        if left.is_over() {
            return true;
        }
        left.spend(1);
        let at = page.saturating_mul(PAGE_SIZE);
        let len = usize::try_from(data.size.saturating_sub(at).min(PAGE_SIZE)).unwrap_or(0);
        let (mut ours, mut theirs) = (vec![0; len], vec![0; len]);
        let read = data.read_own(memory, page, &mut ours).is_ok();
        let count = kvmlet_hostfs::read_at(fd.as_fd(), &mut theirs, at);
        !read || count.is_err() || ours != theirs
    })
}

impl TmpFs {
    /// True if `inode` was a directory of the host's that was found at `path`.
    pub(super) fn is_in_place(&self, inode: InodeId, path: &[u8]) -> bool {
        let Ok(inode) = self.get(inode) else {
            return false;
        };
        match &inode.body {
            Body::Dir(dir) => dir.lower.as_ref().is_some_and(|lower| *lower.path == *path),
            Body::File(_) | Body::Symlink(_) | Body::Fifo | Body::Socket | Body::Special(_) => {
                false
            }
        }
    }
}
