//! The caller on the host: what file permissions are checked against.

use kvmlet_abi::Errno;

use crate::attr::Attr;

/// Who the caller is on the host: what file permissions are checked against.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Credentials {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Who enforces permissions when a host file is opened.
    pub enforcement: Enforcement,
}

/// Who enforces file permissions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Enforcement {
    /// The host kernel does: the caller holds no overriding capability.
    Host,
    /// We do, by mode bits: the caller's capabilities (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH) would
    /// pass where the guest, which has none, must not.
    ModeBits,
}

impl Credentials {
    /// True if the caller is in a group.
    #[must_use]
    pub fn is_member(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

/// The calling process's identity, and whether its capabilities would pass where the guest's must
/// not (capabilities(7)).
#[must_use]
pub fn caller() -> Credentials {
    use rustix::thread::CapabilitySet;
    let overriding = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    // Unknown capabilities are taken for overriding ones: checking too much is safe.
    let overrides = rustix::thread::capabilities(None)
        .map_or(true, |sets| sets.effective.intersects(overriding));
    let groups = rustix::process::getgroups().unwrap_or_default();
    Credentials {
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        groups: groups.into_iter().map(|gid| gid.as_raw()).collect(),
        enforcement: if overrides {
            Enforcement::ModeBits
        } else {
            Enforcement::Host
        },
    }
}

/// Refuses what the mode bits refuse, when the host would not.
///
/// # Errors
/// `EACCES`.
pub fn check_mode(credentials: &Credentials, attr: &Attr, wanted: u32) -> Result<(), Errno> {
    let ours = credentials.enforcement == Enforcement::ModeBits;
    if ours && !attr.grants(credentials, wanted) {
        Err(Errno::EACCES)
    } else {
        Ok(())
    }
}
