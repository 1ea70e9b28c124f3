//! Virtual memory areas, and looking them up.

use std::sync::Arc;

use bitflags::bitflags;
use kvmlet_abi::layout::{USER_END, USER_START};
use kvmlet_abi::{Gpa, HUGE_PAGE_SIZE};
use kvmlet_mem::PteFlags;

use super::{Access, Mm, STACK_GUARD_GAP};
use crate::host::HostId;
use crate::vfs::tmpfs::{InodeId, MapKind};

bitflags! {
    /// Rights of a mapping, with the values of PROT_* (mmap(2)).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    pub struct Prot: u32 {
        /// PROT_READ
        const READ = 1;
        /// PROT_WRITE
        const WRITE = 2;
        /// PROT_EXEC
        const EXEC = 4;
    }
}

impl Prot {
    /// True if an access is allowed. Without protection keys an x86 page with any right at all is readable.
    #[must_use]
    pub fn allows(self, access: Access) -> bool {
        match access {
            Access::Read => !self.is_empty(),
            Access::Write => self.contains(Self::WRITE),
            Access::Exec => self.contains(Self::EXEC),
        }
    }

    /// Rights of a page-table entry. PROT_NONE keeps the entry, and so the page's content, but only
    /// for the supervisor.
    #[must_use]
    pub fn pte(self) -> PteFlags {
        let mut flags = PteFlags::empty();
        flags.set(PteFlags::USER, !self.is_empty());
        flags.set(PteFlags::WRITE, self.contains(Self::WRITE));
        flags.set(PteFlags::NX, !self.contains(Self::EXEC));
        flags
    }
}

bitflags! {
    /// Properties of a mapping.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    pub struct VmaFlags: u32 {
        /// MAP_SHARED
        const SHARED = 1;
        /// MAP_GROWSDOWN: a stack
        const GROWSDOWN = 1 << 1;
        /// MAP_NORESERVE
        const NORESERVE = 1 << 2;
        /// mlock(2)
        const LOCKED = 1 << 3;
        /// mlock2(2) MLOCK_ONFAULT
        const LOCK_ON_FAULT = 1 << 4;
        /// MADV_HUGEPAGE
        const HUGEPAGE = 1 << 5;
        /// MADV_NOHUGEPAGE
        const NOHUGEPAGE = 1 << 6;
        /// MADV_WIPEONFORK
        const WIPEONFORK = 1 << 7;
        /// MADV_DONTFORK
        const DONTFORK = 1 << 8;
        /// MADV_DONTDUMP
        const DONTDUMP = 1 << 9;
        /// MADV_SEQUENTIAL
        const SEQUENTIAL = 1 << 10;
        /// MADV_RANDOM
        const RANDOM = 1 << 11;
        /// MADV_MERGEABLE
        const MERGEABLE = 1 << 12;
        /// mprotect(2) may make it writable
        const MAYWRITE = 1 << 13;
        /// mseal(2)
        const SEALED = 1 << 14;
    }
}

/// A mapped part of a host file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileBacking {
    /// The place of the VMA's first page in guest-physical space: a host mapping, all of the VMA long. In a fork a file
    /// that is changed on the host itself has none before its first touch.
    pub window: Option<Gpa>,
    /// The file.
    pub host: HostId,
    /// Its device number.
    pub dev: u64,
    /// Its inode number.
    pub ino: u64,
    /// Offset of the VMA's first page, in bytes.
    pub offset: u64,
    /// True if the VMA's length is charged to the memory limit: it is private and was writable.
    pub charged: bool,
    /// True if the window may hold pages that the program has written and that no leaf shows (mremap(2)).
    pub has_hidden: bool,
}

/// A mapped part of a file of the memory file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TmpBacking {
    /// The file.
    pub inode: InodeId,
    /// Offset of the VMA's first page, in bytes.
    pub offset: u64,
}

/// The source of a VMA's pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backing {
    /// Private zeroed memory.
    Anon,
    /// A host file, through the host's page cache. Private pages are copied by the host when written.
    File(FileBacking),
    /// A memory file. Shared anonymous memory is a memory file without a name, as in Linux.
    Tmp(TmpBacking),
    /// Fixed frames of the VMM, consecutive from here, never writable.
    Special(Gpa),
}

