//! A virtual machine: memory slots and vCPUs.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use kvmlet_abi::{Gpa, SlotAccess, SlotId, SlotSpec};
use kvmlet_budget::{Claim, Held, Resource};
use kvmlet_mem::SlotMemory;
use vmm_sys_util::ioctl::ioctl;

use crate::ioctl::{CAP_BINARY_STATS_FD, KVM_GET_STATS_FD};
use crate::stats::Layout;
use crate::{HvError, Kvm, Stats, Vcpu, VcpuConfig};

/// A virtual machine. It lives in the process that made it: after fork(2) the child's copy is dead.
pub struct Vm {
    fd: VmFd,
    kvm: Kvm,
    ioctls: AtomicU64,
    next_vcpu: AtomicU64,
    /// Behind the descriptor: what the guest reaches is unmapped after it is gone.
    slots: Arc<Slots>,
    _held: Held,
}

/// The memory that a VM's slots are backed by. Each vCPU holds a share: a vCPU keeps the VM alive.
pub(crate) type Slots = Mutex<BTreeMap<SlotId, SlotMemory>>;

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm")
            .field("fd", &self.fd.as_raw_fd())
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

impl Vm {
    pub(crate) fn new(kvm: Kvm, fd: VmFd, held: Held) -> Self {
        Self {
            fd,
            kvm,
            ioctls: AtomicU64::new(1),
            next_vcpu: AtomicU64::new(0),
            slots: Arc::default(),
            _held: held,
        }
    }

