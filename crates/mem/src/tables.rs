//! [`PageTables`]: one guest address space in 4-level tables (SDM vol. 3A, 4.5).
//!
//! Rules kept here, whose reasons are in KVM's shadow paging:
//! - A not-present entry that becomes present needs no flush. Every other edit is recorded, except
//!   one that only adds rights to a base page (see `only_widens`).
//! - A used page-directory entry that points to a table never becomes a 2 MiB entry. Upper-level entries
//!   stay for the life of the address space: tables left empty are kept.
//! - Tables are freed only with the address space, and then by [`crate::Spaces`].
//! - A leaf over a frozen frame never gets [`PteFlags::WRITE`], whatever the caller asks for.

use kvmlet_abi::layout::{USER_END, VMM_AREA};
use kvmlet_abi::{Gpa, Gva, HUGE_PAGE_SIZE, PAGE_SIZE};

use crate::entry::{
    DIRTY, ENTRIES, FRAME, LARGE, LINK, Leaf, PRESENT, PageSize, PteFlags, ROOT_LEVEL, USER,
    USER_HALF_END, WRITE, entry_at, leaf_at, span,
};
use crate::error::{MemError, OutOfMemory};
use crate::memory::GuestMemory;
use crate::pending::{PendingFlush, StaleEntry, TABLE_WINDOW};
use crate::present::Shown;
use crate::undo::{Origin, UndoLog};
use crate::walk::retire_under;

/// The tables of a frozen address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Root {
    table: Gpa,
    table_frames: u64,
    shown: Shown,
}

/// One guest address space. [`crate::Spaces::end`] ends it; dropping it leaks its table frames until
/// the [`GuestMemory`] goes.
#[derive(Debug)]
pub struct PageTables {
    root: Gpa,
    table_frames: u64,
    pub(crate) pending: PendingFlush,
    pub(crate) shown: Shown,
    /// In a fork.
    pub(crate) undo: Option<Box<UndoLog>>,
}

impl PageTables {
    /// The frozen address space in a fork.
    pub(crate) fn of_fork(frozen: Root) -> Self {
        Self {
            root: frozen.table,
            table_frames: frozen.table_frames,
            pending: PendingFlush::None,
            shown: frozen.shown,
            undo: Some(Box::new(UndoLog::of(frozen.shown))),
        }
    }

    /// It as it is to be found by forks.
    pub(crate) fn frozen(&self) -> Root {
        Root {
            table: self.root,
            table_frames: self.table_frames,
            shown: self.shown,
        }
    }

    /// An empty address space.
    pub fn new(mem: &mut GuestMemory) -> Result<Self, OutOfMemory> {
        let mut tables = Self {
            root: mem.alloc_table_frame()?,
            table_frames: 1,
            pending: PendingFlush::None,
            shown: Shown::default(),
            undo: None,
        };
        tables.attach_window(mem);
        Ok(tables)
    }

    /// An empty address space that has the VMM's pages in common with `other`.
    pub(crate) fn beside(mem: &mut GuestMemory, other: &Self) -> Result<Self, OutOfMemory> {
        let mut tables = Self::new(mem)?;
        let made = tables.share_vmm_area(mem, other);
        if let Err(error) = made {
            // Never entered: KVM has no shadow of them.
            let mut dead = Vec::new();
            tables.retire(mem, &mut dead, &mut |_, _, _| {});
            dead.into_iter().for_each(|table| mem.free_frame(table));
            return Err(error);
        }
        Ok(tables)
    }

    /// Links the table of the VMM's pages, if `other` has it. All else of the top levels is its own.
    fn share_vmm_area(&mut self, mem: &mut GuestMemory, other: &Self) -> Result<(), OutOfMemory> {
        let mut table = other.root;
        for level in [4, 3] {
            let entry = mem.load_entry(entry_at(table, VMM_AREA.0, level));
            if entry & PRESENT == 0 {
                return Ok(());
            }
            table = Gpa(entry & FRAME);
        }
        let link = mem.load_entry(entry_at(table, VMM_AREA.0, 2));
        let at = self.entry_for(mem, VMM_AREA, 2)?;
        mem.store_entry(at, link);
        Ok(())
    }

