//! Guest memory: frames, page tables and checked copies. No KVM here; everything works on plain host
//! memory.
//!
//! - [`GuestMemory`] owns the host memory of one VM and hands out guest-physical frames.
//! - [`PageTables`] is one guest address space, its entries kept in frames of a [`GuestMemory`].
//! - [`Spaces`] holds the address spaces of one VM and decides when the tables of one that is gone may
//!   be used again.
//!
//! **Flushes.** An entry that becomes present is seen at once. Any other edit may leave a stale
//! translation in the TLB (or in KVM's shadow tables). So [`PageTables`] records a [`PendingFlush`],
//! and freed frames wait in a quarantine until [`GuestMemory::flush_discharged`].
//! Before entering an address space: flush what [`Spaces::take_pending`] answers, then one
//! [`GuestMemory::flush_discharged`]. With one vCPU that is enough for freed frames: no other space
//! is entered before its own flush.
//!
//! **Forks.** [`GuestMemory::freeze`] turns memory and tables into a [`FrozenMemory`] that any number
//! of forks share. A frozen frame is read-only for good: in the slot, in the host's mapping and in
//! every leaf, whatever rights are asked for. [`PageTables::copy_frozen`] gives a fork its own copy of
//! a page. [`Spaces::reset`] puts the fork back to the frozen state: it restores the copies in place
//! and wipes all other memory that the fork took. Each fork has its own tables, a view of the frozen ones
//! that the host copies on write.
//!
//! All host memory is reached by raw copies in one module (`host`). No Rust reference to guest memory
//! is ever formed, except to atomic words, because the guest writes to it at any time.
#![allow(unsafe_code)]

#[deny(unsafe_code)]
mod access;
#[deny(unsafe_code)]
mod blocks;
#[deny(unsafe_code)]
mod entry;
#[deny(unsafe_code)]
mod error;
#[deny(unsafe_code)]
mod files;
#[deny(unsafe_code)]
mod frames;
#[deny(unsafe_code)]
mod frozen;
mod host;
mod keep;
#[deny(unsafe_code)]
mod kept;
#[deny(unsafe_code)]
mod marks;
#[deny(unsafe_code)]
mod memory;
#[deny(unsafe_code)]
mod pending;
#[deny(unsafe_code)]
mod present;
#[deny(unsafe_code)]
mod reset;
#[deny(unsafe_code)]
mod set;
#[deny(unsafe_code)]
mod slots;
#[deny(unsafe_code)]
mod spaces;
#[deny(unsafe_code)]
mod tables;
#[deny(unsafe_code)]
mod texts;
#[deny(unsafe_code)]
mod undo;
#[deny(unsafe_code)]
mod user;
#[deny(unsafe_code)]
mod walk;

/// Name of an address space; never used again within a sandbox.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MmId(pub u64);

impl MmId {
    /// The first address space of a sandbox.
    pub const FIRST: Self = Self(1);
}

pub use blocks::{BLOCK_BYTES, Block, Bytes, SpareBlocks};
pub use entry::{Leaf, PageSize, PteFlags};
pub use error::{MemError, OutOfMemory};
pub use files::{FileMapping, FileWindow};
pub use frames::FrameRun;
pub use frozen::FrozenMemory;
pub use host::note_huge_pages;
pub use memory::{GuestMemory, HostPage, SlotMemory};
pub use pending::{MAX_STALE_ENTRIES, PendingFlush, RELOAD_FROM, StaleEntry, TABLE_WINDOW};
pub use present::Shown;
pub use reset::{DirtyBits, ResetReport};
pub use spaces::Spaces;
pub use tables::PageTables;
pub use texts::FileVersion;
pub use user::{CopyOutcome, CopyStop};
