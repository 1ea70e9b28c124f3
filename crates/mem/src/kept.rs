//! The kept copies of one table's pages as a reset has left them. The next one finds at a glance those that were
//! written.

use kvmlet_abi::{HUGE_PAGE_SIZE, PAGE_SIZE};
use zerocopy::IntoBytes;

use crate::MmId;
use crate::entry::{DIRTY, PageSize};
use crate::frames::BlockId;
use crate::host::Restore;
use crate::memory::GuestMemory;
use crate::pending::StaleEntry;
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
    /// Index and entry of each, in the order of [`TableLog::copies`]. The entry has no dirty bit.
    entries: Vec<(usize, u64)>,
    frames: Vec<BlockFrames>,
    indices: IndexSet,
    /// Resets since each was looked at.
    resets: u32,
}

/// Frames of a block.
#[derive(Debug)]
struct BlockFrames {
    start: Place,
    pool: Pool,
    block: BlockId,
    frames: IndexSet,
}

impl Kept {
    /// Those that a reset has just restored; `None` if there are none.
    pub(crate) fn of(mem: &GuestMemory, log: &TableLog) -> Option<Self> {
        let mut kept = Self {
            entries: Vec::with_capacity(log.copies.len()),
            frames: Vec::new(),
            indices: IndexSet::EMPTY,
            resets: 0,
        };
        for copy in &log.copies {
            let known = copy.kept?;
            kept.entries.push((copy.index, known.entry & !DIRTY));
            kept.indices.add(copy.index);
            let at = mem
                .slots
                .get(known.copy.slot)?
                .frame_at(known.copy.offset)?;
            let start = Place {
                offset: known.copy.offset / HUGE_PAGE_SIZE * HUGE_PAGE_SIZE,
                ..known.copy
            };
            let same = |one: &&mut BlockFrames| one.start == start;
            match kept.frames.iter_mut().find(same) {
                Some(one) => one.frames.add(at.index),
                None => {
                    let mut frames = IndexSet::EMPTY;
                    frames.add(at.index);
                    kept.frames.push(BlockFrames {
                        start,
                        pool: at.pool,
                        block: at.block,
                        frames,
                    });
                }
            }
        }
        (!kept.entries.is_empty()).then_some(kept)
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
        let Some(kept) = &mut log.kept else {
            return false;
        };
        let mut words = [0u64; 512];
        if kept.resets >= LOOK_EVERY || mem.read(log.table, words.as_mut_bytes()).is_err() {
            return false;
        }
        let is_marked = kept.frames.iter().any(|one| {
            let marks = mem.marks(one.start);
            marks.without(&one.frames.complement()) != IndexSet::EMPTY
        });
        // Place among the copies, index in the table, and entry.
        let mut written: Vec<(usize, usize, u64)> = Vec::new();
        for (at, (index, entry)) in kept.entries.iter().enumerate() {
            let now = words[index % words.len()];
            if now != *entry {
                if now & !DIRTY != *entry {
                    return false;
                }
                if written.is_empty() {
                    written.reserve(kept.entries.len());
                }
                written.push((at, *index, now));
            } else if is_marked
                && let Some(copy) = log.copies.get(at).and_then(|copy| copy.kept)
                && mem.is_marked(copy.copy)
            {
                written.push((at, *index, now));
            }
        }
        let can_keep = kept
            .frames
            .iter()
            .all(|one| mem.pool_ref(one.pool).can_uncount(one.block, &one.frames));
        if !can_keep {
            return false;
        }
        for one in &kept.frames {
            mem.pool(one.pool).uncount_set(one.block, &one.frames);
        }
        kept.resets = kept.resets.saturating_add(1);
        let mut indices = kept.indices;
        let all_pages = log.copies.len();
        report.compared_equal_pages += (all_pages - written.len()) as u64;
        let mut lost = Vec::new();
        let dirty = written.iter().filter(|(.., now)| now & DIRTY != 0);
        mem.store_entries(
            log.table,
            dirty.clone().map(|(_, index, now)| (*index, now & !DIRTY)),
        );
        self.record_all(dirty.map(|(_, index, _)| StaleEntry {
            gva: log.gva(*index),
            entry: log.entry(*index),
            size: PageSize::Base,
            window: None,
        }));
        for (at, index, now) in written {
            let gva = log.gva(index);
            let how = match now & DIRTY {
                0 => Restore::Compare,
                _ => Restore::Copy,
            };
            let Some((copy, known)) = log.copies.get_mut(at).and_then(|copy| {
                let known = copy.kept?;
                Some((copy, known))
            }) else {
                continue;
            };
            match mem.restore_page(known.frozen, known.copy, how) {
                Ok(differed) => copy.note(differed, (id, gva), report),
                Err(_) => {
                    mem.drop_frame(known.copy);
                    indices.remove(copy.index);
                    lost.push(copy.index);
                }
            }
        }
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