    /// Makes the window of [`GuestMemory::expose_tables`] part of this address space; needed only for
    /// one made before that call.
    pub fn attach_window(&mut self, mem: &mut GuestMemory) {
        if let Some(window) = mem.table_window() {
            let at = entry_at(self.root, TABLE_WINDOW.0, ROOT_LEVEL);
            mem.store_entry(at, window.0 | (LINK & !USER));
        }
    }

    /// The top-level table: what CR3 holds.
    #[must_use]
    pub fn root(&self) -> Gpa {
        self.root
    }

    /// True if this is an address space of a fork that its frozen program had: a reset puts it back.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.undo.is_some()
    }

    /// User memory that it has leaves for.
    #[must_use]
    pub fn shown(&self) -> Shown {
        self.shown
    }

    /// Begins anew with the most that was shown: the address space is another one from now on.
    pub fn forget_peak(&mut self) {
        self.shown.peak_bytes = self.shown.bytes;
    }

    /// Table frames in use, the root included.
    #[must_use]
    pub fn table_frames(&self) -> u64 {
        self.table_frames
    }

    /// The flush that is due before the guest runs in this address space.
    pub fn pending(&self) -> &PendingFlush {
        &self.pending
    }

    /// Takes the pending flush: the caller discharges it, then calls
    /// [`GuestMemory::flush_discharged`].
    pub fn take_pending(&mut self) -> PendingFlush {
        core::mem::take(&mut self.pending)
    }

    /// Maps one page, replacing what is there; answers the leaf that was replaced (its frame is the
    /// caller's to free). A base page inside a 2 MiB page splits it. On error nothing has changed,
    /// but tables may have been added.
    pub fn map(
        &mut self,
        mem: &mut GuestMemory,
        gva: Gva,
        gpa: Gpa,
        size: PageSize,
        flags: PteFlags,
    ) -> Result<Option<Leaf>, MemError> {
        check_range(gva, size.bytes(), size)?;
        if !gpa.0.is_multiple_of(size.bytes()) {
            return Err(MemError::Misaligned(gpa.0));
        }
        let new = Leaf { gpa, size, flags };
        let at = self.entry_for(mem, gva, size.level())?;
        let old = mem.load_entry(at);
        if size == PageSize::Huge && old & PRESENT != 0 && old & LARGE == 0 {
            return Err(MemError::HasTable(gva));
        }
        let old = (old & PRESENT != 0).then(|| Leaf::from_entry(old, size));
        self.set_leaf(mem, at, gva, old, new);
        Ok(old)
    }

    /// Maps `pages` base pages onto consecutive frames. None of them may be present. On error nothing
    /// has changed, but tables may have been added.
    pub fn map_range(
        &mut self,
        mem: &mut GuestMemory,
        gva: Gva,
        gpa: Gpa,
        pages: u64,
        flags: PteFlags,
    ) -> Result<(), MemError> {
        let len = pages
            .checked_mul(PAGE_SIZE)
            .ok_or(MemError::BeyondUserHalf(gva))?;
        let end = check_range(gva, len, PageSize::Base)?;
        if !gpa.is_page_aligned() || gpa.checked_add(len).is_none() {
            return Err(MemError::Misaligned(gpa.0));
        }
        let free = self.absent_run(mem, gva, pages);
        if free < pages {
            return Err(MemError::AlreadyMapped(gva.wrapping_add(free * PAGE_SIZE)));
        }
        // All tables first, so that running out of memory leaves nothing mapped.
        let mut at = gva.0;
        while at < end {
            self.entry_for(mem, Gva(at), 1)?;
            at = (at | (HUGE_PAGE_SIZE - 1)) + 1;
        }
        let mut at = gva.0;
        while at < end {
            let stop = ((at | (HUGE_PAGE_SIZE - 1)) + 1).min(end);
            let mut entry = self.entry_for(mem, Gva(at), 1)?;
            while at < stop {
                let leaf = Leaf {
                    gpa: gpa.wrapping_add(at - gva.0),
                    size: PageSize::Base,
                    flags,
                };
                self.touch(entry, Gva(at), PageSize::Base);
                mem.store_entry(entry, allowed(mem, leaf).entry());
                self.shown.add(Gva(at), PageSize::Base);
                entry = entry.wrapping_add(8);
                at += PAGE_SIZE;
            }
        }
        Ok(())
    }

    /// Writes to a page as the CPU does for the program. Nobody takes note. The entry's dirty bit is set unless the TLB has
    /// it already. For tests of resets.
    #[doc(hidden)]
    pub fn write_as_guest(
        &mut self,
        mem: &mut GuestMemory,
        gva: Gva,
        bytes: &[u8],
        is_dirty_in_tlb: bool,
    ) -> bool {
        let writable = |leaf: &Leaf| leaf.flags.contains(PteFlags::WRITE);
        let Some(leaf) = self.walk(mem, gva).filter(writable) else {
            return false;
        };
        let Ok(at) = self.entry_for(mem, gva, leaf.size.level()) else {
            return false;
        };
        let entry = mem.load_entry(at);
        if !is_dirty_in_tlb {
            mem.store_entry(at, entry | DIRTY);
        }
        mem.write_unmarked(leaf.gpa_of(gva), bytes)
    }

    /// Takes the dirty bit from the entry of a base page, and records the flush that this needs. True if it had one.
    pub fn take_dirty(&mut self, mem: &mut GuestMemory, gva: Gva) -> bool {
        let Some(leaf) = self.walk(mem, gva) else {
            return false;
        };
        // The leaf is there, so its tables are: nothing is allocated.
        let Ok(at) = self.entry_for(mem, gva, leaf.size.level()) else {
            return false;
        };
        let entry = mem.load_entry(at);
        if entry & DIRTY == 0 {
            return false;
        }
        mem.store_entry(at, entry & !DIRTY);
        self.record(gva.page_down(), at, leaf.size);
        true
    }

    /// The first address from `gva` on, below `end`, for which there is a last table or a 2 MiB page; `end` if
    /// there is none. What lies before costs next to nothing to walk.
    #[must_use]
    pub fn skip_untabled(&self, mem: &GuestMemory, gva: Gva, end: u64) -> u64 {
        let end = end.min(USER_HALF_END);
        let mut at = gva.0;
        while at < end {
            match self.probe(mem, Gva(at)) {
                Err(absent_bytes) if absent_bytes > PAGE_SIZE => {
                    at = (at | (absent_bytes - 1)) + 1;
                }
                _ => break,
            }
        }
        at.min(end)
    }

    /// Number of pages directly below `gva` that are present, at most `max_pages`.
    #[must_use]
    pub fn present_run_below(&self, mem: &GuestMemory, gva: Gva, max_pages: u64) -> u64 {
        let end = gva.page_down().0;
        let start = end.saturating_sub(max_pages.saturating_mul(PAGE_SIZE));
        let mut at = end;
        while at > start {
            match self.probe(mem, Gva(at - PAGE_SIZE)) {
                Ok(leaf) => at = (at - PAGE_SIZE) & !(leaf.size.bytes() - 1),
                Err(_) => break,
            }
        }
        (end - at.max(start)) / PAGE_SIZE
    }

    /// True if a 2 MiB entry could be put at `gva` (rounded down): nothing is there and never was a
    /// table.
    #[must_use]
    pub fn can_map_huge(&self, mem: &GuestMemory, gva: Gva) -> bool {
        gva.0 < USER_HALF_END
            && matches!(self.probe(mem, gva), Err(absent_bytes) if absent_bytes >= HUGE_PAGE_SIZE)
    }

    /// The leaf that maps `gva`.
    #[must_use]
    pub fn walk(&self, mem: &GuestMemory, gva: Gva) -> Option<Leaf> {
        if gva.0 >= USER_HALF_END {
            return None;
        }
        self.probe(mem, gva).ok()
    }

    /// The guest-physical address of `gva`, whatever its rights.
    #[must_use]
    pub fn translate(&self, mem: &GuestMemory, gva: Gva) -> Option<Gpa> {
        self.walk(mem, gva).map(|leaf| leaf.gpa_of(gva))
    }

    /// Removes every leaf of a page-aligned range and calls `removed` for each, in address order; its
    /// frame is the callee's to free or unmap. A 2 MiB page only partly in the range is split, which
    /// may need memory: on error nothing has been removed.
    pub fn unmap_range(
        &mut self,
        mem: &mut GuestMemory,
        gva: Gva,
        len_bytes: u64,
        removed: impl FnMut(&mut GuestMemory, Gva, Leaf),
    ) -> Result<(), MemError> {
        self.remove_range(mem, gva, len_bytes, |_, _| true, removed)
    }

    /// As [`PageTables::unmap_range`], for a range whose file windows the caller unmaps
    /// ([`GuestMemory::unmap_file`]) before the guest runs again. When the host takes a page out of a slot,
    /// KVM drops every translation to it, the TLB's included. So these leaves need no flush of ours.
    /// Other leaves do, those of frozen and shared windows among them, which stay mapped. If a window cannot be
    /// unmapped, [`PageTables::require_full_flush`] makes up for it.
    pub fn unmap_with_windows(
        &mut self,
        mem: &mut GuestMemory,
        gva: Gva,
        len_bytes: u64,
        removed: impl FnMut(&mut GuestMemory, Gva, Leaf),
    ) -> Result<(), MemError> {
        let stays = |mem: &GuestMemory, gpa| {
            !mem.is_file_backed(gpa) || mem.is_frozen(gpa) || mem.is_shared_window(gpa)
        };
        self.remove_range(mem, gva, len_bytes, stays, removed)
    }

    /// Removes the leaves of a range; a flush is recorded for those whose memory `needs_flush`.
    fn remove_range(
        &mut self,
        mem: &mut GuestMemory,
        gva: Gva,
        len_bytes: u64,
        needs_flush: impl Fn(&GuestMemory, Gpa) -> bool,
        mut removed: impl FnMut(&mut GuestMemory, Gva, Leaf),
    ) -> Result<(), MemError> {
        self.edit_range(mem, gva, len_bytes, |tables, mem, entry, gva, leaf| {
            tables.touch(entry, gva, leaf.size);
            mem.store_entry(entry, 0);
            tables.shown.remove(gva, leaf.size);
            if needs_flush(mem, leaf.gpa) {
                let window = mem.private_window(leaf);
                tables.record_of(gva, entry, leaf.size, window);
            }
            removed(mem, gva, leaf);
        })
    }

    /// Records that everything must be flushed.
    pub fn require_full_flush(&mut self) {
        self.pending = PendingFlush::All;
    }

    /// Gives every leaf of a page-aligned range these rights. A 2 MiB page only partly in the range is
    /// split, which may need memory: on error no right has changed.
    pub fn protect_range(
        &mut self,
        mem: &mut GuestMemory,
        gva: Gva,
        len_bytes: u64,
        flags: PteFlags,
    ) -> Result<(), MemError> {
        self.edit_range(mem, gva, len_bytes, |tables, mem, entry, gva, leaf| {
            tables.set_leaf(mem, entry, gva, Some(leaf), Leaf { flags, ..leaf });
        })
    }

    /// As [`PageTables::protect_range`], for private memory: a leaf with a frame that somebody else has too does
    /// not become writable.
    ///
    /// # Errors
    /// As [`PageTables::protect_range`].
    pub fn protect_private_range(
        &mut self,
        mem: &mut GuestMemory,
        gva: Gva,
        len_bytes: u64,
        flags: PteFlags,
    ) -> Result<(), MemError> {
        self.edit_range(mem, gva, len_bytes, |tables, mem, entry, gva, leaf| {
            let is_shared = flags.contains(PteFlags::WRITE) && mem.is_shared(leaf);
            let flags = match is_shared {
                true => flags - PteFlags::WRITE,
                false => flags,
            };
            tables.set_leaf(mem, entry, gva, Some(leaf), Leaf { flags, ..leaf });
        })
    }

    // ---- the end ----------------------------------------------------------------------------

    /// Ends the address space. It must not be loaded in a virtual CPU any more when its tables are used
    /// again. `removed` is called for each leaf below [`USER_END`]. Every table but those in common with
    /// others is added to `dead`.
    pub(crate) fn retire(
        self,
        mem: &mut GuestMemory,
        dead: &mut Vec<Gpa>,
        removed: &mut dyn FnMut(&mut GuestMemory, Gva, Leaf),
    ) {
        // The VMM's pages and the window are in common with other spaces.
        let user = (0, USER_END.0);
        retire_under(mem, (self.root, ROOT_LEVEL), user, dead, removed);
    }

    /// Takes out what a fork's frozen address space has beside frozen frames and copies of them. `removed`
    /// is called for each leaf that goes. A reset finds all else in place.
    pub(crate) fn detach(
        &mut self,
        mem: &mut GuestMemory,
        removed: &mut dyn FnMut(&mut GuestMemory, Gva, Leaf),
    ) {
        let mut leaves = Vec::new();
        let len_bytes = USER_END.0;
        let _range_is_fine = self.for_each_leaf(mem, Gva(0), len_bytes, |gva, leaf| {
            if !mem.is_frozen(leaf.gpa) {
                leaves.push((gva, leaf));
            }
        });
        for (gva, leaf) in leaves {
            // The leaf is there, so its tables are: nothing is allocated.
            let Ok(entry) = self.entry_for(mem, gva, leaf.size.level()) else {
                continue;
            };
            let is_copy = self
                .undo
                .as_ref()
                .is_some_and(|undo| undo.has_copy(entry, leaf.gpa));
            if !is_copy {
                self.touch(entry, gva, leaf.size);
                mem.store_entry(entry, 0);
                self.shown.remove(gva, leaf.size);
                self.record(gva, entry, leaf.size);
                removed(mem, gva, leaf);
            }
        }
    }

    // ---- walking ----------------------------------------------------------------------------

    /// The leaf at `gva`, or the size of the aligned stretch around it that has none.
    fn probe(&self, mem: &GuestMemory, gva: Gva) -> Result<Leaf, u64> {
        let mut table = self.root;
        let mut level = ROOT_LEVEL;
        loop {
            let entry = mem.load_entry(entry_at(table, gva.0, level));
            if entry & PRESENT == 0 {
                return Err(span(level));
            }
            match level {
                1 => return Ok(Leaf::from_entry(entry, PageSize::Base)),
                2 if entry & LARGE != 0 => return Ok(Leaf::from_entry(entry, PageSize::Huge)),
                _ => {}
            }
            table = Gpa(entry & FRAME);
            level -= 1;
        }
    }

    /// The table with the last-level entry of `gva`; `None` under a 2 MiB page, and where there is no table.
    pub(crate) fn last_table(&self, mem: &GuestMemory, gva: Gva) -> Option<Gpa> {
        (2..=ROOT_LEVEL).rev().try_fold(self.root, |table, level| {
            let entry = mem.load_entry(entry_at(table, gva.0, level));
            let is_link = entry & PRESENT != 0 && (level != 2 || entry & LARGE == 0);
            is_link.then_some(Gpa(entry & FRAME))
        })
    }

    /// Address of the entry of `gva` at `level` (1 or 2), making the tables above it and splitting a
    /// 2 MiB page in the way.
    pub(crate) fn entry_for(
        &mut self,
        mem: &mut GuestMemory,
        gva: Gva,
        level: u32,
    ) -> Result<Gpa, OutOfMemory> {
        let mut table = self.root;
        let mut at_level = ROOT_LEVEL;
        while at_level > level {
            let at = entry_at(table, gva.0, at_level);
            let mut entry = mem.load_entry(at);
            if entry & PRESENT == 0 {
                let new = mem.alloc_table_frame()?;
                self.table_frames += 1;
                match &mut self.undo {
                    Some(undo) if at_level == 2 => {
                        undo.add_last_level(mem, at, gva, new, entry);
                    }
                    Some(undo) => undo.add_table(new, gva, at_level - 1, Origin::Added),
                    None => {}
                }
                entry = new.0 | LINK;
                mem.store_entry(at, entry);
            } else if at_level == 2 && entry & LARGE != 0 {
                entry = self.split(mem, gva, at, entry)?;
            }
            table = Gpa(entry & FRAME);
            at_level -= 1;
        }
        Ok(entry_at(table, gva.0, level))
    }

    /// Replaces a 2 MiB entry by a table of 512 base entries with the same frames and rights; answers
    /// the new entry.
    fn split(
        &mut self,
        mem: &mut GuestMemory,
        gva: Gva,
        at: Gpa,
        entry: u64,
    ) -> Result<u64, OutOfMemory> {
        let huge = Leaf::from_entry(entry, PageSize::Huge);
        let table = mem.alloc_table_frame()?;
        self.table_frames += 1;
        for index in 0..ENTRIES {
            let leaf = huge.piece(index);
            mem.store_entry(table.wrapping_add(index * 8), leaf.entry());
        }
        if let Some(undo) = &mut self.undo {
            undo.add_last_level(mem, at, gva, table, entry);
        }
        let link = table.0 | LINK;
        mem.store_entry(at, link);
        self.record(gva.huge_down(), at, PageSize::Huge);
        Ok(link)
    }

    // ---- editing ----------------------------------------------------------------------------

    /// Calls `edit` with the entry address, start and leaf of every leaf in the range, after splitting
    /// the 2 MiB pages that the range cuts.
    fn edit_range(
        &mut self,
        mem: &mut GuestMemory,
        gva: Gva,
        len_bytes: u64,
        mut edit: impl FnMut(&mut Self, &mut GuestMemory, Gpa, Gva, Leaf),
    ) -> Result<(), MemError> {
        let end = check_range(gva, len_bytes, PageSize::Base)?;
        for edge in [gva.0, end] {
            if edge.is_multiple_of(HUGE_PAGE_SIZE) {
                continue;
            }
            if let Some(Leaf {
                size: PageSize::Huge,
                ..
            }) = self.walk(mem, Gva(edge))
            {
                self.entry_for(mem, Gva(edge), 1)?;
            }
        }
        let mut at = gva.0;
        while at < end {
            at = match self.probe(mem, Gva(at)) {
                Err(absent_bytes) if absent_bytes > PAGE_SIZE => (at | (absent_bytes - 1)) + 1,
                Ok(leaf) if leaf.size == PageSize::Huge => {
                    let entry = self.entry_for(mem, Gva(at), 2)?;
                    edit(self, mem, entry, Gva(at), leaf);
                    at + HUGE_PAGE_SIZE
                }
                _ => {
                    let stop = ((at | (HUGE_PAGE_SIZE - 1)) + 1).min(end);
                    let mut slot = self.entry_for(mem, Gva(at), 1)?;
                    while at < stop {
                        let entry = mem.load_entry(slot);
                        if entry & PRESENT != 0 {
                            let leaf = Leaf::from_entry(entry, PageSize::Base);
                            edit(self, mem, slot, Gva(at), leaf);
                        }
                        slot = slot.wrapping_add(8);
                        at += PAGE_SIZE;
                    }
                    stop
                }
            };
        }
        Ok(())
    }

    /// Stores a leaf and records the flush that replacing `old` needs.
    fn set_leaf(
        &mut self,
        mem: &mut GuestMemory,
        entry: Gpa,
        gva: Gva,
        old: Option<Leaf>,
        new: Leaf,
    ) {
        let new = allowed(mem, new);
        if old == Some(new) {
            return;
        }
        self.touch(entry, gva, new.size);
        mem.store_entry(entry, new.entry());
        match old {
            None => self.shown.add(gva, new.size),
            Some(old) if !only_widens(old, new) => {
                self.record_of(gva, entry, new.size, mem.private_window(old));
            }
            Some(_) => {}
        }
    }

    /// Notes for the next reset that a leaf entry is about to change.
    fn touch(&mut self, entry: Gpa, gva: Gva, size: PageSize) {
        if let Some(undo) = &mut self.undo {
            undo.touch(entry, gva, size.level());
        }
    }

    pub(crate) fn record(&mut self, gva: Gva, entry: Gpa, size: PageSize) {
        self.record_of(gva, entry, size, None);
    }

    /// As [`PageTables::record`], of an entry that showed the page of a file window.
    fn record_of(&mut self, gva: Gva, entry: Gpa, size: PageSize, window: Option<Gpa>) {
        self.pending.add(StaleEntry {
            gva,
            entry,
            size,
            window,
        });
    }

    pub(crate) fn record_all(&mut self, stale: impl Iterator<Item = StaleEntry>) {
        self.pending.extend(stale);
    }

    /// Takes the right to write from every leaf of the user half, at and under `table`, whose frame the
    /// forks will share.
    pub(crate) fn write_protect(&self, mem: &mut GuestMemory) {
        self.protect_under(mem, self.root, ROOT_LEVEL);
    }

    fn protect_under(&self, mem: &mut GuestMemory, table: Gpa, level: u32) {
        let entries = match level {
            ROOT_LEVEL => ENTRIES / 2,
            _ => ENTRIES,
        };
        for index in 0..entries {
            let at = table.wrapping_add(index * 8);
            let entry = mem.load_entry(at);
            if entry & PRESENT == 0 {
                continue;
            }
            if level > 1 && !(level == 2 && entry & LARGE != 0) {
                self.protect_under(mem, Gpa(entry & FRAME), level - 1);
            } else if entry & WRITE != 0 && !mem.is_table_memory(leaf_at(entry, level).gpa) {
                mem.store_entry(at, entry & !(WRITE | DIRTY));
            }
        }
    }
}

