//! Executable files to load plans: pure functions over bytes, no I/O.
//!
//! The caller reads a file's first bytes and asks:
//!
//! * [`parse_shebang`]: is it an interpreter script, and whose?
//! * [`parse`]: is it an x86-64 executable, and what does it want in memory ([`Image`])?
//! * [`Image::plan`]: which mappings make it so at a given load bias ([`LoadAction`])?
//! * [`build_stack`]: what does the first stack hold ([`StackImage`])?
//! * [`find_function`]: where is a function of this name? [`is_imported`]: does a file use one of another's?
//!
//! Every number read from a file is hostile: it is checked once, in [`parse`]. The numbers that an
//! [`Image`] holds afterwards can be added and rounded without overflow. The rules are those of
//! Linux's `fs/binfmt_elf.c`, `fs/binfmt_script.c` and `execve(2)`; a stricter rule is marked
//! `Linux differs:`.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod error;
mod image;
mod script;
mod stack;
mod symbols;

pub use error::{ElfError, Errno, Machine};
pub use image::{
    Image, InterpRef, Kind, LoadAction, Prot, Segment, StackFlags, parse, read_interp,
};
pub use script::{MAX_INTERPRETER_DEPTH, SHEBANG_LEN, Shebang, parse_shebang};
pub use stack::{MAX_ARG_STRLEN, StackImage, build_stack};
pub use symbols::{Function, ReadAt, Symbols, find_function, is_imported};

/// Page size of x86-64, in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// First address a program may use: the lowest 64 KiB are never mapped.
pub const USER_START: u64 = 0x1_0000;

/// End (exclusive) of the addresses a program may use: 47 bits less the last page (Linux's
/// `TASK_SIZE_MAX`). That page is never mapped, so that no `syscall` instruction can end at the
/// non-canonical boundary.
pub const USER_END: u64 = 0x7fff_ffff_f000;

/// Longest path in bytes, terminating NUL included (`linux/limits.h`).
pub const PATH_MAX: usize = 4096;

/// The page that holds `address`.
const fn page_down(address: u64) -> u64 {
    address & !(PAGE_SIZE.wrapping_sub(1))
}

/// The first page boundary at or above `address`, or None past the end of the address space.
const fn page_up(address: u64) -> Option<u64> {
    match address.checked_add(PAGE_SIZE.wrapping_sub(1)) {
        Some(raised) => Some(page_down(raised)),
        None => None,
    }
}

/// Offset of `address` in its page.
const fn page_offset(address: u64) -> u64 {
    address & PAGE_SIZE.wrapping_sub(1)
}
