//! A minimal VM for probing this machine and for measuring it: the layout of
//! [`kvmlet_abi::layout`], one vCPU, page tables without any policy. Programs do not run in it.

use kvmlet_abi::layout::{
    CALL_PAGE, DF_STACK, EXC_CODE, EXC_STACK, FLUSH_STACK, GDT, IDT, PROBE_CODE, STUB_DATA,
    SYSCALL_CODE, TSS,
};
use kvmlet_abi::regs::FIXED_RFLAGS;
use kvmlet_abi::{Gpa, Gva, PAGE_SIZE, Trap, UserRegs};
use kvmlet_mem::{GuestMemory, HostPage, MemError, PageSize, PageTables, PendingFlush, PteFlags};
use kvmlet_stub::pages::CONSTANT_SLOTS;
use kvmlet_stub::{
    KvmKind, exception_code, gdt_image, idt_image, probe_code, stub_data_image, syscall_code,
    tss_image,
};

use crate::{HvError, Kvm, Vcpu, VcpuConfig, Vm};

/// What a probe or a measurement may use, in bytes.
const MEMORY_LIMIT: u64 = 16 << 20;
/// Where the timing loop stands, above anything a caller maps.
const TIMING_CODE: Gva = Gva(0x7000_0000_0000);
/// `1: out %al,$0x40; jmp 1b`: the one port that ring 3 owns on software KVM.
const TIMING_LOOP: [u8; 4] = [0xe6, kvmlet_abi::layout::PORT_SYSCALL as u8, 0xeb, 0xfc];

/// A page that the guest writes and reads, and where its code for that is.
const PROBED: Gva = Gva(0x7000_0010_0000);
const PROBING_CODE: Gva = Gva(0x7000_0020_0000);
/// `mov %al,(%rdi); syscall`, then `mov (%rdi),%al; syscall`.
const PROBING: [u8; 8] = [0x88, 0x07, 0x0f, 0x05, 0x8a, 0x07, 0x0f, 0x05];
const LOAD_AT: u64 = 4;
/// The number of a call that the stub does not answer.
const NO_CALL: u64 = 1000;
/// Signals that may interrupt it before it is given up.
const MAX_SIGNALS: u32 = 1000;

/// A VM with one vCPU that knows its [`KvmKind`].
#[derive(Debug)]
pub struct BareVm {
    vcpu: Vcpu,
    vm: Vm,
    memory: GuestMemory,
    tables: PageTables,
    kvm_kind: KvmKind,
    stub_data: Gpa,
}

/// Memory and tables before there is a vCPU.
struct Pages {
    memory: GuestMemory,
    tables: PageTables,
}

impl Pages {
    fn place(&mut self, gva: Gva, bytes: &[u8], flags: PteFlags) -> Result<Gpa, MemError> {
        let gpa = self.memory.alloc_frame()?;
        self.memory.write(gpa, bytes)?;
        self.tables
            .map(&mut self.memory, gva, gpa, PageSize::Base, flags)?;
        Ok(gpa)
    }

    fn host_page(&self, gpa: Gpa) -> Result<HostPage, HvError> {
        let outside = MemError::Outside {
            gpa,
            len_bytes: PAGE_SIZE,
        };
        Ok(self.memory.host_page(gpa).ok_or(outside)?)
    }
}

