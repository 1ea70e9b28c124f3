//! Frozen memory: what every fork of one sandbox shares.

use std::collections::BTreeMap;
use std::sync::Arc;

use kvmlet_abi::{Gpa, HUGE_PAGE_SIZE, PAGE_SIZE, SlotAccess, SlotId, SlotSpec};
use rustix::io::Errno;

use crate::MmId;
use crate::blocks::SpareBlocks;
use crate::error::MemError;
use crate::frames::{BlockId, FramePool};
use crate::host::{AnonMapping, FrozenFiles, FrozenMapping, Image};
use crate::memory::{FORK_CHUNKS_MIN, Fork, GuestMemory};
use crate::slots::{Bank, Pool, Slot, Store, WrittenPages};
use crate::spaces::Spaces;
use crate::tables::{PageTables, Root};
use crate::texts::Texts;

/// Table pages that a fork is given before it runs, at most. Nearly every request needs the first ones, and a page that the
/// host copies while a VM has it costs each VM of the process a call of its notifier.
const EARLY_TABLES_MAX: usize = 32;

/// Memory and page tables of a sandbox, frozen once and shared by all its forks.
///
/// The program's memory and its mapped files are read-only for good, for the host too. Forks have them
/// at the same guest-physical addresses in slots with the same ids. Page tables and the VMM's pages
/// are an image, of which each fork has a private view that the host copies on write. Hardware walks
/// must be able to write tables, so they cannot lie in a read-only slot.
#[derive(Debug)]
pub struct FrozenMemory {
    slots: Vec<FrozenSlot>,
    /// Chunk number to index in `slots`.
    chunks: Vec<u16>,
    image: Image,
    /// Runs of table pages that a fork is given before it runs: where each starts in the image, and its length in
    /// bytes.
    early: Vec<(u64, u64)>,
    tables: FramePool,
    window: Option<Gpa>,
    /// Root and count of tables of each address space.
    spaces: BTreeMap<MmId, Root>,
    /// The limit of each fork, with what is frozen.
    limit_bytes: u64,
    charged_bytes: u64,
    /// What of the charged bytes is page tables.
    table_bytes: u64,
    file_bytes: u64,
    pub(crate) texts: Texts,
}

#[derive(Debug)]
struct FrozenSlot {
    gpa: u64,
    len_bytes: u64,
    store: FrozenStore,
}

#[derive(Debug)]
enum FrozenStore {
    /// Where the slot starts in the image.
    Tables {
        image_offset: u64,
        first: BlockId,
    },
    Ram(FrozenMapping),
    Files(FrozenFiles),
}

