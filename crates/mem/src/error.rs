//! Errors of this room.

use kvmlet_abi::{Gpa, Gva};
use kvmlet_budget::Exhausted;

/// The memory limit of the VM is reached, or the host has no more to give.
///
/// The state is as it was before the call. A failed 2 MiB allocation may still succeed in base
/// frames: free memory can be scattered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OutOfMemory {
    /// The program's own limit.
    #[error("the memory limit of the virtual machine is reached")]
    Limit,
    /// No frame of the wanted size is free and the VM may not grow further.
    #[error("no free guest memory of the wanted size is left")]
    Exhausted,
    /// The host refused a mapping.
    #[error("the host refused memory: {0}")]
    Host(rustix::io::Errno),
}

/// Why an operation on guest memory failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MemError {
    /// See [`OutOfMemory`].
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The range is not inside one memory slot.
    #[error("{len_bytes} bytes at {gpa:?} lie outside guest memory")]
    Outside {
        /// Start of the range.
        gpa: Gpa,
        /// Its length.
        len_bytes: u64,
    },
    /// The host page behind a file-backed frame cannot be reached that way: the file was truncated,
    /// an I/O error occurred, the window is unmapped, or it is written and read-only. A program
    /// would receive SIGBUS or EFAULT.
    #[error("the file page behind {0:?} cannot be accessed")]
    FileFault(Gpa),
    /// An atomic read-modify-write of a file-backed frame: copy it to an anonymous frame first (no
    /// host instruction can do it without risking SIGBUS).
    #[error("{0:?} is file-backed: no atomic update there")]
    FileBacked(Gpa),
    /// An address or length that is not a multiple of what the operation needs, or an empty range.
    #[error("misaligned or empty range at {0:#x}")]
    Misaligned(u64),
    /// A guest-virtual range beyond the 47-bit user half.
    #[error("{0:?} is beyond the user half of the address space")]
    BeyondUserHalf(Gva),
    /// An entry that had to be free is present.
    #[error("{0:?} is mapped already")]
    AlreadyMapped(Gva),
    /// A 2 MiB entry was asked for where a page table is, or was once.
    #[error("{0:?} has a page table: no 2 MiB entry can be put there")]
    HasTable(Gva),
    /// The host refused to map a file (the error says why).
    #[error("the host cannot map the file: {0}")]
    MapFile(rustix::io::Errno),
    /// The VM has as much address space for file mappings as it may.
    #[error("too many file mappings")]
    TooManyFileMappings,
    /// Another file mapping would take more mappings of the host than sandboxes may have.
    #[error("{0}")]
    Exhausted(#[from] Exhausted),
    /// The frame is part of the frozen memory that forks share: it is never written. Copy it first
    /// ([`crate::PageTables::copy_frozen`], [`crate::GuestMemory::alloc_copy`]).
    #[error("{0:?} is frozen")]
    Frozen(Gpa),
    /// No frozen frame is mapped there.
    #[error("{0:?} maps no frozen frame")]
    NotFrozen(Gva),
    /// The address space cannot be reset: it is not that of a fork, or tables of it have been freed.
    /// Drop the fork and make another.
    #[error("the address space cannot be reset")]
    NeedsRebuild,
    /// The host refused what freezing or forking needs (the error says why).
    #[error("the host cannot freeze or fork memory: {0}")]
    Freeze(rustix::io::Errno),
}
