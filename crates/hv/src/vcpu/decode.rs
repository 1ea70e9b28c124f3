//! From KVM's exit to a [`Trap`] with user-mode registers. Nothing here trusts the guest: every exit
//! is matched against the places from which the stub leaves.

use std::ptr;

use kvm_bindings::{
    KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT, KVM_EXIT_MMIO, kvm_regs,
    kvm_vcpu_events,
};
use kvmlet_abi::layout::{
    EXC_CODE, EXC_STACK_TOP, EXCEPTION_VECTORS, PORT_EXCEPTION, PORT_SYSCALL, SYSCALL_CODE,
};
use kvmlet_abi::regs::Selectors;
use kvmlet_abi::{Gva, PAGE_SIZE, Trap, UserRegs};
use kvmlet_stub::{
    CLEAN_RELOAD_BYTES, INITIAL_XSTATE_BYTES, KvmKind, MAX_FLUSH_PAGES, RELOAD_BYTES, StubPc,
    classify, exception_entry_offset, flush_entry_offset,
};

use super::{GENERAL_PROTECTION, PAGE_LEN, Vcpu, page_words};
use crate::kick::Running;

/// #PF.
pub(super) const PAGE_FAULT: u8 = 14;
/// #DB.
const DEBUG: u8 = 1;
/// #BP, of `int3`.
const BREAKPOINT: u8 = 3;
/// #OF, which ring 3 may raise by `int $4`.
const OVERFLOW: u8 = 4;
/// Vectors that push an error code (SDM vol. 3A, 6.15; APM vol. 2, 8.2 for 29 and 30):
/// #DF #TS #NP #SS #GP #PF #AC #CP #VC #SX.
const WITH_ERROR_CODE: u32 = 1 << 8
    | 1 << 10
    | 1 << 11
    | 1 << 12
    | 1 << 13
    | 1 << 14
    | 1 << 17
    | 1 << 21
    | 1 << 29
    | 1 << 30;
/// Length of `out imm8, al`.
const OUT_LEN: u64 = 2;
/// OF, SF, ZF, AF, PF and CF in RFLAGS.
const ARITHMETIC_FLAGS: u64 = 0x8d5;
/// From the start of the reload routine to behind the first byte of its `iretq`.
const RELOAD_LEN: u64 = 8;
/// Length of `syscall`.
const SYSCALL_LEN: u64 = 2;
/// Re-entries to finish one port access or one exception that was under way: each takes one or two.
const MAX_COMPLETIONS: u32 = 64;
/// Bytes of the page behind `kvm_run` that carries port data (KVM_PIO_PAGE_OFFSET).
const PIO_LEN: usize = 4096;

/// A port access as KVM reports it.
#[derive(Clone, Copy)]
pub(super) struct PortAccess {
    direction: u32,
    size: u8,
    pub(super) port: u16,
    count: u32,
    data_offset: u64,
}

impl PortAccess {
    /// `out imm8, al` and nothing else.
    fn is_byte_out(self) -> bool {
        self.direction == KVM_EXIT_IO_OUT && self.size == 1 && self.count == 1
    }
}

/// The frame the CPU pushed for an exception.
pub(super) struct Frame {
    pub(super) vector: u8,
    error_code: u32,
    pub(super) rip: u64,
    pub(super) cs: u64,
    rflags: u64,
    rsp: u64,
}

impl Vcpu {
    /// Enters the guest and says what came of it.
    pub(super) fn enter_and_decode(&mut self, running: &Running<'_>, regs: &mut UserRegs) -> Trap {
        let result = self.kvm_run();
        self.settle_flush();
        match result {
            Ok(()) => self.decode_exit(running, regs),
            Err(libc::EINTR) => {
                running.take_kick();
                self.decode_interrupted(running, regs)
            }
            Err(libc::EFAULT) if self.cpl() == 3 => {
                self.store(regs);
                Trap::HostFault
            }
            Err(errno) => Trap::Broken {
                exit_reason: u32::MAX,
                detail: u64::from(errno.unsigned_abs()),
            },
        }
    }

