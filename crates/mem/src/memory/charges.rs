//! The limit on memory, and what counts against it.

use super::GuestMemory;
use crate::error::OutOfMemory;

impl GuestMemory {
    /// The program's memory limit, in bytes.
    #[must_use]
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// The bytes that it uses now. Freed memory is not counted, even before its flush. In a fork: what
    /// the frozen program was charged for file mappings, and the fork's own memory, except for what
    /// [`Spaces::reset`](crate::Spaces::reset) kept.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// The most it used at any time, in bytes.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        self.peak_bytes
    }

    /// The program's resident bytes as Linux counts them: page tables do not count. The same in
    /// every fork at the same point, whatever earlier requests wrote.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.used_bytes.saturating_sub(self.table_bytes)
    }

    /// The most it had resident at any time, in bytes.
    #[must_use]
    pub fn peak_resident_bytes(&self) -> u64 {
        self.peak_resident_bytes
    }

    /// Counts `len_bytes` against the limit without allocating: private file pages that may be
    /// written.
    pub fn charge(&mut self, len_bytes: u64) -> Result<(), OutOfMemory> {
        let used = self
            .used_bytes
            .checked_add(len_bytes)
            .filter(|&used| used <= self.limit_bytes)
            .ok_or(OutOfMemory::Limit)?;
        self.used_bytes = used;
        self.peak_bytes = self.peak_bytes.max(used);
        self.peak_resident_bytes = self.peak_resident_bytes.max(self.resident_bytes());
        Ok(())
    }

    /// Takes back a [`GuestMemory::charge`].
    pub fn uncharge(&mut self, len_bytes: u64) {
        debug_assert!(len_bytes <= self.used_bytes, "uncharged more than was used");
        self.used_bytes = self.used_bytes.saturating_sub(len_bytes);
    }

    /// Counts `len_bytes` of host memory that is kept for the program, as [`GuestMemory::charge`] does.
    /// It is not resident memory of the program.
    ///
    /// # Errors
    /// [`OutOfMemory::Limit`].
    pub fn charge_kernel(&mut self, len_bytes: u64) -> Result<(), OutOfMemory> {
        self.charge_tables(len_bytes)
    }

    /// As [`GuestMemory::charge_kernel`], also beyond the limit: for what cannot fail any more. Its caller
    /// has seen to it that there is [`room`](GuestMemory::has_room) for nearly all of it.
    pub fn charge_kernel_anyway(&mut self, len_bytes: u64) {
        self.table_bytes = self.table_bytes.saturating_add(len_bytes);
        self.used_bytes = self.used_bytes.saturating_add(len_bytes);
        self.peak_bytes = self.peak_bytes.max(self.used_bytes);
    }

    /// Takes back a [`GuestMemory::charge_kernel`].
    pub fn uncharge_kernel(&mut self, len_bytes: u64) {
        self.uncharge_tables(len_bytes);
    }

    /// True if `len_bytes` may still be charged.
    #[must_use]
    pub fn has_room(&self, len_bytes: u64) -> bool {
        self.used_bytes.saturating_add(len_bytes) <= self.limit_bytes
    }

    pub(super) fn charge_tables(&mut self, len_bytes: u64) -> Result<(), OutOfMemory> {
        self.table_bytes += len_bytes;
        self.charge(len_bytes)
            .inspect_err(|_| self.table_bytes -= len_bytes)
    }

    pub(super) fn uncharge_tables(&mut self, len_bytes: u64) {
        self.table_bytes = self.table_bytes.saturating_sub(len_bytes);
        self.uncharge(len_bytes);
    }
}