impl BareVm {
    /// Builds the VM and probes the kind of KVM in it.
    ///
    /// # Errors
    /// Any [`HvError`] of the calls that this takes.
    pub fn new(kvm: &Kvm) -> Result<Self, HvError> {
        let mut memory = GuestMemory::new(MEMORY_LIMIT)?;
        let tables = PageTables::new(&mut memory).map_err(MemError::from)?;
        let mut pages = Pages { memory, tables };
        let code = PteFlags::empty();
        let read = PteFlags::NX;
        let write = PteFlags::NX | PteFlags::WRITE;
        let user = PteFlags::USER;
        pages.place(GDT, &gdt_image(), read)?;
        pages.place(IDT, &idt_image(), read)?;
        let tss = pages.place(TSS, &tss_image(KvmKind::Software), read)?;
        let exc_stack = pages.place(EXC_STACK, &[], write)?;
        pages.place(DF_STACK, &[], write)?;
        let flush_stack = pages.place(FLUSH_STACK, &[], write)?;
        pages.place(EXC_CODE, exception_code(), code)?;
        let syscall = syscall_code(KvmKind::Software);
        let syscall_page = pages.place(SYSCALL_CODE, syscall, code | user)?;
        let stub_data = pages.place(STUB_DATA, &[], read | user)?;
        let call_page = pages.place(CALL_PAGE, &[], write | user)?;
        pages.place(PROBE_CODE, probe_code(), code | user)?;

        let vm = kvm.create_vm()?;
        for slot in pages.memory.take_new_slots() {
            vm.set_slot(slot)?;
        }
        let mut vcpu = vm.create_vcpu(VcpuConfig {
            cr3: pages.tables.root(),
            exc_stack: pages.host_page(exc_stack)?,
            flush_stack: pages.host_page(flush_stack)?,
            call_page: pages.host_page(call_page)?,
            kvm_kind: None,
        })?;
        let kvm_kind = vcpu.probe_kvm_kind()?;
        let Pages { memory, tables } = pages;
        let mut bare = Self {
            vcpu,
            vm,
            memory,
            tables,
            kvm_kind,
            stub_data,
        };
        match kvm_kind {
            KvmKind::Hardware => {
                bare.write(tss, &tss_image(kvm_kind))?;
                bare.write(syscall_page, syscall_code(kvm_kind))?;
                bare.map(SYSCALL_CODE, syscall_page, code)?;
                bare.map(STUB_DATA, stub_data, read)?;
                bare.map(CALL_PAGE, call_page, write)?;
            }
            KvmKind::Software => {
                bare.memory.expose_tables().map_err(MemError::from)?;
                bare.tables.attach_window(&mut bare.memory);
            }
        }
        bare.unmap(PROBE_CODE)?;
        Ok(bare)
    }

    /// Puts `bytes` (at most a page) into a fresh zeroed frame and maps it at `gva`.
    ///
    /// # Errors
    /// [`HvError::Memory`] when memory runs out or the address is not a program's.
    pub fn map_page(&mut self, gva: Gva, bytes: &[u8], flags: PteFlags) -> Result<Gpa, HvError> {
        let gpa = self.memory.alloc_frame().map_err(MemError::from)?;
        self.write(gpa, bytes)?;
        self.map(gva, gpa, flags)?;
        Ok(gpa)
    }

    /// Maps a frame at `gva`, in place of what is mapped there.
    ///
    /// # Errors
    /// As [`BareVm::map_page`].
    pub fn map(&mut self, gva: Gva, gpa: Gpa, flags: PteFlags) -> Result<(), HvError> {
        self.tables
            .map(&mut self.memory, gva, gpa, PageSize::Base, flags)?;
        Ok(())
    }

    /// Unmaps a page. Its frame is not used again.
    ///
    /// # Errors
    /// [`HvError::Memory`] for an address that is not a page's.
    pub fn unmap(&mut self, gva: Gva) -> Result<(), HvError> {
        Ok(self
            .tables
            .unmap_range(&mut self.memory, gva, PAGE_SIZE, |_, _, _| ())?)
    }

