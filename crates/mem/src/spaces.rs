//! [`Spaces`]: the address spaces of one VM, those that are gone, and the tables that they leave.
//!
//! KVM's shadow paging knows a table by its frame, and keeps its shadow of it when the table has gone.
//! A frame that became another table would show what the old one mapped. So the frames of a space that
//! ends are **dead**: they are handed out again only after the shadows are dropped
//! ([`Spaces::dead_stores`]).

mod spares;

use std::collections::BTreeMap;

use kvmlet_abi::{Gpa, Gva};

use crate::MmId;
use crate::entry::Leaf;
use crate::error::{MemError, OutOfMemory};
use crate::memory::GuestMemory;
use crate::pending::{PendingFlush, whole_table_store};
use crate::reset::{DirtyBits, ResetReport};
use crate::tables::{PageTables, Root};
use spares::Spare;

/// Dead tables that wait for others before their shadows are dropped together.
const DEAD_MAX: usize = 64;

/// The address spaces of one VM, by name. One of them is the first, and there always is one.
#[derive(Debug, Default)]
pub struct Spaces {
    live: BTreeMap<MmId, PageTables>,
    /// Frozen ones that no process of this fork has any more: a reset needs them.
    detached: BTreeMap<MmId, PageTables>,
    /// Those that may become copies of other spaces, the oldest first.
    spares: Vec<Spare>,
    /// Tables of spaces that are gone.
    dead: Vec<Gpa>,
    /// Dead tables whose shadows the next run of the vCPU drops.
    leaving: Vec<Gpa>,
    dirty_bits: DirtyBits,
}

impl Spaces {
    /// A program's only address space, [`MmId::FIRST`].
    #[must_use]
    pub fn new(first: PageTables) -> Self {
        Self {
            live: BTreeMap::from([(MmId::FIRST, first)]),
            ..Self::default()
        }
    }

    pub(crate) fn of_fork(live: BTreeMap<MmId, PageTables>) -> Self {
        Self {
            live,
            ..Self::default()
        }
    }

    /// Says from the first reset on if dirty bits tell what the guest has written. The caller has tried it on this KVM.
    pub fn rely_on_dirty_bits(&mut self, dirty_bits: DirtyBits) {
        self.dirty_bits = dirty_bits;
    }

    /// The value of [`Spaces::rely_on_dirty_bits`].
    #[must_use]
    pub fn dirty_bits(&self) -> DirtyBits {
        self.dirty_bits
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, id: MmId) -> Option<&PageTables> {
        self.live.get(&id)
    }

    /// One of them, to be changed.
    pub fn get_mut(&mut self, id: MmId) -> Option<&mut PageTables> {
        self.live.get_mut(&id)
    }

