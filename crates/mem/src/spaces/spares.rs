//! Spares: address spaces of children that have ended, kept with their leaves for the next copy of the same parent.
//!
//! KVM fills its shadow of a new table entry by entry, and that is most of what a short-lived child costs. A
//! spare's entries have been filled. What is equal in the next child stays as it is; only what differs is
//! edited, with a flush as in any other address space.

use kvmlet_abi::Gva;
use kvmlet_abi::layout::USER_END;

use super::Spaces;
use crate::MmId;
use crate::entry::{Leaf, PageSize};
use crate::memory::GuestMemory;
use crate::tables::PageTables;

/// Spares at most; the oldest goes first.
const SPARES_MAX: usize = 4;
/// The most that a spare may show. Beyond it, comparing costs more than it saves.
const SHOWN_MAX_BYTES: u64 = 16 << 20;
/// Private memory of a spare at most.
const PRIVATE_MAX_BYTES: u64 = 2 << 20;
/// The share of the limit on memory that a spare may have, as a divisor.
const PRIVATE_SHARE: u64 = 64;

/// An address space that is nobody's.
#[derive(Debug)]
pub(super) struct Spare {
    /// The address space that it was a copy of.
    of: MmId,
    tables: PageTables,
}

impl Spaces {
    /// Ends an address space that was a copy of `of`. It is kept as a spare if it is small and memory is plenty: then
    /// its leaves keep their references. Else as [`Spaces::end`].
    pub fn end_copy(
        &mut self,
        mem: &mut GuestMemory,
        (id, of): (MmId, MmId),
        mut removed: impl FnMut(&mut GuestMemory, Gva, Leaf),
    ) {
        let is_kept = self.live.contains_key(&of)
            && self
                .live
                .get(&id)
                .is_some_and(|tables| is_worth_keeping(tables, mem));
        if !is_kept {
            self.end(mem, id, removed);
            return;
        }
        if let Some(tables) = self.live.remove(&id) {
            // No other copy of it will be made.
            self.end_spares_of(mem, id, &mut removed);
            self.spares.push(Spare { of, tables });
        }
        if self.spares.len() > SPARES_MAX {
            let oldest = self.spares.remove(0);
            oldest.tables.retire(mem, &mut self.dead, &mut removed);
        }
    }

    /// Makes the newest spare of `of` the address space `id`; false if there is none. It has the leaves that it had: the
    /// caller makes them what they are to be before it is entered.
    pub fn revive(&mut self, id: MmId, of: MmId) -> bool {
        let Some(at) = self.spares.iter().rposition(|spare| spare.of == of) else {
            return false;
        };
        debug_assert!(!self.live.contains_key(&id), "a name is used once");
        self.live.insert(id, self.spares.remove(at).tables);
        true
    }

    /// True if there are spares and memory is not plenty any more: [`Spaces::give_up_spares`] is due.
    #[must_use]
    pub fn has_dear_spares(&self, mem: &GuestMemory) -> bool {
        !self.spares.is_empty() && !mem.is_plenty()
    }

    /// Ends all spares. `removed` is called for each leaf.
    pub fn give_up_spares(
        &mut self,
        mem: &mut GuestMemory,
        mut removed: impl FnMut(&mut GuestMemory, Gva, Leaf),
    ) {
        for spare in core::mem::take(&mut self.spares) {
            spare.tables.retire(mem, &mut self.dead, &mut removed);
        }
    }

    /// Ends the spares of an address space that ends.
    pub(super) fn end_spares_of(
        &mut self,
        mem: &mut GuestMemory,
        of: MmId,
        removed: &mut dyn FnMut(&mut GuestMemory, Gva, Leaf),
    ) {
        let mut at = 0;
        while let Some(spare) = self.spares.get(at) {
            if spare.of == of {
                let spare = self.spares.remove(at);
                spare.tables.retire(mem, &mut self.dead, removed);
            } else {
                at += 1;
            }
        }
    }

    /// The tables of the spares. For tests of references.
    #[doc(hidden)]
    pub fn spares(&self) -> impl Iterator<Item = &PageTables> {
        self.spares.iter().map(|spare| &spare.tables)
    }
}

/// True of a small space without 2 MiB pages, while memory is plenty. What a frozen program has is put back by resets.
fn is_worth_keeping(tables: &PageTables, mem: &GuestMemory) -> bool {
    if tables.undo.is_some() || tables.shown().bytes > SHOWN_MAX_BYTES || !mem.is_plenty() {
        return false;
    }
    let (mut has_huge, mut private_bytes) = (false, 0u64);
    let counted = tables.for_each_leaf(mem, Gva(0), USER_END.0, |_, leaf| {
        has_huge |= leaf.size == PageSize::Huge;
        if !mem.is_file_backed(leaf.gpa) && mem.frame_refs(leaf.gpa) == 1 {
            private_bytes = private_bytes.saturating_add(leaf.size.bytes());
        }
    });
    let most_bytes = PRIVATE_MAX_BYTES.min(mem.limit_bytes() / PRIVATE_SHARE);
    counted.is_ok() && !has_huge && private_bytes <= most_bytes
}
