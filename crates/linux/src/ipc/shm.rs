//! Shared memory segments (shmget(2)): memory files that are found by id.
//!
//! A segment holds its file open until it is removed. Each mapping of it holds the file too, so that a removed segment
//! lives until the last one goes. The mappings of the file are those that `shm_nattch` counts.

use imbl::OrdMap;
use kvmlet_abi::linux::ipc::SHM_DEST;
use kvmlet_mem::GuestMemory;

use super::ids::{Ids, Perm};
use crate::id::{InodeId, Pid};
use crate::vfs::tmpfs::TmpFs;

/// Segments that there may be (SHMMNI).
pub const SEGMENTS_MAX: u32 = 4096;
/// Largest segment in bytes, and pages of all together (SHMMAX, SHMALL).
pub const BYTES_MAX: u64 = u64::MAX - (1 << 24);
/// Host memory charged to the program for a segment, beside its file: more than one takes.
pub const SEGMENT_COST_BYTES: u64 = 512;

/// A shared memory segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Its contents.
    pub inode: InodeId,
    /// Size in bytes, as asked for.
    pub size: u64,
    /// Last attachment, in seconds since the Epoch.
    pub atime: i64,
    /// Last detachment.
    pub dtime: i64,
    /// Creation or last IPC_SET.
    pub ctime: i64,
    /// Creator.
    pub cpid: Pid,
    /// The last one that attached or detached it; 0 for none.
    pub lpid: Pid,
}

/// All segments.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Segments {
    /// By id.
    pub ids: Ids<Segment>,
    /// Ids by the files that are theirs.
    by_inode: OrdMap<InodeId, i32>,
}

impl Segments {
    /// Adds a segment. Its file has one open reference, which is the segment's from now on.
    ///
    /// # Errors
    /// `ENOSPC` if there are too many.
    pub fn add(&mut self, perm: Perm, segment: Segment) -> Result<i32, kvmlet_abi::Errno> {
        let id = self.ids.add(perm, segment, SEGMENTS_MAX)?;
        self.by_inode.insert(segment.inode, id);
        Ok(id)
    }

    /// The segment whose contents a file is.
    #[must_use]
    pub fn of_inode(&self, inode: InodeId) -> Option<i32> {
        self.by_inode.get(&inode).copied()
    }

    /// A mapping of a file has come or gone. A removed segment goes with its last one.
    pub fn mapped(
        &mut self,
        (tmpfs, memory): (&TmpFs, &mut GuestMemory),
        inode: InodeId,
        change: Change,
    ) {
        let Some(id) = self.of_inode(inode) else {
            return;
        };
        if tmpfs.get(inode).is_err() {
            self.forget(memory, id);
            return;
        }
        if let Ok(entry) = self.ids.get_mut(id) {
            let segment = &mut entry.object;
            segment.lpid = change.pid;
            match change.kind {
                ChangeKind::Attached => segment.atime = change.now,
                ChangeKind::Detached => segment.dtime = change.now,
            }
        }
    }

    /// IPC_RMID: the segment gives its file up, and is gone unless it is mapped.
    pub fn remove(&mut self, tmpfs: &mut TmpFs, memory: &mut GuestMemory, id: i32) {
        let Ok(entry) = self.ids.get_mut(id) else {
            return;
        };
        if entry.perm.mode & SHM_DEST != 0 {
            return;
        }
        entry.perm.mode |= SHM_DEST;
        let inode = entry.object.inode;
        self.ids.hide(id);
        tmpfs.close_ref(memory, inode);
        if tmpfs.get(inode).is_err() {
            self.forget(memory, id);
        }
    }

    fn forget(&mut self, memory: &mut GuestMemory, id: i32) {
        if let Some(entry) = self.ids.remove(id) {
            self.by_inode.remove(&entry.object.inode);
            memory.uncharge_kernel(SEGMENT_COST_BYTES);
        }
    }
}

/// A mapping that has come or gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// Which of the two.
    pub kind: ChangeKind,
    /// The process that did it.
    pub pid: Pid,
    /// Now, in seconds since the Epoch.
    pub now: i64,
}

/// Says if a mapping has come or gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChangeKind {
    /// It has come.
    Attached,
    /// It has gone.
    Detached,
}

/// Mappings of a segment (shm_nattch).
#[must_use]
pub fn attached(tmpfs: &TmpFs, segment: &Segment) -> u64 {
    tmpfs
        .get(segment.inode)
        .map_or(0, |inode| u64::from(inode.maps))
}

/// Pages of a segment that are in memory.
#[must_use]
pub fn resident(tmpfs: &TmpFs, segment: &Segment) -> u64 {
    let inode = tmpfs.get(segment.inode);
    inode
        .and_then(|inode| inode.file())
        .map_or(0, |data| data.pages.len() as u64)
}
