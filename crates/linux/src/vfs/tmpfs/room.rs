//! The room that files take: a limit on the bytes of all of them, and the host's file for what is past memory's share.

use std::sync::Arc;

use kvmlet_abi::{Errno, PAGE_SIZE};
use kvmlet_hostfs::Spill;
use kvmlet_mem::{GuestMemory, OutOfMemory};

use super::{FileData, Inode, InodeId, TmpFs};

/// Files take memory while less than this part of the limit on memory is in use. Linux differs: there, pages go to the
/// disk when memory is short. Here those that have been mapped stay, and the program is left three quarters.
const SHARE_OF_MEMORY: u64 = 4;

/// The limit on the bytes of files, and the place of those that memory has no room for.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Most bytes of all files together, in whole pages.
    pub limit_bytes: u64,
    /// The host's file. Without one, all of them lie in memory.
    pub spill: Option<Arc<Spill>>,
}

/// Says where the pages of a file lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Store {
    /// In memory, and only the limit on memory counts them: /dev/shm, memfd_create(2), shared memory.
    Memory,
    /// They count as files, and may lie on the disk.
    Disk,
}

/// Counts the pages of files, against the limit if there is one.
#[derive(Clone, Debug, Default)]
pub struct Room {
    disk: Option<Disk>,
    used_pages: u64,
    /// Pages that were refused: by the limit, by the host's disk.
    refused: (u64, u64),
}

/// Two are equal if they count the same and put pages into the same file.
impl PartialEq for Room {
    fn eq(&self, other: &Self) -> bool {
        let of = |room: &Self| {
            let disk = room.disk.as_ref();
            let file = disk.and_then(|disk| disk.spill.as_ref().map(Arc::as_ptr));
            (disk.map(|disk| disk.limit_bytes), file, room.used_pages)
        };
        of(self) == of(other)
    }
}

impl Eq for Room {}

impl Room {
    fn free_pages(&self) -> u64 {
        self.disk.as_ref().map_or(u64::MAX, |disk| {
            (disk.limit_bytes / PAGE_SIZE).saturating_sub(self.used_pages)
        })
    }
}

/// A page of a file that cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoPage {
    /// There is no memory for it.
    Memory(OutOfMemory),
    /// Files may take no more room.
    Room,
}

impl From<OutOfMemory> for NoPage {
    fn from(error: OutOfMemory) -> Self {
        Self::Memory(error)
    }
}

/// The means by which a file's pages are kept.
#[derive(Debug)]
pub(super) struct Means<'a> {
    pub memory: &'a mut GuestMemory,
    /// `None` for files that lie in memory only.
    room: Option<&'a mut Room>,
}

impl Means<'_> {
    /// Counts a page that a file is about to have.
    pub fn take_page(&mut self) -> Result<(), NoPage> {
        let Some(room) = self.room.as_deref_mut() else {
            return Ok(());
        };
        if room.free_pages() == 0 {
            room.refused.0 = room.refused.0.saturating_add(1);
            return Err(NoPage::Room);
        }
        room.used_pages = room.used_pages.saturating_add(1);
        Ok(())
    }

    /// Counts pages no more.
    pub fn give_pages(&mut self, count: u64) {
        if let Some(room) = self.room.as_deref_mut() {
            room.used_pages = room.used_pages.saturating_sub(count);
        }
    }

    /// Notes that the host's disk has refused pages.
    pub fn note_full_disk(&mut self) {
        if let Some(room) = self.room.as_deref_mut() {
            room.refused.1 = room.refused.1.saturating_add(1);
        }
    }

    /// The host's file, if there is one for this file.
    pub fn spill(&self) -> Option<Arc<Spill>> {
        self.room.as_ref()?.disk.as_ref()?.spill.clone()
    }

    /// The same, if memory's share is used up.
    pub fn spill_past_share(&self) -> Option<Arc<Spill>> {
        let share = self.memory.limit_bytes() / SHARE_OF_MEMORY;
        self.spill().filter(|_| self.memory.used_bytes() >= share)
    }

    /// Pages that files may still take, here or on the disk.
    pub fn free_pages(&self) -> u64 {
        let room = self.room.as_deref().map_or(u64::MAX, Room::free_pages);
        if self.spill().is_some() {
            return room;
        }
        let memory = self.memory.limit_bytes();
        room.min(memory.saturating_sub(self.memory.used_bytes()) / PAGE_SIZE)
    }
}

impl TmpFs {
    /// Limits what files may take from now on.
    pub fn set_disk(&mut self, disk: Disk) {
        self.room.disk = Some(disk);
    }

    /// The limit on the bytes of files, and the bytes that they take: what statfs(2) tells. `None` without a limit.
    #[must_use]
    pub fn disk_bytes(&self) -> Option<(u64, u64)> {
        let disk = self.room.disk.as_ref()?;
        let used = self.room.used_pages.saturating_mul(PAGE_SIZE);
        Some((disk.limit_bytes, used))
    }

    /// True if files past memory's share go to the host's disk.
    #[must_use]
    pub fn spills(&self) -> bool {
        let disk = self.room.disk.as_ref();
        disk.is_some_and(|disk| disk.spill.is_some())
    }

    /// Pages that files were refused: by the limit, by the host's disk.
    #[must_use]
    pub fn refused_pages(&self) -> (u64, u64) {
        self.room.refused
    }

    /// An inode, and the means by which its pages are kept.
    ///
    /// # Errors
    /// As [`TmpFs::get`].
    pub(super) fn with_means<'a>(
        &'a mut self,
        memory: &'a mut GuestMemory,
        id: InodeId,
    ) -> Result<(&'a mut Inode, Means<'a>), Errno> {
        let inode = self.inodes.get_mut(&id).ok_or(Errno::ENOENT)?;
        let room = match inode.store {
            Store::Disk => Some(&mut self.room),
            Store::Memory => None,
        };
        Ok((inode, Means { memory, room }))
    }

    /// Frees the pages of a file that is gone.
    pub(super) fn free_pages_of(
        &mut self,
        memory: &mut GuestMemory,
        store: Store,
        data: &FileData,
    ) {
        data.pages
            .values()
            .for_each(|frame| memory.free_frame(*frame));
        memory.uncharge(data.spilled.cost_bytes());
        if store == Store::Disk {
            let count = (data.pages.len() as u64).saturating_add(data.spilled.pages());
            self.room.used_pages = self.room.used_pages.saturating_sub(count);
        }
    }

    /// Gives room on the disk that nothing takes any more back to the host.
    pub(super) fn give_back_room(&self) {
        if let Some(spill) = self.room.disk.as_ref().and_then(|disk| disk.spill.as_ref()) {
            spill.give_back();
        }
    }
}
