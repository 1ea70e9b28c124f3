//! The parts of a slot of guest memory.

use kvmlet_abi::{HUGE_PAGE_SIZE, PAGE_SIZE};

use crate::files::FileSlot;
use crate::frames::{BlockId, FramePool};
use crate::host::{AnonMapping, Backing, FrozenFiles, FrozenMapping};
use crate::set::IndexSet;

const MIB: u64 = 1 << 20;
pub(crate) const TABLES_SLOT: u64 = 4 * MIB;

#[derive(Debug)]
pub(crate) enum Store {
    /// Base frames for page tables and the VMM's pages.
    Tables {
        map: AnonMapping,
        first: BlockId,
        written: WrittenPages,
    },
    /// The program's memory.
    Ram {
        map: AnonMapping,
        first: BlockId,
        pool: Pool,
    },
    /// Mapped files.
    Files(FileSlot),
    /// The program's memory as it was when it was frozen.
    FrozenRam(FrozenMapping),
    /// Files that were mapped when the program was frozen.
    FrozenFiles(FrozenFiles),
}

/// The pages of a table slot that we have written.
#[derive(Debug)]
pub(crate) struct WrittenPages {
    blocks: [IndexSet; (TABLES_SLOT / HUGE_PAGE_SIZE) as usize],
    pages: u64,
}

impl Default for WrittenPages {
    fn default() -> Self {
        Self {
            blocks: [IndexSet::EMPTY; (TABLES_SLOT / HUGE_PAGE_SIZE) as usize],
            pages: 0,
        }
    }
}

impl WrittenPages {
    pub(crate) fn add(&mut self, offset: u64, len_bytes: u64) {
        let mut at = offset & !(PAGE_SIZE - 1);
        while at < offset + len_bytes {
            let index = (at % HUGE_PAGE_SIZE / PAGE_SIZE) as usize;
            if let Some(block) = self.blocks.get_mut((at / HUGE_PAGE_SIZE) as usize)
                && !block.has(index)
            {
                block.add(index);
                self.pages += 1;
            }
            at += PAGE_SIZE;
        }
    }

    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }
}

#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) gpa: u64,
    pub(crate) len_bytes: u64,
    pub(crate) store: Store,
}

impl Slot {
    /// The frame at an offset, if it belongs to a pool.
    pub(crate) fn frame_at(&self, offset: u64) -> Option<FrameAt> {
        let (first, pool) = match self.store {
            Store::Tables { first, .. } => (first, Pool::Tables),
            Store::Ram { first, pool, .. } => (first, pool),
            Store::Files(_) | Store::FrozenRam(_) | Store::FrozenFiles(_) => return None,
        };
        Some(FrameAt {
            pool,
            block: first + (offset / HUGE_PAGE_SIZE) as BlockId,
            index: (offset % HUGE_PAGE_SIZE / PAGE_SIZE) as usize,
        })
    }
}

/// A place in the slot of this number: good as long as the memory lives, since slots never go or move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) slot: usize,
    pub(crate) offset: u64,
}

/// Which frames belong together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pool {
    /// Page tables and the VMM's pages.
    Tables,
    /// Memory of the program; in a fork base frames only.
    Ram,
    /// 2 MiB blocks of a fork.
    Blocks,
}

/// Which pool a frame belongs to, and where in it.
#[derive(Clone, Copy)]
pub(crate) struct FrameAt {
    pub(crate) pool: Pool,
    pub(crate) block: BlockId,
    pub(crate) index: usize,
}

/// Memory of the program in slots that grow as they are needed.
#[derive(Debug)]
pub(crate) struct Bank {
    pub(crate) pool: FramePool,
    /// All slots together.
    pub(crate) bytes: u64,
    /// KVM keeps some 8 bytes per page of a slot, so slots are not made larger than is likely needed.
    pub(crate) first_slot_bytes: u64,
    pub(crate) max_slot_bytes: u64,
    pub(crate) backing: Backing,
}

impl Bank {
    /// The memory of a program that is not a fork.
    pub(crate) fn whole() -> Self {
        Self::new(Backing::Huge, 4, 64 * MIB, 1 << 30)
    }

    /// Base frames of a fork. 4 KiB host pages: most of them are copies, here and there in the block. As
    /// much as a request may well use is kept for the next.
    pub(crate) fn base() -> Self {
        Self::new(Backing::Base, 16, 8 * MIB, 64 * MIB)
    }

    /// 2 MiB blocks of a fork.
    pub(crate) fn blocks() -> Self {
        Self::new(Backing::Huge, 4, 32 * MIB, 1 << 30)
    }

    fn new(
        backing: Backing,
        kept_blocks: usize,
        first_slot_bytes: u64,
        max_slot_bytes: u64,
    ) -> Self {
        Self {
            pool: FramePool::new(kept_blocks),
            bytes: 0,
            first_slot_bytes,
            max_slot_bytes,
            backing,
        }
    }
}
