//! The second wall: what the host process of `kvmlet run` gives up before the guest starts.

use std::path::PathBuf;

use kvmlet_hv::Kvm;
use kvmlet_linux::vfs;
use kvmlet_stub::vdso::{ClockConfig, HostClock};
use landlock::{
    ABI, Access, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::transport::note_cpus;

const NO_CAPABILITIES: CapabilitySets = CapabilitySets {
    effective: CapabilitySet::empty(),
    permitted: CapabilitySet::empty(),
    inheritable: CapabilitySet::empty(),
};

/// Sets no-new-privileges, gives all capabilities up and, where the kernel has Landlock, allows this
/// process to read exactly what the policy lets the guest read, and to use /dev/kvm. Returns what could
/// not be applied. Irrevocable for the calling thread and its children (landlock(7), prctl(2),
/// capabilities(7)). Root's program then meets the host's own checks of permissions, which is one host
/// call less for each file than ours.
#[must_use]
pub fn harden(cwd: &[u8]) -> Vec<String> {
    let mut notes = Vec::new();
    // What this process learns of the host's clock comes from a file that it may not read afterwards.
    let _ = HostClock::new(ClockConfig::default());
    note_cpus();
    let _ = raise_descriptor_limit();
    if let Err(error) = rustix::thread::set_no_new_privs(true) {
        notes.push(format!("no-new-privileges could not be set: {error}"));
    }
    // It may be a capability that opens it; a failure is reported by who needs it.
    let _ = Kvm::open();
    match restrict(cwd) {
        Ok(RulesetStatus::NotEnforced) => {
            notes.push("Landlock is not available in this kernel".to_owned())
        }
        Ok(_) => {}
        Err(error) => notes.push(format!("Landlock could not be applied: {error}")),
    }
    // Last: they may be what opens the trees that Landlock is told of.
    if let Err(error) = rustix::thread::set_capabilities(None, NO_CAPABILITIES) {
        notes.push(format!("capabilities could not be given up: {error}"));
    }
    notes
}

/// A guest may hold about as many host descriptors as the usual soft limit allows a process, and each
/// VM takes two. Answers whether the limit is higher now.
pub(crate) fn raise_descriptor_limit() -> bool {
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

fn restrict(cwd: &[u8]) -> Result<RulesetStatus, String> {
    let (policy, _) = vfs::stdio::started_from(cwd);
    let text = |error: landlock::RulesetError| error.to_string();
    // Only rights of the file system's first version: what a newer kernel adds is not needed here, and
    // reading must go on for descriptors that are open already.
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V2))
        .and_then(Ruleset::create)
        .map_err(text)?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    for tree in policy.readable_trees() {
        let path =
            PathBuf::from(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(tree));
        let Ok(fd) = PathFd::new(&path) else { continue };
        let access = if path.is_dir() {
            read
        } else {
            AccessFs::ReadFile.into()
        };
        ruleset = ruleset
            .add_rule(PathBeneath::new(fd, access))
            .map_err(text)?;
    }
    if let Ok(kvm) = PathFd::new("/dev/kvm") {
        let access = AccessFs::ReadFile | AccessFs::WriteFile;
        ruleset = ruleset
            .add_rule(PathBeneath::new(kvm, access))
            .map_err(text)?;
    }
    Ok(ruleset.restrict_self().map_err(text)?.ruleset)
}
