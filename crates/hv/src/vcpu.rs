//! A virtual CPU: its state, its kicks and deadlines, and [`Vcpu::run`].

use std::fmt;
use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use kvm_bindings::{
    KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr,
    kvm_regs, kvm_run, kvm_sregs, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;
use kvmlet_abi::call_page::Ticket;
use kvmlet_abi::layout::{
    EXC_CODE, FLUSH_STACK_TOP, KERNEL_CS, KERNEL_DS, SYSCALL_CODE, USER_CS, USER_DS, USER_END,
};
use kvmlet_abi::regs::{Selectors, is_canonical};
use kvmlet_abi::{Gpa, Gva, Trap, UserRegs};
use kvmlet_budget::Held;
use kvmlet_mem::HostPage;
use kvmlet_stub::{
    CLEAN_BYTES, CLEAN_RELOAD_BYTES, KvmKind, MAX_FLUSH_PAGES, RELOAD_BYTES, flush_entry_offset,
    return_offset,
};
use vmm_sys_util::ioctl::{ioctl, ioctl_with_ptr, ioctl_with_ref};

use crate::cpu::{
    self, CR4_OSXSAVE, Privilege, code_segment, data_segment, initial_sregs, stack_segment,
    syscall_msrs,
};
use crate::ioctl::{KVM_GET_DEVICE_ATTR, KVM_RUN, KVM_SET_XSAVE};
use crate::kick::{Deadline, Running, Shared};
use crate::vm::{Slots, stats_file};
use crate::xstate::XFEATURE_PKRU;
use crate::{CallPage, HvError, Kicker, Kvm, Stats, XState, XStateLayout, selectors};

mod decode;
mod probe;
mod xstate;

const PAGE_LEN: usize = 4096;
/// Words that the flush routine pops after the addresses: rax, rip, cs, rflags, rsp, ss.
const FLUSH_FRAME_WORDS: usize = 6;
/// Those that the clean routine pops besides: the number of addresses before them, rcx and rdx behind.
const CLEAN_WORDS: usize = 3;
const _: () = assert!((MAX_FLUSH_PAGES + FLUSH_FRAME_WORDS + CLEAN_WORDS) * 8 <= PAGE_LEN);
/// RFLAGS at CPL 0: only the reserved bit, interrupts off.
const KERNEL_RFLAGS: u64 = 2;
/// TF and RF, which `sysretq` cannot give back: with TF it traps one instruction too early.
const STEP_AND_RESUME: u64 = 0x1_0100;
/// #GP (SDM vol. 3A, 6.15).
const GENERAL_PROTECTION: u8 = 13;

/// The parts of a vCPU.
#[derive(Clone, Debug)]
pub struct VcpuConfig {
    /// Root of the page tables.
    pub cr3: Gpa,
    /// The page mapped at [`kvmlet_abi::layout::EXC_STACK`].
    pub exc_stack: HostPage,
    /// The page mapped at [`kvmlet_abi::layout::FLUSH_STACK`].
    pub flush_stack: HostPage,
    /// The page mapped at [`kvmlet_abi::layout::CALL_PAGE`].
    pub call_page: HostPage,
    /// Which kind of KVM this is, or `None` to ask [`Vcpu::probe_kvm_kind`] before the first run.
    pub kvm_kind: Option<KvmKind>,
}

/// Counts of what a vCPU has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Times KVM_RUN was called.
    pub runs: u64,
    /// All ioctls of this vCPU, KVM_RUN included.
    pub ioctls: u64,
    /// Runs that ended in a system call.
    pub syscalls: u64,
    /// Runs that ended in an exception, page faults included.
    pub exceptions: u64,
    /// Runs that ended in a page fault.
    pub page_faults: u64,
    /// Runs ended by a kick or another signal.
    pub interrupted: u64,
    /// Runs ended by missing host memory.
    pub host_faults: u64,
    /// Port accesses that were not the stub's.
    pub forged_io: u64,
    /// Runs that nothing explains.
    pub broken: u64,
    /// Passes of the flush routine that completed.
    pub flushes: u64,
    /// Pages that those passes invalidated.
    pub flushed_pages: u64,
}

