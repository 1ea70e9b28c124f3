//! The purpose that a path is to be resolved for, and the limits of that.

use std::sync::Arc;

use bitflags::bitflags;
use kvmlet_hostfs::HostFd;

use super::Dir;

bitflags! {
    /// Limits on a resolution (openat2(2) `resolve`), with Linux's values.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Resolve: u64 {
        /// RESOLVE_NO_XDEV
        const NO_XDEV = 1;
        /// RESOLVE_NO_MAGICLINKS
        const NO_MAGICLINKS = 2;
        /// RESOLVE_NO_SYMLINKS
        const NO_SYMLINKS = 4;
        /// RESOLVE_BENEATH
        const BENEATH = 8;
        /// RESOLVE_IN_ROOT
        const IN_ROOT = 16;
    }
}

/// The treatment of the last component.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Last {
    /// It is looked up; a symbolic link is followed.
    Follow,
    /// It is looked up; a symbolic link is the answer.
    NoFollow,
    /// As `Follow`, but it may be missing ([`Walked::Missing`]).
    Create,
    /// As `NoFollow`, but it may be missing.
    CreateExclusive,
    /// It is not looked up: always [`Walked::Missing`].
    Parent,
}

/// The intention of the caller: decides how a denial reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Intent {
    /// Look or read.
    Read,
    /// Change something.
    Write,
}

/// The place where a relative path starts.
#[derive(Clone, Debug)]
pub struct Start {
    /// The directory.
    pub dir: Dir,
    /// Its descriptor, if it is a host directory that is open: a single name is looked up there, as
    /// Linux does.
    /// Linux differs: longer paths go by the directory's path, should it have been moved meanwhile.
    pub open: Option<Arc<HostFd>>,
}

impl From<Dir> for Start {
    fn from(dir: Dir) -> Self {
        Self { dir, open: None }
    }
}

/// A path to be resolved.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The call's name, for denials.
    pub call: &'static str,
    /// The place where a relative path starts.
    pub start: Start,
    /// The path as given.
    pub path: &'a [u8],
    /// The treatment of its last component.
    pub last: Last,
    /// The purpose of resolving it.
    pub intent: Intent,
    /// Limits.
    pub resolve: Resolve,
}

impl Request<'_> {
    /// True if it looks for a socket to send to: no option shows one of the host's.
    pub(super) fn is_for_socket(&self) -> bool {
        matches!(self.call, "connect" | "sendto" | "sendmsg" | "sendmmsg")
    }
}
