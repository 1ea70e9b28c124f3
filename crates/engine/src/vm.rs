//! VMs: making one, giving it a program's memory, taking that away again.

mod clock;
mod pages;
mod vcpu;

use kvmlet_abi::{Gpa, PAGE_SIZE};
use kvmlet_hv::{Kvm, KvmKind, VcpuConfig, Vm};
use kvmlet_linux::{GuestClock, Kernel, Vdso};
use kvmlet_mem::{GuestMemory, HostPage, PageTables, SlotMemory, Spaces};

pub(crate) use clock::{clock_for, clock_of};
pub(crate) use pages::VmmPages;
pub(crate) use vcpu::VcpuState;

use crate::EngineError;

/// A VM and its vCPU.
#[derive(Debug)]
pub(crate) struct GuestVm {
    pub vcpu: VcpuState,
    pub vm: Vm,
}

impl GuestVm {
    /// A new VM with this memory.
    pub fn create(
        kvm: &Kvm,
        slots: Vec<SlotMemory>,
        config: VcpuConfig,
    ) -> Result<Self, EngineError> {
        let vm = kvm.create_vm()?;
        for slot in slots {
            vm.set_slot(slot)?;
        }
        let vcpu = VcpuState::new(vm.create_vcpu(config)?);
        Ok(Self { vcpu, vm })
    }

    /// Takes the last program's memory out, if any is left, and gives the VM this memory.
    pub fn bind(&mut self, slots: Vec<SlotMemory>, config: VcpuConfig) -> Result<(), EngineError> {
        self.vm.delete_all_slots()?;
        for slot in slots {
            self.vm.set_slot(slot)?;
        }
        self.vcpu.rebind(config);
        Ok(())
    }

    /// Takes the program out: the VM has no memory, and the vCPU lets go of the program's pages.
    pub fn empty(&mut self) -> Result<(), EngineError> {
        self.vm.delete_all_slots()?;
        let page = HostPage::unbound()?;
        let kvm_kind = self.vcpu.kvm_kind();
        self.vcpu.rebind(VcpuConfig {
            cr3: Gpa(0),
            exc_stack: page.clone(),
            flush_stack: page.clone(),
            call_page: page,
            kvm_kind,
        });
        self.start_count();
        Ok(())
    }

    /// Scrubs what the program's registers have left, for a tenant that is given the same memory.
    pub fn scrub(&mut self, memory: &mut GuestMemory, pages: &VmmPages) -> Result<(), EngineError> {
        for gpa in pages.scratch() {
            memory.zero(gpa, PAGE_SIZE)?;
        }
        self.vcpu.hand_on();
        Ok(())
    }

    /// After a reset to `frozen`: names of address spaces that were made since will be used again.
    pub fn forget_younger_space(&mut self, frozen: &Kernel) {
        if self
            .vcpu
            .space()
            .is_some_and(|space| space >= frozen.next_mm)
        {
            self.vcpu.forget_space();
        }
    }

    /// Starts the counts anew: the VM's work from now on counts for its next program.
    pub fn start_count(&mut self) {
        self.vcpu.reset_counters();
        self.vm.reset_ioctls();
    }
}

/// A VM with a program's memory, which has not run since it was bound or reset.
#[derive(Debug)]
pub(crate) struct BoundVm {
    pub guest: GuestVm,
    pub memory: GuestMemory,
    pub spaces: Spaces,
    pub clock: Box<dyn GuestClock>,
}

/// A VM that holds pages of ours and nothing else, for a program of at most `memory_bytes`; with the places
/// of these pages.
pub(crate) fn make(memory_bytes: u64) -> Result<(BoundVm, VmmPages, Vdso), EngineError> {
    let kvm = Kvm::open()?;
    let mut memory = GuestMemory::new(memory_bytes)?;
    let mut tables = PageTables::new(&mut memory)?;
    let known = kvm.known_kvm_kind();
    let pages = VmmPages::place(&mut memory, &mut tables, known)?;
    let mut vdso = pages::place_vdso(&mut memory)?;
    let config = pages.vcpu_config(&memory, tables.root(), known)?;
    let mut guest = GuestVm::create(&kvm, memory.take_new_slots(), config)?;
    let kvm_kind = match known {
        Some(kvm_kind) => kvm_kind,
        None => {
            let kvm_kind = guest.vcpu.probe_kvm_kind()?;
            pages::settle(&mut memory, &mut tables, kvm_kind)?;
            kvm_kind
        }
    };
    if kvm_kind == KvmKind::Software {
        memory.expose_tables()?;
        tables.attach_window(&mut memory);
        pages::place_trampolines(&mut memory, &mut vdso)?;
    }
    let clock = clock::guest_clock(clock_of(&mut guest.vcpu));
    let bound = BoundVm {
        guest,
        memory,
        spaces: Spaces::new(tables),
        clock,
    };
    Ok((bound, pages, vdso))
}
