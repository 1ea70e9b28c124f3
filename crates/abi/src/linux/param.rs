//! Ticks that programs see (asm-generic/param.h).

/// Ticks a second of times(2) and /proc.
pub const USER_HZ: u64 = 100;