impl Backing {
    /// The backing of the part that starts `delta_bytes` further on.
    #[must_use]
    pub fn advanced(self, delta_bytes: u64) -> Self {
        match self {
            Self::Anon => Self::Anon,
            Self::File(file) => Self::File(FileBacking {
                window: file.window.map(|window| window.wrapping_add(delta_bytes)),
                offset: file.offset.wrapping_add(delta_bytes),
                ..file
            }),
            Self::Tmp(tmp) => Self::Tmp(TmpBacking {
                offset: tmp.offset.wrapping_add(delta_bytes),
                ..tmp
            }),
            Self::Special(gpa) => Self::Special(gpa.wrapping_add(delta_bytes)),
        }
    }
}

/// A stretch of addresses with one set of properties.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vma {
    /// First address, page-aligned.
    pub start: u64,
    /// End (exclusive), page-aligned.
    pub end: u64,
    /// Rights.
    pub prot: Prot,
    /// Properties.
    pub flags: VmaFlags,
    /// The source of its pages.
    pub backing: Backing,
    /// Path or label in /proc/self/maps.
    pub name: Option<Arc<[u8]>>,
}

/// Host memory charged to the program for a VMA without its name: more than one takes.
pub const VMA_COST_BYTES: u64 = 256;

impl Vma {
    /// Host memory that it takes, in bytes. A name counts in each VMA that has it.
    #[must_use]
    pub fn cost_bytes(&self) -> u64 {
        let name_len = self.name.as_ref().map_or(0, |name| name.len());
        VMA_COST_BYTES.saturating_add(name_len as u64)
    }

    /// Length in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.end - self.start
    }

    /// True if MAP_SHARED.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.flags.contains(VmaFlags::SHARED)
    }

    /// The change that the mapping can make to a memory file.
    #[must_use]
    pub fn map_kind(&self) -> MapKind {
        if self.flags.contains(VmaFlags::SHARED | VmaFlags::MAYWRITE) {
            MapKind::SharedWritable
        } else {
            MapKind::ReadOnly
        }
    }

    /// Private writable memory that is not a stack: what RLIMIT_DATA counts (is_data_mapping in
    /// mm/internal.h).
    #[must_use]
    pub fn is_data(&self) -> bool {
        self.prot.contains(Prot::WRITE)
            && !self
                .flags
                .intersects(VmaFlags::SHARED | VmaFlags::GROWSDOWN)
    }

    /// Lowest address that the area claims: a growing stack keeps a gap below it (vm_start_gap).
    #[must_use]
    pub fn gap_start(&self) -> u64 {
        if self.flags.contains(VmaFlags::GROWSDOWN) {
            self.start.saturating_sub(STACK_GUARD_GAP)
        } else {
            self.start
        }
    }

    /// The part from `start` to `end`, which must lie inside.
    #[must_use]
    pub fn part(&self, start: u64, end: u64) -> Self {
        Self {
            start,
            end,
            backing: self.backing.advanced(start - self.start),
            ..self.clone()
        }
    }

    /// The part that lies in `start..end`, if any.
    #[must_use]
    pub fn intersection(&self, start: u64, end: u64) -> Option<Self> {
        let (from, to) = (self.start.max(start), self.end.min(end));
        (from < to).then(|| self.part(from, to))
    }

    /// True if `next` could be part of the same VMA.
    #[must_use]
    pub fn joins(&self, next: &Self) -> bool {
        self.end == next.start
            && self.prot == next.prot
            && self.flags == next.flags
            && self.backing.advanced(self.len_bytes()) == next.backing
            && self.name == next.name
    }

    /// Rights that a leaf of this VMA may be given without looking at its frame. Pages of a private
    /// mapping of a memory file may still be the file's: a write decides.
    #[must_use]
    pub fn pte(&self) -> PteFlags {
        let mut flags = self.prot.pte();
        match self.backing {
            Backing::Tmp(_) if !self.is_shared() => flags.remove(PteFlags::WRITE),
            Backing::Special(_) => flags.remove(PteFlags::WRITE),
            _ => {}
        }
        flags
    }
}

impl Mm {
    /// The VMA that contains `addr`.
    #[must_use]
    pub fn find(&self, addr: u64) -> Option<&Vma> {
        let (_, vma) = self.vmas.get_prev(&addr)?;
        (addr < vma.end).then_some(vma)
    }

    /// The first VMA that ends above `addr`.
    #[must_use]
    pub fn find_from(&self, addr: u64) -> Option<&Vma> {
        self.find(addr).or_else(|| self.next_start(addr))
    }

    /// The first VMA that starts at or above `addr`.
    #[must_use]
    pub fn next_start(&self, addr: u64) -> Option<&Vma> {
        self.vmas.get_next(&addr).map(|(_, vma)| vma)
    }

