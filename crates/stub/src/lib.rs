//! The code and the tables that live inside the VM besides the program: exception entries, the
//! syscall entry, the flush routine, descriptor tables. All are page images; the caller copies them
//! to the addresses of [`kvmlet_abi::layout`].
#![allow(unsafe_code)]

mod geometry;
pub mod pages;
mod syscall;
pub mod trampoline;
pub mod vdso;

pub use geometry::{
    CLEAN_BYTES, CLEAN_RELOAD_BYTES, CSTAR_OFFSET_BYTES, INITIAL_XSTATE_BYTES, MAX_FLUSH_PAGES,
    RELOAD_BYTES,
};
pub use pages::{
    PageImage, exception_code, exception_entry_offset, flush_entry_offset, gdt_image, idt_image,
    probe_code, stub_data_image, tss_image,
};
pub use syscall::{
    KvmKind, StubPc, classify, leave_offset, return_offset, syscall_code, trampoline_entry,
};
