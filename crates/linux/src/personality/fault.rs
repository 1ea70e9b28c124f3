//! Exceptions and page faults: repaired, or a signal.

use kvmlet_abi::Gva;
use kvmlet_abi::linux::signal::{
    BUS_ADRALN, BUS_ADRERR, FPE_INTDIV, ILL_ILLOPN, SEGV_MAPERR, SEGV_PKUERR, TRAP_TRACE,
};
use kvmlet_abi::regs::is_canonical;
use kvmlet_abi::trap::{PF_FETCH, PF_PK, PF_USER, PF_WRITE};

use super::{Cpu, Personality};
use crate::frame;
use crate::kernel::{Tid, XState};
use crate::mm::{self, Access, FaultError};
use crate::signal::{SI_KERNEL, SigDetail, SigInfo, TrapInfo, signo};

impl Personality {
    /// The signal for a `rip` behind user space: what the fetch would raise.
    pub(super) fn fetch_beyond(&mut self, tid: Tid, rip: u64) {
        let (code, detail, trap) = if is_canonical(rip) {
            let trap = TrapInfo {
                trapno: 14,
                err: u64::from(PF_USER | PF_FETCH),
                cr2: rip,
            };
            (SEGV_MAPERR, SigDetail::Fault(rip), trap)
        } else {
            let trap = TrapInfo {
                trapno: 13,
                err: 0,
                cr2: 0,
            };
            (SI_KERNEL, SigDetail::Fault(0), trap)
        };
        self.fault_signal(tid, signo::SIGSEGV, code, detail, trap);
    }

    /// KVM could not reach memory that the guest has: its file has shrunk, or the host could not read it.
    pub(super) fn host_fault(&mut self, tid: Tid) {
        if mm::host_fault(&mut self.cx(tid)) {
            return;
        }
        // No file has shrunk: an I/O error.
        let trap = TrapInfo {
            trapno: 14,
            err: 0,
            cr2: 0,
        };
        self.fault_signal(tid, signo::SIGBUS, SI_KERNEL, SigDetail::None, trap);
    }

    fn fault_signal(&mut self, tid: Tid, signo: u8, code: i32, detail: SigDetail, trap: TrapInfo) {
        let info = SigInfo {
            signo,
            code,
            errno: 0,
            detail,
            trap,
        };
        frame::force(&mut self.cx(tid), tid, info);
    }

    pub(super) fn exception(
        &mut self,
        tid: Tid,
        vector: u8,
        error_code: u32,
        fault_gva: Gva,
        cpu: &mut dyn Cpu,
    ) {
        let rip = self
            .kernel
            .threads
            .get(&tid)
            .map_or(0, |thread| thread.regs.rip);
        let trap = TrapInfo {
            trapno: u64::from(vector),
            err: u64::from(error_code),
            cr2: if vector == 14 { fault_gva.0 } else { 0 },
        };
        let at_rip = SigDetail::Fault(rip);
        // Signals and codes by vector: arch/x86/kernel/traps.c.
        let (signo, code, detail) = match vector {
            0 => (signo::SIGFPE, FPE_INTDIV, at_rip),
            // Linux differs: int1 gives TRAP_BRKPT; telling it from a single step needs DR6.
            1 => (signo::SIGTRAP, TRAP_TRACE, at_rip),
            3 => (signo::SIGTRAP, SI_KERNEL, SigDetail::None),
            6 => (signo::SIGILL, ILL_ILLOPN, at_rip),
            7 | 16 | 19 => (signo::SIGFPE, self.fpe_code(tid, vector, cpu), at_rip),
            11 | 12 => (signo::SIGBUS, SI_KERNEL, SigDetail::None),
            14 => return self.page_fault(tid, error_code, fault_gva, trap),
            17 => (signo::SIGBUS, BUS_ADRALN, SigDetail::None),
            _ => (signo::SIGSEGV, SI_KERNEL, SigDetail::None),
        };
        self.fault_signal(tid, signo, code, detail, trap);
    }

    /// si_code of a floating-point exception, from the state that raised it (fpu__exception_code).
    fn fpe_code(&mut self, tid: Tid, vector: u8, cpu: &mut dyn Cpu) -> i32 {
        self.save_xstate(tid, cpu);
        let Some(XState::Saved(image)) = self.kernel.threads.get(&tid).map(|thread| &thread.xstate)
        else {
            return 0;
        };
        let word = |at: usize| match image.get(at..at.saturating_add(2)) {
            Some([low, high]) => u16::from_le_bytes([*low, *high]),
            _ => 0,
        };
        let raised = if vector == 16 {
            word(2) & !word(0) & 0x3f
        } else {
            word(24) & !(word(24) >> 7) & 0x3f
        };
        match raised {
            bits if bits & 0x01 != 0 => 7,
            bits if bits & 0x04 != 0 => 3,
            bits if bits & 0x08 != 0 => 4,
            bits if bits & 0x12 != 0 => 5,
            bits if bits & 0x20 != 0 => 6,
            _ => 0,
        }
    }

    fn page_fault(&mut self, tid: Tid, error_code: u32, gva: Gva, trap: TrapInfo) {
        if error_code & PF_PK != 0 {
            // Linux differs: the handler runs, and the thread goes on, with every key open.
            return self.fault_signal(
                tid,
                signo::SIGSEGV,
                SEGV_PKUERR,
                SigDetail::Fault(gva.0),
                trap,
            );
        }
        let access = if error_code & PF_FETCH != 0 {
            Access::Exec
        } else if error_code & PF_WRITE != 0 {
            Access::Write
        } else {
            Access::Read
        };
        match mm::fault(&mut self.cx(tid), gva, access) {
            Ok(()) => {}
            Err(FaultError::Segv { code }) => {
                self.fault_signal(tid, signo::SIGSEGV, code, SigDetail::Fault(gva.0), trap);
            }
            Err(FaultError::Bus) => {
                self.fault_signal(
                    tid,
                    signo::SIGBUS,
                    BUS_ADRERR,
                    SigDetail::Fault(gva.0),
                    trap,
                );
            }
            Err(FaultError::OutOfMemory) => self.kernel.out_of_memory(tid),
        }
    }
}
