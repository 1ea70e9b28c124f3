//! The pages that an address space has, counted.

use kvmlet_abi::layout::USER_END;
use kvmlet_abi::{Gpa, Gva};

use crate::entry::{FRAME, LARGE, PRESENT, PageSize, ROOT_LEVEL, entry_at, span};
use crate::memory::GuestMemory;
use crate::tables::{PageTables, check_range};

/// User memory that an address space has leaves for, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shown {
    /// Now.
    pub bytes: u64,
    /// At most so far.
    pub peak_bytes: u64,
}

impl Shown {
    /// Counts a leaf of user memory that has come.
    pub(crate) fn add(&mut self, gva: Gva, size: PageSize) {
        if gva.0 < USER_END.0 {
            self.bytes = self.bytes.saturating_add(size.bytes());
            self.peak_bytes = self.peak_bytes.max(self.bytes);
        }
    }

    /// Counts a leaf that has gone.
    pub(crate) fn remove(&mut self, gva: Gva, size: PageSize) {
        if gva.0 < USER_END.0 {
            self.bytes = self.bytes.saturating_sub(size.bytes());
        }
    }
}

impl PageTables {
    /// Bytes of a page-aligned range that have a leaf. Each entry is looked at once, and `entries_left` in all at
    /// most: what follows then does not count.
    pub fn present_bytes(
        &self,
        mem: &GuestMemory,
        (gva, len_bytes): (Gva, u64),
        entries_left: &mut u64,
    ) -> u64 {
        match check_range(gva, len_bytes, PageSize::Base) {
            Ok(end) => present_in(mem, (self.root(), ROOT_LEVEL), (gva.0, end), entries_left),
            Err(_) => 0,
        }
    }
}

/// Bytes of a range, which lies in what a table at this level maps, that have a leaf.
fn present_in(
    mem: &GuestMemory,
    (table, level): (Gpa, u32),
    (from, end): (u64, u64),
    entries_left: &mut u64,
) -> u64 {
    let mut sum = 0u64;
    let mut at = from;
    while at < end && *entries_left > 0 {
        *entries_left -= 1;
        let next = ((at | (span(level) - 1)) + 1).min(end);
        let entry = mem.load_entry(entry_at(table, at, level));
        if entry & PRESENT != 0 {
            sum += match level {
                1 => next - at,
                2 if entry & LARGE != 0 => next - at,
                _ => {
                    let below = (Gpa(entry & FRAME), level - 1);
                    present_in(mem, below, (at, next), entries_left)
                }
            };
        }
        at = next;
    }
    sum
}
