//! A virtual machine: memory slots and vCPUs.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use kvmlet_abi::{SlotAccess, SlotId, SlotSpec};
use vmm_sys_util::ioctl::ioctl;

use crate::ioctl::{CAP_BINARY_STATS_FD, KVM_GET_STATS_FD};
use crate::{HvError, Kvm, Stats, Vcpu, VcpuConfig};

/// A virtual machine. It lives in the process that made it: after fork(2) the child's copy is dead.
pub struct Vm {
    fd: VmFd,
    kvm: Kvm,
    ioctls: Arc<AtomicU64>,
    next_vcpu: AtomicU64,
}

impl Vm {
    pub(crate) fn new(kvm: Kvm, fd: VmFd) -> Result<Self, HvError> {
        let vm = Self {
            fd,
            kvm,
            ioctls: Arc::new(AtomicU64::new(1)),
            next_vcpu: AtomicU64::new(0),
        };
        vm.filter_msrs()?;
        Ok(vm)
    }

    /// Denies every MSR access from inside the VM (#GP): the stub makes none. The host's own
    /// KVM_SET_MSRS is not filtered. Needs KVM_CAP_X86_MSR_FILTER; without it ring 3 still cannot
    /// execute wrmsr.
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

    /// Backs a guest-physical range with host memory (KVM_SET_USER_MEMORY_REGION). A slot with the
    /// same number is replaced.
    ///
    /// # Errors
    /// [`HvError::Call`] when the ranges overlap another slot or are not page-aligned.
    ///
    /// # Safety
    /// `spec.host_addr .. + spec.len_bytes` must stay mapped until the slot is deleted or the `Vm`
    /// and its vCPUs are dropped, and must be memory that the guest may change at any time: no Rust
    /// reference to it may exist while a vCPU runs.
    pub unsafe fn set_slot(&self, spec: &SlotSpec) -> Result<(), HvError> {
        let flags = match spec.access {
            SlotAccess::ReadWrite => 0,
            SlotAccess::ReadOnly => KVM_MEM_READONLY,
        };
        // SAFETY: passed on to our caller.
        unsafe { self.region(spec.id, flags, spec.gpa.0, spec.len_bytes, spec.host_addr) }
    }

    /// Removes a slot. Every translation through it is dropped: the one full flush that software KVM
    /// has.
    ///
    /// # Errors
    /// [`HvError::Call`] when no such slot exists.
    pub fn delete_slot(&self, id: SlotId) -> Result<(), HvError> {
        // SAFETY: a region of length 0 only removes the slot; the host memory is not used.
        unsafe { self.region(id, 0, 0, 0, 0) }
    }

    unsafe fn region(
        &self,
        id: SlotId,
        flags: u32,
        gpa: u64,
        len_bytes: u64,
        host_addr: usize,
    ) -> Result<(), HvError> {
        self.count();
        let region = kvm_userspace_memory_region {
            slot: id.0,
            flags,
            guest_phys_addr: gpa,
            memory_size: len_bytes,
            userspace_addr: host_addr as u64,
        };
        // SAFETY: passed on to our caller.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(|error| HvError::from_errno("KVM_SET_USER_MEMORY_REGION", error))
    }

    /// Creates a vCPU in ring 3 over the tables of [`kvmlet_abi::layout`].
    ///
    /// # Errors
    /// [`HvError::Call`] naming the ioctl that failed.
    ///
    /// # Safety
    /// `config.exc_stack_host` and `config.flush_stack_host` must be the host addresses of the pages
    /// mapped at `EXC_STACK` and `FLUSH_STACK`, page-aligned, and stay mapped for the vCPU's life.
    pub unsafe fn create_vcpu(&self, config: VcpuConfig) -> Result<Vcpu, HvError> {
        let id = self.next_vcpu.fetch_add(1, Ordering::Relaxed);
        self.count();
        let fd = self
            .fd
            .create_vcpu(id)
            .map_err(|error| HvError::from_errno("KVM_CREATE_VCPU", error))?;
        let xsave_len = self.fd.check_extension_int(Cap::Xsave2);
        // SAFETY: passed on to our caller.
        unsafe { Vcpu::new(self.kvm.clone(), fd, config, xsave_len) }
    }

    /// Calls of ioctl made on this VM, those of its vCPUs excluded.
    #[must_use]
    pub fn ioctls(&self) -> u64 {
        self.ioctls.load(Ordering::Relaxed)
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
        stats_of(&self.fd)
    }
}

/// KVM_GET_STATS_FD on a VM or vCPU descriptor.
pub(crate) fn stats_of(fd: &impl AsRawFd) -> Result<Stats, HvError> {
    // SAFETY: the ioctl takes no argument and returns a new descriptor.
    let raw = unsafe { ioctl(fd, KVM_GET_STATS_FD()) };
    if raw < 0 {
        return Err(HvError::last("KVM_GET_STATS_FD"));
    }
    // SAFETY: `raw` was just returned and is owned by nobody else. KVM opens it close-on-exec.
    Stats::new(unsafe { OwnedFd::from_raw_fd(raw) })
}
