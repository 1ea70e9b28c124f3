//! Copies of frozen pages, and putting a fork back to the frozen state.

use kvmlet_abi::{Gpa, Gva, PAGE_SIZE};

use crate::access::failed;
use crate::error::MemError;
use crate::frames::{Reuse, Wipe};
use crate::memory::GuestMemory;
use crate::slots::{Pool, Store};
use crate::tables::{LARGE, Leaf, PRESENT, PageSize, PageTables, PteFlags, leaf_at, only_widens};
use crate::undo::{Cause, PageCopy, TableLog, UndoLog};

/// What a reset did. Pages are base pages.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ResetReport {
    /// Copies found different from the frozen page, and restored.
    pub copied_pages: u64,
    /// Copies found equal.
    pub compared_equal_pages: u64,
    /// Copies given up: not written for long, no longer mapped, or no longer to be kept.
    pub dropped_pages: u64,
    /// Copies that stay mapped and writable.
    pub kept_pages: u64,
    /// Private frames wiped.
    pub scrubbed_pages: u64,
    /// Table frames that this fork does not share.
    pub table_pages: u64,
    /// Pages of `kept_pages` that were copied since the last reset because they were written, in no
    /// order. Pages copied earlier, or ahead, are not named again: a steady load names none.
    pub copied_on_write: Vec<Gva>,
    /// The pages of `dropped_pages`, in no order.
    pub dropped: Vec<Gva>,
}

impl PageTables {
    /// Copies the frozen page mapped at `gva` to a private frame and maps that with `flags`; answers
    /// the frame, which the entry owns. A 2 MiB page is split. The copy is remembered:
    /// [`PageTables::reset`] restores it in place.
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

