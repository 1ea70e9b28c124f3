//! Copies of frozen pages, and putting a fork back to the frozen state.

use std::collections::BTreeSet;

use kvmlet_abi::{Gpa, Gva, PAGE_SIZE};

use crate::MmId;
use crate::entry::{DIRTY, ENTRIES, LARGE, Leaf, PRESENT, PageSize, PteFlags, leaf_at};
use crate::error::MemError;
use crate::frames::{Reuse, Wipe};
use crate::host::{HostFault, Restore};
use crate::kept::Kept;
use crate::memory::GuestMemory;
use crate::set::IndexSet;
use crate::slots::{Place, Pool, Store};
use crate::tables::{PageTables, only_widens};
use crate::undo::{Cause, KeptCopy, PageCopy, TableLog};

/// Pages that are copied behind one that is written, at most.
const FOLLOWING_MAX: usize = 8;

/// The meaning of a page-table entry's dirty bit for a reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DirtyBits {
    /// It may not: software KVM, and hardware without nested paging, may keep it from us.
    #[default]
    Ignored,
    /// The CPU sets it with the first write after a flush.
    Reliable,
}

/// Counts of what a reset did. Pages are base pages.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ResetReport {
    /// Copies that were written, or found different from the frozen page, and restored.
    pub copied_pages: u64,
    /// Copies that nothing has written, or found equal.
    pub compared_equal_pages: u64,
    /// Copies given up: not written for long, no longer mapped, or no longer to be kept.
    pub dropped_pages: u64,
    /// Copies that stay mapped and writable.
    pub kept_pages: u64,
    /// Private frames wiped.
    pub scrubbed_pages: u64,
    /// Table frames that this fork does not share.
    pub table_pages: u64,
    /// Pages of `kept_pages` that were copied since the last reset because they were written, in no order. Among them
    /// are those that were copied with such a one, and then written.
    pub copied_on_write: Vec<(MmId, Gva)>,
    /// Pages of `copied_pages` that were copied earlier, or ahead, and found different for the first time
    /// since, in no order. None is named a third time: a steady load names none.
    pub written_again: Vec<(MmId, Gva)>,
    /// Pages that are known to have been written since the last reset.
    pub written_pages: u64,
    /// Copies that hold what the frozen page holds, of which nothing says if they have been written.
    pub unknown_pages: u64,
    /// The pages of `dropped_pages`, in no order.
    pub dropped: Vec<(MmId, Gva)>,
}

impl ResetReport {
    /// The pages that are named as written.
    pub fn named(&self) -> impl Iterator<Item = (MmId, Gva)> {
        let first = self.copied_on_write.iter();
        first.chain(&self.written_again).copied()
    }
}

impl PageTables {
    /// Copies of frozen pages that this fork has.
    #[must_use]
    pub(crate) fn copies(&self) -> u64 {
        let logs = self.undo.iter().flat_map(|undo| &undo.tables);
        logs.map(|log| log.copies.len() as u64).sum()
    }

    /// Those that were made since the last reset because the page was written.
    #[must_use]
    pub(crate) fn written_copies(&self) -> u64 {
        let logs = self.undo.iter().flat_map(|undo| &undo.tables);
        let copies = logs.flat_map(|log| &log.copies);
        copies.filter(|copy| copy.is_of_write()).count() as u64
    }

    /// The pages of [`PageTables::written_copies`].
    pub(crate) fn written_pages(&self) -> impl Iterator<Item = Gva> {
        let logs = self.undo.iter().flat_map(|undo| &undo.tables);
        logs.flat_map(|log| {
            let written = log.copies.iter().filter(|copy| copy.is_of_write());
            written.map(|copy| log.gva(copy.index))
        })
    }

    /// Copies the frozen page mapped at `gva` to a private frame and maps that with `flags`; answers
    /// the frame, which the entry owns. A 2 MiB page is split. The copy is remembered:
    /// [`crate::Spaces::reset`] restores it in place.
    ///
    /// # Errors
    /// [`MemError::NotFrozen`] when no frozen frame is mapped there, [`MemError::OutOfMemory`], and
    /// [`MemError::FileFault`] when a mapped file has lost the page. Nothing is mapped anew then.
    pub fn copy_frozen(
        &mut self,
        mem: &mut GuestMemory,
        gva: Gva,
        flags: PteFlags,
    ) -> Result<Gpa, MemError> {
        self.copy_page(mem, gva, flags, Cause::Write)
    }

