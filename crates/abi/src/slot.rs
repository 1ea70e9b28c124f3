//! Memory slots: how guest-physical ranges are backed by host memory.

use crate::Gpa;

/// KVM's slot number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotId(pub u32);

/// Rights of the guest to a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotAccess {
    /// Reads and writes.
    ReadWrite,
    /// Reads only; writes leave the VM (KVM_MEM_READONLY).
    ReadOnly,
}

/// One slot: `len_bytes` of guest-physical space from `gpa`, backed by host memory from `host_addr`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotSpec {
    /// Slot number.
    pub id: SlotId,
    /// First guest-physical address, page-aligned.
    pub gpa: Gpa,
    /// First host-virtual address, page-aligned; congruent to `gpa` modulo 2 MiB where the slot is to
    /// have 2 MiB pages.
    pub host_addr: usize,
    /// Length, a multiple of the page size.
    pub len_bytes: u64,
    /// Access allowed to the guest.
    pub access: SlotAccess,
}
