//! Flags of memory calls (asm-generic/mman-common.h).

pub const PROT_GROWSDOWN: u32 = 0x0100_0000;
pub const PROT_GROWSUP: u32 = 0x0200_0000;

pub const MLOCK_ONFAULT: u32 = 1;

pub const PKEY_DISABLE_ACCESS: u64 = 1;
pub const PKEY_DISABLE_WRITE: u64 = 2;
