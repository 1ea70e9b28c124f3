//! The faults of KVM, each said in one line.

use std::io;

use kvmlet_budget::Exhausted;

/// An error of the virtual machine layer. Never caused by what a guest does.
#[derive(Debug, thiserror::Error)]
pub enum HvError {
    /// The device node does not exist, or no driver stands behind it.
    #[error(
        "/dev/kvm is missing: no KVM module is loaded, or the container does not pass the device in"
    )]
    Missing,
    /// The device node may not be opened.
    #[error("/dev/kvm may not be opened by this user: permission denied")]
    Permission,
    /// The device node opens but does not speak KVM's API.
    #[error("/dev/kvm is not a KVM device: {0}")]
    NotKvm(io::Error),
    /// KVM_GET_API_VERSION gave another number than 12.
    #[error("/dev/kvm has API version {0}, not 12")]
    ApiVersion(i32),
    /// A capability that everything here rests on is absent.
    #[error("this KVM lacks {0}")]
    MissingCapability(&'static str),
    /// A KVM call or another call of the host failed.
    #[error("{what} failed: {source}")]
    Call {
        /// The call's name.
        what: &'static str,
        /// The host's error.
        source: io::Error,
    },
    /// The system call probe left in a way that neither kind of KVM explains.
    #[error("a system call in the probe VM left it in an unknown way: {0}")]
    Probe(String),
    /// Sandboxes have all that they may have of this process's descriptors or mappings.
    #[error("no room for another VM: {0}")]
    Exhausted(#[from] Exhausted),
    /// Guest memory could not be set up.
    #[error("guest memory: {0}")]
    Memory(#[from] kvmlet_mem::MemError),
    /// An extended state image that the CPU would refuse.
    #[error("invalid extended state image: {0}")]
    BadXState(&'static str),
}

impl HvError {
    /// From the last host error of the call named `what`.
    pub(crate) fn last(what: &'static str) -> Self {
        Self::Call {
            what,
            source: io::Error::last_os_error(),
        }
    }

    /// From an error of kvm-ioctls.
    pub(crate) fn from_errno(what: &'static str, error: kvm_ioctls::Error) -> Self {
        Self::Call {
            what,
            source: io::Error::from_raw_os_error(error.errno()),
        }
    }
}
