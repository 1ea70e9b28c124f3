//! Which translations may be stale.

use kvmlet_abi::{Gpa, Gva};

use crate::tables::PageSize;

/// Beyond this many entries a full flush is recorded instead.
pub const MAX_STALE_ENTRIES: usize = 256;

/// Where the tables appear in a guest whose [`crate::GuestMemory::expose_tables`] was called: the
/// table memory at guest-physical `p` lies at `TABLE_WINDOW + p`, supervisor-only, writable and not
/// executable.
pub const TABLE_WINDOW: Gva = Gva(0xffff_8000_0000_0000);

/// A leaf entry that was present and has been changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StaleEntry {
    /// Start of the page it maps or mapped: what `invlpg` takes.
    pub gva: Gva,
    /// Where the entry lies.
    pub entry: Gpa,
    /// Size of the page.
    pub size: PageSize,
}

impl StaleEntry {
    /// Where the guest's supervisor code can rewrite the entry: see [`PendingFlush::Entries`].
    #[must_use]
    pub const fn window_gva(&self) -> Gva {
        TABLE_WINDOW.wrapping_add(self.entry.0)
    }
}

/// What must be flushed before the guest may run again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[must_use = "a flush that is not discharged leaves stale translations"]
pub enum PendingFlush {
    /// Nothing.
    #[default]
    None,
    /// These entries, each once. With nested paging: `invlpg` of each [`StaleEntry::gva`] in the
    /// address space they belong to. With shadow paging (software KVM) `invlpg` is **not** enough:
    /// KVM drops on it only what it holds of last-level tables that the guest itself has written,
    /// and here the host writes them. Code at CPL 0 must store to each entry (any store,
    /// `addq $0,(entry)`, at [`StaleEntry::window_gva`]): KVM traps it and drops its shadow of that
    /// very entry, on both levels of leaves.
    Entries(Vec<StaleEntry>),
    /// Everything, upper levels included: with shadow paging the slots that hold tables
    /// ([`crate::GuestMemory::table_slots`]) are deleted and added again.
    All,
}

impl PendingFlush {
    /// Whether nothing needs flushing.
    #[must_use]
    pub fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Adds one entry.
    pub(crate) fn add(&mut self, stale: StaleEntry) {
        match self {
            Self::None => *self = Self::Entries(vec![stale]),
            Self::Entries(entries) if entries.contains(&stale) => {}
            Self::Entries(entries) if entries.len() < MAX_STALE_ENTRIES => entries.push(stale),
            Self::Entries(_) => *self = Self::All,
            Self::All => {}
        }
    }
}