    /// Forgets the flush list once the routine is through.
    fn settle_flush(&mut self) {
        if self.in_flush_routine() {
            return;
        }
        self.is_reload_due = false;
        self.is_clean_due = false;
        if !self.flush.is_empty() {
            self.counters.flushes += 1;
            self.counters.flushed_pages += self.flush.len() as u64;
            self.flush.clear();
        }
    }

    pub(super) fn cpl(&self) -> u8 {
        self.sregs().cs.dpl
    }

    fn in_flush_routine(&self) -> bool {
        let offset = self.cpu_regs().rip.wrapping_sub(EXC_CODE.0);
        let kvm_kind = self.stub_kind();
        // From the longest list's entry to the iretq, which follows one byte behind the shortest's.
        let routine = flush_entry_offset(kvm_kind, MAX_FLUSH_PAGES)
            .zip(flush_entry_offset(kvm_kind, 0))
            .map(|(start, last)| start..last + 2);
        let reload = RELOAD_BYTES..RELOAD_BYTES + RELOAD_LEN;
        let clean = CLEAN_RELOAD_BYTES..INITIAL_XSTATE_BYTES;
        let is_inside = routine.is_some_and(|routine| routine.contains(&offset));
        self.cpl() == 0 && (is_inside || reload.contains(&offset) || clean.contains(&offset))
    }

    /// User-mode registers as they stand in the vCPU.
    fn store(&self, regs: &mut UserRegs) {
        let cpu = self.cpu_regs();
        self.store_from(&cpu, regs);
    }

    fn store_from(&self, cpu: &kvm_regs, regs: &mut UserRegs) {
        let sregs = self.sregs();
        *regs = UserRegs {
            rax: cpu.rax,
            rbx: cpu.rbx,
            rcx: cpu.rcx,
            rdx: cpu.rdx,
            rsi: cpu.rsi,
            rdi: cpu.rdi,
            rsp: cpu.rsp,
            rbp: cpu.rbp,
            r8: cpu.r8,
            r9: cpu.r9,
            r10: cpu.r10,
            r11: cpu.r11,
            r12: cpu.r12,
            r13: cpu.r13,
            r14: cpu.r14,
            r15: cpu.r15,
            rip: cpu.rip,
            rflags: cpu.rflags,
            fs_base: sregs.fs.base,
            gs_base: sregs.gs.base,
            selectors: match self.kvm_kind {
                Some(KvmKind::Software) => self.selectors,
                _ => Selectors {
                    ds: sregs.ds.selector,
                    es: sregs.es.selector,
                    fs: sregs.fs.selector,
                    gs: sregs.gs.selector,
                },
            },
        };
        regs.sanitise();
    }

    fn broken(&self, detail: u64) -> Trap {
        // SAFETY: the mapping is live.
        let exit_reason = unsafe { (*self.run.as_ptr()).exit_reason };
        Trap::Broken {
            exit_reason,
            detail,
        }
    }

    /// The port access of the last exit, if it was one.
    pub(super) fn port_access(&self) -> Option<PortAccess> {
        let run = self.run.as_ptr();
        // SAFETY: the mapping is live; the exit reason says which member of the union is filled.
        unsafe {
            if (*run).exit_reason != KVM_EXIT_IO {
                return None;
            }
            let io = (*run).__bindgen_anon_1.io;
            Some(PortAccess {
                direction: u32::from(io.direction),
                size: io.size,
                port: io.port,
                count: io.count,
                data_offset: io.data_offset,
            })
        }
    }