impl FrozenMemory {
    /// A new memory that reads as the frozen one, and its address spaces. The limit bounds what the fork
    /// allocates; [`GuestMemory::used_bytes`] starts at the charges passed to
    /// [`GuestMemory::freeze`].
    ///
    /// # Errors
    /// [`MemError::Freeze`] and [`MemError::OutOfMemory`] when the host refuses a mapping.
    pub fn fork(self: &Arc<Self>) -> Result<(GuestMemory, Spaces), MemError> {
        let mut memory = GuestMemory {
            slots: Vec::with_capacity(self.slots.len() + 1),
            specs: Vec::with_capacity(self.slots.len() + 1),
            announced: 0,
            chunks: self.chunks.clone(),
            tables: self.tables.clone(),
            window: self.window,
            ram: Bank::base(),
            blocks: Bank::blocks(),
            file_bytes: self.file_bytes,
            texts: self.texts.clone(),
            share: Arc::default(),
            limit_bytes: self.limit_bytes,
            forks_add_bytes: None,
            used_bytes: self.charged_bytes,
            peak_bytes: self.charged_bytes,
            table_bytes: self.table_bytes,
            peak_resident_bytes: self.charged_bytes.saturating_sub(self.table_bytes),
            spare_blocks: SpareBlocks::default(),
            fork: Some(Fork {
                frozen: Arc::clone(self),
                charged_bytes: self.charged_bytes,
                table_bytes: self.table_bytes,
            }),
        };
        for (index, slot) in self.slots.iter().enumerate() {
            let (store, host_addr, access) = match &slot.store {
                FrozenStore::Tables {
                    image_offset,
                    first,
                } => {
                    let mut map = AnonMapping::of_image(&self.image, *image_offset, slot.len_bytes)
                        .map_err(MemError::Freeze)?;
                    let mut written = WrittenPages::default();
                    let slot_runs = self.early.iter().filter_map(|(start, len_bytes)| {
                        let offset = start.checked_sub(*image_offset)?;
                        (offset < slot.len_bytes).then_some((offset, *len_bytes))
                    });
                    for (offset, len_bytes) in slot_runs {
                        map.copy_pages(offset, usize::try_from(len_bytes).unwrap_or(0));
                        written.add(offset, len_bytes);
                    }
                    let host_addr = map.addr();
                    let store = Store::Tables {
                        map,
                        first: *first,
                        written,
                    };
                    (store, host_addr, SlotAccess::ReadWrite)
                }
                FrozenStore::Ram(map) => {
                    let store = Store::FrozenRam(map.clone());
                    (store, map.addr(), SlotAccess::ReadOnly)
                }
                FrozenStore::Files(files) => {
                    let store = Store::FrozenFiles(files.clone());
                    (store, files.addr(), SlotAccess::ReadOnly)
                }
            };
            memory.specs.push(SlotSpec {
                id: SlotId(index as u32),
                gpa: Gpa(slot.gpa),
                host_addr,
                len_bytes: slot.len_bytes,
                access,
            });
            memory.slots.push(Slot {
                gpa: slot.gpa,
                len_bytes: slot.len_bytes,
                store,
            });
        }
        memory.grow(Pool::Ram)?;
        let tables = self.spaces.iter();
        let tables = tables.map(|(id, root)| (*id, PageTables::of_fork(*root)));
        Ok((memory, Spaces::of_fork(tables.collect())))
    }

    /// The frozen value of a page-table entry; 0 (not present) outside table memory.
    pub(crate) fn entry(&self, slot: usize, offset: u64) -> u64 {
        match self.slots.get(slot).map(|slot| &slot.store) {
            Some(FrozenStore::Tables { image_offset, .. }) => {
                self.image.load_u64(image_offset + offset).unwrap_or(0)
            }
            _ => 0,
        }
    }
}

impl GuestMemory {
    /// Has each fork of this memory, once it is frozen, allocate `len_bytes` at most beyond what is frozen. Without it, a
    /// fork of a program may allocate as much as the program. A fork of a fork has what that has left: limits do not add
    /// up.
    pub fn limit_forks(&mut self, len_bytes: u64) {
        self.forks_add_bytes = Some(len_bytes);
    }

    /// The limit of forks, if this much is charged when it is frozen.
    fn limit_of_forks(&self, charged_bytes: u64) -> u64 {
        match (self.forks_add_bytes, &self.fork) {
            (Some(added_bytes), _) => added_bytes.saturating_add(charged_bytes),
            (None, None) => self.limit_bytes.saturating_add(charged_bytes),
            (None, Some(_)) => self.limit_bytes,
        }
    }

    /// True if forks will have room, once this memory is frozen. Each fork that is frozen again leaves less of
    /// guest-physical space to its own forks, some thousand times.
    #[must_use]
    pub fn has_room_for_forks(&self) -> bool {
        self.fork.is_none() || self.chunks_left() >= FORK_CHUNKS_MIN
    }