    /// The last VMA that starts below `addr`.
    #[must_use]
    pub fn prev_start(&self, addr: u64) -> Option<&Vma> {
        let (_, vma) = self.vmas.get_prev(&addr.checked_sub(1)?)?;
        Some(vma)
    }

    /// True if any part of the range is mapped.
    #[must_use]
    pub fn any_in(&self, start: u64, end: u64) -> bool {
        self.find_from(start).is_some_and(|vma| vma.start < end)
    }

    /// Parts of VMAs in the range, in address order.
    pub fn parts(&self, start: u64, end: u64) -> impl Iterator<Item = Vma> {
        let first = self.find_from(start).map_or(end, |vma| vma.start);
        self.vmas
            .range(first..end.max(first))
            .filter_map(move |(_, vma)| vma.intersection(start, end))
    }

    /// True if all of the range is mapped.
    #[must_use]
    pub fn covers(&self, start: u64, end: u64) -> bool {
        let mut at = start;
        for part in self.parts(start, end) {
            if part.start != at {
                return false;
            }
            at = part.end;
        }
        at >= end
    }

    /// True if a part of the range is sealed.
    #[must_use]
    pub fn any_sealed(&self, start: u64, end: u64) -> bool {
        self.parts(start, end)
            .any(|part| part.flags.contains(VmaFlags::SEALED))
    }

    /// Number of VMAs that are added by cutting at `start` and `end`.
    #[must_use]
    pub fn cuts(&self, start: u64, end: u64) -> usize {
        let cut = |at: u64| usize::from(self.find(at).is_some_and(|vma| vma.start < at));
        cut(start) + cut(end)
    }

    /// Free space for a new mapping of `len_bytes` (mm/mmap.c, generic_get_unmapped_area_topdown). It is
    /// the hint if that fits, else the highest place below the mmap top. Failing that, it is the lowest
    /// place above a third of the address space.
    #[must_use]
    pub fn free_range(&self, hint: u64, len_bytes: u64, low_2g: Low2G) -> Option<u64> {
        let end = USER_END.0;
        if len_bytes > end {
            return None;
        }
        if hint != 0 && low_2g == Low2G::No {
            let at = hint.max(USER_START.0);
            if at <= end - len_bytes && self.is_free(at, len_bytes) {
                return Some(at);
            }
        }
        if low_2g == Low2G::Yes {
            return self.lowest_gap(0x4000_0000, 0x8000_0000, len_bytes);
        }
        let top = self.layout.mmap_top.min(end);
        let huge = (len_bytes >= super::HUGE_FROM)
            .then(|| self.highest_gap(USER_START.0, top, len_bytes, HUGE_PAGE_SIZE))
            .flatten();
        huge.or_else(|| self.highest_gap(USER_START.0, top, len_bytes, kvmlet_abi::PAGE_SIZE))
            .or_else(|| self.lowest_gap(end / 3 / HUGE_PAGE_SIZE * HUGE_PAGE_SIZE, end, len_bytes))
    }

    /// True if a range is unmapped and not in the gap of a stack above it.
    fn is_free(&self, start: u64, len_bytes: u64) -> bool {
        let end = start + len_bytes;
        self.find_from(start)
            .is_none_or(|next| next.gap_start() >= end)
    }

    fn highest_gap(&self, low: u64, high: u64, len_bytes: u64, align: u64) -> Option<u64> {
        let mut gap_end = high;
        for (_, vma) in self.vmas.range(..high).rev() {
            let room_from = vma.end.max(low);
            if let Some(at) = gap_end.checked_sub(len_bytes)
                && at / align * align >= room_from
            {
                return Some(at / align * align);
            }
            gap_end = gap_end.min(vma.gap_start());
            if gap_end < low {
                return None;
            }
        }
        let at = gap_end.checked_sub(len_bytes)? / align * align;
        (at >= low).then_some(at)
    }

    fn lowest_gap(&self, low: u64, high: u64, len_bytes: u64) -> Option<u64> {
        let mut at = low;
        loop {
            let end = at.checked_add(len_bytes).filter(|&end| end <= high)?;
            match self.find_from(at) {
                Some(vma) if vma.gap_start() < end => at = vma.end,
                _ => return Some(at),
            }
        }
    }
}

/// Says if a mapping must lie in the low 2 GiB (MAP_32BIT).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Low2G {
    /// Anywhere.
    No,
    /// Between 1 and 2 GiB, as MAP_32BIT has it.
    Yes,
}