    fn decode_exit(&mut self, running: &Running<'_>, regs: &mut UserRegs) -> Trap {
        let Some(access) = self.port_access() else {
            return self.broken(self.exit_detail());
        };
        let cpu = self.cpu_regs();
        if let Some(place) = self.syscall_place(access, cpu.rip) {
            if place == StubPc::PostLeave {
                self.waiting = Some(self.call_page.posted());
            }
            self.store_from(&cpu, regs);
            roll_forward(regs);
            return Trap::Syscall;
        }
        if self.cpl() == 3 {
            return self.forged_access(access, &cpu, running, regs);
        }
        match self.exception_frame(access, cpu.rip) {
            Some(frame) => self.decode_exception(&frame, &cpu, regs),
            None => self.broken(u64::from(access.port)),
        }
    }

    /// Where in the stub the access was made, if it is its own: the right port, from the right instruction. Hardware
    /// enters the stub at CPL 0 and leaves rip at the `out`; software KVM enters it at CPL 3, or at
    /// CPL 0 where it emulates the `syscall` (it does on a stack pointer that is not canonical), and
    /// leaves rip behind the `out`.
    fn syscall_place(&self, access: PortAccess, rip: u64) -> Option<StubPc> {
        let kvm_kind = self.stub_kind();
        let place = classify(kvm_kind, Gva(rip));
        let own = access.port == PORT_SYSCALL
            && access.is_byte_out()
            && (self.cpl() == 0 || kvm_kind == KvmKind::Software)
            && matches!(
                place,
                StubPc::AtLeave | StubPc::AfterLeave | StubPc::PostLeave
            );
        own.then_some(place)
    }

    /// A port access that ring 3 made by itself: #GP, as on hardware, where the CPU raises it.
    fn forged_access(
        &mut self,
        access: PortAccess,
        cpu: &kvm_regs,
        running: &Running<'_>,
        regs: &mut UserRegs,
    ) -> Trap {
        self.counters.forged_io += 1;
        self.store_from(cpu, regs);
        if access.direction == KVM_EXIT_IO_IN && !self.complete_input(access, running) {
            return self.broken(u64::from(access.port));
        }
        Trap::Exception {
            vector: GENERAL_PROTECTION,
            error_code: 0,
            fault_gva: Gva(0),
        }
    }

    /// Finishes an input that KVM holds open, or it would complete into the registers that are
    /// loaded next. The registers it leaves are not used. String input stores zeros where the
    /// program could have stored them itself.
    fn complete_input(&mut self, first: PortAccess, running: &Running<'_>) -> bool {
        let mut access = first;
        for _ in 0..MAX_COMPLETIONS {
            self.zero_port_data(access);
            // KVM completes the access before it looks at this flag. It stays set: the next run
            // returns at once, so that no kick is lost.
            running.put_back_kick();
            self.set_dirty(0);
            match self.kvm_run() {
                Err(libc::EINTR) => return true,
                Ok(()) => match self.port_access() {
                    Some(next) => access = next,
                    None => return false,
                },
                Err(_) => return false,
            }
        }
        false
    }

    /// The page that carries port data may hold what an earlier access left.
    fn zero_port_data(&mut self, access: PortAccess) {
        let len = usize::from(access.size)
            .saturating_mul(access.count as usize)
            .min(PIO_LEN);
        let Ok(offset) = usize::try_from(access.data_offset) else {
            return;
        };
        // SAFETY: KVM reports where in the vCPU's mapping the data lies (one page of it at most), and
        // does not touch it outside of KVM_RUN.
        unsafe {
            let data = self.run.as_ptr().cast::<u8>().add(offset);
            ptr::write_bytes(data, 0, len);
        }
    }

    pub(super) fn set_dirty(&mut self, fields: u64) {
        // SAFETY: the mapping is live.
        unsafe { (*self.run.as_ptr()).kvm_dirty_regs = fields };
    }

    /// The exception whose entry made this access, if it is one and the stack agrees.
    pub(super) fn exception_frame(&self, access: PortAccess, rip: u64) -> Option<Frame> {
        let vector = entry_at(rip).or_else(|| entry_at(rip.wrapping_sub(OUT_LEN)))?;
        if !access.is_byte_out() || access.port != PORT_EXCEPTION + u16::from(vector) {
            return None;
        }
        self.frame(vector)
    }

