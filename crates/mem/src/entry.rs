//! The entries of page tables: what a leaf grants, and where the entry of an address is (SDM vol. 3A, 4.5).

use bitflags::bitflags;
use kvmlet_abi::{Gpa, Gva, HUGE_PAGE_SIZE, PAGE_SIZE};

pub(crate) const PRESENT: u64 = 1;
pub(crate) const WRITE: u64 = 1 << 1;
pub(crate) const USER: u64 = 1 << 2;
pub(crate) const ACCESSED: u64 = 1 << 5;
pub(crate) const DIRTY: u64 = 1 << 6;
pub(crate) const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
pub(crate) const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Entries above the leaves grant everything; the leaf decides.
pub(crate) const LINK: u64 = PRESENT | WRITE | USER | ACCESSED;

/// End of the user half of the address space.
pub(crate) const USER_HALF_END: u64 = 1 << 47;
pub(crate) const ENTRIES: u64 = 512;
/// Level of the root; tables whose entries map base pages are level 1.
pub(crate) const ROOT_LEVEL: u32 = 4;

bitflags! {
    /// Rights that a leaf entry grants; the values are those of the entry.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
    pub struct PteFlags: u64 {
        /// Writable.
        const WRITE = WRITE;
        /// Accessible at ring 3.
        const USER = USER;
        /// Not executable.
        const NX = NO_EXECUTE;
    }
}

/// Size of a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum PageSize {
    /// 4 KiB.
    Base,
    /// 2 MiB.
    Huge,
}

impl PageSize {
    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Base => PAGE_SIZE,
            Self::Huge => HUGE_PAGE_SIZE,
        }
    }

    /// Level of the tables that hold such leaves.
    pub(crate) const fn level(self) -> u32 {
        match self {
            Self::Base => 1,
            Self::Huge => 2,
        }
    }
}

/// A present leaf entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// Start of the frame (of the 2 MiB block for [`PageSize::Huge`]).
    pub gpa: Gpa,
    /// Size.
    pub size: PageSize,
    /// Rights.
    pub flags: PteFlags,
}

impl Leaf {
    /// Guest-physical address of `gva`, which this leaf maps.
    #[must_use]
    pub const fn gpa_of(&self, gva: Gva) -> Gpa {
        Gpa(self.gpa.0 | (gva.0 & (self.size.bytes() - 1)))
    }

    /// The base page with this index in a 2 MiB leaf.
    pub(crate) const fn piece(&self, index: u64) -> Self {
        Self {
            gpa: self.gpa.wrapping_add(index * PAGE_SIZE),
            size: PageSize::Base,
            flags: self.flags,
        }
    }

    pub(crate) const fn entry(&self) -> u64 {
        let mut entry = self.gpa.0 | self.flags.bits() | PRESENT | ACCESSED;
        // Set beforehand, so that no hardware walk ever writes a table.
        if self.flags.contains(PteFlags::WRITE) {
            entry |= DIRTY;
        }
        match self.size {
            PageSize::Base => entry,
            PageSize::Huge => entry | LARGE,
        }
    }

    pub(crate) const fn from_entry(entry: u64, size: PageSize) -> Self {
        Self {
            gpa: Gpa(entry & FRAME & !(size.bytes() - 1)),
            size,
            flags: PteFlags::from_bits_truncate(entry),
        }
    }
}

/// The leaf that a present entry at `level` (1 or 2, not a link) is.
pub(crate) const fn leaf_at(entry: u64, level: u32) -> Leaf {
    let size = match level {
        1 => PageSize::Base,
        _ => PageSize::Huge,
    };
    Leaf::from_entry(entry, size)
}

/// Bytes mapped by one entry at `level`.
#[inline]
pub(crate) const fn span(level: u32) -> u64 {
    1 << (12 + 9 * (level - 1))
}

/// Address of the entry for `gva` in `table`.
pub(crate) const fn entry_at(table: Gpa, gva: u64, level: u32) -> Gpa {
    Gpa(table.0 + gva / span(level) % ENTRIES * 8)
}
