//! The privileges that a process gives up for itself.

use rustix::io::Result;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

const NO_CAPABILITIES: CapabilitySets = CapabilitySets {
    effective: CapabilitySet::empty(),
    permitted: CapabilitySet::empty(),
    inheritable: CapabilitySet::empty(),
};

/// No program that it executes has more rights (prctl(2), PR_SET_NO_NEW_PRIVS).
pub(crate) fn refuse_new_privileges() -> Result<()> {
    set_no_new_privs(true)
}

/// The guest's memory goes to no file and to no collector, and no process of the same user may look at
/// it: a collector is not held by RLIMIT_CORE, but by PR_SET_DUMPABLE (core(5)).
pub(crate) fn refuse_core_dumps() -> Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// Gives up all capabilities of the calling thread. Root's program then meets the host's own checks of
/// permissions, which is one host call less for each file than ours.
pub(crate) fn drop_capabilities() -> Result<()> {
    set_capabilities(None, NO_CAPABILITIES)
}

#[cfg(test)]
mod tests {
    use rustix::process::{dumpable_behavior, getrlimit};

    use super::*;

    #[test]
    fn no_core_is_written_and_no_other_process_looks_in() {
        refuse_core_dumps().unwrap();
        let dumpable = dumpable_behavior();
        // Other tests run in this process.
        set_dumpable_behavior(DumpableBehavior::Dumpable).unwrap();
        assert_eq!(dumpable, Ok(DumpableBehavior::NotDumpable));
        assert_eq!(getrlimit(Resource::Core).maximum, Some(0));
    }
}
