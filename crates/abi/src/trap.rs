//! Why a guest thread stopped running in ring 3.

use crate::Gva;

/// The event that brought a thread out of ring 3. Its registers are user-mode registers in every case.
/// After a call `rip` is the instruction after `syscall`, after a fault it is the faulting instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trap {
    /// A system call: number in `rax`, arguments by [`crate::UserRegs::syscall_args`].
    Syscall,
    /// A CPU exception from ring 3 (SDM vol. 3A, 6.15).
    Exception {
        /// Vector, 0 to 31.
        vector: u8,
        /// Error code, 0 for vectors without one.
        error_code: u32,
        /// CR2: the faulting address for vector 14, else meaningless.
        fault_gva: Gva,
    },
    /// A kick (deadline, time slice, request to stop); the thread can go on as if nothing was.
    Interrupted,
    /// KVM could not reach the host memory behind a guest page (EFAULT from KVM_RUN): a mapped file
    /// shrank. The access has not happened.
    HostFault,
    /// The vCPU left in a state that no honest stub produces. The VM must be destroyed.
    Broken {
        /// What was seen, for the log.
        exit_reason: u32,
        /// KVM's detail (internal error suberror, port, ...).
        detail: u64,
    },
}

/// Page-fault error code bit: the page was present (SDM vol. 3A, 4.7).
pub const PF_PRESENT: u32 = 1;
/// Page-fault error code bit: the access was a write.
pub const PF_WRITE: u32 = 1 << 1;
/// Page-fault error code bit: the access came from ring 3.
pub const PF_USER: u32 = 1 << 2;
/// Page-fault error code bit: a reserved bit was set in an entry.
pub const PF_RESERVED: u32 = 1 << 3;
/// Page-fault error code bit: the access was an instruction fetch.
pub const PF_FETCH: u32 = 1 << 4;
/// Page-fault error code bit: a protection key forbids the access.
pub const PF_PK: u32 = 1 << 5;
