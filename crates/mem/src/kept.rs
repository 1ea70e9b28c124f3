//! The kept copies of one table's pages as a reset has left them. The next one finds at a glance those that were
//! written.

use core::ops::Range;

use kvmlet_abi::{HUGE_PAGE_SIZE, PAGE_SIZE};

use crate::MmId;
use crate::entry::{DIRTY, PageSize};
use crate::frames::BlockId;
use crate::host::Restore;
use crate::memory::GuestMemory;
use crate::pending::{RELOAD_FROM, StaleEntry};
use crate::reset::ResetReport;
use crate::set::IndexSet;
use crate::slots::{Place, Pool, Store};
use crate::tables::PageTables;
use crate::undo::TableLog;

/// Resets after which each copy is looked at, as one may have been idle for long enough.
const LOOK_EVERY: u32 = 64;

/// The copies of a table's pages: good until one is added or given up.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Entries of theirs that stand together in the table, by index.
    stretches: Vec<Range<usize>>,
    frames: Vec<BlockFrames>,
    indices: IndexSet,
    /// Resets since each was looked at.
    resets: u32,
    /// One of their entries may have been edited since the last reset. The CPU alone has set dirty bits.
    is_edited: bool,
}

/// Frames of a block.
#[derive(Debug)]
struct BlockFrames {
    start: Place,
    pool: Pool,
    block: BlockId,
    frames: IndexSet,
    /// Each frame in the block, and the index of the entry that maps it.
    mapped: Vec<(u16, u16)>,
}

impl Kept {
    /// Those that a reset has just restored; `None` if there are none.
    pub(crate) fn of(mem: &GuestMemory, log: &TableLog) -> Option<Self> {
        let mut kept = Self {
            stretches: Vec::new(),
            frames: Vec::new(),
            indices: IndexSet::EMPTY,
            resets: 0,
            is_edited: false,
        };
        for copy in &log.copies {
            let known = copy.kept?;
            match kept.stretches.last_mut() {
                Some(last) if last.end == copy.index => last.end += 1,
                _ => kept.stretches.push(copy.index..copy.index + 1),
            }
            kept.indices.add(copy.index);
            let at = mem
                .slots
                .get(known.copy.slot)?
                .frame_at(known.copy.offset)?;
            let start = Place {
                offset: known.copy.offset / HUGE_PAGE_SIZE * HUGE_PAGE_SIZE,
                ..known.copy
            };
            let of_block = kept.frames.iter().position(|one| one.start == start);
            let of_block = of_block.unwrap_or_else(|| {
                kept.frames.push(BlockFrames {
                    start,
                    pool: at.pool,
                    block: at.block,
                    frames: IndexSet::EMPTY,
                    mapped: Vec::new(),
                });
                kept.frames.len() - 1
            });
            let one = kept.frames.get_mut(of_block)?;
            one.frames.add(at.index);
            let pair = (at.index.try_into().ok()?, copy.index.try_into().ok()?);
            one.mapped.push(pair);
        }
        for one in &mut kept.frames {
            one.mapped.sort_unstable();
            one.mapped.shrink_to_fit();
        }
        (!kept.stretches.is_empty()).then_some(kept)
    }

    /// Says that an entry of the table, by its index, is about to change.
    pub(crate) fn note_edit(&mut self, index: usize) {
        self.is_edited |= self.indices.has(index);
    }

    /// True if a reset can go by it, and keep all.
    fn is_good(&self, mem: &GuestMemory) -> bool {
        let mut frames = self.frames.iter();
        let can_keep = |one: &BlockFrames| {
            let pool = mem.pool_ref(one.pool);
            pool.can_uncount(one.block, &one.frames)
        };
        !self.is_edited && self.resets < LOOK_EVERY && frames.all(can_keep)
    }

    /// Indices of those that the host may have written since the last reset.
    fn marked(&self, mem: &GuestMemory) -> IndexSet {
        let mut found = IndexSet::EMPTY;
        for one in &self.frames {
            let marked = mem.marks(one.start).without(&one.frames.complement());
            for frame in marked.iter() {
                let at = one
                    .mapped
                    .binary_search_by_key(&frame, |(frame, _)| usize::from(*frame));
                if let Some((_, index)) = at.ok().and_then(|at| one.mapped.get(at)) {
                    found.add(usize::from(*index));
                }
            }
        }
        found
    }

    /// Resets that have not looked at each copy since the last one that did.
    pub(crate) fn resets(&self) -> u32 {
        self.resets
    }
}

impl PageTables {
    /// Restores those of a table's copies that were written, and keeps all. False if that cannot be: then nothing has
    /// changed, and each copy is to be looked at.
    pub(crate) fn restore_written(
        &mut self,
        mem: &mut GuestMemory,
        log: &mut TableLog,
        (id, report): (MmId, &mut ResetReport),
    ) -> bool {
        let Some(kept) = log.kept.as_ref().filter(|kept| kept.is_good(mem)) else {
            return false;
        };
        debug_assert!(log.has_kept_entries(mem), "an edit that nobody noted");
        // Those that the program has written.
        let Some(dirty) = mem.take_bits(log.table, &kept.stretches, DIRTY) else {
            return false;
        };
        for one in &kept.frames {
            mem.pool(one.pool).uncount_set(one.block, &one.frames);
        }
        let mut indices = kept.indices;
        let marked = kept.marked(mem).without(&dirty);
        if let Some(kept) = &mut log.kept {
            kept.resets = kept.resets.saturating_add(1);
        }
        let dirty_pages = dirty.len();
        if dirty_pages > RELOAD_FROM {
            self.require_full_flush();
        } else {
            self.record_all(dirty.iter().map(|index| StaleEntry {
                gva: log.gva(index),
                entry: log.entry(index),
                size: PageSize::Base,
                window: None,
            }));
        }
        let mut lost = Vec::new();
        let mut place = 0;
        let gva_of = log.addresses();
        let dirty = dirty.iter().map(|index| (index, Restore::Copy));
        let compared = marked.iter().map(|index| (index, Restore::Compare));
        for (index, how) in dirty.chain(compared) {
            // They mostly follow each other.
            if log.copies.get(place).is_none_or(|copy| copy.index != index) {
                place = log.place_of(index).unwrap_or(log.copies.len());
            }
            let Some((copy, known)) = log.copies.get_mut(place).and_then(|copy| {
                let known = copy.kept?;
                Some((copy, known))
            }) else {
                continue;
            };
            place += 1;
            copy.restore = Some(how);
            match mem.restore_page(known.frozen, known.copy, how) {
                Ok(differed) => copy.note(differed, || (id, gva_of(index)), report),
                Err(_) => {
                    mem.drop_frame(known.copy);
                    indices.remove(copy.index);
                    lost.push(copy.index);
                }
            }
        }
        let unwritten = log.copies.len() - dirty_pages - marked.len();
        report.compared_equal_pages += unwritten as u64;
        for index in lost {
            log.copies.retain(|copy| copy.index != index);
            log.kept = None;
            log.give_up(index, (id, &mut *report));
        }
        report.kept_pages += log.copies.len() as u64;
        self.reset_others(mem, log, &indices);
        true
    }
}

impl GuestMemory {
    /// The pages that the host may have written since the last reset, of the block that starts at a place.
    fn marks(&self, start: Place) -> IndexSet {
        match self.slots.get(start.slot).map(|slot| &slot.store) {
            Some(Store::Ram { map, .. }) => map.marks_from(start.offset / PAGE_SIZE),
            _ => IndexSet::FULL,
        }
    }
}