/// Whether `new` maps the same frame and takes no right away. Such an edit needs no flush: a stale
/// translation can only fault too often. The faulting access drops it (SDM vol. 3A, 4.10.4.1), and
/// KVM's shadow paging walks the guest's tables anew on each fault before it passes one on. The
/// guest may see one spurious fault; whoever handles it finds the access allowed and resumes.
/// 2 MiB entries are excepted: KVM may have shadowed one by a table of its own whose rights are
/// those of the old entry.
pub(crate) fn only_widens(old: Leaf, new: Leaf) -> bool {
    let grants = |leaf: Leaf| leaf.flags ^ PteFlags::NX;
    old.size == PageSize::Base && old.gpa == new.gpa && grants(new).contains(grants(old))
}

/// The leaf without the right to write if its frame is frozen.
fn allowed(mem: &GuestMemory, leaf: Leaf) -> Leaf {
    let mut flags = leaf.flags;
    if flags.contains(PteFlags::WRITE) && mem.is_frozen(leaf.gpa) {
        flags.remove(PteFlags::WRITE);
    }
    Leaf { flags, ..leaf }
}

/// The end of a range that must be non-empty, aligned and in the user half.
pub(crate) fn check_range(gva: Gva, len_bytes: u64, size: PageSize) -> Result<u64, MemError> {
    let aligned = gva.0.is_multiple_of(size.bytes()) && len_bytes.is_multiple_of(size.bytes());
    if !aligned || len_bytes == 0 {
        return Err(MemError::Misaligned(gva.0));
    }
    gva.0
        .checked_add(len_bytes)
        .filter(|&end| end <= USER_HALF_END)
        .ok_or(MemError::BeyondUserHalf(gva))
}
