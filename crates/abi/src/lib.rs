//! Guest-visible layouts and values: what the guest, the in-guest stub and the host agree on.
//!
//! This room depends on no other. It holds typed addresses, the virtual layout of the VM and the user
//! register file. It also holds the reason why a guest thread stopped running, error numbers and Linux
//! structures.
#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

pub mod addr;
pub mod call_page;
pub mod errno;
pub mod layout;
pub mod linux;
pub mod regs;
pub mod slot;
pub mod trap;
pub mod vdso_data;

pub use addr::{Gpa, Gva, HUGE_PAGE_SIZE, PAGE_SIZE};
pub use errno::Errno;
pub use regs::UserRegs;
pub use slot::{SlotAccess, SlotId, SlotSpec};
pub use trap::Trap;
