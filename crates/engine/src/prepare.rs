//! Steps that a process takes before it gives up its access to the host (`kvmlet run`).

use kvmlet_hv::Kvm;
use kvmlet_stub::vdso::{ClockConfig, HostClock};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::EngineError;
use crate::time::now_ns;
use crate::transport::note_cpus;

/// Opens KVM, raises the limit of descriptors, and learns of the host what it says in files that may be
/// out of reach afterwards.
///
/// # Errors
/// KVM cannot be used.
pub fn prepare() -> Result<(), EngineError> {
    let _ = HostClock::new(ClockConfig::default());
    // The first look at a clock asks for the vDSO's place.
    let _ = now_ns();
    note_cpus();
    kvmlet_mem::note_huge_pages();
    let _ = kvmlet_linux::cpuinfo();
    let _ = raise_descriptor_limit();
    kvmlet_budget::fix_limits();
    Kvm::open()?;
    Ok(())
}

/// Sandboxes may hold half of the descriptors that the soft limit allows, and each VM takes two. Answers
/// whether the limit is higher now.
pub(crate) fn raise_descriptor_limit() -> bool {
    if kvmlet_budget::are_limits_fixed() {
        return false;
    }
    let limits = getrlimit(Resource::Nofile);
    if limits.current == limits.maximum {
        return false;
    }
    let raised = Rlimit {
        current: limits.maximum,
        maximum: limits.maximum,
    };
    // A failure leaves the limit as it was: EMFILE is met sooner then.
    setrlimit(Resource::Nofile, raised).is_ok()
}