    /// Freezes this memory and the address spaces in it, of a program or of a fork. `charged_bytes`
    /// is what of [`GuestMemory::used_bytes`] a fork may take back with [`GuestMemory::uncharge`]:
    /// charged file mappings.
    ///
    /// # Errors
    /// [`MemError::Freeze`] when the host refuses, or with EBUSY when a VM still has a slot of it (a
    /// [`crate::SlotMemory`]); the memory is lost then.
    pub fn freeze(
        mut self,
        spaces: Spaces,
        charged_bytes: u64,
    ) -> Result<Arc<FrozenMemory>, MemError> {
        for pool in [Pool::Ram, Pool::Blocks] {
            self.with_pool(pool, |mem, pool| {
                pool.give_back_free(|block| mem.give_back(block));
            });
        }
        let spaces = spaces.freeze(&mut self);
        let image = self.image_of_tables()?;
        let limit_bytes = self.limit_of_forks(charged_bytes);
        let used = self.used_lengths();
        let mut slots = Vec::with_capacity(self.slots.len());
        let mut image_offset = 0;
        for (slot, len_bytes) in self.slots.into_iter().zip(used) {
            let store = match slot.store {
                Store::Tables { first, .. } => {
                    let store = FrozenStore::Tables {
                        image_offset,
                        first,
                    };
                    image_offset += slot.len_bytes;
                    store
                }
                Store::Ram { map, .. } => FrozenStore::Ram(map.freeze().map_err(MemError::Freeze)?),
                Store::Files(files) => {
                    FrozenStore::Files(files.freeze().map_err(MemError::Freeze)?)
                }
                Store::FrozenRam(map) => FrozenStore::Ram(map),
                Store::FrozenFiles(files) => FrozenStore::Files(files),
            };
            slots.push(FrozenSlot {
                gpa: slot.gpa,
                len_bytes,
                store,
            });
        }
        Ok(Arc::new(FrozenMemory {
            slots,
            chunks: self.chunks,
            image,
            early: early_tables(&self.tables),
            tables: self.tables.frozen(),
            window: self.window,
            spaces,
            limit_bytes,
            charged_bytes,
            table_bytes: self.table_bytes.min(charged_bytes),
            file_bytes: self.file_bytes,
            texts: self.texts,
        }))
    }

    /// The lengths that the slots need from now on, in bytes: to the end of what is used, in 2 MiB blocks. With each VM
    /// KVM makes, and clears, some bytes for each page of a slot.
    fn used_lengths(&self) -> Vec<u64> {
        let mut ends = vec![0; self.slots.len()];
        let mut note = |gpa: Gpa| {
            let place = self.place(gpa);
            if let Some((place, end)) = place.and_then(|at| Some((at, ends.get_mut(at.slot)?))) {
                *end = place.offset.saturating_add(PAGE_SIZE).max(*end);
            }
        };
        for bank in [&self.ram, &self.blocks] {
            bank.pool.for_each_used(|_, _, gpa| note(gpa));
        }
        let slots = self.slots.iter().zip(ends);
        let needed = slots.map(|(slot, end)| {
            let end = match &slot.store {
                Store::Ram { .. } => end,
                Store::Files(files) => files.used_end(),
                Store::Tables { .. } | Store::FrozenRam(_) | Store::FrozenFiles(_) => {
                    slot.len_bytes
                }
            };
            // A slot without a length would be none.
            let blocks = end.div_ceil(HUGE_PAGE_SIZE).max(1);
            blocks.saturating_mul(HUGE_PAGE_SIZE).min(slot.len_bytes)
        });
        needed.collect()
    }

    /// The table slots one after the other; what is free in them reads as zeros.
    fn image_of_tables(&self) -> Result<Image, MemError> {
        let len_bytes = self.table_slots().map(|spec| spec.len_bytes).sum();
        let fill = |write: &mut dyn FnMut(u64, &[u8])| {
            let mut page = [0; PAGE_SIZE as usize];
            let mut result = Ok(());
            // Blocks of the pool are numbered in the order of the slots.
            self.tables.for_each_used(|block, index, gpa| {
                let offset = u64::from(block) * HUGE_PAGE_SIZE + index as u64 * PAGE_SIZE;
                match self.read(gpa, &mut page) {
                    Ok(()) => write(offset, &page),
                    Err(error) => result = Err(error),
                }
            });
            result
        };
        Image::new(len_bytes, fill)
    }

