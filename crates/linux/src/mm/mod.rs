//! The address space of a process as a value, and what keeps the page tables in step with it.
//!
//! [`Mm`] says what is mapped where and with which rights; the page tables are a cache of it that is
//! filled on demand by [`fault`]. Ownership of frames: **every present leaf that is not file-backed
//! holds one reference to its frame**, and drops it when it is removed. The frame may belong to
//! anything: private memory, a memory file, the vDSO. File-backed frames are owned by the window of
//! their VMA.

mod advise;
mod fault;
mod fork;
pub mod freeze;
mod hot_pages;
mod life;
mod lock;
mod map;
mod pieces;
mod populate;
mod remap;
pub mod smaps;
mod space;
mod text;
pub(crate) mod trampoline;
pub mod user;
mod vma;

#[cfg(test)]
mod fake_cpu;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod fork_model;
#[cfg(test)]
mod fork_model_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod populate_tests;
#[cfg(test)]
mod remap_tests;
#[cfg(test)]
mod stale_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod user_tests;

use std::sync::Arc;

use imbl::OrdMap;
use kvmlet_abi::layout::USER_END;
use kvmlet_abi::{Errno, Gpa, Gva, PAGE_SIZE};
use kvmlet_mem::OutOfMemory;

use crate::cx::Cx;
use crate::host::HostId;
use crate::id::MmId;
use crate::vfs::tmpfs::{InodeId, NoPage, Stale};

pub use advise::{Advice, advise, mincore, msync, seal};
pub use fork::fork;
pub use hot_pages::HotPages;
pub use life::{leave, start_anew};
pub use lock::{go_on_populating, lock, lock_all, unlock_all};
pub use map::{MapFile, MapFlags, MapRequest, brk, mmap, mprotect, munmap};
pub use pieces::{can_be_parted, covers, piece_end};
#[cfg(test)]
pub use remap::RemapFlags;
pub use remap::{RemapRequest, remap};
pub(crate) use space::Space;
pub use text::maps_text;
pub use trampoline::Trampolines;
#[cfg(test)]
pub use vma::TmpBacking;
pub use vma::{Backing, Low2G, Prot, Vma, VmaFlags};

/// VMAs that a process may have (vm.max_map_count).
pub const MAX_MAP_COUNT: usize = 65_530;
/// Space kept free below a stack that grows (stack_guard_gap: 256 pages).
pub const STACK_GUARD_GAP: u64 = 256 * PAGE_SIZE;

/// Pages mapped around a fault in anonymous memory of a small VMA, and in tmpfs and vDSO pages.
/// A power of two. More would save exits, but every present entry costs some 3 us when it is unmapped
/// on software KVM, touched or not.
const AROUND_PAGES: u64 = 16;
/// The same for anonymous VMAs of at least [`AROUND_LARGE_FROM`] bytes.
const AROUND_LARGE_PAGES: u64 = 64;
const AROUND_LARGE_FROM: u64 = 256 << 10;
/// Pages mapped around a fault in a file mapping. These cost no memory, only the entries of a page
/// table that is needed anyhow; so a whole table. Programs rarely unmap files.
const AROUND_FILE_PAGES: u64 = 512;
/// Anonymous VMAs from this size on get 2 MiB pages without asking (MADV_HUGEPAGE asks).
const HUGE_FROM: u64 = 4 << 20;
/// 2 MiB pages mapped by one fault when memory is used in sequence.
const HUGE_AHEAD: u64 = 4;

/// The fault is at an address that is not mapped (siginfo si_code of SIGSEGV).
pub const SEGV_MAPERR: i32 = 1;
/// The mapping does not allow the access.
pub const SEGV_ACCERR: i32 = 2;

/// The access that a program tried to make to a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Exec,
}

/// Why an access is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultError {
    /// SIGSEGV with this si_code: [`SEGV_MAPERR`] or [`SEGV_ACCERR`].
    Segv {
        /// si_code.
        code: i32,
    },
    /// SIGBUS with si_code BUS_ADRERR: the page lies past the end of its file.
    Bus,
    /// The memory limit is reached: the run ends.
    OutOfMemory,
}

impl FaultError {
    const MAPERR: Self = Self::Segv { code: SEGV_MAPERR };
    const ACCERR: Self = Self::Segv { code: SEGV_ACCERR };
}

impl From<OutOfMemory> for FaultError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// A file that may not grow any more is as one on a full disk (shmem_fault in mm/shmem.c).
impl From<NoPage> for FaultError {
    fn from(error: NoPage) -> Self {
        match error {
            NoPage::Memory(error) => error.into(),
            NoPage::Room => Self::Bus,
        }
    }
}