    /// Reads the frame of `vector` from the exception stack; `None` if the stack pointer is not where
    /// that frame puts it (a double fault is on another stack).
    fn frame(&self, vector: u8) -> Option<Frame> {
        let has_error_code = WITH_ERROR_CODE >> vector & 1 == 1;
        let words = if has_error_code { 6 } else { 5 };
        if self.cpu_regs().rsp != EXC_STACK_TOP.0 - words * 8 {
            return None;
        }
        let stack = page_words(&self.exc_stack);
        let word = |from_top: usize| {
            // SAFETY: inside the page that HostPage keeps mapped; the guest may write it at any
            // time, so each word is read once and believed only as a value.
            unsafe { stack.add(PAGE_LEN / 8 - from_top).read_volatile() }
        };
        Some(Frame {
            vector,
            error_code: if has_error_code { word(6) as u32 } else { 0 },
            rip: word(5),
            cs: word(4),
            rflags: word(3),
            rsp: word(2),
        })
    }

    fn decode_exception(&mut self, frame: &Frame, cpu: &kvm_regs, regs: &mut UserRegs) -> Trap {
        self.store_from(cpu, regs);
        regs.rsp = frame.rsp;
        if frame.cs & 3 != 3 {
            return self.decode_stub_exception(frame, regs);
        }
        if let Err(trap) = self.forget_vector(frame.vector) {
            return trap;
        }
        regs.rip = frame.rip;
        regs.rflags = frame.rflags;
        regs.sanitise();
        Trap::Exception {
            vector: frame.vector,
            error_code: frame.error_code,
            fault_gva: Gva(self.sregs().cr2),
        }
    }

    /// An exception inside the stub at CPL 0. Two are honest, and the call goes on as made: a single
    /// step that is still pending when `syscall` enters the stub, although IA32_FMASK clears TF; and, where
    /// software KVM emulates the entry at CPL 0, its access to the call page, which is the program's
    /// (SMAP).
    fn decode_stub_exception(&mut self, frame: &Frame, regs: &mut UserRegs) -> Trap {
        let kvm_kind = self.stub_kind();
        let trap = match (kvm_kind, frame.vector, classify(kvm_kind, Gva(frame.rip))) {
            (KvmKind::Hardware, DEBUG, StubPc::Entry | StubPc::AtLeave)
            | (KvmKind::Software, PAGE_FAULT, StubPc::Entry) => Some(Trap::Syscall),
            (KvmKind::Hardware, DEBUG, StubPc::Answered) => Some(Trap::Interrupted),
            _ => None,
        };
        if let Some(trap) = trap {
            roll_forward(regs);
            return trap;
        }
        self.broken(
            u64::from(frame.vector) << 32 | frame.rip.wrapping_sub(EXC_CODE.0) & 0xffff_ffff,
        )
    }

