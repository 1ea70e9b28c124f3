//! Flags of eventfd(2) (linux/eventfd.h).

pub const EFD_SEMAPHORE: u32 = 1;