    /// Writes guest memory.
    ///
    /// # Errors
    /// [`HvError::Memory`] outside of it.
    pub fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), HvError> {
        Ok(self.memory.write(gpa, bytes)?)
    }

    /// The memory, to place more in it.
    pub fn memory(&mut self) -> &mut GuestMemory {
        &mut self.memory
    }

    /// Sets the answers of the stub.
    ///
    /// # Errors
    /// As [`BareVm::write`].
    pub fn set_constants(&mut self, values: &[u64; CONSTANT_SLOTS]) -> Result<(), HvError> {
        self.write(self.stub_data, &stub_data_image(values))
    }

    /// Runs ring 3 at `regs`, once new slots are known and stale translations will be flushed.
    ///
    /// # Errors
    /// [`HvError::Call`] if KVM refuses a slot.
    pub fn run(&mut self, regs: &mut UserRegs) -> Result<Trap, HvError> {
        self.prepare()?;
        Ok(self.vcpu.run(regs))
    }

    fn prepare(&mut self) -> Result<(), HvError> {
        for slot in self.memory.take_new_slots() {
            self.vm.set_slot(slot)?;
        }
        let pending = self.tables.take_pending();
        let fits = match &pending {
            PendingFlush::None => return Ok(()),
            PendingFlush::Entries(entries) => {
                let operands: Vec<Gva> = match self.kvm_kind {
                    KvmKind::Hardware => entries.iter().map(|stale| stale.gva).collect(),
                    KvmKind::Software => self.memory.flush_stores(entries),
                };
                self.vcpu.request_flush(&operands).is_ok()
            }
            PendingFlush::All => false,
        };
        if !fits {
            let tables: Vec<_> = self.memory.table_slots().map(|spec| spec.id).collect();
            for id in tables {
                self.vm.refresh_slot(id)?;
            }
        }
        self.memory.flush_discharged(&pending);
        Ok(())
    }

    /// The vCPU.
    pub fn vcpu(&mut self) -> &mut Vcpu {
        &mut self.vcpu
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// The kind of KVM that the probe found.
    #[must_use]
    pub fn kvm_kind(&self) -> KvmKind {
        self.kvm_kind
    }

    /// True if a page-table entry's dirty bit, once it has been cleared and flushed, says whether the guest has written
    /// the page since. Tried with both flushes, of one page and of all.
    ///
    /// # Errors
    /// Any [`HvError`] of running.
    pub fn has_dirty_bits(&mut self) -> Result<bool, HvError> {
        if self.kvm_kind == KvmKind::Software {
            return Ok(false);
        }
        let user = PteFlags::USER;
        self.map_page(PROBING_CODE, &PROBING, user)?;
        self.map_page(PROBED, &[], user | PteFlags::NX | PteFlags::WRITE)?;
        let (store, load) = (PROBING_CODE, PROBING_CODE.wrapping_add(LOAD_AT));
        let mut tells = true;
        for reloads in [false, true] {
            self.probe_access(store)?;
            // Set beforehand, or by the store.
            tells &= self.clear_dirty(reloads);
            self.probe_access(load)?;
            tells &= !self.clear_dirty(reloads);
            self.probe_access(store)?;
            tells &= self.clear_dirty(reloads);
            self.probe_access(store)?;
            tells &= self.clear_dirty(reloads);
        }
        self.unmap(PROBED)?;
        self.unmap(PROBING_CODE)?;
        Ok(tells)
    }

    /// Takes the probed page's dirty bit; true if it had one.
    fn clear_dirty(&mut self, reloads: bool) -> bool {
        let was_dirty = self.tables.take_dirty(&mut self.memory, PROBED);
        if reloads {
            let flushed = self.tables.take_pending();
            self.memory.flush_discharged(&flushed);
            self.vcpu.request_reload();
        }
        was_dirty
    }

    fn probe_access(&mut self, code: Gva) -> Result<(), HvError> {
        for _ in 0..MAX_SIGNALS {
            let mut regs = UserRegs {
                rip: code.0,
                rdi: PROBED.0,
                rax: NO_CALL,
                rflags: FIXED_RFLAGS,
                ..UserRegs::default()
            };
            match self.run(&mut regs)? {
                Trap::Syscall => return Ok(()),
                Trap::Interrupted => {}
                trap => return Err(HvError::Probe(format!("an access gave {trap:?}"))),
            }
        }
        Err(HvError::Probe("it is always interrupted".to_owned()))
    }

    /// X: microseconds per bare exit and re-entry, the median of `batches` batches of `rounds`.
    ///
    /// # Errors
    /// Any [`HvError`] of running.
    pub fn measure_exit_us(&mut self, batches: u32, rounds: u32) -> Result<f64, HvError> {
        if self.tables.walk(&self.memory, TIMING_CODE).is_none() {
            let flags = match self.kvm_kind {
                KvmKind::Software => PteFlags::USER,
                KvmKind::Hardware => PteFlags::empty(),
            };
            self.map_page(TIMING_CODE, &TIMING_LOOP, flags)?;
        }
        self.prepare()?;
        let mut times = (0..batches.max(1))
            .map(|_| self.vcpu.time_exits(TIMING_CODE, rounds))
            .collect::<Result<Vec<_>, _>>()?;
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2] / 1000.0)
    }
}