/// Random words from which the layout of an address space is drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AslrSeed {
    /// For the top of the mmap area.
    pub mmap: u64,
    /// For the top of the stack.
    pub stack: u64,
    /// For the load address of a position-independent executable.
    pub exe: u64,
    /// For the gap between the program's data and its heap.
    pub brk: u64,
}

/// Pages drawn for the mmap area and the executable (vm.mmap_rnd_bits: 28).
const MMAP_RANDOM_PAGES: u64 = 1 << 28;
/// Pages drawn for the stack (STACK_RND_MASK of arch/x86/include/asm/elf.h).
const STACK_RANDOM_PAGES: u64 = 1 << 22;
/// Pages drawn for the heap (arch_randomize_brk: 32 MiB).
const BRK_RANDOM_PAGES: u64 = 1 << 13;
/// Least space kept for the stack below its highest address (MIN_GAP of arch/x86/mm/mmap.c).
const STACK_SPACE: u64 = 128 << 20;

/// The places of things in an address space; drawn once, at exec.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Layout {
    /// Mappings are placed below this address, highest first.
    pub mmap_top: u64,
    /// End (exclusive) of the stack VMA.
    pub stack_top: u64,
    /// Load address of a position-independent executable with an interpreter.
    pub exe_base: u64,
    /// Bytes between the end of the program's data and the start of its heap.
    pub brk_gap: u64,
}

impl Layout {
    /// Draws a layout as Linux does for x86-64 with full randomisation (mmap_base and
    /// arch_align_stack of arch/x86/mm/mmap.c). The stack has room for what RLIMIT_STACK lets it be.
    #[must_use]
    pub fn draw(seed: AslrSeed, stack_limit_bytes: u64) -> Self {
        let end = USER_END.0;
        let stack_random = (seed.stack % STACK_RANDOM_PAGES) * PAGE_SIZE;
        let mmap_random = (seed.mmap % MMAP_RANDOM_PAGES) * PAGE_SIZE;
        let space = stack_limit_bytes.clamp(STACK_SPACE, end / 6 * 5) / PAGE_SIZE * PAGE_SIZE;
        let gap = space + STACK_RANDOM_PAGES * PAGE_SIZE + STACK_GUARD_GAP;
        Self {
            mmap_top: end - gap - mmap_random,
            stack_top: end - stack_random,
            exe_base: (end / 3 * 2) / PAGE_SIZE * PAGE_SIZE
                + (seed.exe % MMAP_RANDOM_PAGES) * PAGE_SIZE,
            brk_gap: (seed.brk % BRK_RANDOM_PAGES) * PAGE_SIZE,
        }
    }
}

/// The heap: brk(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Brk {
    /// Its start, page-aligned.
    pub start: u64,
    /// The program break: any byte address.
    pub end: u64,
}

/// Bytes that an address space maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mapped {
    /// Now (VmSize).
    pub bytes: u64,
    /// At most so far (VmPeak).
    pub peak_bytes: u64,
}

impl Mapped {
    /// That of an address space that begins with this much.
    #[must_use]
    pub fn of(bytes: u64) -> Self {
        Self {
            bytes,
            peak_bytes: bytes,
        }
    }

    fn add(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.peak_bytes = self.peak_bytes.max(self.bytes);
    }

    fn remove(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// An address space.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mm {
    /// The mapped areas, by start address. VMAs do not overlap.
    pub vmas: OrdMap<u64, Vma>,
    /// Bytes of them.
    pub mapped: Mapped,
    /// The heap.
    pub brk: Brk,
    /// The places of things in it.
    pub layout: Layout,
    /// An address in the stack that exec made (/proc/self/maps names that VMA).
    pub stack_addr: u64,
    /// Flags of every new VMA: mlockall(MCL_FUTURE) sets them.
    pub new_flags: VmaFlags,
    /// Places in its text that jump to the stub.
    pub trampolines: Trampolines,
    /// The address space that fork(2) has copied it from, whose next copy may have its tables.
    pub copy_of: Option<MmId>,
}

impl Mm {
    /// An empty address space with room for a stack of `stack_limit_bytes`.
    #[must_use]
    pub fn new(seed: AslrSeed, stack_limit_bytes: u64) -> Self {
        Self {
            layout: Layout::draw(seed, stack_limit_bytes),
            ..Self::default()
        }
    }

    /// Sets the start of the heap, rounded up to a page (exec: end of the data plus the gap).
    pub fn set_brk_start(&mut self, addr: u64) {
        let start = kvmlet_abi::addr::page_align_up(addr).unwrap_or(addr);
        self.brk = Brk { start, end: start };
    }