    /// A signal brought the vCPU out: brings the registers to user mode.
    fn decode_interrupted(&mut self, running: &Running<'_>, regs: &mut UserRegs) -> Trap {
        if let Some(trap) = self.deliver_pending(running, regs) {
            return trap;
        }
        let cpu = self.cpu_regs();
        if self.cpl() == 0 {
            if self.in_flush_routine() {
                // Ring 3 has not run: the caller's registers stand, and the flush is still queued.
                return Trap::Interrupted;
            }
            if let Some(vector) = entry_at(cpu.rip) {
                // Delivered, but the `out` is still to come: all it would tell is known.
                running.put_back_kick();
                return match self.frame(vector) {
                    Some(frame) => self.decode_exception(&frame, &cpu, regs),
                    None => self.broken(u64::from(vector)),
                };
            }
            if cpu.rip.wrapping_sub(SYSCALL_CODE.0) >= PAGE_SIZE {
                return self.broken(cpu.rip);
            }
        }
        self.store_from(&cpu, regs);
        let kvm_kind = self.stub_kind();
        match classify(kvm_kind, Gva(cpu.rip)) {
            StubPc::Entry | StubPc::AtLeave => unwind(regs),
            StubPc::Answering { number } => {
                regs.rax = number;
                unwind(regs);
            }
            StubPc::Answered => roll_forward(regs),
            StubPc::Posting => {
                regs.rax = self.call_page.nr();
                unwind(regs);
            }
            place @ (StubPc::Posted | StubPc::PostLeave) => {
                // It may have been answered: the caller finds out, and hears of the kick afterwards.
                running.put_back_kick();
                self.waiting = Some(self.call_page.posted());
                if place == StubPc::Posted {
                    regs.rax = self.call_page.nr();
                    let [_, _, rdx, ..] = self.call_page.args();
                    regs.rdx = rdx;
                }
                roll_forward(regs);
                return Trap::Syscall;
            }
            StubPc::AfterLeave | StubPc::Outside if self.cpl() == 0 => {
                return self.broken(cpu.rip);
            }
            StubPc::AfterLeave | StubPc::Outside => {}
        }
        regs.sanitise();
        Trap::Interrupted
    }

    /// An exception that KVM has taken from this thread and not delivered yet would hit whichever
    /// thread runs next: lets it arrive, and reports it in place of the kick.
    fn deliver_pending(&mut self, running: &Running<'_>, regs: &mut UserRegs) -> Option<Trap> {
        for _ in 0..MAX_COMPLETIONS {
            let events = match self.events() {
                Ok(events) => events,
                Err(trap) => return Some(trap),
            };
            if events.exception.injected == 0 && events.exception.pending == 0 {
                return self.take_unreported(events, running, regs);
            }
            self.set_dirty(0);
            let result = self.kvm_run();
            self.settle_flush();
            match result {
                Ok(()) => {
                    let trap = self.decode_exit(running, regs);
                    running.put_back_kick();
                    return Some(trap);
                }
                Err(libc::EINTR) => {
                    running.take_kick();
                }
                Err(_) => return Some(self.broken(0)),
            }
        }
        Some(self.broken(0))
    }

    /// Takes away what KVM_GET_VCPU_EVENTS reports as not there although it is: the exceptions and
    /// interrupts that instructions raise (x86.c, kvm_vcpu_ioctl_x86_get_vcpu_events). On hardware RIP stands
    /// at such an instruction until it has been delivered: the thread will come upon it again. On software
    /// KVM RIP is behind it, and the vector, which is reported, tells of it: see
    /// [`Self::forget_vector`].
    fn take_unreported(
        &mut self,
        events: kvm_vcpu_events,
        running: &Running<'_>,
        regs: &mut UserRegs,
    ) -> Option<Trap> {
        let vector = events.exception.nr;
        let is_behind = self.is_behind_instruction(vector);
        if (is_behind || self.stub_kind() == KvmKind::Hardware)
            && let Err(trap) = self.empty_events(events)
        {
            return Some(trap);
        }
        if !is_behind || self.cpl() != 3 {
            return None;
        }
        self.store(regs);
        running.put_back_kick();
        Some(Trap::Exception {
            vector,
            error_code: 0,
            fault_gva: Gva(0),
        })
    }

    /// An exception by `vector` has been delivered: the next one is told from it by its vector.
    fn forget_vector(&mut self, vector: u8) -> Result<(), Trap> {
        if !self.is_behind_instruction(vector) {
            return Ok(());
        }
        let events = self.events()?;
        self.empty_events(events)
    }

    /// Whether `vector` is raised by an instruction that RIP is behind before it is delivered.
    fn is_behind_instruction(&self, vector: u8) -> bool {
        self.stub_kind() == KvmKind::Software && matches!(vector, BREAKPOINT | OVERFLOW)
    }

