//! The pages that an address space has, counted.

use kvmlet_abi::{Gpa, Gva};

use crate::memory::GuestMemory;
use crate::tables::{
    FRAME, LARGE, PRESENT, PageSize, PageTables, ROOT_LEVEL, check_range, entry_at, span,
};

impl PageTables {
    /// Bytes of a page-aligned range that have a leaf. Each entry is looked at once.
    #[must_use]
    pub fn present_bytes(&self, mem: &GuestMemory, gva: Gva, len_bytes: u64) -> u64 {
        match check_range(gva, len_bytes, PageSize::Base) {
            Ok(end) => present_in(mem, (self.root(), ROOT_LEVEL), gva.0, end),
            Err(_) => 0,
        }
    }
}

/// Bytes of `from..end`, which lies in what a table at this level maps, that have a leaf.
fn present_in(mem: &GuestMemory, (table, level): (Gpa, u32), from: u64, end: u64) -> u64 {
    let mut sum = 0u64;
    let mut at = from;
    while at < end {
        let next = ((at | (span(level) - 1)) + 1).min(end);
        let entry = mem.load_entry(entry_at(table, at, level));
        if entry & PRESENT != 0 {
            sum += match level {
                1 => next - at,
                2 if entry & LARGE != 0 => next - at,
                _ => present_in(mem, (Gpa(entry & FRAME), level - 1), at, next),
            };
        }
        at = next;
    }
    sum
}
