//! The `/dev/kvm` handle: opened once per process.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kvm_bindings::kvm_sregs;
use kvm_ioctls::{Cap, VcpuFd};
use kvmlet_budget::{Claim, Held, Resource};
use kvmlet_stub::KvmKind;

use crate::HvError;
use crate::bare::BareVm;
use crate::cpu::CpuTemplate;
use crate::stats::Layout;
use crate::vm::Vm;

/// KVM's only stable API version (Documentation/virt/kvm/api.rst, 4.1).
const API_VERSION: i32 = 12;
/// What the run path cannot do without.
const REQUIRED: [(Cap, &str); 4] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SyncRegs, "KVM_CAP_SYNC_REGS"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
];

static PROCESS: Mutex<Option<Kvm>> = Mutex::new(None);

struct Inner {
    fd: kvm_ioctls::Kvm,
    template: OnceLock<CpuTemplate>,
    kvm_kind: OnceLock<KvmKind>,
    /// Special registers of a new vCPU: the same in all.
    reset_sregs: OnceLock<kvm_sregs>,
    /// Frequency of a guest's TSC in kHz, if KVM knows it: the same in all VMs, none of which sets one.
    tsc_khz: OnceLock<Option<u32>>,
    moves_pkru: OnceLock<bool>,
    dirty_bits: OnceLock<bool>,
    _held: Held,
    vcpu_stats: OnceLock<Arc<Layout>>,
}

/// The KVM of this machine. Clones share one close-on-exec descriptor.
#[derive(Clone)]
pub struct Kvm(Arc<Inner>);

impl fmt::Debug for Kvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kvm")
            .field("kvm_kind", &self.0.kvm_kind.get())
            .finish_non_exhaustive()
    }
}

impl Kvm {
    /// Opens `/dev/kvm` on the first call of the process and checks what it must offer; later calls
    /// share that descriptor. A failure is not remembered.
    ///
    /// # Errors
    /// One variant of [`HvError`] per cause: missing, permission, not KVM, version, capability.
    pub fn open() -> Result<Self, HvError> {
        let mut process = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kvm) = &*process {
            return Ok(kvm.clone());
        }
        let fd = kvm_ioctls::Kvm::new().map_err(|error| match error.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => HvError::Missing,
            libc::EACCES | libc::EPERM => HvError::Permission,
            errno => HvError::NotKvm(io::Error::from_raw_os_error(errno)),
        })?;
        match fd.get_api_version() {
            API_VERSION => {}
            -1 => return Err(HvError::NotKvm(io::Error::last_os_error())),
            version => return Err(HvError::ApiVersion(version)),
        }
        for (cap, name) in REQUIRED {
            if !fd.check_extension(cap) {
                return Err(HvError::MissingCapability(name));
            }
        }
        if fd.check_extension_int(Cap::SyncRegs) & 3 != 3 {
            return Err(HvError::MissingCapability(
                "synced general and special registers",
            ));
        }
        let kvm = Self(Arc::new(Inner {
            fd,
            template: OnceLock::new(),
            kvm_kind: OnceLock::new(),
            reset_sregs: OnceLock::new(),
            tsc_khz: OnceLock::new(),
            moves_pkru: OnceLock::new(),
            dirty_bits: OnceLock::new(),
            _held: Held::promised(Resource::Descriptors, 1),
            vcpu_stats: OnceLock::new(),
        }));
        *process = Some(kvm.clone());
        Ok(kvm)
    }

    /// Creates an empty virtual machine.
    ///
    /// # Errors
    /// [`HvError::Exhausted`] when there are as many as there may be, [`HvError::Call`] when the host
    /// refuses (memory, descriptors).
    pub fn create_vm(&self) -> Result<Vm, HvError> {
        let held = Held::take(Resource::Descriptors, Claim::Vm, 1)?;
        // KVM starts a kernel thread for it, which any signal interrupts: this process's own, or a kick
        // meant for another VM that this thread ran.
        let fd = loop {
            match self.0.fd.create_vm() {
                Ok(fd) => break fd,
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(HvError::from_errno("KVM_CREATE_VM", error)),
            }
        };
        Ok(Vm::new(self.clone(), fd, held))
    }

    /// KVM_GET_API_VERSION.
    #[must_use]
    pub fn api_version(&self) -> i32 {
        self.0.fd.get_api_version()
    }

    /// KVM_CHECK_EXTENSION by number: 0 when absent.
    #[must_use]
    pub fn check_extension(&self, cap: std::ffi::c_ulong) -> i32 {
        self.0.fd.check_extension_raw(cap)
    }

    /// Which kind of KVM this is, once a vCPU of this process has found out; it cannot change later.
    #[must_use]
    pub fn known_kvm_kind(&self) -> Option<KvmKind> {
        self.0.kvm_kind.get().copied()
    }

    pub(crate) fn note_world(&self, kvm_kind: KvmKind) {
        // A second probe finds the same answer.
        let _ = self.0.kvm_kind.set(kvm_kind);
    }

    /// The special registers that a vCPU has at reset, read from `fd` the first time.
    pub(crate) fn reset_sregs(&self, fd: &VcpuFd) -> Result<kvm_sregs, HvError> {
        if let Some(sregs) = self.0.reset_sregs.get() {
            return Ok(*sregs);
        }
        let sregs = fd
            .get_sregs()
            .map_err(|error| HvError::from_errno("KVM_GET_SREGS", error))?;
        Ok(*self.0.reset_sregs.get_or_init(|| sregs))
    }

    /// Frequency of a guest's TSC in kHz, read from `fd` the first time.
    pub(crate) fn tsc_khz(&self, fd: &VcpuFd) -> Option<u32> {
        let read = || fd.get_tsc_khz().ok().filter(|khz| *khz != 0);
        *self.0.tsc_khz.get_or_init(read)
    }

    /// Where KVM's counters of a vCPU are, read from `file` the first time.
    pub(crate) fn vcpu_stats(&self, file: &File) -> Result<Arc<Layout>, HvError> {
        if let Some(layout) = self.0.vcpu_stats.get() {
            return Ok(Arc::clone(layout));
        }
        let layout = Arc::new(Layout::read(file)?);
        Ok(Arc::clone(self.0.vcpu_stats.get_or_init(|| layout)))
    }

    /// True if the CPU walks the guest's own page tables (nested paging). The dirty bit of an entry then tells of each
    /// write since it was cleared and flushed. A reload of CR3 is a flush of everything. Tried once, in a VM of its own.
    #[must_use]
    pub fn has_dirty_bits(&self) -> bool {
        let tried = || BareVm::new(self).and_then(|mut vm| vm.has_dirty_bits());
        let has = &self.0.dirty_bits;
        *has.get_or_init(|| {
            self.known_kvm_kind() != Some(KvmKind::Software) && tried().unwrap_or(false)
        })
    }

    /// Whether extended state can carry PKRU though no guest has it; asked of the first vCPU.
    pub(crate) fn moves_pkru(&self, ask: impl FnOnce() -> bool) -> bool {
        *self.0.moves_pkru.get_or_init(ask)
    }

    /// What every vCPU of this machine starts from, computed once.
    pub(crate) fn template(&self) -> Result<&CpuTemplate, HvError> {
        if let Some(template) = self.0.template.get() {
            return Ok(template);
        }
        let template = CpuTemplate::new(&self.0.fd)?;
        Ok(self.0.template.get_or_init(|| template))
    }
}