/// How a run gets to ring 3.
enum WayIn {
    /// By the routine at this offset in [`EXC_CODE`], which begins at CPL 0.
    Routine(u64),
    /// By the stub's return from a system call. The vCPU is at CPL 0.
    Return,
    /// KVM is given the segments of ring 3, and with them all special registers anew.
    Segments,
}

/// The special registers of a vCPU that is handed on: `initial`, but for what each entry loads from its thread
/// ([`crate::STATE`]).
fn handed_on(initial: &kvm_sregs, now: &kvm_sregs) -> kvm_sregs {
    let mut wanted = *initial;
    wanted.cr3 = now.cr3;
    wanted.fs.base = now.fs.base;
    wanted.gs.base = now.gs.base;
    // Ring 3 or the stub: the entry goes by it.
    if now.cs.selector == KERNEL_CS && now.cs.dpl == 0 {
        wanted.cs = now.cs;
        wanted.ss = now.ss;
    }
    wanted
}

/// The flush list is full: the caller flushes everything instead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("more than {MAX_FLUSH_PAGES} pages to flush")]
pub struct FlushFull;

/// A virtual CPU. Any thread may run it, one at a time.
pub struct Vcpu {
    fd: VcpuFd,
    kvm: Kvm,
    /// The mapping that `fd` owns, shared with KVM. Only reached through raw pointers.
    run: NonNull<kvm_run>,
    exc_stack: HostPage,
    flush_stack: HostPage,
    call_page: CallPage,
    /// The posted call from which the last run left.
    waiting: Option<Ticket>,
    kvm_kind: Option<KvmKind>,
    cr3: Gpa,
    /// The address space whose root that is, by a name of the caller's.
    space: Option<u64>,
    /// Whether the next run drops what the TLB holds of another address space, before ring 3 runs.
    is_reload_due: bool,
    /// Whether the next run begins with the extended state that a program starts with.
    is_clean_due: bool,
    /// What ring 3 starts the next run with on software KVM, and what it ended the last one with.
    selectors: Selectors,
    /// The special registers that a vCPU of ours starts with.
    initial: Box<kvm_sregs>,
    /// Whether the next entry puts all of them back.
    is_handed_on: bool,
    /// Pages to invalidate before ring 3 runs again.
    flush: Vec<Gva>,
    xstate: XStateLayout,
    has_xsave2: bool,
    shared: Arc<Shared>,
    deadline: Deadline,
    counters: Counters,
    /// What KVM had counted for earlier programs.
    counted_before: Arc<[u64]>,
    /// What the guest runs on: dropped after `fd`.
    _slots: Arc<Slots>,
    /// Its descriptor and its run page.
    _held: [Held; 2],
}

// SAFETY: the raw pointer leads to the mapping that `fd` owns; nothing in it belongs to a thread.
unsafe impl Send for Vcpu {}

impl fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpu")
            .field("kvm_kind", &self.kvm_kind)
            .field("cr3", &self.cr3)
            .field("flush", &self.flush.len())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// The page as 512 words, for volatile access.
fn page_words(page: &HostPage) -> *mut u64 {
    ptr::with_exposed_provenance_mut(page.addr())
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        // Before `fd` unmaps what kickers write to.
        self.shared.detach();
    }
}

