//! The table of what a vCPU holds for a program, and what puts each piece back. Neither the next thread
//! nor the next request nor the next tenant finds anything of it.

/// A piece of a vCPU's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Piece {
    /// RAX to R15, RSP among them.
    General,
    /// RIP.
    Rip,
    /// RFLAGS: what [`kvmlet_abi::regs::USER_RFLAGS`] lets a program hold.
    Rflags,
    /// DS, ES, FS and GS: the selectors. Software KVM leaves them in the host's thread, where guests of every
    /// VM that it runs would find them.
    DataSelectors,
    /// Bases of FS and GS: wrfsbase and wrgsbase, or the load of a selector.
    FsGsBases,
    /// CS and SS.
    CodeAndStack,
    /// IA32_KERNEL_GS_BASE: swapgs needs ring 0, and the stub makes none.
    KernelGsBase,
    /// CR0, CR3, CR4, CR8, EFER, the APIC base; GDTR, IDTR, LDTR, TR.
    Control,
    /// CR2: the address of the last page fault. Ring 3 cannot read it, and is told of its own faults only.
    Cr2,
    /// XCR0: xsetbv needs ring 0. On software KVM ring 3 runs on the host's.
    Xcr0,
    /// x87: registers, control, status and tag words, opcode, instruction and data pointers.
    X87,
    /// XMM0 to XMM15, and MXCSR.
    Sse,
    /// The upper halves of YMM0 to YMM15.
    Avx,
    /// Mask registers, the upper halves of ZMM0 to ZMM15, ZMM16 to ZMM31.
    Avx512,
    /// PKRU: no guest is told of protection keys, but on software KVM ring 3 has the host's.
    Pkru,
    /// AMX: the configuration of tiles, and their data. No guest is told of them, but on software KVM ring 3 has
    /// the host's. KVM drops the data at each exit, and an image without the configuration clears it.
    Tiles,
    /// Other components of extended state (shadow stacks, user interrupts): not in XCR0, and each needs an MSR
    /// that nobody here sets.
    OtherComponents,
    /// DR0 to DR3 and DR7: a `mov` to them needs ring 0.
    Breakpoints,
    /// DR6: a single step of the program sets a bit; ring 3 cannot read it.
    DebugStatus,
    /// STAR, LSTAR, CSTAR, SFMASK.
    SyscallMsrs,
    /// TSC_AUX, SYSENTER, PAT, MTRRs, KVM's clock and all others: wrmsr needs ring 0, and the VM's filter
    /// refuses what gets there.
    OtherMsrs,
    /// The offset of the TSC: MSR_TSC and TSC_ADJUST are MSRs.
    TscOffset,
    /// Exceptions that are pending or injected, the shadow of a `mov` to SS, NMIs.
    Events,
    /// Whether the vCPU is halted: hlt needs ring 0, and there is no APIC.
    RunState,
    /// The page that carries data of port accesses between KVM and the host.
    PortData,
    /// The call page, and which of its calls is waited for.
    PostedCalls,
    /// Counts of runs, ioctls and of KVM's own, which the owner of a sandbox sees.
    Counts,
}

/// The means that puts a piece back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutBack {
    /// Each entry loads the thread's own from its registers ([`crate::Vcpu::run`]).
    Entry,
    /// The first entry of another thread than the last loads its image ([`crate::Vcpu::load_xstate`]), or the initial one
    /// ([`crate::Vcpu::load_initial_xstate`]). After a reset or a change of program every thread is another.
    Image,
    /// The first entry after [`crate::Vcpu::hand_on`] sets it as in a new vCPU.
    HandOn,
    /// The exit takes it away.
    Exit,
    /// It is wiped or counted anew by whoever hands the vCPU on.
    Owner,
    /// Nothing: what one thread of a program leaves, another may have.
    Shared,
    /// Nothing: ring 3 can neither change it nor find out what it is, by what [`Piece`] says.
    OutOfReach,
}

/// A row of [`STATE`].
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The piece.
    pub piece: Piece,
    /// The means at a reset.
    pub at_reset: PutBack,
    /// The means when the vCPU goes to another snapshot's program, or its fork is built anew.
    pub at_rebind: PutBack,
    /// The means when another thread of the program runs.
    pub at_switch: PutBack,
}

const fn row(piece: Piece, at_reset: PutBack, at_rebind: PutBack, at_switch: PutBack) -> Row {
    Row {
        piece,
        at_reset,
        at_rebind,
        at_switch,
    }
}

/// All state of a vCPU.
pub const STATE: [Row; 27] = {
    use Piece as P;
    use PutBack::{Entry, Exit, HandOn, Image, OutOfReach, Owner, Shared};
    [
        row(P::General, Entry, Entry, Entry),
        row(P::Rip, Entry, Entry, Entry),
        row(P::Rflags, Entry, Entry, Entry),
        row(P::DataSelectors, Entry, Entry, Entry),
        row(P::FsGsBases, Entry, Entry, Entry),
        row(P::CodeAndStack, Entry, Entry, Entry),
        row(P::KernelGsBase, OutOfReach, OutOfReach, OutOfReach),
        row(P::Control, HandOn, HandOn, OutOfReach),
        row(P::Cr2, HandOn, HandOn, OutOfReach),
        row(P::Xcr0, OutOfReach, OutOfReach, OutOfReach),
        row(P::X87, Image, Image, Image),
        row(P::Sse, Image, Image, Image),
        row(P::Avx, Image, Image, Image),
        row(P::Avx512, Image, Image, Image),
        row(P::Pkru, Image, Image, Image),
        row(P::Tiles, Image, Image, Image),
        row(P::OtherComponents, OutOfReach, OutOfReach, OutOfReach),
        row(P::Breakpoints, OutOfReach, OutOfReach, OutOfReach),
        row(P::DebugStatus, OutOfReach, OutOfReach, OutOfReach),
        row(P::SyscallMsrs, OutOfReach, OutOfReach, OutOfReach),
        row(P::OtherMsrs, OutOfReach, OutOfReach, OutOfReach),
        row(P::TscOffset, OutOfReach, OutOfReach, OutOfReach),
        row(P::Events, Exit, Exit, Exit),
        row(P::RunState, OutOfReach, OutOfReach, OutOfReach),
        row(P::PortData, Exit, Exit, Exit),
        row(P::PostedCalls, Owner, Owner, Shared),
        row(P::Counts, Shared, Owner, Shared),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_piece_has_one_row() {
        for (index, row) in STATE.iter().enumerate() {
            assert_eq!(row.piece as usize, index, "{row:?}");
        }
        assert_eq!(Piece::Counts as usize + 1, STATE.len());
    }
}