    /// Two of them, to be changed together.
    pub fn pair_mut(
        &mut self,
        one: MmId,
        other: MmId,
    ) -> Option<(&mut PageTables, &mut PageTables)> {
        let (mut first, mut second) = (None, None);
        for (id, tables) in &mut self.live {
            if *id == one {
                first = Some(tables);
            } else if *id == other {
                second = Some(tables);
            }
        }
        first.zip(second)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (MmId, &PageTables)> {
        self.live.iter().map(|(id, tables)| (*id, tables))
    }

    /// Those that were frozen, in use or not.
    fn frozen(&self) -> impl Iterator<Item = &PageTables> {
        self.live.values().chain(self.detached.values())
    }

    /// Makes an empty address space that has the VMM's pages in common with the others.
    ///
    /// # Errors
    /// [`OutOfMemory`]; there is no such space then.
    pub fn create(&mut self, mem: &mut GuestMemory, id: MmId) -> Result<(), OutOfMemory> {
        let model = self.frozen().next().ok_or(OutOfMemory::Exhausted)?;
        let tables = PageTables::beside(mem, model)?;
        debug_assert!(!self.live.contains_key(&id), "a name is used once");
        self.live.insert(id, tables);
        Ok(())
    }

    /// Ends an address space, which must not be entered again. `removed` is called for each leaf below
    /// [`kvmlet_abi::layout::USER_END`] that a reset does not need.
    pub fn end(
        &mut self,
        mem: &mut GuestMemory,
        id: MmId,
        mut removed: impl FnMut(&mut GuestMemory, Gva, Leaf),
    ) {
        let Some(mut tables) = self.live.remove(&id) else {
            return;
        };
        self.end_spares_of(mem, id, &mut removed);
        if tables.undo.is_some() {
            tables.detach(mem, &mut removed);
            self.detached.insert(id, tables);
        } else {
            tables.retire(mem, &mut self.dead, &mut removed);
        }
    }

    // ---- flushes --------------------------------------------------------------------------------

    /// The flush that is due before ring 3 runs in this address space; the caller discharges it.
    /// Others keep theirs: what they translated is not used before they are entered.
    pub fn take_pending(&mut self, id: MmId) -> PendingFlush {
        let tables = self.live.get_mut(&id);
        tables.map_or(PendingFlush::None, PageTables::take_pending)
    }

    /// Everything has been flushed: nothing is stale, and dead tables may be handed out.
    pub fn all_flushed(&mut self, mem: &mut GuestMemory) {
        for tables in self.live.values_mut().chain(self.detached.values_mut()) {
            let _flushed = tables.take_pending();
        }
        self.leaving.append(&mut self.dead);
        self.dead_flushed(mem);
    }

    /// True if [`Spaces::dead_flushed`] is due once a flush is through.
    #[must_use]
    pub fn has_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// True if enough tables are dead to be worth a flush.
    #[must_use]
    pub fn has_many_dead(&self) -> bool {
        self.leaving.is_empty() && self.dead.len() >= DEAD_MAX
    }

    /// Addresses at which code at CPL 0 must store a byte so that KVM's shadows of dead tables go: at most
    /// `count_max` of them. [`Spaces::dead_flushed`] says that it has.
    pub fn dead_stores(&mut self, count_max: usize) -> Vec<Gva> {
        let from = self.dead.len().saturating_sub(count_max);
        self.leaving.extend(self.dead.drain(from..));
        self.leaving
            .iter()
            .copied()
            .map(whole_table_store)
            .collect()
    }

    /// The stores of [`Spaces::dead_stores`] have been made: the frames may be handed out again.
    pub fn dead_flushed(&mut self, mem: &mut GuestMemory) {
        for table in self.leaving.drain(..) {
            mem.free_frame(table);
        }
        mem.release_tables();
    }

    // ---- freezing and resetting -----------------------------------------------------------------

    /// Takes the right to write frozen frames from every leaf, and frees the tables that no frozen
    /// program has. No VM has this memory any more. Answers the roots and the count of tables of each space.
    pub(crate) fn freeze(mut self, mem: &mut GuestMemory) -> BTreeMap<MmId, Root> {
        self.give_up_spares(mem, |mem, _, leaf| mem.free_leaf(leaf));
        for (_, tables) in core::mem::take(&mut self.detached) {
            tables.retire(mem, &mut self.dead, &mut |_, _, _| {});
        }
        self.all_flushed(mem);
        let roots = self.live.iter().map(|(id, tables)| {
            tables.write_protect(mem);
            (*id, tables.frozen())
        });
        roots.collect()
    }

    /// Copies of frozen pages that this fork has.
    #[must_use]
    pub fn copies(&self) -> u64 {
        self.frozen().map(PageTables::copies).sum()
    }

    /// Those that were made since the last reset because the page was written.
    #[must_use]
    pub fn written_copies(&self) -> u64 {
        self.frozen().map(PageTables::written_copies).sum()
    }

    /// Copies pages ahead, with the right to write. For a new fork that has not run: nothing is left to
    /// be flushed, and nothing counts as used. Pages that are not mapped or not frozen, that `may_keep`
    /// denies or that a file has lost are passed over. Answers how many were copied.
    ///
    /// # Errors
    /// [`MemError::OutOfMemory`]; what was copied so far is fine.
    pub fn copy_ahead(
        &mut self,
        mem: &mut GuestMemory,
        pages: impl Iterator<Item = (MmId, Gva)>,
        mut may_keep: impl FnMut(MmId, Gva) -> bool,
    ) -> Result<u64, MemError> {
        let pages: Vec<_> = pages.filter(|&(id, gva)| may_keep(id, gva)).collect();
        for (id, tables) in &self.live {
            let own = pages.iter().filter(|(of, _)| of == id);
            tables.expect_writes(mem, own.map(|(_, gva)| *gva));
        }
        mem.expect_frames(pages.len());
        let copied = self.copy_soon(mem, pages.into_iter(), |_, _| true);
        for tables in self.live.values_mut() {
            let _nothing_has_run = tables.take_pending();
        }
        mem.start_count();
        copied
    }

    /// As [`Spaces::copy_ahead`], for a fork whose VM may have run another one: what has to be flushed stays pending.
    ///
    /// # Errors
    /// As [`Spaces::copy_ahead`].
    pub fn copy_soon(
        &mut self,
        mem: &mut GuestMemory,
        pages: impl Iterator<Item = (MmId, Gva)>,
        mut may_keep: impl FnMut(MmId, Gva) -> bool,
    ) -> Result<u64, MemError> {
        let mut copied = 0;
        for (id, gva) in pages {
            if let Some(tables) = self.live.get_mut(&id) {
                let is_copied = tables.copy_page_soon(mem, gva, |gva| may_keep(id, gva))?;
                copied += u64::from(is_copied);
            }
        }
        Ok(copied)
    }

    /// The pages of [`Spaces::written_copies`], in no order.
    pub fn written_pages(&self) -> impl Iterator<Item = (MmId, Gva)> {
        let spaces = self.live.iter().chain(&self.detached);
        spaces.flat_map(|(id, tables)| tables.written_pages().map(|gva| (*id, gva)))
    }

    /// Puts the address spaces and private memory of a fork back to the frozen state. The guest must not run
    /// meanwhile, nor afterwards before the pending flushes are discharged.
    ///
    /// - A copied page ([`PageTables::copy_frozen`]) is kept if it is still mapped and `may_keep` allows it
    ///   to be private and writable. It is made equal to the frozen page and stays mapped with the right
    ///   to write. So the next request writes it without a fault. One that hundreds of resets in a
    ///   row found equal is given up. `may_keep` is about the frozen program, not about what became of
    ///   it: it is asked only by the first reset after the page was copied.
    /// - Every other leaf becomes what it was. Tables that were added or that replaced a 2 MiB leaf
    ///   stay.
    /// - Address spaces made since are gone; those that ended are there again.
    /// - All other private memory is free and wiped; files that the fork mapped are unmapped.
    /// - [`GuestMemory::used_bytes`] and [`GuestMemory::peak_bytes`] are as in a new fork: kept copies and
    ///   tables do not count.
    ///
    /// # Errors
    /// [`MemError::NeedsRebuild`] when this is no fork: nothing has changed. After any other error the
    /// fork must be dropped.
    pub fn reset(
        &mut self,
        mem: &mut GuestMemory,
        mut may_keep: impl FnMut(MmId, Gva) -> bool,
    ) -> Result<ResetReport, MemError> {
        if !mem.is_fork() {
            return Err(MemError::NeedsRebuild);
        }
        mem.spare_blocks.clear();
        // The frames of what a request has made are wiped with all that is not kept.
        self.give_up_spares(mem, |_, _, _| {});
        self.live.append(&mut self.detached);
        let of_request = |(id, tables): (&MmId, &PageTables)| tables.undo.is_none().then_some(*id);
        let of_request: Vec<MmId> = self.live.iter().filter_map(of_request).collect();
        for id in of_request {
            self.end(mem, id, |_, _, _| {});
        }
        let mut report = ResetReport::default();
        mem.begin_reset();
        let mut is_flushed = true;
        for (id, tables) in &mut self.live {
            tables.reset_entries(mem, *id, self.dirty_bits, &mut may_keep, &mut report);
            is_flushed &= tables.pending().is_none();
        }
        mem.end_reset(is_flushed, &mut report)?;
        Ok(report)
    }
}
