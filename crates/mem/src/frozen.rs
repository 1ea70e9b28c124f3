//! Frozen memory: what every fork of one sandbox shares.

use std::sync::Arc;

use kvmlet_abi::Gpa;

use crate::error::MemError;
use crate::memory::GuestMemory;
use crate::tables::PageTables;

/// Memory and page tables of a sandbox, frozen once and shared by all its forks.
#[derive(Debug)]
pub struct FrozenMemory {}

impl FrozenMemory {
    /// A new memory that reads as the frozen one, and its address space.
    pub fn fork(self: &Arc<Self>) -> Result<(GuestMemory, PageTables), MemError> {
        Err(MemError::NeedsRebuild)
    }
}

impl GuestMemory {
    /// Freezes this memory and the one address space in it. `charged_bytes` is what
    /// [`GuestMemory::charge`] counts for file mappings: the program may take it back in a fork.
    pub fn freeze(
        self,
        _tables: PageTables,
        _charged_bytes: u64,
    ) -> Result<Arc<FrozenMemory>, MemError> {
        Err(MemError::NeedsRebuild)
    }

    /// Whether the frame belongs to the frozen memory of a fork: shared and never written.
    #[must_use]
    pub fn is_frozen(&self, _gpa: Gpa) -> bool {
        false
    }

    /// Host memory that this fork does not share, in bytes.
    #[must_use]
    pub fn private_bytes(&self) -> u64 {
        0
    }

    /// `pages` consecutive zeroed table frames inside one 2 MiB block, charged.
    pub fn alloc_table_run(&mut self, _pages: u64) -> Result<Gpa, crate::error::OutOfMemory> {
        Err(crate::error::OutOfMemory::Exhausted)
    }
}