impl Vcpu {
    pub(crate) fn new(
        kvm: Kvm,
        mut fd: VcpuFd,
        config: VcpuConfig,
        xsave_len: i32,
        slots: Arc<Slots>,
        held: [Held; 2],
    ) -> Result<Self, HvError> {
        let template = kvm.template()?;
        let call = HvError::from_errno;
        fd.set_cpuid2(&template.cpuid)
            .map_err(|error| call("KVM_SET_CPUID2", error))?;
        let reset = kvm.reset_sregs(&fd)?;
        let mut sregs = initial_sregs(reset, template, config.cr3);
        if let Err(error) = fd.set_sregs(&sregs) {
            // A KVM that hides XSAVE may refuse the bit: without it programs are told of no AVX.
            sregs.cr4 &= !CR4_OSXSAVE;
            fd.set_sregs(&sregs)
                .map_err(|_| call("KVM_SET_SREGS", error))?;
        }
        let mut ioctls = 4;
        if template.xcr0 != 0 {
            let mut xcrs = kvm_xcrs {
                nr_xcrs: 1,
                ..kvm_xcrs::default()
            };
            xcrs.xcrs[0].value = template.xcr0;
            fd.set_xcrs(&xcrs)
                .map_err(|error| call("KVM_SET_XCRS", error))?;
            ioctls += 1;
        }
        let msrs = syscall_msrs()?;
        let set = fd
            .set_msrs(&msrs)
            .map_err(|error| call("KVM_SET_MSRS", error))?;
        ioctls += 1;
        if set != msrs.as_slice().len() {
            return Err(HvError::MissingCapability(
                "the MSRs of the syscall instruction",
            ));
        }
        let run = NonNull::from(fd.get_kvm_run());
        // SAFETY: `run` points to the live mapping; `immediate_exit` is a byte that KVM, this thread
        // and kickers access concurrently, always as an atomic on our side.
        let flag = unsafe {
            let run = run.as_ptr();
            (*run).kvm_valid_regs = u64::from(KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS);
            (*run).s.regs.sregs = sregs;
            NonNull::new_unchecked(ptr::addr_of_mut!((*run).immediate_exit).cast::<AtomicU8>())
        };
        let shared = Shared::new(flag)?;
        let kvm_len_bytes = usize::try_from(xsave_len).unwrap_or(0).max(PAGE_LEN);
        let xstate = XStateLayout {
            xcr0: template.xcr0,
            len_bytes: template.xsave_len_bytes,
            kvm_len_bytes,
            pkru_at: None,
        };
        let mut vcpu = Self {
            fd,
            run,
            exc_stack: config.exc_stack,
            flush_stack: config.flush_stack,
            call_page: CallPage::new(config.call_page),
            waiting: None,
            kvm_kind: config.kvm_kind,
            cr3: config.cr3,
            space: None,
            is_reload_due: false,
            is_clean_due: false,
            selectors: Selectors::default(),
            initial: Box::new(sregs),
            is_handed_on: false,
            flush: Vec::with_capacity(MAX_FLUSH_PAGES),
            xstate,
            has_xsave2: xsave_len > 0,
            shared,
            deadline: Deadline::default(),
            counters: Counters {
                ioctls,
                ..Counters::default()
            },
            counted_before: Arc::default(),
            kvm: kvm.clone(),
            _slots: slots,
            _held: held,
        };
        if kvm.moves_pkru(|| vcpu.takes_pkru()) {
            vcpu.xstate = vcpu.xstate_with_pkru();
        }
        Ok(vcpu)
    }

    fn xstate_with_pkru(&self) -> XStateLayout {
        XStateLayout {
            pkru_at: Some(cpu::component_offset(XFEATURE_PKRU)),
            ..self.xstate
        }
    }

    /// Whether KVM takes PKRU from an image although this vCPU's XCR0 is without it.
    fn takes_pkru(&mut self) -> bool {
        if !cpu::has_protection_keys() || self.xstate.xcr0 & XFEATURE_PKRU != 0 {
            return false;
        }
        let image = XState::new(self.xstate_with_pkru());
        self.counters.ioctls += 1;
        // SAFETY: the buffer has the length that KVM reported for this VM.
        unsafe { ioctl_with_ptr(&self.fd, KVM_SET_XSAVE(), image.as_ptr()) == 0 }
    }

    /// Runs a thread with `regs` in ring 3 until something happens, and leaves its user-mode
    /// registers in `regs`, as [`Trap`] describes them. Queued flushes are discharged first.
    ///
    /// `regs` is sanitised; a non-canonical `rip` gives #GP without running. The caller keeps `rip`
    /// below `USER_END`.
    ///
    /// Linux differs: on software KVM ring 3 owns [`kvmlet_abi::layout::PORT_SYSCALL`]. An access to
    /// it from outside of the stub is reported as #GP like any other port's. After an `out`, though, the
    /// access has already retired and `rip` stands behind it; the data goes nowhere.
    ///
    /// Without a known [`KvmKind`] the VM is taken for hardware, where a wrong answer is
    /// [`Trap::Broken`] at the first system call.
    pub fn run(&mut self, regs: &mut UserRegs) -> Trap {
        regs.sanitise();
        self.waiting = None;
        if !is_canonical(regs.rip) {
            return self.count_trap(Trap::Exception {
                vector: GENERAL_PROTECTION,
                error_code: 0,
                fault_gva: Gva(0),
            });
        }
        let running = self.enter_thread();
        let trap = if running.take_kick() {
            Trap::Interrupted
        } else {
            self.load(regs);
            self.enter_and_decode(&running, regs)
        };
        drop(running);
        self.count_trap(trap)
    }