    /// True if this is the memory of a fork.
    #[must_use]
    pub fn is_fork(&self) -> bool {
        self.fork.is_some()
    }

    /// True if the frame belongs to the frozen memory of a fork: shared and never written. Page tables
    /// and the VMM's pages do not: each fork has its own.
    #[must_use]
    pub fn is_frozen(&self, gpa: Gpa) -> bool {
        self.fork.is_some()
            && self.slot(gpa).is_some_and(|slot| {
                matches!(slot.store, Store::FrozenRam(_) | Store::FrozenFiles(_))
            })
    }

    /// Whether the frame holds a page table or a page of the VMM.
    pub(crate) fn is_table_memory(&self, gpa: Gpa) -> bool {
        self.slot(gpa)
            .is_some_and(|slot| matches!(slot.store, Store::Tables { .. }))
    }

    /// What a page-table entry was when the memory was frozen.
    pub(crate) fn frozen_entry(&self, gpa: Gpa) -> u64 {
        match (&self.fork, self.slot_index(gpa)) {
            (Some(fork), Some(index)) => {
                let offset = gpa.0 - self.slots.get(index).map_or(gpa.0, |slot| slot.gpa);
                fork.frozen.entry(index, offset)
            }
            _ => 0,
        }
    }

    /// Host memory that this fork does not share, in bytes. It counts frames handed out since the host last
    /// took their block back, and table pages that were written. What the guest itself makes the host copy
    /// (exception stacks) is not seen.
    #[must_use]
    pub fn private_bytes(&self) -> u64 {
        self.ram.pool.used_bytes()
            + self.blocks.pool.used_bytes()
            + self.written_table_pages() * PAGE_SIZE
    }
}

/// The first table pages in use, as runs that lie in one block each.
fn early_tables(tables: &FramePool) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut left = EARLY_TABLES_MAX;
    tables.for_each_used(|block, index, _| {
        let Some(rest) = left.checked_sub(1) else {
            return;
        };
        left = rest;
        // Blocks of the pool are numbered in the order of the slots.
        let offset = u64::from(block) * HUGE_PAGE_SIZE + index as u64 * PAGE_SIZE;
        match runs.last_mut() {
            Some((start, len_bytes)) if *start + *len_bytes == offset && index != 0 => {
                *len_bytes += PAGE_SIZE;
            }
            _ => runs.push((offset, PAGE_SIZE)),
        }
    });
    runs
}

impl From<Errno> for MemError {
    fn from(errno: Errno) -> Self {
        Self::Freeze(errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{CHUNKS_MAX, NO_SLOT};

    const LIMIT: u64 = 8 << 20;

    #[test]
    fn a_chain_of_freezes_ends_while_its_forks_have_room() {
        let mut mem = GuestMemory::new(LIMIT).unwrap();
        let tables = PageTables::new(&mut mem).unwrap();
        assert!(mem.has_room_for_forks());
        let charged = mem.used_bytes();
        let frozen = mem.freeze(Spaces::new(tables), charged).unwrap();
        let (mut mem, mut spaces) = frozen.fork().unwrap();
        // As after all freezes but the last few.
        let taken = usize::try_from(CHUNKS_MAX - FORK_CHUNKS_MIN - 10).unwrap();
        mem.chunks.resize(taken, NO_SLOT);
        let mut freezes = 0;
        while mem.has_room_for_forks() {
            let charged = mem.used_bytes();
            (mem, spaces) = mem.freeze(spaces, charged).unwrap().fork().unwrap();
            // Its limit is that of the first fork, however often it is frozen.
            assert_eq!(mem.limit_bytes(), LIMIT + frozen.charged_bytes);
            freezes += 1;
        }
        assert_eq!(freezes, 11);
        // The last one still runs, to its limit.
        let mut pages = 0;
        while mem.alloc_frame().is_ok() {
            pages += 1;
        }
        assert_eq!(pages * PAGE_SIZE, mem.limit_bytes() - frozen.charged_bytes);
    }
}
