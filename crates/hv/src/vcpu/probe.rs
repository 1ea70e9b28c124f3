//! A vCPU's findings about the KVM it runs on.

use std::time::Instant;

use kvmlet_abi::layout::{KERNEL_CS, PORT_SYSCALL, PROBE_CODE, SYSCALL_CODE};
use kvmlet_abi::regs::FIXED_RFLAGS;
use kvmlet_abi::{Gva, PAGE_SIZE, UserRegs};
use kvmlet_stub::{KvmKind, StubPc, classify};

use super::Vcpu;
use crate::HvError;
use crate::cpu::{Privilege, code_segment, stack_segment};

/// Signals that may interrupt a probe before it is given up.
const MAX_SIGNALS: u32 = 1000;

impl Vcpu {
    /// Finds out what `syscall` at ring 3 does here, by doing it, and remembers the answer.
    ///
    /// Expects the probe code at `PROBE_CODE` and the *software* form of the syscall page at
    /// `SYSCALL_CODE`, both user-executable. The TSS must have its software form, and the exception pages
    /// of the layout must be there. After the answer [`KvmKind::Hardware`] the caller writes the hardware
    /// form of the TSS. It then maps the hardware form of the syscall page supervisor-only, like the
    /// constants. In both cases it unmaps the probe code, and it flushes what it changed.
    ///
    /// # Errors
    /// [`HvError::Probe`] if neither kind of KVM behaves so.
    pub fn probe_kvm_kind(&mut self) -> Result<KvmKind, HvError> {
        let regs = UserRegs {
            rip: PROBE_CODE.0,
            rflags: FIXED_RFLAGS,
            ..UserRegs::default()
        };
        let running = self.enter_thread();
        let mut kicked = false;
        let mut answer = Err(libc::EINTR);
        for _ in 0..MAX_SIGNALS {
            kicked |= running.take_kick();
            self.load(&regs);
            answer = self.kvm_run();
            if answer != Err(libc::EINTR) {
                break;
            }
        }
        if kicked {
            running.put_back_kick();
        }
        drop(running);
        if let Err(errno) = answer {
            return Err(HvError::Probe(format!("KVM_RUN gave errno {errno}")));
        }
        let kvm_kind = self.explain_probe()?;
        self.kvm_kind = Some(kvm_kind);
        self.kvm.note_world(kvm_kind);
        Ok(kvm_kind)
    }

    fn explain_probe(&self) -> Result<KvmKind, HvError> {
        let rip = self.cpu_regs().rip;
        let unknown = |what: &str| Err(HvError::Probe(format!("{what}, rip {rip:#x}")));
        let Some(access) = self.port_access() else {
            return unknown("no port access");
        };
        match self.cpl() {
            // Jumped to the entry without changing privilege.
            3 if access.port == PORT_SYSCALL
                && matches!(
                    classify(KvmKind::Software, Gva(rip)),
                    StubPc::AtLeave | StubPc::AfterLeave
                ) =>
            {
                Ok(KvmKind::Software)
            }
            // Entered CPL 0 and executed the entry's user page: no SMEP here.
            0 if access.port == PORT_SYSCALL && rip.wrapping_sub(SYSCALL_CODE.0) < PAGE_SIZE => {
                Ok(KvmKind::Hardware)
            }
            // Entered CPL 0, where SMEP refuses that page.
            0 => match self.exception_frame(access, rip) {
                Some(frame)
                    if frame.cs == u64::from(KERNEL_CS)
                        && frame.rip.wrapping_sub(SYSCALL_CODE.0) < PAGE_SIZE =>
                {
                    Ok(KvmKind::Hardware)
                }
                Some(frame) => unknown(&format!("exception {} at {:#x}", frame.vector, frame.rip)),
                None => unknown("an unknown port"),
            },
            _ => unknown("an unknown port"),
        }
    }

    /// Nanoseconds per bare exit and re-entry with synced registers: `rounds` times around a loop of
    /// one `out` at `code`, which stands at ring 3 for software KVM and at CPL 0 for hardware.
    ///
    /// # Errors
    /// [`HvError::Call`] if a run fails, [`HvError::Probe`] if it leaves by anything but the port.
    pub(crate) fn time_exits(&mut self, code: Gva, rounds: u32) -> Result<f64, HvError> {
        let regs = UserRegs {
            rip: code.0,
            rflags: FIXED_RFLAGS,
            ..UserRegs::default()
        };
        self.load(&regs);
        if self.kvm_kind == Some(KvmKind::Hardware) {
            let sync = self.sync();
            // Whatever way to ring 3 was loaded: the loop stands at CPL 0.
            // SAFETY: the mapping is live and KVM only touches it inside KVM_RUN.
            unsafe {
                (*sync).regs.rip = code.0;
                (*sync).regs.rflags = FIXED_RFLAGS;
                (*sync).sregs.cs = code_segment(Privilege::Kernel);
                (*sync).sregs.ss = stack_segment(Privilege::Kernel);
            }
            self.set_dirty(u64::from(
                kvm_bindings::KVM_SYNC_X86_REGS | kvm_bindings::KVM_SYNC_X86_SREGS,
            ));
        }
        let mut start = Instant::now();
        let mut left = rounds + 1;
        while left > 0 {
            match self.kvm_run() {
                Ok(()) => left -= 1,
                Err(libc::EINTR) => continue,
                Err(_) => return Err(HvError::last("KVM_RUN")),
            }
            // An exception of the loop leaves by a port of its own, and costs an exit more.
            if self.port_access().map(|access| access.port) != Some(PORT_SYSCALL) {
                return Err(HvError::Probe("the timing loop left by another way".into()));
            }
            if left == rounds {
                start = Instant::now();
            }
        }
        Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(rounds.max(1)))
    }
}
