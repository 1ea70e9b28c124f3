//! Which translations may be stale.

use kvmlet_abi::Gva;

/// Beyond this many single pages a full flush is recorded instead.
pub const MAX_PENDING_PAGES: usize = 64;

/// What must be flushed before the guest may run again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[must_use = "a flush that is not discharged leaves stale translations"]
pub enum PendingFlush {
    /// Nothing.
    #[default]
    None,
    /// These base pages, each once: `invlpg` in the address space they belong to.
    Pages(Vec<Gva>),
    /// Everything of the address space, upper levels included: on software KVM the slots that hold
    /// tables ([`crate::GuestMemory::table_slots`]) are deleted and added again.
    All,
}

impl PendingFlush {
    /// Whether nothing needs flushing.
    #[must_use]
    pub fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Adds one base page.
    pub(crate) fn add_page(&mut self, gva: Gva) {
        match self {
            Self::None => *self = Self::Pages(vec![gva]),
            Self::Pages(pages) if pages.contains(&gva) => {}
            Self::Pages(pages) if pages.len() < MAX_PENDING_PAGES => pages.push(gva),
            Self::Pages(_) => *self = Self::All,
            Self::All => {}
        }
    }
}