    /// Copies pages behind the one at `gva`, after [`PageTables::copy_frozen`] of that. They are as many as there are
    /// copies right before it, below `end` and under the same table. So memory that is written in sequence has few faults. At
    /// most as many pages are copied in vain as were copied before.
    pub fn copy_following(&mut self, mem: &mut GuestMemory, gva: Gva, end: Gva) {
        let page = gva.page_down();
        let (Ok(entry), Some(undo)) = (self.entry_for(mem, page, 1), &mut self.undo) else {
            return;
        };
        let (log, index) = undo.log_of(entry, page, 1);
        let count = log.copies_before(index).min(FOLLOWING_MAX);
        for number in 1..=count as u64 {
            let next = page.wrapping_add(number * PAGE_SIZE);
            let is_under_table = index as u64 + number < ENTRIES;
            let goes_on = is_under_table && next < end;
            // Without memory for it, the page has its fault.
            if !goes_on || !matches!(self.copy_shown(mem, next, Cause::Near), Ok(true)) {
                return;
            }
        }
    }

    fn copy_page(
        &mut self,
        mem: &mut GuestMemory,
        gva: Gva,
        flags: PteFlags,
        cause: Cause,
    ) -> Result<Gpa, MemError> {
        let page = gva.page_down();
        let leaf = self
            .walk(mem, page)
            .filter(|leaf| mem.is_frozen(leaf.gpa))
            .ok_or(MemError::NotFrozen(gva))?;
        let frame = mem.alloc_uncounted_copy(leaf.gpa_of(page))?;
        let mapped = self
            .map(mem, page, frame, PageSize::Base, flags)
            .and_then(|_| Ok(self.entry_for(mem, page, 1)?));
        match mapped {
            Ok(entry) => {
                if let Some(undo) = &mut self.undo {
                    let (log, index) = undo.log_of(entry, page, 1);
                    log.set_copy(PageCopy {
                        index,
                        frame,
                        idle: 0,
                        cause,
                        kept: None,
                        restore: Some(Restore::Compare),
                    });
                }
                Ok(frame)
            }
            Err(error) => {
                mem.free_frame(frame);
                Err(error)
            }
        }
    }

    /// Has the host copy the tables that map some pages now, which are about to be edited. It does so by one call for
    /// those that lie together, not by a fault each.
    pub(crate) fn expect_writes(&self, mem: &mut GuestMemory, pages: impl Iterator<Item = Gva>) {
        let tables: BTreeSet<Gpa> = pages.filter_map(|gva| self.last_table(mem, gva)).collect();
        let mut runs: Vec<(Gpa, u64)> = Vec::new();
        for table in tables {
            match runs.last_mut() {
                Some((start, len_bytes)) if start.wrapping_add(*len_bytes) == table => {
                    *len_bytes += PAGE_SIZE;
                }
                _ => runs.push((table, PAGE_SIZE)),
            }
        }
        for (start, len_bytes) in runs {
            mem.expect_writes(start, len_bytes);
        }
    }

    /// Copies a page that is expected to be written, if it is frozen and `may_keep` allows it; whether it did.
    pub(crate) fn copy_page_soon(
        &mut self,
        mem: &mut GuestMemory,
        gva: Gva,
        may_keep: impl FnOnce(Gva) -> bool,
    ) -> Result<bool, MemError> {
        match may_keep(gva) {
            true => self.copy_shown(mem, gva, Cause::Once),
            false => Ok(false),
        }
    }

