//! Which translations may be stale.

use kvmlet_abi::{Gpa, Gva, PAGE_SIZE};

use crate::entry::PageSize;
use crate::files::FileWindow;
use crate::memory::GuestMemory;

/// Beyond this many entries a full flush is recorded instead.
pub const MAX_STALE_ENTRIES: usize = 4096;

/// With more entries than this, to load them all anew costs the CPU less than to drop each. Linux has the same number
/// (tlb_single_page_flush_ceiling). For hardware with nested paging.
pub const RELOAD_FROM: usize = 33;

/// Most windows that are renewed in place of a flush by the guest, and pages in them. One costs as much as three
/// pages that the guest flushes, and spares an exit.
const RENEWED_WINDOWS_MAX: usize = 4;
const RENEWED_PAGES_MAX: usize = 64;

/// Start of the tables in a guest whose [`crate::GuestMemory::expose_tables`] was called: the
/// table memory at guest-physical `p` lies at `TABLE_WINDOW + p`, supervisor-only, writable and not
/// executable.
pub const TABLE_WINDOW: Gva = Gva(0xffff_8000_0000_0000);

/// A leaf entry that was present and has been changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StaleEntry {
    /// Start of the page it maps or mapped: what `invlpg` takes.
    pub gva: Gva,
    /// Place of the entry.
    pub entry: Gpa,
    /// Size of the page.
    pub size: PageSize,
    /// The page of a private file window that it maps or mapped: [`PendingFlush::windows`].
    pub window: Option<Gpa>,
}

impl StaleEntry {
    /// Address at which the guest's supervisor code can rewrite the entry: see [`PendingFlush::Entries`].
    #[must_use]
    pub const fn window_gva(&self) -> Gva {
        TABLE_WINDOW.wrapping_add(self.entry.0)
    }
}

/// Stores in one table from which on its whole shadow may be dropped instead.
const WHOLE_TABLE_FROM: usize = 4;
/// Offset in a table of a byte that is not the first of an entry.
const INSIDE_ENTRY: u64 = 1;

/// Address at which a store has KVM drop its shadow of a whole table.
pub(crate) const fn whole_table_store(table: Gpa) -> Gva {
    TABLE_WINDOW.wrapping_add(table.0 + INSIDE_ENTRY)
}

impl GuestMemory {
    /// Addresses at which code at CPL 0 must store a byte on software KVM to make changes of these entries
    /// visible. The store goes to the first byte of each, at some 3 us. Where many entries of a table have
    /// changed, it goes to another byte of that table. KVM takes such a store for a sign that the page
    /// holds no table any more. It drops its shadow of the whole page (detect_write_misaligned of
    /// arch/x86/kvm/mmu/mmu.c). Other entries in use there come back by faults inside KVM, of up to 3 us
    /// each. So this is done only where not much is left.
    #[must_use]
    pub fn flush_stores(&self, entries: &[StaleEntry]) -> Vec<Gva> {
        let mut stores = Vec::with_capacity(entries.len());
        // Edits come in runs: what belongs to one table mostly stands together.
        for run in entries.chunk_by(|a, b| a.entry.page_down() == b.entry.page_down()) {
            match run {
                [first, ..] if self.drops_table(first, run.len()) => {
                    stores.push(whole_table_store(first.entry.page_down()));
                }
                _ => stores.extend(run.iter().map(StaleEntry::window_gva)),
            }
        }
        stores
    }

    /// Whether the whole shadow of a table is dropped when `changed` of its entries have changed.
    fn drops_table(&self, stale: &StaleEntry, changed: usize) -> bool {
        stale.size == PageSize::Base
            && changed >= WHOLE_TABLE_FROM
            && self.present_entries(stale.entry.page_down()) <= 2 * changed
    }
}

/// The flush that is due before the guest may run again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[must_use = "a flush that is not discharged leaves stale translations"]
pub enum PendingFlush {
    /// Nothing.
    #[default]
    None,
    /// These entries, in the order of the edits; one that was edited again and again may be named more
    /// than once. With nested paging: `invlpg` of each [`StaleEntry::gva`] in the
    /// address space they belong to. With shadow paging (software KVM) `invlpg` is **not** enough:
    /// KVM drops on it only what it holds of last-level tables that the guest itself has written,
    /// and here the host writes them. Code at CPL 0 must store to each entry (`orb $0,(entry)`, at
    /// [`StaleEntry::window_gva`]): KVM traps it and drops its shadow of that
    /// very entry, on both levels of leaves. [`GuestMemory::flush_stores`] says where.
    Entries(Vec<StaleEntry>),
    /// Everything, upper levels included: with shadow paging the slots that hold tables
    /// ([`crate::GuestMemory::table_slots`]) are deleted and added again.
    All,
}

impl PendingFlush {
    /// True if nothing needs flushing.
    #[must_use]
    pub fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Windows of files that hold all pages of the stale entries, if they are few: [`GuestMemory::renew_file`] of
    /// each is another way to discharge it.
    #[must_use]
    pub fn windows(&self) -> Option<Vec<FileWindow>> {
        let Self::Entries(entries) = self else {
            return None;
        };
        if entries.len() > RENEWED_PAGES_MAX {
            return None;
        }
        let mut pages: Vec<u64> = entries
            .iter()
            .map(|stale| stale.window.map(|gpa| gpa.0))
            .collect::<Option<_>>()?;
        pages.sort_unstable();
        pages.dedup();
        let windows: Vec<FileWindow> = pages
            .chunk_by(|one, next| one + PAGE_SIZE == *next)
            .filter_map(|run| {
                Some(FileWindow {
                    gpa: Gpa(*run.first()?),
                    len_bytes: run.len() as u64 * PAGE_SIZE,
                })
            })
            .collect();
        (windows.len() <= RENEWED_WINDOWS_MAX).then_some(windows)
    }

    /// Adds entries, of which no two that follow one another are the same.
    pub(crate) fn extend(&mut self, stale: impl Iterator<Item = StaleEntry>) {
        let mut stale = stale;
        if let Some(first) = stale.next() {
            self.add(first);
        }
        if let Self::Entries(entries) = self {
            let room = MAX_STALE_ENTRIES.saturating_sub(entries.len());
            entries.extend(stale.by_ref().take(room));
        }
        if let Some(next) = stale.next() {
            self.add(next);
        }
    }

    /// Adds one entry.
    pub(crate) fn add(&mut self, stale: StaleEntry) {
        match self {
            Self::None => *self = Self::Entries(vec![stale]),
            Self::Entries(entries) if entries.last() == Some(&stale) => {}
            Self::Entries(entries) if entries.len() < MAX_STALE_ENTRIES => entries.push(stale),
            Self::Entries(_) => *self = Self::All,
            Self::All => {}
        }
    }
}