    /// The posted call from which the last run left, if it left from one. [`Trap::Syscall`] then hands
    /// over a call that may have been answered already.
    #[must_use]
    pub fn waiting(&self) -> Option<Ticket> {
        self.waiting
    }

    /// The call page.
    #[must_use]
    pub fn call_page(&self) -> &CallPage {
        &self.call_page
    }

    /// Directs this thread's kicks to this vCPU.
    fn enter_thread(&self) -> Running<'static> {
        // SAFETY: the byte lies in the mapping, which lives as long as self; `Running` never leaves
        // a method of self. It is only accessed as an atomic on our side.
        let flag =
            unsafe { &*ptr::addr_of!((*self.run.as_ptr()).immediate_exit).cast::<AtomicU8>() };
        Running::enter(&self.shared, flag)
    }

    fn count_trap(&mut self, trap: Trap) -> Trap {
        let counters = &mut self.counters;
        match trap {
            Trap::Syscall => counters.syscalls += 1,
            Trap::Exception { vector, .. } => {
                counters.exceptions += 1;
                if vector == decode::PAGE_FAULT {
                    counters.page_faults += 1;
                }
            }
            Trap::Interrupted => counters.interrupted += 1,
            Trap::HostFault => counters.host_faults += 1,
            Trap::Broken { .. } => counters.broken += 1,
        }
        trap
    }

    /// Puts the registers where KVM_RUN takes them from: ring 3 at `regs`, or the flush routine,
    /// which ends there.
    fn load(&mut self, regs: &UserRegs) {
        let mut cpu = kvm_regs {
            rax: regs.rax,
            rbx: regs.rbx,
            rcx: regs.rcx,
            rdx: regs.rdx,
            rsi: regs.rsi,
            rdi: regs.rdi,
            rsp: regs.rsp,
            rbp: regs.rbp,
            r8: regs.r8,
            r9: regs.r9,
            r10: regs.r10,
            r11: regs.r11,
            r12: regs.r12,
            r13: regs.r13,
            r14: regs.r14,
            r15: regs.r15,
            rip: regs.rip,
            rflags: regs.rflags,
        };
        let mut privilege = Privilege::User;
        match self.way_in(regs) {
            WayIn::Routine(entry) => {
                cpu.rsp = self.write_flush_stack(regs);
                cpu.rip = EXC_CODE.0 + entry;
                cpu.rflags = KERNEL_RFLAGS;
                privilege = Privilege::Kernel;
            }
            WayIn::Return => {
                cpu.rip = SYSCALL_CODE.0 + return_offset();
                cpu.rflags = KERNEL_RFLAGS;
                privilege = Privilege::Kernel;
            }
            WayIn::Segments => {}
        }
        let (cs, ss, dpl) = match privilege {
            Privilege::User => (USER_CS, Some(USER_DS), 3),
            Privilege::Kernel => (KERNEL_CS, None, 0),
        };
        let mut dirty = KVM_SYNC_X86_REGS;
        let sync = self.sync();
        // SAFETY: the mapping is live and KVM only touches it inside KVM_RUN.
        unsafe {
            (*sync).regs = cpu;
            let sregs = &mut (*sync).sregs;
            if core::mem::take(&mut self.is_handed_on) {
                let wanted = handed_on(&self.initial, sregs);
                if *sregs != wanted {
                    *sregs = wanted;
                    dirty |= KVM_SYNC_X86_SREGS;
                }
            }
            // Special registers cost a little on every entry, and hardly ever differ from what the
            // last exit left.
            if sregs.cs.selector != cs
                || sregs.cs.dpl != dpl
                || ss.is_some_and(|ss| sregs.ss.selector != ss)
            {
                sregs.cs = code_segment(privilege);
                sregs.ss = stack_segment(privilege);
                dirty |= KVM_SYNC_X86_SREGS;
            }
            self.selectors = regs.selectors;
            let selectors = &regs.selectors;
            for (segment, selector) in [
                (&mut sregs.ds, selectors.ds),
                (&mut sregs.es, selectors.es),
                (&mut sregs.fs, selectors.fs),
                (&mut sregs.gs, selectors.gs),
            ] {
                // Software KVM has no part in it.
                if segment.selector != selector && self.kvm_kind != Some(KvmKind::Software) {
                    *segment = data_segment(selector);
                    dirty |= KVM_SYNC_X86_SREGS;
                }
            }
            if sregs.fs.base != regs.fs_base
                || sregs.gs.base != regs.gs_base
                || sregs.cr3 != self.cr3.0
            {
                sregs.fs.base = regs.fs_base;
                sregs.gs.base = regs.gs_base;
                sregs.cr3 = self.cr3.0;
                dirty |= KVM_SYNC_X86_SREGS;
            }
            (*self.run.as_ptr()).kvm_dirty_regs = u64::from(dirty);
        }
    }

    /// How the next run gets to ring 3.
    fn way_in(&mut self, regs: &UserRegs) -> WayIn {
        if let Some(entry) = self.flush_entry() {
            return WayIn::Routine(entry);
        }
        let cs = &self.sregs().cs;
        let is_at_kernel = cs.selector == KERNEL_CS && cs.dpl == 0;
        if !is_at_kernel || self.kvm_kind != Some(KvmKind::Hardware) {
            return WayIn::Segments;
        }
        if self.returns_by_stub(regs) {
            return WayIn::Return;
        }
        flush_entry_offset(KvmKind::Hardware, 0).map_or(WayIn::Segments, WayIn::Routine)
    }

    /// True if the stub's own return brings ring 3 to these registers: the vCPU stands where a system call has left it,
    /// and they are as after one. A signal before the return finds it at a place that [`StubPc::Answered`] names.
    ///
    /// [`StubPc::Answered`]: kvmlet_stub::StubPc::Answered
    fn returns_by_stub(&self, regs: &UserRegs) -> bool {
        // The entry of an exception leaves a null selector: then `sysretq` leaves a null segment on AMD.
        self.sregs().ss.selector == KERNEL_DS
            && regs.rcx == regs.rip
            && regs.r11 == regs.rflags
            && regs.rflags & STEP_AND_RESUME == 0
            // To an address that is not canonical it would fault at CPL 0.
            && regs.rip < USER_END.0
    }

    /// The offset at which ring 0 begins, if something is to be flushed.
    fn flush_entry(&mut self) -> Option<u64> {
        if self.is_reload_due {
            // All pages at once.
            self.flush.clear();
            return Some(match self.is_clean_due {
                true => CLEAN_RELOAD_BYTES,
                false => RELOAD_BYTES,
            });
        }
        if self.is_clean_due {
            return Some(CLEAN_BYTES);
        }
        let pages = Some(self.flush.len()).filter(|&pages| pages > 0)?;
        flush_entry_offset(self.stub_kind(), pages)
    }

    /// Answers the stack pointer.
    fn write_flush_stack(&self, regs: &UserRegs) -> u64 {
        let frame = [
            regs.rax,
            regs.rip,
            u64::from(USER_CS),
            regs.rflags,
            regs.rsp,
            u64::from(USER_DS),
        ];
        let saved = [regs.rcx, regs.rdx];
        let (before, behind) = match self.is_clean_due {
            true => (Some(self.flush.len() as u64), saved.as_slice()),
            false => (None, [].as_slice()),
        };
        let words =
            self.flush.len() + FLUSH_FRAME_WORDS + behind.len() + usize::from(before.is_some());
        let start = PAGE_LEN / 8 - words;
        let operands = self.flush.iter().map(|operand| operand.0);
        let values = before.into_iter().chain(operands);
        let values = values.chain(behind.iter().copied()).chain(frame);
        let stack = page_words(&self.flush_stack);
        for (word, value) in values.enumerate() {
            // SAFETY: `start + word` is below 512, inside the page that HostPage keeps mapped; no
            // reference to guest memory is formed.
            unsafe { stack.add(start + word).write_volatile(value) };
        }
        FLUSH_STACK_TOP.0 - words as u64 * 8
    }

    /// KVM_RUN once.
    fn kvm_run(&mut self) -> Result<(), i32> {
        self.counters.runs += 1;
        self.counters.ioctls += 1;
        if self.kvm_kind != Some(KvmKind::Software) {
            return self.ioctl_run();
        }
        let own = selectors::read();
        selectors::write(self.selectors, own);
        let result = self.ioctl_run();
        self.selectors = selectors::read();
        selectors::write(own, self.selectors);
        result
    }

    fn ioctl_run(&self) -> Result<(), i32> {
        // SAFETY: the descriptor is a vCPU; all memory it may touch is kept by the Vm's and the
        // vCPU's creators.
        if unsafe { ioctl(&self.fd, KVM_RUN()) } == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error().raw_os_error().unwrap_or(0))
        }
    }

    fn sync(&self) -> *mut kvm_bindings::kvm_sync_regs {
        // SAFETY: only computes an address inside the live mapping.
        unsafe { ptr::addr_of_mut!((*self.run.as_ptr()).s.regs) }
    }

    fn cpu_regs(&self) -> kvm_regs {
        // SAFETY: the mapping is live and KVM only touches it inside KVM_RUN.
        unsafe { (*self.sync()).regs }
    }

    fn sregs(&self) -> &kvm_sregs {
        // SAFETY: as above; the borrow of self keeps KVM_RUN away.
        unsafe { &(*self.sync()).sregs }
    }

    /// Makes changes of table entries visible before ring 3 runs again. An operand is what the flush
    /// routine takes. On hardware it is any address in the page. On software KVM it is the address at
    /// which the entry itself is mapped for supervisor code, or the run ends in [`Trap::Broken`].
    ///
    /// # Errors
    /// [`FlushFull`] when more than [`MAX_FLUSH_PAGES`] would be pending; nothing is queued then.
    pub fn request_flush(&mut self, operands: &[Gva]) -> Result<(), FlushFull> {
        if self.flush.len() + operands.len() > MAX_FLUSH_PAGES {
            return Err(FlushFull);
        }
        self.flush.extend_from_slice(operands);
        Ok(())
    }

    /// Has the next run drop every translation before ring 3 runs, in place of queued flushes. For hardware with nested
    /// paging ([`Kvm::has_dirty_bits`]).
    pub fn request_reload(&mut self) {
        self.is_reload_due = true;
    }

    /// Pages still to be invalidated, one by one: 0 once a run has entered ring 3.
    #[must_use]
    pub fn pending_flush(&self) -> usize {
        self.flush.len()
    }

    /// Drops the queued flushes, after the caller has flushed everything (deleted and added slots).
    pub fn forget_flush(&mut self) {
        self.flush.clear();
    }

    /// Gives this vCPU to a program that is to find nothing of the one before, in the same memory: before
    /// the next run. Extended state is the caller's to load; [`crate::STATE`] says of everything else that
    /// a vCPU holds how it is put back.
    pub fn hand_on(&mut self) {
        self.waiting = None;
        self.is_handed_on = true;
    }

    /// Has the next run be in the address space `space`, whose root is `root`. The name is the caller's, and
    /// no other space's until [`Vcpu::forget_space`].
    ///
    /// A change of address space drops what the TLB holds on hardware. Software KVM keeps a shadow of each
    /// root: the caller flushes what has changed in it ([`Vcpu::request_flush`]).
    pub fn load_space(&mut self, space: u64, root: Gpa) {
        if self.space == Some(space) {
            return;
        }
        self.is_reload_due |= self.space.is_some() && self.stub_kind() == KvmKind::Hardware;
        self.space = Some(space);
        self.cr3 = root;
    }

    /// The address space of the last run, if one has been named.
    #[must_use]
    pub fn space(&self) -> Option<u64> {
        self.space
    }

    /// The name of the loaded address space may be another's from now on.
    pub fn forget_space(&mut self) {
        self.is_reload_due |= self.space.take().is_some() && self.stub_kind() == KvmKind::Hardware;
    }

    /// Points this vCPU at another program's tables and VMM pages, after [`crate::Vm::delete_all_slots`]
    /// and before the next run, and hands it on.
    pub fn rebind(&mut self, config: VcpuConfig) {
        self.hand_on();
        self.cr3 = config.cr3;
        self.exc_stack = config.exc_stack;
        self.flush_stack = config.flush_stack;
        self.call_page = CallPage::new(config.call_page);
        self.kvm_kind = config.kvm_kind;
        self.flush.clear();
        // Its slots are new: nothing is translated.
        self.space = None;
        self.is_reload_due = false;
    }

    /// Says which kind of KVM this is, and so which form of the syscall page is mapped.
    pub fn set_kvm_kind(&mut self, kvm_kind: KvmKind) {
        self.kvm_kind = Some(kvm_kind);
    }

    /// The kind of KVM, if known.
    #[must_use]
    pub fn kvm_kind(&self) -> Option<KvmKind> {
        self.kvm_kind
    }

    /// The form of the stub to go by: hardware's until the kind of KVM is known.
    fn stub_kind(&self) -> KvmKind {
        self.kvm_kind.unwrap_or(KvmKind::Hardware)
    }

    /// Takes a kick that has come while the vCPU was not running: its next run is not interrupted by it.
    /// For whoever works between two runs for so long that a kick must not wait for the next one.
    pub fn take_kick(&mut self) -> bool {
        self.enter_thread().take_kick()
    }

    /// A handle that stops this vCPU from any thread.
    #[must_use]
    pub fn kicker(&self) -> Kicker {
        Kicker(Arc::clone(&self.shared))
    }

    /// Kicks this vCPU at `deadline_ns` on CLOCK_MONOTONIC (at once if that has passed); `None`
    /// disarms. The thread that arms must be the one that runs. A signal that is already under way
    /// when the deadline changes still gives one [`Trap::Interrupted`].
    ///
    /// # Errors
    /// [`HvError::Call`] when the host has no timer left.
    pub fn arm(&mut self, deadline_ns: Option<u64>) -> Result<(), HvError> {
        self.deadline.arm(deadline_ns)
    }

    /// Counts of what this vCPU has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Counts from zero, KVM's own counters too: what follows is another program's.
    pub fn reset_counters(&mut self) {
        if let Ok(stats) = self.stats() {
            self.counted_before = stats.values();
        }
        self.counters = Counters::default();
    }

    /// KVM's own counters of this vCPU (KVM_GET_STATS_FD), since the last [`Vcpu::reset_counters`].
    ///
    /// # Errors
    /// [`HvError::Call`] on a kernel before 5.14.
    pub fn stats(&mut self) -> Result<Stats, HvError> {
        self.counters.ioctls += 1;
        let file = stats_file(&self.fd)?;
        let layout = self.kvm.vcpu_stats(&file.0)?;
        Ok(Stats::new(file, layout, Arc::clone(&self.counted_before)))
    }

    /// Lead of the guest's TSC over the host's, in ticks modulo 2^64. On software KVM it is 0: ring 3
    /// reads the host's (KVM_VCPU_TSC_OFFSET, Documentation/virt/kvm/devices/vcpu.rst, 4).
    ///
    /// # Errors
    /// [`HvError::Call`] on a kernel before 5.16, when the kind of KVM is hardware.
    pub fn tsc_offset(&mut self) -> Result<i64, HvError> {
        if self.kvm_kind == Some(KvmKind::Software) {
            return Ok(0);
        }
        let mut offset = 0i64;
        let attr = kvm_device_attr {
            group: KVM_VCPU_TSC_CTRL,
            attr: u64::from(KVM_VCPU_TSC_OFFSET),
            addr: ptr::addr_of_mut!(offset) as u64,
            flags: 0,
        };
        self.counters.ioctls += 1;
        // SAFETY: KVM writes eight bytes at `addr`, which live across the call.
        if unsafe { ioctl_with_ref(&self.fd, KVM_GET_DEVICE_ATTR(), &attr) } == 0 {
            Ok(offset)
        } else {
            Err(HvError::last("KVM_GET_DEVICE_ATTR (TSC offset)"))
        }
    }

    /// Frequency of the guest's TSC in kHz (KVM_GET_TSC_KHZ), if KVM knows it.
    #[must_use]
    pub fn tsc_khz(&self) -> Option<u32> {
        self.kvm.tsc_khz(&self.fd)
    }
}