    /// Copies a page if it is frozen; whether it did.
    fn copy_shown(
        &mut self,
        mem: &mut GuestMemory,
        gva: Gva,
        cause: Cause,
    ) -> Result<bool, MemError> {
        let leaf = self.walk(mem, gva).filter(|leaf| mem.is_frozen(leaf.gpa));
        let Some(leaf) = leaf else {
            return Ok(false);
        };
        match self.copy_page(mem, gva, leaf.flags | PteFlags::WRITE, cause) {
            Ok(_) => Ok(true),
            Err(MemError::FileFault(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Has every entry of a frozen address space map what a reset puts there, copies restored.
    pub(crate) fn reset_entries(
        &mut self,
        mem: &mut GuestMemory,
        id: MmId,
        dirty_bits: DirtyBits,
        may_keep: &mut dyn FnMut(MmId, Gva) -> bool,
        report: &mut ResetReport,
    ) {
        let Some(mut undo) = self.undo.take() else {
            return;
        };
        for log in &mut undo.tables {
            if log.is_untouched() || self.restore_written(mem, log, (id, &mut *report)) {
                continue;
            }
            let may_keep = &mut |gva| may_keep(id, gva);
            self.check_copies(mem, log, dirty_bits, may_keep, (id, &mut *report));
            let kept = restore_copies(mem, log, (id, &mut *report));
            self.reset_others(mem, log, &kept);
            if dirty_bits == DirtyBits::Reliable {
                log.kept = Kept::of(mem, log);
            }
        }
        self.shown = undo.shown();
        self.undo = Some(undo);
    }

    /// Gives up the copies of a table's pages that cannot be kept; the entries of the others map them,
    /// for writing.
    ///
    /// Where dirty bits can be relied on, each of these entries is left without its dirty bit, and a flush has the CPU
    /// forget that it ever had one. An entry that is still so at the next reset was not edited since: every edit of ours
    /// that grants the right to write sets the bit. So no other entry maps its frame for writing, and the program has
    /// not written the page. Writes of the host's are marked.
    fn check_copies(
        &mut self,
        mem: &mut GuestMemory,
        log: &mut TableLog,
        dirty_bits: DirtyBits,
        may_keep: &mut dyn FnMut(Gva) -> bool,
        (id, report): (MmId, &mut ResetReport),
    ) {
        let mut copies = core::mem::take(&mut log.copies);
        copies.retain_mut(|copy| {
            let (entry, gva) = (log.entry(copy.index), log.gva(copy.index));
            let now = mem.load_entry(entry);
            copy.restore = Some(Restore::Compare);
            if dirty_bits == DirtyBits::Reliable
                && let Some(kept) = copy.kept
                && now & !DIRTY == kept.entry & !DIRTY
                && mem.keep_frame(kept.copy)
            {
                if now & DIRTY != 0 {
                    copy.restore = Some(Restore::Copy);
                    mem.store_entry(entry, now & !DIRTY);
                    self.record(gva, entry, PageSize::Base);
                } else if !mem.is_marked(kept.copy) {
                    copy.restore = None;
                }
                return true;
            }
            if copy.kept.is_none() {
                copy.kept = may_be_kept(mem, log, copy).filter(|_| may_keep(gva));
            }
            // The program may have unmapped the copy, or mapped it anew with other rights. A frame that
            // was freed and used again could be the copy of two pages: the second loses it.
            let Some(kept) = copy.kept.filter(|kept| {
                let in_place = now & PRESENT != 0 && leaf_at(now, 1).gpa == copy.frame;
                in_place && mem.keep_frame(kept.copy)
            }) else {
                log.give_up(copy.index, (id, report));
                return false;
            };
            match dirty_bits {
                DirtyBits::Ignored => self.put_back(mem, entry, gva, log.level, now, kept.entry),
                DirtyBits::Reliable => {
                    mem.store_entry(entry, kept.entry & !DIRTY);
                    self.record(gva, entry, PageSize::Base);
                }
            }
            true
        });
        log.copies = copies;
    }

    /// Has every other entry of a table be what it was.
    pub(crate) fn reset_others(
        &mut self,
        mem: &mut GuestMemory,
        log: &mut TableLog,
        kept: &IndexSet,
    ) {
        let others = log.touched.without(kept);
        if others.is_empty() {
            return;
        }
        for index in others.iter() {
            let (entry, gva) = (log.entry(index), log.gva(index));
            let now = mem.load_entry(entry);
            log.touched.remove(index);
            let is_table = log.level == 2 && now & PRESENT != 0 && now & LARGE == 0;
            if !is_table {
                let original = log.original(mem, index);
                self.put_back(mem, entry, gva, log.level, now, original);
            }
        }
    }

    /// Stores an entry of a reset, and records the flush that this needs.
    fn put_back(
        &mut self,
        mem: &mut GuestMemory,
        entry: Gpa,
        gva: Gva,
        level: u32,
        now: u64,
        wanted: u64,
    ) {
        if now == wanted {
            return;
        }
        mem.store_entry(entry, wanted);
        if now & PRESENT == 0 {
            return;
        }
        let (old, new) = (leaf_at(now, level), leaf_at(wanted, level));
        if wanted & PRESENT == 0 || !only_widens(old, new) {
            self.record(gva, entry, old.size);
        }
    }
}

/// What resets are to keep of a copy; `None` if no reset may keep it.
fn may_be_kept(mem: &GuestMemory, log: &TableLog, copy: &PageCopy) -> Option<KeptCopy> {
    let original = log.original(mem, copy.index);
    let frozen = leaf_at(original, log.level);
    if original & PRESENT == 0 || !mem.is_frozen(frozen.gpa) {
        return None;
    }
    let leaf = Leaf {
        gpa: copy.frame,
        size: PageSize::Base,
        flags: frozen.flags | PteFlags::WRITE,
    };
    Some(KeptCopy {
        entry: leaf.entry(),
        copy: mem.place(copy.frame)?,
        frozen: mem.place(frozen.gpa)?,
        idle_max: log.idle_max(copy.index),
    })
}

/// Restores the copies of a table's pages; says of which. Apart from the checks, whose data would not stay
/// in the CPU's caches beside the pages.
fn restore_copies(
    mem: &mut GuestMemory,
    log: &mut TableLog,
    (id, report): (MmId, &mut ResetReport),
) -> IndexSet {
    let mut restored = IndexSet::EMPTY;
    let skipped = log.kept.take().map_or(0, |kept| kept.resets());
    let mut copies = core::mem::take(&mut log.copies);
    copies.retain_mut(|copy| {
        let Some(kept) = copy.kept else {
            return false;
        };
        let differed = match copy.restore {
            Some(how) => mem.restore_page(kept.frozen, kept.copy, how),
            None => Ok(false),
        };
        // Resets that have not looked at it have found it unwritten, or it was written and is idle for less.
        let idle = copy.idle.saturating_add(1 + skipped);
        if differed.is_err() || differed == Ok(false) && idle >= kept.idle_max {
            report.compared_equal_pages += u64::from(differed.is_ok());
            mem.drop_frame(kept.copy);
            log.give_up(copy.index, (id, report));
            return false;
        }
        restored.add(copy.index);
        let index = copy.index;
        copy.note(differed == Ok(true), || (id, log.gva(index)), report);
        if differed == Ok(false) {
            copy.idle = idle;
        }
        true
    });
    report.kept_pages += copies.len() as u64;
    log.copies = copies;
    restored
}

impl GuestMemory {
    /// Has the host make so many frames its own at once that are handed out next: a fault each costs it more.
    pub(crate) fn expect_frames(&mut self, count: usize) {
        let next = self.ram.pool.next_run(count);
        if let Some((start, frames)) = next {
            self.expect_writes(start, frames as u64 * PAGE_SIZE);
        }
    }

    /// Has the host make memory of its own now that is about to be written. Without effect where it cannot.
    fn expect_writes(&mut self, start: Gpa, len_bytes: u64) {
        if let Ok((map, offset)) = self.anon_mut(start, len_bytes) {
            map.copy_pages(offset, usize::try_from(len_bytes).unwrap_or(0));
        }
    }

    /// True if the host may have written the page at a place since the last reset.
    pub(crate) fn is_marked(&self, place: Place) -> bool {
        match self.slots.get(place.slot).map(|slot| &slot.store) {
            Some(Store::Ram { map, .. }) => map.is_marked(place.offset),
            _ => true,
        }
    }

    /// Makes an anonymous page equal to a frozen one; whether it differed.
    #[inline]
    pub(crate) fn restore_page(
        &mut self,
        frozen: Place,
        copy: Place,
        how: Restore,
    ) -> Result<bool, HostFault> {
        let Some(Store::Ram { map, .. }) = self.slots.get_mut(copy.slot).map(|s| &mut s.store)
        else {
            return Err(HostFault::Outside);
        };
        let target = map.range_unmarked(copy.offset, PAGE_SIZE as usize)?;
        match self.slots.get(frozen.slot).map(|slot| &slot.store) {
            Some(Store::FrozenRam(map)) => map.restore(frozen.offset, target, how),
            Some(Store::FrozenFiles(files)) => {
                let mut page = [0; PAGE_SIZE as usize];
                files.read(frozen.offset, &mut page)?;
                Ok(target.restore(&page, how))
            }
            _ => Err(HostFault::Outside),
        }
    }

    /// Counts all private memory: the beginning of a reset.
    pub(crate) fn begin_reset(&mut self) {
        for pool in [Pool::Ram, Pool::Blocks] {
            self.pool(pool).count_all();
        }
    }

    /// Unmaps files, wipes what no address space has kept, and starts the count anew: the end of a reset.
    /// If flushes are due, memory is handed out after them only.
    pub(crate) fn end_reset(
        &mut self,
        is_flushed: bool,
        report: &mut ResetReport,
    ) -> Result<(), MemError> {
        let reuse = match is_flushed {
            true => Reuse::Now,
            false => Reuse::AfterFlush,
        };
        self.clear_files()?;
        report.scrubbed_pages = self.wipe_all(reuse);
        for slot in &mut self.slots {
            if let Store::Ram { map, .. } = &mut slot.store {
                map.clear_marks();
            }
        }
        report.table_pages = self.written_table_pages();
        self.start_count();
        Ok(())
    }

    /// Has a base frame of the program survive resets uncounted; whether it was in use and counted.
    pub(crate) fn keep_frame(&mut self, place: Place) -> bool {
        let slot = self.slots.get(place.slot);
        match slot.and_then(|slot| slot.frame_at(place.offset)) {
            Some(at) if at.pool != Pool::Tables => self.pool(at.pool).uncount(at.block, at.index),
            _ => false,
        }
    }

    /// Undoes [`GuestMemory::keep_frame`].
    pub(crate) fn drop_frame(&mut self, place: Place) {
        let slot = self.slots.get(place.slot);
        if let Some(at) = slot.and_then(|slot| slot.frame_at(place.offset)) {
            self.pool(at.pool).count(at.block, at.index);
        }
    }

    /// Starts the count anew: nothing that is there now counts.
    pub(crate) fn start_count(&mut self) {
        self.tables.uncount_all();
        let fork = self.fork.as_ref();
        self.used_bytes = fork.map_or(0, |fork| fork.charged_bytes);
        self.table_bytes = fork.map_or(0, |fork| fork.table_bytes);
        self.peak_bytes = self.used_bytes;
        self.peak_resident_bytes = self.resident_bytes();
    }

    /// Frees and wipes all memory of the program but what is kept; answers the number of base frames
    /// wiped.
    fn wipe_all(&mut self, reuse: Reuse) -> u64 {
        let pools = [Pool::Ram, Pool::Blocks].into_iter();
        let wiped = pools
            .map(|pool| self.with_pool(pool, |mem, pool| pool.reset(reuse, |what| mem.wipe(what))));
        wiped.sum()
    }

    /// Whether it could.
    fn wipe(&mut self, what: Wipe) -> bool {
        match what {
            Wipe::Frame(gpa) => self
                .anon_mut(gpa, PAGE_SIZE)
                .is_ok_and(|(map, offset)| map.wipe(offset, PAGE_SIZE as usize).is_ok()),
            Wipe::Block(gpa) => self.zero(gpa, kvmlet_abi::HUGE_PAGE_SIZE).is_ok(),
            Wipe::GiveBack(gpa) => self.give_back(gpa),
        }
    }
}