    /// Copies pages ahead, as [`PageTables::copy_frozen`] with the right to write; answers how many. For
    /// a new fork that has not run: nothing is left to be flushed, and nothing counts as used. Pages
    /// that are not mapped or not frozen, that `may_keep` denies or that a file has lost are passed
    /// over.
    ///
    /// # Errors
    /// [`MemError::OutOfMemory`]; what was copied so far is fine.
    pub fn copy_ahead(
        &mut self,
        mem: &mut GuestMemory,
        pages: impl Iterator<Item = Gva>,
        mut may_keep: impl FnMut(Gva) -> bool,
    ) -> Result<u64, MemError> {
        let mut copied = 0;
        for gva in pages {
            let Some(leaf) = self.walk(mem, gva) else {
                continue;
            };
            if !mem.is_frozen(leaf.gpa) || !may_keep(gva) {
                continue;
            }
            match self.copy_page(mem, gva, leaf.flags | PteFlags::WRITE, Cause::Earlier) {
                Ok(_) => {
                    mem.start_count();
                    copied += 1;
                }
                Err(MemError::FileFault(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let _nothing_ran = self.take_pending();
        Ok(copied)
    }

    /// Puts the tables and private memory of a fork back to the frozen state. The guest must not run
    /// meanwhile, nor afterwards before the pending flush is discharged.
    ///
    /// - A copied page ([`PageTables::copy_frozen`]) that is still mapped, and that `may_keep` allows to
    ///   be private and writable, is made equal to the frozen page and stays mapped with the right to
    ///   write, so that the next request writes it without a fault. One that hundreds of resets in a
    ///   row found equal is given up.
    /// - Every other leaf becomes what it was. Tables that were added or that replaced a 2 MiB leaf
    ///   stay.
    /// - All other private memory is free and wiped; files that the fork mapped are unmapped.
    /// - [`GuestMemory::used_bytes`] and [`GuestMemory::peak_bytes`] are as in a new fork: kept copies and
    ///   tables do not count.
    ///
    /// # Errors
    /// [`MemError::NeedsRebuild`] when this is no fork or tables have been freed (execve): nothing has
    /// changed. After any other error the fork must be dropped.
    pub fn reset(
        &mut self,
        mem: &mut GuestMemory,
        mut may_keep: impl FnMut(Gva) -> bool,
    ) -> Result<ResetReport, MemError> {
        let mut undo = match self.undo.take() {
            Some(undo) if !undo.needs_rebuild => undo,
            other => {
                self.undo = other;
                return Err(MemError::NeedsRebuild);
            }
        };
        let mut report = ResetReport::default();
        mem.count_all();
        let UndoLog { tables, .. } = &mut *undo;
        for log in tables {
            self.reset_table(mem, log, &mut may_keep, &mut report);
        }
        self.undo = Some(undo);
        let reuse = match self.pending.is_none() {
            true => Reuse::Now,
            false => Reuse::AfterFlush,
        };
        mem.clear_files()?;
        report.scrubbed_pages = mem.wipe_all(reuse);
        report.table_pages = mem.written_table_pages();
        mem.start_count();
        Ok(report)
    }

    fn reset_table(
        &mut self,
        mem: &mut GuestMemory,
        log: &mut TableLog,
        may_keep: &mut impl FnMut(Gva) -> bool,
        report: &mut ResetReport,
    ) {
        let mut copies = core::mem::take(&mut log.copies).into_iter().peekable();
        for index in log.touched.iter() {
            let (entry, gva) = (log.entry(index), log.gva(index));
            let (original, now) = (log.original(mem, index), mem.load_entry(entry));
            if log.level == 2 && now & PRESENT != 0 && now & LARGE == 0 {
                // A table: it stays.
                log.touched.remove(index);
                continue;
            }
            let mut wanted = original;
            if let Some(mut copy) = copies.next_if(|copy| copy.index == index) {
                let idle_max = log.idle_max(index);
                match restored(
                    mem,
                    &mut copy,
                    (original, now),
                    idle_max,
                    || may_keep(gva),
                    report,
                ) {
                    Some(leaf) => {
                        if copy.cause == Cause::Write {
                            report.copied_on_write.push(gva);
                            copy.cause = Cause::Earlier;
                        }
                        wanted = leaf.entry();
                        log.copies.push(copy);
                        report.kept_pages += 1;
                    }
                    None => {
                        log.note_given_up(index);
                        report.dropped_pages += 1;
                        report.dropped.push(gva);
                    }
                }
            }
            if wanted == original {
                log.touched.remove(index);
            }
            self.put_back(mem, entry, gva, log.level, now, wanted);
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

/// Restores a copy that is to be kept; answers its leaf. `None` if it is to be given up.
fn restored(
    mem: &mut GuestMemory,
    copy: &mut PageCopy,
    (original, now): (u64, u64),
    idle_max: u32,
    may_keep: impl FnOnce() -> bool,
    report: &mut ResetReport,
) -> Option<Leaf> {
    let (frozen, present) = (leaf_at(original, 1), leaf_at(now, 1));
    let in_place = original & PRESENT != 0 && now & PRESENT != 0 && present.gpa == copy.frame;
    if !in_place || !mem.is_frozen(frozen.gpa) || !may_keep() {
        return None;
    }
    if mem.restore_frame(frozen.gpa, copy.frame).ok()? {
        report.copied_pages += 1;
        copy.idle = 0;
    } else {
        report.compared_equal_pages += 1;
        copy.idle = copy.idle.saturating_add(1);
    }
    // A frame that was freed and used again could be the copy of two pages: the second loses it.
    if copy.idle >= idle_max || !mem.keep_frame(copy.frame) {
        return None;
    }
    Some(Leaf {
        gpa: copy.frame,
        size: PageSize::Base,
        flags: frozen.flags | PteFlags::WRITE,
    })
}

impl GuestMemory {
    /// Makes an anonymous frame equal to a frozen one; whether it differed.
    fn restore_frame(&mut self, frozen: Gpa, copy: Gpa) -> Result<bool, MemError> {
        let len = PAGE_SIZE as usize;
        let at_copy = |fault| failed(fault, copy, PAGE_SIZE);
        let at_frozen = |fault| failed(fault, frozen, PAGE_SIZE);
        let (map, copy_offset) = self.anon_mut(copy, PAGE_SIZE)?;
        let target = map.range_mut(copy_offset, len).map_err(at_copy)?;
        let (slot, offset) = self.locate(frozen, PAGE_SIZE)?;
        match &slot.store {
            Store::FrozenRam(map) => map.restore(offset, target).map_err(at_frozen),
            Store::FrozenFiles(files) => {
                let mut page = [0; PAGE_SIZE as usize];
                files.read(offset, &mut page).map_err(at_frozen)?;
                let (map, offset) = self.anon_mut(copy, PAGE_SIZE)?;
                map.restore(offset, &page).map_err(at_copy)
            }
            _ => Err(MemError::NotFrozen(Gva(0))),
        }
    }

    /// Counts all private memory: the beginning of a reset.
    fn count_all(&mut self) {
        for pool in [Pool::Ram, Pool::Blocks] {
            self.pool(pool).count_all();
        }
    }

    /// Has a base frame of the program survive resets uncounted; whether it was in use and counted.
    pub(crate) fn keep_frame(&mut self, gpa: Gpa) -> bool {
        match self.frame_at(gpa) {
            Some(at) if at.pool != Pool::Tables => self.pool(at.pool).uncount(at.block, at.index),
            _ => false,
        }
    }

    /// Starts the count anew: nothing that is there now counts.
    fn start_count(&mut self) {
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