    /// Denies every MSR access from inside the VM (#GP): the stub makes none. The host's own
    /// KVM_SET_MSRS is not filtered. Needs KVM_CAP_X86_MSR_FILTER; without it ring 3 still cannot
    /// execute wrmsr.
    ///
    /// Not right after a change of slots: KVM ends both by waiting for the VM's SRCU readers, and within
    /// 25 us of such a wait the next one is in no hurry (srcutree.exp_holdoff): 13 ms instead of 20 us.
    fn filter_msrs(&self) -> Result<(), HvError> {
        if !self.fd.check_extension(Cap::X86MsrFilter) {
            return Ok(());
        }
        self.count();
        // KVM refuses a deny-all filter without a range, so one MSR is named and denied.
        let range = MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base: 0,
            msr_count: 8,
            bitmap: &[0],
        };
        self.fd
            .set_msr_filter(MsrFilterDefaultAction::DENY, &[range])
            .map_err(|error| HvError::from_errno("KVM_X86_SET_MSR_FILTER", error))
    }

    fn count(&self) {
        self.ioctls.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives the guest the memory of a slot (KVM_SET_USER_MEMORY_REGION). Keeps a share of it until the
    /// slot is deleted, or the VM and its vCPUs are gone.
    ///
    /// # Errors
    /// [`HvError::Call`] when it overlaps another slot, or one with this number exists.
    pub fn set_slot(&self, memory: SlotMemory) -> Result<(), HvError> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        self.region(memory.spec())?;
        slots.insert(memory.spec().id, memory);
        Ok(())
    }

    /// Removes a slot. Every translation through it is dropped.
    ///
    /// # Errors
    /// [`HvError::Call`] when no such slot exists.
    pub fn delete_slot(&self, id: SlotId) -> Result<(), HvError> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        self.remove_region(id)?;
        slots.remove(&id);
        Ok(())
    }

    /// Removes every slot: the VM can be given another program's memory, and nothing that it has
    /// translated before is left. A new top table or other memory beneath the same slot would not do:
    /// KVM would go on showing the old frames.
    ///
    /// # Errors
    /// [`HvError::Call`] when KVM refuses.
    pub fn delete_all_slots(&self) -> Result<(), HvError> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(id) = slots.keys().next().copied() {
            self.remove_region(id)?;
            slots.remove(&id);
        }
        Ok(())
    }

    /// Removes a slot and adds it again: the one full flush of what lies in it that software KVM has.
    ///
    /// # Errors
    /// [`HvError::Call`] when no such slot exists.
    pub fn refresh_slot(&self, id: SlotId) -> Result<(), HvError> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        self.remove_region(id)?;
        match slots.get(&id) {
            Some(memory) => self.region(memory.spec()),
            None => Ok(()),
        }
    }

    fn remove_region(&self, id: SlotId) -> Result<(), HvError> {
        self.region(&SlotSpec {
            id,
            gpa: Gpa(0),
            host_addr: 0,
            len_bytes: 0,
            access: SlotAccess::ReadWrite,
        })
    }

    /// The caller holds the lock on the slots, and a share of the memory that `spec` names.
    fn region(&self, spec: &SlotSpec) -> Result<(), HvError> {
        self.count();
        let flags = match spec.access {
            SlotAccess::ReadWrite => 0,
            SlotAccess::ReadOnly => KVM_MEM_READONLY,
        };
        let region = kvm_userspace_memory_region {
            slot: spec.id.0,
            flags,
            guest_phys_addr: spec.gpa.0,
            memory_size: spec.len_bytes,
            userspace_addr: spec.host_addr as u64,
        };
        // SAFETY: the range belongs to a SlotMemory, which keeps it mapped and forms no reference to
        // it, and which lives in `slots` as long as the guest can reach it (or has length 0 and only
        // removes).
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(|error| HvError::from_errno("KVM_SET_USER_MEMORY_REGION", error))
    }

    /// Creates a vCPU in ring 3 over the tables of [`kvmlet_abi::layout`]. Slots are cheapest set before.
    ///
    /// # Errors
    /// [`HvError::Exhausted`]; [`HvError::Call`] naming the ioctl that failed.
    pub fn create_vcpu(&self, config: VcpuConfig) -> Result<Vcpu, HvError> {
        let held = [Resource::Descriptors, Resource::Mappings];
        let held = held.map(|resource| Held::take(resource, Claim::Vm, 1));
        let [descriptor, run_page] = held;
        let held = [descriptor?, run_page?];
        let id = self.next_vcpu.fetch_add(1, Ordering::Relaxed);
        self.count();
        let fd = self
            .fd
            .create_vcpu(id)
            .map_err(|error| HvError::from_errno("KVM_CREATE_VCPU", error))?;
        let xsave_len = self.fd.check_extension_int(Cap::Xsave2);
        let vcpu = Vcpu::new(
            self.kvm.clone(),
            fd,
            config,
            xsave_len,
            Arc::clone(&self.slots),
            held,
        )?;
        // Before anything can run in this VM.
        if id == 0 {
            self.filter_msrs()?;
        }
        Ok(vcpu)
    }

    /// Calls of ioctl made on this VM, those of its vCPUs excluded.
    #[must_use]
    pub fn ioctls(&self) -> u64 {
        self.ioctls.load(Ordering::Relaxed)
    }

    /// Counts them from zero: what follows is another program's.
    pub fn reset_ioctls(&self) {
        self.ioctls.store(0, Ordering::Relaxed);
    }

    /// KVM's own counters of this VM (KVM_GET_STATS_FD).
    ///
    /// # Errors
    /// [`HvError::MissingCapability`] on a kernel before 5.14.
    pub fn stats(&self) -> Result<Stats, HvError> {
        if self.fd.check_extension_raw(CAP_BINARY_STATS_FD) <= 0 {
            return Err(HvError::MissingCapability("KVM_CAP_BINARY_STATS_FD"));
        }
        self.count();
        let file = stats_file(&self.fd)?;
        let layout = Layout::read(&file.0)?;
        Ok(Stats::new(file, Arc::new(layout), Arc::default()))
    }
}

/// KVM_GET_STATS_FD on a VM or vCPU descriptor.
pub(crate) fn stats_file(fd: &impl AsRawFd) -> Result<(File, Held), HvError> {
    let held = Held::take(Resource::Descriptors, Claim::Vm, 1)?;
    // SAFETY: the ioctl takes no argument and returns a new descriptor.
    let raw = unsafe { ioctl(fd, KVM_GET_STATS_FD()) };
    if raw < 0 {
        return Err(HvError::last("KVM_GET_STATS_FD"));
    }
    // SAFETY: `raw` was just returned and is owned by nobody else. KVM opens it close-on-exec.
    Ok((unsafe { File::from_raw_fd(raw) }, held))
}
