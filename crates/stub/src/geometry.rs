//! Places of things inside the exception page: shared by the assembly, through the build script,
//! and by the code that computes entry points.

/// Distance between two exception entries, in bytes.
pub const ENTRY_STRIDE_BYTES: u64 = 16;
/// Offset of hardware's flush routine in the exception page: behind the 32 entries.
pub const FLUSH_HARDWARE_BYTES: u64 = 32 * ENTRY_STRIDE_BYTES;
/// Offset of software KVM's flush routine in the exception page.
pub const FLUSH_SOFTWARE_BYTES: u64 = 2048;
/// Offset of the routine that drops every translation of hardware's TLB.
pub const RELOAD_BYTES: u64 = 4064;
/// Offset of the routine that invalidates pages and loads the extended state that a program starts with. Hardware only.
pub const CLEAN_BYTES: u64 = 3136;
/// Offset of the same behind a reload, [`RELOAD_BYTES`].
pub const CLEAN_RELOAD_BYTES: u64 = CLEAN_BYTES - 6;
/// Offset of that state: the legacy region and the header of an XSAVE area, 64-byte aligned.
pub const INITIAL_XSTATE_BYTES: u64 = 3264;
/// Bytes of code per flushed page: a `pop` and one instruction of three bytes.
pub const FLUSH_STEP_BYTES: u64 = 4;
/// Most pages that one pass of the flush routine invalidates.
pub const MAX_FLUSH_PAGES: usize = 256;
/// Offset of the compatibility-mode entry in the syscall page.
pub const CSTAR_OFFSET_BYTES: u64 = 4080;
