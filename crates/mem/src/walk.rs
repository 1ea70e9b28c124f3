//! Walking page tables a stretch of entries at a time: what an address space shows, and where it shows nothing.
//!
//! Each table is found once. To look every page up from the root costs more than all else that fork(2) does.

use kvmlet_abi::{Gpa, Gva, PAGE_SIZE};
use zerocopy::IntoBytes;

use crate::entry::{
    ENTRIES, FRAME, LARGE, Leaf, PRESENT, PageSize, ROOT_LEVEL, USER_HALF_END, leaf_at, span,
};
use crate::error::MemError;
use crate::memory::GuestMemory;
use crate::slots::Store;
use crate::tables::{PageTables, check_range};

/// Entries that are read together.
const TOGETHER: usize = 64;

/// The indices of a table's entries for a part of what it maps from `base`.
fn indices(level: u32, base: u64, (from, end): (u64, u64)) -> core::ops::Range<u64> {
    let first = from.saturating_sub(base) / span(level);
    let last = end.saturating_sub(base).div_ceil(span(level));
    first..last.min(ENTRIES)
}

impl GuestMemory {
    /// Calls `each` with index and value of the present entries of a table, until it answers something.
    pub(crate) fn find_entry<T>(
        &self,
        table: Gpa,
        indices: core::ops::Range<u64>,
        mut each: impl FnMut(u64, u64) -> Option<T>,
    ) -> Option<T> {
        for first in indices.clone().step_by(TOGETHER) {
            let count = (indices.end - first).min(TOGETHER as u64);
            let mut together = [0u64; TOGETHER];
            let entries = together.get_mut(..count as usize)?;
            let at = table.wrapping_add(first * 8);
            if let Ok((slot, offset)) = self.locate(at, count * 8)
                && let Store::Tables { map, .. } = &slot.store
            {
                // Inside: what cannot be read is not present.
                let _ = map.read(offset, entries.as_mut_bytes());
            }
            for (index, entry) in (first..).zip(entries) {
                if *entry & PRESENT != 0
                    && let Some(found) = each(index, *entry)
                {
                    return Some(found);
                }
            }
        }
        None
    }

    /// Entries of a table that are present.
    pub(crate) fn present_entries(&self, table: Gpa) -> usize {
        let mut count = 0;
        let none = self.find_entry(table, 0..ENTRIES, |_, _| {
            count += 1;
            None::<()>
        });
        debug_assert!(none.is_none());
        count
    }
}

/// Calls `each` with start and value of each leaf under a table that intersects the range, in order, until it answers
/// something. The table maps from `base`.
fn find_leaf<T>(
    mem: &GuestMemory,
    (table, level): (Gpa, u32),
    base: u64,
    range: (u64, u64),
    each: &mut dyn FnMut(u64, Leaf) -> Option<T>,
) -> Option<T> {
    mem.find_entry(table, indices(level, base, range), |index, entry| {
        let start = base + index * span(level);
        if level == 1 || level == 2 && entry & LARGE != 0 {
            return each(start, leaf_at(entry, level));
        }
        let inside = (range.0.max(start), range.1.min(start + span(level)));
        find_leaf(mem, (Gpa(entry & FRAME), level - 1), start, inside, each)
    })
}

impl PageTables {
    /// Calls `each` for every leaf that intersects the page-aligned range, in address order, with the
    /// address where the leaf starts.
    pub fn for_each_leaf(
        &self,
        mem: &GuestMemory,
        gva: Gva,
        len_bytes: u64,
        mut each: impl FnMut(Gva, Leaf),
    ) -> Result<(), MemError> {
        let end = check_range(gva, len_bytes, PageSize::Base)?;
        let top = (self.root(), ROOT_LEVEL);
        let none = find_leaf(mem, top, 0, (gva.0, end), &mut |start, leaf| {
            each(Gva(start), leaf);
            None::<()>
        });
        debug_assert!(none.is_none());
        Ok(())
    }

    /// Number of pages from `gva` on that are not present, at most `max_pages`: the room for a fault-around.
    #[must_use]
    pub fn absent_run(&self, mem: &GuestMemory, gva: Gva, max_pages: u64) -> u64 {
        let start = gva.page_down().0;
        let end = max_pages
            .checked_mul(PAGE_SIZE)
            .and_then(|len| start.checked_add(len))
            .map_or(USER_HALF_END, |end| end.min(USER_HALF_END));
        if start >= end {
            return 0;
        }
        let top = (self.root(), ROOT_LEVEL);
        let first = find_leaf(mem, top, 0, (start, end), &mut |leaf, _| Some(leaf));
        let run_end = first.map_or(end, |leaf| leaf.max(start));
        (run_end - start) / PAGE_SIZE
    }
}

/// Calls `removed` for the leaves at and under a table, which maps from `base`, as far as they lie below `end`, and adds
/// it and the tables under it to `dead`.
pub(crate) fn retire_under(
    mem: &mut GuestMemory,
    (table, level): (Gpa, u32),
    (base, end): (u64, u64),
    dead: &mut Vec<Gpa>,
    removed: &mut dyn FnMut(&mut GuestMemory, Gva, Leaf),
) {
    let mut entries = Vec::new();
    let none = mem.find_entry(table, indices(level, base, (base, end)), |index, entry| {
        entries.push((base + index * span(level), entry));
        None::<()>
    });
    debug_assert!(none.is_none());
    for (start, entry) in entries {
        if level == 1 || level == 2 && entry & LARGE != 0 {
            removed(mem, Gva(start), leaf_at(entry, level));
        } else {
            let below = (Gpa(entry & FRAME), level - 1);
            retire_under(mem, below, (start, end), dead, removed);
        }
    }
    dead.push(table);
}
