//! The virtual layout of a VM: user space below [`USER_END`], the VMM's own pages above it.
//!
//! The VMM area is the last 2 MiB of the lower canonical half, one page-table page of its own. All
//! of it is supervisor-only, with one exception. On software KVM, where the syscall stub runs at CPL 3,
//! the stub and its constants are user-readable.

use crate::Gva;

/// Lowest address a program may map (Linux's usual `vm.mmap_min_addr` is 64 KiB).
pub const USER_START: Gva = Gva(0x1_0000);
/// End (exclusive) of what a program may map.
/// Linux differs: its x86-64 limit is `0x7fff_ffff_f000`; ours is 2 MiB lower, for the VMM area.
pub const USER_END: Gva = Gva(VMM_AREA.0);

/// Start of the VMM's pages.
pub const VMM_AREA: Gva = Gva(0x7fff_ffe0_0000);
/// Global descriptor table, supervisor, one page.
pub const GDT: Gva = Gva(VMM_AREA.0 + 0x1_0000);
/// Interrupt descriptor table, supervisor, one page.
pub const IDT: Gva = Gva(VMM_AREA.0 + 0x1_1000);
/// Task state segment, supervisor, one page.
pub const TSS: Gva = Gva(VMM_AREA.0 + 0x1_2000);
/// Exception stack (every gate uses IST 1), supervisor, one page; the stack top is its end.
pub const EXC_STACK: Gva = Gva(VMM_AREA.0 + 0x1_4000);
/// Top (exclusive) of the exception stack.
pub const EXC_STACK_TOP: Gva = Gva(EXC_STACK.0 + 0x1000);
/// Stack for double faults (IST 2), supervisor, one page.
pub const DF_STACK: Gva = Gva(VMM_AREA.0 + 0x1_6000);
/// Top (exclusive) of the double-fault stack.
pub const DF_STACK_TOP: Gva = Gva(DF_STACK.0 + 0x1000);
/// Arguments of the flush routine: a stack of addresses to `invlpg`, supervisor, one page.
pub const FLUSH_STACK: Gva = Gva(VMM_AREA.0 + 0x1_8000);
/// Top (exclusive) of the flush stack.
pub const FLUSH_STACK_TOP: Gva = Gva(FLUSH_STACK.0 + 0x1000);
/// Exception entries and the flush routine, supervisor and executable, one page.
pub const EXC_CODE: Gva = Gva(VMM_AREA.0 + 0x2_0000);
/// The syscall entry (LSTAR and CSTAR), executable, one page; user-accessible on software KVM only.
pub const SYSCALL_CODE: Gva = Gva(VMM_AREA.0 + 0x2_2000);
/// Constants that the syscall entry answers from, read-only, one page; user bit as [`SYSCALL_CODE`].
pub const STUB_DATA: Gva = Gva(VMM_AREA.0 + 0x2_4000);
/// The page through which calls are posted and answered without an exit ([`crate::call_page`]), one
/// page, read and write; user bit as [`SYSCALL_CODE`].
pub const CALL_PAGE: Gva = Gva(VMM_AREA.0 + 0x2_8000);
/// Code run once at ring 3, before any guest instruction, to learn what `syscall` does here.
pub const PROBE_CODE: Gva = Gva(VMM_AREA.0 + 0x2_6000);

/// Port that the syscall entry writes to leave the VM.
pub const PORT_SYSCALL: u16 = 0x40;
/// Port that the probe code writes.
pub const PORT_PROBE: u16 = 0x41;
/// Exception `v` leaves through port `PORT_EXCEPTION + v`.
pub const PORT_EXCEPTION: u16 = 0x80;
/// Exception vectors with a gate (SDM vol. 3A, 6.3.1).
pub const EXCEPTION_VECTORS: u16 = 32;

/// Linux's x86-64 selectors (arch/x86/include/asm/segment.h), the same in both worlds.
pub const KERNEL_CS: u16 = 0x10;
/// Kernel data selector.
pub const KERNEL_DS: u16 = 0x18;
/// User data selector.
pub const USER_DS: u16 = 0x2b;
/// User 64-bit code selector.
pub const USER_CS: u16 = 0x33;
/// Task register selector.
pub const TSS_SELECTOR: u16 = 0x40;
/// IA32_STAR: SYSRET base 0x23 (an empty descriptor: no 32-bit code segment exists), SYSCALL base 0x10.
pub const STAR: u64 = (0x23 << 48) | (0x10 << 32);
/// IA32_FMASK: TF, IF, DF, IOPL, NT and AC are cleared on entry, as Linux does.
pub const SFMASK: u64 = 0x47700;

/// Number of 8-byte slots in the constants page: answers of the calls that the stub completes.
/// Slot order is [`StubConstant`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum StubConstant {
    /// getpid(2)
    Pid = 0,
    /// getuid(2)
    Uid = 1,
    /// geteuid(2)
    Euid = 2,
    /// getgid(2)
    Gid = 3,
    /// getegid(2)
    Egid = 4,
    /// getppid(2)
    Ppid = 5,
    /// gettid(2) of the thread now on this vCPU
    Tid = 6,
}
