//! The user-mode register file of a guest thread.

use crate::layout::{USER_CS, USER_DS};

/// RFLAGS bits a program may hold: CF PF AF ZF SF TF DF OF RF AC ID. Others are forced or cleared.
pub const USER_RFLAGS: u64 = 0x0025_0dd5;
/// RFLAGS bits that are always set at ring 3: the reserved bit 1 and IF.
pub const FIXED_RFLAGS: u64 = 0x202;

/// Selectors in the segment registers that a program may load itself. CS and SS are not among them: in ring
/// 3 they have one value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub struct Selectors {
    pub ds: u16,
    pub es: u16,
    pub fs: u16,
    pub gs: u16,
}

impl Selectors {
    /// Replaces by 0 each selector that ring 3 cannot have loaded from the VM's own descriptor table. Null
    /// selectors and those of user data and code stay.
    ///
    /// Linux differs: where ring 3 runs on the host's table it can load 0x23 and 0x7b too. Linux keeps
    /// them for a thread; here they are gone after its next call.
    pub const fn sanitise(&mut self) {
        const fn loadable(selector: u16) -> u16 {
            match selector | 3 {
                3 | USER_DS | USER_CS => selector,
                _ => 0,
            }
        }
        self.ds = loadable(self.ds);
        self.es = loadable(self.es);
        self.fs = loadable(self.fs);
        self.gs = loadable(self.gs);
    }
}

/// General registers, instruction pointer, flags, selectors and the FS and GS bases of a thread at ring 3.
///
/// The values come from the guest and are not trusted; [`UserRegs::sanitise`] makes them loadable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub struct UserRegs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub selectors: Selectors,
}

/// True if `addr` is canonical with 48-bit linear addresses (SDM vol. 1, 3.3.7.1).
#[must_use]
pub const fn is_canonical(addr: u64) -> bool {
    let high = addr >> 47;
    high == 0 || high == 0x1_ffff
}

impl UserRegs {
    /// Keeps only the flags and selectors a program may hold and forces the fixed flags; makes the segment
    /// bases canonical. `rip` is left: whoever resumes a thread checks it and raises SIGSEGV.
    pub const fn sanitise(&mut self) {
        self.rflags = (self.rflags & USER_RFLAGS) | FIXED_RFLAGS;
        if !is_canonical(self.fs_base) {
            self.fs_base = 0;
        }
        if !is_canonical(self.gs_base) {
            self.gs_base = 0;
        }
        self.selectors.sanitise();
    }

    /// The six system call arguments (System V ABI AMD64 supplement, A.2.1).
    #[must_use]
    pub const fn syscall_args(&self) -> [u64; 6] {
        [self.rdi, self.rsi, self.rdx, self.r10, self.r8, self.r9]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forged_flags_never_keep_privilege() {
        let mut regs = UserRegs {
            rflags: u64::MAX,
            fs_base: 1 << 63,
            ..UserRegs::default()
        };
        regs.sanitise();
        assert_eq!(regs.rflags & 0x3000, 0, "IOPL");
        assert_eq!(regs.rflags & 0x4000, 0, "NT");
        assert_eq!(regs.rflags & 0x2_0000, 0, "VM");
        assert_eq!(regs.rflags & FIXED_RFLAGS, FIXED_RFLAGS);
        assert_eq!(regs.fs_base, 0);
    }

    #[test]
    fn selectors_are_null_or_the_programs() {
        let kept = (0..=u16::MAX).filter(|selector| {
            let mut selectors = Selectors {
                ds: *selector,
                es: *selector,
                fs: *selector,
                gs: *selector,
            };
            selectors.sanitise();
            let Selectors { ds, es, fs, gs } = selectors;
            assert!([es, fs, gs] == [ds; 3] && (ds == *selector || ds == 0));
            ds == *selector
        });
        assert!(kept.eq((0..=3).chain(0x28..=0x2b).chain(0x30..=0x33)));
    }
}