    /// Bytes mapped (VmSize).
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.mapped.bytes
    }

    /// Bytes of private writable memory without the stack (VmData, RLIMIT_DATA).
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        let data = self.vmas.values().filter(|vma| vma.is_data());
        data.map(Vma::len_bytes).sum()
    }

    /// Bytes that mlock(2) holds (VmLck).
    #[must_use]
    pub fn locked_bytes(&self) -> u64 {
        let locked = self
            .vmas
            .values()
            .filter(|vma| vma.flags.contains(VmaFlags::LOCKED));
        locked.map(Vma::len_bytes).sum()
    }

    /// Bytes of the stack (VmStk).
    #[must_use]
    pub fn stack_bytes(&self) -> u64 {
        self.find(self.stack_addr).map_or(0, Vma::len_bytes)
    }
}

/// The content that a mapping shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Zeroed memory.
    Anon,
    /// An open host file.
    Host(HostId),
    /// A file of the memory file system.
    Tmp(InodeId),
    /// Consecutive frames of the VMM (vDSO), shown read-only. The VMM keeps its own reference.
    Special(Gpa),
}

/// A mapping at a fixed place: what exec asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Region {
    /// Start, page-aligned.
    pub start: Gva,
    /// Length, a multiple of the page size, not 0.
    pub len_bytes: u64,
    /// Rights.
    pub prot: Prot,
    /// Shared, grows down...; `MAYWRITE` if mprotect(2) may make it writable.
    pub flags: VmaFlags,
    /// The content that it shows.
    pub source: Source,
    /// Offset in the file, page-aligned.
    pub offset: u64,
    /// Path or label in /proc/self/maps.
    pub name: Option<Arc<[u8]>>,
}

/// Maps `region` in the calling process, replacing what is there. Nothing is checked against the
/// process's limits.
///
/// # Errors
/// `EINVAL` for a bad range, `ENOMEM` for too many VMAs or too little memory, the host's error if it
/// cannot map the file.
pub fn map_region(cx: &mut Cx<'_>, region: &Region) -> Result<(), Errno> {
    Space::of(cx)?.map_region(region)
}

/// Checks that RLIMIT_AS lets the calling process map `more_bytes`.
///
/// # Errors
/// `ENOMEM` if not.
pub fn check_address_space(cx: &mut Cx<'_>, more_bytes: u64) -> Result<(), Errno> {
    Space::of(cx)?.check_address_space(more_bytes)
}

/// Makes the page at `gva` accessible for `access`, if the address space allows it.
///
/// # Errors
/// The fault that the program gets instead: see [`FaultError`].
pub fn fault(cx: &mut Cx<'_>, gva: Gva, access: Access) -> Result<(), FaultError> {
    let fault = |space: &mut Space<'_>| space.fault(gva, access);
    change_files(cx, fault).map_err(|_| FaultError::MAPERR)?
}

/// Deals with memory behind a guest page that KVM could not reach: some mapped file shrank.
/// Looks at every mapped file again and unmaps the pages past its end, so that the next touch is a
/// SIGBUS. Answers whether there were any: if not, the file cannot be read (an I/O error), and the
/// caller sends SIGBUS itself.
pub fn host_fault(cx: &mut Cx<'_>) -> bool {
    Space::of(cx).is_ok_and(|mut space| space.drop_truncated())
}

/// Does what may change memory files to the calling process's address space. Then no other one shows what that has
/// left stale.
fn change_files<T>(cx: &mut Cx<'_>, change: impl FnOnce(&mut Space<'_>) -> T) -> Result<T, Errno> {
    let changed = change(&mut Space::of(cx)?);
    follow_files(cx)?;
    Ok(changed)
}

/// Has every address space follow the changes of memory files that were made while one was at work. It comes before
/// another thread goes on.
///
/// # Errors
/// As [`unmap_stale`].
pub fn follow_files(cx: &mut Cx<'_>) -> Result<(), Errno> {
    for (inode, stale) in core::mem::take(&mut cx.machine.stale_files) {
        unmap_stale(cx, inode, &stale)?;
    }
    Ok(())
}

/// Unmaps what a change to a memory file has left stale, in whatever address space it is mapped. Private
/// copies go only where the file was cut off (as Linux's unmap_mapping_range does).
///
/// # Errors
/// `ENOMEM` if a page table cannot be split.
pub fn unmap_stale(cx: &mut Cx<'_>, inode: InodeId, stale: &Stale) -> Result<(), Errno> {
    let ids: Vec<MmId> = cx.kernel.mms.keys().copied().collect();
    for id in ids {
        Space::by_id(cx, id)?.unmap_stale(inode, stale)?;
    }
    Ok(())
}
