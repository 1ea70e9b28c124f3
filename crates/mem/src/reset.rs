//! Putting a fork back to the frozen state.

use kvmlet_abi::{Gpa, Gva};

use crate::error::MemError;
use crate::memory::GuestMemory;
use crate::tables::{PageTables, PteFlags};

/// What a reset did. Pages are base pages.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ResetReport {
    /// Kept copies found different from the frozen page, and restored.
    pub copied_pages: u64,
    /// Kept copies found equal.
    pub compared_equal_pages: u64,
    /// Copies given up: idle for long, or no longer the program's.
    pub dropped_pages: u64,
    /// Copies still mapped and writable.
    pub kept_pages: u64,
    /// Private frames wiped.
    pub scrubbed_pages: u64,
    /// Table frames that this fork does not share.
    pub table_pages: u64,
    /// The pages of `copied_pages`, and those of copies that were given up though different.
    pub written: Vec<Gva>,
}

impl PageTables {
    /// Copies the frozen page mapped at `gva` to a private frame and maps that with `flags`.
    pub fn copy_frozen(
        &mut self,
        _mem: &mut GuestMemory,
        gva: Gva,
        _flags: PteFlags,
    ) -> Result<Gpa, MemError> {
        Err(MemError::NotFrozen(gva))
    }

    /// Copies pages before the fork runs for the first time; answers how many.
    pub fn copy_ahead(
        &mut self,
        _mem: &mut GuestMemory,
        _pages: impl Iterator<Item = Gva>,
        _may_keep: impl FnMut(Gva) -> bool,
    ) -> Result<u64, MemError> {
        Err(MemError::NeedsRebuild)
    }

    /// Puts tables and private memory back to the frozen state.
    pub fn reset(
        &mut self,
        _mem: &mut GuestMemory,
        _may_keep: impl FnMut(Gva) -> bool,
    ) -> Result<ResetReport, MemError> {
        Err(MemError::NeedsRebuild)
    }
}
