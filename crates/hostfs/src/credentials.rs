//! The caller on the host: what file permissions are checked against.

use std::sync::Arc;

use kvmlet_abi::Errno;

use crate::attr::Attr;

/// A user with its groups, whom mode bits may grant something to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ids {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Arc<[u32]>,
}

impl Ids {
    /// True if the user is in a group.
    #[must_use]
    pub fn is_member(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

/// Who asks for a file of the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Credentials {
    /// The caller on the host.
    pub ids: Ids,
    /// A user inside that is another one. Both must be granted what is asked for. So a program that has become another
    /// user reaches no file of the host that it could not reach before.
    pub inside: Option<Ids>,
    /// Who enforces the caller's permissions when a host file is opened.
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
    /// True if mode bits grant all of `wanted`, whoever enforces it.
    #[must_use]
    pub fn granted(&self, attr: &Attr, wanted: u32) -> bool {
        attr.grants(&self.ids, wanted) && self.is_granted_inside(attr, wanted)
    }

    /// True if a file belongs to whoever asks.
    #[must_use]
    pub fn owns(&self, attr: &Attr) -> bool {
        attr.uid == self.ids.uid && self.inside.as_ref().is_none_or(|ids| attr.uid == ids.uid)
    }

    fn is_granted_inside(&self, attr: &Attr, wanted: u32) -> bool {
        let inside = self.inside.as_ref();
        inside.is_none_or(|ids| attr.grants(ids, wanted))
    }

    /// True if the host enforces all permissions when it opens a file.
    #[must_use]
    pub fn are_enforced_by_host(&self) -> bool {
        self.enforcement == Enforcement::Host && self.inside.is_none()
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
        ids: Ids {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            groups: groups.into_iter().map(|gid| gid.as_raw()).collect(),
        },
        inside: None,
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
pub fn check_mode(who: &Credentials, attr: &Attr, wanted: u32) -> Result<(), Errno> {
    let granted = match who.enforcement {
        Enforcement::Host => who.is_granted_inside(attr, wanted),
        Enforcement::ModeBits => who.granted(attr, wanted),
    };
    if granted { Ok(()) } else { Err(Errno::EACCES) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::{MAY_READ, MAY_WRITE, S_IFREG};

    fn ids(uid: u32) -> Ids {
        Ids {
            uid,
            gid: uid,
            groups: Arc::default(),
        }
    }

    fn file(uid: u32, mode: u32) -> Attr {
        Attr {
            uid,
            gid: uid,
            mode: S_IFREG | mode,
            ..Attr::default()
        }
    }

    #[test]
    fn another_user_inside_gets_what_both_may_have() {
        for enforcement in [Enforcement::Host, Enforcement::ModeBits] {
            let who = Credentials {
                ids: ids(0),
                inside: Some(ids(33)),
                enforcement,
            };
            let refused = Err(Errno::EACCES);
            assert_eq!(check_mode(&who, &file(0, 0o600), MAY_READ), refused);
            assert_eq!(check_mode(&who, &file(0, 0o644), MAY_READ), Ok(()));
            assert_eq!(check_mode(&who, &file(0, 0o644), MAY_WRITE), refused);
            // Root on the host reads it by being root, and the mode bits are what counts.
            let of_other = check_mode(&who, &file(33, 0o600), MAY_READ);
            let by_host = enforcement == Enforcement::Host;
            assert_eq!(of_other, if by_host { Ok(()) } else { refused });
            assert!(!who.granted(&file(33, 0o600), MAY_READ));
            assert!(!who.owns(&file(33, 0o600)) && !who.owns(&file(0, 0o600)));
        }
    }

    #[test]
    fn the_same_user_is_checked_as_before() {
        let who = Credentials {
            ids: ids(0),
            inside: None,
            enforcement: Enforcement::Host,
        };
        assert_eq!(check_mode(&who, &file(33, 0), MAY_READ), Ok(()));
        assert!(who.are_enforced_by_host() && who.owns(&file(0, 0)));
    }
}