    fn events(&mut self) -> Result<kvm_vcpu_events, Trap> {
        self.counters.ioctls += 1;
        self.fd.get_vcpu_events().map_err(broken_ioctl)
    }

    /// Sets `events` without an exception, and without the shadow of a `mov` to SS: entry with the TF of another
    /// thread would fail in it (SDM vol. 3C, 27.3.1.5).
    fn empty_events(&mut self, mut events: kvm_vcpu_events) -> Result<(), Trap> {
        self.counters.ioctls += 1;
        events.exception.injected = 0;
        events.exception.pending = 0;
        events.exception.nr = 0;
        events.interrupt.shadow = 0;
        self.fd.set_vcpu_events(&events).map_err(broken_ioctl)
    }

    /// What the log wants to know of an exit that no stub makes.
    fn exit_detail(&self) -> u64 {
        let run = self.run.as_ptr();
        // SAFETY: the mapping is live; the exit reason says which member of the union is filled.
        unsafe {
            match (*run).exit_reason {
                KVM_EXIT_INTERNAL_ERROR => u64::from((*run).__bindgen_anon_1.internal.suberror),
                KVM_EXIT_MMIO => (*run).__bindgen_anon_1.mmio.phys_addr,
                _ => (*run).__bindgen_anon_1.hw.hardware_exit_reason,
            }
        }
    }
}

fn broken_ioctl(error: kvm_ioctls::Error) -> Trap {
    Trap::Broken {
        exit_reason: u32::MAX,
        detail: u64::from(error.errno().unsigned_abs()),
    }
}

/// Back to the `syscall` instruction, as if it had not been executed.
fn unwind(regs: &mut UserRegs) {
    roll_forward(regs);
    regs.rip = regs.rip.wrapping_sub(SYSCALL_LEN);
}

/// Behind the `syscall` instruction, with what it leaves in registers. A call that jumped into the stub
/// has brought its arithmetic flags only; the others are as they stand.
fn roll_forward(regs: &mut UserRegs) {
    regs.rip = regs.rcx;
    if let Some(flags) = direct_flags(regs.r11) {
        regs.r11 = regs.rflags & !ARITHMETIC_FLAGS | flags;
    }
    regs.rflags = regs.r11;
    regs.sanitise();
}

/// The flags that a call brings which jumped into the stub; `None` if r11 holds RFLAGS, whose bit 1 is
/// always set.
fn direct_flags(r11: u64) -> Option<u64> {
    (r11 & 2 == 0).then_some((r11 >> 8 & 0xd5) | (r11 & 1) << 11)
}

/// The vector whose entry starts exactly at `rip`.
fn entry_at(rip: u64) -> Option<u8> {
    let offset = rip.wrapping_sub(EXC_CODE.0);
    let stride = exception_entry_offset(1);
    (offset.is_multiple_of(stride) && offset / stride < u64::from(EXCEPTION_VECTORS))
        .then_some((offset / stride) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_come_from_r11_or_from_both() {
        let mut regs = UserRegs {
            rip: 1,
            rcx: 0x1007,
            // What the stub's own comparisons left; DF is the program's.
            rflags: 0x202 | 0x400 | 0x8d5,
            r11: 0x46,
            ..UserRegs::default()
        };
        roll_forward(&mut regs);
        assert_eq!((regs.rip, regs.rflags, regs.r11), (0x1007, 0x246, 0x46));
        for (r11, rflags) in [
            (0x4600, 0x202 | 0x400 | 0x44),
            (0x0201, 0x202 | 0x400 | 0x800),
            (0xd700, 0x202 | 0x400 | 0xd5),
        ] {
            regs.rflags = 0x202 | 0x400 | 0x8d5;
            regs.r11 = r11;
            unwind(&mut regs);
            assert_eq!((regs.rip, regs.rflags), (0x1005, rflags), "{r11:#x}");
        }
    }
}
